#include "tests/core/world.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/core/convert.h"
#include "util/util.h"

static const char *const endpoints[] = {"ipc:///nowhere"};
static const struct child_config config = {
	.endpoints = endpoints, .n_endpoints = 1, .device = "cpu"};

void world_init(struct world *w)
{
	/* fsync in memory costs nothing; what is tested here is not the disk. */
	const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
	*w = (struct world){.mono = 1000000000, .wall = INT64_C(1700000000) * 1000000000};
	w->options = (struct core_options){
		.version = "test", .memory_default = (uint64_t)4 << 30, .daemon_uid = 4000};
	snprintf(w->dir, sizeof(w->dir), "%s/peftd-core-XXXXXX", base);
	assert_non_null(mkdtemp(w->dir));
}

static void remove_tree(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	while (d && (e = readdir(d))) {
		char sub[512];
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
			continue;
		}
		snprintf(sub, sizeof(sub), "%s/%s", path, e->d_name);
		if (unlink(sub) < 0) {
			remove_tree(sub);
		}
	}
	if (d) {
		closedir(d);
	}
	rmdir(path);
}

void world_deinit(struct world *w)
{
	world_halt(w);
	remove_tree(w->dir);
}

void world_boot(struct world *w)
{
	struct errmsg err = {.text = ""};
	int r = store_open(&w->store, w->dir, &err);
	if (r != 0) {
		fail_msg("store_open: %d %s", r, err.text);
	}
	r = core_new(&w->core, w->store, &w->options, w->mono, w->wall, &err);
	if (r != 0) {
		fail_msg("core_new: %d %s", r, err.text);
	}
	w->ready = w->exited = false;
	memset(w->spawned, 0, sizeof(w->spawned));
}

static void child_gone(struct world_child *c)
{
	link_free(c->core_end);
	link_free(c->front_end);
	fake_deinit(&c->fake);
	*c = (struct world_child){0};
}

void world_halt(struct world *w)
{
	core_free(w->core);
	w->core = NULL;
	store_close(w->store);
	w->store = NULL;
	for (int i = 0; i < WORLD_CHILDREN; i++) {
		child_gone(&w->children[i]);
	}
}

static void step(struct world *w, struct event *ev)
{
	ev->mono_ns = w->mono;
	ev->wall_ns = w->wall;
	int r = core_step(w->core, ev);
	event_deinit(ev);
	if (r != 0) {
		fail_msg("core_step: %d", r);
	}
}

static struct world_child *find(struct world *w, uint64_t id)
{
	for (int i = 0; i < WORLD_CHILDREN; i++) {
		if (id && w->children[i].id == id) {
			return &w->children[i];
		}
	}
	return NULL;
}

static void spawn(struct world *w, const struct action *a)
{
	struct world_child *c = &w->children[0];
	while (c->id) {
		c++;
		assert_true(c < w->children + WORLD_CHILDREN);
	}
	int fds[2];
	*c = (struct world_child){.id = a->child, .kind = a->child_kind};
	w->spawned[a->child_kind]++;
	assert_int_equal(link_pair(fds), 0);
	assert_int_equal(link_new(&c->core_end, fds[0]), 0);
	if (c->kind == CHILD_FRONT) {
		assert_int_equal(link_new(&c->front_end, fds[1]), 0);
	} else {
		assert_int_equal(fake_init(&c->fake, fds[1], c->kind == CHILD_INSPECT), 0);
		c->fake.mangle = w->mangle;
		c->fake.mangle_ctx = w->ctx;
	}
}

static void carry_out(struct world *w, const struct action *a)
{
	struct world_child *c = find(w, a->child);
	switch (a->kind) {
	case ACT_SPAWN:
		spawn(w, a);
		break;
	case ACT_KILL:
		if (c) {
			c->killed = true;
		}
		break;
	case ACT_READY:
		w->ready = true;
		break;
	case ACT_EXIT:
		w->exited = true;
		w->exit_status = a->exit.status;
		snprintf(w->exit_text, sizeof(w->exit_text), "%s", a->exit.text ? a->exit.text : "");
		break;
	default:
		if (c) {
			int r = convert_send(c->core_end, a, &config);
			assert_true(r == 0 || r == -EPIPE || r == -ECONNRESET);
		}
		break;
	}
}

