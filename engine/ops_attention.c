/*
 * Attention of a stack to itself, with or without a cache of keys and values, and of a decoder to an
 * encoder's rows. Queries, keys and values lie side by side as one product made them.
 */
#include <math.h>

#include "engine/base.h"
#include "engine/ops.h"
#include "engine/ops_peft.h"
#include "util/util.h"

struct attention_spec attention_spec_of(const struct model_config *c)
{
	return (struct attention_spec){
		.n_heads = c->num_attention_heads,
		.n_kv_heads = c->num_key_value_heads,
		.head_dim = c->head_dim,
		.scale = (float)(1.0 / sqrt((double)c->head_dim)),
		.causal = true,
		.bias = NONE,
	};
}

/* ---- what a node attends with -------------------------------------------------------------- */

static int64_t q_cols(const struct attention_spec *s)
{
	return s->n_heads * s->head_dim;
}

static int64_t kv_cols(const struct attention_spec *s)
{
	return s->n_kv_heads * s->head_dim;
}

static struct attention attention_shape(const struct attention_spec *s)
{
	return (struct attention){
		.n_heads = s->n_heads,
		.n_kv_heads = s->n_kv_heads,
		.head_dim = s->head_dim,
		.scale = s->scale,
		.causal = s->causal,
		.window = s->window,
		.softcap = s->softcap,
	};
}

static int bias_param(const struct graph *g, const struct node *n)
{
	return n->attention.bias != NONE ? g->weights[n->attention.bias].parts[0].param : NONE;
}

static void set_bias(struct attention *a, const struct run *r, const struct node *n)
{
	if (n->attention.bias == NONE) {
		return;
	}
	int param = bias_param(r->g, n);
	a->bias = (struct attention_bias){
		.bias = param != NONE ? run_param(r, param) : base_mat(r->base, n->attention.bias),
		.bucket = r->g->buckets[n->attention.causal ? 0 : 1],
		.reach = r->g->reach,
	};
}

static int attention_scratch(struct graph *g, const struct attention_spec *s)
{
	struct attention a = attention_shape(s);
	if (s->bias != NONE) {
		a.bias.bias.rows = g->weights[s->bias].rows;
		a.bias.reach = g->reach;
	}
	int64_t rows = max_i64(g->tokens, g->context);
	size_t bytes = g->backend ? attention_workspace(g->backend, &a, rows, g->max_seqs) : 0;
	return graph_tensor(g, DTYPE_F32, ROWS_BYTES, (int64_t)bytes, RECOMPUTE_NEVER);
}

struct qkv {
	struct mat q, k, v;
};

static struct qkv split_qkv(const struct attention_spec *s, struct mat m)
{
	int64_t q = q_cols(s), kv = kv_cols(s);
	return (struct qkv){columns(m, 0, q), columns(m, q, kv), columns(m, q + kv, kv)};
}

/* A layer's keys (which 0) or values (1) of a prefix[n, layers · 2 · kv]. */
static struct mat prefix_part(const struct node *n, struct mat prefix, int64_t which)
{
	int64_t kv = kv_cols(&n->attention);
	return columns(prefix, (2 * n->arg[0] + which) * kv, kv);
}

static void set_prefix(struct attention *a, const struct run *r, const struct node *n, int prefix)
{
	if (prefix != NONE) {
		struct mat m = run_mat(r, prefix);
		a->prefix_len = m.rows;
		a->k_prefix = prefix_part(n, m, 0);
		a->v_prefix = prefix_part(n, m, 1);
	}
}

/* The sequences of tensor t's side as queries, those of `keys` as keys. */
static void set_sequences(struct attention *a, const struct run *r, int t, int keys)
{
	bool q_source = r->g->tensors[t].rows == ROWS_SOURCE;
	bool k_source = r->g->tensors[keys].rows == ROWS_SOURCE;
	a->n_seqs = r->n_seqs;
	a->q_start = q_source ? r->source.seq_start : r->seq_start;
	a->q_len = q_source ? r->source.seq_len : r->seq_len;
	a->k_start = k_source ? r->source.seq_start : r->seq_start;
	a->k_len = k_source ? r->source.seq_len : r->seq_len;
}

