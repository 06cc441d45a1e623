/* peftd-front as a process, between clients made here and a core played here. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "daemon/front/front.h"
#include "daemon/front/session.h"
#include "link.pb-c.h"
#include "proto/proto.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { WAIT_MS = 10000 };

struct fixture {
	char dir[64], path[96], endpoint[128];
	pid_t pid;
	struct link *link;
	void *zmq;
};

static void msg_freep(void *p)
{
	proto_free(*(void **)p);
}

/* ---- the front --------------------------------------------------------------------------- */

static void make_dir(struct fixture *f)
{
	snprintf(f->dir, sizeof(f->dir), "/tmp/peftd-test-front-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/front.sock", f->dir);
	snprintf(f->endpoint, sizeof(f->endpoint), "ipc://%s", f->path);
	f->zmq = zmq_ctx_new();
}

static void spawn(struct fixture *f, rlim_t max_files, const char *mode)
{
	const char *exe = getenv("PEFTD_FRONT");
	assert_non_null(exe);
	int fds[2];
	assert_int_equal(link_pair(fds), 0);
	f->pid = fork();
	assert_true(f->pid >= 0);
	if (f->pid == 0) {
		struct rlimit l = {max_files, max_files};
		if (max_files > 0) {
			setrlimit(RLIMIT_NOFILE, &l);
		}
		if (mode) {
			setenv("PEFTD_SOCKET_MODE", mode, 1);
		}
		if (fds[1] != 3) {
			dup2(fds[1], 3);
		} else {
			fcntl(3, F_SETFD, 0);
		}
		execl(exe, exe, "--link-fd", "3", "--log-level", "error", (char *)NULL);
		_exit(127);
	}
	close(fds[1]);
	assert_int_equal(link_new(&f->link, fds[0]), 0);
}

static void send_config(struct fixture *f, const char *endpoint, uint32_t version)
{
	ProtobufCBinaryData e = proto_bytes(endpoint);
	Peftd__V1__FrontConfig c = PEFTD__V1__FRONT_CONFIG__INIT;
	c.version = version;
	c.n_endpoints = 1;
	c.endpoints = &e;
	Peftd__V1__CoreToFront m = PEFTD__V1__CORE_TO_FRONT__INIT;
	m.what_case = PEFTD__V1__CORE_TO_FRONT__WHAT_CONFIG;
	m.config = &c;
	assert_int_equal(link_send(f->link, &m, NULL, 0), 0);
}

/* What the front tells the core next; NULL after wait_ms without anything, or at the link's end. */
static Peftd__V1__FrontToCore *heard(struct fixture *f, int wait_ms, const void **raw, size_t *len)
{
	void *m = NULL;
	const void *r;
	size_t n;
	struct errmsg err;
	int result = link_recv_wait(f->link, wait_ms, &peftd__v1__front_to_core__descriptor, &m,
		raw ? raw : &r, len ? len : &n, &err);
	return result == 1 ? m : NULL;
}

static Peftd__V1__FrontToCore *expect(struct fixture *f, Peftd__V1__FrontToCore__WhatCase what)
{
	Peftd__V1__FrontToCore *m = heard(f, WAIT_MS, NULL, NULL);
	assert_non_null(m);
	assert_int_equal(m->what_case, what);
	return m;
}

static void start(struct fixture *f, rlim_t max_files)
{
	spawn(f, max_files, NULL);
	send_config(f, f->endpoint, LINK_VERSION);
	_cleanup_(msg_freep) Peftd__V1__FrontToCore *m =
		expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_READY);
	assert_int_equal(m->ready->version, LINK_VERSION);
	assert_int_equal(m->ready->n_endpoints, 1);
	assert_true(proto_equal(&m->ready->endpoints[0], f->endpoint));
}

static int exit_status(struct fixture *f)
{
	int status;
	for (int i = 0; i < WAIT_MS / 10; i++) {
		pid_t p = waitpid(f->pid, &status, WNOHANG);
		if (p == f->pid) {
			f->pid = 0;
			return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
		}
		poll(NULL, 0, 10);
	}
	return -1;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	make_dir(f);
	start(f, 0);
	*state = f;
	return 0;
}

