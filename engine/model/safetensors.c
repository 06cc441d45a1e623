/*
 * A safetensors file is the length of a header (u64, little-endian), the header (one JSON object:
 * name → dtype, shape, [begin, end) in the data; "__metadata__" → strings), and the data. Whoever
 * reads one may trust, once parsed, that every tensor lies in the file, that dtype × shape is its
 * length, and that each byte of data belongs to exactly one tensor.
 */

#include "engine/model/safetensors.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/dequant.h"
#include "util/cleanup.h"
#include "util/util.h"

#define HEADER_MAX ((uint64_t)8 << 20)

static const struct {
	const char *name;
	enum st_dtype dtype;
	unsigned bits;
} dtypes[] = {
	{"F32", ST_F32, 32},
	{"F16", ST_F16, 16},
	{"BF16", ST_BF16, 16},
	{"F64", ST_F64, 64},
	{"I64", ST_I64, 64},
	{"I32", ST_I32, 32},
	{"U8", ST_U8, 8},
	{"BOOL", ST_OTHER, 8},
	{"I8", ST_OTHER, 8},
	{"F8_E4M3", ST_OTHER, 8},
	{"F8_E5M2", ST_OTHER, 8},
	{"F8_E8M0", ST_OTHER, 8},
	{"F8_E4M3FNUZ", ST_OTHER, 8},
	{"F8_E5M2FNUZ", ST_OTHER, 8},
	{"I16", ST_OTHER, 16},
	{"U16", ST_OTHER, 16},
	{"U32", ST_OTHER, 32},
	{"U64", ST_OTHER, 64},
	{"C64", ST_OTHER, 64},
	{"F4", ST_OTHER, 4},
	{"F6_E2M3", ST_OTHER, 6},
	{"F6_E3M2", ST_OTHER, 6},
};

static unsigned dtype_bits(enum st_dtype dtype)
{
	for (size_t i = 0; i < ARRAY_LEN(dtypes); i++) {
		if (dtypes[i].dtype == dtype && dtype != ST_OTHER) {
			return dtypes[i].bits;
		}
	}
	return 0;
}

/* Bytes of dtype × shape; false when that is no number of bytes or overflows. The product leaves
 * out zeros, so that a caller who multiplies some of the dims never overflows either. */
static bool shape_bytes(const int64_t *dims, int n_dims, unsigned bits, size_t *ret)
{
	size_t n = bits;
	bool zero = false;
	for (int i = 0; i < n_dims; i++) {
		zero |= dims[i] == 0;
		if (dims[i] < 0 || (dims[i] > 0 && !mul_size(n, (size_t)dims[i], &n))) {
			return false;
		}
	}
	if (n > INT64_MAX || n % 8 != 0) {
		return false;
	}
	*ret = zero ? 0 : n / 8;
	return true;
}

