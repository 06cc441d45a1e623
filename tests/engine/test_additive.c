/* Additive methods: how they start, what they refuse, what folders they refuse, prompts longer than a run
 * of the graph, bf16. */
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
#include "util/cleanup.h"
#include "util/util.h"

#define NAMES(...) {(char *[]){__VA_ARGS__}, sizeof((char *[]){__VA_ARGS__}) / sizeof(char *), false}

/* The values of a session's i-th tensor; caller frees. */
static float *values_of(struct train_session *s, size_t i, struct peft_tensor *t, size_t *ret_n)
{
	peft_tensor(s->peft, s->job.g, i, t);
	*ret_n = 1;
	for (int d = 0; d < t->n_dims; d++) {
		*ret_n *= (size_t)t->dims[d];
	}
	float *out = malloc(*ret_n * sizeof(*out));
	assert_non_null(out);
	backend_download(s->job.g->backend, out,
		s->arena + s->job.layout.masters + t->offset * sizeof(float), *ret_n * sizeof(*out));
	return out;
}

static void mean_and_deviation(const float *x, size_t n, double *mean, double *deviation)
{
	double sum = 0, squares = 0;
	for (size_t i = 0; i < n; i++) {
		sum += x[i];
		squares += (double)x[i] * x[i];
	}
	*mean = sum / (double)n;
	*deviation = sqrt(squares / (double)n - *mean * *mean);
}

static struct train_session *fresh(struct fixture *f, const struct method_config *m, uint64_t seed)
{
	struct errmsg err = {0};
	struct memory_plan plan;
	struct train_session *s = NULL;
	f->config.seed = seed;
	OK(train_plan(&plan, f->files, f->backend, &f->config, m, f->samples.longest_kept, 0, &err));
	OK(train_session_new(&s, f->base, &f->config, m, &plan, &f->samples, &f->samples, NULL, &err));
	return s;
}

/* ---- start --------------------------------------------------------------------------------- */

static void check_distribution(const char *what, const float *x, size_t n, double deviation,
	double bound)
{
	double mean, got;
	mean_and_deviation(x, n, &mean, &got);
	double slack = 6 * deviation / sqrt((double)n);
	bool inside = true;
	for (size_t i = 0; i < n && bound > 0; i++) {
		inside &= fabs((double)x[i]) <= bound;
	}
	if (!(fabs(mean) <= slack && fabs(got - deviation) <= slack && inside)) {
		print_error("%s: mean %g, deviation %g, wanted 0 and %g\n", what, mean, got, deviation);
		fail();
	}
}

