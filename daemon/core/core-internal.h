#pragma once
/* The core's state, for the files of this folder that decide. */

#include <sodium.h>
#include <sys/queue.h>

#include "daemon/core/convert.h"
#include "daemon/core/core.h"
#include "proto/proto.h"
#include "util/cleanup.h"

#define SECONDS(n) ((n)*INT64_C(1000000000))
#define MILLISECONDS(n) ((n)*INT64_C(1000000))

enum {
	MAX_INSPECT = 2,                  /* inspect children at once */
	MAX_WORKS = 256,                  /* requests under way or waiting for a child */
	MAX_TRAINER_WORKS = 4,            /* evaluations and generations with the trainer at once */
	MAX_TRIES = 3,                    /* deaths of a job's trainer without progress between them */
	BULK_MAX = 8 * 1024 * 1024,       /* bytes of chunks in one transaction */
	PREPARE_SLICE = 16 * 1024 * 1024, /* bytes of an interrupted upload digested in a turn */
	FIRST_OUTPUTS = 64,               /* credit that an answer in parts begins with */
	PLAN_CACHE = 32,
	NEVER_STARTED = 5, /* deaths of a child at the daemon's start that are put up with */
};

/* ---- children ------------------------------------------------------------------------------ */

enum child_state {
	CHILD_DOWN,     /* there is no process */
	CHILD_STARTING, /* until it says that it is ready */
	CHILD_READY,
	CHILD_ENDING, /* asked to end, or killed: its messages no longer count */
};

struct child {
	uint64_t id;
	enum child_kind kind;
	enum child_state state;
	int64_t started_ns, heard_ns;
	int64_t kill_ns; /* when patience ends; INT64_MAX: never */
	/* front and trainer */
	unsigned failures; /* deaths soon after the start, in a row */
	int64_t restart_ns;
	/* inspect children */
	struct work *work;
};

/* ---- jobs ---------------------------------------------------------------------------------- */

/* Why a job's task was asked to end. */
enum stop { STOP_NONE, STOP_CANCEL, STOP_HOLD, STOP_SHUTDOWN };

/* A job that has not ended. Those that have are in the store only. */
struct job {
	struct store_job rec;
	bool dirty;        /* differs from the record in the store */
	struct task *task; /* while a trainer has it */
	enum stop stop;
	char *stop_reason;                     /* may be NULL */
	uint64_t start_step, start_checkpoint; /* progress is what goes beyond these */
	int64_t not_before_ns;                 /* back-off */
	uint32_t position;                     /* as of the last sched_number() */
};

/* ---- tasks and works ----------------------------------------------------------------------- */

struct pull {
	uint64_t offset, end;
};

/* A checkpoint on its way from the trainer into the store. */
struct staging {
	bool active;
	uint64_t step;
	struct store_files content;
	double eval_loss;
	bool final;
	uint64_t have;   /* bytes that the store had of it at the beginning */
	uint64_t offset; /* of the next chunk */
};

/* Something a child is doing. */
struct task {
	TAILQ_ENTRY(task) entry;
	struct task_spec *spec;
	struct child *child;
	struct pull pulls[TASK_MAX_INPUTS];
	bool damaged;      /* an input cannot be read */
	int64_t kill_ns;   /* the child dies if it has not ended by then; INT64_MAX: no such time */
	struct job *job;   /* TASK_TRAIN */
	struct work *work; /* the others */
	struct staging staging;
};
TAILQ_HEAD(task_list, task);

struct cached_plan {
	uint8_t key[32];
	struct packed plan;
	uint64_t total, overhead, steps, used; /* used: 0 where the place is empty */
	char *reason;
};

/* Jobs that are being submitted: all of them, or none. */
struct draft {
	struct store_job job;
	uint8_t key[32]; /* of its plan */
	struct cached_plan plan;
};
struct drafts {
	struct draft *at;
	size_t n, planned; /* those before `planned` have their plan */
};

/* A request that takes a child to answer. */
struct work {
	TAILQ_ENTRY(work) entry;
	struct request req;
	uint64_t *sessions; /* that wait for the answer */
	size_t n_sessions;
	struct task_spec *spec;
	struct task *task;                 /* while a child has it */
	bool on_trainer;                   /* otherwise for an inspect child */
	unsigned deaths;                   /* of children that had it */
	struct child *slot;                /* the inspect child that is being started for it */
	uint64_t outputs_allowed, outputs; /* parts of the answer: credit given, and sent */
	struct drafts drafts; /* SUBMIT */
};
TAILQ_HEAD(work_list, work);

