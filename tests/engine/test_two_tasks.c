/* An encoder-decoder from random weights to a task, all of it trained; then to another task with LoRA: what
 * goldens of single runs cannot show is that training arrives. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/generate/generate.h"
#include "engine/train/session.h"
#include "tests/engine/fixture.h"
#include "tests/support/tiny.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	EOS = 1,
	FIRST = 3, /* the alphabet's first symbol */
	SYMBOLS = 10,
	LONGEST = 6,
	ROWS = 1024,
	UNSEEN = 64,
};

/* ---- tasks --------------------------------------------------------------------------------- */

/* A sequence of symbols to be said backwards; with `shift` each symbol as the next of the alphabet. */
struct task {
	struct samples samples;
};

static void task_deinit(struct task *t)
{
	free(t->samples.start);
	free(t->samples.ids);
	free(t->samples.labels);
	free(t->samples.source_len);
}

static void task_init(struct task *t, uint64_t n, uint64_t seed, bool shift)
{
	struct samples *s = &t->samples;
	size_t most = (size_t)n * 2 * (LONGEST + 1);
	*s = (struct samples){
		.n = n,
		.start = calloc(n + 1, sizeof(*s->start)),
		.ids = calloc(most, sizeof(*s->ids)),
		.labels = calloc(most, sizeof(*s->labels)),
		.source_len = calloc(n, sizeof(*s->source_len)),
		.longest_kept = LONGEST + 1,
	};
	assert_true(s->start && s->ids && s->labels && s->source_len);
	uint64_t draw = 0;
	for (uint64_t i = 0; i < n; i++) {
		const struct rng_key key = {seed, 0};
		int64_t len = 1 + rng_bits(key, draw++) % LONGEST, at = s->start[i];
		for (int64_t k = 0; k < len; k++) {
			int32_t symbol = (int32_t)(rng_bits(key, draw++) % SYMBOLS);
			s->ids[at + k] = FIRST + symbol;
			s->labels[at + k] = -100;
			s->ids[at + len + 1 + (len - 1 - k)] = FIRST + (symbol + shift) % SYMBOLS;
		}
		s->ids[at + len] = s->ids[at + 2 * len + 1] = EOS;
		s->labels[at + len] = -100;
		for (int64_t k = at + len + 1; k < at + 2 * len + 2; k++) {
			s->labels[k] = s->ids[k];
		}
		s->source_len[i] = len + 1;
		s->start[i + 1] = at + 2 * len + 2;
	}
}

/* How many rows a greedy continuation gets right to the last token. */
static int64_t count_right(struct base_model *base, const struct adapter *a, const struct task *t)
{
	struct errmsg err = {0};
	const struct samples *s = &t->samples;
	int64_t right = 0;
	for (uint64_t i = 0; i < s->n; i++) {
		const int32_t eos = EOS, *source = s->ids + s->start[i], *want = source + s->source_len[i];
		struct generate_options o = {.max_new_tokens = LONGEST + 3, .stop_ids = &eos,
			.n_stop_ids = 1};
		struct generator *g = NULL;
		int32_t id;
		bool stopped = false, same = true;
		OK(generator_new(&g, base, a, source, (size_t)s->source_len[i], &o, &err));
		while (generator_next(g, &id, &stopped, &err) == 1) {
			same = same && *want == id;
			want += same;
		}
		right += same && stopped && *want == EOS;
		generator_free(g);
	}
	return right;
}

/* ---- runs ---------------------------------------------------------------------------------- */

/* Trains and exports; returns the mean loss of the last 20 steps. */
static double train(struct fixture *f, const struct method_config *m, const struct task *t,
	int64_t steps, double lr, struct buf *config, struct buf *weights)
{
	struct errmsg err = {0};
	struct memory_plan plan;
	struct train_session *s = NULL;
	const struct train_config c = {
		.max_steps = steps,
		.batch_size = 32,
		.max_length = 64,
		.packing = true,
		.learning_rate = lr,
		.lr_scheduler = LR_COSINE,
		.warmup_steps = 20,
		.adam_beta1 = 0.9,
		.adam_beta2 = 0.99,
		.adam_epsilon = 1e-8,
		.max_grad_norm = 1,
		.dtype = DTYPE_F32,
		.seed = 3,
	};
	OK(train_plan(&plan, f->files, f->backend, &c, m, t->samples.longest_kept, 0, &err));
	OK(train_session_new(&s, f->base, &c, m, &plan, &t->samples, NULL, NULL, &err));
	double last = 0;
	for (int64_t i = 0; i < steps; i++) {
		struct step_metrics x;
		OK(train_session_run_step(s, &x, &err));
		last += i >= steps - 20 ? x.loss / 20 : 0;
	}
	OK(train_session_export(s, config, weights, &err));
	train_session_free(s);
	return last;
}

static void write_model(const char *dir, const struct fixture *f, const struct buf *weights)
{
	size_t len;
	_cleanup_(freep) char *config = read_file(f->folder, "config.json", &len);
	_cleanup_(freep) char *at = tiny_path(dir, "config.json");
	_cleanup_(freep) char *to = tiny_path(dir, "model.safetensors");
	tiny_write_file(at, config, len);
	tiny_write_file(to, weights->data, weights->len);
}

