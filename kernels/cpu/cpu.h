#pragma once
/*
 * Inside the CPU backend.
 *
 * The files of operations are compiled once for each instruction set, with CPU_FN(name) giving each
 * copy its own names; ops.c gathers a copy into its table. What does not gain from wider vectors
 * (memory, threads, products by a library) is compiled once.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"

/* Packing buffers of one thread, in bytes; see matmul.c and attention.c. */
#define CPU_SCRATCH_BYTES ((size_t)2 << 20)
#define CPU_MAX_THREADS 1024

struct products;

struct cpu_backend {
	struct backend base;
	const char *isa;
	struct products *products; /* of the library that linear_*.c stands on */
	char *scratch;             /* n_threads pieces of CPU_SCRATCH_BYTES */
	char device[256], fingerprint[256];
};

static inline struct cpu_backend *cpu_backend(struct backend *b)
{
	return (struct cpu_backend *)b;
}

/* ---- threads (parallel.c) ------------------------------------------------------------------ */

/* Work on items [begin, end); `part` numbers the pieces running at the same time, from 0 and below
 * the backend's thread count. */
typedef void cpu_range_fn(const void *args, int64_t begin, int64_t end, unsigned part);

/*
 * Cuts [0, n) into at most one even range a thread, none (but the last) shorter than `grain`, and
 * calls fn on each. The cut depends on n, grain and the thread count of the backend alone, whatever
 * number of threads the system grants. Cheap when all of it is less than two grains: then the caller
 * does it.
 */
void cpu_parallel(struct backend *b, int64_t n, int64_t grain, cpu_range_fn *fn, const void *args);

/* The same for items of uneven cost: part p of P gets items p, p + P, p + 2P, …, one call each. */
void cpu_parallel_cyclic(struct backend *b, int64_t n, cpu_range_fn *fn, const void *args);

/* Makes the calling thread's OpenMP regions, the product library's among them, use exactly the
 * backend's thread count. */
void cpu_enter(struct backend *b);

static inline void *cpu_scratch(struct backend *b, unsigned part)
{
	return cpu_backend(b)->scratch + part * CPU_SCRATCH_BYTES;
}

/* Rows a thread should have at least, so that waking it pays: about 16 thousand elements. */
static inline int64_t cpu_row_grain(int64_t cols)
{
	return cols >= 16384 ? 1 : (16384 + cols - 1) / cols;
}

/* Zeroed, touched, 64-byte aligned memory (huge pages where the system gives them). */
void *cpu_memory_new(size_t bytes);
void cpu_memory_free(void *p, size_t bytes);

/* ---- linear products (linear_onednn.c or linear_own.c) ------------------------------------ */

int cpu_products_new(struct products **ret, struct backend *b, struct errmsg *err);
void cpu_products_free(struct products *p);
/* Name, version and code path of the library, for people and for the fingerprint. */
void cpu_products_describe(char *text, size_t size);

size_t cpu_packed_weight_bytes(struct backend *b, int64_t out, int64_t in, enum dtype dtype,
	unsigned uses);
int cpu_packed_weight_new(struct packed_weight **ret, struct backend *b, const float *src,
	int64_t out, int64_t in, enum dtype dtype, unsigned uses, struct errmsg *err);
void cpu_packed_weight_free(struct packed_weight *w);
int cpu_linear_prepare(struct backend *b, int64_t out, int64_t in, enum dtype dtype, unsigned uses,
	int64_t max_rows, struct errmsg *err);
void cpu_linear_forward(struct backend *b, struct mat y, struct mat x,
	const struct packed_weight *w, const float *bias);
void cpu_linear_backward(struct backend *b, struct mat dx, struct mat dy,
	const struct packed_weight *w, bool accumulate);
double cpu_measure_gflops(struct backend *b, enum dtype dtype);

/* ---- memory and life of the backend (cpu.c) ------------------------------------------------ */

void cpu_free(struct backend *b);
void *cpu_alloc(struct backend *b, size_t bytes);
void cpu_free_memory(struct backend *b, void *p, size_t bytes);
void cpu_copy(struct backend *b, void *dst, const void *src, size_t bytes);
void *cpu_host_view(struct backend *b, void *p);
int cpu_sync(struct backend *b, struct errmsg *err);

/* ---- operations, one copy an instruction set ----------------------------------------------- */

#define CPU_GLUE_(variant, name) cpu_##variant##_##name
#define CPU_GLUE(variant, name) CPU_GLUE_(variant, name)

#ifdef CPU_VARIANT

#define CPU_FN(name) CPU_GLUE(CPU_VARIANT, name)

extern const struct backend_ops CPU_FN(ops);

void CPU_FN(matmul)(struct backend *b, struct mat c, struct mat a, bool trans_a, struct mat b_,
	bool trans_b, float alpha, float beta);
int CPU_FN(matmul_prepare)(struct backend *b, int64_t m, int64_t n, int64_t k, bool trans_a,
	bool trans_b, enum dtype ab_dtype, enum dtype c_dtype, struct errmsg *err);
