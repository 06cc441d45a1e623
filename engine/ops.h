#pragma once
/* What the files of operations share: tensors a node makes, parts of a matrix. */

#include <assert.h>

#include "engine/graph.h"

/* A row a token, in the activation's dtype. */
static inline int act(struct graph *g, int64_t cols, enum recompute recompute)
{
	return graph_tensor(g, g->dtype, ROWS_TOKENS, cols, recompute);
}

/* A tensor of t's shape. */
static inline int like(struct graph *g, int t, enum dtype dtype, enum recompute recompute)
{
	struct tensor x = g->tensors[t];
	return x.rows == ROWS_FIXED ? graph_tensor_fixed(g, dtype, x.n_rows, x.cols, recompute)
								: graph_tensor(g, dtype, x.rows, x.cols, recompute);
}

static inline struct mat columns(struct mat m, int64_t col, int64_t cols)
{
	assert(col >= 0 && cols > 0 && col + cols <= m.cols);
	m.data = (uint8_t *)m.data + (size_t)col * dtype_size(m.dtype);
	m.cols = cols;
	return m;
}

/* Readies an output whose node adds to an input: where placement could not give it that input's
 * memory, the input is copied there. */
static inline void start_from(struct run *r, struct mat out, struct mat in)
{
	if (out.data != in.data) {
		cast(r->backend, out, in);
	}
}
