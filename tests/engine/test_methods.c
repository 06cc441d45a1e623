/*
 * Every method against the library that has it, or against transformers where none has, and every family
 * of models with LoRA: gradients, losses, the trajectory, what it exports, what it imports, and that it
 * resumes to the same bits; of families the logits at every position, too; encoder-decoders likewise.
 * tests/golden/make_methods.py, make_models.py and make_seq2seq.py made the values. Arguments: only the cases whose names
 * hold one of them.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/generate/generate.h"
#include "engine/train/session.h"
#include "tests/engine/fixture.h"
#include "util/cleanup.h"
#include "util/util.h"

static void assert_close(const char *what, double got, double want, double relative)
{
	if (!(fabs(got - want) <= relative * fabs(want))) {
		print_error("%s: got %.9g, want %.9g: off by %.3g, allowed is %.3g\n", what, got, want,
			fabs(got - want) / fabs(want), relative);
		fail();
	}
}

/* |got - want| / |want|, Euclidean. */
static double distance(const float *got, const float *want, size_t n)
{
	double d = 0, w = 0;
	for (size_t i = 0; i < n; i++) {
		d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
		w += (double)want[i] * want[i];
	}
	return w > 0 ? sqrt(d / w) : sqrt(d);
}

struct golden_tensors {
	char *data;
	struct safetensors st;
};

static void golden_tensors_open(struct golden_tensors *g, const struct fixture *f)
{
	struct errmsg err = {0};
	size_t len;
	g->data = read_file(f->folder, "golden.safetensors", &len);
	OK(safetensors_parse(&g->st, g->data, len, "golden.safetensors", &err));
}

static void golden_tensors_close(struct golden_tensors *g)
{
	safetensors_deinit(&g->st);
	free(g->data);
}

static size_t elements_of(const struct peft_tensor *t)
{
	size_t n = 1;
	for (int i = 0; i < t->n_dims; i++) {
		n *= (size_t)t->dims[i];
	}
	return n;
}

/* The golden tensor PREFIX.name, which must have n elements. */
static float *golden_tensor(const struct golden_tensors *g, const char *prefix, const char *name,
	size_t n)
{
	struct errmsg err = {0};
	char key[300];
	snprintf(key, sizeof(key), "%s.%s", prefix, name);
	const struct st_tensor *t = safetensors_find(&g->st, key);
	if (!t || t->bytes != n * sizeof(float)) {
		print_error("golden.safetensors: no %s of %zu values\n", key, n);
		fail();
		return NULL;
	}
	float *out = malloc(t->bytes);
	assert_non_null(out);
	OK(st_tensor_read_f32(t, out, &err));
	return out;
}

static size_t count_prefix(const struct golden_tensors *g, const char *prefix)
{
	size_t n = 0;
	for (size_t i = 0; i < g->st.n_tensors; i++) {
		n += strncmp(g->st.tensors[i].name, prefix, strlen(prefix)) == 0;
	}
	return n;
}

/* ---- start --------------------------------------------------------------------------------- */

static struct train_session *session_of(struct fixture *f, int64_t microbatch_tokens)
{
	struct train_session *s = fixture_session_at(f, true, microbatch_tokens);
	if (f->has_adapter && !f->starts) {
		fixture_start_encoder(f, s);
	}
	return s;
}

/* ---- training ------------------------------------------------------------------------------ */

static void check_grads(struct fixture *f, struct train_session *s)
{
	struct golden_tensors g;
	golden_tensors_open(&g, f);
	size_t n_tensors = peft_n_tensors(s->peft, s->job.g);
	for (size_t i = 0; i < n_tensors; i++) {
		struct peft_tensor t;
		size_t n;
		peft_tensor(s->peft, s->job.g, i, &t);
		_cleanup_(freep) float *got = session_grad(s, t.name, &n);
		_cleanup_(freep) float *want = golden_tensor(&g, "grad", t.name, n);
		double off = distance(got, want, n);
		if (!(off <= 1e-4)) {
			print_error("%s: gradient of %s: off by %.3g\n", f->folder, t.name, off);
			fail();
		}
	}
	assert_int_equal(count_prefix(&g, "grad."), n_tensors);
	golden_tensors_close(&g);
}

static void check_final(struct fixture *f, struct train_session *s)
{
	struct golden_tensors g;
	golden_tensors_open(&g, f);
	size_t elements = s->job.g->param_elements;
	_cleanup_(freep) float *flat = malloc(elements * sizeof(float));
	assert_non_null(flat);
	backend_download(f->backend, flat, s->arena + s->job.layout.masters, elements * sizeof(float));
	for (size_t i = 0; i < peft_n_tensors(s->peft, s->job.g); i++) {
		struct peft_tensor t;
		peft_tensor(s->peft, s->job.g, i, &t);
		size_t n = elements_of(&t);
		_cleanup_(freep) float *want = golden_tensor(&g, "final", t.name, n);
		double off = distance(flat + t.offset, want, n);
		if (!(off <= 2e-3)) {
			print_error("%s: final %s: off by %.3g\n", f->folder, t.name, off);
			fail();
		}
	}
	golden_tensors_close(&g);
}

