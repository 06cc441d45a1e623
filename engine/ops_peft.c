/*
 * Operations of additive methods: factors a column, dense layers, activation functions.
 *
 * A tensor of fixed rows (a soft prompt, what its encoder computes) has a gradient in f32 where rows of
 * the whole microbatch are summed into it, and in the dtype of activations inside an encoder;
 * dense layers bring the one into the other.
 */
#include "engine/ops_peft.h"

#include "engine/base.h"
#include "engine/ops.h"
#include "util/util.h"

/* ---- conversion ---------------------------------------------------------------------------- */

static int graph_cast(struct graph *g, int x, enum dtype dtype)
{
	if (g->tensors[x].dtype == dtype) {
		return x;
	}
	struct node n = graph_node_init(&op_cast);
	n.in[0] = x;
	n.out[0] = like(g, x, dtype, RECOMPUTE_NEVER);
	graph_append(g, &n, false);
	return n.out[0];
}

static void cast_run(struct run *r, const struct node *n)
{
	cast(r->backend, run_mat(r, n->out[0]), run_mat(r, n->in[0]));
}

const struct op op_cast = {
	.name = "cast",
	.run = cast_run,
};

/* ---- a parameter as a tensor --------------------------------------------------------------- */

int graph_of_param(struct graph *g, int param)
{
	const struct param *p = &g->params[param];
	struct node n = graph_node_init(&op_of_param);
	n.param[0] = param;
	n.out[0] = graph_tensor_fixed(g, g->dtype, p->rows, p->cols, RECOMPUTE_NEVER);
	graph_append(g, &n, g->trainable);
	return n.out[0];
}

static void of_param_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_of_param_backward);
	b.in[0] = dy;
	b.param[0] = n->param[0];
	graph_append(ad->g, &b, false);
}

static void of_param_run(struct run *r, const struct node *n)
{
	cast(r->backend, run_mat(r, n->out[0]), run_param(r, n->param[0]));
}

const struct op op_of_param = {
	.name = "of_param",
	.backward = of_param_differentiate,
	.run = of_param_run,
};

/* Row by row: a sum of one row is that row, of either dtype, added to f32. */
static void of_param_backward_run(struct run *r, const struct node *n)
{
	struct mat dy = run_mat(r, n->in[0]), grad = run_grad(r, n->param[0]);
	for (int64_t i = 0; i < dy.rows; i++) {
		struct mat row = dy;
		row.rows = 1;
		row.data = (uint8_t *)dy.data + (size_t)(i * dy.stride) * dtype_size(dy.dtype);
		bias_backward(r->backend, (float *)grad.data + i * grad.stride, row);
	}
}

const struct op op_of_param_backward = {
	.name = "of_param_backward",
	.run = of_param_backward_run,
};

/* ---- factors a column ---------------------------------------------------------------------- */

static int add_scale(struct graph *g, int x, int weight, const int *param, int n_params,
	enum recompute recompute)
{
	struct node n = graph_node_init(&op_scale);
	n.in[0] = x;
	n.weight = weight;
	for (int i = 0; i < n_params; i++) {
		n.param[i] = param[i];
	}
	n.out[0] = like(g, x, g->dtype, recompute);
	graph_append(g, &n, g->trainable);
	return n.out[0];
}

int graph_scale(struct graph *g, int x, int param)
{
	return add_scale(g, x, NONE, &param, 1, RECOMPUTE_CHEAP);
}

int graph_scale_parts(struct graph *g, int y, int weight, const int param[LINEAR_PARTS])
{
	return add_scale(g, y, weight, param, LINEAR_PARTS, g->region);
}

static void scale_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	struct node b = *n;
	b.op = &op_scale_backward;
	b.in[0] = dy;
	b.in[1] = autodiff_use(ad, n->in[0]);
	b.out[0] = NONE;
	if (autodiff_needs(ad, n->in[0])) {
		b.out[0] = like(ad->g, n->in[0], ad->g->dtype, RECOMPUTE_NEVER);
	}
	graph_append(ad->g, &b, false);
	if (b.out[0] != NONE) {
		autodiff_add(ad, n->in[0], b.out[0]);
	}
}

