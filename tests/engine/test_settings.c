/* What methods refuse, by name and with what would be right; and that less is done where less is
 * trained. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/generate/generate.h"
#include "tests/engine/fixture.h"
#include "util/util.h"

#define NAMES(...) {(char *[]){__VA_ARGS__}, sizeof((char *[]){__VA_ARGS__}) / sizeof(char *), false}

static int plan_of(struct fixture *f, const struct method_config *m, struct memory_plan *plan,
	struct errmsg *err)
{
	int r = train_check(f->files, f->backend, &f->config, m, NULL, err);
	return r ? r : train_plan(plan, f->files, f->backend, &f->config, m, f->samples.longest_kept, 0, err);
}

/* The model has 3 layers with hidden size 24 and no biases, head and embeddings apart. */
static void test_refusals(void **state)
{
	const struct lora_config lora = {.r = 2, .lora_alpha = 4, .target_modules = NAMES("q_proj")};
	struct lora_config l[12];
	for (size_t i = 0; i < ARRAY_LEN(l); i++) {
		l[i] = lora;
	}
	int64_t layers[] = {0, 3};
	struct pattern nothing[] = {{"nothing", 2}}, half[] = {{"q_proj", 2.5}};
	struct pattern twice[] = {{"layers.0.self_attn.q_proj", 2}, {"q_proj", 3}};
	l[0].layers_to_transform = layers;
	l[0].n_layers_to_transform = 2;
	l[1].rank_pattern = (struct patterns){nothing, 1};
	l[2].rank_pattern = (struct patterns){half, 1};
	l[3].alpha_pattern = (struct patterns){twice, 2};
	l[4].modules_to_save = (struct modules)NAMES("lm_haed");
	l[5].init_lora_weights = LORA_INIT_PISSA;
	l[5].r = 25;
	l[6].use_dora = true;
	l[6].lora_dropout = 0.1;
	l[7].target_modules = (struct modules)NAMES("embed_tokens");
	l[7].use_dora = true;
	l[8].target_modules = (struct modules)NAMES("input_layernorm");
	l[9].target_modules = (struct modules)NAMES("q_proj");
	l[9].modules_to_save = (struct modules)NAMES("q_proj");
	l[10].target_modules = (struct modules)NAMES("model.layers.0.(");
	l[10].target_modules.is_regex = true;
	l[11].loraplus_lr_ratio = -1;
	const struct {
		struct method_config m;
		const char *expected[2];
	} cases[] = {
		{{.method = "qlora"}, {"\"qlora\"", "lora, "}},
		{{.method = "last_k", .last_k = {.k = 4}}, {"last_k.k: 4", "3 blocks"}},
		{{.method = "last_k", .last_k = {.k = -1}}, {"last_k.k: -1", "0 or above"}},
		{{.method = "last_k", .last_k = {.k = 0}}, {"nothing to train", "head"}},
		{{.method = "select"}, {"select.parameters", "empty"}},
		{{.method = "select", .select = {NAMES("model\\.layers\\.0\\.mlp\\.up_proj\\.weigth")}},
			{"matches no parameter", "model.layers.0.mlp.up_proj.weight"}},
		{{.method = "select", .select = {NAMES("model.*", "(")}},
			{"select.parameters", "regular expression"}},
		{{.method = "ln_tuning", .ln_tuning = {NAMES("input_layernrom")}},
			{"ln_tuning.target_modules", "did you mean \"input_layernorm\""}},
		{{.method = "ln_tuning", .ln_tuning = {NAMES("q_proj")}}, {"q_proj", "no norm"}},
		{{.method = "bitfit", .bitfit = {NAMES("v_prok")}},
			{"bitfit.target_modules", "did you mean \"v_proj\""}},
		{{.method = "bitfit", .bitfit = {NAMES("lm_head")}}, {"lm_head", "no linear layer"}},
		{{.method = "lora", .lora = l[0]}, {"layers_to_transform: 3", "layers 0 to 2"}},
		{{.method = "lora", .lora = l[1]}, {"rank_pattern", "\"nothing\" matches no target"}},
		{{.method = "lora", .lora = l[2]}, {"rank_pattern", "whole number"}},
		{{.method = "lora", .lora = l[3]}, {"alpha_pattern", "two keys match"}},
		{{.method = "lora", .lora = l[4]}, {"modules_to_save", "did you mean \"lm_head\"?"}},
		{{.method = "lora", .lora = l[5]}, {"lora.r: 25", "at most 24"}},
		{{.method = "lora", .lora = l[6]}, {"lora_dropout", "DoRA"}},
		{{.method = "lora", .lora = l[7]}, {"use_dora", "embed_tokens"}},
		{{.method = "lora", .lora = l[8]}, {"input_layernorm", "no linear layer"}},
		{{.method = "lora", .lora = l[9]}, {"modules_to_save", "no target"}},
		{{.method = "lora", .lora = l[10]}, {"lora.target_modules", "regular expression"}},
		{{.method = "lora", .lora = l[11]}, {"loraplus_lr_ratio: -1", "0 (off)"}},
	};
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct memory_plan plan;
		struct errmsg err = {0};
		int r = plan_of(&f, &cases[i].m, &plan, &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].expected[0]) ||
			!strstr(err.text, cases[i].expected[1])) {
			print_error("case %zu (%s): %d: '%s'; wanted '%s' and '%s'\n", i, cases[i].m.method, r,
				err.text, cases[i].expected[0], cases[i].expected[1]);
			fail();
		}
	}
	fixture_close(&f);
}

