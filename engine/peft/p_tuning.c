/*
 * P-tuning: a soft prompt that an encoder computes while it is trained, from an embedding e[n, hidden]:
 *
 *	MLP:  W₃·relu(W₂·relu(W₁·e + b₁) + b₂) + b₃
 *	LSTM: W₂·relu(W₁·h + b₁) + b₂ with h the output of bidirectional layers of LSTM over e
 *
 * What is exported is the result. Liu et al. 2021; names, sizes and initialisation as in PEFT's
 * tuners/p_tuning.
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

enum {
	LAYERS_MAX = 16,
	LINEARS_MAX = 3,
	LSTM_PARAMS = 8, /* of a layer: W_ih, W_hh, b_ih, b_hh; then those of the reverse direction */
	PARAMS_MAX = 1 + LAYERS_MAX * LSTM_PARAMS + 2 * LINEARS_MAX,
};

/* A parameter with its name after "prompt_encoder.". */
struct named {
	char name[64];
	int param;
	bool vector;
};

struct p_tuning {
	struct peft peft;
	struct named params[PARAMS_MAX]; /* embedding, layers of LSTM, linear layers */
	size_t n_params;
};

static struct p_tuning *of(struct peft *p)
{
	return (struct p_tuning *)p;
}

static const struct p_tuning *of_const(const struct peft *p)
{
	return (const struct p_tuning *)p;
}

static bool is_lstm(const struct peft *p)
{
	return p->config.p_tuning.encoder_reparameterization_type == P_TUNING_LSTM;
}

static int64_t inner_size(const struct peft *p, const struct model_config *c)
{
	int64_t size = p->config.p_tuning.encoder_hidden_size;
	return size ? size : c->hidden_size;
}

static size_t n_layers(const struct peft *p)
{
	return is_lstm(p) ? (size_t)p->config.p_tuning.encoder_num_layers : 0;
}

static int p_check(const struct method_config *m, struct errmsg *err)
{
	const struct p_tuning_config *c = &m->p_tuning;
	if (c->encoder_hidden_size < 0 || c->encoder_hidden_size > LSTM_MAX_SIZE) {
		return errmsg_set(err, STATUS_INVALID, "p_tuning.encoder_hidden_size: %lld; it must be from "
			"1 to %d, or 0 for the model's hidden_size", (long long)c->encoder_hidden_size,
			LSTM_MAX_SIZE);
	}
	bool lstm = c->encoder_reparameterization_type == P_TUNING_LSTM;
	if (lstm && (c->encoder_num_layers < 1 || c->encoder_num_layers > LAYERS_MAX)) {
		return errmsg_set(err, STATUS_INVALID, "p_tuning.encoder_num_layers: %lld; it must be from "
			"1 to %d", (long long)c->encoder_num_layers, LAYERS_MAX);
	}
	if (!lstm && c->encoder_num_layers != 2) {
		return errmsg_set(err, STATUS_INVALID, "p_tuning.encoder_num_layers: %lld; an MLP is always "
			"of one size, which PEFT calls 2", (long long)c->encoder_num_layers);
	}
	if (!f32_probability(c->encoder_dropout)) {
		return errmsg_set(err, STATUS_INVALID, "p_tuning.encoder_dropout: %.17g; it must be at least "
			"0 and, as a float32, below 1", c->encoder_dropout);
	}
	if (c->encoder_dropout > 0 && !(lstm && c->encoder_num_layers > 1)) {
		return errmsg_set(err, STATUS_INVALID, "p_tuning.encoder_dropout: %g, but only an LSTM of "
			"more than one layer has a place for it", c->encoder_dropout);
	}
	return soft_prompt_check("p_tuning", c->num_virtual_tokens, err);
}

/* ---- graph --------------------------------------------------------------------------------- */

static int64_t p_virtual_tokens(const struct peft *p)
{
	return p->config.p_tuning.num_virtual_tokens;
}

static void p_begin(struct peft *p, struct graph *g)
{
	of(p)->n_params = 0;
}

static int add_param(struct p_tuning *t, struct graph *g, int64_t rows, int64_t cols, bool vector,
	const char *name)
{
	struct named *n = &t->params[t->n_params++];
	n->param = graph_param(g, rows, cols);
	n->vector = vector;
	snprintf(n->name, sizeof(n->name), "%s", name);
	return n->param;
}

