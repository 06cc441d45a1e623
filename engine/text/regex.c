/*
 * Oniguruma patterns on PCRE2.
 *
 * tokenizer.json files hold patterns for Oniguruma. Most of what they use means the same in PCRE2;
 * this file lets exactly that through, rewrites what differs, and refuses the rest by name, for a
 * pattern that almost means the same would give almost the same ids.
 *
 *   \s       is White_Space; PCRE2's also has U+180E. Written out.
 *   \p{L}    and other general categories: Oniguruma 6.9.10 has Unicode 16, PCRE2 10.42 has 14.
 *            The code points in between are added (unicode_later).
 *   \p{Han}  PCRE2 looks at script extensions, Oniguruma at scripts. Refused.
 *   \w \b    differ in marks and numbers. Refused.
 *   \h       is a hexadecimal digit there, white space here. Refused.
 *   ^ $      match at lines there.
 *   {n,m}+   is no possessive quantifier there. Refused, like {,n} and {n}?.
 *   (?i:ss)  matches ß there. Refused where such a pair occurs.
 */

#define PCRE2_CODE_UNIT_WIDTH 8
#include <errno.h>
#include <pcre2.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

struct regex {
	pcre2_code *code;
	char *source;
	size_t source_len;
};

struct regex_scratch {
	pcre2_match_data *match;
	pcre2_match_context *context;
	pcre2_jit_stack *stack;
};

enum {
	MAX_PATTERN = 1 << 14,
	MAX_GROUPS = 64,
	JIT_STACK_MAX = 8 << 20,
};

/* ---- translation ------------------------------------------------------------------------- */

struct translation {
	const char *in;
	size_t len, at;
	struct buf out;
	struct errmsg *err;
	bool caseless[MAX_GROUPS]; /* of the groups that are open */
	unsigned depth;
	char previous; /* the literal before, for pairs that fold into one character */
};

static int refuse(struct translation *t, const char *what, const char *instead)
{
	return errmsg_set(t->err, STATUS_INVALID,
		"the regular expression uses %s at byte %zu, which is not supported%s", what, t->at,
		instead);
}

static bool more(const struct translation *t)
{
	return t->at < t->len;
}

static bool looking_at(const struct translation *t, const char *s)
{
	size_t n = strlen(s);
	return t->len - t->at >= n && memcmp(t->in + t->at, s, n) == 0;
}

static const char space_members[] = "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}"
	"\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

/* The members of a class for a general category: "L", "Lu", … */
static int put_category(struct translation *t, const char *name)
{
	int r = buf_appendf(&t->out, "\\p{%s}", name);
	for (size_t i = 0; r == 0 && i < n_unicode_later; i++) {
		const struct category_range *c = &unicode_later[i];
		if (c->category[0] == name[0] && (!name[1] || c->category[1] == name[1])) {
			r = buf_appendf(&t->out, "\\x{%x}-\\x{%x}", c->first, c->last);
		}
	}
	return r;
}

/* Reads {Name} after \p; false when it is none that is supported. */
static bool read_category(struct translation *t, char name[3], bool *ret_negated)
{
	static const char known[] =
		" L Lu Ll Lt Lm Lo M N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So "
		"Z Zs Zl Zp ";
	size_t i = t->at;
	if (i >= t->len || t->in[i] != '{') {
		return false;
	}
	i++;
	if (i < t->len && t->in[i] == '^') {
		*ret_negated = !*ret_negated;
		i++;
	}
	size_t n = 0;
	while (i < t->len && t->in[i] != '}' && n < 3) {
		name[n++] = t->in[i++];
	}
	if (n == 0 || n > 2 || i >= t->len || t->in[i] != '}') {
		return false;
	}
	name[n] = '\0';
	char wanted[5] = {' ', name[0], n > 1 ? name[1] : ' ', n > 1 ? ' ' : '\0', '\0'};
	if (!strstr(known, wanted)) {
		return false;
	}
	t->at = i + 1;
	return true;
}

