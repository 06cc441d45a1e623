#include "engine/model/model-internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "util/json.h"
#include "util/util.h"

/* Far above any model there is, and low enough that no product of two sizes overflows. */
#define MAX_VOCAB ((int64_t)1 << 24)
#define MAX_WIDTH ((int64_t)1 << 20)
#define MAX_LAYERS 1024
#define MAX_HEADS 4096
#define MAX_HEAD_DIM 4096
#define MAX_POSITIONS ((int64_t)1 << 31)

const char *model_architectures(void)
{
	return "llama";
}

/* Fields that change what a model computes and that nothing here computes; each must be missing, or
 * have the value at which it does nothing. */
static int refuse_unsupported(const json_t *o, const char *what, struct errmsg *err)
{
	const char *hidden_act = "silu";
	double attention_dropout = 0, partial_rotary = 1;
	int r = json_get_string(o, "hidden_act", &hidden_act, what, err);
	if (r == 0 && strcmp(hidden_act, "silu") != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'hidden_act' is \"%.40s\"; only \"silu\" is "
			"supported", what, hidden_act);
	}
	r = r ? r : json_get_real(o, "attention_dropout", 0, 1, &attention_dropout, what, err);
	if (r == 0 && attention_dropout != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'attention_dropout' is %g; only 0 is supported",
			what, attention_dropout);
	}
	r = r ? r : json_get_real(o, "partial_rotary_factor", 0, 1, &partial_rotary, what, err);
	if (r == 0 && partial_rotary != 1) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'partial_rotary_factor' is %g; only 1 is "
			"supported", what, partial_rotary);
	}
	const json_t *quantization = json_object_get(o, "quantization_config");
	if (r == 0 && quantization && !json_is_null(quantization)) {
		const char *method = json_string_value(json_object_get(quantization, "quant_method"));
		return errmsg_set(err, STATUS_INVALID, "%s: the weights are quantized (%.40s); give the "
			"unquantized model, or a GGUF", what, method ? method : "quantization_config");
	}
	return r;
}

static int parse_token_id(const json_t *o, const char *key, int64_t vocab, int32_t fallback,
	int32_t *ret, const char *what, struct errmsg *err)
{
	const json_t *v = json_object_get(o, key);
	if (json_is_array(v)) { /* Llama 3 ends with any of several; the first is the model's own. */
		v = json_array_get(v, 0);
	}
	if (!v) {
		*ret = fallback < vocab ? fallback : -1;
		return 0;
	}
	if (json_is_null(v) || (json_is_integer(v) && json_integer_value(v) == -1)) {
		*ret = -1;
		return 0;
	}
	if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= vocab) {
		return errmsg_set(err, STATUS_INVALID, "%s: '%s' is %s; it must be a token id below "
			"vocab_size = %" PRId64 ", or null", what, key, json_short(v).s, vocab);
	}
	*ret = (int32_t)json_integer_value(v);
	return 0;
}

/* `o` is what rope_parameters (transformers 5) or rope_scaling (before) holds; both name the kind
 * in "rope_type", older files in "type". */
static int parse_rope(struct model_config *c, const json_t *o, const char *key, const char *what,
	struct errmsg *err)
{
	char field[96];
	const char *type = NULL;
	double partial_rotary = 1;