static struct memory_plan planned(struct fixture *f, const struct method_config *m)
{
	struct errmsg err = {0};
	struct memory_plan plan;
	OK(plan_of(f, m, &plan, &err));
	return plan;
}

/* Nothing below the lowest trained parameter is differentiated. */
static void test_less_work(void **state)
{
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	const struct method_config full = {.method = "full"};
	const struct method_config bitfit = {.method = "bitfit"};
	struct method_config last = {.method = "last_k", .last_k = {.head = true, .final_norm = true}};
	struct memory_plan all = planned(&f, &full), biases = planned(&f, &bitfit), before = {0};
	assert_int_equal(all.trainable_parameters, model_files_parameters(f.files));
	assert_int_equal(all.total_parameters, all.trainable_parameters);
	for (int64_t k = 0; k <= 3; k++) {
		last.last_k.k = k;
		struct memory_plan p = planned(&f, &last);
		assert_true(p.flops_per_token > before.flops_per_token);
		assert_true(p.trainable_parameters > before.trainable_parameters);
		assert_true(p.activations >= before.activations);
		assert_true(p.flops_per_token <= all.flops_per_token);
		before = p;
	}
	/* All but the embedding, whose gradient takes no product. */
	assert_true(before.flops_per_token == all.flops_per_token);
	assert_int_equal(all.trainable_parameters - before.trainable_parameters, 75 * 24);
	/* No products for gradients of weights: two thirds of the work, and attention in full. */
	assert_true(biases.flops_per_token < 0.75 * all.flops_per_token);
	assert_true(biases.trainable_weights < all.trainable_weights / 8);
	fixture_close(&f);
}

static void test_inference_cost(void **state)
{
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	struct method_config m = {.method = "full"};
	struct memory_plan p = planned(&f, &m);
	assert_true(p.inference_flops_per_token == 0 && p.inference_bytes_per_token == 0);
	assert_true(p.mergeable);
	m = (struct method_config){.method = "lora",
		.lora = {.r = 2, .lora_alpha = 2, .target_modules = NAMES("q_proj")}};
	p = planned(&f, &m);
	/* Three layers with q_proj of [24, 24], in f32. */
	assert_true(p.inference_flops_per_token == 3 * 2 * 2 * (24 + 24));
	assert_int_equal(p.inference_bytes_per_token, 3 * 2 * (24 + 24) * 4);
	assert_true(p.mergeable);
	m = (struct method_config){.method = "bitfit"};
	p = planned(&f, &m);
	assert_false(p.mergeable); /* this model has no biases */
	m = (struct method_config){.method = "prompt_tuning", .prompt_tuning = {.num_virtual_tokens = 4}};
	p = planned(&f, &m);
	assert_true(p.inference_flops_per_token > 0);
	assert_false(p.mergeable);
	fixture_close(&f);
}

static void set_lora_number(struct lora_config *c, size_t i, double x)
{
	double *const fields[] = {&c->lora_dropout, &c->lora_alpha, &c->loraplus_lr_ratio};
	*fields[i] = x;
}

