/*
 * Byte-pair encoding of one word, over its bytes or over its characters.
 *
 * The order of merges is that of Hugging Face's word.rs, so that the ids are equal even for merge
 * lists that no trainer would write: a queue holds a candidate for each pair of neighbours that has
 * a merge, lowest rank first, then leftmost; a candidate whose pair has changed meanwhile still
 * counts when the pair that stands there now makes the same token. With a heap this takes n log n
 * steps, whatever the word is.
 */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

#define MERGE_EMPTY UINT64_MAX
#define NO_RANK UINT32_MAX

void bpe_deinit(struct bpe *b)
{
	free(b->slots);
	free(b->result);
	free(b->pairs);
	free(b->joined);
	char_ids_free(b->chars);
}

int bpe_add_merge(struct bpe *b, int32_t left, int32_t right, int32_t result)
{
	if (b->n_merges == b->cap) {
		size_t cap = b->cap ? 2 * b->cap : 1024;
		uint32_t *results = realloc_array(b->result, cap, sizeof(*results));
		if (!results) {
			return -ENOMEM;
		}
		b->result = results;
		uint64_t *pairs = realloc_array(b->pairs, cap, sizeof(*pairs));
		if (!pairs) {
			return -ENOMEM;
		}
		b->pairs = pairs;
		b->cap = cap;
	}
	b->result[b->n_merges] = (uint32_t)result;
	b->pairs[b->n_merges++] = (uint64_t)left << 32 | (uint32_t)right;
	return 0;
}

static inline size_t pair_hash(uint64_t pair)
{
	pair ^= pair >> 31;
	pair *= 0x9E3779B97F4A7C15u;
	return (size_t)(pair ^ pair >> 29);
}

static inline uint32_t bpe_rank(const struct bpe *b, int32_t left, int32_t right)
{
	uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
	size_t mask = b->n_slots - 1;
	for (size_t at = pair_hash(pair) & mask;; at = (at + 1) & mask) {
		if (b->slots[at].pair == pair) {
			return b->slots[at].rank;
		}
		if (b->slots[at].pair == MERGE_EMPTY) {
			return NO_RANK;
		}
	}
}

static int finish_merges(struct bpe *b)
{
	b->n_slots = 64;
	while (b->n_slots < 3 * b->n_merges) {
		b->n_slots *= 2;
	}
	b->slots = alloc_array(b->n_slots, sizeof(*b->slots));
	if (!b->slots) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < b->n_slots; i++) {
		b->slots[i] = (struct merge_slot){.pair = MERGE_EMPTY, .rank = NO_RANK};
	}
	for (size_t i = 0; i < b->n_merges; i++) {
		size_t at = pair_hash(b->pairs[i]) & (b->n_slots - 1);
		while (b->slots[at].pair != MERGE_EMPTY && b->slots[at].pair != b->pairs[i]) {
			at = (at + 1) & (b->n_slots - 1);
		}
		/* Of a pair that is listed twice the last one holds, as in Hugging Face's map. */
		b->slots[at] = (struct merge_slot){.pair = b->pairs[i], .rank = (uint32_t)i};
	}
	return 0;
}

/* The text of a token that a merge makes is that of its parts, so that its neighbouring characters
 * are all that any merge can bring together. */
static int finish_joined(struct bpe *b, const struct vocab *v)
{
	b->joined = calloc_array(JOINED_BITS / 64, sizeof(*b->joined));
	if (!b->joined) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < b->n_merges; i++) {
		const struct token *t = &v->tokens[b->result[i]];
		const uint8_t *text = v->bytes.data + t->offset;
		unsigned n;
		uint32_t last = 0;
		for (size_t at = 0; at < t->len; at += n) {
			uint32_t c = utf8_get(text + at, &n);
			if (at > 0) {
				uint32_t bit = joined_bit(last, c);
				b->joined[bit / 64] |= UINT64_C(1) << bit % 64;
			}
			last = c;
		}
	}
	return 0;
}

int bpe_finish(struct bpe *b, const struct vocab *v)
{
	for (unsigned i = 0; i < 256; i++) {
		uint8_t byte = (uint8_t)i;
		b->byte_id[i] = v->text ? vocab_find_fallback(v, byte) : vocab_find_bytes(v, &byte, 1);
	}
	int r = finish_merges(b);
	if (r == 0 && v->text) {
		r = char_ids_new(&b->chars, v);
		/* A word that is a token is not the same as its parts then. */
		r = r == 0 && !b->ignore_merges ? finish_joined(b, v) : r;
	}
	return r;
}

/* ---- the queue: rank << 32 | position, smallest first ------------------------------------ */

