#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/dequant.h"
#include "engine/model/gguf.h"
#include "engine/model/safetensors.h"
#include "tests/model/gguf-build.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct model_files *, model_files_free);

/* A file below the golden folder, whole. */
static void read_golden(struct buf *out, const char *name)
{
	char path[4096];
	struct errmsg err = {0};
	snprintf(path, sizeof(path), "%s/%s", getenv("GOLDEN_DIR"), name);
	assert_int_equal(text_file_read(out, path, name, 64 << 20, &err), 0);
	assert_non_null(out->data);
}

/* ---- dequantization ------------------------------------------------------------------------ */

static void test_dequantizes_as_ggml(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	_cleanup_(safetensors_deinit) struct safetensors st = {0};
	struct errmsg err = {0};
	size_t types = 0;

	read_golden(&file, "formats/blocks.safetensors");
	assert_int_equal(safetensors_parse(&st, file.data, file.len, "blocks", &err), 0);
	for (size_t type = 0; type < WEIGHT_N_TYPES; type++) {
		char name[64];
		snprintf(name, sizeof(name), "%s.blocks", weight_types[type].name);
		const struct st_tensor *blocks = safetensors_find(&st, name);
		snprintf(name, sizeof(name), "%s.values", weight_types[type].name);
		const struct st_tensor *values = safetensors_find(&st, name);
		if (type == WEIGHT_F32 || type == WEIGHT_F64) {
			continue; /* not in there; see test_safetensors */
		}
		assert_non_null(blocks);
		assert_non_null(values);
		types++;

		size_t n = values->bytes / 4;
		assert_int_equal(blocks->bytes, n / weight_types[type].block_values *
			weight_types[type].block_bytes);
		_cleanup_(freep) float *out = alloc_array(n, sizeof(*out));
		weight_read((enum weight_type)type, blocks->data, out, n);
		for (size_t i = 0; i < n; i++) {
			uint32_t got, want = le32_read(values->data + 4 * i);
			memcpy(&got, &out[i], 4);
			if (got != want) {
				fail_msg("%s: value %zu is %08x, ggml has %08x", weight_types[type].name, i, got,
					want);
			}
		}
	}
	assert_int_equal(types, 10);
}

static void test_weight_bytes(void **state)
{
	size_t n;
	assert_true(weight_bytes(WEIGHT_Q4_1, 3, 64, &n));
	assert_int_equal(n, 120);
	assert_true(weight_bytes(WEIGHT_Q6_K, 2, 512, &n));
	assert_int_equal(n, 840);
	assert_false(weight_bytes(WEIGHT_Q4_1, 3, 33, &n));
	assert_false(weight_bytes(WEIGHT_F32, INT64_MAX, 4, &n));
	assert_false(weight_bytes(WEIGHT_F32, -1, 4, &n));
}

/* ---- the tiny model, against its twin ------------------------------------------------------ */

static void test_tiny_equals_its_twin(void **state)
{
	_cleanup_(model_files_freep) struct model_files *gguf = NULL;
	_cleanup_(model_files_freep) struct model_files *hf = NULL;
	char path[4096];
	struct errmsg err = {0};
	_cleanup_(freep) struct tensor_spec *specs = NULL;
	size_t n = 0;

	snprintf(path, sizeof(path), "%s/formats/tiny.gguf", getenv("GOLDEN_DIR"));
	assert_int_equal(model_files_open(&gguf, path, &err), 0);
	snprintf(path, sizeof(path), "%s/formats/tiny", getenv("GOLDEN_DIR"));
	assert_int_equal(model_files_open(&hf, path, &err), 0);

	assert_int_equal(model_tensors(&specs, &n, model_files_config(hf)), 0);
	for (size_t i = 0; i < n; i++) {
		const struct tensor_spec spec = specs[i];
		int64_t rows, cols;
		size_t values = (size_t)(spec.rows * spec.cols);
		_cleanup_(freep) float *a = alloc_array(values, sizeof(*a));
		_cleanup_(freep) float *b = alloc_array(values, sizeof(*b));
		assert_true(model_files_shape(gguf, spec.name, &rows, &cols));
		assert_int_equal(rows, spec.rows);
		assert_int_equal(cols, spec.cols);
		assert_int_equal(model_files_read(gguf, spec.name, a, &err), 0);
		assert_int_equal(model_files_read(hf, spec.name, b, &err), 0);
		if (memcmp(a, b, 4 * values) != 0) {
			fail_msg("%s differs", spec.name);
		}
	}
	assert_int_equal(n, 21);
	assert_string_equal(model_files_format(gguf), "gguf");
	assert_string_equal(model_files_dtype(hf), "f32");
	assert_int_equal(model_files_parameters(gguf), model_files_parameters(hf));

	const struct model_config *g = model_files_config(gguf), *h = model_files_config(hf);
	assert_int_equal(g->vocab_size, h->vocab_size);
	assert_int_equal(g->hidden_size, h->hidden_size);
	assert_int_equal(g->intermediate_size, h->intermediate_size);
	assert_int_equal(g->num_hidden_layers, h->num_hidden_layers);
	assert_int_equal(g->num_attention_heads, h->num_attention_heads);
	assert_int_equal(g->num_key_value_heads, h->num_key_value_heads);
	assert_int_equal(g->head_dim, h->head_dim);
	assert_int_equal(g->max_position_embeddings, h->max_position_embeddings);
	assert_true(g->rms_norm_eps == h->rms_norm_eps);
	assert_true(g->rope_theta == h->rope_theta);
	assert_int_equal(g->rope_scaling, h->rope_scaling);
	assert_int_equal(g->tie_word_embeddings, false);
	assert_int_equal(h->tie_word_embeddings, false);
	assert_int_equal(g->bos_token_id, 1);
	assert_int_equal(g->eos_token_id, 0);
	assert_int_equal(g->pad_token_id, -1);
	assert_string_equal(model_files_chat_template(gguf), model_files_chat_template(hf));
}

