/*
 * Cutting a piece of text into words.
 *
 * Nearly every byte-level tokenizer uses one of three patterns: GPT-2's, Llama 3's, or Qwen 2's,
 * which is Llama 3's with one digit instead of three. They are matched by hand, with tables of
 * Oniguruma's Unicode version; all other patterns go through PCRE2. The tests hold both ways
 * against each other.
 */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

const char pattern_gpt2[] =
	"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char pattern_llama3[] =
	"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
	"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char pattern_qwen2[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
	"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

int split_step_pattern(struct split_step *s, const char *pattern, size_t len, bool literal,
	struct errmsg *err)
{
	static const struct {
		const char *pattern;
		enum pattern_kind kind;
	} known[] = {
		{pattern_gpt2, PATTERN_GPT2},
		{pattern_llama3, PATTERN_LLAMA3},
		{pattern_qwen2, PATTERN_QWEN2},
	};
	for (size_t i = 0; i < ARRAY_LEN(known) && !literal; i++) {
		if (len == strlen(known[i].pattern) && memcmp(pattern, known[i].pattern, len) == 0) {
			s->kind = known[i].kind;
			return 0;
		}
	}
	s->kind = PATTERN_REGEX;
	return regex_new_pattern(&s->regex, pattern, len, literal, err);
}

/* ---- the three patterns by hand ---------------------------------------------------------- */

struct scan {
	const uint8_t *classes, *text;
	size_t len;
};

/* Class of the code point at `at`, and its length; 0 and 0 at the end. */
static inline uint8_t class_at(const struct scan *s, size_t at, unsigned *ret_len)
{
	if (at >= s->len) {
		*ret_len = 0;
		return 0;
	}
	return s->classes[utf8_get(s->text + at, ret_len)];
}

/* The end of the run of code points from `at` whose class has a flag of `any`. */
static size_t run_of(const struct scan *s, size_t at, uint8_t any)
{
	unsigned n;
	while (class_at(s, at, &n) & any) {
		at += n;
	}
	return at;
}

/* The end of the run of code points that are neither letter, number nor space. */
static size_t run_of_others(const struct scan *s, size_t at)
{
	unsigned n;
	while (at < s->len && !(class_at(s, at, &n) & (CLASS_LETTER | CLASS_NUMBER | CLASS_SPACE))) {
		at += n;
	}
	return at;
}

/* Length of 's 't 're 've 'm 'll 'd at `at`, 0 if there is none. Any case: and U+017F, which folds
 * to s. */
static size_t contraction(const struct scan *s, size_t at, bool any_case)
{
	size_t left = s->len - at;
	const uint8_t *p = s->text + at;
	if (left < 2 || p[0] != '\'') {
		return 0;
	}
	uint8_t fold = any_case ? 0x20 : 0, a = p[1] | fold, b = left > 2 ? p[2] | fold : 0;
	if (a == 's' || a == 't' || a == 'm' || a == 'd') {
		return 2;
	}
	if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) {
		return 3;
	}
	return any_case && left > 2 && p[1] == 0xC5 && p[2] == 0xBF ? 3 : 0;
}

/* \s+(?!\S)|\s+: a run of spaces leaves its last one to the word that follows. */
static size_t spaces_end(const struct scan *s, size_t at)
{
	size_t end = run_of(s, at, CLASS_SPACE);
	if (end < s->len) {
		size_t last = end - utf8_last_len(s->text, end);
		return last > at ? last : end;
	}
	return end;
}

static size_t gpt2_end(const struct scan *s, size_t at)
{
	size_t short_form = contraction(s, at, false);
	if (short_form) {
		return at + short_form;
	}
	size_t from = at + (s->text[at] == ' ');
	unsigned n;
	uint8_t class = class_at(s, from, &n);
	if (class & CLASS_LETTER) {
		return run_of(s, from, CLASS_LETTER);
	}
	if (class & CLASS_NUMBER) {
		return run_of(s, from, CLASS_NUMBER);
	}
	return n && !(class & CLASS_SPACE) ? run_of_others(s, from) : spaces_end(s, at);
}

static size_t llama3_end(const struct scan *s, size_t at, unsigned max_digits)
{
	size_t short_form = contraction(s, at, true);
	if (short_form) {
		return at + short_form;
	}
	unsigned n, n_next;
	uint8_t class = class_at(s, at, &n), next = class_at(s, at + n, &n_next);
	uint8_t c = s->text[at];
	if (class & CLASS_LETTER) {
		return run_of(s, at, CLASS_LETTER);
	}
	if (class & CLASS_NUMBER) {
		size_t end = at + n;
		for (unsigned i = 1; i < max_digits && class_at(s, end, &n) & CLASS_NUMBER; i++) {
			end += n;
		}
		return end;
	}
	if (next & CLASS_LETTER && c != '\r' && c != '\n') {
		return run_of(s, at + n, CLASS_LETTER);
	}
	size_t from = at + (c == ' ');
	size_t end = run_of_others(s, from);
	if (end > from) {
		while (end < s->len && (s->text[end] == '\r' || s->text[end] == '\n')) {
			end++;
		}
		return end;
	}
	end = run_of(s, at, CLASS_SPACE);
	for (size_t i = end; i > at; i--) {
		if (s->text[i - 1] == '\r' || s->text[i - 1] == '\n') {
			return i;
		}
	}
	return spaces_end(s, at);
}

/* ---- steps ------------------------------------------------------------------------------- */

