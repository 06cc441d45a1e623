#pragma once
/*
 * The graph of whole-tensor operations that a model is: built once, forward, for a fixed budget of
 * tokens; differentiated, placed in memory and run by what stands below. Seen by engine/ only.
 *
 * Tensors are values: each is written by one node. Where a node may write its result into the
 * memory of an input that nobody needs afterwards, its `inplace` says so, and placement makes it
 * so. Weights and trainable parameters are no tensors: nodes name them by slot. Every tensor is a
 * matrix with a row a token, so a microbatch of fewer tokens than the budget uses the first rows of
 * each.
 *
 * The constructors below keep going after a failed allocation and note it in graph.error, so that a
 * model is written without a check a line; whoever asked for the graph looks once.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model/model.h"
#include "kernels/kernels.h"
#include "util/errmsg.h"

enum {
	NONE = -1,        /* no tensor, slot or parameter */
	LINEAR_PARTS = 4, /* modules that share one input and one product: q, k, v */
	NODE_INPUTS = 6,
	NODE_OUTPUTS = 3,
	NODE_PARAMS = 6,
	ROPE_TABLES = 2,
	MODULE_NAME_MAX = 128,
};

/* ---- weights ------------------------------------------------------------------------------- */

enum weight_kind {
	WEIGHT_LINEAR, /* packed[rows, cols], with or without bias[rows] */
	WEIGHT_VECTOR, /* vector[cols], activation dtype, with or without bias[cols] */
	WEIGHT_TABLE,  /* table[rows, cols], activation dtype */
};

/* A weight the model asks for, frozen unless a part of it has a parameter. A linear slot holds the
 * rows of one module after the other. */
struct weight {
	enum weight_kind kind;
	int n_parts;
	struct {
		char module[MODULE_NAME_MAX]; /* Hugging Face's name, without ".weight" */
		int64_t rows;
		/* What takes the place of the base's values, or NONE; see graph_train_weight(). */
		int param, bias_param;
	} parts[LINEAR_PARTS];
	int64_t rows, cols;
	bool bias;
	bool adaptable; /* a PEFT method may target its modules: all linears but the head */
	bool head;
	bool tokens;     /* a row for each token of the vocabulary */
	bool transposed; /* files and parameters have the matrices as [in, out]: GPT-2's Conv1D */
	const char *stored_as; /* module whose tensor it is, where tied to another; else NULL */
};

/* ---- trained parameters -------------------------------------------------------------------- */

/* A matrix in the flat f32 buffer of masters, at `offset` elements (64-byte aligned), and at the
 * same offset in gradients, moments and the copy that products use. */
struct param {
	int64_t rows, cols;
	size_t offset;
	/* Set by a method after graph_param(): what the learning rate is multiplied by (1), or the learning
	 * rate that counts in the place of the job's (0: none); no weight decay. */
	float lr_scale;
	double learning_rate;
	bool no_decay;
	bool of_base;   /* in the place of values that the base has too */
};

/* ---- tensors and nodes --------------------------------------------------------------------- */

/*
 * How much is computed again in the backward pass rather than kept, cheapest first. A tensor's own
 * value is the lowest level at which it is not kept; so "cheap" tensors (norm outputs, the SwiGLU
 * product, dropped-out inputs) are never kept.
 */
enum recompute {
	RECOMPUTE_CHEAP,
	RECOMPUTE_MLP,   /* gate and up products, too */
	RECOMPUTE_BLOCK, /* everything between the inputs of two blocks */
	RECOMPUTE_NEVER,
};

enum tensor_rows {
	ROWS_TOKENS,
	ROWS_SOURCE, /* tokens of the encoder's side of an encoder-decoder */
	ROWS_ONE,
	ROWS_FIXED, /* `n_rows`, however many tokens there are */
	ROWS_BYTES, /* workspace: `cols` is its size in bytes */
};

struct tensor {
	enum dtype dtype;
	enum tensor_rows rows;
	int64_t n_rows; /* of ROWS_FIXED */
	int64_t cols;
	int producer; /* node */
	enum recompute recompute;
	bool needs_grad;
	/* Filled by graph_place(). */
	int first, last; /* nodes between which it lives */
	int owner;       /* the tensor whose memory it shares, or itself */
	size_t offset;   /* bytes from the start of the region */
};

/* Low-rank updates of several parts of one product: y[:, col…] += scale · (x·A[row…]ᵀ)·Bᵀ. */
struct low_rank {
	int a; /* A[sum of r, in] of all parts */
	int64_t rank; /* sum of r */
	int n_parts;
	struct {
		int b; /* B[cols, r] */
		int64_t col, cols, row, r;
		float scale;
	} parts[LINEAR_PARTS];
};

