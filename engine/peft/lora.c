/*
 * LoRA: y += (alpha / r) · B·A·dropout(x). Hu et al. 2021; names, scaling and initialisation as in
 * PEFT's tuners/lora. rsLoRA (Kalajdzievski 2023) scales by alpha / sqrt(r); LoRA+ (Hayou et al. 2024,
 * PEFT's optimizers/loraplus.py) has another learning rate for B.
 *
 * Modules that share an input share one A[sum of r, in], one below the other, so that x·Aᵀ is one
 * product for q, k and v. With dropout each module has a mask of its own, as in PEFT, and so an A.
 */
#include "engine/peft/lora.h"
#include "engine/peft/peft.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base.h"
#include "engine/peft/decompose.h"
#include "util/cleanup.h"
#include "util/util.h"

struct lora_module {
	char name[MODULE_NAME_MAX];
	int64_t r, in, out;
	int a, b, m; /* parameters; m: DoRA's magnitudes, or NONE */
	int64_t row; /* of its part of a */
	bool embedding;
	size_t w_squares; /* of DoRA: place of its constants */
	size_t a0, b0;    /* of PiSSA and OLoRA: places of the factors that it started from */
};

struct lora {
	struct peft peft;
	struct lora_module *modules;
	size_t n_modules, cap_modules; /* cap: all modules that are targets */
	float *start; /* of PiSSA and OLoRA: the graph's constants, for exports */
};

static struct lora *lora_of(struct peft *p)
{
	return (struct lora *)p;
}

static const struct lora *lora_of_const(const struct peft *p)
{
	return (const struct lora *)p;
}

/* ---- hooks --------------------------------------------------------------------------------- */

static void lora_begin(struct peft *p, struct graph *g)
{
	lora_of(p)->n_modules = 0;
}

/* LoRA+ gives its ratio to B and to every vector; biases and norms then have no decay. */
static void plus_vector(const struct lora_config *c, struct graph *g, int param, bool no_decay)
{
	if (c->loraplus_lr_ratio > 0) {
		g->params[param].lr_scale = (float)c->loraplus_lr_ratio;
		g->params[param].no_decay = no_decay;
	}
}

/* Biases that `bias` trains, and modules_to_save. */
static void lora_weight(struct peft *p, struct graph *g, int slot)
{
	const struct lora_config *c = &p->config.lora;
	const struct weight w = g->weights[slot];
	for (int i = 0; i < w.n_parts; i++) {
		bool saved = lora_saves(c, w.parts[i].module);
		bool bias = c->bias == LORA_BIAS_ALL ||
			(c->bias == LORA_BIAS_LORA_ONLY && lora_targets(c, w.parts[i].module));
		if (saved) {
			int param = graph_train_weight(g, slot, i);
			if (w.kind == WEIGHT_VECTOR) {
				plus_vector(c, g, param, true);
			}
		}
		if (w.bias && (saved || bias)) {
			plus_vector(c, g, graph_train_bias(g, slot, i), true);
		}
	}
}

static struct lora_module *add_module(struct lora *l, const struct weight *w, int part)
{
	assert(l->n_modules < l->cap_modules);
	struct lora_module *m = &l->modules[l->n_modules++];
	*m = (struct lora_module){
		.r = lora_rank(&l->peft.config.lora, w->parts[part].module),
		.in = w->cols,
		.out = w->parts[part].rows,
		.a = NONE,
		.b = NONE,
		.m = NONE,
	};
	memcpy(m->name, w->parts[part].module, sizeof(m->name));
	return m;
}

