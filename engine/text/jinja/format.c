/* printf-style `%` and str.format(), for strings, whole numbers and floats. */

#include "engine/text/jinja/jinja-internal.h"
#include "engine/text/unicode.h"

struct spec {
	char fill[5]; /* one character */
	char align, sign, type; /* NUL: not given */
	bool zero, alternate, comma;
	int width, precision; /* -1: not given */
};

enum { MAX_WIDTH = 10000 };

static int pad(struct j_run *run, struct j_out *out, const struct spec *spec, const char *sign,
	const char *p, size_t len)
{
	size_t points = j_count_points(p, len) + strlen(sign);
	size_t room = spec->width > 0 && (size_t)spec->width > points ?
		(size_t)spec->width - points : 0;
	size_t left = spec->align == '<' || spec->align == '=' ? 0 : spec->align == '^' ? room / 2 : room;
	int r = 0;
	for (size_t i = 0; i < left && r == 0; i++) {
		r = j_puts(run, out, spec->fill);
	}
	r = r ? r : j_puts(run, out, sign);
	for (size_t i = 0; spec->align == '=' && i < room && r == 0; i++) {
		r = j_puts(run, out, spec->fill);
	}
	r = r ? r : j_put(run, out, p, len);
	for (size_t i = left; spec->align != '=' && i < room && r == 0; i++) {
		r = j_puts(run, out, spec->fill);
	}
	return r;
}

static int put_text(struct j_run *run, struct j_out *out, struct spec spec, const struct j_str *s)
{
	size_t len = spec.precision >= 0 ? j_byte_of_point(s, (size_t)spec.precision) : s->len;
	spec.align = spec.align ? spec.align : '<';
	return pad(run, out, &spec, "", s->p, len);
}

/* Thousands of the digits before a point. */
static void add_commas(char *text, size_t size)
{
	size_t digits = strspn(text, "0123456789"), len = strlen(text);
	for (size_t at = digits; at > 3 && len + 2 < size;) {
		at -= 3;
		memmove(text + at + 1, text + at, len - at + 1);
		text[at] = ',';
		len++;
	}
}

static int put_number(struct j_run *run, struct j_out *out, struct spec spec, struct j_val v)
{
	char text[512], how[16];
	bool minus = v.type == J_FLOAT ? signbit(v.f) && !isnan(v.f) : j_integer(v) < 0;
	const char *sign = minus ? "-" : spec.sign == '+' ? "+" : spec.sign == ' ' ? " " : "";
	struct j_out plain = {0};
	int r = 0;
	if (strchr("dxXo", spec.type) && v.type != J_FLOAT) {
		uint64_t u = minus ? 0 - (uint64_t)j_integer(v) : (uint64_t)j_integer(v);
		snprintf(how, sizeof(how), "%sll%c", spec.alternate && spec.type != 'o' ? "%#" : "%",
			spec.type == 'd' ? 'u' : spec.type);
		snprintf(text, sizeof(text), how, (unsigned long long)u); // NOLINT
	} else if (spec.type && strchr("feEgG", spec.type)) {
		double f = fabs(j_real(v));
		if (!isfinite(f) || f >= 1e200 || spec.precision > 200) {
			return j_error(run, "to format such a number is not supported");
		}
		snprintf(how, sizeof(how), "%s.*%c", spec.alternate ? "%#" : "%", spec.type);
		snprintf(text, sizeof(text), how, spec.precision < 0 ? 6 : spec.precision, f); // NOLINT
	} else if (spec.type == '\0' && v.type == J_FLOAT && spec.precision < 0) {
		r = j_put_float(run, &plain, fabs(v.f));
		snprintf(text, sizeof(text), "%.*s", (int)plain.len, plain.p);
	} else {
		return j_error(run, "to format a %s this way is not supported", j_type_name(v));
	}
	if (spec.comma) {
		add_commas(text, sizeof(text));
	}
	spec.align = spec.zero && !spec.align ? '=' : spec.align ? spec.align : '>';
	return r ? r : pad(run, out, &spec, sign, text, strlen(text));
}

