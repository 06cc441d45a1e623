#pragma once
/* What a job says of its method, in the words of PEFT and AdapterHub. Strings and lists are owned by
 * whoever made the struct; method_config_deinit() frees what method_config_copy() and adapter_parse()
 * made. */

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "util/errmsg.h"

/* Kernels compute in float32: what a setting is there. A double beside the limit may round onto it. */
static inline bool f32_finite(double x)
{
	return fabs(x) <= (double)FLT_MAX;
}

static inline bool f32_probability(double p) /* of dropping: in [0, 1) */
{
	return p >= 0 && p < 1 && (float)p < 1;
}

/* Names or suffixes of modules, or one regular expression on whole names. */
struct modules {
	char **names;
	size_t n;
	bool is_regex;
};

/* PEFT's rule (tuners_utils.check_target_module_exists): the whole name, what follows one of its dots,
 * or re.fullmatch. `module`: "model.layers.0.self_attn.q_proj". */
bool modules_match(const struct modules *m, const char *module);
int modules_add(struct modules *m, const char *name); /* -ENOMEM */
int modules_copy(struct modules *ret, const struct modules *m);
void modules_deinit(struct modules *m);

/* Values by module: name, suffix or regular expression, PEFT's get_pattern_key(). */
struct patterns {
	struct pattern {
		char *key;
		double value;
	} *items;
	size_t n;
};
/* The value of the first key that matches, else `otherwise`. */
/* Does one key match? */
bool pattern_matches(const char *key, const char *module);
double patterns_value(const struct patterns *p, const char *module, double otherwise);
int patterns_add(struct patterns *p, const char *key, double value); /* -ENOMEM */
void patterns_deinit(struct patterns *p);

/* Does the regular expression match the whole of `s`, as Python's re.fullmatch? Bounded in time. */
bool regex_fullmatch(const char *pattern, const char *s);
/* STATUS_INVALID says what is wrong with the pattern and where; `what` names the field. */
int regex_check(const char *pattern, const char *what, struct errmsg *err);

enum lora_bias { LORA_BIAS_NONE, LORA_BIAS_ALL, LORA_BIAS_LORA_ONLY };

enum lora_init {
	LORA_INIT_DEFAULT,  /* true: A kaiming, B zero */
	LORA_INIT_RANDOM,   /* false: A and B kaiming */
	LORA_INIT_GAUSSIAN, /* A N(0, 1/r²), B zero */
	LORA_INIT_PISSA,
	LORA_INIT_OLORA,
};

struct lora_config {
	int64_t r;                     /* 8 */
	double lora_alpha;             /* 8 */
	double lora_dropout;           /* 0 */
	struct modules target_modules; /* {"all-linear"} allowed in a job: the plan resolves it */
	enum lora_bias bias;
	bool use_rslora, use_dora;
	double loraplus_lr_ratio; /* 0: off */
	enum lora_init init_lora_weights;
	int64_t pissa_niter; /* > 0: randomized SVD with so many iterations; 0: exact */
	struct patterns rank_pattern, alpha_pattern;
	int64_t *layers_to_transform; /* NULL: all */
	size_t n_layers_to_transform;
	struct modules modules_to_save;
};

struct last_k_config {
	int64_t k; /* 1; 0 … all blocks */
	bool head, final_norm;
};

struct bitfit_config {
	struct modules target_modules; /* n 0: all biases; of models without, all linears but the head */
	bool added; /* set by the engine: the targets have no biases in the base */
};

struct ln_tuning_config {
	struct modules target_modules; /* n 0: all norms */
};

struct select_config {
	struct modules parameters; /* regular expressions on whole Hugging Face names, each its own */
};

struct ia3_config {
	struct modules target_modules;      /* n 0: PEFT's default for the model */
	struct modules feedforward_modules; /* a subset of them */
	bool no_feedforward;                /* the list was given and is empty */
	bool random_init;                   /* init_ia3_weights false */
};

enum prompt_init { PROMPT_INIT_RANDOM, PROMPT_INIT_TEXT, PROMPT_INIT_SAMPLE_VOCAB };
struct prompt_tuning_config {
	int64_t num_virtual_tokens; /* 20 */
	enum prompt_init prompt_tuning_init;
	char *prompt_tuning_init_text; /* NULL unless TEXT */
	int32_t *init_ids; /* the text's tokens, by whoever has the tokenizer; NULL unless TEXT */
	size_t n_init_ids;
};

struct prefix_tuning_config {
	int64_t num_virtual_tokens; /* 20 */
	bool prefix_projection;
	int64_t encoder_hidden_size; /* 0: token_dim */
};

enum p_tuning_encoder { P_TUNING_MLP, P_TUNING_LSTM };
struct p_tuning_config {
	int64_t num_virtual_tokens; /* 20 */
	enum p_tuning_encoder encoder_reparameterization_type;
	int64_t encoder_hidden_size; /* 0: hidden_size */
	int64_t encoder_num_layers;  /* 2 */
	double encoder_dropout;
};

/* BnConfig, its preset applied. */
struct bottleneck_config {
	bool mh_adapter, output_adapter;
	double reduction_factor;
	enum activation non_linearity;
	double scaling;
	bool is_parallel, original_ln_before;
	bool mam_adapter_init; /* init_weights: "mam_adapter" rather than "bert" */
};

/* PEFT's, of an adapter's folder. */
enum task_type {
	TASK_UNKNOWN,
	TASK_CAUSAL_LM,
	TASK_SEQ_2_SEQ_LM,
};

struct method_config {
	/* "full", "last_k", "bitfit", "ln_tuning", "select", "lora", "bottleneck", "prompt_tuning",
	 * "p_tuning", "prefix_tuning", "ia3"; the struct of that name counts, the others are zero.
	 * Borrowed; a static string where the engine made it. */
	const char *method;
	char *base_model_name_or_path; /* for the export; NULL: the base's path */
	enum task_type task_type;      /* of a folder that was read */
	struct lora_config lora;
	struct last_k_config last_k;
	struct bitfit_config bitfit;
	struct ln_tuning_config ln_tuning;
	struct select_config select;
	struct ia3_config ia3;
	struct prompt_tuning_config prompt_tuning;
	struct prefix_tuning_config prefix_tuning;
	struct p_tuning_config p_tuning;
	struct bottleneck_config bottleneck;
};

int method_config_copy(struct method_config *ret, const struct method_config *m); /* -ENOMEM */
void method_config_deinit(struct method_config *m);
/* Every value by itself. STATUS_INVALID names the field as the job file does; an unknown method with
 * the names of those that there are. */
int method_config_check(const struct method_config *m, struct errmsg *err);