/* Registers the factors of the parts [first, end) of a slot that are targets. */
static void add_factors(struct lora *l, struct graph *g, int slot, int first, int end,
	struct low_rank *lr)
{
	const struct lora_config *c = &l->peft.config.lora;
	const struct weight w = g->weights[slot];
	int64_t col = 0;
	size_t first_module = l->n_modules;
	*lr = (struct low_rank){.a = NONE};
	for (int i = 0; i < w.n_parts; col += w.parts[i++].rows) {
		if (i < first || i >= end || !lora_targets(c, w.parts[i].module)) {
			continue;
		}
		struct lora_module *m = add_module(l, &w, i);
		m->b = graph_param(g, m->out, m->r);
		m->row = lr->rank;
		plus_vector(c, g, m->b, false);

		int k = lr->n_parts++;
		lr->parts[k].b = m->b;
		lr->parts[k].col = col;
		lr->parts[k].cols = m->out;
		lr->parts[k].row = lr->rank;
		lr->parts[k].r = m->r;
		lr->parts[k].scale = (float)lora_scale(c, m->name);
		lr->rank += m->r;
	}
	if (lr->n_parts == 0) {
		return;
	}
	lr->a = graph_param(g, lr->rank, w.cols);
	for (size_t i = first_module; i < l->n_modules; i++) {
		l->modules[i].a = lr->a;
	}
}

/* Magnitudes for the modules from `first` on, which are the parts of `lr`. */
static int add_magnitudes(struct lora *l, struct graph *g, int u, int slot, size_t first,
	const struct low_rank *lr)
{
	int m[LINEAR_PARTS];
	size_t w_squares = graph_constant(g, (size_t)g->weights[slot].rows);
	for (int i = 0; i < lr->n_parts; i++) {
		struct lora_module *module = &l->modules[first + (size_t)i];
		m[i] = module->m = graph_param(g, 1, module->out);
		module->w_squares = w_squares + (size_t)lr->parts[i].col;
		plus_vector(&l->peft.config.lora, g, m[i], false);
	}
	return graph_dora(g, u, slot, lr, m, w_squares);
}

/*
 * PiSSA and OLoRA take s·B₀·A₀, with which the factors start, out of the base's weights. The base is
 * shared and stays as it is; the product is subtracted here.
 */
static int subtract_start(struct lora *l, struct graph *g, int y, int x, size_t first,
	const struct low_rank *lr)
{
	struct low_rank fixed = *lr;
	int64_t in = l->modules[first].in;
	size_t a0 = graph_constant(g, (size_t)(lr->rank * in));
	for (int i = 0; i < lr->n_parts; i++) {
		struct lora_module *m = &l->modules[first + (size_t)i];
		m->a0 = a0 + (size_t)(lr->parts[i].row * in);
		m->b0 = graph_constant(g, (size_t)(m->out * m->r));
		assert(m->b0 <= INT_MAX);
		fixed.parts[i].b = (int)m->b0;
		fixed.parts[i].scale = -lr->parts[i].scale;
	}
	return graph_fixed_low_rank(g, y, x, a0, &fixed);
}

/* Adds what the parts [first, end) of a site that are targets need. */
static int add_low_rank(struct lora *l, struct graph *g, const struct linear_site *site, int x,
	int y, int first, int end)
{
	struct low_rank lr;
	size_t first_module = l->n_modules;
	add_factors(l, g, site->weight, first, end, &lr);
	if (lr.n_parts == 0) {
		return y;
	}
	y = graph_low_rank(g, y, x, &lr);
	if (lora_decomposes(&l->peft.config.lora)) {
		y = subtract_start(l, g, y, x, first_module, &lr);
	}
	return l->peft.config.lora.use_dora
		? add_magnitudes(l, g, y, site->weight, first_module, &lr) : y;
}

static int lora_linear(struct peft *p, struct graph *g, const struct linear_site *site)
{
	struct lora *l = lora_of(p);
	const struct lora_config *c = &p->config.lora;
	int n = g->weights[site->weight].n_parts;
	if (c->lora_dropout <= 0 || !g->trainable) {
		return add_low_rank(l, g, site, site->x, site->y, 0, n);
	}
	int y = site->y;
	for (int i = 0; i < n; i++) {
		if (lora_targets(c, g->weights[site->weight].parts[i].module)) {
			int x = graph_dropout(g, site->x, (float)c->lora_dropout);
			y = add_low_rank(l, g, site, x, y, i, i + 1);
		}
	}
	return y;
}

