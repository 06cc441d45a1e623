#pragma once
/*
 * What the trainer does with models: plan a job, train it step by step, evaluate, generate. Nothing in
 * engine/ knows of processes, protocols or stores.
 *
 * Threads: an object is used by one thread at a time. Errors: STATUS_INVALID for what a user can mend
 * (err says how), STATUS_FAILED for training that cannot go on (a loss that is no number), negative
 * errno otherwise.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model/model.h"
#include "engine/peft/adapter.h"
#include "engine/text/text.h"
#include "kernels/kernels.h"
#include "util/buf.h"
#include "util/errmsg.h"

/* ---- resident base models ------------------------------------------------------------------ */

/* Frozen weights packed for a backend in one dtype; shared by all sessions on it. */
struct base_model;

/* Device memory it takes, from shapes alone. `train`: with the copies that backward passes need. */
uint64_t base_model_bytes(const struct model_files *files, struct backend *b, enum dtype dtype,
	bool train);
/* `files` are borrowed and must outlive it: what is trained in full starts from them. */
int base_model_load(struct base_model **ret, const struct model_files *files, struct backend *b,
	enum dtype dtype, bool train, struct errmsg *err);
void base_model_free(struct base_model *m);

/* ---- what a job is ------------------------------------------------------------------------- */

enum lr_scheduler { LR_CONSTANT, LR_LINEAR, LR_COSINE };

struct train_config {
	int64_t max_steps; /* resolved: > 0 */
	int64_t batch_size, max_length;
	bool packing;
	double learning_rate;
	enum lr_scheduler lr_scheduler;
	int64_t warmup_steps;
	double weight_decay, adam_beta1, adam_beta2, adam_epsilon, max_grad_norm;
	enum dtype dtype;
	uint64_t seed;
	bool sequential; /* data_order */
	int64_t microbatch_tokens; /* 0: chosen by the plan */
};

/* struct method_config is in engine/peft/config.h.
 *
 * Checks every value by itself, before any file is read (r = 0, a learning rate that is no number,
 * …); names fields as the job file does. */
int train_config_check(const struct train_config *c, const struct method_config *m,
	struct errmsg *err);

/* Module suffixes of all linear layers but the head, in the model's order: q_proj, …, down_proj.
 * Static strings, NULL-terminated. */
const char *const *model_linear_modules(const struct model_config *c);
/* What stands before the number of a block in names of modules: "model.layers". Static. */
const char *model_blocks(const struct model_config *c);

/* ---- plan ---------------------------------------------------------------------------------- */

struct memory_plan {
	uint64_t base_weights, trainable_weights, optimizer_states, gradients, activations, temporary;
	uint64_t arena; /* all of it but base_weights: what the session will allocate, to the byte */
	uint64_t checkpoint; /* host memory beside it: one copy of what a checkpoint holds */
	uint64_t trainable_parameters, total_parameters;
	int64_t microbatch_tokens;
	double flops_per_token;
	/* What the method adds to a forward pass of the bare base, unmerged: FLOPs, and bytes of its
	 * parameters that a token reads. Less than 0 never. */
	double inference_flops_per_token;
	uint64_t inference_bytes_per_token;
	bool mergeable; /* into weights of the base's shape */
	int recompute; /* 0: norms and the SwiGLU product; 1: gate and up products too; 2: whole blocks */
};

/* From config and shapes alone; no weight is read, nothing large is allocated. `longest`: tokens of
 * the longest sample, of evaluation too. memory_limit: bytes that base weights and arena may take
 * together, 0: no limit; where it is short, microbatches get smaller, then more is recomputed.
 * STATUS_WONT_FIT when no choice fits: err then holds the smallest change that would, *ret the plan
 * that takes least.
 * STATUS_INVALID: a target module that matches nothing (with the names there are), … */
int train_plan(struct memory_plan *ret, const struct model_files *files, struct backend *b,
	const struct train_config *c, const struct method_config *m, int64_t longest,
	uint64_t memory_limit, struct errmsg *err);

