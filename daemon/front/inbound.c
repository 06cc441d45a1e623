#include <errno.h>
#include <string.h>
#include <zmq.h>

#include "daemon/front/endpoint.h"
#include "daemon/front/front-internal.h"
#include "daemon/front/request.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/util.h"

enum { CREDIT_MAX = 65536 };

static void closemsg(zmq_msg_t *m)
{
	zmq_msg_close(m);
}

DEFINE_CLEANUP(Peftd__V1__Request *, proto_free);

/* A message of a client as it came. */
struct inbound {
	uint8_t rid[SESSION_ROUTING_ID_SIZE];
	uint32_t uid;
	const void *data, *raw;
	size_t len, raw_len;
};

static int tell_core(struct front *f, const Peftd__V1__FrontToCore *m, const struct inbound *in)
{
	return link_send(f->link, m, in ? in->raw : NULL, in ? in->raw_len : 0);
}

static int on_hello(struct front *f, struct session *s, const struct inbound *in,
	const Peftd__V1__Request *req)
{
	struct errmsg err = {0};
	if (req->hello->protocol != PROTOCOL_VERSION) {
		errmsg_set(&err, STATUS_VERSION,
			"the daemon (peftd " PEFTD_VERSION ") speaks protocol %d, the client protocol %u; use "
			"a peftctl of the daemon's version",
			PROTOCOL_VERSION, req->hello->protocol);
		front_answer(f, in->rid, req->id.data, req->id.len, STATUS_VERSION, err.text);
		return 0;
	}
	if (!s) {
		int r = session_add(f->sessions, in->rid, in->uid, clock_monotonic_ns(), &s, &err);
		if (r < 0) {
			return r;
		}
		if (r > 0) {
			front_answer(f, in->rid, req->id.data, req->id.len, r, err.text);
			return 0;
		}
	}
	Peftd__V1__HelloReply hello = PEFTD__V1__HELLO_REPLY__INIT;
	hello.has_protocol = true;
	hello.protocol = PROTOCOL_VERSION;
	hello.has_daemon = true;
	hello.daemon = proto_bytes("peftd " PEFTD_VERSION);
	Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	reply.id = req->id;
	reply.status = &status;
	reply.what_case = PEFTD__V1__REPLY__WHAT_HELLO;
	reply.hello = &hello;
	return front_send(f, s, &reply, NULL, 0);
}

/* Credit and EndStream speak of a running stream of this session; others are not told of any. */
static bool knows_stream(const struct session *s, const ProtobufCBinaryData *stream)
{
	return stream->len == REQUEST_ID_SIZE && session_waits_for(s, stream->data);
}

static int on_credit(struct front *f, struct session *s, const Peftd__V1__CreditRequest *credit)
{
	if (!knows_stream(s, &credit->stream)) {
		return 0;
	}
	Peftd__V1__StreamCredit c = PEFTD__V1__STREAM_CREDIT__INIT;
	c.session = s->number;
	c.stream = credit->stream;
	c.credit = credit->credit < CREDIT_MAX ? credit->credit : CREDIT_MAX;
	Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
	m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_CREDIT;
	m.credit = &c;
	return tell_core(f, &m, NULL);
}

static int on_end_stream(struct front *f, struct session *s, const Peftd__V1__EndStreamRequest *end)
{
	if (!knows_stream(s, &end->stream)) {
		return 0;
	}
	session_forget(s, end->stream.data);
	Peftd__V1__StreamEnd e = PEFTD__V1__STREAM_END__INIT;
	e.session = s->number;
	e.stream = end->stream;
	Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
	m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_STREAM_END;
	m.stream_end = &e;
	return tell_core(f, &m, NULL);
}

static int on_request(struct front *f, struct session *s, const struct inbound *in,
	Peftd__V1__Request *req)
{
	if (session_waits_for(s, req->id.data)) {
		return 0; /* sent again on the same connection: the answer is on its way */
	}
	struct errmsg err = {0};
	int r = session_note(s, req->id.data, &err);
	if (r < 0) {
		return r;
	}
	if (r > 0) {
		front_answer(f, in->rid, req->id.data, req->id.len, r, err.text);
		return 0;
	}
	Peftd__V1__ClientRequest c = PEFTD__V1__CLIENT_REQUEST__INIT;
	c.session = s->number;
	c.uid = s->uid;
	c.request = req;
	Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
	m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_REQUEST;
	m.request = &c;
	return tell_core(f, &m, in);
}

