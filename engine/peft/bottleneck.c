/*
 * Bottleneck adapters: with A(z) = scaling · (U·f(D·z + d) + u) and x the output of attention or MLP that
 * joins the residual stream r,
 *
 *	r + x + A(x)        after Houlsby et al. 2019
 *	r + x + A(x + r)    original_ln_before: after Pfeiffer et al. 2021, where a norm is lacking
 *	r + x + A(r)        is_parallel: after He et al. 2022
 *
 * Fields, names and initialisation as in AdapterHub's adapters (configuration/adapter_config.py,
 * methods/modeling.py).
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/ops_peft.h"
#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/util.h"

#define ADAPTER_NAME "default"

enum { DOWN_W, DOWN_B, UP_W, UP_B, N_PARAMS };
enum { UNITS_MAX = 1 << 20 };

struct place {
	char module[MODULE_NAME_MAX]; /* "": by layer and kind */
	int64_t layer;
	enum sublayer which;
	int param[N_PARAMS];
};

struct bottleneck {
	struct peft peft;
	struct place *places; /* in the order of the graph */
	size_t n_places, cap_places;
};

static struct bottleneck *of(struct peft *p)
{
	return (struct bottleneck *)p;
}

static const struct bottleneck *of_const(const struct peft *p)
{
	return (const struct bottleneck *)p;
}

static int bottleneck_check(const struct method_config *m, struct errmsg *err)
{
	const struct bottleneck_config *c = &m->bottleneck;
	if (!c->mh_adapter && !c->output_adapter) {
		return errmsg_set(err, STATUS_INVALID, "bottleneck: mh_adapter and output_adapter are both "
			"false; say where adapters go");
	}
	if (!(c->reduction_factor > 0 && c->reduction_factor <= UNITS_MAX)) {
		return errmsg_set(err, STATUS_INVALID, "bottleneck.reduction_factor: %g; it must be a "
			"number above 0 and at most %d", c->reduction_factor, UNITS_MAX);
	}
	if (!f32_finite(c->scaling)) {
		return errmsg_set(err, STATUS_INVALID, "bottleneck.scaling: %g; it must be a number, as a float32",
			c->scaling);
	}
	return 0;
}

/* A Python int() of the quotient, at least 1. */
static int64_t inner_size(const struct bottleneck_config *c, int64_t hidden_size)
{
	return max_i64(1, (int64_t)floor((double)hidden_size / c->reduction_factor));
}

static int bottleneck_start(struct peft *p, const struct graph *g, struct errmsg *err)
{
	struct bottleneck *b = of(p);
	/* Judged before it is a whole number: the quotient may be infinite. */
	if (!((double)g->config.hidden_size / p->config.bottleneck.reduction_factor <= UNITS_MAX)) {
		return errmsg_set(err, STATUS_INVALID, "bottleneck.reduction_factor: %g makes adapters of "
			"more than %d units", p->config.bottleneck.reduction_factor, UNITS_MAX);
	}
	b->cap_places = 2 * (size_t)(g->config.num_hidden_layers + g->config.num_decoder_layers);
	b->places = calloc_array(b->cap_places, sizeof(*b->places));
	return b->places ? 0 : -ENOMEM;
}

static void bottleneck_stop(struct peft *p)
{
	free(of(p)->places);
}

static void bottleneck_begin(struct peft *p, struct graph *g)
{
	of(p)->n_places = 0;
}

static int bottleneck_sublayer(struct peft *p, struct graph *g, const struct sublayer_site *site)
{
	struct bottleneck *b = of(p);
	const struct bottleneck_config *c = &p->config.bottleneck;
	if (!(site->which == SUBLAYER_ATTENTION ? c->mh_adapter : c->output_adapter) ||
		b->n_places == b->cap_places) {
		return site->output;
	}
	int64_t d = g->tensors[site->output].cols, inner = inner_size(c, d);
	struct place *at = &b->places[b->n_places++];
	*at = (struct place){.layer = site->layer, .which = site->which,
		.param = {graph_param(g, inner, d), graph_param(g, 1, inner), graph_param(g, d, inner),
			graph_param(g, 1, d)}};
	snprintf(at->module, sizeof(at->module), "%s", site->module ? site->module : "");
	int z = site->output;
	if (c->is_parallel) {
		z = site->residual;
	} else if (c->original_ln_before) {
		z = graph_add_scaled(g, site->output, site->residual, 1);
	}
	int h = graph_dense(g, z, at->param[DOWN_W], at->param[DOWN_B]);
	h = graph_activation(g, h, c->non_linearity);
	int up = graph_dense(g, h, at->param[UP_W], at->param[UP_B]);
	return graph_add_scaled(g, site->output, up, (float)c->scaling);
}

/* ---- parameters ---------------------------------------------------------------------------- */

