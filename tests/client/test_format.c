/* What is printed: figures, tables, bars, curves, JSON, and text made harmless. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>

#include "client/format.h"
#include "client/jsonw.h"
#include "client/progress.h"
#include "client/term.h"
#include "client/watch.h"
#include "rpc.pb-c.h"
#include "util/cleanup.h"
#include "util/util.h"

static void test_figures(void **state)
{
	char t[FORMAT_SIZE];
	assert_string_equal(format_bytes(t, 0), "0 B");
	assert_string_equal(format_bytes(t, 1023), "1023 B");
	assert_string_equal(format_bytes(t, 1536), "1.5 KiB");
	assert_string_equal(format_bytes(t, 1048575), "1.0 MiB");
	assert_string_equal(format_bytes(t, 150ull << 20), "150 MiB");
	assert_string_equal(format_bytes(t, UINT64_MAX), "16.0 EiB");
	assert_string_equal(format_count(t, 9999), "9999");
	assert_string_equal(format_count(t, 134515008), "134.5 M");
	assert_string_equal(format_count(t, 999999), "1.0 M");
	assert_string_equal(format_duration(t, 4.2), "4.2 s");
	assert_string_equal(format_duration(t, 42.4), "42 s");
	assert_string_equal(format_duration(t, 59.96), "1:00");
	assert_string_equal(format_duration(t, 75), "1:15");
	assert_string_equal(format_duration(t, 3725), "1:02:05");
	assert_string_equal(format_duration(t, NAN), "unknown");
	assert_string_equal(format_duration(t, -1), "unknown");
	assert_string_equal(format_span(t, 0.0012345), "1.23 ms");
	assert_string_equal(format_span(t, 0.1234), "123 ms");
	assert_string_equal(format_span(t, 1.0), "1.00 s");
	assert_string_equal(format_span(t, 12.34), "12.3 s");
	assert_string_equal(format_span(t, 75), "1:15");
	assert_string_equal(format_span(t, NAN), "unknown");
	assert_string_equal(format_figure(t, 1.23456, 4), "1.235");
	assert_string_equal(format_figure(t, 0, 4), "0.000");
	assert_string_equal(format_figure(t, 2e-4, 3), "2.00e-04");
	assert_string_equal(format_figure(t, 0.00251, 3), "0.00251");
	assert_string_equal(format_figure(t, 0.5, 3), "0.500");
	assert_string_equal(format_figure(t, 12345.6, 4), "12346");
	assert_string_equal(format_figure(t, NAN, 4), "NaN");
	assert_string_equal(format_figure(t, -INFINITY, 4), "-inf");
	assert_string_equal(format_time(t, 0), "-");
}

static void test_doubles_read_back(void **state)
{
	static const struct { double v; const char *text; } cases[] = {
		{0.1, "0.1"}, {2e-4, "0.0002"}, {1e-8, "1e-08"}, {2, "2.0"},
		{1.0 / 3, "0.3333333333333333"},
		{-0.0, "-0.0"}, {1e300, "1e+300"}, {NAN, "null"}, {INFINITY, "null"},
		{5e-324, "4.94065645841247e-324"},
	};
	char t[FORMAT_SIZE];
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		assert_string_equal(format_double(t, cases[i].v), cases[i].text);
	}
	uint64_t bits = 88172645463325252ull;
	for (int i = 0; i < 100000; i++) {
		double v;
		bits ^= bits << 13;
		bits ^= bits >> 7;
		bits ^= bits << 17;
		memcpy(&v, &bits, sizeof(v));
		if (isfinite(v)) {
			assert_true(strtod(format_double(t, v), NULL) == v);
		}
	}
}

static void test_states(void **state)
{
	int s;
	assert_true(format_parse_state("running", &s));
	assert_string_equal(format_state(s), "RUNNING");
	assert_true(format_parse_state("SUCCEEDED", &s));
	assert_true(format_state_is_final(s));
	assert_false(format_parse_state("runnning", &s));
	assert_string_equal(format_state(99), "UNKNOWN");
	assert_string_equal(format_state(-1), "UNKNOWN");
}

static char *escaped(const char *text, size_t len, unsigned flags)
{
	struct buf b = {0};
	assert_int_equal(term_escape(&b, text, len, flags), 0);
	return buf_steal(&b, NULL);
}

static void test_escape(void **state)
{
	static const struct { const char *text, *out; unsigned flags; } cases[] = {
		{"plain", "plain", 0},
		{"\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80", "\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80", 0},
		{"\x1B[2J\x1B]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07", 0},
		{"a\nb\tc\rd", "a\\nb\\tc\\rd", 0},
		{"a\nb\tc\rd", "a\nb\tc\\rd", TERM_KEEP_LAYOUT},
		{"\x7F", "\\x7f", 0},
		{"\xC2\x9B" "31m", "\\x9b31m", 0},           /* CSI as one character */
		{"\x9B" "31m", "\\x9b31m", 0},               /* and as a byte that is no UTF-8 */
		{"a\xE2\x80\xAE" "txt", "a\\u202etxt", 0},   /* right-to-left override */
		{"\xE2\x81\xA6", "\\u2066", 0},
		{"\xED\xA0\x80", "\\xed\\xa0\\x80", 0},      /* a surrogate */
		{"\xE2\x82", "\\xe2\\x82", 0},               /* cut short */
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		_cleanup_(freep) char *s = escaped(cases[i].text, strlen(cases[i].text), cases[i].flags);
		assert_string_equal(s, cases[i].out);
		/* Harmless text stays what it is. */
		_cleanup_(freep) char *again = escaped(s, strlen(s), cases[i].flags);
		assert_string_equal(again, s);
	}
	_cleanup_(freep) char *nul = escaped("a\0b", 3, 0);
	assert_string_equal(nul, "a\\x00b");
}