	if (!json_is_object(o)) {
		return errmsg_set(err, STATUS_INVALID, "%s: '%s' must be an object or null", what, key);
	}
	const char *name;
	json_t *value;
	json_object_foreach((json_t *)(uintptr_t)o, name, value) {
		if (json_is_object(value)) { /* one set of parameters for each kind of layer */
			return errmsg_set(err, STATUS_INVALID, "%s: '%s' holds an object '%.40s'; only one set "
				"of parameters for all layers is supported", what, key, name);
		}
	}
	snprintf(field, sizeof(field), "%.64s: '%s'", what, key);
	int r = json_get_string(o, "rope_type", &type, field, err);
	if (r == 0 && !type) {
		r = json_get_string(o, "type", &type, field, err);
	}
	r = r ? r : json_get_real(o, "rope_theta", 1, 1e12, &c->rope_theta, field, err);
	r = r ? r : json_get_real(o, "partial_rotary_factor", 0, 1, &partial_rotary, field, err);
	if (r != 0) {
		return r;
	}
	if (partial_rotary != 1) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'partial_rotary_factor' is %g; only 1 is "
			"supported", field, partial_rotary);
	}
	if (!type || strcmp(type, "default") == 0) {
		return 0;
	}
	if (strcmp(type, "linear") == 0) {
		c->rope_scaling = ROPE_SCALING_LINEAR;
	} else if (strcmp(type, "llama3") == 0) {
		c->rope_scaling = ROPE_SCALING_LLAMA3;
		c->rope.original_max_position_embeddings = c->max_position_embeddings;
	} else {
		return errmsg_set(err, STATUS_INVALID, "%s: rope type \"%.40s\" is not supported; known "
			"are default, linear and llama3", field, type);
	}
	r = json_get_real(o, "factor", 1e-6, 1e6, &c->rope.factor, field, err);
	if (r == 0 && c->rope_scaling == ROPE_SCALING_LLAMA3) {
		r = json_get_real(o, "low_freq_factor", 1e-6, 1e6, &c->rope.low_freq_factor, field, err);
		r = r ? r : json_get_real(o, "high_freq_factor", 1e-6, 1e6, &c->rope.high_freq_factor,
			field, err);
		r = r ? r : json_get_int(o, "original_max_position_embeddings", 1, MAX_POSITIONS,
			&c->rope.original_max_position_embeddings, field, err);
	}
	return r;
}

int model_config_check(const struct model_config *c, const char *what, struct errmsg *err)
{
	const struct {
		const char *name;
		int64_t value, max;
	} sizes[] = {
		{"vocab_size", c->vocab_size, MAX_VOCAB},
		{"hidden_size", c->hidden_size, MAX_WIDTH},
		{"intermediate_size", c->intermediate_size, MAX_WIDTH},
		{"num_hidden_layers", c->num_hidden_layers, MAX_LAYERS},
		{"num_attention_heads", c->num_attention_heads, MAX_HEADS},
		{"num_key_value_heads", c->num_key_value_heads, MAX_HEADS},
		{"head_dim", c->head_dim, MAX_HEAD_DIM},
		{"max_position_embeddings", c->max_position_embeddings, MAX_POSITIONS},
	};
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		if (sizes[i].value < 1 || sizes[i].value > sizes[i].max) {
			return errmsg_set(err, STATUS_INVALID, "%s: '%s' is %" PRId64 "; it must be from 1 to %"
				PRId64, what, sizes[i].name, sizes[i].value, sizes[i].max);
		}
	}
	if (c->num_attention_heads % c->num_key_value_heads != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: num_attention_heads = %" PRId64
			" must be a multiple of num_key_value_heads = %" PRId64, what, c->num_attention_heads,
			c->num_key_value_heads);
	}
	if (c->head_dim % 2 != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: head_dim = %" PRId64 " must be even (rotary "
			"embeddings turn pairs)", what, c->head_dim);
	}
	if (c->num_attention_heads * c->head_dim > MAX_WIDTH) {
		return errmsg_set(err, STATUS_INVALID, "%s: num_attention_heads × head_dim = %" PRId64
			" must be at most %" PRId64, what, c->num_attention_heads * c->head_dim, MAX_WIDTH);
	}
	if (!(c->rms_norm_eps > 0 && c->rms_norm_eps < 1)) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'rms_norm_eps' is %g; it must be above 0 and "
			"below 1", what, c->rms_norm_eps);
	}
	if (!(c->rope_theta >= 1 && c->rope_theta <= 1e12)) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'rope_theta' is %g; it must be from 1 to 1e12",
			what, c->rope_theta);
	}
	if (c->rope_scaling != ROPE_SCALING_NONE && !(c->rope.factor > 0)) {
		return errmsg_set(err, STATUS_INVALID, "%s: rope scaling needs 'factor', a number above 0",
			what);
	}
	if (c->rope_scaling == ROPE_SCALING_LLAMA3 && (!(c->rope.low_freq_factor > 0) ||
			!(c->rope.high_freq_factor > c->rope.low_freq_factor))) {
		return errmsg_set(err, STATUS_INVALID, "%s: rope scaling llama3 needs 'low_freq_factor' "
			"and 'high_freq_factor', 0 < low < high", what);
	}
	return 0;
}

