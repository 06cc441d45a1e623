#pragma once
/*
 * The operations of the engine on whole tensors, on any backend.
 *
 * Rows are tokens. A microbatch is `rows` tokens of several sequences laid end to end; nothing is
 * padded, and no operation mixes rows of different sequences. Every function here checks dtypes and
 * shapes by assert() (a mismatch is a bug of the engine, never a matter of input) and calls the
 * backend's own.
 *
 * Conventions. Outputs first, then inputs, then sizes and scalars. Gradients of parameters are added
 * to (+=), gradients of activations are assigned (=) unless the function says otherwise. "act" is
 * the dtype of activations, f32 or bf16, the same for all tensors of a call; statistics, losses and
 * gradients of parameters are f32. Whatever the dtype, reductions are in f32 or wider and in an
 * order fixed by shapes and thread count alone, so equal inputs give equal bits.
 *
 * None of these functions allocates, on host or device, except those whose comment says so.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/errmsg.h"

#ifdef __cplusplus
extern "C" {
#endif

enum dtype {
	DTYPE_F32,
	DTYPE_BF16,
	DTYPE_I32,
};

size_t dtype_size(enum dtype dtype);
const char *dtype_name(enum dtype dtype); /* "f32", "bf16", "i32" */

/* A row-major matrix, or part of one: element (i, j) is at data[i * stride + j]. Borrowed memory of
 * the backend's device. */
struct mat {
	void *data;
	enum dtype dtype;
	int64_t rows, cols;
	int64_t stride; /* in elements, >= cols */
};

/* Round to nearest even; NaN stays NaN. */
uint16_t bf16_from_f32(float f);
static inline float bf16_to_f32(uint16_t h)
{
	union {
		uint32_t u;
		float f;
	} v = {(uint32_t)h << 16};
	return v.f;
}

/* ---- backends and memory ------------------------------------------------------------------- */

struct backend;

/* The CPU, with n_threads worker threads (0: one a core). Allocates. */
int backend_cpu_new(struct backend **ret, unsigned n_threads, struct errmsg *err);
void backend_free(struct backend *b);

const char *backend_name(const struct backend *b);   /* "cpu" */
const char *backend_device(const struct backend *b); /* for people: processor, instruction set, libraries */
unsigned backend_threads(const struct backend *b);

/* A string that changes whenever results may change bit by bit: device, library versions, instruction
 * set, thread count. Kept with checkpoints. */
const char *backend_fingerprint(const struct backend *b);

/* Memory of the device, 64-byte aligned, zeroed and touched, so that it is really there. NULL when
 * there is none. These allocate, and backend_free_memory() gives back. */
void *backend_alloc(struct backend *b, size_t bytes);
void backend_free_memory(struct backend *b, void *p, size_t bytes);

/* Copies between host and device memory; waits for them. */
void backend_upload(struct backend *b, void *dst, const void *src, size_t bytes);
void backend_download(struct backend *b, void *dst, const void *src, size_t bytes);
/* Device memory as the host sees it, to be read and written in place between backend_sync() and the
 * next operation; NULL where the host cannot. */
void *backend_host_view(struct backend *b, void *p);

/* Waits for all work. A positive status when the device has failed. */
int backend_sync(struct backend *b, struct errmsg *err);

/* Measured speed of a large product of random matrices, in GFLOP/s; takes about 50 ms. Allocates. */
double backend_measure_gflops(struct backend *b, enum dtype dtype);

/* ---- frozen weights ------------------------------------------------------------------------ */

/*
 * A frozen matrix W[out, in] of a linear layer, kept in the layout the products like best, where
 * they need it one copy for y = x·Wᵀ and one for dx = dy·W. The bytes are known before it is made.
 */
struct packed_weight;

enum packed_use {
	PACKED_FORWARD = 1,
	PACKED_BACKWARD = 2,
};

/* Bytes of device memory for a weight of this shape; allocates nothing that stays. */
size_t packed_weight_bytes(struct backend *b, int64_t out, int64_t in, enum dtype dtype, unsigned uses);

/* Packs src[out, in] (f32, host memory, row-major) into `dtype`, rounding to nearest even.
 * `uses`: a set of enum packed_use. Allocates. Products need linear_prepare() for the shape first. */
int packed_weight_new(struct packed_weight **ret, struct backend *b, const float *src, int64_t out,
	int64_t in, enum dtype dtype, unsigned uses, struct errmsg *err);
