/* Parity of what adapters need: factors a column, activation functions, soft prompts, row norms. */

#include <math.h>
#include <string.h>

#include "tests/kernels/parity.h"
#include "tests/kernels/reference.h"
#include "tests/support/allclose.h"
#include "util/util.h"

struct call {
	struct mat m[4];
	const void *p;
	float *f;
	const float *f_in;
	float scalar;
	enum activation kind;
};

static const struct shape {
	int64_t rows, cols, gap;
} shapes[] = {{1, 1, 0}, {3, 5, 2}, {17, 64, 0}, {33, 577, 1}, {300, 192, 8}, {2000, 9, 0}, {0, 8, 0},
	{8, 0, 0}};

static const enum dtype act_dtypes[] = {DTYPE_F32, DTYPE_BF16};

/* ---- factors a column ---------------------------------------------------------------------- */

static void run_scale(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	scale_columns(b, c->m[0], c->m[1], c->p);
}

static void run_scale_backward(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	scale_columns_backward(b, c->m[0], c->f, c->m[1], c->m[2], c->p);
}

/* alias: dx is 0 a matrix of its own, 1 dy, 2 x, 3 not there. */
static void scale_one(struct parity *p, const struct shape *s, enum dtype dtype, int alias, bool train)
{
	parity_case(p, "scale_columns %s [%d,%d] alias %d%s", dtype_name(dtype), (int)s->rows,
		(int)s->cols, alias, train ? " dl" : "");
	int64_t n = s->rows * s->cols;
	struct tensor *x = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *l = tensor_random(p, dtype, 1, s->cols, 0, 2);
	struct tensor *y = alias == 1 ? x : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want = parity_doubles(p, n);
	for (int64_t i = 0; i < n; i++) {
		want[i] = x->v[i] * l->v[i % s->cols];
	}
	struct call c = {.m = {y->m, x->m}, .p = l->m.data};
	parity_run(p, run_scale, &c, y, NULL);
	parity_check(p, "y", y, want, 1e-7, 1e-30, NULL);

	x = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *dy = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dl = tensor_random(p, DTYPE_F32, 1, s->cols, 0, 1);
	struct tensor *dx = alias == 1 ? dy
		: alias == 2               ? x
								   : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want_dx = parity_copy(p, dx->v, n), *want_dl = parity_copy(p, dl->v, s->cols);
	for (int64_t i = 0; i < n; i++) {
		want_dl[i % s->cols] += train ? dy->v[i] * x->v[i] : 0;
		want_dx[i] = alias == 3 ? want_dx[i] : dy->v[i] * l->v[i % s->cols];
	}
	struct mat none = {.dtype = dtype};
	struct call back = {.m = {alias == 3 ? none : dx->m, dy->m, x->m}, .p = l->m.data,
		.f = train ? dl->m.data : NULL};
	parity_run(p, run_scale_backward, &back, dx, dl, NULL);
	parity_check(p, "dx", dx, want_dx, 1e-7, 1e-30, NULL);
	parity_check(p, "dl", dl, want_dl, 2e-6, 4e-6 * sqrt((double)s->rows + 1), NULL);
}

static void test_scale(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (int k = 0; k < 16; k++) {
			scale_one(p, &shapes[i], act_dtypes[k & 1], k >> 1 & 3, k >> 3);
		}
	}
}

/* ---- sums ---------------------------------------------------------------------------------- */

static void run_add_scaled(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	add_scaled(b, c->m[0], c->m[1], c->m[2], c->scalar);
}

static void run_bias_add(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	bias_add(b, c->m[0], c->p);
}

/* alias: y is 0 a matrix of its own, 1 a, 2 c; 3: no a. */
static void sums_one(struct parity *p, const struct shape *s, enum dtype dtype, int alias)
{
	parity_case(p, "add_scaled %s [%d,%d] alias %d", dtype_name(dtype), (int)s->rows, (int)s->cols,
		alias);
	int64_t n = s->rows * s->cols;
	struct tensor *a = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *c = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *bias = tensor_random(p, dtype, 1, s->cols, 0, 1);
	struct tensor *y = alias == 1 ? a
		: alias == 2              ? c
								  : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want = parity_doubles(p, n);
	for (int64_t i = 0; i < n; i++) {
		want[i] = (alias == 3 ? 0 : a->v[i]) - 2.5 * c->v[i];
	}
	struct mat none = {.dtype = dtype};
	struct call call = {.m = {y->m, alias == 3 ? none : a->m, c->m}, .scalar = -2.5f};
	parity_run(p, run_add_scaled, &call, y, NULL);
	parity_check(p, "y", y, want, 1e-7, 2e-7, NULL);
	for (int64_t i = 0; i < n; i++) {
		want[i] = y->v[i] + bias->v[i % s->cols];
	}
	struct call again = {.m = {y->m}, .p = bias->m.data};
	parity_run(p, run_bias_add, &again, y, NULL);
	parity_check(p, "y + bias", y, want, 1e-7, 2e-7, NULL);
}

