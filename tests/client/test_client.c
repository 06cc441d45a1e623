/* The connection: found, lost, found again; and what is carried over it. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/client.h"
#include "client/transfer.h"
#include "client/watch.h"
#include "fake_daemon.h"
#include "tests/support/skip.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

static Peftd__V1__Request status_request(Peftd__V1__StatusRequest *status)
{
	peftd__v1__status_request__init(status);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_STATUS;
	req.status = status;
	return req;
}

static void reply_status(struct fake *f, const Peftd__V1__Request *req)
{
	Peftd__V1__StatusReply s = PEFTD__V1__STATUS_REPLY__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	reply.what_case = PEFTD__V1__REPLY__WHAT_DAEMON_STATUS;
	reply.daemon_status = &s;
	fake_reply(f, req, &reply, NULL, 0);
}

static int call_status(struct client *c, struct errmsg *err)
{
	Peftd__V1__StatusRequest s;
	Peftd__V1__Request req = status_request(&s);
	Peftd__V1__Reply *reply = NULL;
	int r = client_call(c, &req, CLIENT_QUICK_MS, &reply, err);
	if (r == 0) {
		assert_int_equal(reply->what_case, PEFTD__V1__REPLY__WHAT_DAEMON_STATUS);
	}
	proto_free(reply);
	return r;
}

/* ---- calls ------------------------------------------------------------------------------- */

static void handle_status(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	reply_status(f, req);
}

static void test_nobody(void **state)
{
	struct client *c;
	struct errmsg err = {0};
	assert_int_equal(client_new(&c, "ipc:///tmp/peftd-test-nobody.sock", 300), 0);
	int64_t begin = clock_monotonic_ns();
	assert_int_equal(call_status(c, &err), STATUS_UNAVAILABLE);
	int64_t took = clock_monotonic_ns() - begin;
	assert_true(took > 250000000 && took < 2000000000);
	assert_non_null(strstr(err.text, "no daemon answers at ipc:///tmp/peftd-test-nobody.sock"));
	assert_non_null(strstr(err.text, "peftd --endpoint"));
	client_free(c);

	assert_int_equal(client_new(&c, "nonsense", 300), 0);
	assert_int_equal(call_status(c, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "nonsense"));
	client_free(c);
}

static void test_call(void **state)
{
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	fake_init(&f, handle_status, NULL);
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(call_status(c, &err), 0);
	}
	client_free(c);
	fake_stop(&f);
	assert_int_equal(f.hellos, 1);
	assert_int_equal(f.requests, 10);
	fake_deinit(&f);
}

static void test_daemon_that_comes_late(void **state)
{
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	fake_init(&f, handle_status, NULL);
	assert_int_equal(client_new(&c, f.endpoint, 100), 0);
	assert_int_equal(call_status(c, &err), STATUS_UNAVAILABLE);
	fake_start(&f);
	assert_int_equal(call_status(c, &err), 0);
	client_free(c);
	fake_deinit(&f);
}

static void test_other_version(void **state)
{
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	fake_init(&f, handle_status, NULL);
	f.protocol = PROTOCOL_VERSION + 1;
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	assert_int_equal(call_status(c, &err), STATUS_VERSION);
	assert_non_null(strstr(err.text, "another protocol"));
	client_free(c);
	fake_deinit(&f);
}

struct repeats {
	uint8_t ids[8][REQUEST_ID_SIZE];
	unsigned n;
};

static void handle_and_die(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	struct repeats *r = f->data;
	memcpy(r->ids[r->n++], req->id.data, REQUEST_ID_SIZE);
	if (r->n <= 2) {
		f->restart = true; /* without an answer */
		f->restart_ms = 100;
	} else {
		reply_status(f, req);
	}
}

static void test_same_id_after_a_restart(void **state)
{
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	struct repeats r = {0};
	fake_init(&f, handle_and_die, &r);
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	assert_int_equal(call_status(c, &err), 0);
	client_free(c);
	fake_stop(&f);
	assert_int_equal(r.n, 3);
	assert_memory_equal(r.ids[0], r.ids[1], REQUEST_ID_SIZE);
	assert_memory_equal(r.ids[0], r.ids[2], REQUEST_ID_SIZE);
	assert_int_equal(f.hellos, 3);
	fake_deinit(&f);
}