static int add_linear(struct p_tuning *t, struct graph *g, int x, int64_t out, int i)
{
	char name[64];
	snprintf(name, sizeof(name), "mlp_head.%d.weight", i);
	int w = add_param(t, g, out, g->tensors[x].cols, false, name);
	snprintf(name, sizeof(name), "mlp_head.%d.bias", i);
	return graph_dense(g, x, w, add_param(t, g, 1, out, true, name));
}

static int add_lstm(struct p_tuning *t, struct graph *g, int x, int64_t d, size_t layer)
{
	int xg[2], w[2], bias[2];
	int64_t in = g->tensors[x].cols;
	for (int i = 0; i < 2; i++) {
		char name[64];
		const char *way = i ? "_reverse" : "";
		snprintf(name, sizeof(name), "lstm_head.weight_ih_l%zu%s", layer, way);
		int w_ih = add_param(t, g, 4 * d, in, false, name);
		snprintf(name, sizeof(name), "lstm_head.weight_hh_l%zu%s", layer, way);
		w[i] = add_param(t, g, 4 * d, d, false, name);
		snprintf(name, sizeof(name), "lstm_head.bias_ih_l%zu%s", layer, way);
		int b_ih = add_param(t, g, 1, 4 * d, true, name);
		snprintf(name, sizeof(name), "lstm_head.bias_hh_l%zu%s", layer, way);
		bias[i] = add_param(t, g, 1, 4 * d, true, name);
		xg[i] = graph_dense(g, x, w_ih, b_ih);
	}
	return graph_lstm(g, xg, w, bias);
}

/* From the embedding to the prompt. */
static int encode(struct peft *p, struct graph *g, int x, int64_t out)
{
	struct p_tuning *t = of(p);
	int64_t d = inner_size(p, &g->config);
	float dropout = (float)p->config.p_tuning.encoder_dropout;
	for (size_t i = 0; i < n_layers(p); i++) {
		if (i > 0 && dropout > 0) {
			x = graph_dropout_fixed(g, x, dropout);
		}
		x = add_lstm(t, g, x, d, i);
	}
	int64_t width = is_lstm(p) ? 2 * d : d;
	int last = is_lstm(p) ? 2 : 4;
	for (int i = 0; i < last; i += 2) {
		x = graph_activation(g, add_linear(t, g, x, width, i), ACTIVATION_RELU);
	}
	return add_linear(t, g, x, out, last);
}

static int p_inputs(struct peft *p, struct graph *g, int weight, int x)
{
	if (!soft_prompt_belongs(g, x)) {
		return x;
	}
	int64_t hidden = g->tensors[x].cols, rows = soft_prompt_rows(g, p_virtual_tokens(p));
	int e = add_param(of(p), g, rows, hidden, false, "embedding.weight");
	int prompt = graph_of_param(g, e);
	if (g->trainable) {
		enum recompute region = g->region;
		g->region = RECOMPUTE_NEVER;
		prompt = encode(p, g, prompt, hidden);
		g->region = region;
	}
	return graph_virtual_tokens(g, x, prompt);
}

/* ---- parameters ---------------------------------------------------------------------------- */

/* The embedding normal; everything else uniform as torch has it: ±1/sqrt(in) for a linear layer, ±1/sqrt(d)
 * for all of an LSTM. */
static int p_init(const struct peft *p, const struct graph *g, const struct base_model *base,
	uint64_t seed, float *flat, struct errmsg *err)
{
	const struct p_tuning *t = of_const(p);
	double lstm_bound = 1 / sqrt((double)inner_size(p, &g->config)), bound = lstm_bound;
	for (size_t i = 0; i < t->n_params; i++) {
		const struct param *param = &g->params[t->params[i].param];
		float *out = flat + param->offset;
		size_t n = (size_t)(param->rows * param->cols);
		if (i == 0) {
			peft_fill_normal(out, n, 0, 1, seed, 0);
			continue;
		}
		if (strncmp(t->params[i].name, "lstm_head.", 10) == 0) {
			bound = lstm_bound;
		} else if (!t->params[i].vector) { /* its bias comes next */
			bound = 1 / sqrt((double)param->cols);
		}
		peft_fill_uniform(out, n, bound, seed, i);
	}
	return 0;
}

static size_t p_n_tensors(const struct peft *p, const struct graph *g)
{
	return of_const(p)->n_params;
}

