/* Parity of element-wise and row operations and of the optimizer. */

#include <math.h>
#include <string.h>

#include "tests/kernels/parity.h"
#include "tests/kernels/reference.h"
#include "tests/support/allclose.h"
#include "util/util.h"

/* One call with up to six matrices, for operations that need no more than that. */
struct call {
	struct mat m[6];
	const void *ids;
	float *f;
	const void *w;
	float scalar;
	bool flag;
	int64_t n_heads, head_dim;
	struct rng_key key;
};

static const struct shape {
	int64_t rows, cols, gap;
} shapes[] = {
	{1, 1, 0},
	{1, 100003, 0}, /* one long row */
	{3, 5, 2},
	{17, 64, 0},
	{33, 577, 1},
	{300, 192, 8},
	{2000, 9, 0},
	{0, 8, 0},
	{8, 0, 0},
};

static const enum dtype act_dtypes[] = {DTYPE_F32, DTYPE_BF16};

/* ---- fill, cast, add, bias ----------------------------------------------------------------- */

static void run_fill(struct backend *b, void *ctx)
{
	fill_zero(b, ((struct call *)ctx)->m[0]);
}

static void run_cast(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	cast(b, c->m[0], c->m[1]);
}

static void run_add(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	add(b, c->m[0], c->m[1], c->m[2]);
}

static void run_bias(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	bias_backward(b, c->f, c->m[0]);
}

static void test_fill_cast(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (int k = 0; k < 4; k++) {
			const struct shape *s = &shapes[i];
			enum dtype from = act_dtypes[k & 1], to = act_dtypes[k >> 1];
			parity_case(p, "cast %s->%s [%d,%d]", dtype_name(from), dtype_name(to), (int)s->rows,
				(int)s->cols);
			struct tensor *x = tensor_random(p, from, s->rows, s->cols, s->gap, 100);
			struct tensor *y = tensor_random(p, to, s->rows, s->cols, s->gap, 1);
			struct tensor *exact = tensor_from(p, to, s->rows, s->cols, x->v);
			struct call c = {.m = {y->m, x->m}};
			parity_run(p, run_cast, &c, y, NULL);
			assert_memory_equal(y->v, exact->v, (size_t)(s->rows * s->cols) * sizeof(double));

			struct call zero = {.m = {y->m}};
			parity_run(p, run_fill, &zero, y, NULL);
			double *want = parity_doubles(p, s->rows * s->cols);
			assert_memory_equal(y->v, want, (size_t)(s->rows * s->cols) * sizeof(double));
		}
	}
}

/* Every kind of value through f32 -> bf16 -> f32: the vector code must round as bf16_from_f32(). */
static void test_cast_special(struct parity *p)
{
	static const uint32_t bits[] = {0, 0x80000000u, 1, 0x00007FFFu, 0x00008000u, 0x00008001u,
		0x007FFFFFu, 0x00800000u, 0x3F800000u, 0x3F807FFFu, 0x3F808000u, 0x3F808001u, 0x3F818000u,
		0x7F7FFFFFu, 0x7F7F7FFFu, 0x7F800000u, 0xFF800000u, 0x7FC00000u, 0x7F800001u, 0xFFFFFFFFu,
		0x7FBFFFFFu};
	enum { N = 64 };
	uint32_t src[N];
	uint16_t want[N], got[N];
	for (size_t i = 0; i < N; i++) {
		float f;
		src[i] = bits[i % ARRAY_LEN(bits)];
		memcpy(&f, &src[i], sizeof(f));
		want[i] = bf16_from_f32(f);
	}
	parity_case(p, "cast of special values");
	struct tensor *x = tensor_zero(p, DTYPE_F32, 1, N, 0), *y = tensor_zero(p, DTYPE_BF16, 1, N, 0);
	backend_upload(p->b, x->m.data, src, sizeof(src));
	cast(p->b, y->m, x->m);
	backend_download(p->b, got, y->m.data, sizeof(got));
	for (size_t i = 0; i < N; i++) {
		if (got[i] != want[i]) {
			print_error("%08x: got %04x, want %04x\n", src[i], got[i], want[i]);
			fail();
		}
	}
	assert_int_equal(bf16_from_f32(1), 0x3F80);
	assert_int_equal(bf16_from_f32(bf16_to_f32(0x3F81)), 0x3F81);
}