static int number_of(const char *p, size_t len, size_t *at, int *ret)
{
	int n = -1;
	while (*at < len && p[*at] >= '0' && p[*at] <= '9') {
		n = (n < 0 ? 0 : n) * 10 + (p[*at] - '0');
		if (n > MAX_WIDTH) {
			return -1;
		}
		(*at)++;
	}
	*ret = n;
	return 0;
}

/* ---- % ------------------------------------------------------------------------------------- */

/* Takes the argument of one conversion: of a dict by name, else the next. */
static int percent_argument(struct j_run *run, struct j_val args, const struct j_str *name,
	size_t *next, struct j_val *ret)
{
	if (name) {
		struct j_val key = j_of_str(name);
		if (args.type != J_DICT) {
			return j_error(run, "format requires a mapping");
		}
		return j_dict_get(run, args.d, key, ret) ? 0 : j_error(run, "there is no key '%.*s'",
			(int)min_i64((int64_t)name->len, 64), name->p);
	}
	size_t n = args.type == J_TUPLE ? args.seq->n : 1;
	if (*next >= n) {
		return j_error(run, "not enough arguments for format string");
	}
	*ret = args.type == J_TUPLE ? args.seq->items[*next] : args;
	(*next)++;
	return 0;
}

static int put_percent(struct j_run *run, struct j_out *out, struct spec spec, struct j_val v)
{
	struct j_out text = {0};
	struct j_val s;
	int r;
	switch (spec.type) {
	case 's':
	case 'r':
		r = spec.type == 's' ? j_put_str(run, &text, v) : j_put_repr(run, &text, v, 0);
		r = r ? r : j_out_str(run, &text, &s);
		spec.align = spec.align ? spec.align : '>';
		spec.fill[0] = ' ';
		return r ? r : put_text(run, out, spec, s.s);
	case 'i':
	case 'u':
		spec.type = 'd';
		__attribute__((fallthrough));
	case 'd':
	case 'x':
	case 'X':
	case 'o':
		if (v.type == J_UNDEFINED) {
			return j_undefined_error(run, v);
		}
		if (v.type == J_FLOAT && spec.type == 'd' && fabs(v.f) < 9e18) {
			v = j_int((int64_t)v.f);
		}
		if (!j_is_integral(v) || (spec.alternate && spec.type == 'o') || spec.precision >= 0) {
			return j_error(run, "%%%c format: a whole number is required, not %s", spec.type,
				j_type_name(v));
		}
		return put_number(run, out, spec, v);
	case 'f':
	case 'F':
	case 'e':
	case 'E':
	case 'g':
	case 'G':
		spec.type = spec.type == 'F' ? 'f' : spec.type;
		if (!j_is_number(v)) {
			return v.type == J_UNDEFINED ? j_undefined_error(run, v) :
				j_error(run, "must be real number, not %s", j_type_name(v));
		}
		return put_number(run, out, spec, v);
	default:
		return j_error(run, "unsupported format character '%c'", spec.type);
	}
}

