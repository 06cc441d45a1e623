/*
 * Hugging Face folders, written.
 *
 * A folder is a list of files, and a file is a text with tensors behind it: a configuration has no
 * tensors, a file of weights has its header for a text. So sizes are known before a weight is
 * read, and reading from any offset makes only the tensors that lie behind it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model-internal.h"
#include "engine/model/safetensors.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/util.h"

DEFINE_CLEANUP(struct model_folder *, model_folder_free);

struct folder_file {
	char name[64];
	struct buf text;
	int64_t first, end; /* tensors behind the text */
	uint64_t size;
};

struct model_folder {
	const struct model_files *files; /* borrowed */
	struct tensor_spec *tensors;     /* all of the model's */
	size_t n_tensors;
	struct folder_file *list;
	size_t n;
};

void model_folder_free(struct model_folder *f)
{
	for (size_t i = 0; f && i < f->n; i++) {
		buf_deinit(&f->list[i].text);
	}
	if (f) {
		free(f->tensors);
		free(f->list);
		free(f);
	}
}

/* A new file at the given place; NULL without memory. */
static struct folder_file *insert_file(struct model_folder *f, size_t at, const char *name)
{
	struct folder_file *list = realloc_array(f->list, f->n + 1, sizeof(*list));
	if (!list) {
		return NULL;
	}
	f->list = list;
	memmove(list + at + 1, list + at, (f->n - at) * sizeof(*list));
	f->n++;
	list[at] = (struct folder_file){.first = 0};
	snprintf(list[at].name, sizeof(list[at].name), "%s", name);
	return &list[at];
}

int model_folder_add(struct model_folder *f, const char *name, struct buf *text)
{
	size_t at = 0;
	while (at < f->n && f->list[at].first == f->list[at].end) {
		at++;
	}
	struct folder_file *file = insert_file(f, at, name);
	if (!file) {
		return -ENOMEM;
	}
	file->size = text->len;
	file->text = *text;
	*text = (struct buf){0};
	return 0;
}

/* Takes the object. */
static int add_json(struct model_folder *f, const char *name, json_t *o)
{
	_cleanup_(freep) char *text = o ? json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
	_cleanup_(buf_deinit) struct buf b = {0};
	json_decref(o);
	int r = text ? buf_appendf(&b, "%s\n", text) : -ENOMEM;
	return r ? r : model_folder_add(f, name, &b);
}

/* ---- configuration ------------------------------------------------------------------------- */

static int set_token(json_t *o, const char *key, int32_t id)
{
	return json_object_set_new(o, key, id >= 0 ? json_integer(id) : json_null());
}

/* Keys of config.json as transformers' LlamaConfig has them, in the form before its version 5,
 * which later ones read too. */
static json_t *config_from_gguf(const struct model_config *c)
{
	const struct {
		const char *key;
		int64_t value;
	} numbers[] = {
		{"vocab_size", c->vocab_size},
		{"hidden_size", c->hidden_size},
		{"intermediate_size", c->intermediate_size},
		{"num_hidden_layers", c->num_hidden_layers},
		{"num_attention_heads", c->num_attention_heads},
		{"num_key_value_heads", c->num_key_value_heads},
		{"head_dim", c->head_dim},
		{"max_position_embeddings", c->max_position_embeddings},
	};
	json_t *o = json_pack("{s:[s], s:s, s:s, s:f, s:f, s:b, s:b, s:b}",
		"architectures", "LlamaForCausalLM", "model_type", c->model_type, "hidden_act", "silu",
		"rms_norm_eps", c->rms_norm_eps, "rope_theta", c->rope_theta,
		"tie_word_embeddings", (int)c->tie_word_embeddings, "attention_bias",
			(int)c->attention_bias, "mlp_bias", (int)c->mlp_bias);
	int r = o ? 0 : -ENOMEM;
	for (size_t i = 0; i < ARRAY_LEN(numbers) && r == 0; i++) {
		r = json_object_set_new(o, numbers[i].key, json_integer(numbers[i].value));
	}
	r = r ? r : set_token(o, "bos_token_id", c->bos_token_id);
	r = r ? r : set_token(o, "eos_token_id", c->eos_token_id);
	r = r ? r : set_token(o, "pad_token_id", c->pad_token_id);
	if (r == 0 && c->rope_scaling == ROPE_SCALING_LINEAR) {
		r = json_object_set_new(o, "rope_scaling",
			json_pack("{s:s, s:f}", "rope_type", "linear", "factor", c->rope.factor));
	} else if (r == 0 && c->rope_scaling == ROPE_SCALING_LLAMA3) {
		r = json_object_set_new(o, "rope_scaling", json_pack("{s:s, s:f, s:f, s:f, s:I}",
			"rope_type", "llama3", "factor", c->rope.factor,
			"low_freq_factor", c->rope.low_freq_factor, "high_freq_factor",
				c->rope.high_freq_factor, "original_max_position_embeddings",
				(json_int_t)c->rope.original_max_position_embeddings));
	}
	if (r != 0) {
		json_decref(o);
		return NULL;
	}
	return o;
}