static void test_add(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (int k = 0; k < 6; k++) {
			const struct shape *s = &shapes[i];
			enum dtype dtype = act_dtypes[k & 1];
			int alias = k / 2; /* y is its own, a's, or c's */
			parity_case(p, "add %s [%d,%d] alias %d", dtype_name(dtype), (int)s->rows,
				(int)s->cols, alias);
			int64_t n = s->rows * s->cols;
			struct tensor *a = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
			struct tensor *c = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
			struct tensor *y = alias == 1 ? a
				: alias == 2              ? c
										  : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
			double *want = parity_doubles(p, n);
			for (int64_t j = 0; j < n; j++) {
				want[j] = a->v[j] + c->v[j];
			}
			struct call call = {.m = {y->m, a->m, c->m}};
			parity_run(p, run_add, &call, y, NULL);
			parity_check(p, "y", y, want, 1e-7, 0, NULL);
		}
	}
}

static void test_bias_backward(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (size_t k = 0; k < 2; k++) {
			const struct shape *s = &shapes[i];
			parity_case(p, "bias_backward %s [%d,%d]", dtype_name(act_dtypes[k]), (int)s->rows,
				(int)s->cols);
			struct tensor *dy = tensor_random(p, act_dtypes[k], s->rows, s->cols, s->gap, 1);
			struct tensor *db = tensor_random(p, DTYPE_F32, 1, s->cols, 0, 1);
			double *want = parity_copy(p, db->v, s->cols);
			for (int64_t j = 0; j < s->rows * s->cols; j++) {
				want[j % s->cols] += dy->v[j];
			}
			struct call c = {.m = {dy->m}, .f = db->m.data};
			parity_run(p, run_bias, &c, db, NULL);
			parity_check(p, "db", db, want, 1e-6, 1e-6 * sqrt((double)s->rows + 1), NULL);
		}
	}
}

/* ---- random numbers and dropout ------------------------------------------------------------ */

/* The known answers that come with the generator's publication (Random123, kat_vectors). */
static void test_philox(struct parity *p)
{
	static const struct {
		uint32_t counter[4], key[2], want[4];
	} known[] = {
		{{0, 0, 0, 0}, {0, 0}, {0x6627E8D5u, 0xE169C58Du, 0xBC57AC4Cu, 0x9B00DBD8u}},
		{{0xFFFFFFFFu, 0xFFFFFFFFu, 0xFFFFFFFFu, 0xFFFFFFFFu}, {0xFFFFFFFFu, 0xFFFFFFFFu},
			{0x408F276Du, 0x41C83B0Eu, 0xA20BC7C6u, 0x6D5451FDu}},
		{{0x243F6A88u, 0x85A308D3u, 0x13198A2Eu, 0x03707344u}, {0xA4093822u, 0x299F31D0u},
			{0xD16CFE09u, 0x94FDCCEBu, 0x5001E420u, 0x24126EA1u}},
	};
	for (size_t i = 0; i < ARRAY_LEN(known); i++) {
		uint32_t out[4];
		ref_philox(out, known[i].counter, known[i].key);
		assert_memory_equal(out, known[i].want, sizeof(out));

		/* The library's own, by the mapping that philox.h fixes; its counter is element / 4. */
		uint64_t block = known[i].counter[0] | (uint64_t)known[i].counter[1] << 32;
		struct rng_key key = {known[i].key[0] | (uint64_t)known[i].key[1] << 32,
			known[i].counter[2] | (uint64_t)known[i].counter[3] << 32};
		block &= UINT64_MAX / 4;
		uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), known[i].counter[2],
			known[i].counter[3]};
		ref_philox(out, counter, known[i].key);
		for (uint64_t w = 0; w < 4; w++) {
			assert_int_equal(rng_bits(key, block * 4 + w), out[w]);
		}
	}
	(void)p;
}

static void run_dropout(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	dropout(b, c->m[0], c->m[1], c->scalar, c->key, c->flag);
}

