/* Parity of attention, forward and backward, over packed sequences. */

#include <math.h>
#include <string.h>

#include "tests/kernels/parity.h"
#include "tests/kernels/reference.h"
#include "tests/support/allclose.h"
#include "util/util.h"

#define MAX_SEQS 24

static const struct attention_case {
	const char *name;
	int64_t n_heads, n_kv_heads, head_dim;
	bool causal;
	int64_t n_seqs;
	int32_t q_len[MAX_SEQS];
	int32_t extra[MAX_SEQS]; /* keys beyond the queries' number: a cache or prefix */
	int32_t lead;            /* rows before the first sequence that belong to none */
	int64_t gap;
} cases[] = {
	{"one token", 1, 1, 8, true, 1, {1}, {0}, 0, 0},
	{"one token each", 2, 1, 16, true, 5, {1, 1, 1, 1, 1}, {0}, 2, 4},
	{"many short", 4, 2, 32, true, 24, {3, 1, 7, 2, 9, 4, 1, 1, 5, 8, 6, 3, 2, 1, 13, 4, 7, 3, 2, 9,
		1, 1, 2, 6}, {0}, 0, 0},
	{"one long", 2, 2, 64, true, 1, {301}, {0}, 0, 0},
	{"one long of one head", 1, 1, 64, true, 1, {400}, {0}, 0, 0},
	{"two long, one short", 3, 1, 64, true, 3, {130, 5, 199}, {0}, 3, 8},
	{"not causal", 2, 2, 40, false, 2, {70, 33}, {0}, 0, 0},
	{"cross, keys and queries differ", 2, 1, 24, false, 2, {10, 80}, {60, 1}, 0, 0},
	{"decode with a cache", 6, 2, 64, true, 2, {1, 1}, {150, 63}, 0, 0},
	{"prefix", 4, 1, 16, true, 2, {67, 12}, {9, 70}, 1, 0},
	{"nine heads on one", 9, 1, 16, true, 2, {70, 20}, {0}, 0, 0},
	{"odd dimension", 3, 1, 7, true, 2, {69, 10}, {2, 0}, 0, 3},
	{"dimension 80", 2, 1, 80, true, 1, {90}, {0}, 0, 0},
	{"dimension 256", 2, 1, 256, true, 1, {75}, {0}, 0, 0},
	{"dimension 1", 1, 1, 1, true, 1, {9}, {0}, 0, 0},
	{"an empty sequence", 2, 1, 16, true, 3, {4, 0, 6}, {0, 3, 0}, 0, 0},
};

struct attention_run {
	struct mat o, q, k, v, dq, dk, dv, do_;
	float *lse;
	const struct attention *a;
	void *workspace;
};

static void run_forward(struct backend *b, void *ctx)
{
	struct attention_run *r = ctx;
	attention_forward(b, r->o, r->lse, r->q, r->k, r->v, r->a, r->workspace);
}

static void run_backward(struct backend *b, void *ctx)
{
	struct attention_run *r = ctx;
	attention_backward(b, r->dq, r->dk, r->dv, r->do_, r->o, r->lse, r->q, r->k, r->v, r->a,
		r->workspace);
}

struct setup {
	struct attention a;
	int32_t q_start[MAX_SEQS], q_len[MAX_SEQS], k_start[MAX_SEQS], k_len[MAX_SEQS];
	int64_t q_rows, k_rows;
};

static void setup_init(struct setup *s, const struct attention_case *c)
{
	*s = (struct setup){.q_rows = c->lead, .k_rows = 2 * c->lead};
	for (int64_t i = 0; i < c->n_seqs; i++) {
		s->q_start[i] = (int32_t)s->q_rows;
		s->k_start[i] = (int32_t)s->k_rows;
		s->q_len[i] = c->q_len[i];
		s->k_len[i] = c->q_len[i] + c->extra[i];
		s->q_rows += s->q_len[i];
		s->k_rows += s->k_len[i];
	}
	s->a = (struct attention){
		.n_heads = c->n_heads,
		.n_kv_heads = c->n_kv_heads,
		.head_dim = c->head_dim,
		.scale = 1 / sqrtf((float)c->head_dim),
		.causal = c->causal,
		.n_seqs = c->n_seqs,
		.q_start = s->q_start,
		.q_len = s->q_len,
		.k_start = s->k_start,
		.k_len = s->k_len,
	};
}

