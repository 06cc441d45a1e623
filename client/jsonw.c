#include "client/jsonw.h"

#include <errno.h>
#include <string.h>

#include "client/format.h"
#include "proto/jobspec.h"
#include "util/cleanup.h"
#include "util/util.h"

void jsonw_deinit(struct jsonw *j)
{
	buf_deinit(&j->buf);
}

static void put(struct jsonw *j, const void *data, size_t len)
{
	if (j->error == 0) {
		j->error = buf_append(&j->buf, data, len);
	}
}

static void puts_(struct jsonw *j, const char *s)
{
	put(j, s, strlen(s));
}

/* Before each value: a comma, unless it is the first or follows its key. */
static void begin(struct jsonw *j)
{
	if (j->comma) {
		put(j, ",", 1);
	}
	j->comma = true;
}

void jsonw_open(struct jsonw *j, char bracket)
{
	begin(j);
	put(j, &bracket, 1);
	j->comma = false;
}

void jsonw_close(struct jsonw *j, char bracket)
{
	put(j, &bracket, 1);
	j->comma = true;
}

static size_t sequence_length(const uint8_t *p, size_t left)
{
	for (size_t n = 1; n <= 4 && n <= left; n++) {
		if (utf8_valid(p, n, NULL)) {
			return n;
		}
	}
	return 0;
}

static void put_character(struct jsonw *j, const uint8_t *p, size_t n)
{
	char escape[8];
	if (n == 0) {
		puts_(j, "\xEF\xBF\xBD");
	} else if (p[0] == '"' || p[0] == '\\') {
		escape[0] = '\\';
		escape[1] = (char)p[0];
		put(j, escape, 2);
	} else if (p[0] == '\n' || p[0] == '\t' || p[0] == '\r') {
		puts_(j, p[0] == '\n' ? "\\n" : p[0] == '\t' ? "\\t" : "\\r");
	} else if (p[0] < 0x20 || p[0] == 0x7F) {
		snprintf(escape, sizeof(escape), "\\u%04x", p[0]);
		puts_(j, escape);
	} else {
		put(j, p, n);
	}
}

static void put_quoted(struct jsonw *j, const uint8_t *p, size_t len)
{
	put(j, "\"", 1);
	for (size_t i = 0, n; i < len; i += n ? n : 1) {
		n = sequence_length(p + i, len - i);
		put_character(j, p + i, n);
	}
	put(j, "\"", 1);
}

void jsonw_key(struct jsonw *j, const char *key)
{
	begin(j);
	put_quoted(j, (const uint8_t *)key, strlen(key));
	put(j, ":", 1);
	j->comma = false;
}

void jsonw_text(struct jsonw *j, const void *text, size_t len)
{
	begin(j);
	put_quoted(j, text, len);
}

void jsonw_string(struct jsonw *j, const char *s)
{
	jsonw_text(j, s, strlen(s));
}

void jsonw_bytes(struct jsonw *j, const ProtobufCBinaryData *b)
{
	jsonw_text(j, b->data, b->len);
}

void jsonw_hex(struct jsonw *j, const ProtobufCBinaryData *b)
{
	begin(j);
	put(j, "\"", 1);
	for (size_t i = 0; i < b->len; i++) {
		char hex[3];
		hex_encode(hex, b->data + i, 1);
		put(j, hex, 2);
	}
	put(j, "\"", 1);
}

void jsonw_u64(struct jsonw *j, uint64_t v)
{
	char text[32];
	begin(j);
	snprintf(text, sizeof(text), "%llu", (unsigned long long)v);
	puts_(j, text);
}

void jsonw_i64(struct jsonw *j, int64_t v)
{
	char text[32];
	begin(j);
	snprintf(text, sizeof(text), "%lld", (long long)v);
	puts_(j, text);
}

void jsonw_double(struct jsonw *j, double v)
{
	char text[FORMAT_SIZE];
	begin(j);
	puts_(j, format_double(text, v));
}

void jsonw_bool(struct jsonw *j, bool v)
{
	begin(j);
	puts_(j, v ? "true" : "false");
}

void jsonw_null(struct jsonw *j)
{
	begin(j);
	puts_(j, "null");
}

int jsonw_print(struct jsonw *j, FILE *f)
{
	if (j->error == 0) {
		fwrite(j->buf.data, 1, j->buf.len, f);
		fputc('\n', f);
	}
	j->buf.len = 0;
	j->comma = false;
	return j->error;
}

