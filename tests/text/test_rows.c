#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/text/text.h"
#include "util/util.h"

#define PC "{\"prompt\": \"a\", \"completion\": \"b\"}"

struct outcome {
	int result;
	struct rows_check check;
	struct errmsg err;
	char faults[4096];
};

static struct outcome check_bytes(const char *data, size_t len, const struct rows_spec *spec)
{
	struct outcome o = {0};
	struct buf faults = {0};
	const struct rows_file file = {.name = "f.jsonl", .size = len};
	o.result = rows_check(data, len, &file, 1, spec, &o.check, &faults, &o.err);
	snprintf(o.faults, sizeof(o.faults), "%s", buf_cstr(&faults));
	buf_deinit(&faults);
	return o;
}

static struct outcome check(const char *data)
{
	return check_bytes(data, strlen(data), NULL);
}

static void test_formats(void **state)
{
	static const struct {
		const char *data, *format;
		unsigned rows;
	} cases[] = {
		{PC, "prompt-completion", 1},
		{PC "\n" PC "\n", "prompt-completion", 2},
		{PC "\r\n" PC "\r\n\r\n \t\n", "prompt-completion", 2},
		{"  " PC "  \n", "prompt-completion", 1},
		{"{\"prompt\": \"\", \"completion\": \"b\", \"id\": 12345678901234567890123, \"x\": [{}]}",
			"prompt-completion", 1},
		{"{\"messages\": [{\"role\": \"user\", \"content\": \"\", \"name\": \"n\"}]}", "messages",
			1},
		{"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"},"
		 "{\"role\": \"assistant\", \"content\": \"b\", \"tool_calls\": null}], \"tools\": null}",
			"messages", 1},
		{"{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"n\": 1}]}]}",
			"messages", 1},
		{"{\"text\": \"a\", \"n\": 99999999999999999999}", "text", 1},
		{"{\"text\": \"\\u00e9 \xC3\xA9 \\ud83d\\ude00\"}", "text", 1},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct outcome o = check(cases[i].data);
		if (o.result != 0) {
			fail_msg("%s: %s", cases[i].data, o.err.text);
		}
		assert_int_equal(o.check.rows, cases[i].rows);
		assert_int_equal(o.check.faults, 0);
		assert_string_equal(row_format_name(o.check.format), cases[i].format);
		assert_string_equal(o.faults, "");
	}
}

static void test_fields(void **state)
{
	const struct rows_spec both = {"question", "answer"}, one = {"question", NULL};
	const char good[] = "{\"question\": \"a\", \"answer\": \"b\", \"text\": 3, \"messages\": 4}";
	const char mixed[] = "{\"question\": \"a\", \"completion\": \"b\"}";
	assert_int_equal(check_bytes(good, strlen(good), &both).result, 0);
	assert_int_equal(check_bytes(mixed, strlen(mixed), &one).result, 0);
	struct outcome o = check_bytes(mixed, strlen(mixed), &both);
	assert_int_equal(o.result, STATUS_INVALID);
	assert_non_null(strstr(o.faults, "no `answer`; the row has question, completion"));
	assert_non_null(strstr(check(good).faults, "only one of"));
}

