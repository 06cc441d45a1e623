/* Requests one by one: models, datasets, uploads, watching, fetching, evaluation, generation. */

#include <setjmp.h>
#include <signal.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/core/client.h"
#include "util/log.h"
#include "util/util.h"

#define SECOND INT64_C(1000000000)

static const char data[] = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
static const struct want usual = {
	.model = "m", .dataset = "d", .max_steps = 12, .save_steps = 5, .seed = 7};

static int setup(void **state)
{
	struct client *c = malloc(sizeof(*c));
	assert_non_null(c);
	client_init(c);
	*state = c;
	return 0;
}

static int setup_data(void **state)
{
	setup(state);
	have_model(*state, "m");
	have_dataset(*state, "d", data, sizeof(data) - 1);
	return 0;
}

static int teardown(void **state)
{
	client_deinit(*state);
	free(*state);
	return 0;
}

static void ready_when_both_are(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	world_halt(&c->w);
	world_boot(&c->w);
	world_turn(&c->w, 10, CRASH_NOT);
	world_turn(&c->w, 10, CRASH_NOT);
	assert_false(c->w.ready); /* the front is, the trainer is not */
	id_new(c, id);
	ask_status(c, 1, id);
	world_turn(&c->w, 10, CRASH_NOT);
	world_turn(&c->w, 10, CRASH_NOT);
	assert_true(proto_equal(&client_ok(c, id)->daemon_status->trainer_state, "starting"));
	world_settle(&c->w);
	assert_true(c->w.ready);
	id_new(c, id);
	ask_status(c, 1, id);
	world_settle(&c->w);
	const Peftd__V1__StatusReply *s = client_ok(c, id)->daemon_status;
	assert_true(proto_equal(&s->trainer_state, "idle"));
	assert_true(proto_equal(&s->device, "cpu"));
	assert_int_equal(s->memory_total, (uint64_t)8 << 30);
	assert_true(s->store_bytes > 0 && s->store_free_bytes > 0);
	/* Exactly the children there should be. */
	assert_int_equal(c->w.spawned[CHILD_FRONT], 1);
	assert_int_equal(c->w.spawned[CHILD_TRAINER], 1);
	assert_int_equal(c->w.spawned[CHILD_INSPECT], 0);
}

static void models(void **state)
{
	struct client *c = *state;
	uint8_t id[16], again[16];
	id_new(c, id);
	ask_model_add(c, 1, id, "m", "/models/m");
	world_settle(&c->w);
	assert_true(proto_equal(&client_ok(c, id)->model->name, "m"));
	assert_true(proto_equal(&client_ok(c, id)->model->path, "/models/m"));

	id_new(c, again); /* the same once more is fine */
	ask_model_add(c, 1, again, "m", "/models/m");
	world_settle(&c->w);
	client_ok(c, again);
	id_new(c, id); /* another under that name is not */
	ask_model_add(c, 1, id, "m", "/models/other");
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_CONFLICT);
	assert_non_null(strstr(client_text(c, id), "peftctl model rm m"));
	id_new(c, id);
	ask_model_add(c, 1, id, "n", "no-such-model");
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_NOT_FOUND);
	id_new(c, id);
	ask_model_add(c, 1, id, "../n", "/x");
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_INVALID);

	have_dataset(c, "d", data, sizeof(data) - 1);
	struct want want = usual;
	want.hold = true;
	uint64_t job = have_job(c, &want);
	id_new(c, id);
	ask_model_rm(c, 1, id, "m");
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_CONFLICT); /* a live job needs it */
	id_new(c, id);
	ask_control(c, 1, 1000, id, job, CONTROL_CANCEL);
	id_new(c, again);
	ask_model_rm(c, 1, again, "m");
	world_settle(&c->w);
	client_ok(c, again);
	ask_model_rm(c, 2, again, "m"); /* the same request again: the same answer */
	world_settle(&c->w);
	client_ok(c, again);
	id_new(c, id);
	ask_model_rm(c, 1, id, "m");
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_NOT_FOUND);
}

