/* Methods of strings. */

#include "engine/text/jinja/jinja-internal.h"
#include "engine/text/unicode.h"

#define METHOD(name) \
	static int name(struct j_run *run, struct j_val self, const struct j_args *args, \
		struct j_val *ret)

static struct j_val at(const struct j_args *args, size_t i)
{
	return i < args->n ? args->pos[i] : (struct j_val){.type = J_MISSING};
}

static int need_str(struct j_run *run, struct j_val v, const struct j_str **ret)
{
	int r = j_want_str(run, v, ret);
	return r || *ret ? r : j_error(run, "a string is needed, not %s", j_type_name(v));
}

/* ---- strings into strings ------------------------------------------------------------------ */

static int cased(struct j_run *run, struct j_val self, const struct j_args *args, enum j_case to,
	struct j_val *ret)
{
	int r = j_positional(run, args, 0, 0);
	r = r ? r : j_change_case(run, self.s, to, ret);
	return r ? r : j_keep_markup(run, self, ret);
}

METHOD(str_upper) { return cased(run, self, args, J_UPPER, ret); }
METHOD(str_lower) { return cased(run, self, args, J_LOWER, ret); }
METHOD(str_title) { return cased(run, self, args, J_TITLE, ret); }
METHOD(str_capitalize) { return cased(run, self, args, J_CAPITALIZE, ret); }

static int stripped(struct j_run *run, struct j_val self, const struct j_args *args, bool left,
	bool right, struct j_val *ret)
{
	const struct j_str *chars = NULL;
	int r = j_positional(run, args, 0, 1);
	r = r ? r : j_want_str(run, at(args, 0), &chars);
	r = r ? r : j_strip(run, self.s, chars, left, right, ret);
	return r ? r : j_keep_markup(run, self, ret);
}

METHOD(str_strip) { return stripped(run, self, args, true, true, ret); }
METHOD(str_lstrip) { return stripped(run, self, args, true, false, ret); }
METHOD(str_rstrip) { return stripped(run, self, args, false, true, ret); }

/* What would have to escape its arguments. */
static int plain(struct j_run *run, struct j_val self)
{
	return self.s->markup ? j_error(run, "this method of what is marked safe is not supported") : 0;
}

METHOD(str_replace)
{
	const struct j_str *old, *new;
	int64_t count = -1;
	int r = plain(run, self);
	r = r ? r : j_positional(run, args, 2, 3);
	r = r ? r : need_str(run, at(args, 0), &old);
	r = r ? r : need_str(run, at(args, 1), &new);
	r = r ? r : j_want_int(run, at(args, 2), -1, &count);
	return r ? r : j_replace(run, self.s, old, new, count, ret);
}

METHOD(str_join)
{
	struct j_seq seq;
	int r = plain(run, self);
	r = r ? r : j_positional(run, args, 1, 1);
	r = r ? r : j_items(run, args->pos[0], &seq);
	return r ? r : j_join(run, self.s, &seq, false, ret);
}

METHOD(str_format)
{
	int r = plain(run, self);
	return r ? r : j_format(run, self.s, args, ret);
}

static bool starts(const struct j_str *s, const struct j_str *with, bool end)
{
	return with->len <= s->len &&
		memcmp(end ? s->p + s->len - with->len : s->p, with->p, with->len) == 0;
}

static int without(struct j_run *run, struct j_val self, const struct j_args *args, bool end,
	struct j_val *ret)
{
	const struct j_str *affix;
	int r = j_positional(run, args, 1, 1);
	r = r ? r : need_str(run, args->pos[0], &affix);
	*ret = self;
	if (r == 0 && starts(self.s, affix, end)) {
		r = j_str(run, self.s->p + (end ? 0 : affix->len), self.s->len - affix->len, ret);
	}
	return r;
}

METHOD(str_removeprefix) { return without(run, self, args, false, ret); }
METHOD(str_removesuffix) { return without(run, self, args, true, ret); }

