/*
 * Answers that go on: watching a job, and reading what it made.
 *
 * A stream holds nothing in the store between its turns. Events are read after they were committed,
 * as far as the client's credit and the link's room go; so a slow client costs memory for its
 * stream and nothing else.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

enum {
	EVENTS_MAX = 64,          /* events a reply */
	EVENTS_BYTES = 24 * 1024, /* of a reply; the job itself may need the rest of 64 KiB */
	HASH_CHUNKS = 8,          /* chunks that one turn digests */
};

void stream_free(struct stream *s)
{
	store_files_deinit(&s->content);
	free(s->folder_name);
	free(s);
}

static void set_ready(struct core *c, struct stream *s, bool ready)
{
	TAILQ_REMOVE(s->ready ? &c->streams_ready : &c->streams_idle, s, entry);
	s->ready = ready;
	TAILQ_INSERT_TAIL(ready ? &c->streams_ready : &c->streams_idle, s, entry);
}

static void drop(struct core *c, struct stream *s)
{
	TAILQ_REMOVE(s->ready ? &c->streams_ready : &c->streams_idle, s, entry);
	stream_free(s);
}

static struct stream *find_in(struct stream_list *list, uint64_t session, const uint8_t id[16])
{
	struct stream *s;
	TAILQ_FOREACH (s, list, entry) {
		if (s->session == session && memcmp(s->id, id, 16) == 0) {
			return s;
		}
	}
	return NULL;
}

static struct stream *find(struct core *c, uint64_t session, const uint8_t id[16])
{
	struct stream *s = find_in(&c->streams_ready, session, id);
	return s ? s : find_in(&c->streams_idle, session, id);
}

/* ---- beginnings ---------------------------------------------------------------------------- */

/* The files of the adapter's folder come first; the trainer's own state follows. */
static void measure_folder(struct stream *s)
{
	while (
		s->n_files < s->content.n && strncmp(s->content.files[s->n_files].name, "peftd_", 6) != 0) {
		s->size += s->content.files[s->n_files++].size;
	}
}

static int name_folder(struct stream *s, const struct store_job *rec)
{
	int n = rec->name ? asprintf(&s->folder_name, "%s", rec->name)
					  : asprintf(&s->folder_name, "job-%llu", (unsigned long long)rec->id);
	if (n < 0) {
		s->folder_name = NULL;
		return -ENOMEM;
	}
	return 0;
}

/* 1: answered. */
static int prepare_content(
	struct core *c, struct request *req, struct stream *s, const struct store_job *rec)
{
	const struct store_checkpoint *k = job_checkpoint(rec, req->step, req->best);
	unsigned long long id = rec->id;
	int r;
	if (!k && req->step) {
		r = answer_status(c, req->session, req->id, STATUS_NOT_FOUND,
			"job %llu has no checkpoint of step %llu; `peftctl show %llu` lists those that are "
			"kept",
			id, (unsigned long long)req->step, id);
		return r ? r : 1;
	}
	if (!k) {
		r = answer_status(c, req->session, req->id, STATUS_NOT_FOUND,
			req->best ? "job %llu has no evaluated checkpoint; it is %s"
					  : "job %llu has no checkpoint yet; it is %s",
			id, job_state_name(rec->state));
		return r ? r : 1;
	}
	if (req->merge) {
		r = merge_request(c, req, rec, k);
		return r ? r : 1;
	}
	r = store_files_copy(&s->content, &k->content);
	r = r ? r : name_folder(s, rec);
	if (r < 0) {
		return r;
	}
	measure_folder(s);
	s->step = k->step;
	if (s->kind == STREAM_FETCH) {
		crypto_generichash_init(&s->hash, NULL, 0, DIGEST_SIZE);
	} else if (req->offset > s->size) {
		r = answer_status(c, req->session, req->id, STATUS_INVALID,
			"offset: %llu is beyond the %llu bytes there are", (unsigned long long)req->offset,
			(unsigned long long)s->size);
		return r ? r : 1;
	}
	s->offset = s->kind == STREAM_READ ? req->offset : 0;
	return 0;
}

int stream_request(struct core *c, struct request *req)
{
	_cleanup_(store_job_deinit) struct store_job own = {0};
	const struct store_job *rec;
	int r = job_lookup(c, req->job, &rec, &own);
	if (r == STATUS_NOT_FOUND) {
		return answer_status(c, req->session, req->id, STATUS_NOT_FOUND,
			"there is no job %llu; `peftctl list` lists those there are",
			(unsigned long long)req->job);
	}
	if (r < 0) {
		return r;
	}
	/* The same request again asks for the same stream from its beginning. */
	struct stream *s = find(c, req->session, req->id);
	if (s) {
		drop(c, s);
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		return -ENOMEM;
	}
	s->kind = req->kind == REQUEST_WATCH ? STREAM_WATCH
		: req->kind == REQUEST_READ      ? STREAM_READ
										 : STREAM_FETCH;
	s->session = req->session;
	memcpy(s->id, req->id, sizeof(s->id));
	s->job = req->job;
	s->credit = req->credit;
	s->after = req->after;
	s->follow = req->follow;
	s->kinds = req->kinds;
	r = s->kind == STREAM_WATCH ? 0 : prepare_content(c, req, s, rec);
	if (r != 0) {
		stream_free(s);
		return r;
	}
	s->ready = true;
	TAILQ_INSERT_TAIL(&c->streams_ready, s, entry);
	return 0;
}

