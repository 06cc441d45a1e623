#include "client/client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	LEASE_MS = 5000,
	RECONNECT_MS = 50,
	RETRY_MS = 200,
	FRAME_MAX = 300 * 1024,
	SEND_QUEUE = 256,
};

struct incoming {
	struct incoming *next;
	struct answer answer;
};

struct call {
	struct call *next;
	uint8_t id[REQUEST_ID_SIZE];
	uint8_t *packed; /* kept for sending again; NULL otherwise */
	size_t packed_len;
	bool lost;
	bool complete; /* the last reply has come, though perhaps not been taken */
	struct incoming *head, **tail;
};

struct client {
	char *endpoint;
	int connect_timeout_ms;
	void *zmq, *socket, *monitor;
	unsigned n_sockets;
	bool greeted;   /* Hello was answered on this socket */
	bool was_there; /* a daemon has answered before */
	int64_t sent_ns;
	uint8_t hello_id[REQUEST_ID_SIZE], lease_id[REQUEST_ID_SIZE];
	struct call *calls;
};

static void closemsg(zmq_msg_t *m)
{
	zmq_msg_close(m);
}

void answer_deinit(struct answer *a)
{
	proto_free(a->reply);
	free(a->raw);
	*a = (struct answer){0};
}

static void incoming_free(struct incoming *i)
{
	if (i) {
		answer_deinit(&i->answer);
		free(i);
	}
}

DEFINE_CLEANUP(struct incoming *, incoming_free);

static int64_t deadline_after(int ms)
{
	return ms < 0 ? INT64_MAX : clock_monotonic_ns() + (int64_t)ms * 1000000;
}

/* Milliseconds until a deadline, for poll. */
static int left_ms(int64_t deadline, int at_most)
{
	int64_t left = deadline - clock_monotonic_ns();
	if (left <= 0) {
		return 0;
	}
	return (int)min_i64((left + 999999) / 1000000, at_most);
}

void client_pause(int ms)
{
	poll(NULL, 0, ms);
}

char *client_default_endpoint(void)
{
	static const char service[] = "/run/peftd/peftd.sock";
	const char *given = getenv("PEFTD_ENDPOINT");
	if (given && given[0]) {
		return strdup(given);
	}
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	_cleanup_(buf_deinit) struct buf b = {0};
	if (runtime && runtime[0]) {
		if (buf_appendf(&b, "ipc://%s/peftd.sock", runtime) < 0 || !buf_cstr(&b)) {
			return NULL;
		}
		/* The user's own daemon comes before the machine's. */
		if (access((char *)b.data + strlen("ipc://"), F_OK) == 0 || access(service, F_OK) != 0) {
			return buf_steal(&b, NULL);
		}
		b.len = 0;
	}
	return buf_appendf(&b, "ipc://%s", service) < 0 ? NULL : buf_steal(&b, NULL);
}

int client_new(struct client **ret, const char *endpoint, int connect_timeout_ms)
{
	struct client *c = calloc(1, sizeof(*c));
	if (!c) {
		return -ENOMEM;
	}
	c->endpoint = strdup(endpoint);
	c->connect_timeout_ms = connect_timeout_ms;
	if (!c->endpoint) {
		free(c);
		return -ENOMEM;
	}
	*ret = c;
	return 0;
}

static void call_free(struct call *call)
{
	while (call->head) {
		struct incoming *next = call->head->next;
		incoming_free(call->head);
		call->head = next;
	}
	free(call->packed);
	free(call);
}

static void close_socket(struct client *c)
{
	if (c->socket) {
		zmq_socket_monitor(c->socket, NULL, 0);
		zmq_close(c->socket);
	}
	if (c->monitor) {
		zmq_close(c->monitor);
	}
	c->socket = c->monitor = NULL;
	c->greeted = false;
}

void client_drop(struct client *c)
{
	close_socket(c);
	for (struct call *call = c->calls; call; call = call->next) {
		if (!call->packed && !call->complete) {
			call->lost = true;
		}
	}
}

void client_free(struct client *c)
{
	if (!c) {
		return;
	}
	close_socket(c);
	if (c->zmq) {
		zmq_ctx_term(c->zmq);
	}
	while (c->calls) {
		struct call *next = c->calls->next;
		call_free(c->calls);
		c->calls = next;
	}
	free(c->endpoint);
	free(c);
}