static void test_tokenizer_metadata(void **state)
{
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	char path[4096];
	struct errmsg err = {0};
	snprintf(path, sizeof(path), "%s/formats/tiny.gguf", getenv("GOLDEN_DIR"));
	assert_int_equal(model_files_open(&m, path, &err), 0);

	const struct gguf_tokenizer *t = model_files_gguf_tokenizer(m);
	assert_non_null(t);
	assert_string_equal(t->model, "gpt2");
	assert_string_equal(t->pre, "smollm");
	assert_int_equal(t->n_tokens, 40);
	assert_int_equal(t->n_merges, 2);
	assert_int_equal(t->token_lens[0], 5);
	assert_memory_equal(t->tokens[0], "<eos>", 5);
	assert_memory_equal(t->tokens[39], "t37é", t->token_lens[39]);
	assert_int_equal(t->token_lens[39], 5);
	assert_memory_equal(t->merges[1], "t 1", t->merge_lens[1]);
	assert_int_equal(t->token_types[1], 3);
	assert_int_equal(t->token_types[2], 1);
	assert_null(t->scores);
	assert_int_equal(t->bos_token_id, 1);
	assert_int_equal(t->eos_token_id, 0);
	assert_int_equal(t->unk_token_id, -1);
	assert_true(t->add_bos_token);
	assert_false(t->add_eos_token);
	assert_false(t->add_space_prefix);
	assert_null(model_files_text(m, "tokenizer.json", NULL));
}

/* Each family, as its converter leaves it: tests/golden/make_gguf.py. */
static void check_same_config(const char *name, const struct model_config *g,
	const struct model_config *h)
{
	const struct {
		const char *field;
		double got, want;
	} fields[] = {
#define FIELD(x) {#x, (double)g->x, (double)h->x}
		FIELD(vocab_size), FIELD(hidden_size), FIELD(intermediate_size), FIELD(num_hidden_layers),
		FIELD(num_attention_heads), FIELD(num_key_value_heads), FIELD(head_dim),
		FIELD(max_position_embeddings), FIELD(rope_theta), FIELD(rope_scaling),
		FIELD(rope.factor), FIELD(rope.original_max_position_embeddings), FIELD(rope.beta_fast),
		FIELD(rope.beta_slow), FIELD(rope.attention_factor), FIELD(rope.mscale),
		FIELD(rotary_dim), FIELD(rope_local_theta), FIELD(final_logit_softcapping),
		FIELD(embedding_scale), FIELD(attention_scale), FIELD(attention_scale_by_layer),
		FIELD(attn_logit_softcapping), FIELD(sliding_window), FIELD(max_sequence), FIELD(hidden_act),
		FIELD(fan_in_fan_out), FIELD(parallel_residual), FIELD(tie_word_embeddings),
#undef FIELD
	};
	for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
		if (fields[i].got != fields[i].want) {
			fail_msg("%s: %s is %.17g, not %.17g", name, fields[i].field, fields[i].got,
				fields[i].want);
		}
	}
	/* In f32 in the file. */
	assert_true(fabs(g->rms_norm_eps - h->rms_norm_eps) <= 1e-7 * h->rms_norm_eps);
	assert_memory_equal(g->layer_flags, h->layer_flags, sizeof(g->layer_flags));
}

