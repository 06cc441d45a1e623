/* Cutting a piece of text into words, step by step. */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

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
		return encode_word(s->e, s->piece, start, end);
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
	size_t len = s->piece->len;
	int r = 0;
	for (size_t at = 0, end; at < len && r == 0; at = end) {
		end = pattern_end(kind, classes, s->piece->text, len, at);
		r = split_put(s, at, end, true);
	}
	return r;
}

/* Each character of a class is a match. */
static int split_by_class(struct split *s, const uint8_t *classes, uint8_t class)
{
	size_t done = 0, len = s->piece->len, start;
	unsigned n;
	int r = 0;
	while (r == 0 &&
			pattern_next_class(classes, class, s->piece->text, len, done, &start, &n)) {
		r = put_around(s, &done, start, start + n);
	}
	return r == 0 && done != len ? split_put(s, done, len, false) : r;
}

/* Runs of word characters, and runs of what is neither such nor space. */
static int split_words(struct split *s, const uint8_t *classes)
{
	const uint8_t *text = s->piece->text;
	size_t len = s->piece->len, start = 0;
	uint8_t kind = 0;
	unsigned n;
	int r = 0;
	for (size_t at = 0; at < len && r == 0; at += n) {
		uint8_t class = classes[utf8_get(text + at, &n)];
		uint8_t now = class & CLASS_WORD ? 1 : class & CLASS_SPACE ? 2 : 3;
		if (now != kind) {
			r = kind == 1 || kind == 3 ? hand_on(s, start, at) : 0;
			start = at;
			kind = now;
		}
	}
	return r == 0 && (kind == 1 || kind == 3) ? hand_on(s, start, len) : r;
}

static int split_by_replacement(struct split *s, const struct split_step *step)
{
	const uint8_t *text = s->piece->text, *found;
	size_t len = s->piece->len, done = 0, at = 0;
	int r = 0;
	while (r == 0 && at < len &&
			(found = memmem(text + at, len - at, step->replacement, step->replacement_len))) {
		size_t start = (size_t)(found - text);
		at = start + step->replacement_len;
		r = put_around(s, &done, start, at);
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

/* The piece with its spaces replaced and, perhaps, a replacement in front. */
static int run_metaspace(struct split *s, const struct split_step *step)
{
	const struct piece *p = s->piece;
	struct aligned *out = &s->e->spaced[s->level];
	size_t width = step->replacement_len, done = 0;
	uint32_t first = p->origin ? p->origin[0] : (uint32_t)p->base;
	bool starts = p->text[0] == ' ' ||
		(p->len >= width && memcmp(p->text, step->replacement, width) == 0);
	bool prepend = !starts && (step->prepend == PREPEND_ALWAYS ||
		(step->prepend == PREPEND_FIRST && first == 0));
	int r = 0;

	out->text.len = 0;
	out->unplaced = !s->e->places && !s->e->t->needs_origin;
	if (prepend) {
		r = aligned_put(out, step->replacement, width, first);
	}
	while (r == 0 && done < p->len) {
		const uint8_t *found = memchr(p->text + done, ' ', p->len - done);
		size_t end = found ? (size_t)(found - p->text) : p->len;
		if (p->origin) {
			struct aligned in = {.text = {.data = (uint8_t *)p->text, .len = p->len},
				.origin = (uint32_t *)p->origin, .unplaced = out->unplaced};
			r = aligned_put_same(out, &in, done, end);
		} else {
			r = aligned_put_run(out, p->text + done, end - done, (uint32_t)(p->base + done));
		}
		if (r == 0 && found) {
			r = aligned_put(out, step->replacement, width,
				p->origin ? p->origin[end] : (uint32_t)(p->base + end));
		}
		done = end + 1;
	}
	struct piece spaced = {.text = out->text.data, .len = out->text.len, .base = p->base,
		.origin = out->unplaced ? NULL : out->origin};
	s->piece = &spaced;
	r = r < 0 ? r : step->split ? split_by_replacement(s, step) : split_put(s, 0, spaced.len, true);
	return r < 0 ? r : hand_on_held(s);
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
		r = split_by_class(&s, e->t->classes, CLASS_NUMERIC);
		break;
	case PATTERN_SPACE:
		r = split_by_class(&s, e->t->classes, CLASS_SPACE);
		break;
	case PATTERN_PUNCTUATION:
		r = split_by_class(&s, e->t->classes, CLASS_PUNCTUATION);
		break;
	case PATTERN_WORDS:
		return split_words(&s, e->t->classes);
	case PATTERN_METASPACE:
		return run_metaspace(&s, step);
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
	return p->len == 0 ? 0 : e->t->n_steps > 0 ? run_steps(e, p, 0) : encode_word(e, p, 0, p->len);
}
