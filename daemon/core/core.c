/*
 * The core as a whole: its turns, its transactions and its actions.
 *
 * All events of a turn are decided in one write transaction, which is committed before any of their
 * actions is carried out. Chunks of uploads and checkpoints are kept aside and made durable in a
 * transaction of their own behind it: a full disk then undoes chunks only, never a decision.
 */

#include "daemon/core/core.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

int store_fatal(int r)
{
	return r == STATUS_DISK_FULL ? -ENOSPC : r;
}

static void end_read(struct core *c)
{
	store_abort(c->read);
	c->read = NULL;
}

int core_write(struct core *c, struct store_txn **ret)
{
	end_read(c);
	if (!c->write) {
		int r = store_begin(c->store, true, &c->write);
		if (r != 0) {
			return store_fatal(r);
		}
	}
	*ret = c->write;
	return 0;
}

int core_read(struct core *c, struct store_txn **ret)
{
	int r = jobs_flush(c);
	if (r < 0) {
		return r;
	}
	if (!c->write && !c->read) {
		r = store_begin(c->store, false, &c->read);
		if (r != 0) {
			return store_fatal(r);
		}
	}
	*ret = c->write ? c->write : c->read;
	return 0;
}

/* Appends what waits, as far as possible; every chunk learns how it went. */
static int bulk_write(struct core *c, struct bulk_list *landing)
{
	struct bulk *b;
	struct errmsg why;
	int r = store_room(c->store, c->bulk_bytes, &why);
	if (r < 0) {
		return r;
	}
	struct store_txn *t = NULL;
	if (r == 0) {
		r = store_begin(c->store, true, &t);
	}
	TAILQ_FOREACH (b, landing, entry) {
		if (r != 0) {
			break;
		}
		struct store_blob blob = {.received = 0};
		b->code = store_blob_append(t, b->digest, b->offset, b->data, b->len, &blob, &b->why);
		b->received = blob.received;
		if (b->code < 0 || b->code == STATUS_DISK_FULL) {
			r = b->code;
			why = b->why;
		}
	}
	if (r == 0) {
		r = store_commit(t);
		t = NULL;
		if (r == STATUS_DISK_FULL) {
			errmsg_set(&why, r, "the store has no room");
		}
	}
	store_abort(t);
	if (r == STATUS_DISK_FULL) {
		TAILQ_FOREACH (b, landing, entry) {
			b->code = r;
			b->why = why;
		}
		r = 0;
	}
	return r;
}

static void bulk_free(struct bulk *b)
{
	free(b->data);
	free(b);
}

static int bulk_commit(struct core *c)
{
	struct bulk_list landing = TAILQ_HEAD_INITIALIZER(landing);
	TAILQ_CONCAT(&landing, &c->bulks, entry);
	int r = bulk_write(c, &landing);
	c->bulk_bytes = 0;
	struct bulk *b;
	while ((b = TAILQ_FIRST(&landing))) {
		if (r == 0) {
			r = b->task ? checkpoint_landed(c, b) : upload_landed(c, b);
		}
		TAILQ_REMOVE(&landing, b, entry);
		bulk_free(b);
	}
	return r;
}

int core_flush(struct core *c)
{
	int r = jobs_flush(c);
	if (r < 0) {
		return r;
	}
	end_read(c);
	if (c->write) {
		r = store_commit(c->write);
		c->write = NULL;
		if (r != 0) {
			log_error("the store could not be written: %s", strerror(-store_fatal(r)));
			return store_fatal(r);
		}
		jobs_forget(c);
	}
	return TAILQ_EMPTY(&c->bulks) ? 0 : bulk_commit(c);
}

static int collect(struct core *c)
{
	if (c->mono < c->collect_ns) {
		return 0;
	}
	bool more = false;
	int r = store_collect(c->store, (uint64_t)c->wall, 1000, &more);
	if (r == STATUS_DISK_FULL) {
		/* What is dead stays until there is room to note that it is gone; nothing depends on it. */
		log_warning("the store has no room to free what is no longer needed; trying again in a minute");
		more = false;
		r = 0;
	}
	/* At once would starve requests; a second would let garbage pile up behind a busy day. */
	c->collect_ns = c->mono + (more ? MILLISECONDS(100) : SECONDS(60));
	return store_fatal(r);
}

