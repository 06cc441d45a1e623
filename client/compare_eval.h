#pragma once
/* Prompting against tuning: jobs' adapters, and the bare base with examples in its prompts, on the same
 * rows of a dataset. */

#include "client/compare.h"
#include "client/evaluation.h"

/* `shots`: "0,1,4". Evaluates the base of the first job with so many examples, and every job's adapter
 * without, and prints a row of each. 0 or an exit status, with words said. */
int compare_evaluate(struct ctl *ctl, const struct comparison *c, struct evaluation *e,
	const char *shots);
