/* Operations of the base's matrices: embedding and linear layers, frozen or trained. */
#include <assert.h>

#include "engine/base.h"
#include "engine/ops.h"
#include "util/util.h"

/* ---- embedding ----------------------------------------------------------------------------- */

/* arg[0]: by positions rather than ids. */
static int add_embedding(struct graph *g, int weight, enum tensor_rows rows, bool positions)
{
	struct node n = graph_node_init(&op_embedding);
	n.weight = weight;
	n.arg[0] = positions;
	n.out[0] = graph_tensor(g, g->dtype, rows, g->weights[weight].cols, RECOMPUTE_NEVER);
	graph_append(g, &n, g->trainable && g->weights[weight].parts[0].param != NONE);
	return n.out[0];
}

int graph_embedding(struct graph *g, int weight)
{
	return add_embedding(g, weight, ROWS_TOKENS, false);
}

int graph_source_embedding(struct graph *g, int weight)
{
	return add_embedding(g, weight, ROWS_SOURCE, false);
}

int graph_position_embedding(struct graph *g, int weight)
{
	return add_embedding(g, weight, ROWS_TOKENS, true);
}

static void embedding_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy != NONE) {
		struct node b = graph_node_init(&op_embedding_backward);
		b.in[0] = dy;
		b.weight = n->weight;
		b.arg[0] = n->arg[0];
		graph_append(ad->g, &b, false);
	}
}

static const int32_t *embedding_rows(const struct run *r, const struct node *n, int t)
{
	return n->arg[0] ? r->positions : run_ids(r, t);
}

static void embedding_run(struct run *r, const struct node *n)
{
	int param = r->g->weights[n->weight].parts[0].param;
	struct mat table = param != NONE ? run_param(r, param) : base_mat(r->base, n->weight);
	embedding_forward(r->backend, run_mat(r, n->out[0]), embedding_rows(r, n, n->out[0]), table);
}

const struct op op_embedding = {
	.name = "embedding",
	.backward = embedding_differentiate,
	.run = embedding_run,
};

static void embedding_backward_run(struct run *r, const struct node *n)
{
	int param = r->g->weights[n->weight].parts[0].param;
	embedding_backward(r->backend, run_grad(r, param), embedding_rows(r, n, n->in[0]),
		run_mat(r, n->in[0]));
}

const struct op op_embedding_backward = {
	.name = "embedding_backward",
	.run = embedding_backward_run,
};

/* ---- linear layer -------------------------------------------------------------------------- */

/*
 * A slot may be frozen as a whole, trained as a whole, or mixed: some of its modules trained, the
 * others not. The base has one packed matrix for all of them. A mixed slot goes forward with that
 * matrix and then overwrites the columns of the trained modules; backward, the packed matrix gets
 * the gradient with those columns zeroed.
 */
struct trained {
	bool any, all; /* weights */
	bool bias;     /* some bias */
};

static struct trained trained_parts(const struct weight *w)
{
	struct trained t = {.all = true};
	for (int i = 0; i < w->n_parts; i++) {
		bool weight = w->parts[i].param != NONE;
		t.any |= weight;
		t.all &= weight;
		t.bias |= w->parts[i].bias_param != NONE;
	}
	return t;
}

/* in: x. out: y; all biases in f32 for the packed product, where some are trained; and in the dtype of
 * activations for products with trained weights. */
int graph_linear(struct graph *g, int x, int weight)
{
	struct trained t = trained_parts(&g->weights[weight]);
	struct node n = graph_node_init(&op_linear);
	n.in[0] = x;
	n.weight = weight;
	n.out[0] = act(g, x, g->weights[weight].rows, g->region);
	if (t.bias && !t.all) {
		n.out[1] = graph_tensor(g, DTYPE_F32, ROWS_ONE, g->weights[weight].rows, g->region);
	}
	if (t.any && (t.bias || g->weights[weight].bias)) {
		n.out[2] = graph_tensor(g, g->dtype, ROWS_ONE, g->weights[weight].rows, g->region);
	}
	graph_append(g, &n, g->trainable && (t.any || t.bias));
	return n.out[0];
}