static int setup_bare(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	make_dir(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	int result = 0;
	link_free(f->link);
	if (f->pid > 0) {
		/* The closed link alone must end it, whatever it has been through. */
		int status = exit_status(f);
		if (status != 0) {
			fprintf(stderr, "the front ended with %d\n", status);
			result = -1;
		}
		if (f->pid > 0) {
			kill(f->pid, SIGKILL);
			waitpid(f->pid, NULL, 0);
		}
	}
	zmq_ctx_term(f->zmq);
	unlink(f->path);
	rmdir(f->dir);
	free(f);
	return result;
}

/* ---- clients ----------------------------------------------------------------------------- */

static void *connect_dealer(struct fixture *f, const char *routing_id)
{
	int zero = 0;
	void *s = zmq_socket(f->zmq, ZMQ_DEALER);
	assert_non_null(s);
	zmq_setsockopt(s, ZMQ_LINGER, &zero, sizeof(zero));
	if (routing_id) {
		zmq_setsockopt(s, ZMQ_ROUTING_ID, routing_id, strlen(routing_id));
	}
	assert_int_equal(zmq_connect(s, f->endpoint), 0);
	return s;
}

static void send_request(void *s, const Peftd__V1__Request *req, const void *raw, size_t raw_len)
{
	size_t len;
	_cleanup_(freep) void *data = proto_pack(req, &len);
	assert_true(zmq_send(s, data, len, raw_len > 0 ? ZMQ_SNDMORE : 0) >= 0);
	if (raw_len > 0) {
		assert_true(zmq_send(s, raw, raw_len, 0) >= 0);
	}
}

/* The next reply of at most wait_ms; NULL. */
static Peftd__V1__Reply *receive(void *s, int wait_ms, size_t *raw_len)
{
	zmq_pollitem_t item = {.socket = s, .events = ZMQ_POLLIN};
	if (zmq_poll(&item, 1, wait_ms) <= 0) {
		return NULL;
	}
	zmq_msg_t body, raw;
	zmq_msg_init(&body);
	zmq_msg_init(&raw);
	assert_true(zmq_msg_recv(&body, s, 0) >= 0);
	if (zmq_msg_more(&body)) {
		assert_true(zmq_msg_recv(&raw, s, 0) >= 0);
	}
	if (raw_len) {
		*raw_len = zmq_msg_size(&raw);
	}
	struct errmsg err;
	Peftd__V1__Reply *reply = proto_unpack(&peftd__v1__reply__descriptor, zmq_msg_data(&body),
		zmq_msg_size(&body), MESSAGE_MAX, &err);
	assert_non_null(reply);
	zmq_msg_close(&body);
	zmq_msg_close(&raw);
	return reply;
}

static void expect_status(void *s, int code)
{
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = receive(s, WAIT_MS, NULL);
	assert_non_null(reply);
	assert_int_equal(reply->status->code, code);
}

static uint8_t last_id;

/* A Status request with its own id in `id`. */
static Peftd__V1__Request request_with(uint8_t id[REQUEST_ID_SIZE],
	Peftd__V1__StatusRequest *status)
{
	memset(id, 0, REQUEST_ID_SIZE);
	id[0] = ++last_id;
	id[1] = 1;
	peftd__v1__status_request__init(status);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_STATUS;
	req.status = status;
	return req;
}

static void send_hello(void *s, uint32_t version)
{
	uint8_t id[REQUEST_ID_SIZE];
	Peftd__V1__StatusRequest status;
	Peftd__V1__HelloRequest hello = PEFTD__V1__HELLO_REQUEST__INIT;
	Peftd__V1__Request req = request_with(id, &status);
	hello.protocol = version;
	req.what_case = PEFTD__V1__REQUEST__WHAT_HELLO;
	req.hello = &hello;
	send_request(s, &req, NULL, 0);
}

static void *client(struct fixture *f)
{
	void *s = connect_dealer(f, NULL);
	send_hello(s, PROTOCOL_VERSION);
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = receive(s, WAIT_MS, NULL);
	assert_non_null(reply);
	assert_int_equal(reply->status->code, STATUS_OK);
	assert_int_equal(reply->what_case, PEFTD__V1__REPLY__WHAT_HELLO);
	assert_int_equal(reply->hello->protocol, PROTOCOL_VERSION);
	return s;
}

/* Sends a Status request and sees it arrive at the core; its session. */
static uint64_t ask(struct fixture *f, void *s, uint8_t id[REQUEST_ID_SIZE])
{
	Peftd__V1__StatusRequest status;
	Peftd__V1__Request req = request_with(id, &status);
	send_request(s, &req, NULL, 0);
	_cleanup_(msg_freep) Peftd__V1__FrontToCore *m =
		expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_REQUEST);
	assert_int_equal(m->request->uid, getuid());
	assert_memory_equal(m->request->request->id.data, id, REQUEST_ID_SIZE);
	return m->request->session;
}

