/* Configurations: what the files of architectures read theirs with, and checks for either format. */
#include "engine/model/config.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/model/arch.h"
#include "engine/model/model-internal.h"
#include "util/json.h"
#include "util/util.h"

/* ---- fields -------------------------------------------------------------------------------- */

void config_fault(struct config_reader *r, const char *format, ...)
{
	char text[512];
	if (r->r != 0) {
		return;
	}
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	r->r = errmsg_set(r->err, STATUS_INVALID, "%s: %s", r->what, text);
}

void config_int(struct config_reader *r, const char *key, int64_t lo, int64_t hi, int64_t *ret)
{
	r->r = r->r ? r->r : json_get_int(r->o, key, lo, hi, ret, r->what, r->err);
}

void config_real(struct config_reader *r, const char *key, double lo, double hi, double *ret)
{
	r->r = r->r ? r->r : json_get_real(r->o, key, lo, hi, ret, r->what, r->err);
}

void config_bool(struct config_reader *r, const char *key, bool *ret)
{
	r->r = r->r ? r->r : json_get_bool(r->o, key, ret, r->what, r->err);
}

void config_size(struct config_reader *r, const char *key, int64_t max, int64_t *ret)
{
	*ret = 0;
	config_int(r, key, 1, max, ret);
	if (*ret == 0) {
		config_fault(r, "'%s' is missing; it must be a whole number from 1 to %" PRId64, key, max);
	}
}

void config_only_real(struct config_reader *r, const char *key, double value)
{
	double got = value;
	config_real(r, key, -1e30, 1e30, &got);
	if (got != value) {
		config_fault(r, "'%s' is %g; only %g is supported", key, got, value);
	}
}

void config_only_bool(struct config_reader *r, const char *key, bool value)
{
	bool got = value;
	config_bool(r, key, &got);
	if (got != value) {
		config_fault(r, "'%s' is %s; only %s is supported", key, got ? "true" : "false",
			value ? "true" : "false");
	}
}

void config_refuse_common(struct config_reader *r)
{
	const json_t *quantization = json_object_get(r->o, "quantization_config");
	config_only_real(r, "attention_dropout", 0);
	if (quantization && !json_is_null(quantization)) {
		const char *method = json_string_value(json_object_get(quantization, "quant_method"));
		config_fault(r, "the weights are quantized (%.40s); give the unquantized model, or a GGUF",
			method ? method : "quantization_config");
	}
}

void config_activation(struct config_reader *r, const char *key, const char *fallback)
{
	static const struct {
		const char *name;
		enum activation kind;
	} known[] = {
		{"silu", ACTIVATION_SILU},
		{"swish", ACTIVATION_SILU},
		{"gelu", ACTIVATION_GELU},
		{"gelu_python", ACTIVATION_GELU},
		/* One function in three ways to write it. */
		{"gelu_new", ACTIVATION_GELU_NEW},
		{"gelu_fast", ACTIVATION_GELU_NEW},
		{"gelu_pytorch_tanh", ACTIVATION_GELU_NEW},
		{"relu", ACTIVATION_RELU},
	};
	const char *name = fallback;
	r->r = r->r ? r->r : json_get_string(r->o, key, &name, r->what, r->err);
	for (size_t i = 0; i < ARRAY_LEN(known) && r->r == 0; i++) {
		if (strcmp(known[i].name, name) == 0) {
			r->c->hidden_act = (int)known[i].kind;
			return;
		}
	}
	config_fault(r, "'%s' is \"%.40s\"; supported are silu, gelu, gelu_new, gelu_fast, "
		"gelu_pytorch_tanh and relu", key, name);
}

/* ---- groups of fields ---------------------------------------------------------------------- */

void config_settle_heads(struct config_reader *r)
{
	struct model_config *c = r->c;
	if (c->num_key_value_heads == 0) {
		c->num_key_value_heads = c->num_attention_heads;
	}
	if (c->head_dim == 0 && r->r == 0) {
		if (c->hidden_size % c->num_attention_heads != 0) {
			config_fault(r, "hidden_size = %" PRId64 " is no multiple of num_attention_heads = %"
				PRId64 ", and 'head_dim' is not given", c->hidden_size, c->num_attention_heads);
			return;
		}
		c->head_dim = c->hidden_size / c->num_attention_heads;
	}
}

