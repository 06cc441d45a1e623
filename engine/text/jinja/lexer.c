/*
 * From a template's source to tokens.
 *
 * What white space around a tag belongs to the text follows jinja2's lexer with trim_blocks and
 * lstrip_blocks set: `-` takes all of it on its side; without a sign a block or comment that begins a
 * line loses what stands before it there, and the newline behind a block or comment goes; `+` keeps
 * either. A {{ }} keeps all unless it has a `-`.
 */

#include "engine/text/jinja/jinja-internal.h"
#include "engine/text/unicode.h"

struct lexer {
	struct j_parser *p;
	const char *s;
	size_t len, at;
	unsigned line;
	bool line_starting; /* what was read last ends with a newline */
	char closing[J_MAX_NESTING]; /* brackets that are open */
	unsigned n_closing;
};

static int add_token(struct lexer *l, struct j_token token)
{
	struct j_parser *p = l->p;
	if (p->n == p->cap) {
		size_t cap = p->cap ? 2 * p->cap : 256;
		struct j_token *tokens = realloc_array(p->tokens, cap, sizeof(*tokens));
		if (!tokens) {
			return -ENOMEM;
		}
		p->tokens = tokens;
		p->cap = cap;
	}
	p->tokens[p->n++] = token;
	return 0;
}

static void advance(struct lexer *l, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		l->line += l->s[l->at + i] == '\n';
	}
	l->at += n;
	l->line_starting = n > 0 && l->s[l->at - 1] == '\n';
}

static bool looking_at(const struct lexer *l, size_t at, const char *text)
{
	size_t n = strlen(text);
	return l->len - at >= n && memcmp(l->s + at, text, n) == 0;
}

/* Bytes of white space at `at`. */
static size_t spaces_at(const struct lexer *l, size_t at)
{
	size_t start = at;
	unsigned width;
	while (at < l->len && j_is_space(utf8_get((const uint8_t *)l->s + at, &width))) {
		at += width;
	}
	return at - start;
}

/* Bytes of s[start … end) without the white space at its end. */
static size_t without_end_space(const char *s, size_t start, size_t end)
{
	unsigned width;
	while (end > start) {
		size_t n = utf8_last_len((const uint8_t *)s + start, end - start);
		if (!j_is_space(utf8_get((const uint8_t *)s + end - n, &width))) {
			break;
		}
		end -= n;
	}
	return end;
}

/* The text [l->at, end) before a tag with `sign`; `block`: not a {{. Leaves l->at at `end`. */
static int add_data(struct lexer *l, size_t end, char sign, bool block)
{
	size_t start = l->at, cut = end;
	unsigned line = l->line;
	if (sign == '-') {
		cut = without_end_space(l->s, start, end);
	} else if (sign != '+' && block) {
		size_t line_start = end;
		while (line_start > start && l->s[line_start - 1] != '\n') {
			line_start--;
		}
		if ((line_start > start || l->line_starting) &&
			without_end_space(l->s, line_start, end) == line_start) {
			cut = line_start;
		}
	}
	bool starting = l->line_starting;
	advance(l, end - start);
	l->line_starting = end > start ? l->line_starting : starting;
	return cut == start ? 0 : add_token(l, (struct j_token){
		.type = T_DATA, .line = line, .p = l->s + start, .len = cut - start});
}

/* ---- tokens inside tags -------------------------------------------------------------------- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_name_start(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

/* Digits with single underscores between them, from `at` on: where they end. */
static size_t digits_end(const struct lexer *l, size_t at)
{
	while (at < l->len && (is_digit(l->s[at]) || (l->s[at] == '_' && at + 1 < l->len &&
			is_digit(l->s[at + 1]) && at > 0 && is_digit(l->s[at - 1])))) {
		at++;
	}
	return at;
}

/* Where a float that starts here ends; 0: there is none. */
static size_t float_end(const struct lexer *l)
{
	size_t at = digits_end(l, l->at), end = 0;
	if (l->at > 0 && l->s[l->at - 1] == '.') {
		return 0;
	}
	if (at + 1 < l->len && l->s[at] == '.' && is_digit(l->s[at + 1])) {
		end = at = digits_end(l, at + 1);
	}
	if (at < l->len && (l->s[at] | 0x20) == 'e') {
		size_t digits = at + 1;
		digits += digits < l->len && (l->s[digits] == '+' || l->s[digits] == '-');
		if (digits < l->len && is_digit(l->s[digits])) {
			end = digits_end(l, digits);
		}
	}
	return end;
}

