/* Hugging Face folders: config.json, *.safetensors with or without an index, texts beside them. */

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/model-internal.h"
#include "engine/model/safetensors.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/util.h"

/* Far above what there is. Parsed JSON takes many times the room of its text. */
#define TOKENIZER_MAX ((size_t)128 << 20)
#define TEXT_MAX ((size_t)16 << 20)
#define MAX_SHARDS 4096

/* Names inside a folder come from files; they must never lead out of it. */
static bool file_name_valid(const char *name)
{
	return name_valid(name, strlen(name));
}

static bool inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);
	return strncmp(path, dir, n) == 0 && path[n] == '/';
}

/* Cuts `levels` components off the end; false when there are fewer. */
static bool parent(char *path, int levels)
{
	while (levels-- > 0) {
		char *slash = strrchr(path, '/');
		if (!slash) {
			return false;
		}
		*slash = '\0';
	}
	return true;
}

/* Hugging Face's cache keeps a snapshot as links into models--ORG--NAME/blobs, or, in newer caches,
 * on into the blobs folder that all models share. Is `dir` (real) a snapshot, and `file` (real) in
 * one of its two stores? */
static bool in_cache_blobs(const char *file, const char *dir)
{
	char store[PATH_MAX + 8];
	size_t n = strlen(dir);
	if (n >= PATH_MAX) {
		return false;
	}
	memcpy(store, dir, n + 1);
	if (!parent(store, 1)) {
		return false;
	}
	const char *last = strrchr(store, '/');
	if (!last || strcmp(last, "/snapshots") != 0 || !parent(store, 1)) {
		return false;
	}
	last = strrchr(store, '/');
	if (!last || strncmp(last, "/models--", 9) != 0) {
		return false;
	}
	n = strlen(store);
	memcpy(store + n, "/blobs", 7);
	if (inside(file, store)) {
		return true;
	}
	store[n] = '\0';
	parent(store, 1);
	memcpy(store + strlen(store), "/blobs", 7);
	return inside(file, store);
}

/* Real path of a file of the folder; the caller frees it. NULL in *ret when it is missing. */
static int file_path(char **ret, const char *dir, const char *name, struct errmsg *err)
{
	char path[PATH_MAX];
	if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path)) {
		return errmsg_set(err, STATUS_INVALID, "%s/%s: the path is too long", dir, name);
	}
	_cleanup_(freep) char *real = realpath(path, NULL);
	if (!real) {
		if (errno == ENOENT) {
			*ret = NULL;
			return 0;
		}
		if (errno == ELOOP || errno == EACCES || errno == ENOTDIR) {
			return errmsg_set(err, STATUS_INVALID, "%s: %s", path, strerror(errno));
		}
		return -errno;
	}
	if (!inside(real, dir) && !in_cache_blobs(real, dir)) {
		return errmsg_set(err, STATUS_INVALID, "%s: leads out of the model's folder, to %.300s; "
			"only links into the Hugging Face cache's own blobs are followed", path, real);
	}
	*ret = steal_ptr(real);
	return 0;
}

static int load_text(struct model_files *m, const char *dir, enum text_file which,
	struct errmsg *err)
{
	_cleanup_(freep) char *path = NULL;
	char name[PATH_MAX + 64];
	int r = file_path(&path, dir, text_file_name(which), err);
	if (r != 0 || !path) {
		return r;
	}
	snprintf(name, sizeof(name), "%s/%s", dir, text_file_name(which));
	r = text_file_read(&m->text[which], path, name,
		which == TEXT_TOKENIZER ? TOKENIZER_MAX : TEXT_MAX, err);
	if (r != 0) {
		return r;
	}
	size_t at;
	if (!utf8_valid(m->text[which].data, m->text[which].len, &at)) {
		return errmsg_set(err, STATUS_INVALID, "%s: no UTF-8 at byte %zu", name, at);
	}
	if (memchr(m->text[which].data, 0, m->text[which].len)) {
		return errmsg_set(err, STATUS_INVALID, "%s: holds a NUL byte", name);
	}
	return 0;
}

/* ---- weights ------------------------------------------------------------------------------- */

static int weight_type_of(const struct st_tensor *t, enum weight_type *ret)
{
	switch (t->dtype) {
	case ST_F32:
		*ret = WEIGHT_F32;
		return 0;
	case ST_F16:
		*ret = WEIGHT_F16;
		return 0;
	case ST_BF16:
		*ret = WEIGHT_BF16;
		return 0;
	case ST_F64:
		*ret = WEIGHT_F64;
		return 0;
	default:
		return STATUS_INVALID;
	}
}

