/* Properties of training: gradients, cutting, recomputation, memory, resuming. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/train/rng.h"
#include "engine/train/session.h"
#include "tests/engine/fixture.h"
#include "tests/engine/ref.h"
#include "util/cleanup.h"
#include "util/util.h"

/* ---- gradients ----------------------------------------------------------------------------- */

/* Central differences of the float64 reference at coordinates drawn from each tensor. */
static void test_finite_differences(void **state)
{
	struct errmsg err = {0};
	for (int k = 0; golden_cases[k]; k++) {
		struct fixture f;
		fixture_open(&f, golden_cases[k]);
		f.config.batch_size = 3;
		fixture_base(&f, DTYPE_F32, true);
		struct train_session *s = fixture_session(&f, true);
		struct ref_model *ref = ref_model_new(&f);
		struct step_sums sums;
		OK(session_accumulate(s, 0, &sums, &err));
		double want = ref_loss(ref, &f.samples, 0, 3);
		assert_true(fabs(sums.loss_sum / (double)sums.targets - want) <= 2e-6 * want);

		for (size_t i = 0; i < f.adapter.tensors.n_tensors; i++) {
			const char *key = f.adapter.tensors.tensors[i].name;
			size_t n, n_ref;
			_cleanup_(freep) float *grad = session_grad(s, key, &n);
			double *values = ref_model_tensor(ref, key, &n_ref), scale = 0;
			assert_int_equal(n, n_ref);
			for (size_t e = 0; e < n; e++) {
				scale = fmax(scale, fabs((double)grad[e]));
			}
			assert_true(scale > 0);
			for (uint64_t draw = 0; draw < 3; draw++) {
				struct rng_key rng = {1, rng_stream(RNG_SAMPLE, i, draw, 0)};
				size_t e = rng_bits(rng, 0) % n;
				double old = values[e], h = 1e-5;
				values[e] = old + h;
				double up = ref_loss(ref, &f.samples, 0, 3);
				values[e] = old - h;
				double down = ref_loss(ref, &f.samples, 0, 3);
				values[e] = old;
				double difference = (up - down) / (2 * h);
				if (!(fabs(grad[e] - difference) <= 2e-5 * scale + 1e-9)) {
					print_error("%s %s[%zu]: %.9g, by differences %.9g\n", golden_cases[k], key, e,
						(double)grad[e], difference);
					fail();
				}
			}
		}
		ref_model_free(ref);
		train_session_free(s);
		fixture_close(&f);
	}
}

/* All gradients of a step as one array, in the order of the method's tensors. */
static float *all_grads(struct train_session *s, int64_t step, size_t *ret_n, double *ret_loss)
{
	struct errmsg err = {0};
	struct step_sums sums;
	OK(session_accumulate(s, step, &sums, &err));
	*ret_loss = sums.loss_sum / (double)sums.targets;
	float *out = NULL;
	*ret_n = 0;
	for (size_t i = 0; i < peft_n_tensors(s->peft, s->job.g); i++) {
		struct peft_tensor t;
		size_t n;
		peft_tensor(s->peft, s->job.g, i, &t);
		_cleanup_(freep) float *g = session_grad(s, t.name, &n);
		out = realloc(out, (*ret_n + n) * sizeof(float));
		assert_non_null(out);
		memcpy(out + *ret_n, g, n * sizeof(float));
		*ret_n += n;
	}
	return out;
}

static double distance(const float *a, const float *b, size_t n)
{
	double d = 0, w = 0;
	for (size_t i = 0; i < n; i++) {
		d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
		w += (double)b[i] * b[i];
	}
	return sqrt(d / w);
}

/* Two sessions agree on loss and gradients of the first two steps. */
static void compare(struct train_session *a, struct train_session *b, double tolerance)
{
	for (int64_t step = 0; step < 2; step++) {
		size_t na, nb;
		double la, lb;
		_cleanup_(freep) float *ga = all_grads(a, step, &na, &la);
		_cleanup_(freep) float *gb = all_grads(b, step, &nb, &lb);
		assert_int_equal(na, nb);
		assert_true(fabs(la - lb) <= tolerance * fabs(lb));
		double off = distance(ga, gb, na);
		if (!(off <= tolerance)) {
			print_error("gradients are off by %.3g, allowed is %.3g\n", off, tolerance);
			fail();
		}
	}
}

