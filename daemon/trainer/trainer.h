#pragma once
/*
 * The trainer: a disposable process that owns a device and does what the core asks over its link.
 *
 * Two threads. The main thread owns the link and never waits for anything but it: it receives
 * tasks, pulls their inputs, and sends what the compute thread has put into the queue. The compute
 * thread owns the backend, the models and all engine objects, and executes tasks one after another;
 * tasks that are quick (evaluation, generation) run between the steps of a training. They meet in
 * `struct trainer`, under its lock: the condition variable wakes the compute thread, an eventfd the
 * main thread.
 *
 * Protobuf stays in convert*.c and link*.c; everything else sees the plain structs of this header.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/errmsg.h"

struct models;       /* models.h */
struct adapters;     /* adapters.h */
struct sample_cache; /* dataset.h */

/* ---- what the core asks ---------------------------------------------------------------------- */

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

/* One file of an input that is a concatenation of files. */
struct input_file {
	char *name;
	uint64_t size;
};

/* Content that the core holds. The compute thread sets `wanted`; the main thread pulls it in order
 * and sets `complete`. Changed under the lock, except that `data` belongs to the compute thread
 * once it is complete. */
struct input {
	uint8_t digest[32];
	uint64_t size;
	struct input_file *files;
	size_t n_files;

	bool wanted, complete;
	uint8_t *data;
	uint64_t received;
	uint64_t pulled; /* chunks asked for, from the first */
};

struct task_dataset {
	bool present;
	unsigned input;
	char *name, *prompt_field, *completion_field; /* may be NULL */
	uint64_t rows;
};

/* JobSpec in plain C: defaults filled in, words turned into numbers. */
struct job_spec {
	char *method, *model, *dataset, *chat_template, *init_adapter; /* may be NULL but for method */
	struct method_config config; /* its own memory, but for config.method, which is `method` */
	uint32_t max_steps; /* 0: by epochs */
	double num_train_epochs;
	int64_t batch_size, max_length;
	enum overlong overlong;
	bool packing, train_on_prompt;
	double learning_rate;
	enum lr_scheduler lr_scheduler;
	int64_t warmup_steps;
	double weight_decay, adam_beta1, adam_beta2, adam_epsilon, max_grad_norm;
	enum dtype dtype;
	uint64_t seed;
	bool sequential;
	int64_t save_steps, eval_steps, logging_steps, microbatch_tokens;
};

enum { NO_INPUT = -1 };

struct text {
	char *data; /* owned; followed by a NUL */
	size_t len;
};

struct task {
	struct task *next;
	uint64_t id;
	enum task_kind kind;
	struct input *inputs;
	size_t n_inputs;
	char *model_name, *model_path; /* NULL without a model */
	bool has_model_digest;
	uint8_t model_digest[32];
	struct task_dataset dataset, eval_dataset;
	int adapter; /* index of the input with the (initial) adapter, or NO_INPUT */

	struct job_spec spec; /* TRAIN, PLAN, MERGE */

	struct {
		uint64_t job;
		uint32_t attempt;
		int resume_checkpoint; /* index of an input, or NO_INPUT */
		uint64_t resume_step;
		bool allow_other_plan;
		int64_t plan_microbatch_tokens; /* as admitted; 0: unknown */
		uint64_t plan_total;
	} train;

	struct {
		double gflops_f32, gflops_bf16;
		unsigned threads;
		uint64_t memory_limit;
	} plan;

	struct {
		int64_t max_length;
		enum dtype dtype;
		bool train_on_prompt;
		char *chat_template; /* may be NULL */
		uint64_t shots, seed, limit;
		bool exact_match, last_number, rouge;
		int64_t max_new_tokens;
	} eval; /* examples: of eval_dataset, or of the dataset itself */

	struct {
		struct text *prompts;
		size_t n_prompts;
		char *chat_template; /* may be NULL */
		int64_t max_new_tokens, top_k;
		double temperature, top_p, repetition_penalty;
		bool chat;
		uint64_t seed;
		enum dtype dtype;
	} generate;
	struct text *stops; /* EVAL, GENERATE: texts that end an answer */
	size_t n_stops;

	struct {
		uint64_t rows;
		int64_t max_length;
		bool train_on_prompt, token_texts;
		char *chat_template; /* may be NULL */
	} inspect;

	struct {
		uint64_t job, step, offset;
	} merge;

	/* The compute thread's: what it has of a task that is worked on in pieces, and when it last was. */
	void *work;
	uint64_t turn;

	/* Under the lock. */
	bool running, cancelled, stop; /* stop: write a checkpoint first */
	uint32_t output_credit;
	bool any_output_credit; /* the core gives credit for this task */
};

void task_free(struct task *t);

/* ---- what the trainer answers ---------------------------------------------------------------- */


struct plan_info {
	struct memory_plan memory;
	uint64_t total, overhead;
	uint64_t steps, rows, overlong, untrainable, misaligned, tokens_per_epoch;
	double epochs, tokens_per_second, seconds;
	const char *template_name; /* NULL where none is needed */
};

