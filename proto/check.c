#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/proto.h"
#include "util/util.h"

struct budget {
	size_t left;
};

static void *budget_alloc(void *data, size_t size)
{
	struct budget *b = data;
	if (size > b->left) {
		return NULL;
	}
	b->left -= size;
	return malloc(size);
}

static void budget_free(void *data, void *p)
{
	free(p);
}

void *proto_unpack(const ProtobufCMessageDescriptor *desc, const void *data, size_t len,
	size_t max_len, struct errmsg *err)
{
	if (len > max_len) {
		errmsg_set(err, STATUS_INVALID, "%s: message of %zu bytes, at most %zu are allowed",
			desc->short_name, len, max_len);
		return NULL;
	}
	struct budget budget = {UNPACK_BUDGET};
	ProtobufCAllocator allocator = {budget_alloc, budget_free, &budget};
	void *msg = protobuf_c_message_unpack(desc, &allocator, len, data);
	if (!msg) {
		errmsg_set(err, STATUS_INVALID, "%s: not a well-formed message (%zu bytes)",
			desc->short_name, len);
	}
	return msg;
}

void proto_free(void *msg)
{
	if (msg) {
		protobuf_c_message_free_unpacked(msg, NULL);
	}
}

void *proto_pack(const void *msg, size_t *ret_len)
{
	size_t len = protobuf_c_message_get_packed_size(msg);
	uint8_t *data = malloc(len ? len : 1);
	if (data) {
		*ret_len = protobuf_c_message_pack(msg, data);
	}
	return data;
}

void *proto_copy(const void *msg)
{
	size_t len;
	uint8_t *data = proto_pack(msg, &len);
	if (!data) {
		return NULL;
	}
	void *copy = protobuf_c_message_unpack(((const ProtobufCMessage *)msg)->descriptor, NULL, len,
		data);
	free(data);
	return copy;
}

int proto_str(const ProtobufCBinaryData *b, const char *what, char **ret, struct errmsg *err)
{
	size_t bad;
	if (!utf8_valid(b->data, b->len, &bad)) {
		return errmsg_set(err, STATUS_INVALID, "%s: not UTF-8 at byte %zu", what, bad);
	}
	if (b->len > 0 && memchr(b->data, 0, b->len)) {
		return errmsg_set(err, STATUS_INVALID, "%s: holds a NUL character", what);
	}
	char *s = malloc(b->len + 1);
	if (!s) {
		return -ENOMEM;
	}
	if (b->len > 0) {
		memcpy(s, b->data, b->len);
	}
	s[b->len] = '\0';
	*ret = s;
	return 0;
}

/* Its beginning, in characters that any terminal takes. */
static const char *show_name(const ProtobufCBinaryData *b, char *out, size_t cap)
{
	size_t n = b->len < cap - 4 ? b->len : cap - 4;
	for (size_t i = 0; i < n; i++) {
		out[i] = b->data[i] >= ' ' && b->data[i] < 0x7F ? (char)b->data[i] : '?';
	}
	snprintf(out + n, cap - n, "%s", n < b->len ? "..." : "");
	return out;
}

int proto_name(const ProtobufCBinaryData *b, const char *what, char **ret, struct errmsg *err)
{
	if (!name_valid(b->data, b->len)) {
		char shown[64];
		return errmsg_set(err, STATUS_INVALID,
			"%s '%s': that is no name; names have 1 to 128 bytes of UTF-8, no '/' and no control "
			"characters, and do not begin with '.' or '-'",
			what, show_name(b, shown, sizeof(shown)));
	}
	return proto_str(b, what, ret, err);
}

ProtobufCBinaryData proto_bytes(const char *s)
{
	return (ProtobufCBinaryData){s ? strlen(s) : 0, (uint8_t *)s};
}

ProtobufCBinaryData proto_bytes_dup(const char *s)
{
	return proto_bytes(s && s[0] ? strdup(s) : NULL);
}

bool proto_equal(const ProtobufCBinaryData *b, const char *s)
{
	size_t len = strlen(s);
	return b->len == len && (len == 0 || memcmp(b->data, s, len) == 0);
}