static int parse_sizes(struct model_config *c, const json_t *o, const char *what,
	struct errmsg *err)
{
	const struct {
		const char *key;
		int64_t *value, max;
		bool required;
	} sizes[] = {
		{"vocab_size", &c->vocab_size, MAX_VOCAB, true},
		{"hidden_size", &c->hidden_size, MAX_WIDTH, true},
		{"intermediate_size", &c->intermediate_size, MAX_WIDTH, true},
		{"num_hidden_layers", &c->num_hidden_layers, MAX_LAYERS, true},
		{"num_attention_heads", &c->num_attention_heads, MAX_HEADS, true},
		{"num_key_value_heads", &c->num_key_value_heads, MAX_HEADS, false},
		{"head_dim", &c->head_dim, MAX_HEAD_DIM, false},
		{"max_position_embeddings", &c->max_position_embeddings, MAX_POSITIONS, false},
	};
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		int r = json_get_int(o, sizes[i].key, 1, sizes[i].max, sizes[i].value, what, err);
		if (r != 0) {
			return r;
		}
		if (sizes[i].required && *sizes[i].value == 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: '%s' is missing; it must be a whole number "
				"from 1 to %" PRId64, what, sizes[i].key, sizes[i].max);
		}
	}
	if (c->num_key_value_heads == 0) {
		c->num_key_value_heads = c->num_attention_heads;
	}
	if (c->head_dim == 0) {
		if (c->hidden_size % c->num_attention_heads != 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: hidden_size = %" PRId64
				" is no multiple of num_attention_heads = %" PRId64 ", and 'head_dim' is not given",
				what, c->hidden_size, c->num_attention_heads);
		}
		c->head_dim = c->hidden_size / c->num_attention_heads;
	}
	return 0;
}

/* Fields of a config.json with model_type "llama", the defaults of transformers' LlamaConfig. */
static int parse_llama(struct model_config *c, const json_t *o, const char *what,
	struct errmsg *err)
{
	*c = (struct model_config){
		.model_type = "llama",
		.max_position_embeddings = 2048,
		.rms_norm_eps = 1e-6,
		.rope_theta = 10000,
	};
	int r = refuse_unsupported(o, what, err);
	r = r ? r : parse_sizes(c, o, what, err);
	r = r ? r : json_get_real(o, "rms_norm_eps", 1e-30, 0.5, &c->rms_norm_eps, what, err);
	r = r ? r : json_get_real(o, "rope_theta", 1, 1e12, &c->rope_theta, what, err);
	r = r ? r : json_get_bool(o, "tie_word_embeddings", &c->tie_word_embeddings, what, err);
	r = r ? r : json_get_bool(o, "attention_bias", &c->attention_bias, what, err);
	r = r ? r : json_get_bool(o, "mlp_bias", &c->mlp_bias, what, err);
	r = r ? r : parse_token_id(o, "bos_token_id", c->vocab_size, 1, &c->bos_token_id, what, err);
	r = r ? r : parse_token_id(o, "eos_token_id", c->vocab_size, 2, &c->eos_token_id, what, err);
	r = r ? r : parse_token_id(o, "pad_token_id", c->vocab_size, -1, &c->pad_token_id, what, err);

	/* Where both are given, transformers lets the older one win. */
	const json_t *scaling = json_object_get(o, "rope_scaling");
	const json_t *parameters = json_object_get(o, "rope_parameters");
	if (r == 0 && scaling && !json_is_null(scaling) &&
			!(json_is_object(scaling) && json_object_size(scaling) == 0)) {
		r = parse_rope(c, scaling, "rope_scaling", what, err);
	} else if (r == 0 && parameters && !json_is_null(parameters)) {
		r = parse_rope(c, parameters, "rope_parameters", what, err);
	}
	return r ? r : model_config_check(c, what, err);
}

int model_config_parse(struct model_config *ret, const char *json, size_t len, const char *what,
	struct errmsg *err)
{
	json_auto_t *o = NULL;
	const char *model_type = NULL;
	struct model_config c;

	int r = json_parse_object(&o, json, len, what, err);
	r = r ? r : json_get_string(o, "model_type", &model_type, what, err);
	if (r != 0) {
		return r;
	}
	if (!model_type) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'model_type' is missing; known are: %s", what,
			model_architectures());
	}
	if (strcmp(model_type, "llama") != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: model_type \"%.60s\" is not supported; known "
			"are: %s", what, model_type, model_architectures());
	}
	r = parse_llama(&c, o, what, err);
	if (r == 0) {
		*ret = c;
	}
	return r;
}