static void test_sums(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (int k = 0; k < 8; k++) {
			sums_one(p, &shapes[i], act_dtypes[k & 1], k >> 1);
		}
	}
}

/* ---- activation functions ------------------------------------------------------------------ */

static const struct {
	const char *name;
	enum activation kind;
} kinds[] = {
	{"relu", ACTIVATION_RELU},
	{"gelu", ACTIVATION_GELU},
	{"gelu_new", ACTIVATION_GELU_NEW},
	{"Swish", ACTIVATION_SILU},
	{"tanh", ACTIVATION_TANH},
	{"sigmoid", ACTIVATION_SIGMOID},
	{"leakyrelu", ACTIVATION_LEAKY_RELU},
};

static void run_activation(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	activation_forward(b, c->m[0], c->m[1], c->kind);
}

static void run_activation_backward(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	activation_backward(b, c->m[0], c->m[1], c->m[2], c->kind);
}

static void activation_one(struct parity *p, const struct shape *s, size_t kind, enum dtype dtype,
	double scale, int alias)
{
	parity_case(p, "activation %s %s [%d,%d] scale %g alias %d", kinds[kind].name,
		dtype_name(dtype), (int)s->rows, (int)s->cols, scale, alias);
	enum activation a;
	assert_true(activation_from_name(kinds[kind].name, &a));
	assert_int_equal(a, kinds[kind].kind);
	int64_t n = s->rows * s->cols;
	struct tensor *x = tensor_random(p, dtype, s->rows, s->cols, s->gap, scale);
	double *x_values = parity_copy(p, x->v, n);
	struct tensor *y = alias == 2 ? x : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want = parity_doubles(p, n), *want_dx = parity_doubles(p, n);
	for (int64_t i = 0; i < n; i++) {
		want[i] = ref_activation(x_values[i], a);
	}
	struct call c = {.m = {y->m, x->m}, .kind = a};
	parity_run(p, run_activation, &c, y, NULL);
	/* Below 1e-30 exponentials end before those of f64 do; gelu_new's has a rounded cubic above it. */
	parity_check(p, "y", y, want, 2e-6, a == ACTIVATION_GELU_NEW ? 1e-12 : 1e-30, NULL);

	x = tensor_from(p, dtype, s->rows, s->cols, x_values);
	struct tensor *dy = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dx = alias == 1 ? dy
		: alias == 2               ? x
								   : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	for (int64_t i = 0; i < n; i++) {
		want_dx[i] = dy->v[i] * ref_activation_derivative(x->v[i], a);
	}
	struct call back = {.m = {dx->m, dy->m, x->m}, .kind = a};
	parity_run(p, run_activation_backward, &back, dx, NULL);
	/* Derivatives of GELU and SiLU cross 0 as sums of larger terms. */
	parity_check(p, "dx", dx, want_dx, 4e-6, 5e-7, NULL);
}

static void test_activation(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (size_t kind = 0; kind < ARRAY_LEN(kinds); kind++) {
			for (int k = 0; k < 6; k++) {
				activation_one(p, &shapes[i], kind, act_dtypes[k & 1], 0.5, k >> 1);
				activation_one(p, &shapes[i], kind, act_dtypes[k & 1], 6, k >> 1);
				activation_one(p, &shapes[i], kind, act_dtypes[k & 1], 60, k >> 1);
			}
		}
	}
	enum activation a = ACTIVATION_TANH;
	assert_false(activation_from_name("relu6", &a));
	assert_int_equal(a, ACTIVATION_TANH);
}

/* The reference's derivatives against its own values. */
static void test_activation_reference(struct parity *p)
{
	(void)p;
	for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
		for (double x = -7.03; x < 7; x += 0.31) {
			const double h = 1e-5;
			double got = ref_activation_derivative(x, kinds[k].kind);
			double want = (ref_activation(x + h, kinds[k].kind) -
				ref_activation(x - h, kinds[k].kind)) / (2 * h);
			assert_allclose(&got, &want, 1, 1e-7, 1e-9);
		}
	}
}

