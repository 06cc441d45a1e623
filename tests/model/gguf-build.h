#pragma once
/* GGUF files for tests, built entry by entry, so that any part can be wrong. */

#include <stdbool.h>
#include <stdint.h>

#include "engine/model/model-internal.h"
#include "util/buf.h"

struct gguf_build {
	struct buf values, tensors, data;
	uint64_t n_values, n_tensors;
	const char *omit; /* the key or tensor of this name is left out */
	uint32_t alignment; /* 0: 32 */
};
void gguf_build_deinit(struct gguf_build *g);

void gguf_build_u32(struct gguf_build *g, const char *key, uint32_t v);
void gguf_build_f32(struct gguf_build *g, const char *key, float v);
void gguf_build_bool(struct gguf_build *g, const char *key, bool v);
void gguf_build_string(struct gguf_build *g, const char *key, const char *v);
void gguf_build_strings(struct gguf_build *g, const char *key, const char *const *v, uint64_t n);
/* Any value: `data` is what follows the type. */
void gguf_build_raw(struct gguf_build *g, const char *key, uint32_t type, const void *data,
	size_t len);

/* Its place in the file and `bytes` of data: those given, or a pattern of small numbers in f32. */
void gguf_build_tensor(struct gguf_build *g, const char *name, uint32_t ggml_type, int n_dims,
	const uint64_t *dims, const void *data, size_t bytes);
/* The entry alone, with any offset. */
void gguf_build_tensor_at(struct gguf_build *g, const char *name, uint32_t ggml_type, int n_dims,
	const uint64_t *dims, uint64_t offset);

/* A Llama of one layer: hidden 8, heads 2 of 4, one key/value head, MLP 12, 5 tokens; F32. */
void gguf_build_llama_values(struct gguf_build *g);
void gguf_build_llama_tensors(struct gguf_build *g, bool tied);

/* The whole file. */
void gguf_build_finish(const struct gguf_build *g, struct buf *out);

/* Reads bytes as a file would be read; free with model_files_free(). */
int gguf_build_load(struct model_files **ret, const void *data, size_t len, struct errmsg *err);
