/* Operations of soft prompts and of what encodes them: rows of virtual tokens, LSTM, dropout. */
#include "engine/ops_peft.h"

#include "engine/ops.h"
#include "engine/train/rng.h"
#include "util/util.h"

/* ---- soft prompt --------------------------------------------------------------------------- */

int graph_virtual_tokens(struct graph *g, int x, int prompt)
{
	struct node n = graph_node_init(&op_virtual_tokens);
	n.in[0] = x;
	n.in[1] = prompt;
	n.out[0] = like(g, x, g->dtype, RECOMPUTE_NEVER);
	graph_append(g, &n, false);
	return n.out[0];
}

/* Rows of virtual tokens in x's gradient do no harm: an embedding leaves them out. */
static void virtual_tokens_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE) {
		return;
	}
	if (autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], dy);
	}
	if (autodiff_needs(ad, n->in[1])) {
		struct node b = graph_node_init(&op_virtual_tokens_backward);
		b.in[0] = dy;
		b.out[0] = like(ad->g, n->in[1], DTYPE_F32, RECOMPUTE_NEVER);
		graph_append(ad->g, &b, false);
		autodiff_set(ad, n->in[1], b.out[0]);
	}
}

static void virtual_tokens_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]), x = run_mat(r, n->in[0]);
	if (y.data != x.data) {
		cast(r->backend, y, x);
	}
	virtual_tokens_forward(r->backend, y, run_ids(r, n->in[0]), run_mat(r, n->in[1]));
}

const struct op op_virtual_tokens = {
	.name = "virtual_tokens",
	.backward = virtual_tokens_differentiate,
	.run = virtual_tokens_run,
	.inplace = {1u << 0},
};

static void virtual_tokens_backward_run(struct run *r, const struct node *n)
{
	struct mat d = run_mat(r, n->out[0]);
	fill_zero(r->backend, d);
	virtual_tokens_backward(r->backend, d, run_ids(r, n->in[0]), run_mat(r, n->in[0]));
}

const struct op op_virtual_tokens_backward = {
	.name = "virtual_tokens_backward",
	.run = virtual_tokens_backward_run,
};

/* ---- LSTM ---------------------------------------------------------------------------------- */

/* in: xg of both directions. param: w, w, bias, bias. out: h, gates, cell, each with both directions side
 * by side. */
int graph_lstm(struct graph *g, const int xg[2], const int w[2], const int bias[2])
{
	struct node n = graph_node_init(&op_lstm);
	int64_t d = g->params[w[0]].cols, rows = g->tensors[xg[0]].n_rows;
	for (int i = 0; i < 2; i++) {
		n.in[i] = xg[i];
		n.param[i] = w[i];
		n.param[2 + i] = bias[i];
	}
	n.out[0] = graph_tensor_fixed(g, g->dtype, rows, 2 * d, RECOMPUTE_NEVER);
	n.out[1] = graph_tensor_fixed(g, DTYPE_F32, rows, 8 * d, RECOMPUTE_NEVER);
	n.out[2] = graph_tensor_fixed(g, DTYPE_F32, rows, 2 * d, RECOMPUTE_NEVER);
	graph_append(g, &n, g->trainable);
	return n.out[0];
}

static void lstm_differentiate(struct autodiff *ad, const struct node *n)
{
	int dh = autodiff_grad(ad, n->out[0]);
	if (dh == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_lstm_backward);
	b.in[0] = dh;
	for (int i = 0; i < 3; i++) {
		b.in[1 + i] = n->out[i];
	}
	for (int i = 0; i < 4; i++) {
		b.param[i] = n->param[i];
	}
	for (int i = 0; i < 2; i++) {
		b.out[i] = like(ad->g, n->in[i], ad->g->dtype, RECOMPUTE_NEVER);
	}
	graph_append(ad->g, &b, false);
	for (int i = 0; i < 2; i++) {
		if (autodiff_needs(ad, n->in[i])) {
			autodiff_add(ad, n->in[i], b.out[i]);
		}
	}
}

static double lstm_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	const struct param *w = &g->params[n->param[0]];
	return 4.0 * (double)g->tensors[n->in[0]].n_rows * (double)w->rows * (double)w->cols;
}

static double lstm_backward_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return 2 * lstm_flops(g, n, seq_len);
}

/* Direction i of a tensor that has both. */
static struct mat direction(struct mat m, int i)
{
	m.cols /= 2;
	m.data = (uint8_t *)m.data + (size_t)(i * m.cols) * dtype_size(m.dtype);
	return m;
}

static void lstm_run(struct run *r, const struct node *n)
{
	for (int i = 0; i < 2; i++) {
		lstm_forward(r->backend, direction(run_mat(r, n->out[0]), i),
			direction(run_mat(r, n->out[1]), i), direction(run_mat(r, n->out[2]), i),
			run_mat(r, n->in[i]), run_param(r, n->param[i]), run_param(r, n->param[2 + i]), i == 1);
	}
}

const struct op op_lstm = {
	.name = "lstm",
	.backward = lstm_differentiate,
	.flops = lstm_flops,
	.run = lstm_run,
};

static void lstm_backward_run(struct run *r, const struct node *n)
{
	for (int i = 0; i < 2; i++) {
		lstm_backward(r->backend, run_mat(r, n->out[i]), run_grad(r, n->param[i]),
			run_grad(r, n->param[2 + i]), direction(run_mat(r, n->in[0]), i),
			direction(run_mat(r, n->in[1]), i), direction(run_mat(r, n->in[2]), i),
			direction(run_mat(r, n->in[3]), i), run_param(r, n->param[i]), i == 1);
	}
}

const struct op op_lstm_backward = {
	.name = "lstm_backward",
	.flops = lstm_backward_flops,
	.run = lstm_backward_run,
};

/* ---- dropout in an encoder ----------------------------------------------------------------- */

int graph_dropout_fixed(struct graph *g, int x, float p)
{
	struct node n = graph_node_init(&op_dropout_fixed);
	n.in[0] = x;
	n.p = p;
	n.site = g->n_sites++;
	n.out[0] = like(g, x, g->dtype, RECOMPUTE_NEVER);
	graph_append(g, &n, false);
	return n.out[0];
}

static void dropout_fixed_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy == NONE || !autodiff_needs(ad, n->in[0])) {
		return;
	}
	struct node b = graph_node_init(&op_dropout_fixed_backward);
	b.in[0] = dy;
	b.p = n->p;
	b.site = n->site;
	b.out[0] = like(ad->g, n->in[0], ad->g->dtype, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	autodiff_add(ad, n->in[0], b.out[0]);
}

static void dropout_fixed_run(struct run *r, const struct node *n)
{
	/* No sequence has this number, so no mask of a sequence is this one. */
	struct rng_key key = {r->seed, rng_stream(RNG_DROPOUT, r->step, (uint64_t)n->site, UINT64_MAX)};
	struct mat y = run_mat(r, n->out[0]), x = run_mat(r, n->in[0]);
	if (r->training) {
		dropout(r->backend, y, x, n->p, key, false);
	} else {
		cast(r->backend, y, x);
	}
}

const struct op op_dropout_fixed = {
	.name = "dropout_fixed",
	.backward = dropout_fixed_differentiate,
	.run = dropout_fixed_run,
};

const struct op op_dropout_fixed_backward = {
	.name = "dropout_fixed_backward",
	.run = dropout_fixed_run,
};
