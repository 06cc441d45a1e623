/* What is drawn at random, held against PEFT's by its distribution: dropout
 * (tests/golden/make_dropout.py) and the start of prompt tuning (make_prompt_init.py). Seeds are
 * fixed, so that a test fails always or never. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/engine/fixture.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { DRAWS = 1000 };

/* Standard errors that two estimates may be apart. */
static const double APART = 4;

static json_t *read_golden(const char *name)
{
	size_t len;
	_cleanup_(freep) char *text = read_file(getenv("PEFTD_GOLDEN"), name, &len);
	json_t *o = json_loadb(text, len, 0, NULL);
	assert_non_null(o);
	return o;
}

static double number(const json_t *o, const char *key)
{
	const json_t *v = json_object_get(o, key);
	if (!json_is_number(v)) {
		fail_msg("no number '%s'", key);
	}
	return json_number_value(v);
}

/* ---- dropout ------------------------------------------------------------------------------- */

/* The fixture with its first row alone. */
static void open_row(struct fixture *f, const char *name)
{
	char folder[256];
	snprintf(folder, sizeof(folder), "methods/%s", name);
	fixture_open(f, folder);
	f->samples.n = f->samples.rows = 1;
	f->config.batch_size = 1;
	fixture_base(f, DTYPE_F32, true);
}

static struct train_session *start_row(struct fixture *f)
{
	struct train_session *s = fixture_session(f, true);
	if (!f->starts) {
		fixture_start_encoder(f, s);
	}
	return s;
}

/* The loss of the row in draw `step`. */
static double draw(struct train_session *s, int64_t step)
{
	struct errmsg err = {0};
	struct step_sums sums;
	OK(session_accumulate(s, step, &sums, &err));
	return sums.loss_sum / (double)sums.targets;
}

static void check_moments(const char *name, const double *x, size_t n, const json_t *want)
{
	double mean = 0, second = 0, fourth = 0, draws = number(want, "draws");
	for (size_t i = 0; i < n; i++) {
		mean += x[i] / (double)n;
	}
	for (size_t i = 0; i < n; i++) {
		double d = x[i] - mean;
		second += d * d / (double)n;
		fourth += d * d * d * d / (double)n;
	}
	double variance = number(want, "variance");
	double of_mean = sqrt(second / (double)n + variance / draws);
	double of_variance = sqrt((fourth - second * second) / (double)n +
		(number(want, "fourth") - variance * variance) / draws);
	print_message("# %s: mean %.6g against %.6g (± %.2g), variance %.4g against %.4g (± %.2g)\n",
		name, mean, number(want, "mean"), of_mean, second, variance, of_variance);
	assert_true(fabs(mean - number(want, "mean")) <= APART * of_mean);
	assert_true(fabs(second - variance) <= APART * of_variance);
	/* And dropout it is: what is left out would show. */
	assert_true(fabs(second - 0) > 10 * of_variance);
}

static void check_dropout(const char *name, const json_t *want, double probability)
{
	struct errmsg err = {0};
	struct fixture f;
	struct eval_metrics eval;
	open_row(&f, name);
	f.method.lora.lora_dropout = strcmp(f.method.method, "lora") == 0 ? probability : 0;
	f.method.p_tuning.encoder_dropout = strcmp(f.method.method, "p_tuning") == 0 ? probability : 0;
	struct train_session *s = start_row(&f), *again = start_row(&f);
	_cleanup_(freep) double *x = calloc(DRAWS, sizeof(*x));
	for (int64_t i = 0; i < DRAWS; i++) {
		x[i] = draw(s, i);
	}
	check_moments(name, x, DRAWS, want);
	/* In use there is none. */
	OK(engine_eval(f.base, f.starts ? &f.adapter : NULL, &f.samples, &eval, &err));
	double plain = number(want, "plain");
	assert_true(!f.starts || fabs(eval.loss - plain) <= 1e-5 * plain);
	/* The same bits for the same seed, whatever was drawn between; others for another. */
	draw(again, 77);
	for (int64_t i = 0; i < 20; i++) {
		double y = draw(again, i);
		assert_memory_equal(&x[i], &y, sizeof(y));
	}
	train_session_free(again);
	f.config.seed++;
	again = start_row(&f);
	size_t equal = 0;
	for (int64_t i = 0; i < 20; i++) {
		equal += draw(again, i) == x[i];
	}
	assert_true(equal < 3);
	train_session_free(again);
	train_session_free(s);
	fixture_close(&f);
}

static void test_dropout(void **state)
{
	json_t *golden = read_golden("dropout.json");
	const json_t *lora = json_object_get(golden, "lora-rslora");
	const json_t *p_tuning = json_object_get(golden, "p_tuning-lstm2");
	check_dropout("lora-rslora", lora, number(lora, "lora_dropout"));
	check_dropout("p_tuning-lstm2", p_tuning, number(p_tuning, "encoder_dropout"));
	json_decref(golden);
}

/* ---- where prompt tuning starts ------------------------------------------------------------- */