static int hex_value(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 :
		c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* \x{H…}, \xHH below 0x80, \uHHHH; t->at stands behind the letter. */
static bool read_code(struct translation *t, char letter, uint32_t *ret)
{
	bool braces = letter == 'x' && more(t) && t->in[t->at] == '{';
	size_t i = t->at + braces, digits = 0, want = letter == 'u' ? 4 : braces ? 6 : 2;
	uint32_t c = 0;
	while (i < t->len && digits < want && hex_value(t->in[i]) >= 0) {
		c = c * 16 + (uint32_t)hex_value(t->in[i++]);
		digits++;
	}
	if (digits == 0 || (!braces && digits < want) || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000) ||
			(letter == 'x' && !braces && c >= 0x80)) {
		return false;
	}
	if (braces) {
		if (i >= t->len || t->in[i] != '}') {
			return false;
		}
		i++;
	}
	t->at = i;
	*ret = c;
	return true;
}

enum item {
	ITEM_LITERAL,
	ITEM_SPACE,
	ITEM_CATEGORY,
};

struct escape {
	enum item item;
	uint32_t c;   /* literal */
	char name[3]; /* category */
	bool negated;
};

/* What stands behind a backslash. */
static int read_escape(struct translation *t, struct escape *ret)
{
	static const char letters[] = "nrtfvae", values[] = "\n\r\t\f\v\a\x1b";
	*ret = (struct escape){.item = ITEM_LITERAL};
	if (!more(t)) {
		return refuse(t, "a backslash at its end", "");
	}
	char c = t->in[t->at], what[3] = {'\\', c, '\0'};
	const char *simple = c ? strchr(letters, c) : NULL;
	t->at++;
	if (c == 's' || c == 'S') {
		ret->item = ITEM_SPACE;
		ret->negated = c == 'S';
	} else if (c == 'd' || c == 'D') {
		ret->item = ITEM_CATEGORY;
		memcpy(ret->name, "Nd", 3);
		ret->negated = c == 'D';
	} else if (c == 'p' || c == 'P') {
		ret->item = ITEM_CATEGORY;
		ret->negated = c == 'P';
		if (!read_category(t, ret->name, &ret->negated)) {
			return refuse(t, "a property that is no general category",
				" (supported are \\p{L}, \\p{Lu}, \\p{N}, \\p{P}, … but not \\p{Mn}, \\p{Mc}, "
				"\\p{C} and scripts)");
		}
	} else if (simple) {
		ret->c = (uint8_t)values[simple - letters];
	} else if (c == 'x' || c == 'u') {
		if (!read_code(t, c, &ret->c)) {
			return refuse(t, what, "");
		}
	} else if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			(uint8_t)c < ' ' || (uint8_t)c >= 0x7F) {
		return refuse(
			t, (uint8_t)c >= ' ' && (uint8_t)c < 0x7F ? what : "an escaped character", "");
	} else {
		ret->c = (uint8_t)c;
	}
	return 0;
}

static uint32_t read_literal(struct translation *t)
{
	unsigned n;
	uint32_t c = utf8_get((const uint8_t *)t->in + t->at, &n);
	t->at += n;
	return c;
}

static int put_literal(struct translation *t, uint32_t c)
{
	return buf_appendf(&t->out, "\\x{%x}", c);
}

/* In (?i:…): what case folding would join or split is refused. */
static int check_caseless(struct translation *t, uint32_t c)
{
	static const char *const pairs[] = {"ss", "ff", "fi", "fl", "st"};
	char small = (char)(c >= 'A' && c <= 'Z' ? c + 32 : c < 0x80 ? c : 0);
	if (!t->caseless[t->depth]) {
		t->previous = 0;
		return 0;
	}
	if (c >= 0x80) {
		return refuse(t, "a character that is not ASCII in (?i:…)", "");
	}
	for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
		if (t->previous == pairs[i][0] && small == pairs[i][1]) {
			return refuse(t, "letters in (?i:…) that a ligature folds to", "");
		}
	}
	t->previous = small;
	return 0;
}

static int check_caseless_set(struct translation *t, const struct escape *e)
{
	bool cased = e->item == ITEM_CATEGORY && e->name[0] == 'L' && e->name[1];
	return cased && t->caseless[t->depth] ? refuse(t, "a letter's case in (?i:…)", "") : 0;
}

