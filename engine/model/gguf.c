#include "engine/model/gguf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/util.h"

#define MAX_VALUES 65536
#define MAX_TENSORS 65536
#define MAX_KEY 65535
#define MAX_NAME 255
#define MAX_STRING ((uint64_t)16 << 20)
#define MAX_ITEMS ((uint64_t)1 << 24)
#define MAX_ALIGNMENT ((uint64_t)1 << 20)

static const struct {
	const char *name;
	size_t bytes; /* 0: of no fixed size */
} types[GGUF_N_TYPES] = {
	[GGUF_U8] = {"u8", 1},
	[GGUF_I8] = {"i8", 1},
	[GGUF_U16] = {"u16", 2},
	[GGUF_I16] = {"i16", 2},
	[GGUF_U32] = {"u32", 4},
	[GGUF_I32] = {"i32", 4},
	[GGUF_F32] = {"f32", 4},
	[GGUF_BOOL] = {"bool", 1},
	[GGUF_STRING] = {"string", 0},
	[GGUF_ARRAY] = {"array", 0},
	[GGUF_U64] = {"u64", 8},
	[GGUF_I64] = {"i64", 8},
	[GGUF_F64] = {"f64", 8},
};

/* ---- reading ------------------------------------------------------------------------------- */

struct cursor {
	const uint8_t *data;
	size_t len, at;
	const char *what;
	struct errmsg *err;
};

static int cut_short(const struct cursor *c, const char *field)
{
	return errmsg_set(c->err, STATUS_INVALID, "%s: cut short at byte %zu, where %s should be",
		c->what, c->at, field);
}

static int skip(struct cursor *c, uint64_t n, const char *field)
{
	if (n > c->len - c->at) {
		return cut_short(c, field);
	}
	c->at += (size_t)n;
	return 0;
}

static int read_u32(struct cursor *c, uint32_t *ret, const char *field)
{
	int r = skip(c, 4, field);
	if (r == 0) {
		*ret = le32_read(c->data + c->at - 4);
	}
	return r;
}

static int read_u64(struct cursor *c, uint64_t *ret, const char *field)
{
	int r = skip(c, 8, field);
	if (r == 0) {
		*ret = le64_read(c->data + c->at - 8);
	}
	return r;
}

static int read_string(struct cursor *c, struct gguf_string *ret, uint64_t max, const char *field)
{
	uint64_t len;
	size_t began = c->at;
	int r = read_u64(c, &len, field);
	if (r != 0) {
		return r;
	}
	if (len > max) {
		return errmsg_set(c->err, STATUS_INVALID, "%s: %s at byte %zu claims %" PRIu64
			" bytes; at most %" PRIu64 " are read", c->what, field, began, len, max);
	}
	r = skip(c, len, field);
	if (r == 0) {
		*ret = (struct gguf_string){(const char *)c->data + c->at - len, (size_t)len};
	}
	return r;
}

/* A key or name becomes part of messages and is compared as text. */
static int read_name(struct cursor *c, struct gguf_string *ret, uint64_t max, const char *field)
{
	size_t began = c->at;
	int r = read_string(c, ret, max, field);
	if (r == 0 && (ret->len == 0 || !utf8_valid(ret->data, ret->len, NULL) ||
			memchr(ret->data, 0, ret->len))) {
		return errmsg_set(c->err, STATUS_INVALID, "%s: %s at byte %zu is empty or no UTF-8 text",
			c->what, field, began);
	}
	return r;
}

static int read_type(struct cursor *c, enum gguf_type *ret, const struct gguf_string *key)
{
	uint32_t type;
	int r = read_u32(c, &type, "a value's type");
	if (r == 0 && type >= GGUF_N_TYPES) {
		return errmsg_set(c->err, STATUS_INVALID, "%s: key '%.*s': unknown value type %" PRIu32,
			c->what, (int)(key->len < 100 ? key->len : 100), key->data, type);
	}
	*ret = r == 0 ? (enum gguf_type)type : GGUF_U8;
	return r;
}