/* Refuses at submit what would fail later: an adapter `init` (may be NULL) that does not fit, settings
 * of which no folder could be made that is read back, and what training has no use for. Nothing large
 * is allocated. STATUS_INVALID. */
int train_check(const struct model_files *files, struct backend *b, const struct train_config *c,
	const struct method_config *m, const struct adapter *init, struct errmsg *err);

/* Steps of a run over n samples: max_steps where that is above 0, or ceil of epochs · ceil(n /
 * batch_size); 0 where that is no number from 1 to 2^40. */
int64_t train_steps(uint64_t n_samples, int64_t batch_size, int64_t max_steps, double epochs);

/* ---- training ------------------------------------------------------------------------------ */

struct train_session;

/* Everything is allocated and touched here: afterwards the session cannot run out of memory.
 * samples and eval_samples (may be NULL) are borrowed and must outlive it, base too. `init` (may be
 * NULL): start from this adapter instead of PEFT's initialisation. */
int train_session_new(struct train_session **ret, struct base_model *base,
	const struct train_config *c, const struct method_config *m, const struct memory_plan *plan,
	const struct samples *samples, const struct samples *eval_samples, const struct adapter *init,
	struct errmsg *err);
void train_session_free(struct train_session *s);

uint64_t train_session_arena(const struct train_session *s); /* bytes; equals plan->arena */
int64_t train_session_step(const struct train_session *s);   /* steps done */

struct step_metrics {
	int64_t step; /* counted from 1 */
	double loss, lr, grad_norm;
	uint64_t tokens, target_tokens;
	double seconds;
};
/* One optimizer step. Allocates nothing. STATUS_FAILED: loss or gradient is no number; the state is
 * that before the step. */
int train_session_run_step(struct train_session *s, struct step_metrics *ret, struct errmsg *err);

struct eval_metrics {
	double loss; /* mean over target tokens */
	uint64_t target_tokens, rows;
	double seconds;
};
int train_session_eval(struct train_session *s, struct eval_metrics *ret, struct errmsg *err);

/* What was trained as the two files of a folder (adapter_files() has their names), read back and
 * compared with the live tensors. */
int train_session_export(struct train_session *s, struct buf *config_json, struct buf *weights,
	struct errmsg *err);

/* The rest of the state (optimizer, counters, fingerprint, and parameters that an export does not
 * hold), as safetensors; with the exported folder it is all that resuming needs. */
int train_session_save(struct train_session *s, struct buf *state, struct errmsg *err);
/* Bytes that both take together, at most; as memory_plan.checkpoint. */
uint64_t train_session_checkpoint_bytes(const struct train_session *s);
/* Puts a fresh session into that state. STATUS_CONFLICT when the fingerprint differs and !allow_other;
 * err names both. After any other failure the session is of no use. */
int train_session_restore(struct train_session *s, const struct adapter *adapter, const void *state,
	size_t state_len, bool allow_other, struct errmsg *err);

/* ---- evaluation and generation ------------------------------------------------------------- */

/* Mean loss of samples under base + adapter (NULL: base alone). */
int engine_eval(struct base_model *base, const struct adapter *adapter, const struct samples *samples,
	struct eval_metrics *ret, struct errmsg *err);

/* For comparing two models: logits at the last of the first tokens of some rows. */
enum { PROBE_ROWS = 8, PROBE_TOKENS = 64, PROBE_LAST = 8 };
size_t engine_probe_size(const struct samples *s); /* vectors of logits that there are to compare */
/* ret[engine_probe_size(), vocab_size] of base + adapter (NULL: base alone). */
int engine_probe(struct base_model *base, const struct adapter *adapter, const struct samples *s,
	float *ret, struct errmsg *err);

struct logit_drift {
	double max, mean; /* absolute differences */
	double largest;   /* logit of the first, absolute */
	uint64_t rows, positions;
};
/* Of two probes of the same samples. STATUS_FAILED where one holds what is no number. */
int engine_drift(struct logit_drift *ret, const struct samples *s, int64_t vocab_size,
	const float *a, const float *b, struct errmsg *err);

/* Seconds of a forward pass over the same tokens with what a prompt takes: medians of passes that
 * alternate. */