/* Padding: 'l' to the left edge, 'r' to the right, 'c' to the middle, 'z' with zeros behind a sign. */
static int padded(struct j_run *run, struct j_val self, const struct j_args *args, char how,
	struct j_val *ret)
{
	static const struct j_str space = {.p = " ", .len = 1, .n = 1}, zero = {.p = "0", .len = 1, .n = 1};
	const struct j_str *fill = NULL;
	struct j_out out = {0};
	int64_t width = 0;
	int r = plain(run, self);
	r = r ? r : j_positional(run, args, 1, how == 'z' ? 1 : 2);
	r = r ? r : j_want_int(run, args->pos[0], 0, &width);
	r = r ? r : j_want_str(run, at(args, 1), &fill);
	if (r == 0 && fill && fill->n != 1) {
		return j_error(run, "The fill character must be exactly one character long");
	}
	fill = how == 'z' ? &zero : fill ? fill : &space;
	int64_t room = r == 0 ? max_i64(0, width - (int64_t)self.s->n) : 0;
	int64_t left = how == 'c' ? room / 2 + (room & width & 1) : how == 'l' ? 0 : room;
	size_t sign = how == 'z' && self.s->len > 0 && (self.s->p[0] == '-' || self.s->p[0] == '+');
	r = r ? r : j_put(run, &out, self.s->p, sign);
	for (int64_t i = 0; i < left && r == 0; i++) {
		r = j_put(run, &out, fill->p, fill->len);
	}
	r = r ? r : j_put(run, &out, self.s->p + sign, self.s->len - sign);
	for (int64_t i = left; i < room && r == 0; i++) {
		r = j_put(run, &out, fill->p, fill->len);
	}
	return r ? r : j_out_str(run, &out, ret);
}

METHOD(str_ljust) { return padded(run, self, args, 'l', ret); }
METHOD(str_rjust) { return padded(run, self, args, 'r', ret); }
METHOD(str_center) { return padded(run, self, args, 'c', ret); }
METHOD(str_zfill) { return padded(run, self, args, 'z', ret); }

/* ---- strings into lists -------------------------------------------------------------------- */

/* The parts of a split, from either end; reversed when from the right. */
struct parts {
	struct j_val *items;
	size_t n;
};

static int add_part(struct j_run *run, struct parts *p, const char *text, size_t len)
{
	if (p->n % 16 == 0 && (p->n & (p->n - 1)) == 0) { /* full at 0, 16, 32, 64, … */
		struct j_val *items = j_alloc(run, p->n ? 2 * p->n : 16, sizeof(*items));
		if (!items) {
			return j_no_memory(run);
		}
		if (p->n > 0) {
			memcpy(items, p->items, p->n * sizeof(*items));
		}
		p->items = items;
	}
	int r = j_str(run, text, len, &p->items[p->n]);
	p->n += r == 0;
	return r;
}

static const char *last_of(const struct j_str *s, size_t end, const struct j_str *sep)
{
	for (size_t i = end + 1 - sep->len; end >= sep->len && i-- > 0;) {
		if (memcmp(s->p + i, sep->p, sep->len) == 0) {
			return s->p + i;
		}
	}
	return NULL;
}

/* Counts the work of looking for sep in s, which from the right tries every place. */
static int search_work(struct j_run *run, const struct j_str *s, const struct j_str *sep, bool right)
{
	size_t n = s->len;
	if (sep && right && !mul_size(s->len, sep->len + 1, &n)) {
		n = SIZE_MAX;
	}
	return j_work(run, n);
}

static int split_by(struct j_run *run, const struct j_str *s, const struct j_str *sep, int64_t max,
	bool right, struct parts *out)
{
	size_t start = 0, end = s->len;
	int r = 0;
	while (r == 0 && max != 0) {
		const char *hit = right ? last_of(s, end, sep) :
			memmem(s->p + start, s->len - start, sep->p, sep->len);
		if (!hit) {
			break;
		}
		size_t found = (size_t)(hit - s->p);
		if (right) {
			r = add_part(run, out, hit + sep->len, end - found - sep->len);
			end = found;
		} else {
			r = add_part(run, out, s->p + start, found - start);
			start = found + sep->len;
		}
		max--;
	}
	return r ? r : add_part(run, out, s->p + start, end - start);
}

