/* Operations inside a transformer block: norm, rotary embedding, attention, gated MLP, sum. */
#include <assert.h>
#include <math.h>

#include "engine/base.h"
#include "engine/ops.h"
#include "engine/ops_peft.h"
#include "util/util.h"

/* ---- RMSNorm with residual ----------------------------------------------------------------- */

/* in: x, delta. out: y, sum (where there is a delta), rstd. */
struct normed graph_rmsnorm(struct graph *g, int x, int delta, int weight)
{
	int64_t d = g->weights[weight].cols;
	struct node n = graph_node_init(&op_rmsnorm);
	n.in[0] = x;
	n.in[1] = delta;
	n.weight = weight;
	n.out[0] = act(g, d, RECOMPUTE_CHEAP);
	n.out[1] = delta != NONE ? act(g, d, g->region) : NONE;
	n.out[2] = graph_tensor(g, DTYPE_F32, ROWS_TOKENS, 1, RECOMPUTE_NEVER);
	graph_append(g, &n, g->trainable && g->weights[weight].parts[0].param != NONE);
	if (n.out[1] != NONE) {
		/* The weight lies upstream of the norm, not of the sum. */
		g->tensors[n.out[1]].needs_grad = g->tensors[x].needs_grad || g->tensors[delta].needs_grad;
	}
	return (struct normed){n.out[0], delta != NONE ? n.out[1] : x};
}

/* Where the sum is kept, the norm starts from it. */
static void rmsnorm_again(struct autodiff *ad, const struct node *original, struct node *copy)
{
	int sum = original->out[1];
	if (sum != NONE && ad->level < ad->g->tensors[sum].recompute) {
		copy->in[0] = sum;
		copy->in[1] = NONE;
		copy->out[1] = NONE;
	}
}