/* ---- of a stack to itself ------------------------------------------------------------------ */

/* in: qkv, prefix (or none; arg[0] is the layer whose columns it is). out: o, lse (where a backward
 * pass follows), workspace. */
int graph_attention_prefix(struct graph *g, int qkv, const struct attention_spec *spec, int prefix,
	int64_t layer)
{
	bool cached = g->purpose == GRAPH_GENERATE && g->tensors[qkv].rows == ROWS_TOKENS;
	struct node n = graph_node_init(cached ? &op_attention_cached : &op_attention);
	n.in[0] = qkv;
	n.in[1] = prefix;
	n.attention = *spec;
	n.arg[0] = layer;
	n.out[0] = act(g, qkv, q_cols(spec), g->region);
	bool trains = g->trainable && bias_param(g, &n) != NONE;
	if (cached) {
		n.site = g->n_caches++;
	} else if (trains || g->tensors[qkv].needs_grad ||
		(prefix != NONE && g->tensors[prefix].needs_grad)) {
		n.out[1] = rows_like(g, qkv, DTYPE_F32, spec->n_heads, g->region);
	}
	n.out[2] = attention_scratch(g, spec);
	graph_append(g, &n, trains);
	return n.out[0];
}

int graph_attention(struct graph *g, int qkv, const struct attention_spec *spec)
{
	return graph_attention_prefix(g, qkv, spec, NONE, 0);
}

static void attention_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	int d_o = autodiff_grad(ad, n->out[0]);
	if (d_o == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_attention_backward);
	b.in[0] = d_o;
	b.in[1] = autodiff_use(ad, n->out[0]);
	b.in[2] = autodiff_use(ad, n->out[1]);
	b.in[3] = autodiff_use(ad, n->in[0]);
	b.in[4] = autodiff_use(ad, n->in[1]);
	b.attention = n->attention;
	b.arg[0] = n->arg[0];
	b.out[0] = like(g, n->in[0], g->dtype, RECOMPUTE_NEVER);
	b.out[1] = attention_scratch(g, &n->attention);
	/* All layers add to one gradient of the prefix. */
	bool trains_prefix = autodiff_needs(ad, n->in[1]);
	if (trains_prefix) {
		struct tensor p = g->tensors[n->in[1]];
		b.in[5] = autodiff_grad(ad, n->in[1]);
		b.out[2] = graph_tensor_fixed(g, DTYPE_F32, p.n_rows, p.cols, RECOMPUTE_NEVER);
	}
	graph_append(g, &b, false);
	if (trains_prefix) {
		autodiff_set(ad, n->in[1], b.out[2]);
	}
	if (autodiff_needs(ad, n->in[0])) {
		autodiff_add(ad, n->in[0], b.out[0]);
	}
}

/* Keys that a query sees on average, in sequences of seq_len tokens, and of all the prefix. */
static double average_keys(const struct graph *g, const struct attention_spec *s, int prefix,
	int64_t seq_len)
{
	double n = (double)seq_len, w = (double)s->window, keys = s->causal ? (n + 1) / 2 : n;
	if (s->window > 0 && s->window < seq_len) {
		keys = w - w * (w - 1) / (2 * n);
	}
	return keys + (prefix != NONE ? (double)g->tensors[prefix].n_rows : 0);
}

/* Two products. */
static double attention_cost(const struct graph *g, const struct node *n, int prefix,
	int64_t seq_len)
{
	return 4.0 * (double)g->tokens * average_keys(g, &n->attention, prefix, seq_len) *
		(double)q_cols(&n->attention);
}

static double attention_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return attention_cost(g, n, n->in[1], seq_len);
}

static double attention_backward_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return 2.5 * attention_cost(g, n, n->in[4], seq_len);
}

