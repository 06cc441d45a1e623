/* What a GGUF means in Hugging Face's words: configuration, tensor names, what its converter did to
 * them, the tokenizer. What differs between architectures is in their struct gguf_family. Keys and names:
 * gguf's constants.py; their use: llama.cpp's llama-model.cpp and convert_hf_to_gguf.py. */

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/arch.h"
#include "engine/model/gguf-family.h"
#include "engine/model/model-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

const struct gguf_name gguf_usual_top[] = {
	{"token_embd", "model.embed_tokens"},
	{"output_norm", "model.norm"},
	{"output", "lm_head"},
	{0},
};
const struct gguf_name gguf_usual_block[] = {
	GGUF_USUAL_ATTENTION,
	{"ffn_norm", "post_attention_layernorm"},
	GGUF_USUAL_MLP,
	{0},
};

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

/* Keys after "ARCHITECTURE." that are read below, or that say nothing about what is computed. */
static const char *const known_keys[] = {
	"vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
	"attention.head_count", "attention.head_count_kv", "attention.key_length",
	"attention.value_length", "rope.dimension_count",
	"rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
	"rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout",
};

enum { KEY_MAX = 128 };

static const char *key_of(char out[KEY_MAX], const char *architecture, const char *key)
{
	snprintf(out, KEY_MAX, "%s.%s", architecture, key);
	return out;
}

bool gguf_read_int(struct gguf_reader *r, const char *key, int64_t lo, int64_t hi, int64_t *ret)
{
	char full[KEY_MAX];
	bool found = false;
	if (r->r == 0) {
		r->r = gguf_get_int(r->g, key_of(full, r->architecture, key), lo, hi, ret, &found, r->err);
	}
	return found;
}

bool gguf_read_real(struct gguf_reader *r, const char *key, double *ret)
{
	char full[KEY_MAX];
	bool found = false;
	if (r->r == 0) {
		r->r = gguf_get_real(r->g, key_of(full, r->architecture, key), ret, &found, r->err);
	}
	return found;
}

__attribute__((format(printf, 2, 3)))
static void fault(struct gguf_reader *r, const char *format, ...)
{
	char text[512];
	if (r->r != 0) {
		return;
	}
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	r->r = errmsg_set(r->err, STATUS_INVALID, "%s: %s", r->g->what, text);
}

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

static bool key_is_known(const struct gguf_family *f, const struct gguf_string *key)
{
	for (size_t j = 0; j < ARRAY_LEN(known_keys); j++) {
		if (string_is(key, known_keys[j])) {
			return true;
		}
	}
	for (size_t j = 0; f->keys && f->keys[j]; j++) {
		if (string_is(key, f->keys[j])) {
			return true;
		}
	}
	return string_is(key, f->eps_key);
}

/* Experts, scales on logits and what may come: the format grows by keys, and one that is not
 * understood may change every result. */
static int refuse_unknown_keys(const struct gguf *g, const struct gguf_family *f, struct errmsg *err)
{
	char prefix[KEY_MAX];
	size_t n = strlen(key_of(prefix, f->architecture, ""));
	for (size_t i = 0; i < g->n_values; i++) {
		const struct gguf_value *v = &g->values[i];
		if (!starts_with(&v->key, prefix) || value_is_off(v)) {
			continue;
		}
		struct gguf_string rest = {v->key.data + n, v->key.len - n};
		if (!key_is_known(f, &rest)) {
			return errmsg_set(err, STATUS_INVALID, "%s: key '%.*s' may change what the model "
				"computes and is not supported", g->what,
				(int)(v->key.len < 100 ? v->key.len : 100), v->key.data);
		}
	}
	return 0;
}

/* The architecture of a file that is one model and whole. */
static int find_arch(const struct arch **ret, const struct gguf *g, struct errmsg *err)
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
	const struct arch *arch = architecture ? arch_by_gguf(architecture) : NULL;
	if (!arch) {
		return errmsg_set(err, STATUS_INVALID, "%s: architecture '%.60s' (general.architecture) is "
			"not supported; known are: %s", g->what, architecture ? architecture : "",
			gguf_architectures().s);
	}
	if (splits > 1) {
		return errmsg_set(err, STATUS_INVALID, "%s: is one of %" PRId64 " parts; merge them first "
			"(llama-gguf-split --merge)", g->what, splits);
	}
	*ret = arch;
	return 0;
}