int core_commit(struct core *c)
{
	do {
		int r = children_settle(c);
		r = r ? r : tasks_settle(c);
		r = r ? r : works_settle(c);
		r = r ? r : sched_settle(c);
		r = r ? r : core_flush(c);
		if (r < 0) {
			return r;
		}
	} while (c->write || !TAILQ_EMPTY(&c->bulks));
	int r = collect(c);
	r = r ? r : uploads_prepare(c);
	end_read(c);
	return r;
}

struct action *core_act(struct core *c, enum action_kind kind, const struct child *child)
{
	struct action *a = calloc(1, sizeof(*a));
	if (!a) {
		return NULL;
	}
	a->kind = kind;
	if (child) {
		a->child = child->id;
		a->child_kind = child->kind;
	}
	*c->actions_tail = a;
	c->actions_tail = &a->next;
	return a;
}

int core_exit(struct core *c, int status, const char *fmt, ...)
{
	if (c->exiting) {
		return 0;
	}
	c->exiting = true;
	struct action *a = core_act(c, ACT_EXIT, NULL);
	if (!a) {
		return -ENOMEM;
	}
	a->exit.status = status;
	if (fmt) {
		va_list ap;
		va_start(ap, fmt);
		int n = vasprintf(&a->exit.text, fmt, ap);
		va_end(ap);
		if (n < 0) {
			a->exit.text = NULL;
			return -ENOMEM;
		}
	}
	return 0;
}

struct action *core_take_actions(struct core *c)
{
	struct action *first = c->actions;
	c->actions = NULL;
	c->actions_tail = &c->actions;
	return first;
}

uint64_t core_memory_limit(const struct core *c)
{
	if (c->options.memory_limit) {
		return c->options.memory_limit;
	}
	return c->have_facts && c->facts.memory_total ? c->facts.memory_total
												  : c->options.memory_default;
}

static bool from_front(struct core *c, const struct event *ev)
{
	const struct child *child = child_find(c, ev->child);
	return child == &c->front && child->state != CHILD_ENDING;
}

static int front_message(struct core *c, struct event *ev)
{
	if (!from_front(c, ev)) {
		return 0;
	}
	c->front.heard_ns = c->mono;
	switch (ev->kind) {
	case EV_REQUEST:
		if (ev->request.kind == REQUEST_UPLOAD_CHUNK) {
			return upload_chunk(c, &ev->request, ev->raw, ev->raw_len);
		}
		return request_step(c, &ev->request);
	case EV_SESSION_END:
		streams_session_end(c, ev->stream.session, false);
		works_session_end(c, ev->stream.session, false);
		holds_session_end(c, ev->stream.session, false);
		return 0;
	case EV_STREAM_CREDIT:
		if (stream_credit(c, ev->stream.session, ev->stream.id, ev->stream.credit)) {
			return 0;
		}
		return works_credit(c, ev->stream.session, ev->stream.id, ev->stream.credit);
	default: /* EV_STREAM_END */
		if (!stream_end(c, ev->stream.session, ev->stream.id)) {
			works_stream_end(c, ev->stream.session, ev->stream.id);
		}
		return 0;
	}
}

static int trainer_message(struct core *c, struct event *ev)
{
	struct child *child = child_find(c, ev->child);
	if (!child || child->kind == CHILD_FRONT || child->state != CHILD_READY) {
		/* Shutting down, it still tells how its tasks end and sends their last checkpoints. */
		if (!child || child != &c->trainer || child->state != CHILD_ENDING || !c->stopping) {
			return 0;
		}
	}
	child->heard_ns = c->mono;
	return task_message(c, child, ev);
}

int core_step(struct core *c, struct event *ev)
{
	c->mono = max_i64(c->mono, ev->mono_ns);
	c->wall = ev->wall_ns;
	switch (ev->kind) {
	case EV_TIME:
		return 0;
	case EV_SHUTDOWN:
		return children_shutdown(c);
	case EV_CHILD_EXIT:
	case EV_CHILD_BROKEN:
	case EV_FRONT_READY:
	case EV_TRAINER_READY:
		return children_event(c, ev);
	case EV_REQUEST:
	case EV_SESSION_END:
	case EV_STREAM_CREDIT:
	case EV_STREAM_END:
		return front_message(c, ev);
	default:
		return trainer_message(c, ev);
	}
}

