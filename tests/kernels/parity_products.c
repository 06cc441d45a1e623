/* Parity of products: linear layers, matmul, head and loss. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/parity.h"
#include "tests/kernels/reference.h"
#include "tests/support/allclose.h"
#include "util/util.h"

/* Rounding errors of an f32 sum of k products, relative to the sum of their sizes. */
static double sum_error(int64_t k)
{
	return 6e-8 * (2 + sqrt((double)k));
}

static double *scaled(struct parity *p, const double *magnitude, int64_t n, double factor)
{
	double *bound = parity_copy(p, magnitude, n);
	for (int64_t i = 0; i < n; i++) {
		bound[i] *= factor;
	}
	return bound;
}

/* ---- linear -------------------------------------------------------------------------------- */

static const struct linear_case {
	int64_t rows, out, in, gap;
} linear_cases[] = {
	{1, 1, 1, 0},
	{1, 64, 64, 0},
	{3, 5, 7, 0},
	{7, 33, 65, 3},
	{17, 192, 96, 0},
	{37, 100, 577, 0},
	{130, 48, 80, 16},
	{1100, 24, 40, 0},
	{1100, 24, 40, 8},
	{0, 16, 16, 0},
};

struct linear_run {
	struct mat y, x;
	const struct packed_weight *w;
	const float *bias;
	bool accumulate;
};

static void run_linear_forward(struct backend *b, void *ctx)
{
	struct linear_run *r = ctx;
	linear_forward(b, r->y, r->x, r->w, r->bias);
}

static void run_linear_backward(struct backend *b, void *ctx)
{
	struct linear_run *r = ctx;
	linear_backward(b, r->y, r->x, r->w, r->accumulate);
}

/* A weight of random values; *ret_values as the dtype holds them. */
static struct packed_weight *weight_random(struct parity *p, int64_t out, int64_t in,
	enum dtype dtype, int64_t max_rows, double **ret_values)
{
	const unsigned uses = PACKED_FORWARD | PACKED_BACKWARD;
	struct tensor *t = tensor_random(p, dtype, out, in, 0, 1);
	float *src = alloc_array((size_t)(out * in), sizeof(float));
	assert_non_null(src);
	for (int64_t i = 0; i < out * in; i++) {
		src[i] = (float)t->v[i];
	}
	struct packed_weight *w = NULL;
	struct errmsg err = {""};
	assert_int_equal(linear_prepare(p->b, out, in, dtype, uses, max_rows, &err), 0);
	assert_int_equal(packed_weight_new(&w, p->b, src, out, in, dtype, uses, &err), 0);
	assert_int_equal(packed_weight_out(w), out);
	assert_int_equal(packed_weight_in(w), in);
	assert_true(packed_weight_bytes(p->b, out, in, dtype, uses) >=
		(size_t)(out * in) * dtype_size(dtype));
	free(src);
	*ret_values = t->v;
	return w;
}

static void linear_one(struct parity *p, const struct linear_case *c, enum dtype dtype,
	enum dtype y_dtype, bool bias)
{
	parity_case(p, "linear_forward %s->%s [%d,%d]x[%d] gap %d%s", dtype_name(dtype),
		dtype_name(y_dtype), (int)c->rows, (int)c->in, (int)c->out, (int)c->gap,
		bias ? " bias" : "");
	double *w_values;
	struct packed_weight *w = weight_random(p, c->out, c->in, dtype, c->rows, &w_values);
	struct tensor *x = tensor_random(p, dtype, c->rows, c->in, c->gap, 1);
	struct tensor *y = tensor_random(p, y_dtype, c->rows, c->out, c->gap, 1);
	struct tensor *bt = tensor_random(p, DTYPE_F32, 1, c->out, 0, 1);
	double *want = parity_doubles(p, c->rows * c->out);
	double *size = parity_doubles(p, c->rows * c->out);
	for (int64_t i = 0; i < c->rows * c->out; i++) {
		want[i] = bias ? bt->v[i % c->out] : 0;
	}
	ref_matmul(want, size, x->v, false, w_values, true, c->rows, c->out, c->in, 1, 1);
	struct linear_run r = {y->m, x->m, w, bias ? bt->m.data : NULL, false};
	parity_run(p, run_linear_forward, &r, y, NULL);
	parity_check(p, "y", y, want, 0, 0, scaled(p, size, c->rows * c->out, sum_error(c->in)));
	packed_weight_free(w);
}