static void test_dropout(struct parity *p)
{
	const float rates[] = {0, 0.1f, 0.5f};
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (int k = 0; k < 12; k++) {
			const struct shape *s = &shapes[i];
			enum dtype dtype = act_dtypes[k & 1];
			float rate = rates[k / 4];
			bool accumulate = k & 2;
			parity_case(p, "dropout %s [%d,%d] p %g", dtype_name(dtype), (int)s->rows,
				(int)s->cols, (double)rate);
			struct tensor *x = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
			struct tensor *y = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
			struct call c = {.m = {y->m, x->m}, .scalar = rate, .flag = accumulate,
				.key = {0x123456789ABCDEFu, 0xFEDCBA9876543210u}};
			double *want = parity_doubles(p, s->rows * s->cols);
			int64_t kept = 0;
			for (int64_t j = 0; j < s->rows * s->cols; j++) {
				double u = (double)(rng_bits(c.key, (uint64_t)j) >> 8) * 0x1p-24;
				bool keep = u >= (double)rate;
				kept += keep;
				want[j] = (accumulate ? y->v[j] : 0) + (keep ? x->v[j] / (1 - (double)rate) : 0);
			}
			parity_run(p, run_dropout, &c, y, NULL);
			parity_check(p, "y", y, want, 3e-7, 3e-7, NULL);
			if (s->rows * s->cols > 50000) {
				double share = (double)kept / (double)(s->rows * s->cols);
				assert_true(fabs(share - (1 - (double)rate)) < 0.01);
			}
		}
	}
}

/* ---- embedding ----------------------------------------------------------------------------- */

static void run_embedding(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	embedding_forward(b, c->m[0], c->ids, c->m[1]);
}

static void run_embedding_backward(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	embedding_backward(b, c->m[0], c->ids, c->m[1]);
}

static void test_embedding(struct parity *p)
{
	enum { VOCAB = 13, MAX_ROWS = 400 };
	static const struct shape cases[] = {{1, 8, 0}, {7, 33, 3}, {MAX_ROWS, 100, 0}, {0, 8, 0}};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		for (size_t k = 0; k < 2; k++) {
			const struct shape *s = &cases[i];
			parity_case(p, "embedding %s [%d,%d]", dtype_name(act_dtypes[k]), (int)s->rows,
				(int)s->cols);
			int32_t ids[MAX_ROWS];
			for (int64_t j = 0; j < s->rows; j++) {
				ids[j] = (int32_t)parity_random(p, VOCAB);
			}
			struct tensor *t = tensor_i32(p, ids, s->rows);
			struct tensor *table = tensor_random(p, act_dtypes[k], VOCAB, s->cols, s->gap, 1);
			struct tensor *y = tensor_random(p, act_dtypes[k], s->rows, s->cols, s->gap, 1);
			struct tensor *grad = tensor_random(p, DTYPE_F32, VOCAB, s->cols, s->gap, 1);
			double *want = parity_doubles(p, s->rows * s->cols);
			double *want_grad = parity_copy(p, grad->v, VOCAB * s->cols);
			for (int64_t j = 0; j < s->rows * s->cols; j++) {
				int64_t at = ids[j / s->cols] * s->cols + j % s->cols;
				want[j] = table->v[at];
				want_grad[at] += want[j];
			}
			struct call c = {.m = {y->m, table->m}, .ids = t->m.data};
			parity_run(p, run_embedding, &c, y, NULL);
			assert_memory_equal(y->v, want, (size_t)(s->rows * s->cols) * sizeof(double));

			struct call back = {.m = {grad->m, y->m}, .ids = t->m.data};
			parity_run(p, run_embedding_backward, &back, grad, NULL);
			parity_check(p, "dtable", grad, want_grad, 1e-6, 1e-5, NULL);
		}
	}
}

/* ---- RMSNorm ------------------------------------------------------------------------------- */

static const struct shape norm_shapes[] = {{1, 1, 0}, {1, 576, 0}, {3, 5, 2}, {65, 64, 0},
	{33, 577, 1}, {300, 96, 8}, {0, 8, 0}};

static void run_rmsnorm(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	rmsnorm_forward(b, c->m[0], c->m[1], c->f, c->m[2], c->m[3], c->w, c->scalar,
		c->flag);
}

/* The weight that y is multiplied by, from that which is stored. */
static double *norm_scale(struct parity *p, const struct tensor *w, bool one_plus)
{
	double *scale = parity_copy(p, w->v, w->m.cols);
	for (int64_t j = 0; j < w->m.cols; j++) {
		scale[j] += one_plus;
	}
	return scale;
}

