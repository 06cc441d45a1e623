/*
 * LoRA: y += (alpha / r) · B·A·dropout(x). Hu et al. 2021; names, scaling and initialisation as in
 * PEFT's tuners/lora.
 *
 * Modules that share an input share one A[sum of r, in], one below the other, so that x·Aᵀ is one
 * product for q, k and v. With dropout each module has a mask of its own, as in PEFT, and so an A.
 */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/peft.h"
#include "engine/train/rng.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct peft *, peft_free);

struct lora_module {
	char name[MODULE_NAME_MAX];
	int64_t r, in, out;
	int a, b;    /* parameters */
	int64_t row; /* of its part of a */
};

struct lora {
	struct peft peft;
	struct lora_config config; /* target_modules resolved */
	struct lora_module *modules;
	size_t n_modules, cap_modules; /* cap: all modules that are targets */
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

static void lora_begin(struct peft *p)
{
	lora_of(p)->n_modules = 0;
}

/* Adds one node for the parts [first, end) of a site that are targets. */
static int add_low_rank(struct lora *l, struct graph *g, const struct linear_site *site, int x,
	int y, int first, int end)
{
	const struct weight w = g->weights[site->weight];
	struct low_rank lr = {.a = NONE};
	int64_t col = 0;
	size_t first_module = l->n_modules;
	for (int i = 0; i < w.n_parts; col += w.parts[i++].rows) {
		if (i < first || i >= end || !lora_config_targets(&l->config, w.parts[i].module)) {
			continue;
		}
		int b = graph_param(g, w.parts[i].rows, l->config.r);
		int k = lr.n_parts++;
		lr.parts[k].b = b;
		lr.parts[k].col = col;
		lr.parts[k].cols = w.parts[i].rows;
		lr.parts[k].row = lr.rank;
		lr.parts[k].r = l->config.r;
		lr.parts[k].scale = (float)(l->config.lora_alpha / (double)l->config.r);

		assert(l->n_modules < l->cap_modules);
		struct lora_module *m = &l->modules[l->n_modules++];
		*m = (struct lora_module){.r = l->config.r, .in = w.cols, .out = w.parts[i].rows, .b = b,
			.row = lr.rank};
		memcpy(m->name, w.parts[i].module, sizeof(m->name));
		lr.rank += l->config.r;
	}
	if (lr.n_parts == 0) {
		return y;
	}
	lr.a = graph_param(g, lr.rank, w.cols);
	for (size_t i = first_module; i < l->n_modules; i++) {
		l->modules[i].a = lr.a;
	}
	return graph_low_rank(g, y, x, &lr);
}

static int lora_linear(struct peft *p, struct graph *g, const struct linear_site *site)
{
	struct lora *l = lora_of(p);
	int n = g->weights[site->weight].n_parts;
	if (l->config.lora_dropout <= 0 || !g->trainable) {
		return add_low_rank(l, g, site, site->x, site->y, 0, n);
	}
	int y = site->y;
	for (int i = 0; i < n; i++) {
		if (lora_config_targets(&l->config, g->weights[site->weight].parts[i].module)) {
			int x = graph_dropout(g, site->x, (float)l->config.lora_dropout);
			y = add_low_rank(l, g, site, x, y, i, i + 1);
		}
	}
	return y;
}

/* ---- parameters ---------------------------------------------------------------------------- */

static size_t a_offset(const struct graph *g, const struct lora_module *m)
{
	return g->params[m->a].offset + (size_t)(m->row * m->in);
}

/* A uniform in ±1/sqrt(in): kaiming_uniform with a = sqrt(5), as in PEFT. B stays zero. */
static void lora_init(const struct peft *p, const struct graph *g, uint64_t seed, float *flat)
{
	const struct lora *l = lora_of_const(p);
	for (size_t i = 0; i < l->n_modules; i++) {
		const struct lora_module *m = &l->modules[i];
		struct rng_key key = {seed, rng_stream(RNG_INIT, i, 0, 0)};
		double bound = 1.0 / sqrt((double)m->in);
		float *a = flat + a_offset(g, m);
		for (int64_t k = 0; k < m->r * m->in; k++) {
			double u = ((double)rng_bits(key, (uint64_t)k) + 0.5) / 4294967296.0;
			a[k] = (float)((2 * u - 1) * bound);
		}
	}
}

static int load_factor(const struct adapter *a, const char *module, char factor, int64_t rows,
	int64_t cols, float *out, struct errmsg *err)
{
	char key[MODULE_NAME_MAX + 64];
	int r = adapter_lora_key(key, sizeof(key), module, factor);
	if (r < 0) {
		return r;
	}
	const struct st_tensor *t = safetensors_find(&a->tensors, key);
	if (!t) {
		return errmsg_set(err, STATUS_INVALID, "adapter: no tensor %s, which a target of the job "
			"has; its target modules must be those of the job", key);
	}
	if (t->n_dims != 2 || t->dims[0] != rows || t->dims[1] != cols) {
		return errmsg_set(err, STATUS_INVALID, "adapter: %s is [%lld, %lld], not [%lld, %lld] as r "
			"and the base model have it", key, (long long)t->dims[0],
			(long long)(t->n_dims > 1 ? t->dims[1] : 1), (long long)rows, (long long)cols);
	}
	r = st_tensor_read_f32(t, out, err);
	for (int64_t i = 0; r == 0 && i < rows * cols; i++) {
		if (!isfinite(out[i])) {
			return errmsg_set(err, STATUS_INVALID, "adapter: %s: value %lld is no finite number",
				key, (long long)i);
		}
	}
	return r;
}

static int lora_load(const struct peft *p, const struct graph *g, const struct adapter *a,
	float *flat, struct errmsg *err)
{
	const struct lora *l = lora_of_const(p);
	if (a->config.r != l->config.r || a->config.lora_alpha != l->config.lora_alpha) {
		return errmsg_set(err, STATUS_INVALID, "adapter: r %lld and lora_alpha %g are not the "
			"job's, %lld and %g", (long long)a->config.r, a->config.lora_alpha,
			(long long)l->config.r, l->config.lora_alpha);
	}
	for (size_t i = 0; i < l->n_modules; i++) {
		const struct lora_module *m = &l->modules[i];
		int r = load_factor(a, m->name, 'A', m->r, m->in, flat + a_offset(g, m), err);
		if (r == 0) {
			r = load_factor(a, m->name, 'B', m->out, m->r, flat + g->params[m->b].offset, err);
		}
		if (r != 0) {
			return r;
		}
	}
	if (a->tensors.n_tensors != 2 * l->n_modules) {
		return errmsg_set(err, STATUS_INVALID, "adapter: %zu tensors, but the job's target modules "
			"in this base model have %zu", a->tensors.n_tensors, 2 * l->n_modules);
	}
	return 0;
}

static int lora_save(const struct peft *p, const struct graph *g, const float *flat,
	const char *base, struct buf *config_json, struct buf *weights, struct errmsg *err)
{
	const struct lora *l = lora_of_const(p);
	_cleanup_(freep) struct adapter_lora *out = calloc_array(l->n_modules, sizeof(*out));
	if (!out) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < l->n_modules; i++) {
		const struct lora_module *m = &l->modules[i];
		out[i] = (struct adapter_lora){
			.module = m->name,
			.r = m->r,
			.in = m->in,
			.out = m->out,
			.a = flat + a_offset(g, m),
			.b = flat + g->params[m->b].offset,
		};
	}
	struct lora_config c = l->config;
	_cleanup_(freep) char *path = strdup(base);
	if (!path) {
		return -ENOMEM;
	}
	if (!c.base_model_name_or_path) {
		c.base_model_name_or_path = path;
	}
	int r = adapter_export(config_json, weights, &c, out, l->n_modules, err);
	if (r != 0) {
		return r;
	}
	return adapter_verify(config_json->data, config_json->len, weights->data, weights->len, out,
		l->n_modules, err);
}

