/*
 * (IA)³: factors on the output of a linear layer, y = (W·x + b) ∘ l, or, in feed-forward modules, on its
 * input, y = W·(x ∘ l) + b. Liu et al. 2022; names, defaults and initialisation as in PEFT's tuners/ia3.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/ops_peft.h"
#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/util.h"

#define KEY_PREFIX "base_model.model."
#define KEY_SUFFIX ".ia3_l"

struct vector {
	char module[MODULE_NAME_MAX];
	int param;
	int64_t n;
	bool feedforward;
};

struct ia3 {
	struct peft peft;
	struct vector *vectors; /* in the order of the graph */
	size_t n_vectors, cap_vectors;
	int x; /* the input that the layer had before its factors */
};

static struct ia3 *ia3_of(struct peft *p)
{
	return (struct ia3 *)p;
}

static const struct ia3 *ia3_of_const(const struct peft *p)
{
	return (const struct ia3 *)p;
}

/* ---- which modules ------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), k = strlen(end);
	return n >= k && strcmp(s + n - k, end) == 0;
}

static bool has_name(const struct modules *m, const char *name)
{
	for (size_t i = 0; i < m->n; i++) {
		if (strcmp(m->names[i], name) == 0) {
			return true;
		}
	}
	return false;
}

/* PEFT's rule for feed-forward modules (ia3/model.py): a plain end of the name, no dot needed. */
static bool is_feedforward(const struct ia3_config *c, const char *module)
{
	if (c->feedforward_modules.is_regex) {
		return modules_match(&c->feedforward_modules, module);
	}
	for (size_t i = 0; i < c->feedforward_modules.n; i++) {
		if (ends_with(module, c->feedforward_modules.names[i])) {
			return true;
		}
	}
	return false;
}

static int ia3_check(const struct method_config *m, struct errmsg *err)
{
	const struct ia3_config *c = &m->ia3;
	int r = peft_check_list(&c->target_modules, "ia3.target_modules", err);
	return r ? r : peft_check_list(&c->feedforward_modules, "ia3.feedforward_modules", err);
}

/* Of targets that are resolved: PEFT reads no other folder. */
static int check_subset(const struct ia3_config *c, struct errmsg *err)
{
	bool names = !c->feedforward_modules.is_regex && !c->target_modules.is_regex;
	for (size_t i = 0; i < c->feedforward_modules.n && names; i++) {
		if (!has_name(&c->target_modules, c->feedforward_modules.names[i])) {
			return errmsg_set(err, STATUS_INVALID, "ia3.feedforward_modules: \"%s\" is not among "
				"target_modules; each feed-forward module must be a target too",
				c->feedforward_modules.names[i]);
		}
	}
	return 0;
}

/* PEFT's defaults (utils/constants.py): targets, and which of them is the feed-forward module. */
struct family {
	const char *model_type;
	const char *targets[4];
	const char *feedforward; /* NULL: none */
};

static const struct family *family_of(const char *model_type)
{
	static const struct family families[] = {
		{"llama", {"k_proj", "v_proj", "down_proj"}, "down_proj"}, /* and those not named here */
		{"t5", {"k", "v", "wo"}, "wo"},
		{"mt5", {"k", "v", "wi_1"}, NULL},
		{"gpt2", {"c_attn", "mlp.c_proj"}, "mlp.c_proj"},
		{"gpt_neox", {"query_key_value", "dense_4h_to_h"}, "dense_4h_to_h"},
		{"gemma", {"q_proj", "v_proj", "down_proj"}, "down_proj"},
		{"gemma2", {"q_proj", "v_proj", "down_proj"}, "down_proj"},
		{"gemma3_text", {"q_proj", "v_proj", "down_proj"}, "down_proj"},
		{"qwen2", {"q_proj", "v_proj", "down_proj"}, "down_proj"},
		{"qwen3", {"q_proj", "v_proj", "down_proj"}, "down_proj"},
	};
	for (size_t i = 0; i < ARRAY_LEN(families); i++) {
		if (strcmp(families[i].model_type, model_type) == 0) {
			return &families[i];
		}
	}
	return &families[0];
}

/* A list of feed-forward modules that was left out becomes those of the targets that the default selects,
 * so that what is exported is a subset. */
