#include "fake_daemon.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <poll.h>
#include <stdio.h>
#include <unistd.h>
#include <zmq.h>

#include "util/cleanup.h"
#include "util/util.h"

void fake_init(struct fake *f, fake_handler handle, void *data)
{
	*f = (struct fake){.handle = handle, .data = data, .protocol = PROTOCOL_VERSION};
	snprintf(f->dir, sizeof(f->dir), "/tmp/peftd-test-client-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/fake.sock", f->dir);
	snprintf(f->endpoint, sizeof(f->endpoint), "ipc://%s", f->path);
}

void fake_reply(struct fake *f, const Peftd__V1__Request *req, Peftd__V1__Reply *reply,
	const void *raw, size_t raw_len)
{
	Peftd__V1__Status ok = PEFTD__V1__STATUS__INIT;
	reply->id = req->id;
	reply->status = reply->status ? reply->status : &ok;
	size_t len;
	_cleanup_(freep) void *data = proto_pack(reply, &len);
	zmq_send(f->router, f->rid, f->rid_len, ZMQ_SNDMORE);
	zmq_send(f->router, data, len, raw_len > 0 ? ZMQ_SNDMORE : 0);
	if (raw_len > 0) {
		zmq_send(f->router, raw, raw_len, 0);
	}
	if (reply->status == &ok) {
		reply->status = NULL;
	}
}

void fake_fail(struct fake *f, const Peftd__V1__Request *req, int code, const char *text)
{
	Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	status.code = (uint32_t)code;
	status.has_message = true;
	status.message = proto_bytes(text);
	reply.status = &status;
	fake_reply(f, req, &reply, NULL, 0);
}

static void dispatch(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t raw_len)
{
	switch (req->what_case) {
	case PEFTD__V1__REQUEST__WHAT_HELLO: {
		f->hellos++;
		if (req->hello->protocol != f->protocol) {
			fake_fail(f, req, STATUS_VERSION, "the daemon speaks another protocol");
			return;
		}
		Peftd__V1__HelloReply hello = PEFTD__V1__HELLO_REPLY__INIT;
		Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
		reply.what_case = PEFTD__V1__REPLY__WHAT_HELLO;
		reply.hello = &hello;
		fake_reply(f, req, &reply, NULL, 0);
		return;
	}
	case PEFTD__V1__REQUEST__WHAT_LEASE:
		f->leases++;
		if (f->forget) {
			f->forget = false;
			fake_fail(f, req, STATUS_UNAVAILABLE, "no session");
		}
		return;
	case PEFTD__V1__REQUEST__WHAT_CREDIT:
		f->credits += req->credit->credit;
		break;
	case PEFTD__V1__REQUEST__WHAT_END_STREAM:
		f->ends++;
		break;
	default:
		f->requests++;
		break;
	}
	f->handle(f, req, raw, raw_len);
}

static void receive(struct fake *f)
{
	zmq_msg_t body, raw;
	zmq_msg_init(&body);
	zmq_msg_init(&raw);
	int n = zmq_recv(f->router, f->rid, sizeof(f->rid), 0);
	f->rid_len = n > 0 ? (size_t)n : 0;
	zmq_msg_recv(&body, f->router, 0);
	if (zmq_msg_more(&body)) {
		zmq_msg_recv(&raw, f->router, 0);
	}
	struct errmsg err;
	Peftd__V1__Request *req = proto_unpack(&peftd__v1__request__descriptor, zmq_msg_data(&body),
		zmq_msg_size(&body), MESSAGE_MAX, &err);
	if (req) {
		dispatch(f, req, zmq_msg_data(&raw), zmq_msg_size(&raw));
	}
	proto_free(req);
	zmq_msg_close(&body);
	zmq_msg_close(&raw);
}

static void open_router(struct fake *f)
{
	int zero = 0;
	f->router = zmq_socket(f->zmq, ZMQ_ROUTER);
	zmq_setsockopt(f->router, ZMQ_LINGER, &zero, sizeof(zero));
	zmq_setsockopt(f->router, ZMQ_SNDHWM, &zero, sizeof(zero));
	zmq_bind(f->router, f->endpoint);
}

static void *run(void *data)
{
	struct fake *f = data;
	for (;;) {
		zmq_pollitem_t items[] = {
			{.socket = f->router, .events = ZMQ_POLLIN},
			{.fd = f->stop[0], .events = ZMQ_POLLIN},
		};
		zmq_poll(items, 2, -1);
		if (items[1].revents) {
			return NULL;
		}
		receive(f);
		if (f->restart) {
			f->restart = false;
			int linger = 50; /* what was answered before still arrives */
			zmq_setsockopt(f->router, ZMQ_LINGER, &linger, sizeof(linger));
			zmq_close(f->router);
			zmq_ctx_term(f->zmq);
			poll(NULL, 0, (int)f->restart_ms);
			f->zmq = zmq_ctx_new();
			open_router(f);
		}
	}
}

void fake_start(struct fake *f)
{
	f->zmq = zmq_ctx_new();
	open_router(f);
	assert_int_equal(pipe(f->stop), 0);
	assert_int_equal(pthread_create(&f->thread, NULL, run, f), 0);
}

void fake_stop(struct fake *f)
{
	if (!f->zmq) {
		return;
	}
	assert_int_equal(write(f->stop[1], "x", 1), 1);
	pthread_join(f->thread, NULL);
	zmq_close(f->router);
	zmq_ctx_term(f->zmq);
	close(f->stop[0]);
	close(f->stop[1]);
	f->zmq = NULL;
}

void fake_deinit(struct fake *f)
{
	fake_stop(f);
	unlink(f->path);
	char command[128];
	snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
	if (system(command) != 0) {
		fprintf(stderr, "%s is left\n", f->dir);
	}
}