static size_t lora_n_tensors(const struct peft *p)
{
	return 2 * lora_of_const(p)->n_modules;
}

static void lora_tensor(const struct peft *p, const struct graph *g, size_t i, char *name,
	size_t cap, size_t *ret_offset, int64_t dims[2])
{
	const struct lora_module *m = &lora_of_const(p)->modules[i / 2];
	bool is_a = i % 2 == 0;
	int r = adapter_lora_key(name, cap, m->name, is_a ? 'A' : 'B');
	assert(r >= 0);
	(void)r;
	*ret_offset = is_a ? a_offset(g, m) : g->params[m->b].offset;
	dims[0] = is_a ? m->r : m->out;
	dims[1] = is_a ? m->in : m->r;
}

static int lora_describe(const struct peft *p, struct buf *out)
{
	const struct lora_config *c = &lora_of_const(p)->config;
	int r = buf_appendf(out, "lora r=%lld alpha=%.17g dropout=%.17g targets=", (long long)c->r,
		c->lora_alpha, c->lora_dropout);
	for (size_t i = 0; i < c->n_target_modules && r == 0; i++) {
		r = buf_appendf(out, "%s%s", i ? "," : "", c->target_modules[i]);
	}
	return r;
}

static void lora_free(struct peft *p)
{
	struct lora *l = lora_of(p);
	lora_config_deinit(&l->config);
	free(l->modules);
	free(l);
}

