/*
 * Normalizers, with a note for each byte where it came from.
 *
 * The Unicode forms are made chunk by chunk, cut where nothing can combine across the cut. Hugging
 * Face's tables for them are those of Unicode 9: code points that are newer count as opaque here,
 * whatever utf8proc knows of them.
 */

#include <errno.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

void normalizer_deinit(struct normalizer *n)
{
	regex_free(n->pattern);
	free(n->literal);
	free(n->content);
	charsmap_free(n->charsmap);
}

void aligned_deinit(struct aligned *a)
{
	buf_deinit(&a->text);
	free(a->origin);
}

/* Appends the bytes and makes room for where they come from; *ret_at is where they stand. */
static int aligned_append(struct aligned *a, const void *bytes, size_t len, size_t *ret_at)
{
	*ret_at = a->text.len;
	if (len > INT32_MAX - a->text.len) {
		return -EOVERFLOW; /* rules that make text longer, one after the other */
	}
	int r = buf_append(&a->text, bytes, len);
	if (r < 0 || a->unplaced || a->text.len <= a->cap) {
		return r;
	}
	uint32_t *p = realloc_array(a->origin, a->text.cap, sizeof(*p));
	if (!p) {
		a->text.len = *ret_at;
		return -ENOMEM;
	}
	a->origin = p;
	a->cap = a->text.cap;
	return 0;
}

int aligned_put(struct aligned *a, const void *bytes, size_t len, uint32_t origin)
{
	size_t at;
	int r = aligned_append(a, bytes, len, &at);
	for (size_t i = 0; r == 0 && !a->unplaced && i < len; i++) {
		a->origin[at + i] = origin;
	}
	return r;
}

int aligned_put_run(struct aligned *a, const void *bytes, size_t len, uint32_t origin)
{
	size_t at;
	int r = aligned_append(a, bytes, len, &at);
	for (size_t i = 0; r == 0 && !a->unplaced && i < len; i++) {
		a->origin[at + i] = origin + (uint32_t)i;
	}
	return r;
}

int aligned_put_same(struct aligned *out, const struct aligned *in, size_t start, size_t end)
{
	size_t at;
	int r = start < end ? aligned_append(out, in->text.data + start, end - start, &at) : 0;
	if (r == 0 && !out->unplaced && start < end) {
		memcpy(out->origin + at, in->origin + start, (end - start) * sizeof(*out->origin));
	}
	return r;
}

/* Where the byte at `at` comes from; anything where that is not kept. */
static uint32_t origin_of(const struct aligned *in, size_t at)
{
	return in->unplaced ? 0 : in->origin[at];
}

static uint32_t origin_at(const struct aligned *in, size_t at)
{
	return at < in->text.len ? origin_of(in, at) : at > 0 ? origin_of(in, at - 1) + 1 : 0;
}

/* ---- Unicode forms ----------------------------------------------------------------------- */

struct chunk {
	int32_t *c; /* code points, decomposed; twice `cap` of them, for sorting */
	size_t n, cap;
};

static bool is_opaque(uint32_t c)
{
	return code_range_has(unicode_opaque, n_unicode_opaque, c);
}

/* Whether nothing before c can combine with it, so that a chunk may start here. */
static bool starts_chunk(uint32_t c)
{
	if (c < 0x300 || c == 0x11A7) {
		return true; /* U+11A7 is no trailing Jamo, though utf8proc 2.8 composes it like one */
	}
	if ((c >= 0x1160 && c < 0x1200) || (c >= 0x3131 && c <= 0x318E) ||
		(c >= 0xFF9E && c <= 0xFFDC)) {
		return false; /* Jamo, and what becomes Jamo or a voicing mark */
	}
	if (is_opaque(c)) {
		return true;
	}
	utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
	return category != UTF8PROC_CATEGORY_MN && category != UTF8PROC_CATEGORY_MC &&
		category != UTF8PROC_CATEGORY_ME;
}