/* Numbers are judged as kernels see them, in float32. */
static void test_numbers(void **state)
{
	struct pattern wide[] = {{"q_proj", 25}}, loud[] = {{"q_proj", 1e300}};
	int64_t first[] = {0};
	const struct lora_config lora = {.r = 2, .lora_alpha = 4,
		.target_modules = NAMES("q_proj", "v_proj")};
	struct lora_config l[12];
	for (size_t i = 0; i < ARRAY_LEN(l); i++) {
		l[i] = lora;
	}
	set_lora_number(&l[0], 0, 0.999999999);
	set_lora_number(&l[1], 1, 1e308);
	set_lora_number(&l[2], 2, 1e300);
	l[3].r = 25;
	l[4].rank_pattern = (struct patterns){wide, 1};
	l[5].alpha_pattern = (struct patterns){loud, 1};
	l[6].modules_to_save = (struct modules)NAMES("q_proj");
	l[7].target_modules = (struct modules)NAMES("lm_head");
	l[7].n_layers_to_transform = 1;
	l[7].layers_to_transform = first;
	l[8].target_modules = (struct modules)NAMES("q_proj", "embed_tokens");
	l[8].n_layers_to_transform = 1;
	l[8].layers_to_transform = first;
	l[9].target_modules = (struct modules)NAMES("embed_tokens");
	l[9].r = 25;
	l[10].target_modules = (struct modules)NAMES("all-linear");
	l[10].modules_to_save = (struct modules)NAMES("q_proj");
	set_lora_number(&l[11], 1, 1e-300);
	const struct bottleneck_config b = {.mh_adapter = true, .reduction_factor = 2, .scaling = 1};
	struct bottleneck_config narrow = b, huge = b;
	narrow.reduction_factor = 1e-300;
	huge.scaling = 1e300;
	const struct p_tuning_config lstm = {.num_virtual_tokens = 2, .encoder_num_layers = 2,
		.encoder_reparameterization_type = P_TUNING_LSTM, .encoder_dropout = 0.999999999};
	const struct {
		struct method_config m;
		const char *expected[2];
	} cases[] = {
		{{.method = "lora", .lora = l[0]}, {"lora.lora_dropout: 0.999999999", "below 1"}},
		{{.method = "lora", .lora = l[1]}, {"lora.lora_alpha: 1e+308", "to 1e+06"}},
		{{.method = "lora", .lora = l[2]}, {"lora.loraplus_lr_ratio: 1e+300", ""}},
		{{.method = "lora", .lora = l[3]}, {"lora.r: 25; at most 24 for", "sides are 24 and 24"}},
		{{.method = "lora", .lora = l[4]}, {"lora.rank_pattern: 25; at most 24 for", "q_proj"}},
		{{.method = "lora", .lora = l[5]}, {"lora.alpha_pattern: q_proj: 1e+300", ""}},
		{{.method = "lora", .lora = l[6]}, {"modules_to_save", "no module of \"q_proj\""}},
		{{.method = "lora", .lora = l[7]}, {"lora.layers_to_transform: has no effect", ""}},
		{{.method = "lora", .lora = l[8]}, {"layers_to_transform", "no module of \"embed_tokens\""}},
		{{.method = "lora", .lora = l[9]}, {"lora.r: 25; at most 24", "embed_tokens"}},
		{{.method = "lora", .lora = l[10]}, {"modules_to_save", "no module of \"q_proj\""}},
		{{.method = "lora", .lora = l[11]}, {"lora.lora_alpha: 1e-300", "from 1e-30"}},
		{{.method = "p_tuning", .p_tuning = lstm}, {"encoder_dropout: 0.999999999", "below 1"}},
		{{.method = "bottleneck", .bottleneck = narrow}, {"reduction_factor: 1e-300", "units"}},
		{{.method = "bottleneck", .bottleneck = huge}, {"bottleneck.scaling: 1e+300", "float32"}},
		{{.method = "ia3", .ia3 = {.feedforward_modules = NAMES("q_proj")}},
			{"ia3.feedforward_modules: \"q_proj\"", "must be a target too"}},
	};
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct memory_plan plan;
		struct errmsg err = {0};
		int r = plan_of(&f, &cases[i].m, &plan, &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].expected[0]) ||
			!strstr(err.text, cases[i].expected[1])) {
			print_error("case %zu (%s): %d: '%s'; wanted '%s' and '%s'\n", i, cases[i].m.method, r,
				err.text, cases[i].expected[0], cases[i].expected[1]);
			fail();
		}
	}
	fixture_close(&f);
}