/* ---- soft prompts -------------------------------------------------------------------------- */

static void run_virtual(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	embedding_forward(b, c->m[0], c->p, c->m[1]);
	virtual_tokens_forward(b, c->m[0], c->p, c->m[2]);
}

static void run_virtual_backward(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	virtual_tokens_backward(b, c->m[0], c->p, c->m[2]);
	embedding_backward(b, c->m[1], c->p, c->m[2]);
}

static void virtual_one(struct parity *p, const struct shape *s, enum dtype dtype, int64_t prompt)
{
	enum { VOCAB = 13, MAX_ROWS = 400 };
	int32_t ids[MAX_ROWS];
	parity_case(p, "virtual tokens %s [%d,%d] of %d", dtype_name(dtype), (int)s->rows,
		(int)s->cols, (int)prompt);
	for (int64_t j = 0; j < s->rows; j++) {
		ids[j] = (int32_t)(parity_random(p, VOCAB + prompt) - prompt);
	}
	struct tensor *t = tensor_i32(p, ids, s->rows);
	struct tensor *table = tensor_random(p, dtype, VOCAB, s->cols, s->gap, 1);
	struct tensor *soft = tensor_random(p, dtype, prompt, s->cols, s->gap, 1);
	struct tensor *y = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dsoft = tensor_random(p, DTYPE_F32, prompt, s->cols, s->gap, 1);
	struct tensor *dtable = tensor_random(p, DTYPE_F32, VOCAB, s->cols, s->gap, 1);
	double *want = parity_doubles(p, s->rows * s->cols);
	double *want_dsoft = parity_copy(p, dsoft->v, prompt * s->cols);
	double *want_dtable = parity_copy(p, dtable->v, VOCAB * s->cols);
	for (int64_t j = 0; j < s->rows * s->cols; j++) {
		int64_t id = ids[j / s->cols], col = j % s->cols;
		want[j] = id < 0 ? soft->v[(-1 - id) * s->cols + col] : table->v[id * s->cols + col];
		*(id < 0 ? &want_dsoft[(-1 - id) * s->cols + col] : &want_dtable[id * s->cols + col]) +=
			want[j];
	}
	struct call c = {.m = {y->m, table->m, soft->m}, .p = t->m.data};
	parity_run(p, run_virtual, &c, y, NULL);
	assert_memory_equal(y->v, want, (size_t)(s->rows * s->cols) * sizeof(double));
	struct call back = {.m = {dsoft->m, dtable->m, y->m}, .p = t->m.data};
	parity_run(p, run_virtual_backward, &back, dsoft, dtable, NULL);
	parity_check(p, "dsoft", dsoft, want_dsoft, 1e-6, 1e-5, NULL);
	parity_check(p, "dtable", dtable, want_dtable, 1e-6, 1e-5, NULL);
}

static void test_virtual(struct parity *p)
{
	static const struct shape cases[] = {{1, 8, 0}, {7, 33, 3}, {400, 100, 0}, {0, 8, 0}};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		for (int k = 0; k < 4; k++) {
			virtual_one(p, &cases[i], act_dtypes[k & 1], k >> 1 ? 20 : 1);
		}
	}
}

/* ---- norms of rows ------------------------------------------------------------------------- */

static void run_norms(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	low_rank_row_norms(b, c->f, c->f_in, c->m[0], c->m[1], c->m[2], c->scalar);
}