static size_t space_width(const struct j_str *s, size_t i)
{
	unsigned width;
	return j_is_space(utf8_get((const uint8_t *)s->p + i, &width)) ? width : 0;
}

static int split_words(struct j_run *run, const struct j_str *s, int64_t max, bool right,
	struct parts *out)
{
	struct j_val rest = j_of_str(s);
	int r = 0;
	while (r == 0) {
		size_t i = 0, n;
		r = j_strip(run, rest.s, NULL, !right, right, &rest);
		const struct j_str *t = rest.s;
		if (r != 0 || t->len == 0) {
			break;
		}
		if (max-- == 0) { /* the rest, its far end as it is */
			return add_part(run, out, t->p, t->len);
		}
		if (right) {
			for (i = t->len; i > 0; i -= n) {
				n = utf8_last_len((const uint8_t *)t->p, i);
				if (space_width(t, i - n)) {
					break;
				}
			}
			r = add_part(run, out, t->p + i, t->len - i);
			r = r ? r : j_str(run, t->p, i, &rest);
		} else {
			while (i < t->len && !space_width(t, i)) {
				i += ((uint8_t)t->p[i] & 0xC0) == 0xC0 ?
					(uint8_t)t->p[i] >= 0xF0 ? 4 : (uint8_t)t->p[i] >= 0xE0 ? 3 : 2 : 1;
			}
			r = add_part(run, out, t->p, i);
			r = r ? r : j_str(run, t->p + i, t->len - i, &rest);
		}
	}
	return r;
}

static int split(struct j_run *run, struct j_val self, const struct j_args *args, bool right,
	struct j_val *ret)
{
	static const char *const names[] = {"sep", "maxsplit"};
	const struct j_str *sep = NULL;
	struct parts out = {0};
	struct j_val a[2];
	int64_t max = -1;
	int r = plain(run, self);
	r = r ? r : j_bind(run, "split", args, names, 2, 0, a);
	r = r ? r : j_want_str(run, a[0], &sep);
	r = r ? r : j_want_int(run, a[1], -1, &max);
	if (r == 0 && sep && sep->len == 0) {
		return j_error(run, "empty separator");
	}
	r = r ? r : search_work(run, self.s, sep, right);
	r = r ? r : sep ? split_by(run, self.s, sep, max, right, &out) :
		split_words(run, self.s, max, right, &out);
	for (size_t i = 0; right && i < out.n / 2; i++) {
		struct j_val v = out.items[i];
		out.items[i] = out.items[out.n - 1 - i];
		out.items[out.n - 1 - i] = v;
	}
	return r ? r : j_seq(run, J_LIST, out.items, out.n, ret);
}

METHOD(str_split) { return split(run, self, args, false, ret); }
METHOD(str_rsplit) { return split(run, self, args, true, ret); }

METHOD(str_splitlines)
{
	static const char *const names[] = {"keepends"};
	struct j_val keep;
	int r = plain(run, self);
	r = r ? r : j_bind(run, "splitlines", args, names, 1, 0, &keep);
	return r ? r : j_splitlines(run, self.s, keep.type != J_MISSING && j_truth(keep), ret);
}

static int partition(struct j_run *run, struct j_val self, const struct j_args *args, bool right,
	struct j_val *ret)
{
	const struct j_str *sep, *s = self.s;
	struct j_val *v = j_alloc(run, 3, sizeof(*v));
	int r = v ? plain(run, self) : j_no_memory(run);
	r = r ? r : j_positional(run, args, 1, 1);
	r = r ? r : need_str(run, args->pos[0], &sep);
	if (r == 0 && sep->len == 0) {
		return j_error(run, "empty separator");
	}
	r = r ? r : search_work(run, s, sep, right);
	const char *hit = r ? NULL : right ? last_of(s, s->len, sep) :
		memmem(s->p, s->len, sep->p, sep->len);
	if (r == 0 && !hit) {
		r = j_cstr(run, "", &v[right ? 0 : 2]);
		v[1] = v[right ? 0 : 2];
		v[right ? 2 : 0] = self;
	} else if (r == 0) {
		size_t found = (size_t)(hit - s->p), behind = found + sep->len;
		r = j_str(run, s->p, found, &v[0]);
		v[1] = args->pos[0];
		r = r ? r : j_str(run, s->p + behind, s->len - behind, &v[2]);
	}
	return r ? r : j_seq(run, J_TUPLE, v, 3, ret);
}

