#pragma once
/*
 * Architectures. A model is one file that builds its graph with the functions below; they add the
 * weight slots and let the PEFT method have its say, so that no model knows of any method.
 */

#include "engine/graph.h"
#include "engine/peft/peft.h"

struct build {
	struct graph *g;
	struct peft *peft; /* NULL: base alone */
};

struct arch {
	const char *model_type;
	void (*build)(struct build *b);
	const char *const *linear_modules; /* suffixes, NULL-terminated */
};

extern const struct arch arch_llama;

/* STATUS_INVALID names what there is. */
int arch_find(const struct arch **ret, const struct model_config *c, struct errmsg *err);

/*
 * Builds the graph of a model with a method (NULL: none), forward pass only. `context`: rows of the
 * key/value cache of a GRAPH_GENERATE graph. STATUS_INVALID: unknown architecture; -ENOMEM.
 */
struct graph_request {
	const struct model_config *config;
	enum graph_purpose purpose;
	struct backend *backend;
	enum dtype dtype;
	int64_t tokens, max_seqs, context;
	bool trainable;
};
int model_graph(struct graph **ret, const struct graph_request *q, struct peft *peft,
	struct errmsg *err);

/* A module of a linear layer: suffix after the prefix, and rows. */
struct part {
	const char *name;
	int64_t rows;
};

int build_embedding(struct build *b, const char *module);
struct normed build_norm(struct build *b, int x, int delta, const char *module);
/* Modules `prefix`.`parts[i].name` with one input; outputs side by side. */
int build_linear(struct build *b, int x, const char *prefix, const struct part *parts, int n_parts,
	bool bias);
int build_attention(struct build *b, int64_t layer, int qkv);
int build_sublayer(struct build *b, const struct sublayer_site *site);
/* Head `module`, whose tensor is that of `stored_as` where tied (else NULL). */
void build_head(struct build *b, int x, const char *module, const char *stored_as);
