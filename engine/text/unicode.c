#include "engine/text/unicode.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "util/util.h"

static const struct code_range spaces[] = {
	{0x09, 0x0D}, {0x20, 0x20}, {0x85, 0x85}, {0xA0, 0xA0}, {0x1680, 0x1680}, {0x2000, 0x200A},
	{0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
};

static void mark(uint8_t *classes, const struct code_range *ranges, size_t n, uint8_t flags)
{
	for (size_t i = 0; i < n; i++) {
		for (uint32_t c = ranges[i].first; c <= ranges[i].last; c++) {
			classes[c] |= flags;
		}
	}
}

uint8_t *unicode_classes_new(void)
{
	uint8_t *classes = calloc_array(UNICODE_POINTS, 1);
	if (classes) {
		mark(classes, unicode_letters, n_unicode_letters, CLASS_LETTER);
		mark(classes, unicode_numbers, n_unicode_numbers, CLASS_NUMBER | CLASS_NUMERIC);
		mark(classes, unicode_numeric_extra, n_unicode_numeric_extra, CLASS_NUMERIC);
		mark(classes, spaces, ARRAY_LEN(spaces), CLASS_SPACE);
		mark(classes, unicode_words, n_unicode_words, CLASS_WORD);
		mark(classes, unicode_punctuation, n_unicode_punctuation, CLASS_PUNCTUATION);
		mark(classes, unicode_accents, n_unicode_accents, CLASS_ACCENT);
	}
	return classes;
}

bool code_range_has(const struct code_range *ranges, size_t n, uint32_t c)
{
	size_t low = 0, high = n;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (ranges[middle].last < c) {
			low = middle + 1;
		} else {
			high = middle;
		}
	}
	return low < n && ranges[low].first <= c;
}

bool unicode_is_space(uint32_t c)
{
	return code_range_has(spaces, ARRAY_LEN(spaces), c);
}

bool unicode_is_word(uint32_t c)
{
	return code_range_has(unicode_words, n_unicode_words, c);
}

unsigned unicode_to_lower(uint32_t c, uint32_t out[2])
{
	if (c == 0x130) { /* the one capital whose small form is two code points */
		out[0] = 'i';
		out[1] = 0x307;
		return 2;
	}
	for (size_t i = 0; i < n_unicode_lower && unicode_lower[i].upper <= c; i++) {
		if (unicode_lower[i].upper == c) {
			out[0] = unicode_lower[i].lower;
			return 1;
		}
	}
	out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
	return 1;
}

unsigned utf8_put(uint32_t c, uint8_t *out)
{
	return (unsigned)utf8proc_encode_char((utf8proc_int32_t)c, out);
}
