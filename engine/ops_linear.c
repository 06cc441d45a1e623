/* Operations around products: embedding, linear layers, low-rank updates, dropout, head and
 * loss. */
#include <assert.h>

#include "engine/base.h"
#include "engine/graph.h"
#include "engine/train/rng.h"
#include "util/util.h"

static int act(struct graph *g, int64_t cols, enum recompute recompute)
{
	return graph_tensor(g, g->dtype, ROWS_TOKENS, cols, recompute);
}

static struct mat columns(struct mat m, int64_t col, int64_t cols)
{
	assert(col >= 0 && cols > 0 && col + cols <= m.cols);
	m.data = (uint8_t *)m.data + (size_t)col * dtype_size(m.dtype);
	m.cols = cols;
	return m;
}

/* Readies an output whose node adds to an input: where placement could not give it that input's
 * memory, the input is copied there. */
static void start_from(struct run *r, struct mat out, struct mat in)
{
	if (out.data != in.data) {
		cast(r->backend, out, in);
	}
}

/* ---- embedding ----------------------------------------------------------------------------- */

int graph_embedding(struct graph *g, int weight)
{
	struct node n = graph_node_init(&op_embedding);
	n.weight = weight;
	n.out[0] = act(g, g->weights[weight].cols, RECOMPUTE_NEVER);
	graph_append(g, &n, false);
	return n.out[0];
}

static void embedding_run(struct run *r, const struct node *n)
{
	embedding_forward(r->backend, run_mat(r, n->out[0]), r->ids, base_mat(r->base, n->weight));
}

const struct op op_embedding = {
	.name = "embedding",
	.run = embedding_run,
};

/* ---- frozen linear layer ------------------------------------------------------------------- */

int graph_linear(struct graph *g, int x, int weight)
{
	struct node n = graph_node_init(&op_linear);
	n.in[0] = x;
	n.weight = weight;
	n.out[0] = act(g, g->weights[weight].rows, g->region);
	graph_append(g, &n, false);
	return n.out[0];
}

static void linear_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE || !autodiff_needs(ad, n->in[0])) {
		return;
	}
	struct node b = graph_node_init(&op_linear_backward);
	b.in[0] = dy;
	b.in[1] = autodiff_grad(ad, n->in[0]);
	b.weight = n->weight;
	b.out[0] = act(g, g->weights[n->weight].cols, RECOMPUTE_NEVER);
	graph_append(g, &b, false);
	autodiff_set(ad, n->in[0], b.out[0]);
}

static double linear_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	const struct weight *w = &g->weights[n->weight];
	return 2.0 * (double)g->tokens * (double)w->rows * (double)w->cols;
}

static int prepare_slot(struct run *r, int slot, unsigned uses, int64_t rows, struct errmsg *err)
{
	const struct weight *w = &r->g->weights[slot];
	return linear_prepare(r->backend, w->rows, w->cols, r->g->dtype, uses, rows, err);
}

static int linear_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	return prepare_slot(r, n->weight, PACKED_FORWARD, r->g->tokens, err);
}

static void linear_run(struct run *r, const struct node *n)
{
	linear_forward(r->backend, run_mat(r, n->out[0]), run_mat(r, n->in[0]),
		base_packed(r->base, n->weight), base_bias(r->base, n->weight));
}

const struct op op_linear = {
	.name = "linear",
	.backward = linear_differentiate,
	.flops = linear_flops,
	.prepare = linear_ready,
	.run = linear_run,
};

static int linear_backward_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	return prepare_slot(r, n->weight, PACKED_BACKWARD, r->g->tokens, err);
}

static void linear_backward_run(struct run *r, const struct node *n)
{
	struct mat dx = run_mat(r, n->out[0]);
	if (n->in[1] != NONE) {
		start_from(r, dx, run_mat(r, n->in[1]));
	}
	linear_backward(r->backend, dx, run_mat(r, n->in[0]), base_packed(r->base, n->weight),
		n->in[1] != NONE);
}

const struct op op_linear_backward = {
	.name = "linear_backward",
	.flops = linear_flops,
	.prepare = linear_backward_ready,
	.run = linear_backward_run,
	.inplace = {1u << 1},
};

/* ---- low-rank update ----------------------------------------------------------------------- */

int graph_low_rank(struct graph *g, int y, int x, const struct low_rank *l)
{
	struct node n = graph_node_init(&op_low_rank);
	n.in[0] = y;
	n.in[1] = x;
	n.low_rank = *l;
	n.out[0] = act(g, g->tensors[y].cols, g->region);
	n.out[1] = act(g, l->rank, g->region);
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
	b.out[0] = act(g, n->low_rank.rank, RECOMPUTE_NEVER);
	b.out[1] = needs_dx ? act(g, g->tensors[n->in[1]].cols, RECOMPUTE_NEVER) : NONE;
	graph_append(g, &b, false);
	if (needs_dx) {
		autodiff_set(ad, n->in[1], b.out[1]);
	}
}

static double low_rank_cost(const struct graph *g, const struct low_rank *l, double a_products)
{
	const struct param *a = &g->params[l->a];
	double sum = a_products * (double)l->rank * (double)a->cols;
	for (int i = 0; i < l->n_parts; i++) {
		sum += (double)l->parts[i].r * (double)l->parts[i].cols;
	}
	return 2.0 * (double)g->tokens * sum;
}

