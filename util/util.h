#pragma once
/* Small things everything uses: checked arithmetic, clocks, UTF-8, little-endian access. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline size_t align_up(size_t n, size_t align) { return (n + align - 1) / align * align; }

/* Checked arithmetic for sizes that come from outside: false, and *ret untouched, on overflow. */
static inline bool mul_size(size_t a, size_t b, size_t *ret)
{
	size_t r;
	if (__builtin_mul_overflow(a, b, &r)) {
		return false;
	}
	*ret = r;
	return true;
}

static inline bool add_size(size_t a, size_t b, size_t *ret)
{
	size_t r;
	if (__builtin_add_overflow(a, b, &r)) {
		return false;
	}
	*ret = r;
	return true;
}

/* malloc(n * size) and its zeroed and resizing kin; NULL on overflow or lack of memory. */
void *alloc_array(size_t n, size_t size);
void *calloc_array(size_t n, size_t size);
void *realloc_array(void *p, size_t n, size_t size);

/* Nanoseconds. Monotonic time decides; wall time is recorded for people. */
int64_t clock_monotonic_ns(void);
int64_t clock_wall_ns(void);

/* True when `data` is well-formed UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
 * Otherwise, where ret_offset is not NULL, *ret_offset is the offset of the first bad byte. */
bool utf8_valid(const void *data, size_t len, size_t *ret_offset);

/* True when `data` may be a name: 1 to 128 bytes of well-formed UTF-8 without control characters,
 * '/', or a leading '.' or '-'. Names come from users and must never become paths or options. */
bool name_valid(const void *data, size_t len);

/* Levenshtein distance of two NUL-terminated strings, for "did you mean"; at most 64 bytes each are
 * looked at. */
unsigned edit_distance(const char *a, const char *b);

/* Unaligned little-endian reads and writes (files and frames). */
static inline uint16_t le16_read(const void *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t le32_read(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t le64_read(const void *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void le32_write(void *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void le64_write(void *p, uint64_t v) { memcpy(p, &v, 8); }

/* Lower-case hexadecimal of `n` bytes into out[2n+1]; and back: false when `hex` is not exactly n
 * bytes in hexadecimal. */
void hex_encode(char *out, const void *data, size_t n);
bool hex_decode(void *out, size_t n, const char *hex);

/* Fills `p` with `n` bytes from the kernel's random source. */
void random_bytes(void *p, size_t n);
