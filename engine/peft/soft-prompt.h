#pragma once
/* What prompt_tuning, p_tuning and prefix_tuning share: PEFT's PromptLearningConfig and the tensor
 * that their folders hold. */

#include "engine/peft/peft.h"

enum { VIRTUAL_TOKENS_MAX = 65536 };

/* Rows before the input are no part of any weight. */
const char *soft_prompt_unmergeable(const struct method_config *m, const struct model_config *c);

/* `section`: the method's name in the job file. */
int soft_prompt_check(const char *section, int64_t num_virtual_tokens, struct errmsg *err);

/* As a method's matches(), of this setting. */
int soft_prompt_matches(const char *section, int64_t have, int64_t want, struct errmsg *err);

/* An integer of at least `least`; `otherwise` where it is absent or null. */
int soft_prompt_read_int(const json_t *o, const char *key, int64_t least, int64_t otherwise,
	int64_t *ret, struct errmsg *err);
/* num_virtual_tokens, and that num_transformer_submodules is that of the task_type. What else
 * PromptLearningConfig has (token_dim, …) says no more than the tensor's shape does. */
int soft_prompt_read(const json_t *o, int64_t *ret_num_virtual_tokens, struct errmsg *err);
/* Keys of it for json_refuse_others(). */
extern const char *const soft_prompt_harmless[];
int soft_prompt_write(json_t *o, int64_t num_virtual_tokens, int64_t token_dim,
	int64_t num_attention_heads, const struct model_config *c);

/* Rows of a prompt of embeddings: PEFT keeps twice as many for an encoder-decoder, of which the first half
 * stands before the encoder's tokens and the others are not used. */
int64_t soft_prompt_rows(const struct graph *g, int64_t num_virtual_tokens);
/* Whether such a prompt belongs before these rows of the embedding. */
bool soft_prompt_belongs(const struct graph *g, int x);

/* One tensor, prompt_embeddings[num_virtual_tokens, ·], or with twice the rows where it `may_double`. */
int soft_prompt_check_tensors(const struct adapter *a, int64_t num_virtual_tokens, bool may_double,
	struct errmsg *err);
void soft_prompt_tensor(const struct graph *g, int param, struct peft_tensor *ret);

/* Initialisation of torch.nn.Linear: weight and bias uniform in ±1/sqrt(in). `index`: for
 * peft_fill_uniform(), of the weight; the bias has the next. */
void soft_prompt_init_linear(const struct graph *g, int weight, int bias, uint64_t seed,
	uint64_t index, float *flat);

/* y[n, out] = x[n, in]·Wᵀ + b on the host, from the flat buffer. */
void soft_prompt_linear(float *y, const float *x, int64_t n, const struct graph *g, int weight,
	int bias, const float *flat);