static double low_rank_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return low_rank_cost(g, &n->low_rank, 1);
}

static int low_rank_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct low_rank *l = &n->low_rank;
	const struct param *a = &r->g->params[l->a];
	enum dtype dt = r->g->dtype;
	int res = matmul_prepare(r->backend, r->g->tokens, l->rank, a->cols, false, true, dt, dt, err);
	for (int i = 0; i < l->n_parts && res == 0; i++) {
		res = matmul_prepare(r->backend, r->g->tokens, l->parts[i].cols, l->parts[i].r, false, true,
			dt, dt, err);
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
	const struct low_rank *l = &n->low_rank;
	double b_products = low_rank_cost(g, l, 0);
	return low_rank_cost(g, l, n->out[1] != NONE ? 2 : 1) + b_products;
}

static int low_rank_backward_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct low_rank *l = &n->low_rank;
	int64_t t = r->g->tokens, in = r->g->params[l->a].cols;
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
	n.out[0] = act(g, g->tensors[x].cols, RECOMPUTE_CHEAP);
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
	b.out[0] = act(ad->g, ad->g->tensors[n->in[0]].cols, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	autodiff_set(ad, n->in[0], b.out[0]);
}

/* Sequence by sequence: the mask is a function of the sequence's number within the step and of the
 * element's place in the sequence, so that it does not depend on how the step is cut. */
static void dropout_sequences(struct run *r, const struct node *n, struct mat y, struct mat x,
	bool accumulate)
{
	for (int64_t s = 0; s < r->n_seqs; s++) {
		struct rng_key key = {
			.seed = r->seed,
			.stream = rng_stream(RNG_DROPOUT, r->step, (uint64_t)n->site,
				(uint64_t)r->seq_number[s]),
		};
		struct mat ys = y, xs = x;
		size_t row = (size_t)r->seq_start[s], size = dtype_size(x.dtype);
		ys.data = (uint8_t *)y.data + row * (size_t)y.stride * size;
		xs.data = (uint8_t *)x.data + row * (size_t)x.stride * size;
		ys.rows = xs.rows = r->seq_len[s];
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

/* ---- head ---------------------------------------------------------------------------------- */

void graph_head(struct graph *g, int x, int weight)
{
	const struct weight *w = &g->weights[weight];
	bool loss = g->purpose == GRAPH_TRAIN;
	struct node n = graph_node_init(loss ? &op_lm_loss : &op_logits);
	n.in[0] = x;
	n.weight = weight;
	if (loss) {
		size_t bytes = lm_head_workspace(g->backend, w->rows, w->cols, g->dtype, g->tokens);
		if (g->tensors[x].needs_grad) {
			n.out[0] = act(g, w->cols, RECOMPUTE_NEVER);
		}
		n.out[1] = graph_tensor(g, DTYPE_F32, ROWS_BYTES, (int64_t)bytes, RECOMPUTE_NEVER);
	} else {
		n.out[0] = graph_tensor(g, DTYPE_F32, ROWS_ONE, w->rows, RECOMPUTE_NEVER);
	}
	graph_append(g, &n, false);
}

/* Loss and gradient are made together, chunk by chunk: the gradient is there already. */
static void lm_loss_differentiate(struct autodiff *ad, const struct node *n)
{
	if (n->out[0] != NONE) {
		autodiff_add(ad, n->in[0], n->out[0]);
	}
}

static double lm_loss_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return (n->out[0] != NONE ? 2 : 1) * linear_flops(g, n, seq_len);
}

static int lm_loss_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	unsigned uses = PACKED_FORWARD | (n->out[0] != NONE ? PACKED_BACKWARD : 0u);
	return prepare_slot(r, n->weight, uses, r->g->tokens, err);
}

static void lm_loss_run(struct run *r, const struct node *n)
{
	struct mat dx = run_mat(r, r->training ? n->out[0] : NONE);
	lm_head_loss(r->backend, dx, r->loss_sum, run_mat(r, n->in[0]), r->targets,
		base_packed(r->base, n->weight), r->grad_scale, run_mat(r, n->out[1]).data);
}

const struct op op_lm_loss = {
	.name = "lm_loss",
	.backward = lm_loss_differentiate,
	.flops = lm_loss_flops,
	.prepare = lm_loss_ready,
	.run = lm_loss_run,
};

static double logits_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return linear_flops(g, n, seq_len) / (double)g->tokens;
}

static int logits_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	return prepare_slot(r, n->weight, PACKED_FORWARD, 1, err);
}

static void logits_run(struct run *r, const struct node *n)
{
	struct mat x = run_mat(r, n->in[0]);
	x.data = (uint8_t *)x.data + (size_t)((r->rows - 1) * x.stride) * dtype_size(x.dtype);
	x.rows = 1;
	linear_forward(r->backend, run_mat(r, n->out[0]), x, base_packed(r->base, n->weight),
		base_bias(r->base, n->weight));
}

const struct op op_logits = {
	.name = "logits",
	.flops = logits_flops,
	.prepare = logits_ready,
	.run = logits_run,
};