static void test_linear_forward(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(linear_cases); i++) {
		for (int bias = 0; bias < 2; bias++) {
			linear_one(p, &linear_cases[i], DTYPE_F32, DTYPE_F32, bias);
			linear_one(p, &linear_cases[i], DTYPE_BF16, DTYPE_BF16, bias);
			linear_one(p, &linear_cases[i], DTYPE_BF16, DTYPE_F32, bias);
		}
	}
}

static void linear_backward_one(struct parity *p, const struct linear_case *c, enum dtype dtype,
	bool accumulate)
{
	parity_case(p, "linear_backward %s [%d,%d]x[%d] gap %d%s", dtype_name(dtype), (int)c->rows,
		(int)c->out, (int)c->in, (int)c->gap, accumulate ? " accumulate" : "");
	double *w_values;
	struct packed_weight *w = weight_random(p, c->out, c->in, dtype, c->rows, &w_values);
	struct tensor *dy = tensor_random(p, dtype, c->rows, c->out, c->gap, 1);
	struct tensor *dx = tensor_random(p, dtype, c->rows, c->in, c->gap, 1);
	double *want = parity_copy(p, dx->v, c->rows * c->in);
	double *size = parity_doubles(p, c->rows * c->in);
	ref_matmul(want, size, dy->v, false, w_values, false, c->rows, c->in, c->out, 1,
		accumulate ? 1 : 0);
	struct linear_run r = {dx->m, dy->m, w, NULL, accumulate};
	parity_run(p, run_linear_backward, &r, dx, NULL);
	parity_check(p, "dx", dx, want, 0, 0, scaled(p, size, c->rows * c->in, sum_error(c->out)));
	packed_weight_free(w);
}

static void test_linear_backward(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(linear_cases); i++) {
		for (int accumulate = 0; accumulate < 2; accumulate++) {
			linear_backward_one(p, &linear_cases[i], DTYPE_F32, accumulate);
			linear_backward_one(p, &linear_cases[i], DTYPE_BF16, accumulate);
		}
	}
}

/* More rows than were prepared for at first: preparing again adds what is missing. */
static void test_linear_prepare_again(struct parity *p)
{
	const struct linear_case small = {4, 40, 24, 0}, large = {200, 40, 24, 0};
	linear_one(p, &small, DTYPE_F32, DTYPE_F32, false);
	linear_one(p, &large, DTYPE_F32, DTYPE_F32, false);
	linear_one(p, &small, DTYPE_F32, DTYPE_F32, false);
}

/* ---- matmul -------------------------------------------------------------------------------- */

static const struct matmul_case {
	int64_t m, n, k, gap;
} matmul_cases[] = {
	{1, 1, 1, 0},
	{2, 3, 4, 1},
	{5, 1, 9, 0},    /* rank 1 */
	{1, 70, 3, 0},   /* one token */
	{129, 8, 100, 0},
	{200, 16, 577, 0},
	{577, 16, 131, 5},
	{16, 600, 200, 0},
	{131, 530, 16, 0},
	{64, 64, 64, 0},
	{100, 33, 300, 7},
	{70, 200, 1, 0},
	{3, 1030, 65, 0},
	{300, 64, 1030, 0},
	{0, 4, 4, 0},
	{4, 4, 0, 0},
};

struct matmul_run {
	struct mat c, a, b;
	bool trans_a, trans_b;
	float alpha, beta;
};

static void run_matmul(struct backend *b, void *ctx)
{
	struct matmul_run *r = ctx;
	matmul(b, r->c, r->a, r->trans_a, r->b, r->trans_b, r->alpha, r->beta);
}