METHOD(str_partition) { return partition(run, self, args, false, ret); }
METHOD(str_rpartition) { return partition(run, self, args, true, ret); }

/* ---- questions about strings --------------------------------------------------------------- */

/* The stretch of s that start and end arguments name; *ret_past: start lies behind the end. */
static int stretch(struct j_run *run, const struct j_str *s, const struct j_args *args,
	const struct j_str **ret, size_t *ret_start, bool *ret_past)
{
	int64_t n = (int64_t)s->n, bounds[2] = {0, n};
	struct j_val part;
	for (size_t i = 0; i < 2; i++) {
		struct j_val v = at(args, i + 1);
		int r = v.type == J_NONE ? 0 : j_want_int(run, v, bounds[i], &bounds[i]);
		if (r != 0) {
			return r;
		}
		bounds[i] = bounds[i] < -n ? 0 : bounds[i] < 0 ? bounds[i] + n : bounds[i];
	}
	*ret_past = bounds[0] > n || bounds[0] > bounds[1];
	*ret_start = (size_t)min_i64(bounds[0], n);
	int r = j_substr(run, s, *ret_start, (size_t)min_i64(bounds[1], n), &part);
	*ret = part.s;
	return r;
}

static int affixed(struct j_run *run, struct j_val self, const struct j_args *args, bool end,
	struct j_val *ret)
{
	const struct j_str *part;
	size_t start;
	bool past, holds = false;
	int r = j_positional(run, args, 1, 3);
	r = r ? r : stretch(run, self.s, args, &part, &start, &past);
	if (r != 0) {
		return r;
	}
	struct j_val what = args->pos[0];
	struct j_seq one = {.items = &what, .n = 1};
	const struct j_seq *all = what.type == J_TUPLE ? what.seq : &one;
	for (size_t i = 0; i < all->n; i++) {
		if (all->items[i].type != J_STR) {
			return all->items[i].type == J_UNDEFINED ? j_undefined_error(run, all->items[i]) :
				j_error(run, "%s first arg must be str or a tuple of str, not %s",
					end ? "endswith" : "startswith", j_type_name(all->items[i]));
		}
		holds |= !past && starts(part, all->items[i].s, end);
	}
	*ret = j_bool(holds);
	return 0;
}

METHOD(str_startswith) { return affixed(run, self, args, false, ret); }
METHOD(str_endswith) { return affixed(run, self, args, true, ret); }

static int found_at(struct j_run *run, struct j_val self, const struct j_args *args, bool right,
	bool must, struct j_val *ret)
{
	const struct j_str *part, *what;
	size_t start;
	bool past;
	int r = j_positional(run, args, 1, 3);
	r = r ? r : need_str(run, args->pos[0], &what);
	r = r ? r : stretch(run, self.s, args, &part, &start, &past);
	r = r ? r : search_work(run, self.s, what, right);
	if (r != 0) {
		return r;
	}
	const char *hit = past ? NULL : right ? last_of(part, part->len, what) :
		what->len == 0 ? part->p : memmem(part->p, part->len, what->p, what->len);
	if (!hit && must) {
		return j_error(run, "substring not found");
	}
	*ret = j_int(hit ? (int64_t)(start + j_count_points(part->p, (size_t)(hit - part->p))) : -1);
	return 0;
}

