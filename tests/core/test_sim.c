/*
 * The core under random schedules of requests, deaths, restarts and time, all from one seed.
 *
 * PEFTD_SIM_SEEDS: how many seeds (200). PEFTD_SIM_SEED: the first one (1); a failing test names
 * it.
 *
 * What is held against every schedule: an acknowledged submit is never lost or doubled; states
 * change only as they may; a job's events are numbered without a gap; every step is recorded once,
 * with the loss it must have; at most one job is with the trainer; a watcher that reconnects sees
 * each event once; who succeeded has the result of an uninterrupted run; the store is sound at the
 * end.
 */

#include <setjmp.h>
#include <signal.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/core/client.h"
#include "util/buf.h"
#include "util/log.h"
#include "util/util.h"

#define SECOND INT64_C(1000000000)

enum { MAX_REQUESTS = 400, MAX_JOBS = 64, MAX_WATCHERS = 8, MAX_STEPS = 12, SESSIONS = 4 };

struct made { /* a request that changes something */
	uint8_t id[16];
	Peftd__V1__Request__WhatCase what;
	struct want want;
	char name[8];
	uint64_t job; /* of a control; or of a submit, once acknowledged */
	enum control_action action;
	bool acknowledged;
};

struct known { /* an acknowledged job */
	uint64_t id;
	struct want want;
	bool cancelled; /* and the cancel was acknowledged */
	bool retried;   /* or at least it was asked for: who knows what became of it */
};

struct watcher {
	bool used, over;
	uint64_t job, session, seen;
	uint8_t id[16];
};

struct sim {
	uint64_t seed, random;
	bool running; /* still so in the teardown: it failed */
	struct client c;
	struct made made[MAX_REQUESTS];
	size_t n_made;
	struct known jobs[MAX_JOBS];
	size_t n_jobs;
	struct watcher watchers[MAX_WATCHERS];
	uint64_t sessions[SESSIONS], next_session;
	bool stopping;
	unsigned boots, ended[3]; /* ended: jobs that SUCCEEDED, FAILED, were CANCELLED */
};

static const char *const contents[] = {"{\"text\": \"one\"}", "{\"text\": \"two\"}", "bad"};

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t rnd(struct sim *s)
{
	uint64_t z = s->random += UINT64_C(0x9E3779B97F4A7C15);
	z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
	return z ^ z >> 31;
}

static unsigned below(struct sim *s, unsigned n)
{
	return (unsigned)(rnd(s) % n);
}

static uint64_t some_session(struct sim *s)
{
	return s->sessions[below(s, SESSIONS)];
}

/* ---- what comes back ----------------------------------------------------------------------- */

static struct made *find_made(struct sim *s, const uint8_t id[16])
{
	for (size_t i = 0; i < s->n_made; i++) {
		if (memcmp(s->made[i].id, id, 16) == 0) {
			return &s->made[i];
		}
	}
	return NULL;
}

static struct known *find_job(struct sim *s, uint64_t id)
{
	for (size_t i = 0; i < s->n_jobs; i++) {
		if (s->jobs[i].id == id) {
			return &s->jobs[i];
		}
	}
	return NULL;
}

static void submitted(struct sim *s, struct made *m, const Peftd__V1__Reply *r)
{
	assert_non_null(r->submit);
	assert_true(r->submit->job > 0);
	if (m->acknowledged) {
		assert_int_equal(r->submit->job, m->job);
		return;
	}
	assert_null(find_job(s, r->submit->job)); /* never the job of another request */
	m->acknowledged = true;
	m->job = r->submit->job;
	assert_true(s->n_jobs < MAX_JOBS);
	s->jobs[s->n_jobs++] = (struct known){.id = m->job, .want = m->want};
}

