#pragma once
/* What planning and training a job have in common: everything before memory is reserved. */

#include <stdbool.h>
#include <stdint.h>

#include "daemon/trainer/dataset.h"
#include "daemon/trainer/models.h"
#include "daemon/trainer/trainer.h"

struct job {
	struct compute *compute;
	struct model *model;
	const struct samples *samples, *eval_samples; /* eval_samples may be NULL */
	const char *template_name;                    /* NULL where the rows need none */
	struct adapter init;
	bool has_init;
	struct train_config config; /* max_steps resolved */
	struct method_config method; /* borrows from the task and the model */
	int64_t longest;             /* tokens of the longest sample */
	double epochs;
};

/* Checks the spec, opens the model, tokenizes the rows, reads the initial adapter. The job must be
 * released whether this succeeds or not; it is zeroed first. */
int job_prepare(struct compute *c, struct task *task, struct job *ret, struct errmsg *err);
void job_release(struct job *job);

/* train_plan() for the job, and whether the initial adapter is one that it can start from. */
int job_plan(struct job *job, uint64_t memory_limit, struct memory_plan *ret, struct errmsg *err);