static void matmul_one(struct parity *p, const struct matmul_case *c, enum dtype ab, enum dtype cd,
	bool ta, bool tb, float alpha, float beta)
{
	parity_case(p, "matmul %s->%s m %d n %d k %d gap %d%s%s alpha %g beta %g", dtype_name(ab),
		dtype_name(cd), (int)c->m, (int)c->n, (int)c->k, (int)c->gap, ta ? " aT" : "",
		tb ? " bT" : "", (double)alpha, (double)beta);
	struct tensor *a = tensor_random(p, ab, ta ? c->k : c->m, ta ? c->m : c->k, c->gap, 1);
	struct tensor *b = tensor_random(p, ab, tb ? c->n : c->k, tb ? c->k : c->n, c->gap, 1);
	struct tensor *y = tensor_random(p, cd, c->m, c->n, c->gap, 1);
	double *want = parity_copy(p, y->v, c->m * c->n), *size = parity_doubles(p, c->m * c->n);
	ref_matmul(want, size, a->v, ta, b->v, tb, c->m, c->n, c->k, (double)alpha, (double)beta);
	struct errmsg err = {""};
	assert_int_equal(matmul_prepare(p->b, c->m, c->n, c->k, ta, tb, ab, cd, &err), 0);
	struct matmul_run r = {y->m, a->m, b->m, ta, tb, alpha, beta};
	parity_run(p, run_matmul, &r, y, NULL);
	parity_check(p, "c", y, want, 0, 0, scaled(p, size, c->m * c->n, sum_error(c->k)));
}

static void test_matmul(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(matmul_cases); i++) {
		for (int t = 0; t < 4; t++) {
			const struct matmul_case *c = &matmul_cases[i];
			matmul_one(p, c, DTYPE_F32, DTYPE_F32, t & 1, t >> 1, 1, 0);
			matmul_one(p, c, DTYPE_F32, DTYPE_F32, t & 1, t >> 1, 0.5f, 1);
			matmul_one(p, c, DTYPE_BF16, DTYPE_BF16, t & 1, t >> 1, 2, 0);
			matmul_one(p, c, DTYPE_BF16, DTYPE_BF16, t & 1, t >> 1, 1, 1);
			matmul_one(p, c, DTYPE_BF16, DTYPE_F32, t & 1, t >> 1, 1.5f, 1);
		}
	}
}

/* ---- head and loss ------------------------------------------------------------------------- */

static const struct head_case {
	int64_t rows, vocab, d, gap;
	int keep; /* one row in `keep` has a target; 0: none */
} head_cases[] = {
	{1, 11, 8, 0, 1},
	{5, 33, 24, 2, 2},
	{20, 100, 16, 0, 0},
	{700, 67, 12, 0, 1},
	{300, 1000, 40, 0, 3},
	{0, 10, 8, 0, 1},
};

struct head_run {
	struct mat dx, x;
	double *loss;
	const int32_t *targets;
	const struct packed_weight *w;
	float grad_scale;
	void *workspace;
};

static void run_head(struct backend *b, void *ctx)
{
	struct head_run *r = ctx;
	lm_head_loss(b, r->dx, r->loss, r->x, r->targets, r->w, r->grad_scale, r->workspace);
}

static void head_one(struct parity *p, const struct head_case *c, enum dtype dtype, bool gradient)
{
	parity_case(p, "lm_head_loss %s rows %d vocab %d d %d, 1 of %d%s", dtype_name(dtype),
		(int)c->rows, (int)c->vocab, (int)c->d, c->keep, gradient ? "" : " loss only");
	const float grad_scale = 0.125f;
	int32_t targets[700];
	for (int64_t i = 0; i < c->rows; i++) {
		bool keep = c->keep > 0 && i % c->keep == 0;
		targets[i] = keep ? (int32_t)parity_random(p, c->vocab) : -100;
	}
	double *w_values, *want = parity_doubles(p, c->rows * c->d);
	struct packed_weight *w = weight_random(p, c->vocab, c->d, dtype, c->rows, &w_values);
	struct tensor *x = tensor_random(p, dtype, c->rows, c->d, c->gap, 1.5);
	struct tensor *dx = tensor_random(p, dtype, c->rows, c->d, c->gap, 1);
	struct tensor *t = tensor_i32(p, targets, c->rows);
	double start = 3.25, got;
	double *loss = backend_alloc(p->b, sizeof(double));
	size_t bytes = lm_head_workspace(p->b, c->vocab, c->d, dtype, c->rows);
	void *workspace = backend_alloc(p->b, bytes);
	assert_non_null(loss);
	assert_non_null(workspace);

	double want_loss = ref_lm_head(want, NULL, x->v, targets, w_values, c->rows, c->vocab, c->d,
		0, (double)grad_scale);
	struct mat none = {0};
	struct head_run r = {gradient ? dx->m : none, x->m, loss, t->m.data, w, grad_scale, workspace};
	backend_upload(p->b, loss, &start, sizeof(start));
	run_head(p->b, &r);
	backend_download(p->b, &got, loss, sizeof(got));
	double losses[] = {got - start}, wants[] = {want_loss};
	assert_allclose(losses, wants, 1, 1e-6, 1e-6);
	if (gradient) {
		parity_run(p, run_head, &r, dx, NULL);
		/* bf16 rounds the gradients of the logits, each by half a unit at most. */
		double error = dtype == DTYPE_BF16 ? 0x1p-8 : 1e-5;
		parity_check(p, "dx", dx, want, 1e-5, error * (double)grad_scale, NULL);
	}
	backend_free_memory(p->b, workspace, bytes);
	backend_free_memory(p->b, loss, sizeof(double));
	packed_weight_free(w);
}

