/* Records: what is put is what is got; references are counted; events have no gap. */

#include "store-test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	SIZE = 1000,
};

/* ---- models -------------------------------------------------------------------------------- */

static int join_model(void *ctx, const struct store_model *m)
{
	return buf_appendf(ctx, "%s ", m->name);
}

static void put_model(struct store *s, const char *name, const char *path)
{
	struct store_model m = {.name = (char *)name, .path = (char *)path};
	memset(m.digest, 3, sizeof(m.digest));
	m.facts = (struct packed){(uint8_t *)"\x0a\x01x", 3};
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_model_put(t, &m), 0);
	test_commit(t);
}

static void models(void **state)
{
	struct store *s = test_open(*state);
	struct store_model m = {0};
	struct buf names = {0};
	put_model(s, "qwen", "/models/qwen");
	put_model(s, "gemma", "/models/gemma");
	put_model(s, "qwen", "/elsewhere/qwen");

	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_model_get(t, "qwen", &m), 0);
	assert_string_equal(m.name, "qwen");
	assert_string_equal(m.path, "/elsewhere/qwen");
	assert_int_equal(m.digest[31], 3);
	assert_int_equal(m.facts.len, 3);
	assert_memory_equal(m.facts.data, "\x0a\x01x", 3);
	store_model_deinit(&m);
	assert_int_equal(store_model_get(t, "nobody", &m), STATUS_NOT_FOUND);
	assert_int_equal(store_model_get(t, "", &m), STATUS_NOT_FOUND);
	assert_int_equal(store_model_each(t, join_model, &names), 0);
	assert_string_equal(buf_cstr(&names), "gemma qwen ");
	assert_int_equal(store_model_remove(t, "gemma"), 0);
	assert_int_equal(store_model_remove(t, "gemma"), STATUS_NOT_FOUND);
	struct store_model bad = {.name = (char *)"../x", .path = (char *)"/"};
	assert_int_equal(store_model_put(t, &bad), STATUS_INVALID);
	bad.name = (char *)"x";
	bad.path = (char *)"/\xff";
	assert_int_equal(store_model_put(t, &bad), STATUS_INVALID);
	test_commit(t);
	test_check(s);
	buf_deinit(&names);
	store_close(s);
}

/* ---- datasets ------------------------------------------------------------------------------ */

static void datasets(void **state)
{
	struct store *s = test_open(*state);
	uint8_t one[DIGEST_SIZE], two[DIGEST_SIZE];
	test_upload(s, 1, SIZE, 5, one);
	test_upload(s, 2, SIZE, 5, two);

	struct store_dataset d = {
		.name = (char *)"train",
		.owner_uid = 12,
		.rows = 34,
		.format = (char *)"text",
		.completion_field = (char *)"",
		.added_wall_ns = 56,
	};
	struct store_dataset got = {0};
	test_files(&d.content, one, SIZE, 2);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_dataset_put(t, &d), 0);
	assert_int_equal(store_dataset_put(t, &d), 0); /* the same again: one reference */
	test_commit(t);
	assert_int_equal(test_references(s, one), 1);
	store_close(s);

	s = test_open(*state);
	t = test_begin(s, false);
	assert_int_equal(store_dataset_get(t, "train", &got), 0);
	assert_string_equal(got.name, "train");
	assert_int_equal(got.owner_uid, 12);
	assert_int_equal(got.rows, 34);
	assert_string_equal(got.format, "text");
	assert_null(got.prompt_field);
	assert_string_equal(got.completion_field, "");
	assert_int_equal(got.added_wall_ns, 56);
	assert_memory_equal(got.content.digest, one, DIGEST_SIZE);
	assert_int_equal(got.content.size, SIZE);
	assert_int_equal(got.content.n, 2);
	assert_string_equal(got.content.files[1].name, d.content.files[1].name);
	assert_int_equal(got.content.files[1].size, d.content.files[1].size);
	store_dataset_deinit(&got);
	store_abort(t);

	memcpy(d.content.digest, two, DIGEST_SIZE);
	t = test_begin(s, true);
	assert_int_equal(store_dataset_put(t, &d), 0);
	test_commit(t);
	assert_int_equal(test_references(s, one), 0);
	assert_int_equal(test_references(s, two), 1);
	test_check(s);

	t = test_begin(s, true);
	memset(d.content.digest, 9, DIGEST_SIZE); /* nothing of the kind */
	assert_int_equal(store_dataset_put(t, &d), STATUS_NOT_FOUND);
	store_abort(t);
	t = test_begin(s, true);
	d.content.files[0].size++;
	assert_int_equal(store_dataset_put(t, &d), STATUS_INVALID);
	assert_int_equal(store_dataset_remove(t, "train"), 0);
	assert_int_equal(store_dataset_remove(t, "train"), STATUS_NOT_FOUND);
	test_commit(t);
	assert_int_equal(test_references(s, two), 0);
	test_check(s);
	store_files_deinit(&d.content);
	store_close(s);
}

