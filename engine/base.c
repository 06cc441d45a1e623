#include "engine/base.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/model/arch.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct graph *, graph_free);
DEFINE_CLEANUP(struct base_model *, base_model_free);

struct slot {
	struct packed_weight *packed;
	float *bias;       /* into `memory`, as what follows */
	struct mat mat;
	void *vector_bias; /* in the activation's dtype */
};

struct base_model {
	struct backend *backend;
	struct model_config config;
	enum dtype dtype;
	bool trains;
	const struct model_files *files; /* borrowed */
	char *path;
	struct weight *weights; /* what the slots hold */
	struct slot *slots;
	int n_slots;
	uint8_t *memory; /* of the device: vectors, tables, biases */
	size_t memory_bytes;
};

/* The model's graph for the sake of its slots. */
static int slots_graph(struct graph **ret, const struct model_config *c, struct backend *b,
	enum dtype dtype, struct errmsg *err)
{
	const struct graph_request q = {
		.config = c,
		.purpose = GRAPH_GENERATE,
		.backend = b,
		.dtype = dtype,
		.tokens = 1,
		.max_seqs = 1,
		.context = 1,
	};
	return model_graph(ret, &q, NULL, err);
}

static unsigned packed_uses(bool train)
{
	return PACKED_FORWARD | (train ? PACKED_BACKWARD : 0u);
}

/* Bytes of a slot in the block of small tensors. */
static size_t plain_bytes(const struct weight *w, enum dtype dtype)
{
	if (w->kind == WEIGHT_LINEAR) {
		return w->bias ? align_up((size_t)w->rows * sizeof(float), 64) : 0;
	}
	size_t bytes = align_up((size_t)w->rows * (size_t)w->cols * dtype_size(dtype), 64);
	return w->kind == WEIGHT_VECTOR && w->bias ? 2 * bytes : bytes;
}

uint64_t base_model_bytes(const struct model_files *files, struct backend *b, enum dtype dtype,
	bool train)
{
	_cleanup_(graph_freep) struct graph *g = NULL;
	if (slots_graph(&g, model_files_config(files), b, dtype, NULL) != 0) {
		return 0;
	}
	uint64_t sum = 0;
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		sum += plain_bytes(w, dtype);
		if (w->kind == WEIGHT_LINEAR) {
			sum += packed_weight_bytes(b, w->rows, w->cols, dtype, packed_uses(train));
		}
	}
	return sum;
}

/* Reads MODULE.`suffix` of this shape. */
static int read_tensor(const struct model_files *files, const char *module, const char *suffix,
	int64_t rows, int64_t cols, float *out, struct errmsg *err)
{
	char name[MODULE_NAME_MAX + 16];
	snprintf(name, sizeof(name), "%s.%s", module, suffix);
	int64_t have_rows, have_cols;
	if (!model_files_shape(files, name, &have_rows, &have_cols)) {
		return errmsg_set(err, STATUS_INVALID, "%s: no tensor %s, which its configuration asks for",
			model_files_path(files), name);
	}
	if (have_rows != rows || have_cols != cols) {
		return errmsg_set(err, STATUS_INVALID, "%s: %s is [%lld, %lld], but its configuration "
			"makes it [%lld, %lld]", model_files_path(files), name, (long long)have_rows,
			(long long)have_cols, (long long)rows, (long long)cols);
	}
	return model_files_read(files, name, out, err);
}

/* The matrix of a linear layer, out[rows, cols], from [cols, rows] where it is stored so. */
static int read_linear(const struct model_files *files, const char *module, bool transposed,
	int64_t rows, int64_t cols, float *out, struct errmsg *err)
{
	if (!transposed) {
		return read_tensor(files, module, "weight", rows, cols, out, err);
	}
	_cleanup_(freep) float *stored = alloc_array((size_t)rows, (size_t)cols * sizeof(*stored));
	int r = stored ? read_tensor(files, module, "weight", cols, rows, stored, err) : -ENOMEM;
	for (int64_t i = 0; i < rows && r == 0; i++) {
		for (int64_t j = 0; j < cols; j++) {
			out[i * cols + j] = stored[j * rows + i];
		}
	}
	return r;
}