static void norms_one(struct parity *p, int64_t out, int64_t in, int64_t r, enum dtype dtype,
	double scale)
{
	parity_case(p, "low_rank_row_norms %s [%d,%d] rank %d scale %g", dtype_name(dtype), (int)out,
		(int)in, (int)r, scale);
	struct tensor *a = tensor_random(p, dtype, r, in, 0, 1);
	struct tensor *b = tensor_random(p, dtype, out, r, 3, 1);
	struct tensor *w = tensor_random(p, dtype, out, in, 0, 1);
	double *wa = parity_doubles(p, r * out), *aa = parity_doubles(p, r * r);
	double *squares = parity_doubles(p, out), *want = parity_doubles(p, out);
	double *full = parity_copy(p, w->v, out * in);
	ref_matmul(wa, NULL, a->v, false, w->v, true, r, out, in, 1, 0);
	ref_matmul(aa, NULL, a->v, false, a->v, true, r, r, in, 1, 0);
	ref_matmul(full, NULL, b->v, false, a->v, false, out, in, r, scale, 1);
	for (int64_t i = 0; i < out * in; i++) {
		squares[i / in] += w->v[i] * w->v[i];
		want[i / in] += full[i] * full[i];
	}
	for (int64_t i = 0; i < out; i++) {
		want[i] = sqrt(want[i]);
	}
	struct tensor *wa_t = tensor_from(p, DTYPE_F32, r, out, wa);
	struct tensor *aa_t = tensor_from(p, DTYPE_F32, r, r, aa);
	struct tensor *squares_t = tensor_from(p, DTYPE_F32, 1, out, squares);
	struct tensor *norms = tensor_random(p, DTYPE_F32, 1, out, 0, 1);
	struct call c = {.m = {wa_t->m, aa_t->m, b->m}, .f = norms->m.data, .f_in = squares_t->m.data,
		.scalar = (float)scale};
	parity_run(p, run_norms, &c, norms, NULL);
	parity_check(p, "norms", norms, want, 2e-6, 1e-6, NULL);
}

static void test_norms(struct parity *p)
{
	for (int k = 0; k < 2; k++) {
		norms_one(p, 1, 7, 1, act_dtypes[k], 2);
		norms_one(p, 40, 24, 8, act_dtypes[k], 2);
		norms_one(p, 40, 24, 8, act_dtypes[k], 0);
		norms_one(p, 600, 96, 16, act_dtypes[k], -0.5);
	}
}

/* ---- DoRA ---------------------------------------------------------------------------------- */

struct dora_run {
	struct mat y, u, dy;
	const void *m, *bias;
	const float *norms;
	float *dm, *dbias;
};

static void run_dora(struct backend *b, void *ctx)
{
	struct dora_run *r = ctx;
	dora_forward(b, r->y, r->u, r->m, r->norms, r->bias);
}

static void run_dora_backward(struct backend *b, void *ctx)
{
	struct dora_run *r = ctx;
	dora_backward(b, r->y, r->dm, r->dbias, r->dy, r->u, r->m, r->norms, r->bias);
}

/* alias: the output is 0 a matrix of its own, 1 dy (or u, forward), 2 u. */
static void dora_one(struct parity *p, const struct shape *s, enum dtype dtype, bool bias, int alias)
{
	parity_case(p, "dora %s [%d,%d]%s alias %d", dtype_name(dtype), (int)s->rows, (int)s->cols,
		bias ? " bias" : "", alias);
	int64_t n = s->rows * s->cols;
	struct tensor *u = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *m = tensor_random(p, dtype, 1, s->cols, 0, 2);
	struct tensor *b = tensor_random(p, dtype, 1, s->cols, 0, 1);
	struct tensor *norms = tensor_random(p, DTYPE_F32, 1, s->cols, 0, 1);
	for (int64_t j = 0; j < s->cols; j++) {
		norms->v[j] = fabs(norms->v[j]) + 0.5;
	}
	norms = tensor_from(p, DTYPE_F32, 1, s->cols, norms->v);
	struct tensor *y = alias ? u : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want = parity_doubles(p, n);
	for (int64_t i = 0; i < n; i++) {
		double g = m->v[i % s->cols] / norms->v[i % s->cols];
		want[i] = g * u->v[i] + (bias ? (1 - g) * b->v[i % s->cols] : 0);
	}
	struct dora_run r = {.y = y->m, .u = u->m, .m = m->m.data, .norms = norms->m.data,
		.bias = bias ? b->m.data : NULL};
	parity_run(p, run_dora, &r, y, NULL);
	parity_check(p, "y", y, want, 1e-6, 2e-6, NULL);

	u = tensor_random(p, dtype, s->rows, s->cols, s->gap, 2);
	struct tensor *dy = tensor_random(p, dtype, s->rows, s->cols, s->gap, 1);
	struct tensor *dm = tensor_random(p, DTYPE_F32, 1, s->cols, 0, 1);
	struct tensor *db = tensor_random(p, DTYPE_F32, 1, s->cols, 0, 1);
	struct tensor *du = alias == 1 ? dy
		: alias == 2               ? u
								   : tensor_zero(p, dtype, s->rows, s->cols, s->gap);
	double *want_du = parity_doubles(p, n), *want_dm = parity_copy(p, dm->v, s->cols);
	double *want_db = parity_copy(p, db->v, s->cols);
	for (int64_t i = 0; i < n; i++) {
		int64_t j = i % s->cols;
		double g = m->v[j] / norms->v[j];
		want_du[i] = g * dy->v[i];
		want_dm[j] += dy->v[i] * (u->v[i] - (bias ? b->v[j] : 0)) / norms->v[j];
		want_db[j] += bias ? (1 - g) * dy->v[i] : 0;
	}
	struct dora_run back = {.y = du->m, .u = u->m, .dy = dy->m, .m = m->m.data,
		.norms = norms->m.data, .bias = bias ? b->m.data : NULL, .dm = dm->m.data,
		.dbias = bias ? db->m.data : NULL};
	parity_run(p, run_dora_backward, &back, du, dm, db, NULL);
	double error = 1e-5 * sqrt((double)s->rows + 1);
	parity_check(p, "du", du, want_du, 1e-6, 1e-30, NULL);
	parity_check(p, "dm", dm, want_dm, 4e-6, error, NULL);
	parity_check(p, "dbias", db, want_db, 4e-6, error, NULL);
}

