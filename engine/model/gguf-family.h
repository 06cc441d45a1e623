#pragma once
/* What a GGUF of one architecture means in Hugging Face's words: part of struct arch. */

#include "engine/model/gguf.h"
#include "engine/model/model.h"

struct gguf_name {
	const char *gguf, *hf;
};

/* A file while its configuration is read, as struct config_reader. */
struct gguf_reader {
	struct model_config *c;
	const struct gguf *g;
	const char *architecture; /* what its keys start with */
	struct errmsg *err;
	int r;
};

struct gguf_family {
	const char *architecture;     /* general.architecture */
	const struct gguf_name *top;   /* token_embd → model.embed_tokens; the last is {0} */
	const struct gguf_name *block; /* blk.N.attn_q → BLOCKS.N.self_attn.q_proj; too */
	/* Keys after "ARCHITECTURE." that read() reads, NULL-terminated; or NULL. */
	const char *const *keys;
	/* What is not the same in all: the activation, windows, caps. Sizes, rope and heads are there. */
	void (*read)(struct gguf_reader *r);
	const char *eps_key; /* of its norms */
	bool interleaved; /* rows of attn_q and attn_k are in pairs of neighbours */
	bool one_plus;    /* 1 was added to the weights of norms */
	bool transposed;  /* linear layers that Hugging Face has as [in, out] */
	bool copies_head; /* output.weight is there, a copy, where the head is tied */
	bool no_rope, yarn;
};

/* The key ARCHITECTURE.key. A missing one leaves *ret as it is; false: it is missing. */
bool gguf_read_int(struct gguf_reader *r, const char *key, int64_t lo, int64_t hi, int64_t *ret);
bool gguf_read_real(struct gguf_reader *r, const char *key, double *ret);

/* Names that most share. */
extern const struct gguf_name gguf_usual_top[], gguf_usual_block[];
#define GGUF_USUAL_ATTENTION \
	{"attn_norm", "input_layernorm"}, {"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"}, \
	{"attn_v", "self_attn.v_proj"}, {"attn_output", "self_attn.o_proj"}
#define GGUF_USUAL_MLP \
	{"ffn_gate", "mlp.gate_proj"}, {"ffn_up", "mlp.up_proj"}, {"ffn_down", "mlp.down_proj"}