static int lora_embedding(struct peft *p, struct graph *g, int slot, int x)
{
	/* PEFT's LoRA+ knows a learning rate of its own for these, and no way to set it. */
	const double plus_learning_rate = 1e-6;
	const struct lora_config *c = &p->config.lora;
	const struct weight w = g->weights[slot];
	if (!lora_targets(c, w.parts[0].module)) {
		return x;
	}
	struct lora_module *m = add_module(lora_of(p), &w, 0);
	m->embedding = true;
	m->in = w.rows;
	m->out = w.cols;
	m->a = graph_param(g, m->r, m->in);
	m->b = graph_param(g, m->out, m->r);
	if (c->loraplus_lr_ratio > 0) {
		g->params[m->a].learning_rate = g->params[m->b].learning_rate = plus_learning_rate;
	}
	return graph_embedding_low_rank(g, x, m->a, m->b, (float)lora_scale(c, m->name));
}

static bool lora_head(struct peft *p, struct graph *g, int slot, struct low_rank *ret)
{
	add_factors(lora_of(p), g, slot, 0, 1, ret);
	return ret->n_parts > 0;
}

/* ---- parameters ---------------------------------------------------------------------------- */

static size_t a_offset(const struct graph *g, const struct lora_module *m)
{
	return g->params[m->a].offset + (size_t)(m->row * m->in);
}

/* An embedding's A is zero and its B normal: the other way round than elsewhere. */
static void init_embedding(const struct lora_module *m, enum lora_init how, uint64_t seed,
	uint64_t index, float *a, float *b)
{
	peft_fill_normal(b, (size_t)(m->out * m->r), 0, 1, seed, index);
	if (how == LORA_INIT_RANDOM) {
		peft_fill_normal(a, (size_t)(m->r * m->in), 0, 1, seed, index + (1u << 20));
	}
}

/* A uniform in ±1/sqrt(in), kaiming_uniform with a = sqrt(5), as in PEFT; B zero. With
 * init_lora_weights false both are like torch's Linear. */
static void init_factors(const struct lora_module *m, enum lora_init how, uint64_t seed,
	uint64_t index, float *a, float *b)
{
	size_t n = (size_t)(m->r * m->in);
	if (how == LORA_INIT_GAUSSIAN) {
		peft_fill_normal(a, n, 0, 1.0 / (double)m->r, seed, index);
	} else {
		peft_fill_uniform(a, n, 1.0 / sqrt((double)m->in), seed, index);
	}
	if (how == LORA_INIT_RANDOM) {
		peft_fill_uniform(b, (size_t)(m->out * m->r), 1.0 / sqrt((double)m->r), seed,
			index + (1u << 20));
	}
}

/* The magnitudes start as the norms of the rows of W + s·B·A. */
static int init_magnitudes(const struct lora_config *c, const struct lora_module *m,
	const struct base_model *base, const float *a, const float *b, float *out, struct errmsg *err)
{
	_cleanup_(freep) float *w = alloc_array((size_t)m->out, (size_t)m->in * sizeof(*w));
	if (!w) {
		return -ENOMEM;
	}
	int r = base_read(base, m->name, "weight", m->out, m->in, w, err);
	double scale = lora_scale(c, m->name);
	for (int64_t i = 0; i < m->out && r == 0; i++) {
		double sum = 0;
		for (int64_t j = 0; j < m->in; j++) {
			double v = 0;
			for (int64_t k = 0; k < m->r; k++) {
				v += (double)b[i * m->r + k] * (double)a[k * m->in + j];
			}
			v = (double)w[i * m->in + j] + scale * v;
			sum += v * v;
		}
		out[i] = (float)sqrt(sum);
	}
	return r;
}

