/* Operations inside a transformer block: rotary embedding, gated MLP, sum. */
#include "engine/model/rope.h"
#include "engine/ops.h"
#include "util/util.h"

/* ---- rotary position embedding ------------------------------------------------------------- */

/* arg[0]: table. */
static int add_rope(struct graph *g, int x, const struct node *as, bool inverse,
	enum recompute recompute)
{
	struct node n = graph_node_init(&op_rope);
	n.in[0] = x;
	n.n_heads = as->n_heads;
	n.arg[0] = as->arg[0];
	n.inverse = inverse;
	n.out[0] = like(g, x, g->dtype, recompute);
	graph_append(g, &n, false);
	return n.out[0];
}

int graph_rope(struct graph *g, int x, int64_t n_heads, int table)
{
	assert(table >= 0 && table < ROPE_TABLES);
	const struct node as = {.n_heads = n_heads, .arg = {table}};
	g->n_rope_tables = table >= g->n_rope_tables ? table + 1 : g->n_rope_tables;
	return add_rope(g, x, &as, false, g->region);
}

static void rope_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy != NONE) {
		autodiff_add(ad, n->in[0], add_rope(ad->g, dy, n, !n->inverse, RECOMPUTE_NEVER));
	}
}

static void rope_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]), x = run_mat(r, n->in[0]);
	if (y.data != x.data) {
		cast(r->backend, y, x);
	}
	const struct model_config *c = &r->g->config;
	y.cols = n->n_heads * c->head_dim;
	rope(r->backend, y, r->positions, r->cos_sin[n->arg[0]], n->n_heads, c->head_dim, rope_dim(c),
		n->inverse);
}

const struct op op_rope = {
	.name = "rope",
	.backward = rope_differentiate,
	.run = rope_run,
	.inplace = {1u << 0},
};

/* ---- order of columns ----------------------------------------------------------------------- */

/* n_heads; arg[0]: parts. inverse: from parts of heads to heads of parts. */
static int add_split_heads(struct graph *g, int x, int64_t n_heads, int64_t n_parts, bool inverse,
	enum recompute recompute)
{
	struct node n = graph_node_init(&op_split_heads);
	n.in[0] = x;
	n.n_heads = n_heads;
	n.arg[0] = n_parts;
	n.inverse = inverse;
	n.out[0] = like(g, x, g->dtype, recompute);
	graph_append(g, &n, false);
	return n.out[0];
}

int graph_split_heads(struct graph *g, int x, int64_t n_heads, int64_t n_parts)
{
	return add_split_heads(g, x, n_heads, n_parts, false, g->region);
}

static void split_heads_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy != NONE && autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], add_split_heads(ad->g, dy, n->n_heads, n->arg[0], !n->inverse,
			RECOMPUTE_NEVER));
	}
}

static void split_heads_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]), x = run_mat(r, n->in[0]);
	int64_t heads = n->n_heads, parts = n->arg[0], d = x.cols / (heads * parts);
	for (int64_t h = 0; h < heads; h++) {
		for (int64_t p = 0; p < parts; p++) {
			int64_t by_head = (h * parts + p) * d, by_part = (p * heads + h) * d;
			cast(r->backend, columns(y, n->inverse ? by_head : by_part, d),
				columns(x, n->inverse ? by_part : by_head, d));
		}
	}
}

const struct op op_split_heads = {
	.name = "split_heads",
	.backward = split_heads_differentiate,
	.run = split_heads_run,
};

/* ---- gated activation ---------------------------------------------------------------------- */

/* arg[0]: which function. */
int graph_gated(struct graph *g, int gate_up, enum activation kind)
{
	struct node n = graph_node_init(&op_gated);
	n.in[0] = gate_up;
	n.arg[0] = (int64_t)kind;
	n.out[0] = act(g, gate_up, g->tensors[gate_up].cols / 2, RECOMPUTE_CHEAP);
	graph_append(g, &n, false);
	return n.out[0];
}

static void gated_differentiate(struct autodiff *ad, const struct node *n)
{
	int dh = autodiff_grad(ad, n->out[0]);
	if (dh == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_gated_backward);
	b.in[0] = dh;
	b.in[1] = autodiff_use(ad, n->in[0]);
	b.arg[0] = n->arg[0];
	b.out[0] = like(ad->g, n->in[0], ad->g->dtype, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	autodiff_add(ad, n->in[0], b.out[0]);
}

static struct mat half(struct mat m, int which)
{
	return columns(m, which * (m.cols / 2), m.cols / 2);
}

static void gated_run(struct run *r, const struct node *n)
{
	struct mat gate_up = run_mat(r, n->in[0]);
	gated_forward(r->backend, run_mat(r, n->out[0]), half(gate_up, 0), half(gate_up, 1),
		(enum activation)n->arg[0]);
}

const struct op op_gated = {
	.name = "gated",
	.backward = gated_differentiate,
	.run = gated_run,
};

static void gated_backward_run(struct run *r, const struct node *n)
{
	struct mat gate_up = run_mat(r, n->in[1]), d = run_mat(r, n->out[0]);
	gated_backward(r->backend, half(d, 0), half(d, 1), run_mat(r, n->in[0]), half(gate_up, 0),
		half(gate_up, 1), (enum activation)n->arg[0]);
}

const struct op op_gated_backward = {
	.name = "gated_backward",
	.run = gated_backward_run,
	.inplace = {1u << 1},
};

/* ---- sum ----------------------------------------------------------------------------------- */

static void add_run(struct run *r, const struct node *n)
{
	add(r->backend, run_mat(r, n->out[0]), run_mat(r, n->in[0]), run_mat(r, n->in[1]));
}

const struct op op_add = {
	.name = "add",
	.run = add_run,
	.inplace = {1u << 0 | 1u << 1},
};
