#include "tests/text/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/util.h"

void golden_path(const char *file, char *path, size_t size)
{
	snprintf(path, size, "%s/%s", TEXT_GOLDEN_DIR, file);
}

char *golden_read(const char *file, size_t *ret_len)
{
	char path[512];
	golden_path(file, path, sizeof(path));
	FILE *f = fopen(path, "rb");
	if (!f) {
		fail_msg("%s: cannot be opened", path);
	}
	struct buf b = {0};
	for (;;) {
		assert_int_equal(buf_reserve(&b, 65536), 0);
		size_t n = fread(b.data + b.len, 1, 65536, f);
		b.len += n;
		if (n == 0) {
			break;
		}
	}
	fclose(f);
	return buf_steal(&b, ret_len);
}

json_t *golden_json(const char *file)
{
	size_t len;
	json_error_t e;
	char *text = golden_read(file, &len);
	json_t *j = json_loadb(text, len, JSON_ALLOW_NUL, &e);
	free(text);
	if (!j) {
		fail_msg("%s: %s", file, e.text);
	}
	return j;
}

struct tokenizer *golden_tokenizer(const char *name)
{
	char file[128];
	size_t len;
	struct errmsg err = {0};
	struct tokenizer *t = NULL;
	snprintf(file, sizeof(file), "%s.tokenizer.json", name);
	char *json = golden_read(file, &len);
	if (tokenizer_new_json(&t, json, len, file, &err) != 0) {
		fail_msg("%s", err.text);
	}
	free(json);
	return t;
}

void assert_ids(const struct tokenizer *t, const char *text, size_t len, bool add_special,
	const json_t *expected, const char *what)
{
	struct ids ids = {0};
	struct errmsg err = {0};
	if (tokenizer_encode(t, text, len, add_special, &ids, &err) != 0) {
		fail_msg("%s: %s", what, err.text);
	}
	size_t n = json_array_size(expected);
	for (size_t i = 0; i < n && i < ids.len; i++) {
		json_int_t id = json_integer_value(json_array_get(expected, i));
		if (ids.data[i] != id) {
			fail_msg("%s: id %zu is %d and should be %lld", what, i, ids.data[i], (long long)id);
		}
	}
	if (ids.len != n) {
		fail_msg("%s: %zu ids and should be %zu", what, ids.len, n);
	}
	ids_deinit(&ids);
}

uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9E3779B97F4A7C15u;
	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
	z = (z ^ z >> 27) * 0x94D049BB133111EBu;
	return z ^ z >> 31;
}

char *random_text(uint64_t *state, size_t code_points, size_t *ret_len)
{
	static const char *const pieces[] = {" ", " ", "  ", "\n", "\r\n", "\t", "'", "'s", "'LL",
		"'re", "'\xC5\xBF", "a", "B", "the", "x", "1", "23", ".", "--", "!", "\xC3\xA9",
		"e\xCC\x81", "\xE6\x97\xA5", "\xF0\x9F\x98\x80", "\xE2\x80\x8D", "\xC2\xA0", "\xE3\x80\x80",
		"\xE2\x85\xA7", "\xD9\xA3", "\xE1\xA0\x8E", "<|im_end|>"};
	struct buf b = {0};
	for (size_t i = 0; i < code_points; i++) {
		uint64_t r = next_random(state);
		uint8_t text[4];
		size_t n;
		if (r % 4 > 0) {
			const char *piece = pieces[(r >> 8) % ARRAY_LEN(pieces)];
			assert_int_equal(buf_append(&b, piece, strlen(piece)), 0);
			continue;
		}
		uint32_t c = (uint32_t)(r >> 8) % (r % 8 == 0 ? 0x110000 : 0x3100);
		c = c >= 0xD800 && c < 0xE000 ? 'z' : c;
		n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
		static const uint8_t heads[] = {0, 0, 0xC0, 0xE0, 0xF0};
		for (size_t k = n; k-- > 1; c >>= 6) {
			text[k] = (uint8_t)(0x80 | (c & 0x3F));
		}
		text[0] = (uint8_t)(heads[n] | c);
		assert_int_equal(buf_append(&b, text, n), 0);
	}
	return buf_steal(&b, ret_len);
}