/* The factors of PiSSA and OLoRA, from the base's values; scaled so that s·B·A is the product. */
static int start_factors(const struct lora_config *c, const struct lora_module *m,
	const struct base_model *base, float *a, float *b, struct errmsg *err)
{
	const uint64_t seed = 0; /* not the job's: a folder of it must find the same factors again */
	_cleanup_(freep) float *w = alloc_array((size_t)m->out, (size_t)m->in * sizeof(*w));
	int r = w ? base_read(base, m->name, "weight", m->out, m->in, w, err) : -ENOMEM;
	if (r != 0) {
		return r;
	}
	if (c->init_lora_weights == LORA_INIT_OLORA) {
		return decompose_qr(w, m->out, m->in, m->r, a, b);
	}
	r = c->pissa_niter > 0 ? decompose_svd_random(w, m->out, m->in, m->r, c->pissa_niter, seed, a, b) :
		decompose_svd(w, m->out, m->in, m->r, a, b);
	float root = (float)(1 / sqrt(lora_scale(c, m->name)));
	for (int64_t i = 0; i < m->r * m->in && r == 0; i++) {
		a[i] *= root;
	}
	for (int64_t i = 0; i < m->out * m->r && r == 0; i++) {
		b[i] *= root;
	}
	return r == -EDOM ? errmsg_set(err, STATUS_FAILED, "%s: its singular values cannot be found; "
		"init_lora_weights pissa_niter_4 takes another way", m->name) : r;
}

static int lora_init(const struct peft *p, const struct graph *g, const struct base_model *base,
	uint64_t seed, float *flat, struct errmsg *err)
{
	const struct lora *l = lora_of_const(p);
	const struct lora_config *c = &p->config.lora;
	int r = 0;
	for (size_t i = 0; i < l->n_modules && r == 0; i++) {
		const struct lora_module *m = &l->modules[i];
		float *a = flat + a_offset(g, m), *b = flat + g->params[m->b].offset;
		if (m->embedding) {
			init_embedding(m, c->init_lora_weights, seed, i, a, b);
		} else if (lora_decomposes(c)) {
			r = start_factors(c, m, base, a, b, err);
		} else {
			init_factors(m, c->init_lora_weights, seed, i, a, b);
		}
		if (r == 0 && m->m != NONE) {
			r = init_magnitudes(c, m, base, a, b, flat + g->params[m->m].offset, err);
		}
	}
	return r ? r : peft_init_base(g, base, flat, err);
}

/* The squared norms of the rows of W, as the products have it. */
static int row_squares(const struct lora_module *m, enum dtype dtype, const struct base_model *base,
	float *out, struct errmsg *err)
{
	_cleanup_(freep) float *w = alloc_array((size_t)m->out, (size_t)m->in * sizeof(*w));
	int r = w ? base_read(base, m->name, "weight", m->out, m->in, w, err) : -ENOMEM;
	for (int64_t k = 0; k < m->out && r == 0; k++) {
		double sum = 0;
		for (int64_t j = 0; j < m->in; j++) {
			float v = w[k * m->in + j];
			v = dtype == DTYPE_BF16 ? bf16_to_f32(bf16_from_f32(v)) : v;
			sum += (double)v * (double)v;
		}
		out[k] = (float)sum;
	}
	return r;
}

static int lora_constants(struct peft *p, const struct graph *g, const struct base_model *base,
	float *host, struct errmsg *err)
{
	struct lora *l = lora_of(p);
	int r = 0;
	for (size_t i = 0; i < l->n_modules && r == 0; i++) {
		const struct lora_module *m = &l->modules[i];
		if (m->m != NONE) {
			r = row_squares(m, g->dtype, base, host + m->w_squares, err);
		}
		if (r == 0 && lora_decomposes(&p->config.lora)) {
			r = start_factors(&p->config.lora, m, base, host + m->a0, host + m->b0, err);
		}
	}
	if (r == 0 && lora_decomposes(&p->config.lora)) {
		free(l->start);
		l->start = alloc_array(g->constants, sizeof(*l->start));
		if (!l->start) {
			return -ENOMEM;
		}
		memcpy(l->start, host, g->constants * sizeof(*l->start));
	}
	return r;
}

/* Tensors of the modules: with DoRA three each, but an embedding has no magnitudes. */
static size_t per_module(const struct peft *p)
{
	return p->config.lora.use_dora ? 3 : 2;
}

static size_t tensor_elements(const struct peft_tensor *t)
{
	size_t n = 1;
	for (int i = 0; i < t->n_dims; i++) {
		n *= (size_t)t->dims[i];
	}
	return n;
}

static size_t lora_n_tensors(const struct peft *p, const struct graph *g)
{
	return per_module(p) * lora_of_const(p)->n_modules + peft_n_base_tensors(g);
}