struct forward_times {
	int64_t tokens, passes; /* passes: of each */
	double base, unmerged;
	double merged; /* 0 where the adapter cannot be merged */
};
/* Base alone against base + adapter, with tokens of `s`. A merged model is a model of the base's
 * shapes, so its passes are more of the base's graph. No round of passes begins after `seconds`;
 * the first is always done. memory_limit: bytes that it may take besides the base.
 * STATUS_WONT_FIT. */
int engine_measure_forward(struct forward_times *ret, struct base_model *base,
	const struct adapter *adapter, const struct samples *s, double seconds, uint64_t memory_limit,
	struct errmsg *err);

struct generate_options {
	int64_t max_new_tokens;
	double temperature;        /* 0: greedy, which top_k, top_p and seed do not matter to */
	int64_t top_k;             /* 0: all */
	double top_p;              /* 0 or 1: all */
	double repetition_penalty; /* 0 or 1: none */
	uint64_t seed;
	const int32_t *stop_ids;
	size_t n_stop_ids;
	uint64_t memory_limit; /* bytes on the device besides the base; 0: none. STATUS_WONT_FIT */
};
int generate_options_check(const struct generate_options *o, struct errmsg *err);

/*
 * Up to DECODE_LANES prompts at once over one base and one adapter, each with a key/value cache of its
 * own. A prompt is read by itself, in chunks whose bounds depend on nothing else; then every step of
 * decoding runs DECODE_LANES rows, however many prompts there are. So products have the same sizes
 * with and without company, and each answer is that of the prompt alone, bit by bit.
 */
enum { DECODE_LANES = 8 };
struct decoder;

/* For prompts of up to max_prompt tokens which have, with their answers, up to `context`; up to `slots`
 * at once. `method`: the structure that adapters will have, or NULL: the base alone. Nothing large is
 * allocated before decoder_reserve(), which takes decoder_bytes(). */
int decoder_new(struct decoder **ret, struct base_model *base, const struct method_config *method,
	int64_t max_prompt, int64_t context, int64_t slots, struct errmsg *err);
void decoder_free(struct decoder *d);
uint64_t decoder_bytes(const struct decoder *d);
int decoder_reserve(struct decoder *d, struct errmsg *err);
/* Puts an adapter's values in the place of those before; no prompt may be under way. */
int decoder_load(struct decoder *d, const struct adapter *a, struct errmsg *err);
/* Would decoder_load() do for adapters of `method` (NULL: none)? 1, 0, or an error. */
int decoder_suits(const struct decoder *d, const struct method_config *method, struct errmsg *err);

/* A prompt under a tag of the caller's; there must be room. The stop ids are borrowed until its end.
 * STATUS_INVALID: no token, a foreign one, more than there is room for. */
bool decoder_has_room(const struct decoder *d);
int decoder_add(struct decoder *d, uint64_t tag, const int32_t *prompt, size_t n_prompt,
	const struct generate_options *o, struct errmsg *err);

struct decoded {
	uint64_t tag;
	int32_t id; /* the next token; -1: none, a stop id came */
	bool ended, stopped; /* the answer is whole: by a stop id, or by its length */
};
/* One piece of work: a chunk of a prompt, or the next token of all that are read. STATUS_FAILED: logits
 * that are no numbers; the decoder is of no use then. */
int decoder_step(struct decoder *d, struct decoded out[DECODE_LANES], size_t *ret_n,
	struct errmsg *err);
void decoder_end(struct decoder *d, uint64_t tag); /* of an answer that has not ended by itself */
bool decoder_idle(const struct decoder *d);

/* One prompt in a decoder of its own, read at once. */
struct generator;
int generator_new(struct generator **ret, struct base_model *base, const struct adapter *adapter,
	const int32_t *prompt, size_t n_prompt, const struct generate_options *o, struct errmsg *err);
void generator_free(struct generator *g);
/* The next token: 1 and *ret_id; 0 when it ended (stop id or length: *ret_stopped). */
int generator_next(struct generator *g, int32_t *ret_id, bool *ret_stopped, struct errmsg *err);
