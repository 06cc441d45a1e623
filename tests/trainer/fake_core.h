#pragma once
/* The core's end of a trainer's link, for tests: starts the real binary, gives it tasks, serves
 * their inputs and keeps what it answers. Fails the running test where the trainer breaks the
 * protocol. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "link.pb-c.h"
#include "proto/proto.h"
#include "util/buf.h"

struct fake_core {
	pid_t pid;
	struct link *link;
	uint64_t next_task;
	unsigned stats; /* TrainerStats seen */
};

/* Starts $PEFTD_TRAINER, with --inspect where asked. */
void fake_core_start(struct fake_core *c, bool inspect);
/* Sends the configuration and waits for TrainerReady; `threads` 0: all. */
void fake_core_configure(struct fake_core *c, const char *device, unsigned threads);
/* The same with a limit in bytes, of all that the trainer takes; 0: none. */
void fake_core_configure_limit(struct fake_core *c, const char *device, unsigned threads,
	uint64_t memory_limit);
/* Closes the link and waits for the process; returns its wait status. */
int fake_core_stop(struct fake_core *c);
int fake_core_wait_exit(struct fake_core *c);

void fake_core_send(struct fake_core *c, Peftd__V1__CoreToTrainer *msg, const void *raw,
	size_t len);

/* Content that a task may pull. */
struct content {
	const void *data;
	size_t len;
	const char *names[4]; /* of its files; NULL-terminated when fewer */
	size_t sizes[4];
};

struct kept_checkpoint {
	uint64_t step;
	bool final, has_eval_loss;
	double eval_loss;
	uint8_t *data;
	size_t len;
	size_t sizes[3]; /* adapter_config.json, adapter_model.safetensors, peftd_state.safetensors */
};

struct kept_metrics {
	uint64_t step;
	double loss, lr, grad_norm;
	uint64_t tokens, target_tokens;
};

/* What a task has said. */
struct outcome {
	struct kept_metrics metrics[512];
	size_t n_metrics;
	struct {
		uint64_t step;
		double loss;
	} evals[64];
	size_t n_evals;
	struct kept_checkpoint checkpoints[64];
	size_t n_checkpoints;
	struct buf logs, text;
	unsigned starting, running;
	uint64_t arena;
	int32_t *row_ids, *row_labels; /* of all inspected rows, one after another */
	size_t n_row_ids;
	unsigned rows; /* inspected */
	struct buf tokens; /* texts of the tokens, each followed by '|' */
	Peftd__V1__TaskResult *result;
};
void outcome_deinit(struct outcome *o);
/* The result's status code and message. */
unsigned outcome_code(const struct outcome *o);
const char *outcome_message(struct outcome *o); /* valid until the outcome ends */

/* How the core behaves during a task. */
struct behaviour {
	/* After the metrics of this step (0: never) the core sends… */
	uint64_t at_step;
	enum { DO_NOTHING, DO_CANCEL, DO_STOP, DO_SHUTDOWN, DO_KILL, DO_LEAVE } then;
	/* …or starts this task in between, whose outcome goes there. */
	Peftd__V1__Task *other;
	const struct content *other_inputs;
	size_t n_other_inputs;
	struct outcome *other_outcome;
	/* Answers the first checkpoint with this code instead of OK. */
	unsigned checkpoint_status;
	bool spoil_inputs; /* flips a bit of what is pulled */
	unsigned output_credit; /* given at once, and again for each output; 0: 1000 at once */
};

/* Fills the task's number and inputs, sends it and serves it until its result is there; without a
 * result where the process was killed or left, as asked. */
void fake_core_run(struct fake_core *c, Peftd__V1__Task *task, const struct content *inputs,
	size_t n_inputs, const struct behaviour *how, struct outcome *ret);