static void rmsnorm_differentiate(struct autodiff *ad, const struct node *n)
{
	struct graph *g = ad->g;
	int sum = n->out[1] != NONE ? n->out[1] : n->in[0];
	int dy = autodiff_grad(ad, n->out[0]);
	int dsum = n->out[1] != NONE ? autodiff_grad(ad, sum) : NONE;
	int dx = dsum;
	bool needs_dx = autodiff_needs(ad, n->in[0]) || autodiff_needs(ad, n->in[1]);
	if (!needs_dx && g->weights[n->weight].parts[0].param == NONE) {
		return;
	}
	if (dy != NONE) {
		/* Where there is no delta, x's gradient by its other uses takes the residual's place. */
		int other = n->out[1] != NONE ? dsum : autodiff_grad(ad, n->in[0]);
		struct node b = graph_node_init(&op_rmsnorm_backward);
		b.in[0] = dy;
		b.in[1] = other;
		b.in[2] = autodiff_use(ad, sum);
		b.in[3] = n->out[2];
		b.weight = n->weight;
		b.out[0] = act(g, g->tensors[sum].cols, RECOMPUTE_NEVER);
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

static const void *norm_weight(const struct run *r, const struct node *n)
{
	int param = r->g->weights[n->weight].parts[0].param;
	return param != NONE ? run_param(r, param).data : base_mat(r->base, n->weight).data;
}

static void rmsnorm_run(struct run *r, const struct node *n)
{
	rmsnorm_forward(r->backend, run_mat(r, n->out[0]), run_mat(r, n->out[1]),
		run_mat(r, n->out[2]).data, run_mat(r, n->in[0]), run_mat(r, n->in[1]),
		norm_weight(r, n), (float)r->g->config.rms_norm_eps);
}

const struct op op_rmsnorm = {
	.name = "rmsnorm",
	.backward = rmsnorm_differentiate,
	.again = rmsnorm_again,
	.run = rmsnorm_run,
};

static void rmsnorm_backward_run(struct run *r, const struct node *n)
{
	int param = r->g->weights[n->weight].parts[0].param;
	float *dw = r->grads && param != NONE ? run_grad(r, param).data : NULL;
	rmsnorm_backward(r->backend, run_mat(r, n->out[0]), dw, run_mat(r, n->in[0]),
		run_mat(r, n->in[1]), run_mat(r, n->in[2]), run_mat(r, n->in[3]).data, norm_weight(r, n));
}

const struct op op_rmsnorm_backward = {
	.name = "rmsnorm_backward",
	.run = rmsnorm_backward_run,
	.inplace = {1u << 0 | 1u << 1},
};

/* ---- rotary position embedding ------------------------------------------------------------- */

static int add_rope(struct graph *g, int x, int64_t n_heads, bool inverse, enum recompute recompute)
{
	struct node n = graph_node_init(&op_rope);
	n.in[0] = x;
	n.n_heads = n_heads;
	n.inverse = inverse;
	n.out[0] = act(g, g->tensors[x].cols, recompute);
	graph_append(g, &n, false);
	return n.out[0];
}

int graph_rope(struct graph *g, int x, int64_t n_heads)
{
	return add_rope(g, x, n_heads, false, g->region);
}

static void rope_differentiate(struct autodiff *ad, const struct node *n)
{
	int dy = autodiff_grad(ad, n->out[0]);
	if (dy != NONE) {
		int dx = add_rope(ad->g, dy, n->n_heads, !n->inverse, RECOMPUTE_NEVER);
		autodiff_add(ad, n->in[0], dx);
	}
}

static void rope_run(struct run *r, const struct node *n)
{
	struct mat y = run_mat(r, n->out[0]), x = run_mat(r, n->in[0]);
	if (y.data != x.data) {
		cast(r->backend, y, x);
	}
	int64_t head_dim = r->g->config.head_dim;
	y.cols = n->n_heads * head_dim;
	rope(r->backend, y, r->positions, r->cos_sin, n->n_heads, head_dim, n->inverse);
}

const struct op op_rope = {
	.name = "rope",
	.backward = rope_differentiate,
	.run = rope_run,
	.inplace = {1u << 0},
};

/* ---- attention ----------------------------------------------------------------------------- */

static struct attention attention_shape(const struct model_config *c)
{
	return (struct attention){
		.n_heads = c->num_attention_heads,
		.n_kv_heads = c->num_key_value_heads,
		.head_dim = c->head_dim,
		.scale = (float)(1.0 / sqrt((double)c->head_dim)),
		.causal = true,
	};
}

struct qkv {
	struct mat q, k, v;
};

static struct qkv split_qkv(const struct model_config *c, struct mat m)
{
	struct qkv s = {m, m, m};
	int64_t q = c->num_attention_heads * c->head_dim, kv = c->num_key_value_heads * c->head_dim;
	size_t size = dtype_size(m.dtype);
	s.q.cols = q;
	s.k.cols = s.v.cols = kv;
	s.k.data = (uint8_t *)m.data + (size_t)q * size;
	s.v.data = (uint8_t *)m.data + (size_t)(q + kv) * size;
	return s;
}

static int attention_scratch(struct graph *g)
{
	struct attention a = attention_shape(&g->config);
	size_t bytes = attention_workspace(g->backend, &a, max_i64(g->tokens, g->context), g->max_seqs);
	return graph_tensor(g, DTYPE_F32, ROWS_BYTES, (int64_t)bytes, RECOMPUTE_NEVER);
}

/* in: qkv, prefix (or none; arg[0] is the layer whose columns it is). out: o, lse (where a backward
 * pass follows), workspace. */
int graph_attention_prefix(struct graph *g, int qkv, int prefix, int64_t layer)
{
	const struct model_config *c = &g->config;
	bool cached = g->purpose == GRAPH_GENERATE;
	struct node n = graph_node_init(cached ? &op_attention_cached : &op_attention);
	n.in[0] = qkv;
	n.in[1] = prefix;
	n.arg[0] = layer;
	n.out[0] = act(g, c->num_attention_heads * c->head_dim, g->region);
	if (cached) {
		n.site = g->n_caches++;
	} else if (g->tensors[qkv].needs_grad || (prefix != NONE && g->tensors[prefix].needs_grad)) {
		n.out[1] = graph_tensor(g, DTYPE_F32, ROWS_TOKENS, c->num_attention_heads, g->region);
	}
	n.out[2] = attention_scratch(g);
	graph_append(g, &n, false);
	return n.out[0];
}

int graph_attention(struct graph *g, int qkv)
{
	return graph_attention_prefix(g, qkv, NONE, 0);
}

/* A layer's keys (which 0) or values (1) of a prefix[n, layers · 2 · kv]. */
static struct mat prefix_part(const struct run *r, const struct node *n, struct mat prefix,
	int64_t which)
{
	const struct model_config *c = &r->g->config;
	int64_t kv = c->num_key_value_heads * c->head_dim;
	prefix.data = (uint8_t *)prefix.data +
		(size_t)((2 * n->arg[0] + which) * kv) * dtype_size(prefix.dtype);
	prefix.cols = kv;
	return prefix;
}

static void set_prefix(struct attention *a, const struct run *r, const struct node *n, int prefix)
{
	if (prefix != NONE) {
		struct mat m = run_mat(r, prefix);
		a->prefix_len = m.rows;
		a->k_prefix = prefix_part(r, n, m, 0);
		a->v_prefix = prefix_part(r, n, m, 1);
	}
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
	b.arg[0] = n->arg[0];
	b.out[0] = act(g, g->tensors[n->in[0]].cols, RECOMPUTE_NEVER);
	b.out[1] = attention_scratch(g);
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

/* Two products of S/2 keys a token on average, causal, and of all the prefix. */
static double attention_cost(const struct graph *g, int prefix, int64_t seq_len)
{
	const struct model_config *c = &g->config;
	int64_t keys = seq_len + 1 + (prefix != NONE ? 2 * g->tensors[prefix].n_rows : 0);
	return 2.0 * (double)g->tokens * (double)keys *
		(double)(c->num_attention_heads * c->head_dim);
}

static double attention_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return attention_cost(g, n->in[1], seq_len);
}

static double attention_backward_flops(const struct graph *g, const struct node *n, int64_t seq_len)
{
	return 2.5 * attention_cost(g, n->in[4], seq_len);
}

static struct attention attention_of_run(const struct run *r)
{
	struct attention a = attention_shape(&r->g->config);
	a.n_seqs = r->n_seqs;
	a.q_start = a.k_start = r->seq_start;
	a.q_len = a.k_len = r->seq_len;
	return a;
}

static void attention_run(struct run *r, const struct node *n)
{
	struct attention a = attention_of_run(r);
	struct qkv s = split_qkv(&r->g->config, run_mat(r, n->in[0]));
	set_prefix(&a, r, n, n->in[1]);
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
	struct attention a = attention_of_run(r);
	struct qkv s = split_qkv(&r->g->config, run_mat(r, n->in[3]));
	struct qkv d = split_qkv(&r->g->config, run_mat(r, n->out[0]));
	set_prefix(&a, r, n, n->in[4]);
	if (n->out[2] != NONE) {
		struct mat dp = run_mat(r, n->out[2]);
		if (n->in[5] == NONE) {
			fill_zero(r->backend, dp);
		} else if (dp.data != run_mat(r, n->in[5]).data) {
			cast(r->backend, dp, run_mat(r, n->in[5]));
		}
		a.dk_prefix = prefix_part(r, n, dp, 0);
		a.dv_prefix = prefix_part(r, n, dp, 1);
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

/* One sequence: its new keys and values join those in the cache, all of which its queries see. */
static void attention_cached_run(struct run *r, const struct node *n)
{
	const struct model_config *c = &r->g->config;
	struct kv_cache *cache = r->cache;
	struct qkv s = split_qkv(c, run_mat(r, n->in[0]));
	size_t row = (size_t)s.k.cols * dtype_size(r->g->dtype);
	size_t layer = (size_t)cache->capacity * row;
	struct mat keys = {.data = cache->memory + 2 * (size_t)n->site * layer, .dtype = r->g->dtype,
		.rows = cache->len + r->rows, .cols = s.k.cols, .stride = s.k.cols};
	struct mat values = keys, k_new = keys, v_new = keys;
	assert(keys.rows <= cache->capacity);
	values.data = (uint8_t *)keys.data + layer;
	k_new.data = (uint8_t *)keys.data + (size_t)cache->len * row;
	v_new.data = (uint8_t *)values.data + (size_t)cache->len * row;
	k_new.rows = v_new.rows = r->rows;
	cast(r->backend, k_new, s.k);
	cast(r->backend, v_new, s.v);

	const int32_t start = 0, q_len = (int32_t)r->rows, k_len = (int32_t)keys.rows;
	struct attention a = attention_shape(c);
	a.n_seqs = 1;
	a.q_start = a.k_start = &start;
	a.q_len = &q_len;
	a.k_len = &k_len;
	set_prefix(&a, r, n, n->in[1]);
	attention_forward(r->backend, run_mat(r, n->out[0]), NULL, s.q, keys, values, &a,
		run_mat(r, n->out[2]).data);
}

const struct op op_attention_cached = {
	.name = "attention_cached",
	.flops = attention_flops,
	.run = attention_cached_run,
};

/* ---- SwiGLU -------------------------------------------------------------------------------- */

int graph_swiglu(struct graph *g, int gate_up)
{
	struct node n = graph_node_init(&op_swiglu);
	n.in[0] = gate_up;
	n.out[0] = act(g, g->tensors[gate_up].cols / 2, RECOMPUTE_CHEAP);
	graph_append(g, &n, false);
	return n.out[0];
}

static void swiglu_differentiate(struct autodiff *ad, const struct node *n)
{
	int dh = autodiff_grad(ad, n->out[0]);
	if (dh == NONE) {
		return;
	}
	struct node b = graph_node_init(&op_swiglu_backward);
	b.in[0] = dh;
	b.in[1] = autodiff_use(ad, n->in[0]);
	b.out[0] = act(ad->g, ad->g->tensors[n->in[0]].cols, RECOMPUTE_NEVER);
	graph_append(ad->g, &b, false);
	autodiff_add(ad, n->in[0], b.out[0]);
}

static struct mat half(struct mat m, int which)
{
	m.cols /= 2;
	m.data = (uint8_t *)m.data + (size_t)(which * m.cols) * dtype_size(m.dtype);
	return m;
}

static void swiglu_run(struct run *r, const struct node *n)
{
	struct mat gate_up = run_mat(r, n->in[0]);
	swiglu_forward(r->backend, run_mat(r, n->out[0]), half(gate_up, 0), half(gate_up, 1));
}

const struct op op_swiglu = {
	.name = "swiglu",
	.backward = swiglu_differentiate,
	.run = swiglu_run,
};

static void swiglu_backward_run(struct run *r, const struct node *n)
{
	struct mat gate_up = run_mat(r, n->in[1]), d = run_mat(r, n->out[0]);
	swiglu_backward(r->backend, half(d, 0), half(d, 1), run_mat(r, n->in[0]), half(gate_up, 0),
		half(gate_up, 1));
}

const struct op op_swiglu_backward = {
	.name = "swiglu_backward",
	.run = swiglu_backward_run,
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