static int answer(struct fixture *f, uint64_t session, const uint8_t *id, bool more,
	const void *raw, size_t raw_len)
{
	Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	reply.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, (uint8_t *)id};
	reply.status = &status;
	reply.has_more = reply.more = more;
	Peftd__V1__ClientReply c = PEFTD__V1__CLIENT_REPLY__INIT;
	c.session = session;
	c.reply = &reply;
	Peftd__V1__CoreToFront m = PEFTD__V1__CORE_TO_FRONT__INIT;
	m.what_case = PEFTD__V1__CORE_TO_FRONT__WHAT_REPLY;
	m.reply = &c;
	return link_send(f->link, &m, raw, raw_len);
}

/* That the front still serves. */
static void check_alive(struct fixture *f)
{
	uint8_t id[REQUEST_ID_SIZE];
	void *s = client(f);
	uint64_t session = ask(f, s, id);
	assert_int_equal(answer(f, session, id, false, NULL, 0), 0);
	expect_status(s, STATUS_OK);
	zmq_close(s);
}

/* ---- tests ------------------------------------------------------------------------------- */

static void test_request_and_reply(void **state)
{
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE], *chunk = malloc(CHUNK_SIZE);
	memset(chunk, 7, CHUNK_SIZE);
	void *s = client(f);
	uint64_t session = ask(f, s, id);

	/* A stream: two parts with a raw frame, then the last. What comes later is not passed on. */
	size_t raw_len;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(answer(f, session, id, i < 2, chunk, i < 2 ? CHUNK_SIZE : 0), 0);
		_cleanup_(msg_freep) Peftd__V1__Reply *reply = receive(s, WAIT_MS, &raw_len);
		assert_non_null(reply);
		assert_memory_equal(reply->id.data, id, REQUEST_ID_SIZE);
		assert_int_equal(raw_len, i < 2 ? CHUNK_SIZE : 0);
	}
	assert_int_equal(answer(f, session, id, false, NULL, 0), 0);
	assert_null(receive(s, 200, NULL));

	/* An upload's raw frame reaches the core as it is. */
	uint8_t digest[DIGEST_SIZE] = {0};
	Peftd__V1__StatusRequest status;
	Peftd__V1__UploadChunkRequest up = PEFTD__V1__UPLOAD_CHUNK_REQUEST__INIT;
	Peftd__V1__Request req = request_with(id, &status);
	up.digest = (ProtobufCBinaryData){DIGEST_SIZE, digest};
	req.what_case = PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK;
	req.upload_chunk = &up;
	send_request(s, &req, chunk, CHUNK_SIZE);
	const void *raw;
	_cleanup_(msg_freep) Peftd__V1__FrontToCore *m = heard(f, WAIT_MS, &raw, &raw_len);
	assert_non_null(m);
	assert_int_equal(raw_len, CHUNK_SIZE);
	assert_memory_equal(raw, chunk, CHUNK_SIZE);
	free(chunk);
	zmq_close(s);
}