static void test_table(void **state)
{
	_cleanup_(table_deinit) struct table t = {.columns = 3, .right = 1 << 1};
	static const char *const cells[] = {"NAME", "N", "X", "a", "1", "x", "l\xC3\xB6nger",
		"12345", ""};
	for (size_t i = 0; i < ARRAY_LEN(cells); i++) {
		table_cell(&t, "%s", cells[i]);
	}
	char *out;
	size_t len;
	FILE *f = open_memstream(&out, &len);
	assert_int_equal(table_print(&t, f), 0);
	fclose(f);
	assert_string_equal(out,
		"NAME        N  X\n"
		"a           1  x\n"
		"l\xC3\xB6nger  12345\n");
	free(out);
}

static void test_bar(void **state)
{
	static const struct { double fraction; unsigned width; bool utf8; const char *out; } cases[] = {
		{0, 4, false, "[----]"}, {0.5, 4, false, "[##--]"}, {1, 4, false, "[####]"},
		{7, 4, false, "[####]"}, {-1, 4, false, "[----]"}, {NAN, 4, false, "[----]"},
		{0.5, 3, true, "[█▌ ]"}, {1, 3, true, "[███]"}, {0, 3, true, "[   ]"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		_cleanup_(buf_deinit) struct buf b = {0};
		assert_int_equal(progress_bar(&b, cases[i].fraction, cases[i].width, cases[i].utf8), 0);
		assert_string_equal(buf_cstr(&b), cases[i].out);
	}
}

static void test_sparkline(void **state)
{
	static const double falling[] = {8, 7, 6, 5, 4, 3, 2, 1};
	static const double flat[] = {2, 2, 2};
	static const double holes[] = {1, NAN, 8, INFINITY};
	_cleanup_(buf_deinit) struct buf b = {0};
	assert_int_equal(progress_sparkline(&b, falling, 8, 80, true), 0);
	assert_string_equal(buf_cstr(&b), "█▇▆▅▄▃▂▁");
	b.len = 0;
	assert_int_equal(progress_sparkline(&b, falling, 8, 4, true), 0); /* means of pairs */
	assert_string_equal(buf_cstr(&b), "█▆▃▁");
	b.len = 0;
	assert_int_equal(progress_sparkline(&b, flat, 3, 10, true), 0);
	assert_string_equal(buf_cstr(&b), "▁▁▁");
	b.len = 0;
	assert_int_equal(progress_sparkline(&b, holes, 4, 10, true), 0);
	assert_string_equal(buf_cstr(&b), "▁!█!");
	b.len = 0;
	assert_int_equal(progress_sparkline(&b, falling, 8, 8, false), 0);
	assert_string_equal(buf_cstr(&b), "#+=~-,._");
	b.len = 0;
	assert_int_equal(progress_sparkline(&b, falling, 0, 8, true), 0);
	assert_int_equal(b.len, 0);
}

/* ---- JSON -------------------------------------------------------------------------------- */

static void test_json_message(void **state)
{
	uint8_t digest[DIGEST_SIZE];
	memset(digest, 0xAB, sizeof(digest));
	Peftd__V1__Blob blob = PEFTD__V1__BLOB__INIT;
	blob.digest = (ProtobufCBinaryData){sizeof(digest), digest};
	blob.size = 1ull << 53;
	Peftd__V1__Checkpoint c = PEFTD__V1__CHECKPOINT__INIT, *list[] = {&c};
	c.step = 5;
	c.blob = &blob;
	c.has_eval_loss = true;
	c.eval_loss = 0.1;
	c.has_best = c.best = true;
	Peftd__V1__Job job = PEFTD__V1__JOB__INIT;
	job.id = 7;
	job.has_name = true;
	job.name = proto_bytes("a \"b\"\\ \n\x01 \xC3\xA9 \xFF");
	job.has_state = true;
	job.state = PEFTD__V1__JOB_STATE__JOB_RUNNING;
	job.has_loss = true;
	job.loss = NAN;
	job.n_checkpoints = 1;
	job.checkpoints = list;

	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_message(&j, &job.base);
	json_error_t e;
	json_t *v = json_loads(buf_cstr(&j.buf), JSON_REJECT_DUPLICATES, &e);
	if (!v) {
		fail_msg("%s\n%s", e.text, (char *)j.buf.data);
	}
	assert_int_equal(json_integer_value(json_object_get(v, "id")), 7);
	assert_string_equal(json_string_value(json_object_get(v, "name")),
		"a \"b\"\\ \n\x01 \xC3\xA9 \xEF\xBF\xBD");
	assert_string_equal(json_string_value(json_object_get(v, "state")), "RUNNING");
	assert_true(json_is_null(json_object_get(v, "loss")));
	assert_null(json_object_get(v, "owner")); /* absent fields are left out */
	json_t *first = json_array_get(json_object_get(v, "checkpoints"), 0);
	assert_true(json_real_value(json_object_get(first, "eval_loss")) == 0.1);
	assert_true(json_is_true(json_object_get(first, "best")));
	const char *hex = json_string_value(json_object_get(json_object_get(first, "blob"), "digest"));
	assert_int_equal(strlen(hex), 64);
	assert_memory_equal(hex, "abab", 4);
	assert_non_null(strstr((char *)j.buf.data, "\"size\":9007199254740992"));
	/* Repeated fields are always there. */
	assert_non_null(strstr((char *)j.buf.data, "\"files\":[]"));
	json_decref(v);
}

static void test_json_event(void **state)
{
	Peftd__V1__MetricsEvent m = PEFTD__V1__METRICS_EVENT__INIT;
	Peftd__V1__Event e = PEFTD__V1__EVENT__INIT;
	m.step = 3;
	m.has_loss = true;
	m.loss = 1.5;
	e.seq = 9;
	e.wall_ns = 1234567890123456789ull;
	e.what_case = PEFTD__V1__EVENT__WHAT_METRICS;
	e.metrics = &m;
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	assert_int_equal(watch_event_json(&j, 0, &e), 0);
	assert_string_equal(buf_cstr(&j.buf),
		"{\"seq\":9,\"wall_ns\":1234567890123456789,\"type\":\"metrics\",\"step\":3,\"loss\":1.5}");

	Peftd__V1__LogEvent log = PEFTD__V1__LOG_EVENT__INIT;
	log.has_level = log.has_text = true;
	log.level = proto_bytes("info");
	log.text = proto_bytes("\x1B[31mred");
	e.what_case = PEFTD__V1__EVENT__WHAT_LOG;
	e.log = &log;
	_cleanup_(buf_deinit) struct buf words = {0};
	assert_int_equal(watch_event_words(&words, &e, 0), 0);
	assert_string_equal(buf_cstr(&words), "info: \\x1b[31mred");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_figures),
		cmocka_unit_test(test_doubles_read_back),
		cmocka_unit_test(test_states),
		cmocka_unit_test(test_escape),
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_bar),
		cmocka_unit_test(test_sparkline),
		cmocka_unit_test(test_json_message),
		cmocka_unit_test(test_json_event),
	};
	return cmocka_run_group_tests_name("client: format", tests, NULL, NULL);
}
