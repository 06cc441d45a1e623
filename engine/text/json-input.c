/* tokenizer.json's normalizers and pre-tokenizers. */

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/json-reader.h"
#include "util/util.h"

/* ---- normalizers ------------------------------------------------------------------------- */

static int add_normalizer(struct reader *r, const char *where, struct normalizer *n)
{
	int e = tokenizer_add_normalizer(r->t, n);
	return e == -E2BIG ? reader_fault(r, where, "more than %d normalizers", MAX_NORMALIZERS) : e;
}

static int read_replace(struct reader *r, const char *where, json_t *j)
{
	struct normalizer n = {.kind = NORMALIZE_REPLACE};
	const char *text = NULL, *content = "";
	size_t len = 0, content_len = 0;
	bool literal = false;
	int e = reader_members(r, where, j, " type pattern content ");
	e = e ? e : reader_pattern(r, where, j, &text, &len, &literal);
	e = e ? e : reader_string(r, where, j, "content", &content, &content_len);
	if (e != 0) {
		return e;
	}
	if ((e = regex_new_pattern(&n.pattern, text, len, literal, r->err)) != 0) {
		return e < 0 ? e : errmsg_prefix(r->err, e, "%s: %s", r->what, where);
	}
	n.content = reader_copy(content, content_len);
	n.literal = literal ? reader_copy(text, len) : NULL;
	if (!n.content || (literal && !n.literal)) {
		normalizer_deinit(&n);
		return -ENOMEM;
	}
	n.literal_len = len;
	n.content_len = content_len;
	return add_normalizer(r, where, &n);
}

static int read_charsmap(struct reader *r, const char *where, json_t *j)
{
	struct normalizer n = {.kind = NORMALIZE_CHARSMAP};
	const char *text = "";
	size_t len = 0, n_bytes = 0;
	int e = reader_members(r, where, j, " type precompiled_charsmap ");
	e = e ? e : reader_string(r, where, j, "precompiled_charsmap", &text, &len);
	if (e != 0) {
		return e;
	}
	uint8_t *bytes = malloc(len + 1);
	if (!bytes) {
		return -ENOMEM;
	}
	if (sodium_base642bin(bytes, len + 1, text, len, NULL, &n_bytes, NULL,
			sodium_base64_VARIANT_ORIGINAL) != 0) {
		e = reader_fault(r, where, "precompiled_charsmap must be base64");
	} else {
		e = charsmap_new(&n.charsmap, bytes, n_bytes, r->err);
		e = e > 0 ? errmsg_prefix(r->err, e, "%s: %s", r->what, where) : e;
	}
	free(bytes);
	return e ? e : add_normalizer(r, where, &n);
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
		{"StripAccents", NORMALIZE_STRIP_ACCENTS, " type "},
	};
	for (size_t i = 0; i < ARRAY_LEN(known); i++) {
		if (strcmp(known[i].type, type) != 0) {
			continue;
		}
		struct normalizer n = {.kind = known[i].kind};
		const char *text = "";
		int e = reader_members(r, where, j, known[i].members);
		if (e == 0 && n.kind == NORMALIZE_PREPEND) {
			e = reader_string(r, where, j, "prepend", &text, &n.content_len);
		}
		e = e ? e : reader_bool(r, where, j, "strip_left", false, &n.left);
		e = e ? e : reader_bool(r, where, j, "strip_right", false, &n.right);
		if (e != 0) {
			return e;
		}
		n.content = reader_copy(text, n.content_len);
		return n.content ? add_normalizer(r, where, &n) : -ENOMEM;
	}
	return reader_fault(r, where, "type %.64s is not supported (supported are NFC, NFD, NFKC, NFKD, "
		"Lowercase, Replace, Prepend, Precompiled, Strip, StripAccents, Sequence)", type);
}

int read_normalizer(struct reader *r, const char *where, json_t *j)
{
	const char *type = reader_type(j);
	if (!j || json_is_null(j)) {
		return 0;
	}
	if (strcmp(type, "Sequence") == 0) {
		int e = reader_members(r, where, j, " type normalizers ");
		return e ? e : reader_each(r, where, j, "normalizers", read_normalizer);
	}
	return strcmp(type, "Replace") == 0 ? read_replace(r, where, j) :
		strcmp(type, "Precompiled") == 0 ? read_charsmap(r, where, j) :
		read_simple_normalizer(r, where, j, type);
}

/* ---- pre-tokenizers ---------------------------------------------------------------------- */

static int add_step(struct reader *r, const char *where, struct split_step *step)
{
	int e = tokenizer_add_step(r->t, step);
	return e == -E2BIG ? reader_fault(r, where, "more than %d pre-tokenizers", MAX_STEPS) : e;
}

