/* Values: making them, and what they have in common: truth, length, equality, order. */

#include "engine/text/jinja/jinja-internal.h"

/* ---- making values ------------------------------------------------------------------------- */

size_t j_count_points(const char *p, size_t len)
{
	size_t n = 0;
	for (size_t i = 0; i < len; i++) {
		n += ((uint8_t)p[i] & 0xC0) != 0x80;
	}
	return n;
}

bool j_str_is(const struct j_str *s, const char *text)
{
	return s->len == strlen(text) && memcmp(s->p, text, s->len) == 0;
}

int j_str(struct j_run *run, const char *p, size_t len, struct j_val *ret)
{
	struct j_str *s = j_alloc(run, 1, sizeof(*s));
	if (!s) {
		return j_no_memory(run);
	}
	*s = (struct j_str){.p = p, .len = len, .n = j_count_points(p, len)};
	*ret = j_of_str(s);
	return j_work(run, len);
}

int j_cstr(struct j_run *run, const char *text, struct j_val *ret)
{
	return j_str(run, text, strlen(text), ret);
}

int j_seq(struct j_run *run, enum j_type type, const struct j_val *items, size_t n,
	struct j_val *ret)
{
	struct j_seq *seq = j_alloc(run, 1, sizeof(*seq));
	if (!seq) {
		return j_no_memory(run);
	}
	*seq = (struct j_seq){.items = items, .n = n};
	*ret = (struct j_val){.type = type, .seq = seq};
	return 0;
}

int j_iter(struct j_run *run, const struct j_val *items, size_t n, struct j_val *ret)
{
	struct j_iter *iter = j_alloc(run, 1, sizeof(*iter));
	if (!iter) {
		return j_no_memory(run);
	}
	*iter = (struct j_iter){.seq = {items, n}};
	*ret = (struct j_val){.type = J_ITER, .iter = iter};
	return 0;
}

int j_pair_tuple(struct j_run *run, struct j_val a, struct j_val b, struct j_val *ret)
{
	struct j_val *items = j_alloc(run, 2, sizeof(*items));
	if (!items) {
		return j_no_memory(run);
	}
	items[0] = a;
	items[1] = b;
	return j_seq(run, J_TUPLE, items, 2, ret);
}

int j_dict(struct j_run *run, size_t cap, struct j_val *ret)
{
	struct j_dict *d = j_alloc(run, 1, sizeof(*d));
	struct j_pair *items = cap > 0 ? j_alloc(run, cap, sizeof(*items)) : NULL;
	if (!d || (cap > 0 && !items)) {
		return j_no_memory(run);
	}
	*d = (struct j_dict){.items = items, .cap = cap};
	*ret = (struct j_val){.type = J_DICT, .d = d};
	return 0;
}

static int append_pair(struct j_run *run, struct j_dict *d, struct j_val key, struct j_val value)
{
	if (d->n == d->cap) {
		size_t cap = d->cap ? 2 * d->cap : 4;
		struct j_pair *items = j_alloc(run, cap, sizeof(*items));
		if (!items) {
			return j_no_memory(run);
		}
		if (d->n > 0) {
			memcpy(items, d->items, d->n * sizeof(*items));
		}
		d->items = items;
		d->cap = cap;
	}
	d->items[d->n++] = (struct j_pair){key, value};
	return 0;
}

static int hashable(struct j_run *run, struct j_val key, unsigned depth)
{
	if (key.type == J_LIST || key.type == J_DICT) {
		return j_error(run, "unhashable type: '%s'", j_type_name(key));
	}
	if (depth > J_MAX_NESTING) {
		return j_error(run, "values nested more than %d deep", J_MAX_NESTING);
	}
	int r = j_work(run, 64);
	for (size_t i = 0; r == 0 && key.type == J_TUPLE && i < key.seq->n; i++) {
		r = hashable(run, key.seq->items[i], depth + 1);
	}
	return r;
}

int j_hashable(struct j_run *run, struct j_val key)
{
	return hashable(run, key, 0);
}