static const struct peft_method lora_method = {
	.name = "lora",
	.free = lora_free,
	.begin = lora_begin,
	.linear = lora_linear,
	.init = lora_init,
	.load = lora_load,
	.save = lora_save,
	.n_tensors = lora_n_tensors,
	.tensor = lora_tensor,
	.describe = lora_describe,
};

/* ---- targets ------------------------------------------------------------------------------- */

static const char *suffix_of(const char *module)
{
	const char *dot = strrchr(module, '.');
	return dot ? dot + 1 : module;
}

static bool is_all_linear(const struct lora_config *c)
{
	return !c->target_modules_is_regex && c->n_target_modules == 1 &&
		strcmp(c->target_modules[0], "all-linear") == 0;
}

static bool has_suffix(const struct lora_config *c, const char *suffix)
{
	for (size_t i = 0; i < c->n_target_modules; i++) {
		if (strcmp(c->target_modules[i], suffix) == 0) {
			return true;
		}
	}
	return false;
}

static int add_target(struct lora_config *c, const char *name)
{
	char **p = realloc_array(c->target_modules, c->n_target_modules + 1, sizeof(*p));
	if (!p) {
		return -ENOMEM;
	}
	c->target_modules = p;
	p[c->n_target_modules] = strdup(name);
	if (!p[c->n_target_modules]) {
		return -ENOMEM;
	}
	c->n_target_modules++;
	return 0;
}

/* The configuration with its list of targets, "all-linear" spelled out. */
static int resolve(struct lora_config *ret, const struct lora_config *c, const struct graph *g)
{
	*ret = *c;
	ret->target_modules = NULL;
	ret->n_target_modules = 0;
	ret->base_model_name_or_path = NULL;
	if (c->base_model_name_or_path) {
		ret->base_model_name_or_path = strdup(c->base_model_name_or_path);
		if (!ret->base_model_name_or_path) {
			return -ENOMEM;
		}
	}
	int r = 0;
	if (!is_all_linear(c)) {
		for (size_t i = 0; i < c->n_target_modules && r == 0; i++) {
			r = add_target(ret, c->target_modules[i]);
		}
		return r;
	}
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		for (int k = 0; w->adaptable && k < w->n_parts && r == 0; k++) {
			const char *suffix = suffix_of(w->parts[k].module);
			r = has_suffix(ret, suffix) ? 0 : add_target(ret, suffix);
		}
	}
	return r;
}

/* The suffixes of all modules that may be targets, as "a, b, c"; and the one nearest to `name`. */
static const char *list_targets(const struct graph *g, const char *name, char *out, size_t cap)
{
	const char *nearest = NULL;
	unsigned best = UINT_MAX;
	size_t len = 0;
	out[0] = '\0';
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		for (int k = 0; w->adaptable && k < w->n_parts; k++) {
			const char *suffix = suffix_of(w->parts[k].module);
			unsigned d = edit_distance(suffix, suffix_of(name));
			if (d < best) {
				best = d;
				nearest = suffix;
			}
			if (!strstr(out, suffix) && len < cap) {
				int n = snprintf(out + len, cap - len, "%s%s", len ? ", " : "", suffix);
				len += n > 0 ? (size_t)n : 0;
			}
		}
	}
	return best <= 3 ? nearest : NULL;
}

