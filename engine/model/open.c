/* Opening a model: which format it is, and whether its tensors are those that its configuration asks
 * for. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/model/arch.h"
#include "engine/model/model-internal.h"
#include "util/cleanup.h"
#include "util/hfcache.h"
#include "util/util.h"

DEFINE_CLEANUP(struct model_files *, model_files_free);

/* ---- tensors ------------------------------------------------------------------------------- */

static int compare_weights(const void *pa, const void *pb)
{
	const struct stored_weight *a = pa, *b = pb;
	return strcmp(a->name, b->name);
}

bool model_ignores_tensor(const struct model_config *c, const char *name)
{
	const struct arch *arch = arch_by_type(c->model_type);
	return has_suffix(name, ".rotary_emb.inv_freq") || (arch && arch->ignores && arch->ignores(name));
}

/* Tensors that are there beside what is computed from. */
static bool without_effect(const struct model_config *c, const char *name)
{
	return model_ignores_tensor(c, name) ||
		(c->tie_word_embeddings && strcmp(name, "lm_head.weight") == 0);
}

static int rename_tensor(struct stored_weight *w, const char *prefix, size_t n, const char *name)
{
	char *full;
	if (asprintf(&full, "%.*s%s", (int)n, prefix, name) < 0) {
		return -ENOMEM;
	}
	free(w->name);
	w->name = full;
	return 0;
}

/* Files saved without a head lack what the names of all of the model's own tensors start with
 * ("transformer."), and some call the head otherwise. */
static int settle_names(struct model_files *m, const char *first)
{
	const struct arch *arch = arch_by_type(m->config.model_type);
	size_t n = strcspn(first, ".") + 1;
	bool bare = true;
	int r = 0;
	for (size_t i = 0; i < m->n_weights; i++) {
		bare = bare && strncmp(m->weights[i].name, first, n) != 0;
	}
	for (size_t i = 0; i < m->n_weights && r == 0; i++) {
		struct stored_weight *w = &m->weights[i];
		size_t k = arch->head_alias ? strlen(arch->head_alias) : 0;
		if (k > 0 && strncmp(w->name, arch->head_alias, k) == 0 && w->name[k] == '.') {
			r = rename_tensor(w, "", 0, strcmp(w->name + k, ".weight") == 0 ? "lm_head.weight" :
				"lm_head.bias");
		} else if (bare && strncmp(w->name, "lm_head.", 8) != 0) {
			r = rename_tensor(w, first, n, w->name);
		}
	}
	return r;
}

static void drop_without_effect(struct model_files *m)
{
	size_t kept = 0;
	for (size_t i = 0; i < m->n_weights; i++) {
		if (without_effect(&m->config, m->weights[i].name)) {
			free(m->weights[i].name);
		} else {
			m->weights[kept++] = m->weights[i];
		}
	}
	m->n_weights = kept;
}

/* Where the files, rather than the configuration, say whether the head is the embedding. */
static void settle_head(struct model_files *m)
{
	const struct arch *arch = arch_by_type(m->config.model_type);
	for (size_t i = 0; arch && arch->head_by_files && i < m->n_weights; i++) {
		if (strcmp(m->weights[i].name, "lm_head.weight") == 0) {
			m->config.tie_word_embeddings = false;
		}
	}
}

int model_files_check_weights(struct model_files *m, const char *what, struct errmsg *err)
{
	_cleanup_(freep) struct tensor_spec *specs = NULL;
	size_t n_specs;

	settle_head(m);
	int r = model_tensors(&specs, &n_specs, &m->config);
	r = r ? r : settle_names(m, specs[0].name);
	if (r != 0) {
		return r;
	}
	drop_without_effect(m);
	qsort(m->weights, m->n_weights, sizeof(*m->weights), compare_weights);
	for (size_t i = 1; i < m->n_weights; i++) {
		if (strcmp(m->weights[i - 1].name, m->weights[i].name) == 0) {
			return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' comes twice, in %s and %s",
				what, m->weights[i].name, m->files[m->weights[i - 1].file].name,
				m->files[m->weights[i].file].name);
		}
	}
	for (size_t i = 0; i < n_specs; i++) {
		const struct tensor_spec spec = specs[i];
		struct stored_weight *w = model_files_find(m, spec.name);
		if (!w) {
			return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' is missing (the configuration "
				"says %" PRId64 " layers)", what, spec.name, m->config.num_hidden_layers);
		}
		if (w->rows != spec.rows || w->cols != spec.cols || w->n_dims != spec.n_dims) {
			return errmsg_set(err, STATUS_INVALID, "%s: tensor '%s' has the shape [%" PRId64 ", %"
				PRId64 "]; the configuration makes it [%" PRId64 ", %" PRId64 "]", what, spec.name,
				w->rows, w->cols, spec.rows, spec.cols);
		}
		w->expected = true;
	}
	for (size_t i = 0; i < m->n_weights; i++) {
		if (!m->weights[i].expected) {
			return errmsg_set(err, STATUS_INVALID, "%s: tensor '%.100s' does not belong to a %s "
				"model with this configuration", what, m->weights[i].name, m->config.model_type);
		}
	}
	return 0;
}

/* ---- opening ------------------------------------------------------------------------------- */

static int load_gguf_file(struct model_files *m, struct errmsg *err)
{
	m->format = "gguf";
	m->files = calloc(1, sizeof(*m->files));
	if (!m->files) {
		return -ENOMEM;
	}
	int r = mapped_file_open(&m->files[0], m->path, m->path, err);
	if (r != 0) {
		return r;
	}
	m->n_files = 1;
	r = gguf_load(m, 0, err);
	return r ? r : model_files_check_weights(m, m->path, err);
}

/* The path as given where it exists, else the snapshot that it names in the cache. */
static int resolve(const char *path, char **ret, struct errmsg *err)
{
	_cleanup_(freep) char *found = NULL;
	char *real = realpath(path, NULL);
	if (!real) {
		if (errno != ENOENT && errno != ENOTDIR && errno != EACCES && errno != ELOOP &&
				errno != ENAMETOOLONG) {
			return -errno;
		}
		if (errno == EACCES || errno == ELOOP || errno == ENAMETOOLONG) {
			return errmsg_set(err, STATUS_INVALID, "%s: %s", path, strerror(errno));
		}
		int r = hf_cache_find(&found, path, err);
		if (r != 0) {
			return r;
		}
		real = realpath(found, NULL);
		if (!real) {
			return -errno;
		}
	}
	*ret = real;
	return 0;
}

int model_files_open(struct model_files **ret, const char *path, struct errmsg *err)
{
	_cleanup_(model_files_freep) struct model_files *m = calloc(1, sizeof(*m));
	struct stat st;

	if (!m) {
		return -ENOMEM;
	}
	if (path[0] == '\0') {
		return errmsg_set(err, STATUS_INVALID, "the model's path is empty; give a folder with "
			"config.json and *.safetensors, a .gguf file, or ORG/NAME");
	}
	int r = resolve(path, &m->path, err);
	if (r != 0) {
		return r;
	}
	if (stat(m->path, &st) < 0) {
		return -errno;
	}
	if (S_ISDIR(st.st_mode)) {
		m->format = "huggingface";
		r = folder_load(m, m->path, err);
		r = r ? r : model_files_check_weights(m, m->path, err);
	} else if (has_suffix(m->path, ".safetensors") || has_suffix(m->path, ".json")) {
		r = errmsg_set(err, STATUS_INVALID, "%s: is one file of a model; give its folder", m->path);
	} else {
		r = load_gguf_file(m, err);
	}
	if (r == 0) {
		*ret = steal_ptr(m);
	}
	return r;
}