static struct j_pair *find_pair(struct j_run *run, const struct j_dict *d, struct j_val key)
{
	for (size_t i = 0; i < d->n; i++) {
		bool same = false;
		if (key.type == J_STR && d->items[i].key.type == J_STR) {
			const struct j_str *a = key.s, *b = d->items[i].key.s;
			same = a->len == b->len && memcmp(a->p, b->p, a->len) == 0;
		} else if (j_equal(run, d->items[i].key, key, &same) != 0) {
			same = false;
		}
		if (same) {
			return &d->items[i];
		}
	}
	run->steps += d->n / 64;
	return NULL;
}

int j_dict_set(struct j_run *run, struct j_dict *d, struct j_val key, struct j_val value)
{
	int r = j_hashable(run, key);
	struct j_pair *pair = r == 0 ? find_pair(run, d, key) : NULL;
	if (pair) {
		pair->value = value;
	}
	r = r ? r : j_work(run, 0);
	return r || pair ? r : append_pair(run, d, key, value);
}

bool j_dict_get(struct j_run *run, const struct j_dict *d, struct j_val key, struct j_val *ret)
{
	const struct j_pair *pair = find_pair(run, d, key);
	if (pair) {
		*ret = pair->value;
	}
	return pair;
}

bool j_dict_get_str(const struct j_dict *d, const struct j_str *key, struct j_val *ret)
{
	for (size_t i = 0; i < d->n; i++) {
		const struct j_val *k = &d->items[i].key;
		if (k->type == J_STR && k->s->len == key->len && memcmp(k->s->p, key->p, key->len) == 0) {
			*ret = d->items[i].value;
			return true;
		}
	}
	return false;
}

int j_from_json(struct j_run *run, const json_t *json, unsigned depth, struct j_val *ret)
{
	const char *key;
	json_t *value;
	size_t i, n;
	int r = 0;
	if (depth > J_MAX_NESTING) {
		return j_error(run, "values nested more than %d deep", J_MAX_NESTING);
	}
	switch (json_typeof(json)) {
	case JSON_OBJECT:
		r = j_dict(run, json_object_size(json), ret);
		json_object_foreach((json_t *)(uintptr_t)json, key, value) {
			struct j_val k, v;
			r = r ? r : j_cstr(run, key, &k);
			r = r ? r : j_from_json(run, value, depth + 1, &v);
			r = r ? r : append_pair(run, ret->d, k, v); /* JSON has no key twice */
		}
		return r;
	case JSON_ARRAY:
		n = json_array_size(json);
		struct j_val *items = j_alloc(run, n, sizeof(*items));
		if (!items) {
			return j_no_memory(run);
		}
		for (i = 0; i < n && r == 0; i++) {
			r = j_from_json(run, json_array_get(json, i), depth + 1, &items[i]);
		}
		return r ? r : j_seq(run, J_LIST, items, n, ret);
	case JSON_STRING:
		return j_str(run, json_string_value(json), json_string_length(json), ret);
	case JSON_INTEGER:
		*ret = j_int(json_integer_value(json));
		return 0;
	case JSON_REAL:
		*ret = j_float(json_real_value(json));
		return 0;
	case JSON_TRUE:
	case JSON_FALSE:
		*ret = j_bool(json_is_true(json));
		return 0;
	default:
		*ret = j_none();
		return 0;
	}
}

/* ---- what they are ------------------------------------------------------------------------- */

const char *j_type_name(struct j_val v)
{
	switch (v.type) {
	case J_UNDEFINED:
		return "Undefined";
	case J_NONE:
		return "NoneType";
	case J_BOOL:
		return "bool";
	case J_INT:
		return "int";
	case J_FLOAT:
		return "float";
	case J_STR:
		return "str";
	case J_LIST:
		return "list";
	case J_TUPLE:
		return "tuple";
	case J_DICT:
		return "dict";
	case J_RANGE:
		return "range";
	case J_VIEW:
		return v.view->of == J_KEYS ? "dict_keys" : v.view->of == J_VALUES ? "dict_values" :
			"dict_items";
	case J_ITER:
		return "generator";
	case J_NAMESPACE:
		return "Namespace";
	case J_LOOP:
		return "LoopContext";
	case J_MACRO:
		return "Macro";
	default:
		return "function";
	}
}

bool j_has_length(struct j_val v)
{
	switch (v.type) {
	case J_UNDEFINED:
	case J_STR:
	case J_LIST:
	case J_TUPLE:
	case J_DICT:
	case J_RANGE:
	case J_VIEW:
		return true;
	default:
		return false;
	}
}