/* ---- jobs ---------------------------------------------------------------------------------- */

static void same_text(const char *a, const char *b)
{
	assert_int_equal(a == NULL, b == NULL);
	if (a) {
		assert_string_equal(a, b);
	}
}

static void same_number(double a, double b)
{
	assert_true(a == b || (isnan(a) && isnan(b)));
}

static void same_files(const struct store_files *a, const struct store_files *b)
{
	assert_memory_equal(a->digest, b->digest, DIGEST_SIZE);
	assert_int_equal(a->size, b->size);
	assert_int_equal(a->n, b->n);
	for (size_t i = 0; i < a->n; i++) {
		assert_string_equal(a->files[i].name, b->files[i].name);
		assert_int_equal(a->files[i].size, b->files[i].size);
	}
}

static void same_data(const struct store_job_data *a, const struct store_job_data *b)
{
	same_text(a->name, b->name);
	same_text(a->prompt_field, b->prompt_field);
	same_text(a->completion_field, b->completion_field);
	assert_int_equal(a->rows, b->rows);
	same_files(&a->content, &b->content);
}

static void same_job(const struct store_job *a, const struct store_job *b)
{
	assert_int_equal(a->id, b->id);
	assert_memory_equal(a->request_id, b->request_id, sizeof(a->request_id));
	assert_int_equal(a->owner_uid, b->owner_uid);
	same_text(a->name, b->name);
	same_text(a->model, b->model);
	same_text(a->model_path, b->model_path);
	assert_memory_equal(a->model_digest, b->model_digest, sizeof(a->model_digest));
	assert_int_equal(a->state, b->state);
	same_text(a->reason, b->reason);
	assert_int_equal(a->priority, b->priority);
	assert_int_equal(a->spec.len, b->spec.len);
	assert_memory_equal(a->spec.data, b->spec.data, a->spec.len);
	assert_int_equal(a->plan.len, b->plan.len);
	assert_memory_equal(a->plan.data, b->plan.data, a->plan.len);
	assert_int_equal(a->planned_bytes, b->planned_bytes);
	assert_int_equal(a->steps, b->steps);
	same_data(&a->dataset, &b->dataset);
	same_data(&a->eval_dataset, &b->eval_dataset);
	same_files(&a->init_adapter, &b->init_adapter);
	assert_int_equal(a->submitted_wall_ns, b->submitted_wall_ns);
	assert_int_equal(a->started_wall_ns, b->started_wall_ns);
	assert_int_equal(a->ended_wall_ns, b->ended_wall_ns);
	assert_int_equal(a->attempt, b->attempt);
	assert_int_equal(a->tries, b->tries);
	assert_int_equal(a->last_seq, b->last_seq);
	assert_int_equal(a->last_step, b->last_step);
	assert_int_equal(a->last_eval_step, b->last_eval_step);
	same_number(a->last_loss, b->last_loss);
	assert_int_equal(a->measured_arena, b->measured_arena);
	assert_int_equal(a->measured_peak_rss, b->measured_peak_rss);
	assert_memory_equal(&a->measured, &b->measured, sizeof(a->measured));
	assert_memory_equal(&a->outcome, &b->outcome, sizeof(a->outcome));
	assert_memory_equal(&a->inference, &b->inference, sizeof(a->inference));
	assert_int_equal(a->sweep, b->sweep);
	assert_int_equal(a->sweep_size, b->sweep_size);
	same_text(a->variant, b->variant);
	assert_int_equal(a->n_checkpoints, b->n_checkpoints);
	for (size_t i = 0; i < a->n_checkpoints; i++) {
		const struct store_checkpoint *x = &a->checkpoints[i], *y = &b->checkpoints[i];
		assert_int_equal(x->step, y->step);
		same_files(&x->content, &y->content);
		same_number(x->eval_loss, y->eval_loss);
		assert_int_equal(x->wall_ns, y->wall_ns);
		assert_int_equal(x->final, y->final);
		assert_int_equal(x->best, y->best);
	}
}

