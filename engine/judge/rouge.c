/*
 * Words get numbers, equal words the same one; then n-grams are numbers, too, and sorted lists of them
 * are compared.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/judge/judge.h"
#include "util/cleanup.h"
#include "util/util.h"

struct word {
	size_t at, len; /* of the text in lower case */
	size_t place;   /* among all words, the reference's first */
};

/* What a character (of at most 3 bytes) contributes: an ASCII letter or digit, lower-cased, or 0. Two
 * characters outside of ASCII have a lower case that begins with a letter: the Kelvin sign, and the
 * capital I with dot, whose dot is a character of its own. */
static char word_byte(const char *s, size_t len, size_t *ret_width)
{
	uint8_t c = (uint8_t)s[0];
	*ret_width = 1;
	if (c >= 'A' && c <= 'Z') {
		return (char)(c - 'A' + 'a');
	}
	if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
		return (char)c;
	}
	if (len >= 3 && memcmp(s, "\xE2\x84\xAA", 3) == 0) {
		*ret_width = 3;
		return 'k';
	}
	return 0;
}

struct words {
	char *text;      /* letters of all words, one after the other; of both texts */
	struct word *at; /* of both texts */
	size_t text_len, n;
};

static void words_deinit(struct words *w)
{
	free(w->text);
	free(w->at);
}

static void put(struct words *w, char c, bool *inside)
{
	if (!*inside) {
		w->at[w->n] = (struct word){.at = w->text_len, .place = w->n};
		w->n++;
		*inside = true;
	}
	w->text[w->text_len++] = c;
	w->at[w->n - 1].len++;
}

static void add_words(struct words *w, const char *s, size_t len)
{
	bool inside = false;
	for (size_t i = 0, width; i < len; i += width) {
		if (len - i >= 2 && memcmp(s + i, "\xC4\xB0", 2) == 0) {
			width = 2;
			put(w, 'i', &inside);
			inside = false;
			continue;
		}
		char c = word_byte(s + i, len - i, &width);
		if (c) {
			put(w, c, &inside);
		} else {
			inside = false;
		}
	}
}

static int compare_words(const void *a, const void *b, void *text)
{
	const struct word *x = a, *y = b;
	size_t n = x->len < y->len ? x->len : y->len;
	int r = memcmp((const char *)text + x->at, (const char *)text + y->at, n);
	return r != 0 ? r : (x->len > y->len) - (x->len < y->len);
}

/* ids[place] for all words, equal words alike. */
static void number_words(struct words *w, uint32_t *ids)
{
	uint32_t id = 0;
	qsort_r(w->at, w->n, sizeof(*w->at), compare_words, w->text);
	for (size_t i = 0; i < w->n; i++) {
		id += i > 0 && compare_words(&w->at[i - 1], &w->at[i], w->text) != 0;
		ids[w->at[i].place] = id;
	}
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static double f_measure(double hits, size_t n_reference, size_t n_answer)
{
	double precision = hits / (double)(n_answer > 0 ? n_answer : 1);
	double recall = hits / (double)(n_reference > 0 ? n_reference : 1);
	return precision + recall > 0 ? 2 * precision * recall / (precision + recall) : 0;
}

/* Sorted n-grams of up to two words into out; their number. */
static size_t grams(const uint32_t *ids, size_t n, size_t length, uint64_t *out)
{
	size_t count = n >= length ? n - length + 1 : 0;
	for (size_t i = 0; i < count; i++) {
		out[i] = length == 1 ? ids[i] : (uint64_t)ids[i] << 32 | ids[i + 1];
	}
	qsort(out, count, sizeof(*out), compare_u64);
	return count;
}

static double overlap(const uint32_t *a, size_t n_a, const uint32_t *b, size_t n_b, size_t length,
	uint64_t *scratch)
{
	uint64_t *x = scratch, *y = scratch + n_a;
	size_t n_x = grams(a, n_a, length, x), n_y = grams(b, n_b, length, y), hits = 0;
	for (size_t i = 0, k = 0; i < n_x && k < n_y;) {
		if (x[i] == y[k]) {
			hits++;
			i++;
			k++;
		} else if (x[i] < y[k]) {
			i++;
		} else {
			k++;
		}
	}
	return f_measure((double)hits, n_x, n_y);
}

/* Length of the longest common subsequence; row: scratch, [n_b + 1]. */
static size_t common(const uint32_t *a, size_t n_a, const uint32_t *b, size_t n_b, uint64_t *row)
{
	memset(row, 0, (n_b + 1) * sizeof(*row));
	for (size_t i = 0; i < n_a; i++) {
		uint64_t diagonal = 0;
		for (size_t k = 0; k < n_b; k++) {
			uint64_t above = row[k + 1];
			uint64_t longer = above > row[k] ? above : row[k];
			row[k + 1] = a[i] == b[k] ? diagonal + 1 : longer;
			diagonal = above;
		}
	}
	return (size_t)row[n_b];
}

int judge_rouge(const char *reference, size_t reference_len, const char *answer, size_t answer_len,
	struct rouge *ret)
{
	size_t bytes;
	if (!add_size(reference_len, answer_len, &bytes)) {
		return -ENOMEM;
	}
	_cleanup_(words_deinit) struct words w = {
		.text = alloc_array(bytes + 1, 1),
		.at = calloc_array(bytes / 2 + 2, sizeof(struct word)),
	};
	if (!w.text || !w.at) {
		return -ENOMEM;
	}
	add_words(&w, reference, reference_len);
	size_t n_a = w.n;
	add_words(&w, answer, answer_len);
	size_t n_b = w.n - n_a;
	_cleanup_(freep) uint32_t *ids = calloc_array(w.n + 1, sizeof(*ids));
	_cleanup_(freep) uint64_t *scratch = calloc_array(w.n + 1, sizeof(*scratch));
	if (!ids || !scratch) {
		return -ENOMEM;
	}
	number_words(&w, ids);
	*ret = (struct rouge){
		.rouge1 = overlap(ids, n_a, ids + n_a, n_b, 1, scratch),
		.rouge2 = overlap(ids, n_a, ids + n_a, n_b, 2, scratch),
		.rouge_l = f_measure((double)common(ids, n_a, ids + n_a, n_b, scratch), n_a, n_b),
	};
	return 0;
}