static unsigned digit_value(char c)
{
	return is_digit(c) ? (unsigned)(c - '0') :
		(c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (unsigned)((c | 0x20) - 'a' + 10) : 99;
}

static int take_integer(struct lexer *l)
{
	unsigned base = 10;
	size_t at = l->at;
	int64_t value = 0;
	if (l->s[at] == '0' && at + 1 < l->len) {
		char c = (char)(l->s[at + 1] | 0x20);
		base = c == 'b' ? 2 : c == 'o' ? 8 : c == 'x' ? 16 : 10;
		size_t first = at + 2 + (at + 2 < l->len && l->s[at + 2] == '_');
		if (base != 10 && (first >= l->len || digit_value(l->s[first]) >= base)) {
			base = 10;
		}
		at += base != 10 ? 2 : 0;
	}
	bool zero = base == 10 && l->s[at] == '0';
	while (at < l->len) {
		size_t digit = at + (l->s[at] == '_' && at + 1 < l->len);
		unsigned d = digit_value(l->s[digit]);
		if (d >= base || (zero && d != 0)) {
			break;
		}
		if (__builtin_mul_overflow(value, (int64_t)base, &value) ||
			__builtin_add_overflow(value, (int64_t)d, &value)) {
			return j_syntax(l->p, l->line, "a whole number beyond 64 bits is not supported");
		}
		at = digit + 1;
	}
	int r = add_token(l, (struct j_token){.type = T_INTEGER, .line = l->line, .i = value});
	advance(l, at - l->at);
	return r;
}

static int take_float(struct lexer *l, size_t end)
{
	char text[64];
	size_t n = 0;
	for (size_t i = l->at; i < end; i++) {
		if (l->s[i] != '_') {
			if (n + 1 >= sizeof(text)) {
				return j_syntax(l->p, l->line, "a number this long is not supported");
			}
			text[n++] = l->s[i];
		}
	}
	text[n] = '\0';
	int r = add_token(l, (struct j_token){.type = T_FLOAT, .line = l->line,
		.f = strtod(text, NULL)});
	advance(l, end - l->at);
	return r;
}

/* The code point of an escape with `n` hexadecimal digits at `at`. */
static int hex_escape(struct lexer *l, size_t at, size_t end, unsigned n, uint32_t *ret)
{
	uint32_t c = 0;
	for (unsigned i = 0; i < n; i++) {
		unsigned d = at + i < end ? digit_value(l->s[at + i]) : 99;
		if (d > 15) {
			return j_syntax(l->p, l->line, "a string's escape needs %u hexadecimal digits", n);
		}
		c = c << 4 | d;
	}
	if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) {
		return j_syntax(l->p, l->line, "a string's escape is no character: U+%04X", c);
	}
	*ret = c;
	return 0;
}

/* One escape at l->s[*at], behind the backslash, as Python's string literals have them. */
static int take_escape(struct lexer *l, size_t *at, size_t end, char *out, size_t *n)
{
	static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
	char c = l->s[*at];
	const char *simple = c ? strchr(from, c) : NULL;
	uint32_t point = 0;
	int r = 0;
	if (simple) {
		out[(*n)++] = to[simple - from];
		(*at)++;
		return 0;
	}
	if (c == '\n') {
		(*at)++;
		return 0;
	}
	if (c == 'x' || c == 'u' || c == 'U') {
		unsigned digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
		r = hex_escape(l, *at + 1, end, digits, &point);
		*at += 1 + digits;
	} else if (c >= '0' && c <= '7') {
		for (unsigned i = 0; i < 3 && *at < end && l->s[*at] >= '0' && l->s[*at] <= '7'; i++) {
			point = point * 8 + (uint32_t)(l->s[(*at)++] - '0');
		}
	} else if (c == 'N') {
		return j_syntax(l->p, l->line, "a character by its name (\\N) is not supported");
	} else {
		out[(*n)++] = '\\'; /* what is no escape stays as it is */
		return 0;
	}
	if (r == 0) {
		*n += utf8_put(point, (uint8_t *)out + *n);
	}
	return r;
}

static int take_string(struct lexer *l)
{
	char quote = l->s[l->at];
	size_t end = l->at + 1, n = 0;
	while (end < l->len && l->s[end] != quote) {
		end += l->s[end] == '\\' ? 2 : 1;
	}
	if (end >= l->len) {
		return j_syntax(l->p, l->line, "unexpected char %s: a string that does not end",
			quote == '"' ? "'\"'" : "\"'\"");
	}
	char *out = j_arena_alloc(&l->p->t->arena, end - l->at + 4);
	if (!out) {
		return -ENOMEM;
	}
	for (size_t at = l->at + 1; at < end;) {
		if (l->s[at] == '\\') {
			at++;
			int r = take_escape(l, &at, end, out, &n);
			if (r != 0) {
				return r;
			}
		} else {
			out[n++] = l->s[at++];
		}
	}
	int r = add_token(l, (struct j_token){.type = T_STRING, .line = l->line, .p = out, .len = n});
	advance(l, end + 1 - l->at);
	return r;
}

