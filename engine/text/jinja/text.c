/* What Python's str does: cutting, stripping, cases, replacing, joining. */

#include <utf8proc.h>

#include "engine/text/jinja/jinja-internal.h"
#include "engine/text/unicode.h"

int j_put(struct j_run *run, struct j_out *out, const char *p, size_t len)
{
	if (len > out->cap - out->len) {
		size_t cap = out->cap < 128 ? 256 : 2 * out->cap;
		cap = cap - out->len < len ? out->len + len : cap;
		char *grown = j_alloc(run, cap, 1);
		if (!grown) {
			return j_no_memory(run);
		}
		if (out->len > 0) {
			memcpy(grown, out->p, out->len);
		}
		out->p = grown;
		out->cap = cap;
	}
	if (len > 0) {
		memcpy(out->p + out->len, p, len);
	}
	out->len += len;
	return j_work(run, len);
}

int j_puts(struct j_run *run, struct j_out *out, const char *text)
{
	return j_put(run, out, text, strlen(text));
}

int j_out_str(struct j_run *run, const struct j_out *out, struct j_val *ret)
{
	return j_str(run, out->p ? out->p : "", out->len, ret);
}

static int put_point(struct j_run *run, struct j_out *out, uint32_t c)
{
	uint8_t bytes[4];
	return j_put(run, out, (const char *)bytes, utf8_put(c, bytes));
}

static uint32_t point_at(const struct j_str *s, size_t at, unsigned *ret_width)
{
	return utf8_get((const uint8_t *)s->p + at, ret_width);
}

/* ---- cutting ------------------------------------------------------------------------------- */

size_t j_byte_of_point(const struct j_str *s, size_t point)
{
	size_t at = 0;
	if (s->len == s->n || point >= s->n) {
		return point >= s->n ? s->len : point;
	}
	while (point > 0) {
		at++;
		while (at < s->len && ((uint8_t)s->p[at] & 0xC0) == 0x80) {
			at++;
		}
		point--;
	}
	return at;
}

int j_substr(struct j_run *run, const struct j_str *s, size_t start, size_t end, struct j_val *ret)
{
	size_t from = j_byte_of_point(s, start), to = end <= start ? from : j_byte_of_point(s, end);
	int r = s->n == s->len ? 0 : j_work(run, to);
	return r ? r : j_str(run, s->p + from, to - from, ret);
}

/* What Python's str.isspace() takes for white space. */
bool j_is_space(uint32_t c)
{
	return c < 0x80 ? c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F) :
		unicode_is_space(c);
}

static bool to_strip(const struct j_str *chars, uint32_t c)
{
	unsigned width;
	if (!chars) {
		return j_is_space(c);
	}
	for (size_t i = 0; i < chars->len; i += width) {
		if (point_at(chars, i, &width) == c) {
			return true;
		}
	}
	return false;
}

int j_strip(struct j_run *run, const struct j_str *s, const struct j_str *chars, bool left,
	bool right, struct j_val *ret)
{
	size_t start = 0, end = s->len;
	unsigned width;
	int r = j_work(run, s->len * (chars ? chars->len + 1 : 1));
	while (r == 0 && left && start < end && to_strip(chars, point_at(s, start, &width))) {
		start += width;
	}
	while (r == 0 && right && end > start) {
		size_t n = utf8_last_len((const uint8_t *)s->p + start, end - start);
		if (!to_strip(chars, point_at(s, end - n, &width))) {
			break;
		}
		end -= n;
	}
	return r ? r : j_str(run, s->p + start, end - start, ret);
}

/* Bytes of the line break at `at`, as str.splitlines() knows them; 0: none. */
static size_t break_at(const struct j_str *s, size_t at)
{
	unsigned width;
	uint32_t c = point_at(s, at, &width);
	if (c == '\r') {
		return at + 1 < s->len && s->p[at + 1] == '\n' ? 2 : 1;
	}
	return (c >= '\n' && c <= '\f') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
		c == 0x2029 ? width : 0;
}