static void p_tensor(const struct peft *p, const struct graph *g, size_t i, struct peft_tensor *ret)
{
	const struct named *n = &of_const(p)->params[i];
	soft_prompt_tensor(g, n->param, ret);
	if (!g->trainable) {
		return; /* the prompt itself */
	}
	snprintf(ret->name, sizeof(ret->name), "prompt_encoder.%s", n->name);
	if (n->vector) {
		ret->n_dims = 1;
		ret->dims[0] = ret->dims[1];
		ret->dims[1] = 0;
	}
}

/* One direction of a layer, on the host: h[·, 2d] at column `at`; params: W_ih, W_hh, b_ih, b_hh. */
static int host_lstm(float *h, int64_t at, const float *x, int64_t n, int64_t d, bool reverse,
	const struct graph *g, const struct named *params, const float *flat)
{
	_cleanup_(freep) float *a = alloc_array((size_t)(n * 4 * d), sizeof(*a));
	_cleanup_(freep) float *cell = calloc_array((size_t)d, sizeof(*cell));
	if (!a || !cell) {
		return -ENOMEM;
	}
	soft_prompt_linear(a, x, n, g, params[0].param, params[2].param, flat);
	const float *w = flat + g->params[params[1].param].offset;
	const float *bias = flat + g->params[params[3].param].offset;
	for (int64_t k = 0; k < n; k++) {
		int64_t t = reverse ? n - 1 - k : k;
		const float *last = k > 0 ? h + (reverse ? t + 1 : t - 1) * 2 * d + at : NULL;
		for (int64_t j = 0; j < 4 * d; j++) {
			double sum = (double)a[t * 4 * d + j] + bias[j];
			for (int64_t l = 0; last && l < d; l++) {
				sum += (double)w[j * d + l] * last[l];
			}
			a[t * 4 * d + j] = (float)(j / d == 2 ? tanh(sum) : 1 / (1 + exp(-sum)));
		}
		for (int64_t j = 0; j < d; j++) {
			const float *gate = a + t * 4 * d + j;
			cell[j] = gate[d] * cell[j] + gate[0] * gate[2 * d];
			h[t * 2 * d + at + j] = gate[3 * d] * tanhf(cell[j]);
		}
	}
	return 0;
}

static int p_exported(const struct peft *p, const struct graph *g, const float *flat,
	struct peft_tensor **ret, size_t *ret_n, float **ret_data, struct errmsg *err)
{
	const struct p_tuning *t = of_const(p);
	int64_t n = soft_prompt_rows(g, p_virtual_tokens(p)), d = inner_size(p, &g->config);
	_cleanup_(freep) struct peft_tensor *out = calloc(1, sizeof(*out));
	if (!out) {
		return -ENOMEM;
	}
	soft_prompt_tensor(g, t->params[0].param, out);
	int64_t cols = out->dims[1];
	_cleanup_(freep) float *x = alloc_array((size_t)(n * cols), sizeof(*x));
	if (!x) {
		return -ENOMEM;
	}
	memcpy(x, flat + out->offset, (size_t)(n * cols) * sizeof(*x));
	size_t i = 1;
	for (; g->trainable && i + LSTM_PARAMS <= t->n_params && i < 1 + n_layers(p) * LSTM_PARAMS;
		i += LSTM_PARAMS) {
		_cleanup_(freep) float *h = alloc_array((size_t)(n * 2 * d), sizeof(*h));
		int r = h ? host_lstm(h, 0, x, n, d, false, g, &t->params[i], flat) : -ENOMEM;
		r = r ? r : host_lstm(h, d, x, n, d, true, g, &t->params[i + 4], flat);
		if (r != 0) {
			return r;
		}
		free(x);
		x = steal_ptr(h);
	}
	for (; i < t->n_params; i += 2) {
		int64_t width = g->params[t->params[i].param].rows;
		_cleanup_(freep) float *y = alloc_array((size_t)(n * width), sizeof(*y));
		if (!y) {
			return -ENOMEM;
		}
		soft_prompt_linear(y, x, n, g, t->params[i].param, t->params[i + 1].param, flat);
		for (int64_t k = 0; k < n * width && i + 2 < t->n_params; k++) {
			y[k] = fmaxf(y[k], 0);
		}
		free(x);
		x = steal_ptr(y);
	}
	out->offset = 0;
	*ret = steal_ptr(out);
	*ret_n = 1;
	*ret_data = steal_ptr(x);
	return 0;
}

static int p_can_start(const struct method_config *want, struct errmsg *err)
{
	return errmsg_set(err, STATUS_INVALID, "p_tuning: a folder holds the prompt, not the encoder that "
		"computes it, so training cannot go on from it; prompt_tuning can");
}