static void test_init(void **state)
{
	const double uniform = 1 / sqrt(3.0); /* deviation by bound */
	struct fixture f;
	struct peft_tensor t;
	size_t n;
	fixture_open(&f, "mha"); /* hidden size 40, tied to nothing */
	fixture_base(&f, DTYPE_F32, true);

	struct method_config m = {.method = "ia3"};
	struct train_session *s = fresh(&f, &m, 1);
	for (size_t i = 0; i < peft_n_tensors(s->peft, s->job.g); i++) {
		_cleanup_(freep) float *x = values_of(s, i, &t, &n);
		for (size_t k = 0; k < n; k++) {
			assert_true(x[k] == 1);
		}
	}
	train_session_free(s);

	m = (struct method_config){.method = "prompt_tuning", .prompt_tuning = {.num_virtual_tokens = 50}};
	s = fresh(&f, &m, 1);
	_cleanup_(freep) float *random = values_of(s, 0, &t, &n);
	check_distribution("prompt", random, n, 1, 0);
	train_session_free(s);
	s = fresh(&f, &m, 2);
	_cleanup_(freep) float *other = values_of(s, 0, &t, &n);
	assert_memory_not_equal(random, other, n * sizeof(*other));
	train_session_free(s);

	m = (struct method_config){.method = "prefix_tuning",
		.prefix_tuning = {.num_virtual_tokens = 8, .prefix_projection = true,
			.encoder_hidden_size = 30}};
	s = fresh(&f, &m, 1);
	const double deviations[] = {1, uniform / sqrt(40), uniform / sqrt(40), uniform / sqrt(30),
		uniform / sqrt(30)};
	assert_int_equal(peft_n_tensors(s->peft, s->job.g), ARRAY_LEN(deviations));
	for (size_t i = 0; i < ARRAY_LEN(deviations); i++) {
		_cleanup_(freep) float *x = values_of(s, i, &t, &n);
		check_distribution(t.name, x, n, deviations[i], i ? deviations[i] / uniform : 0);
	}
	train_session_free(s);

	m = (struct method_config){.method = "p_tuning",
		.p_tuning = {.num_virtual_tokens = 8, .encoder_reparameterization_type = P_TUNING_LSTM,
			.encoder_hidden_size = 25, .encoder_num_layers = 2}};
	s = fresh(&f, &m, 1);
	for (size_t i = 1; i < peft_n_tensors(s->peft, s->job.g); i++) {
		_cleanup_(freep) float *x = values_of(s, i, &t, &n);
		double bound = 1 / sqrt(strstr(t.name, "lstm_head") ? 25 : 50);
		check_distribution(t.name, x, n, bound * uniform, bound);
	}
	train_session_free(s);

	m = (struct method_config){.method = "bottleneck",
		.bottleneck = {.mh_adapter = true, .output_adapter = true, .reduction_factor = 2,
			.scaling = 1}};
	for (int parallel = 0; parallel < 2; parallel++) {
		m.bottleneck.is_parallel = parallel;
		s = fresh(&f, &m, 1);
		for (size_t i = 0; i < peft_n_tensors(s->peft, s->job.g); i++) {
			_cleanup_(freep) float *x = values_of(s, i, &t, &n);
			bool zero = strstr(t.name, "bias") || (parallel && strstr(t.name, "adapter_up"));
			double mean, deviation;
			mean_and_deviation(x, n, &mean, &deviation);
			if (zero) {
				assert_true(mean == 0 && deviation == 0);
			} else {
				check_distribution(t.name, x, n, parallel ? uniform / sqrt(40) : 0.02, 0);
			}
		}
		train_session_free(s);
	}
	fixture_close(&f);
}