static void rmsnorm_forward_one(struct parity *p, const struct shape *s, enum dtype dtype,
	bool residual, bool in_place, bool one_plus)
{
	parity_case(p, "rmsnorm_forward %s [%d,%d]%s%s%s", dtype_name(dtype), (int)s->rows,
		(int)s->cols, residual ? " residual" : "", in_place ? " in place" : "",
		one_plus ? " 1+w" : "");
	const float eps = 1e-5f;
	struct tensor *x = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *delta = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *w = tensor_random(p, dtype, 1, s->cols, 0, 1);
	struct tensor *y = tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	struct tensor *sum = in_place ? x : tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *rstd = tensor_zero(p, DTYPE_F32, 1, s->rows, 0);
	int64_t n = s->rows * s->cols;
	double *want_y = parity_doubles(p, n), *want_sum = parity_doubles(p, n);
	double *want_rstd = parity_doubles(p, s->rows), *old_sum = parity_copy(p, sum->v, n);
	ref_rmsnorm_forward(want_y, want_sum, want_rstd, x->v, residual ? delta->v : NULL,
		norm_scale(p, w, one_plus), s->rows, s->cols, (double)eps);

	struct mat none = {0};
	struct call c = {.m = {y->m, sum->m, x->m, residual ? delta->m : none}, .f = rstd->m.data,
		.w = w->m.data, .scalar = eps, .flag = one_plus};
	parity_run(p, run_rmsnorm, &c, y, sum, rstd, NULL);
	/* bf16: the sum and the normalised row are rounded before the last product. */
	double error = dtype == DTYPE_BF16 ? 0x1p-7 : 2e-6;
	parity_check(p, "y", y, want_y, error, residual ? error * 4 : 1e-7, NULL);
	parity_check(p, "rstd", rstd, want_rstd, error, 0, NULL);
	if (residual) {
		parity_check(p, "sum", sum, want_sum, 1e-7, 0, NULL);
	} else {
		assert_memory_equal(sum->v, old_sum, (size_t)n * sizeof(double));
	}
}

static void test_rmsnorm_forward(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(norm_shapes); i++) {
		for (size_t k = 0; k < 2; k++) {
			for (int one_plus = 0; one_plus < 2; one_plus++) {
				rmsnorm_forward_one(p, &norm_shapes[i], act_dtypes[k], false, false, one_plus);
				rmsnorm_forward_one(p, &norm_shapes[i], act_dtypes[k], true, false, one_plus);
				rmsnorm_forward_one(p, &norm_shapes[i], act_dtypes[k], true, true, one_plus);
			}
		}
	}
}

static void run_rmsnorm_backward(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	rmsnorm_backward(b, c->m[0], c->flag ? (float *)c->m[4].data : NULL, c->m[1], c->m[2], c->m[3],
		c->f, c->w, c->n_heads);
}

/* alias: dx is its own, dsum's, or dy's memory. */
static void rmsnorm_backward_one(struct parity *p, const struct shape *s, enum dtype dtype,
	bool residual, bool train, int alias, bool one_plus)
{
	parity_case(p, "rmsnorm_backward %s [%d,%d]%s%s alias %d%s", dtype_name(dtype), (int)s->rows,
		(int)s->cols, residual ? " residual" : "", train ? " dw" : "", alias,
		one_plus ? " 1+w" : "");
	int64_t n = s->rows * s->cols;
	const double eps = 1e-5;
	struct tensor *dy = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dsum = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *sum = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *w = tensor_random(p, dtype, 1, s->cols, 0, 1);
	struct tensor *dw = tensor_random(p, DTYPE_F32, 1, s->cols, 0, 1);
	struct tensor *dx = alias == 2 ? dy
		: alias == 1               ? dsum
								   : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *rstd = parity_doubles(p, s->rows), *scratch = parity_doubles(p, n);
	double *want_dx = parity_doubles(p, n), *want_dw = parity_copy(p, dw->v, s->cols);
	double *copy = parity_doubles(p, n);
	ref_rmsnorm_forward(scratch, copy, rstd, sum->v, NULL, w->v, s->rows, s->cols, eps);
	struct tensor *rstd_t = tensor_from(p, DTYPE_F32, 1, s->rows, rstd);
	ref_rmsnorm_backward(want_dx, train ? want_dw : NULL, dy->v, residual ? dsum->v : NULL, sum->v,
		norm_scale(p, w, one_plus), s->rows, s->cols, eps);

	struct mat none = {0};
	struct call c = {.m = {dx->m, dy->m, residual ? dsum->m : none, sum->m, dw->m},
		.f = rstd_t->m.data, .w = w->m.data, .flag = train, .n_heads = one_plus};
	parity_run(p, run_rmsnorm_backward, &c, dx, dw, NULL);
	parity_check(p, "dx", dx, want_dx, 2e-6, 4e-6, NULL);
	parity_check(p, "dw", dw, want_dw, 2e-6, 2e-6 * sqrt((double)s->rows + 1), NULL);
}