static void lists_are_split(void **state)
{
	struct client *c = *state;
	char name[32];
	for (int i = 0; i < 150; i++) {
		snprintf(name, sizeof(name), "model-%03d", i);
		have_model(c, name);
	}
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	Peftd__V1__ModelListRequest m = PEFTD__V1__MODEL_LIST_REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_MODEL_LIST;
	req.model_list = &m;
	uint8_t id[16];
	id_new(c, id);
	ask(c, 1, 1000, &req, id);
	world_settle(&c->w);
	size_t n = client_count(c, 1, id), models = 0;
	assert_true(n > 1);
	for (size_t i = 0; i < n; i++) {
		const Peftd__V1__Reply *r = client_got(c, 1, id, i)->reply;
		assert_int_equal(r->has_more && r->more, i + 1 < n);
		for (size_t k = 0; k < r->model_list->n_models; k++, models++) {
			snprintf(name, sizeof(name), "model-%03zu", models);
			assert_true(proto_equal(&r->model_list->models[k]->name, name));
		}
	}
	assert_int_equal(models, 150);

	have_dataset(c, "d", data, sizeof(data) - 1);
	for (int i = 0; i < 230; i++) {
		have_job(c,
			&(struct want){
				.model = "model-000", .dataset = "d", .max_steps = 1, .hold = i % 2 == 0});
	}
	world_settle(&c->w);
	client_forget(c);
	id_new(c, id);
	ask_list(c, 1, id);
	world_settle(&c->w);
	size_t jobs = 0;
	n = client_count(c, 1, id);
	assert_int_equal(n, 3);
	for (size_t i = 0; i < n; i++) {
		const Peftd__V1__Reply *r = client_got(c, 1, id, i)->reply;
		for (size_t k = 0; k < r->job_list->n_jobs; k++) {
			const Peftd__V1__Job *j = r->job_list->jobs[k];
			assert_int_equal(j->id, ++jobs);
			assert_null(j->spec);
			assert_int_equal((int)j->state, (int)(jobs % 2 ? JOB_HELD : JOB_SUCCEEDED));
		}
	}
	assert_int_equal(jobs, 230);
}

static uint8_t *big_data(size_t len)
{
	uint8_t *p = malloc(len);
	assert_non_null(p);
	for (size_t i = 0; i < len; i++) {
		p[i] = (uint8_t)(i * 2654435761u >> 13);
	}
	p[0] = '{';
	return p;
}

static void uploads(void **state)
{
	struct client *c = *state;
	size_t len = 5 * CHUNK_SIZE + 77;
	uint8_t *big = big_data(len), id[16], ids[6][16];
	id_new(c, id);
	ask_upload_begin(c, 1, id, big, len);
	world_settle(&c->w);
	assert_int_equal(client_ok(c, id)->upload_begin->offset, 0);
	assert_int_equal(client_ok(c, id)->upload_begin->window, TRANSFER_WINDOW);
	/* Three chunks at once; each answer says what is durable. */
	for (unsigned i = 0; i < 3; i++) {
		id_new(c, ids[i]);
		ask_chunk(c, 1, ids[i], big, len, (uint64_t)i * CHUNK_SIZE);
	}
	world_settle(&c->w);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(
			client_ok(c, ids[i])->upload_chunk->offset, (uint64_t)(i + 1) * CHUNK_SIZE);
	}
	/* Not complete: nothing can be made of it. */
	id_new(c, id);
	ask_dataset_put(c, 1, 1000, id, "d", big, len);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_NOT_FOUND);
	/* A chunk too far, and one that is here already. */
	id_new(c, id);
	ask_chunk(c, 1, id, big, len, 4 * (uint64_t)CHUNK_SIZE);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_CONFLICT);
	id_new(c, id);
	ask_chunk(c, 1, id, big, len, CHUNK_SIZE);
	world_settle(&c->w);
	assert_int_equal(client_ok(c, id)->upload_chunk->offset, 3 * (uint64_t)CHUNK_SIZE);

	/* After a restart it goes on where it was. */
	world_halt(&c->w);
	world_boot(&c->w);
	world_settle(&c->w);
	id_new(c, id);
	ask_upload_begin(c, 1, id, big, len);
	world_settle(&c->w);
	assert_int_equal(client_ok(c, id)->upload_begin->offset, 3 * (uint64_t)CHUNK_SIZE);
	/* The rest, and the dataset right behind it, without waiting for answers. */
	for (unsigned i = 3; i < 6; i++) {
		id_new(c, ids[i]);
		ask_chunk(c, 1, ids[i], big, len, (uint64_t)i * CHUNK_SIZE);
	}
	id_new(c, id);
	ask_dataset_put(c, 1, 1000, id, "d", big, len);
	world_settle(&c->w);
	assert_int_equal(client_ok(c, ids[5])->upload_chunk->offset, len);
	assert_int_equal(client_ok(c, id)->dataset->rows, len); /* the fake counts bytes */

	/* Content that is not what its digest says. */
	uint8_t *other = big_data(1000);
	other[5] ^= 1;
	id_new(c, id);
	ask_upload_begin(c, 1, id, other, 1000);
	uint8_t digest[32];
	crypto_generichash(digest, 32, other, 1000, NULL, 0);
	Peftd__V1__UploadChunkRequest m = PEFTD__V1__UPLOAD_CHUNK_REQUEST__INIT;
	m.digest = (ProtobufCBinaryData){32, digest};
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK;
	req.upload_chunk = &m;
	id_new(c, id);
	req.id = (ProtobufCBinaryData){16, id};
	other[5] ^= 1;
	world_request(&c->w, 1, 1000, &req, other, 1000);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_INVALID);
	/* A chunk of nothing, and one of what nobody has begun. */
	id_new(c, id);
	req.id = (ProtobufCBinaryData){16, id};
	world_request(&c->w, 1, 1000, &req, NULL, 0);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_INVALID);
	id_new(c, id);
	ask_chunk(c, 1, id, "other", 5, 0);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_NOT_FOUND);
	free(big);
	free(other);
}