/* A trained tensor of the base by PEFT's key. */
static void base_tensor(const struct peft *p, const struct graph *g, size_t i,
	struct peft_tensor *ret)
{
	struct peft_tensor t;
	peft_base_tensor(g, i, &t);
	*ret = t;
	char *dot = strrchr(t.name, '.');
	bool bias = strcmp(dot, ".bias") == 0;
	*dot = '\0';
	bool wrapped = bias && lora_targets(&p->config.lora, t.name);
	int r = lora_key(ret->name, sizeof(ret->name), t.name, wrapped ? LORA_TENSOR_BASE_BIAS :
		bias ? LORA_TENSOR_BIAS : LORA_TENSOR_WEIGHT);
	assert(r == 0);
	(void)r;
}

static void lora_tensor(const struct peft *p, const struct graph *g, size_t i,
	struct peft_tensor *ret)
{
	const struct lora *l = lora_of_const(p);
	size_t k = per_module(p);
	if (i >= k * l->n_modules) {
		base_tensor(p, g, i - k * l->n_modules, ret);
		return;
	}
	const struct lora_module *m = &l->modules[i / k];
	enum lora_tensor_kind kind;
	*ret = (struct peft_tensor){.n_dims = 2};
	switch (i % k) {
	case 0:
		kind = m->embedding ? LORA_TENSOR_EMBEDDING_A : LORA_TENSOR_A;
		ret->dims[0] = m->r;
		ret->dims[1] = m->in;
		ret->offset = a_offset(g, m);
		break;
	case 1:
		kind = m->embedding ? LORA_TENSOR_EMBEDDING_B : LORA_TENSOR_B;
		ret->dims[0] = m->out;
		ret->dims[1] = m->r;
		ret->offset = g->params[m->b].offset;
		break;
	default:
		kind = LORA_TENSOR_MAGNITUDE;
		ret->n_dims = 1;
		ret->dims[0] = m->out;
		ret->offset = g->params[m->m].offset;
		break;
	}
	int r = lora_key(ret->name, sizeof(ret->name), m->name, kind);
	assert(r == 0);
	(void)r;
}

/*
 * A folder of PiSSA or OLoRA as plain LoRA of twice the rank, which needs no changed base:
 * s·(B·A - B₀·A₀) = s·[B, -B₀]·[A; A₀], as PEFT's path_initial_model_for_weight_conversion makes it.
 */
static int lora_exported(const struct peft *p, const struct graph *g, const float *flat,
	struct peft_tensor **ret, size_t *ret_n, float **ret_data, struct errmsg *err)
{
	const struct lora *l = lora_of_const(p);
	size_t n = lora_n_tensors(p, g), elements = 0;
	_cleanup_(freep) struct peft_tensor *t = calloc_array(n, sizeof(*t));
	const float *constants = l->start;
	assert(constants);
	if (!t) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		lora_tensor(p, g, i, &t[i]);
		elements += i < 2 * l->n_modules ? 2 * tensor_elements(&t[i]) : tensor_elements(&t[i]);
	}
	_cleanup_(freep) float *data = alloc_array(elements, sizeof(*data));
	size_t at = 0;
	if (!data) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		const float *from = flat + t[i].offset;
		size_t size = tensor_elements(&t[i]);
		float *to = data + at;
		t[i].offset = at;
		if (i >= 2 * l->n_modules) {
			memcpy(to, from, size * sizeof(*to));
			at += size;
			continue;
		}
		const struct lora_module *m = &l->modules[i / 2];
		if (i % 2 == 0) {
			memcpy(to, from, size * sizeof(*to));
			memcpy(to + size, constants + m->a0, size * sizeof(*to));
			t[i].dims[0] *= 2;
		} else {
			for (int64_t k = 0; k < m->out * m->r; k++) {
				int64_t row = k / m->r, col = k % m->r;
				to[row * 2 * m->r + col] = from[k];
				to[row * 2 * m->r + m->r + col] = -constants[m->b0 + (size_t)k];
			}
			t[i].dims[1] *= 2;
		}
		at += 2 * size;
	}
	*ret = steal_ptr(t);
	*ret_n = n;
	*ret_data = steal_ptr(data);
	return 0;
}