void packed_weight_free(struct packed_weight *w);
int64_t packed_weight_out(const struct packed_weight *w);
int64_t packed_weight_in(const struct packed_weight *w);

/* Makes ready what products of up to max_rows rows with such weights need (compiled kernels,
 * workspace), so that nothing is allocated later. Idempotent. Allocates. */
int linear_prepare(struct backend *b, int64_t out, int64_t in, enum dtype dtype, unsigned uses,
	int64_t max_rows, struct errmsg *err);

/* y[T,out] = x[T,in]·Wᵀ + bias[out]; bias f32 or NULL. y and x are act; y may be f32 where x is bf16
 * (logits). */
void linear_forward(struct backend *b, struct mat y, struct mat x, const struct packed_weight *w,
	const float *bias);

/* dx[T,in] = dy[T,out]·W, or += with `accumulate`. */
void linear_backward(struct backend *b, struct mat dx, struct mat dy, const struct packed_weight *w,
	bool accumulate);

/* ---- small or trainable products ----------------------------------------------------------- */

/*
 * c[m,n] = alpha · op(a)·op(b) + beta · c, with op a transposition where trans_* is set; beta is 0
 * or 1. a and b share a dtype; c is of the same or f32. For low-rank factors (n or m or k small)
 * and the gradients of weights.
 */
void matmul(struct backend *b, struct mat c, struct mat a, bool trans_a, struct mat b_, bool trans_b,
	float alpha, float beta);

/* Makes products of these sizes allocate nothing later. Idempotent. Allocates. */
int matmul_prepare(struct backend *b, int64_t m, int64_t n, int64_t k, bool trans_a, bool trans_b,
	enum dtype ab_dtype, enum dtype c_dtype, struct errmsg *err);

/* db[n] += sum over rows of dy[T,n]; f32. */
void bias_backward(struct backend *b, float *db, struct mat dy);

/* ---- element-wise and rows ----------------------------------------------------------------- */

void fill_zero(struct backend *b, struct mat x);
void cast(struct backend *b, struct mat dst, struct mat src); /* f32 <-> bf16, or a copy */
void add(struct backend *b, struct mat y, struct mat a, struct mat c); /* y = a + c; y may be a or c */
/* y = a + scale · c; y may be a or c. a.data NULL: y = scale · c. */
void add_scaled(struct backend *b, struct mat y, struct mat a, struct mat c, float scale);
/* y[T,d] += bias[d] in every row; bias act. */
void bias_add(struct backend *b, struct mat y, const void *bias);

/*
 * Philox4x32-10 keyed by (seed, stream), counter = element: no state, the same for every backend and
 * thread count. Element i of a tensor uses word i % 4 of block i / 4. `stream` names step and
 * purpose; see engine/train/.
 */
struct rng_key {
	uint64_t seed;
	uint64_t stream;
};

/* The bits for one element. */
uint32_t rng_bits(struct rng_key key, uint64_t element);

/* y = x · keep / (1 - p), keep = (uniform of the element's bits >= p); elements are numbered row by
 * row. The backward pass is the same function on dy; with accumulate y += …. */
void dropout(struct backend *b, struct mat y, struct mat x, float p, struct rng_key key,
	bool accumulate);

/* y[T,d] = table[ids[T], d]; table act. An id below 0 is a virtual token, -1 - i the i-th: its row of y
 * becomes 0, for virtual_tokens_forward() to fill. */
void embedding_forward(struct backend *b, struct mat y, const int32_t *ids, struct mat table);
/* dtable[V,d] += dy[T,d] by ids, in an order fixed by ids; f32. Rows of virtual tokens are left out. */
void embedding_backward(struct backend *b, struct mat dtable, const int32_t *ids, struct mat dy);

/* Rows of y[T,d] whose id is below 0 = table[-1 - id, d], the soft prompt (act); the other rows stay. */
void virtual_tokens_forward(struct backend *b, struct mat y, const int32_t *ids, struct mat table);
/* dtable[n,d] += rows of dy[T,d] whose id is below 0, in the order of rows; f32. */
void virtual_tokens_backward(struct backend *b, struct mat dtable, const int32_t *ids,
	struct mat dy);