static void parse_sizes(struct gguf_reader *r)
{
	struct model_config *c = r->c;
	const struct {
		const char *key;
		int64_t *value;
		bool required;
	} sizes[] = {
		{"embedding_length", &c->hidden_size, true},
		{"feed_forward_length", &c->intermediate_size, true},
		{"block_count", &c->num_hidden_layers, true},
		{"context_length", &c->max_position_embeddings, true},
		{"attention.head_count", &c->num_attention_heads, true},
		{"attention.head_count_kv", &c->num_key_value_heads, false},
		{"attention.key_length", &c->head_dim, false},
		{"vocab_size", &c->vocab_size, false},
	};
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		if (!gguf_read_int(r, sizes[i].key, 1, INT32_MAX, sizes[i].value) && sizes[i].required) {
			fault(r, "key '%s.%s' is missing", r->architecture, sizes[i].key);
		}
	}
	if (r->r != 0) {
		return;
	}
	if (c->num_key_value_heads == 0) {
		c->num_key_value_heads = c->num_attention_heads;
	}
	if (c->head_dim == 0 && c->hidden_size % c->num_attention_heads != 0) {
		fault(r, "%s.embedding_length = %" PRId64 " is no multiple of %s.attention.head_count = %" PRId64
			", and there is no %s.attention.key_length", r->architecture, c->hidden_size,
			r->architecture, c->num_attention_heads, r->architecture);
		return;
	}
	c->head_dim = c->head_dim ? c->head_dim : c->hidden_size / c->num_attention_heads;
	int64_t value_length = c->head_dim, rotated = c->head_dim;
	gguf_read_int(r, "attention.value_length", 1, INT32_MAX, &value_length);
	gguf_read_int(r, "rope.dimension_count", 1, INT32_MAX, &rotated);
	if (value_length != c->head_dim || rotated != c->head_dim) {
		fault(r, "heads of %" PRId64 " with values of %" PRId64 " and %" PRId64 " rotated dimensions; "
			"only equal ones are supported", c->head_dim, value_length, rotated);
	}
}

static void set_scaling(struct gguf_reader *r, enum rope_scaling kind, double factor)
{
	if (!(factor >= 1e-6 && factor <= 1e6)) {
		fault(r, "key '%s.rope.scaling.factor' is %g; it must be from 1e-6 to 1e6", r->architecture,
			factor);
		return;
	}
	r->c->rope_scaling = kind;
	r->c->rope.factor = factor;
}

static void parse_yarn(struct gguf_reader *r, double factor)
{
	struct model_config *c = r->c;
	set_scaling(r, ROPE_SCALING_YARN, factor);
	c->rope.beta_fast = 32;
	c->rope.beta_slow = 1;
	c->rope.original_max_position_embeddings = c->max_position_embeddings;
	gguf_read_int(r, "rope.scaling.original_context_length", 1, INT32_MAX,
		&c->rope.original_max_position_embeddings);
}

static void parse_rope(struct gguf_reader *r, const struct gguf_family *f)
{
	_cleanup_(freep) char *type = NULL;
	char key[KEY_MAX];
	double factor = 0, legacy = 1;

	r->c->rope_theta = 10000;
	gguf_read_real(r, "rope.freq_base", &r->c->rope_theta);
	gguf_read_real(r, "rope.scaling.factor", &factor);
	gguf_read_real(r, "rope.scale_linear", &legacy);
	if (r->r == 0) {
		r->r = gguf_get_string(r->g, key_of(key, f->architecture, "rope.scaling.type"), &type, r->err);
	}
	if (type && f->yarn && strcmp(type, "yarn") == 0) {
		parse_yarn(r, factor);
		return;
	}
	if (type && strcmp(type, "none") != 0 && strcmp(type, "linear") != 0) {
		fault(r, "key '%s' is '%.40s'; known are none and linear%s", key, type,
			f->yarn ? ", and yarn" : "");
	}
	/* llama.cpp takes a factor without a type for linear scaling. */
	if (!type && factor == 0 && legacy != 0 && legacy != 1) {
		factor = legacy;
	}
	bool linear = type ? strcmp(type, "linear") == 0 : factor != 0;
	if (linear && factor != 1 && factor != 0) {
		set_scaling(r, ROPE_SCALING_LINEAR, factor);
	}
}