void config_sizes(struct config_reader *r)
{
	struct model_config *c = r->c;
	config_size(r, "vocab_size", CONFIG_MAX_VOCAB, &c->vocab_size);
	config_size(r, "hidden_size", CONFIG_MAX_WIDTH, &c->hidden_size);
	config_size(r, "intermediate_size", CONFIG_MAX_WIDTH, &c->intermediate_size);
	config_size(r, "num_hidden_layers", MODEL_MAX_LAYERS, &c->num_hidden_layers);
	config_size(r, "num_attention_heads", CONFIG_MAX_HEADS, &c->num_attention_heads);
	config_int(r, "num_key_value_heads", 1, CONFIG_MAX_HEADS, &c->num_key_value_heads);
	config_int(r, "head_dim", 1, CONFIG_MAX_HEAD_DIM, &c->head_dim);
	config_int(r, "max_position_embeddings", 1, CONFIG_MAX_POSITIONS, &c->max_position_embeddings);
	config_settle_heads(r);
	config_bool(r, "tie_word_embeddings", &c->tie_word_embeddings);
	config_real(r, "rms_norm_eps", 1e-30, 0.5, &c->rms_norm_eps);
}

static void token_id(struct config_reader *r, const char *key, int32_t fallback, int32_t *ret)
{
	int64_t vocab = r->c->vocab_size;
	const json_t *v = json_object_get(r->o, key);
	if (json_is_array(v)) { /* Llama 3 ends with any of several; the first is the model's own. */
		v = json_array_get(v, 0);
	}
	if (!v) {
		*ret = fallback < vocab ? fallback : -1;
	} else if (json_is_null(v) || (json_is_integer(v) && json_integer_value(v) == -1)) {
		*ret = -1;
	} else if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= vocab) {
		config_fault(r, "'%s' is %s; it must be a token id below vocab_size = %" PRId64
			", or null", key, json_short(v).s, vocab);
	} else {
		*ret = (int32_t)json_integer_value(v);
	}
}

void config_tokens(struct config_reader *r, int32_t bos, int32_t eos, int32_t pad)
{
	token_id(r, "bos_token_id", bos, &r->c->bos_token_id);
	token_id(r, "eos_token_id", eos, &r->c->eos_token_id);
	token_id(r, "pad_token_id", pad, &r->c->pad_token_id);
}

bool config_layer_types(struct config_reader *r)
{
	const json_t *list = json_object_get(r->o, "layer_types");
	if (r->r != 0 || !list || json_is_null(list)) {
		return false;
	}
	if (!json_is_array(list) || json_array_size(list) != (size_t)r->c->num_hidden_layers) {
		config_fault(r, "'layer_types' must be a list with one name for each of the %" PRId64
			" layers", r->c->num_hidden_layers);
		return true;
	}
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *v = json_array_get(list, i);
		const char *name = json_string_value(v);
		if (name && strcmp(name, "sliding_attention") == 0) {
			r->c->layer_flags[i] |= LAYER_SLIDES;
			if (r->c->sliding_window == 0) {
				config_fault(r, "'layer_types' has layers of sliding_attention, and "
					"'sliding_window' is not given");
			}
		} else if (!name || strcmp(name, "full_attention") != 0) {
			config_fault(r, "'layer_types' holds %s; supported are full_attention and "
				"sliding_attention", json_short(v).s);
		}
	}
	return true;
}

void config_slide_from(struct config_reader *r, int64_t first)
{
	for (int64_t i = first; i < r->c->num_hidden_layers && r->r == 0; i++) {
		r->c->layer_flags[i] |= LAYER_SLIDES;
	}
}

