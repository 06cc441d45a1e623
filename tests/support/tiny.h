#pragma once
/* A Llama small enough to train in milliseconds, rows for it, and temporary folders. */

#include <stddef.h>
#include <stdint.h>

/* A new folder below $TMPDIR; the caller frees the path. Aborts when it cannot be made. */
char *tiny_tempdir(void);
/* Removes a folder and all in it. */
void tiny_remove_tree(const char *path);
/* "dir/name" as a string that the caller frees. */
char *tiny_path(const char *dir, const char *name);

void tiny_write_file(const char *path, const void *data, size_t len);
/* The whole file, NUL-terminated, and its length; the caller frees it. */
char *tiny_read_file(const char *path, size_t *ret_len);

/* The shape of the model that tiny_model_write() makes. */
enum {
	TINY_HIDDEN = 64,
	TINY_INTERMEDIATE = 96,
	TINY_LAYERS = 2,
	TINY_HEADS = 4,
	TINY_KV_HEADS = 2,
	TINY_HEAD_DIM = 16,
	TINY_VOCAB = 272,
	TINY_POSITIONS = 512,
	/* Ids of tokenizer.json: three special tokens, then the 256 bytes, then eight merges. */
	TINY_EOS = 0,
	TINY_IM_START = 1,
	TINY_IM_END = 2,
	TINY_BYTE = 3,
};

/* Writes a Hugging Face folder with random weights: config.json, model.safetensors in f32,
 * tokenizer.json (byte-level BPE), tokenizer_config.json (without a chat template),
 * generation_config.json. The same seed gives the same bytes. `dir` is made. */
void tiny_model_write(const char *dir, uint64_t seed);

/* The same with an encoder-decoder, a T5 of the same sizes. */
void tiny_t5_write(const char *dir, uint64_t seed);

/* `n` prompt-completion rows of simple sums as JSONL; the caller frees it. */
char *tiny_rows(size_t n, uint64_t seed, size_t *ret_len);
