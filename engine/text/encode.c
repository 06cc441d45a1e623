/* Texts into ids. */

#include <errno.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

void ids_deinit(struct ids *ids)
{
	free(ids->data);
	*ids = (struct ids){0};
}

int ids_append(struct ids *ids, const int32_t *data, size_t n)
{
	size_t need;
	if (!add_size(ids->len, n, &need)) {
		return -ENOMEM;
	}
	if (need > ids->cap) {
		size_t cap = ids->cap ? ids->cap : 64;
		while (cap < need) {
			if (!mul_size(cap, 2, &cap)) {
				return -ENOMEM;
			}
		}
		int32_t *p = realloc_array(ids->data, cap, sizeof(*p));
		if (!p) {
			return -ENOMEM;
		}
		ids->data = p;
		ids->cap = cap;
	}
	if (n > 0) {
		memcpy(ids->data + ids->len, data, n * sizeof(*data));
	}
	ids->len = need;
	return 0;
}

int places_append(struct places *p, struct token_place place)
{
	if (p->len == p->cap) {
		size_t cap = p->cap ? 2 * p->cap : 256;
		struct token_place *data = realloc_array(p->data, cap, sizeof(*data));
		if (!data) {
			return -ENOMEM;
		}
		p->data = data;
		p->cap = cap;
	}
	p->data[p->len++] = place;
	return 0;
}

int encoder_init(struct encoder *e, const struct tokenizer *t, bool many)
{
	*e = (struct encoder){.t = t};
	e->regex = regex_scratch_new();
	e->spaced = calloc_array(t->n_steps + 1, sizeof(*e->spaced));
	return !e->regex || !e->spaced ? -ENOMEM : many ? word_cache_new(&e->cache) : 0;
}

void encoder_deinit(struct encoder *e)
{
	regex_scratch_free(e->regex);
	free(e->cache);
	free(e->symbols);
	free(e->heap);
	free(e->path);
	for (size_t i = 0; e->spaced && i < e->t->n_steps; i++) {
		aligned_deinit(&e->spaced[i]);
	}
	free(e->spaced);
	aligned_deinit(&e->aligned[0]);
	aligned_deinit(&e->aligned[1]);
	buf_deinit(&e->prefixed);
}

static int put_token(struct encoder *e, int32_t id, size_t start, size_t end)
{
	int r = ids_append(e->out, &id, 1);
	if (r == 0 && e->places) {
		r = places_append(e->places,
			(struct token_place){.start = (uint32_t)start, .end = (uint32_t)end});
	}
	return r;
}

/* A normalized piece: the added tokens that match normalized text, and words between them. */
static int encode_normalized(struct encoder *e, const struct piece *p)
{
	const struct tokenizer *t = e->t;
	struct added_iter it = {0};
	struct added_match m;
	int r;

	for (;;) {
		bool found = added_next(&t->normalized_trie, t->added, &it, p->text, p->len, &m);
		size_t end = found ? m.start : p->len;
		if (end > it.done) {
			struct piece sub = {
				.text = p->text + it.done,
				.len = end - it.done,
				.origin = p->origin ? p->origin + it.done : NULL,
				.base = p->base + it.done,
			};
			if ((r = pretokenize(e, &sub)) < 0) {
				return r;
			}
		}
		if (!found) {
			return 0;
		}
		size_t first = p->origin ? p->origin[m.start] : p->base + m.start;
		size_t last = p->origin ? p->origin[m.end - 1] + 1 : p->base + m.end;
		if ((r = put_token(e, m.token->id, first, last)) < 0) {
			return r;
		}
		it.done = m.end;
	}
}

/* A stretch of the raw text between added tokens. */
static int encode_raw(struct encoder *e, const uint8_t *text, size_t start, size_t end)
{
	const struct tokenizer *t = e->t;
	struct piece p = {.text = text + start, .len = end - start, .base = start};
	if (t->n_normalizers == 0) {
		return encode_normalized(e, &p);
	}
	struct aligned *in = &e->aligned[0], *out = &e->aligned[1];
	in->text.len = 0;
	in->unplaced = !e->places && !t->needs_origin;
	int r = aligned_put_run(in, p.text, p.len, (uint32_t)start);
	if (r < 0) {
		return r;
	}
	for (size_t i = 0; i < t->n_normalizers; i++) {
		if ((r = normalizer_run(&t->normalizers[i], t->classes, e->regex, in, out)) < 0) {
			return r;
		}
		struct aligned *swap = in;
		in = out;
		out = swap;
	}
	p = (struct piece){.text = in->text.data, .len = in->text.len,
		.origin = in->unplaced ? NULL : in->origin};
	return encode_normalized(e, &p);
}

static int encode_text(struct encoder *e, const uint8_t *text, size_t len)
{
	const struct tokenizer *t = e->t;
	struct added_iter it = {0};
	struct added_match m;
	int r;

	for (;;) {
		bool found = added_next(&t->raw_trie, t->added, &it, text, len, &m);
		size_t end = found ? m.start : len;
		if (end > it.done && (r = encode_raw(e, text, it.done, end)) < 0) {
			return r;
		}
		if (!found) {
			return 0;
		}
		if ((r = put_token(e, m.token->id, m.start, m.end)) < 0) {
			return r;
		}
		it.done = m.end;
	}
}

static int put_affix(struct encoder *e, const struct ids *affix, size_t at)
{
	int r = 0;
	for (size_t i = 0; i < affix->len && r == 0; i++) {
		r = put_token(e, affix->data[i], at, at);
	}
	return r;
}

int encoder_run(struct encoder *e, const char *text, size_t len, bool add_special, struct ids *out,
	struct places *places, struct errmsg *err)
{
	size_t bad;
	if (len >= INT32_MAX) {
		return errmsg_set(err, STATUS_INVALID,
			"the text has %zu bytes; at most 2 GiB can be encoded at a time", len);
	}
	if (!utf8_valid(text, len, &bad)) {
		return errmsg_set(err, STATUS_INVALID,
			"byte %zu (0x%02X) is not UTF-8; save the text as UTF-8", bad, (uint8_t)text[bad]);
	}
	e->out = out;
	e->places = places;
	int r = add_special ? put_affix(e, &e->t->before, 0) : 0;
	if (r == 0 && len > 0) {
		r = encode_text(e, (const uint8_t *)text, len);
	}
	if (r == 0 && add_special) {
		r = put_affix(e, &e->t->after, len);
	}
	if (r == -ELOOP) {
		return errmsg_set(err, STATUS_INVALID,
			"the tokenizer's regular expression takes too many steps on this text");
	}
	if (r == -EOVERFLOW) {
		return errmsg_set(err, STATUS_INVALID,
			"the tokenizer's normalizers make more than 2 GiB of the text");
	}
	if (r == -ENOKEY) {
		return errmsg_set(err, STATUS_INVALID, "the text has a character that the tokenizer's "
			"vocabulary lacks, and it has no token for unknown ones (model.unk_id is null)");
	}
	return r;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool add_special,
	struct ids *out, struct errmsg *err)
{
	enum { WORTH_A_CACHE = 1 << 14 };
	struct encoder e;
	size_t before = out->len;
	int r = encoder_init(&e, t, len >= WORTH_A_CACHE);
	if (r == 0) {
		r = encoder_run(&e, text, len, add_special, out, NULL, err);
	}
	encoder_deinit(&e);
	if (r != 0) {
		out->len = before;
	}
	return r;
}