static int read_behavior(struct reader *r, const char *where, json_t *j, const char *otherwise,
	enum split_behavior *ret)
{
	static const char *const names[] = {
		[SPLIT_ISOLATED] = "Isolated",
		[SPLIT_REMOVED] = "Removed",
		[SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
		[SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
		[SPLIT_CONTIGUOUS] = "Contiguous",
	};
	const char *behavior = otherwise;
	size_t len;
	int e = otherwise && !json_object_get(j, "behavior") ? 0 :
		reader_string(r, where, j, "behavior", &behavior, &len);
	for (size_t i = 0; e == 0 && i < ARRAY_LEN(names); i++) {
		if (strcmp(names[i], behavior) == 0) {
			*ret = (enum split_behavior)i;
			return 0;
		}
	}
	return e ? e : reader_fault(r, where, "behavior %.64s is not supported (supported are Isolated, "
		"Removed, MergedWithPrevious, MergedWithNext, Contiguous)", behavior);
}

static int read_split(struct reader *r, const char *where, json_t *j)
{
	struct split_step step = {0};
	const char *text = NULL;
	size_t len = 0;
	bool literal = false;
	int e = reader_members(r, where, j, " type pattern behavior invert ");
	e = e ? e : reader_pattern(r, where, j, &text, &len, &literal);
	e = e ? e : read_behavior(r, where, j, NULL, &step.behavior);
	e = e ? e : reader_bool(r, where, j, "invert", false, &step.invert);
	if (e != 0) {
		return e;
	}
	if ((e = split_step_pattern(&step, text, len, literal, r->err)) != 0) {
		return e < 0 ? e : errmsg_prefix(r->err, e, "%s: %s", r->what, where);
	}
	return add_step(r, where, &step);
}

static int read_byte_level(struct reader *r, const char *where, json_t *j)
{
	struct split_step step = {0};
	bool use_regex = true, trim_offsets = true;
	int e = reader_members(r, where, j, " type add_prefix_space trim_offsets use_regex ");
	e = e ? e : reader_bool(r, where, j, "add_prefix_space", true, &step.add_prefix_space);
	e = e ? e : reader_bool(r, where, j, "trim_offsets", true, &trim_offsets);
	e = e ? e : reader_bool(r, where, j, "use_regex", true, &use_regex);
	if (e != 0) {
		return e;
	}
	step.kind = use_regex ? PATTERN_GPT2 : PATTERN_NONE;
	r->byte_level = true;
	return add_step(r, where, &step);
}

static int read_metaspace(struct reader *r, const char *where, json_t *j)
{
	struct split_step step = {.kind = PATTERN_METASPACE, .behavior = SPLIT_MERGED_WITH_NEXT};
	const char *replacement = "";
	size_t len = 0;
	int e = reader_metaspace(r, where, j, &replacement, &len, &step.prepend);
	e = e ? e : reader_bool(r, where, j, "split", true, &step.split);
	memcpy(step.replacement, replacement, len);
	step.replacement_len = (uint8_t)len;
	return e ? e : add_step(r, where, &step);
}

static int read_delimiter(struct reader *r, const char *where, json_t *j)
{
	struct split_step step = {.behavior = SPLIT_REMOVED};
	const char *text = "";
	size_t len = 0;
	int e = reader_members(r, where, j, " type delimiter ");
	e = e ? e : reader_char(r, where, j, "delimiter", &text, &len);
	e = e ? e : split_step_pattern(&step, text, len, true, r->err);
	return e ? e : add_step(r, where, &step);
}

/* The kinds that only name a class of characters. */
static int read_class_split(struct reader *r, const char *where, json_t *j, const char *type)
{
	struct split_step step = {0};
	bool individual = false;
	int e;
	if (strcmp(type, "Digits") == 0) {
		step.kind = PATTERN_NUMERIC;
		e = reader_members(r, where, j, " type individual_digits ");
		e = e ? e : reader_bool(r, where, j, "individual_digits", false, &individual);
		step.behavior = individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
	} else if (strcmp(type, "Punctuation") == 0) {
		step.kind = PATTERN_PUNCTUATION;
		e = reader_members(r, where, j, " type behavior ");
		e = e ? e : read_behavior(r, where, j, "Isolated", &step.behavior);
	} else if (strcmp(type, "WhitespaceSplit") == 0) {
		step.kind = PATTERN_SPACE;
		step.behavior = SPLIT_REMOVED;
		e = reader_members(r, where, j, " type ");
	} else if (strcmp(type, "Whitespace") == 0) {
		step.kind = PATTERN_WORDS;
		e = reader_members(r, where, j, " type ");
	} else {
		return reader_fault(r, where, "type %.64s is not supported (supported are ByteLevel, Split, "
			"Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit, "
			"Sequence)", type);
	}
	return e ? e : add_step(r, where, &step);
}

int read_pre_tokenizer(struct reader *r, const char *where, json_t *j)
{
	const char *type = reader_type(j);
	if (!j || json_is_null(j)) {
		return 0;
	}
	if (r->byte_level) {
		return reader_fault(r, where,
			"a pre-tokenizer after ByteLevel is not supported; ByteLevel must be "
			"the last");
	}
	if (strcmp(type, "Sequence") == 0) {
		int e = reader_members(r, where, j, " type pretokenizers ");
		return e ? e : reader_each(r, where, j, "pretokenizers", read_pre_tokenizer);
	}
	if (strcmp(type, "ByteLevel") == 0) {
		return read_byte_level(r, where, j);
	}
	if (strcmp(type, "Split") == 0) {
		return read_split(r, where, j);
	}
	return strcmp(type, "Metaspace") == 0 ? read_metaspace(r, where, j) :
		strcmp(type, "CharDelimiterSplit") == 0 ? read_delimiter(r, where, j) :
		read_class_split(r, where, j, type);
}
