#include "tests/core/client.h"

#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/util.h"

static void on_reply(
	void *ctx, uint64_t session, Peftd__V1__Reply *reply, const void *raw, size_t raw_len)
{
	struct client *c = ctx;
	if (c->n_got == c->cap_got) {
		c->cap_got = c->cap_got ? 2 * c->cap_got : 64;
		c->got = realloc_array(c->got, c->cap_got, sizeof(*c->got));
		assert_non_null(c->got);
	}
	struct got *g = &c->got[c->n_got++];
	*g = (struct got){.session = session, .reply = reply, .raw_len = raw_len};
	assert_int_equal(reply->id.len, 16);
	assert_true(protobuf_c_message_get_packed_size(&reply->base) <= MESSAGE_MAX);
	memcpy(g->id, reply->id.data, 16);
	if (raw_len > 0) {
		g->raw = malloc(raw_len);
		assert_non_null(g->raw);
		memcpy(g->raw, raw, raw_len);
	}
}

void client_init(struct client *c)
{
	*c = (struct client){.next_id = 1};
	world_init(&c->w);
	c->w.on_reply = on_reply;
	c->w.ctx = c;
	world_boot(&c->w);
	world_settle(&c->w);
	assert_true(c->w.ready);
}

void client_forget(struct client *c)
{
	for (size_t i = 0; i < c->n_got; i++) {
		proto_free(c->got[i].reply);
		free(c->got[i].raw);
	}
	c->n_got = 0;
}

void client_deinit(struct client *c)
{
	client_forget(c);
	free(c->got);
	world_deinit(&c->w);
}

void id_of(uint64_t n, uint8_t id[16])
{
	memset(id, 0x5A, 16);
	le64_write(id, n);
}

void id_new(struct client *c, uint8_t id[16])
{
	id_of(c->next_id++, id);
}

const struct got *client_got(
	const struct client *c, uint64_t session, const uint8_t id[16], size_t n)
{
	for (size_t i = 0; i < c->n_got; i++) {
		const struct got *g = &c->got[i];
		if (memcmp(g->id, id, 16) == 0 && (session == 0 || g->session == session) && n-- == 0) {
			return g;
		}
	}
	return NULL;
}

size_t client_count(const struct client *c, uint64_t session, const uint8_t id[16])
{
	size_t n = 0;
	while (client_got(c, session, id, n)) {
		n++;
	}
	return n;
}

static const Peftd__V1__Reply *last(const struct client *c, const uint8_t id[16])
{
	size_t n = client_count(c, 0, id);
	return n ? client_got(c, 0, id, n - 1)->reply : NULL;
}

int client_status(const struct client *c, const uint8_t id[16])
{
	const Peftd__V1__Reply *r = last(c, id);
	return r ? (int)r->status->code : -1;
}

const char *client_text(const struct client *c, const uint8_t id[16])
{
	static char text[4096];
	const Peftd__V1__Reply *r = last(c, id);
	size_t len = r && r->status->has_message ? r->status->message.len : 0;
	len = len < sizeof(text) ? len : sizeof(text) - 1;
	if (len > 0) {
		memcpy(text, r->status->message.data, len);
	}
	text[len] = '\0';
	return text;
}

const Peftd__V1__Reply *client_ok(const struct client *c, const uint8_t id[16])
{
	const Peftd__V1__Reply *r = last(c, id);
	if (!r || r->status->code != 0) {
		fail_msg("status %d: %s", r ? (int)r->status->code : -1, client_text(c, id));
	}
	return r;
}

void want_spec(struct spec_storage *s, const struct want *want)
{
	s->spec = (Peftd__V1__JobSpec)PEFTD__V1__JOB_SPEC__INIT;
	s->train = (Peftd__V1__TrainSpec)PEFTD__V1__TRAIN_SPEC__INIT;
	s->lora = (Peftd__V1__LoraSpec)PEFTD__V1__LORA_SPEC__INIT;
	s->spec.train = &s->train;
	const struct {
		const char *text;
		protobuf_c_boolean *has;
		ProtobufCBinaryData *field;
	} texts[] = {
		{want->model, &s->spec.has_model, &s->spec.model},
		{want->dataset, &s->spec.has_dataset, &s->spec.dataset},
		{want->eval_dataset, &s->spec.has_eval_dataset, &s->spec.eval_dataset},
		{want->name, &s->spec.has_name, &s->spec.name},
		{want->priority, &s->spec.has_priority, &s->spec.priority},
		{want->method, &s->spec.has_method, &s->spec.method},
	};
	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		if (texts[i].text) {
			*texts[i].has = true;
			*texts[i].field = proto_bytes(texts[i].text);
		}
	}
	const struct {
		uint32_t value;
		protobuf_c_boolean *has;
		uint32_t *field;
	} numbers[] = {
		{want->max_steps, &s->train.has_max_steps, &s->train.max_steps},
		{want->save_steps, &s->train.has_save_steps, &s->train.save_steps},
		{want->eval_steps, &s->train.has_eval_steps, &s->train.eval_steps},
	};
	for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
		if (numbers[i].value) {
			*numbers[i].has = true;
			*numbers[i].field = numbers[i].value;
		}
	}
	if (want->seed) {
		s->train.has_seed = true;
		s->train.seed = want->seed;
	}
	if (want->r || want->no_r) {
		s->spec.lora = &s->lora;
		s->lora.has_r = true;
		s->lora.r = want->r;
	}
}