/* Rows of the embedding: those of the text, cut or repeated; or of any tokens. */
static void test_prompt_from_embedding(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct peft_tensor t;
	size_t n;
	fixture_open(&f, "mha");
	const struct model_config *c = model_files_config(f.files);
	size_t d = (size_t)c->hidden_size, vocab = (size_t)c->vocab_size;
	_cleanup_(freep) float *table = malloc(vocab * d * sizeof(*table));
	OK(model_files_read(f.files, "model.embed_tokens.weight", table, &err));
	for (int bf16 = 0; bf16 < 2; bf16++) {
		f.config.dtype = bf16 ? DTYPE_BF16 : DTYPE_F32;
		fixture_base(&f, f.config.dtype, true);
		for (int64_t virtual_tokens = 2; virtual_tokens <= 8; virtual_tokens += 3) {
			int32_t ids[] = {5, 0, 17};
			char text[] = "three tokens";
			struct method_config m = {.method = "prompt_tuning",
				.prompt_tuning = {virtual_tokens, PROMPT_INIT_TEXT, text, ids, 3}};
			struct train_session *s = fresh(&f, &m, 1);
			_cleanup_(freep) float *x = values_of(s, 0, &t, &n);
			assert_int_equal(n, (size_t)virtual_tokens * d);
			/* The fixture's weights are bf16, so nothing is rounded. */
			for (int64_t i = 0; i < virtual_tokens; i++) {
				assert_memory_equal(x + (size_t)i * d, table + (size_t)ids[i % 3] * d,
					d * sizeof(*x));
			}
			train_session_free(s);

			m.prompt_tuning = (struct prompt_tuning_config){virtual_tokens,
				PROMPT_INIT_SAMPLE_VOCAB, NULL, NULL, 0};
			s = fresh(&f, &m, 1);
			_cleanup_(freep) float *y = values_of(s, 0, &t, &n);
			for (int64_t i = 0; i < virtual_tokens; i++) {
				size_t row = 0;
				while (row < vocab && memcmp(y + (size_t)i * d, table + row * d, d * sizeof(*y)) != 0) {
					row++;
				}
				assert_true(row < vocab);
			}
			train_session_free(s);
		}
		base_model_free(f.base);
		f.base = NULL;
	}
	int32_t none[] = {1000000};
	char text[] = "x";
	struct method_config m = {.method = "prompt_tuning",
		.prompt_tuning = {4, PROMPT_INIT_TEXT, text, none, 1}};
	struct memory_plan plan;
	struct train_session *s = NULL;
	f.config.dtype = DTYPE_F32;
	fixture_base(&f, DTYPE_F32, true);
	OK(train_plan(&plan, f.files, f.backend, &f.config, &m, f.samples.longest_kept, 0, &err));
	assert_int_equal(train_session_new(&s, f.base, &f.config, &m, &plan, &f.samples, NULL, NULL,
		&err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "token 1000000"));
	fixture_close(&f);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void test_refusals(void **state)
{
	char text[] = "x";
	const struct {
		struct method_config m;
		const char *expected[2];
	} cases[] = {
		{{.method = "ia3", .ia3 = {.target_modules = NAMES("k_prok")}},
			{"ia3.target_modules: \"k_prok\"", "\"k_proj\""}},
		{{.method = "ia3", .ia3 = {.target_modules = NAMES("lm_head")}},
			{"ia3.target_modules", "lm_head"}},
		{{.method = "ia3", .ia3 = {.target_modules = NAMES("k_proj"),
			.feedforward_modules = NAMES("down_proj")}},
			{"ia3.feedforward_modules: \"down_proj\"", "target"}},
		{{.method = "prompt_tuning"}, {"prompt_tuning.num_virtual_tokens: 0", "from 1"}},
		{{.method = "prompt_tuning", .prompt_tuning = {4, PROMPT_INIT_TEXT, NULL, NULL, 0}},
			{"prompt_tuning.prompt_tuning_init_text", "TEXT"}},
		{{.method = "prompt_tuning", .prompt_tuning = {4, PROMPT_INIT_RANDOM, text, NULL, 0}},
			{"prompt_tuning.prompt_tuning_init_text", "RANDOM"}},
		{{.method = "prefix_tuning", .prefix_tuning = {.num_virtual_tokens = -3}},
			{"prefix_tuning.num_virtual_tokens: -3", "from 1"}},
		{{.method = "prefix_tuning", .prefix_tuning = {4, true, -1}},
			{"prefix_tuning.encoder_hidden_size: -1", "must"}},
		{{.method = "p_tuning", .p_tuning = {4, P_TUNING_MLP, 0, 3, 0}},
			{"p_tuning.encoder_num_layers: 3", "MLP"}},
		{{.method = "p_tuning", .p_tuning = {4, P_TUNING_LSTM, 0, 0, 0}},
			{"p_tuning.encoder_num_layers: 0", "from 1"}},
		{{.method = "p_tuning", .p_tuning = {4, P_TUNING_MLP, 0, 2, 0.1}},
			{"p_tuning.encoder_dropout", "LSTM"}},
		{{.method = "p_tuning", .p_tuning = {4, P_TUNING_LSTM, 0, 2, 1}},
			{"p_tuning.encoder_dropout: 1", "below 1"}},
		{{.method = "bottleneck", .bottleneck = {.reduction_factor = 2, .scaling = 1}},
			{"mh_adapter", "output_adapter"}},
		{{.method = "bottleneck", .bottleneck = {.mh_adapter = true, .scaling = 1}},
			{"bottleneck.reduction_factor: 0", "above 0"}},
		{{.method = "bottleneck", .bottleneck = {.mh_adapter = true, .scaling = NAN,
			.reduction_factor = 2}}, {"bottleneck.scaling", "number"}},
	};
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct errmsg err = {0};
		struct memory_plan plan;
		int r = train_plan(&plan, f.files, f.backend, &f.config, &cases[i].m,
			f.samples.longest_kept, 0, &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].expected[0]) ||
			!strstr(err.text, cases[i].expected[1])) {
			print_error("case %zu: %d: %s\n", i, r, err.text);
			fail();
		}
	}
	fixture_close(&f);
}

