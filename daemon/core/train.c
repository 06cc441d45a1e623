/*
 * A job on a trainer: how it starts, what the trainer tells of it, and all the ways in which it
 * ends.
 *
 * A trainer that resumes from a checkpoint repeats steps whose metrics have been recorded already,
 * with the same bits; they are passed over, so that a job's metrics are those of one uninterrupted
 * run.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/log.h"
#include "util/util.h"

static const int64_t STOP_PATIENCE = SECONDS(60);
static const int64_t FIRST_PAUSE = SECONDS(10);
static const int64_t LONGEST_PAUSE = SECONDS(600);

static uint64_t last_checkpoint(const struct job *j)
{
	size_t n = j->rec.n_checkpoints;
	return n ? j->rec.checkpoints[n - 1].step : 0;
}

static int copy_text(char **dst, const char *src)
{
	*dst = strdup(src);
	return *dst ? 0 : -ENOMEM;
}

static int build_spec(const struct job *j, struct task_spec **ret)
{
	const struct store_job *rec = &j->rec;
	struct task_spec *s = task_spec_new(TASK_TRAIN);
	if (!s) {
		return -ENOMEM;
	}
	int r = copy_text(&s->model_name, rec->model);
	r = r ? r : copy_text(&s->model_path, rec->model_path);
	s->has_model_digest = true;
	memcpy(s->model_digest, rec->model_digest, sizeof(s->model_digest));
	r = r ? r : store_job_data_copy(&s->dataset, &rec->dataset);
	if (r == 0 && rec->eval_dataset.name) {
		r = store_job_data_copy(&s->eval_dataset, &rec->eval_dataset);
	}
	r = r ? r : store_files_copy(&s->adapter, &rec->init_adapter);
	if (r == 0 && rec->n_checkpoints > 0) {
		const struct store_checkpoint *k = &rec->checkpoints[rec->n_checkpoints - 1];
		r = store_files_copy(&s->resume, &k->content);
		s->resume_step = k->step;
	}
	r = r ? r : packed_set(&s->spec, rec->spec.data, rec->spec.len);
	r = r ? r : packed_set(&s->plan, rec->plan.data, rec->plan.len);
	s->job = rec->id;
	s->attempt = rec->attempt;
	if (r < 0) {
		task_spec_unref(s);
		return r;
	}
	*ret = s;
	return 0;
}

int train_start(struct core *c, struct job *j)
{
	j->rec.attempt++;
	if (j->rec.started_wall_ns == 0) {
		j->rec.started_wall_ns = (uint64_t)c->wall;
	}
	j->start_step = j->rec.last_step;
	j->start_checkpoint = last_checkpoint(j);
	j->stop = STOP_NONE;
	free(j->stop_reason);
	j->stop_reason = NULL;

	struct task_spec *spec = NULL;
	int r = job_set_state(c, j, JOB_STARTING, NULL);
	r = r ? r : build_spec(j, &spec);
	if (r < 0) {
		return r;
	}
	r = task_start(c, &c->trainer, spec, &j->task);
	task_spec_unref(spec);
	if (r == 0) {
		j->task->job = j;
	}
	return r;
}

int train_stop(
	struct core *c, struct job *j, enum stop stop, const char *reason, bool checkpoint_first)
{
	char *copy = reason ? strdup(reason) : NULL;
	if (reason && !copy) {
		return -ENOMEM;
	}
	free(j->stop_reason);
	j->stop_reason = copy;
	j->stop = stop;
	j->task->kill_ns = c->mono + STOP_PATIENCE;
	int r = 0;
	if (stop != STOP_SHUTDOWN) { /* then the whole trainer is told */
		r = task_cancel(c, j->task, checkpoint_first);
	}
	enum job_state state = stop == STOP_CANCEL ? JOB_CANCELLING : JOB_PREEMPTING;
	return r || j->rec.state == state ? r : job_set_state(c, j, state, reason);
}

/* ---- what the trainer tells ---------------------------------------------------------------- */

static int started(struct core *c, struct job *j, const struct event *ev)
{
	if (ev->job.event.state != JOB_RUNNING || j->rec.state != JOB_STARTING) {
		return 0;
	}
	if (ev->job.arena) {
		j->rec.measured_arena = ev->job.arena;
	}
	if (ev->job.measured.arena) {
		j->rec.measured = ev->job.measured;
	}
	return job_set_state(c, j, JOB_RUNNING, NULL);
}