static void linear_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	struct trained t = trained_parts(&g->weights[n->weight]);
	bool needs_dx = autodiff_needs(ad, n->in[0]);
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE || !(needs_dx || t.any || t.bias)) {
		return;
	}
	struct node b = graph_node_init(&op_linear_backward);
	b.in[0] = dy;
	b.in[1] = needs_dx ? autodiff_grad(ad, n->in[0]) : NONE;
	b.in[2] = t.any ? autodiff_use(ad, n->in[0]) : NONE;
	b.weight = n->weight;
	if (needs_dx) {
		b.out[0] = act(g, dy, g->weights[n->weight].cols, RECOMPUTE_NEVER);
	}
	if (needs_dx && t.any && !t.all) {
		b.out[1] = act(g, dy, g->weights[n->weight].rows, RECOMPUTE_NEVER);
	}
	graph_append(g, &b, false);
	if (needs_dx) {
		autodiff_set(ad, n->in[0], b.out[0]);
	}
}

/* Of one product with the rows of the weight that are in question. */
static double product_flops(const struct graph *g, const struct node *n, int64_t rows)
{
	double cols = (double)g->weights[n->weight].cols;
	return 2.0 * (double)tensor_rows(g, n->in[0]) * (double)rows * cols;
}

static int64_t trained_rows(const struct weight *w)
{
	int64_t rows = 0;
	for (int i = 0; i < w->n_parts; i++) {
		rows += w->parts[i].param != NONE ? w->parts[i].rows : 0;
	}
	return rows;
}

static double linear_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	const struct weight *w = &g->weights[n->weight];
	struct trained t = trained_parts(w);
	return product_flops(g, n, (t.all ? 0 : w->rows) + trained_rows(w));
}

static int prepare_slot(struct run *r, int slot, unsigned uses, int64_t rows, struct errmsg *err)
{
	const struct weight *w = &r->g->weights[slot];
	return linear_prepare(r->backend, w->rows, w->cols, r->g->dtype, uses, rows, err);
}

static int linear_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct weight *w = &r->g->weights[n->weight];
	enum dtype dt = r->g->dtype;
	int64_t t = tensor_rows(r->g, n->in[0]);
	int res = 0;
	if (!trained_parts(w).all) {
		res = prepare_slot(r, n->weight, PACKED_FORWARD, t, err);
	}
	for (int i = 0; i < w->n_parts && res == 0; i++) {
		if (w->parts[i].param != NONE) {
			res = matmul_prepare(r->backend, t, w->parts[i].rows, w->cols, false, !w->transposed, dt, dt,
				err);
		}
	}
	return res;
}

void run_bias(struct run *r, int weight, struct mat out)
{
	const struct weight *w = &r->g->weights[weight];
	const float *base = base_bias(r->base, weight);
	int64_t col = 0;
	for (int i = 0; i < w->n_parts; col += w->parts[i++].rows) {
		struct mat to = columns(out, col, w->parts[i].rows);
		if (w->parts[i].bias_param != NONE) {
			cast(r->backend, to, run_param(r, w->parts[i].bias_param));
		} else if (base) {
			int64_t rows = w->parts[i].rows;
			struct mat from = {(float *)(uintptr_t)base + col, DTYPE_F32, 1, rows, rows};
			cast(r->backend, to, from);
		} else {
			fill_zero(r->backend, to);
		}
	}
}

static void linear_run(struct run *r, const struct node *n)
{
	const struct weight *w = &r->g->weights[n->weight];
	struct trained t = trained_parts(w);
	struct mat y = run_mat(r, n->out[0]), x = run_mat(r, n->in[0]);
	struct mat packed_bias = run_mat(r, n->out[1]), bias = run_mat(r, n->out[2]);
	if (packed_bias.data) {
		run_bias(r, n->weight, packed_bias);
	}
	if (bias.data) {
		run_bias(r, n->weight, bias);
	}
	if (!t.all) {
		linear_forward(r->backend, y, x, base_packed(r->base, n->weight),
			packed_bias.data ? packed_bias.data : base_bias(r->base, n->weight));
	}
	int64_t col = 0;
	for (int i = 0; i < w->n_parts; col += w->parts[i++].rows) {
		if (w->parts[i].param == NONE) {
			continue;
		}
		struct mat part = columns(y, col, w->parts[i].rows);
		matmul(r->backend, part, x, false, run_param(r, w->parts[i].param), !w->transposed,
			1, 0);
		if (bias.data) {
			bias_add(r->backend, part, columns(bias, col, w->parts[i].rows).data);
		}
	}
}