/* A hold that is answered when the job has let go of its trainer. */
struct hold {
	TAILQ_ENTRY(hold) entry;
	struct request req;
	uint64_t *sessions;
	size_t n_sessions;
};
TAILQ_HEAD(hold_list, hold);

/* ---- streams ------------------------------------------------------------------------------- */

enum stream_kind { STREAM_WATCH, STREAM_READ, STREAM_FETCH };

struct stream {
	TAILQ_ENTRY(stream) entry;
	uint64_t session;
	uint8_t id[16];
	enum stream_kind kind;
	bool ready; /* on streams_ready */
	uint64_t job;
	uint32_t credit; /* WATCH: events; READ: chunks */
	/* WATCH */
	uint64_t after;
	bool follow, told; /* told: the first reply has gone */
	unsigned kinds;
	/* READ, FETCH */
	struct store_files content;
	size_t n_files; /* of the adapter's folder: the first ones */
	uint64_t size;  /* of those */
	uint64_t offset, step;
	crypto_generichash_state hash;
	char *folder_name;
};
TAILQ_HEAD(stream_list, stream);

/* A chunk that waits for the transaction in which it becomes durable. */
struct bulk {
	TAILQ_ENTRY(bulk) entry;
	uint8_t digest[32];
	uint64_t offset;
	uint8_t *data;
	size_t len;
	uint64_t task; /* of a checkpoint; 0: an upload */
	uint64_t session;
	uint8_t id[16];
	int code; /* how it went */
	uint64_t received;
	struct errmsg why;
};
TAILQ_HEAD(bulk_list, bulk);

/* An upload that goes on after an interruption; see upload.c. */
struct preparation {
	TAILQ_ENTRY(preparation) entry;
	uint8_t digest[32], id[16];
	uint64_t session;
};
TAILQ_HEAD(preparation_list, preparation);

/* ---- all of it ----------------------------------------------------------------------------- */

struct core {
	struct core_options options;
	struct store *store;
	struct store_txn *write, *read; /* of this turn; never both */
	int64_t mono, wall, started;
	struct action *actions, **actions_tail;
	uint64_t next_child, next_task;

	struct child front, trainer, inspects[MAX_INSPECT];
	bool have_facts;
	struct trainer_facts facts;
	struct trainer_stats stats;
	bool announced, stopping, front_stopped, exiting;

	struct job **jobs; /* by id */
	size_t n_jobs, cap_jobs, n_dirty;
	bool ended_jobs; /* some of them have ended in this turn */
	struct task_list tasks;
	struct work_list works;
	size_t n_works;
	struct hold_list holds;
	struct stream_list streams_ready, streams_idle;
	struct bulk_list bulks;
	struct preparation_list preparations;
	size_t bulk_bytes;
	struct cached_plan plans[PLAN_CACHE];
	uint64_t plan_uses;
	int64_t collect_ns;
};

/* ---- core.c -------------------------------------------------------------------------------- */

/* The turn's write transaction; what is read through it includes what was written. */
int core_write(struct core *c, struct store_txn **ret);
/* A transaction to read what has been decided so far. */
int core_read(struct core *c, struct store_txn **ret);
/* Ends the turn's transactions, and makes chunks durable that wait. */
int core_flush(struct core *c);
/* What the store says in a small transaction: a full map cannot be undone there. */
int store_fatal(int r);

