/* Planning a job: what it takes and how long, before anything is reserved. */

#include <string.h>

#include "daemon/trainer/job.h"
#include "daemon/trainer/trainer.h"

/* The part of the measured product speed that training reaches; for estimates of time only. */
#define TRAIN_EFFICIENCY 0.6

static void estimate(const struct job *job, double gflops, struct plan_info *p)
{
	if (gflops <= 0 || p->memory.flops_per_token <= 0) {
		return;
	}
	p->tokens_per_second = gflops * 1e9 * TRAIN_EFFICIENCY / p->memory.flops_per_token;
	p->seconds = p->epochs * (double)p->tokens_per_epoch / p->tokens_per_second;
}

int task_plan(struct compute *c, struct task *task, struct errmsg *err)
{
	struct job job;
	struct plan_info p = {0};
	if (task->plan.threads > 0) {
		c->threads = task->plan.threads;
	}
	int r = job_prepare(c, task, &job, err);
	if (r == 0) {
		r = compute_backend(c, c->threads, err);
	}
	if (r == 0) {
		r = job_plan(&job, task->plan.memory_limit, &p.memory, err);
	}
	if (r == 0) {
		const struct samples *s = job.samples;
		p.total = p.memory.base_weights + p.memory.arena;
		p.overhead = PROCESS_OVERHEAD + p.memory.checkpoint;
		p.steps = (uint64_t)job.config.max_steps;
		p.epochs = job.epochs;
		p.rows = s->n;
		p.overlong = s->overlong;
		p.untrainable = s->untrainable;
		p.misaligned = s->misaligned;
		p.tokens_per_epoch = (uint64_t)s->start[s->n];
		p.template_name = job.template_name;
		estimate(&job, job.config.dtype == DTYPE_BF16 ? task->plan.gflops_bf16
													  : task->plan.gflops_f32, &p);
		emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.plan = &p});
	}
	job_release(&job);
	return r;
}