/* How a layer attends; see struct attention in kernels.h. */
struct attention_spec {
	int64_t n_heads, n_kv_heads, head_dim;
	float scale;
	bool causal;
	int64_t window;
	float softcap;
	int bias; /* slot of a table of position biases[buckets, n_heads], or NONE */
};

enum norm_kind {
	NORM_RMS,
	NORM_RMS_ONE_PLUS, /* y = (1 + w) · n */
	NORM_LAYER,        /* with the slot's bias, where it has one */
};

struct op;

struct node {
	const struct op *op;
	int in[NODE_INPUTS], out[NODE_OUTPUTS];
	int weight;             /* slot, or NONE */
	int site;               /* dropout: which; cached attention: layer */
	bool inverse;           /* rope */
	float p;                /* dropout; or a factor */
	int64_t n_heads;        /* rope */
	struct low_rank low_rank;
	struct attention_spec attention;
	enum norm_kind norm;
	/* Of operations that methods bring along. */
	int param[NODE_PARAMS]; /* or NONE */
	int64_t arg[2];
};

enum graph_purpose {
	GRAPH_TRAIN,    /* loss, and backward if anything is trainable */
	GRAPH_GENERATE, /* key/value cache, logits of each sequence's last row */
};

struct graph {
	/* Set by graph_new(). */
	struct model_config config;
	enum graph_purpose purpose;
	struct backend *backend;
	enum dtype dtype;
	int64_t tokens, max_seqs; /* the budget of a microbatch; of the encoder's side the same */
	bool trainable;           /* parameters get gradients */
	bool source;              /* there is an encoder's side: its rows are ROWS_SOURCE */
	/* By the method: rows that come before every sequence (their ids are -1, -2, …), on the encoder's side
	 * where there is one; and the position of the first row that is no such row. */
	int64_t virtual_tokens, position_offset;
	int64_t context;          /* most rows of a sequence in the key/value cache; not in training */

	/* Set by a model while it builds: the level of what it adds next. */
	enum recompute region;

	struct weight *weights;
	struct param *params;
	struct tensor *tensors;
	struct node *nodes;
	int n_weights, n_params, n_tensors, n_nodes;
	int cap_weights, cap_params, cap_tensors, cap_nodes;
	int n_forward;     /* nodes of the forward pass; the rest is the backward pass */
	int n_source;      /* GRAPH_GENERATE: nodes that run once for a prompt; what they leave to the others
	                    * stays */
	int n_sites;  /* dropout */
	int n_caches; /* attention layers with a key/value cache */
	int n_rope_tables; /* used */
	/* Rows of tables of position biases by distance, -reach … reach: of causal attention and of attention
	 * to both sides. Owned; NULL: the model has none. */
	int32_t *buckets[2];
	int64_t reach;
	size_t param_elements; /* of the flat buffers, padding included */
	size_t constants;      /* f32 values of graph_constant() */
	int error;         /* 0 or -ENOMEM */
};

int graph_new(struct graph **ret, const struct model_config *config, enum graph_purpose purpose,
	struct backend *backend, enum dtype dtype, int64_t tokens, int64_t max_seqs, bool trainable);
void graph_free(struct graph *g);

/* ---- construction -------------------------------------------------------------------------- */

/* Adds a slot and returns it. The rows and modules of a linear weight are those of `w`. */
int graph_weight(struct graph *g, const struct weight *w);
int graph_param(struct graph *g, int64_t rows, int64_t cols);
/* Between graph_weight() and the first node that uses the slot: a parameter takes the place of this
 * part's matrix (vector, table), or of its bias, which the base need not have. Returns it. */
int graph_train_weight(struct graph *g, int slot, int part);
int graph_train_bias(struct graph *g, int slot, int part);
/* The same with the parameter of another slot that has the same tensor (tied embeddings). */
void graph_train_as(struct graph *g, int slot, int part, int param);
/* Room for n f32 values that the method computes from the base before the first run (its hook
 * `constants`). Returns the place of the first. */
size_t graph_constant(struct graph *g, size_t n);
/* The slot and part of a module; false where there is none. */
bool graph_find_module(const struct graph *g, const char *module, int *ret_slot, int *ret_part);
int graph_tensor(struct graph *g, enum dtype dtype, enum tensor_rows rows, int64_t cols,
	enum recompute recompute);
