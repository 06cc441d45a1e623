/* What a GGUF of architecture "llama" means in Hugging Face's words: configuration, tensor names,
 * the order of q's and k's rows, the tokenizer. Keys and names: gguf's constants.py; their use:
 * llama.cpp's llama-model.cpp and convert_hf_to_gguf.py. */

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/gguf.h"
#include "engine/model/model-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

#define PREFIX "llama."

static bool string_is(const struct gguf_string *s, const char *literal)
{
	return s->len == strlen(literal) && memcmp(s->data, literal, s->len) == 0;
}

static bool starts_with(const struct gguf_string *s, const char *prefix)
{
	size_t n = strlen(prefix);
	return s->len >= n && memcmp(s->data, prefix, n) == 0;
}

/* ---- configuration ------------------------------------------------------------------------- */

/* Keys under "llama." that are read below, or that say nothing about what is computed. */
static const char *const known_keys[] = {
	"vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
	"attention.head_count", "attention.head_count_kv", "attention.key_length",
	"attention.value_length", "attention.layer_norm_rms_epsilon", "rope.dimension_count",
	"rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
	"rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout",
};

/* True for a number that is 0 or a false: an option that is switched off. */
static bool value_is_off(const struct gguf_value *v)
{
	static const uint8_t zeros[8];
	static const size_t bytes[GGUF_N_TYPES] = {
		[GGUF_U8] = 1, [GGUF_I8] = 1, [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4,
		[GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8,
		[GGUF_F64] = 8,
	};
	return bytes[v->type] > 0 && memcmp(v->data, zeros, bytes[v->type]) == 0;
}

/* Experts, sliding windows, scales on logits: the format grows by keys, and one that is not
 * understood may change every result. */
static int refuse_unknown_keys(const struct gguf *g, struct errmsg *err)
{
	for (size_t i = 0; i < g->n_values; i++) {
		const struct gguf_value *v = &g->values[i];
		bool known = !starts_with(&v->key, PREFIX) || value_is_off(v);
		struct gguf_string rest = {v->key.data + strlen(PREFIX), v->key.len - strlen(PREFIX)};
		for (size_t j = 0; j < ARRAY_LEN(known_keys) && !known; j++) {
			known = string_is(&rest, known_keys[j]);
		}
		if (!known) {
			return errmsg_set(err, STATUS_INVALID, "%s: key '%.*s' may change what the model "
				"computes and is not supported", g->what,
				(int)(v->key.len < 100 ? v->key.len : 100), v->key.data);
		}
	}
	return 0;
}

static int check_kind(const struct gguf *g, struct errmsg *err)
{
	_cleanup_(freep) char *architecture = NULL;
	_cleanup_(freep) char *type = NULL;
	int64_t splits = 0;

	int r = gguf_get_string(g, "general.type", &type, err);
	r = r ? r : gguf_get_string(g, "general.architecture", &architecture, err);
	r = r ? r : gguf_get_int(g, "split.count", 0, INT64_MAX - 1, &splits, NULL, err);
	if (r != 0) {
		return r;
	}
	if (type && strcmp(type, "model") != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: holds a '%.40s' (general.type); it must be a "
			"model", g->what, type);
	}
	if (!architecture || strcmp(architecture, "llama") != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: architecture '%.60s' (general.architecture) is "
			"not supported; known are: %s", g->what, architecture ? architecture : "",
			model_architectures());
	}
	if (splits > 1) {
		return errmsg_set(err, STATUS_INVALID, "%s: is one of %" PRId64 " parts; merge them first "
			"(llama-gguf-split --merge)", g->what, splits);
	}
	return 0;
}