/* Everything about one entry but its place among the others. */
static int parse_entry(struct st_tensor *t, const char *name, const json_t *entry,
	const uint8_t *data, size_t data_len, const char *what, struct errmsg *err)
{
	const char *dtype;
	const json_t *shape, *offsets;

	t->name = strdup(name);
	if (!t->name) {
		return -ENOMEM;
	}
	if (!json_is_object(entry) || json_object_size(entry) != 3) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s': the header gives no object with "
			"exactly dtype, shape and data_offsets", what, name);
	}
	dtype = json_string_value(json_object_get(entry, "dtype"));
	shape = json_object_get(entry, "shape");
	offsets = json_object_get(entry, "data_offsets");
	if (!dtype || !json_is_array(shape) || !json_is_array(offsets)) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s': the header must give dtype (a "
			"string), shape and data_offsets (arrays)", what, name);
	}

	unsigned bits = 0;
	for (size_t i = 0; i < ARRAY_LEN(dtypes) && bits == 0; i++) {
		if (strcmp(dtype, dtypes[i].name) == 0) {
			t->dtype = dtypes[i].dtype;
			t->dtype_name = dtypes[i].name;
			bits = dtypes[i].bits;
		}
	}
	if (bits == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s': unknown dtype '%.32s'", what, name,
			dtype);
	}

	if (json_array_size(shape) > ARRAY_LEN(t->dims)) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' has %zu dimensions; at most %zu "
			"are read", what, name, json_array_size(shape), ARRAY_LEN(t->dims));
	}
	t->n_dims = (int)json_array_size(shape);
	for (int i = 0; i < t->n_dims; i++) {
		const json_t *dim = json_array_get(shape, (size_t)i);
		if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s': dimension %d of its shape is "
				"no whole number from 0", what, name, i);
		}
		t->dims[i] = json_integer_value(dim);
	}
	if (!shape_bytes(t->dims, t->n_dims, bits, &t->bytes)) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s': its shape times %s overflows or "
			"is no whole number of bytes", what, name, dtype);
	}

	const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
	if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e) ||
			json_integer_value(b) < 0 || json_integer_value(e) < json_integer_value(b)) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s': data_offsets must be two whole "
			"numbers, begin ≤ end", what, name);
	}
	uint64_t begin = (uint64_t)json_integer_value(b), end = (uint64_t)json_integer_value(e);
	if (end > data_len) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' ends at byte %" PRIu64
			" of the data, but the file holds only %zu: it leaves the file", what, name, end,
			data_len);
	}
	if (end - begin != t->bytes) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' takes %" PRIu64
			" bytes, but its shape and dtype %s make %zu", what, name, end - begin, dtype,
			t->bytes);
	}
	t->data = data + begin;
	return 0;
}

static int compare_data(const void *pa, const void *pb)
{
	const struct st_tensor *a = pa, *b = pb;
	if (a->data != b->data) {
		return a->data < b->data ? -1 : 1;
	}
	return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static int compare_name(const void *pa, const void *pb)
{
	const struct st_tensor *a = pa, *b = pb;
	return strcmp(a->name, b->name);
}

/* Ordered by place, each tensor must begin where the one before it ends, and the last end with the
 * file: no overlaps, no holes, so nothing can hide between tensors. */
static int check_cover(struct safetensors *s, const uint8_t *data, size_t data_len,
	const char *what, struct errmsg *err)
{
	size_t at = 0;
	qsort(s->tensors, s->n_tensors, sizeof(*s->tensors), compare_data);
	for (size_t i = 0; i < s->n_tensors; i++) {
		const struct st_tensor *t = &s->tensors[i];
		size_t begin = (size_t)(t->data - data);
		if (begin < at) {
			return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' begins at byte %zu of the data "
				"and overlaps '%s', which ends at %zu", what, t->name, begin,
				s->tensors[i - 1].name, at);
		}
		if (begin > at) {
			return errmsg_set(err, STATUS_INVALID, "%s: bytes %zu to %zu of the data belong to no "
				"tensor (a hole before '%s')", what, at, begin, t->name);
		}
		at = begin + t->bytes;
	}
	if (at != data_len) {
		return errmsg_set(err, STATUS_INVALID, "%s: bytes %zu to %zu of the data belong to no "
			"tensor (a hole at the end)", what, at, data_len);
	}
	return 0;
}

static int parse_metadata(struct safetensors *s, json_t *metadata, const char *what,
	struct errmsg *err)
{
	const char *key;
	json_t *value;

	if (!json_is_object(metadata)) {
		return errmsg_set(err, STATUS_INVALID, "%s: __metadata__ is no object", what);
	}
	s->metadata = calloc_array(json_object_size(metadata), 2 * sizeof(*s->metadata));
	if (!s->metadata) {
		return -ENOMEM;
	}
	json_object_foreach(metadata, key, value) {
		if (!json_is_string(value)) {
			return errmsg_set(err, STATUS_INVALID, "%s: __metadata__ '%s' is no string", what, key);
		}
		char **pair = &s->metadata[2 * s->n_metadata++];
		pair[0] = strdup(key);
		pair[1] = strdup(json_string_value(value));
		if (!pair[0] || !pair[1]) {
			return -ENOMEM;
		}
	}
	return 0;
}