struct model_info {
	const char *name, *path, *format, *architecture, *dtype, *chat_template;
	uint8_t digest[32];
	uint64_t parameters, file_bytes;
	const struct model_config *config;
	const char *const *linear_modules;
};

struct dataset_info {
	const char *name, *format, *prompt_field, *completion_field;
	uint64_t rows;
};

struct inspect_row {
	uint64_t row;
	const int32_t *ids, *labels;
	size_t n;
	char *const *tokens; /* n texts, or NULL */
	const char *fault;   /* NULL: none */
	bool continues;
};

struct inspect_summary {
	uint64_t rows, overlong, untrainable, misaligned, tokens, target_tokens, longest;
	const char *template_name;
};

struct eval_info {
	struct eval_metrics metrics;
	uint64_t overlong, shots;
	/* Of the answers that were generated; NaN: not asked for. */
	uint64_t answers, new_tokens;
	double exact_match, last_number, rouge1, rouge2, rouge_l;
};

struct generate_info {
	const char *text; /* NULL: none */
	size_t text_len;
	int64_t index; /* of the prompt; -1: of all */
	uint64_t prompt_tokens, new_tokens;
	const char *finish_reason; /* NULL: it goes on */
	double seconds, switch_seconds; /* of all */
	bool adapter_was_here;
};

/* Files of a merged model, at most: what a client takes. */
enum { MERGED_FILES_MAX = 64 };

struct merge_info {
	uint64_t step, size;
	uint8_t digest[32];
	const struct model_folder *folder;
	struct logit_drift drift;
	const char *base_weights;
};

struct train_info {
	uint64_t steps, peak_rss;
	struct forward_times times; /* tokens 0: not measured */
};

/* The payload of a result; at most one is set. */
struct result {
	const struct plan_info *plan;
	const struct eval_info *eval;
	const struct generate_info *generate;
	const struct model_info *model;
	const struct dataset_info *dataset;
	const struct inspect_summary *inspect;
	const struct train_info *train;
	const struct merge_info *merge;
};

/* What the trainer's process takes beside base weights and arenas: code and libraries, the product
 * library's compiled kernels, tokenizer, tokens of the rows. A checkpoint on its way out comes on top. */
#define PROCESS_OVERHEAD ((uint64_t)160 * 1024 * 1024)

/* ---- the meeting point of both threads ------------------------------------------------------- */

/* A checkpoint on its way to the core: Begin, chunks by credit, End, and then the core's word. */
struct checkpoint_out {
	uint64_t task, step;
	struct buf data;
	uint64_t sent;
	uint32_t credit;
	bool ended, done;
	int status; /* when done */
	struct errmsg err;
};

struct resident_info {
	char name[128];
	const char *dtype;
	uint64_t bytes;
};
enum { MAX_RESIDENT = 16 };

struct outgoing; /* link-internal.h */

struct trainer {
	bool inspect; /* constant */

	pthread_mutex_t lock;
	pthread_cond_t changed; /* what the compute thread may wait for has changed */
	int wake_fd;            /* the main thread has something to do */

	/* All below under the lock. */
	bool configured, shutdown, finished, failed;
	char device[32];
	unsigned threads;
	uint64_t memory_limit; /* 0: what the machine has */
	struct task *tasks; /* live ones, in order of arrival */
	struct outgoing *out_head, **out_tail;
	size_t out_bytes;
	struct checkpoint_out *checkpoint; /* NULL: none under way */
	uint64_t memory_in_use;
	struct resident_info resident[MAX_RESIDENT];
	size_t n_resident;
	bool residency_changed;
};

int trainer_init(struct trainer *t, bool inspect);
void trainer_deinit(struct trainer *t);
void trainer_wake_main(struct trainer *t);
/* The live task of this id or NULL; call with the lock held. */
struct task *trainer_find(struct trainer *t, uint64_t id);

/* What the compute thread works with; only it touches this. */
struct compute {
	struct trainer *trainer;
	struct backend *backend; /* NULL in inspect children until a plan needs it */
	unsigned threads;
	uint64_t memory_total;
	struct models *models;
	struct sample_cache *samples;
	struct adapters *adapters;
	double quick_credit; /* seconds; see compute_run_quick() */
	uint64_t turn;
};

/* The compute thread's main function; argument: struct trainer. */
void *compute_main(void *arg);

/* Makes the backend if there is none yet. */
int compute_backend(struct compute *c, unsigned threads, struct errmsg *err);

/*
 * Works on quick tasks; called between the steps of a training, with the seconds that went by since the
 * last call ended. They get as much time as the training had, and no more: a piece of work (a step of
 * decoding, a chunk of a prompt, a slice of an evaluation, the loading of a model) is begun only while
 * there is some left, and what it takes beyond that is paid back by the steps that follow. So a
 * training takes at most twice its time and one piece, whatever is asked of the trainer beside it.
 */
void compute_run_quick(struct compute *c, double seconds);