/* PEFT saves the base's matrix beside the factors of embeddings and head. */
static bool lora_ignores(const struct peft *p, const struct graph *g, const char *key)
{
	char module[TENSOR_NAME_MAX];
	enum lora_tensor_kind kind;
	return lora_split_key(key, module, sizeof(module), &kind) && kind == LORA_TENSOR_BASE_WEIGHT;
}

static int describe_patterns(struct buf *out, const char *name, const struct patterns *p)
{
	int r = p->n > 0 ? buf_appendf(out, " %s=", name) : 0;
	for (size_t i = 0; i < p->n && r == 0; i++) {
		r = buf_appendf(out, "%s%s:%.17g", i ? "," : "", p->items[i].key, p->items[i].value);
	}
	return r;
}

static int lora_describe(const struct peft *p, struct buf *out)
{
	const struct lora_config *c = &p->config.lora;
	int r = buf_appendf(out, "lora r=%lld alpha=%.17g dropout=%.17g", (long long)c->r,
		c->lora_alpha, c->lora_dropout);
	r = r ? r : peft_describe_modules(out, "targets", &c->target_modules);
	/* What follows stands only where it is used. */
	r = r || !c->use_rslora ? r : buf_appendf(out, " rslora");
	r = r || !c->use_dora ? r : buf_appendf(out, " dora");
	r = r || c->bias == LORA_BIAS_NONE ? r : buf_appendf(out, " bias=%d", (int)c->bias);
	r = r || c->loraplus_lr_ratio <= 0 ? r : buf_appendf(out, " loraplus=%.17g",
		c->loraplus_lr_ratio);
	r = r || c->init_lora_weights == LORA_INIT_DEFAULT ? r : buf_appendf(out, " init=%d niter=%lld",
		(int)c->init_lora_weights, (long long)c->pissa_niter);
	r = r ? r : describe_patterns(out, "ranks", &c->rank_pattern);
	r = r ? r : describe_patterns(out, "alphas", &c->alpha_pattern);
	for (size_t i = 0; i < c->n_layers_to_transform && r == 0; i++) {
		r = buf_appendf(out, "%s%lld", i ? "," : " layers=", (long long)c->layers_to_transform[i]);
	}
	return r || c->modules_to_save.n == 0 ? r :
		peft_describe_modules(out, "saved", &c->modules_to_save);
}

/* ---- targets ------------------------------------------------------------------------------- */

static bool may_target(const struct weight *w)
{
	return w->adaptable || w->head || w->kind == WEIGHT_TABLE;
}

static bool any_module(const struct weight *w)
{
	return true;
}

/* Each of modules_to_save is there. */
static int check_saved(const struct lora_config *c, const struct graph *g, struct errmsg *err)
{
	for (size_t i = 0; i < c->modules_to_save.n; i++) {
		const struct lora_config one = {.modules_to_save = {&c->modules_to_save.names[i], 1, false}};
		bool found = false;
		for (int s = 0; s < g->n_weights; s++) {
			for (int k = 0; k < g->weights[s].n_parts; k++) {
				found |= lora_saves(&one, g->weights[s].parts[k].module);
			}
		}
		if (!found) {
			return peft_no_match(g, any_module, "lora.modules_to_save",
				c->modules_to_save.names[i], "module", err);
		}
	}
	return 0;
}

/* Keys of a map that match no target, or two keys with different values for one: PEFT takes the first
 * in an order that saving changes. */
static int check_map(const struct lora_config *c, const struct patterns *p, const char *field,
	const struct graph *g, struct errmsg *err)
{
	for (size_t k = 0; k < p->n; k++) {
		size_t matches = 0;
		for (int i = 0; i < g->n_weights; i++) {
			const struct weight *w = &g->weights[i];
			for (int j = 0; j < w->n_parts; j++) {
				const char *module = w->parts[j].module;
				if (!lora_targets(c, module) || !pattern_matches(p->items[k].key, module)) {
					continue;
				}
				matches++;
				double first = patterns_value(p, module, 0);
				if (first != p->items[k].value) {
					return errmsg_set(err, STATUS_INVALID, "%s: two keys match %s, with values %g "
						"and %g; each target may match one", field, module, first,
						p->items[k].value);
				}
			}
		}
		if (matches == 0) {
			return peft_no_match(g, may_target, field, p->items[k].key, "target", err);
		}
	}
	return 0;
}

