#include "util/buf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/util.h"

void buf_deinit(struct buf *b)
{
	free(b->data);
	*b = (struct buf){0};
}

int buf_reserve(struct buf *b, size_t extra)
{
	size_t need, cap = b->cap ? b->cap : 64;
	if (!add_size(b->len, extra, &need)) {
		return -ENOMEM;
	}
	if (need <= b->cap) {
		return 0;
	}
	while (cap < need) {
		if (!mul_size(cap, 2, &cap)) {
			return -ENOMEM;
		}
	}
	uint8_t *data = realloc(b->data, cap);
	if (!data) {
		return -ENOMEM;
	}
	b->data = data;
	b->cap = cap;
	return 0;
}

int buf_append(struct buf *b, const void *data, size_t len)
{
	int r = buf_reserve(b, len);
	if (r < 0) {
		return r;
	}
	if (len > 0) {
		memcpy(b->data + b->len, data, len);
	}
	b->len += len;
	return 0;
}

int buf_appendf(struct buf *b, const char *fmt, ...)
{
	va_list ap, again;
	va_start(ap, fmt);
	va_copy(again, ap);
	int n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);

	int r = n < 0 ? -EINVAL : buf_reserve(b, (size_t)n + 1);
	if (r == 0) {
		vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, again);
		b->len += (size_t)n;
	}
	va_end(again);
	return r;
}

char *buf_cstr(struct buf *b)
{
	if (buf_reserve(b, 1) < 0) {
		return NULL;
	}
	b->data[b->len] = '\0';
	return (char *)b->data;
}

char *buf_steal(struct buf *b, size_t *ret_len)
{
	char *s = buf_cstr(b);
	if (!s) {
		return NULL;
	}
	if (ret_len) {
		*ret_len = b->len;
	}
	*b = (struct buf){0};
	return s;
}