static void uploads_to_a_full_disk(void **state)
{
	struct client *c = *state;
	world_halt(&c->w);
	setenv("PEFTD_STORE_MAP", "2097152", 1);
	world_boot(&c->w);
	unsetenv("PEFTD_STORE_MAP");
	world_settle(&c->w);
	size_t len = 16 * CHUNK_SIZE;
	uint8_t *big = big_data(len), id[16];
	id_new(c, id);
	ask_upload_begin(c, 1, id, big, len);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_DISK_FULL);
	/* Several that would fit alone: the last ones find no room, and nothing breaks. */
	int full = 0;
	for (int i = 0; i < 12; i++) {
		big[1] = (uint8_t)i;
		id_new(c, id);
		ask_upload_begin(c, 1, id, big, CHUNK_SIZE);
		id_new(c, id);
		ask_chunk(c, 1, id, big, CHUNK_SIZE, 0);
		world_settle(&c->w);
		full += client_status(c, id) != 0;
	}
	assert_true(full > 0 && full < 12);
	id_new(c, id);
	ask_status(c, 1, id);
	world_settle(&c->w);
	client_ok(c, id);
	free(big);
}

static void datasets(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	have_upload(c, "bad data", 8);
	id_new(c, id);
	ask_dataset_put(c, 1, 1000, id, "d", "bad data", 8);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_INVALID);
	assert_string_equal(client_text(c, id), "line 1: not JSON");

	have_dataset(c, "d", data, sizeof(data) - 1);
	have_dataset(c, "d", data, sizeof(data) - 1); /* the same again */
	have_upload(c, "other", 5);
	id_new(c, id);
	ask_dataset_put(c, 1, 1000, id, "d", "other", 5);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_CONFLICT);

	/* A job keeps its data although the dataset goes. */
	have_model(c, "m");
	struct want want = usual;
	want.hold = true;
	uint64_t job = have_job(c, &want);
	id_new(c, id);
	ask_dataset_rm(c, 1, 1000, id, "d");
	world_settle(&c->w);
	client_ok(c, id);
	c->w.wall += 3 * 24 * 3600 * SECOND;
	c->w.mono += 120 * SECOND;
	world_settle(&c->w); /* garbage is collected */
	id_new(c, id);
	ask_control(c, 1, 1000, id, job, CONTROL_RELEASE);
	world_settle(&c->w);
	client_ok(c, id);
	assert_int_equal(state_of(c, job), JOB_SUCCEEDED);
}