int j_splitlines(struct j_run *run, const struct j_str *s, bool keep, struct j_val *ret)
{
	size_t n = 0, count = 1, start = 0;
	unsigned width;
	int r = 0;
	for (size_t i = 0; i < s->len; i += width) {
		point_at(s, i, &width);
		count += break_at(s, i) > 0;
	}
	struct j_val *lines = j_alloc(run, count, sizeof(*lines));
	if (!lines) {
		return j_no_memory(run);
	}
	for (size_t i = 0; i < s->len && r == 0;) {
		size_t end = break_at(s, i);
		if (end > 0) {
			r = j_str(run, s->p + start, i - start + (keep ? end : 0), &lines[n++]);
			i = start = i + end;
		} else {
			point_at(s, i, &width);
			i += width;
		}
	}
	if (r == 0 && start < s->len) {
		r = j_str(run, s->p + start, s->len - start, &lines[n++]);
	}
	return r ? r : j_seq(run, J_LIST, lines, n, ret);
}

/* ---- cases --------------------------------------------------------------------------------- */

/* Characters whose upper or title case is several: Unicode's SpecialCasing.txt. */
static const struct {
	uint32_t c, upper[3], title[3];
} special_cases[] = {
	{0x00DF, {0x0053, 0x0053}, {0x0053, 0x0073}}, {0x0149, {0x02BC, 0x004E}, {0x02BC, 0x004E}},
	{0x01F0, {0x004A, 0x030C}, {0x004A, 0x030C}},
	{0x0390, {0x0399, 0x0308, 0x0301}, {0x0399, 0x0308, 0x0301}},
	{0x03B0, {0x03A5, 0x0308, 0x0301}, {0x03A5, 0x0308, 0x0301}},
	{0x0587, {0x0535, 0x0552}, {0x0535, 0x0582}}, {0x1E96, {0x0048, 0x0331}, {0x0048, 0x0331}},
	{0x1E97, {0x0054, 0x0308}, {0x0054, 0x0308}}, {0x1E98, {0x0057, 0x030A}, {0x0057, 0x030A}},
	{0x1E99, {0x0059, 0x030A}, {0x0059, 0x030A}}, {0x1E9A, {0x0041, 0x02BE}, {0x0041, 0x02BE}},
	{0x1F50, {0x03A5, 0x0313}, {0x03A5, 0x0313}},
	{0x1F52, {0x03A5, 0x0313, 0x0300}, {0x03A5, 0x0313, 0x0300}},
	{0x1F54, {0x03A5, 0x0313, 0x0301}, {0x03A5, 0x0313, 0x0301}},
	{0x1F56, {0x03A5, 0x0313, 0x0342}, {0x03A5, 0x0313, 0x0342}},
	{0x1F80, {0x1F08, 0x0399}, {0x1F88}}, {0x1F81, {0x1F09, 0x0399}, {0x1F89}},
	{0x1F82, {0x1F0A, 0x0399}, {0x1F8A}}, {0x1F83, {0x1F0B, 0x0399}, {0x1F8B}},
	{0x1F84, {0x1F0C, 0x0399}, {0x1F8C}}, {0x1F85, {0x1F0D, 0x0399}, {0x1F8D}},
	{0x1F86, {0x1F0E, 0x0399}, {0x1F8E}}, {0x1F87, {0x1F0F, 0x0399}, {0x1F8F}},
	{0x1F88, {0x1F08, 0x0399}, {0x1F88}}, {0x1F89, {0x1F09, 0x0399}, {0x1F89}},
	{0x1F8A, {0x1F0A, 0x0399}, {0x1F8A}}, {0x1F8B, {0x1F0B, 0x0399}, {0x1F8B}},
	{0x1F8C, {0x1F0C, 0x0399}, {0x1F8C}}, {0x1F8D, {0x1F0D, 0x0399}, {0x1F8D}},
	{0x1F8E, {0x1F0E, 0x0399}, {0x1F8E}}, {0x1F8F, {0x1F0F, 0x0399}, {0x1F8F}},
	{0x1F90, {0x1F28, 0x0399}, {0x1F98}}, {0x1F91, {0x1F29, 0x0399}, {0x1F99}},
	{0x1F92, {0x1F2A, 0x0399}, {0x1F9A}}, {0x1F93, {0x1F2B, 0x0399}, {0x1F9B}},
	{0x1F94, {0x1F2C, 0x0399}, {0x1F9C}}, {0x1F95, {0x1F2D, 0x0399}, {0x1F9D}},
	{0x1F96, {0x1F2E, 0x0399}, {0x1F9E}}, {0x1F97, {0x1F2F, 0x0399}, {0x1F9F}},
	{0x1F98, {0x1F28, 0x0399}, {0x1F98}}, {0x1F99, {0x1F29, 0x0399}, {0x1F99}},
	{0x1F9A, {0x1F2A, 0x0399}, {0x1F9A}}, {0x1F9B, {0x1F2B, 0x0399}, {0x1F9B}},
	{0x1F9C, {0x1F2C, 0x0399}, {0x1F9C}}, {0x1F9D, {0x1F2D, 0x0399}, {0x1F9D}},
	{0x1F9E, {0x1F2E, 0x0399}, {0x1F9E}}, {0x1F9F, {0x1F2F, 0x0399}, {0x1F9F}},
	{0x1FA0, {0x1F68, 0x0399}, {0x1FA8}}, {0x1FA1, {0x1F69, 0x0399}, {0x1FA9}},
	{0x1FA2, {0x1F6A, 0x0399}, {0x1FAA}}, {0x1FA3, {0x1F6B, 0x0399}, {0x1FAB}},
	{0x1FA4, {0x1F6C, 0x0399}, {0x1FAC}}, {0x1FA5, {0x1F6D, 0x0399}, {0x1FAD}},
	{0x1FA6, {0x1F6E, 0x0399}, {0x1FAE}}, {0x1FA7, {0x1F6F, 0x0399}, {0x1FAF}},
	{0x1FA8, {0x1F68, 0x0399}, {0x1FA8}}, {0x1FA9, {0x1F69, 0x0399}, {0x1FA9}},
	{0x1FAA, {0x1F6A, 0x0399}, {0x1FAA}}, {0x1FAB, {0x1F6B, 0x0399}, {0x1FAB}},
	{0x1FAC, {0x1F6C, 0x0399}, {0x1FAC}}, {0x1FAD, {0x1F6D, 0x0399}, {0x1FAD}},
	{0x1FAE, {0x1F6E, 0x0399}, {0x1FAE}}, {0x1FAF, {0x1F6F, 0x0399}, {0x1FAF}},
	{0x1FB2, {0x1FBA, 0x0399}, {0x1FBA, 0x0345}}, {0x1FB3, {0x0391, 0x0399}, {0x1FBC}},
	{0x1FB4, {0x0386, 0x0399}, {0x0386, 0x0345}}, {0x1FB6, {0x0391, 0x0342}, {0x0391, 0x0342}},
	{0x1FB7, {0x0391, 0x0342, 0x0399}, {0x0391, 0x0342, 0x0345}},
	{0x1FBC, {0x0391, 0x0399}, {0x1FBC}}, {0x1FC2, {0x1FCA, 0x0399}, {0x1FCA, 0x0345}},
	{0x1FC3, {0x0397, 0x0399}, {0x1FCC}}, {0x1FC4, {0x0389, 0x0399}, {0x0389, 0x0345}},
	{0x1FC6, {0x0397, 0x0342}, {0x0397, 0x0342}},
	{0x1FC7, {0x0397, 0x0342, 0x0399}, {0x0397, 0x0342, 0x0345}},
	{0x1FCC, {0x0397, 0x0399}, {0x1FCC}},
	{0x1FD2, {0x0399, 0x0308, 0x0300}, {0x0399, 0x0308, 0x0300}},
	{0x1FD3, {0x0399, 0x0308, 0x0301}, {0x0399, 0x0308, 0x0301}},
	{0x1FD6, {0x0399, 0x0342}, {0x0399, 0x0342}},
	{0x1FD7, {0x0399, 0x0308, 0x0342}, {0x0399, 0x0308, 0x0342}},
	{0x1FE2, {0x03A5, 0x0308, 0x0300}, {0x03A5, 0x0308, 0x0300}},
	{0x1FE3, {0x03A5, 0x0308, 0x0301}, {0x03A5, 0x0308, 0x0301}},
	{0x1FE4, {0x03A1, 0x0313}, {0x03A1, 0x0313}}, {0x1FE6, {0x03A5, 0x0342}, {0x03A5, 0x0342}},
	{0x1FE7, {0x03A5, 0x0308, 0x0342}, {0x03A5, 0x0308, 0x0342}},
	{0x1FF2, {0x1FFA, 0x0399}, {0x1FFA, 0x0345}}, {0x1FF3, {0x03A9, 0x0399}, {0x1FFC}},
	{0x1FF4, {0x038F, 0x0399}, {0x038F, 0x0345}}, {0x1FF6, {0x03A9, 0x0342}, {0x03A9, 0x0342}},
	{0x1FF7, {0x03A9, 0x0342, 0x0399}, {0x03A9, 0x0342, 0x0345}},
	{0x1FFC, {0x03A9, 0x0399}, {0x1FFC}}, {0xFB00, {0x0046, 0x0046}, {0x0046, 0x0066}},
	{0xFB01, {0x0046, 0x0049}, {0x0046, 0x0069}}, {0xFB02, {0x0046, 0x004C}, {0x0046, 0x006C}},
	{0xFB03, {0x0046, 0x0046, 0x0049}, {0x0046, 0x0066, 0x0069}},
	{0xFB04, {0x0046, 0x0046, 0x004C}, {0x0046, 0x0066, 0x006C}},
	{0xFB05, {0x0053, 0x0054}, {0x0053, 0x0074}}, {0xFB06, {0x0053, 0x0054}, {0x0053, 0x0074}},
	{0xFB13, {0x0544, 0x0546}, {0x0544, 0x0576}}, {0xFB14, {0x0544, 0x0535}, {0x0544, 0x0565}},
	{0xFB15, {0x0544, 0x053B}, {0x0544, 0x056B}}, {0xFB16, {0x054E, 0x0546}, {0x054E, 0x0576}},
	{0xFB17, {0x0544, 0x053D}, {0x0544, 0x056D}},
};

