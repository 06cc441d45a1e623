/*
 * Words into ids, by the tokenizer's model, and a cache of them: text repeats its words.
 *
 * Where nothing cuts a text into words before, as with Llama 2 and Gemma, it is one word as long as
 * it is. It is cut here, between characters that no merge can bring together: the ids are the same,
 * and the parts are words that the cache knows.
 */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

enum {
	CACHE_BITS = 15,
	CACHE_SLOTS = 1 << CACHE_BITS,
	CACHE_WORD = 24,
	CACHE_IDS = 8,
};

/* Each slot holds the last short word that hashed to it. */
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
	return &e->cache[h >> (64 - CACHE_BITS)];
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

int encoder_symbols(struct encoder *e, size_t n)
{
	if (n > e->symbols_cap) {
		size_t cap = n < 64 ? 64 : n + n / 2;
		struct symbol *symbols = realloc_array(e->symbols, cap, sizeof(*symbols));
		if (!symbols) {
			return -ENOMEM;
		}
		e->symbols = symbols;
		e->symbols_cap = cap;
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

static int encode_part(struct encoder *e, const struct piece *p, size_t start, size_t end)
{
	const struct tokenizer *t = e->t;
	const uint8_t *word = p->text + start;
	size_t len = end - start, n;
	struct word_slot *slot = NULL;
	int32_t id;

	if (len == 1 && t->model == MODEL_BYTE_BPE && (id = t->bpe.byte_id[word[0]]) >= 0) {
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
	int r = t->model == MODEL_UNIGRAM ? unigram_encode(e, word, len, &n) :
		bpe_encode(e, word, len, &n);
	return r < 0 ? r : emit_symbols(e, p, n, start, slot);
}

/* Both characters are tokens, so that neither is part of an unknown run or of bytes, and no merge
 * brings them together. */
static bool may_cut(const struct bpe *b, uint32_t left, uint32_t right)
{
	uint32_t bit = joined_bit(left, right);
	return !(b->joined[bit / 64] >> bit % 64 & 1) && char_id(b->chars, left) >= 0 &&
		char_id(b->chars, right) >= 0;
}

int encode_word(struct encoder *e, const struct piece *p, size_t start, size_t end)
{
	const struct bpe *b = &e->t->bpe;
	const uint8_t *text = p->text;
	uint32_t last = 0;
	unsigned width;

	if (!b->joined) {
		return encode_part(e, p, start, end);
	}
	for (size_t at = start; at < end; at += width) {
		uint32_t c = utf8_get(text + at, &width);
		if (at > start && may_cut(b, last, c)) {
			int r = encode_part(e, p, start, at);
			if (r < 0) {
				return r;
			}
			start = at;
		}
		last = c;
	}
	return start < end ? encode_part(e, p, start, end) : 0;
}
