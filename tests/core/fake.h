#pragma once
/*
 * A trainer or inspect child that speaks the link and computes nothing: what it "trains" is a chain
 * of digests over the job's spec, its data and the step, so that a test can tell whether a job that
 * was interrupted ended with the same bits. The simulator drives it unit by unit; the program
 * fake-trainer wraps it in a process.
 */

#include <stdbool.h>
#include <stdint.h>

#include "link.pb-c.h"
#include "proto/proto.h"
#include "util/buf.h"

enum { FAKE_TASKS = 8, FAKE_INPUTS = 4, FAKE_STATE = 32 };

struct fake_input {
	uint8_t digest[32];
	uint64_t size, pulled, received;
	uint8_t *data;
	bool wanted;
};

struct fake_task {
	Peftd__V1__Task *task; /* NULL: this place is free */
	struct fake_input inputs[FAKE_INPUTS];
	bool cancelled, stop;
	uint32_t output_credit;
	uint64_t outputs;
	/* training */
	bool started, running;
	uint64_t step, steps, save_steps, eval_steps;
	uint8_t state[FAKE_STATE];
	double last_eval;
	/* a checkpoint on its way */
	enum { CKPT_NONE, CKPT_SENDING, CKPT_ENDED, CKPT_DONE } ckpt;
	uint64_t ckpt_step, ckpt_sent;
	bool ckpt_final;
	uint32_t ckpt_credit;
	int ckpt_status;
	struct buf ckpt_data;
};

struct fake {
	struct link *link;
	bool inspect, ready, configured, shutdown, ended;
	struct fake_task tasks[FAKE_TASKS];
	uint64_t seen_tasks[64]; /* numbers of earlier tasks, for late messages */
	unsigned n_seen;
	void (*mangle)(void *ctx, uint8_t *data, size_t len); /* as of struct world; may be NULL */
	void *mangle_ctx;
	int failed; /* -errno: the link's end, or a message that makes no sense */
};

/* Takes the link's end `fd`. */
int fake_init(struct fake *f, int fd, bool inspect);
void fake_deinit(struct fake *f);

/* Hears what is there. False: the other side is gone. */
bool fake_listen(struct fake *f);

/* Does one small thing for the n-th of the tasks that are there; false: there is nothing to do now.
 */
bool fake_work(struct fake *f, unsigned n);

/* Sends a message of a task that is no more, or the last but one again; for faults. */
void fake_late(struct fake *f, uint64_t task, unsigned kind);

/* Sends a message after `mangle` had it. */
int fake_send_mangled(int fd, void (*mangle)(void *ctx, uint8_t *data, size_t len), void *ctx,
	const void *msg, const void *raw, size_t raw_len);

/* What a job's state must be after `step` steps, and the loss of that step. */
void fake_chain(const Peftd__V1__JobSpec *spec, const uint8_t data_digest[32], uint64_t step,
	uint8_t ret[FAKE_STATE]);
void fake_advance(uint8_t state[FAKE_STATE], uint64_t step); /* by one step, to this one */
double fake_loss(const uint8_t state[FAKE_STATE], uint64_t step);
/* How long that step takes: 1/8 s, 2/8 s, … and again from 1/8 s after 8. */
static inline double fake_seconds(uint64_t step)
{
	return (double)(1 + (step - 1) % 8) / 8;
}
/* The digest of the checkpoint of that step. */
void fake_checkpoint_digest(
	const Peftd__V1__JobSpec *spec, const uint8_t data_digest[32], uint64_t step, uint8_t ret[32]);

/* A merged model's folder has this many bytes, byte i of which is i % 251. */
enum { FAKE_MERGED = 2 * CHUNK_SIZE + 777 };

/* Names that make the fake refuse: a dataset whose content begins with "bad", a job with lora.r 0;
 * a job with lora.r above 1000 plans that many MiB; one with 3 cannot be merged. */