/*
 * RMSNorm fused with the residual: sum = x + delta (delta.data NULL: sum is x and is not written),
 * rstd[T] = 1/sqrt(mean(sum²) + eps), y = w · (sum · rstd). Zhang & Sennrich 2019; in bf16 as
 * transformers' LlamaRMSNorm does it: normalised in f32, rounded, then multiplied by w (bf16).
 * w[d] is act. `one_plus`: y = (1 + w) · …, rounded once, as GemmaRMSNorm.
 */
void rmsnorm_forward(struct backend *b, struct mat y, struct mat sum, float *rstd, struct mat x,
	struct mat delta, const void *w, float eps, bool one_plus);
/*
 * dx[T,d] = gradient by `sum` given dy, plus dsum (the gradient that reaches the sum by the residual
 * path; data NULL: none). dx may be dsum or dy. dw[d] += …, or NULL for a frozen norm.
 */
void rmsnorm_backward(struct backend *b, struct mat dx, float *dw, struct mat dy, struct mat dsum,
	struct mat sum, const float *rstd, const void *w, bool one_plus);

/*
 * LayerNorm fused with the residual, as rmsnorm_forward(): y = w · (sum − mean) · rstd + bias, with
 * stats[T, 2] = mean and rstd = 1/sqrt(mean((sum − mean)²) + eps) of each row. Ba et al. 2016; in bf16
 * rounded once, as torch does it. w[d] and bias[d] (or NULL) are act.
 */
void layernorm_forward(struct backend *b, struct mat y, struct mat sum, float *stats, struct mat x,
	struct mat delta, const void *w, const void *bias, float eps);
/* As rmsnorm_backward(); dbias[d] += …, or NULL. */
void layernorm_backward(struct backend *b, struct mat dx, float *dw, float *dbias, struct mat dy,
	struct mat dsum, struct mat sum, const float *stats, const void *w);

/*
 * Rotary position embedding in place, transformers' half-split form: x is [T, heads·head_dim], and the
 * first rotary_dim elements of each head turn; cos_sin[max_positions, rotary_dim]: cos in the first half
 * of a row, sin in the second, f32. `inverse` multiplies by the transpose, which is the backward pass.
 * Su et al. 2021.
 */
void rope(struct backend *b, struct mat x, const int32_t *positions, const float *cos_sin,
	int64_t n_heads, int64_t head_dim, int64_t rotary_dim, bool inverse);

/* h = silu(gate) · up. Shazeer 2020. */
void swiglu_forward(struct backend *b, struct mat h, struct mat gate, struct mat up);
/* dgate and dup from dh; h is recomputed. dgate may be gate's memory, dup may be up's. */
void swiglu_backward(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
	struct mat gate, struct mat up);

/* y[T,d] = x ∘ l: every row times l[d] (act). y may be x. */
void scale_columns(struct backend *b, struct mat y, struct mat x, const void *l);
/* dx[T,d] = dy ∘ l (data NULL: not wanted; it may be dy or x); dl[d] += Σ over rows of dy ∘ x, f32 (NULL:
 * not wanted). */
void scale_columns_backward(struct backend *b, struct mat dx, float *dl, struct mat dy, struct mat x,
	const void *l);

/* Those of transformers' ACT2FN and of AdapterHub's Activation_Function_Class. GELU is the exact one
 * (Hendrycks & Gimpel 2016), GELU_NEW its tanh form, LEAKY_RELU has slope 0.01. */
enum activation {
	ACTIVATION_RELU,
	ACTIVATION_GELU,
	ACTIVATION_GELU_NEW,
	ACTIVATION_SILU,
	ACTIVATION_TANH,
	ACTIVATION_SIGMOID,
	ACTIVATION_LEAKY_RELU,
};

/* By name ("gelu_new", "swish", …; letter case does not matter); false for an unknown one. */
bool activation_from_name(const char *name, enum activation *ret);
const char *activation_name(enum activation kind); /* one that both libraries know */

void activation_forward(struct backend *b, struct mat y, struct mat x, enum activation kind);
/* dx = dy · f'(x); dx may be dy or x. */
void activation_backward(struct backend *b, struct mat dx, struct mat dy, struct mat x,
	enum activation kind);

/* h = f(gate) · up: GEGLU, ReGLU and the like; f(gate) is rounded to the dtype before the product. Shazeer
 * 2020. With SILU it is swiglu_forward(). */
void gated_forward(struct backend *b, struct mat h, struct mat gate, struct mat up,
	enum activation kind);
/* As swiglu_backward(). */
void gated_backward(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
	struct mat gate, struct mat up, enum activation kind);

