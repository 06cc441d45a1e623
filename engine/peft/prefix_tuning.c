/*
 * Prefix tuning: n trained keys and values before those of every sequence, in every layer, without
 * rotary positions; tokens start at position n. With prefix_projection they are computed in training:
 *
 *	prefix = W₂·tanh(W₁·e + b₁) + b₂ with an embedding e[n, token_dim]
 *
 * and what is exported is the result. Li & Liang 2021; names and layout as in PEFT's
 * tuners/prefix_tuning, row by row K₀V₀K₁V₁…, heads one after the other.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/ops_peft.h"
#include "engine/peft/soft-prompt.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { EMBEDDING, W1, B1, W2, B2, N_PARAMS };

struct prefix_tuning {
	struct peft peft;
	int param[N_PARAMS]; /* without projection only the first */
	int prefix;          /* tensor */
};

static struct prefix_tuning *of(struct peft *p)
{
	return (struct prefix_tuning *)p;
}

static const struct prefix_tuning *of_const(const struct peft *p)
{
	return (const struct prefix_tuning *)p;
}

/* Only training computes the prefix; elsewhere it is what the folder holds. */
static bool projects(const struct peft *p, const struct graph *g)
{
	return p->config.prefix_tuning.prefix_projection && g->trainable;
}

static int64_t token_dim(const struct model_config *c)
{
	return c->num_key_value_heads * c->head_dim;
}

static int64_t prefix_width(const struct model_config *c)
{
	return c->num_hidden_layers * 2 * token_dim(c);
}

static int prefix_check(const struct method_config *m, struct errmsg *err)
{
	const struct prefix_tuning_config *c = &m->prefix_tuning;
	if (c->encoder_hidden_size < 0 || c->encoder_hidden_size > 1 << 20) {
		return errmsg_set(err, STATUS_INVALID, "prefix_tuning.encoder_hidden_size: %lld; it must be "
			"from 1 to %d, or 0 for that of keys", (long long)c->encoder_hidden_size, 1 << 20);
	}
	return soft_prompt_check("prefix_tuning", c->num_virtual_tokens, err);
}

/* PEFT takes the number of layers from the encoder and gives the prefix to the decoder. */
static int prefix_start(struct peft *p, const struct graph *g, struct errmsg *err)
{
	const struct model_config *c = &g->config;
	if (g->source && c->num_decoder_layers != c->num_hidden_layers) {
		return errmsg_set(err, STATUS_INVALID, "prefix_tuning: this model's encoder has %lld blocks "
			"and its decoder %lld; PEFT knows prefixes only where these are equal",
			(long long)c->num_hidden_layers, (long long)c->num_decoder_layers);
	}
	return 0;
}

static int64_t prefix_position_offset(const struct peft *p)
{
	return p->config.prefix_tuning.num_virtual_tokens;
}

static int prefix_embedding(struct peft *p, struct graph *g, int weight, int x)
{
	struct prefix_tuning *t = of(p);
	const struct prefix_tuning_config *c = &p->config.prefix_tuning;
	int64_t width = prefix_width(&g->config), dim = token_dim(&g->config);
	if (g->tensors[x].rows == ROWS_SOURCE) {
		return x; /* the decoder's attention to itself has the prefix */
	}
	if (!projects(p, g)) {
		t->param[EMBEDDING] = graph_param(g, c->num_virtual_tokens, width);
		t->prefix = graph_of_param(g, t->param[EMBEDDING]);
		return x;
	}
	int64_t inner = c->encoder_hidden_size ? c->encoder_hidden_size : dim;
	t->param[EMBEDDING] = graph_param(g, c->num_virtual_tokens, dim);
	t->param[W1] = graph_param(g, inner, dim);
	t->param[B1] = graph_param(g, 1, inner);
	t->param[W2] = graph_param(g, width, inner);
	t->param[B2] = graph_param(g, 1, width);
	enum recompute region = g->region;
	g->region = RECOMPUTE_NEVER; /* small, and used by all blocks */
	int h = graph_dense(g, graph_of_param(g, t->param[EMBEDDING]), t->param[W1], t->param[B1]);
	t->prefix = graph_dense(g, graph_activation(g, h, ACTIVATION_TANH), t->param[W2], t->param[B2]);
	g->region = region;
	return x;
}

