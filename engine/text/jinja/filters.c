/* Filters of single values, and how filters are found. */

#include "engine/text/jinja/jinja-internal.h"

/* ---- arguments ----------------------------------------------------------------------------- */

struct j_args j_args_from(const struct j_args *args, size_t n)
{
	struct j_args rest = *args;
	rest.pos += args->n < n ? args->n : n;
	rest.n -= args->n < n ? args->n : n;
	return rest;
}

int j_want_int(struct j_run *run, struct j_val v, int64_t otherwise, int64_t *ret)
{
	if (v.type == J_MISSING) {
		*ret = otherwise;
		return 0;
	}
	if (!j_is_integral(v)) {
		return v.type == J_UNDEFINED ? j_undefined_error(run, v) :
			j_error(run, "'%s' object cannot be interpreted as an integer", j_type_name(v));
	}
	*ret = j_integer(v);
	return 0;
}

int j_want_str(struct j_run *run, struct j_val v, const struct j_str **ret)
{
	*ret = NULL;
	if (v.type == J_MISSING || v.type == J_NONE) {
		return 0;
	}
	if (v.type != J_STR) {
		return v.type == J_UNDEFINED ? j_undefined_error(run, v) :
			j_error(run, "a string is needed, not %s", j_type_name(v));
	}
	*ret = v.s;
	return 0;
}

int j_keep_markup(struct j_run *run, struct j_val was, struct j_val *io)
{
	if (was.type != J_STR || !was.s->markup || io->type != J_STR) {
		return 0;
	}
	struct j_str *s = j_alloc(run, 1, sizeof(*s));
	if (!s) {
		return j_no_memory(run);
	}
	*s = *io->s;
	s->markup = true;
	io->s = s;
	return 0;
}

/* Binds `names`, none of them required, and fails with the filter's name. */
#define BIND(what, ...) \
	static const char *const names[] = {__VA_ARGS__}; \
	struct j_val a[ARRAY_LEN(names)]; \
	int r = j_bind(run, what, args, names, ARRAY_LEN(names), 0, a); \
	if (r != 0) { \
		return r; \
	}

static int no_arguments(struct j_run *run, const struct j_args *args)
{
	return args->n == 0 && args->n_kw == 0 ? 0 : j_error(run, "this filter takes no arguments");
}

/* ---- text ---------------------------------------------------------------------------------- */

static int filter_string(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	int r = no_arguments(run, args);
	return r ? r : j_to_str(run, self, ret);
}

static int changed_case(struct j_run *run, struct j_val self, const struct j_args *args,
	enum j_case to, struct j_val *ret)
{
	struct j_val s;
	int r = no_arguments(run, args);
	r = r ? r : j_to_str(run, self, &s);
	r = r ? r : j_change_case(run, s.s, to, ret);
	return r ? r : j_keep_markup(run, s, ret);
}

static int filter_upper(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return changed_case(run, self, args, J_UPPER, ret);
}

static int filter_lower(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return changed_case(run, self, args, J_LOWER, ret);
}

static int filter_capitalize(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return changed_case(run, self, args, J_CAPITALIZE, ret);
}

static int filter_title(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return changed_case(run, self, args, J_TITLE_FILTER, ret);
}

static int filter_trim(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("trim", "chars")
	const struct j_str *chars = NULL;
	struct j_val s;
	r = j_to_str(run, self, &s);
	r = r ? r : j_want_str(run, a[0], &chars);
	r = r ? r : j_strip(run, s.s, chars, true, true, ret);
	return r ? r : j_keep_markup(run, s, ret);
}

static int filter_replace(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const char *const names[] = {"old", "new", "count"};
	struct j_val a[3], s, old, new;
	int64_t count = -1;
	int r = j_bind(run, "replace", args, names, 3, 2, a);
	r = r ? r : j_to_str(run, self, &s);
	r = r ? r : j_to_str(run, a[0], &old);
	r = r ? r : j_to_str(run, a[1], &new);
	r = r || a[2].type == J_NONE ? r : j_want_int(run, a[2], -1, &count);
	return r ? r : j_replace(run, s.s, old.s, new.s, count, ret);
}

