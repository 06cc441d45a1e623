/* Filters of sequences. What is lazy in Python is worked out at once here: no expression of a
 * template can tell, but for one that fails and is never looked at. */

#include "engine/text/jinja/jinja-internal.h"

/* A list that grows. */
struct grown {
	struct j_val *items;
	size_t n, cap;
};

static int grow(struct j_run *run, struct grown *g, struct j_val v)
{
	if (g->n == g->cap) {
		size_t cap = g->cap ? 2 * g->cap : 8;
		struct j_val *items = j_alloc(run, cap, sizeof(*items));
		if (!items) {
			return j_no_memory(run);
		}
		if (g->n > 0) {
			memcpy(items, g->items, g->n * sizeof(*items));
		}
		g->items = items;
		g->cap = cap;
	}
	g->items[g->n++] = v;
	return 0;
}

/* Two words that are alike but for their case count as the same, unless told otherwise. */
static int key_of(struct j_run *run, struct j_val item, struct j_val path, bool case_sensitive,
	struct j_val *ret)
{
	int r = j_get_path(run, item, path, j_none(), ret);
	if (r == 0 && !case_sensitive && ret->type == J_STR) {
		return j_change_case(run, ret->s, J_LOWER, ret);
	}
	return r;
}

static bool flag(struct j_val v)
{
	return v.type != J_MISSING && j_truth(v);
}

/* ---- map, select, reject ------------------------------------------------------------------- */

static int map_attribute(struct j_run *run, const struct j_seq *seq, const struct j_args *args,
	struct grown *out)
{
	struct j_val path = {.type = J_MISSING}, fallback = {.type = J_MISSING}, v;
	int r = 0;
	for (size_t i = 0; i < args->n_kw; i++) {
		if (j_str_is(args->kw[i].name, "attribute")) {
			path = args->kw[i].value;
		} else if (j_str_is(args->kw[i].name, "default")) {
			fallback = args->kw[i].value;
		} else {
			return j_error(run, "Unexpected keyword argument '%.*s'",
				(int)min_i64((int64_t)args->kw[i].name->len, 64), args->kw[i].name->p);
		}
	}
	for (size_t i = 0; i < seq->n && r == 0; i++) {
		r = j_get_path(run, seq->items[i], path, fallback, &v);
		r = r ? r : grow(run, out, v);
	}
	return r;
}

static int named_builtin(struct j_run *run, struct j_val name, bool test,
	const struct j_builtin **ret)
{
	const char *what = test ? "test" : "filter";
	if (name.type != J_STR) {
		return j_error(run, "the name of a %s must be a string, not %s", what, j_type_name(name));
	}
	*ret = test ? j_find_test(name.s) : j_find_filter(name.s);
	return *ret ? 0 : j_error(run, "No %s named '%.*s'.", what,
		(int)min_i64((int64_t)name.s->len, 64), name.s->p);
}

static int filter_map(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct grown out = {0};
	struct j_seq seq = {0};
	int r = j_truth(self) ? j_items(run, self, &seq) : 0;
	bool attribute = false;
	for (size_t i = 0; i < args->n_kw; i++) {
		attribute |= args->n == 0 && j_str_is(args->kw[i].name, "attribute");
	}
	if (r == 0 && attribute && j_truth(self)) {
		r = map_attribute(run, &seq, args, &out);
	} else if (r == 0 && j_truth(self)) {
		const struct j_builtin *filter = NULL;
		if (args->n == 0) {
			return j_error(run, "map requires a filter argument");
		}
		struct j_args rest = j_args_from(args, 1);
		r = named_builtin(run, args->pos[0], false, &filter);
		for (size_t i = 0; i < seq.n && r == 0; i++) {
			struct j_val v;
			r = filter->call(run, seq.items[i], &rest, &v);
			r = r ? r : grow(run, &out, v);
		}
	}
	return r ? r : j_iter(run, out.items, out.n, ret);
}

