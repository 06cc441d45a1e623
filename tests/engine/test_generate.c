/* Generation against the float64 reference: a cache read in chunks and token by token. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/generate/generate.h"
#include "engine/train/rng.h"
#include "tests/engine/fixture.h"
#include "tests/engine/ref.h"
#include "util/util.h"

enum { LONG = 700, NEW = 6, MAX_VOCAB = 256 };

static void random_ids(int32_t *ids, int64_t n, int64_t vocab)
{
	for (int64_t i = 0; i < n; i++) {
		struct rng_key key = {5, rng_stream(RNG_SAMPLE, (uint64_t)i, 0, 0)};
		ids[i] = (int32_t)(rng_bits(key, 0) % (uint64_t)vocab);
	}
}

/* Largest difference by the largest logit. */
static double worst(const float *got, const double *want, int64_t n)
{
	double d = 0, scale = 0;
	for (int64_t i = 0; i < n; i++) {
		d = fmax(d, fabs(got[i] - want[i]));
		scale = fmax(scale, fabs(want[i]));
	}
	return d / scale;
}

static void test_cache(void **state)
{
	for (int k = 0; golden_cases[k]; k++) {
		struct errmsg err = {0};
		struct fixture f;
		fixture_open(&f, golden_cases[k]);
		struct ref_model *ref = ref_model_new(&f);
		int64_t vocab = model_files_config(f.files)->vocab_size;
		int32_t ids[LONG + NEW];
		double want[MAX_VOCAB];
		random_ids(ids, LONG, vocab);
		/* One token, less than a chunk, more than one. */
		static const int64_t prompts[] = {1, 2, 37, LONG};
		for (size_t p = 0; p < ARRAY_LEN(prompts); p++) {
			for (int bf16 = 0; bf16 < 2; bf16++) {
				fixture_base(&f, bf16 ? DTYPE_BF16 : DTYPE_F32, bf16);
				int64_t n = prompts[p], steps = n == LONG ? 2 : NEW;
				struct generate_options o = {.max_new_tokens = NEW};
				struct generator *g = NULL;
				int32_t text[LONG + NEW];
				memcpy(text, ids, (size_t)n * sizeof(int32_t));
				OK(generator_new(&g, f.base, &f.adapter, ids, (size_t)n, &o, &err));
				for (int64_t i = 0; i < steps; i++) {
					bool stopped;
					ref_logits(ref, text, n + i, want);
					assert_true(worst(generator_logits(g), want, vocab) <= (bf16 ? 1e-1 : 2e-5));
					assert_int_equal(generator_next(g, &text[n + i], &stopped, &err), 1);
				}
				generator_free(g);
			}
		}
		ref_model_free(ref);
		fixture_close(&f);
	}
}

static void test_sampling(void **state)
{
	enum { DRAWS = 1500 };
	struct errmsg err = {0};
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	fixture_base(&f, DTYPE_F32, false);
	int64_t vocab = model_files_config(f.files)->vocab_size;
	double logits[MAX_VOCAB], sum = 0, chi = 0, t = 1.7;
	int counts[MAX_VOCAB] = {0}, dof = -1;
	bool stopped;
	int32_t id, again;
	for (uint64_t seed = 0; seed < DRAWS; seed++) {
		struct generate_options o = {.max_new_tokens = 1, .temperature = t, .seed = seed};
		struct generator *g = NULL;
		OK(generator_new(&g, f.base, NULL, f.samples.ids, 5, &o, &err));
		for (int64_t i = 0; i < vocab; i++) {
			logits[i] = generator_logits(g)[i];
		}
		assert_int_equal(generator_next(g, &id, &stopped, &err), 1);
		counts[id]++;
		generator_free(g);
		if (seed == 3) {
			OK(generator_new(&g, f.base, NULL, f.samples.ids, 5, &o, &err));
			assert_int_equal(generator_next(g, &again, &stopped, &err), 1);
			assert_int_equal(id, again);
			generator_free(g);
		}
	}
	for (int64_t i = 0; i < vocab; i++) {
		sum += exp(logits[i] / t);
	}
	/* Chi-square; rare tokens together. */
	double rare = 0, rare_count = 0;
	for (int64_t i = 0; i < vocab; i++) {
		double expected = DRAWS * exp(logits[i] / t) / sum;
		if (expected < 8) {
			rare += expected;
			rare_count += counts[i];
			continue;
		}
		chi += (counts[i] - expected) * (counts[i] - expected) / expected;
		dof++;
	}
	chi += rare > 0 ? (rare_count - rare) * (rare_count - rare) / rare : 0;
	dof += rare > 0;
	assert_true(dof > 5);
	assert_true(chi < dof + 5 * sqrt(2.0 * dof));
	fixture_close(&f);
}

static void test_stop(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	fixture_open(&f, "mha");
	fixture_base(&f, DTYPE_F32, false);
	const int32_t *prompt = f.samples.ids + f.samples.start[1];
	size_t n_prompt = (size_t)(f.samples.start[2] - f.samples.start[1]);
	/* The third greedy token stops it, unless it is among the first two. */
	int32_t greedy[3] = {(int32_t)golden_item(&f, "greedy", 0), (int32_t)golden_item(&f, "greedy",
		1), (int32_t)golden_item(&f, "greedy", 2)};
	assert_true(greedy[2] != greedy[0] && greedy[2] != greedy[1]);
	struct generate_options o = {.max_new_tokens = 12, .stop_ids = &greedy[2], .n_stop_ids = 1};
	struct generator *g = NULL;
	int32_t id = -1;
	bool stopped = false;
	OK(generator_new(&g, f.base, &f.adapter, prompt, n_prompt, &o, &err));
	assert_int_equal(generator_next(g, &id, &stopped, &err), 1);
	assert_int_equal(generator_next(g, &id, &stopped, &err), 1);
	assert_int_equal(id, greedy[1]);
	assert_int_equal(generator_next(g, &id, &stopped, &err), 0);
	assert_true(stopped);
	assert_int_equal(generator_next(g, &id, &stopped, &err), 0);
	assert_int_equal(id, greedy[1]);
	generator_free(g);

	int32_t foreign = 100000;
	assert_int_equal(generator_new(&g, f.base, NULL, &foreign, 1, &o, &err), STATUS_INVALID);
	assert_int_equal(generator_new(&g, f.base, NULL, prompt, 0, &o, &err), STATUS_INVALID);
	o.temperature = -1;
	assert_int_equal(generator_new(&g, f.base, NULL, prompt, 1, &o, &err), STATUS_INVALID);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cache),
		cmocka_unit_test(test_sampling),
		cmocka_unit_test(test_stop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