static int heap_push(struct encoder *e, uint64_t key)
{
	if (e->heap_len == e->heap_cap) {
		size_t cap = e->heap_cap ? 2 * e->heap_cap : 64;
		uint64_t *heap = realloc_array(e->heap, cap, sizeof(*heap));
		if (!heap) {
			return -ENOMEM;
		}
		e->heap = heap;
		e->heap_cap = cap;
	}
	size_t i = e->heap_len++;
	while (i > 0 && e->heap[(i - 1) / 2] > key) {
		e->heap[i] = e->heap[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	e->heap[i] = key;
	return 0;
}

static uint64_t heap_pop(struct encoder *e)
{
	uint64_t top = e->heap[0], last = e->heap[--e->heap_len];
	size_t i = 0, n = e->heap_len;
	for (size_t child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && e->heap[child + 1] < e->heap[child]) {
			child++;
		}
		if (e->heap[child] >= last) {
			break;
		}
		e->heap[i] = e->heap[child];
	}
	e->heap[i] = last;
	return top;
}

/* ---- one word ---------------------------------------------------------------------------- */

static int push_pair(struct encoder *e, const struct bpe *b, int32_t at)
{
	const struct symbol *s = &e->symbols[at];
	uint32_t rank = bpe_rank(b, s->id, e->symbols[s->next].id);
	return rank == NO_RANK ? 0 : heap_push(e, (uint64_t)rank << 32 | (uint32_t)at);
}

static void add_symbol(struct encoder *e, size_t *n, int32_t id, uint32_t len)
{
	e->symbols[*n] = (struct symbol){
		.id = id, .prev = (int32_t)*n - 1, .next = (int32_t)*n + 1, .len = len};
	(*n)++;
}

/* The word's bytes as symbols: an unknown byte becomes the unknown token, fused with unknown
 * neighbours or not, or nothing where there is no such token. Returns their number. */
static size_t split_bytes(struct encoder *e, const uint8_t *word, size_t len)
{
	const struct bpe *b = &e->t->bpe;
	size_t n = 0;
	uint32_t unknown = 0; /* length of the unknown run that is not added yet */

	for (size_t i = 0; i < len; i++) {
		int32_t id = b->byte_id[word[i]];
		if (id < 0 && b->unk < 0) {
			continue;
		}
		if (unknown > 0 && (id >= 0 || !b->fuse_unk)) {
			add_symbol(e, &n, b->unk, unknown);
			unknown = 0;
		}
		if (id >= 0) {
			add_symbol(e, &n, id, 1);
		} else {
			unknown++;
		}
	}
	if (unknown > 0) {
		add_symbol(e, &n, b->unk, unknown);
	}
	if (n > 0) {
		e->symbols[n - 1].next = -1;
	}
	return n;
}

/* The tokens of a character's bytes; false where one is missing. */
static bool add_fallback(struct encoder *e, size_t *n, const uint8_t *bytes, unsigned len)
{
	const int32_t *byte_id = e->t->bpe.byte_id;
	for (unsigned i = 0; i < len; i++) {
		if (byte_id[bytes[i]] < 0) {
			return false;
		}
	}
	for (unsigned i = 0; i < len; i++) {
		add_symbol(e, n, byte_id[bytes[i]], 1);
	}
	return true;
}

/* The word's characters as symbols. What falls back to bytes leaves an unknown run before it
 * waiting, so that the run comes behind the bytes: as in Hugging Face's merge_word(). */
static size_t split_chars(struct encoder *e, const uint8_t *word, size_t len)
{
	const struct bpe *b = &e->t->bpe;
	size_t n = 0;
	uint32_t unknown = 0;
	unsigned width;

	for (size_t i = 0; i < len; i += width) {
		int32_t id = char_id(b->chars, utf8_get(word + i, &width));
		if (id >= 0) {
			if (unknown > 0) {
				add_symbol(e, &n, b->unk, unknown);
				unknown = 0;
			}
			add_symbol(e, &n, id, width);
		} else if (!(b->byte_fallback && add_fallback(e, &n, word + i, width)) && b->unk >= 0) {
			if (unknown > 0 && !b->fuse_unk) {
				add_symbol(e, &n, b->unk, unknown);
				unknown = 0;
			}
			unknown += width;
		}
	}
	if (unknown > 0) {
		add_symbol(e, &n, b->unk, unknown);
	}
	if (n > 0) {
		e->symbols[n - 1].next = -1;
	}
	return n;
}

static int merge_symbols(struct encoder *e, size_t n)
{
	const struct bpe *b = &e->t->bpe;
	int r = 0;

	e->heap_len = 0;
	for (size_t i = 0; i + 1 < n; i++) {
		if ((r = push_pair(e, b, (int32_t)i)) < 0) {
			return r;
		}
	}
	while (e->heap_len > 0) {
		uint64_t top = heap_pop(e);
		int32_t at = (int32_t)(top & UINT32_MAX);
		struct symbol *s = &e->symbols[at];
		int32_t id = (int32_t)b->result[top >> 32];
		if (s->id < 0 || s->next < 0) {
			continue;
		}
		struct symbol *right = &e->symbols[s->next];
		uint32_t now = bpe_rank(b, s->id, right->id);
		if (now == NO_RANK || (int32_t)b->result[now] != id) {
			continue; /* out of date */
		}
		s->id = id;
		s->len += right->len;
		s->next = right->next;
		right->id = -1;
		if (s->next >= 0) {
			e->symbols[s->next].prev = at;
		}
		if ((s->prev >= 0 && (r = push_pair(e, b, s->prev)) < 0) ||
				(s->next >= 0 && (r = push_pair(e, b, at)) < 0)) {
			return r;
		}
	}
	return 0;
}

int bpe_encode(struct encoder *e, const uint8_t *word, size_t len, size_t *ret_n)
{
	const struct tokenizer *t = e->t;
	int32_t id;
	int r = encoder_symbols(e, len);
	if (r < 0) {
		return r;
	}
	if (t->bpe.ignore_merges) {
		id = t->model == MODEL_BYTE_BPE ? vocab_find_bytes(&t->vocab, word, len) :
			vocab_find(&t->vocab, (const char *)word, len);
		if (id >= 0) {
			e->symbols[0] = (struct symbol){.id = id, .prev = -1, .next = -1, .len = (uint32_t)len};
			*ret_n = 1;
			return 0;
		}
	}
	*ret_n = t->model == MODEL_BYTE_BPE ? split_bytes(e, word, len) : split_chars(e, word, len);
	return merge_symbols(e, *ret_n);
}
