#pragma once
/*
 * What the core hears and what it says, as plain structs: requests of clients, messages of
 * children, and the actions that answer them. convert*.c turns them from and to protobuf.
 *
 * Every struct owns what it points to, unless its comment says otherwise; the _deinit functions
 * take zeroed and half-built structs. Fields of type `struct packed` are packed protobuf messages
 * that the core hands on without looking inside.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store/store.h"
#include "util/errmsg.h"

/* ---- requests of clients ------------------------------------------------------------------- */

enum request_kind {
	REQUEST_BAD, /* malformed in a way that can be answered: `fault` says how */
	REQUEST_STATUS,
	REQUEST_MODEL_ADD,
	REQUEST_MODEL_LIST,
	REQUEST_MODEL_SHOW,
	REQUEST_MODEL_REMOVE,
	REQUEST_UPLOAD_BEGIN,
	REQUEST_UPLOAD_CHUNK,
	REQUEST_DATASET_PUT,
	REQUEST_DATASET_LIST,
	REQUEST_DATASET_SHOW,
	REQUEST_DATASET_REMOVE,
	REQUEST_DATASET_INSPECT,
	REQUEST_SUBMIT, /* of one job or of a sweep */
	REQUEST_JOB_LIST,
	REQUEST_JOB_SHOW,
	REQUEST_JOB_CONTROL,
	REQUEST_WATCH,
	REQUEST_FETCH,
	REQUEST_READ,
	REQUEST_EVAL,
	REQUEST_GENERATE,
};

/* Numbers equal peftd.v1.JobControlRequest.Action. */
enum control_action { CONTROL_CANCEL, CONTROL_HOLD, CONTROL_RELEASE, CONTROL_RETRY };

/* Which adapter an evaluation or a generation runs with. */
struct adapter_ref {
	enum { ADAPTER_NONE, ADAPTER_JOB, ADAPTER_UPLOADED } from;
	uint64_t job, step; /* ADAPTER_JOB; step 0: the last checkpoint */
	struct store_files uploaded;
};

/* What the core reads of a JobSpec; the rest is for the planner and the trainer. */
struct spec {
	struct packed packed; /* peftd.v1.JobSpec, complete: defaults filled in */
	char *name;           /* NULL: none */
	char *model, *dataset;
	char *eval_dataset; /* NULL: none */
	int priority;       /* -1 low, 0 normal, 1 high */
	uint8_t key[32];    /* digest of the spec without name, priority and seed */
};
void spec_deinit(struct spec *s);

/* A job that is asked for, alone or as one of a sweep. */
struct member {
	struct spec spec;
	char *variant; /* its own settings in the sweep, for people; NULL: alone */
};

struct request {
	uint64_t session;
	uint32_t uid;
	uint8_t id[16];
	uint8_t body_digest[32]; /* of the whole request; meaningful for those that change something */
	enum request_kind kind;
	int fault; /* REQUEST_BAD: a status, and why */
	struct errmsg fault_text;

	char *name;              /* MODEL_*, DATASET_* */
	char *path;              /* MODEL_ADD */
	struct store_files blob; /* UPLOAD_BEGIN, DATASET_PUT, SUBMIT (init_adapter; size 0: none) */
	char *prompt_field, *completion_field; /* DATASET_PUT; may be NULL */
	uint8_t digest[32];                    /* UPLOAD_CHUNK */
	uint64_t offset;                       /* UPLOAD_CHUNK, READ */
	struct packed body;                    /* DATASET_INSPECT, EVAL, GENERATE: the request itself */
	char *model, *dataset;                 /* DATASET_INSPECT (model), EVAL, GENERATE (model) */
	char *shots_dataset;                   /* EVAL; may be NULL */
	struct adapter_ref adapter;            /* EVAL, GENERATE */
	struct member *members;                /* SUBMIT: the jobs; one unless it is a sweep */
	size_t n_members;
	bool sweep;
	bool hold, plan_only;                  /* SUBMIT */
	int state;                             /* JOB_LIST: -1 any */
	bool mine;                             /* JOB_LIST */
	uint64_t of_sweep;                     /* JOB_LIST; 0: of any or none */
	uint64_t job;                          /* JOB_*, WATCH, FETCH, READ */
	enum control_action action;
	uint64_t after;  /* WATCH */
	uint32_t credit; /* WATCH: events; READ: chunks */
	bool follow;     /* WATCH */
	unsigned kinds;  /* WATCH: of enum store_event_kind; 0: all */
	uint64_t step;   /* FETCH, READ */
	bool best;       /* FETCH */
	bool merge;      /* FETCH, READ */
};
void request_deinit(struct request *r);

