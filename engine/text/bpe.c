/*
 * Byte-pair encoding of one word.
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

int bpe_finish(struct bpe *b, const struct vocab *v)
{
	for (unsigned i = 0; i < 256; i++) {
		uint8_t byte = (uint8_t)i;
		b->byte_id[i] = vocab_find_bytes(v, &byte, 1);
	}
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

/* ---- a cache of words --------------------------------------------------------------------------
 * Text repeats its words. Each slot holds the last short word that hashed to it. */

enum {
	CACHE_SLOTS = 1 << 15,
	CACHE_WORD = 24,
	CACHE_IDS = 8,
};

struct word_slot {
	uint8_t word[CACHE_WORD]; /* zeros after its end */
	uint8_t len, n;           /* n = 0: empty */
	uint8_t lens[CACHE_IDS];
	int32_t ids[CACHE_IDS];
};

int word_cache_new(struct word_slot **ret)
{
	*ret = calloc_array(CACHE_SLOTS, sizeof(**ret));
	return *ret ? 0 : -ENOMEM;
}

/* The slot of a word, and the word padded as the slot holds it. */
static struct word_slot *cache_slot(struct encoder *e, const uint8_t *word, size_t len,
	uint8_t padded[CACHE_WORD])
{
	uint64_t k[3];
	memset(padded, 0, CACHE_WORD);
	memcpy(padded, word, len);
	memcpy(k, padded, sizeof(k));
	uint64_t h = (k[0] ^ len) * 0x9E3779B97F4A7C15u;
	h = (h ^ h >> 32 ^ k[1]) * 0xD6E8FEB86659FD93u;
	h = (h ^ h >> 32 ^ k[2]) * 0x9E3779B97F4A7C15u;
	return &e->cache[h >> (64 - 15)];
}

static int emit(struct encoder *e, const struct piece *p, int32_t id, size_t start, size_t end)
{
	int r = ids_append(e->out, &id, 1);
	if (r < 0 || !e->places) {
		return r;
	}
	/* An inserted space counts as the first byte of what it stands before. */
	size_t from = start > p->inserted ? start - p->inserted : 0;
	size_t last = end > p->inserted ? end - p->inserted - 1 : 0;
	struct token_place place = {
		.start = (uint32_t)(p->origin ? p->origin[from] : p->base + from),
		.end = (uint32_t)(p->origin ? p->origin[last] : p->base + last) + 1,
	};
	return places_append(e->places, place);
}

static int emit_slot(struct encoder *e, const struct piece *p, const struct word_slot *s, size_t at)
{
	if (!e->places) {
		return ids_append(e->out, s->ids, s->n);
	}
	for (unsigned i = 0; i < s->n; i++) {
		int r = emit(e, p, s->ids[i], at, at + s->lens[i]);
		if (r < 0) {
			return r;
		}
		at += s->lens[i];
	}
	return 0;
}

static int emit_symbols(struct encoder *e, const struct piece *p, size_t n, size_t at,
	struct word_slot *slot)
{
	unsigned count = 0;
	for (size_t i = 0; i < n; i++) {
		const struct symbol *s = &e->symbols[i];
		if (s->id < 0) {
			continue;
		}
		int r = emit(e, p, s->id, at, at + s->len);
		if (r < 0) {
			return r;
		}
		if (slot && count < CACHE_IDS) {
			slot->ids[count] = s->id;
			slot->lens[count] = (uint8_t)s->len;
		}
		count++;
		at += s->len;
	}
	if (slot) {
		slot->n = count <= CACHE_IDS ? (uint8_t)count : 0;
	}
	return 0;
}

int bpe_encode(struct encoder *e, const struct piece *p, size_t start, size_t end)
{
	const struct bpe *b = &e->t->bpe;
	const uint8_t *word = p->text + start;
	size_t len = end - start;
	struct word_slot *slot = NULL;
	int32_t id;

	if (len == 1 && (id = b->byte_id[word[0]]) >= 0) {
		return emit(e, p, id, start, end);
	}
	if (e->cache && len <= CACHE_WORD) {
		uint8_t padded[CACHE_WORD];
		slot = cache_slot(e, word, len, padded);
		if (slot->n > 0 && slot->len == len && memcmp(slot->word, padded, CACHE_WORD) == 0) {
			return emit_slot(e, p, slot, start);
		}
		memcpy(slot->word, padded, CACHE_WORD);
		slot->len = (uint8_t)len;
		slot->n = 0;
	}
	if (b->ignore_merges && (id = vocab_find_bytes(&e->t->vocab, word, len)) >= 0) {
		return emit(e, p, id, start, end);
	}
	if (len > e->symbols_cap) {
		size_t cap = len < 64 ? 64 : len + len / 2;
		struct symbol *symbols = realloc_array(e->symbols, cap, sizeof(*symbols));
		if (!symbols) {
			return -ENOMEM;
		}
		e->symbols = symbols;
		e->symbols_cap = cap;
	}
	size_t n = split_bytes(e, word, len);
	int r = merge_symbols(e, n);
	return r < 0 ? r : emit_symbols(e, p, n, start, slot);
}