static int prefix_attention(struct peft *p, struct graph *g, const struct attention_site *site)
{
	if (g->tensors[site->qkv].rows == ROWS_SOURCE) {
		return graph_attention(g, site->qkv, &site->spec);
	}
	/* PEFT lays the rows of an encoder-decoder out for two submodules, one after the other, and takes four
	 * parts for each layer: two for its attention to itself, and two that it drops. */
	int64_t layers = g->config.num_hidden_layers;
	int64_t layer = g->source ? 2 * site->layer % layers : site->layer;
	return graph_attention_prefix(g, site->qkv, &site->spec, of(p)->prefix, layer);
}

static int prefix_init(const struct peft *p, const struct graph *g, const struct base_model *base,
	uint64_t seed, float *flat, struct errmsg *err)
{
	const struct prefix_tuning *t = of_const(p);
	const struct param *e = &g->params[t->param[EMBEDDING]];
	peft_fill_normal(flat + e->offset, (size_t)(e->rows * e->cols), 0, 1, seed, 0);
	if (projects(p, g)) {
		soft_prompt_init_linear(g, t->param[W1], t->param[B1], seed, 1, flat);
		soft_prompt_init_linear(g, t->param[W2], t->param[B2], seed, 3, flat);
	}
	return 0;
}

static size_t prefix_n_tensors(const struct peft *p, const struct graph *g)
{
	return projects(p, g) ? N_PARAMS : 1;
}

static void prefix_tensor(const struct peft *p, const struct graph *g, size_t i,
	struct peft_tensor *ret)
{
	static const char *const names[] = {"embedding.weight", "transform.0.weight",
		"transform.0.bias", "transform.2.weight", "transform.2.bias"};
	soft_prompt_tensor(g, of_const(p)->param[i], ret);
	if (projects(p, g)) {
		snprintf(ret->name, sizeof(ret->name), "prompt_encoder.%s", names[i]);
		if (i == B1 || i == B2) {
			ret->n_dims = 1;
			ret->dims[0] = ret->dims[1];
			ret->dims[1] = 0;
		}
	}
}

static int prefix_exported(const struct peft *p, const struct graph *g, const float *flat,
	struct peft_tensor **ret, size_t *ret_n, float **ret_data, struct errmsg *err)
{
	const struct prefix_tuning *t = of_const(p);
	int64_t n = p->config.prefix_tuning.num_virtual_tokens, width = prefix_width(&g->config);
	_cleanup_(freep) struct peft_tensor *out = calloc(1, sizeof(*out));
	_cleanup_(freep) float *data = alloc_array((size_t)(n * width), sizeof(*data));
	if (!out || !data) {
		return -ENOMEM;
	}
	soft_prompt_tensor(g, t->param[EMBEDDING], out);
	if (projects(p, g)) {
		int64_t inner = g->params[t->param[W1]].rows;
		_cleanup_(freep) float *h = alloc_array((size_t)(n * inner), sizeof(*h));
		if (!h) {
			return -ENOMEM;
		}
		soft_prompt_linear(h, flat + out->offset, n, g, t->param[W1], t->param[B1], flat);
		for (int64_t i = 0; i < n * inner; i++) {
			h[i] = tanhf(h[i]);
		}
		soft_prompt_linear(data, h, n, g, t->param[W2], t->param[B2], flat);
	} else {
		memcpy(data, flat + out->offset, (size_t)(n * width) * sizeof(*data));
	}
	out->dims[1] = width;
	out->offset = 0;
	*ret = steal_ptr(out);
	*ret_n = 1;
	*ret_data = steal_ptr(data);
	return 0;
}