/* Calls fn for each part that has a vector. */
static void each_part(struct run *r, const struct node *n, void (*fn)(struct run *r,
	const struct node *n, int param, int64_t col, int64_t cols))
{
	if (n->weight == NONE) {
		fn(r, n, n->param[0], 0, r->g->params[n->param[0]].cols);
		return;
	}
	const struct weight *w = &r->g->weights[n->weight];
	for (int64_t i = 0, col = 0; i < w->n_parts; col += w->parts[i++].rows) {
		if (n->param[i] != NONE) {
			fn(r, n, n->param[i], col, w->parts[i].rows);
		}
	}
}

static void scale_part(struct run *r, const struct node *n, int param, int64_t col, int64_t cols)
{
	scale_columns(r->backend, columns(run_mat(r, n->out[0]), col, cols),
		columns(run_mat(r, n->in[0]), col, cols), run_param(r, param).data);
}

static void scale_run(struct run *r, const struct node *n)
{
	if (n->weight != NONE) {
		start_from(r, run_mat(r, n->out[0]), run_mat(r, n->in[0]));
	}
	each_part(r, n, scale_part);
}

const struct op op_scale = {
	.name = "scale",
	.backward = scale_differentiate,
	.run = scale_run,
	.inplace = {1u << 0},
};

static void scale_part_backward(struct run *r, const struct node *n, int param, int64_t col,
	int64_t cols)
{
	struct mat dx = {.dtype = r->g->dtype};
	if (n->out[0] != NONE) {
		dx = columns(run_mat(r, n->out[0]), col, cols);
	}
	scale_columns_backward(r->backend, dx, run_grad(r, param).data,
		columns(run_mat(r, n->in[0]), col, cols), columns(run_mat(r, n->in[1]), col, cols),
		run_param(r, param).data);
}

static void scale_backward_run(struct run *r, const struct node *n)
{
	if (n->weight != NONE && n->out[0] != NONE) {
		start_from(r, run_mat(r, n->out[0]), run_mat(r, n->in[0]));
	}
	each_part(r, n, scale_part_backward);
}

const struct op op_scale_backward = {
	.name = "scale_backward",
	.run = scale_backward_run,
	.inplace = {1u << 0},
};

/* ---- one part from elsewhere --------------------------------------------------------------- */

static struct mat part_of(struct run *r, const struct node *n, struct mat m)
{
	const struct weight *w = &r->g->weights[n->weight];
	int64_t col = 0;
	for (int i = 0; i < n->arg[0]; i++) {
		col += w->parts[i].rows;
	}
	return columns(m, col, w->parts[n->arg[0]].rows);
}

int graph_splice(struct graph *g, int y, int from, int weight, int part)
{
	struct node n = graph_node_init(&op_splice);
	n.in[0] = y;
	n.in[1] = from;
	n.weight = weight;
	n.arg[0] = part;
	n.out[0] = like(g, y, g->dtype, g->region);
	graph_append(g, &n, false);
	return n.out[0];
}

/* arg[1] of the backward node: whether it keeps the part, or all but it. */
static void splice_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	for (int i = 0; i < 2 && dy != NONE; i++) {
		if (autodiff_needs(ad, n->in[i])) {
			struct node b = graph_node_init(&op_splice_backward);
			b.in[0] = dy;
			b.weight = n->weight;
			b.arg[0] = n->arg[0];
			b.arg[1] = i;
			b.out[0] = like(ad->g, n->in[i], ad->g->dtype, RECOMPUTE_NEVER);
			graph_append(ad->g, &b, false);
			autodiff_add(ad, n->in[i], b.out[0]);
		}
	}
}

static void splice_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]);
	start_from(r, y, run_mat(r, n->in[0]));
	cast(r->backend, part_of(r, n, y), part_of(r, n, run_mat(r, n->in[1])));
}

const struct op op_splice = {
	.name = "splice",
	.backward = splice_differentiate,
	.run = splice_run,
	.inplace = {1u << 0},
};