static int filter_safe(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	int r = filter_string(run, self, args, ret);
	struct j_str mark = {.markup = true};
	return r ? r : j_keep_markup(run, j_of_str(&mark), ret);
}

static int filter_escape(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct j_str mark = {.markup = true};
	int r = no_arguments(run, args);
	if (r == 0 && self.type == J_STR && self.s->markup) {
		*ret = self;
		return 0;
	}
	r = r ? r : j_escape(run, self, ret);
	return r ? r : j_keep_markup(run, j_of_str(&mark), ret);
}

static int filter_format(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct j_val s, v;
	int r = j_to_str(run, self, &s);
	if (r == 0 && args->n_kw > 0) {
		if (args->n > 0) {
			return j_error(run,
				"can't handle positional and keyword arguments at the same time");
		}
		r = j_dict(run, args->n_kw, &v);
		for (size_t i = 0; i < args->n_kw && r == 0; i++) {
			r = j_dict_set(run, v.d, j_of_str(args->kw[i].name), args->kw[i].value);
		}
	} else if (r == 0) {
		r = j_seq(run, J_TUPLE, args->pos, args->n, &v);
	}
	return r ? r : j_percent(run, s, v, ret);
}

static int filter_center(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("center", "width")
	struct j_out out = {0};
	struct j_val s;
	int64_t width = 0;
	r = j_to_str(run, self, &s);
	r = r ? r : j_want_int(run, a[0], 80, &width);
	int64_t room = r == 0 ? max_i64(0, width - (int64_t)s.s->n) : 0;
	int64_t left = room / 2 + (room & width & 1);
	for (int64_t i = 0; i < left && r == 0; i++) {
		r = j_puts(run, &out, " ");
	}
	r = r ? r : j_put(run, &out, s.s->p, s.s->len);
	for (int64_t i = left; i < room && r == 0; i++) {
		r = j_puts(run, &out, " ");
	}
	return r ? r : j_out_str(run, &out, ret);
}

static int filter_indent(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("indent", "width", "first", "blank")
	struct j_out out = {0}, by = {0};
	struct j_val lines, text;
	int64_t width = 4;
	if (self.type != J_STR) {
		return self.type == J_UNDEFINED ? j_undefined_error(run, self) :
			j_error(run, "indent needs a string, not %s", j_type_name(self));
	}
	r = a[0].type == J_STR ? j_put(run, &by, a[0].s->p, a[0].s->len) :
		j_want_int(run, a[0], 4, &width);
	for (int64_t i = 0; a[0].type != J_STR && i < width && r == 0; i++) {
		r = j_puts(run, &by, " ");
	}
	bool first = a[1].type != J_MISSING && j_truth(a[1]);
	bool blank = a[2].type != J_MISSING && j_truth(a[2]);
	/* jinja2 adds a newline before it splits, so that one at the end is kept */
	struct j_out with = {0};
	r = r ? r : j_put(run, &with, self.s->p, self.s->len);
	r = r ? r : j_puts(run, &with, "\n");
	r = r ? r : j_out_str(run, &with, &text);
	r = r ? r : j_splitlines(run, text.s, false, &lines);
	for (size_t i = 0; r == 0 && i < lines.seq->n; i++) {
		const struct j_str *line = lines.seq->items[i].s;
		bool indented = i == 0 ? first : blank || line->len > 0;
		r = i > 0 ? j_puts(run, &out, "\n") : 0;
		r = r || !indented ? r : j_put(run, &out, by.p, by.len);
		r = r ? r : j_put(run, &out, line->p, line->len);
	}
	r = r ? r : j_out_str(run, &out, ret);
	return r ? r : j_keep_markup(run, self, ret);
}

