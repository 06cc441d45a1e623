/* What children are doing, and the inputs they pull. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

static const int64_t INSPECT_PATIENCE = SECONDS(60);
static const int64_t MODEL_PATIENCE = SECONDS(600); /* reads all of a model's weights once */

struct task *task_find(struct core *c, uint64_t id)
{
	struct task *t;
	TAILQ_FOREACH (t, &c->tasks, entry) {
		if (t->spec->id == id) {
			return t;
		}
	}
	return NULL;
}

int task_start(struct core *c, struct child *child, struct task_spec *spec, struct task **ret)
{
	struct task *t = calloc(1, sizeof(*t));
	struct action *a = t ? core_act(c, ACT_TASK, child) : NULL;
	if (!a) {
		free(t);
		return -ENOMEM;
	}
	spec->id = c->next_task++;
	t->spec = task_spec_ref(spec);
	a->spec = task_spec_ref(spec);
	t->child = child;
	t->kill_ns = INT64_MAX;
	child->heard_ns = c->mono;
	TAILQ_INSERT_TAIL(&c->tasks, t, entry);
	*ret = t;
	return 0;
}

void task_end(struct core *c, struct task *t)
{
	if (t->job) {
		t->job->task = NULL;
	}
	if (t->work) {
		t->work->task = NULL;
	}
	TAILQ_REMOVE(&c->tasks, t, entry);
	staging_deinit(&t->staging);
	task_spec_unref(t->spec);
	free(t);
}

int task_cancel(struct core *c, struct task *t, bool checkpoint_first)
{
	struct action *a = core_act(c, ACT_TASK_CANCEL, t->child);
	if (!a) {
		return -ENOMEM;
	}
	a->task = t->spec->id;
	a->checkpoint_first = checkpoint_first;
	return 0;
}

static int pull(struct task *t, const struct event *ev)
{
	const struct store_files *f = task_spec_input(t->spec, ev->pull.input);
	if (!f || ev->pull.offset % CHUNK_SIZE != 0 || ev->pull.offset >= f->size) {
		return STATUS_INTERNAL;
	}
	struct pull *p = &t->pulls[ev->pull.input];
	uint64_t end = ev->pull.offset + (uint64_t)ev->pull.chunks * CHUNK_SIZE;
	end = end < f->size ? end : f->size;
	if (p->offset < p->end && p->end == ev->pull.offset) {
		p->end = end; /* more, while some of the former is still to come */
	} else {
		*p = (struct pull){ev->pull.offset, end};
	}
	return 0;
}

/* A positive result: no sound child says this. */
static int dispatch(struct core *c, struct task *t, struct event *ev)
{
	bool train = t->spec->kind == TASK_TRAIN;
	switch (ev->kind) {
	case EV_PULL:
		return pull(t, ev);
	case EV_JOB_EVENT:
		return train ? train_event(c, t, ev) : 0;
	case EV_CHECKPOINT_BEGIN:
		return train ? checkpoint_begin(c, t, ev) : STATUS_INTERNAL;
	case EV_CHECKPOINT_CHUNK:
		return train ? checkpoint_chunk(c, t, ev) : STATUS_INTERNAL;
	case EV_CHECKPOINT_END:
		return train ? checkpoint_end(c, t) : STATUS_INTERNAL;
	case EV_OUTPUT:
		return train ? STATUS_INTERNAL : work_output(c, t->work, ev);
	case EV_RESULT:
		return train ? train_result(c, t, &ev->result) : work_result(c, t->work, &ev->result);
	default:
		return 0;
	}
}

int task_message(struct core *c, struct child *child, struct event *ev)
{
	if (ev->kind == EV_STATS) {
		if (child->kind == CHILD_TRAINER) {
			trainer_stats_deinit(&c->stats);
			c->stats = ev->stats;
			ev->stats = (struct trainer_stats){0};
		}
		return 0;
	}
	struct task *t = task_find(c, ev->task);
	if (!t || t->child != child) {
		log_debug(
			"a message of task %llu, which is no more, is dropped", (unsigned long long)ev->task);
		return 0;
	}
	int r = dispatch(c, t, ev);
	if (r > 0) {
		log_warning("task %llu: its child does not keep to the protocol (message %d); it is ended",
			(unsigned long long)ev->task, (int)ev->kind);
		child_kill(c, child);
		r = 0;
	}
	return r;
}

