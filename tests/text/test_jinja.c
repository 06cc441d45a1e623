#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/text/jinja/jinja.h"
#include "tests/text/support.h"
#include "util/util.h"

/* 2024-07-26 12:34:56 UTC, a Friday. */
enum { NOW = 1721997296 };

static int render(const char *source, const json_t *vars, struct buf *out, struct jinja_marks *marks,
	struct errmsg *err)
{
	struct jinja *t = NULL;
	int r = jinja_new(&t, source, strlen(source), err);
	r = r ? r : jinja_render(t, &vars, vars ? 1 : 0, NOW, out, marks, err);
	jinja_free(t);
	return r;
}

static bool says(const struct errmsg *err, const char *message)
{
	return message && strstr(err->text, message);
}

/* What is wrong with the outcome of one case; NULL: nothing. */
static const char *difference(const json_t *expected, int r, const struct buf *out,
	const struct errmsg *err)
{
	const json_t *text = json_object_get(expected, "out");
	const char *raised = json_string_value(json_object_get(expected, "raised"));
	const char *undefined = json_string_value(json_object_get(expected, "undefined"));
	if (r < 0) {
		return "out of memory";
	}
	if (text) {
		return r != 0 ? "fails" : out->len != json_string_length(text) ||
			(out->len > 0 && memcmp(out->data, json_string_value(text), out->len) != 0) ?
			"renders something else" : NULL;
	}
	if (r == 0) {
		return "does not fail";
	}
	if (raised && !(strncmp(err->text, JINJA_RAISED, strlen(JINJA_RAISED)) == 0 &&
			strcmp(err->text + strlen(JINJA_RAISED), raised) == 0)) {
		return "raises something else";
	}
	return undefined && !says(err, undefined) ? "fails with something else" : NULL;
}

/* Thousands of pieces come out as jinja2 renders them, or fail where it fails. */
static void test_constructs(void **state)
{
	json_t *golden = golden_json("../templates/constructs.json");
	json_t *cases = json_object_get(golden, "cases"), *c;
	size_t i, wrong = 0;
	assert_true(json_array_size(cases) > 5000);
	json_array_foreach(cases, i, c) {
		const char *source = json_string_value(json_array_get(c, 0));
		const json_t *expected = json_array_get(c, 1);
		struct buf out = {0};
		struct errmsg err = {0};
		int r = render(source, json_object_get(golden, "vars"), &out, NULL, &err);
		const char *what = difference(expected, r, &out, &err);
		if (what) {
			char *text = json_dumps(expected, JSON_COMPACT);
			print_error("%s\n  %s: %.*s%s; expected %s\n", source, what, (int)out.len,
				out.data ? (const char *)out.data : "", r ? err.text : "", text);
			free(text);
			wrong++;
		}
		assert_true(r == 0 || out.len == 0);
		buf_deinit(&out);
	}
	assert_int_equal(wrong, 0);
	json_decref(golden);
}

static void expect(const char *source, const char *text)
{
	struct buf out = {0};
	struct errmsg err = {0};
	if (render(source, NULL, &out, NULL, &err) != 0) {
		fail_msg("%s: %s", source, err.text);
	}
	assert_string_equal(buf_cstr(&out), text);
	buf_deinit(&out);
}

/* The date is the one that is given, whatever the day. */
static void test_date(void **state)
{
	expect("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024");
	expect("{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%A, %B %-d, %H:%M:%S%%') }}",
		"2024-07-26|Friday, July 26, 12:34:56%");
	expect("{{ strftime_now('%f') }}{{ strftime_now('%z%Z') }}{{ strftime_now('') }}", "000000");
}

static void refused(const char *source, const char *why)
{
	struct buf out = {0};
	struct errmsg err = {0};
	assert_int_equal(render(source, NULL, &out, NULL, &err), STATUS_INVALID);
	if (!strstr(err.text, why)) {
		fail_msg("%s: `%s` does not say `%s`", source, err.text, why);
	}
	buf_deinit(&out);
}

/* What is not supported is refused by name, with its line. */
static void test_refused(void **state)
{
	refused("a\n{% include 'x' %}", "line 2: the tag 'include' is not supported");
	refused("a\n\n{{ x|urlize }}", "line 3: the filter 'urlize' is not supported");
	refused("{{ x|nosuch }}", "line 1: No filter named 'nosuch'.");
	refused("{{ 'a'.encode() }}", "line 1: 'encode' of a str is not supported");
	refused("{{ cycler(1) }}", "not supported");
	refused("{% if 1 %}", "looking for the following tags: 'elif'");
	refused("{{ 1 }}\n{{ 1 +\n", "line 2: unexpected 'end of template'");
	refused("{{ 'a' + x }}", "line 1: 'x' is undefined");
	refused("{{ [].append(1) }}", "access to attribute 'append' of 'list' object is unsafe.");
	refused("{{ '\\ud800' }}", "no character");
	refused("{{ 9223372036854775807 + 1 }}", "beyond 64 bits");
	refused("\xff", "byte 0 is not UTF-8");
}

static char *repeated(const char *begin, const char *piece, size_t n, const char *end)
{
	struct buf b = {0};
	assert_int_equal(buf_append(&b, begin, strlen(begin)), 0);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(buf_append(&b, piece, strlen(piece)), 0);
	}
	assert_int_equal(buf_append(&b, end, strlen(end)), 0);
	return buf_steal(&b, NULL);
}

