/* Methods of dicts and lists, and which attributes the sandbox lets a template see. */

#include "engine/text/jinja/jinja-internal.h"

#define METHOD(name) \
	static int name(struct j_run *run, struct j_val self, const struct j_args *args, \
		struct j_val *ret)

int j_positional(struct j_run *run, const struct j_args *args, size_t least, size_t most)
{
	if (args->n_kw > 0) {
		return j_error(run, "this method takes no keyword arguments");
	}
	return args->n >= least && args->n <= most ? 0 :
		j_error(run, "this method takes %zu to %zu arguments, but %zu were given", least, most,
			args->n);
}

/* ---- dicts and lists ----------------------------------------------------------------------- */

METHOD(dict_get)
{
	int r = j_positional(run, args, 1, 2);
	r = r ? r : j_hashable(run, args->pos[0]);
	if (r == 0 && !j_dict_get(run, self.d, args->pos[0], ret)) {
		*ret = args->n == 2 ? args->pos[1] : j_none();
	}
	return r ? r : j_work(run, 0);
}

static int view(struct j_run *run, struct j_val self, const struct j_args *args, int of,
	struct j_val *ret)
{
	int r = j_positional(run, args, 0, 0);
	struct j_view *v = r == 0 ? j_alloc(run, 1, sizeof(*v)) : NULL;
	if (!v) {
		return r ? r : j_no_memory(run);
	}
	v->d = self.d;
	v->of = of;
	*ret = (struct j_val){.type = J_VIEW, .view = v};
	return 0;
}

METHOD(dict_items) { return view(run, self, args, J_ITEMS, ret); }
METHOD(dict_keys) { return view(run, self, args, J_KEYS, ret); }
METHOD(dict_values) { return view(run, self, args, J_VALUES, ret); }

/* Nothing that a template does changes it: the same is as good as a copy. */
METHOD(copy)
{
	*ret = self;
	return j_positional(run, args, 0, 0);
}

static int occurrences(struct j_run *run, struct j_val self, const struct j_args *args,
	size_t *ret_first, int64_t *ret_n)
{
	int r = j_positional(run, args, 1, 1);
	*ret_n = 0;
	for (size_t i = 0; r == 0 && i < self.seq->n; i++) {
		bool same;
		r = j_equal(run, self.seq->items[i], args->pos[0], &same);
		*ret_first = r == 0 && same && *ret_n == 0 ? i : *ret_first;
		*ret_n += r == 0 && same;
	}
	return r;
}

METHOD(list_count)
{
	size_t first = 0;
	int64_t n;
	int r = occurrences(run, self, args, &first, &n);
	*ret = j_int(n);
	return r;
}

METHOD(list_index)
{
	size_t first = 0;
	int64_t n;
	int r = occurrences(run, self, args, &first, &n);
	*ret = j_int((int64_t)first);
	return r || n > 0 ? r : j_error(run, "the value is not in the %s", j_type_name(self));
}

/* ---- by name ------------------------------------------------------------------------------- */

static const struct j_builtin dict_methods[] = {
	{"get", dict_get}, {"items", dict_items}, {"keys", dict_keys}, {"values", dict_values},
	{"copy", copy}, {NULL, NULL},
};

static const struct j_builtin list_methods[] = {
	{"count", list_count}, {"index", list_index}, {"copy", copy}, {NULL, NULL},
};

static const struct j_builtin tuple_methods[] = {
	{"count", list_count}, {"index", list_index}, {NULL, NULL},
};

const struct j_builtin *j_find_method(enum j_type type, const struct j_str *name)
{
	const struct j_builtin *m = type == J_STR ? j_str_methods : type == J_DICT ? dict_methods :
		type == J_LIST ? list_methods : type == J_TUPLE ? tuple_methods : NULL;
	for (; m && m->name; m++) {
		if (j_str_is(name, m->name)) {
			return m;
		}
	}
	return NULL;
}

static const char *listed(const char *const *names, size_t n, const struct j_str *name)
{
	for (size_t i = 0; i < n; i++) {
		if (j_str_is(name, names[i])) {
			return names[i];
		}
	}
	return NULL;
}

#define LISTED(names) listed(names, ARRAY_LEN(names), name)

const char *j_attribute_refused(enum j_type type, const struct j_str *name, bool *ret_unsafe)
{
	static const char *const of_list[] = {"append", "clear", "pop", "reverse", "insert", "sort",
		"extend", "remove"};
	static const char *const of_dict[] = {"clear", "pop", "popitem", "setdefault", "update"};
	static const char *const dict_rest[] = {"fromkeys"};
	static const char *const str_rest[] = {"casefold", "encode", "expandtabs", "format_map",
		"isdecimal", "isidentifier", "isnumeric", "isprintable", "istitle", "maketrans", "swapcase",
		"translate"};
	static const char *const numbers[] = {"as_integer_ratio", "bit_count", "bit_length", "conjugate",
		"denominator", "from_bytes", "fromhex", "hex", "imag", "is_integer", "numerator", "real",
		"to_bytes"};
	static const char *const of_range[] = {"count", "index", "start", "stop", "step"};
	static const char *const of_macro[] = {"arguments", "caller", "catch_kwargs", "catch_varargs",
		"explicit_caller"};
	*ret_unsafe = true;
	if (name->len > 4 && memcmp(name->p, "__", 2) == 0 &&
		memcmp(name->p + name->len - 2, "__", 2) == 0) {
		return "__"; /* Python's own */
	}
	const char *found = type == J_LIST ? LISTED(of_list) : type == J_DICT ? LISTED(of_dict) : NULL;
	if (found) {
		return found;
	}
	*ret_unsafe = false;
	switch (type) {
	case J_DICT:
		return LISTED(dict_rest);
	case J_STR:
		return LISTED(str_rest);
	case J_BOOL:
	case J_INT:
	case J_FLOAT:
		return LISTED(numbers);
	case J_RANGE:
		return LISTED(of_range);
	case J_MACRO:
		return LISTED(of_macro);
	default:
		return NULL;
	}
}