static void check_same_tensors(const char *name, const struct model_files *gguf,
	const struct model_files *hf)
{
	struct errmsg err = {0};
	_cleanup_(freep) struct tensor_spec *specs = NULL;
	size_t n = 0;
	assert_int_equal(model_tensors(&specs, &n, model_files_config(gguf)), 0);
	assert_true(n > 5);
	for (size_t i = 0; i < n; i++) {
		int64_t rows, cols;
		size_t values = (size_t)(specs[i].rows * specs[i].cols);
		_cleanup_(freep) float *a = alloc_array(values, sizeof(*a));
		_cleanup_(freep) float *b = alloc_array(values, sizeof(*b));
		assert_true(model_files_shape(hf, specs[i].name, &rows, &cols));
		assert_true(rows == specs[i].rows && cols == specs[i].cols);
		assert_int_equal(model_files_read(gguf, specs[i].name, a, &err), 0);
		assert_int_equal(model_files_read(hf, specs[i].name, b, &err), 0);
		if (memcmp(a, b, values * sizeof(*a)) != 0) {
			fail_msg("%s: %s differs", name, specs[i].name);
		}
	}
	assert_int_equal(model_files_parameters(gguf), model_files_parameters(hf));
}

static void test_families_equal_their_twins(void **state)
{
	static const char *const names[] = {"gemma2", "gemma3", "gpt2", "qwen2", "qwen2-yarn", "qwen3"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		_cleanup_(model_files_freep) struct model_files *gguf = NULL;
		_cleanup_(model_files_freep) struct model_files *hf = NULL;
		struct errmsg err = {0};
		char path[4096];
		snprintf(path, sizeof(path), "%s/formats/twins/%s.gguf", getenv("GOLDEN_DIR"), names[i]);
		if (model_files_open(&gguf, path, &err) != 0) {
			fail_msg("%s", err.text);
		}
		snprintf(path, sizeof(path), "%s/formats/twins/%s", getenv("GOLDEN_DIR"), names[i]);
		if (model_files_open(&hf, path, &err) != 0) {
			fail_msg("%s", err.text);
		}
		assert_string_equal(model_files_config(gguf)->model_type, model_files_config(hf)->model_type);
		check_same_config(names[i], model_files_config(gguf), model_files_config(hf));
		check_same_tensors(names[i], gguf, hf);
	}
}

/* To GGUF a Mistral is a llama. */
static void test_mistral_is_a_llama(void **state)
{
	_cleanup_(model_files_freep) struct model_files *gguf = NULL;
	_cleanup_(model_files_freep) struct model_files *hf = NULL;
	struct errmsg err = {0};
	char path[4096];
	snprintf(path, sizeof(path), "%s/formats/twins/mistral.gguf", getenv("GOLDEN_DIR"));
	assert_int_equal(model_files_open(&gguf, path, &err), 0);
	snprintf(path, sizeof(path), "%s/formats/twins/mistral", getenv("GOLDEN_DIR"));
	assert_int_equal(model_files_open(&hf, path, &err), 0);
	assert_string_equal(model_files_config(gguf)->model_type, "llama");
	assert_string_equal(model_files_config(hf)->model_type, "mistral");
	check_same_config("mistral", model_files_config(gguf), model_files_config(hf));
	check_same_tensors("mistral", gguf, hf);
}

/* ---- what is refused ----------------------------------------------------------------------- */

/* Cases add their fault to a good file, or leave something out; where they give tensors themselves,
 * a good one is built without. */
static void no_change(struct gguf_build *g)
{
}

static void wrong_architecture(struct gguf_build *g)
{
	gguf_build_string(g, "general.architecture", "falcon");
}

static void is_adapter(struct gguf_build *g)
{
	gguf_build_string(g, "general.type", "adapter");
}

static void is_split(struct gguf_build *g)
{
	gguf_build_u32(g, "split.count", 3);
}

static void has_experts(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.expert_count", 8);
}

static void has_no_experts(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.expert_count", 0);
}

static void has_double_key(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.block_count", 1);
}

static void has_huge_layers(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.block_count", 100000);
}

static void has_string_layers(struct gguf_build *g)
{
	gguf_build_string(g, "llama.block_count", "one");
}

static void has_zero_heads(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.attention.head_count", 0);
}

