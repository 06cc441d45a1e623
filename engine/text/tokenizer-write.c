/*
 * The tokenizer of a GGUF, written as Hugging Face's `tokenizers` keeps it. What a GGUF says by
 * one word is said in full here; the same table as for reading it is behind both.
 */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model.h"
#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct tokenizer *, tokenizer_free);

static json_t *byte_level(bool use_regex)
{
	return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
		"trim_offsets", 1, "use_regex", (int)use_regex);
}

static json_t *split(const char *pattern)
{
	return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern,
		"behavior", "Isolated", "invert", 0);
}

/* Steps as tokenizer_from_gguf() has them. */
static json_t *pre_tokenizer(const struct gguf_pre *pre)
{
	json_t *steps = json_array();
	int r = steps ? 0 : -1;
	if (r == 0 && pre->digits) {
		r = json_array_append_new(steps, json_pack("{s:s, s:b}", "type", "Digits",
			"individual_digits", 1));
	}
	if (r == 0 && pre->pattern != PATTERN_GPT2) {
		r = json_array_append_new(steps,
			split(pre->pattern == PATTERN_LLAMA3 ? pattern_llama3 : pattern_qwen2));
	}
	r = r ? r : json_array_append_new(steps, byte_level(pre->pattern == PATTERN_GPT2));
	if (r != 0) {
		json_decref(steps);
		return NULL;
	}
	return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", steps);
}

static json_t *text_of(const struct gguf_tokenizer *g, int32_t id)
{
	return id >= 0 && id < g->n_tokens ?
		json_stringn(g->tokens[id], g->token_lens[id]) : json_null();
}

/* {"SpecialToken": …} of `id`, and its entry in `special`. */
static int add_special(json_t *single, json_t *pair_a, json_t *special,
	const struct gguf_tokenizer *g, int32_t id)
{
	json_auto_t *name = text_of(g, id);
	const char *s = json_string_value(name);
	json_t *token = s ? json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", s, "type_id", 0) : NULL;
	int r = json_array_append(single, token) || json_array_append(pair_a, token) ||
		json_object_set_new(special, s ? s : "",
			json_pack("{s:s, s:[i], s:[s]}", "id", s ? s : "", "ids", id, "tokens", s ? s : ""));
	json_decref(token);
	return r ? -ENOMEM : 0;
}

static int add_sequence(json_t *list, const char *which)
{
	return json_array_append_new(list, json_pack("{s:{s:s, s:i}}", "Sequence", "id", which,
		"type_id",
		0)) ? -ENOMEM : 0;
}

/* What stands before and after every text; null where nothing does. */
static json_t *post_processor(const struct gguf_tokenizer *g, const struct tokenizer *t)
{
	if (t->before.len + t->after.len == 0) {
		return json_null();
	}
	json_auto_t *single = json_array();
	json_auto_t *pair = json_array();
	json_auto_t *special = json_object();
	int r = 0;
	for (size_t i = 0; i < t->before.len && r == 0; i++) {
		r = add_special(single, pair, special, g, t->before.data[i]);
	}
	r = r ? r : add_sequence(single, "A");
	r = r ? r : add_sequence(pair, "A");
	for (size_t i = 0; i < t->after.len && r == 0; i++) {
		r = add_special(single, pair, special, g, t->after.data[i]);
	}
	r = r ? r : add_sequence(pair, "B");
	return r ? NULL : json_pack("{s:s, s:O, s:O, s:O}", "type", "TemplateProcessing", "single",
		single, "pair", pair, "special_tokens", special);
}

static int add_token(json_t *vocab, json_t *added, const struct gguf_tokenizer *g, int64_t i)
{
	const char *text = g->tokens[i];
	size_t len = g->token_lens[i];
	int32_t type = g->token_types ? g->token_types[i] : GGUF_NORMAL;
	if (type == GGUF_UNUSED) {
		return 0;
	}
	int r = json_object_setn_new(vocab, text, len, json_integer(i)) ? -ENOMEM : 0;
	if (r == 0 && (type == GGUF_CONTROL || type == GGUF_USER_DEFINED)) {
		r = json_array_append_new(added, json_pack("{s:I, s:s%, s:b, s:b, s:b, s:b, s:b}", "id",
			(json_int_t)i, "content", text, len, "single_word", 0, "lstrip", 0, "rstrip", 0,
			"normalized", 0, "special", (int)(type == GGUF_CONTROL))) ? -ENOMEM : 0;
	}
	return r;
}

