#include "daemon/front/front.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "daemon/front/endpoint.h"
#include "daemon/front/front-internal.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/util.h"

enum {
	SWEEP_MS = 1000,         /* leases are looked at this often */
	BLOCKED_MS = 20,         /* and queued replies tried again: POLLOUT of a ROUTER is always set */
	CONFIG_TIMEOUT_MS = 30000,
	GOODBYE_MS = 250,        /* for the last replies to leave */
};

DEFINE_CLEANUP(Peftd__V1__CoreToFront *, proto_free);

static int set_int(void *socket, int option, int value, struct errmsg *err)
{
	if (zmq_setsockopt(socket, option, &value, sizeof(value)) < 0) {
		return errmsg_set(err, STATUS_FAILED, "ZeroMQ socket option %d: %s", option,
			zmq_strerror(errno));
	}
	return 0;
}

static int set_options(void *router, struct errmsg *err)
{
	const struct { int option, value; } options[] = {
		{ZMQ_LINGER, 0},
		{ZMQ_ROUTER_MANDATORY, 1}, /* an unreachable or slow peer is an error, not a lost reply */
		{ZMQ_ROUTER_HANDOVER, 0},  /* nobody takes over a routing id */
		{ZMQ_SNDHWM, 64},          /* 1,000 of 1 KiB take 1 MiB for each peer that does not read */
		{ZMQ_RCVHWM, 16},
		{ZMQ_HANDSHAKE_IVL, 5000},
		{ZMQ_HEARTBEAT_IVL, 5000},
		{ZMQ_HEARTBEAT_TIMEOUT, 15000},
		{ZMQ_BACKLOG, 1024},
	};
	for (size_t i = 0; i < ARRAY_LEN(options); i++) {
		int r = set_int(router, options[i].option, options[i].value, err);
		if (r != 0) {
			return r;
		}
	}
	int64_t max = FRONT_FRAME_MAX;
	if (zmq_setsockopt(router, ZMQ_MAXMSGSIZE, &max, sizeof(max)) < 0) {
		return errmsg_set(err, STATUS_FAILED, "ZMQ_MAXMSGSIZE: %s", zmq_strerror(errno));
	}
	return 0;
}

static int open_monitor(struct front *f, struct errmsg *err)
{
	const char *address = "inproc://front-monitor";
	if (zmq_socket_monitor(f->router, address,
			ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_ACCEPT_FAILED) < 0) {
		return errmsg_set(err, STATUS_FAILED, "ZeroMQ socket monitor: %s", zmq_strerror(errno));
	}
	f->monitor = zmq_socket(f->zmq, ZMQ_PAIR);
	if (!f->monitor || zmq_connect(f->monitor, address) < 0) {
		return errmsg_set(err, STATUS_FAILED, "ZeroMQ socket monitor: %s", zmq_strerror(errno));
	}
	return set_int(f->monitor, ZMQ_LINGER, 0, err);
}

DEFINE_CLEANUP(struct front *, front_free);

int front_new(struct front **ret, const struct front_options *options, struct errmsg *err)
{
	_cleanup_(front_freep) struct front *f = calloc(1, sizeof(*f));
	if (!f) {
		return -ENOMEM;
	}
	f->options = *options;
	if (f->options.lease_ms == 0) {
		f->options.lease_ms = SESSION_LEASE_S * 1000;
	}
	int r = session_table_new(&f->sessions);
	if (r == 0) {
		r = link_new(&f->link, options->link_fd);
	}
	if (r < 0) {
		return r;
	}
	f->zmq = zmq_ctx_new();
	f->router = f->zmq ? zmq_socket(f->zmq, ZMQ_ROUTER) : NULL;
	if (!f->router) {
		return errmsg_set(err, STATUS_FAILED, "ZeroMQ: %s", zmq_strerror(errno));
	}
	r = set_options(f->router, err);
	if (r == 0) {
		r = open_monitor(f, err);
	}
	if (r != 0) {
		return r;
	}
	*ret = steal_ptr(f);
	return 0;
}

void front_free(struct front *f)
{
	if (!f) {
		return;
	}
	if (f->router && f->shut_down) {
		set_int(f->router, ZMQ_LINGER, GOODBYE_MS, NULL);
	}
	if (f->monitor) {
		/* Ended before its reader: libzmq leaks what it has half sent otherwise. */
		zmq_socket_monitor(f->router, NULL, 0);
		zmq_close(f->monitor);
	}
	if (f->router) {
		zmq_close(f->router);
	}
	if (f->zmq) {
		zmq_ctx_term(f->zmq);
	}
	for (size_t i = 0; i < f->n_endpoints; i++) {
		if (f->shut_down && f->is_bound[i]) {
			endpoint_remove(f->endpoints[i]);
		}
		free(f->endpoints[i]);
	}
	session_table_free(f->sessions);
	link_free(f->link);
	free(f);
}

