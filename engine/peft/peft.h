#pragma once
/*
 * What a PEFT method is to the rest of the engine: hooks through which it adds to a model's graph
 * while that is built, and the way its parameters start, leave and come back. One method is one
 * file in this folder that fills a struct peft_method; peft.c has the list of them.
 */

#include <jansson.h>

#include "engine/engine.h"
#include "engine/graph.h"

/* A product of up to LINEAR_PARTS modules with one input, as the model builds it. The outputs of
 * the modules lie side by side in y, in the order of the weight slot's parts. */
struct linear_site {
	int weight; /* slot */
	int x, y;
};

/* A stack's attention to itself, as the model builds it. */
struct attention_site {
	int64_t layer;
	int qkv; /* rotated queries, keys and values */
	struct attention_spec spec;
};

/* Places in a block that a method may add to. */
enum sublayer {
	SUBLAYER_ATTENTION,
	SUBLAYER_MLP,
};

struct sublayer_site {
	const char *module; /* that adapters belong to by name, where it is not a part of block `layer` */
	int64_t layer;
	enum sublayer which;
	int residual; /* the stream that the output joins: what the sublayer's norm read */
	int input;    /* that norm's output */
	int output;
};

/* First member of a method's own struct. */
struct peft {
	const struct peft_method *method;
	struct method_config config; /* a copy, owned; targets resolved by the method's start() */
};

/* A trained tensor as it is stored: dims and the place of its first element in the flat buffers. */
enum { TENSOR_NAME_MAX = MODULE_NAME_MAX + 96 };
struct peft_tensor {
	char name[TENSOR_NAME_MAX];
	int n_dims;
	int64_t dims[4];
	size_t offset;
};

/* Every hook may be NULL unless said otherwise; where it returns a tensor, that takes the place of the
 * one it was given. */
struct peft_method {
	const char *name; /* the job file's */
	enum adapter_kind kind;
	/* Where it depends on the resolved configuration; may be NULL. */
	enum adapter_kind (*kind_of)(const struct method_config *m);
	const char *peft_type; /* of ADAPTER_PEFT: adapter_config.json's */
	const char *decides;   /* the settings that tell which tensors there are; may be NULL */
	size_t size;           /* of the method's own struct, zeroed before start() */

	/* ---- configuration ---- */

	/* Every value by itself; names fields as the job file does. */
	int (*check)(const struct method_config *m, struct errmsg *err);
	/* From a folder's configuration, an object that has peft_type, task_type and
	 * base_model_name_or_path looked at already. Whatever is in it and would change results is
	 * refused by name. Needed. */
	int (*config_read)(struct method_config *ret, const json_t *o, struct errmsg *err);
	/* Adds the method's own fields to the object; `c` is the base's. -ENOMEM. Needed. */
	int (*config_write)(json_t *o, const struct method_config *m, const struct model_config *c);
	/* A folder by itself: what is missing or left over in its tensors. */
	int (*check_tensors)(const struct adapter *a, struct errmsg *err);
	/* Can a job `want` start from a folder `have` of this method? Says which setting to change. */
	int (*matches)(const struct method_config *have, const struct method_config *want,
		struct errmsg *err);
	/* Does a folder hold what a job `want` trains, so that it can start from one at all? NULL: yes. */
	int (*can_start)(const struct method_config *want, struct errmsg *err);

	/* ---- graph ---- */

	/* Once, on a graph of the bare base that has its slots: resolves p->config's targets.
	 * STATUS_INVALID for targets that are not there. */
	int (*start)(struct peft *p, const struct graph *g, struct errmsg *err);
	/* What a job may not ask for, though a folder that has it can be used. `g` is the training graph. */
	int (*admit)(const struct peft *p, const struct graph *g, struct errmsg *err);
	void (*stop)(struct peft *p); /* frees what start() and the hooks made */

	/* A new graph begins: parameters registered before are forgotten. */
	void (*begin)(struct peft *p, struct graph *g);
	/* Rows that come before every sequence (ids -1, -2, …; positions 0, 1, …; no targets). */
	int64_t (*virtual_tokens)(const struct peft *p);
	/* Position of the first row of a sequence that is no virtual token, where these do not say. */
	int64_t (*position_offset)(const struct peft *p);
	/* A slot was added and no node uses it yet: graph_train_weight() and the like go here. */
	void (*weight)(struct peft *p, struct graph *g, int slot);
	/* The embedding's rows of slot `weight`, before they are scaled where the model does that. */
	int (*embedding)(struct peft *p, struct graph *g, int weight, int x);
	/* What the embeddings give to the rest of the model; here virtual tokens take their rows. */
	int (*inputs)(struct peft *p, struct graph *g, int weight, int x);
	/* The input of a linear layer, not of the head. */
	int (*linear_input)(struct peft *p, struct graph *g, int weight, int x);
	/* Its output. */
	int (*linear)(struct peft *p, struct graph *g, const struct linear_site *site);
	/* The head's low-rank update; false: none. */
	bool (*head)(struct peft *p, struct graph *g, int weight, struct low_rank *ret);
	/* The output of a norm. */
	int (*norm)(struct peft *p, struct graph *g, int weight, int y);
	/* Attention's output. NULL: graph_attention(). */
	int (*attention)(struct peft *p, struct graph *g, const struct attention_site *site);
	/* A sublayer's output before it joins the residual. */
	int (*sublayer)(struct peft *p, struct graph *g, const struct sublayer_site *site);

