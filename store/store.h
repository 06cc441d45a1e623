#pragma once
/*
 * What is durable: jobs, events, answered requests, models, datasets and blobs, in one LMDB
 * environment that the core alone opens, once.
 *
 * Records are plain structs here; store/record.c turns them to and from record.proto. A field of
 * type `struct packed` holds a packed protobuf message that the core hands on without looking
 * inside.
 *
 * Every change goes through a write transaction; nothing is visible before store_commit() returned
 * 0. A failed commit is an unknown outcome: the process must exit without answering (docs/storage).
 * Functions copy: nothing returned points into the map. Return values: 0; a positive status as
 * documented; negative errno, fatal (-EIO also for a record or chunk that does not check).
 *
 * Any function that writes may return STATUS_DISK_FULL. After that, or any other status but
 * STATUS_NOT_FOUND from a write that was meant to succeed, abort: what was asked for may be half
 * written. The `each` functions may write in their callbacks.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/buf.h"
#include "util/errmsg.h"

struct store;
struct store_txn;

struct packed {
	uint8_t *data; /* owned */
	size_t len;
};
void packed_deinit(struct packed *p);
int packed_set(struct packed *p, const void *data, size_t len); /* copies; -ENOMEM */

/* ---- environment --------------------------------------------------------------------------- */

/* Opens or creates STATE_DIR/store. Refused with one clear sentence, nothing changed: held by
 * another process (STATUS_CONFLICT; lock file STATE_DIR/lock), corrupt or of a newer version
 * (STATUS_INVALID, STATUS_VERSION), a network file system (STATUS_INVALID). The map takes 1 TiB of
 * address space; PEFTD_STORE_MAP sets another size in bytes, which is the most the store can hold.
 */
int store_open(struct store **ret, const char *state_dir, struct errmsg *err);
void store_close(struct store *s);

/* Verifies every page, digest and reference, changes nothing; findings as lines in `report`.
 * *ret_faults counts them. Reads the whole store in one transaction: for a store at rest. */
int store_check(struct store *s, struct buf *report, uint64_t *ret_faults);

struct store_space {
	uint64_t used;    /* bytes of live pages */
	uint64_t fs_free; /* bytes free on the file system */
	uint64_t fs_total;
};
int store_space(struct store *s, struct store_space *ret);

/* STATUS_DISK_FULL when `bytes` more would leave less than 2 GiB or 5 % free, whichever is less
 * (the reserve can be set lower for tests with PEFTD_STORE_RESERVE, in bytes). The file never
 * shrinks: four fifths of what was deleted in it count as free. */
int store_room(struct store *s, uint64_t bytes, struct errmsg *err);

int store_begin(struct store *s, bool write, struct store_txn **ret);
int store_commit(struct store_txn *t); /* frees t in any case; STATUS_DISK_FULL: nothing was done;
										* negative: exit */
void store_abort(struct store_txn *t); /* frees t; NULL is fine */

/* mdb_reader_check and garbage: unreferenced blobs untouched for a day, requests older than a day,
 * events and jobs past their retention; at most max_keys keys (no less than 16). *ret_more: call
 * again soon. now_wall_ns is for ages of records only. Events go 7 days, jobs 30 days after
 * ended_wall_ns (0: never). STATUS_DISK_FULL: the disk has no room even to delete; nothing was
 * done, and this is no reason to stop: try again later. */
int store_collect(struct store *s, uint64_t now_wall_ns, unsigned max_keys, bool *ret_more);

/* ---- blobs --------------------------------------------------------------------------------- */

/* Content in chunks of CHUNK_SIZE (262,128) bytes, each with its digest, named by the BLAKE2b-256
 * of the whole. Incomplete while received < size; complete once the whole's digest has been
 * checked. */
struct store_blob {
	uint8_t digest[32];
	uint64_t size, received;
	uint32_t references;
};

/* Finds a blob; STATUS_NOT_FOUND. */
int store_blob_get(struct store_txn *t, const uint8_t digest[32], struct store_blob *ret);

/* Begins a blob or finds what is there of it (received == size: all of it), and touches it: an
 * upload that takes more than a day must begin again in between. STATUS_INVALID: no content of
 * `size` has this digest (size 0, or the digest of nothing). STATUS_CONFLICT: this content has
 * another size. */
int store_blob_begin(struct store_txn *t, const uint8_t digest[32], uint64_t size,
	uint64_t now_wall_ns, struct store_blob *ret);

