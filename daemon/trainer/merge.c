/*
 * Merged models. Their folder is made from the base's files and a checkpoint whenever it is read,
 * tensor by tensor, and lies nowhere: TASK_MERGE, on the device, says what it will hold and how
 * far it is from base and adapter; TASK_MERGE_READ, in an inspect child, sends its bytes from any
 * offset. Both make the same bytes, and the client holds them against the digest.
 */

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/trainer/dataset.h"
#include "daemon/trainer/models.h"
#include "daemon/trainer/trainer.h"
#include "engine/peft/merge.h"
#include "proto/proto.h"
#include "util/util.h"

/* As transformers splits it by default (5 GB), unless that makes too many files. */
#define SHARD_BYTES (UINT64_C(5) * 1000 * 1000 * 1000)

/* Of a merge in f32, logits differ by rounding alone: some 1e-5 of the largest one. What differs
 * by more is another model. */
static const double DRIFT_LIMIT = 1e-3;

struct merge {
	struct compute *compute;
	struct task *task;
	struct model *model;
	bool has_adapter;
	struct adapter adapter;
	struct model_files *files; /* merged */
	struct model_folder *folder;
	char *base_weights; /* for people */
	uint64_t reserved;
};

static void merge_deinit(struct merge *m)
{
	model_folder_free(m->folder);
	model_files_free(m->files);
	if (m->has_adapter) {
		adapter_deinit(&m->adapter);
	}
	free(m->base_weights);
	if (m->reserved > 0) {
		models_use_memory(m->compute->models, -(int64_t)m->reserved);
	}
	models_close(m->compute->models, m->model);
}

static int reserve(struct merge *m, uint64_t bytes, struct errmsg *err)
{
	int r = models_take_memory(m->compute->models, bytes, err);
	m->reserved += r == 0 ? bytes : 0;
	return r > 0 ? errmsg_prefix(err, r, "merging") : r;
}

/* What goes into the folder about its making. */
static int make_note(const struct merge *m, char **ret, struct errmsg *err)
{
	uint8_t digest[32];
	char hex[65];
	int r = model_digest(m->model, digest, err);
	if (r != 0) {
		return r;
	}
	hex_encode(hex, digest, sizeof(digest));
	json_auto_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I}",
		"base_model_name_or_path", model_public_name(m->model), "base_weights", m->base_weights,
		"base_digest", hex, "merged_in", "float32", "method", m->adapter.config.method,
		"job", (json_int_t)m->task->merge.job, "step", (json_int_t)m->task->merge.step);
	_cleanup_(freep) char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
	return text && asprintf(ret, "%s\n", text) > 0 ? 0 : -ENOMEM;
}

static uint64_t folder_bytes(const struct model_folder *f)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < model_folder_n_files(f); i++) {
		sum += model_folder_size(f, i);
	}
	return sum;
}

static int prepare(struct merge *m, struct errmsg *err)
{
	struct compute *c = m->compute;
	struct task *task = m->task;
	int r = models_open(c->models, task->model_name, task->model_path,
		task->has_model_digest ? task->model_digest : NULL, &m->model, err);
	r = r ? r : reserve(m, task->inputs[task->adapter].size, err);
	r = r ? r : task_adapter(c->trainer, task, task->adapter, &m->adapter, err);
	if (r != 0) {
		return r;
	}
	m->has_adapter = true;
	const struct model_files *base = model_files_of(m->model);
	r = merged_files_open(&m->files, base, &m->adapter, err);
	r = r ? r : reserve(m, merged_files_workspace(base, &m->adapter), err);
	const char *dtype = model_files_dtype(base);
	if (r == 0 && asprintf(&m->base_weights, "%s%s", dtype,
			strcmp(model_files_format(base), "gguf") == 0 && strcmp(dtype, "f32") != 0 ?
			", dequantized to float32" : "") < 0) {
		m->base_weights = NULL;
		return -ENOMEM;
	}
	_cleanup_(freep) char *note = NULL;
	r = r ? r : make_note(m, &note, err);
	r = r ? r : merged_folder_new(&m->folder, m->files, note, SHARD_BYTES, err);
	if (r == 0 && model_folder_n_files(m->folder) > MERGED_FILES_MAX) {
		r = errmsg_set(err, STATUS_INVALID, "the merged model would be of %zu files; at most %d "
			"can be fetched", model_folder_n_files(m->folder), MERGED_FILES_MAX);
	}
	return r;
}

/* ---- what it holds, and how far it is ------------------------------------------------------- */

struct hashing {
	struct merge *merge;
	crypto_generichash_state state;
};

static int hash_bytes(void *ctx, const void *data, size_t len)
{
	struct hashing *h = ctx;
	crypto_generichash_update(&h->state, data, len);
	return task_interrupted(h->merge->compute->trainer, h->merge->task);
}

static int digest_folder(struct merge *m, uint8_t ret[32], struct errmsg *err)
{
	struct hashing h = {.merge = m};
	crypto_generichash_init(&h.state, NULL, 0, DIGEST_SIZE);
	int r = model_folder_read(m->folder, 0, hash_bytes, &h, err);
	crypto_generichash_final(&h.state, ret, DIGEST_SIZE);
	return r;
}

/* Base and adapter first, then the merged model: not both weights are in memory at once, unless the
 * base's stay for others. */
