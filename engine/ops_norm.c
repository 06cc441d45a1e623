/* Norms: of rows, with the residual; of heads. */
#include "engine/base.h"
#include "engine/ops.h"
#include "util/util.h"

/* ---- of rows ------------------------------------------------------------------------------- */

static bool trains_norm(const struct graph *g, int weight)
{
	const struct weight *w = &g->weights[weight];
	return w->parts[0].param != NONE || w->parts[0].bias_param != NONE;
}

/* in: x, delta. out: y, sum (where there is a delta), statistics. */
struct normed graph_norm(struct graph *g, int x, int delta, int weight, enum norm_kind kind)
{
	int64_t d = g->weights[weight].cols;
	struct node n = graph_node_init(&op_norm);
	n.in[0] = x;
	n.in[1] = delta;
	n.weight = weight;
	n.norm = kind;
	n.out[0] = act(g, x, d, RECOMPUTE_CHEAP);
	n.out[1] = delta != NONE ? act(g, x, d, g->region) : NONE;
	n.out[2] = rows_like(g, x, DTYPE_F32, kind == NORM_LAYER ? 2 : 1, RECOMPUTE_NEVER);
	graph_append(g, &n, g->trainable && trains_norm(g, weight));
	if (n.out[1] != NONE) {
		/* The weight lies upstream of the norm, not of the sum. */
		g->tensors[n.out[1]].needs_grad = g->tensors[x].needs_grad || g->tensors[delta].needs_grad;
	}
	return (struct normed){n.out[0], delta != NONE ? n.out[1] : x};
}

/* Where the sum is kept, the norm starts from it. */
static void norm_again(struct autodiff *ad, const struct node *original, struct node *copy)
{
	int sum = original->out[1];
	if (sum != NONE && ad->level < ad->g->tensors[sum].recompute) {
		copy->in[0] = sum;
		copy->in[1] = NONE;
		copy->out[1] = NONE;
	}
}

static void norm_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	int sum = n->out[1] != NONE ? n->out[1] : n->in[0];
	int dy = autodiff_grad(ad, n->out[0]);
	int dsum = n->out[1] != NONE ? autodiff_grad(ad, sum) : NONE;
	int dx = dsum;
	bool needs_dx = autodiff_needs(ad, n->in[0]) || autodiff_needs(ad, n->in[1]);
	if (!needs_dx && !trains_norm(g, n->weight)) {
		return;
	}
	if (dy != NONE) {
		/* Where there is no delta, x's gradient by its other uses takes the residual's place. */
		int other = n->out[1] != NONE ? dsum : autodiff_grad(ad, n->in[0]);
		struct node b = graph_node_init(&op_norm_backward);
		b.in[0] = dy;
		b.in[1] = other;
		b.in[2] = autodiff_use(ad, sum);
		b.in[3] = n->out[2];
		b.weight = n->weight;
		b.norm = n->norm;
		b.out[0] = like(g, sum, g->dtype, RECOMPUTE_NEVER);
		graph_append(g, &b, false);
		dx = b.out[0];
		if (n->out[1] == NONE && needs_dx) {
			autodiff_set(ad, n->in[0], dx);
			return;
		}
	}
	for (int i = 0; needs_dx && i < 2 && dx != NONE && n->out[1] != NONE; i++) {
		if (autodiff_needs(ad, n->in[i])) {
			autodiff_add(ad, n->in[i], dx);
		}
	}
}

static const void *norm_weight(const struct run *r, int slot)
{
	int param = r->g->weights[slot].parts[0].param;
	return param != NONE ? run_param(r, param).data : base_mat(r->base, slot).data;
}

static const void *norm_bias(const struct run *r, int slot)
{
	int param = r->g->weights[slot].parts[0].bias_param;
	return param != NONE ? run_param(r, param).data : base_vector_bias(r->base, slot);
}

/* Gradients of a trained weight or bias, or NULL. */
static float *norm_grad(const struct run *r, int param)
{
	return r->grads && param != NONE ? run_grad(r, param).data : NULL;
}

static void norm_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]), sum = run_mat(r, n->out[1]);
	struct mat x = run_mat(r, n->in[0]), delta = run_mat(r, n->in[1]);
	float *stats = run_mat(r, n->out[2]).data, eps = (float)r->g->config.rms_norm_eps;
	const void *w = norm_weight(r, n->weight);
	if (n->norm == NORM_LAYER) {
		layernorm_forward(r->backend, y, sum, stats, x, delta, w, norm_bias(r, n->weight), eps);
	} else {
		rmsnorm_forward(r->backend, y, sum, stats, x, delta, w, eps, n->norm == NORM_RMS_ONE_PLUS);
	}
}

const struct op op_norm = {
	.name = "norm",
	.backward = norm_differentiate,
	.again = norm_again,
	.run = norm_run,
};