static struct train_session *prompt_session(struct fixture *f, const struct method_config *m,
	uint64_t seed)
{
	struct errmsg err = {0};
	struct memory_plan plan;
	struct train_session *s;
	f->config.seed = seed;
	OK(train_plan(&plan, f->files, f->backend, &f->config, m, f->samples.longest_kept, 0, &err));
	OK(train_session_new(&s, f->base, &f->config, m, &plan, &f->samples, &f->samples, NULL, &err));
	return s;
}

/* The rows that a session starts with; the caller's. */
static float *prompt_rows(const struct fixture *f, struct train_session *s, size_t *ret_n)
{
	struct peft_tensor t;
	peft_tensor(s->peft, s->job.g, 0, &t);
	*ret_n = (size_t)(t.dims[0] * t.dims[1]);
	float *out = calloc(*ret_n, sizeof(*out));
	assert_non_null(out);
	backend_download(f->backend, out, s->arena + s->job.layout.masters + t.offset * sizeof(float),
		*ret_n * sizeof(float));
	return out;
}

static void check_text(struct fixture *f, const char *name, json_t *want)
{
	struct errmsg err = {0};
	json_t *ids = json_object_get(want, "ids"), *rows = json_object_get(want, "rows"), *row, *v;
	int32_t tokens[32];
	size_t n, i, k, at = 0, n_ids = json_array_size(ids);
	char text[] = "what these tokens are of";
	assert_true(n_ids > 0 && n_ids <= ARRAY_LEN(tokens));
	json_array_foreach(ids, i, v) {
		tokens[i] = (int32_t)json_integer_value(v);
	}
	struct method_config m = {.method = "prompt_tuning", .prompt_tuning = {
		(int64_t)number(want, "num_virtual_tokens"), PROMPT_INIT_TEXT, text, tokens, n_ids}};
	struct train_session *s = prompt_session(f, &m, 3);
	_cleanup_(freep) float *got = prompt_rows(f, s, &n);
	json_array_foreach(rows, i, row) {
		json_array_foreach(row, k, v) {
			assert_true(at < n);
			if (got[at++] != (float)json_number_value(v)) {
				fail_msg("%s: row %zu, column %zu", name, i, k);
			}
		}
	}
	assert_int_equal(at, n);
	struct eval_metrics eval;
	OK(train_session_eval(s, &eval, &err));
	assert_true(fabs(eval.loss - number(want, "loss")) <= 1e-5 * number(want, "loss"));
	train_session_free(s);
}

static void check_vocabulary(struct fixture *f, const json_t *want)
{
	enum { SEEDS = 60, ROWS = 32 };
	struct errmsg err = {0};
	size_t vocab = (size_t)model_files_config(f->files)->vocab_size, n;
	size_t d = (size_t)model_files_config(f->files)->hidden_size;
	double sum = 0, squares = 0, draws = SEEDS * ROWS;
	_cleanup_(freep) float *table = calloc(vocab * d, sizeof(*table));
	OK(model_files_read(f->files, "model.embed_tokens.weight", table, &err));
	assert_true(number(want, "vocab_size") == (double)vocab);
	for (uint64_t seed = 0; seed < SEEDS; seed++) {
		struct method_config m = {.method = "prompt_tuning",
			.prompt_tuning = {ROWS, PROMPT_INIT_SAMPLE_VOCAB, NULL, NULL, 0}};
		struct train_session *s = prompt_session(f, &m, seed);
		_cleanup_(freep) float *got = prompt_rows(f, s, &n);
		for (size_t i = 0; i < ROWS; i++) {
			size_t id = 0;
			while (id < vocab && memcmp(got + i * d, table + id * d, d * sizeof(*got)) != 0) {
				id++;
			}
			assert_true(id < vocab); /* a row of the embedding */
			sum += (double)id;
			squares += (double)id * (double)id;
		}
		train_session_free(s);
	}
	double mean = sum / draws, variance = squares / draws - mean * mean;
	double theirs = number(want, "variance"), their_draws = number(want, "draws");
	/* Of uniform numbers the fourth moment is 9/5 of the squared variance. */
	double of_mean = sqrt(variance / draws + theirs / their_draws);
	double of_variance = sqrt(0.8 * variance * variance / draws +
		0.8 * theirs * theirs / their_draws);
	print_message("# SAMPLE_VOCAB: mean %.5g against %.5g, variance %.5g against %.5g\n", mean,
		number(want, "mean"), variance, theirs);
	assert_true(fabs(mean - number(want, "mean")) <= APART * of_mean);
	assert_true(fabs(variance - theirs) <= APART * of_variance);
}

static void test_prompt_init(void **state)
{
	json_t *golden = read_golden("prompt_init.json"), *text;
	const char *name;
	struct fixture f;
	fixture_open(&f, "methods/prompt_tuning-random");
	fixture_base(&f, DTYPE_F32, true);
	json_object_foreach(json_object_get(golden, "text"), name, text) {
		check_text(&f, name, text);
	}
	check_vocabulary(&f, json_object_get(golden, "sample_vocab"));
	fixture_close(&f);
	json_decref(golden);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dropout),
		cmocka_unit_test(test_prompt_init),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