static void handle_busy(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	struct repeats *r = f->data;
	memcpy(r->ids[r->n++], req->id.data, REQUEST_ID_SIZE);
	if (r->n <= 3) {
		fake_fail(f, req, STATUS_UNAVAILABLE, "restarting");
	} else {
		reply_status(f, req);
	}
}

static void test_unavailable_is_tried_again(void **state)
{
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	struct repeats r = {0};
	fake_init(&f, handle_busy, &r);
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	assert_int_equal(call_status(c, &err), 0);
	client_free(c);
	fake_stop(&f);
	assert_int_equal(r.n, 4);
	assert_memory_equal(r.ids[0], r.ids[3], REQUEST_ID_SIZE);
	fake_deinit(&f);
}

static void handle_denied(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	fake_fail(f, req, STATUS_DENIED, "not yours");
}

static void test_a_refusal_is_final(void **state)
{
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	fake_init(&f, handle_denied, NULL);
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	assert_int_equal(call_status(c, &err), STATUS_DENIED);
	assert_string_equal(err.text, "not yours");
	client_free(c);
	fake_stop(&f);
	assert_int_equal(f.requests, 1);
	fake_deinit(&f);
}

/* ---- events ------------------------------------------------------------------------------ */

struct history {
	uint64_t last;          /* events there are */
	uint64_t sent;          /* of the present stream */
	unsigned lives;         /* restarts left */
	uint64_t opened[8];     /* `after` of each stream */
	unsigned n_opened;
	uint64_t seen[2048];
	unsigned n_seen, lost, found;
	uint8_t stream[REQUEST_ID_SIZE];
};

static void send_event(struct fake *f, const Peftd__V1__Request *req, uint64_t seq, bool more)
{
	struct history *h = f->data;
	Peftd__V1__MetricsEvent m = PEFTD__V1__METRICS_EVENT__INIT;
	Peftd__V1__Event e = PEFTD__V1__EVENT__INIT, *list[] = {&e};
	Peftd__V1__WatchReply w = PEFTD__V1__WATCH_REPLY__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	m.step = seq;
	e.has_seq = true;
	e.seq = seq;
	e.what_case = PEFTD__V1__EVENT__WHAT_METRICS;
	e.metrics = &m;
	w.n_events = 1;
	w.events = list;
	w.has_last_seq = true;
	w.last_seq = h->last;
	reply.has_more = reply.more = more;
	reply.what_case = PEFTD__V1__REPLY__WHAT_WATCH;
	reply.watch = &w;
	fake_reply(f, req, &reply, NULL, 0);
}

/* Sends events as far as the credit goes; dies in the middle as often as `lives` says. */
static void handle_watch(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	struct history *h = f->data;
	Peftd__V1__Request stream = PEFTD__V1__REQUEST__INIT;
	uint32_t credit;
	if (req->what_case == PEFTD__V1__REQUEST__WHAT_WATCH) {
		h->opened[h->n_opened++] = h->sent = req->watch->after;
		memcpy(h->stream, req->id.data, REQUEST_ID_SIZE);
		credit = req->watch->credit;
	} else if (req->what_case == PEFTD__V1__REQUEST__WHAT_CREDIT) {
		credit = req->credit->credit;
	} else {
		return;
	}
	stream.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, h->stream};
	uint64_t until = h->sent + credit < h->last ? h->sent + credit : h->last;
	bool die = h->lives > 0;
	if (die && until > h->sent + 100) {
		until = h->sent + 100;
	}
	while (h->sent < until) {
		h->sent++;
		send_event(f, &stream, h->sent, h->sent < h->last);
	}
	if (die) {
		h->lives--;
		f->restart = true;
		f->restart_ms = 50;
	}
}

static int on_event(void *data, const Peftd__V1__Event *e)
{
	struct history *h = data;
	h->seen[h->n_seen++] = e->seq;
	return 0;
}

static void on_lost(void *data, bool lost)
{
	struct history *h = data;
	h->lost += lost;
	h->found += !lost;
}