static const struct {
	const char *text;
	enum j_token_type type;
} signs[] = {
	{"//", T_FLOORDIV}, {"**", T_POW}, {"==", T_EQ}, {"!=", T_NE}, {">=", T_GE}, {"<=", T_LE},
	{"+", T_ADD}, {"-", T_SUB}, {"/", T_DIV}, {"*", T_MUL}, {"%", T_MOD}, {"~", T_TILDE},
	{"[", T_LBRACKET}, {"]", T_RBRACKET}, {"(", T_LPAREN}, {")", T_RPAREN}, {"{", T_LBRACE},
	{"}", T_RBRACE}, {">", T_GT}, {"<", T_LT}, {"=", T_ASSIGN}, {".", T_DOT}, {":", T_COLON},
	{"|", T_PIPE}, {",", T_COMMA}, {";", T_SEMICOLON},
};

const char *j_token_name(enum j_token_type type)
{
	static const char *const names[] = {
		[T_EOF] = "end of template",
		[T_DATA] = "template data / text",
		[T_VARIABLE_BEGIN] = "begin of print statement",
		[T_VARIABLE_END] = "end of print statement",
		[T_BLOCK_BEGIN] = "begin of statement block",
		[T_BLOCK_END] = "end of statement block",
		[T_NAME] = "name",
		[T_STRING] = "string",
		[T_INTEGER] = "integer",
		[T_FLOAT] = "float",
	};
	for (size_t i = 0; i < ARRAY_LEN(signs); i++) {
		if (signs[i].type == type) {
			return signs[i].text;
		}
	}
	return names[type];
}

static int balance(struct lexer *l, char c)
{
	if (c == '(' || c == '[' || c == '{') {
		if (l->n_closing == J_MAX_NESTING) {
			return j_syntax(l->p, l->line, "brackets nested more than %d deep", J_MAX_NESTING);
		}
		l->closing[l->n_closing++] = c == '(' ? ')' : c == '[' ? ']' : '}';
	} else if (c == ')' || c == ']' || c == '}') {
		if (l->n_closing == 0) {
			return j_syntax(l->p, l->line, "unexpected '%c'", c);
		}
		char expected = l->closing[--l->n_closing];
		if (expected != c) {
			return j_syntax(l->p, l->line, "unexpected '%c', expected '%c'", c, expected);
		}
	}
	return 0;
}

static int take_sign(struct lexer *l)
{
	unsigned width;
	for (size_t i = 0; i < ARRAY_LEN(signs); i++) {
		if (looking_at(l, l->at, signs[i].text)) {
			size_t n = strlen(signs[i].text);
			int r = n == 1 ? balance(l, l->s[l->at]) : 0;
			r = r ? r : add_token(l, (struct j_token){.type = signs[i].type, .line = l->line,
				.p = l->s + l->at, .len = n});
			advance(l, n);
			return r;
		}
	}
	utf8_get((const uint8_t *)l->s + l->at, &width);
	return j_syntax(l->p, l->line, "unexpected char '%.*s'", (int)width, l->s + l->at);
}

/* The bytes of a tag's end at l->at; 0: it does not end here. */
static size_t end_of_tag(const struct lexer *l, bool block)
{
	const char *end = block ? "%}" : "}}";
	if (l->s[l->at] == '-' && looking_at(l, l->at + 1, end)) {
		return 3 + spaces_at(l, l->at + 3);
	}
	if (block && l->s[l->at] == '+' && looking_at(l, l->at + 1, end)) {
		return 3;
	}
	if (looking_at(l, l->at, end)) {
		return 2 + (block && l->at + 2 < l->len && l->s[l->at + 2] == '\n');
	}
	return 0;
}

static int take_token(struct lexer *l)
{
	char c = l->s[l->at];
	size_t n = spaces_at(l, l->at);
	if (n > 0) {
		advance(l, n);
		return 0;
	}
	if (is_digit(c)) {
		size_t end = float_end(l);
		return end ? take_float(l, end) : take_integer(l);
	}
	if (is_name_start(c)) {
		while (l->at + n < l->len && (is_name_start(l->s[l->at + n]) || is_digit(l->s[l->at + n]))) {
			n++;
		}
		int r = add_token(l, (struct j_token){.type = T_NAME, .line = l->line, .p = l->s + l->at,
			.len = n});
		advance(l, n);
		return r;
	}
	return c == '\'' || c == '"' ? take_string(l) : take_sign(l);
}