static int check_ranks(const struct lora_config *c, const struct weight *w, struct errmsg *err)
{
	for (int k = 0; k < w->n_parts; k++) {
		const char *module = w->parts[k].module;
		int64_t rows = w->parts[k].rows, most = min_i64(rows, w->cols), r = lora_rank(c, module);
		if (lora_targets(c, module) && r > most) {
			bool by_pattern = patterns_value(&c->rank_pattern, module, 0) > 0;
			return errmsg_set(err, STATUS_INVALID, "lora.%s: %lld; at most %lld for %s, whose sides "
				"are %lld and %lld", by_pattern ? "rank_pattern" : "r", (long long)r,
				(long long)most, module, (long long)rows, (long long)w->cols);
		}
	}
	return 0;
}

/* What does not go together. */
static int check_combinations(const struct lora_config *c, const struct graph *g,
	struct errmsg *err)
{
	/* Dropout is nothing to an adapter that is only used. */
	bool dropout = c->lora_dropout > 0 && g->trainable;
	if (dropout && (c->use_dora || lora_decomposes(c))) {
		return errmsg_set(err, STATUS_INVALID, "lora.lora_dropout: with %s it is not there yet; set "
			"it to 0", c->use_dora ? "DoRA" : "PiSSA and OLoRA");
	}
	if (g->source && c->n_layers_to_transform > 0) {
		return errmsg_set(err, STATUS_INVALID, "lora.layers_to_transform: this model has an encoder "
			"and a decoder, of which it does not say whose layers; name modules in full");
	}
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		const char *first = w->parts[0].module;
		/* To PEFT an encoder-decoder's embedding is several modules with one tensor. */
		if (g->source && w->kind == WEIGHT_TABLE && (lora_targets(c, first) || lora_saves(c, first))) {
			return errmsg_set(err, STATUS_INVALID, "lora: %s of an encoder-decoder cannot be a "
				"target, nor be in modules_to_save", first);
		}
		int r = lora_decomposes(c) ? check_ranks(c, w, err) : 0;
		if (r != 0) {
			return r;
		}
		if (w->adaptable || !lora_targets(c, w->parts[0].module)) {
			continue;
		}
		if (lora_decomposes(c)) {
			return errmsg_set(err, STATUS_INVALID, "lora.init_lora_weights: PiSSA and OLoRA on %s "
				"are not there; leave it out of target_modules", w->parts[0].module);
		}
		if (c->use_dora) {
			return errmsg_set(err, STATUS_INVALID, "lora.use_dora: DoRA on %s is not there; leave "
				"it out of target_modules", w->parts[0].module);
		}
		if (w->head && dropout) {
			return errmsg_set(err, STATUS_INVALID, "lora.lora_dropout: dropout before %s is not "
				"there; set it to 0 or leave the head out of target_modules", w->parts[0].module);
		}
	}
	return 0;
}

/* Each layer that is named is there, and there are targets. */
static int check_modules(const struct lora_config *c, const struct graph *g, size_t *ret_n,
	struct errmsg *err)
{
	size_t n = 0;
	int r = check_combinations(c, g, err);
	if (r != 0) {
		return r;
	}
	for (size_t i = 0; i < c->n_layers_to_transform; i++) {
		if (c->layers_to_transform[i] >= g->config.num_hidden_layers) {
			return errmsg_set(err, STATUS_INVALID, "lora.layers_to_transform: %lld; this model has "
				"layers 0 to %lld", (long long)c->layers_to_transform[i],
				(long long)g->config.num_hidden_layers - 1);
		}
	}
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		for (int k = 0; k < w->n_parts; k++) {
			n += lora_targets(c, w->parts[k].module);
		}
	}
	if (n == 0) {
		return errmsg_set(err, STATUS_INVALID, "lora: layers_to_transform and modules_to_save "
			"leave no target of target_modules");
	}
	*ret_n = n;
	return 0;
}

