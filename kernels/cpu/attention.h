#pragma once
/* What the forward and the backward pass of attention share: blocks, their packing, items of work. */

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

#define BQ 64 /* queries of a block: lanes of vectors */
#define BK 64 /* keys of a block */
#define GROUP 4
#define LOG2E 1.44269504f

_Static_assert(BQ % (GEMM_NV * VLEN) == 0 && BK % 2 == 0, "blocks must be made of whole tiles");

struct attention_args {
	struct mat o, q, k, v;      /* forward */
	struct mat dq, dk, dv, do_; /* backward */
	float *lse;
	const float *lse_in;
	const struct attention *a;
	struct backend *backend;
	bool dot;       /* bf16 pairs; otherwise blocks are f32 */
	int64_t hd;     /* head_dim, rounded up to whole vectors */
	int64_t *first; /* [n_seqs + 1]: number of the first item of each sequence */
	float *delta;   /* [rows of q, n_heads] */
	float *dk_sum, *dv_sum; /* [rows of k, n_kv_heads · hd], f32 */
	bool shaped;            /* scores are capped or have a bias */
	float *by_distance;     /* [n_heads, 2 · reach + 1]: the bias · log2(e) */
	double *dbias;          /* [threads, n_heads, buckets]; NULL: not wanted */
};

/* One sequence under one key/value head, and a block of queries and one of keys in it. */
struct attention_block {
	int64_t s, kv_head;
	int64_t head, n_heads; /* query heads worked on together */
	int64_t i0, rows;      /* queries */
	int64_t lanes;         /* rows, rounded up to whole vectors */
	int64_t k0, keys;
	bool prefix; /* the keys are those of the prefix */
};

static inline int64_t div_up(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

static inline int64_t padded_dim(int64_t head_dim)
{
	return div_up(head_dim, VLEN) * VLEN;
}

/* Steps of a sum over n elements. */
static inline int64_t steps_of(const struct attention_args *p, int64_t n)
{
	return p->dot ? (n + 1) / 2 : n;
}

/* Cuts pieces off a thread's scratch. */
static inline void *take(char **scratch, int64_t n_floats)
{
	void *p = *scratch;
	*scratch += align_up((size_t)n_floats * sizeof(float), 64);
	return p;
}

/* Address of one head of a row. */
static inline char *head_at(struct mat m, int64_t row, int64_t head, int64_t head_dim)
{
	bool bf16 = m.dtype == DTYPE_BF16;
	return act_at_mut(m.data, row * m.stride + head * head_dim, bf16);
}

/* Queries before this one (counted from the start of the sequence) do not see key k0. */
static inline int64_t first_query(const struct attention *a, int64_t s, int64_t k0)
{
	return a->causal ? max_i64(0, k0 - (a->k_len[s] - a->q_len[s])) : 0;
}

/* The keys that query i, and so all before it, may see. */
static inline int64_t visible_keys(const struct attention *a, int64_t s, int64_t i)
{
	return a->causal ? min_i64(a->k_len[s], i + 1 + a->k_len[s] - a->q_len[s]) : a->k_len[s];
}

/* Position of the block's first query less that of its first key. */
static inline int64_t block_distance(const struct attention *a, const struct attention_block *b)
{
	int64_t key = b->prefix ? b->k0 - a->prefix_len : b->k0;
	return b->i0 + a->k_len[b->s] - a->q_len[b->s] - key;
}

/* Whether the window hides all of the block's keys from all of its queries. */
static inline bool outside_window(const struct attention *a, const struct attention_block *b)
{
	return a->window > 0 && block_distance(a, b) - (b->keys - 1) >= a->window;
}

/* Whether some of the block's keys are hidden from some of its queries. */
static inline bool masked_block(const struct attention *a, const struct attention_block *b)
{
	return (a->causal && !b->prefix && visible_keys(a, b->s, b->i0) < b->k0 + b->keys) ||
		(a->window > 0 && block_distance(a, b) + b->lanes > a->window);
}

/* ---- products ------------------------------------------------------------------------------ */

/* c[m, n] = or += product, f32, n a multiple of VLEN. */
struct block_product {
	struct gemm g;
	float *c;
	int64_t c_stride;
	bool accumulate;
};

ALWAYS_INLINE void block_tile(const struct block_product *p, int64_t j, int nv, bool dot, int64_t i,
	int mr)
{
	gemm_sums sum;
	float *c = p->c + i * p->c_stride + j;
#pragma GCC unroll 12
	for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
		for (int v = 0; v < nv; v++) {
			sum[r][v] = p->accumulate ? vf_load(c + r * p->c_stride + v * VLEN) : vf_set(0);
		}
	}
	gemm_tile(sum, &p->g, i, j, mr, nv, dot);
#pragma GCC unroll 12
	for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
		for (int v = 0; v < nv; v++) {
			vf_store(c + r * p->c_stride + v * VLEN, sum[r][v]);
		}
	}
}