static int parse_header(struct safetensors *s, json_t *header, const uint8_t *data, size_t data_len,
	const char *what, struct errmsg *err)
{
	const char *name;
	json_t *entry;

	s->tensors = calloc_array(json_object_size(header), sizeof(*s->tensors));
	if (!s->tensors) {
		return -ENOMEM;
	}
	json_object_foreach(header, name, entry) {
		int r;
		if (strcmp(name, "__metadata__") == 0) {
			r = parse_metadata(s, entry, what, err);
		} else {
			r = parse_entry(&s->tensors[s->n_tensors++], name, entry, data, data_len, what, err);
		}
		if (r != 0) {
			return r;
		}
	}
	return check_cover(s, data, data_len, what, err);
}

int safetensors_parse(struct safetensors *ret, const void *data, size_t len, const char *what,
	struct errmsg *err)
{
	const uint8_t *bytes = data;
	_cleanup_(json_decrefp) json_t *header = NULL;
	json_error_t fault;

	if (len < 8) {
		return errmsg_set(err, STATUS_INVALID, "%s: cut short: %zu bytes, a safetensors file has "
			"at least 8", what, len);
	}
	uint64_t header_len = le64_read(bytes);
	if (header_len > HEADER_MAX) {
		return errmsg_set(err, STATUS_INVALID, "%s: the header claims %" PRIu64
			" bytes, more than the %" PRIu64 " allowed; is this a safetensors file?", what,
			header_len, HEADER_MAX);
	}
	if (header_len > len - 8) {
		return errmsg_set(err, STATUS_INVALID, "%s: cut short: the header ends at byte %" PRIu64
			", the file at %zu", what, header_len + 8, len);
	}
	if (header_len == 0 || bytes[8] != '{') {
		return errmsg_set(err, STATUS_INVALID, "%s: the header at byte 8 is no JSON object", what);
	}
	size_t bad;
	if (!utf8_valid(bytes + 8, (size_t)header_len, &bad)) {
		return errmsg_set(err, STATUS_INVALID, "%s: the header is no UTF-8 at byte %zu", what,
			bad + 8);
	}
	header = json_loadb((const char *)bytes + 8, header_len, JSON_REJECT_DUPLICATES, &fault);
	if (!header) {
		if (json_error_code(&fault) == json_error_out_of_memory) {
			return -ENOMEM;
		}
		return errmsg_set(err, STATUS_INVALID, "%s: header: %s (byte %d)", what, fault.text,
			fault.position + 8);
	}

	struct safetensors s = {0};
	int r = parse_header(&s, header, bytes + 8 + header_len, len - 8 - (size_t)header_len, what,
		err);
	if (r != 0) {
		safetensors_deinit(&s);
		return r;
	}
	qsort(s.tensors, s.n_tensors, sizeof(*s.tensors), compare_name);
	*ret = s;
	return 0;
}

void safetensors_deinit(struct safetensors *s)
{
	for (size_t i = 0; i < s->n_tensors; i++) {
		free(s->tensors[i].name);
	}
	for (size_t i = 0; i < 2 * s->n_metadata; i++) {
		free(s->metadata[i]);
	}
	free(s->tensors);
	free(s->metadata);
	*s = (struct safetensors){0};
}

const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
	size_t lo = 0, hi = s->n_tensors;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		int c = strcmp(name, s->tensors[mid].name);
		if (c == 0) {
			return &s->tensors[mid];
		}
		if (c < 0) {
			hi = mid;
		} else {
			lo = mid + 1;
		}
	}
	return NULL;
}

int st_tensor_read_f32(const struct st_tensor *t, float *out, struct errmsg *err)
{
	static const enum weight_type types[] = {
		[ST_F32] = WEIGHT_F32,
		[ST_F16] = WEIGHT_F16,
		[ST_BF16] = WEIGHT_BF16,
		[ST_F64] = WEIGHT_F64,
	};
	if (t->dtype >= ARRAY_LEN(types)) {
		return errmsg_set(err, STATUS_INVALID, "tensor '%s' has dtype %s; weights are read from "
			"F32, F16, BF16 or F64", t->name, t->dtype_name ? t->dtype_name : "(none)");
	}
	enum weight_type type = types[t->dtype];
	weight_read(type, t->data, out, t->bytes / weight_types[type].block_bytes);
	return 0;
}