/* One bad line: where, what, and what would be right. */
static void test_faults(void **state)
{
	static const struct {
		const char *line, *says;
	} cases[] = {
		{"[" PC "]",
			"f.jsonl:2: the line starts with `[`; each line must be one JSON object, {…}, "
			"without a list around them"},
		{"a,b", "starts with `a`"},
		{"\"x\"", "starts with `\"`"},
		{"\xC3\xA9", "starts with `\xC3\xA9`"},
		{"null", "starts with `n`"},
		{"{\"prompt\": \"a\"", "does not end"},
		{"{\"prompt\": \"a\",}", "byte 16: no JSON"},
		{"{'prompt': 1}", "no JSON"},
		{"{\"prompt\": NaN}", "no JSON"},
		{PC PC, "byte 35: there is more after the JSON object"},
		{PC "x", "more after"},
		{"{\"a\": 1, \"b\": 2}",
			"the row has a, b; it must have prompt and completion, messages, or text"},
		{"{}", "the row has no keys"},
		{"{\"prompt\": \"a\"}", "there is `prompt` but no `completion`"},
		{"{\"completion\": \"a\"}", "there is `completion` but no `prompt`"},
		{"{\"prompt\": 3, \"completion\": \"b\"}", "`prompt` is a number; it must be a string"},
		{"{\"prompt\": null, \"completion\": \"b\"}", "`prompt` is null"},
		{"{\"prompt\": [], \"completion\": \"b\"}", "for conversations use one list `messages`"},
		{"{\"prompt\": \"a\", \"completion\": \"\"}", "`completion` is empty"},
		{"{\"text\": \"\"}", "`text` is empty"},
		{"{\"text\": \"a\", \"messages\": []}", "only one of"},
		{"{\"messages\": {}}", "`messages` is an object; it must be a list"},
		{"{\"messages\": []}", "`messages` is empty"},
		{"{\"messages\": [1]}", "messages[0] is a number"},
		{"{\"messages\": [{\"content\": \"a\"}]}", "messages[0] has no `role`"},
		{"{\"messages\": [{\"from\": \"human\", \"value\": \"a\"}]}", "`from` and `value`"},
		{"{\"messages\": [{\"role\": \"user\"}]}", "messages[0].content is null"},
		{"{\"messages\": [{\"role\": \"user\", \"content\": [{}]}]}", "content is a list"},
		{"{\"messages\": [{\"role\": \"assistant\", \"content\": \"\"}]}", "content is empty"},
		{"{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": []}]}",
			"tool_calls is empty"},
		{"{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [1]}]}",
			"tool_calls[0] is a number"},
		{"{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"n\": 1}]}], "
		 "\"x\": 99999999999999999999}", "beyond 64 bits"},
		{"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": []}",
			"`tools` are not"},
		{"{\"prompt\": \"a\", \"prompt\": \"a\", \"completion\": \"b\"}", "only once"},
		{"{\"text\": \"a\\u0000\"}", "NUL"},
		{"{\"text\": \"\\ud800\"}", "no JSON"},
		{"{\"text\": \"a\tb\"}", "no JSON"},
		{"{\"text\": \"a\xFF\"}", "byte 12 (0xFF) is not UTF-8; save the file as UTF-8"},
		{"{\"text\": \"\xED\xA0\x80\"}", "is not UTF-8"},
		{"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
			"a row of format messages; the first "
			"row, f.jsonl:1, is prompt-completion"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char data[512];
		snprintf(data, sizeof(data), PC "\n%s\n" PC "\n", cases[i].line);
		struct outcome o = check(data);
		if (o.result != STATUS_INVALID || o.check.faults != 1 || o.check.rows != 3 ||
				strncmp(o.faults, "f.jsonl:2: ", 11) != 0 || !strstr(o.faults, cases[i].says)) {
			fail_msg("%s: %d, %llu faults: %s (should say %s)", cases[i].line, o.result,
				(unsigned long long)o.check.faults, o.faults, cases[i].says);
		}
		assert_non_null(strstr(o.err.text, "1 fault in 3 rows; the first: f.jsonl:2: "));
	}
}

static void test_ten_faults(void **state)
{
	char data[1024] = "";
	for (unsigned i = 0; i < 15; i++) {
		strcat(data, i == 3 ? PC "\n" : "{\n");
	}
	struct outcome o = check(data);
	unsigned lines = 0;
	assert_int_equal(o.result, STATUS_INVALID);
	assert_int_equal(o.check.faults, 14);
	assert_int_equal(o.check.rows, 15);
	for (const char *p = o.faults; *p; p++) {
		lines += *p == '\n';
	}
	assert_int_equal(lines, 10);
	assert_non_null(strstr(o.faults, "f.jsonl:11: "));
	assert_null(strstr(o.faults, "f.jsonl:12: "));
}