	/* ---- parameters of the last graph built ---- */

	/* Starting values into `flat` (host memory, graph.param_elements zeroes). NULL: trained weights of
	 * the base start as the base has them, everything else stays zero. (peft_init_base() does the
	 * former for a method that has its own.) */
	int (*init)(const struct peft *p, const struct graph *g, const struct base_model *base,
		uint64_t seed, float *flat, struct errmsg *err);

	/* The values of graph_constant(), host[graph.constants]. */
	int (*constants)(struct peft *p, const struct graph *g, const struct base_model *base,
		float *host, struct errmsg *err);

	/* What is trained, tensor by tensor, all of it. NULL: the trained parameters of the base, by
	 * Hugging Face's names (peft_base_tensor()). */
	size_t (*n_tensors)(const struct peft *p, const struct graph *g);
	void (*tensor)(const struct peft *p, const struct graph *g, size_t i, struct peft_tensor *ret);

	/*
	 * Where a folder does not hold just these tensors (the output of an encoder): n_exported tensors,
	 * computed from flat into memory that the caller frees by free(*ret_data); then checkpoints keep
	 * the tensors above themselves. `load` is the way back for graphs that are not trained.
	 */
	int (*exported)(const struct peft *p, const struct graph *g, const float *flat,
		struct peft_tensor **ret, size_t *ret_n, float **ret_data, struct errmsg *err);
	int (*load)(const struct peft *p, const struct graph *g, const struct adapter *a, float *flat,
		struct errmsg *err);
	/* A key that a folder may hold and that says nothing. */
	bool (*ignores)(const struct peft *p, const struct graph *g, const char *key);

	/* ---- merging ---- */

	/* Why what is trained has no place in the weights of a base of this configuration, for people;
	 * NULL where it has. NULL hook: it always has. */
	const char *(*unmergeable)(const struct method_config *m, const struct model_config *c);
	/* Puts what a folder holds for a tensor of the base (TENSOR "weight" or "bias" of a module, as
	 * Hugging Face names and lays it out) into its values w[rows·cols], in place; a vector has
	 * cols 1. STATUS_INVALID for a shape that does not fit. Needed unless the above always names a
	 * reason. */
	int (*merge)(const struct adapter *a, const char *module, const char *tensor, int64_t rows,
		int64_t cols, float *w, struct errmsg *err);

	/* Appends a line that holds all that decides what is computed (rank, alpha, targets, …). */
	int (*describe)(const struct peft *p, struct buf *out);
};

extern const struct peft_method peft_full, peft_last_k, peft_bitfit, peft_ln_tuning, peft_select,
	peft_lora, peft_bottleneck, peft_prompt_tuning, peft_p_tuning,
	peft_prefix_tuning, peft_ia3;
extern const struct peft_method *const peft_methods[]; /* NULL-terminated */
const struct peft_method *peft_method_find(const char *name); /* or NULL */
enum adapter_kind peft_kind(const struct peft_method *method, const struct method_config *m);

/* The method of `m` on a model whose slots are those of `g`; `g` is only looked at.
 * STATUS_INVALID for targets that are not there. */
int peft_new(struct peft **ret, const struct method_config *m, const struct graph *g,
	struct errmsg *err);
void peft_free(struct peft *p);

/* Why a job of `m` on a base of this configuration cannot be merged into it; NULL where it can. */
const char *peft_unmergeable(const struct method_config *m, const struct model_config *c);

/* The tensors that are trained, whoever lists them. */
size_t peft_n_tensors(const struct peft *p, const struct graph *g);
void peft_tensor(const struct peft *p, const struct graph *g, size_t i, struct peft_tensor *ret);

int peft_init(const struct peft *p, const struct graph *g, const struct base_model *base,
	uint64_t seed, float *flat, struct errmsg *err);
int peft_load(const struct peft *p, const struct graph *g, const struct adapter *a, float *flat,
	struct errmsg *err);
