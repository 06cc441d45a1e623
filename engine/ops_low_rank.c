/* Low-rank updates and dropout. */
#include <assert.h>

#include "engine/ops.h"
#include "engine/train/rng.h"
#include "util/util.h"

/* ---- low-rank update ----------------------------------------------------------------------- */

int graph_low_rank(struct graph *g, int y, int x, const struct low_rank *l)
{
	struct node n = graph_node_init(&op_low_rank);
	n.in[0] = y;
	n.in[1] = x;
	n.low_rank = *l;
	n.out[0] = act(g, y, g->tensors[y].cols, g->region);
	n.out[1] = act(g, y, l->rank, g->region);
	graph_append(g, &n, g->trainable);
	return n.out[0];
}

static void low_rank_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	if (autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], dy);
	}
	/* The product's own gradient is that of the sum, so its node finds it; and adds to dx. */
	bool needs_dx = autodiff_needs(ad, n->in[1]);
	struct node b = graph_node_init(&op_low_rank_backward);
	b.low_rank = n->low_rank;
	b.in[0] = dy;
	b.in[1] = autodiff_use(ad, n->out[1]);
	b.in[2] = autodiff_use(ad, n->in[1]);
	b.in[3] = needs_dx ? autodiff_grad(ad, n->in[1]) : NONE;
	b.out[0] = act(g, dy, n->low_rank.rank, RECOMPUTE_NEVER);
	b.out[1] = needs_dx ? like(g, n->in[1], g->dtype, RECOMPUTE_NEVER) : NONE;
	graph_append(g, &b, false);
	if (needs_dx) {
		autodiff_set(ad, n->in[1], b.out[1]);
	}
}

static double low_rank_cost(const struct graph *g, const struct node *n, double a_products)
{
	const struct low_rank *l = &n->low_rank;
	const struct param *a = &g->params[l->a];
	double sum = a_products * (double)l->rank * (double)a->cols;
	for (int i = 0; i < l->n_parts; i++) {
		sum += (double)l->parts[i].r * (double)l->parts[i].cols;
	}
	return 2.0 * (double)tensor_rows(g, n->in[0]) * sum;
}

static double low_rank_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return low_rank_cost(g, n, 1);
}

static int low_rank_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct low_rank *l = &n->low_rank;
	const struct param *a = &r->g->params[l->a];
	enum dtype dt = r->g->dtype;
	int64_t t = tensor_rows(r->g, n->in[0]);
	int res = matmul_prepare(r->backend, t, l->rank, a->cols, false, true, dt, dt, err);
	for (int i = 0; i < l->n_parts && res == 0; i++) {
		res = matmul_prepare(r->backend, t, l->parts[i].cols, l->parts[i].r, false, true, dt, dt,
			err);
	}
	return res;
}

static void low_rank_run(struct run *r, const struct node *n)
{
	const struct low_rank *l = &n->low_rank;
	struct mat y = run_mat(r, n->out[0]), h = run_mat(r, n->out[1]);
	start_from(r, y, run_mat(r, n->in[0]));
	matmul(r->backend, h, run_mat(r, n->in[1]), false, run_param(r, l->a), true, 1, 0);
	for (int i = 0; i < l->n_parts; i++) {
		matmul(r->backend, columns(y, l->parts[i].col, l->parts[i].cols),
			columns(h, l->parts[i].row, l->parts[i].r), false, run_param(r, l->parts[i].b), true,
			l->parts[i].scale, 1);
	}
}

const struct op op_low_rank = {
	.name = "low_rank",
	.backward = low_rank_differentiate,
	.flops = low_rank_flops,
	.prepare = low_rank_ready,
	.run = low_rank_run,
	.inplace = {1u << 0},
};

static double low_rank_backward_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	double b_products = low_rank_cost(g, n, 0);
	return low_rank_cost(g, n, n->out[1] != NONE ? 2 : 1) + b_products;
}

static int low_rank_backward_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct low_rank *l = &n->low_rank;
	int64_t t = tensor_rows(r->g, n->in[0]), in = r->g->params[l->a].cols;
	enum dtype dt = r->g->dtype;
	int res = matmul_prepare(r->backend, l->rank, in, t, true, false, dt, DTYPE_F32, err);
	if (res == 0 && n->out[1] != NONE) {
		res = matmul_prepare(r->backend, t, in, l->rank, false, false, dt, dt, err);
	}
	for (int i = 0; i < l->n_parts && res == 0; i++) {
		int64_t cols = l->parts[i].cols, rank = l->parts[i].r;
		res = matmul_prepare(r->backend, t, rank, cols, false, false, dt, dt, err);
		if (res == 0) {
			res = matmul_prepare(r->backend, cols, rank, t, true, false, dt, DTYPE_F32, err);
		}
	}
	return res;
}