void ask(
	struct client *c, uint64_t session, uint32_t uid, Peftd__V1__Request *req, const uint8_t id[16])
{
	req->id = (ProtobufCBinaryData){16, (uint8_t *)id};
	world_request(&c->w, session, uid, req, NULL, 0);
}

#define REQUEST(CASE, field_, body)                                                                \
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;                                             \
	req.what_case = PEFTD__V1__REQUEST__WHAT_##CASE;                                               \
	req.field_ = body

void ask_model_add(
	struct client *c, uint64_t session, const uint8_t id[16], const char *name, const char *path)
{
	Peftd__V1__ModelAddRequest m = PEFTD__V1__MODEL_ADD_REQUEST__INIT;
	m.name = proto_bytes(name);
	m.path = proto_bytes(path);
	REQUEST(MODEL_ADD, model_add, &m);
	ask(c, session, 1000, &req, id);
}

void ask_model_rm(struct client *c, uint64_t session, const uint8_t id[16], const char *name)
{
	Peftd__V1__ModelRequest m = PEFTD__V1__MODEL_REQUEST__INIT;
	m.name = proto_bytes(name);
	REQUEST(MODEL_REMOVE, model_remove, &m);
	ask(c, session, 1000, &req, id);
}

static void fill_blob(Peftd__V1__Blob *b, uint8_t digest[32], const void *data, size_t len)
{
	crypto_generichash(digest, 32, data, len, NULL, 0);
	*b = (Peftd__V1__Blob)PEFTD__V1__BLOB__INIT;
	b->digest = (ProtobufCBinaryData){32, digest};
	b->size = len;
}

void ask_upload_begin(
	struct client *c, uint64_t session, const uint8_t id[16], const void *data, size_t len)
{
	uint8_t digest[32];
	Peftd__V1__Blob blob;
	Peftd__V1__UploadBeginRequest m = PEFTD__V1__UPLOAD_BEGIN_REQUEST__INIT;
	fill_blob(&blob, digest, data, len);
	m.blob = &blob;
	REQUEST(UPLOAD_BEGIN, upload_begin, &m);
	ask(c, session, 1000, &req, id);
}

void ask_chunk(struct client *c, uint64_t session, const uint8_t id[16], const void *data,
	size_t len, uint64_t offset)
{
	uint8_t digest[32];
	crypto_generichash(digest, 32, data, len, NULL, 0);
	Peftd__V1__UploadChunkRequest m = PEFTD__V1__UPLOAD_CHUNK_REQUEST__INIT;
	m.digest = (ProtobufCBinaryData){32, digest};
	m.offset = offset;
	REQUEST(UPLOAD_CHUNK, upload_chunk, &m);
	req.id = (ProtobufCBinaryData){16, (uint8_t *)id};
	size_t n = offset < len ? len - (size_t)offset : 0;
	n = n < CHUNK_SIZE ? n : CHUNK_SIZE;
	world_request(&c->w, session, 1000, &req, n ? (const uint8_t *)data + offset : NULL, n);
}

void ask_dataset_put(struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16],
	const char *name, const void *data, size_t len)
{
	uint8_t digest[32];
	Peftd__V1__Blob blob;
	Peftd__V1__DatasetPutRequest m = PEFTD__V1__DATASET_PUT_REQUEST__INIT;
	fill_blob(&blob, digest, data, len);
	m.name = proto_bytes(name);
	m.blob = &blob;
	REQUEST(DATASET_PUT, dataset_put, &m);
	ask(c, session, uid, &req, id);
}