static void splice_backward_run(struct run *r, const struct node *n)
{
	struct mat dy = run_mat(r, n->in[0]), dx = run_mat(r, n->out[0]);
	if (n->arg[1]) {
		fill_zero(r->backend, dx);
		cast(r->backend, part_of(r, n, dx), part_of(r, n, dy));
	} else {
		cast(r->backend, dx, dy);
		fill_zero(r->backend, part_of(r, n, dx));
	}
}

const struct op op_splice_backward = {
	.name = "splice_backward",
	.run = splice_backward_run,
};

/* ---- dense layer --------------------------------------------------------------------------- */

int graph_dense(struct graph *g, int x, int w, int bias)
{
	struct node n = graph_node_init(&op_dense);
	n.in[0] = x;
	n.param[0] = w;
	n.param[1] = bias;
	n.out[0] = act(g, x, g->params[w].rows, g->region);
	graph_append(g, &n, g->trainable);
	return n.out[0];
}

static void dense_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_dense_backward);
	bool needs_dx = autodiff_needs(ad, n->in[0]);
	b.in[0] = graph_cast(g, dy, g->dtype);
	b.in[1] = autodiff_use(ad, n->in[0]);
	b.in[2] = needs_dx ? autodiff_grad(ad, n->in[0]) : NONE;
	b.param[0] = n->param[0];
	b.param[1] = n->param[1];
	b.out[0] = needs_dx ? like(g, n->in[0], g->dtype, RECOMPUTE_NEVER) : NONE;
	graph_append(g, &b, false);
	if (needs_dx) {
		autodiff_set(ad, n->in[0], b.out[0]);
	}
}

static double dense_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	const struct param *w = &g->params[n->param[0]];
	return 2.0 * (double)tensor_rows(g, n->in[0]) * (double)w->rows * (double)w->cols;
}

static int dense_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct param *w = &r->g->params[n->param[0]];
	enum dtype dt = r->g->dtype;
	return matmul_prepare(r->backend, tensor_rows(r->g, n->in[0]), w->rows, w->cols, false,
		true, dt, dt, err);
}

static void dense_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]);
	matmul(r->backend, y, run_mat(r, n->in[0]), false, run_param(r, n->param[0]), true, 1, 0);
	if (n->param[1] != NONE) {
		bias_add(r->backend, y, run_param(r, n->param[1]).data);
	}
}

const struct op op_dense = {
	.name = "dense",
	.backward = dense_differentiate,
	.flops = dense_flops,
	.prepare = dense_ready,
	.run = dense_run,
};

static double dense_backward_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return (n->out[0] != NONE ? 2 : 1) * dense_flops(g, n, seq_len);
}

static int dense_backward_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct param *w = &r->g->params[n->param[0]];
	int64_t rows = tensor_rows(r->g, n->in[0]);
	enum dtype dt = r->g->dtype;
	int res = matmul_prepare(r->backend, w->rows, w->cols, rows, true, false, dt, DTYPE_F32, err);
	if (res == 0 && n->out[0] != NONE) {
		res = matmul_prepare(r->backend, rows, w->cols, w->rows, false, false, dt, dt, err);
	}
	return res;
}

static void dense_backward_run(struct run *r, const struct node *n)
{
	struct mat dy = run_mat(r, n->in[0]);
	matmul(r->backend, run_grad(r, n->param[0]), dy, true, run_mat(r, n->in[1]), false, 1, 1);
	if (n->param[1] != NONE) {
		bias_backward(r->backend, run_grad(r, n->param[1]).data, dy);
	}
	if (n->out[0] != NONE) {
		struct mat dx = run_mat(r, n->out[0]);
		bool accumulate = n->in[2] != NONE;
		if (accumulate) {
			start_from(r, dx, run_mat(r, n->in[2]));
		}
		matmul(r->backend, dx, dy, false, run_param(r, n->param[0]), false, 1, accumulate ? 1 : 0);
	}
}

