/* The compute thread: which task runs when. */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/trainer/adapters.h"
#include "daemon/trainer/dataset.h"
#include "daemon/trainer/models.h"
#include "daemon/trainer/trainer.h"
#include "util/log.h"
#include "util/util.h"

static const char *const kind_names[] = {
	[TASK_TRAIN] = "train",
	[TASK_PLAN] = "plan",
	[TASK_EVAL] = "eval",
	[TASK_GENERATE] = "generate",
	[TASK_MODEL_INSPECT] = "model inspect",
	[TASK_DATASET_CHECK] = "dataset check",
	[TASK_DATASET_INSPECT] = "dataset inspect",
	[TASK_MERGE] = "merge",
	[TASK_MERGE_READ] = "merge read",
};

/* NULL: it is done in one go. */
static const struct quick_task *in_pieces(const struct task *task)
{
	return task->kind == TASK_EVAL ? &quick_eval
		: task->kind == TASK_GENERATE ? &quick_generate : NULL;
}

static int execute(struct compute *c, struct task *task, struct errmsg *err)
{
	if (c->trainer->inspect &&
		(task->kind == TASK_TRAIN || task->kind == TASK_EVAL || task->kind == TASK_GENERATE ||
			task->kind == TASK_MERGE)) {
		return errmsg_set(err, STATUS_INTERNAL, "an inspect child has no device for this task");
	}
	switch (task->kind) {
	case TASK_TRAIN:
		return task_train(c, task, err);
	case TASK_PLAN:
		return task_plan(c, task, err);
	case TASK_MODEL_INSPECT:
		return task_model_inspect(c, task, err);
	case TASK_DATASET_CHECK:
		return task_dataset_check(c, task, err);
	case TASK_DATASET_INSPECT:
		return task_dataset_inspect(c, task, err);
	case TASK_MERGE:
		return task_merge(c, task, err);
	case TASK_MERGE_READ:
		return task_merge_read(c, task, err);
	case TASK_EVAL:
	case TASK_GENERATE:
		break;
	}
	return errmsg_set(err, STATUS_INTERNAL, "no such task");
}

/* One piece of a quick task's work. */
static int execute_piece(struct compute *c, struct task *task, bool *ret_done, struct errmsg *err)
{
	const struct quick_task *q = in_pieces(task);
	int r = task->work ? q->step(c, task, ret_done, err) : q->begin(c, task, err);
	if (r != 0 || *ret_done) {
		q->end(c, task);
	}
	return r;
}

/* A fatal errno of the operation, in words for the job's owner. */
static int errno_status(int r, struct errmsg *err)
{
	if (r == -ENOMEM) {
		return errmsg_set(err, STATUS_FAILED, "the machine has no memory left for this");
	}
	char what[sizeof(err->text)];
	memcpy(what, err->text, sizeof(what));
	return errmsg_set(err, STATUS_INTERNAL, "%s%s%s", what, what[0] ? ": " : "", strerror(-r));
}

static void remove_task(struct trainer *t, struct task *task)
{
	pthread_mutex_lock(&t->lock);
	for (struct task **p = &t->tasks; *p; p = &(*p)->next) {
		if (*p == task) {
			*p = task->next;
			break;
		}
	}
	pthread_mutex_unlock(&t->lock);
	task_free(task);
}

/* Works on a task: all of it, or a piece. */
static void run_task(struct compute *c, struct task *task)
{
	struct trainer *t = c->trainer;
	struct errmsg err = {0};
	bool done = !in_pieces(task);
	task->turn = ++c->turn;
	int r = task_interrupted(t, task);
	if (r != 0) {
		bool began = task->work != NULL;
		if (began) {
			in_pieces(task)->end(c, task);
		}
		errmsg_set(&err, r, "%s%s", r == STATUS_CANCELLED ? "cancelled" : "stopped",
			began ? "" : " before it began");
	} else if (t->inspect && (task->kind == TASK_TRAIN || !done)) {
		r = errmsg_set(&err, STATUS_INTERNAL, "an inspect child has no device for this task");
	} else {
		r = done ? execute(c, task, &err) : execute_piece(c, task, &done, &err);
	}
	if (r < 0) {
		r = errno_status(r, &err);
	}
	if (r != 0) {
		emit_result(t, task, r, err.text[0] ? err.text : status_name(r), NULL);
	}
	if (r != 0 || done) {
		log_debug("task %" PRIu64 " (%s): %s", task->id, kind_names[task->kind], status_name(r));
		remove_task(t, task);
	}
}

/* The next task to work on, marked as running; quick ones come before trainings, and of them the one
 * that has waited longest. */
static struct task *next_task(struct trainer *t, bool quick_only)
{
	struct task *train = NULL, *quick = NULL;
	for (struct task *task = t->tasks; task; task = task->next) {
		if (task->kind != TASK_TRAIN) {
			quick = !quick || task->turn < quick->turn ? task : quick;
		} else if (!task->running) {
			train = train ? train : task;
		}
	}
	struct task *next = quick ? quick : quick_only ? NULL : train;
	if (next) {
		next->running = true;
	}
	return next;
}