void ask_dataset_rm(
	struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16], const char *name)
{
	Peftd__V1__DatasetRequest m = PEFTD__V1__DATASET_REQUEST__INIT;
	m.name = proto_bytes(name);
	REQUEST(DATASET_REMOVE, dataset_remove, &m);
	ask(c, session, uid, &req, id);
}

void ask_inspect(struct client *c, uint64_t session, const uint8_t id[16], const char *dataset,
	const char *model, uint64_t rows)
{
	Peftd__V1__DatasetInspectRequest m = PEFTD__V1__DATASET_INSPECT_REQUEST__INIT;
	m.name = proto_bytes(dataset);
	m.model = proto_bytes(model);
	m.has_rows = true;
	m.rows = rows;
	REQUEST(DATASET_INSPECT, dataset_inspect, &m);
	ask(c, session, 1000, &req, id);
}

void ask_submit(
	struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16], const struct want *want)
{
	struct spec_storage s;
	Peftd__V1__SubmitRequest m = PEFTD__V1__SUBMIT_REQUEST__INIT;
	want_spec(&s, want);
	m.spec = &s.spec;
	m.has_hold = m.has_plan_only = true;
	m.hold = want->hold;
	m.plan_only = want->plan_only;
	REQUEST(SUBMIT, submit, &m);
	ask(c, session, uid, &req, id);
}

void ask_sweep(struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16],
	const struct want *want, size_t n)
{
	enum { MOST = SWEEP_MAX + 1 };
	static struct spec_storage specs[MOST];
	static Peftd__V1__SweepMember members[MOST];
	static Peftd__V1__SweepMember *list[MOST];
	static char variants[MOST][64];
	assert_true(n <= MOST);
	for (size_t i = 0; i < n; i++) {
		want_spec(&specs[i], &want[i]);
		snprintf(variants[i], sizeof(variants[i]), "r=%u seed=%llu", want[i].r,
			(unsigned long long)want[i].seed);
		members[i] = (Peftd__V1__SweepMember)PEFTD__V1__SWEEP_MEMBER__INIT;
		members[i].spec = &specs[i].spec;
		members[i].variant = proto_bytes(variants[i]);
		list[i] = &members[i];
	}
	Peftd__V1__SweepRequest m = PEFTD__V1__SWEEP_REQUEST__INIT;
	m.n_members = n;
	m.members = list;
	m.has_hold = m.has_plan_only = true;
	m.hold = n > 0 && want[0].hold;
	m.plan_only = n > 0 && want[0].plan_only;
	REQUEST(SWEEP, sweep, &m);
	ask(c, session, uid, &req, id);
}

void ask_control(struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16],
	uint64_t job, enum control_action action)
{
	Peftd__V1__JobControlRequest m = PEFTD__V1__JOB_CONTROL_REQUEST__INIT;
	m.job = job;
	m.action = (Peftd__V1__JobControlRequest__Action)action;
	REQUEST(JOB_CONTROL, job_control, &m);
	ask(c, session, uid, &req, id);
}

void ask_show(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job)
{
	Peftd__V1__JobRequest m = PEFTD__V1__JOB_REQUEST__INIT;
	m.job = job;
	REQUEST(JOB_SHOW, job_show, &m);
	ask(c, session, 1000, &req, id);
}

void ask_list(struct client *c, uint64_t session, const uint8_t id[16])
{
	Peftd__V1__JobListRequest m = PEFTD__V1__JOB_LIST_REQUEST__INIT;
	REQUEST(JOB_LIST, job_list, &m);
	ask(c, session, 1000, &req, id);
}

void ask_list_sweep(struct client *c, uint64_t session, const uint8_t id[16], uint64_t sweep)
{
	Peftd__V1__JobListRequest m = PEFTD__V1__JOB_LIST_REQUEST__INIT;
	m.has_sweep = true;
	m.sweep = sweep;
	REQUEST(JOB_LIST, job_list, &m);
	ask(c, session, 1000, &req, id);
}

void ask_status(struct client *c, uint64_t session, const uint8_t id[16])
{
	Peftd__V1__StatusRequest m = PEFTD__V1__STATUS_REQUEST__INIT;
	REQUEST(STATUS, status, &m);
	ask(c, session, 1000, &req, id);
}

void ask_watch(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job,
	uint64_t after, uint32_t credit, bool follow)
{
	Peftd__V1__WatchRequest m = PEFTD__V1__WATCH_REQUEST__INIT;
	m.job = job;
	m.has_after = m.has_credit = m.has_follow = true;
	m.after = after;
	m.credit = credit;
	m.follow = follow;
	REQUEST(WATCH, watch, &m);
	ask(c, session, 1000, &req, id);
}