const struct op op_dense_backward = {
	.name = "dense_backward",
	.flops = dense_backward_flops,
	.prepare = dense_backward_ready,
	.run = dense_backward_run,
	.inplace = {1u << 2},
};

/* ---- activation function ------------------------------------------------------------------- */

int graph_activation(struct graph *g, int x, enum activation kind)
{
	struct node n = graph_node_init(&op_activation);
	n.in[0] = x;
	n.arg[0] = (int64_t)kind;
	n.out[0] = like(g, x, g->dtype, RECOMPUTE_CHEAP);
	graph_append(g, &n, false);
	return n.out[0];
}

static void activation_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE || !autodiff_needs(ad, n->in[0])) {
		return;
	}
	struct node b = graph_node_init(&op_activation_backward);
	b.in[0] = dy;
	b.in[1] = autodiff_use(ad, n->in[0]);
	b.arg[0] = n->arg[0];
	b.out[0] = like(ad->g, n->in[0], ad->g->dtype, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	autodiff_add(ad, n->in[0], b.out[0]);
}

static void activation_run(struct run *r, const struct node *n)
{
	activation_forward(r->backend, run_mat(r, n->out[0]), run_mat(r, n->in[0]),
		(enum activation)n->arg[0]);
}

const struct op op_activation = {
	.name = "activation",
	.backward = activation_differentiate,
	.run = activation_run,
	.inplace = {1u << 0},
};

static void activation_backward_run(struct run *r, const struct node *n)
{
	activation_backward(r->backend, run_mat(r, n->out[0]), run_mat(r, n->in[0]),
		run_mat(r, n->in[1]), (enum activation)n->arg[0]);
}

const struct op op_activation_backward = {
	.name = "activation_backward",
	.run = activation_backward_run,
	.inplace = {1u << 0 | 1u << 1},
};

/* ---- scaled sum ---------------------------------------------------------------------------- */

int graph_add_scaled(struct graph *g, int a, int c, float scale)
{
	struct node n = graph_node_init(&op_add_scaled);
	n.in[0] = a;
	n.in[1] = c;
	n.p = scale;
	n.out[0] = like(g, a, g->dtype, g->region);
	graph_append(g, &n, false);
	return n.out[0];
}

/* The gradient p · dy. */
static int add_times(struct graph *g, int dy, float p)
{
	struct node b = graph_node_init(&op_times);
	b.in[0] = dy;
	b.p = p;
	b.out[0] = like(g, dy, g->dtype, RECOMPUTE_NEVER);
	graph_append(g, &b, false);
	return b.out[0];
}

static void add_scaled_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	if (autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], dy);
	}
	if (autodiff_needs(ad, n->in[1])) {
		autodiff_add(ad, n->in[1], n->p != 1 ? add_times(ad->g, dy, n->p) : dy);
	}
}

static void add_scaled_run(struct run *r, const struct node *n)
{
	add_scaled(r->backend, run_mat(r, n->out[0]), run_mat(r, n->in[0]), run_mat(r, n->in[1]), n->p);
}

const struct op op_add_scaled = {
	.name = "add_scaled",
	.backward = add_scaled_differentiate,
	.run = add_scaled_run,
	.inplace = {1u << 0 | 1u << 1},
};

int graph_scale_by(struct graph *g, int x, float factor)
{
	struct node n = graph_node_init(&op_times);
	n.in[0] = x;
	n.p = g->dtype == DTYPE_BF16 ? bf16_to_f32(bf16_from_f32(factor)) : factor;
	n.out[0] = like(g, x, g->dtype, g->region);
	graph_append(g, &n, false);
	return n.out[0];
}

static void times_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy != NONE && autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], add_times(ad->g, dy, n->p));
	}
}

static void times_run(struct run *r, const struct node *n)
{
	add_scaled(r->backend, run_mat(r, n->out[0]), run_mat(r, NONE), run_mat(r, n->in[0]), n->p);
}

const struct op op_times = {
	.name = "times",
	.backward = times_differentiate,
	.run = times_run,
	.inplace = {1u << 0},
};