static void has_odd_heads(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.attention.head_count", 8);
}

static void has_partial_rotary(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.rope.dimension_count", 2);
}

static void has_yarn(struct gguf_build *g)
{
	gguf_build_string(g, "llama.rope.scaling.type", "yarn");
}

static void has_nan_theta(struct gguf_build *g)
{
	gguf_build_f32(g, "llama.rope.freq_base", NAN);
}

static void has_nan_eps(struct gguf_build *g)
{
	gguf_build_f32(g, "llama.attention.layer_norm_rms_epsilon", NAN);
}

static void has_bad_alignment(struct gguf_build *g)
{
	gguf_build_u32(g, "general.alignment", 48);
}

static void has_zero_alignment(struct gguf_build *g)
{
	gguf_build_u32(g, "general.alignment", 0);
}

static void has_small_vocab(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.vocab_size", 4);
}

static void has_large_vocab(struct gguf_build *g)
{
	gguf_build_u32(g, "llama.vocab_size", 6);
}

static void has_bad_eos(struct gguf_build *g)
{
	gguf_build_u32(g, "tokenizer.ggml.eos_token_id", 5);
}

static void has_bad_bool(struct gguf_build *g)
{
	gguf_build_raw(g, "tokenizer.ggml.add_bos_token", 7, "\2", 1);
}

static void has_bad_types(struct gguf_build *g)
{
	uint8_t raw[12 + 8] = {0};
	le32_write(raw, 5);
	le64_write(raw + 4, 2);
	gguf_build_raw(g, "tokenizer.ggml.token_type", 9, raw, sizeof(raw));
}

static void has_unknown_type(struct gguf_build *g)
{
	gguf_build_raw(g, "x.y", 13, "\0", 1);
}

static void has_nested_array(struct gguf_build *g)
{
	uint8_t raw[12] = {0};
	le32_write(raw, 9);
	gguf_build_raw(g, "x.y", 9, raw, sizeof(raw));
}

static void has_huge_array(struct gguf_build *g)
{
	uint8_t raw[12] = {0};
	le32_write(raw, 8);
	le64_write(raw + 4, UINT64_MAX);
	gguf_build_raw(g, "x.y", 9, raw, sizeof(raw));
}

static void has_long_array(struct gguf_build *g)
{
	uint8_t raw[12] = {0};
	le32_write(raw, 10);
	le64_write(raw + 4, 1 << 24);
	gguf_build_raw(g, "x.y", 9, raw, sizeof(raw));
}

static void has_huge_string(struct gguf_build *g)
{
	uint8_t raw[8];
	le64_write(raw, UINT64_MAX - 7);
	gguf_build_raw(g, "x.y", 8, raw, sizeof(raw));
}

static void has_empty_key(struct gguf_build *g)
{
	gguf_build_u32(g, "", 1);
}

static void has_latin1_key(struct gguf_build *g)
{
	gguf_build_u32(g, "caf\xE9", 1);
}

static void has_latin1_template(struct gguf_build *g)
{
	gguf_build_string(g, "tokenizer.chat_template", "caf\xE9");
}

static void has_unknown_tensor(struct gguf_build *g)
{
	gguf_build_tensor(g, "blk.0.attn_sinks.weight", 0, 1, (uint64_t[]){8}, NULL, 32);
}

static void has_layer_too_many(struct gguf_build *g)
{
	gguf_build_tensor(g, "blk.1.attn_norm.weight", 0, 1, (uint64_t[]){8}, NULL, 32);
}

static void has_second_layer_name(struct gguf_build *g)
{
	gguf_build_tensor(g, "blk.00.attn_norm.weight", 0, 1, (uint64_t[]){8}, NULL, 32);
}

static void has_double_tensor(struct gguf_build *g)
{
	gguf_build_tensor(g, "blk.0.attn_norm.weight", 0, 1, (uint64_t[]){8}, NULL, 32);
}

static void has_q2_k(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 10, 2, (uint64_t[]){256, 5}, 0);
}

static void has_type_999(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 999, 2, (uint64_t[]){8, 5}, 0);
}

static void has_partial_block(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 8, 2, (uint64_t[]){8, 5}, 0);
}

static void has_zero_dim(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 0, 2, (uint64_t[]){8, 0}, 0);
}

static void has_overflow(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 0, 3,
		(uint64_t[]){8, (uint64_t)1 << 40, (uint64_t)1 << 40}, 0);
}

static void has_negative_dim(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 0, 2, (uint64_t[]){8, UINT64_MAX}, 0);
}

