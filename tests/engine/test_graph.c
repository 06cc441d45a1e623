/* The graph itself, orders, schedules, configurations. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/rope.h"
#include "engine/train/schedule.h"
#include "tests/engine/fixture.h"
#include "util/cleanup.h"
#include "util/util.h"

/* ---- order --------------------------------------------------------------------------------- */

static void test_permutation(void **state)
{
	static const uint64_t sizes[] = {1, 2, 3, 4, 5, 7, 10, 16, 17, 100, 1000, 4097};
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		uint64_t n = sizes[i];
		for (uint64_t epoch = 0; epoch < 3; epoch++) {
			_cleanup_(freep) uint8_t *seen = calloc(n, 1);
			for (uint64_t k = 0; k < n; k++) {
				uint64_t p = order_permute(k, n, 42, epoch);
				assert_true(p < n);
				assert_false(seen[p]);
				seen[p] = 1;
			}
		}
	}
}

/* Every sample comes at every place equally often: chi-square over epochs, for sizes small
 * enough that a poor mixer would show. */
static void test_permutation_is_uniform(void **state)
{
	enum { EPOCHS = 4000 };
	for (uint64_t n = 2; n <= 10; n++) {
		int counts[10][10] = {{0}};
		for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
			for (uint64_t k = 0; k < n; k++) {
				counts[k][order_permute(k, n, 7, epoch)]++;
			}
		}
		double expected = (double)EPOCHS / (double)n, chi = 0;
		for (uint64_t k = 0; k < n; k++) {
			for (uint64_t p = 0; p < n; p++) {
				chi += (counts[k][p] - expected) * (counts[k][p] - expected) / expected;
			}
		}
		/* (n-1)² degrees of freedom; five standard deviations. */
		double dof = (double)((n - 1) * (n - 1));
		if (!(chi < dof + 5 * sqrt(2 * dof))) {
			print_error("n = %d: chi-square %.1f for %.0f degrees of freedom\n", (int)n, chi, dof);
			fail();
		}
	}
}

static void test_order(void **state)
{
	struct order o = {.n = 10, .batch_size = 4, .seed = 3};
	assert_int_equal(order_steps_per_epoch(&o), 3);
	assert_int_equal(order_step_size(&o, 0), 4);
	assert_int_equal(order_step_size(&o, 2), 2);
	assert_int_equal(order_step_size(&o, 3), 4);
	int differ = 0;
	for (int64_t epoch = 0; epoch < 2; epoch++) {
		int seen[10] = {0};
		for (int64_t step = 0; step < 3; step++) {
			for (int64_t k = 0; k < order_step_size(&o, step); k++) {
				uint64_t sample = order_sample(&o, epoch * 3 + step, k);
				seen[sample]++;
				differ += sample != order_sample(&o, step, k);
			}
		}
		for (int i = 0; i < 10; i++) {
			assert_int_equal(seen[i], 1);
		}
	}
	assert_true(differ > 0);
	o.sequential = true;
	assert_int_equal(order_sample(&o, 2, 1), 9);
	assert_int_equal(order_sample(&o, 4, 1), 5);

	assert_int_equal(train_steps(10, 4, 0, 2.5), 8);
	assert_int_equal(train_steps(10, 4, 0, 1), 3);
	assert_int_equal(train_steps(10, 4, 7, 1), 7);
	assert_int_equal(train_steps(10, 4, 0, 1e30), 0);
	assert_int_equal(train_steps(10, 4, 0, INFINITY), 0);
	assert_int_equal(train_steps(10, 4, 0, NAN), 0);
	assert_int_equal(train_steps(10, 4, 0, 1e-30), 1);
	assert_int_equal(train_steps(10, 4, 0, -1), 0);
}

/* ---- schedules ----------------------------------------------------------------------------- */