/* ---- inputs (compute thread) ----------------------------------------------------------------- */

/* Waits until input `index` is here; data stays owned by the task and is followed by a NUL.
 * STATUS_CANCELLED or STATUS_UNAVAILABLE when the task is to end; STATUS_INVALID when the bytes are
 * not those that were named. */
int task_input(struct trainer *t, struct task *task, int index, const uint8_t **ret_data,
	size_t *ret_len, struct errmsg *err);
/* Frees what was pulled; it can be pulled again. */
void task_input_drop(struct trainer *t, struct task *task, int index);
/* The bytes of a file inside a pulled input; STATUS_INVALID when there is none of that name. */
int task_input_file(const struct task *task, int index, const char *name, const uint8_t **ret_data,
	size_t *ret_len, struct errmsg *err);
/* Waits for input `index` and finds the two files of an adapter's folder in it; *ret_size: of all. */
int task_adapter_files(struct trainer *t, struct task *task, int index, struct adapter_files *ret,
	size_t *ret_size, struct errmsg *err);
/* The adapter in input `index`. The caller deinits it. */
int task_adapter(struct trainer *t, struct task *task, int index, struct adapter *ret,
	struct errmsg *err);

/* STATUS_CANCELLED or STATUS_UNAVAILABLE when the task is to end, 0 otherwise. */
int task_interrupted(struct trainer *t, struct task *task);

/* Takes one output's credit, waiting for it: only in inspect children, where nobody else waits.
 * STATUS_CANCELLED when nobody reads any more. */
int task_take_credit(struct trainer *t, struct task *task, struct errmsg *err);

/* ---- answers (compute thread; link_emit.c) --------------------------------------------------- */

void emit_ready(struct trainer *t, const char *device, unsigned threads, uint64_t memory_total,
	double gflops_f32, double gflops_bf16);
void emit_starting(struct trainer *t, const struct task *task);
/* Memory as the run has it: the plan that its session follows, and what the arena took. */
void emit_running(struct trainer *t, const struct task *task, const struct memory_plan *p,
	uint64_t arena);
void emit_metrics(struct trainer *t, const struct task *task, const struct step_metrics *m);
void emit_eval(struct trainer *t, const struct task *task, int64_t step,
	const struct eval_metrics *m);
void emit_log(struct trainer *t, const struct task *task, const char *level, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void emit_inspect_row(struct trainer *t, const struct task *task, const struct inspect_row *row);
void emit_generate(struct trainer *t, const struct task *task, const struct generate_info *g);
/* A piece of a merged model; takes `data`. */
void emit_merged(struct trainer *t, const struct task *task, uint64_t offset, struct buf *data);
/* `message` may be NULL. */
void emit_result(struct trainer *t, const struct task *task, int code, const char *message,
	const struct result *r);

/* Announces a checkpoint and hands its bytes over; the main thread sends them while the compute
 * thread goes on. None may be under way. `data` is taken. `files`: names and sizes. -ENOMEM. */
int emit_checkpoint(struct trainer *t, const struct task *task, uint64_t step, struct buf *data,
	const struct input_file *files, size_t n_files, double eval_loss, bool final);

/* ---- tasks ----------------------------------------------------------------------------------- */

/* Each executes a task and emits what belongs to it, but for a failed result: that is returned,
 * with `err` filled, and emitted by the caller. 0: the result was emitted. */
int task_train(struct compute *c, struct task *task, struct errmsg *err);
int task_plan(struct compute *c, struct task *task, struct errmsg *err);
int task_model_inspect(struct compute *c, struct task *task, struct errmsg *err);
int task_dataset_check(struct compute *c, struct task *task, struct errmsg *err);
int task_dataset_inspect(struct compute *c, struct task *task, struct errmsg *err);
int task_merge(struct compute *c, struct task *task, struct errmsg *err);
int task_merge_read(struct compute *c, struct task *task, struct errmsg *err);

/* A quick task that is worked on in pieces. `begin` sets task->work and may fail half-way; `step` is one
 * piece, *ret_done when the result was emitted; `end` frees task->work, NULL too. */
struct quick_task {
	int (*begin)(struct compute *c, struct task *task, struct errmsg *err);
	int (*step)(struct compute *c, struct task *task, bool *ret_done, struct errmsg *err);
	void (*end)(struct compute *c, struct task *task);
};
extern const struct quick_task quick_generate, quick_eval;

/* ---- specs (job.c) --------------------------------------------------------------------------- */

/* Checks a spec and turns it into the engine's words; *method borrows from the spec. The number of
 * steps is not known before the rows are: config->max_steps is 1 then. */
int spec_config(const struct job_spec *spec, struct train_config *config,
	struct method_config *method, struct errmsg *err);

/* ---- the process (process.c) ----------------------------------------------------------------- */

/* No core dumps, private files, an end with the parent; in inspect children no new files either. */
int process_harden(bool inspect);
uint64_t process_peak_rss(void);  /* bytes */
uint64_t process_memory_total(void); /* 80 % of memory or of the cgroup's limit */