static void has_overflow_bytes(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 0, 2,
		(uint64_t[]){(uint64_t)1 << 31, (uint64_t)1 << 31}, 0);
}

static void has_five_dims(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 0, 5, (uint64_t[]){8, 1, 1, 1, 1}, 0);
}

static void has_offset_outside(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 0, 2, (uint64_t[]){8, 5}, (uint64_t)1 << 62);
}

static void has_odd_offset(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 0, 2, (uint64_t[]){8, 5}, 4);
}

static void has_overlap(struct gguf_build *g)
{
	gguf_build_tensor_at(g, "output.weight", 0, 2, (uint64_t[]){8, 5}, 32);
}

static void has_quantized_norm(struct gguf_build *g)
{
	gguf_build_tensor(g, "blk.0.attn_norm.weight", 8, 1, (uint64_t[]){32}, "", 0);
	uint8_t block[34] = {0};
	buf_append(&g->data, block, sizeof(block));
}

static void has_three_dims(struct gguf_build *g)
{
	gguf_build_tensor(g, "output.weight", 0, 3, (uint64_t[]){8, 5, 2}, NULL, 320);
}

static void has_wrong_shape(struct gguf_build *g)
{
	gguf_build_tensor(g, "blk.0.ffn_up.weight", 0, 2, (uint64_t[]){12, 8}, NULL, 384);
}

static void has_one_bias(struct gguf_build *g)
{
	gguf_build_tensor(g, "blk.0.attn_q.bias", 0, 1, (uint64_t[]){8}, NULL, 32);
}

static void has_long_rope_freqs(struct gguf_build *g)
{
	gguf_build_tensor(g, "rope_freqs.weight", 0, 1, (uint64_t[]){4}, NULL, 16);
}

static void has_odd_rope_freqs(struct gguf_build *g)
{
	const float factors[] = {1, 3.5f};
	gguf_build_tensor(g, "rope_freqs.weight", 0, 1, (uint64_t[]){2}, factors, 8);
}

static const struct refused {
	const char *omit;
	void (*change)(struct gguf_build *);
	const char *expected;
} refused[] = {
	{"general.architecture", no_change, "architecture '' (general.architecture) is not supported"},
	{"general.architecture", wrong_architecture,
		"architecture 'falcon' (general.architecture) is not supported; known are: gemma2, gemma3, "
		"gpt2, llama, qwen2, qwen3"},
	{NULL, is_adapter, "holds a 'adapter'"},
	{NULL, is_split, "one of 3 parts"},
	{NULL, has_experts, "'llama.expert_count' may change"},
	{NULL, has_double_key, "'llama.block_count' comes twice"},
	{"llama.block_count", no_change, "'llama.block_count' is missing"},
	{"llama.block_count", has_huge_layers,
		"'num_hidden_layers' is 100000; it must be from 1 to 1024"},
	{"llama.block_count", has_string_layers,
		"'llama.block_count' is string; it must be a whole number"},
	{"llama.attention.head_count", has_zero_heads, "'llama.attention.head_count' is 0"},
	{"llama.attention.head_count", has_odd_heads, "head_dim = 1 must be even"},
	{NULL, has_partial_rotary, "2 rotated dimensions"},
	{NULL, has_yarn, "'llama.rope.scaling.type' is 'yarn'"},
	{NULL, has_nan_theta, "'rope_theta' is"},
	{"llama.attention.layer_norm_rms_epsilon", has_nan_eps, "'rms_norm_eps' is"},
	{"llama.attention.layer_norm_rms_epsilon", no_change, "layer_norm_rms_epsilon' is missing"},
	{NULL, has_bad_alignment, "general.alignment is 48; it must be a power of two"},
	{NULL, has_zero_alignment, "'general.alignment' is 0"},
	{NULL, has_small_vocab, "there are 5 tokens, more than llama.vocab_size = 4"},
	{NULL, has_large_vocab,
		"'model.embed_tokens.weight' has the shape [5, 8]; the configuration makes it [6, 8]"},
	{"tokenizer.ggml.eos_token_id", has_bad_eos,
		"'tokenizer.ggml.eos_token_id' is 5, but there are only 5 tokens"},
	{"tokenizer.ggml.tokens", no_change, "'tokenizer.ggml.tokens' is missing"},
	{NULL, has_bad_bool, "must be true or false"},
	{NULL, has_bad_types, "'tokenizer.ggml.token_type' has 2 items"},
	{NULL, has_unknown_type, "'x.y': unknown value type 13"},
	{NULL, has_nested_array, "arrays of arrays"},
	{NULL, has_huge_array, "an array of 18446744073709551615 items; at most 16777216"},
	{NULL, has_long_array, "cut short"},
	{NULL, has_huge_string, "at most 16777216 are read"},
	{NULL, has_empty_key, "is empty or no UTF-8"},
	{NULL, has_latin1_key, "is empty or no UTF-8"},
	{NULL, has_latin1_template, "'tokenizer.chat_template' is no UTF-8"},
	{NULL, has_unknown_tensor, "'blk.0.attn_sinks.weight' does not belong to a llama"},
	{NULL, has_layer_too_many, "'model.layers.1.input_layernorm.weight' does not belong"},
	{NULL, has_second_layer_name, "'blk.00.attn_norm.weight' does not belong"},
	{NULL, has_double_tensor, "'model.layers.0.input_layernorm.weight' comes twice"},
	{"output.weight", has_q2_k, "'output.weight' has type Q2_K (10), which is not supported"},
	{"output.weight", has_type_999, "has type unknown (999)"},
	{"output.weight", has_partial_block, "no whole blocks of 32 (q8_0)"},
	{"output.weight", has_zero_dim, "dimension 1 is 0"},
	{"output.weight", has_overflow, "sizes overflow"},
	{"output.weight", has_negative_dim, "dimension 1 is 18446744073709551615"},
	{"output.weight", has_overflow_bytes, "its size overflows"},
	{"output.weight", has_five_dims, "has 5 dimensions; it must be 1 to 4"},
	{"output.weight", has_offset_outside, "cut short: tensor 'output.weight' needs 160 bytes"},
	{"output.weight", has_odd_offset, "begins at 4, which is no multiple of the alignment 32"},
	{"output.weight", has_overlap, "overlaps"},
	{"output.weight", has_three_dims, "has 3 dimensions; weights have one or two"},
	{"blk.0.attn_norm.weight", no_change, "'model.layers.0.input_layernorm.weight' is missing"},
	{"token_embd.weight", no_change, "'model.embed_tokens.weight' is missing"},
	{"blk.0.ffn_up.weight", has_wrong_shape,
		"'model.layers.0.mlp.up_proj.weight' has the shape [8, 12]"},
	{NULL, has_one_bias, "'model.layers.0.self_attn.k_proj.bias' is missing"},
	{NULL, has_long_rope_freqs, "'rope_freqs.weight' must be 2 values"},
	{NULL, has_odd_rope_freqs, "cannot be told from it"},
};