static int put_set(struct translation *t, const struct escape *e)
{
	return e->item == ITEM_SPACE ? buf_append(&t->out, space_members, strlen(space_members)) :
		put_category(t, e->name);
}

/* One member of a class, or both ends of a range. */
static int translate_member(struct translation *t)
{
	struct escape e = {.item = ITEM_LITERAL};
	int r;

	if (t->in[t->at] == '[') {
		return refuse(t, "a class within a class", "");
	}
	if (looking_at(t, "&&")) {
		return refuse(t, "an intersection of classes (&&)", "");
	}
	if (t->in[t->at] == '\\') {
		t->at++;
		if ((r = read_escape(t, &e)) != 0) {
			return r;
		}
	} else {
		e.c = read_literal(t);
	}
	if (e.item != ITEM_LITERAL) {
		if (e.negated) {
			return refuse(t, "a negated set within a class", "");
		}
		if (looking_at(t, "-") && !looking_at(t, "-]")) {
			return refuse(t, "a range that starts with a set", "");
		}
		if ((r = check_caseless_set(t, &e)) != 0) {
			return r;
		}
		return put_set(t, &e);
	}
	if ((t->caseless[t->depth] && e.c >= 0x80)) {
		return refuse(t, "a character that is not ASCII in (?i:…)", "");
	}
	r = put_literal(t, e.c);
	if (r == 0 && looking_at(t, "-") && !looking_at(t, "-]") && t->at + 1 < t->len) {
		t->at++;
		struct escape last = {.item = ITEM_LITERAL};
		if (t->in[t->at] == '[') {
			return refuse(t, "a class within a class", "");
		}
		if (t->in[t->at] == '\\') {
			t->at++;
			if ((r = read_escape(t, &last)) != 0) {
				return r;
			}
		} else {
			last.c = read_literal(t);
		}
		if (last.item != ITEM_LITERAL || last.c < e.c) {
			return refuse(t, "a range that ends before it starts, or with a set", "");
		}
		r = buf_append(&t->out, "-", 1);
		r = r < 0 ? r : put_literal(t, last.c);
	}
	return r;
}

static int translate_class(struct translation *t)
{
	int r = buf_append(&t->out, "[", 1);
	t->previous = 0;
	if (r == 0 && more(t) && t->in[t->at] == '^') {
		t->at++;
		r = buf_append(&t->out, "^", 1);
	}
	if (looking_at(t, "]")) {
		return refuse(t, "an empty class, or ] as a class's first member", "");
	}
	while (r == 0 && more(t) && t->in[t->at] != ']') {
		r = translate_member(t);
	}
	if (r != 0) {
		return r;
	}
	if (!more(t)) {
		return refuse(t, "a class without its ]", "");
	}
	t->at++;
	return buf_append(&t->out, "]", 1);
}

static int translate_group(struct translation *t)
{
	static const char *const kinds[] = {"?:", "?=", "?!", "?<=", "?<!", "?>", "?i:"};
	bool caseless = t->caseless[t->depth];
	const char *kind = "?:"; /* what a group captures is of no use here */

	t->previous = 0;
	if (looking_at(t, "?")) {
		kind = NULL;
		for (size_t i = 0; i < ARRAY_LEN(kinds) && !kind; i++) {
			kind = looking_at(t, kinds[i]) ? kinds[i] : NULL;
		}
		if (!kind) {
			return refuse(t, "a kind of group", " (supported are (…), (?:…), (?i:…), (?=…), (?!…), "
				"(?<=…), (?<!…), (?>…))");
		}
		t->at += strlen(kind);
		caseless |= strcmp(kind, "?i:") == 0;
	}
	if (++t->depth == MAX_GROUPS) {
		return refuse(t, "groups nested more than 63 deep", "");
	}
	t->caseless[t->depth] = caseless;
	return buf_appendf(&t->out, "(%s", kind);
}