/* A JSON string as the format's own writer makes it: UTF-8 as it is. */
static int append_string(struct buf *b, const char *s)
{
	int r = buf_append(b, "\"", 1);
	for (; *s && r == 0; s++) {
		unsigned char c = (unsigned char)*s;
		if (c == '"' || c == '\\') {
			r = buf_appendf(b, "\\%c", c);
		} else if (c < 0x20) {
			r = buf_appendf(b, "\\u%04x", c);
		} else {
			r = buf_append(b, s, 1);
		}
	}
	return r == 0 ? buf_append(b, "\"", 1) : r;
}

static int append_header(struct buf *b, const struct st_out *tensors, size_t n,
	const char *const *metadata, size_t n_metadata)
{
	size_t at = 0;
	int r = buf_append(b, "{", 1);

	if (n_metadata > 0) {
		r = r ? r : buf_appendf(b, "\"__metadata__\":{");
		for (size_t i = 0; i < n_metadata; i++) {
			r = r ? r : buf_append(b, ",", i > 0);
			r = r ? r : append_string(b, metadata[2 * i]);
			r = r ? r : buf_append(b, ":", 1);
			r = r ? r : append_string(b, metadata[2 * i + 1]);
		}
		r = r ? r : buf_append(b, "}", 1);
	}
	for (size_t i = 0; i < n; i++) {
		size_t bytes;
		unsigned bits = dtype_bits(tensors[i].dtype);
		if (bits == 0 || !shape_bytes(tensors[i].dims, tensors[i].n_dims, bits, &bytes)) {
			return -EINVAL;
		}
		r = r ? r : buf_append(b, ",", n_metadata > 0 || i > 0);
		r = r ? r : append_string(b, tensors[i].name);
		for (size_t j = 0; j < ARRAY_LEN(dtypes); j++) {
			if (dtypes[j].dtype == tensors[i].dtype) {
				r = r ? r : buf_appendf(b, ":{\"dtype\":\"%s\",\"shape\":[", dtypes[j].name);
				break;
			}
		}
		for (int d = 0; d < tensors[i].n_dims; d++) {
			r = r ? r : buf_appendf(b, "%s%" PRId64, d ? "," : "", tensors[i].dims[d]);
		}
		size_t end;
		if (!add_size(at, bytes, &end)) {
			return -EINVAL;
		}
		r = r ? r : buf_appendf(b, "],\"data_offsets\":[%zu,%zu]}", at, end);
		at = end;
	}
	r = r ? r : buf_append(b, "}", 1);
	while (r == 0 && b->len % 8 != 0) {
		r = buf_append(b, " ", 1);
	}
	return r;
}

int safetensors_write_header(struct buf *out, const struct st_out *tensors, size_t n,
	const char *const *metadata, size_t n_metadata)
{
	_cleanup_(buf_deinit) struct buf header = {0};
	size_t was = out->len;
	uint8_t header_len[8];

	int r = append_header(&header, tensors, n, metadata, n_metadata);
	if (r == 0) {
		le64_write(header_len, header.len);
		r = buf_append(out, header_len, sizeof(header_len));
	}
	r = r ? r : buf_append(out, header.data, header.len);
	if (r != 0) {
		out->len = was;
	}
	return r;
}

int safetensors_write(struct buf *out, const struct st_out *tensors, size_t n,
	const char *const *metadata, size_t n_metadata)
{
	size_t was = out->len;
	int r = safetensors_write_header(out, tensors, n, metadata, n_metadata);
	for (size_t i = 0; i < n && r == 0; i++) {
		size_t bytes = 0;
		shape_bytes(tensors[i].dims, tensors[i].n_dims, dtype_bits(tensors[i].dtype), &bytes);
		r = buf_append(out, tensors[i].data, bytes);
	}
	if (r != 0) {
		out->len = was;
	}
	return r;
}