const struct op op_linear = {
	.name = "linear",
	.backward = linear_differentiate,
	.flops = linear_flops,
	.prepare = linear_ready,
	.run = linear_run,
};

/* in: dy, dx so far, x (where a weight is trained). out: dx, dy without the trained parts' columns
 * (where mixed). */
static double linear_backward_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	const struct weight *w = &g->weights[n->weight];
	double by_weights = product_flops(g, n, trained_rows(w));
	return by_weights + (n->out[0] != NONE ? linear_flops(g, n, seq_len) : 0);
}

static int linear_backward_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct weight *w = &r->g->weights[n->weight];
	enum dtype dt = r->g->dtype;
	int64_t t = tensor_rows(r->g, n->in[0]);
	bool dx = n->out[0] != NONE;
	int res = 0;
	if (dx && !trained_parts(w).all) {
		res = prepare_slot(r, n->weight, PACKED_BACKWARD, t, err);
	}
	for (int i = 0; i < w->n_parts && res == 0; i++) {
		if (w->parts[i].param == NONE) {
			continue;
		}
		int64_t rows = w->parts[i].rows;
		res = matmul_prepare(r->backend, w->transposed ? w->cols : rows,
			w->transposed ? rows : w->cols, t, true, false, dt, DTYPE_F32, err);
		if (res == 0 && dx) {
			res = matmul_prepare(r->backend, t, w->cols, rows, false, w->transposed, dt, dt, err);
		}
	}
	return res;
}

/* The gradient by what the base's matrix made: dy, or a copy without the other columns. */
static struct mat frozen_part(struct run *r, const struct node *n, struct mat dy)
{
	const struct weight *w = &r->g->weights[n->weight];
	if (n->out[1] == NONE) {
		return dy;
	}
	struct mat masked = run_mat(r, n->out[1]);
	cast(r->backend, masked, dy);
	int64_t col = 0;
	for (int i = 0; i < w->n_parts; col += w->parts[i++].rows) {
		if (w->parts[i].param != NONE) {
			fill_zero(r->backend, columns(masked, col, w->parts[i].rows));
		}
	}
	return masked;
}

static void linear_backward_params(struct run *r, const struct weight *w, struct mat dy,
	struct mat x)
{
	int64_t col = 0;
	for (int i = 0; i < w->n_parts; col += w->parts[i++].rows) {
		struct mat part = columns(dy, col, w->parts[i].rows);
		if (w->parts[i].param != NONE) {
			struct mat out = w->transposed ? x : part, in = w->transposed ? part : x;
			matmul(r->backend, run_grad(r, w->parts[i].param), out, true, in, false, 1, 1);
		}
		if (w->parts[i].bias_param != NONE) {
			bias_backward(r->backend, run_grad(r, w->parts[i].bias_param).data, part);
		}
	}
}

static void linear_backward_run(struct run *r, const struct node *n)
{
	const struct weight *w = &r->g->weights[n->weight];
	struct mat dy = run_mat(r, n->in[0]), dx = run_mat(r, n->out[0]);
	linear_backward_params(r, w, dy, run_mat(r, n->in[2]));
	if (!dx.data) {
		return;
	}
	bool accumulate = n->in[1] != NONE;
	if (accumulate) {
		start_from(r, dx, run_mat(r, n->in[1]));
	}
	if (!trained_parts(w).all) {
		linear_backward(r->backend, dx, frozen_part(r, n, dy), base_packed(r->base, n->weight),
			accumulate);
		accumulate = true;
	}
	int64_t col = 0;
	for (int i = 0; i < w->n_parts; col += w->parts[i++].rows) {
		if (w->parts[i].param != NONE) {
			matmul(r->backend, dx, columns(dy, col, w->parts[i].rows), false,
				run_param(r, w->parts[i].param), w->transposed, 1, accumulate ? 1 : 0);
			accumulate = true;
		}
	}
}

const struct op op_linear_backward = {
	.name = "linear_backward",
	.flops = linear_backward_flops,
	.prepare = linear_backward_ready,
	.run = linear_backward_run,
	.inplace = {1u << 1},
};