/* A step's run over one piece: matches come in, words for the next step go out. */
struct split {
	struct encoder *e;
	const struct piece *piece;
	size_t level;
	bool invert;
	enum split_behavior behavior;
	bool previous; /* the last one was a match */
	bool held;     /* start … end wait for what follows */
	size_t start, end;
};

static int run_steps(struct encoder *e, const struct piece *p, size_t level);

static int hand_on(struct split *s, size_t start, size_t end)
{
	if (start == end) {
		return 0;
	}
	if (s->level + 1 == s->e->t->n_steps) {
		return bpe_encode(s->e, s->piece, start, end);
	}
	struct piece sub = {
		.text = s->piece->text + start,
		.len = end - start,
		.origin = s->piece->origin ? s->piece->origin + start : NULL,
		.base = s->piece->base + start,
	};
	return run_steps(s->e, &sub, s->level + 1);
}

static int hand_on_held(struct split *s)
{
	bool held = s->held;
	s->held = false;
	return held ? hand_on(s, s->start, s->end) : 0;
}

static void hold(struct split *s, size_t start, size_t end)
{
	s->held = true;
	s->start = start;
	s->end = end;
}

/* The next stretch of the piece, a match or what lies between two. */
static int split_put(struct split *s, size_t start, size_t end, bool is_match)
{
	bool previous = s->previous, join = false;
	is_match ^= s->invert;
	s->previous = is_match;

	switch (s->behavior) {
	case SPLIT_ISOLATED:
		return hand_on(s, start, end);
	case SPLIT_REMOVED:
		return is_match ? 0 : hand_on(s, start, end);
	case SPLIT_CONTIGUOUS:
		join = is_match == previous;
		break;
	case SPLIT_MERGED_WITH_PREVIOUS:
		join = is_match && !previous;
		break;
	case SPLIT_MERGED_WITH_NEXT:
		join = !is_match && previous;
		break;
	}
	if (join && s->held) {
		s->end = end;
		return 0;
	}
	int r = hand_on_held(s);
	hold(s, start, end);
	return r;
}

static int put_around(struct split *s, size_t *done, size_t start, size_t end)
{
	int r = *done != start ? split_put(s, *done, start, false) : 0;
	*done = end;
	return r < 0 ? r : split_put(s, start, end, true);
}

static int split_by_hand(struct split *s, enum pattern_kind kind, const uint8_t *classes)
{
	struct scan scan = {.classes = classes, .text = s->piece->text, .len = s->piece->len};
	int r = 0;
	for (size_t at = 0, end; at < scan.len && r == 0; at = end) {
		end = kind == PATTERN_GPT2 ? gpt2_end(&scan, at) :
			llama3_end(&scan, at, kind == PATTERN_LLAMA3 ? 3 : 1);
		r = split_put(s, at, end, true);
	}
	return r;
}

static int split_numeric(struct split *s, const uint8_t *classes)
{
	const uint8_t *text = s->piece->text;
	size_t done = 0, len = s->piece->len;
	unsigned n;
	int r = 0;
	for (size_t at = 0; at < len && r == 0; at += n) {
		if (classes[utf8_get(text + at, &n)] & CLASS_NUMERIC) {
			r = put_around(s, &done, at, at + n);
		}
	}
	return r == 0 && done != len ? split_put(s, done, len, false) : r;
}

static int split_by_regex(struct split *s, const struct regex *regex)
{
	struct regex_iter it = {0};
	size_t done = 0, start, end, len = s->piece->len;
	int r;
	while ((r = regex_next(regex, s->e->regex, &it, s->piece->text, len, &start, &end)) > 0) {
		if ((r = put_around(s, &done, start, end)) < 0) {
			return r;
		}
	}
	return r == 0 && done != len ? split_put(s, done, len, false) : r;
}

static int run_step(struct encoder *e, const struct piece *p, size_t level)
{
	const struct split_step *step = &e->t->steps[level];
	struct split s = {.e = e, .piece = p, .level = level, .invert = step->invert,
		.behavior = step->behavior};
	int r;
	switch (step->kind) {
	case PATTERN_GPT2:
	case PATTERN_LLAMA3:
	case PATTERN_QWEN2:
		r = split_by_hand(&s, step->kind, e->t->classes);
		break;
	case PATTERN_NUMERIC:
		r = split_numeric(&s, e->t->classes);
		break;
	case PATTERN_REGEX:
		r = split_by_regex(&s, step->regex);
		break;
	default:
		r = split_put(&s, 0, p->len, true);
		break;
	}
	return r < 0 ? r : hand_on_held(&s);
}

static int run_steps(struct encoder *e, const struct piece *p, size_t level)
{
	if (!e->t->steps[level].add_prefix_space || p->text[0] == ' ') {
		return run_step(e, p, level);
	}
	/* Only the last step does this, so that one buffer is enough. */
	struct piece prefixed = *p;
	e->prefixed.len = 0;
	int r = buf_append(&e->prefixed, " ", 1);
	r = r < 0 ? r : buf_append(&e->prefixed, p->text, p->len);
	prefixed.text = e->prefixed.data;
	prefixed.len = e->prefixed.len;
	prefixed.inserted = 1;
	return r < 0 ? r : run_step(e, &prefixed, level);
}

int pretokenize(struct encoder *e, const struct piece *p)
{
	return p->len > 0 ? run_steps(e, p, 0) : 0;
}