int core_pump(struct core *c, uint64_t child_id, size_t room)
{
	struct child *child = child_find(c, child_id);
	if (!child || child->state == CHILD_ENDING) {
		return 0;
	}
	int r = child->kind == CHILD_FRONT ? stream_pump(c, room) : task_pump(c, child, room);
	end_read(c);
	return r;
}

bool core_pump_wants(const struct core *c, uint64_t child_id)
{
	const struct child *child = child_find((struct core *)c, child_id);
	if (!child || child->state == CHILD_ENDING) {
		return false;
	}
	return child->kind == CHILD_FRONT ? !TAILQ_EMPTY(&c->streams_ready) : task_pump_wants(c, child);
}

int64_t core_deadline(const struct core *c)
{
	if (!TAILQ_EMPTY(&c->preparations)) {
		return c->mono;
	}
	int64_t t = min_i64(c->collect_ns, children_deadline(c));
	t = min_i64(t, tasks_deadline(c));
	return min_i64(t, sched_deadline(c));
}

int core_new(struct core **ret, struct store *store, const struct core_options *options,
	int64_t mono_ns, int64_t wall_ns, struct errmsg *err)
{
	struct core *c = calloc(1, sizeof(*c));
	if (!c) {
		return -ENOMEM;
	}
	c->options = *options;
	c->store = store;
	c->mono = c->started = mono_ns;
	c->wall = wall_ns;
	c->collect_ns = mono_ns + SECONDS(1);
	c->actions_tail = &c->actions;
	c->next_child = c->next_task = 1;
	TAILQ_INIT(&c->tasks);
	TAILQ_INIT(&c->works);
	TAILQ_INIT(&c->holds);
	TAILQ_INIT(&c->streams_ready);
	TAILQ_INIT(&c->streams_idle);
	TAILQ_INIT(&c->bulks);
	TAILQ_INIT(&c->preparations);

	int r = jobs_recover(c, err);
	r = r ? r : core_flush(c);
	r = r ? r : child_start(c, &c->front, CHILD_FRONT);
	r = r ? r : child_start(c, &c->trainer, CHILD_TRAINER);
	if (r != 0) {
		core_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

static void free_streams(struct stream_list *list)
{
	struct stream *s;
	while ((s = TAILQ_FIRST(list))) {
		TAILQ_REMOVE(list, s, entry);
		stream_free(s);
	}
}

void core_free(struct core *c)
{
	if (!c) {
		return;
	}
	store_abort(c->write);
	store_abort(c->read);
	struct task *t;
	while ((t = TAILQ_FIRST(&c->tasks))) {
		task_end(c, t);
	}
	struct work *w;
	while ((w = TAILQ_FIRST(&c->works))) {
		w->n_sessions = 0;
		work_drop(c, w);
	}
	struct hold *h;
	while ((h = TAILQ_FIRST(&c->holds))) {
		TAILQ_REMOVE(&c->holds, h, entry);
		hold_free(h);
	}
	free_streams(&c->streams_ready);
	free_streams(&c->streams_idle);
	struct bulk *b;
	while ((b = TAILQ_FIRST(&c->bulks))) {
		TAILQ_REMOVE(&c->bulks, b, entry);
		bulk_free(b);
	}
	struct preparation *p;
	while ((p = TAILQ_FIRST(&c->preparations))) {
		TAILQ_REMOVE(&c->preparations, p, entry);
		free(p);
	}
	for (size_t i = 0; i < c->n_jobs; i++) {
		job_free(c->jobs[i]);
	}
	free(c->jobs);
	while (c->actions) {
		struct action *next = c->actions->next;
		action_free(c->actions);
		c->actions = next;
	}
	plan_cache_deinit(c);
	trainer_facts_deinit(&c->facts);
	trainer_stats_deinit(&c->stats);
	free(c);
}
