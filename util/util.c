#include "util/util.h"

#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "peftd runs on little-endian machines");

void *alloc_array(size_t n, size_t size)
{
	size_t bytes;
	return mul_size(n, size, &bytes) ? malloc(bytes ? bytes : 1) : NULL;
}

void *calloc_array(size_t n, size_t size)
{
	return calloc(n ? n : 1, size ? size : 1);
}

void *realloc_array(void *p, size_t n, size_t size)
{
	size_t bytes;
	return mul_size(n, size, &bytes) ? realloc(p, bytes ? bytes : 1) : NULL;
}

static int64_t clock_ns(clockid_t id)
{
	struct timespec ts;
	clock_gettime(id, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t clock_monotonic_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

int64_t clock_wall_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

/* Length of the well-formed sequence at p (Unicode 15, table 3-7), 0 if there is none. */
static size_t utf8_sequence(const uint8_t *p, size_t left)
{
	uint8_t lo = 0x80, hi = 0xBF;
	size_t n;

	if (p[0] < 0x80) {
		return 1;
	} else if (p[0] >= 0xC2 && p[0] <= 0xDF) {
		n = 2;
	} else if (p[0] >= 0xE0 && p[0] <= 0xEF) {
		n = 3;
		lo = p[0] == 0xE0 ? 0xA0 : lo;
		hi = p[0] == 0xED ? 0x9F : hi;
	} else if (p[0] >= 0xF0 && p[0] <= 0xF4) {
		n = 4;
		lo = p[0] == 0xF0 ? 0x90 : lo;
		hi = p[0] == 0xF4 ? 0x8F : hi;
	} else {
		return 0;
	}
	if (left < n || p[1] < lo || p[1] > hi) {
		return 0;
	}
	for (size_t i = 2; i < n; i++) {
		if ((p[i] & 0xC0) != 0x80) {
			return 0;
		}
	}
	return n;
}

bool utf8_valid(const void *data, size_t len, size_t *ret_offset)
{
	const uint8_t *p = data;
	for (size_t i = 0; i < len;) {
		size_t n = utf8_sequence(p + i, len - i);
		if (n == 0) {
			if (ret_offset) {
				*ret_offset = i;
			}
			return false;
		}
		i += n;
	}
	return true;
}

bool name_valid(const void *data, size_t len)
{
	const uint8_t *p = data;
	if (len < 1 || len > 128 || p[0] == '.' || p[0] == '-' || !utf8_valid(data, len, NULL)) {
		return false;
	}
	for (size_t i = 0; i < len; i++) {
		bool c1_control = p[i] == 0xC2 && i + 1 < len && p[i + 1] < 0xA0;
		if (p[i] < 0x20 || p[i] == 0x7F || p[i] == '/' || c1_control) {
			return false;
		}
	}
	return true;
}

unsigned edit_distance(const char *a, const char *b)
{
	enum { MAX = 64 };
	size_t la = strnlen(a, MAX), lb = strnlen(b, MAX);
	unsigned row[MAX + 1];

	for (size_t j = 0; j <= lb; j++) {
		row[j] = (unsigned)j;
	}
	for (size_t i = 1; i <= la; i++) {
		unsigned diagonal = row[0];
		row[0] = (unsigned)i;
		for (size_t j = 1; j <= lb; j++) {
			unsigned best = diagonal + (a[i - 1] != b[j - 1]);
			diagonal = row[j];
			best = best < row[j] + 1 ? best : row[j] + 1;
			best = best < row[j - 1] + 1 ? best : row[j - 1] + 1;
			row[j] = best;
		}
	}
	return row[lb];
}

void hex_encode(char *out, const void *data, size_t n)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *p = data;
	for (size_t i = 0; i < n; i++) {
		out[2 * i] = digits[p[i] >> 4];
		out[2 * i + 1] = digits[p[i] & 15];
	}
	out[2 * n] = '\0';
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9') {
		return c - '0';
	}
	if (c >= 'a' && c <= 'f') {
		return c - 'a' + 10;
	}
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool hex_decode(void *out, size_t n, const char *hex)
{
	uint8_t *p = out;
	if (strlen(hex) != 2 * n) {
		return false;
	}
	for (size_t i = 0; i < n; i++) {
		int hi = hex_digit(hex[2 * i]), lo = hex_digit(hex[2 * i + 1]);
		if (hi < 0 || lo < 0) {
			return false;
		}
		p[i] = (uint8_t)(hi << 4 | lo);
	}
	return true;
}

void random_bytes(void *p, size_t n)
{
	uint8_t *at = p;
	while (n > 0) {
		ssize_t got = getrandom(at, n, 0);
		if (got > 0) {
			at += got;
			n -= (size_t)got;
		}
	}
}
