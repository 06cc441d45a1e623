/* Replies about jobs. */

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "daemon/core/convert-internal.h"
#include "util/util.h"

static void init_reply(Peftd__V1__Reply *m, Peftd__V1__Status *status, const uint8_t *id, bool more)
{
	*m = (Peftd__V1__Reply)PEFTD__V1__REPLY__INIT;
	*status = (Peftd__V1__Status)PEFTD__V1__STATUS__INIT;
	m->id = bytes_of(id, REQUEST_ID_SIZE);
	m->status = status;
	if (more) {
		set_value(m, more, true);
	}
}

static void build_checkpoints(struct scratch *s, const struct store_job *j, Peftd__V1__Job *m)
{
	m->n_checkpoints = 0;
	m->checkpoints = scratch_alloc(s, j->n_checkpoints, sizeof(*m->checkpoints));
	for (size_t i = 0; m->checkpoints && i < j->n_checkpoints; i++) {
		const struct store_checkpoint *in = &j->checkpoints[i];
		Peftd__V1__Checkpoint *c =
			scratch_message(s, Peftd__V1__Checkpoint, PEFTD__V1__CHECKPOINT__INIT);
		if (!c) {
			return;
		}
		c->step = in->step;
		c->blob = build_blob(s, &in->content);
		if (!isnan(in->eval_loss)) {
			set_value(c, eval_loss, in->eval_loss);
		}
		set_value(c, wall_ns, in->wall_ns);
		set_value(c, final, in->final);
		set_value(c, best, in->best);
		m->checkpoints[m->n_checkpoints++] = c;
	}
}

static void build_outcome(const struct store_job *j, Peftd__V1__Outcome *o)
{
	const struct store_outcome *in = &j->outcome;
	set_value(o, steps, in->steps);
	set_value(o, tokens, in->tokens);
	set_value(o, seconds, in->seconds);
	if (j->last_step > 0) {
		set_value(o, train_loss, j->last_loss);
	}
	if (in->step_seconds_median > 0) {
		set_value(o, step_seconds_median, in->step_seconds_median);
	}
	if (in->best_eval_step > 0) {
		set_value(o, eval_loss, in->eval_loss);
		set_value(o, best_eval_loss, in->best_eval_loss);
		set_value(o, best_eval_step, in->best_eval_step);
	}
}

static void build_measured(const struct store_measured *in, Peftd__V1__Measured *m)
{
	set_value(m, base_weights, in->base_weights);
	set_value(m, trainable_weights, in->trainable_weights);
	set_value(m, optimizer_states, in->optimizer_states);
	set_value(m, gradients, in->gradients);
	set_value(m, activations, in->activations);
	set_value(m, temporary, in->temporary);
	set_value(m, arena, in->arena);
}

static void build_inference(const struct store_inference *in, Peftd__V1__InferenceTimes *m)
{
	set_value(m, tokens, in->tokens);
	set_value(m, passes, in->passes);
	set_value(m, base_seconds, in->base);
	set_value(m, unmerged_seconds, in->unmerged);
	if (in->merged > 0) {
		set_value(m, merged_seconds, in->merged);
	}
}

/* What is known of it; a job that was stored before these were recorded has less. */
static void build_tradeoffs(struct scratch *s, const struct store_job *j, Peftd__V1__Job *m)
{
	if (j->outcome.steps > 0) {
		m->outcome = scratch_message(s, Peftd__V1__Outcome, PEFTD__V1__OUTCOME__INIT);
		if (m->outcome) {
			build_outcome(j, m->outcome);
		}
	}
	if (j->measured.arena > 0) {
		m->measured = scratch_message(s, Peftd__V1__Measured, PEFTD__V1__MEASURED__INIT);
		if (m->measured) {
			build_measured(&j->measured, m->measured);
		}
	}
	if (j->inference.tokens > 0) {
		m->inference = scratch_message(s, Peftd__V1__InferenceTimes,
			PEFTD__V1__INFERENCE_TIMES__INIT);
		if (m->inference) {
			build_inference(&j->inference, m->inference);
		}
	}
	if (j->sweep > 0) {
		set_value(m, sweep, j->sweep);
		set_value(m, sweep_size, j->sweep_size);
		set_text(m, variant, j->variant);
	}
}