/* init_weights "bert": normal weights; "mam_adapter", of parallel adapters: D as torch.nn.Linear has it,
 * U zero. Biases are zero. */
static int bottleneck_init(const struct peft *p, const struct graph *g,
	const struct base_model *base, uint64_t seed, float *flat, struct errmsg *err)
{
	const struct bottleneck *b = of_const(p);
	for (size_t i = 0; i < b->n_places; i++) {
		const struct param *down = &g->params[b->places[i].param[DOWN_W]];
		const struct param *up = &g->params[b->places[i].param[UP_W]];
		size_t n = (size_t)(down->rows * down->cols);
		if (p->config.bottleneck.is_parallel) {
			double bound = 1 / sqrt((double)down->cols);
			peft_fill_uniform(flat + down->offset, n, bound, seed, 2 * i);
		} else {
			peft_fill_normal(flat + down->offset, n, 0, 0.02, seed, 2 * i);
			peft_fill_normal(flat + up->offset, n, 0, 0.02, seed, 2 * i + 1);
		}
	}
	return 0;
}

static size_t bottleneck_n_tensors(const struct peft *p, const struct graph *g)
{
	return N_PARAMS * of_const(p)->n_places;
}

/* `adapter`: the name that an adapter has in its keys. */
static void tensor_of(const struct peft *p, const struct graph *g, size_t i, const char *adapter,
	struct peft_tensor *ret)
{
	static const char *const names[] = {"adapter_down.0.weight", "adapter_down.0.bias",
		"adapter_up.weight", "adapter_up.bias"};
	const struct place *at = &of_const(p)->places[i / N_PARAMS];
	size_t which = i % N_PARAMS;
	const struct param *param = &g->params[at->param[which]];
	bool bias = which == DOWN_B || which == UP_B;
	*ret = (struct peft_tensor){.n_dims = bias ? 1 : 2, .offset = param->offset,
		.dims = {bias ? param->cols : param->rows, bias ? 0 : param->cols}};
	if (at->module[0]) {
		snprintf(ret->name, sizeof(ret->name), "%s.adapters.%s.%s", at->module, adapter,
			names[which]);
		return;
	}
	snprintf(ret->name, sizeof(ret->name), "%s.%lld.%s.adapters.%s.%s", model_blocks(&g->config),
		(long long)at->layer,
		at->which == SUBLAYER_ATTENTION ? "attention_adapters" : "output_adapters", adapter,
		names[which]);
}

static void bottleneck_tensor(const struct peft *p, const struct graph *g, size_t i,
	struct peft_tensor *ret)
{
	tensor_of(p, g, i, ADAPTER_NAME, ret);
}

/* The adapter's name, between ".adapters." and ".adapter_" of a key; false for any other key. */
static bool split_key(const char *key, char *out, size_t cap)
{
	static const char before[] = ".adapters.", after[] = ".adapter_";
	const char *from = strstr(key, before);
	const char *to = from ? strstr(from + strlen(before), after) : NULL;
	if (!to || (size_t)(to - from) >= cap) {
		return false;
	}
	from += strlen(before);
	memcpy(out, from, (size_t)(to - from));
	out[to - from] = '\0';
	return true;
}

static int bottleneck_load(const struct peft *p, const struct graph *g, const struct adapter *a,
	float *flat, struct errmsg *err)
{
	char name[64];
	size_t n = bottleneck_n_tensors(p, g);
	if (!split_key(a->tensors.tensors[0].name, name, sizeof(name))) {
		return errmsg_set(err, STATUS_INVALID, "adapter: tensor '%.200s' is left over",
			a->tensors.tensors[0].name);
	}
	for (size_t i = 0; i < n; i++) {
		struct peft_tensor want;
		tensor_of(p, g, i, name, &want);
		int r = peft_load_tensor(a, &want, flat, err);
		if (r != 0) {
			return r;
		}
	}
	return a->tensors.n_tensors == n ? 0 : errmsg_set(err, STATUS_INVALID, "adapter: %zu tensors, "
		"but the job's settings give %zu in this base model", a->tensors.n_tensors, n);
}

static int bottleneck_describe(const struct peft *p, struct buf *out)
{
	const struct bottleneck_config *c = &p->config.bottleneck;
	return buf_appendf(out, "bottleneck mh=%d output=%d reduction=%.17g non_linearity=%d "
		"scaling=%.17g parallel=%d ln_before=%d", c->mh_adapter, c->output_adapter,
		c->reduction_factor, (int)c->non_linearity, c->scaling, c->is_parallel,
		c->original_ln_before);
}