static void test_rmsnorm_backward(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(norm_shapes); i++) {
		for (size_t k = 0; k < 2; k++) {
			rmsnorm_backward_one(p, &norm_shapes[i], act_dtypes[k], false, false, 0, false);
			rmsnorm_backward_one(p, &norm_shapes[i], act_dtypes[k], false, true, 2, false);
			rmsnorm_backward_one(p, &norm_shapes[i], act_dtypes[k], true, true, 0, false);
			rmsnorm_backward_one(p, &norm_shapes[i], act_dtypes[k], true, true, 1, false);
			rmsnorm_backward_one(p, &norm_shapes[i], act_dtypes[k], true, true, 2, false);
			rmsnorm_backward_one(p, &norm_shapes[i], act_dtypes[k], true, true, 0, true);
		}
	}
}

/* ---- LayerNorm ----------------------------------------------------------------------------- */

struct layernorm_run {
	struct mat y, sum, x, delta;    /* forward */
	struct mat dx, dy, dsum;        /* backward */
	float *stats, *dw, *dbias;
	const void *w, *bias;
};

static void run_layernorm(struct backend *b, void *ctx)
{
	struct layernorm_run *r = ctx;
	layernorm_forward(b, r->y, r->sum, r->stats, r->x, r->delta, r->w, r->bias, 1e-5f);
}

static void run_layernorm_backward(struct backend *b, void *ctx)
{
	struct layernorm_run *r = ctx;
	layernorm_backward(b, r->dx, r->dw, r->dbias, r->dy, r->dsum, r->sum, r->stats, r->w);
}

/* alias: dx is its own, dsum's, or dy's memory. */
static void layernorm_one(struct parity *p, const struct shape *s, enum dtype dtype, bool residual,
	bool trained, int alias)
{
	parity_case(p, "layernorm %s [%d,%d]%s%s alias %d", dtype_name(dtype), (int)s->rows,
		(int)s->cols, residual ? " residual" : "", trained ? " bias" : "", alias);
	int64_t n = s->rows * s->cols;
	const double eps = (double)1e-5f;
	struct tensor *x = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *delta = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *w = tensor_random(p, dtype, 1, s->cols, 0, 1);
	struct tensor *bias = tensor_random(p, dtype, 1, s->cols, 0, 1);
	struct tensor *y = tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	struct tensor *sum = residual ? tensor_zero(p, dtype, s->rows, s->cols, s->gap) : x;
	struct tensor *stats = tensor_zero(p, DTYPE_F32, s->rows, 2, 0);
	double *want_y = parity_doubles(p, n), *want_sum = parity_doubles(p, n);
	double *want_stats = parity_doubles(p, 2 * s->rows);
	ref_layernorm_forward(want_y, want_sum, want_stats, x->v, residual ? delta->v : NULL, w->v,
		trained ? bias->v : NULL, s->rows, s->cols, eps);

	struct mat none = {0};
	struct layernorm_run r = {.y = y->m, .sum = sum->m, .x = x->m,
		.delta = residual ? delta->m : none, .stats = stats->m.data, .w = w->m.data,
		.bias = trained ? bias->m.data : NULL};
	parity_run(p, run_layernorm, &r, y, sum, stats, NULL);
	/* bf16: the sum is rounded before its norm is taken; a row of one element has the norm 0. */
	double error = dtype == DTYPE_BF16 ? 0x1p-6 : 3e-6;
	double loose = s->cols == 1 ? 2 : error * 4;
	parity_check(p, "y", y, want_y, error, loose, NULL);
	if (residual) {
		parity_check(p, "sum", sum, want_sum, 1e-7, 0, NULL);
	}

	struct tensor *dy = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dsum = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dw = tensor_random(p, DTYPE_F32, 1, s->cols, 0, 1);
	struct tensor *db = tensor_random(p, DTYPE_F32, 1, s->cols, 0, 1);
	struct tensor *dx = alias == 2 ? dy
		: alias == 1               ? dsum
								   : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want_dx = parity_doubles(p, n), *want_dw = parity_copy(p, dw->v, s->cols);
	double *want_db = parity_copy(p, db->v, s->cols);
	ref_layernorm_backward(want_dx, trained ? want_dw : NULL, want_db, dy->v,
		residual ? dsum->v : NULL, sum->v, w->v, s->rows, s->cols, eps);
	r.dx = dx->m;
	r.dy = dy->m;
	r.dsum = residual ? dsum->m : none;
	r.dw = trained ? dw->m.data : NULL;
	r.dbias = trained ? db->m.data : NULL;
	parity_run(p, run_layernorm_backward, &r, dx, dw, db, NULL);
	if (s->cols > 1) { /* of a row of one element it is 0, less than the rounding of a difference */
		parity_check(p, "dx", dx, want_dx, 1e-5, 1e-5, NULL);
	}
	parity_check(p, "dw", dw, want_dw, 1e-5, 1e-5 * sqrt((double)s->rows + 1), NULL);
	parity_check(p, "dbias", db, want_db, 2e-6, 2e-6 * sqrt((double)s->rows + 1), NULL);
}