static Peftd__V1__Job *build_job(
	struct scratch *s, const struct store_job *j, uint32_t position, bool brief)
{
	Peftd__V1__Job *m = scratch_message(s, Peftd__V1__Job, PEFTD__V1__JOB__INIT);
	char *owner = scratch_alloc(s, 1, 16);
	if (!m || !owner) {
		return NULL;
	}
	snprintf(owner, 16, "%u", j->owner_uid);
	m->id = j->id;
	set_text(m, name, j->name);
	set_text(m, owner, owner);
	set_value(m, state, (Peftd__V1__JobState)j->state);
	set_text(m, reason, j->reason);
	set_value(m, submitted_wall_ns, j->submitted_wall_ns);
	if (j->started_wall_ns) {
		set_value(m, started_wall_ns, j->started_wall_ns);
	}
	if (j->ended_wall_ns) {
		set_value(m, ended_wall_ns, j->ended_wall_ns);
	}
	set_value(m, attempt, j->attempt);
	set_value(m, step, j->last_step);
	set_value(m, steps, j->steps);
	if (j->last_step > 0) {
		set_value(m, loss, j->last_loss);
	}
	set_value(m, last_seq, j->last_seq);
	if (j->measured_arena) {
		set_value(m, measured_arena, j->measured_arena);
	}
	if (j->measured_peak_rss) {
		set_value(m, measured_peak_rss, j->measured_peak_rss);
	}
	if (position) {
		set_value(m, queue_position, position);
	}
	build_tradeoffs(s, j, m);
	if (!brief) {
		m->spec = scratch_unpack(s, &peftd__v1__job_spec__descriptor, &j->spec);
		m->plan = scratch_unpack(s, &peftd__v1__plan__descriptor, &j->plan);
		build_checkpoints(s, j, m);
	}
	return m;
}

int convert_job(struct packed *ret, const struct store_job *j, uint32_t position, bool brief)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Job *m = build_job(&s, j, position, brief);
	return scratch_pack(&s, m, ret);
}

int reply_job(struct packed *ret, const uint8_t *id, const struct store_job *j, uint32_t position)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Reply m;
	Peftd__V1__Status status;
	init_reply(&m, &status, id, false);
	m.what_case = PEFTD__V1__REPLY__WHAT_JOB;
	m.job = build_job(&s, j, position, false);
	return scratch_pack(&s, &m, ret);
}

int reply_jobs(
	struct packed *ret, const uint8_t *id, const struct packed *jobs, size_t n, bool more)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Reply m;
	Peftd__V1__Status status;
	Peftd__V1__JobListReply list = PEFTD__V1__JOB_LIST_REPLY__INIT;
	init_reply(&m, &status, id, more);
	list.jobs = scratch_alloc(&s, n, sizeof(*list.jobs));
	for (size_t i = 0; list.jobs && i < n; i++) {
		list.jobs[list.n_jobs++] = scratch_unpack(&s, &peftd__v1__job__descriptor, &jobs[i]);
	}
	m.what_case = PEFTD__V1__REPLY__WHAT_JOB_LIST;
	m.job_list = &list;
	return scratch_pack(&s, &m, ret);
}

int reply_submit(
	struct packed *ret, const uint8_t *id, uint64_t job, const struct packed *plan, int state)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Reply m;
	Peftd__V1__Status status;
	Peftd__V1__SubmitReply submit = PEFTD__V1__SUBMIT_REPLY__INIT;
	init_reply(&m, &status, id, false);
	if (job) {
		set_value(&submit, job, job);
	}
	if (state >= 0) {
		set_value(&submit, state, (Peftd__V1__JobState)state);
	}
	submit.plan = scratch_unpack(&s, &peftd__v1__plan__descriptor, plan);
	m.what_case = PEFTD__V1__REPLY__WHAT_SUBMIT;
	m.submit = &submit;
	return scratch_pack(&s, &m, ret);
}

int reply_sweep(struct packed *ret, const uint8_t *id, uint64_t sweep, const struct packed *plans,
	size_t n, int state)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Reply m;
	Peftd__V1__Status status;
	Peftd__V1__SweepReply reply = PEFTD__V1__SWEEP_REPLY__INIT;
	init_reply(&m, &status, id, false);
	if (sweep) {
		set_value(&reply, sweep, sweep);
	}
	if (state >= 0) {
		set_value(&reply, state, (Peftd__V1__JobState)state);
	}
	set_value(&reply, size, (uint32_t)n);
	reply.plans = scratch_alloc(&s, n, sizeof(*reply.plans));
	for (size_t i = 0; reply.plans && i < n; i++) {
		reply.plans[reply.n_plans++] = scratch_unpack(&s, &peftd__v1__plan__descriptor, &plans[i]);
	}
	m.what_case = PEFTD__V1__REPLY__WHAT_SWEEP;
	m.sweep = &reply;
	return scratch_pack(&s, &m, ret);
}

int reply_watch(struct packed *ret, const uint8_t *id, const struct packed *events, size_t n,
	uint64_t last_seq, const struct store_job *job, uint32_t position, bool more)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Reply m;
	Peftd__V1__Status status;
	Peftd__V1__WatchReply watch = PEFTD__V1__WATCH_REPLY__INIT;
	init_reply(&m, &status, id, more);
	watch.events = scratch_alloc(&s, n, sizeof(*watch.events));
	for (size_t i = 0; watch.events && i < n; i++) {
		watch.events[watch.n_events++] =
			scratch_unpack(&s, &peftd__v1__event__descriptor, &events[i]);
	}
	set_value(&watch, last_seq, last_seq);
	if (job) {
		watch.job = build_job(&s, job, position, false);
	}
	m.what_case = PEFTD__V1__REPLY__WHAT_WATCH;
	m.watch = &watch;
	return scratch_pack(&s, &m, ret);
}