/* A library's folder with one word changed. */
static void refuse_folder(const char *name, const char *from, const char *to, const char *expected)
{
	struct errmsg err = {0};
	struct fixture f;
	struct adapter a;
	char folder[4096];
	size_t len, weights_len;
	fixture_open(&f, name);
	snprintf(folder, sizeof(folder), "%s/init", f.folder);
	_cleanup_(freep) char *config = read_file(folder, "adapter_config.json", &len);
	_cleanup_(freep) char *weights = read_file(folder,
		adapter_files(adapter_kind_of_config(config, len)).weights, &weights_len);
	char *at = strstr(config, from);
	assert_non_null(at);
	_cleanup_(freep) char *changed = NULL;
	assert_true(asprintf(&changed, "%.*s%s%s", (int)(at - config), config, to,
		at + strlen(from)) > 0);
	int r = adapter_parse(&a, changed, strlen(changed), weights, weights_len, &err);
	if (r != STATUS_INVALID || !strstr(err.text, expected)) {
		print_error("%s: %s: %d: %s\n", name, to, r, err.text);
		fail();
	}
	fixture_close(&f);
}

static void test_folders(void **state)
{
	const char *ia3 = "methods/ia3-default", *prompt = "methods/prompt_tuning-random";
	const char *bottleneck = "methods/bottleneck-houlsby";
	refuse_folder(ia3, "\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]",
		"modules_to_save");
	refuse_folder(ia3, "\"v_proj\"", "\"q_proj\"", "left over");
	refuse_folder(prompt, "\"num_virtual_tokens\": 7", "\"num_virtual_tokens\": 6",
		"num_virtual_tokens = 6");
	refuse_folder(prompt, "\"num_transformer_submodules\": 1", "\"num_transformer_submodules\": 2",
		"num_transformer_submodules");
	refuse_folder(prompt, "\"num_virtual_tokens\": 7", "\"num_virtual_tokens\": \"7\"",
		"num_virtual_tokens");
	refuse_folder("methods/prefix_tuning-default", "\"num_virtual_tokens\": 5",
		"\"num_virtual_tokens\": 50", "num_virtual_tokens = 50");
	refuse_folder(bottleneck, "\"ln_before\": false", "\"ln_before\": true", "ln_before");
	refuse_folder(bottleneck, "\"residual_before_ln\": true",
		"\"residual_before_ln\": \"post_add\"", "residual_before_ln");
	refuse_folder(bottleneck, "\"scaling\": 1.0", "\"scaling\": \"learned\"", "scaling");
	refuse_folder(bottleneck, "\"use_gating\": false", "\"use_gating\": true", "use_gating");
	refuse_folder(bottleneck, "\"leave_out\": []", "\"leave_out\": [1]", "leave_out");
	refuse_folder(bottleneck, "\"dropout\": 0.0", "\"dropout\": 0.5", "dropout");
	refuse_folder(bottleneck, "\"non_linearity\": \"", "\"non_linearity\": \"x", "non_linearity");
	refuse_folder(bottleneck, "\"phm_layer\": false", "\"phm_layer\": true", "phm_layer");
}

/* A job does not start from a folder that computes something else, or that lacks what is trained. */
static void test_start_from_another(void **state)
{
	static const struct {
		const char *name, *expected;
	} cases[] = {
		{"methods/p_tuning-mlp", "encoder"},
		{"methods/prefix_tuning-projection", "projection"},
		{"methods/bottleneck-houlsby", "bottleneck.scaling"},
		{"methods/prompt_tuning-random", "set prompt_tuning.num_virtual_tokens: 7"},
		{"methods/ia3-inputs", "feedforward_modules"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct errmsg err = {0};
		struct fixture f;
		struct memory_plan plan;
		struct train_session *s = NULL;
		fixture_open(&f, cases[i].name);
		fixture_base(&f, DTYPE_F32, true);
		f.method.bottleneck.scaling = 2;
		f.method.prompt_tuning.num_virtual_tokens = 9;
		modules_deinit(&f.method.ia3.feedforward_modules);
		f.method.ia3.no_feedforward = true;
		OK(train_plan(&plan, f.files, f.backend, &f.config, &f.method, f.samples.longest_kept, 0,
			&err));
		int r = train_session_new(&s, f.base, &f.config, &f.method, &plan, &f.samples, NULL,
			&f.adapter, &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].expected)) {
			print_error("%s: %d: %s\n", cases[i].name, r, err.text);
			fail();
		}
		fixture_close(&f);
	}
}

