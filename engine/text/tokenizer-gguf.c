/*
 * Tokenizers from GGUF metadata.
 *
 * A GGUF names the way its text is cut by one word, "pre". It stands for what the original
 * tokenizer.json holds; the names below are those whose original is known to be one of the patterns
 * here.
 */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct tokenizer *, tokenizer_free);

static const struct gguf_pre pres[] = {
	{"gpt-2", PATTERN_GPT2, .digits = false},
	{"phi-2", PATTERN_GPT2, .digits = false},
	{"smollm", PATTERN_GPT2, .digits = true},
	{"starcoder", PATTERN_GPT2, .digits = true},
	{"refact", PATTERN_GPT2, .digits = true},
	{"llama-bpe", PATTERN_LLAMA3, .ignore_merges = true, .add_bos = true},
	{"llama3", PATTERN_LLAMA3, .ignore_merges = true, .add_bos = true},
	{"llama-v3", PATTERN_LLAMA3, .ignore_merges = true, .add_bos = true},
	{"qwen2", PATTERN_QWEN2, .nfc = true},
	{"deepseek-r1-qwen", PATTERN_QWEN2, .nfc = true},
};

int gguf_pre_find(const struct gguf_pre **ret, const struct gguf_tokenizer *g, const char *what,
	struct errmsg *err)
{
	struct buf names = {0};
	for (size_t i = 0; i < ARRAY_LEN(pres); i++) {
		if (g->pre && strcmp(pres[i].name, g->pre) == 0) {
			*ret = &pres[i];
			return 0;
		}
	}
	int r = 0;
	for (size_t i = 0; i < ARRAY_LEN(pres) && r == 0; i++) {
		r = buf_appendf(&names, "%s%s", i ? ", " : "", pres[i].name);
	}
	if (r == 0 && buf_cstr(&names)) {
		r = errmsg_set(err, STATUS_INVALID,
			"%s: tokenizer.ggml.pre is %.64s, which is not supported "
			"(supported: %s); use the model's Hugging Face folder",
			what, g->pre ? g->pre : "missing", (char *)names.data);
	}
	buf_deinit(&names);
	return r == 0 ? -ENOMEM : r;
}

static int add_steps(struct tokenizer *t, const struct gguf_pre *pre)
{
	struct split_step digits = {.kind = PATTERN_NUMERIC}, words = {.kind = pre->pattern};
	struct normalizer nfc = {.kind = NORMALIZE_NFC};
	int r = pre->digits ? tokenizer_add_step(t, &digits) : 0;
	r = r < 0 ? r : tokenizer_add_step(t, &words);
	return r == 0 && pre->nfc ? tokenizer_add_normalizer(t, &nfc) : r;
}

static int add_tokens(struct tokenizer *t, const struct gguf_tokenizer *g, const char *what,
	struct errmsg *err)
{
	for (int64_t i = 0; i < g->n_tokens; i++) {
		const char *text = g->tokens[i];
		size_t len = g->token_lens[i];
		if (!utf8_valid(text, len, NULL)) {
			return errmsg_set(
				err, STATUS_INVALID, "%s: token %lld is no UTF-8", what, (long long)i);
		}
		if (g->token_types && g->token_types[i] == GGUF_UNUSED) {
			continue;
		}
		int r = vocab_add(&t->vocab, text, len, (int32_t)i);
		if (r == -EEXIST) {
			return errmsg_set(err, STATUS_INVALID,
				"%s: token %lld (%.*s) is in the vocabulary twice", what, (long long)i,
				(int)min_i64((int64_t)len, 100), text);
		}
		if (r < 0) {
			return r;
		}
	}
	for (int64_t i = 0; g->token_types && i < g->n_tokens; i++) {
		int32_t type = g->token_types[i];
		if (type != GGUF_CONTROL && type != GGUF_USER_DEFINED) {
			continue;
		}
		struct added_token a = {.content = (char *)g->tokens[i] /* copied */,
			.len = g->token_lens[i],
			.id = (int32_t)i,
			.special = type == GGUF_CONTROL};
		int r = tokenizer_add_token(t, &a, what, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int add_merges(struct tokenizer *t, const struct gguf_tokenizer *g, const char *what,
	struct errmsg *err)
{
	for (int64_t i = 0; i < g->n_merges; i++) {
		int r = tokenizer_add_merge_line(t, g->merges[i], g->merge_lens[i], (size_t)i, what, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int add_affix(struct tokenizer *t, struct ids *affix, int32_t id, const char *name,
	const char *what, struct errmsg *err)
{
	size_t len;
	if (!tokenizer_text(t, id, &len)) {
		return errmsg_set(err, STATUS_INVALID, "%s: every text is to have the %s token, but "
			"tokenizer.ggml.%s_token_id is missing or no token", what, name, name);
	}
	return ids_append(affix, &id, 1);
}

int tokenizer_from_gguf(struct tokenizer **ret, const struct gguf_tokenizer *g, const char *what,
	struct errmsg *err)
{
	const struct gguf_pre *pre;
	int r;
	if (!g->model || strcmp(g->model, "gpt2") != 0) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: tokenizer.ggml.model is %.64s; supported is gpt2 (byte-level BPE)", what,
			g->model ? g->model : "missing");
	}
	if (g->n_tokens < 1 || g->n_tokens > MAX_VOCAB || g->n_merges < 0 || g->n_merges > MAX_VOCAB) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: %lld tokens and %lld merges; supported are 1 to %d and at most %d", what,
			(long long)g->n_tokens, (long long)g->n_merges, MAX_VOCAB, MAX_VOCAB);
	}
	if (g->add_space_prefix) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: tokenizer.ggml.add_space_prefix is not supported "
			"with a byte-level tokenizer",
			what);
	}
	if ((r = gguf_pre_find(&pre, g, what, err)) != 0) {
		return r;
	}
	_cleanup_(tokenizer_freep) struct tokenizer *t = tokenizer_alloc();
	if (!t || add_steps(t, pre) < 0) {
		return -ENOMEM;
	}
	t->bpe.ignore_merges = pre->ignore_merges;
	if ((r = add_tokens(t, g, what, err)) != 0 || (r = add_merges(t, g, what, err)) != 0) {
		return r;
	}
	t->bos = g->bos_token_id;
	t->eos = g->eos_token_id;
	r = g->add_bos_token || pre->add_bos ? add_affix(t, &t->before, t->bos, "bos", what, err) : 0;
	r = r == 0 && g->add_eos_token ? add_affix(t, &t->after, t->eos, "eos", what, err) : r;
	r = r != 0 ? r : tokenizer_finish(t, what, err);
	if (r == 0) {
		*ret = steal_ptr(t);
	}
	return r;
}
