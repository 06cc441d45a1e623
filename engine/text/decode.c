/*
 * Ids into text, as they come.
 *
 * A file's decoders are a chain through which each token's text goes; what joins tokens or looks at
 * several of them (bytes that make a character, the first token, what is stripped from the whole)
 * keeps in its step's state what the library would look back for.
 */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

void decode_step_deinit(struct decode_step *s)
{
	regex_free(s->regex);
	free(s->text);
	free(s->content);
}

struct step_state {
	struct buf held; /* bytes that may yet become characters */
	struct buf work; /* a token as this step leaves it */
	bool started;    /* a token has passed */
	size_t stripped;
	bool strip_done;
};

struct token_stream {
	const struct tokenizer *t;
	bool skip_special;
	struct regex_scratch *regex;
	struct buf token;
	struct step_state states[MAX_STEPS];
};

enum {
	MAX_DECODED = 1 << 24, /* bytes of one token */
};

static const char replacement_character[] = "\xEF\xBF\xBD";

static int pass(struct token_stream *s, size_t level, const uint8_t *text, size_t len,
	struct buf *out);

/* ---- steps ------------------------------------------------------------------------------- */

static int step_join(struct token_stream *s, size_t level, const uint8_t *text, size_t len,
	struct buf *out)
{
	struct step_state *state = &s->states[level];
	int r = state->started ? pass(s, level + 1, (const uint8_t *)" ", 1, out) : 0;
	state->started = true;
	return r < 0 ? r : pass(s, level + 1, text, len, out);
}

static int step_metaspace(struct token_stream *s, size_t level, const uint8_t *text, size_t len,
	struct buf *out)
{
	const struct decode_step *step = &s->t->decode_steps[level];
	struct step_state *state = &s->states[level];
	bool lose = step->first_loses && (!state->started || step->fused);
	int r = 0;
	state->work.len = 0;
	state->started = true;
	while (r == 0 && len > 0) {
		const uint8_t *found = memmem(text, len, step->text, step->text_len);
		size_t n = found ? (size_t)(found - text) : len;
		r = buf_append(&state->work, text, n);
		if (r == 0 && found && !lose) {
			r = buf_append(&state->work, " ", 1);
		}
		n += found ? step->text_len : 0;
		text += n;
		len -= n;
	}
	return r < 0 ? r : pass(s, level + 1, state->work.data, state->work.len, out);
}

static int step_replace(struct token_stream *s, size_t level, const uint8_t *text, size_t len,
	struct buf *out)
{
	const struct decode_step *step = &s->t->decode_steps[level];
	struct buf *work = &s->states[level].work;
	struct regex_iter it = {0};
	size_t done = 0, start, end;
	int r = 0;
	work->len = 0;
	while (len > 0 && (r = regex_next(step->regex, s->regex, &it, text, len, &start, &end)) > 0) {
		r = buf_append(work, text + done, start - done);
		r = r < 0 ? r : buf_append(work, step->content, step->content_len);
		if (r < 0) {
			return r;
		}
		done = end;
		if (work->len > MAX_DECODED) {
			return -ENOMEM; /* a chain of replacements that grow */
		}
	}
	r = r < 0 ? r : buf_append(work, text + done, len - done);
	return r < 0 ? r : pass(s, level + 1, work->data, work->len, out);
}

/* Takes away up to `start` of the character at the front, of a token or of all that was fused. */
static int step_strip(struct token_stream *s, size_t level, const uint8_t *text, size_t len,
	struct buf *out)
{
	const struct decode_step *step = &s->t->decode_steps[level];
	struct step_state *state = &s->states[level];
	if (!step->fused) {
		state->stripped = 0;
		state->strip_done = false;
	}
	while (!state->strip_done && len > 0) {
		if (state->stripped == step->start || len < step->text_len ||
				memcmp(text, step->text, step->text_len) != 0) {
			state->strip_done = true;
			break;
		}
		state->stripped++;
		text += step->text_len;
		len -= step->text_len;
	}
	return pass(s, level + 1, text, len, out);
}

/* A run of byte tokens is characters as a whole, or each byte of it is none. */
static int flush_fallback(struct token_stream *s, size_t level, struct buf *out)
{
	struct buf *held = &s->states[level].held;
	int r = 0;
	if (held->len == 0) {
		return 0;
	}
	if (utf8_valid(held->data, held->len, NULL)) {
		r = pass(s, level + 1, held->data, held->len, out);
	} else {
		for (size_t i = 0; i < held->len && r == 0; i++) {
			r = pass(s, level + 1, (const uint8_t *)replacement_character, 3, out);
		}
	}
	held->len = 0;
	return r;
}