static void test_watch_survives(void **state)
{
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	struct history h = {.last = 1500, .lives = 3};
	fake_init(&f, handle_watch, &h);
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	struct event_stream_options o = {.job = 1, .after = 7, .follow = true, .tick_ms = -1};
	struct event_handler handler = {.event = on_event, .lost = on_lost, .data = &h};
	assert_int_equal(event_stream(c, &o, &handler, &err), 0);
	client_free(c);
	fake_stop(&f);
	/* No gap, no double. */
	assert_int_equal(h.n_seen, 1500 - 7);
	for (unsigned i = 0; i < h.n_seen; i++) {
		assert_int_equal(h.seen[i], i + 8);
	}
	assert_int_equal(h.n_opened, 4);
	assert_int_equal(h.opened[0], 7);
	assert_true(h.opened[1] > 7);
	assert_int_equal(h.lost, 3);
	assert_int_equal(h.found, 3);
	fake_deinit(&f);
}

/* Sends one event and falls silent; the second stream gets the rest. */
static void handle_silent(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	struct history *h = f->data;
	if (req->what_case != PEFTD__V1__REQUEST__WHAT_WATCH) {
		return;
	}
	h->opened[h->n_opened++] = req->watch->after;
	if (h->n_opened == 1) {
		send_event(f, req, 1, true);
		f->forget = true;
		return;
	}
	for (uint64_t seq = req->watch->after + 1; seq <= h->last; seq++) {
		send_event(f, req, seq, seq < h->last);
	}
}

static void test_lost_lease(void **state)
{
	/* The connection is fine, but the daemon has given up the session, as it does with a client
	 * that was suspended. The next lease (5 s) finds out. */
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	struct history h = {.last = 3};
	fake_init(&f, handle_silent, &h);
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	struct event_stream_options o = {.job = 1, .follow = true, .tick_ms = -1};
	struct event_handler handler = {.event = on_event, .data = &h};
	assert_int_equal(event_stream(c, &o, &handler, &err), 0);
	client_free(c);
	fake_stop(&f);
	assert_int_equal(f.leases, 1);
	assert_int_equal(f.hellos, 2);
	assert_int_equal(h.n_opened, 2);
	assert_int_equal(h.opened[1], 1);
	assert_int_equal(h.n_seen, 3);
	fake_deinit(&f);
}

static void handle_gone(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	if (req->what_case == PEFTD__V1__REQUEST__WHAT_WATCH) {
		fake_fail(f, req, STATUS_NOT_FOUND, "there is no job 1");
	}
}

static void test_watch_fails(void **state)
{
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	fake_init(&f, handle_gone, NULL);
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	struct event_stream_options o = {.job = 1, .tick_ms = -1};
	struct event_handler handler = {.event = on_event};
	assert_int_equal(event_stream(c, &o, &handler, &err), STATUS_NOT_FOUND);
	assert_string_equal(err.text, "there is no job 1");
	client_free(c);
	fake_deinit(&f);
}

/* ---- uploads ----------------------------------------------------------------------------- */

struct store {
	uint8_t *data;        /* what has come */
	uint64_t size, have;
	unsigned begins, chunks, die_at;  /* die after so many chunks; 0: never */
	unsigned die_again;
	uint64_t first_offset;
};

static void handle_upload(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	struct store *s = f->data;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	if (req->what_case == PEFTD__V1__REQUEST__WHAT_UPLOAD_BEGIN) {
		Peftd__V1__UploadBeginReply b = PEFTD__V1__UPLOAD_BEGIN_REPLY__INIT;
		if (s->begins++ == 0) {
			s->size = req->upload_begin->blob->size;
			s->data = realloc(s->data, s->size);
		}
		s->first_offset = s->have;
		b.has_offset = true;
		b.offset = s->have;
		b.has_window = true;
		b.window = 3;
		reply.what_case = PEFTD__V1__REPLY__WHAT_UPLOAD_BEGIN;
		reply.upload_begin = &b;
		fake_reply(f, req, &reply, NULL, 0);
		return;
	}
	if (req->what_case != PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK) {
		return;
	}
	if (req->upload_chunk->offset != s->have || n > s->size - s->have) {
		fake_fail(f, req, STATUS_CONFLICT, "not there");
		return;
	}
	memcpy(s->data + s->have, raw, n);
	s->have += n;
	s->chunks++; /* before the reply, after which the test may look */
	Peftd__V1__UploadChunkReply c = PEFTD__V1__UPLOAD_CHUNK_REPLY__INIT;
	c.has_offset = true;
	c.offset = s->have;
	reply.what_case = PEFTD__V1__REPLY__WHAT_UPLOAD_CHUNK;
	reply.upload_chunk = &c;
	fake_reply(f, req, &reply, NULL, 0);
	if (s->chunks == s->die_at) {
		f->restart = true;
		f->restart_ms = 20;
		s->die_at = s->die_again;
		s->die_again = 0;
	}
}