static void test_lm_head(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(head_cases); i++) {
		for (int gradient = 0; gradient < 2; gradient++) {
			head_one(p, &head_cases[i], DTYPE_F32, gradient);
			head_one(p, &head_cases[i], DTYPE_BF16, gradient);
		}
	}
}

struct adapted_run {
	struct mat dx, x;
	double *loss;
	const int32_t *targets;
	struct lm_head h;
	bool loss_only;
	void *workspace;
};

static void run_adapted(struct backend *b, void *ctx)
{
	struct adapted_run *r = ctx;
	lm_head_adapted_loss(b, r->dx, r->loss, r->x, r->targets, &r->h, 0.125f, r->loss_only,
		r->workspace);
}

enum { HEAD_PLAIN = 1, HEAD_LOW_RANK = 2, HEAD_NO_DX = 4, HEAD_LOSS_ONLY = 8, HEAD_CAPPED = 16 };

static void adapted_one(struct parity *p, const struct head_case *c, enum dtype dtype, int what)
{
	parity_case(p, "lm_head_adapted_loss %s rows %d vocab %d d %d, 1 of %d, form %d",
		dtype_name(dtype), (int)c->rows, (int)c->vocab, (int)c->d, c->keep, what);
	const int64_t r = 3;
	const double scale = 0.5;
	int32_t targets[700];
	for (int64_t i = 0; i < c->rows; i++) {
		bool keep = c->keep > 0 && i % c->keep == 0;
		targets[i] = keep ? (int32_t)parity_random(p, c->vocab) : -100;
	}
	double *w_values;
	struct packed_weight *packed = weight_random(p, c->vocab, c->d, dtype, c->rows, &w_values);
	struct tensor *w = tensor_from(p, dtype, c->vocab, c->d, w_values);
	struct tensor *x = tensor_random(p, dtype, c->rows, c->d, c->gap, 1.5);
	struct tensor *a = tensor_random(p, dtype, r, c->d, 0, 0.5);
	struct tensor *b = tensor_random(p, dtype, c->vocab, r, 0, 0.5);
	struct tensor *dx = tensor_random(p, dtype, c->rows, c->d, c->gap, 1);
	struct tensor *dw = tensor_random(p, DTYPE_F32, c->vocab, c->d, 0, 1);
	struct tensor *da = tensor_random(p, DTYPE_F32, r, c->d, 0, 1);
	struct tensor *db = tensor_random(p, DTYPE_F32, c->vocab, r, 0, 1);
	struct tensor *t = tensor_i32(p, targets, c->rows);
	bool low_rank = what & HEAD_LOW_RANK, loss_only = what & HEAD_LOSS_ONLY;
	bool wants_dx = !(what & HEAD_NO_DX) && !loss_only;

	double *full = parity_copy(p, w->v, c->vocab * c->d), *dfull = parity_doubles(p, c->vocab * c->d);
	double *want_dx = parity_copy(p, dx->v, c->rows * c->d);
	double *want_dw = parity_copy(p, dw->v, c->vocab * c->d);
	double *want_da = parity_copy(p, da->v, r * c->d), *want_db = parity_copy(p, db->v, c->vocab * r);
	if (low_rank) {
		ref_matmul(full, NULL, b->v, false, a->v, false, c->vocab, c->d, r, scale, 1);
	}
	double cap = what & HEAD_CAPPED ? 2 : 0;
	double want_loss = ref_lm_head(wants_dx ? want_dx : NULL, dfull, x->v, targets, full, c->rows,
		c->vocab, c->d, cap, 0.125);
	for (int64_t i = 0; i < c->vocab * c->d && (what & HEAD_PLAIN) && !loss_only; i++) {
		want_dw[i] += dfull[i];
	}
	if (low_rank && !loss_only) { /* full = W + s·B·A */
		ref_matmul(want_da, NULL, b->v, true, dfull, false, r, c->d, c->vocab, scale, 1);
		ref_matmul(want_db, NULL, dfull, false, a->v, true, c->vocab, r, c->d, scale, 1);
	}

	struct mat none = {0};
	struct adapted_run run = {.dx = what & HEAD_NO_DX ? none : dx->m, .x = x->m,
		.targets = t->m.data, .loss_only = loss_only, .loss = backend_alloc(p->b, sizeof(double)),
		.h = {.scale = (float)scale, .softcap = (float)cap}};
	if (what & HEAD_PLAIN) {
		run.h.w = w->m;
		run.h.dw = dw->m;
	} else {
		run.h.packed = packed;
	}
	if (low_rank) {
		run.h.a = a->m;
		run.h.b = b->m;
		run.h.da = da->m;
		run.h.db = db->m;
	}
	size_t bytes = lm_head_adapted_workspace(p->b, c->vocab, c->d, dtype, c->rows,
		low_rank ? r : 0);
	run.workspace = backend_alloc(p->b, bytes);
	assert_non_null(run.loss);
	assert_non_null(run.workspace);
	parity_run(p, run_adapted, &run, dx, dw, da, db, NULL);
	double got, twice = 2 * want_loss;
	backend_download(p->b, &got, run.loss, sizeof(got));
	bool bf16 = dtype == DTYPE_BF16;
	double error = bf16 ? 0x1p-8 : 1e-5; /* bf16 rounds gradients of logits and x·Aᵀ */
	assert_allclose(&got, &twice, 1, bf16 ? 2e-3 : 1e-6, 1e-6);
	double many = sqrt((double)c->rows + 1);
	parity_check(p, "dx", dx, want_dx, bf16 ? 1e-2 : 1e-5, error * (low_rank ? 0.5 : 0.125), NULL);
	parity_check(p, "dw", dw, want_dw, bf16 ? 1e-2 : 1e-5, error * 0.25 * many, NULL);
	parity_check(p, "da", da, want_da, bf16 ? 1e-2 : 1e-5, error * 0.5 * many, NULL);
	parity_check(p, "db", db, want_db, bf16 ? 1e-2 : 1e-5, error * 0.5 * many, NULL);
	backend_free_memory(p->b, run.workspace, bytes);
	backend_free_memory(p->b, run.loss, sizeof(double));
	packed_weight_free(packed);
}

