#include "daemon/front/request.h"

#include <stdbool.h>
#include <string.h>

#include "util/cleanup.h"

DEFINE_CLEANUP(Peftd__V1__Request *, proto_free);

/* The number of messages in a message field: 0 or 1, or those of a repeated field. */
static size_t submessages(const ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f,
	ProtobufCMessage *const **ret)
{
	const uint8_t *base = (const uint8_t *)msg;
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		*ret = *(ProtobufCMessage *const *const *)(base + f->offset);
		return *(const size_t *)(base + f->quantifier_offset);
	}
	if ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0 &&
		*(const uint32_t *)(base + f->quantifier_offset) != f->id) {
		return 0;
	}
	*ret = (ProtobufCMessage *const *)(base + f->offset);
	return **ret ? 1 : 0;
}

int request_check_known(const ProtobufCMessage *msg, struct errmsg *err)
{
	if (msg->n_unknown_fields > 0) {
		return errmsg_set(err, STATUS_INVALID,
			"%s has a field numbered %u, which this version of the daemon does not know; use a "
			"peftctl of the daemon's version",
			msg->descriptor->short_name, msg->unknown_fields[0].tag);
	}
	for (unsigned i = 0; i < msg->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &msg->descriptor->fields[i];
		if (f->type != PROTOBUF_C_TYPE_MESSAGE) {
			continue;
		}
		ProtobufCMessage *const *sub = NULL;
		size_t n = submessages(msg, f, &sub);
		for (size_t k = 0; k < n; k++) {
			int r = request_check_known(sub[k], err);
			if (r != 0) {
				return r;
			}
		}
	}
	return 0;
}

static int check_raw(const Peftd__V1__Request *req, size_t raw_len, struct errmsg *err)
{
	if (req->what_case != PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK) {
		return raw_len == 0 ? 0 : errmsg_set(err, STATUS_INVALID,
			"a frame of %zu raw bytes follows a request that takes none", raw_len);
	}
	if (raw_len == 0 || raw_len > CHUNK_SIZE) {
		return errmsg_set(err, STATUS_INVALID,
			"an uploaded chunk has %zu bytes; 1 to %d belong in the frame behind the request",
			raw_len, CHUNK_SIZE);
	}
	return 0;
}

int request_parse(const void *data, size_t len, size_t raw_len, Peftd__V1__Request **ret,
	uint8_t ret_id[REQUEST_ID_SIZE], size_t *ret_id_len, struct errmsg *err)
{
	*ret_id_len = 0;
	_cleanup_(proto_freep) Peftd__V1__Request *req =
		proto_unpack(&peftd__v1__request__descriptor, data, len, MESSAGE_MAX, err);
	if (!req) {
		return STATUS_INVALID;
	}
	if (req->id.len != REQUEST_ID_SIZE) {
		return errmsg_set(err, STATUS_INVALID, "a request's id has %d bytes, this one's has %zu",
			REQUEST_ID_SIZE, req->id.len);
	}
	memcpy(ret_id, req->id.data, REQUEST_ID_SIZE);
	*ret_id_len = REQUEST_ID_SIZE;

	int r = request_check_known(&req->base, err);
	if (r != 0) {
		return r;
	}
	if (req->what_case == PEFTD__V1__REQUEST__WHAT__NOT_SET) {
		return errmsg_set(err, STATUS_INVALID, "the request asks for nothing");
	}
	r = check_raw(req, raw_len, err);
	if (r != 0) {
		return r;
	}
	*ret = steal_ptr(req);
	return 0;
}