static int resolve(struct ia3_config *c, const struct graph *g)
{
	const struct family *family = family_of(g->config.model_type);
	const char *feedforward = family->feedforward;
	bool given = c->target_modules.n > 0;
	int r = 0;
	for (size_t i = 0; r == 0 && !given && family->targets[i]; i++) {
		r = modules_add(&c->target_modules, family->targets[i]);
	}
	r = r ? r : peft_resolve_all_linear(&c->target_modules, g);
	if (r != 0 || c->feedforward_modules.n > 0 || c->no_feedforward) {
		return r;
	}
	if (!feedforward) {
		c->no_feedforward = true;
		return 0;
	}
	if (c->target_modules.is_regex) {
		return modules_add(&c->feedforward_modules, feedforward);
	}
	for (size_t i = 0; i < c->target_modules.n && r == 0; i++) {
		if (ends_with(c->target_modules.names[i], feedforward)) {
			r = modules_add(&c->feedforward_modules, c->target_modules.names[i]);
		}
	}
	c->no_feedforward = r == 0 && c->feedforward_modules.n == 0;
	return r;
}

static int ia3_start(struct peft *p, const struct graph *g, struct errmsg *err)
{
	struct ia3_config *c = &p->config.ia3;
	int r = resolve(c, g);
	r = r ? r : check_subset(c, err);
	r = r ? r : peft_check_targets(&c->target_modules, g, peft_is_linear, "ia3.target_modules",
		"linear layer", err);
	if (r == 0 && c->feedforward_modules.n > 0 && !c->target_modules.is_regex) {
		r = peft_check_targets(&c->feedforward_modules, g, peft_is_linear,
			"ia3.feedforward_modules", "linear layer", err);
	}
	if (r != 0) {
		return r;
	}
	struct ia3 *a = ia3_of(p);
	for (int i = 0; i < g->n_weights; i++) {
		a->cap_vectors += (size_t)g->weights[i].n_parts;
	}
	a->vectors = calloc_array(a->cap_vectors, sizeof(*a->vectors));
	return a->vectors ? 0 : -ENOMEM;
}

static void ia3_stop(struct peft *p)
{
	free(ia3_of(p)->vectors);
}

/* ---- graph --------------------------------------------------------------------------------- */

static void ia3_begin(struct peft *p, struct graph *g)
{
	ia3_of(p)->n_vectors = 0;
}

static bool targeted(const struct peft *p, const struct weight *w, int part, bool feedforward)
{
	const char *module = w->parts[part].module;
	return peft_is_linear(w) && modules_match(&p->config.ia3.target_modules, module) &&
		is_feedforward(&p->config.ia3, module) == feedforward;
}

static int add_vector(struct ia3 *a, struct graph *g, int weight, int part, bool feedforward)
{
	const struct weight *w = &g->weights[weight];
	assert(a->n_vectors < a->cap_vectors);
	struct vector *v = &a->vectors[a->n_vectors++];
	*v = (struct vector){.n = feedforward ? w->cols : w->parts[part].rows,
		.feedforward = feedforward};
	memcpy(v->module, w->parts[part].module, sizeof(v->module));
	v->param = graph_param(g, 1, v->n);
	return v->param;
}

/* Modules with one input that have factors of their own for it cannot share a product: the first has
 * its factors on the input of all where all are feed-forward, the others get theirs in ia3_linear(). */
static bool all_feedforward(const struct peft *p, const struct weight *w)
{
	for (int i = 0; i < w->n_parts; i++) {
		if (!targeted(p, w, i, true)) {
			return false;
		}
	}
	return true;
}

static int ia3_linear_input(struct peft *p, struct graph *g, int weight, int x)
{
	ia3_of(p)->x = x;
	if (!all_feedforward(p, &g->weights[weight])) {
		return x;
	}
	return graph_scale(g, x, add_vector(ia3_of(p), g, weight, 0, true));
}

static int ia3_linear(struct peft *p, struct graph *g, const struct linear_site *site)
{
	struct ia3 *a = ia3_of(p);
	const struct weight w = g->weights[site->weight];
	int y = site->y, param[LINEAR_PARTS];
	bool scaled = false;
	for (int i = all_feedforward(p, &w) ? 1 : 0; i < w.n_parts; i++) {
		if (targeted(p, &w, i, true)) {
			int x = graph_scale(g, a->x, add_vector(a, g, site->weight, i, true));
			y = graph_splice(g, y, graph_linear(g, x, site->weight), site->weight, i);
		}
	}
	for (int i = 0; i < LINEAR_PARTS; i++) {
		bool target = i < w.n_parts && targeted(p, &w, i, false);
		param[i] = target ? add_vector(a, g, site->weight, i, false) : NONE;
		scaled |= target;
	}
	return scaled ? graph_scale_parts(g, y, site->weight, param) : y;
}

