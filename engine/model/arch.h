#pragma once
/*
 * Architectures. A model is one file that reads its config.json (config.h) and builds its graph with
 * the functions below; they add the weight slots and let the PEFT method have its say, so that no
 * model knows of any method. The tensors that its files must hold are those of the slots.
 * docs/adding-a-model.md is the way to a new one.
 */

#include "engine/graph.h"
#include "engine/model/config.h"
#include "engine/model/gguf-family.h"
#include "engine/peft/peft.h"

struct build {
	struct graph *g;
	struct peft *peft; /* NULL: base alone */
	/* Set by a model before the first slot, where it differs from RMSNorm. */
	enum norm_kind norm;
	bool norm_bias;
};

struct arch {
	const char *model_type; /* config.json's */
	/* Fills r->c, which has the model_type and is zero elsewhere. What the file asks for and the
	 * graph does not do is a fault. */
	void (*parse)(struct config_reader *r);
	void (*build)(struct build *b);
	const char *const *linear_modules; /* suffixes of adaptable modules, NULL-terminated */
	const char *blocks; /* what stands before the number of a block: "model.layers" */
	const struct gguf_family *gguf; /* NULL: not read from GGUF */
	const char *head_alias; /* another name of lm_head in files, or NULL */
	/* Tensors that files of it carry and that nothing is computed from; or NULL. */
	bool (*ignores)(const char *tensor);
	/* The configuration says of tied embeddings only what holds where the files have no lm_head. */
	bool head_by_files;
};

extern const struct arch arch_gemma2, arch_gemma3, arch_gpt2, arch_gpt_neox, arch_llama, arch_mistral,
	arch_phi3, arch_qwen2, arch_qwen3, arch_smollm3, arch_t5, arch_mt5;

const struct arch *arch_by_type(const char *model_type); /* or NULL */
const struct arch *arch_by_gguf(const char *architecture); /* too */
/* STATUS_INVALID names what there is. */
int arch_find(const struct arch **ret, const struct model_config *c, struct errmsg *err);

/*
 * Builds the graph of a model with a method (NULL: none), forward pass only. `context`: rows of the
 * key/value cache of a GRAPH_GENERATE graph. STATUS_INVALID: unknown architecture; -ENOMEM.
 */
struct graph_request {
	const struct model_config *config;
	enum graph_purpose purpose;
	struct backend *backend; /* NULL: for the sake of the slots alone, never to be run */
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
/* The same in two steps, where several stacks have one table: its slot, and rows x of it. */
int build_token_table(struct build *b, const char *module);
int build_embedded(struct build *b, int slot, int x);
/* The slot of another table. */
int build_table(struct build *b, const char *module, int64_t rows, int64_t cols);
struct normed build_norm(struct build *b, int x, int delta, const char *module);
/* x + table[positions] with a table of max_position_embeddings rows. */
int build_positions(struct build *b, int x, const char *module);
/* Norms with weights of their own, `q_module` and `k_module`, over each head of queries and keys. */
int build_head_norms(struct build *b, int qkv, const char *q_module, const char *k_module);
/* Modules `prefix`.`parts[i].name` with one input; outputs side by side. */
int build_linear(struct build *b, int x, const char *prefix, const struct part *parts, int n_parts,
	bool bias);
/* Rotates queries and keys of qkv[T, (heads + 2·kv_heads)·head_dim] as the configuration has it for this
 * layer. */
int build_rope(struct build *b, int64_t layer, int qkv);
/* How the configuration has this layer attend. */
struct attention_spec build_attention_spec(const struct build *b, int64_t layer);
int build_attention(struct build *b, const struct attention_site *site);
/* h[T, I] = f(gate) · up with the configuration's activation function. */
int build_gated(struct build *b, int gate_up);
int build_sublayer(struct build *b, const struct sublayer_site *site);
/* Head `module`, whose tensor is that of `stored_as` where tied (else NULL). */
void build_head(struct build *b, int x, const char *module, const char *stored_as);

/* ---- the block that Llama made usual ------------------------------------------------------- */

/*
 * RMSNorm before each sublayer, rotary positions, grouped-query attention, a gated MLP; modules
 * model.layers.I.{input_layernorm, self_attn, post_attention_layernorm, mlp}. What differs between
 * families and is no matter of the configuration:
 */
struct decoder_kind {
	bool fused;      /* self_attn.qkv_proj and mlp.gate_up_proj are one module each */
	bool head_norms; /* self_attn.q_norm and k_norm, of each head */
};
/* Embedding, blocks, final norm and head. */
void build_decoder(struct build *b, const struct decoder_kind *d);
extern const char *const decoder_linear_modules[], *const decoder_fused_modules[];