static void test_hello_comes_first(void **state)
{
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE];
	Peftd__V1__StatusRequest status;
	void *s = connect_dealer(f, NULL);
	Peftd__V1__Request req = request_with(id, &status);
	send_request(s, &req, NULL, 0);
	expect_status(s, STATUS_UNAVAILABLE);
	send_hello(s, PROTOCOL_VERSION + 1);
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = receive(s, WAIT_MS, NULL);
	assert_int_equal(reply->status->code, STATUS_VERSION);
	assert_non_null(strstr((char *)reply->status->message.data, "protocol"));
	send_request(s, &req, NULL, 0);
	expect_status(s, STATUS_UNAVAILABLE);
	send_hello(s, PROTOCOL_VERSION);
	expect_status(s, STATUS_OK);
	zmq_close(s);
}

static void test_malformed_requests(void **state)
{
	struct fixture *f = *state;
	void *s = client(f);
	char *big = calloc(1, 400 * 1024);
	zmq_send(s, "junk", 4, 0);
	expect_status(s, STATUS_INVALID);
	zmq_send(s, "", 0, 0);
	expect_status(s, STATUS_INVALID);
	zmq_send(s, big, MESSAGE_MAX + 1, 0);
	expect_status(s, STATUS_INVALID);

	uint8_t id[REQUEST_ID_SIZE];
	Peftd__V1__StatusRequest status;
	Peftd__V1__Request req = request_with(id, &status);
	send_request(s, &req, "raw", 3);
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = receive(s, WAIT_MS, NULL);
	assert_int_equal(reply->status->code, STATUS_INVALID);
	assert_memory_equal(reply->id.data, id, REQUEST_ID_SIZE); /* the id comes back */

	/* Three frames are no message of ours at all. */
	zmq_send(s, "a", 1, ZMQ_SNDMORE);
	zmq_send(s, "b", 1, ZMQ_SNDMORE);
	zmq_send(s, "c", 1, 0);
	assert_null(receive(s, 100, NULL));
	/* A frame beyond the limit ends the connection, not the front. */
	zmq_send(s, big, 400 * 1024, 0);
	free(big);
	zmq_close(s);
	check_alive(f);
}

static void test_routing_ids_are_not_chosen(void **state)
{
	struct fixture *f = *state;
	void *s = connect_dealer(f, "admin");
	send_hello(s, PROTOCOL_VERSION);
	assert_null(receive(s, 200, NULL));
	zmq_close(s);
	check_alive(f);
}

static void test_sent_again(void **state)
{
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE];
	Peftd__V1__StatusRequest status;
	void *s = client(f);
	uint64_t session = ask(f, s, id);
	Peftd__V1__Request req = request_with(id, &status);
	id[0] = --last_id; /* the same as before */
	send_request(s, &req, NULL, 0);
	assert_null(heard(f, 200, NULL, NULL));
	assert_int_equal(answer(f, session, id, false, NULL, 0), 0);
	expect_status(s, STATUS_OK);
	/* Answered, it is a request again. */
	send_request(s, &req, NULL, 0);
	proto_free(expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_REQUEST));
	zmq_close(s);
}

static void test_outstanding_is_bounded(void **state)
{
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE];
	Peftd__V1__StatusRequest status;
	void *s = client(f);
	for (int i = 0; i < SESSION_OUTSTANDING_MAX; i++) {
		ask(f, s, id);
	}
	Peftd__V1__Request req = request_with(id, &status);
	send_request(s, &req, NULL, 0);
	expect_status(s, STATUS_UNAVAILABLE);
	check_alive(f); /* others are not concerned */
	zmq_close(s);
}