static void test_layernorm(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(norm_shapes); i++) {
		for (size_t k = 0; k < 2; k++) {
			layernorm_one(p, &norm_shapes[i], act_dtypes[k], false, false, 0);
			layernorm_one(p, &norm_shapes[i], act_dtypes[k], false, true, 2);
			layernorm_one(p, &norm_shapes[i], act_dtypes[k], true, true, 0);
			layernorm_one(p, &norm_shapes[i], act_dtypes[k], true, true, 1);
			layernorm_one(p, &norm_shapes[i], act_dtypes[k], true, false, 2);
		}
	}
}

/* ---- RoPE ---------------------------------------------------------------------------------- */

static void run_rope(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	rope(b, c->m[0], c->ids, c->w, c->n_heads, c->head_dim, (int64_t)c->key.seed, c->flag);
}

static void test_rope(struct parity *p)
{
	enum { MAX_POSITIONS = 50, MAX_ROWS = 200 };
	static const struct {
		int64_t rows, n_heads, head_dim, rotary_dim, gap;
	} cases[] = {{1, 1, 2, 2, 0}, {5, 3, 6, 6, 2}, {MAX_ROWS, 9, 64, 64, 0}, {31, 2, 80, 80, 5},
		{31, 2, 80, 20, 5}, {7, 3, 5, 2, 1}, {0, 2, 8, 8, 0}};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		for (int k = 0; k < 4; k++) {
			int64_t rows = cases[i].rows, cols = cases[i].n_heads * cases[i].head_dim;
			enum dtype dtype = act_dtypes[k & 1];
			bool inverse = k >> 1;
			parity_case(p, "rope %s [%d,%dx%d] %d%s", dtype_name(dtype), (int)rows,
				(int)cases[i].n_heads, (int)cases[i].head_dim, (int)cases[i].rotary_dim,
				inverse ? " inverse" : "");
			int32_t positions[MAX_ROWS];
			for (int64_t j = 0; j < rows; j++) {
				positions[j] = (int32_t)parity_random(p, MAX_POSITIONS);
			}
			double *table = parity_doubles(p, MAX_POSITIONS * cases[i].rotary_dim);
			int64_t half = cases[i].rotary_dim / 2;
			for (int64_t j = 0; j < MAX_POSITIONS * half; j++) {
				double angle = (double)(j / half) * pow(10000, -(double)(j % half) / (double)half);
				table[j / half * 2 * half + j % half] = cos(angle);
				table[j / half * 2 * half + half + j % half] = sin(angle);
			}
			struct tensor *cs = tensor_from(p, DTYPE_F32, MAX_POSITIONS, 2 * half, table);
			struct tensor *pos = tensor_i32(p, positions, rows);
			struct tensor *x = tensor_random(p, dtype, rows, cols, cases[i].gap, 1);
			double *want = parity_copy(p, x->v, rows * cols);
			ref_rope(want, positions, cs->v, rows, cases[i].n_heads, cases[i].head_dim,
				cases[i].rotary_dim, inverse);
			struct call c = {.m = {x->m}, .ids = pos->m.data, .w = cs->m.data, .flag = inverse,
				.n_heads = cases[i].n_heads, .head_dim = cases[i].head_dim,
				.key = {.seed = (uint64_t)cases[i].rotary_dim}};
			parity_run(p, run_rope, &c, x, NULL);
			parity_check(p, "x", x, want, 3e-7, 3e-7, NULL);
		}
	}
}

/* ---- SwiGLU -------------------------------------------------------------------------------- */

static void run_swiglu(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	swiglu_forward(b, c->m[0], c->m[1], c->m[2]);
}

static void run_swiglu_backward(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	swiglu_backward(b, c->m[0], c->m[1], c->m[2], c->m[3], c->m[4]);
}

