#pragma once
/* A growable run of bytes. */

#include <stddef.h>
#include <stdint.h>

struct buf {
	uint8_t *data; /* owned; NULL while empty */
	size_t len;
	size_t cap;
};

void buf_deinit(struct buf *b);

/* Makes room for `extra` more bytes. All of these: 0, or -ENOMEM with the contents unharmed. */
int buf_reserve(struct buf *b, size_t extra);
int buf_append(struct buf *b, const void *data, size_t len);
int buf_appendf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Appends a NUL that does not count in `len` and returns the contents as a string, which stays
 * owned by `b`; NULL without memory. */
char *buf_cstr(struct buf *b);

/* Hands the contents, NUL-terminated, to the caller, who frees them; `b` is empty after that. */
char *buf_steal(struct buf *b, size_t *ret_len);