static void attention_one(struct parity *p, const struct attention_case *c, enum dtype dtype,
	double scale)
{
	struct setup s;
	setup_init(&s, c);
	parity_case(p, "attention_forward %s: %s, scale %g", dtype_name(dtype), c->name, scale);
	int64_t q_cols = c->n_heads * c->head_dim, kv_cols = c->n_kv_heads * c->head_dim;
	struct tensor *q = tensor_random(p, dtype, s.q_rows, q_cols, c->gap, scale);
	struct tensor *k = tensor_random(p, dtype, s.k_rows, kv_cols, c->gap, scale);
	struct tensor *v = tensor_random(p, dtype, s.k_rows, kv_cols, c->gap, 1);
	struct tensor *o = tensor_random(p, dtype, s.q_rows, q_cols, c->gap, 1);
	struct tensor *lse = tensor_random(p, DTYPE_F32, s.q_rows, c->n_heads, 0, 1);
	double *want_o = parity_copy(p, o->v, s.q_rows * q_cols);
	double *want_lse = parity_copy(p, lse->v, s.q_rows * c->n_heads);
	ref_attention_forward(want_o, want_lse, q->v, k->v, v->v, NULL, &s.a);

	size_t bytes = attention_workspace(p->b, &s.a, max_i64(s.q_rows, s.k_rows), s.a.n_seqs);
	void *workspace = backend_alloc(p->b, bytes);
	assert_non_null(workspace);
	struct attention_run r = {.o = o->m, .q = q->m, .k = k->m, .v = v->m, .lse = lse->m.data,
		.a = &s.a, .workspace = workspace};
	double error = dtype == DTYPE_BF16 ? 4e-3 : 2e-6 * (1 + scale * scale);
	parity_run(p, run_forward, &r, o, lse, NULL);
	parity_check(p, "o", o, want_o, 1e-6, error, NULL);
	parity_check(p, "lse", lse, want_lse, 1e-6, 2e-6 * (1 + scale * scale), NULL);

	snprintf(p->context, sizeof(p->context), "attention_backward %s: %s, scale %g",
		dtype_name(dtype), c->name, scale);
	struct tensor *do_ = tensor_random(p, dtype, s.q_rows, q_cols, c->gap, 1);
	struct tensor *dq = tensor_random(p, dtype, s.q_rows, q_cols, c->gap, 1);
	struct tensor *dk = tensor_random(p, dtype, s.k_rows, kv_cols, c->gap, 1);
	struct tensor *dv = tensor_random(p, dtype, s.k_rows, kv_cols, c->gap, 1);
	double *want_dq = parity_copy(p, dq->v, s.q_rows * q_cols);
	double *want_dk = parity_copy(p, dk->v, s.k_rows * kv_cols);
	double *want_dv = parity_copy(p, dv->v, s.k_rows * kv_cols);
	ref_attention_backward(want_dq, want_dk, want_dv, NULL, do_->v, q->v, k->v, v->v, NULL, &s.a);
	r.do_ = do_->m;
	r.dq = dq->m;
	r.dk = dk->m;
	r.dv = dv->m;
	/* bf16: o is rounded, so delta is off by the rounding of a row of outputs. */
	error = dtype == DTYPE_BF16 ? 0.02 * scale : 4e-6 * (1 + scale * scale * scale);
	parity_run(p, run_backward, &r, dq, dk, dv, NULL);
	parity_check(p, "dv", dv, want_dv, 1e-5, error, NULL);
	parity_check(p, "dk", dk, want_dk, 1e-5, error, NULL);
	parity_check(p, "dq", dq, want_dq, 1e-5, error, NULL);
	backend_free_memory(p->b, workspace, bytes);
}

/* ---- a prefix before all sequences --------------------------------------------------------- */

/* What scores may be besides scaled products, and how many keys come before those of each sequence. */
struct shape {
	const char *name;
	int64_t prefix;
	int64_t window;
	float softcap;
	int64_t buckets, reach; /* 0: no bias */
};

struct prefix_want {
	double *o, *lse, *dq, *dk, *dv, *dk_prefix, *dv_prefix, *dbias;
};