static json_t *model(const struct gguf_tokenizer *g, const struct gguf_pre *pre, json_t *added)
{
	json_auto_t *vocab = json_object();
	json_auto_t *merges = json_array();
	int r = vocab && merges ? 0 : -ENOMEM;
	for (int64_t i = 0; i < g->n_tokens && r == 0; i++) {
		r = add_token(vocab, added, g, i);
	}
	for (int64_t i = 0; i < g->n_merges && r == 0; i++) {
		r = json_array_append_new(merges, json_stringn(g->merges[i],
			g->merge_lens[i])) ? -ENOMEM : 0;
	}
	return r ? NULL : json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:O, s:O}", "type", "BPE",
		"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
		"byte_fallback", 0, "ignore_merges", (int)pre->ignore_merges, "vocab", vocab, "merges",
			merges);
}

static int dump(struct buf *ret, const json_t *o)
{
	_cleanup_(freep) char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
	return text ? buf_appendf(ret, "%s\n", text) : -ENOMEM;
}

static int write_config(struct buf *ret, const struct model_files *files,
	const struct gguf_tokenizer *g)
{
	const struct {
		const char *key;
		int32_t id;
	} tokens[] = {
		{"bos_token", g->bos_token_id},
		{"eos_token", g->eos_token_id},
		{"unk_token", g->unk_token_id},
		{"pad_token", g->pad_token_id},
	};
	const char *chat = model_files_chat_template(files);
	json_auto_t *o = json_pack("{s:s, s:b, s:I}", "tokenizer_class",
		"PreTrainedTokenizerFast", "clean_up_tokenization_spaces", 0, "model_max_length",
		(json_int_t)model_files_config(files)->max_position_embeddings);
	int r = o ? 0 : -ENOMEM;
	for (size_t i = 0; i < ARRAY_LEN(tokens) && r == 0; i++) {
		r = json_object_set_new(o, tokens[i].key, text_of(g, tokens[i].id)) ? -ENOMEM : 0;
	}
	if (r == 0 && chat) {
		r = json_object_set_new(o, "chat_template", json_string(chat)) ? -ENOMEM : 0;
	}
	return r ? r : dump(ret, o);
}

int tokenizer_write(struct buf *ret_json, struct buf *ret_config, const struct model_files *files,
	struct errmsg *err)
{
	const struct gguf_tokenizer *g = model_files_gguf_tokenizer(files);
	const struct gguf_pre *pre = NULL;
	if (!g) {
		return errmsg_set(err, STATUS_INVALID, "%s: has no tokenizer", model_files_path(files));
	}
	if (g->model && strcmp(g->model, "gpt2") != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: its tokenizer (tokenizer.ggml.model %.64s) cannot be "
			"written as tokenizer.json yet; use the model's Hugging Face folder as base",
			model_files_path(files), g->model);
	}
	/* Made first: what it holds has been checked. */
	_cleanup_(tokenizer_freep) struct tokenizer *t = NULL;
	int r = tokenizer_from_gguf(&t, g, model_files_path(files), err);
	r = r ? r : gguf_pre_find(&pre, g, model_files_path(files), err);
	if (r != 0) {
		return r;
	}
	json_auto_t *added = json_array();
	json_auto_t *bpe = added ? model(g, pre, added) : NULL;
	json_t *steps = pre_tokenizer(pre), *post = post_processor(g, t);
	json_t *nfc = pre->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
	json_auto_t *o = json_pack("{s:s, s:n, s:n, s:O, s:o, s:o, s:o, s:o, s:O}",
		"version", "1.0", "truncation", "padding", "added_tokens", added, "normalizer", nfc,
		"pre_tokenizer", steps, "post_processor", post, "decoder", byte_level(true), "model", bpe);
	r = dump(ret_json, o);
	return r ? r : write_config(ret_config, files, g);
}