/* ---- reflection -------------------------------------------------------------------------- */

static void enum_value(struct jsonw *j, const ProtobufCFieldDescriptor *f, int value)
{
	const ProtobufCEnumDescriptor *d = f->descriptor;
	const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(d, value);
	if (!v) {
		jsonw_i64(j, value);
	} else if (strncmp(v->name, "JOB_", 4) == 0) {
		jsonw_string(j, v->name + 4); /* the prefix is there for C's sake */
	} else {
		jsonw_string(j, v->name);
	}
}

static size_t value_size(ProtobufCType type)
{
	switch (type) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	default:
		return 4;
	}
}

static void value(struct jsonw *j, const ProtobufCFieldDescriptor *f, const void *p)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		jsonw_i64(j, *(const int32_t *)p);
		break;
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		jsonw_i64(j, *(const int64_t *)p);
		break;
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		jsonw_u64(j, *(const uint32_t *)p);
		break;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		jsonw_u64(j, *(const uint64_t *)p);
		break;
	case PROTOBUF_C_TYPE_FLOAT:
		jsonw_double(j, (double)*(const float *)p);
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		jsonw_double(j, *(const double *)p);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		jsonw_bool(j, *(const protobuf_c_boolean *)p != 0);
		break;
	case PROTOBUF_C_TYPE_ENUM:
		enum_value(j, f, *(const int *)p);
		break;
	case PROTOBUF_C_TYPE_STRING:
		jsonw_string(j, *(const char *const *)p);
		break;
	case PROTOBUF_C_TYPE_BYTES:
		if (strcmp(f->name, "digest") == 0) {
			jsonw_hex(j, p);
		} else {
			jsonw_bytes(j, p);
		}
		break;
	case PROTOBUF_C_TYPE_MESSAGE:
		jsonw_message(j, *(const ProtobufCMessage *const *)p);
		break;
	}
}

static bool present(const ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f)
{
	const uint8_t *base = (const uint8_t *)msg;
	if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
		return *(const uint32_t *)(base + f->quantifier_offset) == f->id;
	}
	if (f->type == PROTOBUF_C_TYPE_MESSAGE || f->type == PROTOBUF_C_TYPE_STRING) {
		return *(void *const *)(base + f->offset) != NULL;
	}
	return f->label == PROTOBUF_C_LABEL_REQUIRED ||
		*(const protobuf_c_boolean *)(base + f->quantifier_offset) != 0;
}

/* {"q_proj": 8}, as in a job file. */
static void map(struct jsonw *j, ProtobufCMessage *const *entries, size_t n)
{
	jsonw_open(j, '{');
	for (size_t i = 0; i < n; i++) {
		const ProtobufCFieldDescriptor *f = entries[i]->descriptor->fields;
		_cleanup_(buf_deinit) struct buf key = {0};
		const ProtobufCBinaryData *text =
			(const void *)((const uint8_t *)entries[i] + f[0].offset);
		if (buf_append(&key, text->data, text->len) < 0 || !buf_cstr(&key)) {
			j->error = -ENOMEM;
			return;
		}
		jsonw_key(j, (char *)key.data);
		value(j, &f[1], (const uint8_t *)entries[i] + f[1].offset);
	}
	jsonw_close(j, '}');
}

static void repeated(struct jsonw *j, const ProtobufCMessage *msg,
	const ProtobufCFieldDescriptor *f)
{
	const uint8_t *base = (const uint8_t *)msg;
	size_t n = *(const size_t *)(base + f->quantifier_offset);
	const uint8_t *items = *(const uint8_t *const *)(base + f->offset);
	if (jobspec_is_map(f)) {
		map(j, (ProtobufCMessage *const *)items, n);
		return;
	}
	jsonw_open(j, '[');
	for (size_t i = 0; i < n; i++) {
		value(j, f, items + i * value_size(f->type));
	}
	jsonw_close(j, ']');
}

void jsonw_members(struct jsonw *j, const ProtobufCMessage *msg)
{
	for (unsigned i = 0; i < msg->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &msg->descriptor->fields[i];
		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			jsonw_key(j, f->name);
			repeated(j, msg, f);
		} else if (present(msg, f)) {
			jsonw_key(j, f->name);
			value(j, f, (const uint8_t *)msg + f->offset);
		}
	}
}

void jsonw_message(struct jsonw *j, const ProtobufCMessage *msg)
{
	jsonw_open(j, '{');
	jsonw_members(j, msg);
	jsonw_close(j, '}');
}