void ask_fetch(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job,
	uint64_t step, bool best)
{
	Peftd__V1__FetchRequest m = PEFTD__V1__FETCH_REQUEST__INIT;
	m.job = job;
	m.has_step = m.has_best = true;
	m.step = step;
	m.best = best;
	REQUEST(FETCH, fetch, &m);
	ask(c, session, 1000, &req, id);
}

void ask_read(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job, uint64_t step,
	uint64_t offset, uint32_t credit)
{
	Peftd__V1__ReadRequest m = PEFTD__V1__READ_REQUEST__INIT;
	m.job = job;
	m.step = step;
	m.offset = offset;
	m.has_credit = true;
	m.credit = credit;
	REQUEST(READ, read, &m);
	ask(c, session, 1000, &req, id);
}

void ask_eval(struct client *c, uint64_t session, const uint8_t id[16], const char *model,
	const char *dataset, uint64_t job)
{
	Peftd__V1__EvalRequest m = PEFTD__V1__EVAL_REQUEST__INIT;
	Peftd__V1__AdapterRef a = PEFTD__V1__ADAPTER_REF__INIT;
	m.model = proto_bytes(model);
	m.dataset = proto_bytes(dataset);
	a.has_job = true;
	a.job = job;
	m.adapter = job ? &a : NULL;
	REQUEST(EVAL, eval, &m);
	ask(c, session, 1000, &req, id);
}

void ask_generate(struct client *c, uint64_t session, const uint8_t id[16], const char *model,
	uint64_t job, uint32_t tokens)
{
	Peftd__V1__GenerateRequest m = PEFTD__V1__GENERATE_REQUEST__INIT;
	Peftd__V1__AdapterRef a = PEFTD__V1__ADAPTER_REF__INIT;
	m.model = proto_bytes(model);
	ProtobufCBinaryData prompt = proto_bytes("Once");
	m.prompt = &prompt;
	m.n_prompt = 1;
	m.has_max_new_tokens = true;
	m.max_new_tokens = tokens;
	a.has_job = true;
	a.job = job;
	m.adapter = job ? &a : NULL;
	REQUEST(GENERATE, generate, &m);
	ask(c, session, 1000, &req, id);
}

/* ---- whole exchanges ----------------------------------------------------------------------- */

void have_model(struct client *c, const char *name)
{
	uint8_t id[16];
	char path[160];
	id_new(c, id);
	snprintf(path, sizeof(path), "/models/%s", name);
	ask_model_add(c, 1, id, name, path);
	world_settle(&c->w);
	client_ok(c, id);
}

void have_upload(struct client *c, const void *data, size_t len)
{
	uint8_t id[16];
	id_new(c, id);
	ask_upload_begin(c, 1, id, data, len);
	world_settle(&c->w);
	uint64_t at = client_ok(c, id)->upload_begin->offset;
	while (at < len) {
		id_new(c, id);
		ask_chunk(c, 1, id, data, len, at);
		world_settle(&c->w);
		at = client_ok(c, id)->upload_chunk->offset;
	}
}

void have_dataset(struct client *c, const char *name, const void *data, size_t len)
{
	uint8_t id[16];
	have_upload(c, data, len);
	id_new(c, id);
	ask_dataset_put(c, 1, 1000, id, name, data, len);
	world_settle(&c->w);
	client_ok(c, id);
}

uint64_t have_job(struct client *c, const struct want *want)
{
	uint8_t id[16];
	id_new(c, id);
	ask_submit(c, 1, 1000, id, want);
	for (int i = 0; i < 1000 && client_count(c, 1, id) == 0; i++) {
		for (int k = 0; k < WORLD_CHILDREN; k++) {
			struct world_child *child = &c->w.children[k];
			if (child->id && child->kind == CHILD_INSPECT) {
				fake_work(&child->fake, 0);
			}
		}
		world_turn(&c->w, 100, CRASH_NOT);
	}
	return client_ok(c, id)->submit->job;
}

enum job_state state_of(struct client *c, uint64_t job)
{
	struct store_txn *t;
	struct store_job rec;
	assert_int_equal(store_begin(c->w.store, false, &t), 0);
	assert_int_equal(store_job_get(t, job, &rec), 0);
	store_abort(t);
	enum job_state s = rec.state;
	store_job_deinit(&rec);
	return s;
}