static int pick(struct j_run *run, struct j_val self, const struct j_args *args, bool attribute,
	bool keep, struct j_val *ret)
{
	struct grown out = {0};
	struct j_seq seq = {0};
	const struct j_builtin *test = NULL;
	struct j_val path = {.type = J_MISSING};
	size_t first = attribute;
	if (!j_truth(self)) {
		return j_iter(run, NULL, 0, ret);
	}
	if (attribute && args->n == 0) {
		return j_error(run, "Missing parameter for attribute name");
	}
	path = attribute ? args->pos[0] : path;
	int r = args->n > first ? named_builtin(run, args->pos[first], true, &test) : 0;
	struct j_args rest = j_args_from(args, first + 1);
	r = r ? r : j_items(run, self, &seq);
	for (size_t i = 0; i < seq.n && r == 0; i++) {
		struct j_val v, holds;
		r = j_get_path(run, seq.items[i], path, j_none(), &v);
		holds = v;
		r = r || !test ? r : test->call(run, v, &rest, &holds);
		if (r == 0 && j_truth(holds) == keep) {
			r = grow(run, &out, seq.items[i]);
		}
	}
	return r ? r : j_iter(run, out.items, out.n, ret);
}

static int filter_select(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return pick(run, self, args, false, true, ret);
}

static int filter_reject(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return pick(run, self, args, false, false, ret);
}

static int filter_selectattr(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return pick(run, self, args, true, true, ret);
}

static int filter_rejectattr(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return pick(run, self, args, true, false, ret);
}

/* ---- ends, order --------------------------------------------------------------------------- */

static int no_arguments(struct j_run *run, const struct j_args *args)
{
	return args->n == 0 && args->n_kw == 0 ? 0 : j_error(run, "this filter takes no arguments");
}

static int filter_first(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct j_seq seq;
	size_t at = self.type == J_ITER ? self.iter->at : 0;
	int r = no_arguments(run, args);
	r = r ? r : j_items(run, self, &seq);
	if (r == 0 && self.type == J_ITER) {
		self.iter->at = at + (seq.n > 0);
	}
	if (r == 0 && seq.n > 0) {
		*ret = seq.items[0];
		return 0;
	}
	return r ? r : j_undefined(run, "No first item, sequence was empty.", NULL, j_none(), ret);
}

static int filter_last(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct j_seq seq;
	int r = no_arguments(run, args);
	if (r == 0 && self.type == J_ITER) {
		return j_error(run, "'generator' object is not reversible");
	}
	r = r ? r : j_items(run, self, &seq);
	if (r == 0 && seq.n > 0) {
		*ret = seq.items[seq.n - 1];
		return 0;
	}
	return r ? r : j_undefined(run, "No last item, sequence was empty.", NULL, j_none(), ret);
}

static int filter_reverse(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const struct j_str nothing = {.p = ""};
	struct j_seq seq;
	int r = no_arguments(run, args);
	r = r ? r : j_items(run, self, &seq);
	struct j_val *items = r == 0 ? j_alloc(run, seq.n, sizeof(*items)) : NULL;
	if (!items) {
		return r ? r : j_no_memory(run);
	}
	for (size_t i = 0; i < seq.n; i++) {
		items[i] = seq.items[seq.n - 1 - i];
	}
	seq.items = items;
	if (self.type == J_STR) {
		return j_join(run, &nothing, &seq, true, ret);
	}
	return self.type == J_ITER ? j_seq(run, J_LIST, items, seq.n, ret) :
		j_iter(run, items, seq.n, ret);
}

static int filter_list(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct j_seq seq;
	int r = no_arguments(run, args);
	r = r ? r : j_items(run, self, &seq);
	return r ? r : j_seq(run, J_LIST, seq.items, seq.n, ret);
}

static int filter_items(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct j_seq seq = {0};
	int r = no_arguments(run, args);
	if (r == 0 && self.type != J_DICT && self.type != J_UNDEFINED) {
		return j_error(run, "Can only get item pairs from a mapping.");
	}
	if (r == 0 && self.type == J_DICT) {
		const struct j_view view = {.d = self.d, .of = J_ITEMS};
		r = j_items(run, (struct j_val){.type = J_VIEW, .view = &view}, &seq);
	}
	return r ? r : j_iter(run, seq.items, seq.n, ret);
}