/* ---- parameters ---------------------------------------------------------------------------- */

/* Ones, or, with init_ia3_weights false, normal. */
static int ia3_init(const struct peft *p, const struct graph *g, const struct base_model *base,
	uint64_t seed, float *flat, struct errmsg *err)
{
	const struct ia3 *a = ia3_of_const(p);
	for (size_t i = 0; i < a->n_vectors; i++) {
		const struct vector *v = &a->vectors[i];
		float *l = flat + g->params[v->param].offset;
		if (p->config.ia3.random_init) {
			peft_fill_normal(l, (size_t)v->n, 0, 1, seed, i);
		}
		for (int64_t k = 0; k < v->n && !p->config.ia3.random_init; k++) {
			l[k] = 1;
		}
	}
	return 0;
}

static size_t ia3_n_tensors(const struct peft *p, const struct graph *g)
{
	return ia3_of_const(p)->n_vectors;
}

static void ia3_tensor(const struct peft *p, const struct graph *g, size_t i,
	struct peft_tensor *ret)
{
	const struct vector *v = &ia3_of_const(p)->vectors[i];
	*ret = (struct peft_tensor){.n_dims = 2, .offset = g->params[v->param].offset,
		.dims = {v->feedforward ? 1 : v->n, v->feedforward ? v->n : 1}};
	snprintf(ret->name, sizeof(ret->name), KEY_PREFIX "%s" KEY_SUFFIX, v->module);
}

/* Shapes exactly: where a layer is square, only they tell factors of its input from those of its
 * output. */
static int ia3_load(const struct peft *p, const struct graph *g, const struct adapter *a, float *flat,
	struct errmsg *err)
{
	size_t n = ia3_n_tensors(p, g);
	for (size_t i = 0; i < n; i++) {
		struct peft_tensor want;
		ia3_tensor(p, g, i, &want);
		const struct st_tensor *t = safetensors_find(&a->tensors, want.name);
		if (t && t->n_dims == 2 && (t->dims[0] == 1) != (want.dims[0] == 1)) {
			return errmsg_set(err, STATUS_INVALID, "adapter: %s is a factor of the layer's %s, but "
				"the job's feedforward_modules make it one of its %s", want.name,
				t->dims[0] == 1 ? "input" : "output", want.dims[0] == 1 ? "input" : "output");
		}
		int r = peft_load_tensor(a, &want, flat, err);
		if (r != 0) {
			return r;
		}
	}
	return a->tensors.n_tensors == n ? 0 : errmsg_set(err, STATUS_INVALID, "adapter: %zu tensors, "
		"but the job's settings give %zu in this base model", a->tensors.n_tensors, n);
}

static int ia3_describe(const struct peft *p, struct buf *out)
{
	const struct ia3_config *c = &p->config.ia3;
	int r = buf_appendf(out, "ia3");
	r = r ? r : peft_describe_modules(out, "targets", &c->target_modules);
	return r ? r : peft_describe_modules(out, "feedforward", &c->feedforward_modules);
}

/* ---- folder -------------------------------------------------------------------------------- */

static int ia3_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	static const char *const known[] = {"target_modules", "feedforward_modules", "fan_in_fan_out",
		"init_ia3_weights", NULL};
	static const char *const harmless[] = {NULL};
	struct ia3_config *c = &ret->ia3;
	int r = json_refuse_others(o, known, harmless, err);
	r = r ? r : json_read_modules(&c->target_modules, o, "target_modules", true, err);
	const json_t *feedforward = json_object_get(o, "feedforward_modules");
	c->no_feedforward = json_is_array(feedforward) && json_array_size(feedforward) == 0;
	if (r == 0 && !c->no_feedforward) {
		r = json_read_modules(&c->feedforward_modules, o, "feedforward_modules", true, err);
	}
	/* fan_in_fan_out tells how the base is stored, which it knows itself. */
	return r;
}