void client_make_id(uint8_t id[REQUEST_ID_SIZE])
{
	random_bytes(id, REQUEST_ID_SIZE);
}

/* ---- connecting -------------------------------------------------------------------------- */

static int open_socket(struct client *c, struct errmsg *err)
{
	if (!c->zmq && !(c->zmq = zmq_ctx_new())) {
		return -errno;
	}
	c->socket = zmq_socket(c->zmq, ZMQ_DEALER);
	if (!c->socket) {
		return -errno;
	}
	const struct { int option, value; } options[] = {
		{ZMQ_LINGER, 0},
		{ZMQ_SNDHWM, SEND_QUEUE},
		{ZMQ_RECONNECT_IVL, RECONNECT_MS},
		{ZMQ_HEARTBEAT_IVL, 5000},
		{ZMQ_HEARTBEAT_TIMEOUT, 15000},
	};
	for (size_t i = 0; i < ARRAY_LEN(options); i++) {
		if (zmq_setsockopt(c->socket, options[i].option, &options[i].value, sizeof(int)) < 0) {
			return -errno;
		}
	}
	int64_t max = FRAME_MAX;
	zmq_setsockopt(c->socket, ZMQ_MAXMSGSIZE, &max, sizeof(max));

	/* A DEALER reconnects by itself and says nothing, but a new connection is a new session, which
	 * knows nothing of what was asked. So it must be noticed. Each socket has its own address for
	 * the monitor, for the one before may not be gone yet. */
	char address[64];
	snprintf(address, sizeof(address), "inproc://monitor-%u", c->n_sockets++);
	if (zmq_socket_monitor(c->socket, address, ZMQ_EVENT_DISCONNECTED) < 0) {
		return -errno;
	}
	c->monitor = zmq_socket(c->zmq, ZMQ_PAIR);
	if (!c->monitor || zmq_connect(c->monitor, address) < 0) {
		return -errno;
	}
	if (zmq_connect(c->socket, c->endpoint) < 0) {
		return errmsg_set(err, STATUS_INVALID, "endpoint %s: %s; an endpoint looks like "
			"ipc:///run/peftd/peftd.sock", c->endpoint, zmq_strerror(errno));
	}
	return 0;
}

static int send_packed(struct client *c, const void *data, size_t len, const void *raw,
	size_t raw_len)
{
	if (zmq_send(c->socket, data, len, ZMQ_DONTWAIT | (raw_len > 0 ? ZMQ_SNDMORE : 0)) < 0 ||
		(raw_len > 0 && zmq_send(c->socket, raw, raw_len, ZMQ_DONTWAIT) < 0)) {
		return -errno;
	}
	c->sent_ns = clock_monotonic_ns();
	return 0;
}

static int send_request(struct client *c, const Peftd__V1__Request *req)
{
	size_t len;
	_cleanup_(freep) void *data = proto_pack(req, &len);
	return data ? send_packed(c, data, len, NULL, 0) : -ENOMEM;
}

static int send_hello(struct client *c)
{
	client_make_id(c->hello_id);
	client_make_id(c->lease_id);
	Peftd__V1__HelloRequest hello = PEFTD__V1__HELLO_REQUEST__INIT;
	hello.protocol = PROTOCOL_VERSION;
	hello.has_client = true;
	hello.client = proto_bytes("peftctl " PEFTD_VERSION);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, c->hello_id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_HELLO;
	req.hello = &hello;
	return send_request(c, &req);
}

static int send_lease(struct client *c)
{
	Peftd__V1__LeaseRequest lease = PEFTD__V1__LEASE_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, c->lease_id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_LEASE;
	req.lease = &lease;
	return send_request(c, &req);
}

