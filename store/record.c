/*
 * Records to and from record.proto, and the only place in store/ that knows generated messages.
 *
 * Versions. Every record carries the version of the layout it was written in, and the meta record
 * that of the whole store: STORE_VERSION in store-internal.h. A new optional field whose absence
 * means what was true before needs nothing: an older peftd of the same version reads the record and
 * loses the field when it writes it, so use this only where that is harmless. Anything else (a new
 * database, key or required field, another meaning) raises the version:
 *
 *   1. Add one to STORE_VERSION. An older peftd then refuses the store (STATUS_VERSION).
 *   2. Let the x_unpack() functions below read both, telling them apart by the record's version.
 *   3. Write the step from the old version to the new one as a function of its own, run by
 *      store_open() before anything else reads: in slices of bounded transactions that can be
 *      interrupted anywhere and go on where they were, the meta record's version last.
 *   4. Keep a store of the old version under tests/store/ and test the step with it, killed in
 *      the middle too.
 *   5. Say in docs/storage.md what changed.
 *
 * What no version may change, for otherwise an older peftd would take a newer store for a damaged
 * one: the database "meta", its key "meta", the seal before the record, and that the record is a
 * protobuf message whose field 1 is the version.
 */

#include <errno.h>
#include <math.h>

#include "common.pb-c.h"
#include "event.pb-c.h"
#include "job.pb-c.h"
#include "record.pb-c.h"
#include "rpc.pb-c.h"
#include "store/store-internal.h"
#include "util/log.h"

/* ---- writing: messages that borrow from the struct ----------------------------------------- */

typedef ProtobufCBinaryData field;

static field field_of(const void *data, size_t len)
{
	return (field){len, (uint8_t *)data};
}

/* An optional text; NULL is absent. */
#define SET_TEXT(msg, name, s)                                                                     \
	do {                                                                                           \
		(msg)->has_##name = (s) != NULL;                                                           \
		(msg)->name = proto_bytes(s);                                                              \
	} while (0)

#define SET(msg, name, v)                                                                          \
	do {                                                                                           \
		(msg)->has_##name = true;                                                                  \
		(msg)->name = (v);                                                                         \
	} while (0)

/* What is written must be readable: texts without NUL (they are C strings) and of good UTF-8. */
static bool text_ok(const char *s)
{
	return !s || utf8_valid(s, strlen(s), NULL);
}

static bool files_ok(const struct store_files *f)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < f->n; i++) {
		if (!f->files[i].name || !text_ok(f->files[i].name) ||
			__builtin_add_overflow(sum, f->files[i].size, &sum)) {
			return false;
		}
	}
	return f->n == 0 || sum == f->size;
}

struct blob_msg {
	Peftd__V1__Blob m;
	Peftd__V1__File *files;
	Peftd__V1__File **pointers;
};

static void blob_msg_deinit(struct blob_msg *b)
{
	free(b->files);
	free(b->pointers);
}

static int blob_msg_init(struct blob_msg *b, const struct store_files *f)
{
	*b = (struct blob_msg){.m = PEFTD__V1__BLOB__INIT};
	b->m.digest = field_of(f->digest, sizeof(f->digest));
	b->m.size = f->size;
	if (f->n == 0) {
		return 0;
	}
	b->files = calloc_array(f->n, sizeof(*b->files));
	b->pointers = calloc_array(f->n, sizeof(*b->pointers));
	if (!b->files || !b->pointers) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < f->n; i++) {
		b->files[i] = (Peftd__V1__File)PEFTD__V1__FILE__INIT;
		b->files[i].name = proto_bytes(f->files[i].name);
		b->files[i].size = f->files[i].size;
		b->pointers[i] = &b->files[i];
	}
	b->m.files = b->pointers;
	b->m.n_files = f->n;
	return 0;
}

static int finish(const void *msg, struct packed *ret)
{
	if (protobuf_c_message_get_packed_size(msg) > RECORD_MAX) {
		return STATUS_INVALID;
	}
	size_t len;
	uint8_t *data = proto_pack(msg, &len);
	if (!data) {
		return -ENOMEM;
	}
	*ret = (struct packed){data, len};
	return 0;
}

/* ---- reading ------------------------------------------------------------------------------- */