static int dispatch(struct front *f, const struct inbound *in)
{
	struct errmsg err = {0};
	uint8_t id[REQUEST_ID_SIZE];
	size_t id_len;
	_cleanup_(proto_freep) Peftd__V1__Request *req = NULL;
	if (request_parse(in->data, in->len, in->raw_len, &req, id, &id_len, &err) != 0) {
		f->dropped++;
		log_debug("malformed request of uid %u: %s", in->uid, err.text);
		front_answer(f, in->rid, id, id_len, STATUS_INVALID, err.text);
		return 0;
	}

	struct session *s = session_by_rid(f->sessions, in->rid);
	if (s && s->uid != in->uid) {
		/* The same routing id in other hands: libzmq's ids were used up and began again. */
		int r = front_end_session(f, s, "its routing id belongs to another user now");
		if (r < 0) {
			return r;
		}
		s = NULL;
	}
	if (s) {
		s->seen_ns = clock_monotonic_ns();
	}
	if (req->what_case == PEFTD__V1__REQUEST__WHAT_HELLO) {
		return on_hello(f, s, in, req);
	}
	if (!s) {
		front_answer(f, in->rid, id, id_len, STATUS_UNAVAILABLE,
			"this connection has no session, or its lease has run out: begin with Hello");
		return 0;
	}
	switch (req->what_case) {
	case PEFTD__V1__REQUEST__WHAT_LEASE:
		return 0; /* being heard from was all */
	case PEFTD__V1__REQUEST__WHAT_CREDIT:
		return on_credit(f, s, req->credit);
	case PEFTD__V1__REQUEST__WHAT_END_STREAM:
		return on_end_stream(f, s, req->end_stream);
	default:
		return on_request(f, s, in, req);
	}
}

/* Takes in the rest of a message without keeping it. */
static int drain(void *router)
{
	for (;;) {
		int more;
		size_t size = sizeof(more);
		if (zmq_getsockopt(router, ZMQ_RCVMORE, &more, &size) < 0) {
			return -errno;
		}
		if (!more) {
			return 0;
		}
		zmq_msg_t m;
		zmq_msg_init(&m);
		int r = zmq_msg_recv(&m, router, ZMQ_DONTWAIT);
		int error = errno;
		zmq_msg_close(&m);
		if (r < 0) {
			return -error;
		}
	}
}

int front_receive(struct front *f)
{
	/* Routing id, request, raw bytes. */
	_cleanup_(closemsg) zmq_msg_t rid, body, raw;
	zmq_msg_init(&rid);
	zmq_msg_init(&body);
	zmq_msg_init(&raw);
	if (zmq_msg_recv(&rid, f->router, ZMQ_DONTWAIT) < 0) {
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	}
	if (!zmq_msg_more(&rid)) {
		return 1;
	}
	if (zmq_msg_recv(&body, f->router, ZMQ_DONTWAIT) < 0 ||
		(zmq_msg_more(&body) && zmq_msg_recv(&raw, f->router, ZMQ_DONTWAIT) < 0)) {
		return -errno;
	}
	int r = drain(f->router);
	if (r < 0) {
		return r;
	}
	bool too_many = zmq_msg_more(&body) && zmq_msg_more(&raw);
	const uint8_t *id = zmq_msg_data(&rid);
	if (too_many || zmq_msg_size(&rid) != SESSION_ROUTING_ID_SIZE || id[0] != 0) {
		/* Routing ids that libzmq makes begin with a zero byte, which a client's own may not. They
		 * are never reused while we run, so that no answer can reach a later holder of an id. */
		f->dropped++;
		return 1;
	}

	struct inbound in = {
		/* On ipc libzmq puts the peer's credentials, read from the kernel, behind the address. A
		 * property of that name which the peer itself sends does not replace it. */
		.uid = endpoint_peer_uid(zmq_msg_gets(&body, "Peer-Address")),
		.data = zmq_msg_data(&body),
		.len = zmq_msg_size(&body),
		.raw = zmq_msg_data(&raw),
		.raw_len = zmq_msg_size(&raw),
	};
	memcpy(in.rid, id, sizeof(in.rid));
	r = dispatch(f, &in);
	return r < 0 ? r : 1;
}
