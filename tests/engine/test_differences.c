/*
 * The gradients of every method against central differences of a second forward pass in f64 (ref.c), on
 * tiny models; and what recomputing and bf16 change. Arguments: only the cases whose names hold one of
 * them.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/train/session.h"
#include "tests/engine/fixture.h"
#include "tests/engine/ref.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { ELEMENTS = 6 }; /* of each tensor */

/* Cases whose forward pass ref.c has: some methods, on Llama alone. Others are held against PEFT's gradients. */
static bool in_reference(const char *name)
{
	static const char *const others[] = {"-gpt2", "-phi3", "-gpt_neox", "-gemma3"};
	for (size_t i = 0; i < ARRAY_LEN(others); i++) {
		if (strstr(name, others[i])) {
			return false;
		}
	}
	static const char *const families[] = {"bitfit-own", "bitfit-beft", "bottleneck", "full-untied",
		"ia3", "last_k", "ln_tuning", "p_tuning", "prefix_tuning", "prompt_tuning", "lora-rank1"};
	for (size_t i = 0; i < ARRAY_LEN(families); i++) {
		if (strstr(name, families[i])) {
			return true;
		}
	}
	return false;
}

/* Off the start, where much is zero: every parameter moved a little, the same way each time. */
static void move_away(struct train_session *s)
{
	const struct graph *g = s->job.g;
	_cleanup_(freep) float *flat = malloc(g->param_elements * sizeof(float));
	assert_non_null(flat);
	backend_download(g->backend, flat, s->arena + s->job.layout.masters,
		g->param_elements * sizeof(float));
	const struct rng_key key = {11, 13};
	for (int i = 0; i < g->n_params; i++) {
		const struct param *p = &g->params[i];
		for (int64_t k = 0; k < p->rows * p->cols; k++) {
			double u = (double)rng_bits(key, p->offset + (uint64_t)k) / 4294967296.0;
			flat[p->offset + (size_t)k] += (float)(0.2 * (u - 0.5));
		}
	}
	job_upload_params(&s->job, s->arena, flat);
}

static void check_tensor(struct fixture *f, struct train_session *s, struct ref_model *m, size_t i,
	uint64_t rows)
{
	struct peft_tensor t;
	size_t n, n_ref;
	peft_tensor(s->peft, s->job.g, i, &t);
	_cleanup_(freep) float *grad = session_grad(s, t.name, &n);
	double *values = ref_model_tensor(m, t.name, &n_ref), largest = 0;
	assert_non_null(values);
	assert_int_equal(n, n_ref);
	for (size_t k = 0; k < n; k++) {
		largest = fmax(largest, fabs((double)grad[k]));
	}
	const struct rng_key key = {17, i};
	for (uint64_t k = 0; k < ELEMENTS; k++) {
		size_t at = (size_t)((uint64_t)rng_bits(key, k) * n >> 32);
		const double step = 1e-5;
		double old = values[at];
		values[at] = old + step;
		double up = ref_loss(m, &f->samples, 0, rows);
		values[at] = old - step;
		double down = ref_loss(m, &f->samples, 0, rows);
		values[at] = old;
		double want = (up - down) / (2 * step);
		if (!(fabs(grad[at] - want) <= 2e-4 * largest + 1e-7)) {
			print_error("%s: gradient of %s[%zu]: %.9g, by differences %.9g\n", f->folder, t.name, at,
				(double)grad[at], want);
			fail();
		}
	}
}

static void test_differences(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct step_sums sums;
	fixture_open(&f, *state);
	fixture_base(&f, DTYPE_F32, true);
	struct train_session *s = fixture_session(&f, true);
	move_away(s);
	OK(session_accumulate(s, 0, &sums, &err));
	struct ref_model *m = ref_model_of(&f, s);
	uint64_t rows = (uint64_t)order_step_size(&s->order, 0);
	double loss = sums.loss_sum / (double)sums.targets, want = ref_loss(m, &f.samples, 0, rows);
	if (!(fabs(loss - want) <= 1e-5 * want)) {
		print_error("%s: loss %.9g, in f64 %.9g\n", f.folder, loss, want);
		fail();
	}
	for (size_t i = 0; i < peft_n_tensors(s->peft, s->job.g); i++) {
		check_tensor(&f, s, m, i, rows);
	}
	ref_model_free(m);
	train_session_free(s);
	fixture_close(&f);
}