/* x = cap · tanh(x / cap), f32, in place. */
void softcap(struct backend *b, struct mat x, float cap);

/*
 * norms[i] = ‖row i of W + scale · B·A‖₂ for W[out, in], A[r, in], B[out, r], without W itself: given
 * w_squares[out], the squared norms of W's rows, wa[r, out] = A·Wᵀ (a linear_forward() of A) and
 * aa[r, r] = A·Aᵀ. All f32, b act. DoRA's divisor (Liu et al. 2024).
 */
void low_rank_row_norms(struct backend *b, float *norms, const float *w_squares, struct mat wa,
	struct mat aa, struct mat b_, float scale);

/*
 * One layer of LSTM in one direction over n rows (Hochreiter & Schmidhuber 1997; gates and their order
 * i, f, g, o as torch.nn.LSTM): h[n, d] (act) from xg[n, 4d] = x·W_ihᵀ + b_ih (act), w[4d, d] and
 * bias[1, 4d] of the recurrent part (act). gates[n, 4d] and cell[n, d], f32, are for the backward
 * pass. `reverse`: from the last row to the first.
 */
void lstm_forward(struct backend *b, struct mat h, struct mat gates, struct mat cell, struct mat xg,
	struct mat w, struct mat bias, bool reverse);
/* dxg = …; dw[4d, d] and dbias[1, 4d], f32, += …. */
void lstm_backward(struct backend *b, struct mat dxg, struct mat dw, struct mat dbias, struct mat dh,
	struct mat h, struct mat gates, struct mat cell, struct mat w, bool reverse);
enum { LSTM_MAX_SIZE = 65536 }; /* of d */

/*
 * y[T,d] = (m / norms) ∘ u + (1 - m / norms) ∘ bias in every row: DoRA's output, given that of the
 * product with W + s·B·A (bias included). m[d] and bias[d] are act, norms[d] f32; bias NULL: none. y may
 * be u. Liu et al. 2024, PEFT's tuners/lora/dora.py.
 */
void dora_forward(struct backend *b, struct mat y, struct mat u, const void *m, const float *norms,
	const void *bias);
/* du = (m / norms) ∘ dy (it may be dy or u); dm[d] += Σ over rows of dy ∘ (u - bias) / norms; dbias[d] +=
 * what reaches the bias past u, or NULL; f32. The norms are constants. */
void dora_backward(struct backend *b, struct mat du, float *dm, float *dbias, struct mat dy,
	struct mat u, const void *m, const float *norms, const void *bias);

/* h[T,r] = columns of a[r,V] (act) by token: h[t,j] = a[j, ids[t]]; 0 for virtual tokens. */
void embedding_columns_forward(struct backend *b, struct mat h, const int32_t *ids, struct mat a);
/* da[r,V] += dh by ids, in the order of tokens; f32. */
void embedding_columns_backward(struct backend *b, struct mat da, const int32_t *ids, struct mat dh);

/* ---- attention ----------------------------------------------------------------------------- */

/* An addend to attention's scores by the distance of key and query. Raffel et al. 2020, section 2.1. */
struct attention_bias {
	/* bias[buckets, n_heads], act, joins the scaled scores; the backward pass adds to dbias (f32; data
	 * NULL: frozen). */
	struct mat bias, dbias;
	/* Host memory: the row, by (position of the key - position of the query) + reach, for distances of
	 * -reach … reach; what is farther counts as that far. */
	const int32_t *bucket;
	int64_t reach;
};

/*
 * Softmax attention over packed sequences, never storing the scores. Sequence s has its queries at
 * rows [q_start[s], q_start[s] + q_len[s]) of q and its keys at rows [k_start[s], k_start[s] +
 * k_len[s]) of k and v. Causal: query i of a sequence sees its keys 0 … i + k_len - q_len, so that
 * a cache or prefix before the queries is seen by all of them. Key/value head of query head h is
 * h / (n_heads / n_kv_heads). Position of key j is j, of query i it is i + k_len - q_len.
 */
struct attention {
	int64_t n_heads, n_kv_heads, head_dim;
	float scale; /* 1/sqrt(head_dim) in most models */
	bool causal;
	int64_t window; /* > 0, causal alone: of the last `window` positions, its own included; 0: all */
	float softcap;  /* > 0: scaled scores s become softcap · tanh(s / softcap). Gemma Team 2024 */
	struct attention_bias bias; /* bias.bias.data NULL: none; never with softcap */
	int64_t n_seqs;
	const int32_t *q_start, *q_len, *k_start, *k_len; /* host memory, n_seqs each */

