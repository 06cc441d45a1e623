/*
 * tokenizer.json, as Hugging Face tokenizers writes it. What is not known to give equal ids is
 * refused by name, unknown members of a part included.
 */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/json-reader.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct tokenizer *, tokenizer_free);

static inline void json_decrefpp(json_t **j)
{
	json_decref(*j);
}

/* ---- the model --------------------------------------------------------------------------- */

static int read_bpe_options(struct reader *r, json_t *j)
{
	static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
	struct bpe *b = &r->t->bpe;
	int e = reader_members(r, "model", j, " type dropout unk_token continuing_subword_prefix "
		"end_of_word_suffix fuse_unk byte_fallback ignore_merges vocab merges ");
	e = e ? e : reader_bool(r, "model", j, "byte_fallback", false, &b->byte_fallback);
	e = e ? e : reader_bool(r, "model", j, "ignore_merges", false, &b->ignore_merges);
	e = e ? e : reader_bool(r, "model", j, "fuse_unk", false, &b->fuse_unk);
	if (e != 0) {
		return e;
	}
	if (b->byte_fallback && r->byte_level) {
		return reader_fault(r, "model", "byte_fallback with the ByteLevel pre-tokenizer is not "
			"supported");
	}
	json_t *dropout = json_object_get(j, "dropout");
	if (dropout && !json_is_null(dropout) &&
			(!json_is_number(dropout) || json_number_value(dropout) != 0)) {
		return reader_fault(r, "model", "dropout must be null: the ids would not be the same twice");
	}
	for (size_t i = 0; i < ARRAY_LEN(affixes); i++) {
		json_t *affix = json_object_get(j, affixes[i]);
		if (affix && !json_is_null(affix) && json_string_length(affix) != 0) {
			return reader_fault(r, "model", "%s is not supported; it must be null", affixes[i]);
		}
	}
	return 0;
}

static int read_vocab(struct reader *r, json_t *vocab)
{
	const char *token;
	size_t len;
	json_t *id;
	if (!json_is_object(vocab) || json_object_size(vocab) > MAX_VOCAB) {
		return reader_fault(r, "model.vocab", "must be an object of at most %d tokens", MAX_VOCAB);
	}
	json_object_keylen_foreach(vocab, token, len, id) {
		if (!json_is_integer(id) || json_integer_value(id) < 0 ||
				json_integer_value(id) >= MAX_VOCAB || len > MAX_TOKEN_BYTES) {
			return reader_fault(r, "model.vocab",
				"token %.100s: the id must be an integer below %d and the "
				"token have at most %d bytes",
				token, MAX_VOCAB, MAX_TOKEN_BYTES);
		}
		int e = vocab_add(&r->t->vocab, token, len, (int32_t)json_integer_value(id));
		if (e == -EEXIST) {
			return reader_fault(r, "model.vocab", "token %.100s: the id %lld is taken", token,
				(long long)json_integer_value(id));
		}
		if (e < 0) {
			return e;
		}
	}
	return 0;
}

static int read_merge(struct reader *r, json_t *merge, size_t rank)
{
	if (json_is_string(merge)) {
		return tokenizer_add_merge_line(r->t, json_string_value(merge), json_string_length(merge),
			rank, r->what, r->err);
	}
	json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
	if (json_array_size(merge) != 2 || !json_is_string(left) || !json_is_string(right)) {
		return reader_fault(r, "model.merges", "merge %zu must be \"a b\" or [\"a\", \"b\"]", rank);
	}
	return tokenizer_add_merge(r->t, json_string_value(left), json_string_length(left),
		json_string_value(right), json_string_length(right), rank, r->what, r->err);
}

static int read_merges(struct reader *r, json_t *merges)
{
	if (!json_is_array(merges) || json_array_size(merges) > MAX_VOCAB) {
		return reader_fault(r, "model.merges", "must be an array of at most %d merges", MAX_VOCAB);
	}
	for (size_t i = 0; i < json_array_size(merges); i++) {
		const char *line = json_string_value(json_array_get(merges, i));
		if (line && strncmp(line, "#version", 8) == 0) {
			continue; /* the head line of merges.txt */
		}
		int e = read_merge(r, json_array_get(merges, i), i);
		if (e != 0) {
			return e;
		}
	}
	return 0;
}