int front_end_session(struct front *f, struct session *s, const char *why)
{
	log_debug("session %llu of uid %u ends: %s", (unsigned long long)s->number, s->uid, why);
	Peftd__V1__SessionEnd end = PEFTD__V1__SESSION_END__INIT;
	end.session = s->number;
	Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
	m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_SESSION_END;
	m.session_end = &end;
	f->blocked -= s->queued > 0;
	f->queued_bytes -= s->queued_bytes;
	session_remove(f->sessions, s);
	return link_send(f->link, &m, NULL, 0);
}

/* ---- endpoints --------------------------------------------------------------------------- */

static int bind_all(struct front *f, struct errmsg *err)
{
	for (size_t i = 0; i < f->n_endpoints; i++) {
		int r = f->is_bound[i] ? 0
			: endpoint_bind(f->router, f->endpoints[i], f->options.socket_mode, err);
		if (r != 0) {
			return r;
		}
		f->is_bound[i] = true;
	}
	f->bound = true;
	return 0;
}

static int take_config(struct front *f, const Peftd__V1__FrontConfig *c, struct errmsg *err)
{
	if (c->version != LINK_VERSION) {
		return errmsg_set(err, STATUS_VERSION,
			"the core speaks version %u of the link, this front %d; install them together",
			c->version, LINK_VERSION);
	}
	if (c->n_endpoints == 0 || c->n_endpoints > FRONT_ENDPOINTS_MAX) {
		return errmsg_set(err, STATUS_INVALID, "%zu endpoints given; there may be 1 to %d",
			c->n_endpoints, FRONT_ENDPOINTS_MAX);
	}
	for (size_t i = 0; i < c->n_endpoints; i++) {
		int r = proto_str(&c->endpoints[i], "endpoint", &f->endpoints[i], err);
		if (r != 0) {
			return r;
		}
		f->n_endpoints++;
		r = endpoint_check(f->endpoints[i], err);
		if (r != 0) {
			return r;
		}
	}
	return bind_all(f, err);
}

static int configure(struct front *f, struct errmsg *err)
{
	_cleanup_(proto_freep) Peftd__V1__CoreToFront *m = NULL;
	const void *raw;
	size_t raw_len;
	int r = link_recv_wait(f->link, CONFIG_TIMEOUT_MS, &peftd__v1__core_to_front__descriptor,
		(void **)&m, &raw, &raw_len, err);
	if (r < 0) {
		return r;
	}
	if (m->what_case != PEFTD__V1__CORE_TO_FRONT__WHAT_CONFIG) {
		return errmsg_set(err, STATUS_INTERNAL, "the core's first message is no FrontConfig");
	}
	r = take_config(f, m->config, err);
	if (r != 0) {
		return r;
	}
	Peftd__V1__FrontReady ready = PEFTD__V1__FRONT_READY__INIT;
	ready.version = LINK_VERSION;
	ready.n_endpoints = m->config->n_endpoints;
	ready.endpoints = m->config->endpoints;
	Peftd__V1__FrontToCore answer = PEFTD__V1__FRONT_TO_CORE__INIT;
	answer.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_READY;
	answer.ready = &ready;
	return link_send(f->link, &answer, NULL, 0);
}

/*
 * accept() that fails with EMFILE makes libzmq abort the process on ipc, and it has no way to stop
 * accepting but zmq_unbind(), which also drops every connection that came through the endpoint
 * (measured with 4.3.4; their peers see them close, we are told nothing). So that is done when 80 %
 * of the descriptors are in use: everybody starts anew, which clients do by themselves, instead of
 * the process going down.
 */
static int shed_connections(struct front *f)
{
	log_warning("%zu connections of at most %u: all are dropped to stay within the limit of open "
		"files", f->connections, f->options.max_files);
	for (size_t i = 0; i < f->n_endpoints; i++) {
		zmq_unbind(f->router, f->endpoints[i]);
		f->is_bound[i] = false;
	}
	f->bound = false;
	int r = 0;
	while (r == 0 && session_count(f->sessions) > 0) {
		r = front_end_session(f, session_next(f->sessions, NULL), "all connections are dropped");
	}
	return r;
}

/* The listener closes in another thread; until it has, its socket is in use. */
static void bind_again(struct front *f)
{
	struct errmsg err = {0};
	uint8_t event[6];
	if (bind_all(f, &err) != 0) {
		log_warning("%s", err.text);
		return;
	}
	/* What the monitor still holds is of the connections before. */
	while (zmq_recv(f->monitor, event, sizeof(event), ZMQ_DONTWAIT) >= 0) {
		zmq_recv(f->monitor, NULL, 0, 0);
	}
	f->connections = 0;
}