static int load_linear(struct base_model *m, const struct model_files *files,
	const struct weight *w, struct slot *s, uint8_t *plain, struct errmsg *err)
{
	_cleanup_(freep) float *host = NULL;
	size_t n;
	if (!mul_size((size_t)w->rows, (size_t)w->cols, &n)) {
		return -ENOMEM;
	}
	host = alloc_array(n, sizeof(float));
	if (!host) {
		return -ENOMEM;
	}
	int64_t row = 0;
	for (int i = 0; i < w->n_parts; row += w->parts[i++].rows) {
		const char *module = w->stored_as ? w->stored_as : w->parts[i].module;
		int r = read_linear(files, module, w->transposed, w->parts[i].rows, w->cols,
			host + row * w->cols, err);
		if (r != 0) {
			return r;
		}
	}
	int r = packed_weight_new(&s->packed, m->backend, host, w->rows, w->cols, m->dtype,
		packed_uses(m->trains), err);
	if (r != 0 || !w->bias) {
		return r;
	}

	row = 0;
	for (int i = 0; i < w->n_parts; row += w->parts[i++].rows) {
		r = read_tensor(files, w->parts[i].module, "bias", w->parts[i].rows, 1, host + row, err);
		if (r != 0) {
			return r;
		}
	}
	for (int64_t i = 0; m->dtype == DTYPE_BF16 && i < w->rows; i++) {
		host[i] = bf16_to_f32(bf16_from_f32(host[i]));
	}
	s->bias = (float *)(void *)plain;
	backend_upload(m->backend, s->bias, host, (size_t)w->rows * sizeof(float));
	return 0;
}

/* Copies n values of host memory, which it overwrites, to `to` in the activation's dtype. */
static void upload_rounded(const struct base_model *m, void *to, float *host, size_t n)
{
	if (m->dtype == DTYPE_BF16) {
		/* In place: element i is read before byte 2i is written. */
		uint8_t *bytes = (uint8_t *)host;
		for (size_t i = 0; i < n; i++) {
			uint16_t h = bf16_from_f32(host[i]);
			memcpy(bytes + 2 * i, &h, sizeof(h));
		}
	}
	backend_upload(m->backend, to, host, n * dtype_size(m->dtype));
}

static int load_plain(struct base_model *m, const struct model_files *files, const struct weight *w,
	struct slot *s, uint8_t *plain, struct errmsg *err)
{
	size_t n;
	_cleanup_(freep) float *host = NULL;
	if (!mul_size((size_t)w->rows, (size_t)w->cols, &n)) {
		return -ENOMEM;
	}
	host = alloc_array(n, sizeof(float));
	if (!host) {
		return -ENOMEM;
	}
	/* A vector comes as a column. */
	bool vector = w->kind == WEIGHT_VECTOR;
	int r = read_tensor(files, w->parts[0].module, "weight", vector ? w->cols : w->rows,
		vector ? 1 : w->cols, host, err);
	if (r != 0) {
		return r;
	}
	s->mat = (struct mat){plain, m->dtype, w->rows, w->cols, w->cols};
	upload_rounded(m, plain, host, n);
	if (vector && w->bias) {
		r = read_tensor(files, w->parts[0].module, "bias", w->cols, 1, host, err);
		s->vector_bias = plain + plain_bytes(w, m->dtype) / 2;
		if (r == 0) {
			upload_rounded(m, s->vector_bias, host, n);
		}
	}
	return r;
}