static int parse_sizes(struct model_config *c, const struct gguf *g, struct errmsg *err)
{
	const struct {
		const char *key;
		int64_t *value;
		bool required;
	} sizes[] = {
		{PREFIX "embedding_length", &c->hidden_size, true},
		{PREFIX "feed_forward_length", &c->intermediate_size, true},
		{PREFIX "block_count", &c->num_hidden_layers, true},
		{PREFIX "context_length", &c->max_position_embeddings, true},
		{PREFIX "attention.head_count", &c->num_attention_heads, true},
		{PREFIX "attention.head_count_kv", &c->num_key_value_heads, false},
		{PREFIX "attention.key_length", &c->head_dim, false},
		{PREFIX "vocab_size", &c->vocab_size, false},
	};
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		bool found;
		int r = gguf_get_int(g, sizes[i].key, 1, INT32_MAX, sizes[i].value, &found, err);
		if (r != 0) {
			return r;
		}
		if (sizes[i].required && !found) {
			return errmsg_set(err, STATUS_INVALID, "%s: key '%s' is missing", g->what,
				sizes[i].key);
		}
	}
	if (c->num_key_value_heads == 0) {
		c->num_key_value_heads = c->num_attention_heads;
	}
	if (c->head_dim == 0) {
		if (c->hidden_size % c->num_attention_heads != 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: " PREFIX "embedding_length = %" PRId64
				" is no multiple of " PREFIX "attention.head_count = %" PRId64 ", and there is no "
				PREFIX "attention.key_length", g->what, c->hidden_size, c->num_attention_heads);
		}
		c->head_dim = c->hidden_size / c->num_attention_heads;
	}
	int64_t value_length = c->head_dim, rotated = c->head_dim;
	int r = gguf_get_int(g, PREFIX "attention.value_length", 1, INT32_MAX, &value_length, NULL,
		err);
	r = r ? r : gguf_get_int(g, PREFIX "rope.dimension_count", 1, INT32_MAX, &rotated, NULL, err);
	if (r == 0 && (value_length != c->head_dim || rotated != c->head_dim)) {
		return errmsg_set(err, STATUS_INVALID, "%s: heads of %" PRId64 " with values of %" PRId64
			" and %" PRId64 " rotated dimensions; only equal ones are supported", g->what,
			c->head_dim, value_length, rotated);
	}
	return r;
}

static int parse_rope(struct model_config *c, const struct gguf *g, struct errmsg *err)
{
	_cleanup_(freep) char *type = NULL;
	double factor = 0, legacy = 1;

	c->rope_theta = 10000;
	int r = gguf_get_real(g, PREFIX "rope.freq_base", &c->rope_theta, NULL, err);
	r = r ? r : gguf_get_string(g, PREFIX "rope.scaling.type", &type, err);
	r = r ? r : gguf_get_real(g, PREFIX "rope.scaling.factor", &factor, NULL, err);
	r = r ? r : gguf_get_real(g, PREFIX "rope.scale_linear", &legacy, NULL, err);
	if (r != 0) {
		return r;
	}
	if (type && strcmp(type, "none") != 0 && strcmp(type, "linear") != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: key '" PREFIX "rope.scaling.type' is '%.40s'; "
			"known are none and linear", g->what, type);
	}
	/* llama.cpp takes a factor without a type for linear scaling. */
	if (!type && factor == 0 && legacy != 0 && legacy != 1) {
		factor = legacy;
	}
	bool linear = type ? strcmp(type, "linear") == 0 : factor != 0;
	if (linear && factor != 1 && factor != 0) {
		if (!(factor >= 1e-6 && factor <= 1e6)) {
			return errmsg_set(err, STATUS_INVALID, "%s: key '" PREFIX "rope.scaling.factor' is %g; "
				"it must be from 1e-6 to 1e6", g->what, factor);
		}
		c->rope_scaling = ROPE_SCALING_LINEAR;
		c->rope.factor = factor;
	}
	return 0;
}

