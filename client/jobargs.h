#pragma once
/* The arguments that plan and submit share, and the request made of them. */

#include "client/ctl.h"
#include "client/sweep.h"
#include "job.pb-c.h"

struct jobargs {
	const char *model, *dataset, *eval_dataset, *method, *name, *priority, *init_adapter;
	struct texts sets, sweeps;
	bool hold, watch; /* of submit alone */
};

enum { JOBARGS_OPTIONS = 11 };

/* Writes the options into opts[JOBARGS_OPTIONS]; the number of them: without those of submit alone,
 * when `submit` is false. */
size_t jobargs_options(struct jobargs *a, bool submit, struct opt *opts);
void jobargs_deinit(struct jobargs *a);

/*
 * Reads the job file (NULL: none), applies the options, fills in the defaults, uploads an adapter
 * to start from, and asks. 0 and *ret, whose `submit` is set (or `sweep`, and *ret_sweep has its
 * jobs), or an exit status with words said.
 */
int jobargs_send(struct ctl *ctl, const struct jobargs *a, const char *file, bool plan_only,
	struct sweep *ret_sweep, Peftd__V1__Reply **ret);