/* ---- tasks of children --------------------------------------------------------------------- */

enum task_kind {
	TASK_TRAIN,
	TASK_PLAN,
	TASK_EVAL,
	TASK_GENERATE,
	TASK_MODEL_INSPECT,
	TASK_DATASET_CHECK,
	TASK_DATASET_INSPECT,
	TASK_MERGE,
	TASK_MERGE_READ,
};

enum { TASK_MAX_INPUTS = 4 };

/* One thing to do, complete. Inputs are numbered in the order dataset, eval_dataset, adapter,
 * resume, those missing left out. Shared by the core's bookkeeping and the action that sends it. */
struct task_spec {
	unsigned refs;
	uint64_t id;
	enum task_kind kind;
	char *model_name, *model_path; /* NULL: no model */
	bool has_model_digest;
	uint8_t model_digest[32];
	/* content.size 0: none. The second of an evaluation is that of its examples. */
	struct store_job_data dataset, eval_dataset;
	struct store_files adapter; /* the initial one, or the one to use; size 0: none */
	struct store_files resume;  /* size 0: none */
	uint64_t resume_step;
	struct packed spec;    /* TRAIN, PLAN, MERGE: peftd.v1.JobSpec */
	struct packed plan;    /* TRAIN: peftd.v1.Plan */
	struct packed request; /* EVAL, GENERATE, DATASET_INSPECT */
	uint64_t job;
	uint64_t step, offset; /* MERGE, MERGE_READ */
	uint32_t attempt;
	double gflops_f32, gflops_bf16; /* PLAN: the device, as measured; 0: unknown */
	uint32_t threads;
	uint64_t memory_limit;
};
struct task_spec *task_spec_new(enum task_kind kind);
struct task_spec *task_spec_ref(struct task_spec *t);
void task_spec_unref(struct task_spec *t); /* NULL is fine */
/* Input `index`, NULL when there is none. */
const struct store_files *task_spec_input(const struct task_spec *t, unsigned index);
unsigned task_spec_n_inputs(const struct task_spec *t);

int store_job_data_copy(struct store_job_data *dst, const struct store_job_data *src);
void store_job_data_deinit(struct store_job_data *d);

/* ---- events of jobs ------------------------------------------------------------------------ */

/* What an event says; borrowed strings. The core numbers and dates it. */
struct job_event {
	enum store_event_kind kind;
	enum job_state state;                /* STATE */
	const char *text;                    /* STATE: reason; LOG; may be NULL */
	const char *level;                   /* LOG */
	uint32_t attempt;                    /* STATE */
	uint64_t step;                       /* METRICS, EVAL, CHECKPOINT */
	double loss, lr, grad_norm, seconds; /* METRICS; loss and seconds of EVAL, too */
	uint64_t tokens, target_tokens;
	uint64_t size; /* CHECKPOINT */
	bool final;    /* CHECKPOINT */
};

/* ---- what the core hears ------------------------------------------------------------------- */

enum event_kind {
	EV_TIME,     /* nothing happened but time */
	EV_SHUTDOWN, /* a signal asks for the end */

	/* of a child as a process */
	EV_CHILD_EXIT,   /* it is gone; its messages have all been delivered before */
	EV_CHILD_BROKEN, /* it sent what is no message, or closed its link */

	/* of the front */
	EV_FRONT_READY,
	EV_REQUEST,
	EV_SESSION_END,
	EV_STREAM_CREDIT,
	EV_STREAM_END,

	/* of the trainer and of inspect children */
	EV_TRAINER_READY,
	EV_PULL,
	EV_JOB_EVENT,
	EV_CHECKPOINT_BEGIN,
	EV_CHECKPOINT_CHUNK,
	EV_CHECKPOINT_END,
	EV_OUTPUT,
	EV_RESULT,
	EV_STATS,
};

struct trainer_facts {
	char *device;
	uint32_t threads;
	uint64_t memory_total; /* bytes that peftd may use */
	double gflops_f32, gflops_bf16;
};
void trainer_facts_deinit(struct trainer_facts *f);

struct resident {
	char *name, *dtype;
	uint64_t bytes;
};
struct trainer_stats {
	uint64_t memory_in_use, peak_rss;
	struct resident *models;
	size_t n_models;
};
void trainer_stats_deinit(struct trainer_stats *s);