int j_percent(struct j_run *run, struct j_val format, struct j_val args, struct j_val *ret)
{
	const struct j_str *f = format.s;
	struct j_out out = {0};
	size_t next = 0;
	bool named = false;
	int r = j_work(run, f->len);
	for (size_t at = 0; at < f->len && r == 0;) {
		if (f->p[at] != '%') {
			r = j_put(run, &out, f->p + at++, 1);
			continue;
		}
		struct spec spec = {.fill = " ", .width = -1, .precision = -1};
		struct j_val v, name = {0};
		at++;
		if (at < f->len && f->p[at] == '(') {
			const char *end = memchr(f->p + at, ')', f->len - at);
			if (!end) {
				return j_error(run, "incomplete format key");
			}
			r = j_str(run, f->p + at + 1, (size_t)(end - f->p) - at - 1, &name);
			at = (size_t)(end - f->p) + 1;
			named = true;
		}
		for (; at < f->len && f->p[at] && strchr("-+ 0#", f->p[at]); at++) {
			spec.align = f->p[at] == '-' ? '<' : spec.align;
			spec.sign = f->p[at] == '+' || (f->p[at] == ' ' && !spec.sign) ? f->p[at] : spec.sign;
			spec.zero |= f->p[at] == '0';
			spec.alternate |= f->p[at] == '#';
		}
		bool bad = number_of(f->p, f->len, &at, &spec.width) < 0;
		if (at < f->len && f->p[at] == '.') {
			at++;
			bad |= number_of(f->p, f->len, &at, &spec.precision) < 0;
			spec.precision = spec.precision < 0 ? 0 : spec.precision;
		}
		if (r != 0 || bad || at >= f->len || f->p[at] == '*') {
			return r ? r : j_error(run, at >= f->len ? "incomplete format" :
				"such a width is not supported");
		}
		spec.type = f->p[at++];
		if (spec.type == '%') {
			r = j_puts(run, &out, "%");
			continue;
		}
		if (spec.zero && !spec.align && strchr("diuxXofFeEgG", spec.type)) {
			spec.fill[0] = '0';
		}
		r = percent_argument(run, args, name.s, &next, &v);
		r = r ? r : put_percent(run, &out, spec, v);
	}
	size_t given = args.type == J_TUPLE ? args.seq->n : 1;
	bool mapping = args.type == J_DICT || args.type == J_LIST || args.type == J_RANGE ||
		args.type == J_UNDEFINED; /* those may stay unused */
	if (r == 0 && next < given && !named && !mapping) {
		return j_error(run, "not all arguments converted during string formatting");
	}
	return r ? r : j_out_str(run, &out, ret);
}

/* ---- str.format ---------------------------------------------------------------------------- */

/* [[fill]align][sign][#][0][width][,][.precision][type] */
static int parse_spec(struct j_run *run, const char *p, size_t len, struct spec *ret)
{
	struct spec spec = {.fill = " ", .width = -1, .precision = -1};
	size_t at = 0;
	unsigned first = 0;
	if (len > 0) {
		utf8_get((const uint8_t *)p, &first);
	}
	if (len > first && first > 0 && p[first] && strchr("<>^=", p[first])) {
		memcpy(spec.fill, p, first);
		spec.fill[first] = '\0';
		spec.align = p[first];
		at = first + 1;
	} else if (len > 0 && p[0] && strchr("<>^=", p[0])) {
		spec.align = p[at++];
	}
	if (at < len && p[at] && strchr("+- ", p[at])) {
		spec.sign = p[at++];
	}
	spec.alternate = at < len && p[at] == '#';
	at += spec.alternate;
	if (at < len && p[at] == '0') {
		spec.zero = true;
		if (!spec.align) {
			spec.fill[0] = '0';
			spec.fill[1] = '\0';
		}
		at++;
	}
	int r = number_of(p, len, &at, &spec.width);
	spec.comma = at < len && p[at] == ',';
	at += spec.comma;
	if (r == 0 && at < len && p[at] == '.') {
		at++;
		r = number_of(p, len, &at, &spec.precision);
		r = spec.precision < 0 ? -1 : r;
	}
	spec.type = at < len ? p[at++] : '\0';
	*ret = spec;
	return r < 0 || at < len ? j_error(run, "Invalid format specifier '%.*s'",
		(int)min_i64((int64_t)len, 64), p) : 0;
}

static int put_formatted(struct j_run *run, struct j_out *out, struct spec spec, struct j_val v)
{
	if (v.type == J_STR && (spec.type == '\0' || spec.type == 's')) {
		if (spec.sign || spec.align == '=' || spec.comma || spec.alternate) {
			return j_error(run, "this format is not allowed for a string");
		}
		return put_text(run, out, spec, v.s);
	}
	if (v.type == J_INT || (v.type == J_BOOL && spec.type) || v.type == J_FLOAT) {
		spec.type = spec.type == '\0' && v.type != J_FLOAT ? 'd' : spec.type;
		if (v.type != J_FLOAT && (spec.type == '\0' || strchr("dxXo", spec.type)) &&
			spec.precision >= 0) {
			return j_error(run, "Precision not allowed in integer format specifier");
		}
		if (spec.alternate && spec.type == 'o') {
			return j_error(run, "this format is not supported");
		}
		return put_number(run, out, spec, v);
	}
	if (spec.type || spec.width >= 0 || spec.precision >= 0 || spec.align || spec.sign) {
		return j_error(run, "unsupported format string passed to %s", j_type_name(v));
	}
	return j_put_str(run, out, v);
}

