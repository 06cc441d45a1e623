#pragma once
/* Adapters kept in memory, by the digest of what they came in, so that a generation with one that was
 * here before needs nothing from the core. Compute thread only. */

#include <stdbool.h>

#include "daemon/trainer/models.h"
#include "daemon/trainer/trainer.h"

struct adapters;

/* Their memory is counted with that of the models, and goes first where that is short. */
int adapters_new(struct adapters **ret, struct models *models);
void adapters_free(struct adapters *a);

/* The adapter of a task, pulled or found; NULL where the task has none. Give it back. */
int adapters_acquire(struct compute *c, struct task *task, const struct adapter **ret,
	bool *ret_was_here, struct errmsg *err);
void adapters_release(struct adapters *a, const struct adapter *adapter);
