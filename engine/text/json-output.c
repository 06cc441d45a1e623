/* tokenizer.json's post-processors and decoders. */

#include <errno.h>
#include <string.h>

#include "engine/text/json-reader.h"
#include "util/util.h"

/* ---- post-processors --------------------------------------------------------------------- */

static int read_special_piece(struct reader *r, const char *where, json_t *piece, json_t *specials,
	struct ids *affix)
{
	json_t *name = json_object_get(piece, "id");
	json_t *ids = json_is_string(name) ?
		json_object_get(json_object_get(specials, json_string_value(name)), "ids") : NULL;
	if (!json_is_array(ids)) {
		return reader_fault(r, where, "a SpecialToken of the template is not in special_tokens");
	}
	for (size_t i = 0; i < json_array_size(ids); i++) {
		json_t *id = json_array_get(ids, i);
		if (!json_is_integer(id) || json_integer_value(id) < 0 ||
				json_integer_value(id) >= (json_int_t)r->t->vocab.size || affix->len >= MAX_AFFIX) {
			return reader_fault(
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
	int e = reader_members(r, where, j, " type single pair special_tokens ");
	if (e == 0 && (r->template || !json_is_array(single))) {
		return reader_fault(r, where, "one TemplateProcessing (or BertProcessing, RobertaProcessing) "
			"is supported, with an array `single`");
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
			return reader_fault(r, where, "`single` must hold {\"SpecialToken\": …} and, once, "
				"{\"Sequence\": {\"id\": \"A\"}}");
		}
	}
	return e == 0 && !seen ? reader_fault(r, where, "`single` must hold the Sequence A") : e;
}

/* ["</s>", 2]: the library believes the number. */
static int read_pair(struct reader *r, const char *where, json_t *j, const char *key,
	struct ids *affix)
{
	json_t *pair = json_object_get(j, key), *id = json_array_get(pair, 1);
	if (json_array_size(pair) != 2 || !json_is_string(json_array_get(pair, 0)) ||
			!json_is_integer(id) || json_integer_value(id) < 0 ||
			json_integer_value(id) >= (json_int_t)r->t->vocab.size) {
		return reader_fault(r, where, "%s must be [\"token\", id], the id that of a token", key);
	}
	return ids_append(affix, &(int32_t){(int32_t)json_integer_value(id)}, 1);
}

/* BERT's and RoBERTa's: a token in front, one behind. */
static int read_cls_sep(struct reader *r, const char *where, json_t *j)
{
	int e = reader_members(r, where, j, " type sep cls trim_offsets add_prefix_space ");
	if (e == 0 && r->template) {
		return reader_fault(r, where, "a second one that adds tokens is not supported");
	}
	r->template = true;
	e = e ? e : read_pair(r, where, j, "cls", &r->t->before);
	return e ? e : read_pair(r, where, j, "sep", &r->t->after);
}

int read_post_processor(struct reader *r, const char *where, json_t *j)
{
	const char *type = reader_type(j);
	if (!j || json_is_null(j)) {
		return 0;
	}
	if (strcmp(type, "Sequence") == 0) {
		int e = reader_members(r, where, j, " type processors ");
		return e ? e : reader_each(r, where, j, "processors", read_post_processor);
	}
	if (strcmp(type, "ByteLevel") == 0) {
		return 0; /* moves offsets, adds nothing */
	}
	if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
		return read_cls_sep(r, where, j);
	}
	return strcmp(type, "TemplateProcessing") == 0 ? read_template(r, where, j) :
		reader_fault(r, where, "type %.64s is not supported (supported are ByteLevel, "
			"TemplateProcessing, BertProcessing, RobertaProcessing, Sequence)", type);
}

/* ---- decoders ---------------------------------------------------------------------------- */

static int add_decode_step(struct reader *r, const char *where, struct decode_step *step)
{
	step->fused = r->fused;
	r->fused |= step->kind == DECODE_FUSE || step->kind == DECODE_BYTE_LEVEL;
	int e = tokenizer_add_decode_step(r->t, step);
	return e == -E2BIG ? reader_fault(r, where, "more than %d decoders", MAX_STEPS) : e;
}

static int read_decode_metaspace(struct reader *r, const char *where, json_t *j)
{
	struct decode_step step = {.kind = DECODE_METASPACE};
	enum prepend_scheme scheme = PREPEND_NEVER;
	const char *text = "";
	bool split;
	int e = reader_metaspace(r, where, j, &text, &step.text_len, &scheme);
	e = e ? e : reader_bool(r, where, j, "split", true, &split);
	if (e != 0) {
		return e;
	}
	step.first_loses = scheme != PREPEND_NEVER;
	step.text = reader_copy(text, step.text_len);
	return step.text ? add_decode_step(r, where, &step) : -ENOMEM;
}

static int read_decode_replace(struct reader *r, const char *where, json_t *j)
{
	struct decode_step step = {.kind = DECODE_REPLACE};
	const char *text = "", *content = "";
	bool literal = false;
	unsigned width = 0;
	int e = reader_members(r, where, j, " type pattern content ");
	e = e ? e : reader_pattern(r, where, j, &text, &step.text_len, &literal);
	e = e ? e : reader_string(r, where, j, "content", &content, &step.content_len);
	if (e != 0) {
		return e;
	}
	if (literal && step.text_len > 0) {
		utf8_get((const uint8_t *)text, &width);
	}
	if (r->fused && width != step.text_len) {
		return reader_fault(r, where, "a Replace of more than one character behind a decoder that "
			"joins the tokens is not supported");
	}
	if ((e = regex_new_pattern(&step.regex, text, step.text_len, literal, r->err)) != 0) {
		return e < 0 ? e : errmsg_prefix(r->err, e, "%s: %s", r->what, where);
	}
	step.text = literal ? reader_copy(text, step.text_len) : NULL;
	step.content = reader_copy(content, step.content_len);
	if (!step.content || (literal && !step.text)) {
		decode_step_deinit(&step);
		return -ENOMEM;
	}
	return add_decode_step(r, where, &step);
}

static int read_decode_strip(struct reader *r, const char *where, json_t *j)
{
	struct decode_step step = {.kind = DECODE_STRIP};
	json_t *start = json_object_get(j, "start"), *stop = json_object_get(j, "stop");
	const char *text = "";
	int e = reader_members(r, where, j, " type content start stop ");
	e = e ? e : reader_char(r, where, j, "content", &text, &step.text_len);
	if (e != 0) {
		return e;
	}
	if (!json_is_integer(start) || json_integer_value(start) < 0 || !json_is_integer(stop) ||
			json_integer_value(stop) != 0) {
		return reader_fault(r, where, "start must be an integer from 0, and stop other than 0 is "
			"not supported");
	}
	step.start = (size_t)json_integer_value(start);
	step.text = reader_copy(text, step.text_len);
	return step.text ? add_decode_step(r, where, &step) : -ENOMEM;
}

int read_decoder(struct reader *r, const char *where, json_t *j)
{
	const char *type = reader_type(j);
	struct decode_step step = {.kind = DECODE_JOIN};
	if (!j || json_is_null(j)) {
		return add_decode_step(r, where, &step);
	}
	if (strcmp(type, "Sequence") == 0) {
		int e = reader_members(r, where, j, " type decoders ");
		return e ? e : reader_each(r, where, j, "decoders", read_decoder);
	}
	if (strcmp(type, "Metaspace") == 0) {
		return read_decode_metaspace(r, where, j);
	}
	if (strcmp(type, "Replace") == 0) {
		return read_decode_replace(r, where, j);
	}
	if (strcmp(type, "Strip") == 0) {
		return read_decode_strip(r, where, j);
	}
	if (strcmp(type, "ByteFallback") == 0 && r->fused) {
		return reader_fault(r, where, "ByteFallback behind a decoder that joins the tokens is not "
			"supported");
	}
	step.kind = strcmp(type, "ByteLevel") == 0 ? DECODE_BYTE_LEVEL :
		strcmp(type, "ByteFallback") == 0 ? DECODE_BYTE_FALLBACK :
		strcmp(type, "Fuse") == 0 ? DECODE_FUSE : DECODE_JOIN;
	return step.kind == DECODE_JOIN ? reader_fault(r, where, "type %.64s is not supported (supported "
		"are ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip, Sequence)", type) :
		add_decode_step(r, where, &step);
}
