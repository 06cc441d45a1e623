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
	/* \w is Alphabetic, M, Nd, Pc and Join_Control; Alphabetic is L, Nl, some of M, and the circled
	 * letters. */
	static const struct code_range others[] = {
		{0x200C, 0x200D}, {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169},
		{0x1F170, 0x1F189},
	};
	if (code_range_has(unicode_letters, n_unicode_letters, c) ||
			code_range_has(others, ARRAY_LEN(others), c)) {
		return true;
	}
	switch (utf8proc_category((utf8proc_int32_t)c)) {
	case UTF8PROC_CATEGORY_MN:
	case UTF8PROC_CATEGORY_MC:
	case UTF8PROC_CATEGORY_ME:
	case UTF8PROC_CATEGORY_ND:
	case UTF8PROC_CATEGORY_NL:
	case UTF8PROC_CATEGORY_PC:
		return true;
	default:
		break;
	}
	for (size_t i = 0; i < n_unicode_later; i++) {
		const struct category_range *r = &unicode_later[i];
		if (c >= r->first && c <= r->last) {
			return r->category[0] == 'M' || (r->category[0] == 'N' && r->category[1] == 'd');
		}
	}
	return false;
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