void CPU_FN(bias_backward)(struct backend *b, float *db, struct mat dy);
void CPU_FN(fill_zero)(struct backend *b, struct mat x);
void CPU_FN(cast)(struct backend *b, struct mat dst, struct mat src);
void CPU_FN(add)(struct backend *b, struct mat y, struct mat a, struct mat c);
void CPU_FN(add_scaled)(struct backend *b, struct mat y, struct mat a, struct mat c, float scale);
void CPU_FN(bias_add)(struct backend *b, struct mat y, const void *bias);
void CPU_FN(dropout)(struct backend *b, struct mat y, struct mat x, float p, struct rng_key key,
	bool accumulate);
void CPU_FN(embedding_forward)(struct backend *b, struct mat y, const int32_t *ids,
	struct mat table);
void CPU_FN(embedding_backward)(struct backend *b, struct mat dtable, const int32_t *ids,
	struct mat dy);
void CPU_FN(virtual_tokens_forward)(struct backend *b, struct mat y, const int32_t *ids,
	struct mat table);
void CPU_FN(virtual_tokens_backward)(struct backend *b, struct mat dtable, const int32_t *ids,
	struct mat dy);
void CPU_FN(rmsnorm_forward)(struct backend *b, struct mat y, struct mat sum, float *rstd,
	struct mat x, struct mat delta, const void *w, float eps, bool one_plus);
void CPU_FN(rmsnorm_backward)(struct backend *b, struct mat dx, float *dw, struct mat dy,
	struct mat dsum, struct mat sum, const float *rstd, const void *w, bool one_plus);
void CPU_FN(layernorm_forward)(struct backend *b, struct mat y, struct mat sum, float *stats,
	struct mat x, struct mat delta, const void *w, const void *bias, float eps);
void CPU_FN(layernorm_backward)(struct backend *b, struct mat dx, float *dw, float *dbias,
	struct mat dy, struct mat dsum, struct mat sum, const float *stats, const void *w);
void CPU_FN(rope)(struct backend *b, struct mat x, const int32_t *positions, const float *cos_sin,
	int64_t n_heads, int64_t head_dim, int64_t rotary_dim, bool inverse);
void CPU_FN(swiglu_forward)(struct backend *b, struct mat h, struct mat gate, struct mat up);
void CPU_FN(swiglu_backward)(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
	struct mat gate, struct mat up);
void CPU_FN(scale_columns)(struct backend *b, struct mat y, struct mat x, const void *l);
void CPU_FN(scale_columns_backward)(struct backend *b, struct mat dx, float *dl, struct mat dy,
	struct mat x, const void *l);
void CPU_FN(activation_forward)(struct backend *b, struct mat y, struct mat x,
	enum activation kind);
void CPU_FN(activation_backward)(struct backend *b, struct mat dx, struct mat dy, struct mat x,
	enum activation kind);
void CPU_FN(gated_forward)(struct backend *b, struct mat h, struct mat gate, struct mat up,
	enum activation kind);
void CPU_FN(gated_backward)(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
	struct mat gate, struct mat up, enum activation kind);
void CPU_FN(softcap)(struct backend *b, struct mat x, float cap);
void CPU_FN(dora_forward)(struct backend *b, struct mat y, struct mat u, const void *m,
	const float *norms, const void *bias);
void CPU_FN(dora_backward)(struct backend *b, struct mat du, float *dm, float *dbias,
	struct mat dy, struct mat u, const void *m, const float *norms, const void *bias);
void CPU_FN(embedding_columns_forward)(struct backend *b, struct mat h, const int32_t *ids,
	struct mat a);
void CPU_FN(embedding_columns_backward)(struct backend *b, struct mat da, const int32_t *ids,
	struct mat dh);
void CPU_FN(low_rank_row_norms)(struct backend *b, float *norms, const float *w_squares,
	struct mat wa, struct mat aa, struct mat b_, float scale);
void CPU_FN(lstm_forward)(struct backend *b, struct mat h, struct mat gates, struct mat cell,
	struct mat xg, struct mat w, struct mat bias, bool reverse);
void CPU_FN(lstm_backward)(struct backend *b, struct mat dxg, struct mat dw, struct mat dbias,
	struct mat dh, struct mat h, struct mat gates, struct mat cell, struct mat w, bool reverse);
size_t CPU_FN(attention_workspace)(struct backend *b, const struct attention *a, int64_t max_rows,
	int64_t max_seqs);
void CPU_FN(attention_forward)(struct backend *b, struct mat o, float *lse, struct mat q,
	struct mat k, struct mat v, const struct attention *a, void *workspace);
void CPU_FN(attention_backward)(struct backend *b, struct mat dq, struct mat dk, struct mat dv,
	struct mat do_, struct mat o, const float *lse, struct mat q, struct mat k, struct mat v,
	const struct attention *a, void *workspace);
size_t CPU_FN(lm_head_workspace)(struct backend *b, int64_t vocab_size, int64_t hidden_size,
	enum dtype dtype, int64_t max_rows, int64_t rank);
void CPU_FN(lm_head_loss)(struct backend *b, struct mat dx, double *loss_sum, struct mat x,
	const int32_t *targets, const struct lm_head *h, float grad_scale, bool loss_only,
	void *workspace);
double CPU_FN(sum_squares)(struct backend *b, const float *x, int64_t n);
void CPU_FN(adamw_step)(struct backend *b, float *p, float *m, float *v, const float *g, int64_t n,
	const struct adamw *a);

#endif
