/*
 * The life of the children.
 *
 * A front or trainer that dies is started again at once; only when it keeps dying right after its
 * start do the pauses grow, to some seconds. Before the daemon was ready for the first time, a
 * child that ends by itself means that it cannot work at all (an endpoint in use, no such device),
 * and so does the daemon.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

static const int64_t START_PATIENCE = SECONDS(120);
static const int64_t SETTLED = SECONDS(10); /* a child that lived this long was sound */
static const int64_t LONGEST_PAUSE = SECONDS(5);
static const int64_t STOP_PATIENCE = SECONDS(25); /* of the 30 s that an orderly end may take */
static const int64_t FRONT_PATIENCE = SECONDS(2);

static const char *child_name(const struct child *child)
{
	static const char *const names[] = {"peftd-front", "peftd-trainer", "an inspecting child"};
	return names[child->kind];
}

struct child *child_find(struct core *c, uint64_t id)
{
	if (id == 0) {
		return NULL;
	}
	if (c->front.id == id) {
		return &c->front;
	}
	if (c->trainer.id == id) {
		return &c->trainer;
	}
	for (int i = 0; i < MAX_INSPECT; i++) {
		if (c->inspects[i].id == id) {
			return &c->inspects[i];
		}
	}
	return NULL;
}

int child_start(struct core *c, struct child *child, enum child_kind kind)
{
	child->id = c->next_child++;
	child->kind = kind;
	child->state = CHILD_STARTING;
	child->started_ns = child->heard_ns = c->mono;
	child->kill_ns = c->mono + START_PATIENCE;
	return core_act(c, ACT_SPAWN, child) && core_act(c, ACT_CONFIG, child) ? 0 : -ENOMEM;
}

void child_kill(struct core *c, struct child *child)
{
	if (child->state == CHILD_DOWN) {
		return;
	}
	child->state = CHILD_ENDING;
	child->kill_ns = INT64_MAX;
	/* Without memory for the action it dies with the core, which ends for lack of memory anyway. */
	core_act(c, ACT_KILL, child);
}

static int version_differs(struct core *c, const struct child *child, uint32_t version)
{
	return core_exit(c, 1,
		"%s speaks version %u of the link, this peftd version %d: install them together",
		child_name(child), version, LINK_VERSION);
}

static int child_ready(struct core *c, struct child *child, struct event *ev)
{
	if (child->state != CHILD_STARTING) {
		return 0;
	}
	bool front = ev->kind == EV_FRONT_READY;
	uint32_t version = front ? ev->version : ev->trainer.version;
	if (front != (child->kind == CHILD_FRONT)) {
		child_kill(c, child);
		return 0;
	}
	if (version != LINK_VERSION) {
		return version_differs(c, child, version);
	}
	child->state = CHILD_READY;
	child->kill_ns = INT64_MAX;
	child->heard_ns = c->mono;
	if (child->kind == CHILD_TRAINER) {
		trainer_facts_deinit(&c->facts);
		c->facts = ev->trainer.facts;
		ev->trainer.facts = (struct trainer_facts){0};
		c->have_facts = true;
		log_info("trainer ready: %s, %u threads, %.1f GiB, %.0f GFLOP/s in f32 and %.0f in bf16",
			c->facts.device ? c->facts.device : "?", c->facts.threads,
			(double)c->facts.memory_total / (1 << 30), c->facts.gflops_f32, c->facts.gflops_bf16);
	}
	return child->kind == CHILD_INSPECT ? work_ready(c, child) : 0;
}

static void describe_exit(const struct event *ev, char *out, size_t cap)
{
	if (ev->exit.code < 0) {
		snprintf(out, cap, "could not be started: %s", ev->exit.text);
	} else if (ev->exit.signalled) {
		snprintf(out, cap, "was killed by signal %d (%s)", ev->exit.code, strsignal(ev->exit.code));
	} else {
		snprintf(out, cap, "ended with status %d", ev->exit.code);
	}
}

/* Plans the next start of a front or trainer that has died. */
static int plan_restart(
	struct core *c, struct child *child, const struct event *ev, const char *how)
{
	child->failures = c->mono - child->started_ns < SETTLED ? child->failures + 1 : 0;
	if (!c->announced && (!ev->exit.signalled || child->failures >= NEVER_STARTED)) {
		return core_exit(c, 1, "%s %s before it was ready", child_name(child), how);
	}
	int64_t pause = 0;
	if (child->failures > 1) {
		unsigned doublings = child->failures - 2 < 10 ? child->failures - 2 : 10;
		pause = min_i64(MILLISECONDS(100) << doublings, LONGEST_PAUSE);
	}
	child->restart_ns = c->mono + pause;
	return 0;
}

