#pragma once
/* What the files of operations share: tensors a node makes, parts of a matrix. */

#include <assert.h>

#include "engine/graph.h"

/* A tensor with the rows of t. */
static inline int rows_like(struct graph *g, int t, enum dtype dtype, int64_t cols,
	enum recompute recompute)
{
	struct tensor x = g->tensors[t];
	return x.rows == ROWS_FIXED ? graph_tensor_fixed(g, dtype, x.n_rows, cols, recompute)
								: graph_tensor(g, dtype, x.rows, cols, recompute);
}

/* The same in the activation's dtype. */
static inline int act(struct graph *g, int t, int64_t cols, enum recompute recompute)
{
	return rows_like(g, t, g->dtype, cols, recompute);
}

/* A tensor of t's shape. */
static inline int like(struct graph *g, int t, enum dtype dtype, enum recompute recompute)
{
	return rows_like(g, t, dtype, g->tensors[t].cols, recompute);
}

/* The token ids of t's rows. */
static inline const int32_t *run_ids(const struct run *r, int t)
{
	return r->g->tensors[t].rows == ROWS_SOURCE ? r->source.ids : r->ids;
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