static void bad_requests_are_answered(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT; /* says nothing */
	id_new(c, id);
	ask(c, 1, 1000, &req, id);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_INVALID);

	Peftd__V1__UploadBeginRequest m = PEFTD__V1__UPLOAD_BEGIN_REQUEST__INIT;
	Peftd__V1__Blob blob = PEFTD__V1__BLOB__INIT;
	Peftd__V1__File file = PEFTD__V1__FILE__INIT, *files[] = {&file};
	uint8_t digest[32] = {1};
	blob.digest = (ProtobufCBinaryData){32, digest};
	blob.size = 10;
	blob.n_files = 1;
	blob.files = files;
	m.blob = &blob;
	req.what_case = PEFTD__V1__REQUEST__WHAT_UPLOAD_BEGIN;
	req.upload_begin = &m;
	static const struct {
		const char *name;
		uint64_t size;
		size_t digest;
	} cases[] = {{"a", 11, 32}, {"../a", 10, 32}, {"a", 10, 31}, {"\xff", 10, 32}, {"", 10, 32}};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		file.name = proto_bytes(cases[i].name);
		file.size = cases[i].size;
		blob.digest.len = cases[i].digest;
		id_new(c, id);
		ask(c, 1, 1000, &req, id);
		world_settle(&c->w);
		assert_int_equal(client_status(c, id), STATUS_INVALID);
	}
	/* Without a request id there is nobody to answer; nothing falls over. */
	Peftd__V1__Request nameless = PEFTD__V1__REQUEST__INIT;
	nameless.id = proto_bytes("short");
	world_request(&c->w, 1, 1000, &nameless, NULL, 0);
	world_settle(&c->w);
	assert_int_equal(c->w.spawned[CHILD_FRONT], 1);

	for (uint64_t job = 0; job < 3; job++) {
		id_new(c, id);
		ask_show(c, 1, id, job);
		world_settle(&c->w);
		assert_int_equal(client_status(c, id), STATUS_NOT_FOUND);
		id_new(c, id);
		ask_watch(c, 1, id, job, 0, 10, true);
		world_settle(&c->w);
		assert_int_equal(client_status(c, id), STATUS_NOT_FOUND);
	}
}

/* ---- streams ------------------------------------------------------------------------------- */

static void watching(void **state)
{
	struct client *c = *state;
	uint8_t slow[16], late[16], old[16];
	uint64_t job = have_job(c, &usual);
	id_new(c, slow);
	ask_watch(c, 1, slow, job, 0, 3, true); /* with credit for three events */
	world_settle(&c->w);
	uint64_t seen = 0;
	for (size_t i = 0; i < client_count(c, 1, slow); i++) {
		const Peftd__V1__WatchReply *r = client_got(c, 1, slow, i)->reply->watch;
		assert_int_equal(r->job != NULL, i == 0);
		for (size_t k = 0; k < r->n_events; k++) {
			assert_int_equal(r->events[k]->seq, ++seen);
		}
	}
	assert_int_equal(seen, 3);
	assert_int_equal(state_of(c, job), JOB_SUCCEEDED); /* nobody waited for the watcher */

	while (true) {
		size_t n = client_count(c, 1, slow);
		const Peftd__V1__Reply *last = client_got(c, 1, slow, n - 1)->reply;
		if (!last->more) {
			assert_non_null(last->watch->job);
			assert_int_equal((int)last->watch->job->state, (int)JOB_SUCCEEDED);
			assert_int_equal(last->watch->last_seq, seen);
			break;
		}
		world_credit(&c->w, 1, slow, 4);
		world_settle(&c->w);
		for (; n < client_count(c, 1, slow); n++) {
			const Peftd__V1__WatchReply *r = client_got(c, 1, slow, n)->reply->watch;
			for (size_t k = 0; k < r->n_events; k++) {
				assert_int_equal(r->events[k]->seq, ++seen);
			}
		}
	}
	assert_int_equal(seen, 3 + 1 + 12 + 3); /* four states, 12 steps, checkpoints 5, 10 and 12 */

	/* From somewhere in the middle, of an ended job: ends at once. */
	id_new(c, late);
	ask_watch(c, 2, late, job, seen - 2, 100, true);
	world_settle(&c->w);
	assert_int_equal(client_count(c, 2, late), 1);
	assert_int_equal(client_ok(c, late)->watch->n_events, 2);
	assert_false(client_ok(c, late)->more);

	/* Metrics alone. */
	Peftd__V1__WatchRequest m = PEFTD__V1__WATCH_REQUEST__INIT;
	m.job = job;
	m.has_metrics_only = m.has_follow = true;
	m.metrics_only = true;
	m.follow = false;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_WATCH;
	req.watch = &m;
	id_new(c, late);
	ask(c, 2, 1000, &req, late);
	world_settle(&c->w);
	assert_int_equal(client_count(c, 2, late), 1);
	assert_int_equal(client_ok(c, late)->watch->n_events, 12);
	assert_int_equal(client_ok(c, late)->watch->events[11]->metrics->step, 12);

	/* Nine days later the events are gone, and a watcher is told. */
	c->w.wall += 9 * 24 * 3600 * SECOND;
	c->w.mono += 120 * SECOND;
	world_settle(&c->w);
	id_new(c, old);
	ask_watch(c, 1, old, job, 0, 100, true);
	world_settle(&c->w);
	assert_int_equal(client_status(c, old), STATUS_COMPACTED);
}