/* Receives one message. 1 with *ret; 0 when there is none now; -EPROTO for nonsense; -errno. */
static int receive(struct client *c, struct incoming **ret)
{
	_cleanup_(closemsg) zmq_msg_t body, raw;
	zmq_msg_init(&body);
	zmq_msg_init(&raw);
	if (zmq_msg_recv(&body, c->socket, ZMQ_DONTWAIT) < 0) {
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	}
	if (zmq_msg_more(&body) && (zmq_msg_recv(&raw, c->socket, ZMQ_DONTWAIT) < 0 ||
			zmq_msg_more(&raw))) {
		return -EPROTO;
	}
	_cleanup_(incoming_freep) struct incoming *in = calloc(1, sizeof(*in));
	if (!in) {
		return -ENOMEM;
	}
	in->answer.reply = proto_unpack(&peftd__v1__reply__descriptor, zmq_msg_data(&body),
		zmq_msg_size(&body), FRAME_MAX, NULL);
	if (!in->answer.reply) {
		return -EPROTO;
	}
	in->answer.raw_len = zmq_msg_size(&raw);
	if (in->answer.raw_len > 0) {
		in->answer.raw = malloc(in->answer.raw_len);
		if (!in->answer.raw) {
			return -ENOMEM;
		}
		memcpy(in->answer.raw, zmq_msg_data(&raw), in->answer.raw_len);
	}
	*ret = steal_ptr(in);
	return 1;
}

/* Waits for something to happen on the socket. 1: readable; 0: nothing; -ECONNRESET. */
static int wait_socket(struct client *c, int timeout_ms)
{
	zmq_pollitem_t items[] = {
		{.socket = c->socket, .events = ZMQ_POLLIN},
		{.socket = c->monitor, .events = ZMQ_POLLIN},
	};
	if (zmq_poll(items, ARRAY_LEN(items), timeout_ms) < 0) {
		return errno == EINTR ? 0 : -errno;
	}
	if (items[0].revents != 0) {
		return 1; /* before a disconnection: what came before it still counts */
	}
	return items[1].revents != 0 ? -ECONNRESET : 0;
}

static int reply_status(const Peftd__V1__Reply *reply, struct errmsg *err)
{
	const Peftd__V1__Status *s = reply->status;
	if (s->code == STATUS_OK) {
		return 0;
	}
	_cleanup_(freep) char *text = NULL;
	if (!s->has_message || s->message.len == 0) {
		errmsg_set(err, 0, "the daemon answers '%s'", status_name((int)s->code));
	} else if (proto_str(&s->message, "message", &text, NULL) == 0) {
		errmsg_set(err, 0, "%s", text);
	} else {
		errmsg_set(err, 0, "the daemon answers '%s' and a text that is no UTF-8",
			status_name((int)s->code));
	}
	/* A code of a newer daemon must not be taken for one of ours. */
	return s->code < CLIENT_LOST ? (int)s->code : STATUS_FAILED;
}

/* Waits for the answer to Hello. 0; STATUS_*; -ETIMEDOUT; -ECONNRESET and the like: try again. */
static int await_hello(struct client *c, int64_t deadline, struct errmsg *err)
{
	for (;;) {
		int r = wait_socket(c, left_ms(deadline, 1000));
		if (r < 0) {
			return r;
		}
		if (r == 0) {
			if (clock_monotonic_ns() >= deadline) {
				return -ETIMEDOUT;
			}
			continue;
		}
		_cleanup_(incoming_freep) struct incoming *in = NULL;
		r = receive(c, &in);
		if (r < 0) {
			return r;
		}
		const ProtobufCBinaryData *id = r > 0 ? &in->answer.reply->id : NULL;
		if (id && id->len == REQUEST_ID_SIZE && memcmp(id->data, c->hello_id, id->len) == 0) {
			return reply_status(in->answer.reply, err);
		}
	}
}

static int unreachable(const struct client *c, struct errmsg *err)
{
	if (c->was_there) {
		return errmsg_set(err, STATUS_UNAVAILABLE,
			"the daemon at %s is gone and has not come back for %d s; what was acknowledged is "
			"kept: start it again and repeat the command", c->endpoint, CLIENT_LOST_MS / 1000);
	}
	return errmsg_set(err, STATUS_UNAVAILABLE,
		"no daemon answers at %s; start one with 'peftd --endpoint %s', or the service with "
		"'systemctl start peftd', or name another endpoint with --endpoint or PEFTD_ENDPOINT",
		c->endpoint, c->endpoint);
}

