/*
 * tokenizer.json, as Hugging Face tokenizers writes it. What is not known to give equal ids is
 * refused by name, unknown members of a part included.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct tokenizer *, tokenizer_free);

static inline void json_decrefpp(json_t **j)
{
	json_decref(*j);
}

struct reader {
	struct tokenizer *t;
	const char *what;
	struct errmsg *err;
	bool byte_level; /* the ByteLevel pre-tokenizer has been seen */
	bool template;   /* a TemplateProcessing has been seen */
	unsigned depth;
};

enum {
	MAX_DEPTH = 8,
	MAX_AFFIX = 64,
};

static int fault(const struct reader *r, const char *where, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int fault(const struct reader *r, const char *where, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return errmsg_set(r->err, STATUS_INVALID, "%s: %s: %s", r->what, where, text);
}

/* ---- members ----------------------------------------------------------------------------- */

/* Every member of `j` is in the list (separated by spaces, with one at both ends). */
static int check_members(const struct reader *r, const char *where, json_t *j, const char *known)
{
	const char *key;
	json_t *value;
	json_object_foreach(j, key, value) {
		char wanted[64];
		if (snprintf(wanted, sizeof(wanted), " %s ", key) >= (int)sizeof(wanted) ||
				!strstr(known, wanted)) {
			return fault(r, where, "unknown member %.64s (known are%s)", key, known);
		}
	}
	return 0;
}

static int get_bool(const struct reader *r, const char *where, json_t *j, const char *key,
	bool otherwise, bool *ret)
{
	json_t *value = json_object_get(j, key);
	if (value && !json_is_boolean(value)) {
		return fault(r, where, "%s must be true or false", key);
	}
	*ret = value ? json_is_true(value) : otherwise;
	return 0;
}

static int get_string(const struct reader *r, const char *where, json_t *j, const char *key,
	const char **ret, size_t *ret_len)
{
	json_t *value = json_object_get(j, key);
	if (!json_is_string(value)) {
		return fault(r, where, "%s must be a string", key);
	}
	*ret = json_string_value(value);
	*ret_len = json_string_length(value);
	return 0;
}

/* {"String": …} or {"Regex": …} */
static int get_pattern(const struct reader *r, const char *where, json_t *j, const char **ret,
	size_t *ret_len, bool *ret_literal)
{
	json_t *pattern = json_object_get(j, "pattern"), *value = json_object_get(pattern, "String");
	*ret_literal = value != NULL;
	value = value ? value : json_object_get(pattern, "Regex");
	if (!json_is_string(value) || json_object_size(pattern) != 1) {
		return fault(r, where, "pattern must be {\"String\": …} or {\"Regex\": …}");
	}
	*ret = json_string_value(value);
	*ret_len = json_string_length(value);
	return 0;
}

static const char *type_of(json_t *j)
{
	const char *type = json_string_value(json_object_get(j, "type"));
	return type ? type : "none";
}

/* ---- normalizers ------------------------------------------------------------------------- */

static int read_normalizer(struct reader *r, const char *where, json_t *j);

/* Calls `read` for each member of an array, with where[i] as the place. */
static int read_each(struct reader *r, const char *where, json_t *list, const char *key,
	int (*read)(struct reader *, const char *, json_t *))
{
	char place[160];
	if (!json_is_array(list)) {
		return fault(r, where, "%s must be an array", key);
	}
	if (++r->depth > MAX_DEPTH) {
		return fault(r, where, "Sequence nested more than %d deep", MAX_DEPTH);
	}
	for (size_t i = 0; i < json_array_size(list); i++) {
		snprintf(place, sizeof(place), "%.100s.%s[%zu]", where, key, i);
		int e = read(r, place, json_array_get(list, i));
		if (e != 0) {
			return e;
		}
	}
	r->depth--;
	return 0;
}

static int read_replace(struct reader *r, const char *where, json_t *j)
{
	struct normalizer n = {.kind = NORMALIZE_REPLACE};
	const char *text = NULL, *content = "";
	size_t len = 0, content_len = 0;
	bool literal = false;
	int e = check_members(r, where, j, " type pattern content ");
	e = e ? e : get_pattern(r, where, j, &text, &len, &literal);
	e = e ? e : get_string(r, where, j, "content", &content, &content_len);
	if (e != 0) {
		return e;
	}
	if ((e = regex_new_pattern(&n.pattern, text, len, literal, r->err)) != 0) {
		return e < 0 ? e : errmsg_prefix(r->err, e, "%s: %s", r->what, where);
	}
	n.content = malloc(content_len + 1);
	if (!n.content) {
		normalizer_deinit(&n);
		return -ENOMEM;
	}
	memcpy(n.content, content, content_len);
	n.content_len = content_len;
	e = tokenizer_add_normalizer(r->t, &n);
	return e == -E2BIG ? fault(r, where, "more than %d normalizers", MAX_NORMALIZERS) : e;
}

static int read_simple_normalizer(struct reader *r, const char *where, json_t *j, const char *type)
{
	static const struct {
		const char *type;
		enum normalizer_kind kind;
		const char *members;
	} known[] = {
		{"NFC", NORMALIZE_NFC, " type "},
		{"NFD", NORMALIZE_NFD, " type "},
		{"NFKC", NORMALIZE_NFKC, " type "},
		{"NFKD", NORMALIZE_NFKD, " type "},
		{"Lowercase", NORMALIZE_LOWERCASE, " type "},
		{"Prepend", NORMALIZE_PREPEND, " type prepend "},
		{"Strip", NORMALIZE_STRIP, " type strip_left strip_right "},
	};
	for (size_t i = 0; i < ARRAY_LEN(known); i++) {
		if (strcmp(known[i].type, type) != 0) {
			continue;
		}
		struct normalizer n = {.kind = known[i].kind};
		const char *text = "";
		int e = check_members(r, where, j, known[i].members);
		if (e == 0 && n.kind == NORMALIZE_PREPEND) {
			e = get_string(r, where, j, "prepend", &text, &n.content_len);
		}
		e = e ? e : get_bool(r, where, j, "strip_left", false, &n.left);
		e = e ? e : get_bool(r, where, j, "strip_right", false, &n.right);
		if (e != 0) {
			return e;
		}
		n.content = malloc(n.content_len + 1);
		if (!n.content) {
			return -ENOMEM;
		}
		memcpy(n.content, text, n.content_len);
		e = tokenizer_add_normalizer(r->t, &n);
		return e == -E2BIG ? fault(r, where, "more than %d normalizers", MAX_NORMALIZERS) : e;
	}
	return fault(r, where, "type %.64s is not supported (supported are NFC, NFD, NFKC, NFKD, "
		"Lowercase, Replace, Prepend, Strip, Sequence)", type);
}

static int read_normalizer(struct reader *r, const char *where, json_t *j)
{
	const char *type = type_of(j);
	if (!j || json_is_null(j)) {
		return 0;
	}
	if (strcmp(type, "Sequence") == 0) {
		int e = check_members(r, where, j, " type normalizers ");
		return e ? e : read_each(r, where, json_object_get(j, "normalizers"), "normalizers",
			read_normalizer);
	}
	return strcmp(type, "Replace") == 0 ? read_replace(r, where, j) :
		read_simple_normalizer(r, where, j, type);
}

/* ---- pre-tokenizers ---------------------------------------------------------------------- */

static int add_step(struct reader *r, const char *where, struct split_step *step)
{
	int e = tokenizer_add_step(r->t, step);
	return e == -E2BIG ? fault(r, where, "more than %d pre-tokenizers", MAX_STEPS) : e;
}

static int read_split(struct reader *r, const char *where, json_t *j)
{
	static const char *const names[] = {
		[SPLIT_ISOLATED] = "Isolated",
		[SPLIT_REMOVED] = "Removed",
		[SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
		[SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
		[SPLIT_CONTIGUOUS] = "Contiguous",
	};
	struct split_step step = {0};
	const char *text = NULL, *behavior = "";
	size_t len = 0, behavior_len, b = 0;
	bool literal = false;
	int e = check_members(r, where, j, " type pattern behavior invert ");
	e = e ? e : get_pattern(r, where, j, &text, &len, &literal);
	e = e ? e : get_string(r, where, j, "behavior", &behavior, &behavior_len);
	e = e ? e : get_bool(r, where, j, "invert", false, &step.invert);
	if (e != 0) {
		return e;
	}
	while (b < ARRAY_LEN(names) && strcmp(names[b], behavior) != 0) {
		b++;
	}
	if (b == ARRAY_LEN(names)) {
		return fault(r, where, "behavior %.64s is not supported (supported are Isolated, Removed, "
			"MergedWithPrevious, MergedWithNext, Contiguous)", behavior);
	}
	step.behavior = (enum split_behavior)b;
	if ((e = split_step_pattern(&step, text, len, literal, r->err)) != 0) {
		return e < 0 ? e : errmsg_prefix(r->err, e, "%s: %s", r->what, where);
	}
	return add_step(r, where, &step);
}

static int read_byte_level(struct reader *r, const char *where, json_t *j)
{
	struct split_step step = {0};
	bool use_regex = true, trim_offsets = true;
	int e = check_members(r, where, j, " type add_prefix_space trim_offsets use_regex ");
	e = e ? e : get_bool(r, where, j, "add_prefix_space", true, &step.add_prefix_space);
	e = e ? e : get_bool(r, where, j, "trim_offsets", true, &trim_offsets);
	e = e ? e : get_bool(r, where, j, "use_regex", true, &use_regex);
	if (e != 0) {
		return e;
	}
	step.kind = use_regex ? PATTERN_GPT2 : PATTERN_NONE;
	r->byte_level = true;
	return add_step(r, where, &step);
}

static int read_pre_tokenizer(struct reader *r, const char *where, json_t *j)
{
	const char *type = type_of(j);
	if (r->byte_level) {
		return fault(r, where,
			"a pre-tokenizer after ByteLevel is not supported; ByteLevel must be "
			"the last");
	}
	if (strcmp(type, "Sequence") == 0) {
		int e = check_members(r, where, j, " type pretokenizers ");
		return e ? e : read_each(r, where, json_object_get(j, "pretokenizers"), "pretokenizers",
			read_pre_tokenizer);
	}
	if (strcmp(type, "ByteLevel") == 0) {
		return read_byte_level(r, where, j);
	}
	if (strcmp(type, "Split") == 0) {
		return read_split(r, where, j);
	}
	if (strcmp(type, "Digits") == 0) {
		bool individual = false;
		int e = check_members(r, where, j, " type individual_digits ");
		e = e ? e : get_bool(r, where, j, "individual_digits", false, &individual);
		struct split_step step = {.kind = PATTERN_NUMERIC,
			.behavior = individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS};
		return e ? e : add_step(r, where, &step);
	}
	return fault(r, where, "type %.64s is not supported (supported are ByteLevel, Split, Digits, "
		"Sequence)", type);
}

/* ---- the model --------------------------------------------------------------------------- */

static int check_model_options(struct reader *r, json_t *j, bool *ret_ignore_merges)
{
	static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
	bool byte_fallback = false;
	int e = check_members(r, "model", j, " type dropout unk_token continuing_subword_prefix "
		"end_of_word_suffix fuse_unk byte_fallback ignore_merges vocab merges ");
	e = e ? e : get_bool(r, "model", j, "byte_fallback", false, &byte_fallback);
	e = e ? e : get_bool(r, "model", j, "ignore_merges", false, ret_ignore_merges);
	e = e ? e : get_bool(r, "model", j, "fuse_unk", false, &r->t->bpe.fuse_unk);
	if (e != 0) {
		return e;
	}
	if (byte_fallback) {
		return fault(r, "model", "byte_fallback is not supported (SentencePiece's kind of BPE)");
	}
	json_t *dropout = json_object_get(j, "dropout");
	if (dropout && !json_is_null(dropout) &&
			(!json_is_number(dropout) || json_number_value(dropout) != 0)) {
		return fault(r, "model", "dropout must be null: the ids would not be the same twice");
	}
	for (size_t i = 0; i < ARRAY_LEN(affixes); i++) {
		json_t *affix = json_object_get(j, affixes[i]);
		if (affix && !json_is_null(affix) && json_string_length(affix) != 0) {
			return fault(r, "model", "%s is not supported; it must be null", affixes[i]);
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
		return fault(r, "model.vocab", "must be an object of at most %d tokens", MAX_VOCAB);
	}
	json_object_keylen_foreach(vocab, token, len, id) {
		if (!json_is_integer(id) || json_integer_value(id) < 0 ||
				json_integer_value(id) >= MAX_VOCAB || len > MAX_TOKEN_BYTES) {
			return fault(r, "model.vocab",
				"token %.100s: the id must be an integer below %d and the "
				"token have at most %d bytes",
				token, MAX_VOCAB, MAX_TOKEN_BYTES);
		}
		int e = vocab_add(&r->t->vocab, token, len, (int32_t)json_integer_value(id));
		if (e == -EEXIST) {
			return fault(r, "model.vocab", "token %.100s: the id %lld is taken", token,
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
		return fault(r, "model.merges", "merge %zu must be \"a b\" or [\"a\", \"b\"]", rank);
	}
	return tokenizer_add_merge(r->t, json_string_value(left), json_string_length(left),
		json_string_value(right), json_string_length(right), rank, r->what, r->err);
}

static int read_merges(struct reader *r, json_t *merges)
{
	if (!json_is_array(merges) || json_array_size(merges) > MAX_VOCAB) {
		return fault(r, "model.merges", "must be an array of at most %d merges", MAX_VOCAB);
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

static int read_model(struct reader *r, json_t *j)
{
	const char *type = type_of(j);
	/* Files of before 2020 do not say. */
	if (!json_is_object(j) || (strcmp(type, "BPE") != 0 && json_object_get(j, "type"))) {
		return fault(r, "model", "type %.64s is not supported; supported is BPE, byte-level", type);
	}
	int e = check_model_options(r, j, &r->t->bpe.ignore_merges);
	e = e ? e : read_vocab(r, json_object_get(j, "vocab"));
	e = e ? e : read_merges(r, json_object_get(j, "merges"));
	json_t *unk = json_object_get(j, "unk_token");
	if (e == 0 && unk && !json_is_null(unk)) {
		r->t->bpe.unk = json_is_string(unk) ? vocab_find(&r->t->vocab, json_string_value(unk),
			json_string_length(unk)) : -1;
		if (r->t->bpe.unk < 0) {
			return fault(r, "model", "unk_token must be null or a token of the vocabulary");
		}
	}
	return e;
}

/* ---- added tokens ------------------------------------------------------------------------ */

static int read_added(struct reader *r, const char *where, json_t *j)
{
	struct added_token a = {0};
	const char *content = "";
	json_t *id = json_object_get(j, "id");
	int e = check_members(r, where, j, " id content single_word lstrip rstrip normalized special ");
	e = e ? e : get_string(r, where, j, "content", &content, &a.len);
	e = e ? e : get_bool(r, where, j, "special", false, &a.special);
	e = e ? e : get_bool(r, where, j, "single_word", false, &a.single_word);
	e = e ? e : get_bool(r, where, j, "lstrip", false, &a.lstrip);
	e = e ? e : get_bool(r, where, j, "rstrip", false, &a.rstrip);
	e = e ? e : get_bool(r, where, j, "normalized", !a.special, &a.normalized);
	if (e != 0) {
		return e;
	}
	if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= MAX_VOCAB) {
		return fault(r, where, "id must be an integer from 0 to %d", MAX_VOCAB - 1);
	}
	a.id = (int32_t)json_integer_value(id);
	a.content = (char *)content; /* copied there */
	return tokenizer_add_token(r->t, &a, r->what, r->err);
}

/* ---- post-processors, decoders ----------------------------------------------------------- */

static int read_special_piece(struct reader *r, const char *where, json_t *piece, json_t *specials,
	struct ids *affix)
{
	json_t *name = json_object_get(piece, "id");
	json_t *ids = json_is_string(name) ?
		json_object_get(json_object_get(specials, json_string_value(name)), "ids") : NULL;
	if (!json_is_array(ids)) {
		return fault(r, where, "a SpecialToken of the template is not in special_tokens");
	}
	for (size_t i = 0; i < json_array_size(ids); i++) {
		json_t *id = json_array_get(ids, i);
		if (!json_is_integer(id) || json_integer_value(id) < 0 ||
				json_integer_value(id) >= (json_int_t)r->t->vocab.size || affix->len >= MAX_AFFIX) {
			return fault(
				r, where, "special_tokens: ids must be tokens, at most %d of them", MAX_AFFIX);
		}
		int32_t value = (int32_t)json_integer_value(id);
		int e = ids_append(affix, &value, 1);
		if (e < 0) {
			return e;
		}
	}
	return 0;
}

static int read_template(struct reader *r, const char *where, json_t *j)
{
	json_t *single = json_object_get(j, "single"), *specials = json_object_get(j, "special_tokens");
	bool seen = false;
	int e = check_members(r, where, j, " type single pair special_tokens ");
	if (e == 0 && (r->template || !json_is_array(single))) {
		return fault(r, where, "one TemplateProcessing with an array `single` is supported");
	}
	r->template = true;
	for (size_t i = 0; e == 0 && i < json_array_size(single); i++) {
		json_t *piece = json_array_get(single, i),
			   *special = json_object_get(piece, "SpecialToken");
		const char *id =
			json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
		if (special) {
			e = read_special_piece(r, where, special, specials,
				seen ? &r->t->after : &r->t->before);
		} else if (id && strcmp(id, "A") == 0 && !seen) {
			seen = true;
		} else {
			return fault(r, where, "`single` must hold {\"SpecialToken\": …} and, once, "
				"{\"Sequence\": {\"id\": \"A\"}}");
		}
	}
	return e == 0 && !seen ? fault(r, where, "`single` must hold the Sequence A") : e;
}

static int read_post_processor(struct reader *r, const char *where, json_t *j)
{
	const char *type = type_of(j);
	if (!j || json_is_null(j)) {
		return 0;
	}
	if (strcmp(type, "Sequence") == 0) {
		int e = check_members(r, where, j, " type processors ");
		return e ? e : read_each(r, where, json_object_get(j, "processors"), "processors",
			read_post_processor);
	}
	if (strcmp(type, "ByteLevel") == 0) {
		return 0; /* moves offsets, adds nothing */
	}
	return strcmp(type, "TemplateProcessing") == 0 ? read_template(r, where, j) :
		fault(r, where, "type %.64s is not supported (supported are ByteLevel, TemplateProcessing, "
			"Sequence)", type);
}

static int read_decoder(struct reader *r, const char *where, json_t *j)
{
	const char *type = type_of(j);
	if (strcmp(type, "Sequence") == 0) {
		return read_each(r, where, json_object_get(j, "decoders"), "decoders", read_decoder);
	}
	return !j || json_is_null(j) || strcmp(type, "ByteLevel") == 0 ? 0 :
		fault(r, where, "type %.64s is not supported; supported is ByteLevel", type);
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
	int e = check_members(r, "top level", root,
		" version truncation padding added_tokens normalizer "
		"pre_tokenizer post_processor decoder model ");
	const char *version = json_string_value(json_object_get(root, "version"));
	if (e == 0 && (!version || strcmp(version, "1.0") != 0)) {
		return fault(r, "version", "must be \"1.0\"");
	}
	e = e ? e : read_model(r, json_object_get(root, "model"));
	e = e ? e : read_normalizer(r, "normalizer", json_object_get(root, "normalizer"));
	e = e ? e : read_pre_tokenizer(r, "pre_tokenizer", json_object_get(root, "pre_tokenizer"));
	if (e == 0 && !r->byte_level) {
		return fault(r, "pre_tokenizer", "there is no ByteLevel; only byte-level BPE is supported");
	}
	e = e == 0 && added && !json_is_null(added) ?
		read_each(r, "added_tokens", added, "added_tokens", read_added) : e;
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