/* The reference knows no prefix: it gets the prefix' rows before those of each sequence. */
static void prefix_reference(struct parity *p, struct prefix_want *w, const struct setup *s,
	int64_t n, const double *q, const double *k, const double *v, const double *kp, const double *vp,
	const double *bias, const double *do_)
{
	int64_t cols = s->a.n_kv_heads * s->a.head_dim, rows = 0;
	struct attention a = s->a;
	int32_t k_start[MAX_SEQS], k_len[MAX_SEQS];
	for (int64_t i = 0; i < a.n_seqs; i++) {
		k_start[i] = (int32_t)rows;
		k_len[i] = s->k_len[i] + (int32_t)n;
		rows += k_len[i];
	}
	double *ks = parity_doubles(p, rows * cols), *vs = parity_doubles(p, rows * cols);
	double *dks = parity_doubles(p, rows * cols), *dvs = parity_doubles(p, rows * cols);
	size_t own = (size_t)cols * sizeof(double), head = (size_t)n * own;
	for (int64_t i = 0; i < a.n_seqs; i++) {
		int64_t to = k_start[i] * cols, from = s->k_start[i] * cols;
		memcpy(ks + to, kp, head);
		memcpy(vs + to, vp, head);
		memcpy(ks + to + n * cols, k + from, (size_t)s->k_len[i] * own);
		memcpy(vs + to + n * cols, v + from, (size_t)s->k_len[i] * own);
	}
	a.k_start = k_start;
	a.k_len = k_len;
	ref_attention_forward(w->o, w->lse, q, ks, vs, bias, &a);
	ref_attention_backward(w->dq, dks, dvs, w->dbias, do_, q, ks, vs, bias, &a);
	for (int64_t i = 0; i < a.n_seqs; i++) {
		int64_t from = k_start[i] * cols, to = s->k_start[i] * cols;
		for (int64_t j = 0; j < n * cols; j++) {
			w->dk_prefix[j] += dks[from + j];
			w->dv_prefix[j] += dvs[from + j];
		}
		memcpy(w->dk + to, dks + from + n * cols, (size_t)s->k_len[i] * own);
		memcpy(w->dv + to, dvs + from + n * cols, (size_t)s->k_len[i] * own);
	}
}

static void shape_one(struct parity *p, const struct attention_case *c, enum dtype dtype,
	const struct shape *h)
{
	enum { MAX_REACH = 128 };
	struct setup s;
	setup_init(&s, c);
	parity_case(p, "attention %s, %s: %s", h->name, dtype_name(dtype), c->name);
	int64_t q_cols = c->n_heads * c->head_dim, kv_cols = c->n_kv_heads * c->head_dim, n = h->prefix;
	struct tensor *q = tensor_random(p, dtype, s.q_rows, q_cols, c->gap, 1.5);
	struct tensor *k = tensor_random(p, dtype, s.k_rows, kv_cols, c->gap, 1.5);
	struct tensor *v = tensor_random(p, dtype, s.k_rows, kv_cols, c->gap, 1);
	/* As prefix tuning has them: a layer's columns of one long row. */
	struct tensor *kp = tensor_random(p, dtype, n, kv_cols, 3 * kv_cols, 1.5);
	struct tensor *vp = tensor_random(p, dtype, n, kv_cols, 3 * kv_cols, 1);
	struct tensor *bias = tensor_random(p, dtype, h->buckets, c->n_heads, 1, 2);
	struct tensor *dbias = tensor_random(p, DTYPE_F32, h->buckets, c->n_heads, 2, 1);
	struct tensor *do_ = tensor_random(p, dtype, s.q_rows, q_cols, c->gap, 1);
	struct tensor *o = tensor_random(p, dtype, s.q_rows, q_cols, c->gap, 1);
	struct tensor *lse = tensor_random(p, DTYPE_F32, s.q_rows, c->n_heads, 0, 1);
	struct tensor *dq = tensor_random(p, dtype, s.q_rows, q_cols, c->gap, 1);
	struct tensor *dk = tensor_random(p, dtype, s.k_rows, kv_cols, c->gap, 1);
	struct tensor *dv = tensor_random(p, dtype, s.k_rows, kv_cols, c->gap, 1);
	struct tensor *dkp = tensor_random(p, DTYPE_F32, n, kv_cols, kv_cols, 1);
	struct tensor *dvp = tensor_random(p, DTYPE_F32, n, kv_cols, kv_cols, 1);
	struct prefix_want w = {parity_copy(p, o->v, s.q_rows * q_cols),
		parity_copy(p, lse->v, s.q_rows * c->n_heads), parity_copy(p, dq->v, s.q_rows * q_cols),
		parity_copy(p, dk->v, s.k_rows * kv_cols), parity_copy(p, dv->v, s.k_rows * kv_cols),
		parity_copy(p, dkp->v, n * kv_cols), parity_copy(p, dvp->v, n * kv_cols),
		h->buckets ? parity_copy(p, dbias->v, h->buckets * c->n_heads) : NULL};

	int32_t bucket[2 * MAX_REACH + 1];
	for (int64_t i = 0; i <= 2 * h->reach && h->buckets > 0; i++) {
		bucket[i] = (int32_t)parity_random(p, h->buckets);
	}
	s.a.window = c->causal ? h->window : 0;
	s.a.softcap = h->softcap;
	if (h->buckets > 0) {
		s.a.bias = (struct attention_bias){bias->m, dbias->m, bucket, h->reach};
	}
	prefix_reference(p, &w, &s, n, q->v, k->v, v->v, kp->v, vp->v, h->buckets ? bias->v : NULL,
		do_->v);

	s.a.prefix_len = n;
	s.a.k_prefix = kp->m;
	s.a.v_prefix = vp->m;
	s.a.dk_prefix = n > 0 ? dkp->m : (struct mat){0};
	s.a.dv_prefix = n > 0 ? dvp->m : (struct mat){0};
	size_t bytes = attention_workspace(p->b, &s.a, max_i64(s.q_rows, s.k_rows), s.a.n_seqs);
	void *workspace = backend_alloc(p->b, bytes);
	assert_non_null(workspace);
	struct attention_run r = {.o = o->m, .q = q->m, .k = k->m, .v = v->m, .dq = dq->m, .dk = dk->m,
		.dv = dv->m, .do_ = do_->m, .lse = lse->m.data, .a = &s.a, .workspace = workspace};
	bool bf16 = dtype == DTYPE_BF16;
	parity_run(p, run_forward, &r, o, lse, NULL);
	parity_check(p, "o", o, w.o, 1e-6, bf16 ? 4e-3 : 6e-6, NULL);
	parity_check(p, "lse", lse, w.lse, 1e-6, 6e-6, NULL);
	double error = bf16 ? 0.03 : 2e-5;
	double many = sqrt((double)s.q_rows + 1); /* queries that a prefix' key sums over */
	parity_run(p, run_backward, &r, dq, dk, dv, dkp, dvp, dbias, NULL);
	parity_check(p, "dq", dq, w.dq, 1e-5, error, NULL);
	parity_check(p, "dk", dk, w.dk, 1e-5, error, NULL);
	parity_check(p, "dv", dv, w.dv, 1e-5, error, NULL);
	if (n > 0) {
		parity_check(p, "dk_prefix", dkp, w.dk_prefix, 1e-5, error * many, NULL);
		parity_check(p, "dv_prefix", dvp, w.dv_prefix, 1e-5, error * many, NULL);
	}
	if (h->buckets > 0) {
		parity_check(p, "dbias", dbias, w.dbias, 1e-5, error * many, NULL);
	}

	/* Frozen: everything but the gradients of prefix and bias. */
	s.a.dk_prefix = s.a.dv_prefix = s.a.bias.dbias = (struct mat){0};
	parity_run(p, run_backward, &r, dq, dk, dv, NULL);
	parity_check(p, "dq again", dq, w.dq, 1e-5, error, NULL);
	backend_free_memory(p->b, workspace, bytes);
}