/* ---- watching ------------------------------------------------------------------------------ */

struct batch {
	struct packed events[EVENTS_MAX];
	size_t n, bytes;
	uint64_t last;
};

static int take_event(void *ctx, uint64_t seq, const void *event, size_t len)
{
	struct batch *b = ctx;
	if (b->n > 0 && b->bytes + len > EVENTS_BYTES) {
		return 1;
	}
	b->events[b->n] = (struct packed){0};
	int r = packed_set(&b->events[b->n], event, len);
	if (r == 0) {
		b->n++;
		b->bytes += len;
		b->last = seq;
	}
	return r;
}

static int end_with(struct core *c, struct stream *s, int code, const char *text)
{
	int r = answer_status(c, s->session, s->id, code, "%s", text);
	drop(c, s);
	return r;
}

static int compacted(struct core *c, struct stream *s, uint64_t first)
{
	char text[160];
	snprintf(text, sizeof(text), "the events up to %llu are not kept any more; watch from %llu",
		(unsigned long long)(first - 1), (unsigned long long)(first - 1));
	return end_with(c, s, STATUS_COMPACTED, text);
}

/* Sends a batch, and with it what is due to the stream's beginning or end. */
static int send_events(struct core *c, struct stream *s, const struct store_job *rec,
	const struct batch *b, size_t *room)
{
	bool caught_up = s->after >= rec->last_seq;
	bool over = caught_up && (job_state_ended(rec->state) || !s->follow);
	if (b->n == 0 && s->told && !over) {
		set_ready(c, s, false);
		return 0;
	}
	struct packed reply;
	const struct job *j = job_find(c, rec->id);
	int r = reply_watch(&reply, s->id, b->events, b->n, rec->last_seq,
		!s->told || over ? rec : NULL, j ? sched_position(c, j) : 0, !over);
	if (r < 0) {
		return r;
	}
	*room -= reply.len < *room ? reply.len : *room;
	r = answer_packed(c, s->session, &reply);
	s->told = true;
	s->credit -= (uint32_t)b->n;
	if (over) {
		drop(c, s);
	} else {
		set_ready(c, s, !caught_up && s->credit > 0);
	}
	return r;
}

static int pump_watch(struct core *c, struct stream *s, size_t *room)
{
	_cleanup_(store_job_deinit) struct store_job rec = {0};
	struct store_txn *t;
	int r = core_read(c, &t);
	r = r ? r : store_job_get(t, s->job, &rec);
	if (r == STATUS_NOT_FOUND) {
		return end_with(c, s, r, "the job is not kept any more");
	}
	if (r < 0) {
		return r;
	}
	struct batch b = {.n = 0};
	unsigned max = s->credit < EVENTS_MAX ? s->credit : EVENTS_MAX;
	uint64_t first = 0;
	if (max > 0 && s->after < rec.last_seq) {
		unsigned kinds = s->kinds ? s->kinds : ~0u;
		r = store_event_each(t, s->job, s->after, kinds, max, take_event, &b, &first);
		if (r == 0 && b.n < max) {
			s->after = rec.last_seq; /* what lies between are events of other kinds */
		} else if (b.n > 0) {
			s->after = b.last;
		}
	}
	if (r == STATUS_COMPACTED) {
		r = compacted(c, s, first);
	} else if (r >= 0) {
		r = send_events(c, s, &rec, &b, room);
	}
	for (size_t i = 0; i < b.n; i++) {
		packed_deinit(&b.events[i]);
	}
	return r;
}

/* ---- reading ------------------------------------------------------------------------------- */

static int unreadable(struct core *c, struct stream *s, int r)
{
	if (r == STATUS_NOT_FOUND) {
		return end_with(c, s, r, "this checkpoint is not kept any more");
	}
	if (r == -EIO) {
		log_error("job %llu: its checkpoint of step %llu is damaged; `peftd --check` says more",
			(unsigned long long)s->job, (unsigned long long)s->step);
		return end_with(c, s, STATUS_INTERNAL, "this checkpoint is damaged in the store");
	}
	return r;
}