/* The omitted name applies to the good part only, so that the change can put it in again. */
static void build(struct buf *file, const char *omit, void (*change)(struct gguf_build *),
	bool tied)
{
	_cleanup_(gguf_build_deinit) struct gguf_build g = {.omit = omit};
	gguf_build_llama_values(&g);
	gguf_build_llama_tensors(&g, tied);
	g.omit = NULL;
	change(&g);
	gguf_build_finish(&g, file);
}

static void test_refuses(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
		_cleanup_(buf_deinit) struct buf file = {0};
		struct model_files *m = NULL;
		struct errmsg err = {0};
		build(&file, refused[i].omit, refused[i].change, false);
		int r = gguf_build_load(&m, file.data, file.len, &err);
		if (r != STATUS_INVALID || !strstr(err.text, refused[i].expected) ||
				strncmp(err.text, "x.gguf: ", 8) != 0) {
			fail_msg("case %zu: %d, '%s'; expected '%s'", i, r, err.text, refused[i].expected);
		}
	}
}

static void test_refuses_quantized_vector(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	struct model_files *m = NULL;
	struct errmsg err = {0};
	build(&file, "blk.0.attn_norm.weight", has_quantized_norm, false);
	assert_int_equal(gguf_build_load(&m, file.data, file.len, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "is a vector of type q8_0"));
}