void config_window(struct config_reader *r, const char *key, int64_t fallback)
{
	const json_t *v = json_object_get(r->o, key);
	r->c->sliding_window = v ? 0 : fallback;
	config_int(r, key, 1, CONFIG_MAX_POSITIONS, &r->c->sliding_window);
}

void config_qwen_windows(struct config_reader *r)
{
	bool use = false;
	int64_t first = 28;
	config_bool(r, "use_sliding_window", &use);
	if (use) {
		config_window(r, "sliding_window", 4096);
	}
	config_int(r, "max_window_layers", 0, CONFIG_MAX_POSITIONS, &first);
	if (!config_layer_types(r) && r->c->sliding_window > 0) {
		config_slide_from(r, first);
	}
}

/* ---- all of it ----------------------------------------------------------------------------- */

static int check_head_dims(const struct model_config *c, const char *what, struct errmsg *err)
{
	int64_t rotary = c->rotary_dim ? c->rotary_dim : c->head_dim;
	if (c->rope_theta == 0) { /* no rotary embeddings */
		return 0;
	}
	if (rotary % 2 != 0 || rotary > c->head_dim || rotary < 1) {
		return errmsg_set(err, STATUS_INVALID, "%s: %s = %" PRId64 " must be even (rotary "
			"embeddings turn pairs)", what, c->rotary_dim ? "the part of head_dim that rotates" :
			"head_dim", rotary);
	}
	if (!(c->rope_theta >= 1 && c->rope_theta <= 1e12)) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'rope_theta' is %g; it must be from 1 to 1e12",
			what, c->rope_theta);
	}
	return 0;
}

static int check_rope(const struct model_config *c, const char *what, struct errmsg *err)
{
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

int model_config_check(const struct model_config *c, const char *what, struct errmsg *err)
{
	const struct {
		const char *name;
		int64_t value, max;
	} sizes[] = {
		{"vocab_size", c->vocab_size, CONFIG_MAX_VOCAB},
		{"hidden_size", c->hidden_size, CONFIG_MAX_WIDTH},
		{"intermediate_size", c->intermediate_size, CONFIG_MAX_WIDTH},
		{"num_hidden_layers", c->num_hidden_layers, MODEL_MAX_LAYERS},
		{"num_attention_heads", c->num_attention_heads, CONFIG_MAX_HEADS},
		{"num_key_value_heads", c->num_key_value_heads, CONFIG_MAX_HEADS},
		{"head_dim", c->head_dim, CONFIG_MAX_HEAD_DIM},
		{"max_position_embeddings", c->max_position_embeddings, CONFIG_MAX_POSITIONS},
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
	if (!(c->rms_norm_eps > 0 && c->rms_norm_eps < 1)) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'rms_norm_eps' is %g; it must be above 0 and "
			"below 1", what, c->rms_norm_eps);
	}
	int r = check_head_dims(c, what, err);
	return r ? r : check_rope(c, what, err);
}

int model_config_parse(struct model_config *ret, const char *json, size_t len, const char *what,
	struct errmsg *err)
{
	json_auto_t *o = NULL;
	const char *model_type = NULL;

	int r = json_parse_object(&o, json, len, what, err);
	r = r ? r : json_get_string(o, "model_type", &model_type, what, err);
	if (r != 0) {
		return r;
	}
	if (!model_type) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'model_type' is missing; known are: %s", what,
			model_architectures().s);
	}
	const struct arch *arch = arch_by_type(model_type);
	if (!arch) {
		return errmsg_set(err, STATUS_INVALID, "%s: model_type \"%.60s\" is not supported; known "
			"are: %s", what, model_type, model_architectures().s);
	}
	struct model_config c = {.bos_token_id = -1, .eos_token_id = -1, .pad_token_id = -1};
	snprintf(c.model_type, sizeof(c.model_type), "%s", arch->model_type);
	struct config_reader reader = {.c = &c, .o = o, .what = what, .err = err};
	arch->parse(&reader);
	r = reader.r ? reader.r : model_config_check(&c, what, err);
	if (r == 0) {
		*ret = c;
	}
	return r;
}