static int parse_config(struct model_config *c, const struct gguf *g, struct errmsg *err)
{
	bool found;
	*c = (struct model_config){
		.model_type = "llama",
		.bos_token_id = -1,
		.eos_token_id = -1,
		.pad_token_id = -1,
		.tie_word_embeddings = true, /* until an output.weight is met */
	};
	int r = parse_sizes(c, g, err);
	r = r ? r : gguf_get_real(g, PREFIX "attention.layer_norm_rms_epsilon", &c->rms_norm_eps,
		&found, err);
	if (r == 0 && !found) {
		return errmsg_set(err, STATUS_INVALID, "%s: key '" PREFIX
			"attention.layer_norm_rms_epsilon' is missing", g->what);
	}
	return r ? r : parse_rope(c, g, err);
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* blk.N.WHAT.weight → model.layers.N.MODULE.weight */
static const struct {
	const char *gguf, *hf;
} layer_names[] = {
	{"attn_norm", "input_layernorm"},
	{"attn_q", "self_attn.q_proj"},
	{"attn_k", "self_attn.k_proj"},
	{"attn_v", "self_attn.v_proj"},
	{"attn_output", "self_attn.o_proj"},
	{"ffn_norm", "post_attention_layernorm"},
	{"ffn_gate", "mlp.gate_proj"},
	{"ffn_up", "mlp.up_proj"},
	{"ffn_down", "mlp.down_proj"},
};

/* Into out[cap]; false for a name that no Llama has. *ret_part is "attn_q" and so on, or "". */
static bool hf_name(char *out, size_t cap, const char *name, const char **ret_part)
{
	static const char *const top[][2] = {
		{"token_embd.weight", "model.embed_tokens.weight"},
		{"output_norm.weight", "model.norm.weight"},
		{"output.weight", "lm_head.weight"},
	};
	*ret_part = "";
	for (size_t i = 0; i < ARRAY_LEN(top); i++) {
		if (strcmp(name, top[i][0]) == 0) {
			return (size_t)snprintf(out, cap, "%s", top[i][1]) < cap;
		}
	}
	if (strncmp(name, "blk.", 4) != 0) {
		return false;
	}
	const char *digits = name + 4;
	size_t n = strspn(digits, "0123456789");
	if (n == 0 || n > 5 || (n > 1 && digits[0] == '0') || digits[n] != '.') {
		return false;
	}
	const char *part = digits + n + 1, *suffix = strchr(part, '.');
	if (!suffix || (strcmp(suffix, ".weight") != 0 && strcmp(suffix, ".bias") != 0)) {
		return false;
	}
	for (size_t i = 0; i < ARRAY_LEN(layer_names); i++) {
		if (strlen(layer_names[i].gguf) == (size_t)(suffix - part) &&
				strncmp(layer_names[i].gguf, part, (size_t)(suffix - part)) == 0) {
			*ret_part = layer_names[i].gguf;
			return (size_t)snprintf(out, cap, "model.layers.%.*s.%s%s", (int)n, digits,
				layer_names[i].hf, suffix) < cap;
		}
	}
	return false;
}

static int add_tensor(struct model_files *m, const struct gguf_tensor *t, const char *what,
	size_t file, struct errmsg *err)
{
	char gguf_name[256], name[160];
	const char *part;

	snprintf(gguf_name, sizeof(gguf_name), "%.*s", (int)t->name.len, t->name.data);
	if (!hf_name(name, sizeof(name), gguf_name, &part)) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' does not belong to a llama model",
			what, gguf_name);
	}
	for (int i = 2; i < t->n_dims; i++) {
		if (t->dims[i] != 1) {
			return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' has %d dimensions; weights "
				"have one or two", what, gguf_name, t->n_dims);
		}
	}
	bool vector = t->n_dims == 1;
	if (vector && weight_types[t->type].block_values > 1) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' is a vector of type %s; vectors "
			"must be F32, F16 or BF16", what, gguf_name, weight_types[t->type].name);
	}
	struct weight w = {
		.type = t->type,
		.n_dims = vector ? 1 : 2,
		.rows = vector ? t->dims[0] : t->dims[1],
		.cols = vector ? 1 : t->dims[0],
		.data = t->data,
		.bytes = t->bytes,
		.file = file,
	};
	if (strcmp(part, "attn_q") == 0) {
		w.interleaved_heads = m->config.num_attention_heads;
	} else if (strcmp(part, "attn_k") == 0) {
		w.interleaved_heads = m->config.num_key_value_heads;
	}
	if (strcmp(name, "lm_head.weight") == 0) {
		m->config.tie_word_embeddings = false;
	}
	if (strstr(name, ".bias")) {
		m->config.attention_bias |= strncmp(part, "attn_", 5) == 0;
		m->config.mlp_bias |= strncmp(part, "ffn_", 4) == 0;
	}
	w.name = strdup(name);
	if (!w.name) {
		return -ENOMEM;
	}
	m->weights[m->n_weights++] = w;
	return 0;
}

/* Divisors of the rotary frequencies, one a pair, which the converter made from llama3's
 * parameters. The reference computes from the parameters; so they are looked for, and the file is
 * refused rather than read as something near to it. */