/* Could peft_load() read this folder for graph `g`? Tensors by name and shape; no value is read. */
int peft_can_load(const struct peft *p, const struct graph *g, const struct adapter *a,
	struct errmsg *err);
/* Would what this graph exports be read back: the configuration, and with it the tensors by name and
 * shape? STATUS_INVALID where not. */
int peft_can_save(const struct peft *p, const struct graph *g, const char *base,
	struct errmsg *err);
/* Both files of a folder, read back and compared. `base`: name or path for the configuration. */
int peft_save(const struct peft *p, const struct graph *g, const float *flat, const char *base,
	struct buf *config_json, struct buf *weights, struct errmsg *err);

/* ---- for methods --------------------------------------------------------------------------- */

/* graph_train_weight(), but a tied weight whose partner is trained shares its parameter; and all of a
 * slot, biases included. */
void peft_train_weight(struct graph *g, int slot, int part);
void peft_train_slot(struct graph *g, int slot);

/* Trained parameters of the base (graph_train_weight() and graph_train_bias()), in the order of slots. */
size_t peft_n_base_tensors(const struct graph *g);
void peft_base_tensor(const struct graph *g, size_t i, struct peft_tensor *ret);
/* Their values in the base: added biases, which it does not have, stay zero. */
int peft_init_base(const struct graph *g, const struct base_model *base, float *flat,
	struct errmsg *err);

/* Reads the tensor `want` of an adapter into flat + want->offset (NULL: looks only): there, of these
 * dims (a 1 more or less does not matter), finite; STATUS_INVALID otherwise. */
int peft_load_tensor(const struct adapter *a, const struct peft_tensor *want, float *flat,
	struct errmsg *err);

/* A merge() for methods whose folders hold whole tensors: the one that MODULE.TENSOR is called
 * between `before` and `after` takes the base's place. */
int peft_merge_whole(const struct adapter *a, const char *before, const char *module,
	const char *after, int64_t rows, int64_t cols, float *w, struct errmsg *err);
/* The same for deltas, which call tensors as the base does. */
int peft_merge_delta(const struct adapter *a, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *w, struct errmsg *err);
/* A folder's tensor of these dims into fresh memory, *ret NULL where there is none. STATUS_INVALID
 * for other dims. */
int peft_read_tensor(const struct adapter *a, const char *key, int64_t rows, int64_t cols,
	float **ret, struct errmsg *err);

/* What a list of targets may select. */
typedef bool peft_may_target(const struct weight *w);
bool peft_is_linear(const struct weight *w); /* in blocks: not the head */
bool peft_is_norm(const struct weight *w);
/* Every entry matches something, and only what may be a target; `field` names the list in errors
 * ("ia3.target_modules"), `kind` what it selects ("linear layer"). The names there are, and the nearest,
 * are in the error. */
int peft_check_targets(const struct modules *targets, const struct graph *g, peft_may_target *may,
	const char *field, const char *kind, struct errmsg *err);
/* STATUS_INVALID: `name` of the list `field` matches no `kind`; with the names there are, and the
 * nearest. */
int peft_no_match(const struct graph *g, peft_may_target *may, const char *field, const char *name,
	const char *kind, struct errmsg *err);
/* No empty entry, "all-linear" alone, a valid regular expression. */
int peft_check_list(const struct modules *m, const char *field, struct errmsg *err);
/* " field=a,b", for describe(). */
int peft_describe_modules(struct buf *out, const char *field, const struct modules *m);
/* Adds the last part of each name that may be a target, once. -ENOMEM. */
int peft_add_suffixes(struct modules *targets, const struct graph *g, peft_may_target *may);
/* Replaces "all-linear" by the suffixes of all linear layers. -ENOMEM. */
int peft_resolve_all_linear(struct modules *targets, const struct graph *g);

/* Fills values: uniform in ±bound; normal. Element i is a function of (seed, index, i). */
void peft_fill_uniform(float *out, size_t n, double bound, uint64_t seed, uint64_t index);
void peft_fill_normal(float *out, size_t n, double mean, double std, uint64_t seed, uint64_t index);

/* JSON of adapter configurations. */
int json_read_modules(struct modules *ret, const json_t *o, const char *key, bool regex_allowed,
	struct errmsg *err); /* absent or null: empty */
int json_write_modules(json_t *o, const char *key, const struct modules *m); /* sorted; none: null */
/* Every key but those in `known` and `harmless` (NULL-terminated) must be unused (null, false, "", [],
 * {}); STATUS_INVALID names the first that is not. */
int json_refuse_others(const json_t *o, const char *const *known, const char *const *harmless,
	struct errmsg *err);