/* What an adapter computes must be what the job computes: its tensors do not say. */
static int bottleneck_matches(const struct method_config *adapter, const struct method_config *m,
	struct errmsg *err)
{
	const struct bottleneck_config *a = &adapter->bottleneck, *b = &m->bottleneck;
	const char *field = a->non_linearity != b->non_linearity ? "non_linearity" :
		a->scaling != b->scaling ? "scaling" :
		a->is_parallel != b->is_parallel ? "is_parallel" :
		!a->is_parallel && a->original_ln_before != b->original_ln_before ? "original_ln_before" :
		NULL;
	return field ? errmsg_set(err, STATUS_INVALID, "bottleneck.%s: the adapter has another value; "
		"it must be the adapter's own", field) : 0;
}

/* ---- folder -------------------------------------------------------------------------------- */

#define WHAT "adapter_config.json: config."

static int read_bool(const json_t *o, const char *key, bool otherwise, bool *ret,
	struct errmsg *err)
{
	const json_t *v = json_object_get(o, key);
	*ret = v ? json_is_true(v) : otherwise;
	return !v || json_is_boolean(v) ? 0 :
		errmsg_set(err, STATUS_INVALID, WHAT "%s must be true or false", key);
}

static int read_number(const json_t *o, const char *key, double otherwise, double *ret,
	struct errmsg *err)
{
	const json_t *v = json_object_get(o, key);
	*ret = v ? json_number_value(v) : otherwise;
	return !v || json_is_number(v) ? 0 : errmsg_set(err, STATUS_INVALID, WHAT "%s must be a "
		"number; what is learned or differs by layer is not supported", key);
}

/* Fields that change what is computed, at the only value that is supported. */
static int check_fixed(const json_t *o, struct errmsg *err)
{
	static const struct {
		const char *key;
		bool value;
	} fixed[] = {{"original_ln_after", true}, {"residual_before_ln", true}, {"ln_before", false},
		{"ln_after", false}, {"phm_layer", false}, {"use_gating", false}, {"cross_adapter", false}};
	for (size_t i = 0; i < ARRAY_LEN(fixed); i++) {
		const json_t *v = json_object_get(o, fixed[i].key);
		if (v && !(json_is_boolean(v) && json_is_true(v) == fixed[i].value)) {
			return errmsg_set(err, STATUS_INVALID, WHAT "%s: only %s is supported", fixed[i].key,
				fixed[i].value ? "true" : "false");
		}
	}
	double dropout = 0, depth = 0;
	int r = read_number(o, "dropout", 0, &dropout, err);
	r = r ? r : read_number(o, "stochastic_depth", 0, &depth, err);
	if (r == 0 && (dropout != 0 || depth != 0)) {
		r = errmsg_set(err, STATUS_INVALID, WHAT "%s: only 0 is supported",
			dropout != 0 ? "dropout" : "stochastic_depth");
	}
	return r;
}

static int bottleneck_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	static const char *const known[] = {"adapter_residual_before_ln", "cross_adapter", "dropout",
		"is_parallel", "ln_after", "ln_before", "mh_adapter", "non_linearity", "original_ln_after",
		"original_ln_before", "output_adapter", "phm_layer", "reduction_factor",
		"residual_before_ln", "scaling", "stochastic_depth", "use_gating", NULL};
	/* How it began, and what only phm_layer and inv_adapter use. */
	static const char *const harmless[] = {"architecture", "factorized_phm_W",
		"factorized_phm_rule", "hypercomplex_nonlinearity", "init_weights", "init_weights_seed",
		"inv_adapter_reduction_factor", "learn_phm", "phm_bias", "phm_c_init", "phm_dim",
		"phm_init_range", "phm_rank", "shared_W_phm", "shared_phm_rule", NULL};
	struct bottleneck_config *c = &ret->bottleneck;
	const json_t *config = json_object_get(o, "config");
	const char *name = json_string_value(json_object_get(config, "non_linearity"));
	int r = json_refuse_others(config, known, harmless, err);
	r = r ? r : check_fixed(config, err);
	r = r ? r : read_bool(config, "mh_adapter", false, &c->mh_adapter, err);
	r = r ? r : read_bool(config, "output_adapter", false, &c->output_adapter, err);
	r = r ? r : read_bool(config, "is_parallel", false, &c->is_parallel, err);
	r = r ? r : read_bool(config, "original_ln_before", false, &c->original_ln_before, err);
	r = r ? r : read_number(config, "reduction_factor", 0, &c->reduction_factor, err);
	r = r ? r : read_number(config, "scaling", 1, &c->scaling, err);
	if (r == 0 && (!name || !activation_from_name(name, &c->non_linearity))) {
		return errmsg_set(err, STATUS_INVALID, WHAT "non_linearity is \"%.40s\"; there are: relu, "
			"gelu, gelu_new, silu, tanh, sigmoid, leaky_relu", name ? name : "");
	}
	return r ? r : bottleneck_check(ret, err);
}

