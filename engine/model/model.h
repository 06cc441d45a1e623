#pragma once
/*
 * Base models on disk: Hugging Face folders and GGUF files, read behind one interface that speaks
 * Hugging Face's names, layouts and units. Files come from outside: everything is checked before it
 * is believed, and a fault names file, field and what would be right.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/buf.h"
#include "util/errmsg.h"

enum rope_scaling {
	ROPE_SCALING_NONE,
	ROPE_SCALING_LINEAR,
	ROPE_SCALING_LLAMA3,
	ROPE_SCALING_DYNAMIC,
	ROPE_SCALING_YARN,
	ROPE_SCALING_LONGROPE,
};

enum { ROPE_MAX_FREQUENCIES = 128 }; /* half of the longest head_dim */
enum { MODEL_MAX_LAYERS = 1024 };

/* What sets a layer apart; a set of them for each. */
enum layer_flags {
	LAYER_SLIDES = 1,  /* attends to the last `sliding_window` positions alone */
	LAYER_NO_ROPE = 2, /* does not rotate queries and keys */
};

/* config.json, or the metadata of a GGUF in the same words. */
struct model_config {
	char model_type[64]; /* "llama" */
	int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
	int64_t num_attention_heads, num_key_value_heads, head_dim;
	int64_t max_position_embeddings;
	double rms_norm_eps, rope_theta;
	enum rope_scaling rope_scaling;
	struct {
		double factor, low_freq_factor, high_freq_factor;
		int64_t original_max_position_embeddings;
		double beta_fast, beta_slow;      /* yarn */
		double mscale, mscale_all_dim;    /* yarn; 0: not given */
		double attention_factor;          /* yarn, longrope: of cosines and sines; 0: not given */
		bool no_truncate;                 /* yarn */
		float short_factor[ROPE_MAX_FREQUENCIES]; /* longrope */
	} rope;
	int64_t rotary_dim;               /* 0: head_dim */
	double rope_local_theta;          /* of local layers, unscaled; 0: none */
	double final_logit_softcapping;   /* 0: none */
	double embedding_scale;           /* of the embeddings' rows; 0: none */
	double attention_scale;           /* of scores; 0: 1/sqrt(head_dim) */
	bool attention_scale_by_layer;    /* divided by 1 + the layer's number, too */
	double attn_logit_softcapping;    /* 0: none */
	int64_t sliding_window;           /* 0: no layer has one */
	int64_t max_sequence;             /* beyond it the reference computes something else; 0: no end */
	uint8_t layer_flags[MODEL_MAX_LAYERS];
	int hidden_act;                   /* enum activation */
	bool fan_in_fan_out;              /* linear layers are stored as [in, out]: Conv1D */
	bool parallel_residual;           /* attention and MLP read the same stream */
	bool tie_word_embeddings;
	bool attention_bias;              /* of queries, keys and values */
	bool attention_out_bias, mlp_bias;
	/* Encoder-decoders; num_hidden_layers are the encoder's. */
	bool is_encoder_decoder, gated_mlp, scale_decoder_outputs;
	int64_t num_decoder_layers;
	int64_t relative_attention_num_buckets, relative_attention_max_distance;
	int32_t decoder_start_token_id;
	int32_t bos_token_id, eos_token_id, pad_token_id; /* -1 where there is none */
};

/* Files of a model, opened and mapped, metadata parsed, weights not touched yet. Immutable and safe
 * to use from several threads. */
struct model_files;

/* `path`: a folder with config.json and *.safetensors (sharded: with its index), a .gguf file, or a
 * name ORG/NAME in the local Hugging Face cache. STATUS_NOT_FOUND, STATUS_INVALID; -errno. */
int model_files_open(struct model_files **ret, const char *path, struct errmsg *err);
void model_files_free(struct model_files *m);

const struct model_config *model_files_config(const struct model_files *m);
const char *model_files_path(const struct model_files *m);    /* resolved */
const char *model_files_format(const struct model_files *m);  /* "huggingface" | "gguf" */
const char *model_files_dtype(const struct model_files *m);   /* of most weight bytes: "bf16", "q4_1" */
uint64_t model_files_bytes(const struct model_files *m);      /* of all weight files */
uint64_t model_files_parameters(const struct model_files *m); /* tied ones once */