static int filter_join(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const char *const names[] = {"d", "attribute"};
	struct j_val a[2], sep;
	struct j_seq seq;
	int r = j_bind(run, "join", args, names, 2, 0, a);
	r = r ? r : a[0].type == J_MISSING ? j_cstr(run, "", &sep) : j_to_str(run, a[0], &sep);
	r = r ? r : j_items(run, self, &seq);
	if (r == 0 && a[1].type != J_MISSING && a[1].type != J_NONE) {
		struct j_val *items = j_alloc(run, seq.n, sizeof(*items));
		r = items ? 0 : j_no_memory(run);
		for (size_t i = 0; i < seq.n && r == 0; i++) {
			r = j_get_path(run, seq.items[i], a[1], j_none(), &items[i]);
		}
		seq.items = items;
	}
	return r ? r : j_join(run, sep.s, &seq, true, ret);
}

/* A stable merge sort of items by their keys; both are permuted alike. */
static int sort(struct j_run *run, struct j_pair *pairs, struct j_pair *room, size_t n, bool reverse)
{
	size_t half = n / 2, a = 0, b = half, at = 0;
	int c = 0;
	if (n < 2) {
		return 0;
	}
	int r = sort(run, pairs, room, half, reverse);
	r = r ? r : sort(run, pairs + half, room, n - half, reverse);
	while (r == 0 && a < half && b < n) {
		r = reverse ? j_compare(run, pairs[a].key, pairs[b].key, "<", &c) :
			j_compare(run, pairs[b].key, pairs[a].key, "<", &c);
		room[at++] = c == -1 ? pairs[b++] : pairs[a++];
	}
	while (a < half) {
		room[at++] = pairs[a++];
	}
	while (b < n) {
		room[at++] = pairs[b++];
	}
	memcpy(pairs, room, n * sizeof(*pairs));
	return r ? r : j_work(run, n);
}

/* seq's items by keys[i], as a list. */
static int sorted(struct j_run *run, const struct j_seq *seq, const struct j_val *keys, bool reverse,
	struct j_val *ret)
{
	struct j_pair *pairs = j_alloc(run, seq->n, sizeof(*pairs));
	struct j_pair *room = j_alloc(run, seq->n, sizeof(*room));
	struct j_val *items = j_alloc(run, seq->n, sizeof(*items));
	if (!pairs || !room || !items) {
		return j_no_memory(run);
	}
	for (size_t i = 0; i < seq->n; i++) {
		pairs[i] = (struct j_pair){keys[i], seq->items[i]};
	}
	int r = sort(run, pairs, room, seq->n, reverse);
	for (size_t i = 0; i < seq->n; i++) {
		items[i] = pairs[i].value;
	}
	return r ? r : j_seq(run, J_LIST, items, seq->n, ret);
}

/* A key for each of the paths that commas separate, as one list. */
static int sort_key(struct j_run *run, struct j_val item, struct j_val path, bool case_sensitive,
	struct j_val *ret)
{
	struct grown keys = {0};
	struct j_val key, part = path;
	int r = 0;
	for (size_t at = 0; r == 0;) {
		size_t end = 0;
		if (path.type == J_STR) {
			const char *comma = memchr(path.s->p + at, ',', path.s->len - at);
			end = comma ? (size_t)(comma - path.s->p) : path.s->len;
			r = j_str(run, path.s->p + at, end - at, &part);
		}
		r = r ? r : key_of(run, item, part, case_sensitive, &key);
		r = r ? r : grow(run, &keys, key);
		at = end + 1;
		if (path.type != J_STR || end == path.s->len) {
			break;
		}
	}
	return r ? r : j_seq(run, J_LIST, keys.items, keys.n, ret);
}