static void test_dora(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		for (int k = 0; k < 12; k++) {
			dora_one(p, &shapes[i], act_dtypes[k & 1], k >> 1 & 1, k >> 2);
		}
	}
}

static void run_columns(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	embedding_columns_forward(b, c->m[0], c->p, c->m[1]);
}

static void run_columns_backward(struct backend *b, void *ctx)
{
	struct call *c = ctx;
	embedding_columns_backward(b, c->m[0], c->p, c->m[1]);
}

static void test_columns(struct parity *p)
{
	enum { VOCAB = 13, MAX_ROWS = 400 };
	static const struct shape cases[] = {{1, 1, 0}, {7, 8, 3}, {400, 16, 0}, {0, 8, 0}};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		for (int k = 0; k < 2; k++) {
			const struct shape *s = &cases[i];
			parity_case(p, "embedding_columns %s [%d,%d]", dtype_name(act_dtypes[k]),
				(int)s->rows, (int)s->cols);
			int32_t ids[MAX_ROWS];
			for (int64_t j = 0; j < s->rows; j++) {
				ids[j] = (int32_t)parity_random(p, VOCAB + 2) - 2;
			}
			struct tensor *t = tensor_i32(p, ids, s->rows);
			struct tensor *a = tensor_random(p, act_dtypes[k], s->cols, VOCAB, s->gap, 1);
			struct tensor *h = tensor_random(p, act_dtypes[k], s->rows, s->cols, s->gap, 1);
			struct tensor *da = tensor_random(p, DTYPE_F32, s->cols, VOCAB, s->gap, 1);
			double *want = parity_doubles(p, s->rows * s->cols);
			double *want_da = parity_copy(p, da->v, s->cols * VOCAB);
			for (int64_t j = 0; j < s->rows * s->cols; j++) {
				int32_t id = ids[j / s->cols];
				int64_t at = j % s->cols * VOCAB + id;
				want[j] = id < 0 ? 0 : a->v[at];
				if (id >= 0) {
					want_da[at] += want[j];
				}
			}
			struct call c = {.m = {h->m, a->m}, .p = t->m.data};
			parity_run(p, run_columns, &c, h, NULL);
			assert_memory_equal(h->v, want, (size_t)(s->rows * s->cols) * sizeof(double));
			struct call back = {.m = {da->m, h->m}, .p = t->m.data};
			parity_run(p, run_columns_backward, &back, da, NULL);
			parity_check(p, "da", da, want_da, 1e-6, 1e-5, NULL);
		}
	}
}

/* ---- LSTM ---------------------------------------------------------------------------------- */

struct lstm_run {
	struct mat h, gates, cell, xg, w, bias, dxg, dw, dbias, dh;
	bool reverse;
};

static void run_lstm(struct backend *b, void *ctx)
{
	struct lstm_run *r = ctx;
	lstm_forward(b, r->h, r->gates, r->cell, r->xg, r->w, r->bias, r->reverse);
}

static void run_lstm_backward(struct backend *b, void *ctx)
{
	struct lstm_run *r = ctx;
	lstm_backward(b, r->dxg, r->dw, r->dbias, r->dh, r->h, r->gates, r->cell, r->w, r->reverse);
}

/* Sum of h ∘ dh, to differentiate by one value. */
static double lstm_loss(struct parity *p, const double *xg, const double *w, const double *bias,
	const double *dh, int64_t n, int64_t d, bool reverse, double *h, double *gates, double *cell)
{
	double sum = 0;
	ref_lstm_forward(h, gates, cell, xg, w, bias, n, d, reverse);
	for (int64_t i = 0; i < n * d; i++) {
		sum += h[i] * dh[i];
	}
	return sum;
}