static bool trainer_rests(struct world *w, struct world_child *child)
{
	return child->kind == CHILD_TRAINER;
}

static void watching_as_it_goes(void **state)
{
	struct client *c = *state;
	uint8_t id[16], snap[16];
	c->w.lazy = trainer_rests;
	uint64_t job = have_job(c, &usual);
	id_new(c, id);
	ask_watch(c, 1, id, job, 0, 1000, true);
	world_settle(&c->w);
	size_t n = client_count(c, 1, id);
	for (int i = 0; i < 8; i++) {
		fake_work(&world_child(&c->w, CHILD_TRAINER)->fake, 0);
		world_settle(&c->w);
	}
	assert_true(client_count(c, 1, id) > n);
	assert_true(client_ok(c, id)->more);
	id_new(c, snap); /* not following: what there is, and the end */
	ask_watch(c, 1, snap, job, 0, 1000, false);
	world_settle(&c->w);
	assert_int_equal(client_count(c, 1, snap), 1);
	assert_false(client_ok(c, snap)->more);
	assert_int_equal(client_ok(c, snap)->watch->n_events, client_ok(c, snap)->watch->last_seq);
	/* A stream that was ended, or whose session was, says no more. */
	world_stream_end(&c->w, 1, id);
	uint8_t other[16];
	id_new(c, other);
	ask_watch(c, 2, other, job, 0, 1000, true);
	world_settle(&c->w);
	world_session_end(&c->w, 2);
	world_settle(&c->w);
	n = client_count(c, 0, id) + client_count(c, 0, other);
	c->w.lazy = NULL;
	world_settle(&c->w);
	assert_int_equal(state_of(c, job), JOB_SUCCEEDED);
	assert_int_equal(client_count(c, 0, id) + client_count(c, 0, other), n);
}

static void ask_merge(struct client *c, const uint8_t id[16], uint64_t job)
{
	Peftd__V1__FetchRequest m = PEFTD__V1__FETCH_REQUEST__INIT;
	m.job = job;
	m.has_merge = m.merge = true;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_FETCH;
	req.fetch = &m;
	ask(c, 1, 1000, &req, id);
}

static void ask_merged_bytes(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job,
	uint64_t offset, uint32_t credit)
{
	Peftd__V1__ReadRequest m = PEFTD__V1__READ_REQUEST__INIT;
	m.job = job;
	m.step = 12;
	m.offset = offset;
	m.has_credit = m.has_merge = m.merge = true;
	m.credit = credit;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_READ;
	req.read = &m;
	ask(c, session, 1000, &req, id);
}