static int filter_sort(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const char *const names[] = {"reverse", "case_sensitive", "attribute"};
	struct j_val a[3];
	struct j_seq seq;
	int r = j_bind(run, "sort", args, names, 3, 0, a);
	r = r ? r : j_items(run, self, &seq);
	struct j_val *keys = r == 0 ? j_alloc(run, seq.n, sizeof(*keys)) : NULL;
	if (!keys) {
		return r ? r : j_no_memory(run);
	}
	for (size_t i = 0; i < seq.n && r == 0; i++) {
		r = sort_key(run, seq.items[i], a[2], flag(a[1]), &keys[i]);
	}
	return r ? r : sorted(run, &seq, keys, flag(a[0]), ret);
}

static int filter_dictsort(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const char *const names[] = {"case_sensitive", "by", "reverse"};
	const struct j_str *by = NULL;
	struct j_val a[3];
	struct j_seq seq;
	int r = j_bind(run, "dictsort", args, names, 3, 0, a);
	r = r ? r : j_want_str(run, a[1], &by);
	if (r == 0 && by && !j_str_is(by, "key") && !j_str_is(by, "value")) {
		return j_error(run, "You can only sort by either \"key\" or \"value\"");
	}
	if (r == 0 && self.type != J_DICT) {
		return self.type == J_UNDEFINED ? j_undefined_error(run, self) :
			j_error(run, "dictsort needs a mapping, not %s", j_type_name(self));
	}
	const struct j_view view = {.d = self.d, .of = J_ITEMS};
	r = r ? r : j_items(run, (struct j_val){.type = J_VIEW, .view = &view}, &seq);
	struct j_val *keys = r == 0 ? j_alloc(run, seq.n, sizeof(*keys)) : NULL;
	if (!keys) {
		return r ? r : j_no_memory(run);
	}
	for (size_t i = 0; i < seq.n && r == 0; i++) {
		r = key_of(run, seq.items[i], j_int(by && j_str_is(by, "value")), flag(a[0]), &keys[i]);
	}
	return r ? r : sorted(run, &seq, keys, flag(a[2]), ret);
}

static int extreme(struct j_run *run, struct j_val self, const struct j_args *args, bool max,
	struct j_val *ret)
{
	static const char *const names[] = {"case_sensitive", "attribute"};
	struct j_val a[2], best, key;
	struct j_seq seq;
	int c, r = j_bind(run, max ? "max" : "min", args, names, 2, 0, a);
	r = r ? r : j_items(run, self, &seq);
	if (r == 0 && seq.n == 0) {
		return j_undefined(run, "No aggregated item, sequence was empty.", NULL, j_none(), ret);
	}
	for (size_t i = 0; r == 0 && i < seq.n; i++) {
		r = key_of(run, seq.items[i], a[1], flag(a[0]), &key);
		if (r == 0 && i > 0) {
			r = j_compare(run, key, best, max ? ">" : "<", &c);
			if (r != 0 || c != (max ? 1 : -1)) {
				continue;
			}
		}
		best = key;
		*ret = seq.items[i];
	}
	return r;
}

static int filter_min(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return extreme(run, self, args, false, ret);
}

static int filter_max(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return extreme(run, self, args, true, ret);
}

static int filter_unique(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const char *const names[] = {"case_sensitive", "attribute"};
	struct j_val a[2], seen, key, ignored;
	struct grown out = {0};
	struct j_seq seq;
	int r = j_bind(run, "unique", args, names, 2, 0, a);
	r = r ? r : j_items(run, self, &seq);
	r = r ? r : j_dict(run, 0, &seen);
	for (size_t i = 0; r == 0 && i < seq.n; i++) {
		r = key_of(run, seq.items[i], a[1], flag(a[0]), &key);
		r = r ? r : j_hashable(run, key);
		if (r == 0 && !j_dict_get(run, seen.d, key, &ignored)) {
			r = j_dict_set(run, seen.d, key, j_none());
			r = r ? r : grow(run, &out, seq.items[i]);
		}
	}
	return r ? r : j_iter(run, out.items, out.n, ret);
}