static int greet(struct client *c, struct errmsg *err)
{
	int64_t deadline = deadline_after(c->was_there ? CLIENT_LOST_MS : c->connect_timeout_ms);
	struct errmsg busy = {0};
	for (;;) {
		close_socket(c);
		int r = open_socket(c, err);
		if (r == 0) {
			r = send_hello(c);
		}
		if (r != 0) {
			return r;
		}
		r = await_hello(c, deadline, &busy);
		if (r == 0) {
			c->greeted = c->was_there = true;
			return 0;
		}
		bool again = r == -ECONNRESET || r == -EPROTO || r == STATUS_UNAVAILABLE;
		if (!again && r != -ETIMEDOUT) {
			return r < 0 ? r : errmsg_set(err, r, "%s", busy.text);
		}
		if (!again || left_ms(deadline, RETRY_MS) == 0) {
			return busy.text[0] ? errmsg_set(err, STATUS_UNAVAILABLE, "%s", busy.text)
				: unreachable(c, err);
		}
		client_pause(left_ms(deadline, RETRY_MS));
	}
}

/* Connects where needed, and sends again what was under way. */
static int ensure_connected(struct client *c, struct errmsg *err)
{
	for (;;) {
		if (c->greeted) {
			return 0;
		}
		int r = greet(c, err);
		if (r != 0) {
			return r;
		}
		for (struct call *call = c->calls; call && r == 0; call = call->next) {
			if (call->packed && !call->complete) {
				r = send_packed(c, call->packed, call->packed_len, NULL, 0);
			}
		}
		if (r == 0) {
			return 0;
		}
		client_drop(c);
	}
}

/* ---- calls ------------------------------------------------------------------------------- */

int client_start(struct client *c, const Peftd__V1__Request *req, const void *raw, size_t raw_len,
	unsigned flags, struct call **ret, struct errmsg *err)
{
	int r = ensure_connected(c, err);
	if (r != 0) {
		return r;
	}
	size_t len;
	_cleanup_(freep) uint8_t *packed = proto_pack(req, &len);
	if (!packed) {
		return -ENOMEM;
	}
	if (len > MESSAGE_MAX) {
		return errmsg_set(err, STATUS_INVALID,
			"the request has %zu bytes; at most %d are allowed", len, MESSAGE_MAX);
	}
	struct call *call = calloc(1, sizeof(*call));
	if (!call) {
		return -ENOMEM;
	}
	memcpy(call->id, req->id.data, sizeof(call->id));
	call->tail = &call->head;
	if (send_packed(c, packed, len, raw, raw_len) < 0) {
		/* A full queue: the daemon takes nothing. Found out and mended by client_next(). */
		client_drop(c);
		call->lost = !(flags & CLIENT_RESEND);
	}
	if (flags & CLIENT_RESEND) {
		call->packed = steal_ptr(packed);
		call->packed_len = len;
	}
	call->next = c->calls;
	c->calls = call;
	*ret = call;
	return 0;
}

bool call_finished(const struct call *call)
{
	return call->complete && !call->head;
}

/* Hands a message to its call; *ret_session_gone when the daemon no longer knows this session. */
static void deliver(struct client *c, struct incoming *in, bool *ret_session_gone)
{
	const Peftd__V1__Reply *reply = in->answer.reply;
	if (reply->id.len != REQUEST_ID_SIZE) {
		incoming_free(in);
		return;
	}
	if (memcmp(reply->id.data, c->lease_id, REQUEST_ID_SIZE) == 0) {
		/* A lease has no answer but this: it came too late, as after a suspension. */
		*ret_session_gone = reply->status->code != STATUS_OK;
		incoming_free(in);
		return;
	}
	for (struct call *call = c->calls; call; call = call->next) {
		if (!call->complete && memcmp(call->id, reply->id.data, REQUEST_ID_SIZE) == 0) {
			call->complete = !(reply->has_more && reply->more) || reply->status->code != STATUS_OK;
			*call->tail = in;
			call->tail = &in->next;
			return;
		}
	}
	incoming_free(in); /* of a call that was ended */
}

/* Takes in what comes within timeout_ms. 0, also when nothing came; -errno. */
static int pump(struct client *c, int timeout_ms)
{
	int64_t renew = c->sent_ns + (int64_t)LEASE_MS * 1000000;
	if (clock_monotonic_ns() >= renew && send_lease(c) < 0) {
		client_drop(c);
		return 0;
	}
	int r = wait_socket(c, left_ms(deadline_after(timeout_ms), LEASE_MS / 2));
	while (r > 0) {
		struct incoming *in = NULL;
		bool session_gone = false;
		r = receive(c, &in);
		if (r > 0) {
			deliver(c, in, &session_gone);
		}
		if (session_gone) {
			client_drop(c);
			return 0;
		}
	}
	if (r == -ENOMEM) {
		return r;
	}
	if (r < 0) {
		client_drop(c);
	}
	return 0;
}

