#pragma once
/* Sweeps on the client's side: one job file, several values of some settings, a job for each
 * combination. */

#include "client/ctl.h"
#include "job.pb-c.h"

struct sweep_job {
	Peftd__V1__JobSpec *spec;
	char *variant; /* "lora.r=8 train.seed=2" */
};

struct sweep {
	struct sweep_job *jobs; /* the last axis' values follow each other */
	size_t n;
};
void sweep_deinit(struct sweep *s);

/*
 * Makes the jobs: `base` as it was read, and for each combination of the axes, which are
 * "KEY=VALUE,VALUE…" as from the command line, its own settings on top; completed. Without an
 * axis it is one job, whose variant is "". Where `method` is an axis, each job keeps of the sections
 * of the methods it names its own. A value may stand in quotes, which are not part of it.
 * STATUS_INVALID, also where two jobs are the same; -ENOMEM.
 */
int sweep_expand(struct sweep *ret, const Peftd__V1__JobSpec *base, const struct texts *axes,
	struct errmsg *err);

/* What an operand names: a job, or a sweep ("s7"). */
struct target {
	bool sweep;
	uint64_t id;
};

/* 0, or EXIT_USAGE after saying what is wrong. */
int ctl_target_operand(struct ctl *ctl, const char *text, struct target *ret);

/* Jobs as a list knows them. */
struct job_list {
	Peftd__V1__Job **jobs;
	size_t n;
};
void job_list_deinit(struct job_list *l);

/* Asks for a list (sweep 0: of all) and adds its jobs. 0 or an exit status, with words said. */
int ctl_list_jobs(struct ctl *ctl, const Peftd__V1__JobListRequest *ask, struct job_list *ret);

/* The jobs that operands name, each once, in the order of the operands; of those named by their own
 * id only that is known. 0 or an exit status. */
int ctl_target_jobs(struct ctl *ctl, const struct texts *operands, struct job_list *ret);