static int read_monitor(struct front *f)
{
	for (;;) {
		uint8_t event[6]; /* u16 event, u32 value */
		if (zmq_recv(f->monitor, event, sizeof(event), ZMQ_DONTWAIT) < 0) {
			return 0;
		}
		uint16_t kind = le16_read(event);
		if (kind == ZMQ_EVENT_ACCEPTED) {
			f->connections++;
		} else if (kind == ZMQ_EVENT_DISCONNECTED && f->connections > 0) {
			f->connections--;
		} else if (kind == ZMQ_EVENT_ACCEPT_FAILED) {
			log_warning("a connection could not be accepted: %s",
				strerror((int)le32_read(event + 2)));
		}
		zmq_recv(f->monitor, NULL, 0, 0); /* the endpoint's name */
		if (f->bound && f->connections > f->options.max_files / 5 * 4) {
			int r = shed_connections(f);
			if (r < 0) {
				return r;
			}
		}
	}
}

/* ---- the loop ---------------------------------------------------------------------------- */

static int sweep_leases(struct front *f)
{
	int64_t now = clock_monotonic_ns();
	if (now - f->swept_ns < (int64_t)SWEEP_MS * 1000000) {
		return 0;
	}
	f->swept_ns = now;
	if (f->dropped > 0) {
		log_warning("%llu malformed messages of clients", (unsigned long long)f->dropped);
		f->dropped = 0;
	}
	if (!f->bound) {
		bind_again(f);
	}
	for (struct session *s = session_next(f->sessions, NULL), *next; s; s = next) {
		next = session_next(f->sessions, s);
		if (now - s->seen_ns > (int64_t)f->options.lease_ms * 1000000) {
			int r = front_end_session(f, s, "its lease has run out");
			if (r < 0) {
				return r;
			}
		}
	}
	return 0;
}

static int retry_blocked(struct front *f)
{
	struct session *s, *next;
	for (s = session_next(f->sessions, NULL); s && f->blocked > 0; s = next) {
		next = session_next(f->sessions, s);
		int r = s->queued > 0 ? front_flush_session(f, s) : 0;
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

static int read_link(struct front *f, struct errmsg *err)
{
	for (int i = 0; i < FRONT_BATCH; i++) {
		_cleanup_(proto_freep) Peftd__V1__CoreToFront *m = NULL;
		const void *raw;
		size_t raw_len;
		int r = link_recv(f->link, &peftd__v1__core_to_front__descriptor, (void **)&m, &raw,
			&raw_len, err);
		if (r <= 0) {
			return r;
		}
		switch (m->what_case) {
		case PEFTD__V1__CORE_TO_FRONT__WHAT_REPLY:
			r = front_reply(f, m->reply, raw, raw_len);
			if (r < 0) {
				return r;
			}
			break;
		case PEFTD__V1__CORE_TO_FRONT__WHAT_SHUTDOWN:
			f->shut_down = true;
			return 0;
		default:
			log_warning("message %d of the core is not known here", (int)m->what_case);
			break;
		}
	}
	return 0;
}

static int read_clients(struct front *f)
{
	for (int i = 0; i < FRONT_BATCH && link_queued_bytes(f->link) < FRONT_LINK_BACKLOG; i++) {
		int r = front_receive(f);
		if (r <= 0) {
			return r;
		}
	}
	return 0;
}

static int turn(struct front *f, struct errmsg *err)
{
	bool backlog = link_queued_bytes(f->link) >= FRONT_LINK_BACKLOG;
	zmq_pollitem_t items[] = {
		{.socket = f->router, .events = (short)(backlog ? 0 : ZMQ_POLLIN)},
		{.socket = f->monitor, .events = ZMQ_POLLIN},
		{.fd = link_fd(f->link),
			.events = (short)(ZMQ_POLLIN | (link_queued(f->link) > 0 ? ZMQ_POLLOUT : 0))},
	};
	int n = zmq_poll(items, ARRAY_LEN(items), f->blocked > 0 ? BLOCKED_MS : SWEEP_MS);
	if (n < 0 && errno != EINTR) {
		return -errno;
	}
	int r = 0;
	if (items[1].revents != 0) {
		r = read_monitor(f);
	}
	if (r == 0 && (items[2].revents & ~ZMQ_POLLOUT) != 0) {
		r = read_link(f, err);
	}
	if (r == 0 && f->blocked > 0) {
		r = retry_blocked(f);
	}
	if (r == 0 && items[0].revents != 0) {
		r = read_clients(f);
	}
	if (r == 0) {
		r = sweep_leases(f);
	}
	return r == 0 ? link_flush(f->link) : r;
}

int front_run(struct front *f, struct errmsg *err)
{
	int r = configure(f, err);
	f->swept_ns = clock_monotonic_ns();
	while (r == 0 && !f->shut_down) {
		r = turn(f, err);
	}
	/* The core closing the link is how a front's life ends, at start as later. */
	return r == -ECONNRESET || r == -EPIPE ? 0 : r;
}