static void test_refuses_headers(void **state)
{
	static const struct {
		uint8_t bytes[24];
		size_t len;
		const char *expected;
	} headers[] = {
		{"GGML", 24, "no GGUF file"},
		{"GG", 2, "no GGUF file"},
		{"GGUF\1\0\0\0", 24, "GGUF version 1;"},
		{"GGUF\4\0\0\0", 24, "GGUF version 4;"},
		{"GGUF\0\0\0\3", 24, "GGUF version 3, big-endian"},
		{"GGUF\3\0\0\0\1\0\0\0\0\0\0\0", 24, "has 24 bytes, too few"},
		{"GGUF\3\0\0\0\0\0\0\0\0\0\0\0\1", 24, "too few for the 1 metadata entries and 0 tensors"},
		{"GGUF\3\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", 24, "claims 18446744073709551615 tensors"},
		{"GGUF\3\0\0\0", 12, "cut short"},
	};
	for (size_t i = 0; i < ARRAY_LEN(headers); i++) {
		struct gguf g;
		struct errmsg err = {0};
		assert_int_equal(gguf_parse(&g, headers[i].bytes, headers[i].len, "x", &err),
			STATUS_INVALID);
		if (!strstr(err.text, headers[i].expected)) {
			fail_msg("case %zu: '%s'; expected '%s'", i, err.text, headers[i].expected);
		}
	}
}

static void test_refuses_cut_short(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	struct errmsg err;
	build(&file, NULL, no_change, false);
	for (size_t n = 0; n < file.len; n++) {
		_cleanup_(freep) uint8_t *copy = malloc(n ? n : 1);
		struct model_files *m = NULL;
		memcpy(copy, file.data, n);
		assert_int_equal(gguf_build_load(&m, copy, n, &err), STATUS_INVALID);
	}
}

/* ---- what is read -------------------------------------------------------------------------- */

static void test_reads_smallest(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err = {0};
	build(&file, NULL, no_change, true);
	assert_int_equal(gguf_build_load(&m, file.data, file.len, &err), 0);
	const struct model_config *c = model_files_config(m);
	assert_true(c->tie_word_embeddings);
	assert_false(c->attention_bias);
	assert_int_equal(c->vocab_size, 5);
	assert_int_equal(c->head_dim, 4);
	assert_int_equal(c->rope_scaling, ROPE_SCALING_NONE);
	assert_true(c->rope_theta == 10000);
	assert_int_equal(c->bos_token_id, -1);
	assert_int_equal(c->eos_token_id, 1);
	assert_string_equal(model_files_gguf_tokenizer(m)->pre, "default");

	/* Row j·D/2 + i of a head is stored as row 2i + j; D = 4. */
	float q[64];
	static const int stored[8] = {0, 2, 1, 3, 4, 6, 5, 7};
	assert_int_equal(model_files_read(m, "model.layers.0.self_attn.q_proj.weight", q, &err), 0);
	for (size_t i = 0; i < 64; i++) {
		assert_true(q[i] == (float)(stored[i / 8] * 8 + (int)(i % 8)) / 8);
	}
	/* v is not. */
	assert_int_equal(model_files_read(m, "model.layers.0.self_attn.v_proj.weight", q, &err), 0);
	for (size_t i = 0; i < 32; i++) {
		assert_true(q[i] == (float)i / 8);
	}
	assert_int_equal(model_files_read(m, "model.layers.7", q, &err), STATUS_NOT_FOUND);

	_cleanup_(buf_deinit) struct buf untied = {0};
	_cleanup_(model_files_freep) struct model_files *m2 = NULL;
	build(&untied, NULL, has_no_experts, false);
	assert_int_equal(gguf_build_load(&m2, untied.data, untied.len, &err), 0);
	assert_false(model_files_config(m2)->tie_word_embeddings);
}

static void has_all_biases(struct gguf_build *g)
{
	gguf_build_tensor(g, "blk.0.attn_q.bias", 0, 1, (uint64_t[]){8}, NULL, 32);
	gguf_build_tensor(g, "blk.0.attn_k.bias", 0, 1, (uint64_t[]){4}, NULL, 16);
	gguf_build_tensor(g, "blk.0.attn_v.bias", 0, 1, (uint64_t[]){4}, NULL, 16);
	gguf_build_tensor(g, "blk.0.attn_output.bias", 0, 1, (uint64_t[]){8}, NULL, 32);
}

static void test_reads_biases(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err = {0};
	float b[4];
	build(&file, NULL, has_all_biases, true);
	assert_int_equal(gguf_build_load(&m, file.data, file.len, &err), 0);
	assert_true(model_files_config(m)->attention_bias);
	assert_false(model_files_config(m)->mlp_bias);
	assert_int_equal(model_files_read(m, "model.layers.0.self_attn.k_proj.bias", b, &err), 0);
	assert_true(b[0] == 0 && b[1] == 2 / 8.0f && b[2] == 1 / 8.0f && b[3] == 3 / 8.0f);
}

static void has_nan(struct gguf_build *g)
{
	float x[40] = {[9] = NAN};
	gguf_build_tensor(g, "output.weight", 0, 2, (uint64_t[]){8, 5}, x, sizeof(x));
}

