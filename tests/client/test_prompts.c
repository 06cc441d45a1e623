/* Files of prompts, good and bad. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/prompts.h"
#include "util/cleanup.h"
#include "util/util.h"

static int read_text(struct prompts *p, const char *text, size_t len, struct errmsg *err)
{
	char path[] = "/tmp/peftd-prompts-XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, len), (ssize_t)len);
	close(fd);
	int r = prompts_read(p, path, err);
	unlink(path);
	return r;
}

static void test_good(void **state)
{
	static const char text[] = "{\"prompt\": \"a\\n\\\"b\\\" \\u00e9 \\ud83d\\ude42 \\/\", \"adapter\": \"12@3\"}\n"
		"\n \t\n"
		"  { \"adapter\" : null , \"prompt\" : \"\" }  \r\n"
		"\"just a string \xE6\x9D\xB1\"\n"
		"{\"prompt\":\"last\"}";
	struct prompts p = {0};
	struct errmsg err = {0};
	assert_int_equal(read_text(&p, text, sizeof(text) - 1, &err), 0);
	assert_int_equal(p.n, 4);
	assert_string_equal(p.items[0].text, "a\n\"b\" \xC3\xA9 \xF0\x9F\x99\x82 /");
	assert_int_equal(p.items[0].len, strlen(p.items[0].text));
	assert_string_equal(p.items[0].adapter, "12@3");
	assert_true(p.items[1].bare && !p.items[1].adapter && p.items[1].len == 0);
	assert_string_equal(p.items[2].text, "just a string \xE6\x9D\xB1");
	assert_true(!p.items[2].bare && !p.items[2].adapter);
	assert_string_equal(p.items[3].text, "last");
	prompts_deinit(&p);
}

static void test_bad(void **state)
{
	static const struct {
		const char *line, *says;
	} cases[] = {
		{"{\"prompt\": \"a\"", "end of the object"},
		{"{\"prompt\": 1}", "a string"},
		{"{\"prompt\": \"a}", "end of the string"},
		{"{\"prompt\": \"a\\x\"}", "escape"},
		{"{\"prompt\": \"\\ud83d\"}", "\\u"},
		{"{\"prompt\": \"\\ude42\"}", "\\u"},
		{"{\"prompt\": \"\\u0000\"}", "NUL"},
		{"{\"prompt\": \"\\u12\"}", "\\u"},
		{"{\"adapter\": \"1\"}", "`prompt`"},
		{"{\"prompt\": \"a\", \"seed\": 1}", "no other key"},
		{"{\"prompt\": \"a\"} x", "end of the line"},
		{"[1]", "an object or a string"},
		{"{\"prompt\" \"a\"}", "a colon"},
		{"{}", "a string"},
		{"{\"prompt\": \"\xFF\"}", "UTF-8"},
		{"", "no prompt"},
		{"\"", "end of the string"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct prompts p = {0};
		struct errmsg err = {0};
		int r = read_text(&p, cases[i].line, strlen(cases[i].line), &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].says)) {
			fail_msg("%s: %d: %s", cases[i].line, r, err.text);
		}
		prompts_deinit(&p);
	}
	struct prompts p = {0};
	struct errmsg err = {0};
	assert_int_equal(read_text(&p, "\"a\"\n{\"prompt\"}", 14, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, ":2: byte"));
	prompts_deinit(&p);
	assert_int_equal(prompts_read(&p, "/nonexistent/file", &err), STATUS_NOT_FOUND);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_bad),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