static void test_shapes(struct parity *p)
{
	static const struct shape shapes[] = {
		{"in a window of 1", .window = 1},
		{"in a window", .window = 20},
		{"in a window of more than a block", .window = 100},
		{"capped", .softcap = 2},
		{"capped in a window after a prefix", .prefix = 70, .window = 75, .softcap = 3},
		{"with a bias", .buckets = 32, .reach = 128},
		{"with a bias of one distance, after a prefix", .prefix = 3, .buckets = 2},
		{"with a bias in a window after a prefix", .prefix = 70, .window = 66, .buckets = 9, .reach = 20},
	};
	for (size_t k = 0; k < ARRAY_LEN(shapes); k++) {
		for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
			shape_one(p, &cases[i], DTYPE_F32, &shapes[k]);
			shape_one(p, &cases[i], DTYPE_BF16, &shapes[k]);
		}
	}
}

static void test_prefix(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		shape_one(p, &cases[i], DTYPE_F32, &(struct shape){"after a prefix of 1", 1});
		/* more than a block */
		shape_one(p, &cases[i], DTYPE_F32, &(struct shape){"after a prefix of 70", 70});
		shape_one(p, &cases[i], DTYPE_BF16, &(struct shape){"after a prefix of 5", 5});
	}
}

static void test_attention_f32(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		attention_one(p, &cases[i], DTYPE_F32, 1);
		attention_one(p, &cases[i], DTYPE_F32, 4); /* peaked: one key takes nearly all */
	}
}

static void test_attention_bf16(struct parity *p)
{
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		attention_one(p, &cases[i], DTYPE_BF16, 1);
		attention_one(p, &cases[i], DTYPE_BF16, 4);
	}
}

const struct parity_test parity_tests_attention[] = {
	{"attention f32", test_attention_f32},
	{"attention bf16", test_attention_bf16},
	{"attention with a prefix", test_prefix},
	{"attention with windows, caps and biases", test_shapes},
	{NULL, NULL},
};