int j_length(struct j_run *run, struct j_val v, size_t *ret)
{
	switch (v.type) {
	case J_UNDEFINED:
		*ret = 0;
		return 0;
	case J_STR:
		*ret = v.s->n;
		return 0;
	case J_LIST:
	case J_TUPLE:
		*ret = v.seq->n;
		return 0;
	case J_DICT:
		*ret = v.d->n;
		return 0;
	case J_RANGE:
		*ret = v.range->n;
		return 0;
	case J_VIEW:
		*ret = v.view->d->n;
		return 0;
	default:
		return j_error(run, "object of type '%s' has no len()", j_type_name(v));
	}
}

bool j_truth(struct j_val v)
{
	size_t n;
	switch (v.type) {
	case J_NONE:
		return false;
	case J_BOOL:
		return v.b;
	case J_INT:
		return v.i != 0;
	case J_FLOAT:
		return v.f != 0;
	default:
		return !j_has_length(v) || (j_length(NULL, v, &n) == 0 && n > 0);
	}
}

bool j_is_iterable(struct j_val v)
{
	return j_has_length(v) || v.type == J_ITER;
}

static int items_of_str(struct j_run *run, const struct j_str *s, struct j_val *items)
{
	size_t at = 0;
	for (size_t i = 0; i < s->n; i++) {
		size_t end = at + 1;
		while (end < s->len && ((uint8_t)s->p[end] & 0xC0) == 0x80) {
			end++;
		}
		int r = j_str(run, s->p + at, end - at, &items[i]);
		if (r != 0) {
			return r;
		}
		at = end;
	}
	return 0;
}

static int items_of_view(struct j_run *run, const struct j_view *view, struct j_val *items)
{
	int r = 0;
	for (size_t i = 0; i < view->d->n && r == 0; i++) {
		const struct j_pair *p = &view->d->items[i];
		if (view->of == J_ITEMS) {
			r = j_pair_tuple(run, p->key, p->value, &items[i]);
		} else {
			items[i] = view->of == J_KEYS ? p->key : p->value;
		}
	}
	return r;
}

int j_items(struct j_run *run, struct j_val v, struct j_seq *ret)
{
	const struct j_view keys = {.d = v.type == J_DICT ? v.d : NULL, .of = J_KEYS};
	size_t n;
	int r;
	if (v.type == J_LIST || v.type == J_TUPLE) {
		*ret = *v.seq;
		return j_work(run, v.seq->n);
	}
	if (v.type == J_ITER) {
		*ret = (struct j_seq){v.iter->seq.items + v.iter->at, v.iter->seq.n - v.iter->at};
		v.iter->at = v.iter->seq.n;
		return j_work(run, ret->n);
	}
	if (!j_has_length(v)) {
		return j_error(run, "'%s' object is not iterable", j_type_name(v));
	}
	r = j_length(run, v, &n);
	struct j_val *items = r == 0 ? j_alloc(run, n, sizeof(*items)) : NULL;
	if (!items) {
		return r ? r : j_no_memory(run);
	}
	for (size_t i = 0; v.type == J_RANGE && i < n; i++) {
		items[i] = j_int(v.range->start + (int64_t)i * v.range->step);
	}
	r = v.type == J_STR ? items_of_str(run, v.s, items) :
		v.type == J_DICT ? items_of_view(run, &keys, items) :
		v.type == J_VIEW ? items_of_view(run, v.view, items) : 0;
	*ret = (struct j_seq){items, n};
	return r ? r : j_work(run, n);
}

/* ---- equality and order -------------------------------------------------------------------- */

static int compare_numbers(struct j_val a, struct j_val b)
{
	if (j_is_integral(a) && j_is_integral(b)) {
		return (j_integer(a) > j_integer(b)) - (j_integer(a) < j_integer(b));
	}
	/* A 64-bit integer does not fit a double: long double holds both. */
	long double x = a.type == J_FLOAT ? (long double)a.f : (long double)j_integer(a);
	long double y = b.type == J_FLOAT ? (long double)b.f : (long double)j_integer(b);
	return x > y ? 1 : x < y ? -1 : x == y ? 0 : 2; /* 2: not a number */
}

