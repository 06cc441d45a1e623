#pragma once
/*
 * What a PEFT method is to the rest of the engine: hooks through which it adds to a model's graph
 * while that is built, and the way its parameters start, leave and come back. One method is one
 * file in this folder that fills a struct peft_method.
 */

#include "engine/engine.h"
#include "engine/graph.h"

/* A product of up to LINEAR_PARTS modules with one input, as the model builds it. The outputs of
 * the modules lie side by side in y, in the order of the weight slot's parts. */
struct linear_site {
	int weight; /* slot */
	int x, y;
};

/* Places in a block that a method may add to. */
enum sublayer {
	SUBLAYER_ATTENTION,
	SUBLAYER_MLP,
};

struct peft {
	const struct peft_method *method;
};

/* Every hook may be NULL; each returns the tensor that takes the place of the one it was given. */
struct peft_method {
	const char *name;
	void (*free)(struct peft *p);

	/* A new graph begins: parameters registered before are forgotten. */
	void (*begin)(struct peft *p);

	/* The sum of an embedding's rows; before the first block. */
	int (*embedding)(struct peft *p, struct graph *g, int x);
	/* The output of a linear layer that is not the head. */
	int (*linear)(struct peft *p, struct graph *g, const struct linear_site *site);
	/* The output of a norm. */
	int (*norm)(struct peft *p, struct graph *g, int weight, int y);
	/* Queries, keys and values of a layer, rotated. */
	int (*attention)(struct peft *p, struct graph *g, int64_t layer, int qkv);
	/* A sublayer's output before it joins the residual. */
	int (*sublayer)(struct peft *p, struct graph *g, int64_t layer, enum sublayer which, int x);

	/* Parameters of the last graph built: into `flat` (host memory, graph.param_elements
	 * zeroes). */
	void (*init)(const struct peft *p, const struct graph *g, uint64_t seed, float *flat);
	int (*load)(const struct peft *p, const struct graph *g, const struct adapter *a, float *flat,
		struct errmsg *err);
	/* Both files of a PEFT folder, read back and compared. */
	int (*save)(const struct peft *p, const struct graph *g, const float *flat, const char *base,
		struct buf *config_json, struct buf *weights, struct errmsg *err);

	/* Tensors as they are stored, for the optimizer's state: element range and name of each. */
	size_t (*n_tensors)(const struct peft *p);
	void (*tensor)(const struct peft *p, const struct graph *g, size_t i, char *name, size_t cap,
		size_t *ret_offset, int64_t dims[2]);

	/* A line that holds all that decides what is computed (rank, alpha, targets, …). */
	int (*describe)(const struct peft *p, struct buf *out);
};

/* The method of `m` on a model whose slots are those of `g`; `g` is only looked at.
 * STATUS_INVALID for targets that are not there. */
int peft_new(struct peft **ret, const struct method_config *m, const struct graph *g,
	struct errmsg *err);
void peft_free(struct peft *p);

int lora_new(struct peft **ret, const struct lora_config *c, const struct graph *g,
	struct errmsg *err);
int lora_check(const struct lora_config *c, struct errmsg *err);