static void test_cutting(void **state)
{
	for (int k = 0; lora_cases[k]; k++) {
		for (int dropout = 0; dropout < 2; dropout++) {
			struct fixture f;
			fixture_open(&f, lora_cases[k]);
			f.method.lora.lora_dropout = dropout ? 0.25 : 0;
			f.config.batch_size = 8;
			fixture_base(&f, DTYPE_F32, true);
			struct train_session *whole = fixture_session(&f, true);
			assert_true(whole->job.g->tokens >= 8 * 16);
			/* As small as the longest row allows: several microbatches. */
			struct train_session *cut = fixture_session_at(&f, true, f.samples.longest_kept);
			assert_true(cut->job.g->tokens < 64);
			f.config.packing = false;
			struct train_session *unpacked = fixture_session(&f, true);
			compare(cut, whole, 2e-6);
			compare(unpacked, whole, 2e-6);
			train_session_free(whole);
			train_session_free(cut);
			train_session_free(unpacked);
			fixture_close(&f);
		}
	}
}

/* A mask is there, differs from step to step, and leaves evaluation alone. */
static void test_dropout(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	fixture_open(&f, "mha");
	fixture_base(&f, DTYPE_F32, true);
	f.config.batch_size = 10;
	struct train_session *without = fixture_session(&f, true);
	f.method.lora.lora_dropout = 0.25;
	struct train_session *with = fixture_session(&f, true);
	size_t n;
	double plain, first, second;
	free(all_grads(without, 0, &n, &plain));
	free(all_grads(with, 0, &n, &first));
	free(all_grads(with, 1, &n, &second));
	assert_true(fabs(first - plain) > 1e-6);
	assert_true(fabs(first - second) > 1e-6);
	struct eval_metrics a, b;
	OK(train_session_eval(without, &a, &err));
	OK(train_session_eval(with, &b, &err));
	assert_true(fabs(a.loss - b.loss) <= 1e-6 * a.loss);
	train_session_free(without);
	train_session_free(with);
	fixture_close(&f);
}

/* Gradients under dropout, where the mask makes finite differences of the reference useless: of the
 * engine itself, in the direction of its gradient. */
static void test_dropout_gradient(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	fixture_open(&f, "gqa2-llama3");
	fixture_base(&f, DTYPE_F32, true);
	f.method.lora.lora_dropout = 0.3;
	f.config.batch_size = 10;
	struct train_session *s = fixture_session(&f, true);
	struct step_sums sums;
	OK(session_accumulate(s, 0, &sums, &err));
	size_t n = s->job.g->param_elements;
	_cleanup_(freep) float *start = malloc(n * sizeof(float)), *grads = malloc(n * sizeof(float));
	_cleanup_(freep) float *moved = malloc(n * sizeof(float));
	backend_download(f.backend, start, s->arena + s->job.layout.masters, n * sizeof(float));
	backend_download(f.backend, grads, s->arena + s->job.layout.grads, n * sizeof(float));
	double squares = 0, losses[2];
	for (size_t i = 0; i < n; i++) {
		squares += (double)grads[i] * grads[i];
	}
	double h = 3e-3 / sqrt(squares);
	for (int side = 0; side < 2; side++) {
		for (size_t i = 0; i < n; i++) {
			moved[i] = start[i] + (float)((side ? -h : h) * grads[i]);
		}
		job_upload_params(&s->job, s->arena, moved);
		OK(session_accumulate(s, 0, &sums, &err));
		losses[side] = sums.loss_sum / (double)sums.targets;
	}
	double slope = (losses[0] - losses[1]) / (2 * h);
	assert_true(fabs(slope - squares) <= 2e-3 * squares);
	train_session_free(s);
	fixture_close(&f);
}

/* ---- recomputation and memory -------------------------------------------------------------- */

static struct train_session *session_limited(struct fixture *f, uint64_t limit,
	struct memory_plan *plan)
{
	struct errmsg err = {0};
	struct train_session *s = NULL;
	OK(train_plan(plan, f->files, f->backend, &f->config, &f->method, f->samples.longest_kept,
		limit, &err));
	OK(train_session_new(&s, f->base, &f->config, &f->method, plan, &f->samples, &f->samples,
		&f->adapter, &err));
	assert_int_equal(train_session_arena(s), plan->arena);
	assert_int_equal(plan->arena, plan->trainable_weights + plan->optimizer_states +
		plan->gradients + plan->activations + plan->temporary);
	return s;
}

/* Under ever smaller limits the plan gives way, step by step, until it says what would fit; and
 * whatever it chose computes the same. */