static void low_rank_backward_run(struct run *r, const struct node *n)
{
	const struct low_rank *l = &n->low_rank;
	struct mat dy = run_mat(r, n->in[0]), h = run_mat(r, n->in[1]), x = run_mat(r, n->in[2]);
	struct mat dh = run_mat(r, n->out[0]), dx = run_mat(r, n->out[1]);
	for (int i = 0; i < l->n_parts; i++) {
		struct mat dy_i = columns(dy, l->parts[i].col, l->parts[i].cols);
		struct mat h_i = columns(h, l->parts[i].row, l->parts[i].r);
		struct mat dh_i = columns(dh, l->parts[i].row, l->parts[i].r);
		float scale = l->parts[i].scale;
		matmul(r->backend, run_grad(r, l->parts[i].b), dy_i, true, h_i, false, scale, 1);
		matmul(r->backend, dh_i, dy_i, false, run_param(r, l->parts[i].b), false, scale, 0);
	}
	matmul(r->backend, run_grad(r, l->a), dh, true, x, false, 1, 1);
	if (dx.data) {
		bool accumulate = n->in[3] != NONE;
		if (accumulate) {
			start_from(r, dx, run_mat(r, n->in[3]));
		}
		matmul(r->backend, dx, dh, false, run_param(r, l->a), false, 1, accumulate ? 1 : 0);
	}
}

const struct op op_low_rank_backward = {
	.name = "low_rank_backward",
	.flops = low_rank_backward_flops,
	.prepare = low_rank_backward_ready,
	.run = low_rank_backward_run,
	.inplace = {0, 1u << 3},
};

/* ---- dropout ------------------------------------------------------------------------------- */

int graph_dropout(struct graph *g, int x, float p)
{
	struct node n = graph_node_init(&op_dropout);
	n.in[0] = x;
	n.p = p;
	n.site = g->n_sites++;
	n.out[0] = like(g, x, g->dtype, RECOMPUTE_CHEAP);
	graph_append(g, &n, false);
	return n.out[0];
}

static void dropout_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE || !autodiff_needs(ad, n->in[0])) {
		return;
	}
	struct node b = graph_node_init(&op_dropout_backward);
	b.in[0] = dy;
	b.in[1] = autodiff_grad(ad, n->in[0]);
	b.p = n->p;
	b.site = n->site;
	b.out[0] = like(ad->g, n->in[0], ad->g->dtype, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	autodiff_set(ad, n->in[0], b.out[0]);
}

/* Sequence by sequence: the mask is a function of the sequence's number within the step and of the
 * element's place in the sequence, so that it does not depend on how the step is cut. */
static void dropout_sequences(struct run *r, const struct node *n, struct mat y, struct mat x,
	bool accumulate)
{
	bool source = r->g->tensors[n->in[0]].rows == ROWS_SOURCE;
	const int32_t *start = source ? r->source.seq_start : r->seq_start;
	const int32_t *len = source ? r->source.seq_len : r->seq_len;
	for (int64_t s = 0; s < r->n_seqs; s++) {
		struct rng_key key = {
			.seed = r->seed,
			.stream = rng_stream(RNG_DROPOUT, r->step, (uint64_t)n->site,
				(uint64_t)r->seq_number[s]),
		};
		struct mat ys = y, xs = x;
		size_t row = (size_t)start[s], size = dtype_size(x.dtype);
		ys.data = (uint8_t *)y.data + row * (size_t)y.stride * size;
		xs.data = (uint8_t *)x.data + row * (size_t)x.stride * size;
		ys.rows = xs.rows = len[s];
		dropout(r->backend, ys, xs, n->p, key, accumulate);
	}
}

static void dropout_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]), x = run_mat(r, n->in[0]);
	if (r->training) {
		dropout_sequences(r, n, y, x, false);
	} else {
		cast(r->backend, y, x);
	}
}

const struct op op_dropout = {
	.name = "dropout",
	.backward = dropout_differentiate,
	.run = dropout_run,
};

static void dropout_backward_run(struct run *r, const struct node *n)
{
	struct mat dx = run_mat(r, n->out[0]);
	if (n->in[1] != NONE) {
		start_from(r, dx, run_mat(r, n->in[1]));
	}
	dropout_sequences(r, n, dx, run_mat(r, n->in[0]), n->in[1] != NONE);
}

const struct op op_dropout_backward = {
	.name = "dropout_backward",
	.run = dropout_backward_run,
	.inplace = {1u << 1},
};