static bool is_cased(uint32_t c)
{
	utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
	return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT ||
		(uint32_t)utf8proc_toupper((utf8proc_int32_t)c) != c ||
		(uint32_t)utf8proc_tolower((utf8proc_int32_t)c) != c;
}

static bool is_case_ignorable(uint32_t c)
{
	switch (utf8proc_category((utf8proc_int32_t)c)) {
	case UTF8PROC_CATEGORY_MN:
	case UTF8PROC_CATEGORY_ME:
	case UTF8PROC_CATEGORY_CF:
	case UTF8PROC_CATEGORY_LM:
	case UTF8PROC_CATEGORY_SK:
		return true;
	default:
		return c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2018 || c == 0x2019 ||
			c == 0x2024 || c == 0x2027;
	}
}

/* A capital sigma at a word's end becomes another letter than elsewhere. What is looked at begins at
 * `from`. */
static bool is_final_sigma(const struct j_str *s, size_t from, size_t at)
{
	unsigned width;
	size_t i = at;
	bool before = false;
	while (i > from) {
		i -= utf8_last_len((const uint8_t *)s->p, i);
		uint32_t c = point_at(s, i, &width);
		if (!is_case_ignorable(c)) {
			before = is_cased(c);
			break;
		}
	}
	for (i = at + 2; before && i < s->len; i += width) {
		uint32_t c = point_at(s, i, &width);
		if (!is_case_ignorable(c)) {
			return !is_cased(c);
		}
	}
	return before;
}

