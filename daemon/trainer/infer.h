#pragma once
/* What evaluation and generation share: a model, an adapter, a decoder. */

#include "daemon/trainer/models.h"
#include "daemon/trainer/trainer.h"

struct inference {
	struct model *model;
	struct base_model *base;
	const struct tokenizer *tokenizer;
	const struct adapter *adapter; /* NULL: the base alone */
	bool adapter_was_here;
	struct decoder *decoder;
	uint64_t decoder_bytes;
	double switch_seconds;
	struct ids stop_ids;
};

/* Opens the task's model, and its adapter. */
int inference_open(struct compute *c, struct task *task, enum dtype dtype, struct inference *ret,
	struct errmsg *err);
void inference_close(struct compute *c, struct inference *i); /* of one half open, too */

/* What ends an answer: the end-of-sequence token as tokenizer, config.json and generation_config.json
 * name it; of a chat, the tokens that end a turn of the usual templates, too. */
int inference_stop_ids(struct inference *i, bool chat, struct errmsg *err);

/* A decoder with the adapter in it, for up to `slots` prompts at once, or for as many as there is memory
 * for. STATUS_WONT_FIT: not even for one. */
int inference_decoder(struct compute *c, struct inference *i, size_t longest_prompt,
	int64_t max_new_tokens, size_t slots, struct errmsg *err);

/* STATUS_INVALID: more tokens than the model has positions. */
int inference_check_length(const struct inference *i, size_t n_prompt, int64_t max_new_tokens,
	struct errmsg *err);
