/* Answers cut into tokens in every way: stop texts and characters across their bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/trainer/stream.h"
#include "tests/support/tiny.h"
#include "util/cleanup.h"
#include "util/util.h"

static struct tokenizer *tokenizer; /* a token a byte */

static int setup(void **state)
{
	struct errmsg err = {0};
	_cleanup_(freep) char *dir = tiny_tempdir();
	_cleanup_(freep) char *model = tiny_path(dir, "model");
	struct model_files *files = NULL;
	tiny_model_write(model, 1);
	int r = model_files_open(&files, model, &err);
	r = r ? r : tokenizer_new(&tokenizer, files, &err);
	*state = files;
	tiny_remove_tree(dir);
	return r;
}

static int teardown(void **state)
{
	tokenizer_free(tokenizer);
	model_files_free(*state);
	return 0;
}

/* The text that comes of these bytes, a byte a token; what is given on after each is checked to be whole
 * characters and never to be taken back. */
static void expect(const char *bytes, const char *const *stops, const char *want, bool stopped)
{
	struct text list[4] = {0};
	struct stream s = {.stops = list};
	for (; stops && stops[s.n_stops]; s.n_stops++) {
		list[s.n_stops] = (struct text){(char *)stops[s.n_stops], strlen(stops[s.n_stops])};
	}
	for (size_t i = 0; bytes[i] && !s.stopped; i++) {
		size_t before = s.text.len;
		assert_int_equal(stream_add(&s, tokenizer, TINY_BYTE + (uint8_t)bytes[i]), 0);
		assert_true(s.text.len >= before);
		assert_true(utf8_valid(s.text.data, s.text.len, NULL));
		assert_true(s.text.len == 0 || strncmp((char *)s.text.data, want, s.text.len) == 0);
	}
	assert_int_equal(s.stopped, stopped);
	if (!s.stopped) {
		assert_int_equal(stream_end(&s), 0);
	}
	assert_int_equal(s.text.len, strlen(want));
	assert_memory_equal(s.text.len ? (char *)s.text.data : "", want, s.text.len);
	stream_deinit(&s);
}

static void test_characters(void **state)
{
	expect("plain", NULL, "plain", false);
	expect("na\xC3\xAFve \xE6\x9D\xB1 \xF0\x9F\x99\x82", NULL, "na\xC3\xAFve \xE6\x9D\xB1 \xF0\x9F\x99\x82",
		false);
	/* Cut off, or no character at all. */
	expect("a\xE6\x9D", NULL, "a\xEF\xBF\xBD", false);
	expect("a\xFF" "b\xC3(", NULL, "a\xEF\xBF\xBD" "b\xEF\xBF\xBD(", false);
}

static void test_stops(void **state)
{
	const char *const end[] = {"END", NULL};
	expect("some text END more", end, "some text ", true);
	expect("some text EN", end, "some text EN", false);
	expect("EEND", end, "E", true);
	expect("ENEND", end, "EN", true);
	expect("END", end, "", true);
	expect("no such word", end, "no such word", false);
	const char *const overlapping[] = {"abab", NULL};
	expect("ababab", overlapping, "", true);
	expect("aabab", overlapping, "a", true);
	expect("abaabab", overlapping, "aba", true);
	const char *const several[] = {"\n\n", "Question:", "stop", NULL};
	expect("an answer\n\nQuestion:", several, "an answer", true);
	expect("an answer\nQuestion: x", several, "an answer\n", true);
	expect("st stop", several, "st ", true);
}

static void test_stops_in_characters(void **state)
{
	const char *const east[] = {"\xE6\x9D\xB1", NULL};
	/* The first two bytes are those of another character, too. */
	expect("a\xE6\x9D\xB0\xE6\x9D\xB1z", east, "a\xE6\x9D\xB0", true);
	expect("a\xE6\x9D\xB2", east, "a\xE6\x9D\xB2", false);
	const char *const mixed[] = {"\xC3\xA9!", NULL};
	expect("caf\xC3\xA9 caf\xC3\xA9!", mixed, "caf\xC3\xA9 caf", true);
	expect("caf\xC3\xA9", mixed, "caf\xC3\xA9", false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_characters),
		cmocka_unit_test(test_stops),
		cmocka_unit_test(test_stops_in_characters),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