DEFINE_CLEANUP(void *, proto_free);

static void *unpack(const ProtobufCMessageDescriptor *desc, struct bytes b)
{
	struct errmsg err = {0};
	void *msg = proto_unpack(desc, b.data, b.len, RECORD_MAX, &err);
	if (!msg) {
		log_debug("a record that does not check: %s", err.text);
	}
	return msg;
}

static int read_text(bool has, const field *f, char **ret)
{
	if (!has) {
		return 0;
	}
	int r = proto_str(f, "stored text", ret, NULL);
	return r > 0 ? -EIO : r;
}

static int read_array(const field *f, void *out, size_t len)
{
	if (f->len != len) {
		return -EIO;
	}
	memcpy(out, f->data, len);
	return 0;
}

#define READ_TEXT(r, msg, name, out)                                                               \
	((r) == 0 ? read_text((msg)->has_##name, &(msg)->name, (out)) : (r))

static int read_files(const Peftd__V1__Blob *b, struct store_files *out)
{
	int r = read_array(&b->digest, out->digest, sizeof(out->digest));
	out->size = b->size;
	if (r != 0 || b->n_files == 0) {
		return r;
	}
	out->files = calloc_array(b->n_files, sizeof(*out->files));
	if (!out->files) {
		return -ENOMEM;
	}
	out->n = b->n_files;
	for (size_t i = 0; i < b->n_files && r == 0; i++) {
		out->files[i].size = b->files[i]->size;
		r = read_text(true, &b->files[i]->name, &out->files[i].name);
	}
	return r;
}

/* ---- meta and blobs ------------------------------------------------------------------------ */

int meta_pack(const struct meta_record *m, struct packed *ret)
{
	Peftd__V1__MetaRecord msg = PEFTD__V1__META_RECORD__INIT;
	msg.version = m->version;
	SET(&msg, next_job, m->next_job);
	SET(&msg, next_blob, m->next_blob);
	return finish(&msg, ret);
}

int meta_unpack(struct bytes b, struct meta_record *ret)
{
	_cleanup_(proto_freep) void *p = unpack(&peftd__v1__meta_record__descriptor, b);
	const Peftd__V1__MetaRecord *msg = p;
	if (!msg) {
		return -EIO;
	}
	if (msg->version == STORE_VERSION && (msg->next_job == 0 || msg->next_blob == 0)) {
		return -EIO;
	}
	*ret = (struct meta_record){msg->version, msg->next_job, msg->next_blob};
	return 0;
}

int blob_pack(const struct blob_record *b, struct packed *ret)
{
	Peftd__V1__BlobRecord msg = PEFTD__V1__BLOB_RECORD__INIT;
	msg.version = STORE_VERSION;
	msg.digest = field_of(b->digest, sizeof(b->digest));
	msg.size = b->size;
	msg.blob = b->number;
	msg.received = b->received;
	msg.references = b->references;
	SET(&msg, touched_wall_ns, b->touched_wall_ns);
	return finish(&msg, ret);
}

int blob_unpack(struct bytes b, struct blob_record *ret)
{
	_cleanup_(proto_freep) void *p = unpack(&peftd__v1__blob_record__descriptor, b);
	const Peftd__V1__BlobRecord *msg = p;
	struct blob_record out;
	if (!msg || msg->version != STORE_VERSION || msg->received > msg->size ||
		read_array(&msg->digest, out.digest, sizeof(out.digest)) != 0) {
		return -EIO;
	}
	out.size = msg->size;
	out.number = msg->blob;
	out.received = msg->received;
	out.references = msg->references;
	out.touched_wall_ns = msg->touched_wall_ns;
	*ret = out;
	return 0;
}

/* ---- models, datasets, requests ------------------------------------------------------------ */

int model_pack(const struct store_model *m, struct packed *ret)
{
	Peftd__V1__ModelRecord msg = PEFTD__V1__MODEL_RECORD__INIT;
	if (!text_ok(m->name) || !text_ok(m->path)) {
		return STATUS_INVALID;
	}
	msg.version = STORE_VERSION;
	msg.model = field_of(m->facts.data, m->facts.len);
	msg.name = proto_bytes(m->name);
	msg.path = proto_bytes(m->path);
	msg.digest = field_of(m->digest, sizeof(m->digest));
	return finish(&msg, ret);
}

int model_unpack(struct bytes b, struct store_model *ret)
{
	_cleanup_(proto_freep) void *p = unpack(&peftd__v1__model_record__descriptor, b);
	const Peftd__V1__ModelRecord *msg = p;
	_cleanup_(store_model_deinit) struct store_model out = {0};
	if (!msg || msg->version != STORE_VERSION ||
		read_array(&msg->digest, out.digest, sizeof(out.digest)) != 0) {
		return -EIO;
	}
	int r = read_text(true, &msg->name, &out.name);
	if (r == 0) {
		r = read_text(true, &msg->path, &out.path);
	}
	if (r == 0) {
		r = packed_set(&out.facts, msg->model.data, msg->model.len);
	}
	if (r == 0) {
		*ret = out;
		out = (struct store_model){0};
	}
	return r;
}

int dataset_pack(const struct store_dataset *d, struct packed *ret)
{
	Peftd__V1__DatasetRecord msg = PEFTD__V1__DATASET_RECORD__INIT;
	Peftd__V1__Dataset dataset = PEFTD__V1__DATASET__INIT;
	_cleanup_(blob_msg_deinit) struct blob_msg blob;
	int r = blob_msg_init(&blob, &d->content);
	if (r != 0) {
		return r;
	}
	if (!text_ok(d->name) || !text_ok(d->format) || !text_ok(d->prompt_field) ||
		!text_ok(d->completion_field) || !files_ok(&d->content)) {
		return STATUS_INVALID;
	}
	dataset.name = proto_bytes(d->name);
	SET(&dataset, rows, d->rows);
	dataset.blob = &blob.m;
	SET_TEXT(&dataset, format, d->format);
	SET_TEXT(&dataset, prompt_field, d->prompt_field);
	SET_TEXT(&dataset, completion_field, d->completion_field);
	SET(&dataset, added_wall_ns, d->added_wall_ns);
	msg.version = STORE_VERSION;
	msg.dataset = &dataset;
	SET(&msg, owner_uid, d->owner_uid);
	return finish(&msg, ret);
}

int dataset_unpack(struct bytes b, struct store_dataset *ret)
{
	_cleanup_(proto_freep) void *p = unpack(&peftd__v1__dataset_record__descriptor, b);
	const Peftd__V1__DatasetRecord *msg = p;
	_cleanup_(store_dataset_deinit) struct store_dataset out = {0};
	if (!msg || msg->version != STORE_VERSION || !msg->dataset->blob) {
		return -EIO;
	}
	const Peftd__V1__Dataset *d = msg->dataset;
	int r = read_text(true, &d->name, &out.name);
	r = READ_TEXT(r, d, format, &out.format);
	r = READ_TEXT(r, d, prompt_field, &out.prompt_field);
	r = READ_TEXT(r, d, completion_field, &out.completion_field);
	if (r == 0) {
		r = read_files(d->blob, &out.content);
	}
	if (r == 0) {
		out.owner_uid = msg->owner_uid;
		out.rows = d->rows;
		out.added_wall_ns = d->added_wall_ns;
		*ret = out;
		out = (struct store_dataset){0};
	}
	return r;
}

int request_pack(const struct store_request *r, struct packed *ret)
{
	Peftd__V1__RequestRecord msg = PEFTD__V1__REQUEST_RECORD__INIT;
	msg.version = STORE_VERSION;
	msg.id = field_of(r->id, sizeof(r->id));
	msg.uid = r->uid;
	msg.body_digest = field_of(r->body_digest, sizeof(r->body_digest));
	msg.reply = field_of(r->reply.data, r->reply.len);
	SET(&msg, wall_ns, r->wall_ns);
	return finish(&msg, ret);
}

int request_unpack(struct bytes b, struct store_request *ret)
{
	_cleanup_(proto_freep) void *p = unpack(&peftd__v1__request_record__descriptor, b);
	const Peftd__V1__RequestRecord *msg = p;
	struct store_request out = {0};
	if (!msg || msg->version != STORE_VERSION ||
		read_array(&msg->id, out.id, sizeof(out.id)) != 0 ||
		read_array(&msg->body_digest, out.body_digest, sizeof(out.body_digest)) != 0) {
		return -EIO;
	}
	out.uid = msg->uid;
	out.wall_ns = msg->wall_ns;
	int r = packed_set(&out.reply, msg->reply.data, msg->reply.len);
	if (r == 0) {
		*ret = out;
	}
	return r;
}

/* ---- jobs ---------------------------------------------------------------------------------- */

/* A job's message and what it points to beside the struct. */
struct job_msg {
	Peftd__V1__JobRecord m;
	struct blob_msg dataset, eval_dataset, init_adapter;
	Peftd__V1__Measured measured;
	Peftd__V1__InferenceTimes inference;
	Peftd__V1__Outcome outcome;
	Peftd__V1__Checkpoint *checkpoints;
	Peftd__V1__Checkpoint **pointers;
	struct blob_msg *blobs; /* of the checkpoints */
};

static void job_msg_deinit(struct job_msg *j)
{
	blob_msg_deinit(&j->dataset);
	blob_msg_deinit(&j->eval_dataset);
	blob_msg_deinit(&j->init_adapter);
	for (size_t i = 0; j->blobs && i < j->m.n_checkpoints; i++) {
		blob_msg_deinit(&j->blobs[i]);
	}
	free(j->blobs);
	free(j->checkpoints);
	free(j->pointers);
}

static bool job_data_ok(const struct store_job_data *d)
{
	return text_ok(d->name) && text_ok(d->prompt_field) && text_ok(d->completion_field) &&
		files_ok(&d->content);
}

static bool job_ok(const struct store_job *j)
{
	for (size_t i = 0; i < j->n_checkpoints; i++) {
		if (!files_ok(&j->checkpoints[i].content) ||
			(i > 0 && j->checkpoints[i].step <= j->checkpoints[i - 1].step)) {
			return false;
		}
	}
	return text_ok(j->name) && text_ok(j->model) && text_ok(j->model_path) && text_ok(j->reason) &&
		text_ok(j->variant) && job_data_ok(&j->dataset) && job_data_ok(&j->eval_dataset) &&
		files_ok(&j->init_adapter) && (unsigned)j->state <= JOB_CANCELLED;
}

static int job_msg_checkpoints(struct job_msg *msg, const struct store_job *j)
{
	size_t n = j->n_checkpoints;
	if (n == 0) {
		return 0;
	}
	msg->blobs = calloc_array(n, sizeof(*msg->blobs));
	msg->checkpoints = calloc_array(n, sizeof(*msg->checkpoints));
	msg->pointers = calloc_array(n, sizeof(*msg->pointers));
	if (!msg->blobs || !msg->checkpoints || !msg->pointers) {
		return -ENOMEM;
	}
	msg->m.n_checkpoints = n;
	msg->m.checkpoints = msg->pointers;
	for (size_t i = 0; i < n; i++) {
		const struct store_checkpoint *c = &j->checkpoints[i];
		int r = blob_msg_init(&msg->blobs[i], &c->content);
		if (r != 0) {
			return r;
		}
		msg->checkpoints[i] = (Peftd__V1__Checkpoint)PEFTD__V1__CHECKPOINT__INIT;
		msg->checkpoints[i].step = c->step;
		msg->checkpoints[i].blob = &msg->blobs[i].m;
		msg->checkpoints[i].has_eval_loss = !isnan(c->eval_loss);
		msg->checkpoints[i].eval_loss = isnan(c->eval_loss) ? 0 : c->eval_loss;
		SET(&msg->checkpoints[i], wall_ns, c->wall_ns);
		SET(&msg->checkpoints[i], final, c->final);
		SET(&msg->checkpoints[i], best, c->best);
		msg->pointers[i] = &msg->checkpoints[i];
	}
	return 0;
}

static int job_msg_content(struct job_msg *msg, const struct store_job *j)
{
	Peftd__V1__JobRecord *m = &msg->m;
	int r = blob_msg_init(&msg->dataset, &j->dataset.content);
	m->dataset = &msg->dataset.m;
	SET_TEXT(m, dataset_name, j->dataset.name);
	SET_TEXT(m, dataset_prompt_field, j->dataset.prompt_field);
	SET_TEXT(m, dataset_completion_field, j->dataset.completion_field);
	SET(m, dataset_rows, j->dataset.rows);
	if (r == 0 && j->eval_dataset.name) {
		r = blob_msg_init(&msg->eval_dataset, &j->eval_dataset.content);
		m->eval_dataset = &msg->eval_dataset.m;
		SET_TEXT(m, eval_name, j->eval_dataset.name);
		SET_TEXT(m, eval_prompt_field, j->eval_dataset.prompt_field);
		SET_TEXT(m, eval_completion_field, j->eval_dataset.completion_field);
		SET(m, eval_rows, j->eval_dataset.rows);
	}
	if (r == 0 && j->init_adapter.n > 0) {
		r = blob_msg_init(&msg->init_adapter, &j->init_adapter);
		m->init_adapter = &msg->init_adapter.m;
	}
	return r == 0 ? job_msg_checkpoints(msg, j) : r;
}

/* What jobs have had since these are recorded; left out where there is nothing. */
static void job_msg_tradeoffs(struct job_msg *msg, const struct store_job *j)
{
	const struct store_measured *in = &j->measured;
	const struct store_outcome *o = &j->outcome;
	if (in->arena > 0) {
		Peftd__V1__Measured *m = &msg->measured;
		*m = (Peftd__V1__Measured)PEFTD__V1__MEASURED__INIT;
		SET(m, base_weights, in->base_weights);
		SET(m, trainable_weights, in->trainable_weights);
		SET(m, optimizer_states, in->optimizer_states);
		SET(m, gradients, in->gradients);
		SET(m, activations, in->activations);
		SET(m, temporary, in->temporary);
		SET(m, arena, in->arena);
		msg->m.measured = m;
	}
	if (o->steps > 0 || o->best_eval_step > 0) {
		Peftd__V1__Outcome *m = &msg->outcome;
		*m = (Peftd__V1__Outcome)PEFTD__V1__OUTCOME__INIT;
		SET(m, steps, o->steps);
		SET(m, tokens, o->tokens);
		SET(m, seconds, o->seconds);
		SET(m, step_seconds_median, o->step_seconds_median);
		SET(m, best_eval_step, o->best_eval_step);
		SET(m, eval_loss, o->eval_loss);
		SET(m, best_eval_loss, o->best_eval_loss);
		msg->m.outcome = m;
	}
	if (j->inference.tokens > 0) {
		Peftd__V1__InferenceTimes *m = &msg->inference;
		*m = (Peftd__V1__InferenceTimes)PEFTD__V1__INFERENCE_TIMES__INIT;
		SET(m, tokens, j->inference.tokens);
		SET(m, passes, j->inference.passes);
		SET(m, base_seconds, j->inference.base);
		SET(m, unmerged_seconds, j->inference.unmerged);
		SET(m, merged_seconds, j->inference.merged);
		msg->m.inference = m;
	}
	if (j->sweep > 0) {
		SET(&msg->m, sweep, j->sweep);
		SET(&msg->m, sweep_size, j->sweep_size);
		SET_TEXT(&msg->m, variant, j->variant);
	}
}

static void read_tradeoffs(const Peftd__V1__JobRecord *m, struct store_job *out)
{
	if (m->measured) {
		const Peftd__V1__Measured *in = m->measured;
		out->measured = (struct store_measured){in->base_weights, in->trainable_weights,
			in->optimizer_states, in->gradients, in->activations, in->temporary, in->arena};
	}
	if (m->outcome) {
		const Peftd__V1__Outcome *in = m->outcome;
		out->outcome = (struct store_outcome){in->steps, in->tokens, in->seconds,
			in->step_seconds_median, in->best_eval_step, in->eval_loss, in->best_eval_loss};
	}
	if (m->inference) {
		const Peftd__V1__InferenceTimes *in = m->inference;
		out->inference = (struct store_inference){in->tokens, in->passes, in->base_seconds,
			in->unmerged_seconds, in->merged_seconds};
	}
	out->sweep = m->sweep;
	out->sweep_size = m->sweep_size;
}

int job_pack(const struct store_job *j, struct packed *ret)
{
	_cleanup_(job_msg_deinit) struct job_msg msg = {.m = PEFTD__V1__JOB_RECORD__INIT};
	Peftd__V1__JobRecord *m = &msg.m;

	if (!job_ok(j)) {
		return STATUS_INVALID;
	}
	m->version = STORE_VERSION;
	m->id = j->id;
	m->request_id = field_of(j->request_id, sizeof(j->request_id));
	m->owner_uid = j->owner_uid;
	m->state = (Peftd__V1__JobState)j->state;
	SET_TEXT(m, name, j->name);
	SET_TEXT(m, reason, j->reason);
	SET_TEXT(m, model, j->model);
	SET_TEXT(m, model_path, j->model_path);
	SET(m, model_digest, field_of(j->model_digest, sizeof(j->model_digest)));
	SET(m, priority, j->priority);
	m->spec = field_of(j->spec.data, j->spec.len);
	SET(m, plan, field_of(j->plan.data, j->plan.len));
	SET(m, planned_bytes, j->planned_bytes);
	SET(m, steps, j->steps);
	SET(m, submitted_wall_ns, j->submitted_wall_ns);
	SET(m, started_wall_ns, j->started_wall_ns);
	SET(m, ended_wall_ns, j->ended_wall_ns);
	SET(m, attempt, j->attempt);
	SET(m, tries, j->tries);
	SET(m, last_seq, j->last_seq);
	SET(m, last_step, j->last_step);
	SET(m, last_eval_step, j->last_eval_step);
	SET(m, last_loss, j->last_loss);
	SET(m, measured_arena, j->measured_arena);
	SET(m, measured_peak_rss, j->measured_peak_rss);
	job_msg_tradeoffs(&msg, j);
	int r = job_msg_content(&msg, j);
	return r == 0 ? finish(m, ret) : r;
}

static int read_checkpoints(const Peftd__V1__JobRecord *m, struct store_job *out)
{
	if (m->n_checkpoints == 0) {
		return 0;
	}
	out->checkpoints = calloc_array(m->n_checkpoints, sizeof(*out->checkpoints));
	if (!out->checkpoints) {
		return -ENOMEM;
	}
	out->n_checkpoints = m->n_checkpoints;
	for (size_t i = 0; i < m->n_checkpoints; i++) {
		const Peftd__V1__Checkpoint *c = m->checkpoints[i];
		out->checkpoints[i].step = c->step;
		out->checkpoints[i].eval_loss = c->has_eval_loss ? c->eval_loss : (double)NAN;
		out->checkpoints[i].wall_ns = c->wall_ns;
		out->checkpoints[i].final = c->final;
		out->checkpoints[i].best = c->best;
		int r = read_files(c->blob, &out->checkpoints[i].content);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int read_texts(const Peftd__V1__JobRecord *m, struct store_job *out)
{
	int r = 0;
	r = READ_TEXT(r, m, name, &out->name);
	r = READ_TEXT(r, m, reason, &out->reason);
	r = READ_TEXT(r, m, model, &out->model);
	r = READ_TEXT(r, m, model_path, &out->model_path);
	r = READ_TEXT(r, m, variant, &out->variant);
	r = READ_TEXT(r, m, dataset_name, &out->dataset.name);
	r = READ_TEXT(r, m, dataset_prompt_field, &out->dataset.prompt_field);
	r = READ_TEXT(r, m, dataset_completion_field, &out->dataset.completion_field);
	r = READ_TEXT(r, m, eval_name, &out->eval_dataset.name);
	r = READ_TEXT(r, m, eval_prompt_field, &out->eval_dataset.prompt_field);
	r = READ_TEXT(r, m, eval_completion_field, &out->eval_dataset.completion_field);
	return r;
}

static int read_content(const Peftd__V1__JobRecord *m, struct store_job *out)
{
	int r = read_files(m->dataset, &out->dataset.content);
	if (r == 0 && m->eval_dataset) {
		r = read_files(m->eval_dataset, &out->eval_dataset.content);
	}
	if (r == 0 && m->init_adapter) {
		r = read_files(m->init_adapter, &out->init_adapter);
	}
	if (r == 0) {
		r = packed_set(&out->spec, m->spec.data, m->spec.len);
	}
	if (r == 0) {
		r = packed_set(&out->plan, m->plan.data, m->plan.len);
	}
	return r == 0 ? read_checkpoints(m, out) : r;
}

static void read_numbers(const Peftd__V1__JobRecord *m, struct store_job *out)
{
	out->id = m->id;
	out->owner_uid = m->owner_uid;
	out->state = (enum job_state)m->state;
	out->priority = m->priority;
	out->planned_bytes = m->planned_bytes;
	out->steps = m->steps;
	out->dataset.rows = m->dataset_rows;
	out->eval_dataset.rows = m->eval_rows;
	out->submitted_wall_ns = m->submitted_wall_ns;
	out->started_wall_ns = m->started_wall_ns;
	out->ended_wall_ns = m->ended_wall_ns;
	out->attempt = m->attempt;
	out->tries = m->tries;
	out->last_seq = m->last_seq;
	out->last_step = m->last_step;
	out->last_eval_step = m->last_eval_step;
	out->last_loss = m->last_loss;
	out->measured_arena = m->measured_arena;
	out->measured_peak_rss = m->measured_peak_rss;
	read_tradeoffs(m, out);
}

int job_unpack(struct bytes b, struct store_job *ret)
{
	_cleanup_(proto_freep) void *p = unpack(&peftd__v1__job_record__descriptor, b);
	const Peftd__V1__JobRecord *m = p;
	_cleanup_(store_job_deinit) struct store_job out = {0};

	if (!m || m->version != STORE_VERSION || (unsigned)m->state > JOB_CANCELLED ||
		read_array(&m->request_id, out.request_id, sizeof(out.request_id)) != 0 ||
		read_array(&m->model_digest, out.model_digest, sizeof(out.model_digest)) != 0) {
		return -EIO;
	}
	read_numbers(m, &out);
	int r = read_texts(m, &out);
	if (r == 0) {
		r = read_content(m, &out);
	}
	if (r == 0) {
		*ret = out;
		out = (struct store_job){0};
	}
	return r;
}

/* ---- what store_check() asks --------------------------------------------------------------- */

static bool parses(const ProtobufCMessageDescriptor *desc, const struct packed *p)
{
	_cleanup_(proto_freep) void *msg = proto_unpack(desc, p->data, p->len, RECORD_MAX, NULL);
	return msg != NULL;
}

const char *job_fault(const struct store_job *j)
{
	if (!parses(&peftd__v1__job_spec__descriptor, &j->spec)) {
		return "its spec is not well-formed";
	}
	if (!parses(&peftd__v1__plan__descriptor, &j->plan)) {
		return "its plan is not well-formed";
	}
	return job_ok(j) ? NULL : "its checkpoints are out of order, or sizes of files do not add up";
}

const char *model_fault(const struct store_model *m)
{
	bool good = parses(&peftd__v1__model__descriptor, &m->facts);
	return good ? NULL : "its facts are not well-formed";
}

const char *request_fault(const struct store_request *r)
{
	return parses(&peftd__v1__reply__descriptor, &r->reply) ? NULL : "its reply is not well-formed";
}

const char *event_fault(struct bytes event, uint64_t seq, unsigned kind)
{
	_cleanup_(proto_freep) void *p =
		proto_unpack(&peftd__v1__event__descriptor, event.data, event.len, RECORD_MAX, NULL);
	const Peftd__V1__Event *e = p;
	unsigned is = 0;

	if (!e) {
		return "not well-formed";
	}
	if (e->seq != seq) {
		return "its number is another inside";
	}
	switch (e->what_case) {
	case PEFTD__V1__EVENT__WHAT_STATE:
		is = EVENT_STATE;
		break;
	case PEFTD__V1__EVENT__WHAT_METRICS:
		is = EVENT_METRICS;
		break;
	case PEFTD__V1__EVENT__WHAT_EVAL:
		is = EVENT_EVAL;
		break;
	case PEFTD__V1__EVENT__WHAT_LOG:
		is = EVENT_LOG;
		break;
	case PEFTD__V1__EVENT__WHAT_CHECKPOINT:
		is = EVENT_CHECKPOINT;
		break;
	default:
		break;
	}
	return is == kind ? NULL : "its kind is another inside";
}