static void put_job(struct store *s, const struct store_job *j)
{
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_job_put(t, j), 0);
	test_commit(t);
}

static void expect_job(struct store *s, const struct store_job *want)
{
	struct store_job got = {0};
	struct store_txn *t = test_begin(s, false);
	assert_int_equal(store_job_get(t, want->id, &got), 0);
	same_job(want, &got);
	store_job_deinit(&got);
	store_abort(t);
}

static uint64_t next_id(struct store *s)
{
	uint64_t id = 0;
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_job_next_id(t, &id), 0);
	test_commit(t);
	return id;
}

static void jobs(void **state)
{
	struct store *s = test_open(*state);
	uint8_t data[DIGEST_SIZE], eval[DIGEST_SIZE], adapter[DIGEST_SIZE], saved[DIGEST_SIZE];
	test_upload(s, 1, SIZE, 5, data);
	test_upload(s, 2, SIZE, 5, eval);
	test_upload(s, 3, SIZE, 5, adapter);
	test_upload(s, 4, SIZE, 5, saved);

	struct store_job j, none = {0};
	assert_int_equal(next_id(s), 1);
	test_job(&j, 1, data, SIZE);
	put_job(s, &j);
	expect_job(s, &j);
	assert_int_equal(test_references(s, data), 1);

	/* Everything that was absent comes, and the other way round. */
	free(j.name);
	j.name = NULL;
	j.reason = strdup("");
	j.state = JOB_RUNNING;
	j.priority = 1;
	j.last_loss = 1.25;
	j.eval_dataset.name = strdup("held-out");
	j.eval_dataset.completion_field = strdup("answer");
	j.eval_dataset.rows = 12;
	test_files(&j.eval_dataset.content, eval, SIZE, 0);
	test_files(&j.init_adapter, adapter, SIZE, 3);
	test_add_checkpoint(&j, 50, saved, SIZE);
	test_add_checkpoint(&j, 100, saved, SIZE);
	j.checkpoints[1].eval_loss = -0.5;
	j.checkpoints[1].best = true;
	j.checkpoints[1].final = true;
	j.measured = (struct store_measured){1, 2, 3, 4, 5, 6, 20};
	j.outcome = (struct store_outcome){100, 12345, 6.5, 0.0625, 50, 2.5, 2.25};
	j.inference = (struct store_inference){32, 9, 0.5, 0.625, 0.5};
	j.sweep = 1;
	j.sweep_size = 4;
	j.variant = strdup("lora.r=8 train.seed=2");
	put_job(s, &j);
	store_close(s);
	s = test_open(*state);
	expect_job(s, &j);
	assert_int_equal(test_references(s, data), 1);
	assert_int_equal(test_references(s, eval), 1);
	assert_int_equal(test_references(s, adapter), 1);
	assert_int_equal(test_references(s, saved), 2);
	test_check(s);

	/* One checkpoint goes. */
	store_files_deinit(&j.checkpoints[0].content);
	j.checkpoints[0] = j.checkpoints[1];
	j.n_checkpoints = 1;
	put_job(s, &j);
	expect_job(s, &j);
	assert_int_equal(test_references(s, saved), 1);

	struct store_txn *t = test_begin(s, false);
	assert_int_equal(store_job_get(t, 2, &none), STATUS_NOT_FOUND);
	store_abort(t);
	assert_int_equal(next_id(s), 2);
	test_check(s);
	store_job_deinit(&j);
	store_close(s);
}

/* The record of test_job(3) with a checkpoint, as it was written before jobs had trade-offs and
 * sweeps: what the record lacks is not known, and all the rest is as it was. */