static int add_weight(struct model_files *m, const struct st_tensor *t, size_t file,
	struct errmsg *err)
{
	struct stored_weight w = {
		.n_dims = t->n_dims,
		.rows = t->n_dims > 0 ? t->dims[0] : 1,
		.cols = t->n_dims > 1 ? t->dims[1] : 1,
		.data = t->data,
		.bytes = t->bytes,
		.file = file,
	};
	if (model_ignores_tensor(&m->config, t->name)) {
		return 0;
	}
	if (weight_type_of(t, &w.type) != 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' has dtype %s; weights are read "
			"from F32, F16, BF16 or F64", m->files[file].name, t->name, t->dtype_name);
	}
	if (t->n_dims > 2) {
		return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' has %d dimensions; weights have "
			"one or two", m->files[file].name, t->name, t->n_dims);
	}
	w.name = strdup(t->name);
	if (!w.name) {
		return -ENOMEM;
	}
	m->weights[m->n_weights++] = w;
	return 0;
}

/* Maps one file and adds its tensors. With an index (a weight_map), exactly those that it places in
 * this file: a tensor elsewhere than the index says would be read from either place by chance. What
 * was found is struck from `missing`. */
static int load_shard(struct model_files *m, const char *dir, const char *name,
	const json_t *weight_map, json_t *missing, struct errmsg *err)
{
	_cleanup_(freep) char *path = NULL;
	_cleanup_(safetensors_deinit) struct safetensors st = {0};
	char shown[PATH_MAX + 256];
	size_t file = m->n_files;

	snprintf(shown, sizeof(shown), "%s/%s", dir, name);
	int r = file_path(&path, dir, name, err);
	if (r == 0 && !path) {
		return errmsg_set(err, STATUS_INVALID, "%s: is named in model.safetensors.index.json, but "
			"there is no such file", shown);
	}
	r = r ? r : mapped_file_open(&m->files[file], path, shown, err);
	if (r != 0) {
		return r;
	}
	m->n_files++;
	r = safetensors_parse(&st, m->files[file].data, m->files[file].len, shown, err);
	if (r != 0) {
		return r;
	}
	struct stored_weight *weights = realloc_array(m->weights, m->n_weights + st.n_tensors,
		sizeof(*weights));
	if (!weights) {
		return -ENOMEM;
	}
	m->weights = weights;
	for (size_t i = 0; i < st.n_tensors; i++) {
		const char *place = json_string_value(json_object_get(weight_map, st.tensors[i].name));
		if (weight_map && (!place || strcmp(place, name) != 0)) {
			return errmsg_set(err, STATUS_INVALID, "%s: holds tensor '%s', which "
				"model.safetensors.index.json places %s%.128s", shown, st.tensors[i].name,
				place ? "in " : "nowhere", place ? place : "");
		}
		json_object_del(missing, st.tensors[i].name);
		r = add_weight(m, &st.tensors[i], file, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int compare_strings(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The files of a weight_map, each once, sorted. Strings stay the map's. */
static int shard_names(const json_t *weight_map, const char *what, const char ***ret, size_t *ret_n,
	struct errmsg *err)
{
	size_t n = 0, total = json_object_size(weight_map);
	_cleanup_(freep) const char **names = calloc_array(total, sizeof(*names));
	const char *tensor;
	json_t *file;

	if (!names) {
		return -ENOMEM;
	}
	json_object_foreach((json_t *)(uintptr_t)weight_map, tensor, file) {
		const char *name = json_string_value(file);
		if (!name || !file_name_valid(name)) {
			return errmsg_set(err, STATUS_INVALID, "%s: weight_map places '%.100s' in %s; it must "
				"be the name of a file in this folder, without '/'", what, tensor,
				json_short(file).s);
		}
		names[n++] = name;
	}
	qsort(names, n, sizeof(*names), compare_strings);
	size_t kept = 0;
	for (size_t i = 0; i < n; i++) {
		if (kept == 0 || strcmp(names[kept - 1], names[i]) != 0) {
			names[kept++] = names[i];
		}
	}
	if (kept > MAX_SHARDS) {
		return errmsg_set(err, STATUS_INVALID, "%s: weight_map names %zu files; at most %d are "
			"read", what, kept, MAX_SHARDS);
	}
	*ret = steal_ptr(names);
	*ret_n = kept;
	return 0;
}

static int load_sharded(struct model_files *m, const char *dir, const char *index_path,
	struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf text = {0};
	_cleanup_(freep) const char **names = NULL;
	json_auto_t *index = NULL, *missing = NULL;
	char what[PATH_MAX + 64];
	size_t n = 0;

	snprintf(what, sizeof(what), "%s/model.safetensors.index.json", dir);
	int r = text_file_read(&text, index_path, what, TEXT_MAX, err);
	r = r ? r : json_parse_object(&index, (const char *)text.data, text.len, what, err);
	if (r != 0) {
		return r;
	}
	json_t *weight_map = json_object_get(index, "weight_map");
	if (!json_is_object(weight_map) || json_object_size(weight_map) == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: 'weight_map' must be an object: tensor → file",
			what);
	}
	r = shard_names(weight_map, what, &names, &n, err);
	if (r != 0) {
		return r;
	}
	missing = json_copy(weight_map);
	m->files = calloc_array(n, sizeof(*m->files));
	if (!m->files || !missing) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n && r == 0; i++) {
		r = load_shard(m, dir, names[i], weight_map, missing, err);
	}
	if (r == 0 && json_object_size(missing) > 0) {
		const char *tensor = json_object_iter_key(json_object_iter(missing));
		r = errmsg_set(err, STATUS_INVALID, "%s: tensor '%.100s' is missing from %s", what, tensor,
			json_string_value(json_object_get(missing, tensor)));
	}
	return r;
}

static int load_weights(struct model_files *m, const char *dir, struct errmsg *err)
{
	_cleanup_(freep) char *single = NULL;
	_cleanup_(freep) char *index = NULL;
	_cleanup_(freep) char *pickle = NULL;

	int r = file_path(&single, dir, "model.safetensors", err);
	r = r ? r : file_path(&index, dir, "model.safetensors.index.json", err);
	r = r ? r : file_path(&pickle, dir, "pytorch_model.bin", NULL);
	if (r != 0) {
		return r;
	}
	if (single) { /* as transformers: the single file wins */
		m->files = calloc(1, sizeof(*m->files));
		return m->files ? load_shard(m, dir, "model.safetensors", NULL, NULL, err) : -ENOMEM;
	}
	if (index) {
		return load_sharded(m, dir, index, err);
	}
	return errmsg_set(err, STATUS_NOT_FOUND, "%s: holds neither model.safetensors nor "
		"model.safetensors.index.json%s", dir, pickle ? "; pytorch_model.bin is not read (it can "
		"run code): convert it to safetensors" : "");
}

/* ---- the rest ------------------------------------------------------------------------------ */

/* As transformers: the file chat_template.jinja, else tokenizer_config.json's chat_template, which
 * is a string or a list of named ones, of which "default" counts. */
static int load_chat_template(struct model_files *m, const char *dir, struct errmsg *err)
{
	const char *source = (const char *)m->text[TEXT_CHAT_TEMPLATE].data;
	json_auto_t *config = NULL;
	char what[PATH_MAX + 64];

	if (!source && m->text[TEXT_TOKENIZER_CONFIG].data) {
		snprintf(what, sizeof(what), "%s/tokenizer_config.json", dir);
		int r = json_parse_object(&config, (const char *)m->text[TEXT_TOKENIZER_CONFIG].data,
			m->text[TEXT_TOKENIZER_CONFIG].len, what, err);
		if (r != 0) {
			return r;
		}
		const json_t *t = json_object_get(config, "chat_template");
		const json_t *entry;
		size_t i;
		source = json_string_value(t);
		json_array_foreach((json_t *)(uintptr_t)t, i, entry) {
			const char *name = json_string_value(json_object_get(entry, "name"));
			if (name && strcmp(name, "default") == 0) {
				source = json_string_value(json_object_get(entry, "template"));
			}
		}
		if (t && !json_is_null(t) && !source) {
			return errmsg_set(err, STATUS_INVALID, "%s: 'chat_template' must be a string, or a "
				"list with an entry named \"default\"", what);
		}
	}
	if (source) {
		m->chat_template = strdup(source);
		return m->chat_template ? 0 : -ENOMEM;
	}
	return 0;
}

/* The folder may have been meant for a GGUF in it: then say so. */
static int no_config(const char *dir, struct errmsg *err)
{
	char gguf[256 + 32] = "";
	DIR *d = opendir(dir);
	for (struct dirent *e; d && (e = readdir(d)) && !gguf[0];) {
		size_t n = strlen(e->d_name);
		if (n > 5 && strcmp(e->d_name + n - 5, ".gguf") == 0) {
			snprintf(gguf, sizeof(gguf), "; did you mean %s in it?", e->d_name);
		}
	}
	if (d) {
		closedir(d);
	}
	return errmsg_set(err, STATUS_NOT_FOUND, "%s/config.json: there is no such file; a model is a "
		"folder with config.json and *.safetensors, a .gguf file, or ORG/NAME in the Hugging Face "
		"cache%s", dir, gguf);
}

int folder_load(struct model_files *m, const char *dir, struct errmsg *err)
{
	char what[PATH_MAX + 64];
	for (size_t i = 0; i < TEXT_N_FILES; i++) {
		int r = load_text(m, dir, (enum text_file)i, err);
		if (r != 0) {
			return r;
		}
	}
	snprintf(what, sizeof(what), "%s/config.json", dir);
	if (!m->text[TEXT_CONFIG].data) {
		return no_config(dir, err);
	}
	int r = model_config_parse(&m->config, (const char *)m->text[TEXT_CONFIG].data,
		m->text[TEXT_CONFIG].len, what, err);
	r = r ? r : load_chat_template(m, dir, err);
	return r ? r : load_weights(m, dir, err);
}
