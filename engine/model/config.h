#pragma once
/* Reading a config.json: what the parse functions of architectures are made of. */

#include <jansson.h>
#include <string.h>

#include "engine/model/model.h"
#include "kernels/kernels.h"
#include "util/util.h"

/* Far above what there is, and low enough that no product of two sizes overflows. */
#define CONFIG_MAX_VOCAB ((int64_t)1 << 24)
#define CONFIG_MAX_WIDTH ((int64_t)1 << 20)
#define CONFIG_MAX_HEADS 4096
#define CONFIG_MAX_HEAD_DIM 256 /* what attention in blocks has room for */
#define CONFIG_MAX_POSITIONS ((int64_t)1 << 31)

/* A file while it is read into `c`. The first fault stays in `r`, and what follows does nothing; so
 * that a family is read without a check a line. */
struct config_reader {
	struct model_config *c;
	const json_t *o;
	const char *what; /* names the file in errors */
	struct errmsg *err;
	int r;
};

/* A missing or null field leaves *ret as it is. */
void config_int(struct config_reader *r, const char *key, int64_t lo, int64_t hi, int64_t *ret);
void config_real(struct config_reader *r, const char *key, double lo, double hi, double *ret);
void config_bool(struct config_reader *r, const char *key, bool *ret);
/* A whole number from 1 that must be there. */
void config_size(struct config_reader *r, const char *key, int64_t max, int64_t *ret);

/* vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
 * num_key_value_heads (missing: one for each), head_dim (missing: hidden_size / heads),
 * max_position_embeddings, tie_word_embeddings, rms_norm_eps. */
void config_sizes(struct config_reader *r);
/* Settles key/value heads and head_dim where they are 0. */
void config_settle_heads(struct config_reader *r);
/* bos, eos and pad; -1 for none. The defaults count where they are tokens at all. */
void config_tokens(struct config_reader *r, int32_t bos, int32_t eos, int32_t pad);
/* The activation function under `key`, one of transformers' ACT2FN; missing: `fallback`. */
void config_activation(struct config_reader *r, const char *key, const char *fallback);
/* The field must be missing, null, or the value at which nothing changes. */
void config_only_real(struct config_reader *r, const char *key, double value);
void config_only_bool(struct config_reader *r, const char *key, bool value);
/* What no family here computes: quantized weights, dropout of attention. */
void config_refuse_common(struct config_reader *r);

/* sliding_window: null is none, a missing field `fallback`. */
void config_window(struct config_reader *r, const char *key, int64_t fallback);
/* Reads layer_types into the layers' flags; false where there is none. */
bool config_layer_types(struct config_reader *r);
/* Every layer from `first` on slides. */
void config_slide_from(struct config_reader *r, int64_t first);

/* use_sliding_window, sliding_window, max_window_layers and layer_types, as Qwen2 has them. */
void config_qwen_windows(struct config_reader *r);

/* What rope_parameters (transformers 5) or rope_scaling, rope_theta and the like (before) say. */
struct rope_rules {
	double theta;        /* where the file has none */
	const char *theta_key; /* of older files: "rope_theta" */
	const char *partial_key; /* NULL: the whole head turns */
	double partial;
	unsigned scalings; /* set of 1u << enum rope_scaling that the family has */
	bool yarn_is_longrope; /* an older name for it */
};
enum {
	ROPE_ANY = 1u << ROPE_SCALING_LINEAR | 1u << ROPE_SCALING_LLAMA3 | 1u << ROPE_SCALING_DYNAMIC |
		1u << ROPE_SCALING_YARN | 1u << ROPE_SCALING_LONGROPE,
};
void config_rope(struct config_reader *r, const struct rope_rules *rules);
/* The same from one object of parameters, named `key` in errors. */
void config_rope_object(struct config_reader *r, const json_t *o, const char *key,
	const struct rope_rules *rules);
/* The usual rules with this theta. */
struct rope_rules config_rope_rules(double theta);

static inline bool has_suffix(const char *s, const char *suffix)
{
	size_t n = strlen(s), k = strlen(suffix);
	return n >= k && strcmp(s + n - k, suffix) == 0;
}

/* A fault in words of its own, unless there was one already. */
__attribute__((format(printf, 2, 3)))
void config_fault(struct config_reader *r, const char *format, ...);