/* ROWS_FIXED. */
int graph_tensor_fixed(struct graph *g, enum dtype dtype, int64_t rows, int64_t cols,
	enum recompute recompute);
struct node graph_node_init(const struct op *op);
/* Appends the node: sets its outputs' producer and, from inputs and `trains`, whether they need a
 * gradient. Returns its index. */
int graph_append(struct graph *g, const struct node *n, bool trains);

/* y[T,d] = table[ids]. */
int graph_embedding(struct graph *g, int weight);
/* The same of the encoder's side: ROWS_SOURCE. */
int graph_source_embedding(struct graph *g, int weight);
/* y[T,d] = table[positions]: learned positions. */
int graph_position_embedding(struct graph *g, int weight);
/* Sum of x and delta (delta NONE: x itself), and its norm. eps is the configuration's rms_norm_eps. */
struct normed {
	int y, sum;
};
struct normed graph_norm(struct graph *g, int x, int delta, int weight, enum norm_kind kind);
/* x[T, heads·d] with a norm of its own over each of the first n_q heads, weight w_q[d], and of the n_k
 * that follow, w_k[d]. Not NORM_LAYER. */
int graph_head_norm(struct graph *g, int x, int64_t n_q, int w_q, int64_t n_k, int w_k,
	enum norm_kind kind);
/* y = factor · x; the factor is rounded to the activation's dtype. */
int graph_scale_by(struct graph *g, int x, float factor);
/* y[T,rows] = x·Wᵀ + bias. */
int graph_linear(struct graph *g, int x, int weight);
/* y with low-rank updates from x; see struct low_rank. */
int graph_low_rank(struct graph *g, int y, int x, const struct low_rank *l);
int graph_dropout(struct graph *g, int x, float p);
/* DoRA on u, the output of a slot with the low-rank update `l` added: m[i], a parameter [1, cols], for
 * part i of l; w_squares: constants, the squared norm of each row of the slot's matrix. */
int graph_dora(struct graph *g, int u, int weight, const struct low_rank *l,
	const int m[LINEAR_PARTS], size_t w_squares);
/* As graph_low_rank(), with constants for factors: A at `a`, the B of part i at l->parts[i].b. */
int graph_fixed_low_rank(struct graph *g, int y, int x, size_t a, const struct low_rank *l);
/* x + scale · A[:, ids]ᵀ·Bᵀ with A[r, vocabulary], B[hidden, r]. */
int graph_embedding_low_rank(struct graph *g, int x, int a, int b, float scale);
/* Rotates the first n_heads heads of x by table 0, the model's, or 1, that of local layers. */
int graph_rope(struct graph *g, int x, int64_t n_heads, int table);
/* x[T, heads·parts·d] with the parts of each head side by side → [T, parts·heads·d], the heads of each
 * part side by side. */
int graph_split_heads(struct graph *g, int x, int64_t n_heads, int64_t n_parts);
/* What most layers do: all heads of the configuration, causal, scale 1/sqrt(head_dim). */
struct attention_spec attention_spec_of(const struct model_config *c);
/* qkv[T, (heads + 2·kv_heads)·head_dim] → o[T, heads·head_dim]. */
int graph_attention(struct graph *g, int qkv, const struct attention_spec *spec);
/* The same of q[T, heads·head_dim] over kv[S, 2·kv_heads·head_dim], keys before values, of the encoder's
 * side. */
int graph_cross_attention(struct graph *g, int q, int kv, const struct attention_spec *spec);
/* gate_up[T,2·I] → h[T,I] = f(gate) · up. */
int graph_gated(struct graph *g, int gate_up, enum activation kind);
/* Loss against the targets (GRAPH_TRAIN), or logits[max_seqs,V] of the last row of each sequence, in
 * their order (GRAPH_GENERATE). `l` (or NULL): a low-rank update of one part. */
void graph_head(struct graph *g, int x, int weight, const struct low_rank *l);

/* ---- differentiation ----------------------------------------------------------------------- */

/* Appends the backward pass: nodes only where a parameter lies upstream. -ENOMEM. */
int graph_differentiate(struct graph *g, enum recompute level);

struct autodiff {
	struct graph *g;
	enum recompute level;
	int n; /* tensors of the forward pass */
	int *grad;  /* by forward tensor: its gradient so far, or NONE */
	int *again; /* by forward tensor: what was computed again, or NONE */
};
/* The gradient that has reached t, or NONE. */
int autodiff_grad(const struct autodiff *ad, int t);
bool autodiff_needs(const struct autodiff *ad, int t);
/* Adds `grad` to what has reached t; autodiff_set() replaces it by a sum that holds it already. */
void autodiff_add(struct autodiff *ad, int t, int grad);
void autodiff_set(struct autodiff *ad, int t, int grad);
/* A forward tensor for use in the backward pass: itself where it is kept, else computed again. */
int autodiff_use(struct autodiff *ad, int t);