static uint8_t *make_file(const struct fake *f, const char *name, size_t size, char path[128])
{
	snprintf(path, 128, "%s/%s", f->dir, name);
	uint8_t *data = malloc(size ? size : 1);
	for (size_t i = 0; i < size; i++) {
		data[i] = (uint8_t)(i * 2654435761u >> 13);
	}
	FILE *file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(data, 1, size, file), size);
	assert_int_equal(fclose(file), 0);
	return data;
}

static void test_upload(void **state)
{
	enum { A = 3 * CHUNK_SIZE + 12345, B = 2 * CHUNK_SIZE + 1 };
	struct fake f;
	struct client *c;
	struct errmsg err = {0};
	struct progress p = {0};
	struct store s = {.die_at = 2, .die_again = 4};
	char a_path[128], b_path[128];
	fake_init(&f, handle_upload, &s);
	fake_start(&f);
	uint8_t *a = make_file(&f, "a.jsonl", A, a_path), *b = make_file(&f, "b.jsonl", B, b_path);
	const char *paths[] = {a_path, b_path};
	_cleanup_(source_deinit) struct source source = {0};
	assert_int_equal(source_open(&source, paths, 2, &p, &err), 0);
	assert_int_equal(source.size, A + B);
	assert_true(proto_equal(&source.blob.files[1]->name, "b.jsonl"));
	assert_int_equal(source.blob.files[1]->size, B);

	uint8_t digest[DIGEST_SIZE];
	crypto_generichash_state hash;
	crypto_generichash_init(&hash, NULL, 0, DIGEST_SIZE);
	crypto_generichash_update(&hash, a, A);
	crypto_generichash_update(&hash, b, B);
	crypto_generichash_final(&hash, digest, sizeof(digest));
	assert_memory_equal(source.digest, digest, DIGEST_SIZE);

	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	assert_int_equal(transfer_upload(c, &source, &p, &err), 0);
	assert_int_equal(s.have, A + B);
	assert_memory_equal(s.data, a, A);
	assert_memory_equal(s.data + A, b, B);
	assert_int_equal(s.begins, 3); /* at first, and after each death */
	assert_int_equal(s.chunks, 6); /* nothing twice */

	/* What is there already is not sent. */
	assert_int_equal(transfer_upload(c, &source, &p, &err), 0);
	assert_int_equal(s.begins, 4);
	assert_int_equal(s.chunks, 6);
	client_free(c);
	fake_deinit(&f);
	free(s.data);
	free(a);
	free(b);
}

static void test_sources(void **state)
{
	struct fake f;
	struct errmsg err = {0};
	struct progress p = {0};
	char path[128], other[128], dir[128];
	fake_init(&f, NULL, NULL);
	free(make_file(&f, "empty", 0, path));
	const char *paths[] = {path, other};
	_cleanup_(source_deinit) struct source s = {0};
	assert_int_equal(source_open(&s, paths, 1, &p, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "empty is empty"));
	paths[0] = "/nonexistent/file.jsonl";
	assert_int_equal(source_open(&s, paths, 1, &p, &err), STATUS_NOT_FOUND);
	assert_non_null(strstr(err.text, "/nonexistent/file.jsonl: No such file"));
	paths[0] = f.dir;
	assert_int_equal(source_open(&s, paths, 1, &p, &err), STATUS_INVALID);
	free(make_file(&f, ".hidden", 5, path));
	paths[0] = path;
	assert_int_equal(source_open(&s, paths, 1, &p, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "name"));

	/* Two of the same name. */
	snprintf(dir, sizeof(dir), "%s/sub", f.dir);
	assert_int_equal(mkdir(dir, 0700), 0);
	free(make_file(&f, "x.jsonl", 5, path));
	free(make_file(&f, "sub/x.jsonl", 6, other));
	paths[0] = path;
	assert_int_equal(source_open(&s, paths, 2, &p, &err), 0);
	assert_string_not_equal(s.files[0].name, s.files[1].name);
	assert_non_null(strstr(s.files[1].name, "sub_x.jsonl"));
	fake_deinit(&f);
}