static void controlled(struct sim *s, struct made *m, const Peftd__V1__Reply *r)
{
	struct known *k = find_job(s, m->job);
	assert_non_null(k);
	enum job_state state = (enum job_state)r->job->state;
	m->acknowledged = true;
	switch (m->action) {
	case CONTROL_CANCEL:
		assert_true(state == JOB_CANCELLED || state == JOB_CANCELLING);
		k->cancelled = true;
		break;
	case CONTROL_HOLD:
		assert_int_equal(state, JOB_HELD);
		break;
	case CONTROL_RELEASE:
		assert_int_equal(state, JOB_PENDING);
		break;
	case CONTROL_RETRY:
		assert_int_equal(state, JOB_PENDING);
		break;
	}
}

static void watched(struct watcher *w, const Peftd__V1__Reply *r)
{
	if (r->status->code != 0) {
		w->used = false;
		return;
	}
	for (size_t i = 0; i < r->watch->n_events; i++) {
		assert_int_equal(r->watch->events[i]->seq, w->seen + 1);
		w->seen++;
	}
	assert_true(r->watch->last_seq >= w->seen);
	if (!(r->has_more && r->more)) {
		assert_int_equal(r->watch->last_seq, w->seen);
		w->used = false;
	}
}

static void on_reply(
	void *ctx, uint64_t session, Peftd__V1__Reply *r, const void *raw, size_t raw_len)
{
	struct sim *s = ctx;
	assert_int_equal(r->id.len, 16);
	struct made *m = find_made(s, r->id.data);
	for (int i = 0; i < MAX_WATCHERS; i++) {
		struct watcher *w = &s->watchers[i];
		if (w->used && w->session == session && memcmp(w->id, r->id.data, 16) == 0) {
			watched(w, r);
		}
	}
	if (m && r->status->code == 0) {
		if (m->what == PEFTD__V1__REQUEST__WHAT_SUBMIT) {
			submitted(s, m, r);
		} else if (m->what == PEFTD__V1__REQUEST__WHAT_JOB_CONTROL) {
			controlled(s, m, r);
		}
	} else if (m && m->what == PEFTD__V1__REQUEST__WHAT_SUBMIT && m->acknowledged) {
		/* What was acknowledged once is not refused later; but for other bodies, on purpose. */
		assert_int_equal(r->status->code, STATUS_CONFLICT);
	}
	proto_free(r);
}

/* ---- what is on disk ----------------------------------------------------------------------- */

static bool may_follow(enum job_state from, enum job_state to)
{
	static const char *const follow[] = {
		[JOB_PENDING] = "HSX",
		[JOB_HELD] = "PX",
		[JOB_STARTING] = "RPKCFU",
		[JOB_RUNNING] = "UFKCP",
		[JOB_PREEMPTING] = "PCUF",
		[JOB_CANCELLING] = "X",
		[JOB_SUCCEEDED] = "",
		[JOB_FAILED] = "P",
		[JOB_CANCELLED] = "P",
	};
	return strchr(follow[from], "PHSRKCUFX"[to]) != NULL;
}

struct reading {
	struct sim *s;
	const struct store_job *rec;
	uint64_t seq, step, eval_step, checkpoint;
	enum job_state state;
	uint32_t attempt;
	uint8_t chain[FAKE_STATE];
	bool final;
};

