/* Head and loss: logits of each sequence's last row, or the loss with all of its gradients. */
#include <assert.h>

#include "engine/base.h"
#include "engine/ops.h"
#include "util/util.h"

static int prepare_slot(struct run *r, int slot, unsigned uses, int64_t rows, struct errmsg *err)
{
	const struct weight *w = &r->g->weights[slot];
	return linear_prepare(r->backend, w->rows, w->cols, r->g->dtype, uses, rows, err);
}

/* ---- head ---------------------------------------------------------------------------------- */

/* in: x. out: dx (where wanted) and workspace; or logits, x·Aᵀ (where adapted) and the rows of x that
 * they are of. */
void graph_head(struct graph *g, int x, int weight, const struct low_rank *l)
{
	const struct weight *w = &g->weights[weight];
	bool loss = g->purpose == GRAPH_TRAIN;
	struct node n = graph_node_init(loss ? &op_lm_loss : &op_logits);
	n.in[0] = x;
	n.weight = weight;
	if (l) {
		n.low_rank = *l;
	}
	int64_t rank = l ? l->rank : 0;
	if (loss) {
		size_t bytes = !g->backend ? 0 : lm_head_adapted_workspace(g->backend, w->rows, w->cols,
			g->dtype, g->tokens, rank);
		if (g->tensors[x].needs_grad) {
			n.out[0] = like(g, x, g->dtype, RECOMPUTE_NEVER);
		}
		n.out[1] = graph_tensor(g, DTYPE_F32, ROWS_BYTES, (int64_t)bytes, RECOMPUTE_NEVER);
	} else {
		n.out[0] = graph_tensor_fixed(g, DTYPE_F32, g->max_seqs, w->rows, RECOMPUTE_NEVER);
		if (l) {
			n.out[1] = graph_tensor_fixed(g, g->dtype, g->max_seqs, rank, RECOMPUTE_NEVER);
		}
		n.out[2] = graph_tensor_fixed(g, g->dtype, g->max_seqs, w->cols, RECOMPUTE_NEVER);
	}
	/* Gradients of its parameters are made with the loss: nothing is left to differentiate. */
	graph_append(g, &n, false);
}

static int head_param(const struct graph *g, const struct node *n)
{
	return g->weights[n->weight].parts[0].param;
}

/* Loss and gradient are made together, chunk by chunk: the gradient is there already. */
static void lm_loss_differentiate(struct autodiff *ad, const struct node *n)
{
	if (n->out[0] != NONE) {
		autodiff_add(ad, n->in[0], n->out[0]);
	}
}

static double head_flops(const struct graph *g, const struct node *n)
{
	const struct weight *w = &g->weights[n->weight];
	double low_rank = n->low_rank.a != NONE ? (double)n->low_rank.rank * (double)(w->rows + w->cols) : 0;
	return 2.0 * (double)g->tokens * ((double)w->rows * (double)w->cols + low_rank);
}

static double lm_loss_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	bool trains = g->trainable && head_param(g, n) != NONE;
	return (1 + (n->out[0] != NONE) + trains) * head_flops(g, n);
}

static int lm_loss_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	unsigned uses = PACKED_FORWARD | (n->out[0] != NONE ? PACKED_BACKWARD : 0u);
	return head_param(r->g, n) != NONE ? 0 :
		prepare_slot(r, n->weight, uses, r->g->tokens, err);
}

static void lm_loss_run(struct run *r, const struct node *n)
{
	int param = head_param(r->g, n);
	const struct low_rank *l = &n->low_rank;
	bool adapted = l->a != NONE;
	struct lm_head h = {
		.packed = param == NONE ? base_packed(r->base, n->weight) : NULL,
		.w = run_param(r, param),
		.a = run_param(r, l->a),
		.b = run_param(r, adapted ? l->parts[0].b : NONE),
		.scale = adapted ? l->parts[0].scale : 0,
		.softcap = (float)r->g->config.final_logit_softcapping,
	};
	if (r->grads) {
		h.dw = run_grad(r, param);
		h.da = run_grad(r, l->a);
		h.db = run_grad(r, adapted ? l->parts[0].b : NONE);
	}
	struct mat dx = run_mat(r, r->training ? n->out[0] : NONE);
	lm_head_adapted_loss(r->backend, dx, r->loss_sum, run_mat(r, n->in[0]), r->targets, &h,
		r->grad_scale, !r->training || !r->grads, run_mat(r, n->out[1]).data);
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
	return head_flops(g, n) / (double)g->tokens * (double)g->max_seqs;
}

static int logits_ready(struct run *r, const struct node *n, struct errmsg *err)
{
	const struct weight *w = &r->g->weights[n->weight];
	const struct low_rank *l = &n->low_rank;
	enum dtype dt = r->g->dtype;
	int64_t rows = r->g->max_seqs;
	int res = 0;
	if (head_param(r->g, n) == NONE) {
		res = prepare_slot(r, n->weight, PACKED_FORWARD, rows, err);
	} else {
		res = matmul_prepare(r->backend, rows, w->rows, w->cols, false, true, dt, DTYPE_F32, err);
	}
	if (res == 0 && l->a != NONE) {
		res = matmul_prepare(r->backend, rows, l->rank, w->cols, false, true, dt, dt, err);
	}
	if (res == 0 && l->a != NONE) {
		res = matmul_prepare(r->backend, rows, w->rows, l->rank, false, true, dt, DTYPE_F32, err);
	}
	return res;
}

static void logits_run(struct run *r, const struct node *n)
{
	const struct low_rank *l = &n->low_rank;
	int param = head_param(r->g, n);
	struct mat all = run_mat(r, n->in[0]), x = run_mat(r, n->out[2]), y = run_mat(r, n->out[0]);
	assert(r->n_seqs <= x.rows);
	for (int64_t i = 0; i < r->n_seqs; i++) {
		struct mat to = x, from = all;
		to.data = (uint8_t *)x.data + (size_t)(i * x.stride) * dtype_size(x.dtype);
		from.data = (uint8_t *)all.data +
			(size_t)((r->seq_start[i] + r->seq_len[i] - 1) * all.stride) * dtype_size(all.dtype);
		to.rows = from.rows = 1;
		cast(r->backend, to, from);
	}
	x.rows = y.rows = r->n_seqs;
	if (param == NONE) {
		linear_forward(r->backend, y, x, base_packed(r->base, n->weight),
			base_bias(r->base, n->weight));
	} else {
		matmul(r->backend, y, x, false, run_param(r, param), true, 1, 0);
	}
	if (l->a != NONE) {
		struct mat h = run_mat(r, n->out[1]);
		h.rows = r->n_seqs;
		matmul(r->backend, h, x, false, run_param(r, l->a), true, 1, 0);
		matmul(r->backend, y, h, false, run_param(r, l->parts[0].b), true, l->parts[0].scale, 1);
	}
	if (r->g->config.final_logit_softcapping > 0) {
		softcap(r->backend, y, (float)r->g->config.final_logit_softcapping);
	}
}

const struct op op_logits = {
	.name = "logits",
	.flops = logits_flops,
	.prepare = logits_ready,
	.run = logits_run,
};