static void carry_out_all(struct world *w)
{
	struct action *a = core_take_actions(w->core);
	while (a) {
		struct action *next = a->next;
		carry_out(w, a);
		action_free(a);
		a = next;
	}
}

static void hear_child(struct world *w, struct world_child *c, unsigned frames)
{
	uint64_t id = c->id;
	for (unsigned i = 0; i < frames && c->id == id; i++) {
		struct event ev = {.kind = EV_TIME};
		struct errmsg err = {.text = ""};
		int r = c->kind == CHILD_FRONT ? convert_front_recv(c->core_end, &ev, &err)
									   : convert_trainer_recv(c->core_end, &ev, &err);
		if (r == 0 || r == -ECONNRESET || r == -EPIPE) {
			return;
		}
		if (r < 0) {
			ev = (struct event){.kind = EV_CHILD_BROKEN, .child = id};
			snprintf(ev.exit.text, sizeof(ev.exit.text), "%s", err.text);
			step(w, &ev);
			return;
		}
		ev.child = id;
		step(w, &ev);
	}
}

/* The front's own end: replies, and what a front does by itself. */
static void front_listen(struct world *w, struct world_child *c)
{
	for (;;) {
		void *msg;
		const void *raw;
		size_t len;
		struct errmsg err;
		int r =
			link_recv(c->front_end, &peftd__v1__core_to_front__descriptor, &msg, &raw, &len, &err);
		if (r <= 0) {
			break;
		}
		Peftd__V1__CoreToFront *m = msg;
		if (m->what_case == PEFTD__V1__CORE_TO_FRONT__WHAT_CONFIG) {
			Peftd__V1__FrontToCore hello = PEFTD__V1__FRONT_TO_CORE__INIT;
			Peftd__V1__FrontReady ready = PEFTD__V1__FRONT_READY__INIT;
			ready.version = LINK_VERSION;
			hello.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_READY;
			hello.ready = &ready;
			link_send(c->front_end, &hello, NULL, 0);
			c->front_ready = true;
		} else if (m->what_case == PEFTD__V1__CORE_TO_FRONT__WHAT_SHUTDOWN) {
			c->killed = true;
		} else if (m->reply && w->on_reply) {
			Peftd__V1__Reply *reply = m->reply->reply;
			m->reply->reply = NULL;
			w->on_reply(w->ctx, m->reply->session, reply, raw, len);
		}
		proto_free(msg);
	}
	link_flush(c->front_end);
}

static void end_child(struct world *w, struct world_child *c, bool signalled, int code)
{
	struct event ev = {.kind = EV_CHILD_EXIT, .child = c->id};
	ev.exit.signalled = signalled;
	ev.exit.code = code;
	/* What it had sent is still heard. */
	if (c->front_end) {
		link_flush(c->front_end);
	}
	if (c->fake.link) {
		link_flush(c->fake.link);
	}
	hear_child(w, c, 1000000);
	child_gone(c);
	step(w, &ev);
}

void world_kill(struct world *w, struct world_child *c, int signal)
{
	end_child(w, c, true, signal);
}

void world_exit(struct world *w, struct world_child *c, int status)
{
	end_child(w, c, false, status);
}

static void flush_links(struct world *w)
{
	for (int i = 0; i < WORLD_CHILDREN; i++) {
		struct world_child *c = &w->children[i];
		if (!c->id) {
			continue;
		}
		link_flush(c->core_end);
		if (c->kind == CHILD_FRONT) {
			front_listen(w, c);
		} else {
			fake_listen(&c->fake);
			link_flush(c->fake.link);
			if (!w->mangle && c->fake.failed && c->fake.failed != -EPIPE &&
				c->fake.failed != -ECONNRESET) {
				fail_msg("the core said what it must not: %d", c->fake.failed);
			}
		}
	}
}