static void send_stream_request(void *s, const uint8_t *stream, uint32_t credit)
{
	uint8_t id[REQUEST_ID_SIZE];
	Peftd__V1__StatusRequest status;
	Peftd__V1__Request req = request_with(id, &status);
	Peftd__V1__CreditRequest c = PEFTD__V1__CREDIT_REQUEST__INIT;
	Peftd__V1__EndStreamRequest e = PEFTD__V1__END_STREAM_REQUEST__INIT;
	c.stream = e.stream = (ProtobufCBinaryData){REQUEST_ID_SIZE, (uint8_t *)stream};
	c.credit = credit;
	if (credit > 0) {
		req.what_case = PEFTD__V1__REQUEST__WHAT_CREDIT;
		req.credit = &c;
	} else {
		req.what_case = PEFTD__V1__REQUEST__WHAT_END_STREAM;
		req.end_stream = &e;
	}
	send_request(s, &req, NULL, 0);
}

static void test_credit_and_end(void **state)
{
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE];
	void *s = client(f), *other = client(f);
	uint64_t session = ask(f, s, id);

	/* Another session cannot touch the stream, even knowing its id. */
	send_stream_request(other, id, 5);
	send_stream_request(other, id, 0);
	assert_null(heard(f, 200, NULL, NULL));

	send_stream_request(s, id, 5);
	Peftd__V1__FrontToCore *m = expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_CREDIT);
	assert_int_equal(m->credit->session, session);
	assert_int_equal(m->credit->credit, 5);
	assert_memory_equal(m->credit->stream.data, id, REQUEST_ID_SIZE);
	proto_free(m);
	send_stream_request(s, id, 0);
	m = expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_STREAM_END);
	assert_int_equal(m->stream_end->session, session);
	proto_free(m);
	/* What was under way when the stream ended does not reach the client. */
	assert_int_equal(answer(f, session, id, true, NULL, 0), 0);
	assert_null(receive(s, 200, NULL));
	zmq_close(s);
	zmq_close(other);
}

static size_t resident_bytes(pid_t pid)
{
	char path[64];
	unsigned long total, resident = 0;
	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	_cleanup_(fclosep) FILE *file = fopen(path, "r");
	assert_non_null(file);
	assert_int_equal(fscanf(file, "%lu %lu", &total, &resident), 2);
	return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static void test_slow_reader(void **state)
{
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE], *chunk = calloc(1, CHUNK_SIZE);
	int hwm = 1;
	void *s = zmq_socket(f->zmq, ZMQ_DEALER);
	zmq_setsockopt(s, ZMQ_RCVHWM, &hwm, sizeof(hwm));
	hwm = 0;
	zmq_setsockopt(s, ZMQ_LINGER, &hwm, sizeof(hwm));
	assert_int_equal(zmq_connect(s, f->endpoint), 0);
	send_hello(s, PROTOCOL_VERSION);
	expect_status(s, STATUS_OK);
	uint64_t session = ask(f, s, id);

	/* The core keeps sending; the client never reads. */
	Peftd__V1__FrontToCore *m = NULL;
	int sent = 0;
	for (; sent < 2000 && !m; sent++) {
		assert_int_equal(answer(f, session, id, true, chunk, CHUNK_SIZE), 0);
		m = heard(f, link_queued(f->link) > 0 ? 50 : 0, NULL, NULL);
	}
	assert_non_null(m);
	assert_int_equal(m->what_case, PEFTD__V1__FRONT_TO_CORE__WHAT_SESSION_END);
	assert_int_equal(m->session_end->session, session);
	proto_free(m);
	assert_true(sent < 200); /* 64 in ZeroMQ, 16 in our queue, a few in sockets */
	assert_true(resident_bytes(f->pid) < 80u << 20);
	check_alive(f);
	free(chunk);
	zmq_close(s);
}

static void test_gone_client(void **state)
{
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE];
	void *s = client(f);
	uint64_t session = ask(f, s, id);
	zmq_close(s);
	/* Nobody tells that a peer has gone; the first reply after it finds out. */
	Peftd__V1__FrontToCore *m = NULL;
	for (int i = 0; i < 500 && !m; i++) {
		assert_int_equal(answer(f, session, id, true, NULL, 0), 0);
		m = heard(f, 10, NULL, NULL);
	}
	assert_non_null(m);
	assert_int_equal(m->what_case, PEFTD__V1__FRONT_TO_CORE__WHAT_SESSION_END);
	assert_int_equal(m->session_end->session, session);
	proto_free(m);
	check_alive(f);
}

