#pragma once
/* What the files of LoRA share. */

#include <jansson.h>

#include "engine/model/model.h"
#include "engine/peft/adapter.h"

/* Is this module a target, by PEFT's rules for target_modules, layers_to_transform and
 * modules_to_save? Is it trained in full, by modules_to_save? */
bool lora_targets(const struct lora_config *c, const char *module);
bool lora_saves(const struct lora_config *c, const char *module);
int64_t lora_rank(const struct lora_config *c, const char *module);
double lora_scale(const struct lora_config *c, const char *module);

/* Does it start from factors of the base's own weights (PiSSA, OLoRA)? */
bool lora_decomposes(const struct lora_config *c);

enum lora_tensor_kind {
	LORA_TENSOR_A,           /* (r, in) */
	LORA_TENSOR_B,           /* (out, r) */
	LORA_TENSOR_EMBEDDING_A, /* (r, vocabulary) */
	LORA_TENSOR_EMBEDDING_B, /* (hidden, r) */
	LORA_TENSOR_MAGNITUDE,   /* (out) */
	LORA_TENSOR_BASE_BIAS,   /* of a target */
	LORA_TENSOR_BASE_WEIGHT, /* of a target: PEFT adds it for embeddings and head; ignored */
	LORA_TENSOR_BIAS,
	LORA_TENSOR_WEIGHT, /* of modules_to_save */
};
/* Key in adapter_model.safetensors, and back. -ENAMETOOLONG; false for a key of no kind. */
int lora_key(char *out, size_t cap, const char *module, enum lora_tensor_kind kind);
bool lora_split_key(const char *key, char *out, size_t cap, enum lora_tensor_kind *ret);

int lora_check(const struct method_config *m, struct errmsg *err);
int lora_matches(const struct method_config *have, const struct method_config *want,
	struct errmsg *err);
int lora_config_read(struct method_config *m, const json_t *o, struct errmsg *err);
int lora_config_write(json_t *o, const struct method_config *m, const struct model_config *model);
int lora_check_tensors(const struct adapter *a, struct errmsg *err);

const char *lora_unmergeable(const struct method_config *m, const struct model_config *c);
int lora_merge(const struct adapter *a, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *w, struct errmsg *err);