static struct task *next_quick(struct compute *c)
{
	pthread_mutex_lock(&c->trainer->lock);
	struct task *task = next_task(c->trainer, true);
	pthread_mutex_unlock(&c->trainer->lock);
	return task;
}

void compute_run_quick(struct compute *c, double seconds)
{
	/* What was not used is not saved up: else a training could come to stand for long at once. */
	c->quick_credit = (c->quick_credit < 0 ? c->quick_credit : 0) + seconds;
	struct task *task;
	while (c->quick_credit > 0 && (task = next_quick(c))) {
		int64_t start = clock_monotonic_ns();
		run_task(c, task);
		c->quick_credit -= (double)(clock_monotonic_ns() - start) * 1e-9;
	}
}

int compute_backend(struct compute *c, unsigned threads, struct errmsg *err)
{
	if (c->backend) {
		return 0;
	}
	int r = backend_cpu_new(&c->backend, threads, err);
	if (r == 0) {
		c->threads = backend_threads(c->backend);
	}
	return r;
}

static int open_device(struct compute *c, const char *device, unsigned threads, struct errmsg *err)
{
	if (device[0] && strcmp(device, "auto") != 0 && strcmp(device, "cpu") != 0) {
		if (strncmp(device, "cuda", 4) == 0) {
			return errmsg_set(err, STATUS_INVALID,
				"device %s: this build has no CUDA; use --device cpu, or build where the CUDA "
				"toolkit is", device);
		}
		return errmsg_set(err, STATUS_INVALID, "device %s: not one of auto, cpu, cuda:N", device);
	}
	return compute_backend(c, threads, err);
}

/* Waits for the core's first word and answers it. False when the work is over already. */
static bool begin(struct compute *c, struct errmsg *err, int *ret)
{
	struct trainer *t = c->trainer;
	char device[sizeof(t->device)];
	pthread_mutex_lock(&t->lock);
	while (!t->configured && !t->shutdown && !(t->inspect && t->tasks)) {
		pthread_cond_wait(&t->changed, &t->lock);
	}
	bool configured = t->configured, shutdown = t->shutdown;
	memcpy(device, t->device, sizeof(device));
	unsigned threads = t->threads;
	uint64_t limit = t->memory_limit;
	pthread_mutex_unlock(&t->lock);
	if (shutdown) {
		return false;
	}

	c->memory_total = process_memory_total();
	if (limit == 0 || limit > c->memory_total) {
		limit = c->memory_total;
	}
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	c->threads = threads ? threads : cpus > 0 ? (unsigned)cpus : 1;
	*ret = models_new(&c->models, t, limit > PROCESS_OVERHEAD ? limit - PROCESS_OVERHEAD : 0);
	if (*ret == 0) {
		*ret = sample_cache_new(&c->samples);
	}
	if (*ret == 0) {
		*ret = adapters_new(&c->adapters, c->models);
	}
	if (*ret != 0) {
		return false;
	}
	if (t->inspect) {
		if (configured) {
			emit_ready(t, "none", c->threads, c->memory_total, 0, 0);
		}
		return true;
	}
	*ret = open_device(c, device, threads, err);
	if (*ret != 0) {
		return false;
	}
	double f32 = backend_measure_gflops(c->backend, DTYPE_F32);
	double bf16 = backend_measure_gflops(c->backend, DTYPE_BF16);
	log_info("%s; %u threads; %.0f GFLOP/s in f32, %.0f in bf16", backend_device(c->backend),
		c->threads, f32, bf16);
	emit_ready(t, backend_device(c->backend), c->threads, c->memory_total, f32, bf16);
	return true;
}

static void work(struct compute *c)
{
	struct trainer *t = c->trainer;
	for (;;) {
		pthread_mutex_lock(&t->lock);
		while (!t->tasks && !t->shutdown) {
			pthread_cond_wait(&t->changed, &t->lock);
		}
		struct task *task = next_task(t, false);
		pthread_mutex_unlock(&t->lock);
		if (!task) {
			return; /* shutting down, and nothing is left to answer */
		}
		run_task(c, task);
	}
}

void *compute_main(void *arg)
{
	struct trainer *t = arg;
	struct compute c = {.trainer = t};
	struct errmsg err = {0};
	int r = 0;
	if (begin(&c, &err, &r)) {
		work(&c);
	}
	if (r != 0) {
		log_error("%s", err.text[0] ? err.text : strerror(r < 0 ? -r : EIO));
	}
	sample_cache_free(c.samples);
	adapters_free(c.adapters);
	models_free(c.models);
	backend_free(c.backend);

	pthread_mutex_lock(&t->lock);
	t->finished = true;
	t->failed = r != 0;
	pthread_mutex_unlock(&t->lock);
	trainer_wake_main(t);
	return NULL;
}