static void a_job_stored_before(void **state)
{
	static const char hex[] =
		"080110031a100303030303030303030303030303030320e80728003a0b0a09666972737420747279"
		"420538959aef3a4a510a200909090909090909090909090909090909090909090909090909090909"
		"0909091080201a140a0f66696c652d302dc3bc2e6a736f6e6c1080101a140a0f66696c652d312dc3"
		"bc2e6a736f6e6c10801052087175657374696f6e82010c2f6d6f64656c732f736d6f6c8a01200707"
		"07070707070707070707070707070707070707070707070707070707070790018080a8b1e39fe7cb"
		"1798018094938ee79fe7cb17a00100a80102b00101b80100c00111c8010ad101000000000000f87f"
		"d8018080808004e0018080808002ea015b083212510a200909090909090909090909090909090909"
		"0909090909090909090909090909091080201a140a0f66696c652d302dc3bc2e6a736f6e6c108010"
		"1a140a0f66696c652d312dc3bc2e6a736f6e6c108010200528003000f001b13a8202096669727374"
		"207472798a0204736d6f6c9002019802959aef3aa002c801aa020567736d386b";
	uint8_t record[(sizeof(hex) - 1) / 2], digest[DIGEST_SIZE];
	assert_true(hex_decode(record, sizeof(record), hex));
	struct store_job got = {0}, want;
	assert_int_equal(job_unpack((struct bytes){record, sizeof(record)}, &got), 0);
	memset(digest, 9, sizeof(digest));
	test_job(&want, 3, digest, 4096);
	test_add_checkpoint(&want, 50, digest, 4096);
	/* A specification with fewer settings is still one. */
	assert_null(job_fault(&got));
	packed_deinit(&want.spec);
	packed_set(&want.spec, got.spec.data, got.spec.len);
	same_job(&got, &want);
	assert_int_equal(got.outcome.steps, 0);
	assert_int_equal(got.measured.arena, 0);
	assert_int_equal(got.inference.tokens, 0);
	assert_int_equal(got.sweep, 0);
	/* Written again it has the same bytes: nothing is made up. */
	struct packed again;
	assert_int_equal(job_pack(&got, &again), 0);
	assert_int_equal(again.len, sizeof(record));
	assert_memory_equal(again.data, record, sizeof(record));
	packed_deinit(&again);
	store_job_deinit(&want);
	store_job_deinit(&got);
}

static void bad_jobs(void **state)
{
	struct store *s = test_open(*state);
	uint8_t data[DIGEST_SIZE];
	struct store_job j;
	struct store_txn *t;
	test_upload(s, 1, SIZE, 5, data);
	next_id(s);
	test_job(&j, 1, data, SIZE);
	put_job(s, &j);

	/* A reference to what is not there leaves everything as it was. */
	j.dataset.content.digest[0] ^= 1;
	t = test_begin(s, true);
	assert_int_equal(store_job_put(t, &j), STATUS_NOT_FOUND);
	store_abort(t);
	j.dataset.content.digest[0] ^= 1;

	test_add_checkpoint(&j, 50, data, SIZE);
	test_add_checkpoint(&j, 50, data, SIZE);
	t = test_begin(s, true);
	assert_int_equal(store_job_put(t, &j), STATUS_INVALID);
	j.checkpoints[1].step = 51;
	j.reason = strdup("caf\xe9");
	assert_int_equal(store_job_put(t, &j), STATUS_INVALID);
	j.reason[3] = '\0';
	assert_int_equal(store_job_put(t, &j), 0);
	j.id = 0;
	assert_int_equal(store_job_put(t, &j), -EINVAL);
	store_abort(t);
	assert_int_equal(test_references(s, data), 1);

	/* No writing in a read transaction, no second write transaction. */
	j.id = 1;
	t = test_begin(s, false);
	assert_int_equal(store_job_put(t, &j), -EACCES);
	store_abort(t);
	t = test_begin(s, true);
	struct store_txn *second = NULL;
	assert_int_equal(store_begin(s, true, &second), -EDEADLK);
	store_abort(t);
	test_check(s);
	store_job_deinit(&j);
	store_close(s);
}

/* The callback may write: here the recovery of the core, and removals under the iteration. */
struct requeue {
	struct store_txn *txn;
	uint64_t ids[100];
	size_t n;
	size_t stop_at;
};

static int requeue(void *ctx, const struct store_job *j)
{
	struct requeue *q = ctx;
	struct store_job copy = *j; /* borrows */
	q->ids[q->n++] = j->id;
	copy.state = JOB_PENDING;
	copy.attempt++;
	if (j->id % 3 == 0) {
		return job_remove(q->txn, j);
	}
	int r = store_job_put(q->txn, &copy);
	return r == 0 && q->n == q->stop_at ? 77 : r;
}

static void each_may_write(void **state)
{
	struct store *s = test_open(*state);
	uint8_t data[DIGEST_SIZE];
	test_upload(s, 1, SIZE, 5, data);
	for (uint64_t id = 1; id <= 60; id++) {
		struct store_job j;
		assert_int_equal(next_id(s), id);
		test_job(&j, id, data, SIZE);
		j.state = JOB_RUNNING;
		put_job(s, &j);
		store_job_deinit(&j);
	}
	assert_int_equal(test_references(s, data), 60);

	struct requeue q = {.txn = test_begin(s, true)};
	assert_int_equal(store_job_each(q.txn, requeue, &q), 0);
	test_commit(q.txn);
	assert_int_equal(q.n, 60);
	for (size_t i = 0; i < q.n; i++) {
		assert_int_equal(q.ids[i], i + 1);
	}
	assert_int_equal(test_references(s, data), 40);
	test_check(s);

	q = (struct requeue){.txn = test_begin(s, true), .stop_at = 5};
	assert_int_equal(store_job_each(q.txn, requeue, &q), 77);
	assert_int_equal(q.n, 5);
	store_abort(q.txn);
	store_close(s);
}