/* Appends a chunk at `offset` == received; whole chunks but for the last. When it is the last, the
 * digest of the whole is compared: STATUS_INVALID and the blob is dropped when it differs (commit
 * makes that durable at once; after an abort, the next store_blob_begin() does it). STATUS_INVALID
 * also for a chunk of a wrong length. STATUS_CONFLICT: another offset is due (ret->received, filled
 * then, too). STATUS_NOT_FOUND: not begun. None of these harms the transaction. At most 8 MiB a
 * transaction: -E2BIG. */
int store_blob_append(struct store_txn *t, const uint8_t digest[32], uint64_t offset,
	const void *data, size_t len, struct store_blob *ret, struct errmsg *err);

/* After a restart the running digest of an upload that goes on is computed again from what is here,
 * 8 MiB with each chunk and the rest with the last. This does it beforehand, max_bytes a call, so
 * that no append takes long; *ret_more: call again. STATUS_NOT_FOUND. */
int store_blob_prepare(
	struct store *s, const uint8_t digest[32], uint64_t max_bytes, bool *ret_more);

/* Reads [offset, offset + len) of a complete blob, verifying the chunks' digests; out[len]. -EIO
 * when one differs, -EINVAL outside of it, STATUS_NOT_FOUND when it is not here or not complete. */
int store_blob_read(
	struct store_txn *t, const uint8_t digest[32], uint64_t offset, void *out, size_t len);

/* For what is not a record of the store. STATUS_NOT_FOUND: no complete blob. -EINVAL below 0. */
int store_blob_ref(struct store_txn *t, const uint8_t digest[32]);
int store_blob_unref(struct store_txn *t, const uint8_t digest[32]);

/* One file inside a blob. */
struct store_file {
	char *name; /* owned */
	uint64_t size;
};
struct store_files {
	uint8_t digest[32];
	uint64_t size;
	struct store_file *files; /* owned */
	size_t n;
};
void store_files_deinit(struct store_files *f);
int store_files_copy(struct store_files *dst, const struct store_files *src);

/* ---- models and datasets ------------------------------------------------------------------- */

struct store_model {
	char *name, *path;
	uint8_t digest[32];
	struct packed facts; /* peftd.v1.Model, complete */
};
void store_model_deinit(struct store_model *m);
/* Replaces. STATUS_INVALID: no name, or no UTF-8. */
int store_model_put(struct store_txn *t, const struct store_model *m);
int store_model_get(struct store_txn *t, const char *name, struct store_model *ret); /* NOT_FOUND */
int store_model_remove(struct store_txn *t, const char *name);                       /* NOT_FOUND */
/* Calls fn for each in the order of names, until it returns non-zero, which is returned. */
int store_model_each(
	struct store_txn *t, int (*fn)(void *ctx, const struct store_model *m), void *ctx);

struct store_dataset {
	char *name;
	uint32_t owner_uid;
	uint64_t rows;
	char *format, *prompt_field, *completion_field; /* the fields may be NULL */
	uint64_t added_wall_ns;
	struct store_files content; /* put takes a reference on the blob, remove gives it back */
};
void store_dataset_deinit(struct store_dataset *d);
/* Replaces. STATUS_INVALID: no name, no UTF-8, or the files' sizes do not add up. STATUS_NOT_FOUND:
 * there is no complete blob of the content's digest. */
int store_dataset_put(struct store_txn *t, const struct store_dataset *d);
int store_dataset_get(struct store_txn *t, const char *name, struct store_dataset *ret);
int store_dataset_remove(struct store_txn *t, const char *name);
int store_dataset_each(
	struct store_txn *t, int (*fn)(void *ctx, const struct store_dataset *d), void *ctx);

/* ---- jobs ---------------------------------------------------------------------------------- */

/* Numbers equal peftd.v1.JobState. */
enum job_state {
	JOB_PENDING,
	JOB_HELD,
	JOB_STARTING,
	JOB_RUNNING,
	JOB_PREEMPTING,
	JOB_CANCELLING,
	JOB_SUCCEEDED,
	JOB_FAILED,
	JOB_CANCELLED,
};

struct store_checkpoint {
	uint64_t step;
	struct store_files content;
	double eval_loss; /* NaN: not evaluated */
	uint64_t wall_ns;
	bool final, best;
};

/* A dataset as it was when the job was submitted. */
struct store_job_data {
	struct store_files content;
	char *name, *prompt_field, *completion_field;
	uint64_t rows;
};

/* The memory of a run as it was reserved, in bytes; arena 0: not known. */
struct store_measured {
	uint64_t base_weights, trainable_weights, optimizer_states, gradients, activations, temporary;
	uint64_t arena;
};

