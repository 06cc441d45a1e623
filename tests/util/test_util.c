#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/buf.h"
#include "util/cleanup.h"
#include "util/errmsg.h"
#include "util/log.h"
#include "util/util.h"

static void errmsg_keeps_code_and_text(void **state)
{
	struct errmsg err = {0};
	assert_int_equal(errmsg_set(&err, STATUS_INVALID, "line %d", 7), STATUS_INVALID);
	assert_string_equal(err.text, "line 7");
	assert_int_equal(errmsg_prefix(&err, STATUS_INVALID, "job.%s", "yaml"), STATUS_INVALID);
	assert_string_equal(err.text, "job.yaml: line 7");
	assert_int_equal(errmsg_set(NULL, -ENOMEM, "nobody listens"), -ENOMEM);
}

static void errmsg_cuts_what_is_too_long(void **state)
{
	struct errmsg err = {0};
	char longer[3000];
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	errmsg_set(&err, STATUS_FAILED, "%s", longer);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	errmsg_prefix(&err, STATUS_FAILED, "%s", longer);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
}

static void status_names(void **state)
{
	assert_string_equal(status_name(STATUS_OK), "ok");
	assert_string_equal(status_name(STATUS_WONT_FIT), "wont_fit");
	assert_string_equal(status_name(STATUS_CANCELLED), "cancelled");
	assert_string_equal(status_name(99), "unknown");
	assert_string_equal(status_name(-1), "unknown");
}

static void checked_sizes(void **state)
{
	size_t r = 5;
	assert_true(mul_size(6, 7, &r));
	assert_int_equal(r, 42);
	assert_false(mul_size(SIZE_MAX / 2, 3, &r));
	assert_int_equal(r, 42);
	assert_false(add_size(SIZE_MAX, 1, &r));
	assert_int_equal(r, 42);
	assert_null(alloc_array(SIZE_MAX / 4, 8));
	assert_null(realloc_array(NULL, SIZE_MAX / 4, 8));
	assert_int_equal(align_up(65, 64), 128);
	assert_int_equal(align_up(64, 64), 64);
}

static void utf8(void **state)
{
	static const struct {
		const char *s;
		size_t len;
		int bad; /* -1: well-formed */
	} cases[] = {
		{"", 0, -1},
		{"a\0b", 3, -1},
		{"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 9, -1},
		{"\xEF\xBF\xBF\xF4\x8F\xBF\xBF", 7, -1},
		{"ok\x80", 3, 2},
		{"\xC0\xAF", 2, 0},             /* overlong */
		{"\xE0\x9F\xBF", 3, 0},         /* overlong */
		{"x\xED\xA0\x80", 4, 1},        /* surrogate */
		{"\xF0\x8F\xBF\xBF", 4, 0},     /* overlong */
		{"\xF4\x90\x80\x80", 4, 0},     /* above U+10FFFF */
		{"\xF5\x80\x80\x80", 4, 0},
		{"abc\xE2\x82", 5, 3},          /* cut short */
		{"\xE2\x82(", 3, 0},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		size_t bad = 99;
		bool ok = utf8_valid(cases[i].s, cases[i].len, &bad);
		assert_int_equal(ok, cases[i].bad < 0);
		if (!ok) {
			assert_int_equal(bad, cases[i].bad);
		}
	}
}

static void names(void **state)
{
	static const char *const good[] = {"a", "gsm8k-test", "modèle 2", "日本", "a.b"};
	static const char *const bad[] = {"", ".hidden", "-rf", "a/b", "..", "a\nb", "\x7F", "\xC2\x85",
		"\xFF"};
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		assert_true(name_valid(good[i], strlen(good[i])));
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_false(name_valid(bad[i], strlen(bad[i])));
	}
	char longest[130];
	memset(longest, 'n', sizeof(longest));
	assert_true(name_valid(longest, 128));
	assert_false(name_valid(longest, 129));
	assert_false(name_valid("a\0b", 3));
}

static void distances(void **state)
{
	assert_int_equal(edit_distance("max_steps", "max_steps"), 0);
	assert_int_equal(edit_distance("max_step", "max_steps"), 1);
	assert_int_equal(edit_distance("kitten", "sitting"), 3);
	assert_int_equal(edit_distance("", "abc"), 3);
}

static void hexadecimal(void **state)
{
	uint8_t bytes[4] = {0x00, 0xAB, 0x10, 0xFF}, back[4];
	char text[9];
	hex_encode(text, bytes, sizeof(bytes));
	assert_string_equal(text, "00ab10ff");
	assert_true(hex_decode(back, sizeof(back), "00AB10fF"));
	assert_memory_equal(back, bytes, sizeof(bytes));
	assert_false(hex_decode(back, sizeof(back), "00AB10f"));
	assert_false(hex_decode(back, sizeof(back), "00AB10fg"));
}

static void buffers(void **state)
{
	struct buf b = {0};
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(buf_appendf(&b, "%d,", i), 0);
	}
	assert_int_equal(b.len, 10 * 2 + 90 * 3 + 900 * 4);
	assert_int_equal(buf_append(&b, "end", 3), 0);
	assert_int_equal(buf_reserve(&b, SIZE_MAX), -ENOMEM);
	assert_string_equal(buf_cstr(&b) + b.len - 7, "999,end");

	size_t len;
	_cleanup_(freep) char *s = buf_steal(&b, &len);
	assert_int_equal(strlen(s), len);
	assert_null(b.data);
	buf_deinit(&b);
}

static void log_levels(void **state)
{
	enum log_level level = LOG_LEVEL_INFO;
	assert_int_equal(log_level_parse("debug", &level), 0);
	assert_int_equal(level, LOG_LEVEL_DEBUG);
	assert_int_equal(log_level_parse("loud", &level), -EINVAL);
	assert_int_equal(level, LOG_LEVEL_DEBUG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(errmsg_keeps_code_and_text),
		cmocka_unit_test(errmsg_cuts_what_is_too_long),
		cmocka_unit_test(status_names),
		cmocka_unit_test(checked_sizes),
		cmocka_unit_test(utf8),
		cmocka_unit_test(names),
		cmocka_unit_test(distances),
		cmocka_unit_test(hexadecimal),
		cmocka_unit_test(buffers),
		cmocka_unit_test(log_levels),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