static int hex_digit(uint8_t c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 :
		c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of "<0x0A>"; -1: the text is no such token. The library reads a number, which may have a
 * sign. */
static int fallback_byte(const uint8_t *text, size_t len)
{
	if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
		return -1;
	}
	int high = text[3] == '+' ? 0 : hex_digit(text[3]), low = hex_digit(text[4]);
	return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static int step_fallback(struct token_stream *s, size_t level, const uint8_t *text, size_t len,
	struct buf *out)
{
	int value = fallback_byte(text, len);
	if (value >= 0) {
		uint8_t byte = (uint8_t)value;
		return buf_append(&s->states[level].held, &byte, 1);
	}
	int r = flush_fallback(s, level, out);
	return r < 0 ? r : pass(s, level + 1, text, len, out);
}

/* How many of the bytes at p are the start of a character that may go on behind them (the n bytes
 * there are), or, where they cannot be, stand for one U+FFFD: the longest start of a character. */
static size_t broken_len(const uint8_t *p, size_t n, bool *ret_may_go_on)
{
	size_t need = p[0] >= 0xC2 && p[0] <= 0xDF ? 2 : (p[0] & 0xF0) == 0xE0 ? 3 :
		p[0] >= 0xF0 && p[0] <= 0xF4 ? 4 : 1;
	uint8_t low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
	uint8_t high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
	size_t len = 1;
	while (len < need && len < n && p[len] >= low && p[len] <= high) {
		len++;
		low = 0x80;
		high = 0xBF;
	}
	*ret_may_go_on = len == n && len < need;
	return len;
}

static int settle_bytes(struct token_stream *s, size_t level, bool end, struct buf *out)
{
	struct buf *held = &s->states[level].held;
	size_t at = 0, bad;
	int r = 0;
	while (at < held->len && r == 0) {
		bool may_go_on = false;
		bool valid = utf8_valid(held->data + at, held->len - at, &bad);
		size_t good = valid ? held->len - at : bad;
		r = good > 0 ? pass(s, level + 1, held->data + at, good, out) : 0;
		at += good;
		if (valid || r < 0) {
			break;
		}
		size_t broken = broken_len(held->data + at, held->len - at, &may_go_on);
		if (may_go_on && !end) {
			break;
		}
		r = pass(s, level + 1, (const uint8_t *)replacement_character, 3, out);
		at += broken;
	}
	if (held->len > 0) {
		held->len -= at;
		memmove(held->data, held->data + at, held->len);
	}
	return r;
}

/* Characters that stand for bytes; a token with another character is its own bytes. */
static int step_byte_level(struct token_stream *s, size_t level, const uint8_t *text, size_t len,
	struct buf *out)
{
	struct buf *held = &s->states[level].held;
	bool is_bytes;
	int r = byte_level_decode((const char *)text, len, held, &is_bytes);
	r = r == 0 && !is_bytes ? buf_append(held, text, len) : r;
	return r < 0 ? r : settle_bytes(s, level, false, out);
}

static int pass(struct token_stream *s, size_t level, const uint8_t *text, size_t len,
	struct buf *out)
{
	if (level == s->t->n_decode_steps) {
		return buf_append(out, text, len);
	}
	switch (s->t->decode_steps[level].kind) {
	case DECODE_JOIN:
		return step_join(s, level, text, len, out);
	case DECODE_BYTE_LEVEL:
		return step_byte_level(s, level, text, len, out);
	case DECODE_METASPACE:
		return step_metaspace(s, level, text, len, out);
	case DECODE_REPLACE:
		return step_replace(s, level, text, len, out);
	case DECODE_BYTE_FALLBACK:
		return step_fallback(s, level, text, len, out);
	case DECODE_STRIP:
		return step_strip(s, level, text, len, out);
	case DECODE_FUSE:
		return pass(s, level + 1, text, len, out);
	}
	return -EINVAL;
}

/* ---- tokens ------------------------------------------------------------------------------ */

/* A token's text as the vocabulary file has it. False: there is none, or it is left out. */
static int token_text(const struct tokenizer *t, int32_t id, bool skip_special, struct buf *out,
	bool *ret_is)
{
	const struct vocab *v = &t->vocab;
	*ret_is = false;
	if (id < 0 || (size_t)id >= v->size || !(v->tokens[id].flags & TOKEN_PRESENT)) {
		return 0; /* as Hugging Face: an id without a token is nothing */
	}
	const struct added_token *a = tokenizer_added(t, id);
	if (a) {
		const char *text = a->decoded ? a->decoded : a->content;
		size_t len = a->decoded ? a->decoded_len : a->len;
		/* The library leaves out what a special token's text is equal to. */
		if (skip_special && (a->decoded ? tokenizer_is_special(t, text, len) : a->special)) {
			return 0;
		}
		*ret_is = true;
		return buf_append(out, text, len);
	}
	*ret_is = true;
	const struct token *token = &v->tokens[id];
	const uint8_t *text = vocab_bytes(v, id);
	if (v->text || token->flags & TOKEN_RAW) {
		return buf_append(out, text, token->len);
	}
	int r = buf_reserve(out, 2 * (size_t)token->len);
	for (size_t i = 0; i < token->len && r == 0; i++) {
		uint8_t c[4];
		r = buf_append(out, c, utf8_put(byte_level_char(text[i]), c));
	}
	return r;
}

int token_stream_new(struct token_stream **ret, const struct tokenizer *t, bool skip_special)
{
	struct token_stream *s = calloc_array(1, sizeof(*s));
	if (!s) {
		return -ENOMEM;
	}
	s->t = t;
	s->skip_special = skip_special;
	s->regex = regex_scratch_new();
	if (!s->regex) {
		token_stream_free(s);
		return -ENOMEM;
	}
	*ret = s;
	return 0;
}

void token_stream_free(struct token_stream *s)
{
	if (s) {
		regex_scratch_free(s->regex);
		buf_deinit(&s->token);
		for (size_t i = 0; i < MAX_STEPS; i++) {
			buf_deinit(&s->states[i].held);
			buf_deinit(&s->states[i].work);
		}
		free(s);
	}
}

int token_stream_put(struct token_stream *s, int32_t id, struct buf *out)
{
	bool is;
	s->token.len = 0;
	int r = token_text(s->t, id, s->skip_special, &s->token, &is);
	return r < 0 || !is ? r : pass(s, 0, s->token.data, s->token.len, out);
}

int token_stream_end(struct token_stream *s, struct buf *out)
{
	int r = 0;
	for (size_t i = 0; i < s->t->n_decode_steps && r == 0; i++) {
		enum decode_kind kind = s->t->decode_steps[i].kind;
		r = kind == DECODE_BYTE_FALLBACK ? flush_fallback(s, i, out) :
			kind == DECODE_BYTE_LEVEL ? settle_bytes(s, i, true, out) : 0;
	}
	return r;
}

int tokenizer_decode(const struct tokenizer *t, int32_t id, bool skip_special, struct buf *out)
{
	size_t len;
	const char *text = tokenizer_text(t, id, &len);
	if (!text || (skip_special && t->vocab.tokens[id].flags & TOKEN_SPECIAL)) {
		return 0;
	}
	if (!t->vocab.text || t->vocab.tokens[id].flags & TOKEN_ADDED) {
		return buf_append(out, text, len);
	}
	const struct decode_step *spaces = NULL;
	for (size_t i = 0; i < t->n_decode_steps; i++) {
		const struct decode_step *step = &t->decode_steps[i];
		int byte = step->kind == DECODE_BYTE_FALLBACK ?
			fallback_byte((const uint8_t *)text, len) : -1;
		if (byte >= 0) {
			return buf_append(out, &(uint8_t){(uint8_t)byte}, 1);
		}
		bool space = step->kind == DECODE_METASPACE ||
			(step->kind == DECODE_REPLACE && step->text && step->content_len == 1 &&
				step->content[0] == ' ');
		spaces = space ? step : spaces;
	}
	int r = 0;
	while (r == 0 && len > 0) {
		const char *found = spaces ? memmem(text, len, spaces->text, spaces->text_len) : NULL;
		size_t n = found ? (size_t)(found - text) : len;
		r = buf_append(out, text, n);
		r = r == 0 && found ? buf_append(out, " ", 1) : r;
		n += found ? spaces->text_len : 0;
		text += n;
		len -= n;
	}
	return r;
}
