/*
 * The patterns that are matched by hand.
 *
 * Nearly every byte-level tokenizer uses one of three patterns: GPT-2's, Llama 3's, or Qwen 2's,
 * which is Llama 3's with one digit instead of three. They are matched with tables of Oniguruma's
 * Unicode version; all other patterns go through PCRE2. The tests hold both ways against each other.
 */

#include <string.h>

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

size_t pattern_end(enum pattern_kind kind, const uint8_t *classes, const uint8_t *text, size_t len,
	size_t at)
{
	struct scan scan = {.classes = classes, .text = text, .len = len};
	return kind == PATTERN_GPT2 ? gpt2_end(&scan, at) :
		llama3_end(&scan, at, kind == PATTERN_LLAMA3 ? 3 : 1);
}

bool pattern_next_class(const uint8_t *classes, uint8_t class, const uint8_t *text, size_t len,
	size_t at, size_t *ret_start, unsigned *ret_len)
{
	unsigned n;
	for (; at < len; at += n) {
		if (classes[utf8_get(text + at, &n)] & class) {
			*ret_start = at;
			*ret_len = n;
			return true;
		}
	}
	return false;
}