static void norm_backward_run(struct run *r, const struct node *n)
{
	const struct weight *slot = &r->g->weights[n->weight];
	float *dw = norm_grad(r, slot->parts[0].param), *db = norm_grad(r, slot->parts[0].bias_param);
	struct mat dx = run_mat(r, n->out[0]), dy = run_mat(r, n->in[0]), dsum = run_mat(r, n->in[1]);
	struct mat sum = run_mat(r, n->in[2]);
	const float *stats = run_mat(r, n->in[3]).data;
	const void *w = norm_weight(r, n->weight);
	if (n->norm == NORM_LAYER) {
		layernorm_backward(r->backend, dx, dw, db, dy, dsum, sum, stats, w);
	} else {
		rmsnorm_backward(r->backend, dx, dw, dy, dsum, sum, stats, w,
			n->norm == NORM_RMS_ONE_PLUS);
	}
}

const struct op op_norm_backward = {
	.name = "norm_backward",
	.run = norm_backward_run,
	.inplace = {1u << 0 | 1u << 1},
};

/* ---- of heads ------------------------------------------------------------------------------ */

/* in: x. out: y; statistics, those of all rows for one head after the other. weight: of queries; arg: slot
 * of keys' and how many heads these have. */
int graph_head_norm(struct graph *g, int x, int64_t n_q, int w_q, int64_t n_k, int w_k,
	enum norm_kind kind)
{
	assert(kind != NORM_LAYER);
	struct node n = graph_node_init(&op_head_norm);
	n.in[0] = x;
	n.weight = w_q;
	n.n_heads = n_q;
	n.arg[0] = w_k;
	n.arg[1] = n_k;
	n.norm = kind;
	n.out[0] = like(g, x, g->dtype, g->region);
	n.out[1] = rows_like(g, x, DTYPE_F32, n_q + n_k, RECOMPUTE_NEVER);
	graph_append(g, &n, g->trainable && (trains_norm(g, w_q) || trains_norm(g, w_k)));
	return n.out[0];
}

static void head_norm_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_head_norm_backward);
	b.in[0] = dy;
	b.in[1] = autodiff_use(ad, n->in[0]);
	b.in[2] = n->out[1];
	b.weight = n->weight;
	b.n_heads = n->n_heads;
	b.arg[0] = n->arg[0];
	b.arg[1] = n->arg[1];
	b.norm = n->norm;
	b.out[0] = like(ad->g, n->in[0], ad->g->dtype, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	if (autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], b.out[0]);
	}
}

/* What one head of the node is about. */
struct head {
	int slot;
	int64_t col, cols;
};

static struct head head_of(const struct run *r, const struct node *n, int64_t h)
{
	int64_t d = r->g->weights[n->weight].cols;
	return (struct head){h < n->n_heads ? n->weight : (int)n->arg[0], h * d, d};
}

/* The columns after the heads' go through. */
static void copy_rest(struct run *r, const struct node *n, struct mat to, struct mat from)
{
	int64_t done = (n->n_heads + n->arg[1]) * r->g->weights[n->weight].cols;
	if (to.data != from.data && done < to.cols) {
		cast(r->backend, columns(to, done, to.cols - done), columns(from, done, to.cols - done));
	}
}

static void head_norm_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]), x = run_mat(r, n->in[0]), none = run_mat(r, NONE);
	float *stats = run_mat(r, n->out[1]).data, eps = (float)r->g->config.rms_norm_eps;
	for (int64_t i = 0; i < n->n_heads + n->arg[1]; i++) {
		struct head h = head_of(r, n, i);
		rmsnorm_forward(r->backend, columns(y, h.col, h.cols), none, stats + i * y.rows,
			columns(x, h.col, h.cols), none, norm_weight(r, h.slot), eps,
			n->norm == NORM_RMS_ONE_PLUS);
	}
	copy_rest(r, n, y, x);
}

const struct op op_head_norm = {
	.name = "head_norm",
	.backward = head_norm_differentiate,
	.run = head_norm_run,
	.inplace = {1u << 0},
};

static void head_norm_backward_run(struct run *r, const struct node *n)
{
	struct mat dx = run_mat(r, n->out[0]), dy = run_mat(r, n->in[0]), x = run_mat(r, n->in[1]);
	struct mat none = run_mat(r, NONE);
	const float *stats = run_mat(r, n->in[2]).data;
	for (int64_t i = 0; i < n->n_heads + n->arg[1]; i++) {
		struct head h = head_of(r, n, i);
		rmsnorm_backward(r->backend, columns(dx, h.col, h.cols),
			norm_grad(r, r->g->weights[h.slot].parts[0].param), columns(dy, h.col, h.cols), none,
			columns(x, h.col, h.cols), stats + i * dx.rows, norm_weight(r, h.slot),
			n->norm == NORM_RMS_ONE_PLUS);
	}
	copy_rest(r, n, dx, dy);
}

const struct op op_head_norm_backward = {
	.name = "head_norm_backward",
	.run = head_norm_backward_run,
	.inplace = {1u << 0},
};