static void run_to(struct fixture *f, struct train_session *s, size_t steps, bool check)
{
	struct errmsg err = {0};
	while (train_session_step(s) < (int64_t)steps) {
		struct step_metrics m;
		char what[300];
		size_t i = (size_t)train_session_step(s);
		OK(train_session_run_step(s, &m, &err));
		if (!check) {
			continue;
		}
		snprintf(what, sizeof(what), "%s: loss of step %zu", f->folder, i);
		assert_close(what, m.loss, golden_item(f, "loss", i), i == 0 ? 1e-5 : 1e-4);
		snprintf(what, sizeof(what), "%s: norm of step %zu", f->folder, i);
		assert_close(what, m.grad_norm, golden_item(f, "grad_norm", i), 1e-3);
		assert_true(fabs(m.lr - golden_item(f, "lr", i)) <= 1e-12);
		assert_int_equal(m.target_tokens, (int)golden_item(f, "targets", i));
	}
}

/* ---- what leaves and comes back ------------------------------------------------------------ */

struct snapshot {
	struct buf config, weights, state;
	struct adapter adapter;
};

static void snapshot_take(struct snapshot *x, struct train_session *s)
{
	struct errmsg err = {0};
	*x = (struct snapshot){0};
	OK(train_session_export(s, &x->config, &x->weights, &err));
	OK(train_session_save(s, &x->state, &err));
	OK(adapter_parse(&x->adapter, x->config.data, x->config.len, x->weights.data, x->weights.len,
		&err));
}

static void snapshot_release(struct snapshot *x)
{
	buf_deinit(&x->config);
	buf_deinit(&x->weights);
	buf_deinit(&x->state);
	adapter_deinit(&x->adapter);
}

static void assert_same(const struct buf *a, const struct buf *b)
{
	assert_int_equal(a->len, b->len);
	assert_memory_equal(a->data, b->data, a->len);
}

static void check_logits(struct fixture *f, const struct adapter *a, const char *key)
{
	struct errmsg err = {0};
	struct generate_options o = {.max_new_tokens = 12};
	struct generator *g = NULL;
	int64_t vocab = model_files_config(f->files)->vocab_size;
	const struct samples *s = &f->samples;
	OK(generator_new(&g, f->base, a, s->ids, (size_t)(s->source_len ? s->source_len[0] : s->start[1]),
		&o, &err));
	const float *logits = generator_logits(g);
	double scale = 0;
	for (int64_t i = 0; i < vocab; i++) {
		scale = fmax(scale, fabs(golden_item(f, key, (size_t)i)));
	}
	for (int64_t i = 0; i < vocab; i++) {
		double want = golden_item(f, key, (size_t)i);
		if (!(fabs(logits[i] - want) <= 1e-5 * scale)) {
			print_error("%s: %s[%lld]: %.9g, want %.9g\n", f->folder, key, (long long)i,
				(double)logits[i], want);
			fail();
		}
	}
	generator_free(g);
}

static void check_greedy(struct fixture *f, const struct adapter *a)
{
	struct errmsg err = {0};
	json_t *prompt = json_object_get(f->golden, "prompt");
	json_t *greedy = json_object_get(f->golden, "greedy");
	int32_t ids[256];
	size_t n = json_array_size(prompt);
	assert_true(n > 0 && n <= 256 && json_array_size(greedy) > 4);
	for (size_t i = 0; i < n; i++) {
		ids[i] = (int32_t)json_integer_value(json_array_get(prompt, i));
	}
	struct generate_options o = {.max_new_tokens = (int64_t)json_array_size(greedy)};
	struct generator *g = NULL;
	OK(generator_new(&g, f->base, a, ids, n, &o, &err));
	for (size_t i = 0; i < json_array_size(greedy); i++) {
		int32_t id;
		bool stopped;
		assert_int_equal(generator_next(g, &id, &stopped, &err), 1);
		assert_int_equal(id, json_integer_value(json_array_get(greedy, i)));
	}
	generator_free(g);
}

