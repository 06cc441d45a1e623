/* Requests that take a child to answer. */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

static void work_free(struct core *c, struct work *w)
{
	TAILQ_REMOVE(&c->works, w, entry);
	c->n_works--;
	request_deinit(&w->req);
	free(w->sessions);
	task_spec_unref(w->spec);
	drafts_deinit(&w->drafts);
	free(w);
}

int work_add(
	struct core *c, struct request *req, struct task_spec *spec, bool on_trainer, struct work **ret)
{
	const char *why = NULL;
	if (c->stopping) {
		why = "the daemon is shutting down";
	} else if (c->n_works >= MAX_WORKS) {
		why = "too many requests are waiting; try again later";
	}
	if (why) {
		task_spec_unref(spec);
		int r = answer_status(c, req->session, req->id, STATUS_UNAVAILABLE, "%s", why);
		return r ? r : 1;
	}
	struct work *w = calloc(1, sizeof(*w));
	if (!w || sessions_add(&w->sessions, &w->n_sessions, req->session) < 0) {
		free(w);
		task_spec_unref(spec);
		return -ENOMEM;
	}
	w->req = *req;
	*req = (struct request){0};
	w->spec = spec;
	w->on_trainer = on_trainer;
	w->outputs_allowed = FIRST_OUTPUTS;
	TAILQ_INSERT_TAIL(&c->works, w, entry);
	c->n_works++;
	*ret = w;
	return 0;
}

struct work *work_find(struct core *c, uint32_t uid, const uint8_t id[16])
{
	struct work *w;
	TAILQ_FOREACH (w, &c->works, entry) {
		if (w->req.uid == uid && memcmp(w->req.id, id, 16) == 0 && request_changes(&w->req)) {
			return w;
		}
	}
	return NULL;
}

struct work *work_of_session(struct core *c, uint64_t session, const uint8_t id[16])
{
	struct work *w;
	TAILQ_FOREACH (w, &c->works, entry) {
		for (size_t i = 0; i < w->n_sessions; i++) {
			if (w->sessions[i] == session && memcmp(w->req.id, id, 16) == 0) {
				return w;
			}
		}
	}
	return NULL;
}

/* Lets the child go that is at work on it, or was to be. */
static int release_child(struct core *c, struct work *w)
{
	int r = 0;
	struct child *child = w->slot;
	if (w->task) {
		if (w->task->child->kind == CHILD_INSPECT) {
			child = w->task->child;
		} else {
			r = task_cancel(c, w->task, false);
		}
		task_end(c, w->task);
	}
	if (child) {
		child->work = NULL;
		child_kill(c, child);
	}
	w->slot = NULL;
	return r;
}

void work_drop(struct core *c, struct work *w)
{
	release_child(c, w);
	work_free(c, w);
}

int work_answer(struct core *c, struct work *w, struct packed *reply)
{
	int r = request_changes(&w->req) ? answer_kept(c, &w->req, w->sessions, w->n_sessions, reply)
									 : answer_sessions(c, w->sessions, w->n_sessions, reply);
	int k = release_child(c, w);
	work_free(c, w);
	return r ? r : k;
}

int work_fail(struct core *c, struct work *w, int code, const char *fmt, ...)
{
	char text[8192];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* What failed has changed nothing, so it is not kept: made again, the request is tried again.
	 */
	struct packed reply;
	int r = reply_status(&reply, w->req.id, code, text);
	r = r ? r : answer_sessions(c, w->sessions, w->n_sessions, &reply);
	int k = release_child(c, w);
	work_free(c, w);
	return r ? r : k;
}

/* ---- handing works to children ------------------------------------------------------------- */

static int give_credit(struct core *c, struct work *w, uint64_t outputs)
{
	struct action *a = core_act(c, ACT_OUTPUT_CREDIT, w->task->child);
	if (!a) {
		return -ENOMEM;
	}
	a->task = w->spec->id;
	a->credit = outputs < UINT32_MAX ? (uint32_t)outputs : UINT32_MAX;
	return 0;
}

static int hand_over(struct core *c, struct work *w, struct child *child)
{
	int r = task_start(c, child, w->spec, &w->task);
	if (r < 0) {
		return r;
	}
	w->task->work = w;
	w->slot = NULL;
	enum task_kind k = w->spec->kind;
	bool in_parts = k == TASK_GENERATE || k == TASK_DATASET_INSPECT || k == TASK_MERGE_READ;
	return in_parts ? give_credit(c, w, w->outputs_allowed) : 0;
}

int work_ready(struct core *c, struct child *child)
{
	if (!child->work) {
		child_kill(c, child);
		return 0;
	}
	return hand_over(c, child->work, child);
}

static struct child *free_slot(struct core *c)
{
	for (int i = 0; i < MAX_INSPECT; i++) {
		if (c->inspects[i].state == CHILD_DOWN) {
			return &c->inspects[i];
		}
	}
	return NULL;
}