/* ---- downloads --------------------------------------------------------------------------- */

struct content {
	const uint8_t *data;
	uint64_t size;
	unsigned opens, chunks, die_at;
	uint64_t first_offset;  /* of the last opening */
	bool flip;              /* send a wrong byte once */
	uint64_t at;
	uint32_t credit;
	uint8_t stream[REQUEST_ID_SIZE];
};

static void handle_read(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	struct content *c = f->data;
	Peftd__V1__Request stream = PEFTD__V1__REQUEST__INIT;
	if (req->what_case == PEFTD__V1__REQUEST__WHAT_READ) {
		c->opens++;
		c->first_offset = c->at = req->read->offset;
		c->credit = req->read->credit;
		memcpy(c->stream, req->id.data, REQUEST_ID_SIZE);
	} else if (req->what_case == PEFTD__V1__REQUEST__WHAT_CREDIT) {
		c->credit += req->credit->credit;
	} else {
		return;
	}
	stream.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, c->stream};
	for (; c->credit > 0 && c->at < c->size; c->credit--) {
		size_t len = (size_t)min_i64(CHUNK_SIZE, (int64_t)(c->size - c->at));
		uint8_t *chunk = malloc(len);
		memcpy(chunk, c->data + c->at, len);
		if (c->flip) {
			chunk[len / 2] ^= 1;
			c->flip = false;
		}
		Peftd__V1__ReadReply r = PEFTD__V1__READ_REPLY__INIT;
		Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
		r.has_offset = true;
		r.offset = c->at;
		c->at += len;
		reply.has_more = reply.more = c->at < c->size;
		reply.what_case = PEFTD__V1__REPLY__WHAT_READ;
		reply.read = &r;
		fake_reply(f, &stream, &reply, chunk, len);
		free(chunk);
		if (++c->chunks == c->die_at) {
			f->restart = true;
			f->restart_ms = 20;
			return;
		}
	}
}

struct folder {
	Peftd__V1__Blob blob;
	Peftd__V1__File files[3], *list[3];
	uint8_t digest[DIGEST_SIZE];
	uint8_t *data;
	char dir[128], part[160];
};

enum { CONFIG_SIZE = 700, EMPTY_SIZE = 0, WEIGHTS_SIZE = 20 * CHUNK_SIZE + 77 };

static void make_folder(struct folder *o, const struct fake *f)
{
	static const char *const names[] = {"adapter_config.json", "empty.txt",
		"adapter_model.safetensors"};
	static const uint64_t sizes[] = {CONFIG_SIZE, EMPTY_SIZE, WEIGHTS_SIZE};
	size_t size = CONFIG_SIZE + WEIGHTS_SIZE;
	o->data = malloc(size);
	for (size_t i = 0; i < size; i++) {
		o->data[i] = (uint8_t)(i * 40503u >> 7);
	}
	crypto_generichash(o->digest, DIGEST_SIZE, o->data, size, NULL, 0);
	peftd__v1__blob__init(&o->blob);
	for (int i = 0; i < 3; i++) {
		peftd__v1__file__init(&o->files[i]);
		o->files[i].name = proto_bytes(names[i]);
		o->files[i].size = sizes[i];
		o->list[i] = &o->files[i];
	}
	o->blob.digest = (ProtobufCBinaryData){DIGEST_SIZE, o->digest};
	o->blob.size = size;
	o->blob.n_files = 3;
	o->blob.files = o->list;
	snprintf(o->dir, sizeof(o->dir), "%s/out", f->dir);
	char hex[17];
	hex_encode(hex, o->digest, 8);
	snprintf(o->part, sizeof(o->part), "%s.part-%s", o->dir, hex);
}

static void check_file(const char *dir, const char *name, const uint8_t *data, size_t size)
{
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	FILE *file = fopen(path, "r");
	assert_non_null(file);
	_cleanup_(freep) uint8_t *got = malloc(size + 1);
	assert_int_equal(fread(got, 1, size + 1, file), size);
	assert_memory_equal(got, data, size);
	fclose(file);
}