static void merging(void **state)
{
	struct client *c = *state;
	struct want want = usual;
	uint8_t id[16];
	want.r = 3;
	uint64_t refused = have_job(c, &want), job = have_job(c, &usual);
	world_settle(&c->w);
	id_new(c, id);
	ask_merge(c, id, refused);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_INVALID);
	assert_string_equal(client_text(c, id), "lora cannot be merged here: it is 3");

	id_new(c, id);
	ask_merge(c, id, job);
	world_settle(&c->w);
	const Peftd__V1__FetchReply *f = client_ok(c, id)->fetch;
	assert_int_equal(f->step, 12);
	assert_int_equal(f->blob->size, FAKE_MERGED);
	assert_true(f->merge->drift_max == 0.25);
	char name[64];
	snprintf(name, sizeof(name), "job-%llu-merged", (unsigned long long)job);
	assert_true(proto_equal(&f->folder_name, name));

	static const uint64_t offsets[] = {0, 5, CHUNK_SIZE + 9, FAKE_MERGED - 1};
	for (size_t k = 0; k < ARRAY_LEN(offsets); k++) {
		uint8_t read[16];
		uint64_t at = offsets[k];
		id_new(c, read);
		ask_merged_bytes(c, 1, read, job, at, 1);
		for (size_t i = 0; at < FAKE_MERGED; i++) {
			world_settle(&c->w);
			const struct got *g = client_got(c, 1, read, i);
			assert_int_equal(g->reply->read->offset, at);
			for (size_t b = 0; b < g->raw_len; b++) {
				assert_int_equal(((const uint8_t *)g->raw)[b], (at + b) % 251);
			}
			at += g->raw_len;
			if (at < FAKE_MERGED) { /* no more than there is credit */
				assert_int_equal(client_count(c, 1, read), i + 1);
				world_credit(&c->w, 1, read, 1);
			}
		}
		assert_int_equal(at, FAKE_MERGED);
		assert_false(client_ok(c, read)->more);
	}

	/* Slow readers hold one inspecting child between them, so that others get their answers. */
	uint8_t slow[2][16], other[16];
	for (size_t i = 0; i < ARRAY_LEN(slow); i++) {
		id_new(c, slow[i]);
		ask_merged_bytes(c, 4 + i, slow[i], job, 0, 1);
	}
	world_settle(&c->w);
	assert_int_equal(client_count(c, 4, slow[0]), 1);
	assert_int_equal(client_count(c, 5, slow[1]), 0);
	id_new(c, other);
	ask_inspect(c, 1, other, "d", "m", 10);
	world_settle(&c->w);
	assert_int_equal(client_ok(c, other)->inspect_summary->rows, 10);
	c->w.mono += 900 * SECOND;
	world_settle(&c->w);
	assert_int_equal(client_count(c, 4, slow[0]), 1);
	world_session_end(&c->w, 4);
	world_settle(&c->w);
	assert_int_equal(client_count(c, 5, slow[1]), 1);
	world_session_end(&c->w, 5);
	world_settle(&c->w);
	assert_null(world_child(&c->w, CHILD_INSPECT));
}

static void fetch_and_read(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	uint64_t job = have_job(c, &usual); /* seed 7: three chunks */
	id_new(c, id);
	ask_fetch(c, 1, id, job, 0, false);
	world_turn(&c->w, 10, CRASH_NOT);
	world_turn(&c->w, 10, CRASH_NOT);
	assert_int_equal(client_status(c, id), STATUS_NOT_FOUND); /* nothing yet */
	world_settle(&c->w);

	id_new(c, id);
	ask_fetch(c, 1, id, job, 0, false);
	world_settle(&c->w);
	const Peftd__V1__FetchReply *f = client_ok(c, id)->fetch;
	assert_int_equal(f->step, 12);
	assert_int_equal(f->blob->n_files, 2); /* without the trainer's own state */
	assert_true(proto_equal(&f->blob->files[0]->name, "adapter_config.json"));
	assert_true(proto_equal(&f->blob->files[1]->name, "adapter_model.safetensors"));
	uint64_t size = f->blob->size;
	assert_int_equal(size, 64 + 2 * CHUNK_SIZE + 4321);

	static const uint64_t offsets[] = {0, 1, CHUNK_SIZE, CHUNK_SIZE + 5};
	uint8_t *all = malloc((size_t)size);
	assert_non_null(all);
	for (size_t k = 0; k < ARRAY_LEN(offsets); k++) {
		uint8_t read[16];
		uint64_t at = offsets[k];
		id_new(c, read);
		ask_read(c, 1, read, job, 12, at, 1);
		for (size_t i = 0;; i++) {
			world_settle(&c->w);
			assert_int_equal(client_count(c, 1, read), i + 1); /* no more than there is credit */
			const struct got *g = client_got(c, 1, read, i);
			assert_int_equal(g->reply->status->code, 0);
			assert_int_equal(g->reply->read->offset, at);
			assert_true(at + g->raw_len <= size);
			memcpy(all + at, g->raw, g->raw_len);
			at += g->raw_len;
			if (!g->reply->more) {
				break;
			}
			world_credit(&c->w, 1, read, 1);
		}
		assert_int_equal(at, size);
		uint8_t digest[32];
		crypto_generichash(digest, 32, all, size, NULL, 0);
		assert_memory_equal(digest, client_ok(c, id)->fetch->blob->digest.data, 32);
	}
	free(all);
	uint8_t end[16];
	id_new(c, end);
	ask_read(c, 1, end, job, 12, size, 8); /* all of it is there already */
	world_settle(&c->w);
	assert_int_equal(client_got(c, 1, end, 0)->raw_len, 0);
	assert_false(client_ok(c, end)->more);
	id_new(c, end);
	ask_read(c, 1, end, job, 12, size + 1, 8);
	world_settle(&c->w);
	assert_int_equal(client_status(c, end), STATUS_INVALID);
	id_new(c, end);
	ask_fetch(c, 1, end, 99, 0, false);
	world_settle(&c->w);
	assert_int_equal(client_status(c, end), STATUS_NOT_FOUND);
	assert_non_null(strstr(client_text(c, end), "there is no job 99; `peftctl list` lists"));
	id_new(c, end);
	ask_fetch(c, 1, end, job, 5, false); /* no longer kept */
	world_settle(&c->w);
	assert_int_equal(client_status(c, end), STATUS_NOT_FOUND);
	id_new(c, end);
	ask_fetch(c, 1, end, job, 0, true); /* nothing was evaluated */
	world_settle(&c->w);
	assert_int_equal(client_status(c, end), STATUS_NOT_FOUND);
}

