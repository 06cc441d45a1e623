#pragma once
/*
 * The little of oneDNN we use, behind names that do not change from its version 2 to its version 3:
 * layouts, reorders and matrix products with everything fixed beforehand. Functions return 0 or a
 * negative errno.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

struct onednn;        /* engine and stream */
struct onednn_layout; /* a memory descriptor */
struct onednn_matmul; /* a compiled product with its argument objects */
struct onednn_memory; /* memory seen through a layout */

int onednn_new(struct onednn **ret);
void onednn_free(struct onednn *d);
/* "oneDNN 2.6.3 avx512_core_bf16" */
void onednn_describe(char *text, size_t size);

/* A row-major [rows, cols] matrix, or the transpose of a row-major [cols, rows] one. */
int onednn_layout_plain(struct onednn_layout **ret, enum dtype dtype, int64_t rows, int64_t cols,
	bool transposed);
void onednn_layout_free(struct onednn_layout *l);
size_t onednn_layout_bytes(const struct onednn_layout *l);

int onednn_memory_new(struct onednn_memory **ret, struct onednn *d, const struct onednn_layout *l,
	void *data);
void onednn_memory_free(struct onednn_memory *m);

/* Copies from one layout (and dtype) to another of the same shape. Allocates. */
int onednn_reorder(struct onednn *d, const struct onednn_layout *dst_layout, void *dst,
	const struct onednn_layout *src_layout, const void *src);

/* dst[m,n] = or += src[m,k] · weights[k,n] + bias[n]; dst and src row-major without gaps, bias f32. */
struct onednn_matmul_spec {
	int64_t m, n, k;
	enum dtype src_dtype, dst_dtype; /* weights are of src_dtype */
	bool bias, accumulate;
};

/* The layout of weights the library prefers for this product. */
int onednn_matmul_layout(struct onednn_layout **ret, struct onednn *d,
	const struct onednn_matmul_spec *spec);

/* Whether the library has a fast path for the product with weights in this layout. */
bool onednn_matmul_supported(struct onednn *d, const struct onednn_matmul_spec *spec,
	const struct onednn_layout *weights);

int onednn_matmul_new(struct onednn_matmul **ret, struct onednn *d,
	const struct onednn_matmul_spec *spec, const struct onednn_layout *weights);
void onednn_matmul_free(struct onednn_matmul *p);
/* Bytes of workspace, to be given to each run. */
size_t onednn_matmul_workspace(const struct onednn_matmul *p);
int onednn_matmul_run(struct onednn_matmul *p, struct onednn *d, void *dst, const void *src,
	const struct onednn_memory *weights, const float *bias, void *workspace);