/* Each entry of target_modules has a module left: without tensors for it a folder counts as torn. And
 * layers_to_transform has a say, which it has not on what is named in full. */
static int check_lost(const struct lora_config *c, const struct graph *g, struct errmsg *err)
{
	bool layered = c->n_layers_to_transform == 0;
	for (size_t t = 0; t < c->target_modules.n && !c->target_modules.is_regex; t++) {
		const struct modules one = {&c->target_modules.names[t], 1, false};
		bool left = false;
		for (int i = 0; i < g->n_weights; i++) {
			for (int k = 0; k < g->weights[i].n_parts; k++) {
				const char *module = g->weights[i].parts[k].module;
				bool has = modules_match(&one, module) && lora_targets(c, module);
				left |= has;
				layered |= has && strcmp(one.names[0], module) != 0;
			}
		}
		if (!left) {
			return errmsg_set(err, STATUS_INVALID, "lora.target_modules: modules_to_save and "
				"layers_to_transform leave no module of \"%s\", which must get an adapter or not be "
				"a target; leave it out", one.names[0]);
		}
	}
	return layered || c->target_modules.is_regex ? 0 : errmsg_set(err, STATUS_INVALID,
		"lora.layers_to_transform: has no effect, as target_modules names modules in full; leave it "
		"out");
}

static const struct peft_method lora_decomposed;

static int lora_start(struct peft *p, const struct graph *g, struct errmsg *err)
{
	struct lora *l = lora_of(p);
	struct lora_config *c = &p->config.lora;
	int r = peft_resolve_all_linear(&c->target_modules, g);
	r = r ? r : peft_check_targets(&c->target_modules, g, may_target, "lora.target_modules",
		"linear layer or embedding", err);
	r = r ? r : check_saved(c, g, err);
	r = r ? r : check_modules(c, g, &l->cap_modules, err);
	r = r ? r : check_map(c, &c->rank_pattern, "lora.rank_pattern", g, err);
	r = r ? r : check_map(c, &c->alpha_pattern, "lora.alpha_pattern", g, err);
	if (r != 0) {
		return r;
	}
	if (lora_decomposes(c)) {
		p->method = &lora_decomposed;
	}
	l->modules = calloc_array(l->cap_modules, sizeof(*l->modules));
	return l->modules ? 0 : -ENOMEM;
}

/* A rank above the smaller side of a module adds nothing to what it can learn. */
static int lora_admit(const struct peft *p, const struct graph *g, struct errmsg *err)
{
	int r = check_lost(&p->config.lora, g, err);
	for (int i = 0; i < g->n_weights && r == 0; i++) {
		r = check_ranks(&p->config.lora, &g->weights[i], err);
	}
	return r;
}

static void lora_stop(struct peft *p)
{
	free(lora_of(p)->modules);
	free(lora_of(p)->start);
}

#define LORA_METHOD \
	.name = "lora", \
	.kind = ADAPTER_PEFT, \
	.peft_type = "LORA", \
	.decides = "lora.target_modules", \
	.size = sizeof(struct lora), \
	.check = lora_check, \
	.config_read = lora_config_read, \
	.config_write = lora_config_write, \
	.check_tensors = lora_check_tensors, \
	.matches = lora_matches, \
	.start = lora_start, \
	.admit = lora_admit, \
	.stop = lora_stop, \
	.begin = lora_begin, \
	.weight = lora_weight, \
	.embedding = lora_embedding, \
	.linear = lora_linear, \
	.head = lora_head, \
	.init = lora_init, \
	.constants = lora_constants, \
	.n_tensors = lora_n_tensors, \
	.tensor = lora_tensor, \
	.ignores = lora_ignores, \
	.unmergeable = lora_unmergeable, \
	.merge = lora_merge, \
	.describe = lora_describe,

const struct peft_method peft_lora = {
	LORA_METHOD
};

/* PiSSA and OLoRA leave in another form than they are trained in. */
static const struct peft_method lora_decomposed = {
	LORA_METHOD
	.exported = lora_exported,
};
