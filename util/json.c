#include "util/json.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"

int json_parse_object(json_t **ret, const char *text, size_t len, const char *what,
	struct errmsg *err)
{
	json_error_t fault;
	json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &fault);
	if (!root) {
		if (json_error_code(&fault) == json_error_out_of_memory) {
			return -ENOMEM;
		}
		return errmsg_set(err, STATUS_INVALID, "%s:%d:%d: %s", what, fault.line, fault.column,
			fault.text);
	}
	if (!json_is_object(root)) {
		json_decref(root);
		return errmsg_set(err, STATUS_INVALID, "%s: must be a JSON object", what);
	}
	*ret = root;
	return 0;
}

struct json_text json_short(const json_t *value)
{
	struct json_text t;
	_cleanup_(freep) char *full = json_is_object(value) || json_is_array(value)
		? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
	if (full) {
		size_t n = strlen(full), cap = sizeof(t.s) - 4;
		snprintf(t.s, sizeof(t.s), "%.*s%s", (int)(n > cap ? cap : n), full, n > cap ? "…" : "");
	} else {
		snprintf(t.s, sizeof(t.s), "%s", json_is_object(value) ? "an object" : "an array");
	}
	return t;
}

/* The field, or NULL where it is missing or null. */
static const json_t *field(const json_t *o, const char *key)
{
	const json_t *v = json_object_get(o, key);
	return json_is_null(v) ? NULL : v;
}

int json_get_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *ret,
	const char *what, struct errmsg *err)
{
	const json_t *v = field(o, key);
	if (v && (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi)) {
		return errmsg_set(err, STATUS_INVALID, "%s: '%s' is %s; it must be a whole number from %"
			PRId64 " to %" PRId64, what, key, json_short(v).s, lo, hi);
	}
	*ret = v ? json_integer_value(v) : *ret;
	return 0;
}

int json_get_real(const json_t *o, const char *key, double lo, double hi, double *ret,
	const char *what, struct errmsg *err)
{
	const json_t *v = field(o, key);
	double x = json_number_value(v);
	if (v && (!json_is_number(v) || !isfinite(x) || x < lo || x > hi)) {
		return errmsg_set(err, STATUS_INVALID, "%s: '%s' is %s; it must be a number from %g to %g",
			what, key, json_short(v).s, lo, hi);
	}
	*ret = v ? x : *ret;
	return 0;
}

int json_get_bool(const json_t *o, const char *key, bool *ret, const char *what, struct errmsg *err)
{
	const json_t *v = field(o, key);
	if (v && !json_is_boolean(v)) {
		return errmsg_set(err, STATUS_INVALID, "%s: '%s' is %s; it must be true or false", what,
			key, json_short(v).s);
	}
	*ret = v ? json_is_true(v) : *ret;
	return 0;
}

int json_get_string(const json_t *o, const char *key, const char **ret, const char *what,
	struct errmsg *err)
{
	const json_t *v = field(o, key);
	if (v && !json_is_string(v)) {
		return errmsg_set(err, STATUS_INVALID, "%s: '%s' is %s; it must be a string", what, key,
			json_short(v).s);
	}
	*ret = v ? json_string_value(v) : *ret;
	return 0;
}