static int filter_truncate(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("truncate", "length", "killwords", "end", "leeway")
	const struct j_str *end = NULL;
	static const struct j_str dots = {.p = "...", .len = 3, .n = 3};
	struct j_out out = {0};
	struct j_val cut;
	int64_t length, leeway;
	r = j_want_int(run, a[0], 255, &length);
	r = r ? r : j_want_str(run, a[2], &end);
	r = r || a[3].type == J_NONE ? r : j_want_int(run, a[3], 5, &leeway);
	leeway = a[3].type == J_NONE ? 5 : leeway;
	end = end ? end : &dots;
	if (r != 0 || length < (int64_t)end->n || leeway < 0) {
		return r ? r : j_error(run, "truncate needs a length of at least that of its end, and a "
			"leeway that is not negative");
	}
	size_t n = 0;
	r = j_length(run, self, &n);
	if (r != 0 || (int64_t)n <= length || (int64_t)n - length <= leeway) {
		*ret = self;
		return r;
	}
	if (self.type != J_STR) {
		return j_error(run, "truncate needs a string, not %s", j_type_name(self));
	}
	r = j_substr(run, self.s, 0, (size_t)length - end->n, &cut);
	if (r == 0 && !(a[1].type != J_MISSING && j_truth(a[1]))) {
		const char *space = memrchr(cut.s->p, ' ', cut.s->len);
		r = space ? j_str(run, cut.s->p, (size_t)(space - cut.s->p), &cut) : 0;
	}
	r = r ? r : j_put(run, &out, cut.s->p, cut.s->len);
	r = r ? r : j_put(run, &out, end->p, end->len);
	return r ? r : j_out_str(run, &out, ret);
}

/* ---- numbers ------------------------------------------------------------------------------- */