static void swiglu_one(struct parity *p, const struct shape *s, enum dtype dtype, double scale,
	bool in_place)
{
	parity_case(p, "swiglu %s [%d,%d] scale %g%s", dtype_name(dtype), (int)s->rows, (int)s->cols,
		scale, in_place ? " in place" : "");
	int64_t n = s->rows * s->cols;
	struct tensor *gate = tensor_random(p, dtype, s->rows, s->cols, s->gap, scale);
	struct tensor *up = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *h = tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	struct tensor *dh = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dgate = in_place ? gate : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	struct tensor *dup = in_place ? up : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want = parity_doubles(p, n), *want_dgate = parity_doubles(p, n);
	double *want_dup = parity_doubles(p, n);
	ref_swiglu_forward(want, gate->v, up->v, n);
	ref_swiglu_backward(want_dgate, want_dup, dh->v, gate->v, up->v, n);

	double error = dtype == DTYPE_BF16 ? 0x1p-8 : 1e-6; /* silu(gate) is rounded once more */
	struct call c = {.m = {h->m, gate->m, up->m}};
	parity_run(p, run_swiglu, &c, h, NULL);
	parity_check(p, "h", h, want, error, 1e-30, NULL);
	struct call back = {.m = {dgate->m, dup->m, dh->m, gate->m, up->m}};
	parity_run(p, run_swiglu_backward, &back, dgate, dup, NULL);
	parity_check(p, "dup", dup, want_dup, 1e-6, 1e-30, NULL);
	parity_check(p, "dgate", dgate, want_dgate, 2e-6, 1e-6, NULL);
}

static void test_swiglu(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (int k = 0; k < 4; k++) {
			swiglu_one(p, &shapes[i], act_dtypes[k & 1], 4, k >> 1);
			swiglu_one(p, &shapes[i], act_dtypes[k & 1], 80, k >> 1);
		}
	}
}

/* ---- gated activations, caps --------------------------------------------------------------- */

static void run_gated(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	gated_forward(b, c->m[0], c->m[1], c->m[2], (enum activation)c->n_heads);
}

static void run_gated_backward(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	gated_backward(b, c->m[0], c->m[1], c->m[2], c->m[3], c->m[4], (enum activation)c->n_heads);
}

static void gated_one(struct parity *p, const struct shape *s, enum dtype dtype,
	enum activation kind, bool in_place)
{
	parity_case(p, "gated %s %s [%d,%d]%s", activation_name(kind), dtype_name(dtype), (int)s->rows,
		(int)s->cols, in_place ? " in place" : "");
	int64_t n = s->rows * s->cols;
	struct tensor *gate = tensor_random(p, dtype, s->rows, s->cols, s->gap, 4);
	struct tensor *up = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *h = tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	struct tensor *dh = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dgate = in_place ? gate : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	struct tensor *dup = in_place ? up : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want = parity_doubles(p, n), *want_dgate = parity_doubles(p, n);
	double *want_dup = parity_doubles(p, n);
	for (int64_t i = 0; i < n; i++) {
		double f = ref_activation(gate->v[i], kind);
		want[i] = f * up->v[i];
		want_dup[i] = dh->v[i] * f;
		want_dgate[i] = dh->v[i] * up->v[i] * ref_activation_derivative(gate->v[i], kind);
	}
	double error = dtype == DTYPE_BF16 ? 0x1p-8 : 2e-6; /* f(gate) is rounded once more */
	struct call c = {.m = {h->m, gate->m, up->m}, .n_heads = (int64_t)kind};
	parity_run(p, run_gated, &c, h, NULL);
	parity_check(p, "h", h, want, error, 1e-30, NULL);
	struct call back = {.m = {dgate->m, dup->m, dh->m, gate->m, up->m}, .n_heads = (int64_t)kind};
	parity_run(p, run_gated_backward, &back, dgate, dup, NULL);
	parity_check(p, "dup", dup, want_dup, 2e-6, 1e-30, NULL);
	parity_check(p, "dgate", dgate, want_dgate, 4e-6, 2e-6, NULL);
}

static void test_gated(struct parity *p)
{
	static const enum activation kinds[] = {ACTIVATION_GELU, ACTIVATION_GELU_NEW, ACTIVATION_RELU,
		ACTIVATION_SILU};
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
			gated_one(p, &shapes[i], DTYPE_F32, kinds[k], i & 1);
			gated_one(p, &shapes[i], DTYPE_BF16, kinds[k], !(i & 1));
		}
	}
}