static int chunk_add(struct chunk *k, uint32_t c, utf8proc_option_t options)
{
	enum { LONGEST = 18 }; /* U+FDFA */
	int boundary = 0;
	if (k->cap - k->n < LONGEST) {
		size_t cap = k->cap ? 2 * k->cap : 64;
		int32_t *p = realloc_array(k->c, cap, 2 * sizeof(*p));
		if (!p) {
			return -ENOMEM;
		}
		k->c = p;
		k->cap = cap;
	}
	ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, k->c + k->n,
		(ssize_t)(k->cap - k->n), options, &boundary);
	if (n < 0 || (size_t)n > k->cap - k->n) {
		return -EINVAL;
	}
	k->n += (size_t)n;
	return 0;
}

static unsigned combining_class(int32_t c)
{
	return (unsigned)utf8proc_get_property(c)->combining_class;
}

/* Canonical order: runs of marks by combining class, stable. By counting, since a hostile text may
 * be one run of a million marks. */
static void chunk_sort(struct chunk *k)
{
	int32_t *scratch = k->c + k->cap;
	for (size_t i = 0; i < k->n;) {
		size_t end = i, count[257] = {0};
		bool sorted = true;
		for (unsigned last = 0; end < k->n; end++) {
			unsigned class = combining_class(k->c[end]);
			if (class == 0) {
				break;
			}
			sorted &= class >= last;
			last = class;
			count[class + 1]++;
		}
		if (!sorted) {
			for (unsigned class = 1; class < 257; class++) {
				count[class] += count[class - 1];
			}
			for (size_t j = i; j < end; j++) {
				scratch[count[combining_class(k->c[j])]++] = k->c[j];
			}
			memcpy(k->c + i, scratch, (end - i) * sizeof(*scratch));
		}
		i = end + (end == i);
	}
}

/* The chunk was made of in[start … end). What it becomes counts as coming from its first byte,
 * unless it is the same, byte for byte. */
static int chunk_put(struct chunk *k, utf8proc_option_t options, const struct aligned *in,
	size_t start, size_t end, struct aligned *out)
{
	size_t before = out->text.len;
	chunk_sort(k);
	ssize_t n = options & UTF8PROC_COMPOSE ?
		utf8proc_normalize_utf32(k->c, (ssize_t)k->n, options) : (ssize_t)k->n;
	int r = n < 0 ? -EINVAL : 0;
	for (ssize_t i = 0; i < n && r == 0; i++) {
		uint8_t text[4];
		r = aligned_put(out, text, utf8_put((uint32_t)k->c[i], text), origin_of(in, start));
	}
	if (r == 0 && !in->unplaced && out->text.len - before == end - start &&
			memcmp(out->text.data + before, in->text.data + start, end - start) == 0) {
		memcpy(out->origin + before, in->origin + start, (end - start) * sizeof(*out->origin));
	}
	k->n = 0;
	return r;
}

static int run_form(utf8proc_option_t options, const struct aligned *in, struct aligned *out)
{
	const uint8_t *text = in->text.data;
	size_t len = in->text.len;
	struct chunk k = {0};
	int r = 0;

	for (size_t at = 0; at < len && r == 0;) {
		unsigned n;
		uint32_t c = utf8_get(text + at, &n);
		size_t end = at + n;
		if (is_opaque(c)) {
			r = aligned_put_same(out, in, at, end);
			at = end;
			continue;
		}
		if (end >= len || (c < 0x80 && text[end] < 0x80)) {
			r = c < 0x80 ? aligned_put(out, text + at, 1, origin_of(in, at)) :
				chunk_add(&k, c, options);
		} else {
			r = chunk_add(&k, c, options);
			for (uint32_t next; r == 0 && end < len; end += n) {
				next = utf8_get(text + end, &n);
				if (starts_chunk(next)) {
					break;
				}
				r = chunk_add(&k, next, options);
			}
		}
		if (r == 0 && k.n > 0) {
			r = chunk_put(&k, options, in, at, end, out);
		}
		at = end;
	}
	free(k.c);
	return r;
}

/* ---- the others -------------------------------------------------------------------------- */