static int read_event(void *ctx, uint64_t seq, const void *event, size_t len)
{
	struct reading *r = ctx;
	Peftd__V1__Event *e = proto_unpack(&peftd__v1__event__descriptor, event, len, len, NULL);
	assert_non_null(e);
	assert_int_equal(seq, r->seq + 1);
	assert_int_equal(e->seq, seq);
	r->seq = seq;
	switch (e->what_case) {
	case PEFTD__V1__EVENT__WHAT_STATE:
		if (seq > 1 && !may_follow(r->state, (enum job_state)e->state->state)) {
			fail_msg(
				"job %d: state %d after %d", (int)r->rec->id, (int)e->state->state, (int)r->state);
		}
		assert_true(e->state->attempt >= r->attempt);
		r->attempt = e->state->attempt;
		r->state = (enum job_state)e->state->state;
		break;
	case PEFTD__V1__EVENT__WHAT_METRICS: {
		uint64_t step = e->metrics->step;
		assert_int_equal(step, r->step + 1);
		fake_advance(r->chain, step);
		assert_true(e->metrics->loss == fake_loss(r->chain, step));
		r->step = step;
		break;
	}
	case PEFTD__V1__EVENT__WHAT_EVAL:
		assert_true(e->eval->step > r->eval_step);
		r->eval_step = e->eval->step;
		break;
	case PEFTD__V1__EVENT__WHAT_CHECKPOINT:
		assert_true(e->checkpoint->step >= r->checkpoint);
		assert_true(e->checkpoint->step <= r->step);
		r->checkpoint = e->checkpoint->step;
		r->final = r->final || e->checkpoint->final;
		break;
	default:
		break;
	}
	proto_free(e);
	return 0;
}

static void check_success(const struct reading *r, const struct known *k)
{
	const struct store_job *rec = r->rec;
	assert_true(r->final && rec->n_checkpoints > 0);
	const struct store_checkpoint *last = &rec->checkpoints[rec->n_checkpoints - 1];
	assert_true(last->final);
	if (k) {
		struct spec_storage spec;
		uint8_t digest[32];
		want_spec(&spec, &k->want);
		assert_int_equal(last->step, k->want.max_steps);
		fake_checkpoint_digest(&spec.spec, rec->dataset.content.digest, last->step, digest);
		assert_memory_equal(last->content.digest, digest, 32);
	}
}

struct census {
	struct sim *s;
	struct store_txn *t;
	unsigned with_trainer, known;
};

static int check_job(void *ctx, const struct store_job *rec)
{
	struct census *n = ctx;
	struct reading r = {.s = n->s, .rec = rec};
	const struct known *k = find_job(n->s, rec->id);
	uint64_t first;
	Peftd__V1__JobSpec *spec = proto_unpack(
		&peftd__v1__job_spec__descriptor, rec->spec.data, rec->spec.len, rec->spec.len, NULL);
	assert_non_null(spec);
	fake_chain(spec, rec->dataset.content.digest, 0, r.chain);
	proto_free(spec);
	assert_int_equal(
		store_event_each(n->t, rec->id, 0, ~0u, UINT32_MAX, read_event, &r, &first), 0);
	assert_int_equal(rec->last_seq, r.seq);
	assert_int_equal(rec->state, r.state);
	assert_int_equal(rec->last_step, r.step);
	assert_int_equal(rec->last_eval_step, r.eval_step);
	assert_true(rec->n_checkpoints <= 4);
	assert_true(rec->tries < 3 || rec->state == JOB_FAILED);
	n->with_trainer += rec->state == JOB_STARTING || rec->state == JOB_RUNNING ||
		rec->state == JOB_PREEMPTING || rec->state == JOB_CANCELLING;
	n->known += k != NULL;
	if (rec->state == JOB_SUCCEEDED) {
		check_success(&r, k);
	}
	/* The fake trainer has no other reason to fail what was admitted. */
	if (rec->state == JOB_FAILED && !strstr(rec->reason, "tries without progress")) {
		fail_msg("job %d: %s", (int)rec->id, rec->reason);
	}
	if (k && k->cancelled && !k->retried) {
		assert_true(rec->state == JOB_CANCELLED || rec->state == JOB_CANCELLING);
	}
	return 0;
}

static void check_store(struct sim *s)
{
	struct census n = {.s = s};
	assert_int_equal(store_begin(s->c.w.store, false, &n.t), 0);
	assert_int_equal(store_job_each(n.t, check_job, &n), 0);
	store_abort(n.t);
	assert_true(n.with_trainer <= 1);
	assert_int_equal(n.known, s->n_jobs); /* none that was acknowledged is missing */
}