static int translate_braces(struct translation *t)
{
	size_t i = t->at, digits = 0;
	bool comma = false;
	for (; i < t->len && t->in[i] != '}'; i++) {
		if (t->in[i] == ',' && digits > 0 && !comma) {
			comma = true;
		} else if (t->in[i] >= '0' && t->in[i] <= '9' && i - t->at < 9) {
			digits++;
		} else {
			return refuse(t, "a { that starts no {n}, {n,} or {n,m}", " (write \\{ for a brace)");
		}
	}
	if (i >= t->len || digits == 0) {
		return refuse(t, "a { that starts no {n}, {n,} or {n,m}", " (write \\{ for a brace)");
	}
	int r = buf_appendf(&t->out, "{%.*s}", (int)(i - t->at), t->in + t->at);
	t->at = i + 1;
	if (r == 0 && more(t) && strchr("+*", t->in[t->at])) {
		return refuse(t, "a quantifier after {n,m}", "");
	}
	if (r == 0 && looking_at(t, "?")) {
		if (!comma) {
			return refuse(t, "{n}?", "");
		}
		t->at++;
		r = buf_append(&t->out, "?", 1);
	}
	if (r == 0 && more(t) && strchr("+*?{", t->in[t->at])) {
		return refuse(t, "a quantifier after a quantifier", "");
	}
	return r;
}

static int translate_quantifier(struct translation *t, char c)
{
	int r = buf_append(&t->out, &c, 1);
	if (r == 0 && more(t) && strchr("?+", t->in[t->at])) {
		r = buf_append(&t->out, t->in + t->at, 1);
		t->at++;
	}
	if (r == 0 && more(t) && strchr("+*?{", t->in[t->at])) {
		return refuse(t, "a quantifier after a quantifier", "");
	}
	return r;
}

static int translate_escape(struct translation *t)
{
	struct escape e;
	int r = read_escape(t, &e);
	if (r != 0) {
		return r;
	}
	if (e.item == ITEM_LITERAL) {
		r = check_caseless(t, e.c);
		return r != 0 ? r : put_literal(t, e.c);
	}
	if ((r = check_caseless_set(t, &e)) != 0) {
		return r;
	}
	t->previous = 0;
	r = buf_append(&t->out, e.negated ? "[^" : "[", e.negated ? 2 : 1);
	r = r < 0 ? r : put_set(t, &e);
	return r < 0 ? r : buf_append(&t->out, "]", 1);
}

static int translate_one(struct translation *t)
{
	char c = t->in[t->at];
	if (!strchr("\\[(){*+?^$.|", c) || c == '\0') {
		uint32_t literal = read_literal(t);
		int r = check_caseless(t, literal);
		return r != 0 ? r : put_literal(t, literal);
	}
	t->at++;
	switch (c) {
	case '\\':
		return translate_escape(t);
	case '[':
		return translate_class(t);
	case '(':
		return translate_group(t);
	case ')':
		t->previous = 0;
		if (t->depth == 0) {
			return refuse(t, "a ) without its (", "");
		}
		t->depth--;
		return buf_append(&t->out, ")", 1);
	case '{':
		return translate_braces(t);
	case '^':
	case '$':
		return buf_appendf(&t->out, "(?m:%c)", c);
	case '.':
	case '|':
		t->previous = 0;
		return buf_append(&t->out, &c, 1);
	default:
		return translate_quantifier(t, c);
	}
}

static int translate(struct translation *t)
{
	if (t->len > MAX_PATTERN) {
		return errmsg_set(t->err, STATUS_INVALID,
			"the regular expression has %zu bytes; supported are up to %d", t->len, MAX_PATTERN);
	}
	while (more(t)) {
		int r = translate_one(t);
		if (r != 0) {
			return r;
		}
	}
	return t->depth ? refuse(t, "a ( without its )", "") : 0;
}

/* ---- compiling and matching -------------------------------------------------------------- */

static int compile(struct regex *r, const struct buf *pattern, struct errmsg *err)
{
	int code;
	PCRE2_SIZE at;
	pcre2_compile_context *context = pcre2_compile_context_create(NULL);
	if (!context) {
		return -ENOMEM;
	}
	pcre2_set_newline(context, PCRE2_NEWLINE_LF);
	r->code = pcre2_compile(pattern->data ? pattern->data : (PCRE2_SPTR) "", pattern->len,
		PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, context);
	pcre2_compile_context_free(context);
	if (!r->code) {
		PCRE2_UCHAR text[128];
		pcre2_get_error_message(code, text, sizeof(text));
		return errmsg_set(err, STATUS_INVALID, "the regular expression is not understood: %s",
			(const char *)text);
	}
	/* Without JIT on this machine the interpreter gives the same matches, slower. */
	pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE);
	return 0;
}