/* Python's int() of text: false where that fails. */
static bool read_int(const struct j_str *s, unsigned base, int64_t *ret)
{
	size_t at = 0;
	bool digit = false, minus = at < s->len && s->p[at] == '-';
	int64_t v = 0;
	at += minus || (at < s->len && s->p[at] == '+');
	if (base != 10 && at + 1 < s->len && s->p[at] == '0' &&
		(s->p[at + 1] | 0x20) == (base == 2 ? 'b' : base == 8 ? 'o' : base == 16 ? 'x' : 0)) {
		at += 2;
	}
	for (; at < s->len; at++) {
		char c = s->p[at];
		if (c == '_' && digit && at + 1 < s->len) {
			digit = false;
			continue;
		}
		unsigned d = c >= '0' && c <= '9' ? (unsigned)(c - '0') :
			(c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (unsigned)((c | 0x20) - 'a' + 10) : 99;
		if (d >= base || __builtin_mul_overflow(v, (int64_t)base, &v) ||
			__builtin_add_overflow(v, (int64_t)d, &v)) {
			return false;
		}
		digit = true;
	}
	*ret = minus ? -v : v;
	return digit;
}

static bool read_float(const struct j_str *s, double *ret)
{
	char text[128], *end;
	size_t n = 0;
	for (size_t i = 0; i < s->len; i++) {
		bool between = i > 0 && i + 1 < s->len && s->p[i - 1] >= '0' && s->p[i - 1] <= '9' &&
			s->p[i + 1] >= '0' && s->p[i + 1] <= '9';
		if (s->p[i] == '_' && between) {
			continue;
		}
		if (n + 1 >= sizeof(text) || s->p[i] == 'x' || s->p[i] == 'X' || s->p[i] == '(' ||
			s->p[i] == '\0') {
			return false;
		}
		text[n++] = s->p[i];
	}
	text[n] = '\0';
	*ret = strtod(text, &end);
	return n > 0 && *end == '\0' && !j_is_space((uint8_t)text[0]);
}

/* The number of a value as Python's float() has it; *ret_has false for what it refuses. */
static int to_float(struct j_run *run, struct j_val v, bool *ret_has, double *ret)
{
	struct j_val s;
	*ret_has = true;
	if (v.type == J_UNDEFINED) {
		return j_undefined_error(run, v);
	}
	if (j_is_number(v)) {
		*ret = j_real(v);
		return 0;
	}
	int r = v.type == J_STR ? j_strip(run, v.s, NULL, true, true, &s) : 0;
	*ret_has = r == 0 && v.type == J_STR && read_float(s.s, ret);
	return r;
}

static int filter_float(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("float", "default")
	bool has;
	double f = 0;
	r = to_float(run, self, &has, &f);
	*ret = has ? j_float(f) : a[0].type == J_MISSING ? j_float(0) : a[0];
	return r;
}

static int filter_int(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("int", "default", "base")
	struct j_val s, fallback = a[0].type == J_MISSING ? j_int(0) : a[0];
	int64_t base = 10, i;
	double f = 0;
	bool has;
	r = j_want_int(run, a[1], 10, &base);
	if (r != 0 || base < 2 || base > 36) {
		return r ? r : j_error(run, "int() base must be >= 2 and <= 36, here");
	}
	if (self.type == J_STR) {
		r = j_strip(run, self.s, NULL, true, true, &s);
		if (r != 0 || read_int(s.s, (unsigned)base, &i)) {
			*ret = j_int(r ? 0 : i);
			return r;
		}
	}
	if (j_is_integral(self)) {
		*ret = j_int(j_integer(self));
		return 0;
	}
	r = to_float(run, self, &has, &f);
	if (r == 0 && self.type == J_FLOAT && isinf(f)) {
		return j_error(run, "cannot convert float infinity to integer");
	}
	if (r == 0 && has && isfinite(f) && fabs(f) >= 9223372036854775808.0) {
		return j_error(run, "a whole number beyond 64 bits is not supported");
	}
	*ret = has && isfinite(f) ? j_int((int64_t)f) : fallback;
	return r;
}

static int filter_abs(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	int r = no_arguments(run, args);
	if (r != 0 || !j_is_number(self)) {
		return r ? r : self.type == J_UNDEFINED ? j_undefined_error(run, self) :
			j_error(run, "bad operand type for abs(): '%s'", j_type_name(self));
	}
	if (self.type == J_FLOAT) {
		*ret = j_float(fabs(self.f));
		return 0;
	}
	return j_negate(run, self, j_integer(self) < 0, ret);
}

static int filter_round(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("round", "precision", "method")
	const struct j_str *method = NULL;
	int64_t precision = 0;
	char text[400];
	r = j_want_int(run, a[0], 0, &precision);
	r = r ? r : j_want_str(run, a[1], &method);
	if (r != 0 || !j_is_number(self)) {
		return r ? r : self.type == J_UNDEFINED ? j_undefined_error(run, self) :
			j_error(run, "type %s doesn't define __round__ method", j_type_name(self));
	}
	bool common = !method || j_str_is(method, "common");
	if (!common && !j_str_is(method, "ceil") && !j_str_is(method, "floor")) {
		return j_error(run, "method must be common, ceil or floor");
	}
	if (precision < 0 || precision > 22 || (self.type == J_FLOAT && !isfinite(self.f))) {
		return j_error(run, "to round this way is not supported");
	}
	if (common && j_is_integral(self)) {
		*ret = j_int(j_integer(self));
		return 0;
	}
	if (common) {
		snprintf(text, sizeof(text), "%.*f", (int)precision, self.f);
		*ret = j_float(strtod(text, NULL));
		return 0;
	}
	double scale = pow(10, (double)precision), f = j_real(self) * scale;
	*ret = j_float((j_str_is(method, "ceil") ? ceil(f) : floor(f)) / scale);
	return 0;
}

/* ---- any value ----------------------------------------------------------------------------- */

static int filter_default(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("default", "default_value", "boolean")
	bool boolean = a[1].type != J_MISSING && j_truth(a[1]);
	*ret = self;
	if (self.type == J_UNDEFINED || (boolean && !j_truth(self))) {
		*ret = a[0];
		return a[0].type == J_MISSING ? j_cstr(run, "", ret) : 0;
	}
	return 0;
}

int j_filter_count(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	size_t n = 0;
	int r = no_arguments(run, args);
	r = r ? r : j_length(run, self, &n);
	*ret = j_int((int64_t)n);
	return r;
}

static int json_separators(struct j_run *run, struct j_val v, struct j_json *how)
{
	static const struct j_str item = {.p = ", ", .len = 2, .n = 2}, key = {.p = ": ", .len = 2, .n = 2};
	static const struct j_str comma = {.p = ",", .len = 1, .n = 1};
	how->item = how->indent ? &comma : &item;
	how->key = &key;
	if (v.type == J_MISSING || v.type == J_NONE) {
		return 0;
	}
	if ((v.type != J_TUPLE && v.type != J_LIST) || v.seq->n != 2 ||
		v.seq->items[0].type != J_STR || v.seq->items[1].type != J_STR) {
		return j_error(run, "separators must be two strings");
	}
	how->item = v.seq->items[0].s;
	how->key = v.seq->items[1].s;
	return 0;
}

/* transformers' own: the result is not made safe for HTML. */
static int filter_tojson(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	BIND("tojson", "ensure_ascii", "indent", "separators", "sort_keys")
	struct j_json how = {
		.ensure_ascii = a[0].type != J_MISSING && j_truth(a[0]),
		.sort_keys = a[3].type != J_MISSING && j_truth(a[3]),
	};
	struct j_out out = {0}, by = {0};
	struct j_val indent = a[1];
	int64_t width = 0;
	if (a[1].type != J_STR && a[1].type != J_MISSING && a[1].type != J_NONE) {
		r = j_want_int(run, a[1], 0, &width);
		for (int64_t i = 0; i < width && r == 0; i++) {
			r = j_puts(run, &by, " ");
		}
		r = r ? r : j_out_str(run, &by, &indent);
	}
	how.indent = r == 0 && indent.type == J_STR ? indent.s : NULL;
	r = r ? r : json_separators(run, a[2], &how);
	r = r ? r : j_put_json(run, &out, self, &how, 0);
	return r ? r : j_out_str(run, &out, ret);
}

/* ---- by name ------------------------------------------------------------------------------- */

const struct j_builtin j_text_filters[] = {
	{"trim", filter_trim},
	{"tojson", filter_tojson},
	{"length", j_filter_count},
	{"count", j_filter_count},
	{"default", filter_default},
	{"d", filter_default},
	{"upper", filter_upper},
	{"lower", filter_lower},
	{"title", filter_title},
	{"capitalize", filter_capitalize},
	{"replace", filter_replace},
	{"string", filter_string},
	{"safe", filter_safe},
	{"escape", filter_escape},
	{"e", filter_escape},
	{"int", filter_int},
	{"float", filter_float},
	{"round", filter_round},
	{"abs", filter_abs},
	{"indent", filter_indent},
	{"format", filter_format},
	{"truncate", filter_truncate},
	{"center", filter_center},
	{NULL, NULL},
};

static const struct j_builtin *find(const struct j_builtin *table, const struct j_str *name)
{
	for (; table->name; table++) {
		if (j_str_is(name, table->name)) {
			return table;
		}
	}
	return NULL;
}

const struct j_builtin *j_find_filter(const struct j_str *name)
{
	const struct j_builtin *b = find(j_text_filters, name);
	return b ? b : find(j_seq_filters, name);
}

bool j_filter_unsupported(const struct j_str *name)
{
	static const char *const names[] = {"attr", "filesizeformat", "forceescape", "groupby", "pprint",
		"random", "striptags", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (j_str_is(name, names[i])) {
			return true;
		}
	}
	return false;
}