/* ---- recomputing --------------------------------------------------------------------------- */

/* What lives at the same time never overlaps, unless a node works in place: by writing owners into a map
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
			for (size_t c = 0; n->out[k] != NONE && c < tensor_bytes(g, n->out[k]) / 64; c++) {
				map[g->tensors[n->out[k]].offset / 64 + c] = n->out[k];
			}
		}
	}
}

/* A session that recomputes as much as `level` says; NULL where that takes as much memory as a lower one,
 * so that there is nothing to see. */
static struct train_session *session_at_level(struct fixture *f, enum recompute level)
{
	struct errmsg err = {0};
	struct memory_plan plan;
	struct peft *peft = NULL;
	struct job j;
	struct train_session *s = NULL;
	OK(train_plan(&plan, f->files, f->backend, &f->config, &f->method, f->samples.longest_kept, 0,
		&err));
	const struct graph_request q = {
		.config = model_files_config(f->files),
		.purpose = GRAPH_TRAIN,
		.backend = f->backend,
		.dtype = f->config.dtype,
		.tokens = plan.microbatch_tokens,
		.max_seqs = job_max_seqs(plan.microbatch_tokens),
		.trainable = true,
	};
	OK(job_method(&peft, &q, &f->method, &err));
	OK(job_build(&j, &q, peft, level, &err));
	check_placement(j.g, j.placement.region);
	plan.arena = j.layout.total;
	plan.recompute = (int)level;
	job_deinit(&j);
	peft_free(peft);
	OK(train_session_new(&s, f->base, &f->config, &f->method, &plan, &f->samples, &f->samples,
		f->starts ? &f->adapter : NULL, &err));
	if (s->job.recompute != level) {
		train_session_free(s);
		return NULL;
	}
	return s;
}

static float *grads_at_level(struct fixture *f, enum recompute level, size_t *ret_n)
{
	struct errmsg err = {0};
	struct step_sums sums;
	struct train_session *s = session_at_level(f, level);
	if (!s) {
		return NULL;
	}
	move_away(s);
	OK(session_accumulate(s, 0, &sums, &err));
	*ret_n = s->job.g->param_elements;
	float *out = malloc(*ret_n * sizeof(*out));
	assert_non_null(out);
	backend_download(f->backend, out, s->arena + s->job.layout.grads, *ret_n * sizeof(*out));
	train_session_free(s);
	return out;
}

/* What is computed again is what it was, to the last bit. */
static void test_recompute(void **state)
{
	struct fixture f;
	size_t n = 0, n_again = 0;
	fixture_open(&f, *state);
	fixture_base(&f, DTYPE_F32, true);
	_cleanup_(freep) float *want = grads_at_level(&f, RECOMPUTE_CHEAP, &n);
	assert_non_null(want);
	for (int level = RECOMPUTE_MLP; level <= RECOMPUTE_BLOCK; level++) {
		_cleanup_(freep) float *got = grads_at_level(&f, (enum recompute)level, &n_again);
		if (got) {
			assert_int_equal(n, n_again);
			assert_memory_equal(got, want, n * sizeof(*got));
		}
	}
	fixture_close(&f);
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[128];
	size_t n = 0;
	memset(tests, 0, sizeof(tests));
	for (int k = 0; golden_methods[k] && n + 2 <= ARRAY_LEN(tests); k++) {
		const char *name = golden_methods[k];
		bool wanted = argc < 2;
		for (int i = 1; i < argc; i++) {
			wanted |= strstr(name, argv[i]) != NULL;
		}
		if (wanted) {
			tests[n++] = (struct CMUnitTest){name, test_recompute, NULL, NULL,
				(void *)(uintptr_t)name};
		}
		if (wanted && in_reference(name)) {
			tests[n++] = (struct CMUnitTest){name, test_differences, NULL, NULL,
				(void *)(uintptr_t)name};
		}
	}
	return _cmocka_run_group_tests("differences", tests, n, NULL, NULL);
}