/* Templates that would eat the machine end soon, with an error. */
static void test_hostile(void **state)
{
	refused("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
		"more than");
	refused("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "MiB of memory");
	refused("{{ 'x' * 9223372036854775807 }}", "MiB of memory");
	refused("{{ [1] * 9223372036854775807 }}", "MiB of memory");
	refused("{{ 'x'.ljust(9223372036854775807) }}", "");
	refused("{{ '%9999999999d' % 1 }}", "not supported");
	refused("{{ 2 ** 99999999999 }}", "64 bits");
	refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "deep");
	refused("{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('aaaaaaaa') }}",
		"more than");
	refused("{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", "deep");
	refused("{% set n = namespace(l=[]) %}{% for i in range(999) %}{% set n.l = [n.l] %}{% endfor %}"
		"{{ n.l }}", "deep");
	refused("{% set n = namespace(l=[]) %}{% for i in range(999) %}{% set n.l = [n.l] %}{% endfor %}"
		"{{ n.l|tojson }}", "deep");
	refused("{% set n = namespace(l=[]) %}{% for i in range(999) %}{% set n.l = [n.l] %}{% endfor %}"
		"{{ n.l == n.l }}", "deep");
	refused("{% set n = namespace(l=(1,)) %}{% for i in range(40) %}{% set n.l = (n.l, n.l) %}"
		"{% endfor %}{{ {n.l: 1} }}", "");
	const char *const nests[][3] = {{"{{ ", "(", "1"}, {"{{ ", "[", ""}, {"{{ ", "-", "1 }}"},
		{"{{ ", "not ", "1 }}"}, {"", "{% if 1 %}", ""}, {"{{ 1", "|string", " }}"},
		{"{{ 1", "+1", " }}"}, {"{{ x", ".a", " }}"}, {"{{ 1", " if 1", " }}"},
		{"{{ 1", " if 1 else 1", " }}"}, {"", "{% for x in y %}", ""}, {"{{ ", "{1:", ""}};
	for (size_t i = 0; i < ARRAY_LEN(nests); i++) {
		char *source = repeated(nests[i][0], nests[i][1], 20000, nests[i][2]);
		refused(source, "");
		free(source);
	}
	char *many = repeated("{% if 0 %}a", "{% elif 0 %}b", 20000, "{% else %}c{% endif %}");
	expect(many, "c");
	free(many);
	char *large = repeated("", "x", 600000, "");
	refused(large, "at most");
	free(large);
	struct buf names = {0};
	for (int i = 0; i < 6000; i++) {
		assert_int_equal(buf_appendf(&names, "{{ n%d }}", i), 0);
	}
	refused(buf_cstr(&names), "different names");
	buf_deinit(&names);
}

/* Nothing that a template's bytes say makes it do more than fail. */
static void test_mutations(void **state)
{
	json_t *golden = golden_json("../templates/constructs.json");
	json_t *cases = json_object_get(golden, "cases");
	uint64_t seed = 7;
	for (unsigned k = 0; k < 30000; k++) {
		const json_t *a = json_array_get(cases, next_random(&seed) % json_array_size(cases));
		const json_t *b = json_array_get(cases, next_random(&seed) % json_array_size(cases));
		const char *x = json_string_value(json_array_get(a, 0));
		const char *y = json_string_value(json_array_get(b, 0));
		size_t cut = next_random(&seed) % (strlen(x) + 1), from = next_random(&seed) % (strlen(y) + 1);
		struct buf source = {0}, out = {0};
		struct errmsg err = {0};
		assert_int_equal(buf_append(&source, x, cut), 0);
		assert_int_equal(buf_append(&source, y + from, strlen(y + from)), 0);
		if (source.len > 0 && k % 2) {
			source.data[next_random(&seed) % source.len] = "{}%#-()[]'|. \n:,=*"[k / 2 % 18];
		}
		int r = render(buf_cstr(&source), json_object_get(golden, "vars"), &out, NULL, &err);
		assert_true(r == 0 || (r == STATUS_INVALID && err.text[0] && out.len == 0));
		assert_true(r != 0 || utf8_valid(out.data, out.len, NULL));
		buf_deinit(&source);
		buf_deinit(&out);
	}
	json_decref(golden);
}

static void test_marks(void **state)
{
	struct jinja_mark room[2];
	struct jinja_marks marks = {.data = room, .cap = 2};
	struct buf out = {0};
	struct errmsg err = {0};
	assert_int_equal(buf_append(&out, "before", 6), 0);
	assert_int_equal(render("a{% for x in range(3) %}{% generation %}é{{ x }}{% endgeneration %}-"
		"{% endfor %}", NULL, &out, &marks, &err), 0);
	assert_string_equal(buf_cstr(&out), "beforeaé0-é1-é2-");
	assert_int_equal(marks.n, 3);
	assert_int_equal(room[0].start, 1);
	assert_int_equal(room[0].end, 4);
	assert_int_equal(room[1].start, 5);
	buf_deinit(&out);
	assert_int_equal(render("{% macro f() %}{% generation %}{% endgeneration %}{% endmacro %}{{ f() }}",
		NULL, &out, &marks, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "within a macro"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_constructs),
		cmocka_unit_test(test_date),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_mutations),
		cmocka_unit_test(test_marks),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