static void attention_run(struct run *r, const struct node *n)
{
	struct attention a = attention_shape(&n->attention);
	struct qkv s = split_qkv(&n->attention, run_mat(r, n->in[0]));
	set_sequences(&a, r, n->in[0], n->in[0]);
	set_prefix(&a, r, n, n->in[1]);
	set_bias(&a, r, n);
	attention_forward(r->backend, run_mat(r, n->out[0]), run_mat(r, n->out[1]).data, s.q, s.k, s.v,
		&a, run_mat(r, n->out[2]).data);
}

const struct op op_attention = {
	.name = "attention",
	.backward = attention_differentiate,
	.flops = attention_flops,
	.run = attention_run,
};

static void attention_backward_run(struct run *r, const struct node *n)
{
	struct attention a = attention_shape(&n->attention);
	struct qkv s = split_qkv(&n->attention, run_mat(r, n->in[3]));
	struct qkv d = split_qkv(&n->attention, run_mat(r, n->out[0]));
	set_sequences(&a, r, n->in[3], n->in[3]);
	set_prefix(&a, r, n, n->in[4]);
	set_bias(&a, r, n);
	if (r->grads) {
		a.bias.dbias = run_grad(r, bias_param(r->g, n));
	}
	if (n->out[2] != NONE) {
		struct mat dp = run_mat(r, n->out[2]);
		if (n->in[5] == NONE) {
			fill_zero(r->backend, dp);
		} else if (dp.data != run_mat(r, n->in[5]).data) {
			cast(r->backend, dp, run_mat(r, n->in[5]));
		}
		a.dk_prefix = prefix_part(n, dp, 0);
		a.dv_prefix = prefix_part(n, dp, 1);
	}
	attention_backward(r->backend, d.q, d.k, d.v, run_mat(r, n->in[0]), run_mat(r, n->in[1]),
		run_mat(r, n->in[2]).data, s.q, s.k, s.v, &a, run_mat(r, n->out[1]).data);
}

const struct op op_attention_backward = {
	.name = "attention_backward",
	.flops = attention_backward_flops,
	.run = attention_backward_run,
	.inplace = {0, 0, 1u << 5},
};

static struct mat rows_of(struct mat m, int64_t first, int64_t n)
{
	m.data = (uint8_t *)m.data + (size_t)(first * m.stride) * dtype_size(m.dtype);
	m.rows = n;
	return m;
}

/* The new keys and values of each sequence join those it has in the cache, all of which its queries
 * see. */
static void attention_cached_run(struct run *r, const struct node *n)
{
	const struct kv_cache *cache = r->cache;
	struct qkv s = split_qkv(&n->attention, run_mat(r, n->in[0]));
	size_t row = (size_t)s.k.cols * dtype_size(r->g->dtype);
	size_t layer = (size_t)cache->capacity * row;
	struct mat keys = {.data = cache->memory + 2 * (size_t)n->site * layer, .dtype = r->g->dtype,
		.rows = cache->capacity, .cols = s.k.cols, .stride = s.k.cols};
	struct mat values = keys;
	values.data = (uint8_t *)keys.data + layer;
	for (int64_t i = 0; i < r->n_seqs; i++) {
		int64_t first = cache->start[i] + cache->len[i] - r->seq_len[i];
		assert(first >= cache->start[i] && first + r->seq_len[i] <= cache->capacity);
		cast(r->backend, rows_of(keys, first, r->seq_len[i]),
			rows_of(s.k, r->seq_start[i], r->seq_len[i]));
		cast(r->backend, rows_of(values, first, r->seq_len[i]),
			rows_of(s.v, r->seq_start[i], r->seq_len[i]));
	}

	struct attention a = attention_shape(&n->attention);
	a.n_seqs = r->n_seqs;
	a.q_start = r->seq_start;
	a.q_len = r->seq_len;
	a.k_start = cache->start;
	a.k_len = cache->len;
	set_prefix(&a, r, n, n->in[1]);
	set_bias(&a, r, n);
	attention_forward(r->backend, run_mat(r, n->out[0]), NULL, s.q, keys, values, &a,
		run_mat(r, n->out[2]).data);
}