static void run_softcap(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	softcap(b, c->m[0], c->scalar);
}

static void test_softcap(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		const struct shape *s = &shapes[i];
		parity_case(p, "softcap [%d,%d]", (int)s->rows, (int)s->cols);
		struct tensor *x = tensor_random(p, DTYPE_F32, s->rows, s->cols, s->gap, 100);
		double *want = parity_copy(p, x->v, s->rows * s->cols);
		for (int64_t j = 0; j < s->rows * s->cols; j++) {
			want[j] = 30 * tanh(want[j] / 30);
		}
		struct call c = {.m = {x->m}, .scalar = 30};
		parity_run(p, run_softcap, &c, x, NULL);
		parity_check(p, "x", x, want, 1e-6, 0, NULL);
	}
}

/* ---- optimizer ----------------------------------------------------------------------------- */

static void test_sum_squares(struct parity *p)
{
	static const int64_t lengths[] = {0, 1, 7, 8191, 8193, 100000, 3000000};
	for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
		parity_case(p, "sum_squares %lld", (long long)lengths[i]);
		struct tensor *x = tensor_random(p, DTYPE_F32, 1, lengths[i], 0, 3);
		long double exact = 0;
		for (int64_t j = 0; j < lengths[i]; j++) {
			exact += (long double)x->v[j] * x->v[j];
		}
		double want = (double)exact;
		double got = sum_squares(p->b, x->m.data, lengths[i]);
		assert_allclose(&got, &want, 1, 1e-14, 0);
		double again = sum_squares(p->b, x->m.data, lengths[i]);
		assert_memory_equal(&got, &again, sizeof(got));
	}
}

struct adamw_run {
	struct tensor *p, *m, *v, *g;
	struct adamw a;
};

static void run_adamw(struct backend *b, void *ctx)
{
	struct adamw_run *r = ctx;
	adamw_step(b, r->p->m.data, r->m->m.data, r->v->m.data, r->g->m.data, r->p->m.cols, &r->a);
}

static void test_adamw(struct parity *p)
{
	static const int64_t lengths[] = {0, 1, 37, 100001};
	for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
		for (int k = 0; k < 2; k++) {
			int64_t n = lengths[i];
			parity_case(p, "adamw_step %lld", (long long)n);
			struct adamw_run r = {tensor_random(p, DTYPE_F32, 1, n, 0, 1),
				tensor_random(p, DTYPE_F32, 1, n, 0, 0.1), tensor_random(p, DTYPE_F32, 1, n, 0, 1),
				tensor_random(p, DTYPE_F32, 1, n, 0, 1),
				{.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8,
					.weight_decay = k ? 0.01 : 0, .grad_scale = k ? 0.3 : 1, .step = k ? 1000 : 1}};
			for (int64_t j = 0; j < n; j++) { /* v is a mean of squares */
				r.v->v[j] = fabs(r.v->v[j]) * 0.01;
			}
			r.v = tensor_from(p, DTYPE_F32, 1, n, r.v->v);
			double *wp = parity_copy(p, r.p->v, n), *wm = parity_copy(p, r.m->v, n);
			double *wv = parity_copy(p, r.v->v, n);
			ref_adamw(wp, wm, wv, r.g->v, n, &r.a);
			parity_run(p, run_adamw, &r, r.p, r.m, r.v, NULL);
			parity_check(p, "p", r.p, wp, 2e-7, 1e-8, NULL);
			parity_check(p, "m", r.m, wm, 3e-7, 1e-8, NULL);
			parity_check(p, "v", r.v, wv, 3e-7, 1e-12, NULL);
		}
	}
}

const struct parity_test parity_tests_rows[] = {
	{"fill_zero, cast", test_fill_cast},
	{"cast of special values", test_cast_special},
	{"add", test_add},
	{"bias_backward", test_bias_backward},
	{"philox", test_philox},
	{"dropout", test_dropout},
	{"embedding", test_embedding},
	{"rmsnorm_forward", test_rmsnorm_forward},
	{"rmsnorm_backward", test_rmsnorm_backward},
	{"layernorm", test_layernorm},
	{"rope", test_rope},
	{"swiglu", test_swiglu},
	{"gated activations", test_gated},
	{"softcap", test_softcap},
	{"sum_squares", test_sum_squares},
	{"adamw_step", test_adamw},
	{NULL, NULL},
};