static int take_tag(struct lexer *l, bool block)
{
	int r = add_token(l, (struct j_token){
		.type = block ? T_BLOCK_BEGIN : T_VARIABLE_BEGIN, .line = l->line});
	l->n_closing = 0;
	while (r == 0 && l->at < l->len) {
		size_t n = l->n_closing == 0 ? end_of_tag(l, block) : 0;
		if (n > 0) {
			r = add_token(l, (struct j_token){
				.type = block ? T_BLOCK_END : T_VARIABLE_END, .line = l->line});
			advance(l, n);
			return r;
		}
		r = take_token(l);
	}
	return r; /* the parser meets the end where something else must stand */
}

/* ---- comments and raw text ----------------------------------------------------------------- */

static int take_comment(struct lexer *l)
{
	for (size_t at = l->at; at < l->len; at++) {
		size_t n = 0;
		if ((l->s[at] == '-' || l->s[at] == '+') && looking_at(l, at + 1, "#}")) {
			n = 3 + (l->s[at] == '-' ? spaces_at(l, at + 3) : 0);
		} else if (looking_at(l, at, "#}")) {
			n = 2 + (at + 2 < l->len && l->s[at + 2] == '\n');
		}
		if (n > 0) {
			advance(l, at + n - l->at);
			return 0;
		}
	}
	/* jinja2 lets it pass where nothing at all follows */
	return l->at == l->len ? 0 : j_syntax(l->p, l->line, "Missing end of comment tag");
}

/* The bytes of `{% name %}` at `at` with its signs and white space; 0: it is something else. */
static size_t raw_tag(const struct lexer *l, size_t at, const char *name, bool end, char *ret_sign)
{
	size_t i = at;
	if (!looking_at(l, i, "{%")) {
		return 0;
	}
	i += 2;
	*ret_sign = i < l->len && (l->s[i] == '-' || l->s[i] == '+') ? l->s[i] : '\0';
	i += *ret_sign != '\0';
	i += spaces_at(l, i);
	if (!looking_at(l, i, name)) {
		return 0;
	}
	i += strlen(name);
	i += spaces_at(l, i);
	if (looking_at(l, i, "-%}")) {
		return i + 3 + spaces_at(l, i + 3) - at;
	}
	if (end && looking_at(l, i, "+%}")) {
		return i + 3 - at;
	}
	return !looking_at(l, i, "%}") ? 0 :
		i + 2 + (end && i + 2 < l->len && l->s[i + 2] == '\n') - at;
}

static int take_raw(struct lexer *l)
{
	char sign;
	for (size_t at = l->at; at < l->len; at++) {
		size_t n = l->s[at] == '{' ? raw_tag(l, at, "endraw", true, &sign) : 0;
		if (n > 0) {
			int r = add_data(l, at, sign, true);
			advance(l, n);
			return r;
		}
	}
	return l->at == l->len ? 0 : j_syntax(l->p, l->line, "Missing end of raw directive");
}

/* ---- the whole ----------------------------------------------------------------------------- */

static int take_text(struct lexer *l)
{
	size_t at = l->at;
	while (at + 1 < l->len && !(l->s[at] == '{' && (l->s[at + 1] == '{' || l->s[at + 1] == '%' ||
			l->s[at + 1] == '#'))) {
		at++;
	}
	if (at + 1 >= l->len) {
		return add_data(l, l->len, '+', false);
	}
	char sign, kind = l->s[at + 1];
	size_t raw = kind == '%' ? raw_tag(l, at, "raw", false, &sign) : 0;
	if (raw == 0) {
		sign = at + 2 < l->len && (l->s[at + 2] == '-' || l->s[at + 2] == '+') ? l->s[at + 2] : '\0';
	}
	int r = add_data(l, at, sign, kind != '{');
	advance(l, raw ? raw : sign ? 3 : 2);
	if (r != 0) {
		return r;
	}
	return raw ? take_raw(l) : kind == '#' ? take_comment(l) : take_tag(l, kind == '%');
}

/* jinja2 reads \r\n and \r as \n, and one newline at the end of a template is none. */
static size_t normalize(char *out, const char *source, size_t len)
{
	size_t n = 0;
	for (size_t i = 0; i < len; i++) {
		if (source[i] == '\r') {
			i += i + 1 < len && source[i + 1] == '\n';
			out[n++] = '\n';
		} else {
			out[n++] = source[i];
		}
	}
	return n > 0 && out[n - 1] == '\n' ? n - 1 : n;
}

int j_lex(struct j_parser *p, const char *source, size_t len)
{
	char *text = j_arena_alloc(&p->t->arena, len + 1);
	if (!text) {
		return -ENOMEM;
	}
	struct lexer l = {.p = p, .s = text, .line = 1, .line_starting = true};
	l.len = normalize(text, source, len);
	text[l.len] = '\0';
	int r = 0;
	while (r == 0 && l.at < l.len) {
		r = take_text(&l);
	}
	return r ? r : add_token(&l, (struct j_token){.type = T_EOF, .line = l.line});
}