static void lstm_one(struct parity *p, int64_t n, int64_t d, enum dtype dtype, bool reverse)
{
	parity_case(p, "lstm %s [%d,%d]%s", dtype_name(dtype), (int)n, (int)d,
		reverse ? " reverse" : "");
	struct tensor *xg = tensor_random(p, dtype, n, 4 * d, 2, 1);
	struct tensor *w = tensor_random(p, dtype, 4 * d, d, 0, 0.5);
	struct tensor *bias = tensor_random(p, dtype, 1, 4 * d, 0, 0.5);
	struct tensor *dh = tensor_random(p, dtype, n, d, d, 1);
	struct tensor *h = tensor_zero(p, dtype, n, d, d);
	struct tensor *gates = tensor_zero(p, DTYPE_F32, n, 4 * d, 4 * d);
	struct tensor *cell = tensor_zero(p, DTYPE_F32, n, d, d);
	struct tensor *dxg = tensor_zero(p, dtype, n, 4 * d, 2);
	struct tensor *dw = tensor_random(p, DTYPE_F32, 4 * d, d, 0, 1);
	struct tensor *dbias = tensor_random(p, DTYPE_F32, 1, 4 * d, 0, 1);
	double *want = parity_doubles(p, n * d), *g = parity_doubles(p, n * 4 * d);
	double *c = parity_doubles(p, n * d);
	ref_lstm_forward(want, g, c, xg->v, w->v, bias->v, n, d, reverse);
	struct lstm_run r = {h->m, gates->m, cell->m, xg->m, w->m, bias->m, dxg->m, dw->m, dbias->m,
		dh->m, reverse};
	bool bf16 = dtype == DTYPE_BF16;
	parity_run(p, run_lstm, &r, h, gates, cell, NULL);
	parity_check(p, "h", h, want, 1e-6, bf16 ? 1e-2 : 2e-6, NULL);

	double *want_dxg = parity_doubles(p, n * 4 * d), *want_dw = parity_copy(p, dw->v, 4 * d * d);
	double *want_dbias = parity_copy(p, dbias->v, 4 * d);
	const struct {
		struct tensor *of;
		double *want;
		int64_t n;
	} gradients[] = {{xg, want_dxg, n * 4 * d}, {w, want_dw, 4 * d * d}, {bias, want_dbias, 4 * d}};
	for (size_t k = 0; k < ARRAY_LEN(gradients); k++) {
		for (int64_t i = 0; i < gradients[k].n; i++) {
			const double step = 1e-5;
			double *x = &gradients[k].of->v[i], old = *x;
			*x = old + step;
			double up = lstm_loss(p, xg->v, w->v, bias->v, dh->v, n, d, reverse, want, g, c);
			*x = old - step;
			double down = lstm_loss(p, xg->v, w->v, bias->v, dh->v, n, d, reverse, want, g, c);
			*x = old;
			gradients[k].want[i] += (up - down) / (2 * step);
		}
	}
	parity_run(p, run_lstm_backward, &r, dxg, dw, dbias, NULL);
	parity_check(p, "dxg", dxg, want_dxg, 1e-5, bf16 ? 2e-2 : 5e-6, NULL);
	parity_check(p, "dw", dw, want_dw, 1e-5, bf16 ? 5e-2 : 1e-5, NULL);
	parity_check(p, "dbias", dbias, want_dbias, 1e-5, bf16 ? 5e-2 : 1e-5, NULL);
}

static void test_lstm(struct parity *p)
{
	for (int k = 0; k < 4; k++) {
		lstm_one(p, 1, 1, act_dtypes[k & 1], k >> 1);
		lstm_one(p, 1, 5, act_dtypes[k & 1], k >> 1);
		lstm_one(p, 7, 9, act_dtypes[k & 1], k >> 1);
	}
}

const struct parity_test parity_tests_adapters[] = {
	{"scale_columns", test_scale},
	{"add_scaled, bias_add", test_sums},
	{"activation functions", test_activation},
	{"derivatives of the reference's activation functions", test_activation_reference},
	{"virtual tokens", test_virtual},
	{"low_rank_row_norms", test_norms},
	{"dora", test_dora},
	{"embedding_columns", test_columns},
	{"lstm", test_lstm},
	{NULL, NULL},
};
