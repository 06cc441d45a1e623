#pragma once
/*
 * Between the protobuf messages of proto/ and the plain structs of msg.h and store.h: the only part
 * of the core that sees generated code.
 *
 * Unless said otherwise functions return 0 or -ENOMEM, and a packed result is the caller's.
 */

#include "daemon/core/msg.h"

struct link;

/* ---- from the children (convert-front.c, convert-trainer.c) -------------------------------- */

/* Receives one message of the front, or of a trainer or inspect child. 1: *ret is filled but for
 * its times and child (free with event_deinit); its raw bytes lie in the link until the next call.
 * 0: nothing there now, or a message that is of no use and was passed over. -ECONNRESET; -EPROTO:
 * not what a sound child sends; `err` says why. */
int convert_front_recv(struct link *l, struct event *ret, struct errmsg *err);
int convert_trainer_recv(struct link *l, struct event *ret, struct errmsg *err);

/* ---- to the children (convert-send.c) ------------------------------------------------------ */

struct child_config {
	const char *const *endpoints;
	size_t n_endpoints;
	const char *device;
	uint32_t threads; /* 0: all cores */
	uint64_t memory_limit; /* 0: what the machine has */
};

/* Sends an action that is a message. Errors of link_send(). */
int convert_send(struct link *l, const struct action *a, const struct child_config *config);

/* ---- parts (convert.c, convert-spec.c) ----------------------------------------------------- */

/* Checks a packed JobSpec as far as that needs no model, and completes it with its defaults.
 * STATUS_INVALID names the key. */
int convert_spec(const void *data, size_t len, struct spec *ret, struct errmsg *err);

/* The seconds that a packed metrics event says its step took; 0 where it says nothing. */
double convert_step_seconds(const void *event, size_t len);

/* Packs an event of a job with its number and date. */
int convert_event(struct packed *ret, const struct job_event *e, uint64_t seq, uint64_t wall_ns);

/* Writes the core's decision into a packed Plan; `reason` may be NULL. */
int convert_plan_decide(struct packed *plan, const char *decision, const char *reason);

/* Writes name, path and date into a packed Model. */
int convert_model_name(struct packed *model, const char *name, const char *path, uint64_t wall_ns);

/* A copy for people of text that may be anything: what is not UTF-8, and NUL, becomes '?'; the
 * caller frees it. */
char *clean_text(const void *data, size_t len);

/* ---- replies (convert-reply.c, convert-job.c) ---------------------------------------------- */

/* Each packs a whole peftd.v1.Reply to the request `id`[16]. */
int reply_status(struct packed *ret, const uint8_t *id, int code, const char *text);

struct status_facts {
	const char *version, *trainer_state;
	const struct trainer_facts *trainer; /* NULL: not known yet */
	const struct trainer_stats *stats;
	uint64_t memory_limit, uptime_seconds, store_bytes, store_free_bytes;
	uint32_t jobs_waiting;
	const uint64_t *running; /* ids */
	size_t n_running;
};
int reply_daemon_status(struct packed *ret, const uint8_t *id, const struct status_facts *f);

int reply_model(struct packed *ret, const uint8_t *id, const struct packed *model);
int reply_models(
	struct packed *ret, const uint8_t *id, const struct packed *models, size_t n, bool more);
int reply_upload_begin(struct packed *ret, const uint8_t *id, uint64_t offset, uint32_t window);
int reply_upload_chunk(struct packed *ret, const uint8_t *id, uint64_t offset);
int reply_dataset(struct packed *ret, const uint8_t *id, const struct store_dataset *d);

/* Datasets and jobs of a list are packed one by one, so that a reply can be filled up to its size.
 */
int convert_dataset(struct packed *ret, const struct store_dataset *d);
int reply_datasets(
	struct packed *ret, const uint8_t *id, const struct packed *datasets, size_t n, bool more);
/* `position` counts from 1; 0: not waiting. `brief`: without spec, plan and checkpoints. */
int convert_job(struct packed *ret, const struct store_job *j, uint32_t position, bool brief);
int reply_jobs(
	struct packed *ret, const uint8_t *id, const struct packed *jobs, size_t n, bool more);
int reply_job(struct packed *ret, const uint8_t *id, const struct store_job *j, uint32_t position);

/* `job` 0 and `state` -1: plan only. */
int reply_submit(
	struct packed *ret, const uint8_t *id, uint64_t job, const struct packed *plan, int state);
/* `sweep` 0 and `state` -1: plan only. */
int reply_sweep(struct packed *ret, const uint8_t *id, uint64_t sweep, const struct packed *plans,
	size_t n, int state);
/* `job` NULL: not told. */
int reply_watch(struct packed *ret, const uint8_t *id, const struct packed *events, size_t n,
	uint64_t last_seq, const struct store_job *job, uint32_t position, bool more);
/* The first `n_files` files, of `size` bytes and with `digest`. */
int reply_fetch(struct packed *ret, const uint8_t *id, const struct store_file *files,
	size_t n_files, uint64_t size, const uint8_t digest[32], uint64_t step,
	const char *folder_name);
int reply_read(struct packed *ret, const uint8_t *id, uint64_t offset, bool more);
/* A part of a streamed answer, and the answer itself. */
int reply_output(struct packed *ret, const uint8_t *id, enum output_kind kind,
	const struct packed *output);
/* `folder_name`: of ANSWER_MERGE. */
int reply_result(struct packed *ret, const uint8_t *id, const struct task_result *result,
	const char *folder_name);