static void test_many_sessions(void **state)
{
	enum { N = 400 };
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE];
	void *s[N];
	zmq_ctx_set(f->zmq, ZMQ_MAX_SOCKETS, 2 * N);
	uint64_t last = 0;
	for (int i = 0; i < N; i++) {
		s[i] = client(f);
		uint64_t session = ask(f, s[i], id);
		assert_true(session > last);
		last = session;
	}
	for (int i = 0; i < N; i++) {
		zmq_close(s[i]);
	}
	check_alive(f);
}

static int raw_connect(const struct fixture *f)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	memcpy(a.sun_path, f->path, strlen(f->path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static void test_descriptors_run_out(void **state)
{
	/* At 80 % of its descriptors the front stops accepting, since libzmq would abort at 100 %. */
	struct fixture *f = *state;
	int fds[300], n = 0;
	start(f, 128);
	for (; n < 300; n++) {
		fds[n] = raw_connect(f);
		if (fds[n] < 0) {
			break; /* not listening any more */
		}
		/* Not faster than a front that is scheduled at all can follow. */
		poll(NULL, 0, 2);
	}
	assert_true(n >= 60);
	assert_true(n < 300);
	assert_int_equal(waitpid(f->pid, NULL, WNOHANG), 0);
	for (int i = 0; i < n; i++) {
		close(fds[i]);
	}
	/* And it comes back. */
	int fd = -1;
	for (int i = 0; i < 500 && fd < 0; i++) {
		poll(NULL, 0, 20);
		fd = raw_connect(f);
	}
	assert_true(fd >= 0);
	close(fd);
	check_alive(f);
}

/* ---- raw ZMTP ---------------------------------------------------------------------------- */

static void test_junk_on_the_wire(void **state)
{
	struct fixture *f = *state;
	uint8_t junk[512];
	for (int i = 0; i < 200; i++) {
		int fd = raw_connect(f);
		assert_true(fd >= 0);
		random_bytes(junk, sizeof(junk));
		if (i % 2) {
			/* A proper greeting first, so that the junk is read as commands and messages. */
			static const uint8_t greeting[64] = {0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, 0,
				'N', 'U', 'L', 'L'};
			memcpy(junk, greeting, sizeof(greeting));
		}
		if (send(fd, junk, sizeof(junk), MSG_NOSIGNAL) < 0) {
			assert_true(errno == EPIPE || errno == ECONNRESET);
		}
		close(fd);
	}
	check_alive(f);
}

static size_t put_property(uint8_t *p, const char *name, const char *value)
{
	size_t n = strlen(name), v = strlen(value);
	p[0] = (uint8_t)n;
	memcpy(p + 1, name, n);
	memset(p + 1 + n, 0, 3);
	p[4 + n] = (uint8_t)v;
	memcpy(p + 5 + n, value, v);
	return 5 + n + v;
}

static void test_credentials_are_the_kernels(void **state)
{
	/* A hand-made peer that says in its metadata who it would like to be. */
	struct fixture *f = *state;
	uint8_t out[1024] = {0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, 0, 'N', 'U', 'L', 'L'};
	size_t at = 64;
	uint8_t *ready = out + at;
	ready[0] = 4; /* a command */
	memcpy(ready + 2, "\5READY", 6);
	size_t n = 8;
	n += put_property(ready + n, "Socket-Type", "DEALER");
	n += put_property(ready + n, "Peer-Address", "localhost:4242:4242:1");
	n += put_property(ready + n, "User-Id", "4242");
	ready[1] = (uint8_t)(n - 2);
	at += n;

	uint8_t id[REQUEST_ID_SIZE];
	Peftd__V1__StatusRequest status;
	Peftd__V1__HelloRequest hello = PEFTD__V1__HELLO_REQUEST__INIT;
	for (int i = 0; i < 2; i++) {
		Peftd__V1__Request req = request_with(id, &status);
		if (i == 0) {
			hello.protocol = PROTOCOL_VERSION;
			req.what_case = PEFTD__V1__REQUEST__WHAT_HELLO;
			req.hello = &hello;
		}
		size_t len;
		_cleanup_(freep) void *data = proto_pack(&req, &len);
		assert_true(len < 255);
		out[at++] = 0; /* a whole message, short */
		out[at++] = (uint8_t)len;
		memcpy(out + at, data, len);
		at += len;
	}
	int fd = raw_connect(f);
	assert_true(fd >= 0);
	/* Greeting, then the rest once the other side has sent its own. */
	uint8_t in[64];
	assert_int_equal(send(fd, out, sizeof(in), MSG_NOSIGNAL), sizeof(in));
	assert_int_equal(recv(fd, in, sizeof(in), MSG_WAITALL), sizeof(in));
	assert_int_equal(send(fd, out + sizeof(in), at - sizeof(in), MSG_NOSIGNAL), at - sizeof(in));
	_cleanup_(msg_freep) Peftd__V1__FrontToCore *m =
		expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_REQUEST);
	assert_int_equal(m->request->uid, getuid());
	close(fd);
}

/* ---- its life ---------------------------------------------------------------------------- */

static void test_socket_mode(void **state)
{
	struct fixture *f = *state;
	struct stat st;
	spawn(f, 0, "0660");
	send_config(f, f->endpoint, LINK_VERSION);
	proto_free(expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_READY));
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0660);
	link_free(f->link);
	assert_int_equal(exit_status(f), 0);

	spawn(f, 0, NULL);
	send_config(f, f->endpoint, LINK_VERSION);
	proto_free(expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_READY));
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_stale_and_live_sockets(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	memcpy(a.sun_path, f->path, strlen(f->path) + 1);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(listener, 5), 0);

	/* Somebody lives there. */
	spawn(f, 0, NULL);
	send_config(f, f->endpoint, LINK_VERSION);
	assert_null(heard(f, WAIT_MS, NULL, NULL));
	assert_int_equal(exit_status(f), 2);
	link_free(steal_ptr(f->link));
	int fd = raw_connect(f);
	assert_true(fd >= 0); /* and still does */
	close(fd);

	/* Somebody lived there. */
	close(listener);
	spawn(f, 0, NULL);
	send_config(f, f->endpoint, LINK_VERSION);
	proto_free(expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_READY));
	check_alive(f);
}