/* ---- events -------------------------------------------------------------------------------- */

struct seen {
	uint64_t seqs[100];
	size_t n;
	size_t stop_at;
};

static int see(void *ctx, uint64_t seq, const void *event, size_t len)
{
	struct seen *x = ctx;
	struct packed want = {0};
	char text[32];
	snprintf(text, sizeof(text), "line %llu", (unsigned long long)seq);
	test_log_event(&want, seq, text);
	assert_int_equal(len, want.len);
	assert_memory_equal(event, want.data, len);
	packed_deinit(&want);
	x->seqs[x->n++] = seq;
	return x->n == x->stop_at ? 55 : 0;
}

/* Appends events first…last, each with the job, as the core does. */
static void append_events(struct store *s, struct store_job *j, uint64_t last,
	enum store_event_kind (*kind)(uint64_t seq))
{
	while (j->last_seq < last) {
		struct packed e = {0};
		char text[32];
		uint64_t seq = ++j->last_seq;
		snprintf(text, sizeof(text), "line %llu", (unsigned long long)seq);
		test_log_event(&e, seq, text);
		struct store_txn *t = test_begin(s, true);
		assert_int_equal(store_event_append(t, j->id, seq, kind(seq), e.data, e.len), 0);
		assert_int_equal(store_job_put(t, j), 0);
		test_commit(t);
		packed_deinit(&e);
	}
}

static enum store_event_kind mixed(uint64_t seq)
{
	return seq % 3 == 0 ? EVENT_METRICS : EVENT_LOG;
}

static enum store_event_kind only_log(uint64_t seq)
{
	return EVENT_LOG;
}

static size_t watch(struct store *s, uint64_t job, uint64_t after, unsigned kinds, unsigned max,
	int want, uint64_t *first)
{
	struct seen x = {0};
	uint64_t f = 0;
	struct store_txn *t = test_begin(s, false);
	assert_int_equal(store_event_each(t, job, after, kinds, max, see, &x, &f), want);
	store_abort(t);
	*first = want == STATUS_COMPACTED ? f : x.seqs[0];
	return x.n;
}

static void events(void **state)
{
	struct store *s = test_open(*state);
	uint8_t data[DIGEST_SIZE];
	struct store_job j, other;
	uint64_t first;
	test_upload(s, 1, SIZE, 5, data);
	next_id(s);
	next_id(s);
	test_job(&j, 1, data, SIZE);
	test_job(&other, 2, data, SIZE);
	append_events(s, &other, 4, mixed);
	append_events(s, &j, 30, mixed);

	assert_int_equal(watch(s, 1, 0, ~0u, 100, 0, &first), 30);
	assert_int_equal(first, 1);
	assert_int_equal(watch(s, 1, 0, ~0u, 7, 0, &first), 7);
	assert_int_equal(watch(s, 1, 12, ~0u, 100, 0, &first), 18);
	assert_int_equal(first, 13);
	assert_int_equal(watch(s, 1, 0, EVENT_METRICS, 100, 0, &first), 10);
	assert_int_equal(first, 3);
	assert_int_equal(watch(s, 1, 0, EVENT_METRICS | EVENT_LOG, 100, 0, &first), 30);
	assert_int_equal(watch(s, 1, 0, EVENT_STATE, 100, 0, &first), 0);
	assert_int_equal(watch(s, 1, 30, ~0u, 100, 0, &first), 0);
	assert_int_equal(watch(s, 1, 99, ~0u, 100, 0, &first), 0);
	assert_int_equal(watch(s, 2, 0, ~0u, 100, 0, &first), 4);
	assert_int_equal(watch(s, 3, 0, ~0u, 100, 0, &first), 0);

	struct seen x = {.stop_at = 3};
	struct store_txn *t = test_begin(s, false);
	assert_int_equal(store_event_each(t, 1, 0, ~0u, 100, see, &x, &first), 55);
	store_abort(t);

	/* No gap, no number twice, no job 3 that begins in the middle. */
	t = test_begin(s, true);
	assert_int_equal(store_event_append(t, 1, 32, EVENT_LOG, "x", 1), -EINVAL);
	assert_int_equal(store_event_append(t, 1, 30, EVENT_LOG, "x", 1), -EINVAL);
	assert_int_equal(store_event_append(t, 3, 2, EVENT_LOG, "x", 1), -EINVAL);
	assert_int_equal(store_event_append(t, 1, 0, EVENT_LOG, "x", 1), -EINVAL);
	assert_int_equal(store_event_append(t, 1, 31, EVENT_LOG, NULL, 0), 0);
	store_abort(t);
	store_job_deinit(&j);
	store_job_deinit(&other);
	store_close(s);
}

