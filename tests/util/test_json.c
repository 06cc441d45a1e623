#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/json.h"

static json_t *parse(const char *text)
{
	json_t *o = NULL;
	struct errmsg err = {0};
	if (json_parse_object(&o, text, strlen(text), "x.json", &err) != 0) {
		fail_msg("%s", err.text);
	}
	return o;
}

static void objects(void **state)
{
	static const struct {
		const char *text, *words;
	} bad[] = {
		{"", "x.json:1:"},
		{"[]", "x.json: must be a JSON object"},
		{"{\"a\":1,\n\"a\":2}", "x.json:2:"},
		{"{} x", "x.json:1:"},
		{"{\"a\":\"\\u0000\"}", "x.json:1:"},
		{"{\"a\":\"\xFF\"}", "x.json:1:"},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		json_t *o = NULL;
		struct errmsg err = {0};
		assert_int_equal(json_parse_object(&o, bad[i].text, strlen(bad[i].text), "x.json", &err),
			STATUS_INVALID);
		assert_null(o);
		if (!strstr(err.text, bad[i].words)) {
			fail_msg("%s: %s", bad[i].text, err.text);
		}
	}
}

static void fields(void **state)
{
	json_auto_t *o = parse("{\"i\":7,\"r\":0.5,\"b\":true,\"s\":\"text\",\"n\":null,\"big\":1e300}");
	struct errmsg err = {0};
	int64_t i = 1;
	double r = 1;
	bool b = false;
	const char *s = "unset";
	assert_int_equal(json_get_int(o, "i", 0, 7, &i, "x", &err), 0);
	assert_int_equal(i, 7);
	assert_int_equal(json_get_real(o, "r", 0, 1, &r, "x", &err), 0);
	assert_true(r == 0.5);
	assert_int_equal(json_get_bool(o, "b", &b, "x", &err), 0);
	assert_true(b);
	assert_int_equal(json_get_string(o, "s", &s, "x", &err), 0);
	assert_string_equal(s, "text");
	/* Missing, and null: what was there stays. */
	assert_int_equal(json_get_int(o, "absent", 0, 1, &i, "x", &err), 0);
	assert_int_equal(json_get_string(o, "n", &s, "x", &err), 0);
	assert_int_equal(i, 7);
	assert_string_equal(s, "text");

	assert_int_equal(json_get_int(o, "i", 0, 6, &i, "x", &err), STATUS_INVALID);
	assert_string_equal(err.text, "x: 'i' is 7; it must be a whole number from 0 to 6");
	assert_int_equal(json_get_int(o, "r", 0, 6, &i, "x", &err), STATUS_INVALID);
	assert_int_equal(json_get_real(o, "big", 0, 6, &r, "x", &err), STATUS_INVALID);
	assert_int_equal(json_get_bool(o, "s", &b, "x", &err), STATUS_INVALID);
	assert_string_equal(err.text, "x: 's' is \"text\"; it must be true or false");
	assert_int_equal(json_get_string(o, "b", &s, "x", &err), STATUS_INVALID);
	assert_string_equal(s, "text");
}

static void shown_in_short(void **state)
{
	json_auto_t *o = parse("{\"o\":{},\"a\":[1],\"s\":\"0123456789012345678901234567890123456789"
		"0123456789\"}");
	assert_string_equal(json_short(json_object_get(o, "o")).s, "an object");
	assert_string_equal(json_short(json_object_get(o, "a")).s, "an array");
	struct json_text t = json_short(json_object_get(o, "s"));
	assert_true(strlen(t.s) < sizeof(t.s));
	assert_non_null(strstr(t.s, "…"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(objects),
		cmocka_unit_test(fields),
		cmocka_unit_test(shown_in_short),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
