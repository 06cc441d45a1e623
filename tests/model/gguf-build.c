#include "tests/model/gguf-build.h"

#include <stdlib.h>
#include <string.h>

#include "util/util.h"

static void append(struct buf *b, const void *data, size_t len)
{
	if (buf_append(b, data, len) < 0) {
		abort();
	}
}

static void append_u32(struct buf *b, uint32_t v)
{
	append(b, &v, sizeof(v));
}

static void append_u64(struct buf *b, uint64_t v)
{
	append(b, &v, sizeof(v));
}

static void append_string(struct buf *b, const char *s)
{
	append_u64(b, strlen(s));
	append(b, s, strlen(s));
}

void gguf_build_deinit(struct gguf_build *g)
{
	buf_deinit(&g->values);
	buf_deinit(&g->tensors);
	buf_deinit(&g->data);
}

void gguf_build_raw(struct gguf_build *g, const char *key, uint32_t type, const void *data,
	size_t len)
{
	if (g->omit && strcmp(g->omit, key) == 0) {
		return;
	}
	append_string(&g->values, key);
	append_u32(&g->values, type);
	append(&g->values, data, len);
	g->n_values++;
}

void gguf_build_u32(struct gguf_build *g, const char *key, uint32_t v)
{
	gguf_build_raw(g, key, 4, &v, sizeof(v));
}

void gguf_build_f32(struct gguf_build *g, const char *key, float v)
{
	gguf_build_raw(g, key, 6, &v, sizeof(v));
}

void gguf_build_bool(struct gguf_build *g, const char *key, bool v)
{
	uint8_t byte = v;
	gguf_build_raw(g, key, 7, &byte, 1);
}

void gguf_build_string(struct gguf_build *g, const char *key, const char *v)
{
	struct buf b = {0};
	append_string(&b, v);
	gguf_build_raw(g, key, 8, b.data, b.len);
	buf_deinit(&b);
}

void gguf_build_strings(struct gguf_build *g, const char *key, const char *const *v, uint64_t n)
{
	struct buf b = {0};
	append_u32(&b, 8);
	append_u64(&b, n);
	for (uint64_t i = 0; i < n; i++) {
		append_string(&b, v[i]);
	}
	gguf_build_raw(g, key, 9, b.data, b.len);
	buf_deinit(&b);
}

void gguf_build_tensor_at(struct gguf_build *g, const char *name, uint32_t ggml_type, int n_dims,
	const uint64_t *dims, uint64_t offset)
{
	append_string(&g->tensors, name);
	append_u32(&g->tensors, (uint32_t)n_dims);
	for (int i = 0; i < n_dims; i++) {
		append_u64(&g->tensors, dims[i]);
	}
	append_u32(&g->tensors, ggml_type);
	append_u64(&g->tensors, offset);
	g->n_tensors++;
}

void gguf_build_tensor(struct gguf_build *g, const char *name, uint32_t ggml_type, int n_dims,
	const uint64_t *dims, const void *data, size_t bytes)
{
	static const uint8_t zero;
	if (g->omit && strcmp(g->omit, name) == 0) {
		return;
	}
	while (g->data.len % (g->alignment ? g->alignment : 32) != 0) {
		append(&g->data, &zero, 1);
	}
	gguf_build_tensor_at(g, name, ggml_type, n_dims, dims, g->data.len);
	if (data) {
		append(&g->data, data, bytes);
		return;
	}
	for (size_t i = 0; i < bytes / 4; i++) {
		float v = (float)(i % 1000) / 8;
		append(&g->data, &v, sizeof(v));
	}
}

void gguf_build_llama_values(struct gguf_build *g)
{
	static const char *const tokens[] = {"<s>", "</s>", "a", "b", "ab"};
	static const char *const merges[] = {"a b"};
	gguf_build_string(g, "general.architecture", "llama");
	gguf_build_u32(g, "llama.context_length", 64);
	gguf_build_u32(g, "llama.embedding_length", 8);
	gguf_build_u32(g, "llama.feed_forward_length", 12);
	gguf_build_u32(g, "llama.block_count", 1);
	gguf_build_u32(g, "llama.attention.head_count", 2);
	gguf_build_u32(g, "llama.attention.head_count_kv", 1);
	gguf_build_f32(g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
	gguf_build_string(g, "tokenizer.ggml.model", "gpt2");
	gguf_build_strings(g, "tokenizer.ggml.tokens", tokens, ARRAY_LEN(tokens));
	gguf_build_strings(g, "tokenizer.ggml.merges", merges, ARRAY_LEN(merges));
	gguf_build_u32(g, "tokenizer.ggml.eos_token_id", 1);
}

void gguf_build_llama_tensors(struct gguf_build *g, bool tied)
{
	static const struct {
		const char *name;
		int n_dims;
		uint64_t dims[2];
	} tensors[] = {
		{"token_embd.weight", 2, {8, 5}},
		{"blk.0.attn_norm.weight", 1, {8}},
		{"blk.0.attn_q.weight", 2, {8, 8}},
		{"blk.0.attn_k.weight", 2, {8, 4}},
		{"blk.0.attn_v.weight", 2, {8, 4}},
		{"blk.0.attn_output.weight", 2, {8, 8}},
		{"blk.0.ffn_norm.weight", 1, {8}},
		{"blk.0.ffn_gate.weight", 2, {8, 12}},
		{"blk.0.ffn_up.weight", 2, {8, 12}},
		{"blk.0.ffn_down.weight", 2, {12, 8}},
		{"output_norm.weight", 1, {8}},
		{"output.weight", 2, {8, 5}},
	};
	for (size_t i = 0; i < ARRAY_LEN(tensors) - tied; i++) {
		size_t bytes = 4 * tensors[i].dims[0] * (tensors[i].n_dims > 1 ? tensors[i].dims[1] : 1);
		gguf_build_tensor(g, tensors[i].name, 0, tensors[i].n_dims, tensors[i].dims, NULL, bytes);
	}
}

void gguf_build_finish(const struct gguf_build *g, struct buf *out)
{
	static const uint8_t zero;
	append(out, "GGUF", 4);
	append_u32(out, 3);
	append_u64(out, g->n_tensors);
	append_u64(out, g->n_values);
	append(out, g->values.data, g->values.len);
	append(out, g->tensors.data, g->tensors.len);
	while (out->len % (g->alignment ? g->alignment : 32) != 0) {
		append(out, &zero, 1);
	}
	append(out, g->data.data, g->data.len);
}

int gguf_build_load(struct model_files **ret, const void *data, size_t len, struct errmsg *err)
{
	struct model_files *m = calloc(1, sizeof(*m));
	if (!m || !(m->files = calloc(1, sizeof(*m->files))) || !(m->path = strdup("x.gguf")) ||
			!(m->files[0].name = strdup("x.gguf"))) {
		abort();
	}
	m->format = "gguf";
	m->n_files = 1;
	m->files[0].fd = -1;
	m->files[0].data = data;
	m->files[0].len = len;
	int r = gguf_load(m, 0, err);
	r = r ? r : model_files_check_weights(m, "x.gguf", err);
	if (r != 0) {
		model_files_free(m);
		return r;
	}
	*ret = m;
	return 0;
}