static void check_folder(const struct folder *o)
{
	check_file(o->dir, "adapter_config.json", o->data, CONFIG_SIZE);
	check_file(o->dir, "empty.txt", o->data, 0);
	check_file(o->dir, "adapter_model.safetensors", o->data + CONFIG_SIZE, WEIGHTS_SIZE);
	assert_int_equal(access(o->part, F_OK), -1);
}

static int download(struct client *c, const struct folder *o, bool *ret_was_there,
	struct errmsg *err)
{
	struct progress p = {0};
	struct download d = {.job = 1, .step = 5, .blob = &o->blob, .dir = o->dir};
	int r = transfer_download(c, &d, &p, err);
	*ret_was_there = d.was_there;
	return r;
}

static void test_download(void **state)
{
	struct fake f;
	struct client *c;
	struct folder o;
	struct errmsg err = {0};
	bool was_there;
	fake_init(&f, handle_read, NULL);
	make_folder(&o, &f);
	struct content content = {.data = o.data, .size = o.blob.size, .die_at = 11};
	f.data = &content;
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);

	/* The daemon dies in the middle. */
	assert_int_equal(download(c, &o, &was_there, &err), 0);
	assert_false(was_there);
	check_folder(&o);
	assert_int_equal(content.opens, 2);
	assert_true(content.first_offset > 0);

	/* Once more: it is there. */
	assert_int_equal(download(c, &o, &was_there, &err), 0);
	assert_true(was_there);
	assert_int_equal(content.opens, 2);

	/* Something else is there: nothing is touched. */
	char path[160];
	snprintf(path, sizeof(path), "%s/adapter_config.json", o.dir);
	FILE *file = fopen(path, "w");
	fputs("mine", file);
	fclose(file);
	assert_int_equal(download(c, &o, &was_there, &err), STATUS_CONFLICT);
	assert_non_null(strstr(err.text, "holds something else"));
	check_file(o.dir, "adapter_config.json", (const uint8_t *)"mine", 4);

	client_free(c);
	fake_deinit(&f);
	free(o.data);
}

static void write_part(const struct folder *o, const char *name, const uint8_t *data, size_t size)
{
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", o->part, name);
	FILE *file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(data, 1, size, file), size);
	fclose(file);
}

static void test_download_goes_on(void **state)
{
	enum { HAVE = 5 * CHUNK_SIZE + 1000 };
	struct fake f;
	struct client *c;
	struct folder o;
	struct errmsg err = {0};
	bool was_there;
	fake_init(&f, handle_read, NULL);
	make_folder(&o, &f);
	struct content content = {.data = o.data, .size = o.blob.size};
	f.data = &content;
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);

	/* What an interrupted fetch left behind, into an empty folder. */
	assert_int_equal(mkdir(o.dir, 0700), 0);
	assert_int_equal(mkdir(o.part, 0700), 0);
	write_part(&o, "adapter_config.json", o.data, CONFIG_SIZE);
	write_part(&o, "adapter_model.safetensors", o.data + CONFIG_SIZE, HAVE);
	assert_int_equal(download(c, &o, &was_there, &err), 0);
	assert_int_equal(content.opens, 1);
	assert_int_equal(content.first_offset, CONFIG_SIZE + HAVE);
	check_folder(&o);

	/* Left behind, but damaged: found by the digest, fetched anew. */
	char command[160];
	snprintf(command, sizeof(command), "rm -r '%s'", o.dir);
	assert_int_equal(system(command), 0);
	assert_int_equal(mkdir(o.part, 0700), 0);
	write_part(&o, "adapter_config.json", o.data + 1, CONFIG_SIZE);
	write_part(&o, "empty.txt", o.data, 33); /* too long */
	assert_int_equal(download(c, &o, &was_there, &err), 0);
	assert_int_equal(content.opens, 3);
	assert_int_equal(content.first_offset, 0);
	check_folder(&o);

	client_free(c);
	fake_deinit(&f);
	free(o.data);
}

