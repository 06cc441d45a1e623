/* Training a job, step after step, with evaluations and checkpoints between the steps. */

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/trainer/job.h"
#include "daemon/trainer/trainer.h"
#include "util/log.h"
#include "util/util.h"

struct run {
	struct compute *compute;
	struct trainer *trainer;
	struct task *task;
	struct job job;
	struct memory_plan plan;
	struct base_model *base;
	struct train_session *session;
	uint64_t arena; /* counted as in use; 0 before */
	int64_t saved;  /* the step of the last checkpoint, begun or resumed from */
	double eval_loss; /* at `eval_step`; NaN: none yet */
	int64_t eval_step;
};

/* ---- checkpoints ----------------------------------------------------------------------------- */

/* Waits until the core has answered the checkpoint under way, if there is one, and frees it. Its
 * failure is the job's. A plain cancel does not wait: the core throws it away with the job. */
static int settle_checkpoint(struct run *run, struct errmsg *err)
{
	struct trainer *t = run->trainer;
	pthread_mutex_lock(&t->lock);
	while (t->checkpoint && !t->checkpoint->done && !run->task->cancelled) {
		pthread_cond_wait(&t->changed, &t->lock);
	}
	struct checkpoint_out *c = t->checkpoint;
	t->checkpoint = NULL;
	pthread_mutex_unlock(&t->lock);
	if (!c) {
		return 0;
	}
	int r = 0;
	if (!c->done) {
		r = errmsg_set(err, STATUS_CANCELLED, "cancelled");
	} else if (c->status != STATUS_OK) {
		r = errmsg_set(err, c->status, "checkpoint of step %" PRIu64 ": %s", c->step,
			c->err.text[0] ? c->err.text : status_name(c->status));
	}
	buf_deinit(&c->data);
	free(c);
	return r;
}

/* Copies the state aside, once, into the memory that was planned for it, and begins to send it; the
 * files of the adapter come first, so that a fetch reads a prefix. */