/* ---- long prompts -------------------------------------------------------------------------- */

/* A prompt that is read in several runs of the graph continues as one that is read token by token. */
static void test_long_prompt(void **state)
{
	static const char *const names[] = {"methods/prompt_tuning-random",
		"methods/prefix_tuning-default", "methods/bottleneck-pfeiffer", "methods/ia3-default"};
	enum { N = 600, NEXT = 4 };
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct errmsg err = {0};
		struct fixture f;
		fixture_open(&f, names[i]);
		fixture_base(&f, DTYPE_F32, false);
		int64_t vocab = model_files_config(f.files)->vocab_size;
		int32_t ids[N + NEXT];
		for (int64_t k = 0; k < N; k++) {
			ids[k] = (int32_t)(k * 7919 % vocab);
		}
		struct generate_options o = {.max_new_tokens = NEXT + 1};
		struct generator *g = NULL;
		bool stopped;
		OK(generator_new(&g, f.base, &f.adapter, ids, N, &o, &err));
		for (int64_t k = 0; k < NEXT; k++) {
			assert_int_equal(generator_next(g, &ids[N + k], &stopped, &err), 1);
		}
		_cleanup_(freep) float *want = malloc((size_t)vocab * sizeof(float));
		memcpy(want, generator_logits(g), (size_t)vocab * sizeof(float));
		generator_free(g);
		OK(generator_new(&g, f.base, &f.adapter, ids, N + NEXT, &o, &err));
		const float *got = generator_logits(g);
		for (int64_t k = 0; k < vocab; k++) {
			assert_true(fabsf(got[k] - want[k]) <= 1e-4f);
		}
		generator_free(g);
		fixture_close(&f);
	}
}

/* ---- bf16 ---------------------------------------------------------------------------------- */

/* Within what rounding explains of the library's run in f32, and that run learns. */
static void test_bf16(void **state)
{
	for (int k = 0; golden_methods[k]; k++) {
		static const char *const families[] = {"ia3", "bottleneck", "prompt_tuning", "prefix_tuning"};
		bool wanted = false;
		for (size_t i = 0; i < ARRAY_LEN(families); i++) {
			wanted |= strstr(golden_methods[k], families[i]) != NULL;
		}
		wanted &= !strstr(golden_methods[k], "projection");
		if (!wanted) {
			continue;
		}
		struct errmsg err = {0};
		struct fixture f;
		fixture_open(&f, golden_methods[k]);
		f.config.dtype = DTYPE_BF16;
		fixture_base(&f, DTYPE_BF16, true);
		struct train_session *s = fixture_session(&f, true);
		double mean = 0, want = 0;
		for (size_t i = 0; i < 20; i++) {
			struct step_metrics m;
			OK(train_session_run_step(s, &m, &err));
			mean += m.loss / 20;
			want += golden_item(&f, "loss", i) / 20;
			double off = fabs(m.loss - golden_item(&f, "loss", i)) / golden_item(&f, "loss", i);
			if (!(off <= (i == 0 ? 5e-3 : 5e-2))) {
				print_error("%s: step %zu: %.9g, f32 has %.9g\n", golden_methods[k], i, m.loss,
					golden_item(&f, "loss", i));
				fail();
			}
		}
		if (!(fabs(mean - want) <= 1e-2 * want)) {
			print_error("%s: mean %.9g, f32 has %.9g\n", golden_methods[k], mean, want);
			fail();
		}
		train_session_free(s);
		fixture_close(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_init),
		cmocka_unit_test(test_prompt_from_embedding),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_folders),
		cmocka_unit_test(test_start_from_another),
		cmocka_unit_test(test_long_prompt),
		cmocka_unit_test(test_bf16),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