/* ---- what happens -------------------------------------------------------------------------- */

static void new_sessions(struct sim *s)
{
	for (int i = 0; i < SESSIONS; i++) {
		s->sessions[i] = s->next_session++;
	}
}

/* After the front or all has gone: clients come back, and watchers go on from what they have seen.
 */
static void reconnect(struct sim *s)
{
	new_sessions(s);
	for (int i = 0; i < MAX_WATCHERS; i++) {
		struct watcher *w = &s->watchers[i];
		if (w->used) {
			w->session = some_session(s);
			id_new(&s->c, w->id);
			ask_watch(&s->c, w->session, w->id, w->job, w->seen, 1 + below(s, 20), true);
		}
	}
}

static void boot(struct sim *s)
{
	/* Now and then there is no room on the disk for a while. */
	bool full = below(s, 8) == 0;
	if (full) {
		setenv("PEFTD_STORE_RESERVE", "4611686018427387904", 1);
	}
	s->boots++;
	world_boot(&s->c.w);
	unsetenv("PEFTD_STORE_RESERVE");
	s->stopping = false;
	new_sessions(s);
	for (int i = 0; i < 40 && !s->c.w.ready; i++) {
		for (int k = 0; k < WORLD_CHILDREN; k++) {
			if (s->c.w.children[k].id && s->c.w.children[k].kind != CHILD_FRONT) {
				fake_work(&s->c.w.children[k].fake, 0);
			}
		}
		world_turn(&s->c.w, 10, CRASH_NOT);
	}
	reconnect(s);
}

static void send_made(struct sim *s, const struct made *m, uint64_t session)
{
	switch (m->what) {
	case PEFTD__V1__REQUEST__WHAT_SUBMIT:
		ask_submit(&s->c, session, 1000, m->id, &m->want);
		break;
	case PEFTD__V1__REQUEST__WHAT_JOB_CONTROL:
		ask_control(&s->c, session, 1000, m->id, m->job, m->action);
		break;
	case PEFTD__V1__REQUEST__WHAT_MODEL_ADD:
		ask_model_add(&s->c, session, m->id, m->name, "/models/x");
		break;
	case PEFTD__V1__REQUEST__WHAT_MODEL_REMOVE:
		ask_model_rm(&s->c, session, m->id, m->name);
		break;
	case PEFTD__V1__REQUEST__WHAT_DATASET_PUT: {
		const char *text = contents[m->job];
		ask_dataset_put(&s->c, session, 1000, m->id, m->name, text, strlen(text));
		break;
	}
	default:
		ask_dataset_rm(&s->c, session, 1000, m->id, m->name);
		break;
	}
}

static void make_request(struct sim *s)
{
	if (s->n_made == MAX_REQUESTS) {
		return;
	}
	struct made *m = &s->made[s->n_made];
	*m = (struct made){.job = 0};
	id_new(&s->c, m->id);
	unsigned kind = below(s, 20);
	if (kind < 7 && s->n_jobs + 8 < MAX_JOBS) {
		static const char *const priorities[] = {NULL, "low", "high"};
		m->what = PEFTD__V1__REQUEST__WHAT_SUBMIT;
		m->want = (struct want){
			.model = below(s, 8) ? "m" : "x",
			.dataset = below(s, 8) ? "d" : "y",
			.eval_dataset = below(s, 3) ? NULL : "d",
			.priority = priorities[below(s, 3)],
			.max_steps = 1 + below(s, MAX_STEPS),
			.save_steps = 1 + below(s, 5),
			.eval_steps = 1 + below(s, 4),
			.seed = 1 + below(s, 20),
			.hold = below(s, 8) == 0,
		};
	} else if (kind < 14 && s->n_jobs > 0) {
		m->what = PEFTD__V1__REQUEST__WHAT_JOB_CONTROL;
		m->job = s->jobs[below(s, (unsigned)s->n_jobs)].id;
		m->action = (enum control_action)below(s, 4);
		if (m->action == CONTROL_RETRY) {
			find_job(s, m->job)->retried = true;
		}
	} else {
		static const Peftd__V1__Request__WhatCase others[] = {PEFTD__V1__REQUEST__WHAT_MODEL_ADD,
			PEFTD__V1__REQUEST__WHAT_MODEL_REMOVE, PEFTD__V1__REQUEST__WHAT_DATASET_PUT,
			PEFTD__V1__REQUEST__WHAT_DATASET_REMOVE};
		m->what = others[below(s, 4)];
		bool model = m->what == others[0] || m->what == others[1];
		snprintf(m->name, sizeof(m->name), "%s", model ? "x" : "y");
		m->job = below(s, 3); /* which content */
	}
	s->n_made++;
	send_made(s, m, some_session(s));
}