/* The original one where there is one, with what is no longer so changed: how weights are stored.
 */
static int add_config(struct model_folder *f, struct errmsg *err)
{
	const struct model_files *m = f->files;
	const struct buf *text = &m->text[TEXT_CONFIG];
	json_t *o = NULL;
	if (text->data) {
		int r = json_parse_object(&o, (const char *)text->data, text->len, m->path, err);
		if (r != 0) {
			return r;
		}
	} else if (strcmp(m->config.model_type, "llama") != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: the configuration of a GGUF's %s cannot be written "
			"as config.json yet; use the model's Hugging Face folder as base", m->path,
			m->config.model_type);
	} else {
		o = config_from_gguf(&m->config);
	}
	const char *key = json_object_get(o, "dtype") ? "dtype" : "torch_dtype";
	json_object_del(o, "quantization_config");
	if (!o || json_object_set_new(o, key, json_string("float32")) != 0) {
		json_decref(o);
		return -ENOMEM;
	}
	return add_json(f, text_file_name(TEXT_CONFIG), o);
}

static int add_generation_config(struct model_folder *f)
{
	const struct buf *text = &f->files->text[TEXT_GENERATION_CONFIG];
	_cleanup_(buf_deinit) struct buf copy = {0};
	int r = text->data ? buf_append(&copy, text->data, text->len) : 0;
	return r == 0 && text->data ?
		model_folder_add(f, text_file_name(TEXT_GENERATION_CONFIG), &copy) : r;
}

/* ---- weights ------------------------------------------------------------------------------- */

static uint64_t tensor_bytes(const struct tensor_spec *t)
{
	return (uint64_t)(t->rows * t->cols) * sizeof(float);
}

/* A file of the tensors [first, end). */
static int add_weights(struct model_folder *f, const char *name, int64_t first, int64_t end)
{
	static const char *const metadata[] = {"format", "pt"};
	size_t n = (size_t)(end - first);
	_cleanup_(freep) struct st_out *out = calloc_array(n, sizeof(*out));
	struct folder_file *file = out ? insert_file(f, f->n, name) : NULL;
	if (!file) {
		return -ENOMEM;
	}
	file->first = first;
	file->end = end;
	for (size_t i = 0; i < n; i++) {
		const struct tensor_spec *t = &f->tensors[first + (int64_t)i];
		out[i] = (struct st_out){.name = t->name, .dtype = ST_F32, .n_dims = t->n_dims,
			.dims = {t->rows, t->cols}};
		file->size += tensor_bytes(t);
	}
	int r = safetensors_write_header(&file->text, out, n, metadata, 1);
	file->size += file->text.len;
	return r;
}

/* The first tensor that is not in the file that begins with `first`; *ret_bytes: of those that
 * are. */
static int64_t shard_end(const struct model_folder *f, int64_t first, uint64_t shard_bytes,
	uint64_t *ret_bytes)
{
	int64_t i = first;
	*ret_bytes = 0;
	while (i < (int64_t)f->n_tensors &&
		(i == first || *ret_bytes + tensor_bytes(&f->tensors[i]) <= shard_bytes)) {
		*ret_bytes += tensor_bytes(&f->tensors[i]);
		i++;
	}
	return i;
}