static int put_lower(struct j_run *run, struct j_out *out, const struct j_str *s, size_t from,
	size_t at, uint32_t c)
{
	if (c == 0x130) {
		return j_puts(run, out, "i\xCC\x87");
	}
	if (c == 0x3A3 && is_final_sigma(s, from, at)) {
		return put_point(run, out, 0x3C2);
	}
	return put_point(run, out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
}

static int put_upper(struct j_run *run, struct j_out *out, uint32_t c, bool title)
{
	for (size_t i = 0; c >= 0x80 && i < ARRAY_LEN(special_cases); i++) {
		if (special_cases[i].c == c) {
			const uint32_t *to = title ? special_cases[i].title : special_cases[i].upper;
			int r = 0;
			for (size_t k = 0; k < 3 && to[k] && r == 0; k++) {
				r = put_point(run, out, to[k]);
			}
			return r;
		}
	}
	utf8proc_int32_t p = (utf8proc_int32_t)c;
	return put_point(run, out, (uint32_t)(title ? utf8proc_totitle(p) : utf8proc_toupper(p)));
}

/* What jinja2's `title` takes for the space between words: [-\s({\[<]. */
static bool between_words(uint32_t c)
{
	return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || j_is_space(c);
}

int j_change_case(struct j_run *run, const struct j_str *s, enum j_case to, struct j_val *ret)
{
	struct j_out out = {0};
	bool in_word = false;
	size_t from = 0; /* jinja2's `title` lowers the rest of each word by itself */
	unsigned width;
	int r = 0;
	for (size_t at = 0; at < s->len && r == 0; at += width) {
		uint32_t c = point_at(s, at, &width);
		bool first = to == J_CAPITALIZE ? at == 0 : !in_word;
		if (to == J_UPPER || (to == J_TITLE_FILTER && first)) {
			r = put_upper(run, &out, c, false);
			from = to == J_TITLE_FILTER ? at + width : 0;
		} else if (to != J_LOWER && first) {
			r = put_upper(run, &out, c, true);
		} else {
			r = put_lower(run, &out, s, from, at, c);
		}
		in_word = to == J_TITLE_FILTER ? !between_words(c) : is_cased(c);
	}
	return r ? r : j_out_str(run, &out, ret);
}

bool j_is_case(const struct j_str *s, bool upper)
{
	bool any = false;
	unsigned width;
	for (size_t at = 0; at < s->len; at += width) {
		utf8proc_int32_t c = (utf8proc_int32_t)point_at(s, at, &width);
		utf8proc_category_t k = utf8proc_category(c);
		bool is_upper = k == UTF8PROC_CATEGORY_LU || (k != UTF8PROC_CATEGORY_LT &&
			utf8proc_tolower(c) != c);
		bool is_lower = k == UTF8PROC_CATEGORY_LL || (k != UTF8PROC_CATEGORY_LT &&
			utf8proc_toupper(c) != c && !is_upper);
		if (k == UTF8PROC_CATEGORY_LT || (upper ? is_lower : is_upper)) {
			return false;
		}
		any |= upper ? is_upper : is_lower;
	}
	return any;
}

/* ---- replacing and joining ----------------------------------------------------------------- */

int j_replace(struct j_run *run, const struct j_str *s, const struct j_str *old,
	const struct j_str *new, int64_t count, struct j_val *ret)
{
	struct j_out out = {0};
	size_t at = 0, copied = 0;
	unsigned width;
	int r = 0;
	while (count != 0 && r == 0 && old->len <= s->len - at) {
		const char *hit = old->len == 0 ? s->p + at : memmem(s->p + at, s->len - at, old->p, old->len);
		if (!hit) {
			break;
		}
		size_t found = (size_t)(hit - s->p);
		r = j_put(run, &out, s->p + copied, found - copied);
		r = r ? r : j_put(run, &out, new->p, new->len);
		copied = at = found + old->len;
		count--;
		if (old->len == 0) { /* between all characters, and at both ends */
			if (at == s->len) {
				break;
			}
			point_at(s, at, &width);
			at += width;
		}
	}
	r = r ? r : j_work(run, s->len);
	if (r == 0 && copied == 0 && out.len == 0) {
		return j_str(run, s->p, s->len, ret);
	}
	r = r ? r : j_put(run, &out, s->p + copied, s->len - copied);
	return r ? r : j_out_str(run, &out, ret);
}

/* any: what is no string becomes one, as the filter has it; str.join() fails. */
int j_join(struct j_run *run, const struct j_str *sep, const struct j_seq *seq, bool any,
	struct j_val *ret)
{
	struct j_out out = {0};
	int r = 0;
	for (size_t i = 0; i < seq->n && r == 0; i++) {
		if (!any && seq->items[i].type != J_STR) {
			return j_error(run, "sequence item %zu: expected str instance, %s found", i,
				j_type_name(seq->items[i]));
		}
		r = i > 0 ? j_put(run, &out, sep->p, sep->len) : 0;
		r = r ? r : j_put_str(run, &out, seq->items[i]);
	}
	return r ? r : j_out_str(run, &out, ret);
}

/* markupsafe's escape(). */
int j_escape(struct j_run *run, struct j_val v, struct j_val *ret)
{
	static const struct {
		char c;
		const char *text;
	} escapes[] = {{'&', "&amp;"}, {'>', "&gt;"}, {'<', "&lt;"}, {'\'', "&#39;"}, {'"', "&#34;"}};
	struct j_out out = {0};
	struct j_val text;
	int r = j_to_str(run, v, &text);
	for (size_t i = 0; r == 0 && i < text.s->len; i++) {
		const char *as = NULL;
		for (size_t k = 0; k < ARRAY_LEN(escapes); k++) {
			as = text.s->p[i] == escapes[k].c ? escapes[k].text : as;
		}
		r = as ? j_puts(run, &out, as) : j_put(run, &out, text.s->p + i, 1);
	}
	return r ? r : j_out_str(run, &out, ret);
}