static void test_schedule(void **state)
{
	struct train_config c = {.learning_rate = 2, .warmup_steps = 4, .max_steps = 12};
	c.lr_scheduler = LR_CONSTANT;
	const double constant[] = {0, 0.5, 1, 1.5, 2, 2, 2};
	for (int64_t i = 0; i < 7; i++) {
		assert_true(schedule_lr(&c, i + 1) == constant[i]);
	}
	c.lr_scheduler = LR_LINEAR;
	assert_true(schedule_lr(&c, 5) == 2);
	assert_true(schedule_lr(&c, 9) == 1);
	assert_true(schedule_lr(&c, 13) == 0);
	assert_true(schedule_lr(&c, 20) == 0);
	c.lr_scheduler = LR_COSINE;
	assert_true(schedule_lr(&c, 5) == 2);
	assert_true(fabs(schedule_lr(&c, 9) - 1) < 1e-15);
	assert_true(fabs(schedule_lr(&c, 7) - (1 + cos(M_PI / 4))) < 1e-15);
	assert_true(fabs(schedule_lr(&c, 13)) < 1e-15);
	c.warmup_steps = 0;
	assert_true(schedule_lr(&c, 1) == 2);
}

/* ---- differentiation ----------------------------------------------------------------------- */

static struct job job_for(struct fixture *f, char **targets, size_t n, enum recompute level,
	struct peft **peft)
{
	struct errmsg err = {0};
	struct job j;
	struct method_config m = {.method = "lora"};
	m.lora = (struct lora_config){.r = 4, .lora_alpha = 4, .target_modules = {targets, n, false}};
	const struct graph_request q = {
		.config = model_files_config(f->files),
		.purpose = GRAPH_TRAIN,
		.backend = f->backend,
		.dtype = DTYPE_F32,
		.tokens = 64,
		.max_seqs = 16,
		.trainable = true,
	};
	OK(job_method(peft, &q, &m, &err));
	OK(job_build(&j, &q, *peft, level, &err));
	return j;
}

static int count(const struct graph *g, const struct op *op)
{
	int n = 0;
	for (int i = 0; i < g->n_nodes; i++) {
		n += g->nodes[i].op == op;
	}
	return n;
}

/* Backward nodes exist only above the lowest trained module. */
static void test_nothing_below_the_lowest(void **state)
{
	struct fixture f;
	fixture_open(&f, "gqa3-odd"); /* three layers of four products */
	const struct {
		const char *target;
		int linear, norm, attention, swiglu;
	} cases[] = {
		{"layers.2.mlp.down_proj", 0, 1, 0, 0},
		{"layers.2.mlp.up_proj", 1, 1, 0, 1},
		{"layers.2.self_attn.o_proj", 2, 2, 0, 1},
		{"layers.2.self_attn.v_proj", 3, 2, 1, 1},
		{"layers.1.mlp.down_proj", 4, 3, 1, 1},
		{"layers.0.self_attn.q_proj", 11, 6, 3, 3},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct peft *peft = NULL;
		char *target = strdup(cases[i].target);
		struct job j = job_for(&f, &target, 1, RECOMPUTE_CHEAP, &peft);
		assert_int_equal(j.g->n_params, 2);
		assert_int_equal(count(j.g, &op_low_rank_backward), 1);
		assert_int_equal(count(j.g, &op_linear_backward), cases[i].linear);
		assert_int_equal(count(j.g, &op_norm_backward), cases[i].norm);
		assert_int_equal(count(j.g, &op_attention_backward), cases[i].attention);
		assert_int_equal(count(j.g, &op_gated_backward), cases[i].swiglu);
		assert_int_equal(count(j.g, &op_add), 0);
		job_deinit(&j);
		peft_free(peft);
		free(target);
	}
	fixture_close(&f);
}

/* What lives at the same time never overlaps, unless a node works in place; and in no order of
 * events is a tensor read after its memory was given away. Checked by writing owners into a map
 * of the region, as a run would. */
