#pragma once
/* What a code point is, in the Unicode versions that Hugging Face tokenizers carries. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct code_range {
	uint32_t first, last;
};

struct category_range {
	uint32_t first, last;
	char category[3];
};

struct case_pair {
	uint32_t upper, lower;
};

/* In unicode-tables.c, all sorted. */
extern const struct code_range unicode_letters[], unicode_numbers[], unicode_numeric_extra[],
	unicode_opaque[], unicode_words[], unicode_punctuation[], unicode_accents[];
extern const size_t n_unicode_letters, n_unicode_numbers, n_unicode_numeric_extra, n_unicode_opaque,
	n_unicode_words, n_unicode_punctuation, n_unicode_accents;
extern const struct category_range unicode_later[];
extern const size_t n_unicode_later;
extern const struct case_pair unicode_lower[];
extern const size_t n_unicode_lower;

enum {
	UNICODE_POINTS = 0x110000,

	CLASS_LETTER = 1,  /* \p{L} */
	CLASS_NUMBER = 2,  /* \p{N} */
	CLASS_SPACE = 4,   /* \s: White_Space */
	CLASS_NUMERIC = 8, /* what Digits splits at: \p{N} of a newer Unicode */
	CLASS_WORD = 16,   /* \w of Rust's regex */
	CLASS_PUNCTUATION = 32, /* what Punctuation splits at: an old Unicode's, and ASCII's */
	CLASS_ACCENT = 64, /* what StripAccents takes away: an old Unicode's marks */
};

/* One byte of CLASS_* for each code point, owned by the caller; NULL without memory. */
uint8_t *unicode_classes_new(void);

bool code_range_has(const struct code_range *ranges, size_t n, uint32_t c);

/* \w of Rust's regex: what makes a neighbour part of a word for `single_word` tokens. */
bool unicode_is_word(uint32_t c);
bool unicode_is_space(uint32_t c);

/* Lower case of one code point into out[2]; returns how many (1 or 2). */
unsigned unicode_to_lower(uint32_t c, uint32_t out[2]);

/* The code point that starts at p, which is well-formed UTF-8; *ret_len is its length in bytes. */
static inline uint32_t utf8_get(const uint8_t *p, unsigned *ret_len)
{
	if (p[0] < 0x80) {
		*ret_len = 1;
		return p[0];
	} else if (p[0] < 0xE0) {
		*ret_len = 2;
		return (uint32_t)(p[0] & 0x1F) << 6 | (p[1] & 0x3F);
	} else if (p[0] < 0xF0) {
		*ret_len = 3;
		return (uint32_t)(p[0] & 0x0F) << 12 | (uint32_t)(p[1] & 0x3F) << 6 | (p[2] & 0x3F);
	}
	*ret_len = 4;
	return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3F) << 12 |
		(uint32_t)(p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

/* Length in bytes of the last code point of text[0 … end), end > 0. */
static inline size_t utf8_last_len(const uint8_t *text, size_t end)
{
	size_t n = 1;
	while (n < 4 && n < end && (text[end - n] & 0xC0) == 0x80) {
		n++;
	}
	return n;
}

/* UTF-8 of c into out[4]; returns its length. */
unsigned utf8_put(uint32_t c, uint8_t *out);