int client_next(struct client *c, struct call *call, int timeout_ms, struct answer *ret,
	struct errmsg *err)
{
	int64_t deadline = deadline_after(timeout_ms);
	for (bool late = false;;) {
		if (call->head) {
			struct incoming *in = call->head;
			call->head = in->next;
			if (!call->head) {
				call->tail = &call->head;
			}
			int r = reply_status(in->answer.reply, err);
			if (r == 0) {
				*ret = in->answer;
				in->answer = (struct answer){0};
			}
			incoming_free(in);
			return r;
		}
		if (call->lost) {
			return CLIENT_LOST;
		}
		if (call->complete) {
			return errmsg_set(err, STATUS_INTERNAL, "nothing more comes for this request");
		}
		int r = ensure_connected(c, err);
		if (r != 0) {
			return r;
		}
		if (late) {
			return -ETIMEDOUT;
		}
		/* What has arrived already counts, even without time to wait. */
		late = clock_monotonic_ns() >= deadline;
		r = pump(c, left_ms(deadline, 60000));
		if (r < 0) {
			return r;
		}
	}
}

void client_end(struct client *c, struct call *call)
{
	if (!call) {
		return;
	}
	struct call **at = &c->calls;
	while (*at != call) {
		at = &(*at)->next;
	}
	*at = call->next;
	if (!call->complete && !call->lost && c->greeted) {
		uint8_t id[REQUEST_ID_SIZE];
		client_make_id(id);
		Peftd__V1__EndStreamRequest end = PEFTD__V1__END_STREAM_REQUEST__INIT;
		end.stream = (ProtobufCBinaryData){REQUEST_ID_SIZE, call->id};
		Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
		req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
		req.what_case = PEFTD__V1__REQUEST__WHAT_END_STREAM;
		req.end_stream = &end;
		if (send_request(c, &req) < 0) {
			client_drop(c);
		}
	}
	call_free(call);
}

void client_credit(struct client *c, const struct call *call, uint32_t credit)
{
	if (call->complete || call->lost || !c->greeted) {
		return;
	}
	uint8_t id[REQUEST_ID_SIZE];
	client_make_id(id);
	Peftd__V1__CreditRequest more = PEFTD__V1__CREDIT_REQUEST__INIT;
	more.stream = (ProtobufCBinaryData){REQUEST_ID_SIZE, (uint8_t *)call->id};
	more.credit = credit;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_CREDIT;
	req.credit = &more;
	if (send_request(c, &req) < 0) {
		client_drop(c);
	}
}

static int call_once(struct client *c, const Peftd__V1__Request *req, int timeout_ms,
	struct answer *ret, struct errmsg *err)
{
	struct call *call;
	int r = client_start(c, req, NULL, 0, CLIENT_RESEND, &call, err);
	if (r != 0) {
		return r;
	}
	r = client_next(c, call, timeout_ms, ret, err);
	if (r == -ETIMEDOUT) {
		r = errmsg_set(err, STATUS_UNAVAILABLE,
			"the daemon at %s takes requests but has not answered for %d s; see its log",
			c->endpoint, timeout_ms / 1000);
		client_drop(c);
	}
	client_end(c, call);
	return r;
}

int client_call(struct client *c, Peftd__V1__Request *req, int timeout_ms, Peftd__V1__Reply **ret,
	struct errmsg *err)
{
	uint8_t id[REQUEST_ID_SIZE];
	if (req->id.len == 0) {
		client_make_id(id);
		req->id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	}
	int64_t deadline = deadline_after(CLIENT_BUSY_MS);
	int r;
	for (;;) {
		struct answer a = {0};
		bool connected = c->greeted;
		r = call_once(c, req, timeout_ms, &a, err);
		if (r == 0) {
			free(a.raw);
			*ret = a.reply;
			break;
		}
		/* UNAVAILABLE is said of a moment: a restart, a lost session. But when nobody answered
		 * Hello, the time for that was spent already. */
		connected = connected || c->greeted;
		if (r != STATUS_UNAVAILABLE || !connected || clock_monotonic_ns() >= deadline) {
			break;
		}
		client_drop(c);
		client_pause(RETRY_MS);
	}
	if (req->id.data == id) {
		req->id = (ProtobufCBinaryData){0};
	}
	return r;
}