/* The folder that the library saved after the run, and ours. */
static void check_folders(struct fixture *f, const struct adapter *ours)
{
	struct errmsg err = {0};
	struct eval_metrics eval;
	char folder[4096];
	OK(engine_eval(f->base, ours, &f->samples, &eval, &err));
	assert_close("final loss of the export", eval.loss, golden_number(f, "final_loss"), 1e-4);
	snprintf(folder, sizeof(folder), "%s/final", f->folder);
	if (access(folder, F_OK) != 0) {
		assert_false(f->has_adapter);
		return;
	}
	size_t len, config_len;
	struct adapter a = {0};
	_cleanup_(freep) char *config = read_file(folder, "adapter_config.json", &config_len);
	enum adapter_kind kind = adapter_kind_of_config(config, config_len);
	_cleanup_(freep) char *weights = read_file(folder, adapter_files(kind).weights, &len);
	OK(adapter_parse(&a, config, config_len, weights, len, &err));
	OK(engine_eval(f->base, &a, &f->samples, &eval, &err));
	assert_close("final loss of the library's folder", eval.loss, golden_number(f, "final_loss"),
		1e-5);
	check_logits(f, &a, "final_logits");
	adapter_deinit(&a);
}

static void test_case(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct eval_metrics eval;
	struct step_sums sums;
	struct snapshot start, middle, end, again;
	fixture_open(&f, *state);
	fixture_base(&f, DTYPE_F32, true);

	struct train_session *s = session_of(&f, 0);
	OK(session_accumulate(s, 0, &sums, &err));
	check_grads(&f, s);
	OK(train_session_eval(s, &eval, &err));
	assert_close("loss at the start", eval.loss, golden_number(&f, "eval_loss"), 1e-5);
	OK(engine_eval(f.base, NULL, &f.samples, &eval, &err));
	assert_close("loss of the base", eval.loss, golden_number(&f, "base_loss"), 1e-5);

	snapshot_take(&start, s);
	OK(engine_eval(f.base, &start.adapter, &f.samples, &eval, &err));
	assert_close("loss of the export", eval.loss, golden_number(&f, "eval_loss"), 1e-5);
	check_logits(&f, &start.adapter, "logits");
	check_greedy(&f, &start.adapter);
	if (f.has_adapter) {
		OK(engine_eval(f.base, &f.adapter, &f.samples, &eval, &err));
		assert_close("loss of the library's folder", eval.loss, golden_number(&f, "eval_loss"),
			1e-5);
	}

	run_to(&f, s, 7, true);
	snapshot_take(&middle, s);
	run_to(&f, s, 20, true);
	snapshot_take(&end, s);
	check_final(&f, s);
	check_folders(&f, &end.adapter);
	train_session_free(s);

	/* From the checkpoint to the same bits. */
	s = fixture_session(&f, false);
	OK(train_session_restore(s, &middle.adapter, middle.state.data, middle.state.len, false, &err));
	run_to(&f, s, 20, false);
	snapshot_take(&again, s);
	assert_same(&again.config, &end.config);
	assert_same(&again.weights, &end.weights);
	assert_same(&again.state, &end.state);
	train_session_free(s);

	snapshot_release(&start);
	snapshot_release(&middle);
	snapshot_release(&end);
	snapshot_release(&again);
	fixture_close(&f);
}

/* Recomputation and another cut into microbatches change the order of sums, nothing else. */
static void test_cut(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct step_sums whole, cut;
	fixture_open(&f, *state);
	fixture_base(&f, DTYPE_F32, true);
	struct train_session *a = session_of(&f, 0);
	OK(session_accumulate(a, 0, &whole, &err));
	check_grads(&f, a);
	int64_t longest = f.samples.longest_kept + a->job.g->virtual_tokens;
	struct train_session *b = session_of(&f, longest);
	OK(session_accumulate(b, 0, &cut, &err));
	check_grads(&f, b);
	assert_int_equal(whole.targets, cut.targets);
	assert_close("loss of another cut", cut.loss_sum, whole.loss_sum, 1e-6);
	train_session_free(a);
	train_session_free(b);
	fixture_close(&f);
}

/* In bf16 the same run, within what rounding of weights and activations does to it. */
static void test_bf16(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct snapshot x;
	struct eval_metrics eval;
	fixture_open(&f, *state);
	fixture_base(&f, DTYPE_BF16, true);
	struct train_session *s = session_of(&f, 0);
	double mean = 0, want = 0;
	for (size_t i = 0; i < 20; i++) {
		struct step_metrics m;
		OK(train_session_run_step(s, &m, &err));
		if (i == 0) {
			assert_close("bf16 loss", m.loss, golden_item(&f, "loss", 0), 1e-2);
		}
		mean += m.loss / 20;
		want += golden_item(&f, "loss", i) / 20;
	}
	assert_close("mean of 20 steps in bf16", mean, want, 1e-2);
	snapshot_take(&x, s);
	OK(engine_eval(f.base, &x.adapter, &f.samples, &eval, &err));
	assert_close("final loss in bf16", eval.loss, golden_number(&f, "final_loss"), 3e-2);
	snapshot_release(&x);
	train_session_free(s);
	fixture_close(&f);
}

