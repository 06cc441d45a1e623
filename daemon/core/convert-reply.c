/* Replies to clients. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/convert-internal.h"
#include "util/util.h"

struct reply {
	Peftd__V1__Reply m;
	Peftd__V1__Status status;
};

static Peftd__V1__Reply *reply_init(struct reply *r, const uint8_t *id)
{
	r->m = (Peftd__V1__Reply)PEFTD__V1__REPLY__INIT;
	r->status = (Peftd__V1__Status)PEFTD__V1__STATUS__INIT;
	r->m.id = bytes_of(id, REQUEST_ID_SIZE);
	r->m.status = &r->status;
	return &r->m;
}

static void set_more(Peftd__V1__Reply *m, bool more)
{
	if (more) {
		set_value(m, more, true);
	}
}

int reply_status(struct packed *ret, const uint8_t *id, int code, const char *text)
{
	struct reply r;
	reply_init(&r, id);
	r.status.code = (uint32_t)code;
	_cleanup_(freep) char *clean = text ? clean_text(text, strlen(text)) : NULL;
	set_text(&r.status, message, clean);
	return pack_message(&r.m, ret);
}

int reply_daemon_status(struct packed *ret, const uint8_t *id, const struct status_facts *f)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	struct reply r;
	Peftd__V1__StatusReply m = PEFTD__V1__STATUS_REPLY__INIT;
	set_text(&m, version, f->version);
	if (f->trainer) {
		set_text(&m, device, f->trainer->device);
		set_value(&m, threads, f->trainer->threads);
	}
	set_value(&m, memory_total, f->memory_limit);
	set_value(&m, memory_in_use, f->stats->memory_in_use);
	m.n_models = f->stats->n_models;
	m.models = scratch_alloc(&s, m.n_models, sizeof(*m.models));
	Peftd__V1__ResidentModel *models = scratch_alloc(&s, m.n_models, sizeof(*models));
	if (!m.models || !models) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < m.n_models; i++) {
		models[i] = (Peftd__V1__ResidentModel)PEFTD__V1__RESIDENT_MODEL__INIT;
		set_text(&models[i], name, f->stats->models[i].name);
		set_text(&models[i], dtype, f->stats->models[i].dtype);
		set_value(&models[i], bytes, f->stats->models[i].bytes);
		m.models[i] = &models[i];
	}
	set_value(&m, jobs_running, (uint32_t)f->n_running);
	set_value(&m, jobs_waiting, f->jobs_waiting);
	set_value(&m, uptime_seconds, f->uptime_seconds);
	set_value(&m, store_bytes, f->store_bytes);
	set_value(&m, store_free_bytes, f->store_free_bytes);
	set_text(&m, trainer_state, f->trainer_state);
	m.n_running = f->n_running;
	m.running = (uint64_t *)f->running;
	reply_init(&r, id)->what_case = PEFTD__V1__REPLY__WHAT_DAEMON_STATUS;
	r.m.daemon_status = &m;
	return pack_message(&r.m, ret);
}

int reply_model(struct packed *ret, const uint8_t *id, const struct packed *model)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	struct reply r;
	reply_init(&r, id)->what_case = PEFTD__V1__REPLY__WHAT_MODEL;
	r.m.model = scratch_unpack(&s, &peftd__v1__model__descriptor, model);
	return scratch_pack(&s, &r.m, ret);
}

/* Unpacks a list of messages into an array of pointers. */
static void *unpack_list(
	struct scratch *s, const ProtobufCMessageDescriptor *desc, const struct packed *list, size_t n)
{
	void **messages = scratch_alloc(s, n, sizeof(*messages));
	for (size_t i = 0; messages && i < n; i++) {
		messages[i] = scratch_unpack(s, desc, &list[i]);
	}
	return messages;
}

int reply_models(
	struct packed *ret, const uint8_t *id, const struct packed *models, size_t n, bool more)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	struct reply r;
	Peftd__V1__ModelListReply m = PEFTD__V1__MODEL_LIST_REPLY__INIT;
	m.n_models = n;
	m.models = unpack_list(&s, &peftd__v1__model__descriptor, models, n);
	set_more(reply_init(&r, id), more);
	r.m.what_case = PEFTD__V1__REPLY__WHAT_MODEL_LIST;
	r.m.model_list = &m;
	return scratch_pack(&s, &r.m, ret);
}

int reply_upload_begin(struct packed *ret, const uint8_t *id, uint64_t offset, uint32_t window)
{
	struct reply r;
	Peftd__V1__UploadBeginReply m = PEFTD__V1__UPLOAD_BEGIN_REPLY__INIT;
	set_value(&m, offset, offset);
	set_value(&m, window, window);
	reply_init(&r, id)->what_case = PEFTD__V1__REPLY__WHAT_UPLOAD_BEGIN;
	r.m.upload_begin = &m;
	return pack_message(&r.m, ret);
}

int reply_upload_chunk(struct packed *ret, const uint8_t *id, uint64_t offset)
{
	struct reply r;
	Peftd__V1__UploadChunkReply m = PEFTD__V1__UPLOAD_CHUNK_REPLY__INIT;
	set_value(&m, offset, offset);
	reply_init(&r, id)->what_case = PEFTD__V1__REPLY__WHAT_UPLOAD_CHUNK;
	r.m.upload_chunk = &m;
	return pack_message(&r.m, ret);
}