static int probe_both(struct merge *m, const struct samples *s, float *before, float *after,
	struct errmsg *err)
{
	struct compute *c = m->compute;
	struct base_model *base = NULL;
	int r = models_acquire(c->models, m->model, c->backend, DTYPE_F32, false, 0, &base, err);
	if (r == 0) {
		r = engine_probe(base, &m->adapter, s, before, err);
		models_release(c->models, base);
	}
	r = r ? r : task_interrupted(c->trainer, m->task);
	r = r ? r : reserve(m, base_model_bytes(m->files, c->backend, DTYPE_F32, false), err);
	if (r != 0) {
		return r;
	}
	struct base_model *merged = NULL;
	r = base_model_load(&merged, m->files, c->backend, DTYPE_F32, false, err);
	r = r ? r : engine_probe(merged, NULL, s, after, err);
	base_model_free(merged);
	return r;
}

static int measure_drift(struct merge *m, const struct samples *s, struct logit_drift *ret,
	struct errmsg *err)
{
	int64_t vocab = model_files_config(m->files)->vocab_size;
	size_t n;
	if (!mul_size(engine_probe_size(s), (size_t)vocab, &n)) {
		return -ENOMEM;
	}
	int r = reserve(m, 2 * n * sizeof(float), err);
	if (r != 0) {
		return r;
	}
	_cleanup_(freep) float *before = alloc_array(n, sizeof(*before));
	_cleanup_(freep) float *after = alloc_array(n, sizeof(*after));
	r = before && after ? probe_both(m, s, before, after, err) : -ENOMEM;
	r = r ? r : engine_drift(ret, s, vocab, before, after, err);
	if (r == 0 && ret->max > DRIFT_LIMIT * ret->largest) {
		r = errmsg_set(err, STATUS_FAILED, "the merged model's logits differ from those of base "
			"and adapter by up to %.3g, where the largest is %.3g; rounding makes no more than a "
			"thousandth of that, so it is not given out", ret->max, ret->largest);
	}
	return r;
}

int task_merge(struct compute *c, struct task *task, struct errmsg *err)
{
	_cleanup_(merge_deinit) struct merge m = {.compute = c, .task = task};
	const struct job_spec *spec = &task->spec;
	const struct dataset_options o = {
		.max_length = spec->max_length,
		.overlong = spec->overlong,
		.train_on_prompt = spec->train_on_prompt,
		.chat_template = spec->chat_template,
	};
	struct merge_info info = {.step = task->merge.step};
	const struct samples *s = NULL;
	int r = prepare(&m, err);
	r = r ? r : digest_folder(&m, info.digest, err);
	r = r ? r : dataset_samples(c, task, &task->dataset, m.model, &o, &s, NULL, err);
	if (r == 0) {
		r = measure_drift(&m, s, &info.drift, err);
		dataset_release(c->samples, s);
	}
	if (r == 0) {
		info.folder = m.folder;
		info.size = folder_bytes(m.folder);
		info.base_weights = m.base_weights;
		emit_result(c->trainer, task, STATUS_OK, NULL, &(struct result){.merge = &info});
	} else if (r > 0 && !err->text[0]) {
		errmsg_set(err, r, "stopped");
	}
	return r;
}

/* ---- its bytes ------------------------------------------------------------------------------ */

struct sending {
	struct merge *merge;
	struct buf chunk;
	uint64_t offset; /* of the chunk's first byte */
	struct errmsg *err;
};

static int send_chunk(struct sending *s)
{
	struct merge *m = s->merge;
	uint64_t len = s->chunk.len;
	int r = task_take_credit(m->compute->trainer, m->task, s->err);
	if (r == 0) {
		emit_merged(m->compute->trainer, m->task, s->offset, &s->chunk);
		s->offset += len;
	}
	return r;
}

static int take_bytes(void *ctx, const void *data, size_t len)
{
	struct sending *s = ctx;
	const uint8_t *p = data;
	int r = 0;
	while (len > 0 && r == 0) {
		size_t n = CHUNK_SIZE - s->chunk.len;
		n = len < n ? len : n;
		r = s->chunk.cap == 0 ? buf_reserve(&s->chunk, CHUNK_SIZE) : 0;
		r = r ? r : buf_append(&s->chunk, p, n);
		p += n;
		len -= n;
		if (r == 0 && s->chunk.len == CHUNK_SIZE) {
			r = send_chunk(s);
		}
	}
	return r;
}

int task_merge_read(struct compute *c, struct task *task, struct errmsg *err)
{
	_cleanup_(merge_deinit) struct merge m = {.compute = c, .task = task};
	struct sending s = {.merge = &m, .offset = task->merge.offset, .err = err};
	int r = prepare(&m, err);
	if (r == 0 && s.offset > folder_bytes(m.folder)) {
		r = errmsg_set(err, STATUS_INVALID, "offset: %" PRIu64 " is beyond the %" PRIu64 " bytes "
			"there are", s.offset, folder_bytes(m.folder));
	}
	r = r ? r : model_folder_read(m.folder, s.offset, take_bytes, &s, err);
	r = r || s.chunk.len == 0 ? r : send_chunk(&s);
	buf_deinit(&s.chunk);
	if (r == 0) {
		emit_result(c->trainer, task, STATUS_OK, NULL, NULL);
	}
	return r;
}