bool model_config_tensor(const struct model_config *c, int64_t i, struct tensor_spec *ret)
{
	const int64_t q = c->num_attention_heads * c->head_dim,
		kv = c->num_key_value_heads * c->head_dim;
	const int64_t hidden = c->hidden_size, mlp = c->intermediate_size;
	const struct {
		const char *suffix;
		int n_dims;
		int64_t rows, cols;
		bool there;
	} layer[] = {
		{"input_layernorm.weight", 1, hidden, 1, true},
		{"self_attn.q_proj.weight", 2, q, hidden, true},
		{"self_attn.q_proj.bias", 1, q, 1, c->attention_bias},
		{"self_attn.k_proj.weight", 2, kv, hidden, true},
		{"self_attn.k_proj.bias", 1, kv, 1, c->attention_bias},
		{"self_attn.v_proj.weight", 2, kv, hidden, true},
		{"self_attn.v_proj.bias", 1, kv, 1, c->attention_bias},
		{"self_attn.o_proj.weight", 2, hidden, q, true},
		{"self_attn.o_proj.bias", 1, hidden, 1, c->attention_bias},
		{"post_attention_layernorm.weight", 1, hidden, 1, true},
		{"mlp.gate_proj.weight", 2, mlp, hidden, true},
		{"mlp.gate_proj.bias", 1, mlp, 1, c->mlp_bias},
		{"mlp.up_proj.weight", 2, mlp, hidden, true},
		{"mlp.up_proj.bias", 1, mlp, 1, c->mlp_bias},
		{"mlp.down_proj.weight", 2, hidden, mlp, true},
		{"mlp.down_proj.bias", 1, hidden, 1, c->mlp_bias},
	};
	int64_t per_layer = 0;
	for (size_t j = 0; j < ARRAY_LEN(layer); j++) {
		per_layer += layer[j].there;
	}

	if (i == 0) {
		*ret = (struct tensor_spec){"model.embed_tokens.weight", 2, c->vocab_size, hidden};
		return true;
	}
	int64_t l = (i - 1) / per_layer, at = (i - 1) % per_layer;
	if (l < c->num_hidden_layers) {
		size_t j = 0;
		while (!layer[j].there || at-- > 0) {
			j++;
		}
		*ret = (struct tensor_spec){
			.n_dims = layer[j].n_dims,
			.rows = layer[j].rows,
			.cols = layer[j].cols,
		};
		snprintf(ret->name, sizeof(ret->name), "model.layers.%d.%s", (int)l, layer[j].suffix);
		return true;
	}
	at = i - 1 - c->num_hidden_layers * per_layer;
	if (at == 0) {
		*ret = (struct tensor_spec){"model.norm.weight", 1, hidden, 1};
	} else if (at == 1 && !c->tie_word_embeddings) {
		*ret = (struct tensor_spec){"lm_head.weight", 2, c->vocab_size, hidden};
	} else {
		return false;
	}
	return true;
}

/* The divisor of a rotary frequency under llama3 scaling (transformers'
 * _compute_llama3_parameters). */
static double llama3_factor(const struct model_config *c, int64_t i)
{
	double frequency = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
	double wavelength = 2 * M_PI / frequency;
	double context = (double)c->rope.original_max_position_embeddings;
	if (wavelength < context / c->rope.high_freq_factor) {
		return 1;
	}
	if (wavelength > context / c->rope.low_freq_factor) {
		return c->rope.factor;
	}
	double smooth = (context / wavelength - c->rope.low_freq_factor) /
		(c->rope.high_freq_factor - c->rope.low_freq_factor);
	return 1 / ((1 - smooth) / c->rope.factor + smooth);
}

bool model_config_llama3_from_factors(struct model_config *c, const float *factors, int64_t n)
{
	struct model_config trial = *c;
	if (n != c->head_dim / 2) {
		return false;
	}
	/* Every Llama with this scaling was made with these three; the factor (8 in 3.1, 32 in 3.2) is
	 * the divisor of the lowest frequencies. */
	trial.rope_scaling = ROPE_SCALING_LLAMA3;
	trial.rope.low_freq_factor = 1;
	trial.rope.high_freq_factor = 4;
	trial.rope.original_max_position_embeddings = 8192;
	trial.rope.factor = (double)factors[n - 1];
	if (!(trial.rope.factor > 1 && trial.rope.factor <= 1e6)) {
		return false;
	}
	for (int64_t i = 0; i < n; i++) {
		double want = llama3_factor(&trial, i);
		/* The converter worked in f32, where the smooth part loses a few digits. */
		if (!(fabs((double)factors[i] - want) <= 1e-4 * want)) {
			return false;
		}
	}
	*c = trial;
	return true;
}