/* Counts what one entry of the list matches; refuses what cannot be a target. */
static int check_target(const struct lora_config *c, size_t entry, const struct graph *g,
	size_t *ret_matches, struct errmsg *err)
{
	struct lora_config one = *c;
	one.target_modules = &c->target_modules[entry];
	one.n_target_modules = 1;
	const char *name = c->target_modules[entry];
	size_t matches = 0;
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		for (int k = 0; k < w->n_parts; k++) {
			if (!lora_config_targets(&one, w->parts[k].module)) {
				continue;
			}
			if (!w->adaptable) {
				return errmsg_set(err, STATUS_INVALID, "lora.target_modules: \"%s\" selects %s; "
					"embeddings, norms and the head cannot be targets of LoRA here", name,
					w->parts[k].module);
			}
			matches++;
		}
	}
	if (matches == 0) {
		char names[256];
		const char *nearest = list_targets(g, name, names, sizeof(names));
		return errmsg_set(err, STATUS_INVALID, "lora.target_modules: \"%s\" matches no linear "
			"layer of this model%s%s%s; there are: %s", name, nearest ? "; did you mean \"" : "",
			nearest ? nearest : "", nearest ? "\"?" : "", names);
	}
	*ret_matches = matches;
	return 0;
}

int lora_check(const struct lora_config *c, struct errmsg *err)
{
	if (c->r < 1 || c->r > 65536) {
		return errmsg_set(err, STATUS_INVALID, "lora.r: %lld; it must be from 1 to 65536",
			(long long)c->r);
	}
	if (!isfinite(c->lora_alpha) || c->lora_alpha <= 0) {
		return errmsg_set(err, STATUS_INVALID, "lora.lora_alpha: %g; it must be a number above 0",
			c->lora_alpha);
	}
	if (!(c->lora_dropout >= 0 && c->lora_dropout < 1)) {
		return errmsg_set(err, STATUS_INVALID, "lora.lora_dropout: %g; it must be at least 0 and "
			"below 1", c->lora_dropout);
	}
	if (c->n_target_modules == 0) {
		return errmsg_set(err, STATUS_INVALID, "lora.target_modules: empty; name modules (q_proj, "
			"…) or say all-linear");
	}
	for (size_t i = 0; i < c->n_target_modules; i++) {
		if (c->target_modules[i][0] == '\0') {
			return errmsg_set(err, STATUS_INVALID, "lora.target_modules: entry %zu is empty",
				i + 1);
		}
		if (strcmp(c->target_modules[i], "all-linear") == 0 && c->n_target_modules > 1) {
			return errmsg_set(err, STATUS_INVALID, "lora.target_modules: \"all-linear\" stands "
				"alone; leave out the other names");
		}
	}
	return 0;
}

int lora_new(struct peft **ret, const struct lora_config *c, const struct graph *g,
	struct errmsg *err)
{
	int r = lora_check(c, err);
	if (r != 0) {
		return r;
	}
	struct lora *l = calloc(1, sizeof(*l));
	if (!l) {
		return -ENOMEM;
	}
	_cleanup_(peft_freep) struct peft *p = &l->peft;
	p->method = &lora_method;
	r = resolve(&l->config, c, g);
	size_t cap = 0; /* an upper bound: entries may select the same module */
	for (size_t i = 0; i < l->config.n_target_modules && r == 0; i++) {
		size_t matches = 0;
		r = check_target(&l->config, i, g, &matches, err);
		cap += matches;
	}
	if (r != 0) {
		return r;
	}
	l->modules = calloc_array(cap, sizeof(*l->modules));
	l->cap_modules = cap;
	if (!l->modules) {
		return -ENOMEM;
	}
	*ret = steal_ptr(p);
	return 0;
}
