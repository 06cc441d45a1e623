#pragma once
/* Adapters as folders that Hugging Face PEFT reads and writes, in memory. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model/safetensors.h"
#include "util/buf.h"
#include "util/errmsg.h"

/* adapter_config.json of type LORA. Arrays and strings are owned. */
struct lora_config {
	int64_t r;
	double lora_alpha, lora_dropout;
	char **target_modules; /* names or suffixes; a folder may also hold one regular expression */
	size_t n_target_modules;
	bool target_modules_is_regex;
	char *base_model_name_or_path; /* may be NULL */
};
void lora_config_deinit(struct lora_config *c);

/* Does PEFT's rule (tuners_utils.check_target_module_exists) select this module? `module` is the
 * full name: "model.layers.0.self_attn.q_proj". */
bool lora_config_targets(const struct lora_config *c, const char *module);

/* A folder's contents. */
struct adapter {
	struct lora_config config;
	struct safetensors tensors; /* into the bytes it was parsed from */
};

/* From the bytes of both files; `weights` is borrowed and must outlive the adapter. Refused by name: peft types and options that the engine does not
 * have (use_dora, rank_pattern, bias other than none, modules_to_save, …) where they change
 * results, tensors missing for a target or left over. */
int adapter_parse(struct adapter *ret, const void *config_json, size_t config_len,
	const void *weights, size_t weights_len, struct errmsg *err);
void adapter_deinit(struct adapter *a);

/* Key of a LoRA factor in adapter_model.safetensors:
 * "base_model.model." module ".lora_A.weight" (or _B). */
int adapter_lora_key(char *out, size_t cap, const char *module, char factor);

/* One LoRA module for export; a[r,in], b[out,r] in f32, host memory, borrowed. */
struct adapter_lora {
	const char *module;
	int64_t r, in, out;
	const float *a, *b;
};

/* Writes both files as formats.md says: sorted keys, indent 2, inference_mode true, resolved
 * target_modules, f32 tensors. */
int adapter_export(struct buf *config_json, struct buf *weights, const struct lora_config *c,
	const struct adapter_lora *modules, size_t n, struct errmsg *err);

/* Parses what was exported and compares every tensor with the live one, bit by bit.
 * STATUS_FAILED names the first difference. */
int adapter_verify(const void *config_json, size_t config_len, const void *weights,
	size_t weights_len, const struct adapter_lora *modules, size_t n, struct errmsg *err);