static Peftd__V1__Dataset *build_dataset(struct scratch *s, const struct store_dataset *d)
{
	Peftd__V1__Dataset *m = scratch_message(s, Peftd__V1__Dataset, PEFTD__V1__DATASET__INIT);
	char *owner = scratch_alloc(s, 1, 16);
	if (!m || !owner) {
		return NULL;
	}
	snprintf(owner, 16, "%u", d->owner_uid);
	m->name = proto_bytes(d->name);
	set_value(m, rows, d->rows);
	m->blob = build_blob(s, &d->content);
	set_text(m, format, d->format);
	set_text(m, prompt_field, d->prompt_field);
	set_text(m, completion_field, d->completion_field);
	set_text(m, owner, owner);
	set_value(m, added_wall_ns, d->added_wall_ns);
	return m;
}

int convert_dataset(struct packed *ret, const struct store_dataset *d)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__Dataset *m = build_dataset(&s, d);
	return scratch_pack(&s, m, ret);
}

int reply_dataset(struct packed *ret, const uint8_t *id, const struct store_dataset *d)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	struct reply r;
	reply_init(&r, id)->what_case = PEFTD__V1__REPLY__WHAT_DATASET;
	r.m.dataset = build_dataset(&s, d);
	return scratch_pack(&s, &r.m, ret);
}

int reply_datasets(
	struct packed *ret, const uint8_t *id, const struct packed *datasets, size_t n, bool more)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	struct reply r;
	Peftd__V1__DatasetListReply m = PEFTD__V1__DATASET_LIST_REPLY__INIT;
	m.n_datasets = n;
	m.datasets = unpack_list(&s, &peftd__v1__dataset__descriptor, datasets, n);
	set_more(reply_init(&r, id), more);
	r.m.what_case = PEFTD__V1__REPLY__WHAT_DATASET_LIST;
	r.m.dataset_list = &m;
	return scratch_pack(&s, &r.m, ret);
}

int reply_fetch(struct packed *ret, const uint8_t *id, const struct store_file *files,
	size_t n_files, uint64_t size, const uint8_t digest[32], uint64_t step, const char *folder_name)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	struct reply r;
	Peftd__V1__FetchReply m = PEFTD__V1__FETCH_REPLY__INIT;
	struct store_files f = {.size = size, .files = (struct store_file *)files, .n = n_files};
	memcpy(f.digest, digest, sizeof(f.digest));
	m.blob = build_blob(&s, &f);
	set_value(&m, step, step);
	set_text(&m, folder_name, folder_name);
	reply_init(&r, id)->what_case = PEFTD__V1__REPLY__WHAT_FETCH;
	r.m.fetch = &m;
	return scratch_pack(&s, &r.m, ret);
}

int reply_read(struct packed *ret, const uint8_t *id, uint64_t offset, bool more)
{
	struct reply r;
	Peftd__V1__ReadReply m = PEFTD__V1__READ_REPLY__INIT;
	set_value(&m, offset, offset);
	set_more(reply_init(&r, id), more);
	r.m.what_case = PEFTD__V1__REPLY__WHAT_READ;
	r.m.read = &m;
	return pack_message(&r.m, ret);
}

int reply_output(struct packed *ret, const uint8_t *id, enum output_kind kind,
	const struct packed *output)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	struct reply r;
	set_more(reply_init(&r, id), true);
	if (kind == OUTPUT_INSPECT_ROW) {
		r.m.what_case = PEFTD__V1__REPLY__WHAT_INSPECT_ROW;
		r.m.inspect_row = scratch_unpack(&s, &peftd__v1__inspect_row__descriptor, output);
	} else {
		r.m.what_case = PEFTD__V1__REPLY__WHAT_GENERATE;
		r.m.generate = scratch_unpack(&s, &peftd__v1__generate_reply__descriptor, output);
	}
	return scratch_pack(&s, &r.m, ret);
}

int reply_result(struct packed *ret, const uint8_t *id, const struct task_result *result,
	const char *folder_name)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__FetchReply fetch;
	struct reply r;
	reply_init(&r, id);
	const struct packed *p = &result->packed;
	switch (result->answer) {
	case ANSWER_EVAL:
		r.m.what_case = PEFTD__V1__REPLY__WHAT_EVAL;
		r.m.eval = scratch_unpack(&s, &peftd__v1__eval_reply__descriptor, p);
		break;
	case ANSWER_GENERATE:
		r.m.what_case = PEFTD__V1__REPLY__WHAT_GENERATE;
		r.m.generate = scratch_unpack(&s, &peftd__v1__generate_reply__descriptor, p);
		break;
	case ANSWER_INSPECT:
		r.m.what_case = PEFTD__V1__REPLY__WHAT_INSPECT_SUMMARY;
		r.m.inspect_summary = scratch_unpack(&s, &peftd__v1__inspect_summary__descriptor, p);
		break;
	case ANSWER_MERGE:
		r.m.what_case = PEFTD__V1__REPLY__WHAT_FETCH;
		r.m.fetch = scratch_unpack(&s, &peftd__v1__fetch_reply__descriptor, p);
		if (r.m.fetch) {
			fetch = *r.m.fetch; /* a copy, for the name is not the message's */
			r.m.fetch = &fetch;
			set_text(&fetch, folder_name, folder_name);
		}
		break;
	default:
		break;
	}
	return scratch_pack(&s, &r.m, ret);
}
