/* The engine against transformers and PEFT: tests/golden/make_llama.py made the values. */
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
	return sqrt(d / w);
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

/* Every gradient of step 0 within `limit(key)` of torch's float32. */
static void check_grads(struct fixture *f, struct train_session *s, bool bf16)
{
	struct errmsg err = {0};
	struct golden_tensors g;
	golden_tensors_open(&g, f);
	size_t checked = 0;
	for (size_t i = 0; i < g.st.n_tensors; i++) {
		const char *name = g.st.tensors[i].name;
		if (strncmp(name, "grad.", 5) != 0) {
			continue;
		}
		size_t n;
		_cleanup_(freep) float *got = session_grad(s, name + 5, &n);
		_cleanup_(freep) float *want = malloc(n * sizeof(float));
		OK(st_tensor_read_f32(&g.st.tensors[i], want, &err));
		double limit = 1e-4, off = distance(got, want, n);
		if (bf16) {
			json_t *errors = json_object_get(f->golden, "bf16_grad_error");
			limit = 2 * json_number_value(json_object_get(errors, name + 5));
		}
		if (!(off <= limit)) {
			print_error("%s %s: off by %.3g, allowed is %.3g\n", f->folder, name, off, limit);
			fail();
		}
		checked++;
	}
	assert_int_equal(checked, peft_n_tensors(s->peft, s->job.g));
	golden_tensors_close(&g);
}

static void check_final(struct fixture *f, struct train_session *s)
{
	struct errmsg err = {0};
	struct golden_tensors g;
	struct buf config = {0}, weights = {0};
	struct adapter a;
	golden_tensors_open(&g, f);
	OK(train_session_export(s, &config, &weights, &err));
	OK(adapter_parse(&a, config.data, config.len, weights.data, weights.len, &err));
	for (size_t i = 0; i < a.tensors.n_tensors; i++) {
		const struct st_tensor *t = &a.tensors.tensors[i];
		char name[300];
		snprintf(name, sizeof(name), "final.%s", t->name);
		const struct st_tensor *w = safetensors_find(&g.st, name);
		assert_non_null(w);
		size_t n = t->bytes / sizeof(float);
		_cleanup_(freep) float *got = malloc(t->bytes), *want = malloc(t->bytes);
		OK(st_tensor_read_f32(t, got, &err));
		OK(st_tensor_read_f32(w, want, &err));
		double off = distance(got, want, n);
		if (!(off <= 2e-3)) {
			print_error("%s %s: off by %.3g\n", f->folder, name, off);
			fail();
		}
	}
	adapter_deinit(&a);
	buf_deinit(&config);
	buf_deinit(&weights);
	golden_tensors_close(&g);
}

static void test_train_f32(void **state)
{
	struct errmsg err = {0};
	for (int k = 0; golden_cases[k]; k++) {
		struct fixture f;
		fixture_open(&f, golden_cases[k]);
		fixture_base(&f, DTYPE_F32, true);
		struct train_session *s = fixture_session(&f, true);
		struct step_sums sums;
		OK(session_accumulate(s, 0, &sums, &err));
		check_grads(&f, s, false);

		struct eval_metrics eval;
		OK(train_session_eval(s, &eval, &err));
		assert_close("eval loss", eval.loss, golden_number(&f, "eval_loss"), 1e-5);
		OK(engine_eval(f.base, NULL, &f.samples, &eval, &err));
		assert_close("base loss", eval.loss, golden_number(&f, "base_loss"), 1e-5);
		OK(engine_eval(f.base, &f.adapter, &f.samples, &eval, &err));
		assert_close("eval loss of the adapter", eval.loss, golden_number(&f, "eval_loss"), 1e-5);

		for (size_t i = 0; i < 20; i++) {
			struct step_metrics m;
			char what[128];
			OK(train_session_run_step(s, &m, &err));
			snprintf(what, sizeof(what), "%s: loss of step %zu", golden_cases[k], i);
			assert_close(what, m.loss, golden_item(&f, "loss", i), i == 0 ? 1e-5 : 1e-4);
			snprintf(what, sizeof(what), "%s: norm of step %zu", golden_cases[k], i);
			assert_close(what, m.grad_norm, golden_item(&f, "grad_norm", i), 1e-3);
			assert_true(fabs(m.lr - golden_item(&f, "lr", i)) <= 1e-12);
			assert_int_equal(m.target_tokens, (int)golden_item(&f, "targets", i));
		}
		check_final(&f, s);
		train_session_free(s);
		fixture_close(&f);
	}
}

static void test_train_bf16(void **state)
{
	struct errmsg err = {0};
	for (int k = 0; golden_cases[k]; k++) {
		struct fixture f;
		fixture_open(&f, golden_cases[k]);
		fixture_base(&f, DTYPE_BF16, true);
		struct train_session *s = fixture_session(&f, true);
		struct step_sums sums;
		OK(session_accumulate(s, 0, &sums, &err));
		check_grads(&f, s, true);
		double mean = 0, want = 0;
		for (size_t i = 0; i < 50; i++) {
			struct step_metrics m;
			OK(train_session_run_step(s, &m, &err));
			if (i == 0) {
				assert_close("bf16 loss", m.loss, golden_item(&f, "loss", 0), 2e-3);
				assert_close("bf16 loss beside PEFT's", m.loss, golden_number(&f, "bf16_loss"),
					4e-3);
			}
			mean += m.loss / 50;
			want += golden_item(&f, "loss", i) / 50;
		}
		assert_close("mean of 50 steps", mean, want, 3e-3);
		train_session_free(s);
		fixture_close(&f);
	}
}

static void test_generate(void **state)
{
	struct errmsg err = {0};
	for (int k = 0; golden_cases[k]; k++) {
		struct fixture f;
		fixture_open(&f, golden_cases[k]);
		fixture_base(&f, DTYPE_F32, false);
		struct generate_options o = {.max_new_tokens = 12};
		struct generator *g = NULL;
		int64_t vocab = model_files_config(f.files)->vocab_size;
		OK(generator_new(&g, f.base, &f.adapter, f.samples.ids, (size_t)f.samples.start[1], &o,
			&err));
		const float *logits = generator_logits(g);
		double scale = 0;
		for (int64_t i = 0; i < vocab; i++) {
			scale = fmax(scale, fabs(golden_item(&f, "logits", (size_t)i)));
		}
		for (int64_t i = 0; i < vocab; i++) {
			double want = golden_item(&f, "logits", (size_t)i);
			assert_true(fabs(logits[i] - want) <= 1e-5 * scale);
		}
		generator_free(g);

		OK(generator_new(&g, f.base, &f.adapter, f.samples.ids + f.samples.start[1],
			(size_t)(f.samples.start[2] - f.samples.start[1]), &o, &err));
		for (size_t i = 0; i < 12; i++) {
			int32_t id;
			bool stopped;
			assert_int_equal(generator_next(g, &id, &stopped, &err), 1);
			assert_int_equal(id, (int)golden_item(&f, "greedy", i));
		}
		int32_t id;
		bool stopped = true;
		assert_int_equal(generator_next(g, &id, &stopped, &err), 0);
		assert_false(stopped);
		generator_free(g);
		fixture_close(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_train_f32),
		cmocka_unit_test(test_train_bf16),
		cmocka_unit_test(test_generate),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