static int equal(struct j_run *run, struct j_val a, struct j_val b, unsigned depth, bool *ret);

static int equal_seqs(struct j_run *run, const struct j_seq *a, const struct j_seq *b,
	unsigned depth, bool *ret)
{
	*ret = a->n == b->n;
	for (size_t i = 0; i < a->n && *ret; i++) {
		int r = equal(run, a->items[i], b->items[i], depth + 1, ret);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int equal_dicts(struct j_run *run, const struct j_dict *a, const struct j_dict *b,
	unsigned depth, bool *ret)
{
	*ret = a->n == b->n;
	for (size_t i = 0; i < a->n && *ret; i++) {
		struct j_val other;
		*ret = j_dict_get(run, b, a->items[i].key, &other);
		int r = *ret ? equal(run, a->items[i].value, other, depth + 1, ret) : 0;
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int equal(struct j_run *run, struct j_val a, struct j_val b, unsigned depth, bool *ret)
{
	*ret = false;
	if (depth > J_MAX_NESTING) {
		return j_error(run, "values nested more than %d deep", J_MAX_NESTING);
	}
	int r = j_work(run, 64);
	if (r != 0) {
		return r;
	}
	if (j_is_number(a) && j_is_number(b)) {
		*ret = compare_numbers(a, b) == 0;
		return 0;
	}
	if (a.type != b.type) {
		return 0;
	}
	switch (a.type) {
	case J_STR:
		*ret = a.s->len == b.s->len && memcmp(a.s->p, b.s->p, a.s->len) == 0;
		return j_work(run, a.s->len);
	case J_LIST:
	case J_TUPLE:
		return equal_seqs(run, a.seq, b.seq, depth, ret);
	case J_DICT:
		return equal_dicts(run, a.d, b.d, depth, ret);
	case J_RANGE:
		*ret = a.range->n == b.range->n && (a.range->n == 0 || (a.range->start == b.range->start &&
			(a.range->n == 1 || a.range->step == b.range->step)));
		return 0;
	case J_UNDEFINED:
	case J_NONE:
		*ret = true;
		return 0;
	case J_VIEW:
		return j_error(run, "to compare %s is not supported", j_type_name(a));
	default:
		*ret = a.d == b.d; /* the same object */
		return 0;
	}
}

int j_equal(struct j_run *run, struct j_val a, struct j_val b, bool *ret)
{
	return equal(run, a, b, 0, ret);
}

static int compare(struct j_run *run, struct j_val a, struct j_val b, const char *op,
	unsigned depth, int *ret)
{
	if (a.type == J_UNDEFINED || b.type == J_UNDEFINED) {
		return j_undefined_error(run, a.type == J_UNDEFINED ? a : b);
	}
	if (depth > J_MAX_NESTING) {
		return j_error(run, "values nested more than %d deep", J_MAX_NESTING);
	}
	if (j_is_number(a) && j_is_number(b)) {
		*ret = compare_numbers(a, b);
		return j_work(run, 64);
	}
	if (a.type == J_STR && b.type == J_STR) {
		/* The order of UTF-8's bytes is that of the code points. */
		size_t n = a.s->len < b.s->len ? a.s->len : b.s->len;
		int c = memcmp(a.s->p, b.s->p, n);
		*ret = c ? (c > 0) - (c < 0) : (a.s->len > b.s->len) - (a.s->len < b.s->len);
		return j_work(run, n + 64);
	}
	if (a.type == b.type && (a.type == J_LIST || a.type == J_TUPLE)) {
		for (size_t i = 0; i < a.seq->n && i < b.seq->n; i++) {
			bool same;
			int r = equal(run, a.seq->items[i], b.seq->items[i], depth + 1, &same);
			if (r != 0 || !same) {
				return r ? r : compare(run, a.seq->items[i], b.seq->items[i], op, depth + 1, ret);
			}
		}
		*ret = (a.seq->n > b.seq->n) - (a.seq->n < b.seq->n);
		return 0;
	}
	return j_error(run, "'%s' not supported between instances of '%s' and '%s'", op,
		j_type_name(a), j_type_name(b));
}

int j_compare(struct j_run *run, struct j_val a, struct j_val b, const char *op, int *ret)
{
	return compare(run, a, b, op, 0, ret);
}