void world_turn(struct world *w, unsigned frames, enum world_crash crash)
{
	struct event tick = {.kind = EV_TIME};
	flush_links(w);
	step(w, &tick);
	for (int i = 0; i < WORLD_CHILDREN; i++) {
		struct world_child *c = &w->children[i];
		if (c->id && c->killed) {
			world_kill(w, c, SIGKILL);
		} else if (c->id && w->mangle && c->fake.failed) {
			world_exit(w, c, 1); /* it could make no sense of what it brought upon itself */
		} else if (c->id && c->fake.ended && !link_queued(c->fake.link)) {
			world_exit(w, c, 0);
		} else if (c->id) {
			hear_child(w, c, frames);
		}
	}
	if (crash == CRASH_BEFORE_COMMIT) {
		world_halt(w);
		return;
	}
	int r = core_commit(w->core);
	if (r != 0) {
		fail_msg("core_commit: %d", r);
	}
	if (crash == CRASH_AFTER_COMMIT) {
		world_halt(w);
		return;
	}
	carry_out_all(w);
	for (int i = 0; i < WORLD_CHILDREN; i++) {
		struct world_child *c = &w->children[i];
		if (c->id && core_pump_wants(w->core, c->id)) {
			assert_int_equal(core_pump(w->core, c->id, 1024 * 1024), 0);
			carry_out_all(w);
		}
	}
	flush_links(w);
}

void world_settle(struct world *w)
{
	unsigned quiet = 0;
	for (unsigned i = 0; i < 20000 && quiet < 3 && w->core && !w->exited; i++) {
		bool busy = false;
		for (int k = 0; k < WORLD_CHILDREN; k++) {
			struct world_child *c = &w->children[k];
			if (!c->id) {
				continue;
			}
			if (c->kind == CHILD_FRONT) {
				busy = busy || core_pump_wants(w->core, c->id) || link_queued(c->core_end) > 0 ||
					link_queued(c->front_end) > 0;
			} else if (!w->lazy || !w->lazy(w, c)) {
				busy = fake_work(&c->fake, i) || busy;
				busy = busy || core_pump_wants(w->core, c->id) || link_queued(c->core_end) > 0;
			}
		}
		world_turn(w, 1000, CRASH_NOT);
		quiet = busy ? 0 : quiet + 1;
	}
}

struct world_child *world_child(struct world *w, enum child_kind kind)
{
	for (int i = 0; i < WORLD_CHILDREN; i++) {
		if (w->children[i].id && w->children[i].kind == kind) {
			return &w->children[i];
		}
	}
	return NULL;
}

static void front_send(
	struct world *w, const Peftd__V1__FrontToCore *m, const void *raw, size_t len)
{
	struct world_child *c = world_child(w, CHILD_FRONT);
	if (c && c->front_ready) {
		int r = w->mangle ? fake_send_mangled(link_fd(c->front_end), w->mangle, w->ctx, m, raw, len)
						  : link_send(c->front_end, m, raw, len);
		assert_true(r == 0 || r == -EPIPE || r == -ECONNRESET);
	}
}

void world_request(struct world *w, uint64_t session, uint32_t uid, const Peftd__V1__Request *req,
	const void *raw, size_t raw_len)
{
	Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
	Peftd__V1__ClientRequest r = PEFTD__V1__CLIENT_REQUEST__INIT;
	r.session = session;
	r.uid = uid;
	r.request = (Peftd__V1__Request *)req;
	m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_REQUEST;
	m.request = &r;
	front_send(w, &m, raw, raw_len);
}

void world_session_end(struct world *w, uint64_t session)
{
	Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
	Peftd__V1__SessionEnd e = PEFTD__V1__SESSION_END__INIT;
	e.session = session;
	m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_SESSION_END;
	m.session_end = &e;
	front_send(w, &m, NULL, 0);
}

void world_credit(struct world *w, uint64_t session, const uint8_t id[16], uint32_t credit)
{
	Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
	Peftd__V1__StreamCredit e = PEFTD__V1__STREAM_CREDIT__INIT;
	e.session = session;
	e.stream = (ProtobufCBinaryData){16, (uint8_t *)id};
	e.credit = credit;
	m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_CREDIT;
	m.credit = &e;
	front_send(w, &m, NULL, 0);
}

void world_stream_end(struct world *w, uint64_t session, const uint8_t id[16])
{
	Peftd__V1__FrontToCore m = PEFTD__V1__FRONT_TO_CORE__INIT;
	Peftd__V1__StreamEnd e = PEFTD__V1__STREAM_END__INIT;
	e.session = session;
	e.stream = (ProtobufCBinaryData){16, (uint8_t *)id};
	m.what_case = PEFTD__V1__FRONT_TO_CORE__WHAT_STREAM_END;
	m.stream_end = &e;
	front_send(w, &m, NULL, 0);
}

void world_shutdown(struct world *w)
{
	struct event ev = {.kind = EV_SHUTDOWN};
	step(w, &ev);
}