static int ia3_config_write(json_t *o, const struct method_config *m, const struct model_config *c)
{
	int r = json_object_set_new(o, "fan_in_fan_out", json_boolean(c && c->fan_in_fan_out)) ||
		json_object_set_new(o, "init_ia3_weights", json_boolean(!m->ia3.random_init)) ||
		json_object_set_new(o, "modules_to_save", json_null()) ? -ENOMEM : 0;
	r = r ? r : json_write_modules(o, "target_modules", &m->ia3.target_modules);
	if (r == 0 && m->ia3.feedforward_modules.n == 0) {
		/* null would be PEFT's default */
		return json_object_set_new(o, "feedforward_modules", json_array()) ? -ENOMEM : 0;
	}
	return r ? r : json_write_modules(o, "feedforward_modules", &m->ia3.feedforward_modules);
}

/* Only what is there can be judged without the base: each tensor is a vector of a target. */
static int ia3_check_tensors(const struct adapter *a, struct errmsg *err)
{
	const struct ia3_config *c = &a->config.ia3;
	for (size_t i = 0; i < a->tensors.n_tensors; i++) {
		const struct st_tensor *t = &a->tensors.tensors[i];
		char module[TENSOR_NAME_MAX];
		size_t n = strlen(t->name), ends = strlen(KEY_PREFIX) + strlen(KEY_SUFFIX);
		bool ours = n > ends && n < sizeof(module) && ends_with(t->name, KEY_SUFFIX) &&
			strncmp(t->name, KEY_PREFIX, strlen(KEY_PREFIX)) == 0;
		if (ours) {
			memcpy(module, t->name + strlen(KEY_PREFIX), n - ends);
			module[n - ends] = '\0';
		}
		if (!ours || (c->target_modules.n > 0 && !modules_match(&c->target_modules, module))) {
			return errmsg_set(err, STATUS_INVALID, "adapter_model.safetensors: tensor '%.200s' is "
				"left over; IA3's are " KEY_PREFIX "MODULE" KEY_SUFFIX " of modules that "
				"target_modules selects", t->name);
		}
		if (t->n_dims != 2 || (t->dims[0] != 1 && t->dims[1] != 1)) {
			return errmsg_set(err, STATUS_INVALID, "adapter_model.safetensors: tensor '%.200s' must "
				"be (out, 1), or (1, in) of a feed-forward module", t->name);
		}
	}
	return 0;
}

static const char *ia3_unmergeable(const struct method_config *m, const struct model_config *c)
{
	return c->fan_in_fan_out ?
		"this model keeps its matrices transposed (Conv1D), which merging does not do yet" : NULL;
}

/* Factors of the output scale the rows of W and the bias, those of the input its columns. */
static int ia3_merge(const struct adapter *a, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *w, struct errmsg *err)
{
	char key[TENSOR_NAME_MAX];
	snprintf(key, sizeof(key), KEY_PREFIX "%s" KEY_SUFFIX, module);
	const struct st_tensor *t = safetensors_find(&a->tensors, key);
	bool input = t && t->dims[0] == 1, weight = strcmp(tensor, "weight") == 0;
	if (!t || (input && !weight)) {
		return 0;
	}
	_cleanup_(freep) float *l = NULL;
	int r = input ? peft_read_tensor(a, key, 1, cols, &l, err) :
		peft_read_tensor(a, key, rows, 1, &l, err);
	for (int64_t i = 0; i < rows && r == 0; i++) {
		for (int64_t k = 0; k < cols; k++) {
			w[i * cols + k] *= input ? l[k] : l[i];
		}
	}
	return r;
}

const struct peft_method peft_ia3 = {
	.name = "ia3",
	.kind = ADAPTER_PEFT,
	.peft_type = "IA3",
	.decides = "ia3.target_modules and feedforward_modules",
	.size = sizeof(struct ia3),
	.check = ia3_check,
	.config_read = ia3_config_read,
	.config_write = ia3_config_write,
	.check_tensors = ia3_check_tensors,
	.start = ia3_start,
	.stop = ia3_stop,
	.begin = ia3_begin,
	.linear_input = ia3_linear_input,
	.linear = ia3_linear,
	.init = ia3_init,
	.n_tensors = ia3_n_tensors,
	.tensor = ia3_tensor,
	.load = ia3_load,
	.unmergeable = ia3_unmergeable,
	.merge = ia3_merge,
	.describe = ia3_describe,
};