static int prefix_can_start(const struct method_config *want, struct errmsg *err)
{
	return !want->prefix_tuning.prefix_projection ? 0
		: errmsg_set(err, STATUS_INVALID, "prefix_tuning: a folder holds the prefix, not the "
			"projection that it is computed with, so training cannot go on from it; leave out "
			"init_adapter or prefix_projection");
}

static int prefix_load(const struct peft *p, const struct graph *g, const struct adapter *a,
	float *flat, struct errmsg *err)
{
	int r = projects(p, g) ? prefix_can_start(&p->config, err) : 0;
	if (r != 0) {
		return r;
	}
	struct peft_tensor want;
	soft_prompt_tensor(g, of_const(p)->param[EMBEDDING], &want);
	return peft_load_tensor(a, &want, flat, err);
}

static int prefix_describe(const struct peft *p, struct buf *out)
{
	const struct prefix_tuning_config *c = &p->config.prefix_tuning;
	return buf_appendf(out, "prefix_tuning n=%lld projection=%d inner=%lld",
		(long long)c->num_virtual_tokens, c->prefix_projection, (long long)c->encoder_hidden_size);
}

static int prefix_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	static const char *const known[] = {"num_virtual_tokens", "num_transformer_submodules",
		"prefix_projection", "encoder_hidden_size", "init_weights", NULL};
	struct prefix_tuning_config *c = &ret->prefix_tuning;
	int r = json_refuse_others(o, known, soft_prompt_harmless, err);
	r = r ? r : soft_prompt_read(o, &c->num_virtual_tokens, err);
	r = r ? r : soft_prompt_read_int(o, "encoder_hidden_size", 1, 0, &c->encoder_hidden_size, err);
	c->prefix_projection = json_is_true(json_object_get(o, "prefix_projection"));
	return r;
}

static int prefix_config_write(json_t *o, const struct method_config *m,
	const struct model_config *c)
{
	const struct prefix_tuning_config *t = &m->prefix_tuning;
	int64_t inner = t->encoder_hidden_size ? t->encoder_hidden_size : token_dim(c);
	bool failed = json_object_set_new(o, "prefix_projection", json_boolean(t->prefix_projection)) ||
		json_object_set_new(o, "encoder_hidden_size", json_integer(inner));
	return failed ? -ENOMEM : soft_prompt_write(o, t->num_virtual_tokens, token_dim(c),
		c->num_key_value_heads, c);
}

static int prefix_check_tensors(const struct adapter *a, struct errmsg *err)
{
	return soft_prompt_check_tensors(a, a->config.prefix_tuning.num_virtual_tokens, false,
		err);
}

static int prefix_matches(const struct method_config *have, const struct method_config *want,
	struct errmsg *err)
{
	return soft_prompt_matches("prefix_tuning", have->prefix_tuning.num_virtual_tokens,
		want->prefix_tuning.num_virtual_tokens, err);
}

const struct peft_method peft_prefix_tuning = {
	.name = "prefix_tuning",
	.kind = ADAPTER_PEFT,
	.peft_type = "PREFIX_TUNING",
	.size = sizeof(struct prefix_tuning),
	.check = prefix_check,
	.config_read = prefix_config_read,
	.config_write = prefix_config_write,
	.check_tensors = prefix_check_tensors,
	.matches = prefix_matches,
	.start = prefix_start,
	.position_offset = prefix_position_offset,
	.embedding = prefix_embedding,
	.attention = prefix_attention,
	.init = prefix_init,
	.n_tensors = prefix_n_tensors,
	.tensor = prefix_tensor,
	.exported = prefix_exported,
	.load = prefix_load,
	.can_start = prefix_can_start,
	.unmergeable = soft_prompt_unmergeable,
	.describe = prefix_describe,
};