static void test_limits(void **state)
{
	for (int k = 0; lora_cases[k]; k++) {
		struct errmsg err = {0};
		struct fixture f;
		struct memory_plan plan, first;
		fixture_open(&f, lora_cases[k]);
		f.config.batch_size = 8;
		fixture_base(&f, DTYPE_F32, true);
		struct train_session *whole = session_limited(&f, 0, &first);
		bool seen[3] = {false};
		plan = first;
		for (;;) {
			uint64_t limit = plan.base_weights + plan.arena - 1;
			int r = train_plan(&plan, f.files, f.backend, &f.config, &f.method,
				f.samples.longest_kept, limit, &err);
			if (r == STATUS_WONT_FIT) {
				assert_non_null(strstr(err.text, "would fit"));
				break;
			}
			assert_int_equal(r, 0);
			assert_true(plan.base_weights + plan.arena <= limit);
			if (!seen[plan.recompute]) {
				seen[plan.recompute] = true;
				struct train_session *s = session_limited(&f, limit, &plan);
				compare(s, whole, 2e-6);
				train_session_free(s);
			}
		}
		assert_true(seen[RECOMPUTE_CHEAP]);
		assert_true(seen[RECOMPUTE_BLOCK]);
		train_session_free(whole);

		/* A change that the message names does fit. */
		const char *at = strstr(err.text, "max_length of at most ");
		assert_non_null(at);
		long length = strtol(at + strlen("max_length of at most "), NULL, 10);
		assert_true(length > 0 && length < f.samples.longest_kept);
		uint64_t limit = plan.base_weights + plan.arena - 1;
		OK(train_plan(&plan, f.files, f.backend, &f.config, &f.method, length, limit, &err));
		assert_int_equal(train_plan(&plan, f.files, f.backend, &f.config, &f.method, length + 32,
			limit, &err), STATUS_WONT_FIT);
		fixture_close(&f);
	}
}

/* The plan of another job is refused, not run. */
static void test_plan_of_another(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct memory_plan plan;
	struct train_session *s = NULL;
	fixture_open(&f, "mha");
	fixture_base(&f, DTYPE_F32, true);
	OK(train_plan(&plan, f.files, f.backend, &f.config, &f.method, f.samples.longest_kept, 0,
		&err));
	plan.arena += 64;
	assert_int_equal(train_session_new(&s, f.base, &f.config, &f.method, &plan, &f.samples, NULL,
		NULL, &err), STATUS_CONFLICT);
	assert_non_null(strstr(err.text, "another job"));
	f.config.batch_size = 1;
	OK(train_plan(&plan, f.files, f.backend, &f.config, &f.method, 16, 0, &err));
	assert_int_equal(train_session_new(&s, f.base, &f.config, &f.method, &plan, &f.samples, NULL,
		NULL, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "row"));
	f.config.dtype = DTYPE_BF16;
	assert_int_equal(train_session_new(&s, f.base, &f.config, &f.method, &plan, &f.samples, NULL,
		NULL, &err), STATUS_CONFLICT);
	fixture_close(&f);
}

/* ---- resuming ------------------------------------------------------------------------------ */

static void run_steps(struct train_session *s, int n, double *losses)
{
	struct errmsg err = {0};
	for (int i = 0; i < n; i++) {
		struct step_metrics m;
		OK(train_session_run_step(s, &m, &err));
		losses[i] = m.loss;
	}
}

struct saved {
	struct buf config, weights, state;
};

static void save(struct train_session *s, struct saved *ret)
{
	struct errmsg err = {0};
	*ret = (struct saved){0};
	OK(train_session_export(s, &ret->config, &ret->weights, &err));
	OK(train_session_save(s, &ret->state, &err));
}

static void saved_free(struct saved *s)
{
	buf_deinit(&s->config);
	buf_deinit(&s->weights);
	buf_deinit(&s->state);
}

static int restore(struct train_session *s, const struct saved *from, bool allow_other,
	struct errmsg *err)
{
	struct adapter a;
	int r = adapter_parse(&a, from->config.data, from->config.len, from->weights.data,
		from->weights.len, err);
	assert_int_equal(r, 0);
	r = train_session_restore(s, &a, from->state.data, from->state.len, allow_other, err);
	adapter_deinit(&a);
	return r;
}

static void assert_same(const struct saved *a, const struct saved *b)
{
	assert_int_equal(a->weights.len, b->weights.len);
	assert_memory_equal(a->weights.data, b->weights.data, a->weights.len);
	assert_int_equal(a->state.len, b->state.len);
	assert_memory_equal(a->state.data, b->state.data, a->state.len);
}