static void test_two_tasks(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct task task, unseen, other, other_unseen;
	struct buf config = {0}, weights = {0};
	fixture_open(&f, "seq2seq/t5-relu");
	fixture_base(&f, DTYPE_F32, true);
	task_init(&task, ROWS, 1, false);
	task_init(&unseen, UNSEEN, 2, false);
	task_init(&other, ROWS, 3, true);
	task_init(&other_unseen, UNSEEN, 4, true);
	assert_int_equal(count_right(f.base, NULL, &unseen), 0);

	const struct method_config full = {.method = "full"};
	double loss = train(&f, &full, &task, 800, 5e-3, &config, &weights);
	fprintf(stderr, "full: loss %g\n", loss);
	assert_true(loss < 0.02);

	/* What was trained is the base of the second task. */
	_cleanup_(freep) char *dir = tiny_tempdir();
	write_model(dir, &f, &weights);
	base_model_free(f.base);
	f.base = NULL;
	model_files_free(f.files);
	OK(model_files_open(&f.files, dir, &err));
	fixture_base(&f, DTYPE_F32, true);
	int64_t right = count_right(f.base, NULL, &unseen);
	fprintf(stderr, "full: %d of %d\n", (int)right, UNSEEN);
	assert_true(right >= UNSEEN * 95 / 100);
	assert_true(count_right(f.base, NULL, &other_unseen) <= UNSEEN / 10);

	struct method_config lora = {.method = "lora", .lora = {.r = 4, .lora_alpha = 8}};
	assert_int_equal(modules_add(&lora.lora.target_modules, "all-linear"), 0);
	buf_deinit(&config);
	buf_deinit(&weights);
	config = weights = (struct buf){0};
	loss = train(&f, &lora, &other, 500, 1e-2, &config, &weights);
	fprintf(stderr, "lora: loss %g\n", loss);
	assert_true(loss < 0.05);
	struct adapter a;
	OK(adapter_parse(&a, config.data, config.len, weights.data, weights.len, &err));
	right = count_right(f.base, &a, &other_unseen);
	fprintf(stderr, "lora: %d of %d\n", (int)right, UNSEEN);
	assert_true(right >= UNSEEN * 9 / 10);

	adapter_deinit(&a);
	method_config_deinit(&lora);
	buf_deinit(&config);
	buf_deinit(&weights);
	task_deinit(&task);
	task_deinit(&unseen);
	task_deinit(&other);
	task_deinit(&other_unseen);
	fixture_close(&f);
	tiny_remove_tree(dir);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void test_refusals(void **state)
{
	char *const shared[] = {"shared", "q"}, *const bias[] = {"relative_attention_bias", "q"};
	char *const q[] = {"q"};
	int64_t layers[] = {0};
	const struct {
		const char *model;
		struct method_config m;
		const char *expected;
	} cases[] = {
		{"seq2seq/t5-relu", {.method = "last_k", .last_k = {.k = 1}}, "last_k: this model has an "},
		{"seq2seq/t5-relu", {.method = "lora", .lora = {.r = 2, .lora_alpha = 2,
			.target_modules = {(char **)(uintptr_t)shared, 2, false}}}, "lora: shared of an"},
		{"seq2seq/t5-relu", {.method = "lora", .lora = {.r = 2, .lora_alpha = 2,
			.target_modules = {(char **)(uintptr_t)bias, 2, false}}}, "relative_attention_bias"},
		{"seq2seq/t5-relu", {.method = "lora", .lora = {.r = 2, .lora_alpha = 2,
			.target_modules = {(char **)(uintptr_t)q, 1, false},
			.modules_to_save = {(char **)(uintptr_t)shared, 1, false}}}, "lora: shared of an"},
		{"seq2seq/t5-relu", {.method = "lora", .lora = {.r = 2, .lora_alpha = 2,
			.target_modules = {(char **)(uintptr_t)q, 1, false}, .layers_to_transform = layers,
			.n_layers_to_transform = 1}}, "lora.layers_to_transform"},
		{"seq2seq/t5-uneven", {.method = "prefix_tuning", .prefix_tuning = {.num_virtual_tokens = 2}},
			"prefix_tuning: this model's encoder has 1 blocks and its decoder 3"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct errmsg err = {0};
		struct memory_plan plan;
		struct fixture f;
		fixture_open(&f, cases[i].model);
		int r = train_plan(&plan, f.files, f.backend, &f.config, &cases[i].m,
			f.samples.longest_kept, 0, &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].expected)) {
			print_error("case %zu: %d: %s\n", i, r, err.text);
			fail();
		}
		fixture_close(&f);
	}
}

/* An adapter of the one kind of model is none of the other. */
static void test_task_type(void **state)
{
	struct errmsg err = {0};
	struct eval_metrics m;
	struct fixture f;
	fixture_open(&f, "seq2seq/t5-relu");
	fixture_base(&f, DTYPE_F32, false);
	f.adapter.config.task_type = TASK_CAUSAL_LM;
	assert_int_equal(engine_eval(f.base, &f.adapter, &f.samples, &m, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "'task_type' is of a decoder alone"));
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_two_tasks),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_task_type),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
