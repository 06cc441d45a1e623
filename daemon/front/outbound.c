#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "daemon/front/front-internal.h"
#include "util/cleanup.h"
#include "util/log.h"

enum { ALL_QUEUES_MAX = 256 << 20 }; /* bytes queued for all sessions together */

/* 0; EAGAIN when the peer's queue is full; EHOSTUNREACH when it is gone. */
static int send_frames(void *router, const void *rid, const void *data, size_t len, const void *raw,
	size_t raw_len)
{
	/* ROUTER_MANDATORY decides on the first frame: what it takes, it takes to the end. */
	if (zmq_send(router, rid, SESSION_ROUTING_ID_SIZE, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0 ||
		zmq_send(router, data, len, (raw_len > 0 ? ZMQ_SNDMORE : 0) | ZMQ_DONTWAIT) < 0 ||
		(raw_len > 0 && zmq_send(router, raw, raw_len, ZMQ_DONTWAIT) < 0)) {
		return errno;
	}
	return 0;
}

void front_answer(struct front *f, const void *rid, const void *request_id, size_t id_len, int code,
	const char *text)
{
	Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
	status.code = (uint32_t)code;
	status.has_message = true;
	status.message = proto_bytes(text);
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	reply.id = (ProtobufCBinaryData){id_len, (uint8_t *)request_id};
	reply.status = &status;

	size_t len;
	_cleanup_(freep) void *data = proto_pack(&reply, &len);
	if (data) {
		send_frames(f->router, rid, data, len, NULL, 0);
	}
}

static int enqueue(struct front *f, struct session *s, const void *data, size_t len,
	const void *raw, size_t raw_len)
{
	bool was_blocked = s->queued > 0;
	if (f->queued_bytes + len + raw_len > ALL_QUEUES_MAX) {
		return front_end_session(f, s, "too much is queued for slow clients");
	}
	int r = session_queue(s, data, len, raw, raw_len);
	if (r == STATUS_QUOTA) {
		return front_end_session(f, s, "it does not read its replies");
	}
	if (r < 0) {
		return r;
	}
	f->blocked += !was_blocked;
	f->queued_bytes += len + raw_len;
	return 0;
}

int front_flush_session(struct front *f, struct session *s)
{
	while (s->queue) {
		struct reply *q = s->queue;
		int error = send_frames(f->router, s->rid, q->data, q->len, q->data + q->len, q->raw_len);
		if (error == EAGAIN) {
			return 0;
		}
		if (error != 0) {
			return front_end_session(f, s, "its connection is gone");
		}
		f->queued_bytes -= q->len + q->raw_len;
		session_dequeue(s);
		f->blocked -= s->queued == 0;
	}
	return 0;
}

int front_send(struct front *f, struct session *s, const Peftd__V1__Reply *reply, const void *raw,
	size_t raw_len)
{
	size_t len;
	_cleanup_(freep) void *data = proto_pack(reply, &len);
	if (!data) {
		return -ENOMEM;
	}
	if (s->queued > 0) {
		return enqueue(f, s, data, len, raw, raw_len);
	}
	int error = send_frames(f->router, s->rid, data, len, raw, raw_len);
	if (error == EAGAIN) {
		return enqueue(f, s, data, len, raw, raw_len);
	}
	return error == 0 ? 0 : front_end_session(f, s, "its connection is gone");
}

int front_reply(struct front *f, const Peftd__V1__ClientReply *r, const void *raw, size_t raw_len)
{
	const Peftd__V1__Reply *reply = r->reply;
	struct session *s = session_by_number(f->sessions, r->session);
	if (!s) {
		return 0; /* ended while the core was answering */
	}
	if (reply->id.len != REQUEST_ID_SIZE) {
		log_warning("the core answered session %llu with an id of %zu bytes",
			(unsigned long long)r->session, reply->id.len);
		return 0;
	}
	bool last = !(reply->has_more && reply->more) || reply->status->code != STATUS_OK;
	bool expected = last ? session_forget(s, reply->id.data) : session_waits_for(s, reply->id.data);
	if (!expected) {
		return 0; /* the client has ended this stream */
	}
	return front_send(f, s, reply, raw, raw_len);
}