static void ask_something(struct sim *s)
{
	uint8_t id[16];
	uint64_t session = some_session(s);
	uint64_t job = s->n_jobs ? s->jobs[below(s, (unsigned)s->n_jobs)].id : 1;
	const char *text = contents[below(s, 3)];
	id_new(&s->c, id);
	switch (below(s, 10)) {
	case 0:
		ask_status(&s->c, session, id);
		break;
	case 1:
		ask_list(&s->c, session, id);
		break;
	case 2:
		ask_show(&s->c, session, id, job);
		break;
	case 3:
		ask_upload_begin(&s->c, session, id, text, strlen(text));
		break;
	case 4:
		ask_chunk(&s->c, session, id, text, strlen(text), 0);
		break;
	case 5:
		ask_inspect(&s->c, session, id, "d", "m", below(s, 90));
		break;
	case 6:
		ask_fetch(&s->c, session, id, job, 0, below(s, 2));
		break;
	case 7:
		ask_read(&s->c, session, id, job, 1 + below(s, MAX_STEPS), below(s, 300000), below(s, 9));
		break;
	case 8:
		ask_eval(&s->c, session, id, "m", "d", below(s, 2) ? job : 0);
		break;
	default:
		ask_generate(&s->c, session, id, "m", below(s, 2) ? job : 0, below(s, 90));
		break;
	}
}

static void watch_something(struct sim *s)
{
	struct watcher *w = &s->watchers[below(s, MAX_WATCHERS)];
	if (w->used) {
		world_credit(&s->c.w, w->session, w->id, 1 + below(s, 10));
		return;
	}
	if (s->n_jobs == 0) {
		return;
	}
	*w = (struct watcher){
		.used = true, .job = s->jobs[below(s, (unsigned)s->n_jobs)].id, .session = some_session(s)};
	id_new(&s->c, w->id);
	ask_watch(&s->c, w->session, w->id, w->job, 0, 1 + below(s, 20), true);
}

static struct world_child *some_child(struct sim *s)
{
	struct world_child *c = &s->c.w.children[below(s, WORLD_CHILDREN)];
	return c->id ? c : NULL;
}

static void end_some_session(struct sim *s)
{
	unsigned i = below(s, SESSIONS);
	uint64_t old = s->sessions[i];
	world_session_end(&s->c.w, old);
	s->sessions[i] = s->next_session++;
	for (int k = 0; k < MAX_WATCHERS; k++) {
		struct watcher *w = &s->watchers[k];
		if (w->used && w->session == old) { /* its client comes back under another number */
			w->session = s->sessions[i];
			id_new(&s->c, w->id);
			ask_watch(&s->c, w->session, w->id, w->job, w->seen, 1 + below(s, 20), true);
		}
	}
}

/* The number of a task that this child had, or of none that ever was. */
static uint64_t old_task(struct sim *s, const struct fake *f)
{
	uint64_t old = f->n_seen ? f->seen_tasks[below(s, f->n_seen < 64 ? f->n_seen : 64)] : 0;
	for (int i = 0; i < FAKE_TASKS; i++) {
		if (f->tasks[i].task && f->tasks[i].task->task == old) {
			return 100000 + below(s, 9);
		}
	}
	return old;
}