static void inspecting(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	id_new(c, id);
	ask_inspect(c, 1, id, "d", "m", 100);
	world_settle(&c->w);
	/* As many as the first credit goes; a client that thinks it over is not given up. */
	assert_int_equal(client_count(c, 1, id), 64);
	c->w.mono += 300 * SECOND;
	world_settle(&c->w);
	assert_int_equal(client_count(c, 1, id), 64);
	world_credit(&c->w, 1, id, 50);
	world_settle(&c->w);
	assert_int_equal(client_count(c, 1, id), 101);
	for (uint64_t i = 0; i < 100; i++) {
		assert_int_equal(client_got(c, 1, id, i)->reply->inspect_row->row, i);
	}
	assert_int_equal(client_ok(c, id)->inspect_summary->rows, 100);
	assert_false(client_ok(c, id)->more);

	/* A client that goes away takes its child along. */
	id_new(c, id);
	ask_inspect(c, 3, id, "d", "m", 100);
	world_settle(&c->w);
	assert_non_null(world_child(&c->w, CHILD_INSPECT));
	world_session_end(&c->w, 3);
	world_settle(&c->w);
	assert_null(world_child(&c->w, CHILD_INSPECT));
}

static bool inspectors_rest(struct world *w, struct world_child *child)
{
	return child->kind == CHILD_INSPECT;
}

static void two_inspectors_at_once(void **state)
{
	struct client *c = *state;
	uint8_t ids[5][16];
	c->w.lazy = inspectors_rest;
	for (int i = 0; i < 5; i++) {
		char path[32];
		id_new(c, ids[i]);
		snprintf(path, sizeof(path), "/models/%d", i);
		ask_model_add(c, 1, ids[i], path + 8, path);
	}
	world_settle(&c->w);
	unsigned n = 0;
	for (int i = 0; i < WORLD_CHILDREN; i++) {
		n += c->w.children[i].id && c->w.children[i].kind == CHILD_INSPECT;
	}
	assert_int_equal(n, 2);
	/* One dies; what it was asked goes to another one. Dead twice, it is told. */
	world_kill(&c->w, world_child(&c->w, CHILD_INSPECT), SIGKILL);
	world_settle(&c->w);
	assert_int_equal(client_status(c, ids[0]), -1);
	c->w.lazy = NULL;
	world_settle(&c->w);
	for (int i = 0; i < 5; i++) {
		client_ok(c, ids[i]);
	}
	c->w.lazy = inspectors_rest;
	id_new(c, ids[0]);
	ask_model_add(c, 1, ids[0], "x", "/x");
	for (int i = 0; i < 2; i++) {
		world_settle(&c->w);
		world_kill(&c->w, world_child(&c->w, CHILD_INSPECT), SIGSEGV);
	}
	world_settle(&c->w);
	assert_int_equal(client_status(c, ids[0]), STATUS_FAILED);
	assert_non_null(strstr(client_text(c, ids[0]), "signal 11"));
}

static void silent_inspector_is_given_up(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	have_upload(c, data, sizeof(data) - 1);
	id_new(c, id);
	ask_dataset_put(c, 1, 1000, id, "e", data, sizeof(data) - 1);
	world_settle(&c->w);
	client_ok(c, id);
	have_upload(c, "x", 1);
	id_new(c, id);
	ask_dataset_put(c, 1, 1000, id, "f", "x", 1);
	for (int i = 0; i < 3; i++) { /* it gets ready, and then nothing more */
		world_turn(&c->w, 10, CRASH_NOT);
	}
	fake_work(&world_child(&c->w, CHILD_INSPECT)->fake, 0);
	c->w.lazy = inspectors_rest;
	world_settle(&c->w);
	c->w.mono += 59 * SECOND;
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), -1);
	c->w.mono += 2 * SECOND;
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_FAILED);
	assert_null(world_child(&c->w, CHILD_INSPECT));
}

