/* Tokens by id and by text. */

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

_Static_assert(crypto_shorthash_KEYBYTES == 16, "vocab.hash_key");

/*
 * Byte-level vocabularies (GPT-2) write each byte as a printable character: bytes that are
 * printable in Latin-1 as themselves, the other 68, in order, as U+0100, U+0101, …
 */
static bool byte_is_itself(unsigned byte)
{
	return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

uint32_t byte_level_char(uint8_t byte)
{
	if (byte_is_itself(byte)) {
		return byte;
	}
	uint32_t c = 0x100;
	for (unsigned b = 0; b < byte; b++) {
		c += !byte_is_itself(b);
	}
	return c;
}

static int byte_of_char(uint32_t c)
{
	if (c < 0x100) {
		return byte_is_itself(c) ? (int)c : -1;
	}
	/* The bytes that are not themselves: 0 … 32, 127 … 160, 173. */
	uint32_t n = c - 0x100;
	if (n <= 32) {
		return (int)n;
	}
	if (n <= 66) {
		return (int)(n - 33 + 127);
	}
	return n == 67 ? 173 : -1;
}

int byte_level_decode(const char *text, size_t len, struct buf *out, bool *ret_is_bytes)
{
	const uint8_t *p = (const uint8_t *)text;
	size_t before = out->len;
	int r = buf_reserve(out, len);
	if (r < 0) {
		return r;
	}
	for (size_t i = 0; i < len;) {
		unsigned n;
		int byte = byte_of_char(utf8_get(p + i, &n));
		if (byte < 0) {
			out->len = before;
			*ret_is_bytes = false;
			return 0;
		}
		out->data[out->len++] = (uint8_t)byte;
		i += n;
	}
	*ret_is_bytes = true;
	return 0;
}

void vocab_init(struct vocab *v)
{
	*v = (struct vocab){0};
	random_bytes(v->hash_key, sizeof(v->hash_key));
}

void vocab_deinit(struct vocab *v)
{
	buf_deinit(&v->bytes);
	free(v->tokens);
	free(v->slots);
}

static uint64_t vocab_hash(const struct vocab *v, const void *bytes, size_t len, bool raw)
{
	uint64_t h;
	crypto_shorthash((uint8_t *)&h, bytes ? bytes : "", len, v->hash_key);
	return h ^ (raw ? 0x9E3779B97F4A7C15u : 0);
}

/* The slot that holds the key, or the empty one where it would go. */
static size_t vocab_slot(const struct vocab *v, const void *bytes, size_t len, bool raw)
{
	size_t mask = v->n_slots - 1;
	size_t at = vocab_hash(v, bytes, len, raw) & mask;
	for (;; at = (at + 1) & mask) {
		if (v->slots[at] == 0) {
			return at;
		}
		const struct token *t = &v->tokens[v->slots[at] - 1];
		if (t->len == len && (t->flags & TOKEN_RAW ? 1 : 0) == raw &&
				(len == 0 || memcmp(v->bytes.data + t->offset, bytes, len) == 0)) {
			return at;
		}
	}
}

static int vocab_grow_slots(struct vocab *v)
{
	if (v->n_slots >= 2 * (v->used + 1)) {
		return 0;
	}
	size_t n_old = v->n_slots;
	uint32_t *old = v->slots;
	v->n_slots = n_old ? 2 * n_old : 1024;
	v->slots = calloc_array(v->n_slots, sizeof(*v->slots));
	if (!v->slots) {
		v->slots = old;
		v->n_slots = n_old;
		return -ENOMEM;
	}
	for (size_t i = 0; i < n_old; i++) {
		if (old[i]) {
			const struct token *t = &v->tokens[old[i] - 1];
			v->slots[vocab_slot(v, v->bytes.data + t->offset, t->len, t->flags & TOKEN_RAW)] =
				old[i];
		}
	}
	free(old);
	return 0;
}

static int vocab_make_room(struct vocab *v, int32_t id)
{
	if (id < 0 || id >= MAX_VOCAB) {
		return -ERANGE;
	}
	if ((size_t)id >= v->cap) {
		size_t cap = v->cap ? v->cap : 1024;
		while (cap <= (size_t)id) {
			cap *= 2;
		}
		struct token *tokens = realloc_array(v->tokens, cap, sizeof(*tokens));
		if (!tokens) {
			return -ENOMEM;
		}
		memset(tokens + v->cap, 0, (cap - v->cap) * sizeof(*tokens));
		v->tokens = tokens;
		v->cap = cap;
	}
	return 0;
}

int vocab_add(struct vocab *v, const char *text, size_t len, int32_t id)
{
	bool is_bytes;
	size_t offset = v->bytes.len;
	int r = vocab_make_room(v, id);
	if (r < 0 || (r = vocab_grow_slots(v)) < 0) {
		return r;
	}
	if (v->tokens[id].flags & TOKEN_PRESENT) {
		return -EEXIST;
	}
	is_bytes = false;
	r = v->text ? 0 : byte_level_decode(text, len, &v->bytes, &is_bytes);
	if (r == 0 && !is_bytes) {
		r = buf_append(&v->bytes, text, len);
	}
	if (r < 0) {
		return r;
	}
	if (v->bytes.len > UINT32_MAX) {
		v->bytes.len = offset;
		return -ENOMEM;
	}
	size_t n = v->bytes.len - offset;
	size_t slot = vocab_slot(v, v->bytes.data + offset, n, !is_bytes);
	if (v->slots[slot]) {
		v->bytes.len = offset;
		return -EEXIST;
	}
	v->tokens[id] = (struct token){
		.offset = (uint32_t)offset,
		.len = (uint32_t)n,
		.flags = (uint8_t)(TOKEN_PRESENT | (is_bytes ? 0 : TOKEN_RAW)),
	};
	v->slots[slot] = (uint32_t)id + 1;
	v->used++;
	v->count++;
	v->size = (size_t)max_i64((int64_t)v->size, (int64_t)id + 1);
	return 0;
}

int vocab_add_raw(struct vocab *v, const char *text, size_t len, int32_t id, uint8_t flags)
{
	size_t offset = v->bytes.len;
	int r = vocab_make_room(v, id);
	if (r == 0 && v->tokens[id].flags & TOKEN_PRESENT) {
		r = -EEXIST;
	}
	if (r < 0 || (r = buf_append(&v->bytes, text, len)) < 0) {
		return r;
	}
	if (v->bytes.len > UINT32_MAX) {
		v->bytes.len = offset;
		return -ENOMEM;
	}
	v->tokens[id] = (struct token){
		.offset = (uint32_t)offset,
		.len = (uint32_t)len,
		.flags = (uint8_t)(TOKEN_PRESENT | TOKEN_RAW | flags),
	};
	v->size = (size_t)max_i64((int64_t)v->size, (int64_t)id + 1);
	return 0;
}

static int32_t vocab_look_up(const struct vocab *v, const void *bytes, size_t len, bool raw)
{
	if (v->n_slots == 0) {
		return -1;
	}
	uint32_t found = v->slots[vocab_slot(v, bytes, len, raw)];
	return found ? (int32_t)(found - 1) : -1;
}

int32_t vocab_find_bytes(const struct vocab *v, const void *bytes, size_t len)
{
	return vocab_look_up(v, bytes, len, false);
}

int32_t vocab_find(const struct vocab *v, const char *text, size_t len)
{
	uint8_t small[256];
	size_t n = 0;
	const uint8_t *p = (const uint8_t *)text;

	if (v->text) {
		return vocab_look_up(v, text, len, true);
	}
	if (len > sizeof(small)) {
		struct buf bytes = {0};
		bool is_bytes = false;
		int32_t id = -1;
		if (byte_level_decode(text, len, &bytes, &is_bytes) == 0) {
			id = is_bytes ? vocab_look_up(v, bytes.data, bytes.len, false) :
				vocab_look_up(v, text, len, true);
		}
		buf_deinit(&bytes);
		return id;
	}
	for (size_t i = 0; i < len;) {
		unsigned width;
		int byte = byte_of_char(utf8_get(p + i, &width));
		if (byte < 0) {
			return vocab_look_up(v, text, len, true);
		}
		small[n++] = (uint8_t)byte;
		i += width;
	}
	return vocab_look_up(v, small, n, false);
}

int32_t vocab_find_fallback(const struct vocab *v, uint8_t byte)
{
	char name[8];
	snprintf(name, sizeof(name), "<0x%02X>", byte);
	return vocab_find(v, name, 6);
}

/* ---- characters -------------------------------------------------------------------------- */

static int char_ids_page(struct char_ids *c)
{
	int32_t(*pages)[256] = realloc_array(c->pages, c->n_pages + 1, sizeof(*pages));
	if (!pages) {
		return -ENOMEM;
	}
	c->pages = pages;
	for (unsigned i = 0; i < 256; i++) {
		pages[c->n_pages][i] = -1;
	}
	c->n_pages++;
	return 0;
}

int char_ids_new(struct char_ids **ret, const struct vocab *v)
{
	struct char_ids *c = calloc_array(1, sizeof(*c));
	int r = c ? char_ids_page(c) : -ENOMEM;
	for (size_t id = 0; id < v->size && r == 0; id++) {
		const struct token *t = &v->tokens[id];
		const uint8_t *text = v->bytes.data + t->offset;
		unsigned n;
		/* Added tokens that the model lacks are no characters of it. */
		if (!(t->flags & TOKEN_PRESENT) || t->len == 0 ||
				vocab_find(v, (const char *)text, t->len) != (int32_t)id) {
			continue;
		}
		uint32_t point = utf8_get(text, &n);
		if (n != t->len) {
			continue;
		}
		uint16_t *page = &c->page[point >> 8];
		if (*page == 0) {
			r = char_ids_page(c);
			*page = (uint16_t)(c->n_pages - 1);
		}
		if (r == 0) {
			c->pages[*page][point & 0xFF] = (int32_t)id;
		}
	}
	if (r < 0) {
		char_ids_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

void char_ids_free(struct char_ids *c)
{
	if (c) {
		free(c->pages);
		free(c);
	}
}