/* A disk that fills up: what came is kept, and the same command goes on with it. */
static void test_download_disk_fills(void **state)
{
	struct fake f;
	struct client *c;
	struct folder o;
	struct errmsg err = {0};
	bool was_there;
	char small[96];
	fake_init(&f, handle_read, NULL);
	make_folder(&o, &f);
	snprintf(small, sizeof(small), "%s/small", f.dir);
	assert_int_equal(mkdir(small, 0700), 0);
	if (mount("tmpfs", small, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0700") < 0) {
		free(o.data);
		fake_deinit(&f);
		SKIP("no small file system can be mounted here (needs root)");
	}
	snprintf(o.dir, sizeof(o.dir), "%.90s/out", small);
	struct content content = {.data = o.data, .size = o.blob.size};
	f.data = &content;
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	int full = download(c, &o, &was_there, &err);
	int larger = mount("tmpfs", small, "tmpfs", MS_REMOUNT, "size=16m");
	struct errmsg none;
	int again = download(c, &o, &was_there, &none);
	client_free(c);
	assert_int_equal(umount(small), 0);
	fake_deinit(&f);
	free(o.data);
	assert_int_equal(full, STATUS_DISK_FULL);
	assert_non_null(strstr(err.text, "No space left on device; what came is kept: make room, and the "
		"same command goes on"));
	assert_int_equal(larger, 0);
	assert_int_equal(again, 0);
	assert_true(content.first_offset > 0);
}

static void test_download_wrong_content(void **state)
{
	struct fake f;
	struct client *c;
	struct folder o;
	struct errmsg err = {0};
	bool was_there;
	fake_init(&f, handle_read, NULL);
	make_folder(&o, &f);
	struct content content = {.data = o.data, .size = o.blob.size};
	f.data = &content;
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	/* A digest that no content has: nothing gets into place. */
	o.digest[0] ^= 1;
	assert_int_equal(download(c, &o, &was_there, &err), STATUS_FAILED);
	assert_non_null(strstr(err.text, "digest"));
	assert_int_equal(access(o.dir, F_OK), -1);
	assert_int_equal(content.opens, 2);
	o.digest[0] ^= 1;
	/* A byte that flips once on its way is mended by the second try. */
	content.flip = true;
	assert_int_equal(download(c, &o, &was_there, &err), 0);
	check_folder(&o);
	client_free(c);
	fake_deinit(&f);
	free(o.data);
}

static void test_download_bad_names(void **state)
{
	struct fake f;
	struct client *c;
	struct folder o;
	bool was_there;
	fake_init(&f, handle_read, NULL);
	make_folder(&o, &f);
	fake_start(&f);
	assert_int_equal(client_new(&c, f.endpoint, 3000), 0);
	static const char *const bad[] = {"../evil", "a/b", "/etc/passwd", ".", "..", "", ".bashrc",
		"adapter_config.json", "new\nline"};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct errmsg err = {0};
		o.files[2].name = proto_bytes(bad[i]);
		assert_int_equal(download(c, &o, &was_there, &err), STATUS_INVALID);
		assert_true(err.text[0] != '\0');
	}
	struct errmsg err = {0};
	o.files[2].name = proto_bytes("fine");
	o.files[2].size++;
	assert_int_equal(download(c, &o, &was_there, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "add up"));
	assert_int_equal(access(o.part, F_OK), -1);
	client_free(c);
	fake_deinit(&f);
	free(o.data);
}

/* libzmq may keep a session's buffers to itself when a context ends while a peer is going away. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
	return "leak:libzmq";
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nobody),
		cmocka_unit_test(test_call),
		cmocka_unit_test(test_daemon_that_comes_late),
		cmocka_unit_test(test_other_version),
		cmocka_unit_test(test_same_id_after_a_restart),
		cmocka_unit_test(test_unavailable_is_tried_again),
		cmocka_unit_test(test_a_refusal_is_final),
		cmocka_unit_test(test_watch_survives),
		cmocka_unit_test(test_lost_lease),
		cmocka_unit_test(test_watch_fails),
		cmocka_unit_test(test_upload),
		cmocka_unit_test(test_sources),
		cmocka_unit_test(test_download),
		cmocka_unit_test(test_download_goes_on),
		cmocka_unit_test(test_download_disk_fills),
		cmocka_unit_test(test_download_wrong_content),
		cmocka_unit_test(test_download_bad_names),
	};
	return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