/* Every field of BnConfig, as its to_dict() has them. */
static json_t *bn_config(const struct bottleneck_config *c)
{
	double whole = floor(c->reduction_factor);
	json_t *reduction = whole == c->reduction_factor ? json_integer((json_int_t)whole) :
		json_real(c->reduction_factor);
	return json_pack("{sb sb sf sb sb ss ss sn sn sn sb sb s[] sb sb sb ss sb sb sb sb ss si sf sb "
		"si so sb sf sb sb sf sb}",
		"adapter_residual_before_ln", 0, "cross_adapter", 0, "dropout", 0.0,
		"factorized_phm_W", 1, "factorized_phm_rule", 0,
		"hypercomplex_nonlinearity", "glorot-uniform",
		"init_weights", c->is_parallel ? "mam_adapter" : "bert", "init_weights_seed", "inv_adapter",
		"inv_adapter_reduction_factor", "is_parallel", c->is_parallel, "learn_phm", 1, "leave_out",
		"ln_after", 0, "ln_before", 0, "mh_adapter", c->mh_adapter,
		"non_linearity", activation_name(c->non_linearity), "original_ln_after", 1,
		"original_ln_before", c->original_ln_before, "output_adapter", c->output_adapter,
		"phm_bias", 1, "phm_c_init", "normal", "phm_dim", 4, "phm_init_range", 0.0001,
		"phm_layer", 0, "phm_rank", 1, "reduction_factor", reduction, "residual_before_ln", 1,
		"scaling", c->scaling, "shared_W_phm", 0, "shared_phm_rule", 1, "stochastic_depth", 0.0,
		"use_gating", 0);
}

/* transformers' class, by which AdapterHub tells adapters of one model from another's. */
static const char *model_class(const char *model_type)
{
	static const char *const classes[][2] = {
		{"llama", "LlamaForCausalLM"},
		{"mistral", "MistralForCausalLM"},
		{"gpt2", "GPT2LMHeadModel"},
		{"t5", "T5ForConditionalGeneration"},
		{"mt5", "MT5ForConditionalGeneration"},
	};
	for (size_t i = 0; i < ARRAY_LEN(classes); i++) {
		if (strcmp(classes[i][0], model_type) == 0) {
			return classes[i][1];
		}
	}
	return classes[0][1];
}

static int bottleneck_config_write(json_t *o, const struct method_config *m,
	const struct model_config *c)
{
	json_t *base = m->base_model_name_or_path ? json_string(m->base_model_name_or_path) :
		json_null();
	bool failed = json_object_set_new(o, "config", bn_config(&m->bottleneck)) ||
		json_object_set_new(o, "hidden_size", json_integer(c->hidden_size)) ||
		json_object_set_new(o, "model_class", json_string(model_class(c->model_type))) ||
		json_object_set_new(o, "model_name", base) ||
		json_object_set_new(o, "model_type", json_string(c->model_type)) ||
		json_object_set_new(o, "name", json_string(ADAPTER_NAME)) ||
		json_object_set_new(o, "version", json_string("adapters.1.3.0"));
	return failed ? -ENOMEM : 0;
}

static int bottleneck_check_tensors(const struct adapter *a, struct errmsg *err)
{
	char first[64], name[64];
	for (size_t i = 0; i < a->tensors.n_tensors; i++) {
		const char *key = a->tensors.tensors[i].name;
		if (!split_key(key, i ? name : first, sizeof(name))) {
			return errmsg_set(err, STATUS_INVALID, "adapter.safetensors: tensor '%.200s' is left "
				"over; keys are BLOCKS.I.{attention,output}_adapters.adapters.NAME.…", key);
		}
		if (i > 0 && strcmp(first, name) != 0) {
			return errmsg_set(err, STATUS_INVALID, "adapter.safetensors: there are two adapters, "
				"'%s' and '%s'; it must be one", first, name);
		}
	}
	return 0;
}

static const char *bottleneck_unmergeable(const struct method_config *m,
	const struct model_config *c)
{
	return "its layers have a non-linearity, or stand where the base has no weight of that shape";
}

const struct peft_method peft_bottleneck = {
	.name = "bottleneck",
	.kind = ADAPTER_HUB,
	.decides = "bottleneck.reduction_factor, mh_adapter and output_adapter",
	.size = sizeof(struct bottleneck),
	.check = bottleneck_check,
	.matches = bottleneck_matches,
	.config_read = bottleneck_config_read,
	.config_write = bottleneck_config_write,
	.check_tensors = bottleneck_check_tensors,
	.start = bottleneck_start,
	.stop = bottleneck_stop,
	.begin = bottleneck_begin,
	.sublayer = bottleneck_sublayer,
	.init = bottleneck_init,
	.n_tensors = bottleneck_n_tensors,
	.tensor = bottleneck_tensor,
	.load = bottleneck_load,
	.unmergeable = bottleneck_unmergeable,
	.describe = bottleneck_describe,
};