/* How a task ended, with what the core reads of the answer. */
struct task_result {
	int code; /* a status; STATUS_OK */
	char *text;
	enum {
		ANSWER_NONE,
		ANSWER_PLAN,
		ANSWER_EVAL,
		ANSWER_GENERATE,
		ANSWER_MODEL,
		ANSWER_DATASET,
		ANSWER_INSPECT,
		ANSWER_TRAIN,
		ANSWER_MERGE,
	} answer;
	struct packed packed;                           /* the answer itself */
	uint64_t total, overhead, steps;                /* PLAN */
	char *reason;                                   /* PLAN: the planner's words; may be NULL */
	uint8_t digest[32];                             /* MODEL */
	char *path;                                     /* MODEL: resolved; may be NULL */
	uint64_t rows;                                  /* DATASET */
	char *format, *prompt_field, *completion_field; /* DATASET; may be NULL */
	uint64_t peak_rss;                              /* TRAIN */
	struct store_inference inference;               /* TRAIN; tokens 0: not measured */
};
void task_result_deinit(struct task_result *r);

struct event {
	enum event_kind kind;
	int64_t mono_ns, wall_ns; /* when the core heard it */
	uint64_t child;           /* who, for events of children */
	uint64_t task;
	const void *raw; /* borrowed until core_step() returns */
	size_t raw_len;
	union {
		struct {
			bool signalled;
			int code; /* exit status or signal; -1: could not be started */
			char text[256];
		} exit;           /* CHILD_EXIT; text for CHILD_BROKEN, too */
		uint32_t version; /* FRONT_READY */
		struct request request;
		struct {
			uint64_t session;
			uint8_t id[16];
			uint32_t credit;
		} stream; /* SESSION_END, STREAM_CREDIT, STREAM_END */
		struct {
			uint32_t version;
			struct trainer_facts facts;
		} trainer;
		struct {
			uint32_t input, chunks;
			uint64_t offset;
		} pull;
		struct {
			struct job_event event; /* its strings are owned here */
			char *text, *level;
			uint64_t arena, peak_rss;
			struct store_measured measured; /* arena 0: not told */
		} job;
		struct {
			uint64_t step;
			struct store_files content;
			double eval_loss; /* NaN: not evaluated */
			bool final;
		} checkpoint;    /* CHECKPOINT_BEGIN */
		uint64_t offset; /* CHECKPOINT_CHUNK */
		struct {
			enum output_kind { OUTPUT_INSPECT_ROW, OUTPUT_GENERATE, OUTPUT_MERGED } kind;
			struct packed packed; /* none of OUTPUT_MERGED, whose bytes are raw */
			uint64_t offset;      /* OUTPUT_MERGED */
		} output;
		struct task_result result;
		struct trainer_stats stats;
	};
};
void event_deinit(struct event *e);

/* ---- what the core does -------------------------------------------------------------------- */

enum child_kind { CHILD_FRONT, CHILD_TRAINER, CHILD_INSPECT };

enum action_kind {
	ACT_SPAWN,
	ACT_KILL,   /* SIGKILL */
	ACT_CONFIG, /* the first frame to a child: configuration */
	ACT_STOP,   /* Shutdown, with a grace */
	ACT_REPLY,
	ACT_TASK,
	ACT_CHUNK,
	ACT_TASK_CANCEL,
	ACT_CHECKPOINT_CREDIT,
	ACT_CHECKPOINT_DONE,
	ACT_OUTPUT_CREDIT,
	ACT_READY, /* tell the world that requests are answered */
	ACT_EXIT,
};

struct action {
	struct action *next;
	enum action_kind kind;
	uint64_t child;
	enum child_kind child_kind; /* SPAWN, CONFIG */
	uint64_t task;
	uint8_t *raw; /* REPLY, CHUNK */
	size_t raw_len;
	union {
		struct {
			uint64_t session;
			struct packed packed; /* peftd.v1.Reply */
		} reply;
		struct task_spec *spec; /* TASK; a reference */
		struct {
			uint32_t input;
			uint64_t offset;
		} chunk;
		bool checkpoint_first; /* TASK_CANCEL */
		uint32_t credit;       /* CHECKPOINT_CREDIT, OUTPUT_CREDIT */
		struct {
			uint64_t step;
			int code;
			char *text;    /* may be NULL */
		} done;            /* CHECKPOINT_DONE */
		uint32_t grace_ms; /* STOP */
		struct {
			int status;
			char *text; /* why, when not 0 */
		} exit;
	};
};
void action_free(struct action *a); /* NULL is fine */