static int add_shards(struct model_folder *f, uint64_t shard_bytes, unsigned n)
{
	json_t *map = json_object();
	uint64_t total = 0;
	int64_t first = 0;
	int r = map ? 0 : -ENOMEM;
	for (unsigned k = 1; k <= n && r == 0; k++) {
		char name[64];
		uint64_t bytes;
		int64_t end = shard_end(f, first, shard_bytes, &bytes);
		total += bytes;
		snprintf(name, sizeof(name), "model-%05u-of-%05u.safetensors", k, n);
		for (int64_t i = first; i < end && r == 0; i++) {
			r = json_object_set_new(map, f->tensors[i].name, json_string(name)) ? -ENOMEM : 0;
		}
		r = r ? r : add_weights(f, name, first, end);
		first = end;
	}
	if (r != 0) {
		json_decref(map);
		return r;
	}
	return add_json(f, "model.safetensors.index.json",
		json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map",
			map));
}

int model_folder_new(struct model_folder **ret, const struct model_files *files,
	uint64_t shard_bytes, struct errmsg *err)
{
	_cleanup_(model_folder_freep) struct model_folder *f = calloc(1, sizeof(*f));
	uint64_t bytes;
	unsigned n = 0;
	if (!f) {
		return -ENOMEM;
	}
	f->files = files;
	int r = model_tensors(&f->tensors, &f->n_tensors, &files->config);
	if (r != 0) {
		return r;
	}
	int64_t end = 0;
	while (end < (int64_t)f->n_tensors) {
		end = shard_end(f, end, shard_bytes, &bytes);
		n++;
	}
	r = add_config(f, err);
	r = r ? r : add_generation_config(f);
	r = r ? r : n > 1 ? add_shards(f, shard_bytes, n) : add_weights(f, "model.safetensors", 0, end);
	if (r == 0) {
		*ret = steal_ptr(f);
	}
	return r;
}

/* ---- reading ------------------------------------------------------------------------------- */

size_t model_folder_n_files(const struct model_folder *f)
{
	return f->n;
}

const char *model_folder_name(const struct model_folder *f, size_t i)
{
	return f->list[i].name;
}

uint64_t model_folder_size(const struct model_folder *f, size_t i)
{
	return f->list[i].size;
}

typedef int take_bytes(void *ctx, const void *data, size_t len);

/* Hands on what of `len` bytes lies behind the next *skip ones; lessens *skip by the others. */
static int hand_on(const void *data, size_t len, uint64_t *skip, take_bytes *take, void *ctx)
{
	size_t without = *skip < len ? (size_t)*skip : len;
	*skip -= without;
	return without < len ? take(ctx, (const uint8_t *)data + without, len - without) : 0;
}

static int read_tensor(const struct model_folder *f, int64_t i, uint64_t *skip, take_bytes *take,
	void *ctx, struct errmsg *err)
{
	const struct tensor_spec *t = &f->tensors[i];
	if (tensor_bytes(t) <= *skip) {
		*skip -= tensor_bytes(t);
		return 0;
	}
	_cleanup_(freep) float *values = alloc_array((size_t)t->rows, (size_t)t->cols * sizeof(*values));
	if (!values) {
		return -ENOMEM;
	}
	int r = model_files_read(f->files, t->name, values, err);
	return r ? r : hand_on(values, (size_t)tensor_bytes(t), skip, take, ctx);
}

int model_folder_read(const struct model_folder *f, uint64_t offset,
	int (*take)(void *ctx, const void *data, size_t len), void *ctx, struct errmsg *err)
{
	int r = 0;
	for (size_t i = 0; i < f->n && r == 0; i++) {
		const struct folder_file *file = &f->list[i];
		if (file->size <= offset) {
			offset -= file->size;
			continue;
		}
		r = hand_on(file->text.data, file->text.len, &offset, take, ctx);
		for (int64_t k = file->first; k < file->end && r == 0; k++) {
			r = read_tensor(f, k, &offset, take, ctx, err);
		}
	}
	return r;
}