static int run_lowercase(const struct aligned *in, struct aligned *out)
{
	int r = 0;
	unsigned width;
	for (size_t at = 0; at < in->text.len && r == 0; at += width) {
		uint32_t lower[2];
		unsigned n = unicode_to_lower(utf8_get(in->text.data + at, &width), lower);
		for (unsigned i = 0; i < n && r == 0; i++) {
			uint8_t text[4];
			r = aligned_put(out, text, utf8_put(lower[i], text), origin_of(in, at));
		}
	}
	return r;
}

static int run_replace_literal(const struct normalizer *n, const struct aligned *in,
	struct aligned *out)
{
	const uint8_t *text = in->text.data, *found;
	size_t len = in->text.len, done = 0;
	int r = 0;
	while (r == 0 && done < len &&
			(found = memmem(text + done, len - done, n->literal, n->literal_len))) {
		size_t start = (size_t)(found - text);
		r = aligned_put_same(out, in, done, start);
		r = r < 0 ? r : aligned_put(out, n->content, n->content_len, origin_of(in, start));
		done = start + n->literal_len;
	}
	return r < 0 ? r : aligned_put_same(out, in, done, len);
}

static int run_replace(const struct normalizer *n, struct regex_scratch *scratch,
	const struct aligned *in, struct aligned *out)
{
	struct regex_iter it = {0};
	size_t done = 0, start, end;
	int r;
	if (in->text.len == 0) {
		return 0;
	}
	if (n->literal) {
		return run_replace_literal(n, in, out);
	}
	while ((r = regex_next(n->pattern, scratch, &it, in->text.data, in->text.len, &start,
			&end)) > 0) {
		r = aligned_put_same(out, in, done, start);
		r = r < 0 ? r : aligned_put(out, n->content, n->content_len, origin_at(in, start));
		if (r < 0) {
			return r;
		}
		done = end;
	}
	return r < 0 ? r : aligned_put_same(out, in, done, in->text.len);
}

static int run_strip(const struct normalizer *n, const struct aligned *in, struct aligned *out)
{
	const uint8_t *text = in->text.data;
	size_t start = 0, end = in->text.len;
	unsigned width;
	while (n->left && start < end && unicode_is_space(utf8_get(text + start, &width))) {
		start += width;
	}
	while (n->right && end > start) {
		size_t last = utf8_last_len(text, end);
		if (!unicode_is_space(utf8_get(text + end - last, &width))) {
			break;
		}
		end -= last;
	}
	return aligned_put_same(out, in, start, end);
}

static int run_strip_accents(const uint8_t *classes, const struct aligned *in, struct aligned *out)
{
	const uint8_t *text = in->text.data;
	size_t done = 0, start;
	unsigned width;
	int r = 0;
	while (r == 0 &&
			pattern_next_class(classes, CLASS_ACCENT, text, in->text.len, done, &start, &width)) {
		r = aligned_put_same(out, in, done, start);
		done = start + width;
	}
	return r < 0 ? r : aligned_put_same(out, in, done, in->text.len);
}

int normalizer_run(const struct normalizer *n, const uint8_t *classes,
	struct regex_scratch *scratch, const struct aligned *in, struct aligned *out)
{
	int r = 0;
	out->text.len = 0;
	out->unplaced = in->unplaced;
	switch (n->kind) {
	case NORMALIZE_NFC:
		return run_form(UTF8PROC_STABLE | UTF8PROC_COMPOSE, in, out);
	case NORMALIZE_NFD:
		return run_form(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, in, out);
	case NORMALIZE_NFKC:
		return run_form(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT, in, out);
	case NORMALIZE_NFKD:
		return run_form(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, in, out);
	case NORMALIZE_LOWERCASE:
		return run_lowercase(in, out);
	case NORMALIZE_REPLACE:
		return run_replace(n, scratch, in, out);
	case NORMALIZE_STRIP:
		return run_strip(n, in, out);
	case NORMALIZE_STRIP_ACCENTS:
		return run_strip_accents(classes, in, out);
	case NORMALIZE_CHARSMAP:
		return charsmap_run(n->charsmap, in, out);
	case NORMALIZE_PREPEND:
		if (in->text.len > 0) {
			r = aligned_put(out, n->content, n->content_len, origin_at(in, 0));
		}
		return r < 0 ? r : aligned_put_same(out, in, 0, in->text.len);
	}
	return -EINVAL;
}
