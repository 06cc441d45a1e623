#include "daemon/trainer/infer.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>

#include "daemon/trainer/adapters.h"
#include "util/util.h"

int inference_open(struct compute *c, struct task *task, enum dtype dtype, struct inference *ret,
	struct errmsg *err)
{
	int r = models_open(c->models, task->model_name, task->model_path,
		task->has_model_digest ? task->model_digest : NULL, &ret->model, err);
	if (r == 0) {
		r = model_tokenizer(ret->model, &ret->tokenizer, err);
	}
	if (r == 0) {
		r = adapters_acquire(c, task, &ret->adapter, &ret->adapter_was_here, err);
	}
	return r ? r : models_acquire(c->models, ret->model, c->backend, dtype, false, 0, &ret->base,
		err);
}

static void drop_decoder(struct compute *c, struct inference *i)
{
	decoder_free(i->decoder);
	i->decoder = NULL;
	if (i->decoder_bytes > 0) {
		models_use_memory(c->models, -(int64_t)i->decoder_bytes);
		i->decoder_bytes = 0;
	}
}

void inference_close(struct compute *c, struct inference *i)
{
	drop_decoder(c, i);
	adapters_release(c->adapters, i->adapter);
	models_release(c->models, i->base);
	models_close(c->models, i->model);
	ids_deinit(&i->stop_ids);
	*i = (struct inference){0};
}

/* ---- what ends an answer --------------------------------------------------------------------- */

static int append_eos_json(const struct model_files *files, struct ids *stop)
{
	size_t len;
	const char *text = model_files_text(files, "generation_config.json", &len);
	json_t *root = text ? json_loadb(text, len, 0, NULL) : NULL;
	json_t *eos = json_object_get(root, "eos_token_id");
	int r = 0;
	size_t n = json_is_array(eos) ? json_array_size(eos) : json_is_integer(eos) ? 1 : 0;
	for (size_t i = 0; r == 0 && i < n; i++) {
		json_t *v = json_is_array(eos) ? json_array_get(eos, i) : eos;
		json_int_t n_id = json_is_integer(v) ? json_integer_value(v) : -1;
		if (n_id >= 0 && n_id <= INT32_MAX) {
			int32_t id = (int32_t)n_id;
			r = ids_append(stop, &id, 1);
		}
	}
	json_decref(root);
	return r;
}

int inference_stop_ids(struct inference *i, bool chat, struct errmsg *err)
{
	static const char *const turn_ends[] = {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"};
	const struct model_files *files = model_files_of(i->model);
	int32_t ids[2 + ARRAY_LEN(turn_ends)] = {
		tokenizer_eos(i->tokenizer),
		model_files_config(files)->eos_token_id,
	};
	size_t n = 2;
	for (size_t k = 0; chat && k < ARRAY_LEN(turn_ends); k++) {
		ids[n++] = tokenizer_id(i->tokenizer, turn_ends[k]);
	}
	int r = append_eos_json(files, &i->stop_ids);
	for (size_t k = 0; r == 0 && k < n; k++) {
		if (ids[k] >= 0) {
			r = ids_append(&i->stop_ids, &ids[k], 1);
		}
	}
	return r;
}

/* ---- decoders -------------------------------------------------------------------------------- */

int inference_check_length(const struct inference *i, size_t n_prompt, int64_t max_new_tokens,
	struct errmsg *err)
{
	int64_t max = model_files_config(model_files_of(i->model))->max_position_embeddings;
	if (n_prompt == 0) {
		return errmsg_set(err, STATUS_INVALID, "prompt: has no token; give some text");
	}
	if (max_new_tokens < 1) {
		return errmsg_set(err, STATUS_INVALID, "max_new_tokens: must be at least 1");
	}
	if ((int64_t)n_prompt >= max) {
		return errmsg_set(err, STATUS_INVALID, "the prompt has %zu tokens and the model %" PRId64
			" positions, so that none is left for an answer; shorten the prompt", n_prompt, max);
	}
	if (max_new_tokens > max - (int64_t)n_prompt) {
		return errmsg_set(err, STATUS_INVALID,
			"the prompt's %zu tokens and %" PRId64 " new ones are more than the model's %" PRId64
			" positions; at most %" PRId64 " new ones are possible",
			n_prompt, max_new_tokens, max, max - (int64_t)n_prompt);
	}
	return 0;
}

static int make_decoder(struct compute *c, struct inference *i, size_t longest_prompt,
	int64_t max_new_tokens, size_t slots, struct errmsg *err)
{
	int64_t n = (int64_t)longest_prompt;
	int r = decoder_new(&i->decoder, i->base, i->adapter ? &i->adapter->config : NULL, n,
		n + max_new_tokens, (int64_t)slots, err);
	if (r != 0) {
		return r;
	}
	uint64_t bytes = decoder_bytes(i->decoder);
	r = models_take_memory(c->models, bytes, err);
	if (r != 0) {
		return r;
	}
	i->decoder_bytes = bytes;
	r = decoder_reserve(i->decoder, err);
	return r == 0 && i->adapter ? decoder_load(i->decoder, i->adapter, err) : r;
}

int inference_decoder(struct compute *c, struct inference *i, size_t longest_prompt,
	int64_t max_new_tokens, size_t slots, struct errmsg *err)
{
	slots = slots < DECODE_LANES ? slots : DECODE_LANES;
	int64_t start = clock_monotonic_ns();
	int r;
	while ((r = make_decoder(c, i, longest_prompt, max_new_tokens, slots, err)) != 0) {
		drop_decoder(c, i);
		if (r != STATUS_WONT_FIT || slots == 1) {
			break;
		}
		slots /= 2;
	}
	i->switch_seconds = (double)(clock_monotonic_ns() - start) * 1e-9;
	return r;
}