static int read_bpe(struct reader *r, json_t *j)
{
	r->t->model = r->byte_level ? MODEL_BYTE_BPE : MODEL_TEXT_BPE;
	int e = read_bpe_options(r, j);
	e = e ? e : read_vocab(r, json_object_get(j, "vocab"));
	e = e ? e : read_merges(r, json_object_get(j, "merges"));
	json_t *unk = json_object_get(j, "unk_token");
	if (e == 0 && unk && !json_is_null(unk)) {
		r->t->bpe.unk = json_is_string(unk) ? vocab_find(&r->t->vocab, json_string_value(unk),
			json_string_length(unk)) : -1;
		if (r->t->bpe.unk < 0) {
			return reader_fault(r, "model", "unk_token must be null or a token of the vocabulary");
		}
	}
	return e;
}

static int read_piece(struct reader *r, size_t i, json_t *piece)
{
	json_t *text = json_array_get(piece, 0), *score = json_array_get(piece, 1);
	if (json_array_size(piece) != 2 || !json_is_string(text) || !json_is_number(score) ||
			json_string_length(text) > MAX_PIECE_BYTES) {
		return reader_fault(r, "model.vocab",
			"token %zu must be [\"text\", score], the text of at most %d bytes", i,
			MAX_PIECE_BYTES);
	}
	int e = vocab_add(&r->t->vocab, json_string_value(text), json_string_length(text), (int32_t)i);
	return e == -EEXIST ? reader_fault(r, "model.vocab", "token %zu, %.100s, is there twice", i,
		json_string_value(text)) :
		e ? e : unigram_add_score(&r->t->unigram, (int32_t)i, json_number_value(score));
}

static int read_unigram(struct reader *r, json_t *j)
{
	struct unigram *u = &r->t->unigram;
	json_t *vocab = json_object_get(j, "vocab"), *unk = json_object_get(j, "unk_id");
	r->t->model = MODEL_UNIGRAM;
	int e = reader_members(r, "model", j, " type unk_id vocab byte_fallback ");
	e = e ? e : reader_bool(r, "model", j, "byte_fallback", false, &u->byte_fallback);
	if (e == 0 && r->byte_level) {
		return reader_fault(r, "model", "Unigram with the ByteLevel pre-tokenizer is not supported");
	}
	if (e == 0 && (json_array_size(vocab) < 1 || json_array_size(vocab) > MAX_VOCAB)) {
		return reader_fault(r, "model.vocab", "must be an array of 1 to %d tokens", MAX_VOCAB);
	}
	for (size_t i = 0; e == 0 && i < json_array_size(vocab); i++) {
		e = read_piece(r, i, json_array_get(vocab, i));
	}
	if (e == 0 && unk && !json_is_null(unk)) {
		if (!json_is_integer(unk) || json_integer_value(unk) < 0 ||
				json_integer_value(unk) >= (json_int_t)json_array_size(vocab)) {
			return reader_fault(r, "model", "unk_id must be null or the id of a token");
		}
		u->unk = (int32_t)json_integer_value(unk);
	}
	return e;
}

static int read_model(struct reader *r, json_t *j)
{
	const char *type = reader_type(j);
	r->t->vocab.text = !r->byte_level;
	/* Files of before 2020 do not say. */
	if (!json_is_object(j) || (strcmp(type, "BPE") != 0 && strcmp(type, "Unigram") != 0 &&
			json_object_get(j, "type"))) {
		return reader_fault(r, "model", "type %.64s is not supported (supported are BPE, Unigram)",
			type);
	}
	return strcmp(type, "Unigram") == 0 ? read_unigram(r, j) : read_bpe(r, j);
}

/* ---- added tokens ------------------------------------------------------------------------ */

static int read_added(struct reader *r, const char *where, json_t *j)
{
	struct added_token a = {0};
	const char *content = "";
	json_t *id = json_object_get(j, "id");
	int e = reader_members(r, where, j, " id content single_word lstrip rstrip normalized special ");
	e = e ? e : reader_string(r, where, j, "content", &content, &a.len);
	e = e ? e : reader_bool(r, where, j, "special", false, &a.special);
	e = e ? e : reader_bool(r, where, j, "single_word", false, &a.single_word);
	e = e ? e : reader_bool(r, where, j, "lstrip", false, &a.lstrip);
	e = e ? e : reader_bool(r, where, j, "rstrip", false, &a.rstrip);
	e = e ? e : reader_bool(r, where, j, "normalized", !a.special, &a.normalized);
	if (e != 0) {
		return e;
	}
	if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= MAX_VOCAB) {
		return reader_fault(r, where, "id must be an integer from 0 to %d", MAX_VOCAB - 1);
	}
	a.id = (int32_t)json_integer_value(id);
	a.content = (char *)content; /* copied there */
	return tokenizer_add_token(r->t, &a, r->what, r->err);
}