/* What a job brought: sums over the recorded steps. */
struct store_outcome {
	uint64_t steps, tokens; /* steps 0: nothing is known */
	double seconds;
	double step_seconds_median;       /* 0: not known */
	uint64_t best_eval_step;          /* 0: there was no evaluation */
	double eval_loss, best_eval_loss; /* the last, and that of best_eval_step */
};

/* Seconds of a forward pass when the job was trained; tokens 0: not known, merged 0: it cannot be.
 */
struct store_inference {
	uint32_t tokens, passes;
	double base, unmerged, merged;
};

struct store_job {
	uint64_t id;
	uint8_t request_id[16];
	uint32_t owner_uid;
	char *name;  /* may be NULL */
	char *model; /* its name; path and digest as at submit */
	char *model_path;
	uint8_t model_digest[32];
	enum job_state state;
	char *reason;           /* may be NULL */
	int priority;           /* -1 low, 0 normal, 1 high */
	struct packed spec;     /* peftd.v1.JobSpec, complete */
	struct packed plan;     /* peftd.v1.Plan */
	uint64_t planned_bytes; /* of the plan's total, for admission */
	uint64_t steps;
	struct store_job_data dataset, eval_dataset; /* eval_dataset.name NULL: none */
	struct store_files init_adapter;             /* n == 0: none */
	uint64_t submitted_wall_ns, started_wall_ns, ended_wall_ns;
	uint32_t attempt, tries;
	uint64_t last_seq, last_step, last_eval_step;
	double last_loss;
	uint64_t measured_arena, measured_peak_rss;
	struct store_measured measured;
	struct store_outcome outcome;
	struct store_inference inference;
	uint64_t sweep; /* the id of the sweep's first job, after which the others come; 0: none */
	uint32_t sweep_size;
	char *variant; /* its own settings in the sweep, for people; may be NULL */
	struct store_checkpoint *checkpoints; /* by step */
	size_t n_checkpoints;
};
void store_job_deinit(struct store_job *j);

/* The next id; it is used up when the transaction commits. Ids count from 1. */
int store_job_next_id(struct store_txn *t, uint64_t *ret);
/* Writes the record, new or not. References of blobs are adjusted by the difference to what was
 * there: dataset, eval_dataset, init_adapter and every checkpoint hold one each. STATUS_NOT_FOUND:
 * one of them is not here complete. STATUS_INVALID: a text is no UTF-8, files' sizes do not add up,
 * checkpoints are not in the order of steps, or the record is longer than 1 MiB. */
int store_job_put(struct store_txn *t, const struct store_job *j);
int store_job_get(struct store_txn *t, uint64_t id, struct store_job *ret); /* NOT_FOUND */
int store_job_each(struct store_txn *t, int (*fn)(void *ctx, const struct store_job *j), void *ctx);

/* ---- events -------------------------------------------------------------------------------- */

/* An event is a packed peftd.v1.Event with its seq; the caller puts seq = job.last_seq + 1 into
 * both and writes the job in the same transaction. */
enum store_event_kind {
	EVENT_STATE = 1,
	EVENT_METRICS = 2,
	EVENT_EVAL = 4,
	EVENT_LOG = 8,
	EVENT_CHECKPOINT = 16,
};
/* -EINVAL when seq is not the next. */
int store_event_append(struct store_txn *t, uint64_t job, uint64_t seq, enum store_event_kind kind,
	const void *event, size_t len);
/* Calls fn for events with seq > after whose kind is in `kinds`, in order, at most `max` of them.
 * STATUS_COMPACTED when `after` lies below what is kept; *ret_first is then the oldest kept (one
 * more than the newest there ever was, when none is). Stops when fn returns non-zero, which is
 * returned; `event` is valid during the call. */
int store_event_each(struct store_txn *t, uint64_t job, uint64_t after, unsigned kinds,
	unsigned max, int (*fn)(void *ctx, uint64_t seq, const void *event, size_t len), void *ctx,
	uint64_t *ret_first);

/* ---- answered requests --------------------------------------------------------------------- */

struct store_request {
	uint8_t id[16];
	uint32_t uid;
	uint8_t body_digest[32];
	struct packed reply; /* peftd.v1.Reply */
	uint64_t wall_ns;
};
void store_request_deinit(struct store_request *r);
int store_request_put(struct store_txn *t, const struct store_request *r);
int store_request_get(struct store_txn *t, uint32_t uid, const uint8_t id[16],
	struct store_request *ret); /* NOT_FOUND */