int train_event(struct core *c, struct task *t, struct event *ev)
{
	struct job *j = t->job;
	const struct job_event *e = &ev->job.event;
	if (ev->job.peak_rss > j->rec.measured_peak_rss) {
		j->rec.measured_peak_rss = ev->job.peak_rss;
		job_touch(c, j);
	}
	if (j->rec.state == JOB_CANCELLING) {
		return 0;
	}
	switch (e->kind) {
	case EVENT_STATE:
		return started(c, j, ev);
	case EVENT_METRICS:
		if (e->step <= j->rec.last_step) {
			return 0;
		}
		j->rec.last_step = e->step;
		j->rec.last_loss = e->loss;
		outcome_metrics(j, e);
		return job_append(c, j, e);
	case EVENT_EVAL:
		if (e->step <= j->rec.last_eval_step) {
			return 0;
		}
		j->rec.last_eval_step = e->step;
		outcome_eval(j, e);
		return job_append(c, j, e);
	case EVENT_LOG:
		return job_append(c, j, e);
	default:
		return 0; /* the core writes those itself */
	}
}

/* ---- how it ends --------------------------------------------------------------------------- */

static int hold(struct core *c, struct job *j, const char *reason)
{
	int r = job_set_state(c, j, JOB_PENDING, reason);
	return r ? r : job_set_state(c, j, JOB_HELD, reason);
}

/* It ended without having been asked to. */
static int failed_try(struct core *c, struct job *j, const char *why)
{
	bool progress = j->rec.last_step > j->start_step || last_checkpoint(j) > j->start_checkpoint;
	j->rec.tries = progress ? 0 : j->rec.tries + 1;
	job_touch(c, j);
	char reason[1024];
	if (j->rec.tries >= MAX_TRIES) {
		snprintf(reason, sizeof(reason), "%d tries without progress; the last time the trainer %s",
			MAX_TRIES, why);
		return job_set_state(c, j, JOB_FAILED, reason);
	}
	snprintf(reason, sizeof(reason), "the trainer %s; it goes on from %s", why,
		j->rec.n_checkpoints ? "its last checkpoint" : "the beginning");
	/* The first death costs nothing; who dies again without progress waits 10 s, 20 s, … */
	int64_t pause = 0;
	if (j->rec.tries > 1) {
		pause = min_i64(FIRST_PAUSE << (j->rec.tries - 2), LONGEST_PAUSE);
	}
	j->not_before_ns = c->mono + pause;
	return job_set_state(c, j, JOB_PENDING, reason);
}

/* The job is off the trainer, without a result of its own. */
static int leave(struct core *c, struct job *j, const char *why)
{
	enum stop stop = j->stop;
	j->stop = STOP_NONE;
	if (stop == STOP_CANCEL) {
		return job_set_state(c, j, JOB_CANCELLED, NULL);
	}
	if (job_has_final(&j->rec)) {
		return job_set_state(c, j, JOB_SUCCEEDED, NULL);
	}
	switch (stop) {
	case STOP_HOLD: {
		_cleanup_(freep) char *reason = steal_ptr(j->stop_reason);
		return hold(c, j, reason);
	}
	case STOP_SHUTDOWN:
		return job_set_state(c, j, JOB_PENDING, "the daemon was shut down");
	default:
		return failed_try(c, j, why);
	}
}

int train_lost(struct core *c, struct task *t, const char *why)
{
	struct job *j = t->job;
	task_end(c, t);
	return leave(c, j, why);
}

int train_result(struct core *c, struct task *t, const struct task_result *res)
{
	struct job *j = t->job;
	const char *text = res->text ? res->text : status_name(res->code);
	task_end(c, t);
	if (res->peak_rss > j->rec.measured_peak_rss) {
		j->rec.measured_peak_rss = res->peak_rss;
		job_touch(c, j);
	}
	if (res->inference.tokens > 0) {
		j->rec.inference = res->inference;
		job_touch(c, j);
	}
	if (j->stop == STOP_CANCEL) {
		return leave(c, j, text);
	}
	switch (res->code) {
	case STATUS_OK:
		if (!job_has_final(&j->rec)) {
			return job_set_state(c, j, JOB_FAILED, "the trainer ended it without a result");
		}
		return job_set_state(c, j, JOB_SUCCEEDED, NULL);
	case STATUS_DISK_FULL:
		j->stop = STOP_HOLD;
		free(j->stop_reason);
		j->stop_reason = NULL;
		char held[700];
		snprintf(held, sizeof(held), "%.600s; then: peftctl release %llu", text,
			(unsigned long long)j->rec.id);
		int r = copy_text(&j->stop_reason, held);
		return r ? r : leave(c, j, held);
	case STATUS_CANCELLED:
	case STATUS_UNAVAILABLE: {
		char why[600];
		snprintf(why, sizeof(why), "gave it up: %.500s", text);
		return leave(c, j, why);
	}
	default:
		j->stop = STOP_NONE;
		return job_set_state(c, j, JOB_FAILED, text);
	}
}