static void test_lm_head_adapted(struct parity *p)
{
	static const int forms[] = {HEAD_PLAIN, HEAD_PLAIN | HEAD_NO_DX, HEAD_LOW_RANK,
		HEAD_LOW_RANK | HEAD_NO_DX, HEAD_PLAIN | HEAD_LOW_RANK, HEAD_PLAIN | HEAD_LOSS_ONLY,
		HEAD_CAPPED, HEAD_CAPPED | HEAD_PLAIN | HEAD_LOW_RANK,
		HEAD_CAPPED | HEAD_PLAIN | HEAD_LOSS_ONLY};
	for (size_t i = 0; i < ARRAY_LEN(head_cases); i++) {
		for (size_t k = 0; k < ARRAY_LEN(forms); k++) {
			adapted_one(p, &head_cases[i], DTYPE_F32, forms[k]);
			adapted_one(p, &head_cases[i], DTYPE_BF16, forms[k]);
		}
	}
}

static void test_measure(struct parity *p)
{
	assert_true(backend_measure_gflops(p->b, DTYPE_F32) > 0.1);
	assert_true(backend_measure_gflops(p->b, DTYPE_BF16) > 0.1);
	assert_true(strlen(backend_device(p->b)) > 0);
	assert_true(strlen(backend_fingerprint(p->b)) > 0);
	assert_true(strlen(backend_name(p->b)) > 0);
	assert_true(backend_threads(p->b) >= 1);
}

const struct parity_test parity_tests_products[] = {
	{"linear_forward", test_linear_forward},
	{"linear_backward", test_linear_backward},
	{"linear_prepare again", test_linear_prepare_again},
	{"matmul", test_matmul},
	{"lm_head_loss", test_lm_head},
	{"lm_head_adapted_loss", test_lm_head_adapted},
	{"measure", test_measure},
	{NULL, NULL},
};