static int p_load(const struct peft *p, const struct graph *g, const struct adapter *a, float *flat,
	struct errmsg *err)
{
	int r = g->trainable ? p_can_start(&p->config, err) : 0;
	if (r != 0) {
		return r;
	}
	struct peft_tensor want;
	soft_prompt_tensor(g, of_const(p)->params[0].param, &want);
	return peft_load_tensor(a, &want, flat, err);
}

static int p_describe(const struct peft *p, struct buf *out)
{
	const struct p_tuning_config *c = &p->config.p_tuning;
	return buf_appendf(out, "p_tuning n=%lld %s inner=%lld layers=%lld dropout=%.17g",
		(long long)c->num_virtual_tokens, is_lstm(p) ? "LSTM" : "MLP",
		(long long)c->encoder_hidden_size, (long long)c->encoder_num_layers, c->encoder_dropout);
}

/* ---- folder -------------------------------------------------------------------------------- */

/* The encoder is gone, so what it was like says nothing about what the folder computes; it is kept for
 * whoever looks. */
static int p_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	static const char *const known[] = {"num_virtual_tokens", "num_transformer_submodules",
		"encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers",
		"encoder_dropout", NULL};
	struct p_tuning_config *c = &ret->p_tuning;
	int r = json_refuse_others(o, known, soft_prompt_harmless, err);
	r = r ? r : soft_prompt_read(o, &c->num_virtual_tokens, err);
	r = r ? r : soft_prompt_read_int(o, "encoder_hidden_size", 1, 0, &c->encoder_hidden_size, err);
	const char *type = json_string_value(json_object_get(o, "encoder_reparameterization_type"));
	bool lstm = type && strcmp(type, "LSTM") == 0;
	c->encoder_reparameterization_type = lstm ? P_TUNING_LSTM : P_TUNING_MLP;
	c->encoder_num_layers = 2;
	if (r == 0 && lstm) {
		r = soft_prompt_read_int(o, "encoder_num_layers", 1, 2, &c->encoder_num_layers, err);
		bool several = c->encoder_num_layers > 1;
		c->encoder_dropout = several ? json_number_value(json_object_get(o, "encoder_dropout")) : 0;
	}
	return r ? r : p_check(ret, err);
}

static int p_config_write(json_t *o, const struct method_config *m, const struct model_config *c)
{
	const struct p_tuning_config *t = &m->p_tuning;
	int64_t inner = t->encoder_hidden_size ? t->encoder_hidden_size : c->hidden_size;
	bool lstm = t->encoder_reparameterization_type == P_TUNING_LSTM;
	bool failed = json_object_set_new(o, "encoder_reparameterization_type",
			json_string(lstm ? "LSTM" : "MLP")) ||
		json_object_set_new(o, "encoder_hidden_size", json_integer(inner)) ||
		json_object_set_new(o, "encoder_num_layers", json_integer(t->encoder_num_layers)) ||
		json_object_set_new(o, "encoder_dropout", json_real(t->encoder_dropout));
	return failed ? -ENOMEM : soft_prompt_write(o, t->num_virtual_tokens, c->hidden_size,
		c->num_attention_heads, c);
}

static int p_check_tensors(const struct adapter *a, struct errmsg *err)
{
	return soft_prompt_check_tensors(a, a->config.p_tuning.num_virtual_tokens, true, err);
}

static int p_matches(const struct method_config *have, const struct method_config *want,
	struct errmsg *err)
{
	return soft_prompt_matches("p_tuning", have->p_tuning.num_virtual_tokens,
		want->p_tuning.num_virtual_tokens, err);
}

const struct peft_method peft_p_tuning = {
	.name = "p_tuning",
	.kind = ADAPTER_PEFT,
	.peft_type = "P_TUNING",
	.size = sizeof(struct p_tuning),
	.check = p_check,
	.config_read = p_config_read,
	.config_write = p_config_write,
	.check_tensors = p_check_tensors,
	.matches = p_matches,
	.begin = p_begin,
	.virtual_tokens = p_virtual_tokens,
	.inputs = p_inputs,
	.init = p_init,
	.n_tensors = p_n_tensors,
	.tensor = p_tensor,
	.exported = p_exported,
	.load = p_load,
	.can_start = p_can_start,
	.unmergeable = soft_prompt_unmergeable,
	.describe = p_describe,
};
