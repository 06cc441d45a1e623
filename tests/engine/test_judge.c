/* Answers against references. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/judge/judge.h"
#include "tests/engine/fixture.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

static bool exact(const char *a, const char *b)
{
	return judge_exact(a, strlen(a), b, strlen(b));
}

static bool last_number(const char *a, const char *b)
{
	return judge_last_number(a, strlen(a), b, strlen(b));
}

static void test_exact(void **state)
{
	assert_true(exact("Paris", " Paris\n"));
	assert_true(exact("", " \t"));
	assert_true(exact(" a  b", "a  b"));
	assert_false(exact("Paris", "paris"));
	assert_false(exact("a  b", "a b"));
	assert_false(exact("Paris", "Paris."));
}

static void test_last_number(void **state)
{
	static const struct {
		const char *reference, *answer;
		bool same;
	} cases[] = {
		{"She has 3 * 4 = 12.\n#### 12", "so the answer is 12", true},
		{"#### 1,234", "It costs $1234.", true},
		{"#### 1234", "1,234.00 dollars", true},
		{"#### 1,234,567", "1234567", true},
		{"#### 1234", "1,23,4", false}, /* 4 is the last */
		{"#### 70", "#### 70 and then 3 more", true},
		{"#### 70", "70 and then 3 more", false},
		{"#### -5", "-5", true},
		{"#### -5", "5", false},
		{"#### 3", "7-3", true},
		{"#### -3", "$ -3", true},
		{"#### -3", "-$3", true},
		{"#### 0.5", "about 00.50", true},
		{"#### 0.5", "about 5", false},
		{"#### 0", "-0", true},
		{"#### 18", "eighteen", false},
		{"no number", "no number", false},
		{"#### 10", "10%", true},
		{"#### 7", "7.", true},
		{"#### 2", "#### 1 #### 2", true},
		{"#### 12", "#### none, but 12 before", true},
		{"#### 5", "12,5", true},
		{"#### 1000", "1000,000", false},
		{"#### 12", "12 #### x", false},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		if (last_number(cases[i].reference, cases[i].answer) != cases[i].same) {
			print_error("%s | %s\n", cases[i].reference, cases[i].answer);
			fail();
		}
	}
}

struct generator64 {
	uint64_t state;
};

static uint64_t below(struct generator64 *g, uint64_t n)
{
	g->state = g->state * 6364136223846793005u + 1442695040888963407u;
	return (g->state >> 33) % n;
}

/* As make_generate.py's text(). */
static void make_text(struct generator64 *g, const json_t *pieces, uint64_t longest, struct buf *out)
{
	bool few = below(g, 3) == 0;
	out->len = 0;
	for (uint64_t n = below(g, longest + 1); n > 0; n--) {
		const json_t *p = json_array_get(pieces, below(g, few ? 8 : json_array_size(pieces)));
		assert_int_equal(buf_append(out, json_string_value(p), json_string_length(p)), 0);
		if (below(g, 6) != 0) {
			assert_int_equal(buf_append(out, " ", 1), 0);
		}
	}
}

static void test_rouge(void **state)
{
	size_t len;
	const char *root = getenv("PEFTD_GOLDEN");
	_cleanup_(freep) char *json = read_file(root ? root : "tests/golden", "generate/rouge.json", &len);
	json_t *golden = json_loadb(json, len, 0, NULL), *scores = json_object_get(golden, "scores");
	struct generator64 g = {(uint64_t)json_integer_value(json_object_get(golden, "seed"))};
	uint64_t longest = (uint64_t)json_integer_value(json_object_get(golden, "longest"));
	struct buf reference = {0}, answer = {0};
	assert_int_equal(json_array_size(scores), 1000);
	for (size_t i = 0; i < json_array_size(scores); i++) {
		struct rouge got;
		make_text(&g, json_object_get(golden, "pieces"), longest, &reference);
		make_text(&g, json_object_get(golden, "pieces"), longest, &answer);
		assert_int_equal(judge_rouge((const char *)reference.data, reference.len,
			(const char *)answer.data, answer.len, &got), 0);
		const double values[] = {got.rouge1, got.rouge2, got.rouge_l};
		for (size_t k = 0; k < 3; k++) {
			double want = json_number_value(json_array_get(json_array_get(scores, i), k));
			if (!(fabs(values[k] - want) <= 1e-6)) {
				print_error("pair %zu, score %zu: %.9g, want %.9g\n  %.*s\n  %.*s\n", i, k, values[k],
					want, (int)reference.len, (char *)reference.data, (int)answer.len,
					(char *)answer.data);
				fail();
			}
		}
	}
	buf_deinit(&reference);
	buf_deinit(&answer);
	json_decref(golden);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_exact),
		cmocka_unit_test(test_last_number),
		cmocka_unit_test(test_rouge),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