static void test_refuses_not_finite(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err = {0};
	float x[40];
	build(&file, "output.weight", has_nan, false);
	assert_int_equal(gguf_build_load(&m, file.data, file.len, &err), 0);
	assert_int_equal(model_files_read(m, "lm_head.weight", x, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "'lm_head.weight': value 9 (row 1, column 1) is not finite"));
}

static void has_linear(struct gguf_build *g)
{
	gguf_build_string(g, "llama.rope.scaling.type", "linear");
	gguf_build_f32(g, "llama.rope.scaling.factor", 4);
}

static void has_legacy_linear(struct gguf_build *g)
{
	gguf_build_f32(g, "llama.rope.scale_linear", 2);
}

static void has_ones(struct gguf_build *g)
{
	const float ones[] = {1, 1};
	gguf_build_tensor(g, "rope_freqs.weight", 0, 1, (uint64_t[]){2}, ones, 8);
}

static void test_rope_scaling(void **state)
{
	const struct {
		void (*change)(struct gguf_build *);
		enum rope_scaling kind;
		double factor;
	} cases[] = {
		{has_linear, ROPE_SCALING_LINEAR, 4},
		{has_legacy_linear, ROPE_SCALING_LINEAR, 2},
		{has_ones, ROPE_SCALING_NONE, 0},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		_cleanup_(buf_deinit) struct buf file = {0};
		_cleanup_(model_files_freep) struct model_files *m = NULL;
		struct errmsg err = {0};
		build(&file, NULL, cases[i].change, false);
		assert_int_equal(gguf_build_load(&m, file.data, file.len, &err), 0);
		assert_int_equal(model_files_config(m)->rope_scaling, cases[i].kind);
		assert_true(model_files_config(m)->rope.factor == cases[i].factor);
	}
}

/* What the converter made of Llama 3.1's and 3.2's scaling is recognised; of another, it is not. */
static void test_llama3_from_factors(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	_cleanup_(safetensors_deinit) struct safetensors st = {0};
	struct errmsg err = {0};
	float factors[64];
	struct model_config c = {.head_dim = 128, .rope_theta = 500000};

	read_golden(&file, "formats/rope_freqs.safetensors");
	assert_int_equal(safetensors_parse(&st, file.data, file.len, "rope_freqs", &err), 0);

	assert_int_equal(st_tensor_read_f32(safetensors_find(&st, "llama-3.1-8b"), factors, &err), 0);
	assert_true(model_config_llama3_from_factors(&c, factors, 64));
	assert_int_equal(c.rope_scaling, ROPE_SCALING_LLAMA3);
	assert_true(c.rope.factor == 8 && c.rope.low_freq_factor == 1 && c.rope.high_freq_factor == 4);
	assert_int_equal(c.rope.original_max_position_embeddings, 8192);

	struct model_config other_base = {.head_dim = 128, .rope_theta = 10000};
	assert_false(model_config_llama3_from_factors(&other_base, factors, 64));
	assert_int_equal(other_base.rope_scaling, ROPE_SCALING_NONE);

	struct model_config small = {.head_dim = 64, .rope_theta = 500000};
	assert_int_equal(st_tensor_read_f32(safetensors_find(&st, "llama-3.2-1b"), factors, &err), 0);
	assert_true(model_config_llama3_from_factors(&small, factors, 32));
	assert_true(small.rope.factor == 32);

	struct model_config unknown = {.head_dim = 64, .rope_theta = 500000};
	assert_int_equal(st_tensor_read_f32(safetensors_find(&st, "other"), factors, &err), 0);
	assert_false(model_config_llama3_from_factors(&unknown, factors, 32));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dequantizes_as_ggml),
		cmocka_unit_test(test_weight_bytes),
		cmocka_unit_test(test_tiny_equals_its_twin),
		cmocka_unit_test(test_families_equal_their_twins),
		cmocka_unit_test(test_mistral_is_a_llama),
		cmocka_unit_test(test_tokenizer_metadata),
		cmocka_unit_test(test_refuses),
		cmocka_unit_test(test_refuses_quantized_vector),
		cmocka_unit_test(test_refuses_headers),
		cmocka_unit_test(test_refuses_cut_short),
		cmocka_unit_test(test_reads_smallest),
		cmocka_unit_test(test_reads_biases),
		cmocka_unit_test(test_refuses_not_finite),
		cmocka_unit_test(test_rope_scaling),
		cmocka_unit_test(test_llama3_from_factors),
	};
	return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