static void misfortune(struct sim *s)
{
	struct world *w = &s->c.w;
	struct world_child *c = some_child(s);
	/* In every sixth world trainers hardly live. */
	if (s->seed % 6 == 0 && below(s, 2) && (c = world_child(w, CHILD_TRAINER))) {
		world_kill(w, c, SIGBUS);
		return;
	}
	switch (below(s, 12)) {
	case 0:
	case 1:
	case 2:
		if (c && c->kind != CHILD_FRONT) {
			world_kill(w, c, SIGKILL);
		}
		break;
	case 3:
		if (c && c->kind == CHILD_FRONT) {
			world_kill(w, c, SIGSEGV);
			new_sessions(s);
			world_turn(w, 10, CRASH_NOT);
			world_turn(w, 10, CRASH_NOT);
			reconnect(s);
		}
		break;
	case 4:
		world_turn(w, 1 + below(s, 20), CRASH_BEFORE_COMMIT);
		boot(s);
		break;
	case 5:
		world_turn(w, 1 + below(s, 20), CRASH_AFTER_COMMIT);
		boot(s);
		break;
	case 6:
		if (!s->stopping && below(s, 3) == 0) {
			s->stopping = true;
			world_shutdown(w);
		}
		break;
	case 7:
	case 8:
		if (c && c->kind == CHILD_TRAINER && c->fake.ready) {
			fake_late(&c->fake, old_task(s, &c->fake), below(s, 3));
		}
		break;
	case 9:
		end_some_session(s);
		break;
	default:
		w->mono += (int64_t)below(s, 15000) * 1000000;
		w->wall += (int64_t)below(s, 15000) * 1000000 - 5 * SECOND; /* which may go backwards */
		break;
	}
}

static void one_thing(struct sim *s)
{
	struct world *w = &s->c.w;
	unsigned what = below(s, 100);
	if (w->exited) {
		assert_int_equal(w->exit_status, 0);
		world_halt(w);
		boot(s);
	} else if (what < 45) {
		struct world_child *c = some_child(s);
		for (unsigned i = below(s, 6); c && c->kind != CHILD_FRONT && i > 0; i--) {
			fake_work(&c->fake, below(s, 8));
		}
	} else if (what < 80) {
		world_turn(w, 1 + below(s, 20), CRASH_NOT);
	} else if (what < 86) {
		make_request(s);
	} else if (what < 89) {
		ask_something(s);
	} else if (what < 92) {
		watch_something(s);
	} else if (what < 94 && s->n_made > 0) {
		struct made *m = &s->made[below(s, (unsigned)s->n_made)];
		struct made changed = *m;
		if (m->what == PEFTD__V1__REQUEST__WHAT_SUBMIT && m->acknowledged && below(s, 4) == 0) {
			changed.want.seed += 100; /* the same id for something else */
		}
		send_made(s, &changed, some_session(s));
	} else if (what >= (s->seed % 6 ? 96 : 94)) {
		misfortune(s);
	}
	if (below(s, 64) == 0 && w->core) {
		check_store(s);
	}
}

/* ---- and how it ends ----------------------------------------------------------------------- */

static void release(struct sim *s)
{
	for (size_t i = 0; i < s->n_jobs; i++) {
		if (state_of(&s->c, s->jobs[i].id) == JOB_HELD) {
			uint8_t id[16];
			id_new(&s->c, id);
			ask_control(&s->c, s->sessions[0], 1000, id, s->jobs[i].id, CONTROL_RELEASE);
		}
	}
}