/* What a field names: "", "0", "name", with ".attribute" and "[key]" behind it. */
static int field_value(struct j_run *run, const char *p, size_t len, const struct j_args *args,
	size_t *next, struct j_val *ret)
{
	size_t at = 0, n = 0;
	bool number = true, found = false;
	while (at < len && p[at] != '.' && p[at] != '[') {
		number &= p[at] >= '0' && p[at] <= '9';
		n = number && at < 9 ? n * 10 + (size_t)(p[at] - '0') : n;
		at++;
	}
	if (number) {
		n = at == 0 ? (*next)++ : n;
		if (n >= args->n) {
			return j_error(run, "Replacement index %zu out of range for positional args tuple", n);
		}
		*ret = args->pos[n];
		found = true;
	}
	for (size_t i = 0; i < args->n_kw && !found; i++) {
		if (args->kw[i].name->len == at && memcmp(args->kw[i].name->p, p, at) == 0) {
			*ret = args->kw[i].value;
			found = true;
		}
	}
	if (!found) {
		return j_error(run, "there is no argument '%.*s'", (int)min_i64((int64_t)at, 64), p);
	}
	return at == len ? 0 : j_error(run, "to format parts of an argument is not supported");
}

static int put_field(struct j_run *run, struct j_out *out, const char *p, size_t len,
	const struct j_args *args, size_t *next)
{
	const char *colon = memchr(p, ':', len), *mark = memchr(p, '!', len);
	size_t name = colon ? (size_t)(colon - p) : len;
	mark = mark && (size_t)(mark - p) < name ? mark : NULL;
	size_t spec_at = colon ? name + 1 : len;
	struct j_out text = {0};
	struct spec spec;
	struct j_val v;
	int r = 0;
	if (mark) {
		name = (size_t)(mark - p);
	}
	r = field_value(run, p, name, args, next, &v);
	if (r == 0 && mark) {
		size_t end = colon ? (size_t)(colon - p) : len;
		if (end != name + 2 || (mark[1] != 'r' && mark[1] != 's')) {
			return j_error(run, "such a conversion is not supported");
		}
		r = mark[1] == 'r' ? j_put_repr(run, &text, v, 0) : j_put_str(run, &text, v);
		r = r ? r : j_out_str(run, &text, &v);
	}
	r = r ? r : parse_spec(run, p + spec_at, len - spec_at, &spec);
	return r ? r : put_formatted(run, out, spec, v);
}

int j_format(struct j_run *run, const struct j_str *f, const struct j_args *args,
	struct j_val *ret)
{
	struct j_out out = {0};
	size_t next = 0;
	int r = j_work(run, f->len);
	for (size_t at = 0; at < f->len && r == 0;) {
		char c = f->p[at];
		bool twice = at + 1 < f->len && f->p[at + 1] == c;
		if ((c != '{' && c != '}') || twice) {
			r = j_put(run, &out, &c, 1);
			at += c == '{' || c == '}' ? 2 : 1;
			continue;
		}
		const char *end = c == '{' ? memchr(f->p + at, '}', f->len - at) : NULL;
		if (!end) {
			return j_error(run, "Single '%c' encountered in format string", c);
		}
		size_t len = (size_t)(end - f->p) - at - 1;
		if (memchr(f->p + at + 1, '{', len)) {
			return j_error(run, "a format within a format is not supported");
		}
		r = put_field(run, &out, f->p + at + 1, len, args, &next);
		at += len + 2;
	}
	return r ? r : j_out_str(run, &out, ret);
}