int tasks_lost(struct core *c, struct child *child, const char *why)
{
	struct task *t, *next;
	for (t = TAILQ_FIRST(&c->tasks); t; t = next) {
		next = TAILQ_NEXT(t, entry);
		if (t->child != child) {
			continue;
		}
		int r;
		if (t->job) {
			r = train_lost(c, t, why);
		} else {
			struct work *w = t->work;
			child->work = NULL;
			task_end(c, t);
			r = work_lost(c, w, why);
		}
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

/* ---- inputs -------------------------------------------------------------------------------- */

static int send_chunk(struct core *c, struct task *t, unsigned input, size_t *room)
{
	struct pull *p = &t->pulls[input];
	const struct store_files *f = task_spec_input(t->spec, input);
	size_t len = (size_t)min_i64(CHUNK_SIZE, (int64_t)(p->end - p->offset));
	struct store_txn *txn;
	int r = core_read(c, &txn);
	if (r < 0) {
		return r;
	}
	_cleanup_(freep) uint8_t *data = malloc(len);
	if (!data) {
		return -ENOMEM;
	}
	r = store_blob_read(txn, f->digest, p->offset, data, len);
	if (r != 0) {
		/* Damaged content is the task's misfortune, not the daemon's end. */
		log_error("an input of task %llu cannot be read at byte %llu; `peftd --check` says more",
			(unsigned long long)t->spec->id, (unsigned long long)p->offset);
		t->damaged = true;
		p->end = p->offset;
		return r < 0 && r != -EIO ? r : 0;
	}
	struct action *a = core_act(c, ACT_CHUNK, t->child);
	if (!a) {
		return -ENOMEM;
	}
	a->task = t->spec->id;
	a->chunk.input = input;
	a->chunk.offset = p->offset;
	a->raw = steal_ptr(data);
	a->raw_len = len;
	p->offset += len;
	*room -= len < *room ? len : *room;
	return 0;
}

int task_pump(struct core *c, struct child *child, size_t room)
{
	bool more = true;
	while (more && room > 0) {
		more = false;
		struct task *t;
		TAILQ_FOREACH (t, &c->tasks, entry) {
			for (unsigned i = 0; t->child == child && i < TASK_MAX_INPUTS && room > 0; i++) {
				if (t->pulls[i].offset < t->pulls[i].end) {
					int r = send_chunk(c, t, i, &room);
					if (r < 0) {
						return r;
					}
					more = true;
				}
			}
		}
	}
	return 0;
}

bool task_pump_wants(const struct core *c, const struct child *child)
{
	const struct task *t;
	TAILQ_FOREACH (t, &c->tasks, entry) {
		for (unsigned i = 0; t->child == child && i < TASK_MAX_INPUTS; i++) {
			if (t->pulls[i].offset < t->pulls[i].end) {
				return true;
			}
		}
	}
	return false;
}

/* ---- patience ------------------------------------------------------------------------------ */

/* When an inspecting child that says nothing is given up. One that waits for a client's credit may
 * take its time. */
static int64_t silence_deadline(const struct task *t)
{
	const struct work *w = t->work;
	if (t->child->kind != CHILD_INSPECT || !w || w->outputs >= w->outputs_allowed) {
		return INT64_MAX;
	}
	bool reads_model = t->spec->kind == TASK_MODEL_INSPECT || t->spec->kind == TASK_MERGE_READ;
	return t->child->heard_ns + (reads_model ? MODEL_PATIENCE : INSPECT_PATIENCE);
}

static int settle_task(struct core *c, struct task *t)
{
	if (t->damaged) {
		t->damaged = false;
		if (t->job) {
			return train_stop(c, t->job, STOP_HOLD,
				"its data in the store is damaged; `peftd --check` says more", false);
		}
		return work_fail(c, t->work, STATUS_INTERNAL,
			"what it needs from the store is damaged; `peftd --check` says more");
	}
	if (c->mono >= silence_deadline(t)) {
		int64_t seconds = (c->mono - t->child->heard_ns) / SECONDS(1);
		return work_fail(
			c, t->work, STATUS_FAILED, "no answer after %lld s; given up", (long long)seconds);
	}
	if (c->mono >= t->kill_ns) {
		log_warning("task %llu did not end when asked to; its child is ended",
			(unsigned long long)t->spec->id);
		t->kill_ns = INT64_MAX;
		child_kill(c, t->child);
	}
	return 0;
}

int tasks_settle(struct core *c)
{
	struct task *t, *next;
	for (t = TAILQ_FIRST(&c->tasks); t; t = next) {
		next = TAILQ_NEXT(t, entry);
		int r = settle_task(c, t);
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

int64_t tasks_deadline(const struct core *c)
{
	int64_t at = INT64_MAX;
	const struct task *t;
	TAILQ_FOREACH (t, &c->tasks, entry) {
		if (t->damaged) {
			return c->mono;
		}
		at = min_i64(at, min_i64(t->kill_ns, silence_deadline(t)));
	}
	return at;
}