static void check_placement(const struct graph *g, size_t region)
{
	size_t cells = region / 64;
	_cleanup_(freep) int *map = malloc(cells * sizeof(*map));
	assert_non_null(map);
	for (size_t i = 0; i < cells; i++) {
		map[i] = NONE;
	}
	for (int i = 0; i < g->n_nodes; i++) {
		const struct node *n = &g->nodes[i];
		for (int k = 0; k < NODE_INPUTS; k++) {
			for (size_t c = 0; n->in[k] != NONE && c < tensor_bytes(g, n->in[k]) / 64; c++) {
				assert_int_equal(map[g->tensors[n->in[k]].offset / 64 + c], n->in[k]);
			}
		}
		for (int k = 0; k < NODE_OUTPUTS; k++) {
			const struct tensor *o = n->out[k] != NONE ? &g->tensors[n->out[k]] : NULL;
			for (size_t c = 0; o && c < tensor_bytes(g, n->out[k]) / 64; c++) {
				size_t cell = o->offset / 64 + c;
				assert_true(cell < cells);
				/* Over an input of this very node only in place. */
				for (int l = 0; l < NODE_INPUTS; l++) {
					if (n->in[l] != NONE && map[cell] == n->in[l]) {
						assert_true(n->op->inplace[k] & 1u << l);
						assert_int_equal(g->tensors[n->in[l]].offset, o->offset);
					}
				}
				map[cell] = n->out[k];
			}
		}
	}
}

static void test_placement(void **state)
{
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	char *all = strdup("all-linear");
	size_t last = SIZE_MAX;
	for (int level = RECOMPUTE_CHEAP; level <= RECOMPUTE_BLOCK; level++) {
		struct peft *peft = NULL;
		struct job j = job_for(&f, &all, 1, (enum recompute)level, &peft);
		check_placement(j.g, j.placement.region);
		assert_true(j.placement.activations < last);
		assert_true(j.placement.activations < j.placement.region);
		last = j.placement.activations;
		job_deinit(&j);
		peft_free(peft);
	}
	free(all);
	fixture_close(&f);
}

/* What is kept for the backward pass is what performance.md lists, and no byte more. */
static void test_activations(void **state)
{
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	const struct model_config *c = model_files_config(f.files);
	char *all = strdup("all-linear");
	struct peft *peft = NULL;
	struct job j = job_for(&f, &all, 1, RECOMPUTE_CHEAP, &peft);
	size_t t = (size_t)j.g->tokens, d = (size_t)c->hidden_size,
		inner = (size_t)c->intermediate_size;
	size_t heads = (size_t)c->num_attention_heads, kv = (size_t)c->num_key_value_heads;
	size_t hd = (size_t)c->head_dim;
	/* By layer: q, k, v, attention output, its log-sum-exp, gate and up, two residuals, two norms'
	 * statistics, x·Aᵀ of seven modules with r = 4. The first block's input needs no gradient, but
	 * its norm is recomputed from it; the last residual is the final norm's input. */
	size_t layer = (heads + 2 * kv) * hd + heads * hd + heads + 2 * inner + 2 * d + 7 * 4;
	size_t layers = (size_t)c->num_hidden_layers, want = layers * layer + d;
	want += 2 * layers; /* statistics: the first norm's are not needed, the final one's are */
	assert_int_equal(j.placement.activations, want * t * 4);
	job_deinit(&j);
	peft_free(peft);
	free(all);
	fixture_close(&f);
}

static void test_flops(void **state)
{
	struct fixture f;
	fixture_open(&f, "mha");
	const struct model_config *c = model_files_config(f.files);
	char *target = strdup("all-linear");
	struct peft *peft = NULL;
	struct job j = job_for(&f, &target, 1, RECOMPUTE_CHEAP, &peft);
	double d = (double)c->hidden_size, inner = (double)c->intermediate_size, t = 64;
	double layers = (double)c->num_hidden_layers, linear = 4 * d * d + 3 * d * inner;
	double lora = 4 * (4 * 2 * d + 3 * (d + inner));
	/* Products forward and by activations; not those that would reach the embedding. */
	double want = 4 * (layers * linear + (double)c->vocab_size * d) - 2 * 3 * d * d;
	want += 6 * layers * lora - 2 * 4 * 3 * d;
	want += 3.5 * layers * 2 * (32 + 1) * d;
	double got = graph_flops(j.g, 32) / t;
	assert_true(fabs(got - want) <= 1e-9 * want);
	job_deinit(&j);
	peft_free(peft);
	free(target);
	fixture_close(&f);
}