static void test_empty(void **state)
{
	assert_int_equal(check("").result, STATUS_INVALID);
	assert_int_equal(check("\n\r\n \n").result, STATUS_INVALID);
	assert_non_null(strstr(check("").err.text, "no rows"));
	struct outcome o = check(PC "\n\n\n" PC);
	assert_int_equal(o.result, STATUS_INVALID);
	assert_string_equal(o.faults, "f.jsonl:2: an empty line between rows; remove it\n");
}

static void test_encodings(void **state)
{
	assert_string_equal(check("\xEF\xBB\xBF" PC).faults,
		"f.jsonl:1: the file starts with a byte order mark; save it as UTF-8 without one\n");
	assert_non_null(strstr(check_bytes("\xFF\xFE{\0", 4, NULL).faults, "UTF-16"));
	assert_non_null(strstr(check_bytes("{\"text\": \"a\0b\"}", 15, NULL).faults, "f.jsonl:1: "));
	/* What the file says must not steer a terminal. */
	struct outcome o = check("{\"a\": \x1b[31m}");
	assert_int_equal(o.result, STATUS_INVALID);
	assert_null(strchr(o.faults, '\x1b'));
}

static void test_deep(void **state)
{
	struct buf data = {0};
	assert_int_equal(buf_appendf(&data, "{\"text\": "), 0);
	for (unsigned i = 0; i < 200000; i++) {
		assert_int_equal(buf_append(&data, i < 100000 ? "[" : "]", 1), 0);
	}
	assert_int_equal(buf_append(&data, "}", 1), 0);
	struct outcome o = check_bytes((char *)data.data, data.len, NULL);
	assert_int_equal(o.result, STATUS_INVALID);
	assert_non_null(strstr(o.faults, "nested too deep"));
	buf_deinit(&data);
}

/* Files are joined without anything between them; lines count from each file's start. */
static void test_files(void **state)
{
	const char data[] = PC "\n" PC PC "\n{}\n";
	const struct rows_file files[] = {
		{"one", 2 * strlen(PC) + 1}, {"empty", 0}, {"two", strlen(PC) + 4}};
	struct rows_check result;
	struct errmsg err = {0};
	struct buf faults = {0};
	assert_int_equal(rows_check(data, strlen(data), files, 3, NULL, &result, &faults, &err),
		STATUS_INVALID);
	assert_int_equal(result.rows, 4);
	assert_int_equal(result.faults, 1);
	assert_memory_equal(buf_cstr(&faults), "two:2: ", 7);
	buf_deinit(&faults);
	assert_int_equal(rows_check(data, strlen(data) - 4, files, 2, NULL, &result, &faults, &err),
		STATUS_INVALID);
	assert_non_null(strstr(err.text, "sizes"));
	assert_int_equal(rows_check(data, 10, files, 1, NULL, &result, &faults, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "sizes"));
	assert_int_equal(rows_check(PC, strlen(PC), NULL, 0, NULL, &result, &faults, &err), 0);
	buf_deinit(&faults);
}

static void test_first_format(void **state)
{
	enum row_format f = ROWS_TEXT;
	struct errmsg err = {0};
	assert_int_equal(rows_format(PC PC "\n[", strlen(PC PC "\n["), NULL, &f, &err), 0);
	assert_int_equal(f, ROWS_PROMPT_COMPLETION);
	assert_int_equal(rows_format("\n \n{\"text\": \"a\"}", 17, NULL, &f, &err), 0);
	assert_int_equal(f, ROWS_TEXT);
	assert_int_equal(rows_format("", 0, NULL, &f, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "no rows"));
	assert_int_equal(rows_format("{}", 2, NULL, &f, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "the first row: the row has no keys"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_formats),
		cmocka_unit_test(test_fields),
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_ten_faults),
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_encodings),
		cmocka_unit_test(test_deep),
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_first_format),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