/* ---- placement ----------------------------------------------------------------------------- */

struct placement {
	size_t region;      /* bytes of all tensors, laid out */
	size_t activations; /* of them: kept from the forward pass for the backward pass */
};

/* Gives every tensor its offset from liveness, largest first: the same for the same graph.
 * -ENOMEM. */
int graph_place(struct graph *g, struct placement *ret);

/* Rows of a tensor at the full budget. */
int64_t tensor_rows(const struct graph *g, int t);
/* Bytes of a tensor at the full budget, a multiple of 64. */
size_t tensor_bytes(const struct graph *g, int t);

/* FLOPs of one microbatch at the full budget with sequences of `seq_len` tokens. */
double graph_flops(const struct graph *g, int64_t seq_len);

/* ---- running ------------------------------------------------------------------------------- */

struct base_model;

/* Keys and values of several sequences, each in rows of its own. */
struct kv_cache {
	uint8_t *memory; /* by layer: keys[capacity, kv_heads·head_dim], then values */
	int64_t capacity; /* rows of all sequences */
	/* By sequence of a run, host memory: its first row, and how many it has with those of the run. */
	const int32_t *start, *len;
};

/* What a run of the graph works on; pointers into the device's memory unless said otherwise. All
 * of it is borrowed. */
struct run {
	const struct graph *g;
	struct backend *backend;
	const struct base_model *base;
	uint8_t *region;
	void *params;         /* flat, activation dtype */
	float *grads;         /* flat; NULL without backward pass */
	const float *constants;
	const int32_t *ids, *positions, *targets; /* [rows] */
	const float *cos_sin[ROPE_TABLES]; /* [max positions, rotary_dim] */
	double *loss_sum;

	int64_t rows;
	int64_t n_seqs;
	const int32_t *seq_start, *seq_len; /* host memory */
	const int32_t *seq_number;          /* host memory: number within the step, for dropout */
	/* The encoder's side of the same sequences, where there is one. */
	struct {
		int64_t rows;
		const int32_t *ids;
		const int32_t *seq_start, *seq_len; /* host memory */
	} source;
	float grad_scale;
	bool training; /* dropout, gradient of the loss */
	uint64_t seed, step;
	struct kv_cache *cache;
};

/* Makes every product ready, so that running allocates nothing. */
int run_prepare(struct run *r, struct errmsg *err);
/* The biases of all parts of a slot, trained or not, into out[1, rows]; 0 where a part has none. */
void run_bias(struct run *r, int weight, struct mat out);
void run_nodes(struct run *r, int first, int end);

struct mat run_mat(const struct run *r, int t); /* data NULL for NONE */
struct mat run_param(const struct run *r, int p); /* data NULL for NONE, here and below */
struct mat run_grad(const struct run *r, int p); /* f32 */

/* What a kind of node is. */
struct op {
	const char *name;
	/* Appends the nodes that carry the gradients of outputs to inputs and parameters. NULL: the
	 * outputs never need a gradient, or the node is itself of the backward pass. */
	void (*backward)(struct autodiff *ad, const struct node *n);
	/* Changes the copy of a node whose outputs are to be computed again; NULL: nothing to
	 * change. */
	void (*again)(struct autodiff *ad, const struct node *original, struct node *copy);
	double (*flops)(const struct graph *g, const struct node *n, int64_t seq_len);
	int (*prepare)(struct run *r, const struct node *n, struct errmsg *err);
	void (*run)(struct run *r, const struct node *n);
	/* By output: set of inputs (bits) whose memory it may take where they die here. */
	uint8_t inplace[NODE_OUTPUTS];
};

extern const struct op op_embedding, op_embedding_backward, op_norm, op_norm_backward,
	op_head_norm, op_head_norm_backward, op_linear, op_linear_backward,
	op_low_rank, op_low_rank_backward, op_dropout, op_dropout_backward, op_rope, op_attention,
	op_attention_backward, op_attention_cached, op_cross_attention, op_cross_attention_backward,
	op_gated, op_gated_backward, op_split_heads, op_add, op_lm_loss,
	op_logits, op_dora_norms, op_dora, op_dora_backward, op_embedding_low_rank,
	op_embedding_low_rank_backward, op_fixed_low_rank, op_fixed_low_rank_backward;