static void test_training_numbers(void **state)
{
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	const struct train_config right = f.config;
	double *const fields[] = {&f.config.learning_rate, &f.config.weight_decay,
		&f.config.max_grad_norm, &f.config.adam_epsilon, &f.config.adam_epsilon,
		&f.config.adam_beta1, &f.config.adam_beta2};
	const double wrong[] = {1e300, 1e300, 1e300, 1e300, 0, 0.999999999, 0.999999999};
	const char *const names[] = {"train.learning_rate", "train.weight_decay",
		"train.max_grad_norm", "train.adam_epsilon", "train.adam_epsilon: 0; it must be above 0",
		"train.adam_beta1: 0.999999999", "train.adam_beta2: 0.999999999"};
	for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
		struct memory_plan plan;
		struct errmsg err = {0};
		f.config = right;
		*fields[i] = wrong[i];
		assert_int_equal(plan_of(&f, &f.method, &plan, &err), STATUS_INVALID);
		assert_non_null(strstr(err.text, names[i]));
	}
	struct memory_plan plan;
	struct errmsg err = {0};
	f.config = right;
	f.config.learning_rate = 1e30;
	f.method.lora.loraplus_lr_ratio = 1e30;
	assert_int_equal(plan_of(&f, &f.method, &plan, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "loraplus_lr_ratio: 1e+30 of train.learning_rate 1e+30"));
	fixture_close(&f);
}

/* At the first step no update is to blame, and f32 is no advice where it is in use. */
static void test_first_step(void **state)
{
	struct fixture f;
	struct errmsg err = {0};
	struct step_metrics m;
	fixture_open(&f, "gqa3-odd");
	fixture_base(&f, DTYPE_F32, true);
	for (size_t i = 0; i < f.adapter.tensors.n_tensors; i++) {
		const struct st_tensor *t = &f.adapter.tensors.tensors[i];
		const float huge = 3e38F;
		for (size_t k = 0; strstr(t->name, "lora_B") && k < t->bytes; k += sizeof(huge)) {
			memcpy(f.adapter_weights + ((const char *)t->data - f.adapter_weights) + k, &huge,
				sizeof(huge));
		}
	}
	struct train_session *s = fixture_session(&f, true);
	assert_int_equal(train_session_run_step(s, &m, &err), STATUS_FAILED);
	assert_non_null(strstr(err.text, "step 1: the loss is no finite number"));
	assert_non_null(strstr(err.text, "nothing was trained before it"));
	assert_null(strstr(err.text, "learning_rate"));
	assert_null(strstr(err.text, "dtype f32"));
	train_session_free(s);
	fixture_close(&f);
}

/* An adapter that does not fit is told of before anything starts, with what to change. */
static void test_init_fits(void **state)
{
	const struct {
		const char *golden, *expected[2];
	} cases[] = {
		{"methods/prompt_tuning-one", {"init_adapter: ", "set prompt_tuning.num_virtual_tokens: "}},
		{"methods/prefix_tuning-one", {"init_adapter: ", "set prefix_tuning.num_virtual_tokens: "}},
		{"methods/select-some", {"init_adapter: ", "set select.parameters to"}},
		{"methods/lora-dora", {"init_adapter: ", "set lora.target_modules to"}},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct fixture f;
		struct errmsg err = {0};
		fixture_open(&f, cases[i].golden);
		fixture_base(&f, DTYPE_F32, true);
		struct train_session *s = fixture_session(&f, false);
		struct buf json = {0}, weights = {0};
		struct adapter a;
		OK(train_session_export(s, &json, &weights, &err));
		OK(adapter_parse(&a, json.data, json.len, weights.data, weights.len, &err));
		OK(train_check(f.files, f.backend, &f.config, &f.method, &a, &err));
		struct method_config m = f.method;
		m.prompt_tuning.num_virtual_tokens++;
		m.prefix_tuning.num_virtual_tokens++;
		m.select.parameters = (struct modules)NAMES(".*k_proj.weight");
		m.lora.target_modules = (struct modules)NAMES("k_proj");
		int r = train_check(f.files, f.backend, &f.config, &m, &a, &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].expected[0]) ||
			!strstr(err.text, cases[i].expected[1])) {
			print_error("%s: %d: '%s'\n", cases[i].golden, r, err.text);
			fail();
		}
		adapter_deinit(&a);
		buf_deinit(&json);
		buf_deinit(&weights);
		train_session_free(s);
		fixture_close(&f);
	}
}