int regex_new(struct regex **ret, const char *pattern, size_t len, struct errmsg *err)
{
	if (!utf8_valid(pattern, len, NULL)) {
		return errmsg_set(err, STATUS_INVALID, "the regular expression is no UTF-8");
	}
	struct regex *regex = calloc_array(1, sizeof(*regex));
	if (!regex) {
		return -ENOMEM;
	}
	struct translation t = {.in = pattern, .len = len, .err = err};
	regex->source = malloc(len + 1);
	int r = regex->source ? translate(&t) : -ENOMEM;
	if (r == 0) {
		memcpy(regex->source, pattern, len);
		regex->source_len = len;
	}
	if (r == 0) {
		r = compile(regex, &t.out, err);
	}
	buf_deinit(&t.out);
	if (r != 0) {
		regex_free(regex);
		return r;
	}
	*ret = regex;
	return 0;
}

int regex_new_pattern(struct regex **ret, const char *text, size_t len, bool literal,
	struct errmsg *err)
{
	struct buf escaped = {0};
	int r = 0;
	if (len == 0) {
		return errmsg_set(err, STATUS_INVALID, "the pattern is empty");
	}
	for (size_t i = 0; literal && i < len && r == 0; i++) {
		uint8_t c = (uint8_t)text[i];
		bool plain = c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
			(c >= 'A' && c <= 'Z') || c <= ' ' || c == 0x7F;
		r = buf_appendf(&escaped, plain ? "%c" : "\\%c", c);
	}
	if (r == 0) {
		r = literal ? regex_new(ret, (const char *)escaped.data, escaped.len, err) :
			regex_new(ret, text, len, err);
	}
	buf_deinit(&escaped);
	return r;
}

void regex_free(struct regex *r)
{
	if (r) {
		pcre2_code_free(r->code);
		free(r->source);
		free(r);
	}
}

const char *regex_source(const struct regex *r, size_t *ret_len)
{
	*ret_len = r->source_len;
	return r->source;
}

struct regex_scratch *regex_scratch_new(void)
{
	struct regex_scratch *s = calloc_array(1, sizeof(*s));
	if (!s) {
		return NULL;
	}
	s->match = pcre2_match_data_create(1, NULL);
	s->context = pcre2_match_context_create(NULL);
	s->stack = pcre2_jit_stack_create(32 << 10, JIT_STACK_MAX, NULL);
	if (!s->match || !s->context || !s->stack) {
		regex_scratch_free(s);
		return NULL;
	}
	pcre2_jit_stack_assign(s->context, NULL, s->stack);
	return s;
}

void regex_scratch_free(struct regex_scratch *s)
{
	if (s) {
		pcre2_match_data_free(s->match);
		pcre2_match_context_free(s->context);
		pcre2_jit_stack_free(s->stack);
		free(s);
	}
}

int regex_next(const struct regex *r, struct regex_scratch *scratch, struct regex_iter *it,
	const uint8_t *text, size_t len, size_t *ret_start, size_t *ret_end)
{
	while (it->at <= len) {
		int n = pcre2_match(r->code, text, len, it->at, PCRE2_NO_UTF_CHECK, scratch->match,
			scratch->context);
		if (n == PCRE2_ERROR_NOMATCH) {
			return 0;
		}
		if (n < 0) {
			return n == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -ELOOP;
		}
		const PCRE2_SIZE *match = pcre2_get_ovector_pointer(scratch->match);
		if (match[0] == match[1] && it->any && it->last_end == match[1]) {
			/* An empty match right behind the last one counts for nothing. */
			unsigned width = 1;
			if (it->at < len) {
				utf8_get(text + it->at, &width);
			}
			it->at += width;
			continue;
		}
		it->at = it->last_end = match[1];
		it->any = true;
		*ret_start = match[0];
		*ret_end = match[1];
		return 1;
	}
	return 0;
}