ALWAYS_INLINE void block_columns(const struct block_product *p, int64_t m, int64_t n, bool dot)
{
	int64_t j = 0;
	for (; j + GEMM_NV * VLEN <= n; j += GEMM_NV * VLEN) {
		GEMM_FOR_ROWS(m, GEMM_ROWS(GEMM_NV), block_tile, p, j, GEMM_NV, dot);
	}
#if GEMM_NV >= 4
	if (j + 2 * VLEN <= n) {
		GEMM_FOR_ROWS(m, GEMM_ROWS(2), block_tile, p, j, 2, dot);
		j += 2 * VLEN;
	}
#endif
	if (j < n) {
		GEMM_FOR_ROWS(m, GEMM_ROWS(1), block_tile, p, j, 1, dot);
	}
}

void CPU_FN(attention_product)(const struct block_product *p, int64_t m, int64_t n, bool dot);

/* ---- blocks in and out of scratch (attention_blocks.c) ------------------------------------- */

/*
 * Rows [row, row + rows) of one head of m as a right operand summed over head_dim: dst[steps of
 * head_dim, lanes], lanes being the rows. `temp`: BQ · hd floats.
 */
void CPU_FN(attention_pack_lanes)(float *dst, const struct attention_args *p, struct mat m,
	int64_t row, int64_t rows, int64_t lanes, int64_t head, float *temp);

/* The same rows as a right operand summed over rows: dst[steps of rows, hd]. */
void CPU_FN(attention_pack_rows)(float *dst, const struct attention_args *p, struct mat m,
	int64_t row, int64_t rows, int64_t head);

/* The same rows as a left operand: g->a, row by row, summed over head_dim; where they lie if they can
 * be used so, else converted into temp[rows, hd]. */
void CPU_FN(attention_left)(struct gemm *g, const struct attention_args *p, struct mat m,
	int64_t row, int64_t rows, int64_t head, float *temp);

/* Their transpose as a left operand, summed over rows. */
void CPU_FN(attention_left_transposed)(struct gemm *g, const struct attention_args *p, struct mat m,
	int64_t row, int64_t rows, int64_t head, float *temp);

/* One head of rows of m = src[hd, BQ]ᵀ · factor (by row; NULL: 1). */
void CPU_FN(attention_store_transposed)(struct mat m, int64_t row, int64_t rows, int64_t head,
	int64_t head_dim, const float *src, const float *factor);

/* ---- caps and biases (attention_scores.c) --------------------------------------------------- */

/* Bytes of workspace for the bias, by the table's rows and the reach alone. */
size_t CPU_FN(attention_bias_bytes)(const struct backend *b, const struct attention *a);

/* Fills by_distance; zeroes dbias where it is wanted. `at`: their part of the workspace. */
void CPU_FN(attention_bias_begin)(struct attention_args *p, void *at);

/* From products of queries and keys to what the softmax is of, times log2(e): scaled, capped, biased. */
void CPU_FN(attention_shape_scores)(float *scores, const struct attention_args *p,
	const struct attention_block *b, int64_t head);

/* Adds d[keys, BQ], the gradient of a block's shaped scores, to thread `part`'s sums. */
void CPU_FN(attention_bias_add)(const struct attention_args *p, const struct attention_block *b,
	int64_t head, const float *d, unsigned part);

/* The sums of all threads, in their order, to the table's gradient. */
void CPU_FN(attention_bias_finish)(const struct attention_args *p);

/* ---- items --------------------------------------------------------------------------------- */

/* Numbers items so that each sequence has per_block for every `block` of its length. Returns how many
 * there are. */
int64_t CPU_FN(attention_number)(const struct attention_args *p, const int32_t *lengths,
	int64_t block, int64_t per_block);

/* The sequence of an item. */
int64_t CPU_FN(attention_sequence)(const struct attention_args *p, int64_t item);

/* Cuts the workspace of a call with q_rows and k_rows rows. */
void CPU_FN(attention_cut)(struct attention_args *p, void *workspace, int64_t q_rows,
	int64_t k_rows);
