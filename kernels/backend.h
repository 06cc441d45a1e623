#pragma once
/* What a backend fills in: one table of whole-tensor operations, seen by kernels.c and the backends
 * alone. The wrappers in kernels.c have checked dtypes and shapes and returned early on empty
 * tensors, so an implementation may take both for granted. */

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct backend_ops {
	void (*free)(struct backend *b);
	void *(*alloc)(struct backend *b, size_t bytes);
	void (*free_memory)(struct backend *b, void *p, size_t bytes);
	void (*upload)(struct backend *b, void *dst, const void *src, size_t bytes);
	void (*download)(struct backend *b, void *dst, const void *src, size_t bytes);
	void *(*host_view)(struct backend *b, void *p); /* NULL: memory of its own */
	int (*sync)(struct backend *b, struct errmsg *err);
	double (*measure_gflops)(struct backend *b, enum dtype dtype);

	size_t (*packed_weight_bytes)(struct backend *b, int64_t out, int64_t in, enum dtype dtype,
		unsigned uses);
	int (*packed_weight_new)(struct packed_weight **ret, struct backend *b, const float *src,
		int64_t out, int64_t in, enum dtype dtype, unsigned uses, struct errmsg *err);
	void (*packed_weight_free)(struct packed_weight *w);
	int (*linear_prepare)(struct backend *b, int64_t out, int64_t in, enum dtype dtype,
		unsigned uses, int64_t max_rows, struct errmsg *err);
	void (*linear_forward)(struct backend *b, struct mat y, struct mat x,
		const struct packed_weight *w, const float *bias);
	void (*linear_backward)(struct backend *b, struct mat dx, struct mat dy,
		const struct packed_weight *w, bool accumulate);

	void (*matmul)(struct backend *b, struct mat c, struct mat a, bool trans_a, struct mat b_,
		bool trans_b, float alpha, float beta);
	int (*matmul_prepare)(struct backend *b, int64_t m, int64_t n, int64_t k, bool trans_a,
		bool trans_b, enum dtype ab_dtype, enum dtype c_dtype, struct errmsg *err);
	void (*bias_backward)(struct backend *b, float *db, struct mat dy);

	void (*fill_zero)(struct backend *b, struct mat x);
	void (*cast)(struct backend *b, struct mat dst, struct mat src);
	void (*add)(struct backend *b, struct mat y, struct mat a, struct mat c);
	void (*add_scaled)(struct backend *b, struct mat y, struct mat a, struct mat c, float scale);
	void (*bias_add)(struct backend *b, struct mat y, const void *bias);
	void (*dropout)(struct backend *b, struct mat y, struct mat x, float p, struct rng_key key,
		bool accumulate);
	void (*embedding_forward)(struct backend *b, struct mat y, const int32_t *ids,
		struct mat table);
	void (*embedding_backward)(struct backend *b, struct mat dtable, const int32_t *ids,
		struct mat dy);
	void (*virtual_tokens_forward)(struct backend *b, struct mat y, const int32_t *ids,
		struct mat table);
	void (*virtual_tokens_backward)(struct backend *b, struct mat dtable, const int32_t *ids,
		struct mat dy);
	void (*rmsnorm_forward)(struct backend *b, struct mat y, struct mat sum, float *rstd,
		struct mat x, struct mat delta, const void *w, float eps, bool one_plus);
	void (*rmsnorm_backward)(struct backend *b, struct mat dx, float *dw, struct mat dy,
		struct mat dsum, struct mat sum, const float *rstd, const void *w, bool one_plus);
	void (*layernorm_forward)(struct backend *b, struct mat y, struct mat sum, float *stats,
		struct mat x, struct mat delta, const void *w, const void *bias, float eps);
	void (*layernorm_backward)(struct backend *b, struct mat dx, float *dw, float *dbias,
		struct mat dy, struct mat dsum, struct mat sum, const float *stats, const void *w);
	void (*rope)(struct backend *b, struct mat x, const int32_t *positions, const float *cos_sin,
		int64_t n_heads, int64_t head_dim, int64_t rotary_dim, bool inverse);
	void (*swiglu_forward)(struct backend *b, struct mat h, struct mat gate, struct mat up);
	void (*swiglu_backward)(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
		struct mat gate, struct mat up);
	void (*scale_columns)(struct backend *b, struct mat y, struct mat x, const void *l);
	void (*scale_columns_backward)(struct backend *b, struct mat dx, float *dl, struct mat dy,
		struct mat x, const void *l);
	void (*activation_forward)(struct backend *b, struct mat y, struct mat x,
		enum activation kind);
	void (*activation_backward)(struct backend *b, struct mat dx, struct mat dy, struct mat x,
		enum activation kind);
	/* Of other kinds than SILU, which is SwiGLU. */
	void (*gated_forward)(struct backend *b, struct mat h, struct mat gate, struct mat up,
		enum activation kind);
	void (*gated_backward)(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
		struct mat gate, struct mat up, enum activation kind);
	void (*softcap)(struct backend *b, struct mat x, float cap);
	void (*dora_forward)(struct backend *b, struct mat y, struct mat u, const void *m,
		const float *norms, const void *bias);
	void (*dora_backward)(struct backend *b, struct mat du, float *dm, float *dbias,
		struct mat dy, struct mat u, const void *m, const float *norms, const void *bias);
	void (*embedding_columns_forward)(struct backend *b, struct mat h, const int32_t *ids,
		struct mat a);
	void (*embedding_columns_backward)(struct backend *b, struct mat da, const int32_t *ids,
		struct mat dh);
	void (*low_rank_row_norms)(struct backend *b, float *norms, const float *w_squares,
		struct mat wa, struct mat aa, struct mat b_, float scale);
	void (*lstm_forward)(struct backend *b, struct mat h, struct mat gates, struct mat cell,
		struct mat xg, struct mat w, struct mat bias, bool reverse);
	void (*lstm_backward)(struct backend *b, struct mat dxg, struct mat dw, struct mat dbias,
		struct mat dh, struct mat h, struct mat gates, struct mat cell, struct mat w,
		bool reverse);

	size_t (*attention_workspace)(struct backend *b, const struct attention *a, int64_t max_rows,
		int64_t max_seqs);
	void (*attention_forward)(struct backend *b, struct mat o, float *lse, struct mat q,
		struct mat k, struct mat v, const struct attention *a, void *workspace);
	void (*attention_backward)(struct backend *b, struct mat dq, struct mat dk, struct mat dv,
		struct mat do_, struct mat o, const float *lse, struct mat q, struct mat k, struct mat v,
		const struct attention *a, void *workspace);

	size_t (*lm_head_workspace)(struct backend *b, int64_t vocab_size, int64_t hidden_size,
		enum dtype dtype, int64_t max_rows, int64_t rank);
	void (*lm_head_loss)(struct backend *b, struct mat dx, double *loss_sum, struct mat x,
		const int32_t *targets, const struct lm_head *h, float grad_scale, bool loss_only,
		void *workspace);

	double (*sum_squares)(struct backend *b, const float *x, int64_t n);
	void (*adamw_step)(struct backend *b, float *p, float *m, float *v, const float *g, int64_t n,
		const struct adamw *a);
};

/* First member of a backend's own struct. The strings are the backend's and live as long as it. */
struct backend {
	const struct backend_ops *ops;
	const char *name;
	const char *device;
	const char *fingerprint;
	unsigned n_threads;
};

/* First member of a backend's own packed weight. */
struct packed_weight {
	struct backend *backend;
	int64_t out, in;
	enum dtype dtype;
	unsigned uses;
};

/*
 * The CPU backend compiled for a named instruction set: "avx512bf16", "avx512", "avx2", "baseline";
 * NULL: the best this processor has. For tests, which must see every variant. STATUS_UNAVAILABLE
 * when the processor or the build does not have it.
 */
int backend_cpu_new_isa(struct backend **ret, const char *isa, unsigned n_threads,
	struct errmsg *err);

#ifdef __cplusplus
}
#endif