uint64_t model_files_largest(const struct model_files *m); /* bytes, of a tensor in f32 */

/* BLAKE2b-256 over the bytes of weights, configuration and tokenizer. Reads everything. */
int model_files_digest(const struct model_files *m, uint8_t ret_digest[32], struct errmsg *err);

/* Shape of a tensor by its Hugging Face name ("model.layers.0.self_attn.q_proj.weight"); a vector
 * has cols 1. False when there is none. */
bool model_files_shape(const struct model_files *m, const char *name, int64_t *ret_rows,
	int64_t *ret_cols);

/* The tensor in f32, row-major, in Hugging Face's layout (GGUF's permutation of q and k undone),
 * dequantized as ggml does it: out[rows·cols]. STATUS_INVALID when a value is not finite. */
int model_files_read(const struct model_files *m, const char *name, float *out, struct errmsg *err);

/* Files that are those of `of`, which is borrowed, but for the values of tensors: what was read
 * goes through `change` (name, f32 values[rows·cols], in place). Free with model_files_free().
 * -ENOMEM. */
typedef int model_change(const void *ctx, const char *name, int64_t rows, int64_t cols,
	float *values, struct errmsg *err);
int model_files_view(struct model_files **ret, const struct model_files *of, model_change *change,
	const void *ctx);

/* Text of a file beside the weights (tokenizer.json, tokenizer_config.json, generation_config.json),
 * NUL-terminated, borrowed; NULL where there is none, as in GGUF. */
const char *model_files_text(const struct model_files *m, const char *file, size_t *ret_len);

/* The chat template's Jinja source, from tokenizer_config.json, chat_template.jinja or GGUF metadata;
 * NULL where there is none. Borrowed. */
const char *model_files_chat_template(const struct model_files *m);

/* ---- writing ------------------------------------------------------------------------------- */

/*
 * A model as a Hugging Face folder that is on no disk: its files are made while they are read.
 * Weights are in float32, in one file or, above a limit, in several with an index. The same model
 * gives the same bytes.
 */
struct model_folder;

/* With config.json, which a GGUF gets from its metadata, generation_config.json where there is
 * one, and the weights; `files` are borrowed. shard_bytes: of tensors in one file; a larger tensor
 * has a file of its own. */
int model_folder_new(struct model_folder **ret, const struct model_files *files,
	uint64_t shard_bytes, struct errmsg *err);
void model_folder_free(struct model_folder *f);
/* Adds a file before the weights; takes `text`. -ENOMEM. */
int model_folder_add(struct model_folder *f, const char *name, struct buf *text);

size_t model_folder_n_files(const struct model_folder *f);
const char *model_folder_name(const struct model_folder *f, size_t i);
uint64_t model_folder_size(const struct model_folder *f, size_t i);

/* The bytes of all files, one behind the other, from `offset` on; one tensor is in memory at a
 * time. What `take` returns ends it, if it is not 0. */
int model_folder_read(const struct model_folder *f, uint64_t offset,
	int (*take)(void *ctx, const void *data, size_t len), void *ctx, struct errmsg *err);

/* ---- tokenizers of GGUF -------------------------------------------------------------------- */

/* Tokenizer metadata of a GGUF; NULL for folders. Borrowed, strings not NUL-terminated. */
struct gguf_tokenizer {
	const char *model, *pre; /* "gpt2", "smollm"; NUL-terminated */
	int64_t n_tokens, n_merges;
	const char *const *tokens;
	const uint32_t *token_lens;
	const int32_t *token_types; /* NULL where missing; 1 normal, 3 control, 4 user-defined, 6 byte */
	const float *scores;        /* NULL where missing; SentencePiece models have them */
	const char *const *merges;  /* "a b" */
	const uint32_t *merge_lens;
	int32_t bos_token_id, eos_token_id, unk_token_id, pad_token_id; /* -1: none */
	bool add_bos_token, add_eos_token, add_space_prefix;
};
const struct gguf_tokenizer *model_files_gguf_tokenizer(const struct model_files *m);