static int begin_checkpoint(struct run *run, bool final, struct errmsg *err)
{
	int r = settle_checkpoint(run, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(buf_deinit) struct buf data = {0};
	_cleanup_(buf_deinit) struct buf config = {0};
	r = buf_reserve(&data, train_session_checkpoint_bytes(run->session));
	r = r ? r : train_session_export(run->session, &config, &data, err);
	size_t weights_len = data.len;
	r = r ? r : buf_append(&data, config.data, config.len);
	if (r == 0) {
		memmove(data.data + config.len, data.data, weights_len);
		memcpy(data.data, config.data, config.len);
	}
	r = r ? r : train_session_save(run->session, &data, err);
	if (r != 0) {
		return r;
	}
	int64_t step = train_session_step(run->session);
	struct adapter_files names = adapter_files(adapter_kind_of_config(config.data, config.len));
	const struct input_file files[] = {
		{(char *)names.config, config.len},
		{(char *)names.weights, weights_len},
		{(char *)"peftd_state.safetensors", data.len - weights_len - config.len},
	};
	r = emit_checkpoint(run->trainer, run->task, (uint64_t)step, &data, files, ARRAY_LEN(files),
		run->eval_step == step ? run->eval_loss : NAN, final);
	if (r == 0) {
		run->saved = step;
	}
	return r;
}

/* ---- starting -------------------------------------------------------------------------------- */

static void log_rows(struct run *run, const char *what, const struct task_dataset *d,
	const struct samples *s)
{
	const struct job_spec *spec = &run->task->spec;
	const char *name = d->name ? d->name : "?";
	if (s->overlong > 0) {
		emit_log(run->trainer, run->task, "warning",
			"%s '%s': %" PRIu64 " of %" PRIu64 " rows have more than %" PRId64
			" tokens (the longest %" PRId64 ") and were %s",
			what, name, s->overlong, s->rows, spec->max_length, s->longest,
			spec->overlong == OVERLONG_TRUNCATE ? "cut" : "left out");
	}
	if (s->untrainable > 0) {
		emit_log(run->trainer, run->task, "warning",
			"%s '%s': %" PRIu64 " of %" PRIu64 " rows have no token to train on and were left out",
			what, name, s->untrainable, s->rows);
	}
	if (s->misaligned > 0) {
		emit_log(run->trainer, run->task, "warning",
			"%s '%s': in %" PRIu64 " of %" PRIu64 " rows the prompt's own tokens are no prefix of "
			"the whole row's; the first of the completion may be masked, or the last of the "
			"prompt trained on",
			what, name, s->misaligned, s->rows);
	}
}

static int make_plan(struct run *run, struct errmsg *err)
{
	struct task *task = run->task;
	/* How a step is cut decides the order of sums, and so the last bits: it is as admitted, whatever
	 * memory there is now. The limit makes the plan recompute what the admitted one does. */
	int64_t tokens = task->train.plan_microbatch_tokens;
	if (tokens > 0) {
		run->job.config.microbatch_tokens = tokens;
	}
	uint64_t admitted = task->train.plan_total;
	int r = job_plan(&run->job, admitted, &run->plan, err);
	if (r == STATUS_WONT_FIT || (r == 0 && tokens > 0 && run->plan.microbatch_tokens != tokens)) {
		r = job_plan(&run->job, 0, &run->plan, err); /* on other terms than when it was admitted */
	}
	if (r != 0) {
		return r;
	}
	uint64_t total = run->plan.base_weights + run->plan.arena;
	if (admitted > 0 && admitted != total) {
		emit_log(run->trainer, task, "warning",
			"the job now takes %" PRIu64 " bytes; it was admitted with %" PRIu64, total, admitted);
	}
	return 0;
}

static int reserve(struct run *run, struct errmsg *err)
{
	struct compute *c = run->compute;
	struct job *job = &run->job;
	int r = models_acquire(c->models, job->model, c->backend, job->config.dtype, true,
		run->plan.arena, &run->base, err);
	if (r != 0) {
		return r;
	}
	r = train_session_new(&run->session, run->base, &job->config, &job->method, &run->plan,
		job->samples, job->eval_samples, job->has_init ? &job->init : NULL, err);
	if (r != 0) {
		return r;
	}
	run->arena = train_session_arena(run->session);
	models_use_memory(c->models, (int64_t)run->arena);
	return 0;
}

static int restore(struct run *run, struct errmsg *err)
{
	struct task *task = run->task;
	int index = task->train.resume_checkpoint;
	struct adapter adapter;
	int r = task_adapter(run->trainer, task, index, &adapter, err);
	if (r != 0) {
		return r;
	}
	const uint8_t *state = NULL;
	size_t state_len = 0;
	r = task_input_file(task, index, "peftd_state.safetensors", &state, &state_len, err);
	if (r == 0) {
		r = train_session_restore(run->session, &adapter, state, state_len, false, err);
	}
	if (r == STATUS_CONFLICT && task->train.allow_other_plan) {
		emit_log(run->trainer, task, "warning",
			"%s; going on as was asked, so the result may differ in its last bits", err->text);
		r = train_session_restore(run->session, &adapter, state, state_len, true, err);
	}
	adapter_deinit(&adapter);
	task_input_drop(run->trainer, task, index);
	if (r != 0) {
		return r;
	}
	int64_t step = train_session_step(run->session);
	if (task->train.resume_step > 0 && (uint64_t)step != task->train.resume_step) {
		return errmsg_set(err, STATUS_INTERNAL,
			"the checkpoint of step %" PRIu64 " holds the state of step %" PRId64,
			task->train.resume_step, step);
	}
	run->saved = step;
	emit_log(run->trainer, task, "info", "goes on after step %" PRId64 " of %" PRId64, step,
		run->job.config.max_steps);
	return 0;
}

static int start(struct run *run, struct errmsg *err)
{
	struct task *task = run->task;
	bool resumes = task->train.resume_checkpoint != NO_INPUT;
	emit_starting(run->trainer, task);
	int r = job_prepare(run->compute, task, &run->job, err);
	if (r != 0) {
		return r;
	}
	if (!resumes) {
		log_rows(run, "dataset", &task->dataset, run->job.samples);
		if (run->job.eval_samples) {
			log_rows(run, "eval_dataset", &task->eval_dataset, run->job.eval_samples);
		}
	}
	r = make_plan(run, err);
	if (r == 0) {
		r = reserve(run, err);
	}
	if (r == 0 && resumes) {
		r = restore(run, err);
	}
	if (r == 0 && (r = task_interrupted(run->trainer, task)) != 0) {
		errmsg_set(err, r, r == STATUS_CANCELLED ? "cancelled" : "stopped before the first step");
	}
	if (r == 0) {
		emit_running(run->trainer, task, &run->plan, run->arena);
	}
	return r;
}

/* ---- running --------------------------------------------------------------------------------- */

static bool every(int64_t interval, int64_t step)
{
	return interval > 0 && step % interval == 0;
}

static int evaluate(struct run *run, int64_t step, struct errmsg *err)
{
	struct eval_metrics m;
	int r = train_session_eval(run->session, &m, err);
	if (r != 0) {
		return r;
	}
	run->eval_loss = m.loss;
	run->eval_step = step;
	emit_eval(run->trainer, run->task, step, &m);
	return 0;
}

/* Ends the run because it was asked to: with a checkpoint, or at once. */
static int interrupt(struct run *run, int why, int64_t step, struct errmsg *err)
{
	if (why == STATUS_CANCELLED) {
		return errmsg_set(err, why, "cancelled after step %" PRId64, step);
	}
	int r = step > run->saved ? begin_checkpoint(run, false, err) : 0;
	if (r == 0) {
		r = settle_checkpoint(run, err);
	}
	return r == 0 ? errmsg_set(err, STATUS_UNAVAILABLE,
						"stopped after step %" PRId64 " with a checkpoint", step)
				  : r;
}

static int one_step(struct run *run, struct errmsg *err)
{
	const struct job_spec *spec = &run->task->spec;
	struct step_metrics m;
	int r = train_session_run_step(run->session, &m, err);
	if (r != 0) {
		return r;
	}
	bool last = m.step == run->job.config.max_steps;
	if (last || every(spec->logging_steps, m.step)) {
		emit_metrics(run->trainer, run->task, &m);
	}
	if (run->job.eval_samples && (last || every(spec->eval_steps, m.step))) {
		r = evaluate(run, m.step, err);
	}
	if (r == 0 && (last || every(spec->save_steps, m.step))) {
		r = begin_checkpoint(run, last, err);
	}
	return r;
}

static int run_steps(struct run *run, struct errmsg *err)
{
	int64_t max_steps = run->job.config.max_steps;
	int64_t step, before = clock_monotonic_ns();
	while ((step = train_session_step(run->session)) < max_steps) {
		int r = task_interrupted(run->trainer, run->task);
		if (r != 0) {
			return interrupt(run, r, step, err);
		}
		compute_run_quick(run->compute, (double)(clock_monotonic_ns() - before) * 1e-9);
		before = clock_monotonic_ns();
		r = one_step(run, err);
		if (r != 0) {
			return r;
		}
	}
	if (run->saved < max_steps) {
		return errmsg_set(err, STATUS_INTERNAL, "the last checkpoint was not written");
	}
	return settle_checkpoint(run, err);
}

/* What a forward pass takes with the result, when nothing is left to train: in the memory that the
 * session gives back for it. That it cannot be said is no fault of the job. */
static void measure_inference(struct run *run, struct forward_times *ret)
{
	const double seconds = 1;
	_cleanup_(buf_deinit) struct buf config = {0};
	_cleanup_(buf_deinit) struct buf weights = {0};
	_cleanup_(adapter_deinit) struct adapter adapter = {0};
	struct errmsg err = {0};
	int r = train_session_export(run->session, &config, &weights, &err);
	r = r ? r : adapter_parse(&adapter, config.data, config.len, weights.data, weights.len, &err);
	train_session_free(run->session);
	run->session = NULL;
	r = r ? r : engine_measure_forward(ret, run->base, &adapter, run->job.samples, seconds,
		run->arena, &err);
	if (r != 0) {
		emit_log(run->trainer, run->task, "info", "what a forward pass takes is not measured: %s",
			err.text[0] ? err.text : strerror(r < 0 ? -r : EIO));
	}
}

static void end(struct run *run)
{
	/* Of a run that failed: what it had begun to save is worth having. */
	struct errmsg ignored = {0};
	int r = settle_checkpoint(run, &ignored);
	if (r != 0) {
		log_debug("%s", ignored.text);
	}
	train_session_free(run->session);
	if (run->arena > 0) {
		models_use_memory(run->compute->models, -(int64_t)run->arena);
	}
	models_release(run->compute->models, run->base);
	job_release(&run->job);
}

int task_train(struct compute *c, struct task *task, struct errmsg *err)
{
	struct run run = {
		.compute = c,
		.trainer = c->trainer,
		.task = task,
		.job = {.compute = c},
		.saved = 0,
		.eval_loss = NAN,
		.eval_step = -1,
	};
	int r = start(&run, err);
	if (r == 0) {
		r = run_steps(&run, err);
	}
	struct train_info info = {.steps = run.session ? (uint64_t)train_session_step(run.session) : 0};
	if (r == 0) {
		measure_inference(&run, &info.times);
	}
	end(&run);
	if (r == 0) {
		info.peak_rss = process_peak_rss();
		emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.train = &info});
	}
	return r;
}