int works_settle(struct core *c)
{
	unsigned on_trainer = 0;
	bool merging = false; /* a slow reader of a merged model holds one inspecting child, not all */
	struct work *w, *next;
	TAILQ_FOREACH (w, &c->works, entry) {
		on_trainer += w->on_trainer && w->task;
		merging |= w->spec->kind == TASK_MERGE_READ && (w->task || w->slot);
	}
	for (w = TAILQ_FIRST(&c->works); w; w = next) {
		int r = 0;
		next = TAILQ_NEXT(w, entry);
		if (c->stopping || c->exiting || w->task || w->slot) {
			continue;
		}
		if (!w->on_trainer) {
			bool merge = w->spec->kind == TASK_MERGE_READ;
			struct child *slot = merge && merging ? NULL : free_slot(c);
			if (slot) {
				merging |= merge;
				r = child_start(c, slot, CHILD_INSPECT);
				slot->work = w;
				w->slot = slot;
			}
		} else if (c->trainer.state == CHILD_READY && on_trainer < MAX_TRAINER_WORKS) {
			on_trainer++;
			r = hand_over(c, w, &c->trainer);
		} else if (c->trainer.state == CHILD_DOWN && c->trainer.failures >= 3) {
			r = work_fail(
				c, w, STATUS_UNAVAILABLE, "the trainer does not stay up; try again later");
		}
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

/* ---- what children say of them ------------------------------------------------------------- */

int work_output(struct core *c, struct work *w, struct event *ev)
{
	static const enum task_kind of[] = {
		[OUTPUT_INSPECT_ROW] = TASK_DATASET_INSPECT,
		[OUTPUT_GENERATE] = TASK_GENERATE,
		[OUTPUT_MERGED] = TASK_MERGE_READ,
	};
	if (w->spec->kind != of[ev->output.kind]) {
		return STATUS_INTERNAL;
	}
	w->outputs++;
	if (ev->output.kind == OUTPUT_MERGED) {
		return merge_output(c, w, ev);
	}
	struct packed reply;
	int r = reply_output(&reply, w->req.id, ev->output.kind, &ev->output.packed);
	return r ? r : answer_sessions(c, w->sessions, w->n_sessions, &reply);
}

static bool answers(const struct work *w, const struct task_result *r)
{
	static const int wanted[] = {
		[TASK_PLAN] = ANSWER_PLAN,
		[TASK_EVAL] = ANSWER_EVAL,
		[TASK_GENERATE] = ANSWER_GENERATE,
		[TASK_MODEL_INSPECT] = ANSWER_MODEL,
		[TASK_DATASET_CHECK] = ANSWER_DATASET,
		[TASK_DATASET_INSPECT] = ANSWER_INSPECT,
		[TASK_MERGE] = ANSWER_MERGE,
		[TASK_MERGE_READ] = ANSWER_NONE,
	};
	return wanted[w->spec->kind] == (int)r->answer;
}

int work_result(struct core *c, struct work *w, struct task_result *res)
{
	struct child *child = w->task->child;
	task_end(c, w->task);
	if (child->kind == CHILD_INSPECT) {
		child->work = NULL;
		int r = child_dismiss(c, child);
		if (r < 0) {
			return r;
		}
	}
	const char *variant = submit_variant(w);
	if (res->code != STATUS_OK && variant) {
		return work_fail(
			c, w, res->code, "%s: %s", variant, res->text ? res->text : status_name(res->code));
	}
	if (res->code != STATUS_OK) {
		return work_fail(c, w, res->code, "%s", res->text ? res->text : status_name(res->code));
	}
	if (!answers(w, res)) {
		log_error("a task of kind %d was answered with %d", (int)w->spec->kind, (int)res->answer);
		return work_fail(c, w, STATUS_INTERNAL, "the answer was not to the question");
	}
	switch (w->req.kind) {
	case REQUEST_MODEL_ADD:
		return model_result(c, w, res);
	case REQUEST_DATASET_PUT:
		return dataset_result(c, w, res);
	case REQUEST_SUBMIT:
		return submit_result(c, w, res);
	default: {
		struct packed reply;
		int r = reply_result(&reply, w->req.id, res, w->req.name);
		return r ? r : work_answer(c, w, &reply);
	}
	}
}

int work_lost(struct core *c, struct work *w, const char *why)
{
	w->deaths++;
	if (w->deaths > 1 || w->outputs > 0 || c->stopping) {
		const char *who = w->on_trainer ? "the trainer" : "the process that was to answer";
		return work_fail(
			c, w, w->on_trainer ? STATUS_UNAVAILABLE : STATUS_FAILED, "%s %s", who, why);
	}
	return 0; /* it is handed to the next child */
}

/* ---- clients ------------------------------------------------------------------------------- */

void works_session_end(struct core *c, uint64_t session, bool all)
{
	struct work *w, *next;
	for (w = TAILQ_FIRST(&c->works); w; w = next) {
		next = TAILQ_NEXT(w, entry);
		if (all) {
			w->n_sessions = 0;
		} else {
			sessions_drop(w->sessions, &w->n_sessions, session);
		}
		/* What changes something goes on: its answer waits for the client in the store. */
		if (w->n_sessions == 0 && !request_changes(&w->req)) {
			work_drop(c, w);
		}
	}
}

bool works_stream_end(struct core *c, uint64_t session, const uint8_t id[16])
{
	struct work *w = work_of_session(c, session, id);
	if (!w) {
		return false;
	}
	if (sessions_drop(w->sessions, &w->n_sessions, session) && !request_changes(&w->req)) {
		work_drop(c, w);
	}
	return true;
}

int works_credit(struct core *c, uint64_t session, const uint8_t id[16], uint32_t credit)
{
	struct work *w = work_of_session(c, session, id);
	if (!w || credit == 0) {
		return 0;
	}
	w->outputs_allowed += credit;
	if (!w->task) {
		return 0;
	}
	w->task->child->heard_ns = c->mono; /* its silence may have been ours */
	return give_credit(c, w, credit);
}

int works_shutdown(struct core *c)
{
	struct work *w;
	while ((w = TAILQ_FIRST(&c->works))) {
		int r = work_fail(c, w, STATUS_UNAVAILABLE, "the daemon is shutting down; try again");
		if (r < 0) {
			return r;
		}
	}
	return 0;
}
