/*
 * Tokenizers from GGUF metadata.
 *
 * A GGUF of a byte-level model names the way its text is cut by one word, "pre". It stands for what
 * the original tokenizer.json holds; the names below are those whose original is known to be one of
 * the patterns here.
 *
 * One of a SentencePiece model ("llama") has scores instead of merges. The merges are made of them as
 * transformers does when it converts such a model (convert_slow_tokenizer.py, generate_merges()):
 * every way to put a token together of two, by the token's score.
 */

#include <errno.h>
#include <float.h>
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
	struct decode_step bytes = {.kind = DECODE_BYTE_LEVEL};
	int r = pre->digits ? tokenizer_add_step(t, &digits) : 0;
	r = r < 0 ? r : tokenizer_add_decode_step(t, &bytes);
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
		if (g->token_types && g->token_types[i] == GGUF_UNUSED && !t->vocab.text) {
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
		bool special = type == GGUF_CONTROL || (type == GGUF_UNKNOWN && t->vocab.text);
		if (!special && type != GGUF_USER_DEFINED) {
			continue;
		}
		struct added_token a = {.content = (char *)g->tokens[i] /* copied */,
			.len = g->token_lens[i],
			.id = (int32_t)i,
			.special = special};
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

/* ---- SentencePiece ----------------------------------------------------------------------- */

/* A way to put a token together. */
struct scored_merge {
	float score;
	uint32_t left_len, right_len; /* in characters */
	int32_t left, right, token;
};

/* Higher scores first; then longer left parts, longer right ones; then by ids. */
static int compare_merges(const void *a, const void *b)
{
	const struct scored_merge *x = a, *y = b;
	if (x->score != y->score) {
		return x->score > y->score ? -1 : 1;
	}
	if (x->left_len != y->left_len) {
		return x->left_len > y->left_len ? -1 : 1;
	}
	if (x->right_len != y->right_len) {
		return x->right_len > y->right_len ? -1 : 1;
	}
	if (x->token != y->token) {
		return x->token < y->token ? -1 : 1;
	}
	return x->left != y->left ? (x->left < y->left ? -1 : 1) :
		(x->right > y->right) - (x->right < y->right);
}

/* The token of a part of another one. A tab has no token of its own in some, which means its byte. */
static int32_t find_part(const struct vocab *v, const uint8_t *text, size_t len)
{
	int32_t id = vocab_find(v, (const char *)text, len);
	return id < 0 && len == 1 && text[0] == '\t' ? vocab_find_fallback(v, '\t') : id;
}

struct merge_list {
	struct scored_merge *data; /* owned */
	size_t n, cap;
};

static int append_merge(struct merge_list *list, const struct scored_merge *m)
{
	if (list->n == MAX_VOCAB) {
		return -E2BIG;
	}
	if (list->n == list->cap) {
		size_t cap = list->cap ? 2 * list->cap : 4096;
		struct scored_merge *data = realloc_array(list->data, cap, sizeof(*data));
		if (!data) {
			return -ENOMEM;
		}
		list->data = data;
		list->cap = cap;
	}
	list->data[list->n++] = *m;
	return 0;
}

static int append_merges(struct merge_list *list, const struct vocab *v, int32_t token, float score)
{
	const uint8_t *text = vocab_bytes(v, token);
	size_t len = v->tokens[token].len, n_chars = 0;
	unsigned width;
	int r = 0;
	for (size_t at = 0; at < len; at += width) {
		utf8_get(text + at, &width);
		n_chars++;
	}
	if (n_chars > MAX_PIECE_BYTES) {
		return -E2BIG; /* each way to cut it is looked up */
	}
	uint32_t left_len = 0;
	for (size_t at = 0; at < len && r == 0; at += width) {
		utf8_get(text + at, &width);
		if (at == 0) {
			continue;
		}
		left_len++;
		struct scored_merge m = {.score = score, .left_len = left_len,
			.right_len = (uint32_t)n_chars - left_len, .token = token,
			.left = find_part(v, text, at), .right = find_part(v, text + at, len - at)};
		r = m.left >= 0 && m.right >= 0 ? append_merge(list, &m) : 0;
	}
	return r;
}

static int add_scored_merges(struct tokenizer *t, const struct gguf_tokenizer *g, const char *what,
	struct errmsg *err)
{
	struct merge_list list = {0};
	int r = 0;
	for (int64_t i = 0; i < g->n_tokens && r == 0; i++) {
		if (!(g->scores[i] >= -FLT_MAX && g->scores[i] <= FLT_MAX)) {
			free(list.data);
			return errmsg_set(err, STATUS_INVALID,
				"%s: tokenizer.ggml.scores: that of token %lld is no number", what, (long long)i);
		}
		r = append_merges(&list, &t->vocab, (int32_t)i, g->scores[i]);
	}
	if (r == -E2BIG) {
		r = errmsg_set(err, STATUS_INVALID, "%s: the vocabulary has a token of more than %d "
			"characters, or more than %d ways to merge tokens", what, MAX_PIECE_BYTES, MAX_VOCAB);
	}
	if (r == 0 && list.n > 0) {
		qsort(list.data, list.n, sizeof(*list.data), compare_merges);
	}
	for (size_t i = 0; i < list.n && r == 0; i++) {
		r = bpe_add_merge(&t->bpe, list.data[i].left, list.data[i].right, list.data[i].token);
	}
	free(list.data);
	return r;
}

static int add_literal(struct normalizer *n, const char *text)
{
	n->content = strdup(text);
	n->content_len = strlen(text);
	return n->content ? 0 : -ENOMEM;
}

/* Spaces are "▁", in front of every piece too where the file wants that. */
static int add_space_normalizers(struct tokenizer *t, bool prefix, struct errmsg *err)
{
	struct normalizer before = {.kind = NORMALIZE_PREPEND}, spaces = {.kind = NORMALIZE_REPLACE};
	int r = prefix ? add_literal(&before, "\xE2\x96\x81") : 0;
	r = r == 0 && prefix ? tokenizer_add_normalizer(t, &before) : r;
	r = r == 0 ? add_literal(&spaces, "\xE2\x96\x81") : r;
	r = r == 0 ? regex_new_pattern(&spaces.pattern, " ", 1, true, err) : r;
	spaces.literal = r == 0 ? strdup(" ") : NULL;
	spaces.literal_len = 1;
	if (!spaces.literal) {
		normalizer_deinit(&spaces);
		return -ENOMEM;
	}
	return tokenizer_add_normalizer(t, &spaces);
}

static int add_sentencepiece_decoders(struct tokenizer *t, bool prefix, struct errmsg *err)
{
	struct decode_step spaces = {.kind = DECODE_REPLACE};
	struct decode_step strip = {.kind = DECODE_STRIP, .fused = true};
	int r = regex_new_pattern(&spaces.regex, "\xE2\x96\x81", 3, true, err);
	spaces.text = strdup("\xE2\x96\x81");
	spaces.text_len = 3;
	spaces.content = strdup(" ");
	spaces.content_len = 1;
	if (r != 0 || !spaces.text || !spaces.content) {
		decode_step_deinit(&spaces);
		return r != 0 ? r : -ENOMEM;
	}
	r = tokenizer_add_decode_step(t, &spaces);
	r = r < 0 ? r :
		tokenizer_add_decode_step(t, &(struct decode_step){.kind = DECODE_BYTE_FALLBACK});
	r = r < 0 ? r : tokenizer_add_decode_step(t, &(struct decode_step){.kind = DECODE_FUSE});
	if (r == 0 && prefix) {
		strip.text = strdup(" ");
		strip.text_len = strip.start = 1;
		r = strip.text ? tokenizer_add_decode_step(t, &strip) : -ENOMEM;
	}
	return r;
}

static int read_sentencepiece(struct tokenizer *t, const struct gguf_tokenizer *g, const char *what,
	struct errmsg *err)
{
	t->model = MODEL_TEXT_BPE;
	t->vocab.text = true;
	t->bpe.byte_fallback = t->bpe.fuse_unk = true;
	if (!g->scores || !g->token_types) {
		return errmsg_set(err, STATUS_INVALID, "%s: tokenizer.ggml.scores or token_type is missing, "
			"without which a tokenizer of model llama cannot be known", what);
	}
	int r = add_space_normalizers(t, g->add_space_prefix, err);
	r = r != 0 ? r : add_sentencepiece_decoders(t, g->add_space_prefix, err);
	r = r != 0 ? r : add_tokens(t, g, what, err);
	if (r != 0) {
		return r;
	}
	size_t len;
	t->bpe.unk = tokenizer_text(t, g->unk_token_id, &len) ? g->unk_token_id : -1;
	return add_scored_merges(t, g, what, err);
}

/* ---- the whole --------------------------------------------------------------------------- */

static int read_byte_level(struct tokenizer *t, const struct gguf_tokenizer *g, const char *what,
	bool *ret_add_bos, struct errmsg *err)
{
	const struct gguf_pre *pre;
	if (g->add_space_prefix) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: tokenizer.ggml.add_space_prefix is not supported "
			"with a byte-level tokenizer",
			what);
	}
	int r = gguf_pre_find(&pre, g, what, err);
	if (r != 0) {
		return r;
	}
	t->bpe.ignore_merges = pre->ignore_merges;
	*ret_add_bos |= pre->add_bos;
	r = add_steps(t, pre);
	r = r != 0 ? r : add_tokens(t, g, what, err);
	return r != 0 ? r : add_merges(t, g, what, err);
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
	bool scored = g->model && strcmp(g->model, "llama") == 0, add_bos = g->add_bos_token;
	if (!scored && (!g->model || strcmp(g->model, "gpt2") != 0)) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: tokenizer.ggml.model is %.64s; supported are gpt2 (byte-level BPE) and llama "
			"(SentencePiece's BPE)", what, g->model ? g->model : "missing");
	}
	if (g->n_tokens < 1 || g->n_tokens > MAX_VOCAB || g->n_merges < 0 || g->n_merges > MAX_VOCAB) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: %lld tokens and %lld merges; supported are 1 to %d and at most %d", what,
			(long long)g->n_tokens, (long long)g->n_merges, MAX_VOCAB, MAX_VOCAB);
	}
	_cleanup_(tokenizer_freep) struct tokenizer *t = tokenizer_alloc();
	if (!t) {
		return -ENOMEM;
	}
	int r = scored ? read_sentencepiece(t, g, what, err) :
		read_byte_level(t, g, what, &add_bos, err);
	if (r != 0) {
		return r;
	}
	t->bos = g->bos_token_id;
	t->eos = g->eos_token_id;
	r = add_bos ? add_affix(t, &t->before, t->bos, "bos", what, err) : 0;
	r = r == 0 && g->add_eos_token ? add_affix(t, &t->after, t->eos, "eos", what, err) : r;
	r = r != 0 ? r : tokenizer_finish(t, what, err);
	if (r == 0) {
		*ret = steal_ptr(t);
	}
	return r;
}