static void test_other_files_are_kept(void **state)
{
	struct fixture *f = *state;
	int fd = open(f->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	spawn(f, 0, NULL);
	send_config(f, f->endpoint, LINK_VERSION);
	assert_null(heard(f, WAIT_MS, NULL, NULL));
	assert_int_equal(exit_status(f), 2);
	struct stat st;
	assert_int_equal(lstat(f->path, &st), 0);
	assert_true(S_ISREG(st.st_mode));
}

static void test_refused_configurations(void **state)
{
	struct fixture *f = *state;
	static const struct { const char *endpoint; uint32_t version; int status; } cases[] = {
		{"tcp://127.0.0.1:5555", LINK_VERSION, 2},
		{"ipc:///tmp/peftd-test-x.sock", LINK_VERSION + 1, 2},
		{"ipc:///nonexistent/dir/x.sock", LINK_VERSION, 1},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		spawn(f, 0, NULL);
		send_config(f, cases[i].endpoint, cases[i].version);
		assert_null(heard(f, WAIT_MS, NULL, NULL));
		assert_int_equal(exit_status(f), cases[i].status);
		link_free(steal_ptr(f->link));
	}
}

static void test_shutdown(void **state)
{
	/* The last reply still leaves. */
	struct fixture *f = *state;
	uint8_t id[REQUEST_ID_SIZE];
	void *s = client(f);
	uint64_t session = ask(f, s, id);
	assert_int_equal(answer(f, session, id, false, NULL, 0), 0);
	Peftd__V1__Shutdown down = PEFTD__V1__SHUTDOWN__INIT;
	Peftd__V1__CoreToFront m = PEFTD__V1__CORE_TO_FRONT__INIT;
	m.what_case = PEFTD__V1__CORE_TO_FRONT__WHAT_SHUTDOWN;
	m.shutdown = &down;
	assert_int_equal(link_send(f->link, &m, NULL, 0), 0);
	expect_status(s, STATUS_OK);
	assert_int_equal(exit_status(f), 0);
	zmq_close(s);
}

static void *run_front(void *data)
{
	struct front *front;
	struct errmsg err;
	int *fd = data;
	struct front_options o = {.link_fd = *fd, .socket_mode = 0600, .max_files = 1024,
		.lease_ms = 300};
	if (front_new(&front, &o, &err) != 0) {
		return (void *)1;
	}
	int r = front_run(front, &err);
	front_free(front);
	return r == 0 ? NULL : (void *)1;
}

static void test_lease(void **state)
{
	struct fixture *f = *state;
	pthread_t thread;
	int fds[2];
	assert_int_equal(link_pair(fds), 0);
	assert_int_equal(pthread_create(&thread, NULL, run_front, &fds[1]), 0);
	assert_int_equal(link_new(&f->link, fds[0]), 0);
	send_config(f, f->endpoint, LINK_VERSION);
	proto_free(expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_READY));

	uint8_t id[REQUEST_ID_SIZE], lease_id[REQUEST_ID_SIZE];
	void *s = client(f);
	uint64_t session = ask(f, s, id);
	/* Renewed, it lasts. */
	Peftd__V1__StatusRequest status;
	Peftd__V1__LeaseRequest lease = PEFTD__V1__LEASE_REQUEST__INIT;
	Peftd__V1__Request req = request_with(lease_id, &status);
	req.what_case = PEFTD__V1__REQUEST__WHAT_LEASE;
	req.lease = &lease;
	for (int i = 0; i < 15; i++) {
		send_request(s, &req, NULL, 0);
		assert_null(heard(f, 100, NULL, NULL));
	}
	/* Then not. */
	Peftd__V1__FrontToCore *m = expect(f, PEFTD__V1__FRONT_TO_CORE__WHAT_SESSION_END);
	assert_int_equal(m->session_end->session, session);
	proto_free(m);
	send_request(s, &req, NULL, 0);
	expect_status(s, STATUS_UNAVAILABLE); /* a lease that comes too late is told so */
	send_hello(s, PROTOCOL_VERSION);
	expect_status(s, STATUS_OK);
	assert_true(ask(f, s, id) > session);
	zmq_close(s);
	link_free(steal_ptr(f->link));
	void *result;
	pthread_join(thread, &result);
	assert_null(result);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_request_and_reply, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hello_comes_first, setup, teardown),
		cmocka_unit_test_setup_teardown(test_malformed_requests, setup, teardown),
		cmocka_unit_test_setup_teardown(test_routing_ids_are_not_chosen, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sent_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_outstanding_is_bounded, setup, teardown),
		cmocka_unit_test_setup_teardown(test_credit_and_end, setup, teardown),
		cmocka_unit_test_setup_teardown(test_slow_reader, setup, teardown),
		cmocka_unit_test_setup_teardown(test_gone_client, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_sessions, setup, teardown),
		cmocka_unit_test_setup_teardown(test_descriptors_run_out, setup_bare, teardown),
		cmocka_unit_test_setup_teardown(test_junk_on_the_wire, setup, teardown),
		cmocka_unit_test_setup_teardown(test_credentials_are_the_kernels, setup, teardown),
		cmocka_unit_test_setup_teardown(test_socket_mode, setup_bare, teardown),
		cmocka_unit_test_setup_teardown(test_stale_and_live_sockets, setup_bare, teardown),
		cmocka_unit_test_setup_teardown(test_other_files_are_kept, setup_bare, teardown),
		cmocka_unit_test_setup_teardown(test_refused_configurations, setup_bare, teardown),
		cmocka_unit_test_setup_teardown(test_shutdown, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lease, setup_bare, teardown),
	};
	return cmocka_run_group_tests_name("front", tests, NULL, NULL);
}