struct action *core_act(struct core *c, enum action_kind kind, const struct child *child);
int core_exit(struct core *c, int status, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
uint64_t core_memory_limit(const struct core *c);

/* ---- answer.c ------------------------------------------------------------------------------ */

/* Takes the packed reply. */
int answer_packed(struct core *c, uint64_t session, struct packed *reply);
int answer_status(struct core *c, uint64_t session, const uint8_t id[16], int code, const char *fmt,
	...) __attribute__((format(printf, 5, 6)));
/* Answers `req` with a packed reply; and for requests that change something, keeps it with the
 * request in this turn's transaction. `sessions` are all that wait. Takes the reply. */
int answer_kept(struct core *c, const struct request *req, const uint64_t *sessions, size_t n,
	struct packed *reply);
int answer_sessions(struct core *c, const uint64_t *sessions, size_t n, struct packed *reply);
/* 1: the request was made before and has been answered, or waits already; 0: it is new. */
int answer_again(struct core *c, const struct request *req);
bool request_changes(const struct request *req);
int sessions_add(uint64_t **sessions, size_t *n, uint64_t session);
bool sessions_drop(uint64_t *sessions, size_t *n, uint64_t session); /* true: none is left */

/* ---- children.c ---------------------------------------------------------------------------- */

struct child *child_find(struct core *c, uint64_t id);
int child_start(struct core *c, struct child *child, enum child_kind kind);
void child_kill(struct core *c, struct child *child);
/* Asks it to end by itself, soon. */
int child_dismiss(struct core *c, struct child *child);
int children_settle(struct core *c); /* restarts, timeouts, the end */
int children_event(struct core *c, struct event *ev);
int children_shutdown(struct core *c);
int64_t children_deadline(const struct core *c);

/* ---- job.c --------------------------------------------------------------------------------- */

struct job *job_find(struct core *c, uint64_t id);
void job_free(struct job *j);
bool job_state_ended(enum job_state s);
const char *job_state_name(enum job_state s);
/* Adds it to the live ones; takes rec. */
int job_add(struct core *c, struct store_job *rec, struct job **ret);
int job_append(struct core *c, struct job *j, const struct job_event *e);
int job_set_state(struct core *c, struct job *j, enum job_state state, const char *reason);
void job_touch(struct core *c, struct job *j); /* its record differs now */
int jobs_flush(struct core *c);                /* writes the dirty ones */
void jobs_forget(struct core *c);              /* the ended ones, after the commit */
int jobs_recover(struct core *c, struct errmsg *err);
/* The job's record from memory or store; STATUS_NOT_FOUND. `*ret_own` is to be deinited. */
int job_lookup(struct core *c, uint64_t id, const struct store_job **ret, struct store_job *own);
const struct store_checkpoint *job_checkpoint(
	const struct store_job *rec, uint64_t step, bool best);
bool job_has_final(const struct store_job *rec);

/* ---- outcome.c ----------------------------------------------------------------------------- */

/* Counts what is recorded of a job, each event once. */
void outcome_metrics(struct job *j, const struct job_event *e);
void outcome_eval(struct job *j, const struct job_event *e);
int outcome_finish(struct core *c, struct job *j); /* when the job ends */

/* ---- sched.c ------------------------------------------------------------------------------- */

/* Starts what the trainer has room for. */
int sched_settle(struct core *c);
int64_t sched_deadline(const struct core *c);
/* Place in the queue from 1; 0: it does not wait. */
uint32_t sched_position(const struct core *c, const struct job *j);
/* Sets `position` of all live jobs. */
int sched_number(struct core *c);
bool sched_busy(const struct core *c); /* a new job would have to wait */

/* ---- train.c, checkpoint.c ----------------------------------------------------------------- */

int train_start(struct core *c, struct job *j);
/* Asks the job's task to end. */
int train_stop(
	struct core *c, struct job *j, enum stop stop, const char *reason, bool checkpoint_first);
int train_event(struct core *c, struct task *t, struct event *ev);
int train_result(struct core *c, struct task *t, const struct task_result *r);
int train_lost(struct core *c, struct task *t, const char *why);

int checkpoint_begin(struct core *c, struct task *t, struct event *ev);
int checkpoint_chunk(struct core *c, struct task *t, struct event *ev);
int checkpoint_end(struct core *c, struct task *t);
/* A chunk's way into the store has ended. */
int checkpoint_landed(struct core *c, const struct bulk *b);
void staging_deinit(struct staging *s);

/* ---- task.c, work.c ------------------------------------------------------------------------ */

struct task *task_find(struct core *c, uint64_t id);
/* Sends `spec` to the child under a new number. Takes a reference of its own. */
int task_start(struct core *c, struct child *child, struct task_spec *spec, struct task **ret);
void task_end(struct core *c, struct task *t);
int task_cancel(struct core *c, struct task *t, bool checkpoint_first);
int task_message(struct core *c, struct child *child, struct event *ev);
/* The child is gone; what it was doing is settled. */
int tasks_lost(struct core *c, struct child *child, const char *why);
int task_pump(struct core *c, struct child *child, size_t room);
bool task_pump_wants(const struct core *c, const struct child *child);
int64_t tasks_deadline(const struct core *c);
int tasks_settle(struct core *c); /* kills the children of overdue ones */

/* Queues a request for a child; takes `req`'s contents and the reference to `spec`. */
int work_add(struct core *c, struct request *req, struct task_spec *spec, bool on_trainer,
	struct work **ret);
struct work *work_find(struct core *c, uint32_t uid, const uint8_t id[16]);
struct work *work_of_session(struct core *c, uint64_t session, const uint8_t id[16]);
/* Answers all that wait and forgets it. */
int work_answer(struct core *c, struct work *w, struct packed *reply);
int work_fail(struct core *c, struct work *w, int code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void work_drop(struct core *c, struct work *w); /* nobody waits any more */
int work_output(struct core *c, struct work *w, struct event *ev);
int work_result(struct core *c, struct work *w, struct task_result *r);
int work_lost(struct core *c, struct work *w, const char *why);
int work_ready(struct core *c, struct child *child);
int works_settle(struct core *c); /* hands waiting ones to children */
int works_shutdown(struct core *c);
void works_session_end(struct core *c, uint64_t session, bool all);
int works_credit(struct core *c, uint64_t session, const uint8_t id[16], uint32_t credit);
bool works_stream_end(struct core *c, uint64_t session, const uint8_t id[16]);

/* ---- requests ------------------------------------------------------------------------------ */

int request_step(struct core *c, struct request *req);  /* request.c */
int model_request(struct core *c, struct request *req); /* model.c */
int model_result(struct core *c, struct work *w, struct task_result *r);
int dataset_request(struct core *c, struct request *req); /* dataset.c */
int dataset_result(struct core *c, struct work *w, struct task_result *r);
int upload_begin(struct core *c, const struct request *req); /* upload.c */
int upload_chunk(struct core *c, const struct request *req, const void *raw, size_t raw_len);
int uploads_prepare(struct core *c); /* outside of transactions: the last thing of a turn */
int upload_landed(struct core *c, const struct bulk *b);
int bulk_add(struct core *c, const uint8_t digest[32], uint64_t offset, const void *data,
	size_t len, struct bulk **ret);
int submit_request(struct core *c, struct request *req); /* submit.c */
int submit_result(struct core *c, struct work *w, struct task_result *r);
/* Which job of a sweep a child is at work on, for complaints; NULL: there is just one. */
const char *submit_variant(const struct work *w);
void drafts_deinit(struct drafts *d);
void plan_cache_deinit(struct core *c);
int job_request(struct core *c, struct request *req); /* control.c */
void hold_free(struct hold *h);
/* Answers those who wait for the job to be held. */
int holds_settle(struct core *c, const struct job *j);
int holds_shutdown(struct core *c);
void holds_session_end(struct core *c, uint64_t session, bool all);
int device_request(struct core *c, struct request *req); /* device.c: eval, generate */
/* merge.c: what a merged model will be, or its bytes; takes over `req`. */
int merge_request(struct core *c, struct request *req, const struct store_job *rec,
	const struct store_checkpoint *k);
int merge_output(struct core *c, struct work *w, struct event *ev);

/* Looks a name up and answers when there is none: 1. */
int find_model(
	struct core *c, const struct request *req, const char *name, struct store_model *ret);
int find_dataset(struct core *c, const struct request *req, const char *key, const char *name,
	struct store_job_data *ret);
/* STATUS_INVALID or STATUS_NOT_FOUND, answered: 1. */
int find_blob(
	struct core *c, const struct request *req, const char *key, const struct store_files *f);

/* ---- stream.c ------------------------------------------------------------------------------ */

int stream_request(struct core *c, struct request *req);
void stream_free(struct stream *s);
void streams_wake(struct core *c, uint64_t job);
void streams_session_end(struct core *c, uint64_t session, bool all);
bool stream_credit(struct core *c, uint64_t session, const uint8_t id[16], uint32_t credit);
bool stream_end(struct core *c, uint64_t session, const uint8_t id[16]);
int streams_shutdown(struct core *c);
int stream_pump(struct core *c, size_t room);
