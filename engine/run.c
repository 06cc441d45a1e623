#include <assert.h>

#include "engine/graph.h"
#include "util/util.h"

struct mat run_mat(const struct run *r, int t)
{
	if (t == NONE) {
		return (struct mat){.dtype = r->g->dtype};
	}
	const struct tensor *x = &r->g->tensors[t];
	int64_t rows = tensor_rows(r->g, t);
	if (x->rows == ROWS_TOKENS || x->rows == ROWS_SOURCE) {
		rows = x->rows == ROWS_TOKENS ? r->rows : r->source.rows;
	}
	return (struct mat){
		.data = r->region + x->offset,
		.dtype = x->dtype,
		.rows = rows,
		.cols = x->cols,
		.stride = x->cols,
	};
}

struct mat run_param(const struct run *r, int p)
{
	if (p == NONE) {
		return (struct mat){.dtype = r->g->dtype};
	}
	const struct param *x = &r->g->params[p];
	return (struct mat){
		.data = (uint8_t *)r->params + x->offset * dtype_size(r->g->dtype),
		.dtype = r->g->dtype,
		.rows = x->rows,
		.cols = x->cols,
		.stride = x->cols,
	};
}

struct mat run_grad(const struct run *r, int p)
{
	if (p == NONE) {
		return (struct mat){.dtype = DTYPE_F32};
	}
	const struct param *x = &r->g->params[p];
	return (struct mat){
		.data = r->grads + x->offset,
		.dtype = DTYPE_F32,
		.rows = x->rows,
		.cols = x->cols,
		.stride = x->cols,
	};
}

int run_prepare(struct run *r, struct errmsg *err)
{
	for (int i = 0; i < r->g->n_nodes; i++) {
		const struct node *n = &r->g->nodes[i];
		int res = n->op->prepare ? n->op->prepare(r, n, err) : 0;
		if (res != 0) {
			return res;
		}
	}
	return 0;
}

void run_nodes(struct run *r, int first, int end)
{
	assert(r->rows > 0 && r->rows <= r->g->tokens);
	for (int i = first; i < end; i++) {
		const struct node *n = &r->g->nodes[i];
		n->op->run(r, n);
	}
}