/* Of a forward pass of the bare base, a token of each side, in sequences of n tokens. */
static double forward_flops(const char *name, int64_t n, struct model_config *ret_config)
{
	struct errmsg err = {0};
	struct fixture f;
	struct job j;
	fixture_open(&f, name);
	*ret_config = *model_files_config(f.files);
	const struct graph_request q = {.config = ret_config, .purpose = GRAPH_TRAIN,
		.backend = f.backend, .dtype = DTYPE_F32, .tokens = 64, .max_seqs = 8};
	OK(job_build(&j, &q, NULL, RECOMPUTE_CHEAP, &err));
	double got = graph_flops(j.g, n) / 64;
	job_deinit(&j);
	fixture_close(&f);
	return got;
}

/* Windows shorten what attention costs, and an encoder-decoder has three kinds of it. */
static void test_flops_of_families(void **state)
{
	struct model_config c;
	double got = forward_flops("models/mistral-window", 32, &c), keys = 0;
	for (int i = 0; i < 32; i++) {
		keys += fmin(i + 1, (double)c.sliding_window) / 32;
	}
	double d = (double)c.hidden_size, inner = (double)c.intermediate_size;
	double q = (double)(c.num_attention_heads * c.head_dim);
	double kv = (double)(c.num_key_value_heads * c.head_dim);
	double layer = 2 * (2 * q * d + 2 * kv * d + 3 * d * inner) + 4 * keys * q;
	double want = (double)c.num_hidden_layers * layer + 2 * d * (double)c.vocab_size;
	assert_true(fabs(got - want) <= 1e-9 * want);

	got = forward_flops("seq2seq/t5-uneven", 32, &c);
	d = (double)c.hidden_size;
	inner = (double)c.intermediate_size;
	q = (double)(c.num_attention_heads * c.head_dim);
	double encoder = 2 * (4 * q * d + 3 * d * inner) + 4 * 32 * q;
	double decoder = 2 * (8 * q * d + 3 * d * inner) + 4 * (33.0 / 2 + 32) * q;
	want = (double)c.num_hidden_layers * encoder + (double)c.num_decoder_layers * decoder +
		2 * d * (double)c.vocab_size;
	assert_true(fabs(got - want) <= 1e-9 * want);
}

/* ---- targets and configurations ------------------------------------------------------------ */

static void refuse(struct fixture *f, struct train_config *c, struct method_config *m,
	const char *word, const char *other)
{
	struct errmsg err = {0};
	struct memory_plan plan;
	int r = train_plan(&plan, f->files, f->backend, c, m, 16, 0, &err);
	if (r != STATUS_INVALID || !strstr(err.text, word) || !strstr(err.text, other)) {
		print_error("%d, wanted a word of %s and %s: %s\n", r, word, other, err.text);
		fail();
	}
}