static void test_restore(void **state)
{
	for (int variant = 0; variant < 4; variant++) {
		struct errmsg err = {0};
		struct fixture f;
		fixture_open(&f, variant % 2 ? "gqa2-llama3" : "gqa3-linear-bias");
		f.config.sequential = false;
		f.config.packing = variant < 2;
		f.method.lora.lora_dropout = 0.1;
		fixture_base(&f, variant < 2 ? DTYPE_BF16 : DTYPE_F32, true);
		double whole[10], parts[10];
		struct saved half, end, other_end;

		struct train_session *s = fixture_session(&f, false);
		run_steps(s, 5, whole);
		save(s, &half);
		run_steps(s, 5, whole + 5);
		save(s, &end);
		train_session_free(s);

		s = fixture_session(&f, false);
		assert_int_equal(restore(s, &half, false, &err), 0);
		assert_int_equal(train_session_step(s), 5);
		run_steps(s, 5, parts + 5);
		save(s, &other_end);
		assert_memory_equal(parts + 5, whole + 5, 5 * sizeof(double));
		assert_same(&end, &other_end);
		assert_true(whole[9] != whole[5]);
		train_session_free(s);

		/* Another setting is refused by name, unless allowed. */
		f.config.learning_rate *= 2;
		s = fixture_session(&f, false);
		assert_int_equal(restore(s, &half, false, &err), STATUS_CONFLICT);
		assert_non_null(strstr(err.text, "lr="));
		assert_int_equal(train_session_step(s), 0);
		assert_int_equal(restore(s, &half, true, &err), 0);
		assert_int_equal(train_session_step(s), 5);

		/* Bytes cut short are refused. */
		half.state.len /= 2;
		assert_int_equal(restore(s, &half, true, &err), STATUS_INVALID);
		train_session_free(s);
		saved_free(&half);
		saved_free(&end);
		saved_free(&other_end);
		fixture_close(&f);
	}
}

/* A loss that is no number ends the step and changes nothing. */
static void test_not_finite(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	fixture_open(&f, "mha");
	fixture_base(&f, DTYPE_F32, true);
	f.config.learning_rate = 1e30;
	struct train_session *s = fixture_session(&f, true);
	struct step_metrics m;
	int r = 0;
	struct saved before = {0}, after;
	for (int i = 0; i < 5 && r == 0; i++) {
		saved_free(&before);
		OK(train_session_save(s, &before.state, &err));
		r = train_session_run_step(s, &m, &err);
	}
	assert_int_equal(r, STATUS_FAILED);
	assert_non_null(strstr(err.text, "no finite number"));
	assert_non_null(strstr(err.text, "a lower learning_rate or"));
	assert_null(strstr(err.text, "dtype f32"));
	after = (struct saved){0};
	OK(train_session_save(s, &after.state, &err));
	assert_int_equal(before.state.len, after.state.len);
	assert_memory_equal(before.state.data, after.state.data, after.state.len);
	saved_free(&before);
	saved_free(&after);
	train_session_free(s);
	fixture_close(&f);
}

/* Evaluation at the same weights gives the training loss. */
static void test_eval(void **state)
{
	struct errmsg err = {0};
	for (int k = 0; golden_cases[k]; k++) {
		for (int bf16 = 0; bf16 < 2; bf16++) {
			struct fixture f;
			fixture_open(&f, golden_cases[k]);
			fixture_base(&f, bf16 ? DTYPE_BF16 : DTYPE_F32, true);
			f.config.batch_size = (int64_t)f.samples.n;
			struct train_session *s = fixture_session(&f, true);
			struct eval_metrics e, again;
			struct step_metrics m;
			OK(train_session_eval(s, &e, &err));
			OK(train_session_run_step(s, &m, &err));
			assert_true(fabs(e.loss - m.loss) <= 1e-9 * m.loss);
			assert_int_equal(e.target_tokens, m.target_tokens);
			assert_int_equal(e.rows, f.samples.n);

			/* What was exported evaluates as the session does. */
			struct saved saved;
			struct adapter a;
			save(s, &saved);
			OK(train_session_eval(s, &e, &err));
			OK(adapter_parse(&a, saved.config.data, saved.config.len, saved.weights.data,
				saved.weights.len, &err));
			OK(engine_eval(f.base, &a, &f.samples, &again, &err));
			assert_true(fabs(e.loss - again.loss) <= (bf16 ? 1e-4 : 1e-6) * e.loss);
			adapter_deinit(&a);
			saved_free(&saved);
			train_session_free(s);
			fixture_close(&f);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_finite_differences),
		cmocka_unit_test(test_cutting),
		cmocka_unit_test(test_dropout),
		cmocka_unit_test(test_dropout_gradient),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_plan_of_another),
		cmocka_unit_test(test_restore),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_eval),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