static void evaluation_and_generation(void **state)
{
	struct client *c = *state;
	uint8_t id[16], gen[16];
	uint64_t job = have_job(c, &usual);
	id_new(c, id);
	ask_eval(c, 1, id, "m", "d", job);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_NOT_FOUND); /* no checkpoint at that time */
	id_new(c, id);
	ask_eval(c, 1, id, "m", "d", job);
	id_new(c, gen);
	ask_generate(c, 1, gen, "m", job, 100);
	world_settle(&c->w);
	assert_true(client_ok(c, id)->eval->loss == 1.5);
	assert_int_equal(client_count(c, 1, gen), 64);
	world_credit(&c->w, 1, gen, 100);
	world_settle(&c->w);
	assert_int_equal(client_count(c, 1, gen), 101);
	assert_int_equal(client_ok(c, gen)->generate->new_tokens, 100);
	assert_false(client_ok(c, gen)->more);

	/* With another model than the adapter is for. */
	have_model(c, "other");
	id_new(c, id);
	ask_generate(c, 1, id, "other", job, 5);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_INVALID);

	/* A trainer that dies in the middle of an answer: it cannot be begun again, and is told. */
	id_new(c, gen);
	ask_generate(c, 1, gen, "m", 0, 100);
	world_settle(&c->w);
	world_kill(&c->w, world_child(&c->w, CHILD_TRAINER), SIGKILL);
	world_settle(&c->w);
	assert_int_equal(client_status(c, gen), STATUS_UNAVAILABLE);
	/* Before it has said anything: the next trainer answers. */
	c->w.lazy = trainer_rests;
	id_new(c, gen);
	ask_generate(c, 1, gen, "m", 0, 3);
	world_settle(&c->w);
	c->w.mono += 30 * SECOND;
	world_kill(&c->w, world_child(&c->w, CHILD_TRAINER), SIGKILL);
	c->w.lazy = NULL;
	world_settle(&c->w);
	assert_int_equal(client_ok(c, gen)->generate->new_tokens, 3);

	/* Nobody listens any more: the trainer is told to stop. */
	id_new(c, gen);
	ask_generate(c, 7, gen, "m", 0, 100);
	world_settle(&c->w);
	world_session_end(&c->w, 7);
	world_settle(&c->w);
	const struct fake *f = &world_child(&c->w, CHILD_TRAINER)->fake;
	for (int i = 0; i < FAKE_TASKS; i++) {
		assert_null(f->tasks[i].task);
	}
}

static void ids_work_across_kinds(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	id_new(c, id);
	ask_model_rm(c, 1, id, "m");
	world_settle(&c->w);
	client_ok(c, id);
	/* The same id for another request that changes something. */
	ask_dataset_rm(c, 1, 1000, id, "d");
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_CONFLICT);
	/* A failed request has changed nothing and is tried again. */
	id_new(c, id);
	ask_model_rm(c, 1, id, "x");
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_NOT_FOUND);
	have_model(c, "x");
	ask_model_rm(c, 1, id, "x");
	world_settle(&c->w);
	client_ok(c, id);
}

int main(void)
{
	log_init("test_core_requests", getenv("PEFTD_TEST_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
#define TEST(f, s) cmocka_unit_test_setup_teardown(f, s, teardown)
	const struct CMUnitTest tests[] = {
		TEST(ready_when_both_are, setup),
		TEST(models, setup),
		TEST(lists_are_split, setup),
		TEST(uploads, setup),
		TEST(uploads_to_a_full_disk, setup),
		TEST(datasets, setup),
		TEST(bad_requests_are_answered, setup),
		TEST(watching, setup_data),
		TEST(watching_as_it_goes, setup_data),
		TEST(merging, setup_data),
		TEST(fetch_and_read, setup_data),
		TEST(inspecting, setup_data),
		TEST(two_inspectors_at_once, setup_data),
		TEST(silent_inspector_is_given_up, setup),
		TEST(evaluation_and_generation, setup_data),
		TEST(ids_work_across_kinds, setup_data),
	};
	return cmocka_run_group_tests_name("core requests", tests, NULL, NULL);
}