const struct op op_attention_cached = {
	.name = "attention_cached",
	.flops = attention_flops,
	.run = attention_cached_run,
};

/* ---- of a decoder to an encoder's rows ----------------------------------------------------- */

/* in: q, kv. out: o, lse (where a backward pass follows), workspace. */
int graph_cross_attention(struct graph *g, int q, int kv, const struct attention_spec *spec)
{
	assert(!spec->causal && spec->bias == NONE);
	struct node n = graph_node_init(&op_cross_attention);
	n.in[0] = q;
	n.in[1] = kv;
	n.attention = *spec;
	n.out[0] = act(g, q, q_cols(spec), g->region);
	if (g->tensors[q].needs_grad || g->tensors[kv].needs_grad) {
		n.out[1] = rows_like(g, q, DTYPE_F32, spec->n_heads, g->region);
	}
	n.out[2] = attention_scratch(g, spec);
	graph_append(g, &n, false);
	return n.out[0];
}

static void cross_attention_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	int d_o = autodiff_grad(ad, n->out[0]);
	if (d_o == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_cross_attention_backward);
	b.in[0] = d_o;
	b.in[1] = autodiff_use(ad, n->out[0]);
	b.in[2] = autodiff_use(ad, n->out[1]);
	b.in[3] = autodiff_use(ad, n->in[0]);
	b.in[4] = autodiff_use(ad, n->in[1]);
	b.attention = n->attention;
	b.out[0] = like(g, n->in[0], g->dtype, RECOMPUTE_NEVER);
	b.out[1] = like(g, n->in[1], g->dtype, RECOMPUTE_NEVER);
	b.out[2] = attention_scratch(g, &n->attention);
	graph_append(g, &b, false);
	for (int i = 0; i < 2; i++) {
		if (autodiff_needs(ad, n->in[i])) {
			autodiff_add(ad, n->in[i], b.out[i]);
		}
	}
}

static double cross_attention_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return attention_cost(g, n, NONE, seq_len);
}

static double cross_attention_backward_flops(const struct graph *g, const struct node *n,
	int64_t seq_len)
{
	return 2.5 * attention_cost(g, n, NONE, seq_len);
}

static void cross_attention_run(struct run *r, const struct node *n)
{
	struct attention a = attention_shape(&n->attention);
	int64_t cols = kv_cols(&n->attention);
	struct mat kv = run_mat(r, n->in[1]);
	set_sequences(&a, r, n->in[0], n->in[1]);
	attention_forward(r->backend, run_mat(r, n->out[0]), run_mat(r, n->out[1]).data,
		run_mat(r, n->in[0]), columns(kv, 0, cols), columns(kv, cols, cols), &a,
		run_mat(r, n->out[2]).data);
}

const struct op op_cross_attention = {
	.name = "cross_attention",
	.backward = cross_attention_differentiate,
	.flops = cross_attention_flops,
	.run = cross_attention_run,
};

static void cross_attention_backward_run(struct run *r, const struct node *n)
{
	struct attention a = attention_shape(&n->attention);
	int64_t cols = kv_cols(&n->attention);
	struct mat kv = run_mat(r, n->in[4]), dkv = run_mat(r, n->out[1]);
	set_sequences(&a, r, n->in[3], n->in[4]);
	attention_backward(r->backend, run_mat(r, n->out[0]), columns(dkv, 0, cols),
		columns(dkv, cols, cols), run_mat(r, n->in[0]), run_mat(r, n->in[1]),
		run_mat(r, n->in[2]).data, run_mat(r, n->in[3]), columns(kv, 0, cols),
		columns(kv, cols, cols), &a, run_mat(r, n->out[2]).data);
}

const struct op op_cross_attention_backward = {
	.name = "cross_attention_backward",
	.flops = cross_attention_backward_flops,
	.run = cross_attention_backward_run,
};
