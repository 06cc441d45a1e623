#include "util/errmsg.h"

#include <stdio.h>
#include <string.h>

#include "util/util.h"

/* Messages quote names from outside and are cut to size; either may leave half a character. */
static void repair_utf8(struct errmsg *err)
{
	size_t at = 0, len = strlen(err->text), bad;
	while (!utf8_valid(err->text + at, len - at, &bad)) {
		at += bad;
		err->text[at++] = '?';
	}
}

int errmsg_set(struct errmsg *err, int code, const char *fmt, ...)
{
	if (err) {
		va_list ap;
		va_start(ap, fmt);
		vsnprintf(err->text, sizeof(err->text), fmt, ap);
		va_end(ap);
		repair_utf8(err);
	}
	return code;
}

int errmsg_prefix(struct errmsg *err, int code, const char *fmt, ...)
{
	if (err) {
		char old[sizeof(err->text)];
		memcpy(old, err->text, sizeof(old));

		va_list ap;
		va_start(ap, fmt);
		int n = vsnprintf(err->text, sizeof(err->text), fmt, ap);
		va_end(ap);
		if (n >= 0 && (size_t)n < sizeof(err->text)) {
			snprintf(err->text + n, sizeof(err->text) - (size_t)n, ": %s", old);
		}
		repair_utf8(err);
	}
	return code;
}

const char *status_name(int code)
{
	static const char *const names[] = {
		[STATUS_OK] = "ok",
		[STATUS_INVALID] = "invalid",
		[STATUS_NOT_FOUND] = "not_found",
		[STATUS_CONFLICT] = "conflict",
		[STATUS_DENIED] = "denied",
		[STATUS_QUOTA] = "quota",
		[STATUS_WONT_FIT] = "wont_fit",
		[STATUS_FAILED] = "failed",
		[STATUS_UNAVAILABLE] = "unavailable",
		[STATUS_INTERNAL] = "internal",
		[STATUS_COMPACTED] = "compacted",
		[STATUS_DISK_FULL] = "disk_full",
		[STATUS_VERSION] = "version",
		[STATUS_CANCELLED] = "cancelled",
	};
	if (code < 0 || (size_t)code >= sizeof(names) / sizeof(names[0])) {
		return "unknown";
	}
	return names[code];
}