	/*
	 * A prefix that comes before the keys of every sequence, at positions -prefix_len … -1, and is seen
	 * by all queries that no window hides it from: k_prefix, v_prefix [prefix_len,
	 * n_kv_heads·head_dim], of q's dtype; 0: none. The backward pass adds to dk_prefix and dv_prefix
	 * (f32; data NULL: not wanted) the sums over all sequences, in their order. Li & Liang 2021.
	 */
	int64_t prefix_len;
	struct mat k_prefix, v_prefix, dk_prefix, dv_prefix;
};

/* Workspace in bytes for calls with up to max_rows rows of q, and of k where a backward pass follows,
 * and max_seqs sequences. */
size_t attention_workspace(struct backend *b, const struct attention *a, int64_t max_rows,
	int64_t max_seqs);

/* o[Tq, n_heads·head_dim], lse[Tq, n_heads] (natural log of the sum of exp of scaled scores; f32;
 * NULL when no backward pass follows). Dao 2023 for the scheme. */
void attention_forward(struct backend *b, struct mat o, float *lse, struct mat q, struct mat k,
	struct mat v, const struct attention *a, void *workspace);
void attention_backward(struct backend *b, struct mat dq, struct mat dk, struct mat dv, struct mat do_,
	struct mat o, const float *lse, struct mat q, struct mat k, struct mat v,
	const struct attention *a, void *workspace);

/* ---- head and loss ------------------------------------------------------------------------- */

/*
 * Language-model head with cross-entropy, in chunks of rows: logits = x·Wᵀ are never held for more
 * than a chunk. Rows with targets[i] < 0 are left out before any product. loss_sum[0] += sum over
 * targets of -log softmax(logits)[target] (f64 accumulator on the host side of the backend's
 * memory); dx[T,d] = grad_scale · gradient of that sum by x, rows without target get 0; dx.data NULL:
 * loss only. grad_scale is 1 / (target tokens of the whole step).
 * In bf16 the logits stay f32 from the product on.
 */
size_t lm_head_workspace(struct backend *b, int64_t vocab_size, int64_t hidden_size,
	enum dtype dtype, int64_t max_rows);
void lm_head_loss(struct backend *b, struct mat dx, double *loss_sum, struct mat x,
	const int32_t *targets, const struct packed_weight *w, float grad_scale, void *workspace);

/*
 * The same with a head that is not just a frozen matrix. W[vocab, d] is `packed`, or, where that is NULL,
 * the plain matrix `w` (act), for a head that is trained; dw (f32; data NULL: frozen) gets += the gradient
 * of grad_scale · the sum of losses. With a.data: logits += scale · (x·Aᵀ)·Bᵀ, A[r, d] and B[vocab, r]
 * act, da and db (f32; data NULL: none) as dw. dx may be absent while gradients of the head are wanted.
 * `loss_only`: none of them.
 */
struct lm_head {
	const struct packed_weight *packed;
	struct mat w, dw;
	struct mat a, da, b, db;
	float scale;
	float softcap; /* > 0: logits become softcap · tanh(logits / softcap) */
};
/* `rank`: r, or 0 without A and B. */
size_t lm_head_adapted_workspace(struct backend *b, int64_t vocab_size, int64_t hidden_size,
	enum dtype dtype, int64_t max_rows, int64_t rank);
void lm_head_adapted_loss(struct backend *b, struct mat dx, double *loss_sum, struct mat x,
	const int32_t *targets, const struct lm_head *h, float grad_scale, bool loss_only,
	void *workspace);

/* ---- optimizer ----------------------------------------------------------------------------- */

/* Sum of squares of n f32 values, in f64, in a fixed order. Waits for the result. */
double sum_squares(struct backend *b, const float *x, int64_t n);

/* One step of AdamW on flat buffers of n f32 values, as torch.optim.AdamW computes it (decoupled
 * decay; Loshchilov & Hutter 2019). Gradients are multiplied by grad_scale first (clipping). `step`
 * counts from 1. */
struct adamw {
	double lr, beta1, beta2, eps, weight_decay, grad_scale;
	int64_t step;
};
void adamw_step(struct backend *b, float *p, float *m, float *v, const float *g, int64_t n,
	const struct adamw *a);

#ifdef __cplusplus
}
#endif