static int parse_config(struct model_config *c, const struct arch *arch, const struct gguf *g,
	struct errmsg *err)
{
	const struct gguf_family *f = arch->gguf;
	struct gguf_reader r = {.c = c, .g = g, .architecture = f->architecture, .err = err};
	*c = (struct model_config){
		.bos_token_id = -1,
		.eos_token_id = -1,
		.pad_token_id = -1,
		.tie_word_embeddings = true, /* until an output.weight is met */
	};
	snprintf(c->model_type, sizeof(c->model_type), "%s", arch->model_type);
	parse_sizes(&r);
	if (!gguf_read_real(&r, f->eps_key, &c->rms_norm_eps)) {
		fault(&r, "key '%s.%s' is missing", f->architecture, f->eps_key);
	}
	if (!f->no_rope) {
		parse_rope(&r, f);
	}
	if (c->num_hidden_layers > MODEL_MAX_LAYERS) {
		fault(&r, "'num_hidden_layers' is %" PRId64 "; it must be from 1 to %d", c->num_hidden_layers,
			MODEL_MAX_LAYERS);
	}
	if (r.r == 0) {
		f->read(&r);
	}
	return r.r;
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* The name that follows `part`, up to a dot, in a table; NULL: none does. */
static const struct gguf_name *find_name(const struct gguf_name *names, const char *part, size_t n)
{
	for (; names->gguf; names++) {
		if (strlen(names->gguf) == n && strncmp(names->gguf, part, n) == 0) {
			return names;
		}
	}
	return NULL;
}

/* Into out[cap]; NULL for a name that this family does not have. */
static const struct gguf_name *hf_name(char *out, size_t cap, const struct arch *arch,
	const char *name)
{
	const char *part = name;
	size_t digits = 0;
	bool block = strncmp(name, "blk.", 4) == 0;
	if (block) {
		digits = strspn(name + 4, "0123456789");
		part = name + 4 + digits + 1;
		if (digits == 0 || digits > 5 || (digits > 1 && name[4] == '0') || part[-1] != '.') {
			return NULL;
		}
	}
	const char *suffix = strchr(part, '.');
	if (!suffix || (strcmp(suffix, ".weight") != 0 && strcmp(suffix, ".bias") != 0)) {
		return NULL;
	}
	const struct gguf_name *found = find_name(block ? arch->gguf->block : arch->gguf->top, part,
		(size_t)(suffix - part));
	int n = !found ? 0 : block ?
		snprintf(out, cap, "%s.%.*s.%s%s", arch->blocks, (int)digits, name + 4, found->hf, suffix) :
		snprintf(out, cap, "%s%s", found->hf, suffix);
	return found && (size_t)n < cap ? found : NULL;
}

/* What a converter did to a tensor, to be undone when it is read. */
static void set_transforms(struct stored_weight *w, const struct model_config *c,
	const struct gguf_family *f, const char *part)
{
	if (f->interleaved && strcmp(part, "attn_q") == 0) {
		w->interleaved_heads = c->num_attention_heads;
	} else if (f->interleaved && strcmp(part, "attn_k") == 0) {
		w->interleaved_heads = c->num_key_value_heads;
	}
	size_t n = strlen(part);
	w->one_plus = f->one_plus && w->n_dims == 1 && n >= 4 && strcmp(part + n - 4, "norm") == 0;
	if (f->transposed && w->n_dims == 2 && (strncmp(part, "attn_", 5) == 0 ||
			strncmp(part, "ffn_", 4) == 0)) {
		w->transposed = true;
		int64_t rows = w->rows;
		w->rows = w->cols;
		w->cols = rows;
	}
}

static int add_tensor(struct model_files *m, const struct arch *arch, const struct gguf_tensor *t,
	const char *what, size_t file, struct errmsg *err)
{
	char gguf_name[256], name[160];

	snprintf(gguf_name, sizeof(gguf_name), "%.*s", (int)t->name.len, t->name.data);
	const struct gguf_name *known = hf_name(name, sizeof(name), arch, gguf_name);
	if (!known) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' does not belong to a %s model",
			what, gguf_name, arch->gguf->architecture);
	}
	const char *part = known->gguf;
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
	struct stored_weight w = {
		.type = t->type,
		.n_dims = vector ? 1 : 2,
		.rows = vector ? t->dims[0] : t->dims[1],
		.cols = vector ? 1 : t->dims[0],
		.data = t->data,
		.bytes = t->bytes,
		.file = file,
	};
	set_transforms(&w, &m->config, arch->gguf, part);
	if (strcmp(name, "lm_head.weight") == 0) {
		m->config.tie_word_embeddings = false;
	}
	if (strstr(name, ".bias")) {
		bool out = strcmp(part, "attn_output") == 0;
		m->config.attention_bias |= !out && strncmp(part, "attn_", 5) == 0;
		m->config.attention_out_bias |= out;
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

/* GPT-2's head is tied, and its converter writes it nevertheless. */
static void drop_copied_head(struct model_files *m, const struct arch *arch)
{
	struct stored_weight *head = NULL, *table = NULL;
	for (size_t i = 0; i < m->n_weights && arch->gguf->copies_head; i++) {
		struct stored_weight *w = &m->weights[i];
		head = strcmp(w->name, "lm_head.weight") == 0 ? w : head;
		table = strcmp(w->name, "transformer.wte.weight") == 0 ? w : table;
	}
	m->config.tie_word_embeddings |= head && table && head->type == table->type &&
		head->bytes == table->bytes && memcmp(head->data, table->data, head->bytes) == 0;
}

static int add_tensors(struct model_files *m, const struct arch *arch, const struct gguf *g,
	size_t file, struct errmsg *err)
{
	m->weights = calloc_array(g->n_tensors, sizeof(*m->weights));
	if (!m->weights) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < g->n_tensors; i++) {
		const struct gguf_tensor *t = &g->tensors[i];
		int r = string_is(&t->name, "rope_freqs.weight")
			? apply_rope_freqs(&m->config, t, g->what, err)
			: add_tensor(m, arch, t, g->what, file, err);
		if (r != 0) {
			return r;
		}
	}
	drop_copied_head(m, arch);
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
static int settle_vocab_size(struct model_files *m, const struct arch *arch, const struct gguf *g,
	struct errmsg *err)
{
	int64_t n_tokens = m->tokenizer ? m->tokenizer->n_tokens : 0;
	if (m->config.vocab_size == 0) {
		m->config.vocab_size = n_tokens;
	}
	for (size_t i = 0; i < m->n_weights && m->config.vocab_size == 0; i++) {
		const char *table = arch->gguf->top[0].hf;
		size_t n = strlen(table);
		if (strncmp(m->weights[i].name, table, n) == 0 && m->weights[i].name[n] == '.') {
			m->config.vocab_size = m->weights[i].rows;
		}
	}
	if (n_tokens > m->config.vocab_size) {
		return errmsg_set(err, STATUS_INVALID, "%s: there are %" PRId64 " tokens, more than "
			"%s.vocab_size = %" PRId64, g->what, n_tokens, arch->gguf->architecture,
			m->config.vocab_size);
	}
	return 0;
}

int gguf_load(struct model_files *m, size_t file, struct errmsg *err)
{
	_cleanup_(gguf_deinit) struct gguf g = {0};
	const struct mapped_file *f = &m->files[file];

	const struct arch *arch = NULL;

	int r = gguf_parse(&g, f->data, f->len, f->name, err);
	r = r ? r : find_arch(&arch, &g, err);
	r = r ? r : refuse_unknown_keys(&g, arch->gguf, err);
	r = r ? r : parse_config(&m->config, arch, &g, err);
	r = r ? r : parse_tokenizer(m, &g, err);
	r = r ? r : add_tensors(m, arch, &g, file, err);
	r = r ? r : settle_vocab_size(m, arch, &g, err);
	return r ? r : model_config_check(&m->config, f->name, err);
}