/* ---- tokenizer_config.json --------------------------------------------------------------- */

static int read_config_token(struct reader *r, json_t *config, const char *key, int32_t *ret)
{
	json_t *value = json_object_get(config, key);
	if (json_is_object(value)) {
		value = json_object_get(value, "content");
	}
	if (!value || json_is_null(value)) {
		return 0;
	}
	const char *text = json_string_value(value);
	*ret = text ? tokenizer_id(r->t, text) : -1;
	return *ret >= 0 ? 0 : errmsg_set(r->err, STATUS_INVALID,
		"tokenizer_config.json: %s is %.100s, which is no token of tokenizer.json", key,
		text ? text : "no string");
}

/* transformers adds the tokens of added_tokens_decoder that tokenizer.json lacks; a folder where
 * there are any is refused rather than read otherwise. */
static int check_config_added(struct reader *r, json_t *config)
{
	const char *key;
	json_t *value;
	json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, value) {
		const char *text = json_string_value(json_object_get(value, "content")), *known;
		long long id = strtoll(key, NULL, 10);
		size_t len = 0;
		known = id >= 0 && id < MAX_VOCAB ? tokenizer_text(r->t, (int32_t)id, &len) : NULL;
		if (!text || !known || strlen(text) != len || memcmp(text, known, len) != 0) {
			return errmsg_set(r->err, STATUS_INVALID, "tokenizer_config.json: added_tokens_decoder "
				"has token %.20s (%.100s), which tokenizer.json has not; save both again with "
				"save_pretrained()", key, text ? text : "no string");
		}
	}
	return 0;
}

static int read_config(struct reader *r, const char *text, size_t len)
{
	json_error_t e;
	if (!text) {
		return 0;
	}
	_cleanup_(json_decrefpp) json_t *config = json_loadb(text, len,
		JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &e);
	if (!json_is_object(config)) {
		return errmsg_set(r->err, STATUS_INVALID, "tokenizer_config.json: line %d: %s",
			config ? 1 : e.line, config ? "must be an object" : e.text);
	}
	int x = check_config_added(r, config);
	x = x ? x : read_config_token(r, config, "bos_token", &r->t->bos);
	return x ? x : read_config_token(r, config, "eos_token", &r->t->eos);
}

/* ---- the whole --------------------------------------------------------------------------- */

static int read_tokenizer(struct reader *r, json_t *root)
{
	json_t *added = json_object_get(root, "added_tokens");
	/* truncation and padding are the caller's business, as they are in transformers. */
	int e = reader_members(r, "top level", root,
		" version truncation padding added_tokens normalizer "
		"pre_tokenizer post_processor decoder model ");
	const char *version = json_string_value(json_object_get(root, "version"));
	if (e == 0 && (!version || strcmp(version, "1.0") != 0)) {
		return reader_fault(r, "version", "must be \"1.0\"");
	}
	/* Whether the model is one of bytes hangs on the pre-tokenizer. */
	e = e ? e : read_pre_tokenizer(r, "pre_tokenizer", json_object_get(root, "pre_tokenizer"));
	e = e ? e : read_model(r, json_object_get(root, "model"));
	e = e ? e : read_normalizer(r, "normalizer", json_object_get(root, "normalizer"));
	e = e == 0 && added && !json_is_null(added) ?
		reader_each(r, "top level", root, "added_tokens", read_added) : e;
	e = e ? e : read_post_processor(r, "post_processor", json_object_get(root, "post_processor"));
	return e ? e : read_decoder(r, "decoder", json_object_get(root, "decoder"));
}

int tokenizer_from_json(struct tokenizer **ret, const char *json, size_t len, const char *config,
	size_t config_len, const char *what, struct errmsg *err)
{
	json_error_t e;
	_cleanup_(json_decrefpp) json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &e);
	if (!root) {
		return errmsg_set(err, STATUS_INVALID, "%s: line %d, column %d: %s", what, e.line, e.column,
			e.text);
	}
	_cleanup_(tokenizer_freep) struct tokenizer *t = tokenizer_alloc();
	if (!t) {
		return -ENOMEM;
	}
	struct reader r = {.t = t, .what = what, .err = err};
	int x = json_is_object(root) ? read_tokenizer(&r, root) :
		errmsg_set(err, STATUS_INVALID, "%s: must be an object", what);
	x = x ? x : tokenizer_finish(t, what, err);
	x = x ? x : read_config(&r, config, config_len);
	if (x == 0) {
		tokenizer_hash(t);
		*ret = steal_ptr(t);
	}
	return x;
}
