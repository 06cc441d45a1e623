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
	s->a = (struct attention){c->n_heads, c->n_kv_heads, c->head_dim,
		1 / sqrtf((float)c->head_dim), c->causal, c->n_seqs, s->q_start, s->q_len, s->k_start,
		s->k_len};
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
	ref_attention_forward(want_o, want_lse, q->v, k->v, v->v, &s.a);

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
	ref_attention_backward(want_dq, want_dk, want_dv, do_->v, q->v, k->v, v->v, &s.a);
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
	{NULL, NULL},
};