/* The bare base at every position of a row, each by itself. */
static void test_logits(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct golden_tensors t;
	fixture_open(&f, *state);
	fixture_base(&f, DTYPE_F32, false);
	golden_tensors_open(&t, &f);
	size_t row = (size_t)golden_number(&f, "logits_row");
	int64_t n = f.samples.start[row + 1] - f.samples.start[row];
	int64_t vocab = model_files_config(f.files)->vocab_size;
	const struct st_tensor *stored = safetensors_find(&t.st, "logits");
	_cleanup_(freep) float *want = alloc_array((size_t)(n * vocab), sizeof(*want));
	assert_non_null(stored);
	assert_non_null(want);
	assert_int_equal(stored->bytes, (size_t)(n * vocab) * sizeof(*want));
	OK(st_tensor_read_f32(stored, want, &err));
	for (int64_t i = 0; i < n; i++) {
		struct generate_options o = {.max_new_tokens = 1};
		struct generator *g = NULL;
		OK(generator_new(&g, f.base, NULL, f.samples.ids + f.samples.start[row], (size_t)i + 1, &o,
			&err));
		for (int64_t k = 0; k < vocab; k++) {
			double got = (double)generator_logits(g)[k], off = got - (double)want[i * vocab + k];
			if (!(fabs(off) <= 1e-4)) {
				print_error("%s: logit %lld at position %lld: %.9g, off by %.3g\n", f.folder,
					(long long)k, (long long)i, got, off);
				fail();
			}
		}
		generator_free(g);
	}
	golden_tensors_close(&t);
	fixture_close(&f);
}

/* The bare encoder-decoder at every step of its greedy continuation. */
static void test_steps(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct golden_tensors t;
	fixture_open(&f, *state);
	fixture_base(&f, DTYPE_F32, false);
	golden_tensors_open(&t, &f);
	json_t *greedy = json_object_get(f.golden, "base_greedy");
	size_t n = json_array_size(greedy), vocab = (size_t)model_files_config(f.files)->vocab_size;
	assert_true(n > 20);
	_cleanup_(freep) float *want = golden_tensor(&t, "steps", "logits", n * vocab);
	const struct samples *s = &f.samples;
	struct generate_options o = {.max_new_tokens = (int64_t)n};
	struct generator *g = NULL;
	OK(generator_new(&g, f.base, NULL, s->ids + s->start[1], (size_t)s->source_len[1], &o, &err));
	for (size_t i = 0; i < n; i++) {
		int32_t id;
		bool stopped;
		const float *logits = generator_logits(g);
		for (size_t k = 0; k < vocab; k++) {
			double off = (double)logits[k] - (double)want[i * vocab + k];
			if (!(fabs(off) <= 1e-4)) {
				print_error("%s: logit %zu at step %zu: %.9g, off by %.3g\n", f.folder, k, i,
					(double)logits[k], off);
				fail();
			}
		}
		assert_int_equal(generator_next(g, &id, &stopped, &err), 1);
		assert_int_equal(id, json_integer_value(json_array_get(greedy, i)));
	}
	generator_free(g);
	golden_tensors_close(&t);
	fixture_close(&f);
}

static bool has_own_model(const char *name)
{
	return strncmp(name, "seq2seq/t5", 10) == 0 || strncmp(name, "seq2seq/mt5", 11) == 0;
}

static bool wanted(const char *name, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (strstr(name, argv[i])) {
			return true;
		}
	}
	return argc < 2;
}

int main(int argc, char **argv)
{
	static void (*const functions[])(void **) = {test_case, test_cut, test_bf16};
	struct CMUnitTest tests[1024];
	char **models = golden_folders("models"), **pairs = golden_folders("seq2seq");
	const char *const *const lists[] = {golden_methods, (const char *const *)models,
		(const char *const *)pairs};
	size_t n = 0;
	memset(tests, 0, sizeof(tests));
	for (size_t list = 0; list < ARRAY_LEN(lists); list++) {
		for (int k = 0; lists[list][k]; k++) {
			const char *name = lists[list][k];
			bool own = list == 2 && has_own_model(name);
			CMUnitTestFunction last = list == 1 ? test_logits : own ? test_steps : NULL;
			for (size_t i = 0; i < 4 && wanted(name, argc, argv); i++) {
				CMUnitTestFunction function = i < 3 ? functions[i] : last;
				assert_true(n < ARRAY_LEN(tests));
				if (function) {
					tests[n++] = (struct CMUnitTest){name, function, NULL, NULL,
						(void *)(uintptr_t)name};
				}
			}
		}
	}
	int failed = _cmocka_run_group_tests("methods", tests, n, NULL, NULL);
	golden_folders_free(models);
	golden_folders_free(pairs);
	return failed;
}
