/*
 * SentencePiece's compiled normalization rules, as Hugging Face tokenizers applies them.
 *
 * The blob is the length of a double-array trie, the trie's units of four bytes, and texts that end
 * with NUL; a key's value in the trie is where its text starts. Format: darts-clone, and
 * SentencePiece's normalizer.cc.
 *
 * Rules are looked up for a whole grapheme cluster of less than six bytes first, and the shortest
 * key that starts it decides, the rest of the cluster being lost; longer clusters, and those without
 * a rule, go character by character (normalizers/precompiled.rs).
 */

#include <errno.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

struct charsmap {
	uint8_t *source; /* owned */
	size_t len;
	uint32_t *units;
	size_t n_units;
	const char *texts;
	size_t texts_len;
	bool plain[128]; /* ASCII without a rule for it alone */
};

enum {
	MAX_CLUSTER = 5, /* bytes of a cluster that rules may be for */
};

static size_t unit_offset(uint32_t unit)
{
	return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

/* The text that replaces key[len], the shortest key that starts it; false: there is none. */
static bool look_up(const struct charsmap *m, const uint8_t *key, size_t len, const char **ret,
	size_t *ret_len)
{
	size_t at = unit_offset(m->units[0]);
	for (size_t i = 0; i < len && key[i] != 0; i++) {
		at ^= key[i];
		if (at >= m->n_units || (m->units[at] & (1u << 31 | 0xFF)) != key[i]) {
			return false;
		}
		uint32_t unit = m->units[at];
		at ^= unit_offset(unit);
		if (unit >> 8 & 1) {
			size_t start = at < m->n_units ? m->units[at] & INT32_MAX : m->texts_len;
			/* Not outside the texts, nor in the middle of a character. */
			if (start >= m->texts_len || ((uint8_t)m->texts[start] & 0xC0) == 0x80) {
				return false;
			}
			*ret = m->texts + start;
			*ret_len = strnlen(*ret, m->texts_len - start);
			return true;
		}
	}
	return false;
}

int charsmap_new(struct charsmap **ret, const uint8_t *data, size_t len, struct errmsg *err)
{
	size_t trie = len >= 4 ? le32_read(data) : 0;
	if (trie < 4 || trie % 4 != 0 || trie > len - 4) {
		return errmsg_set(err, STATUS_INVALID, "the precompiled charsmap of %zu bytes says that "
			"its trie has %zu; SentencePiece wrote something else", len, trie);
	}
	if (!utf8_valid(data + 4 + trie, len - 4 - trie, NULL)) {
		return errmsg_set(err, STATUS_INVALID,
			"the precompiled charsmap's texts are no UTF-8; SentencePiece wrote something else");
	}
	struct charsmap *m = calloc_array(1, sizeof(*m));
	if (!m || !(m->source = malloc(len)) || !(m->units = alloc_array(trie / 4, 4))) {
		charsmap_free(m);
		return -ENOMEM;
	}
	memcpy(m->source, data, len);
	m->len = len;
	m->n_units = trie / 4;
	for (size_t i = 0; i < m->n_units; i++) {
		m->units[i] = le32_read(data + 4 + 4 * i);
	}
	m->texts = (const char *)m->source + 4 + trie;
	m->texts_len = len - 4 - trie;
	for (unsigned i = 0; i < 128; i++) {
		const char *text;
		size_t n;
		m->plain[i] = !look_up(m, &(uint8_t){(uint8_t)i}, 1, &text, &n);
	}
	*ret = m;
	return 0;
}

void charsmap_free(struct charsmap *m)
{
	if (m) {
		free(m->source);
		free(m->units);
		free(m);
	}
}

const uint8_t *charsmap_source(const struct charsmap *m, size_t *ret_len)
{
	*ret_len = m->len;
	return m->source;
}

/* Consonants that a virama joins to the next one (Indic_Conjunct_Break); utf8proc knows of this rule
 * only from Unicode 15.1 on. */
static bool is_conjunct(uint32_t c)
{
	static const struct code_range consonants[] = {
		{0x915, 0x939}, {0x958, 0x95F}, {0x978, 0x97F}, {0x995, 0x9A8}, {0x9AA, 0x9B0},
		{0x9B2, 0x9B2}, {0x9B6, 0x9B9}, {0x9DC, 0x9DD}, {0x9DF, 0x9DF}, {0x9F0, 0x9F1},
		{0xA95, 0xAA8}, {0xAAA, 0xAB0}, {0xAB2, 0xAB3}, {0xAB5, 0xAB9}, {0xAF9, 0xAF9},
		{0xB15, 0xB28}, {0xB2A, 0xB30}, {0xB32, 0xB33}, {0xB35, 0xB39}, {0xB5C, 0xB5D},
		{0xB5F, 0xB5F}, {0xB71, 0xB71}, {0xC15, 0xC28}, {0xC2A, 0xC39}, {0xC58, 0xC5A},
		{0xD15, 0xD3A},
	};
	return c >= 0x915 && c <= 0xD3A && code_range_has(consonants, ARRAY_LEN(consonants), c);
}

static bool is_linker(uint32_t c)
{
	return c == 0x94D || c == 0x9CD || c == 0xACD || c == 0xB4D || c == 0xC4D || c == 0xD4D;
}

/* The end of the grapheme cluster that starts at `at`. */
static size_t cluster_end(const uint8_t *text, size_t len, size_t at)
{
	utf8proc_int32_t state = 0;
	unsigned n;
	uint32_t last = utf8_get(text + at, &n);
	bool conjunct = is_conjunct(last), linked = false;
	for (at += n; at < len; at += n) {
		uint32_t c = utf8_get(text + at, &n);
		bool consonant = is_conjunct(c);
		if (utf8proc_grapheme_break_stateful((int32_t)last, (int32_t)c, &state) &&
				!(conjunct && linked && consonant)) {
			break;
		}
		bool between = c != 0x200C &&
			utf8proc_get_property((int32_t)c)->boundclass != UTF8PROC_BOUNDCLASS_SPACINGMARK;
		linked = !consonant && between && (linked || is_linker(c));
		conjunct = consonant || (conjunct && between);
		last = c;
	}
	return at;
}

/* in[start … end) by its rule, or false where there is none. */
static int put_rule(const struct charsmap *m, const struct aligned *in, size_t start, size_t end,
	struct aligned *out, bool *ret_done)
{
	const char *text;
	size_t len;
	*ret_done = look_up(m, in->text.data + start, end - start, &text, &len);
	return *ret_done ? aligned_put(out, text, len, in->unplaced ? 0 : in->origin[start]) : 0;
}

static int put_cluster(const struct charsmap *m, const struct aligned *in, size_t start, size_t end,
	struct aligned *out)
{
	bool done = false;
	unsigned n;
	int r = end - start <= MAX_CLUSTER ? put_rule(m, in, start, end, out, &done) : 0;
	for (size_t at = start; !done && r == 0 && at < end; at += n) {
		bool one = false;
		utf8_get(in->text.data + at, &n);
		r = put_rule(m, in, at, at + n, out, &one);
		r = r == 0 && !one ? aligned_put_same(out, in, at, at + n) : r;
	}
	return r;
}

int charsmap_run(const struct charsmap *m, const struct aligned *in, struct aligned *out)
{
	const uint8_t *text = in->text.data;
	size_t len = in->text.len, done = 0, at = 0;
	int r = 0;
	while (at < len && r == 0) {
		bool ascii = text[at] < 0x80 && (at + 1 == len || text[at + 1] < 0x80);
		if (ascii && m->plain[text[at]] && text[at] != '\r') {
			at++;
			continue;
		}
		r = aligned_put_same(out, in, done, at);
		done = cluster_end(text, len, at);
		r = r < 0 ? r : put_cluster(m, in, at, done, out);
		at = done;
	}
	r = r < 0 ? r : aligned_put_same(out, in, done, len);
	/* The library counts what went at the very front as the first character's. */
	if (r == 0 && !in->unplaced && out->text.len > 0) {
		out->origin[0] = in->origin[0];
	}
	return r;
}