static int apply_rope_freqs(struct model_config *c, const struct gguf_tensor *t, const char *what,
	struct errmsg *err)
{
	if (t->type != WEIGHT_F32 || t->n_dims != 1 || t->dims[0] != c->head_dim / 2) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor 'rope_freqs.weight' must be %" PRId64
			" values in F32, one for each pair of a head's dimensions", what, c->head_dim / 2);
	}
	_cleanup_(freep) float *factors = alloc_array((size_t)t->dims[0], sizeof(*factors));
	if (!factors) {
		return -ENOMEM;
	}
	weight_read(t->type, t->data, factors, (size_t)t->dims[0]);
	bool ones = true;
	for (int64_t i = 0; i < t->dims[0]; i++) {
		ones = ones && factors[i] == 1.0f;
	}
	if (ones) {
		return 0;
	}
	if (c->rope_scaling != ROPE_SCALING_NONE) {
		return errmsg_set(err, STATUS_INVALID, "%s: has both linear rope scaling and "
			"rope_freqs.weight; only one is supported", what);
	}
	if (!model_config_llama3_from_factors(c, factors, t->dims[0])) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor 'rope_freqs.weight' is not what Llama "
			"3's scaling (low_freq_factor 1, high_freq_factor 4, 8192 original positions) gives; "
			"the scaling's parameters cannot be told from it. Use the model's Hugging Face folder",
			what);
	}
	return 0;
}

static int add_tensors(struct model_files *m, const struct gguf *g, size_t file,
	struct errmsg *err)
{
	m->weights = calloc_array(g->n_tensors, sizeof(*m->weights));
	if (!m->weights) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < g->n_tensors; i++) {
		const struct gguf_tensor *t = &g->tensors[i];
		int r = string_is(&t->name, "rope_freqs.weight")
			? apply_rope_freqs(&m->config, t, g->what, err)
			: add_tensor(m, t, g->what, file, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

/* ---- tokenizer ----------------------------------------------------------------------------- */

/* Missing stays -1, and so does 0xFFFFFFFF, which some writers put for "none". */
static int parse_token_id(const struct gguf *g, const char *key, int64_t n_tokens, int32_t *ret,
	struct errmsg *err)
{
	int64_t id = -1;
	int r = gguf_get_int(g, key, -1, UINT32_MAX, &id, NULL, err);
	if (r != 0) {
		return r;
	}
	if (id == UINT32_MAX) {
		id = -1;
	}
	if (id >= n_tokens) {
		return errmsg_set(err, STATUS_INVALID, "%s: key '%s' is %" PRId64 ", but there are only %"
			PRId64 " tokens", g->what, key, id, n_tokens);
	}
	*ret = (int32_t)id;
	return 0;
}

/* What llama.cpp assumes where a file does not say. */
static void tokenizer_defaults(struct gguf_tokenizer *t)
{
	bool sentencepiece = strcmp(t->model, "llama") == 0;
	bool llama3 = strcmp(t->model, "gpt2") == 0 && (strcmp(t->pre, "llama-bpe") == 0 ||
		strcmp(t->pre, "llama3") == 0 || strcmp(t->pre, "llama-v3") == 0);
	t->add_bos_token = sentencepiece || llama3;
	t->add_space_prefix = sentencepiece;
	t->unk_token_id = t->bos_token_id = t->eos_token_id = t->pad_token_id = -1;
	if (sentencepiece && t->n_tokens > 2) {
		t->unk_token_id = 0;
		t->bos_token_id = 1;
		t->eos_token_id = 2;
	}
}

static int parse_tokenizer_ids(struct gguf_tokenizer *t, const struct gguf *g, struct errmsg *err)
{
	const struct {
		const char *key;
		int32_t *id;
	} ids[] = {
		{"tokenizer.ggml.bos_token_id", &t->bos_token_id},
		{"tokenizer.ggml.eos_token_id", &t->eos_token_id},
		{"tokenizer.ggml.unknown_token_id", &t->unk_token_id},
		{"tokenizer.ggml.padding_token_id", &t->pad_token_id},
	};
	int r = 0;
	for (size_t i = 0; i < ARRAY_LEN(ids) && r == 0; i++) {
		if (gguf_find(g, ids[i].key)) {
			r = parse_token_id(g, ids[i].key, t->n_tokens, ids[i].id, err);
		}
	}
	r = r ? r : gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &t->add_bos_token, err);
	r = r ? r : gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &t->add_eos_token, err);
	return r ? r : gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &t->add_space_prefix, err);
}