/* A job that ended, whose events were collected, and which is then tried again. */
static void events_after_retention(void **state)
{
	const uint64_t day = UINT64_C(86400) * 1000000000, end = 100 * day;
	struct store *s = test_open(*state);
	uint8_t data[DIGEST_SIZE];
	struct store_job j;
	uint64_t first;
	bool more;
	test_upload(s, 1, SIZE, end, data);
	next_id(s);
	test_job(&j, 1, data, SIZE);
	append_events(s, &j, 40, only_log);
	j.state = JOB_FAILED;
	j.ended_wall_ns = end;
	put_job(s, &j);

	assert_int_equal(store_collect(s, end + 7 * day - 1, 1000, &more), 0);
	assert_int_equal(watch(s, 1, 0, ~0u, 100, 0, &first), 40);
	assert_int_equal(store_collect(s, end + 7 * day, 16, &more), 0);
	assert_true(more);
	assert_int_equal(watch(s, 1, 0, ~0u, 100, STATUS_COMPACTED, &first), 0);
	assert_int_equal(first, 17);
	assert_int_equal(watch(s, 1, 15, ~0u, 100, STATUS_COMPACTED, &first), 0);
	assert_int_equal(watch(s, 1, 16, ~0u, 100, 0, &first), 24);
	test_check(s);
	assert_int_equal(store_collect(s, end + 7 * day, 1000, &more), 0);
	assert_false(more);
	assert_int_equal(watch(s, 1, 39, ~0u, 100, STATUS_COMPACTED, &first), 0);
	assert_int_equal(first, 41);
	assert_int_equal(watch(s, 1, 40, ~0u, 100, 0, &first), 0);
	test_check(s);

	j.state = JOB_PENDING;
	j.ended_wall_ns = 0;
	append_events(s, &j, 41, only_log);
	assert_int_equal(watch(s, 1, 40, ~0u, 100, 0, &first), 1);
	test_check(s);
	store_job_deinit(&j);
	store_close(s);
}

/* ---- requests ------------------------------------------------------------------------------ */

static void requests(void **state)
{
	struct store *s = test_open(*state);
	struct store_request r = {.uid = 1000, .wall_ns = 42}, got = {0};
	uint8_t reply[] = {0x0a, 1, 'x', 0x12, 2, 8, 0};
	memset(r.id, 5, sizeof(r.id));
	memset(r.body_digest, 6, sizeof(r.body_digest));
	r.reply = (struct packed){reply, sizeof(reply)};

	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_request_put(t, &r), 0);
	r.wall_ns = 43;
	assert_int_equal(store_request_put(t, &r), 0);
	test_commit(t);
	t = test_begin(s, false);
	assert_int_equal(store_request_get(t, 1001, r.id, &got), STATUS_NOT_FOUND);
	assert_int_equal(store_request_get(t, 1000, r.id, &got), 0);
	assert_int_equal(got.uid, 1000);
	assert_int_equal(got.wall_ns, 43);
	assert_memory_equal(got.id, r.id, sizeof(r.id));
	assert_memory_equal(got.body_digest, r.body_digest, sizeof(r.body_digest));
	assert_int_equal(got.reply.len, sizeof(reply));
	assert_memory_equal(got.reply.data, reply, sizeof(reply));
	store_request_deinit(&got);
	store_abort(t);
	test_check(s);
	store_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(models, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(datasets, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(jobs, test_setup, test_teardown),
		cmocka_unit_test(a_job_stored_before),
		cmocka_unit_test_setup_teardown(bad_jobs, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(each_may_write, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(events, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(events_after_retention, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(requests, test_setup, test_teardown),
	};
	return cmocka_run_group_tests_name("store records", tests, NULL, NULL);
}