/* Every golden run would be admitted, but for those of a rank above what a module can hold. */
static void test_admitted(void **state)
{
	for (size_t i = 0; golden_methods[i]; i++) {
		struct fixture f;
		struct errmsg err = {0};
		fixture_open(&f, golden_methods[i]);
		int r = train_check(f.files, f.backend, &f.config, &f.method, NULL, &err);
		if (r != 0 && !strstr(err.text, "whose sides are")) {
			print_error("%s: %s\n", golden_methods[i], err.text);
			fail();
		}
		fixture_close(&f);
	}
}

/* The advice names what is too big, and the plan is there all the same. */
static void test_advice(void **state)
{
	struct fixture f;
	struct errmsg err = {0};
	struct memory_plan p = {0};
	fixture_open(&f, "gqa3-odd");
	struct method_config m = {.method = "lora",
		.lora = {.r = 24, .lora_alpha = 2, .target_modules = NAMES("q_proj")}};
	uint64_t limit = planned(&f, &m).base_weights + 1000;
	int r = train_plan(&p, f.files, f.backend, &f.config, &m, f.samples.longest_kept, limit, &err);
	assert_int_equal(r, STATUS_WONT_FIT);
	assert_non_null(strstr(err.text, "method lora trains"));
	assert_non_null(strstr(err.text, "a smaller lora.r"));
	assert_int_equal(p.trainable_parameters, 3 * 24 * 48);
	assert_true(p.base_weights > 0 && p.base_weights + p.arena > limit);
	assert_int_equal(p.optimizer_states, 2 * 4 * p.trainable_parameters);
	assert_true(p.inference_flops_per_token > 0);

	m.lora.r = 2;
	r = train_plan(&p, f.files, f.backend, &f.config, &m, f.samples.longest_kept, 1000, &err);
	assert_int_equal(r, STATUS_WONT_FIT);
	assert_non_null(strstr(err.text, "base model's weights alone"));
	fixture_close(&f);
}

/* Dropout that cannot be trained here is no hindrance to an adapter that is only used. */
static void test_dropout_at_use(void **state)
{
	struct fixture f;
	struct errmsg err = {0};
	struct eval_metrics eval;
	struct memory_plan p;
	fixture_open(&f, "methods/lora-dora");
	fixture_base(&f, DTYPE_F32, false);
	f.adapter.config.lora.lora_dropout = 0.1;
	OK(engine_eval(f.base, &f.adapter, &f.samples, &eval, &err));
	double want = golden_number(&f, "eval_loss");
	assert_true(eval.loss > want * (1 - 1e-5) && eval.loss < want * (1 + 1e-5));
	f.method.lora.lora_dropout = 0.1;
	assert_int_equal(plan_of(&f, &f.method, &p, &err), STATUS_INVALID);
	fixture_close(&f);
}

/* GPT-2 has 128 positions here, and none after them: not for training, evaluating or generating; what a
 * method puts before the rows counts. */
static void test_positions_end(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct memory_plan p;
	struct generator *g = NULL;
	struct method_config prefix = {.method = "prefix_tuning"};
	fixture_open(&f, "models/gpt2-usual");
	fixture_base(&f, DTYPE_F32, false);
	prefix.prefix_tuning.num_virtual_tokens = 4;
	const struct {
		const struct method_config *method;
		int64_t longest;
		int want;
	} plans[] = {{&f.method, 128, 0}, {&f.method, 129, STATUS_INVALID}, {&prefix, 124, 0},
		{&prefix, 125, STATUS_INVALID}};
	for (size_t i = 0; i < ARRAY_LEN(plans); i++) {
		int r = train_plan(&p, f.files, f.backend, &f.config, plans[i].method, plans[i].longest, 0,
			&err);
		assert_int_equal(r, plans[i].want);
		assert_true(r == 0 || strstr(err.text, "positions for 128"));
	}
	for (int64_t new = 123; new <= 124; new++) {
		struct generate_options o = {.max_new_tokens = new};
		int r = generator_new(&g, f.base, NULL, f.samples.ids, 5, &o, &err);
		assert_int_equal(r, new == 123 ? 0 : STATUS_INVALID);
		generator_free(r == 0 ? g : NULL);
	}
	assert_non_null(strstr(err.text, "prompt and max_new_tokens: 129 tokens; this model has positions"));
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_less_work),
		cmocka_unit_test(test_inference_cost),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_training_numbers),
		cmocka_unit_test(test_first_step),
		cmocka_unit_test(test_init_fits),
		cmocka_unit_test(test_admitted),
		cmocka_unit_test(test_advice),
		cmocka_unit_test(test_dropout_at_use),
		cmocka_unit_test(test_positions_end),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