static int pump_read(struct core *c, struct stream *s, size_t *room)
{
	if (s->offset < s->size && s->credit == 0) {
		set_ready(c, s, false);
		return 0;
	}
	uint64_t left = s->size - s->offset;
	size_t len = left < CHUNK_SIZE ? (size_t)left : CHUNK_SIZE;
	_cleanup_(freep) uint8_t *data = malloc(len ? len : 1);
	struct store_txn *t;
	int r = data ? core_read(c, &t) : -ENOMEM;
	if (r == 0 && len > 0) {
		r = store_blob_read(t, s->content.digest, s->offset, data, len);
		if (r != 0) {
			return unreadable(c, s, r);
		}
	}
	struct packed reply;
	bool more = s->offset + len < s->size;
	r = r ? r : reply_read(&reply, s->id, s->offset, more);
	if (r < 0) {
		return r;
	}
	struct action *a = core_act(c, ACT_REPLY, &c->front);
	if (!a) {
		packed_deinit(&reply);
		return -ENOMEM;
	}
	a->reply.session = s->session;
	a->reply.packed = reply;
	a->raw = steal_ptr(data);
	a->raw_len = len;
	*room -= len + reply.len < *room ? len + reply.len : *room;
	s->offset += len;
	s->credit -= s->credit > 0;
	if (!more) {
		drop(c, s);
	} else {
		set_ready(c, s, s->credit > 0);
	}
	return 0;
}

/* Digests the folder's part of the checkpoint, some chunks a turn. */
static int pump_fetch(struct core *c, struct stream *s, size_t *room)
{
	_cleanup_(freep) uint8_t *data = malloc(CHUNK_SIZE);
	struct store_txn *t;
	int r = data ? core_read(c, &t) : -ENOMEM;
	if (r < 0) {
		return r;
	}
	for (int i = 0; i < HASH_CHUNKS && s->offset < s->size; i++) {
		uint64_t left = s->size - s->offset;
		size_t len = left < CHUNK_SIZE ? (size_t)left : CHUNK_SIZE;
		r = store_blob_read(t, s->content.digest, s->offset, data, len);
		if (r != 0) {
			return unreadable(c, s, r);
		}
		crypto_generichash_update(&s->hash, data, len);
		s->offset += len;
		*room -= len < *room ? len : *room;
	}
	if (s->offset < s->size) {
		set_ready(c, s, true); /* behind the others */
		return 0;
	}
	uint8_t digest[DIGEST_SIZE];
	crypto_generichash_final(&s->hash, digest, sizeof(digest));
	struct packed reply;
	r = reply_fetch(
		&reply, s->id, s->content.files, s->n_files, s->size, digest, s->step, s->folder_name);
	r = r ? r : answer_packed(c, s->session, &reply);
	drop(c, s);
	return r;
}

int stream_pump(struct core *c, size_t room)
{
	struct stream *s;
	while (room > 0 && (s = TAILQ_FIRST(&c->streams_ready))) {
		int r;
		switch (s->kind) {
		case STREAM_WATCH:
			r = pump_watch(c, s, &room);
			if (r == -EIO) {
				log_error(
					"job %llu: its record or an event is damaged", (unsigned long long)s->job);
				r = end_with(c, s, STATUS_INTERNAL, "the job's record is damaged in the store");
			}
			break;
		case STREAM_READ:
			r = pump_read(c, s, &room);
			break;
		default:
			r = pump_fetch(c, s, &room);
			break;
		}
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

/* ---- what happens to streams --------------------------------------------------------------- */

void streams_wake(struct core *c, uint64_t job)
{
	struct stream *s, *next;
	for (s = TAILQ_FIRST(&c->streams_idle); s; s = next) {
		next = TAILQ_NEXT(s, entry);
		if (s->kind == STREAM_WATCH && s->job == job && s->credit > 0) {
			set_ready(c, s, true);
		}
	}
}

bool stream_credit(struct core *c, uint64_t session, const uint8_t id[16], uint32_t credit)
{
	struct stream *s = find(c, session, id);
	if (!s) {
		return false;
	}
	if (__builtin_add_overflow(s->credit, credit, &s->credit)) {
		s->credit = UINT32_MAX;
	}
	if (s->credit > 0 && !s->ready) {
		set_ready(c, s, true);
	}
	return true;
}

bool stream_end(struct core *c, uint64_t session, const uint8_t id[16])
{
	struct stream *s = find(c, session, id);
	if (s) {
		drop(c, s);
	}
	return s != NULL;
}

static void end_in(struct core *c, struct stream_list *list, uint64_t session, bool all)
{
	struct stream *s, *next;
	for (s = TAILQ_FIRST(list); s; s = next) {
		next = TAILQ_NEXT(s, entry);
		if (all || s->session == session) {
			drop(c, s);
		}
	}
}

void streams_session_end(struct core *c, uint64_t session, bool all)
{
	end_in(c, &c->streams_ready, session, all);
	end_in(c, &c->streams_idle, session, all);
}

int streams_shutdown(struct core *c)
{
	struct stream *s;
	while ((s = TAILQ_FIRST(&c->streams_ready)) || (s = TAILQ_FIRST(&c->streams_idle))) {
		int r = end_with(c, s, STATUS_UNAVAILABLE, "the daemon is shutting down; try again");
		if (r < 0) {
			return r;
		}
	}
	return 0;
}