static int parse_tokenizer(struct model_files *m, const struct gguf *g, struct errmsg *err)
{
	const char **strings = NULL;
	uint32_t *lens = NULL;
	void *words = NULL;

	int r = gguf_get_string(g, "tokenizer.ggml.model", &m->tokenizer_model, err);
	r = r ? r : gguf_get_string(g, "tokenizer.ggml.pre", &m->tokenizer_pre, err);
	r = r ? r : gguf_get_string(g, "tokenizer.chat_template", &m->chat_template, err);
	if (r != 0 || !m->tokenizer_model) {
		return r;
	}
	if (!m->tokenizer_pre && !(m->tokenizer_pre = strdup("default"))) {
		return -ENOMEM;
	}
	struct gguf_tokenizer *t = m->tokenizer = calloc(1, sizeof(*t));
	if (!t) {
		return -ENOMEM;
	}
	t->model = m->tokenizer_model;
	t->pre = m->tokenizer_pre;

	r = gguf_get_strings(g, "tokenizer.ggml.tokens", &strings, &lens, &t->n_tokens, err);
	if (r != 0) {
		return r;
	}
	t->tokens = steal_ptr(strings);
	t->token_lens = steal_ptr(lens);
	if (t->n_tokens == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: key 'tokenizer.ggml.tokens' is missing or "
			"empty", g->what);
	}
	r = gguf_get_strings(g, "tokenizer.ggml.merges", &strings, &lens, &t->n_merges, err);
	if (r != 0) {
		return r;
	}
	t->merges = strings;
	t->merge_lens = lens;
	r = gguf_get_words(g, "tokenizer.ggml.token_type", GGUF_I32, t->n_tokens, &words, err);
	if (r != 0) {
		return r;
	}
	t->token_types = words;
	r = gguf_get_words(g, "tokenizer.ggml.scores", GGUF_F32, t->n_tokens, &words, err);
	if (r != 0) {
		return r;
	}
	t->scores = words;

	tokenizer_defaults(t);
	r = parse_tokenizer_ids(t, g, err);
	if (r == 0) {
		m->config.bos_token_id = t->bos_token_id;
		m->config.eos_token_id = t->eos_token_id;
		m->config.pad_token_id = t->pad_token_id;
	}
	return r;
}

/* ---- all of it ----------------------------------------------------------------------------- */

/* From the key, else the number of tokens, else the embeddings' rows. */
static int settle_vocab_size(struct model_files *m, const struct gguf *g, struct errmsg *err)
{
	int64_t n_tokens = m->tokenizer ? m->tokenizer->n_tokens : 0;
	if (m->config.vocab_size == 0) {
		m->config.vocab_size = n_tokens;
	}
	for (size_t i = 0; i < m->n_weights && m->config.vocab_size == 0; i++) {
		if (strcmp(m->weights[i].name, "model.embed_tokens.weight") == 0) {
			m->config.vocab_size = m->weights[i].rows;
		}
	}
	if (n_tokens > m->config.vocab_size) {
		return errmsg_set(err, STATUS_INVALID, "%s: there are %" PRId64 " tokens, more than " PREFIX
			"vocab_size = %" PRId64, g->what, n_tokens, m->config.vocab_size);
	}
	return 0;
}

int gguf_load(struct model_files *m, size_t file, struct errmsg *err)
{
	_cleanup_(gguf_deinit) struct gguf g = {0};
	const struct mapped_file *f = &m->files[file];

	int r = gguf_parse(&g, f->data, f->len, f->name, err);
	r = r ? r : check_kind(&g, err);
	r = r ? r : refuse_unknown_keys(&g, err);
	r = r ? r : parse_config(&m->config, &g, err);
	r = r ? r : parse_tokenizer(m, &g, err);
	r = r ? r : add_tensors(m, &g, file, err);
	r = r ? r : settle_vocab_size(m, &g, err);
	return r ? r : model_config_check(&m->config, f->name, err);
}