static int read_items(struct cursor *c, struct gguf_value *v)
{
	if (types[v->item].bytes > 0) {
		uint64_t bytes = v->n * types[v->item].bytes; /* n is capped */
		return skip(c, bytes, "a value");
	}
	for (uint64_t i = 0; i < v->n; i++) {
		struct gguf_string s;
		int r = read_string(c, &s, MAX_STRING, "a string");
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int read_value(struct cursor *c, struct gguf_value *v)
{
	int r = read_name(c, &v->key, MAX_KEY, "a key");
	r = r ? r : read_type(c, &v->type, &v->key);
	if (r != 0) {
		return r;
	}
	v->item = v->type;
	v->n = 1;
	if (v->type == GGUF_ARRAY) {
		r = read_type(c, &v->item, &v->key);
		r = r ? r : read_u64(c, &v->n, "an array's length");
		if (r != 0) {
			return r;
		}
		int key_len = (int)(v->key.len < 100 ? v->key.len : 100);
		if (v->item == GGUF_ARRAY) {
			return errmsg_set(c->err, STATUS_INVALID, "%s: key '%.*s': arrays of arrays are not "
				"read", c->what, key_len, v->key.data);
		}
		if (v->n > MAX_ITEMS) {
			return errmsg_set(c->err, STATUS_INVALID, "%s: key '%.*s': an array of %" PRIu64
				" items; at most %" PRIu64 " are read", c->what, key_len, v->key.data, v->n,
				MAX_ITEMS);
		}
	}
	v->data = c->data + c->at;
	return read_items(c, v);
}

static int weight_type_of(uint32_t ggml_id, enum weight_type *ret)
{
	for (size_t i = 0; i < WEIGHT_N_TYPES; i++) {
		if (weight_types[i].ggml_id >= 0 && (uint32_t)weight_types[i].ggml_id == ggml_id) {
			*ret = (enum weight_type)i;
			return 0;
		}
	}
	return STATUS_INVALID;
}

static int read_tensor(struct cursor *c, struct gguf_tensor *t)
{
	uint32_t n_dims = 0, ggml_id = 0;
	int r = read_name(c, &t->name, MAX_NAME, "a tensor's name");
	r = r ? r : read_u32(c, &n_dims, "a tensor's number of dimensions");
	if (r != 0) {
		return r;
	}
	int name_len = (int)t->name.len;
	if (n_dims < 1 || n_dims > ARRAY_LEN(t->dims)) {
		return errmsg_set(c->err, STATUS_INVALID, "%s: tensor '%.*s' has %" PRIu32
			" dimensions; it must be 1 to %zu", c->what, name_len, t->name.data, n_dims,
			ARRAY_LEN(t->dims));
	}
	t->n_dims = (int)n_dims;
	size_t rows = 1, values;
	for (size_t i = 0; i < n_dims; i++) {
		uint64_t dim = 0;
		r = read_u64(c, &dim, "a tensor's dimension");
		if (r != 0) {
			return r;
		}
		if (dim < 1 || dim > INT64_MAX || (i > 0 && !mul_size(rows, (size_t)dim, &rows)) ||
				rows > INT64_MAX) {
			return errmsg_set(c->err, STATUS_INVALID, "%s: tensor '%.*s': dimension %zu is %" PRIu64
				", zero or so large that sizes overflow", c->what, name_len, t->name.data, i, dim);
		}
		t->dims[i] = (int64_t)dim;
	}
	r = read_u32(c, &ggml_id, "a tensor's type");
	r = r ? r : read_u64(c, &t->offset, "a tensor's offset");
	if (r != 0) {
		return r;
	}
	if (weight_type_of(ggml_id, &t->type) != 0) {
		const char *name = ggml_type_name(ggml_id);
		return errmsg_set(c->err, STATUS_INVALID, "%s: tensor '%.*s' has type %s (%" PRIu32
			"), which is not supported; known are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, "
			"Q4_K, Q5_K, Q6_K", c->what, name_len, t->name.data, name ? name : "unknown", ggml_id);
	}
	if (!mul_size(rows, (size_t)t->dims[0], &values) || values > INT64_MAX ||
			!weight_bytes(t->type, (int64_t)rows, t->dims[0], &t->bytes)) {
		return errmsg_set(c->err, STATUS_INVALID, "%s: tensor '%.*s': its size overflows, or its "
			"rows of %" PRId64 " values are no whole blocks of %zu (%s)", c->what, name_len,
			t->name.data, t->dims[0], weight_types[t->type].block_values,
			weight_types[t->type].name);
	}
	return 0;
}

/* ---- the whole file ------------------------------------------------------------------------ */

static int compare_strings(const struct gguf_string *a, const struct gguf_string *b)
{
	size_t n = a->len < b->len ? a->len : b->len;
	int c = memcmp(a->data, b->data, n);
	return c ? c : (a->len > b->len) - (a->len < b->len);
}

static int compare_keys(const void *a, const void *b)
{
	return compare_strings(&((const struct gguf_value *)a)->key,
		&((const struct gguf_value *)b)->key);
}

static int compare_offsets(const void *pa, const void *pb)
{
	const struct gguf_tensor *a = pa, *b = pb;
	return (a->offset > b->offset) - (a->offset < b->offset);
}

/* Gives tensors their places: aligned, in the file, none over another. */
static int place_tensors(struct gguf *g, const struct cursor *c, uint64_t alignment)
{
	size_t begin = align_up(c->at, (size_t)alignment);
	size_t room = begin <= c->len ? c->len - begin : 0;
	uint64_t end = 0;

	qsort(g->tensors, g->n_tensors, sizeof(*g->tensors), compare_offsets);
	for (size_t i = 0; i < g->n_tensors; i++) {
		struct gguf_tensor *t = &g->tensors[i];
		int name_len = (int)t->name.len;
		if (t->offset % alignment != 0) {
			return errmsg_set(c->err, STATUS_INVALID, "%s: tensor '%.*s' begins at %" PRIu64
				", which is no multiple of the alignment %" PRIu64, c->what, name_len, t->name.data,
				t->offset, alignment);
		}
		if (t->offset > room || t->bytes > room - t->offset) {
			return errmsg_set(c->err, STATUS_INVALID, "%s: cut short: tensor '%.*s' needs %zu "
				"bytes from %" PRIu64 " on, but the data section has %zu", c->what, name_len,
				t->name.data, t->bytes, t->offset, room);
		}
		if (t->offset < end) {
			return errmsg_set(c->err, STATUS_INVALID, "%s: tensor '%.*s' begins at %" PRIu64 " and "
				"overlaps '%.*s', which ends at %" PRIu64, c->what, name_len, t->name.data,
				t->offset,
				(int)g->tensors[i - 1].name.len, g->tensors[i - 1].name.data, end);
		}
		end = t->offset + t->bytes;
		t->data = c->data + begin + t->offset;
	}
	return 0;
}

static int read_header(struct cursor *c, uint64_t *ret_tensors, uint64_t *ret_values)
{
	uint32_t version = 0;
	if (c->len < 4 || memcmp(c->data, "GGUF", 4) != 0) {
		return errmsg_set(c->err, STATUS_INVALID, "%s: is no GGUF file (it does not begin with "
			"\"GGUF\")", c->what);
	}
	c->at = 4;
	int r = read_u32(c, &version, "the version");
	if (r == 0 && version != 2 && version != 3) {
		bool swapped = version != 0 && (version & 0xFFFF) == 0;
		return errmsg_set(c->err, STATUS_INVALID, "%s: GGUF version %" PRIu32
			"%s; versions 2 and 3, little-endian, are read", c->what,
			swapped ? __builtin_bswap32(version) : version, swapped ? ", big-endian" : "");
	}
	r = r ? r : read_u64(c, ret_tensors, "the number of tensors");
	r = r ? r : read_u64(c, ret_values, "the number of metadata entries");
	if (r != 0) {
		return r;
	}
	/* No entry is smaller: a key of one byte, its type and value; a name, a dimension, … */
	const uint64_t least_value = 14, least_tensor = 33;
	if (*ret_values <= MAX_VALUES && *ret_tensors <= MAX_TENSORS &&
		*ret_values * least_value + *ret_tensors * least_tensor > c->len - c->at) {
		return errmsg_set(c->err, STATUS_INVALID,
			"%s: is cut short: it has %zu bytes, too few for the %"
			PRIu64 " metadata entries and %" PRIu64 " tensors that it announces", c->what, c->len,
			*ret_values, *ret_tensors);
	}
	if (*ret_values > MAX_VALUES) {
		return errmsg_set(c->err, STATUS_INVALID, "%s: claims %" PRIu64 " metadata entries; at "
			"most %d are read", c->what, *ret_values, MAX_VALUES);
	}
	if (*ret_tensors > MAX_TENSORS) {
		return errmsg_set(c->err, STATUS_INVALID,
			"%s: claims %" PRIu64 " tensors; at most %d are read",
			c->what, *ret_tensors, MAX_TENSORS);
	}
	return 0;
}

static int read_values(struct gguf *g, struct cursor *c, uint64_t n)
{
	g->values = calloc_array((size_t)n, sizeof(*g->values));
	if (!g->values) {
		return -ENOMEM;
	}
	for (; g->n_values < n; g->n_values++) {
		int r = read_value(c, &g->values[g->n_values]);
		if (r != 0) {
			return r;
		}
	}
	qsort(g->values, g->n_values, sizeof(*g->values), compare_keys);
	for (size_t i = 1; i < g->n_values; i++) {
		const struct gguf_string *key = &g->values[i].key;
		if (compare_keys(&g->values[i - 1], &g->values[i]) == 0) {
			return errmsg_set(c->err, STATUS_INVALID, "%s: key '%.*s' comes twice", c->what,
				(int)(key->len < 100 ? key->len : 100), key->data);
		}
	}
	return 0;
}

static int read_all(struct gguf *g, struct cursor *c)
{
	uint64_t n_tensors = 0, n_values = 0;
	int64_t alignment = 32;

	int r = read_header(c, &n_tensors, &n_values);
	r = r ? r : read_values(g, c, n_values);
	r = r ? r : gguf_get_int(g, "general.alignment", 1, MAX_ALIGNMENT, &alignment, NULL, c->err);
	if (r != 0) {
		return r;
	}
	if ((alignment & (alignment - 1)) != 0) {
		return errmsg_set(c->err, STATUS_INVALID, "%s: general.alignment is %" PRId64
			"; it must be a power of two", c->what, alignment);
	}
	g->tensors = calloc_array((size_t)n_tensors, sizeof(*g->tensors));
	if (!g->tensors) {
		return -ENOMEM;
	}
	for (; g->n_tensors < n_tensors; g->n_tensors++) {
		r = read_tensor(c, &g->tensors[g->n_tensors]);
		if (r != 0) {
			return r;
		}
	}
	return place_tensors(g, c, (uint64_t)alignment);
}

int gguf_parse(struct gguf *ret, const void *data, size_t len, const char *what,
	struct errmsg *err)
{
	struct gguf g = {.what = what};
	struct cursor c = {.data = data, .len = len, .what = what, .err = err};
	int r = read_all(&g, &c);
	if (r != 0) {
		gguf_deinit(&g);
		return r;
	}
	*ret = g;
	return 0;
}

void gguf_deinit(struct gguf *g)
{
	free(g->values);
	free(g->tensors);
	*g = (struct gguf){0};
}

/* ---- values -------------------------------------------------------------------------------- */

const struct gguf_value *gguf_find(const struct gguf *g, const char *key)
{
	struct gguf_value wanted = {.key = {key, strlen(key)}};
	return g->n_values == 0 ? NULL
		: bsearch(&wanted, g->values, g->n_values, sizeof(wanted), compare_keys);
}

static int wrong_type(const struct gguf *g, const char *key, const struct gguf_value *v,
	const char *right, struct errmsg *err)
{
	return errmsg_set(err, STATUS_INVALID, "%s: key '%s' is %s%s; it must be %s", g->what, key,
		v->type == GGUF_ARRAY ? "an array of " : "", types[v->item].name, right);
}

/* False when it is no integer. Above INT64_MAX it becomes INT64_MAX, which no range allows. */
static bool value_int(const struct gguf_value *v, int64_t *ret)
{
	const uint8_t *p = v->data;
	uint64_t u;
	switch (v->type) {
	case GGUF_U8:
		*ret = p[0];
		return true;
	case GGUF_I8:
		*ret = (int8_t)p[0];
		return true;
	case GGUF_U16:
		*ret = le16_read(p);
		return true;
	case GGUF_I16:
		*ret = (int16_t)le16_read(p);
		return true;
	case GGUF_U32:
		*ret = le32_read(p);
		return true;
	case GGUF_I32:
		*ret = (int32_t)le32_read(p);
		return true;
	case GGUF_U64:
		u = le64_read(p);
		*ret = u > INT64_MAX ? INT64_MAX : (int64_t)u;
		return true;
	case GGUF_I64:
		*ret = (int64_t)le64_read(p);
		return true;
	default:
		return false;
	}
}

int gguf_get_int(const struct gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *ret,
	bool *ret_found, struct errmsg *err)
{
	const struct gguf_value *v = gguf_find(g, key);
	int64_t x;

	if (ret_found) {
		*ret_found = v;
	}
	if (!v) {
		return 0;
	}
	if (!value_int(v, &x)) {
		return wrong_type(g, key, v, "a whole number", err);
	}
	if (x < lo || x > hi) {
		return errmsg_set(err, STATUS_INVALID, "%s: key '%s' is %" PRId64 "; it must be from %"
			PRId64 " to %" PRId64, g->what, key, x, lo, hi);
	}
	*ret = x;
	return 0;
}

/* The decimal that was meant: 1e-5 was cut to f32 on its way into the file, and as a double would
 * come back as 9.999999747378752e-06. */
static double shortest_decimal(float f)
{
	char text[32];
	for (int digits = 6; digits <= 9; digits++) {
		snprintf(text, sizeof(text), "%.*g", digits, (double)f);
		if (strtof(text, NULL) == f) {
			return strtod(text, NULL);
		}
	}
	return (double)f; /* infinite or no number */
}

int gguf_get_real(const struct gguf *g, const char *key, double *ret, bool *ret_found,
	struct errmsg *err)
{
	const struct gguf_value *v = gguf_find(g, key);
	int64_t whole;

	if (ret_found) {
		*ret_found = v;
	}
	if (!v) {
		return 0;
	}
	if (v->type == GGUF_F32) {
		float f;
		memcpy(&f, v->data, sizeof(f));
		*ret = shortest_decimal(f);
	} else if (v->type == GGUF_F64) {
		memcpy(ret, v->data, sizeof(*ret));
	} else if (value_int(v, &whole)) {
		*ret = (double)whole;
	} else {
		return wrong_type(g, key, v, "a number", err);
	}
	return 0;
}

int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct errmsg *err)
{
	const struct gguf_value *v = gguf_find(g, key);
	if (!v) {
		return 0;
	}
	if (v->type != GGUF_BOOL || v->data[0] > 1) {
		return wrong_type(g, key, v, "true or false", err);
	}
	*ret = v->data[0];
	return 0;
}

int gguf_get_string(const struct gguf *g, const char *key, char **ret, struct errmsg *err)
{
	const struct gguf_value *v = gguf_find(g, key);
	if (!v) {
		*ret = NULL;
		return 0;
	}
	if (v->type != GGUF_STRING) {
		return wrong_type(g, key, v, "a string", err);
	}
	size_t len = (size_t)le64_read(v->data);
	const char *s = (const char *)v->data + 8;
	if (!utf8_valid(s, len, NULL) || memchr(s, 0, len)) {
		return errmsg_set(err, STATUS_INVALID, "%s: key '%s' is no UTF-8 text without NUL", g->what,
			key);
	}
	*ret = strndup(s, len);
	return *ret ? 0 : -ENOMEM;
}

int gguf_get_strings(const struct gguf *g, const char *key, const char ***ret, uint32_t **ret_lens,
	int64_t *ret_n, struct errmsg *err)
{
	const struct gguf_value *v = gguf_find(g, key);
	if (!v) {
		*ret_n = 0;
		return 0;
	}
	if (v->type != GGUF_ARRAY || v->item != GGUF_STRING) {
		return wrong_type(g, key, v, "an array of strings", err);
	}
	_cleanup_(freep) const char **strings = calloc_array((size_t)v->n, sizeof(*strings));
	_cleanup_(freep) uint32_t *lens = calloc_array((size_t)v->n, sizeof(*lens));
	if (!strings || !lens) {
		return -ENOMEM;
	}
	const uint8_t *p = v->data;
	for (uint64_t i = 0; i < v->n; i++) {
		lens[i] = (uint32_t)le64_read(p); /* at most MAX_STRING, checked when parsed */
		strings[i] = (const char *)p + 8;
		p += 8 + lens[i];
	}
	*ret = steal_ptr(strings);
	*ret_lens = steal_ptr(lens);
	*ret_n = (int64_t)v->n;
	return 0;
}

int gguf_get_words(const struct gguf *g, const char *key, enum gguf_type item, int64_t n,
	void **ret, struct errmsg *err)
{
	const struct gguf_value *v = gguf_find(g, key);
	if (!v) {
		*ret = NULL;
		return 0;
	}
	bool same = v->item == item || (item == GGUF_I32 && v->item == GGUF_U32);
	if (v->type != GGUF_ARRAY || !same) {
		return wrong_type(g, key, v, item == GGUF_F32 ? "an array of f32" : "an array of i32", err);
	}
	if (v->n != (uint64_t)n) {
		return errmsg_set(err, STATUS_INVALID, "%s: key '%s' has %" PRIu64
			" items; it must have as many as there are tokens, %" PRId64, g->what, key, v->n, n);
	}
	void *copy = alloc_array((size_t)n, 4);
	if (!copy) {
		return -ENOMEM;
	}
	memcpy(copy, v->data, (size_t)n * 4);
	*ret = copy;
	return 0;
}