static void let_it_end(struct sim *s)
{
	struct world *w = &s->c.w;
	if (s->stopping) {
		for (int i = 0; i < 40 && !w->exited; i++) {
			world_settle(w);
			w->mono += SECOND;
		}
		assert_true(w->exited);
	}
	world_halt(w);
	world_boot(w);
	new_sessions(s);
	world_settle(w);
	reconnect(s);
	release(s);
	for (int i = 0; i < 40; i++) {
		world_settle(w);
		for (int k = 0; k < MAX_WATCHERS; k++) {
			if (s->watchers[k].used) {
				world_credit(w, s->watchers[k].session, s->watchers[k].id, 50);
			}
		}
		w->mono += SECOND;
	}
	check_store(s);
	for (size_t i = 0; i < s->n_jobs; i++) {
		enum job_state state = state_of(&s->c, s->jobs[i].id);
		if (state != JOB_SUCCEEDED && state != JOB_CANCELLED && state != JOB_FAILED) {
			fail_msg("job %d is still in state %d", (int)s->jobs[i].id, (int)state);
		}
		s->ended[state - JOB_SUCCEEDED]++;
	}
	for (int k = 0; k < MAX_WATCHERS; k++) {
		assert_false(s->watchers[k].used); /* all have seen their job's end */
	}
	world_halt(w);
	struct errmsg err;
	struct buf report = {0};
	uint64_t faults;
	assert_int_equal(store_open(&w->store, w->dir, &err), 0);
	assert_int_equal(store_check(w->store, &report, &faults), 0);
	if (faults > 0) {
		fail_msg("%s", buf_cstr(&report));
	}
	buf_deinit(&report);
	store_close(w->store);
	w->store = NULL;
}

static void run_seed(struct sim *s, uint64_t seed)
{
	*s = (struct sim){.seed = seed, .random = seed, .running = true, .next_session = 100};
	client_init(&s->c);
	have_model(&s->c, "m");
	have_dataset(&s->c, "d", contents[0], strlen(contents[0]));
	have_upload(&s->c, contents[1], strlen(contents[1]));
	client_forget(&s->c);
	s->c.w.on_reply = on_reply;
	s->c.w.ctx = s;
	new_sessions(s);
	unsigned length = 200 + below(s, 1200);
	for (unsigned i = 0; i < length; i++) {
		one_thing(s);
	}
	let_it_end(s);
	client_deinit(&s->c);
	s->running = false;
}

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *v = getenv(name);
	return v ? strtoull(v, NULL, 10) : otherwise;
}

static void schedules(void **state)
{
	struct sim *s = *state;
	uint64_t first = number("PEFTD_SIM_SEED", 1), n = number("PEFTD_SIM_SEEDS", 200);
	uint64_t boots = 0, ended[3] = {0};
	for (uint64_t seed = first; seed < first + n; seed++) {
		run_seed(s, seed);
		boots += s->boots;
		for (int i = 0; i < 3; i++) {
			ended[i] += s->ended[i];
		}
	}
	print_message("# %d seeds from %d: %d restarts, jobs: %d succeeded, %d failed, %d cancelled\n",
		(int)n, (int)first, (int)boots, (int)ended[0], (int)ended[1], (int)ended[2]);
	/* A simulation in which nothing happens proves nothing. */
	assert_true(n < 50 || (ended[0] > n && ended[1] > 0 && ended[2] > n / 2 && boots > n));
}

static int setup(void **state)
{
	*state = calloc(1, sizeof(struct sim));
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	struct sim *s = *state;
	if (s->running) {
		fprintf(stderr, "# it was seed %llu: PEFTD_SIM_SEED=%llu PEFTD_SIM_SEEDS=1\n",
			(unsigned long long)s->seed, (unsigned long long)s->seed);
		client_deinit(&s->c);
	}
	free(s);
	return 0;
}

int main(void)
{
	log_init("test_core_sim", getenv("PEFTD_TEST_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(schedules, setup, teardown),
	};
	return cmocka_run_group_tests_name("core simulation", tests, NULL, NULL);
}