static int filter_sum(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const char *const names[] = {"attribute", "start"};
	struct j_val a[2], v;
	struct j_seq seq;
	int r = j_bind(run, "sum", args, names, 2, 0, a);
	r = r ? r : j_items(run, self, &seq);
	*ret = a[1].type == J_MISSING ? j_int(0) : a[1];
	if (r == 0 && ret->type == J_STR) {
		return j_error(run, "sum() can't sum strings [use ''.join(seq) instead]");
	}
	for (size_t i = 0; r == 0 && i < seq.n; i++) {
		r = j_get_path(run, seq.items[i], a[0], j_none(), &v);
		r = r ? r : j_binary(run, T_ADD, *ret, v, ret);
	}
	return r;
}

/* ---- in pieces ----------------------------------------------------------------------------- */

/* Arguments of both: how many, and what fills up. */
static int piece_arguments(struct j_run *run, const char *what, const char *how_many,
	const struct j_args *args, int64_t *ret_n, struct j_val *ret_fill)
{
	const char *const names[] = {how_many, "fill_with"};
	struct j_val a[2];
	int r = j_bind(run, what, args, names, 2, 1, a);
	r = r ? r : j_want_int(run, a[0], 0, ret_n);
	*ret_fill = a[1];
	return r == 0 && *ret_n < 1 ? j_error(run, "%s needs a number above 0", what) : r;
}

static int add_piece(struct j_run *run, struct grown *out, const struct j_val *items, size_t n,
	struct j_val fill, size_t missing)
{
	struct j_val piece;
	struct j_val *all = j_alloc(run, n + missing, sizeof(*all));
	if (!all) {
		return j_no_memory(run);
	}
	for (size_t i = 0; i < n + missing; i++) {
		all[i] = i < n ? items[i] : fill;
	}
	int r = j_seq(run, J_LIST, all, n + missing, &piece);
	return r ? r : grow(run, out, piece);
}

static int filter_batch(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct grown out = {0};
	struct j_val fill;
	struct j_seq seq;
	int64_t count = 1;
	int r = piece_arguments(run, "batch", "linecount", args, &count, &fill);
	r = r ? r : j_items(run, self, &seq);
	bool fills = fill.type != J_MISSING && fill.type != J_NONE;
	for (size_t at = 0; r == 0 && at < seq.n; at += (size_t)count) {
		size_t n = seq.n - at < (size_t)count ? seq.n - at : (size_t)count;
		r = add_piece(run, &out, seq.items + at, n, fill, fills ? (size_t)count - n : 0);
	}
	return r ? r : j_iter(run, out.items, out.n, ret);
}

static int filter_slice(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct grown out = {0};
	struct j_val fill;
	struct j_seq seq;
	int64_t slices = 1;
	int r = piece_arguments(run, "slice", "slices", args, &slices, &fill);
	r = r || slices <= J_MAX_RANGE ? r : j_error(run, "at most %d slices", J_MAX_RANGE);
	r = r ? r : j_items(run, self, &seq);
	bool fills = fill.type != J_MISSING && fill.type != J_NONE;
	size_t at = 0;
	for (int64_t i = 0; r == 0 && i < slices; i++) {
		bool longer = i < (int64_t)seq.n % slices;
		size_t n = seq.n / (size_t)slices + longer;
		r = add_piece(run, &out, seq.items + at, n, fill, fills && !longer);
		at += n;
	}
	return r ? r : j_iter(run, out.items, out.n, ret);
}

const struct j_builtin j_seq_filters[] = {
	{"join", filter_join},
	{"map", filter_map},
	{"select", filter_select},
	{"reject", filter_reject},
	{"selectattr", filter_selectattr},
	{"rejectattr", filter_rejectattr},
	{"list", filter_list},
	{"items", filter_items},
	{"first", filter_first},
	{"last", filter_last},
	{"reverse", filter_reverse},
	{"sort", filter_sort},
	{"dictsort", filter_dictsort},
	{"unique", filter_unique},
	{"min", filter_min},
	{"max", filter_max},
	{"sum", filter_sum},
	{"batch", filter_batch},
	{"slice", filter_slice},
	{NULL, NULL},
};