METHOD(str_find) { return found_at(run, self, args, false, false, ret); }
METHOD(str_rfind) { return found_at(run, self, args, true, false, ret); }
METHOD(str_index) { return found_at(run, self, args, false, true, ret); }
METHOD(str_rindex) { return found_at(run, self, args, true, true, ret); }

METHOD(str_count)
{
	const struct j_str *part, *what;
	size_t start;
	bool past;
	int64_t n = 0;
	int r = j_positional(run, args, 1, 3);
	r = r ? r : need_str(run, args->pos[0], &what);
	r = r ? r : stretch(run, self.s, args, &part, &start, &past);
	r = r ? r : j_work(run, self.s->len);
	if (r == 0 && what->len == 0) {
		n = past ? 0 : (int64_t)part->n + 1;
	} else if (r == 0) {
		const char *p = part->p, *end = part->p + part->len;
		while ((p = memmem(p, (size_t)(end - p), what->p, what->len))) {
			p += what->len;
			n++;
		}
	}
	*ret = j_int(n);
	return r;
}

/* Every character is of a kind, and there is one. Of letters and digits, ASCII alone is known here. */
static int all_of(struct j_run *run, struct j_val self, const struct j_args *args,
	bool (*is)(uint32_t c), bool ascii, struct j_val *ret)
{
	unsigned width;
	bool holds = self.s->len > 0;
	int r = j_positional(run, args, 0, 0);
	r = r ? r : j_work(run, self.s->len);
	for (size_t i = 0; i < self.s->len && r == 0; i += width) {
		uint32_t c = utf8_get((const uint8_t *)self.s->p + i, &width);
		if (ascii && c >= 0x80) {
			return j_error(run, "this question about a character outside ASCII is not supported");
		}
		holds = holds && is(c);
	}
	*ret = j_bool(holds);
	return r;
}

static bool is_digit(uint32_t c) { return c >= '0' && c <= '9'; }
static bool is_alpha(uint32_t c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }
static bool is_alnum(uint32_t c) { return is_digit(c) || is_alpha(c); }

METHOD(str_isdigit) { return all_of(run, self, args, is_digit, true, ret); }
METHOD(str_isalpha) { return all_of(run, self, args, is_alpha, true, ret); }
METHOD(str_isalnum) { return all_of(run, self, args, is_alnum, true, ret); }
METHOD(str_isspace) { return all_of(run, self, args, j_is_space, false, ret); }

METHOD(str_isupper)
{
	*ret = j_bool(j_is_case(self.s, true));
	int r = j_work(run, self.s->len);
	return r ? r : j_positional(run, args, 0, 0);
}

METHOD(str_islower)
{
	*ret = j_bool(j_is_case(self.s, false));
	int r = j_work(run, self.s->len);
	return r ? r : j_positional(run, args, 0, 0);
}

METHOD(str_isascii)
{
	*ret = j_bool(self.s->n == self.s->len);
	return j_positional(run, args, 0, 0);
}

const struct j_builtin j_str_methods[] = {
	{"strip", str_strip}, {"lstrip", str_lstrip}, {"rstrip", str_rstrip}, {"split", str_split},
	{"rsplit", str_rsplit}, {"startswith", str_startswith}, {"endswith", str_endswith},
	{"replace", str_replace}, {"upper", str_upper}, {"lower", str_lower}, {"title", str_title},
	{"capitalize", str_capitalize}, {"join", str_join}, {"format", str_format},
	{"find", str_find}, {"rfind", str_rfind}, {"index", str_index}, {"rindex", str_rindex},
	{"count", str_count}, {"splitlines", str_splitlines}, {"partition", str_partition},
	{"rpartition", str_rpartition}, {"removeprefix", str_removeprefix},
	{"removesuffix", str_removesuffix}, {"ljust", str_ljust}, {"rjust", str_rjust},
	{"center", str_center}, {"zfill", str_zfill}, {"isdigit", str_isdigit},
	{"isalpha", str_isalpha}, {"isalnum", str_isalnum}, {"isspace", str_isspace},
	{"isupper", str_isupper}, {"islower", str_islower}, {"isascii", str_isascii}, {NULL, NULL},
};
