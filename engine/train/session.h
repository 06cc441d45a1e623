#pragma once
/* The inside of a training session, for the files of this folder and its tests. */

#include "engine/base.h"
#include "engine/train/batch.h"
#include "engine/train/job.h"

struct train_session {
	struct base_model *base; /* borrowed, as are the samples */
	const struct samples *samples, *eval_samples;
	struct train_config config;
	struct job job;
	struct peft *peft;
	uint8_t *arena;
	struct run run;
	struct batch batch;
	struct order order;
	char *fingerprint; /* fields "name=value", one a line */
	int64_t step; /* done */
};

/* Gradients of step `step` (from 0) into the arena, loss sum and counts; no update. */
struct step_sums {
	double loss_sum;
	int64_t tokens, targets;
};
int session_accumulate(struct train_session *s, int64_t step, struct step_sums *ret,
	struct errmsg *err);

/* Sum of losses over samples, forward only, on an arena; used by engine_eval() too. */
int eval_samples_loss(const struct job *j, uint8_t *arena, struct run *run, struct batch *batch,
	const struct samples *samples, struct eval_metrics *ret, struct errmsg *err);

/* All that decides the bits of a run. -ENOMEM. */
int session_fingerprint(const struct train_session *s, char **ret);