static void test_targets(void **state)
{
	struct fixture f;
	struct errmsg err = {0};
	struct memory_plan plan;
	fixture_open(&f, "mha");
	struct method_config m = f.method;
	char *names[2];
	m.lora.target_modules = (struct modules){names, 2, false};
	names[0] = strdup("q_proj");
	names[1] = strdup("v_prok");
	refuse(&f, &f.config, &m, "\"v_prok\"", "did you mean \"v_proj\"");
	refuse(&f, &f.config, &m, "\"v_prok\"", "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj");
	free(names[1]);
	names[1] = strdup("input_layernorm");
	refuse(&f, &f.config, &m, "input_layernorm", "no linear layer");
	free(names[1]);
	names[1] = strdup("all-linear");
	refuse(&f, &f.config, &m, "all-linear", "alone");
	free(names[1]);
	names[1] = strdup("");
	refuse(&f, &f.config, &m, "target_modules", "empty");
	m.lora.target_modules.n = 0;
	refuse(&f, &f.config, &m, "target_modules", "empty");
	free(names[0]);

	/* A full name is one module; a rank above the layer's own is PEFT's business, not an error. */
	names[0] = strdup("model.layers.1.self_attn.k_proj");
	m.lora.target_modules.n = 1;
	m.lora.r = 64;
	OK(train_plan(&plan, f.files, f.backend, &f.config, &m, 16, 0, &err));
	assert_int_equal(plan.trainable_parameters, 64 * (40 + 40));
	assert_int_equal(plan.total_parameters,
		model_files_parameters(f.files) + plan.trainable_parameters);
	free(names[0]);
	free(names[1]);
	fixture_close(&f);
}

static void test_config(void **state)
{
	struct fixture f;
	fixture_open(&f, "mha");
	struct train_config c = f.config;
	struct method_config m = f.method;
#define REFUSE(field, value, word) \
	do { \
		c = f.config; \
		m = f.method; \
		field = value; \
		refuse(&f, &c, &m, word, "must"); \
	} while (0)
	REFUSE(c.max_steps, 0, "train.max_steps");
	REFUSE(c.batch_size, 0, "train.batch_size");
	REFUSE(c.max_length, 1, "train.max_length");
	REFUSE(c.warmup_steps, -1, "train.warmup_steps");
	REFUSE(c.learning_rate, NAN, "train.learning_rate");
	REFUSE(c.learning_rate, -1, "train.learning_rate");
	REFUSE(c.weight_decay, INFINITY, "train.weight_decay");
	REFUSE(c.max_grad_norm, -0.5, "train.max_grad_norm");
	REFUSE(c.adam_beta1, 1, "train.adam_beta1");
	REFUSE(c.adam_beta2, NAN, "train.adam_beta2");
	REFUSE(c.dtype, DTYPE_I32, "train.dtype");
	REFUSE(m.lora.r, 0, "lora.r");
	REFUSE(m.lora.lora_alpha, NAN, "lora.lora_alpha");
	REFUSE(m.lora.lora_dropout, 1, "lora.lora_dropout");
#undef REFUSE
	c = f.config;
	m = f.method;
	m.method = "lorax";
	refuse(&f, &c, &m, "\"lorax\"", "lora");
	m = f.method;
	c.microbatch_tokens = 8;
	refuse(&f, &c, &m, "microbatch_tokens", "longest");
	fixture_close(&f);
}

/* Positions that a large theta or a long context make hard. */
static void test_rope_table(void **state)
{
	struct model_config c = {.head_dim = 64, .rope_theta = 500000};
	_cleanup_(freep) float *out = malloc(4096 * 64 * sizeof(float));
	rope_table(&c, 0, 4096, out);
	for (int64_t i = 0; i < 32; i++) {
		double inv = pow(500000, -(double)i / 32);
		for (int64_t p = 0; p < 4096; p += 61) {
			/* The angle itself is f32, as in transformers. */
			double tolerance = 2e-7 + (double)p * inv * 2.5e-7;
			assert_true(fabs(out[p * 64 + i] - cos((double)p * inv)) <= tolerance);
			assert_true(fabs(out[p * 64 + 32 + i] - sin((double)p * inv)) <= tolerance);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_permutation),
		cmocka_unit_test(test_permutation_is_uniform),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_schedule),
		cmocka_unit_test(test_nothing_below_the_lowest),
		cmocka_unit_test(test_placement),
		cmocka_unit_test(test_activations),
		cmocka_unit_test(test_flops),
		cmocka_unit_test(test_flops_of_families),
		cmocka_unit_test(test_targets),
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_rope_table),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