int base_model_load(struct base_model **ret, const struct model_files *files, struct backend *b,
	enum dtype dtype, bool train, struct errmsg *err)
{
	_cleanup_(base_model_freep) struct base_model *m = calloc(1, sizeof(*m));
	_cleanup_(graph_freep) struct graph *g = NULL;
	if (!m) {
		return -ENOMEM;
	}
	int r = slots_graph(&g, model_files_config(files), b, dtype, err);
	if (r != 0) {
		return r;
	}
	m->backend = b;
	m->files = files;
	m->config = *model_files_config(files);
	m->dtype = dtype;
	m->trains = train;
	m->path = strdup(model_files_path(files));
	m->weights = steal_ptr(g->weights);
	m->n_slots = g->n_weights;
	m->slots = calloc_array((size_t)m->n_slots, sizeof(*m->slots));
	for (int i = 0; i < m->n_slots; i++) {
		m->memory_bytes += plain_bytes(&m->weights[i], dtype);
	}
	m->memory = backend_alloc(b, m->memory_bytes);
	if (!m->path || !m->slots || !m->memory) {
		return errmsg_set(err, -ENOMEM, "%s: no memory for its weights", model_files_path(files));
	}

	uint8_t *plain = m->memory;
	for (int i = 0; i < m->n_slots; i++) {
		const struct weight *w = &m->weights[i];
		r = w->kind == WEIGHT_LINEAR ? load_linear(m, files, w, &m->slots[i], plain, err) :
			load_plain(m, files, w, &m->slots[i], plain, err);
		if (r != 0) {
			return r;
		}
		plain += plain_bytes(w, dtype);
	}
	*ret = steal_ptr(m);
	return 0;
}

void base_model_free(struct base_model *m)
{
	if (!m) {
		return;
	}
	for (int i = 0; m->slots && i < m->n_slots; i++) {
		packed_weight_free(m->slots[i].packed);
	}
	if (m->memory) {
		backend_free_memory(m->backend, m->memory, m->memory_bytes);
	}
	free(m->slots);
	free(m->weights);
	free(m->path);
	free(m);
}

struct backend *base_model_backend(const struct base_model *m)
{
	return m->backend;
}

const struct model_config *base_model_config(const struct base_model *m)
{
	return &m->config;
}

const struct model_files *base_model_files(const struct base_model *m)
{
	return m->files;
}

int base_read_stored(const struct base_model *m, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *out, struct errmsg *err)
{
	return read_tensor(m->files, module, tensor, rows, cols, out, err);
}

int base_read(const struct base_model *m, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *out, struct errmsg *err)
{
	bool transposed = false;
	for (int i = 0; i < m->n_slots && strcmp(tensor, "weight") == 0 && !transposed; i++) {
		for (int k = 0; m->weights[i].transposed && k < m->weights[i].n_parts; k++) {
			transposed |= strcmp(m->weights[i].parts[k].module, module) == 0;
		}
	}
	return transposed ? read_linear(m->files, module, true, rows, cols, out, err) :
		base_read_stored(m, module, tensor, rows, cols, out, err);
}

const char *base_model_path(const struct base_model *m)
{
	return m->path;
}

enum dtype base_model_dtype(const struct base_model *m)
{
	return m->dtype;
}

bool base_model_trains(const struct base_model *m)
{
	return m->trains;
}

const struct packed_weight *base_packed(const struct base_model *m, int slot)
{
	return m->slots[slot].packed;
}

const float *base_bias(const struct base_model *m, int slot)
{
	return m->slots[slot].bias;
}

const void *base_vector_bias(const struct base_model *m, int slot)
{
	return m->slots[slot].vector_bias;
}

struct mat base_mat(const struct base_model *m, int slot)
{
	return m->slots[slot].mat;
}

bool base_model_matches(const struct base_model *m, const struct graph *g)
{
	if (g->n_weights != m->n_slots || g->dtype != m->dtype) {
		return false;
	}
	for (int i = 0; i < m->n_slots; i++) {
		const struct weight *a = &m->weights[i], *b = &g->weights[i];
		if (a->kind != b->kind || a->rows != b->rows || a->cols != b->cols ||
			strcmp(a->parts[0].module, b->parts[0].module) != 0) {
			return false;
		}
	}
	return true;
}