static int child_exit(struct core *c, struct child *child, const struct event *ev)
{
	char how[400];
	bool expected = child->state == CHILD_ENDING;
	describe_exit(ev, how, sizeof(how));
	if (expected) {
		log_debug("%s %s", child_name(child), how);
	} else {
		log_warning("%s %s", child_name(child), how);
	}
	int r = tasks_lost(c, child, how);
	child->state = CHILD_DOWN;
	child->id = 0;
	switch (child->kind) {
	case CHILD_FRONT:
		streams_session_end(c, 0, true);
		works_session_end(c, 0, true);
		holds_session_end(c, 0, true);
		break;
	case CHILD_TRAINER:
		trainer_stats_deinit(&c->stats);
		break;
	case CHILD_INSPECT:
		if (child->work && r == 0) {
			struct work *w = child->work;
			child->work = NULL;
			w->slot = NULL;
			r = work_lost(c, w, how);
		}
		return r;
	}
	return r || c->stopping ? r : plan_restart(c, child, ev, how);
}

int children_event(struct core *c, struct event *ev)
{
	struct child *child = child_find(c, ev->child);
	if (!child) {
		return 0;
	}
	switch (ev->kind) {
	case EV_CHILD_EXIT:
		return child_exit(c, child, ev);
	case EV_CHILD_BROKEN:
		if (child->state != CHILD_ENDING) {
			log_warning("%s: %s; it is ended", child_name(child), ev->exit.text);
			child_kill(c, child);
		}
		return 0;
	default:
		return child_ready(c, child, ev);
	}
}

/* Asks a child to end by itself, with some patience. */
static int child_stop(struct core *c, struct child *child, int64_t patience)
{
	child->state = CHILD_ENDING;
	child->kill_ns = c->mono + patience;
	struct action *a = core_act(c, ACT_STOP, child);
	if (!a) {
		return -ENOMEM;
	}
	a->grace_ms = (uint32_t)(patience / 1000000) * 4 / 5;
	return 0;
}

int child_dismiss(struct core *c, struct child *child)
{
	return child_stop(c, child, SECONDS(2));
}

int children_shutdown(struct core *c)
{
	if (c->stopping) {
		return 0;
	}
	log_info("shutting down");
	c->stopping = true;
	int r = works_shutdown(c);
	for (int i = 0; i < MAX_INSPECT; i++) {
		child_kill(c, &c->inspects[i]);
	}
	for (size_t i = 0; i < c->n_jobs && r == 0; i++) {
		struct job *j = c->jobs[i];
		if (j->task && j->stop == STOP_NONE) {
			r = train_stop(c, j, STOP_SHUTDOWN, NULL, true);
		}
	}
	if (r < 0 || c->trainer.state == CHILD_DOWN) {
		return r;
	}
	if (c->trainer.state != CHILD_READY) {
		child_kill(c, &c->trainer);
		return 0;
	}
	return child_stop(c, &c->trainer, STOP_PATIENCE);
}

static bool all_workers_down(const struct core *c)
{
	for (int i = 0; i < MAX_INSPECT; i++) {
		if (c->inspects[i].state != CHILD_DOWN) {
			return false;
		}
	}
	return c->trainer.state == CHILD_DOWN;
}

static int settle_end(struct core *c)
{
	if (!all_workers_down(c)) {
		return 0;
	}
	if (!c->front_stopped) {
		c->front_stopped = true;
		int r = streams_shutdown(c);
		r = r ? r : holds_shutdown(c);
		if (r < 0) {
			return r;
		}
		if (c->front.state == CHILD_READY) {
			return child_stop(c, &c->front, FRONT_PATIENCE);
		}
		child_kill(c, &c->front);
	}
	return c->front.state == CHILD_DOWN ? core_exit(c, 0, NULL) : 0;
}

static void kill_overdue(struct core *c, struct child *child)
{
	if (child->state != CHILD_DOWN && c->mono >= child->kill_ns) {
		log_warning("%s took too long to %s; it is ended", child_name(child),
			child->state == CHILD_STARTING ? "start" : "end");
		child_kill(c, child);
	}
}

static int restart_due(struct core *c, struct child *child, enum child_kind kind)
{
	if (child->state == CHILD_DOWN && c->mono >= child->restart_ns) {
		return child_start(c, child, kind);
	}
	return 0;
}

int children_settle(struct core *c)
{
	if (c->exiting) {
		return 0;
	}
	kill_overdue(c, &c->front);
	kill_overdue(c, &c->trainer);
	for (int i = 0; i < MAX_INSPECT; i++) {
		kill_overdue(c, &c->inspects[i]);
	}
	if (c->stopping) {
		return settle_end(c);
	}
	int r = restart_due(c, &c->front, CHILD_FRONT);
	r = r ? r : restart_due(c, &c->trainer, CHILD_TRAINER);
	if (r == 0 && !c->announced && c->front.state == CHILD_READY &&
		c->trainer.state == CHILD_READY) {
		c->announced = true;
		return core_act(c, ACT_READY, NULL) ? 0 : -ENOMEM;
	}
	return r;
}

int64_t children_deadline(const struct core *c)
{
	const struct child *const all[] = {&c->front, &c->trainer, &c->inspects[0], &c->inspects[1]};
	_Static_assert(MAX_INSPECT == 2, "all of them are listed here");
	int64_t t = INT64_MAX;
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		if (all[i]->state != CHILD_DOWN) {
			t = min_i64(t, all[i]->kill_ns);
		} else if (i < 2 && !c->stopping) {
			t = min_i64(t, all[i]->restart_ns);
		}
	}
	return t;
}
