/* Retention: what goes, when, in slices, and what stays. And a long random life against a model. */

#include "store-test.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t day = UINT64_C(86400) * 1000000000;

static uint64_t entries(struct store *s, enum store_db db)
{
	struct db_iter it;
	struct bytes key, value;
	uint64_t n = 0;
	struct store_txn *t = test_begin(s, false);
	assert_int_equal(db_iter_init(&it, t, db, NULL, 0), 0);
	while (db_iter_next(&it, &key, &value) == 0) {
		n++;
	}
	db_iter_deinit(&it);
	store_abort(t);
	return n;
}

static uint64_t all_entries(struct store *s)
{
	uint64_t n = 0;
	for (int db = 0; db < DB_N; db++) {
		n += entries(s, (enum store_db)db);
	}
	return n;
}

/* Collects with this many keys a slice until nothing is left, checking each; slices needed. */
static unsigned collect(struct store *s, uint64_t now, unsigned max_keys)
{
	unsigned n = 0;
	bool more = true;
	while (more) {
		uint64_t before = all_entries(s);
		assert_int_equal(store_collect(s, now, max_keys, &more), 0);
		uint64_t after = all_entries(s);
		/* An entry of the trash may have come for those that went. */
		assert_true(after <= before);
		assert_true(before - after <= (max_keys < 16 ? 16 : max_keys));
		test_check(s);
		n++;
	}
	return n;
}

/* ---- blobs --------------------------------------------------------------------------------- */

static void idle_blobs(void **state)
{
	struct store *s = test_open(*state);
	uint8_t idle[DIGEST_SIZE], used[DIGEST_SIZE], late[DIGEST_SIZE], half[DIGEST_SIZE];
	struct store_blob b;
	const size_t big = 60 * CHUNK_SIZE;
	test_upload(s, 1, big, 100 * day, idle);
	test_upload(s, 2, 1000, 100 * day, used);
	test_upload(s, 3, 1000, 101 * day, late);
	memset(half, 1, sizeof(half));
	uint8_t *data = malloc(CHUNK_SIZE);
	test_fill(4, data, CHUNK_SIZE);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_blob_begin(t, half, 2 * CHUNK_SIZE, 100 * day, &b), 0);
	assert_int_equal(store_blob_append(t, half, 0, data, CHUNK_SIZE, &b, NULL), 0);
	struct store_dataset d = {.name = (char *)"d", .content = {.size = 1000}};
	memcpy(d.content.digest, used, sizeof(used));
	assert_int_equal(store_dataset_put(t, &d), 0);
	test_commit(t);

	assert_int_equal(collect(s, 101 * day - 1, 1000), 1);
	assert_int_equal(entries(s, DB_BLOBS), 4);

	/* In slices: after the first the big one cannot be found, and is never seen in part. */
	bool more;
	assert_int_equal(store_collect(s, 101 * day, 32, &more), 0);
	assert_int_equal(test_references(s, idle), -1);
	assert_int_equal(test_references(s, half), -1);
	test_check(s);
	/* The same content can come in again meanwhile. */
	test_upload(s, 1, big, 101 * day, idle);
	test_expect_blob(s, 1, big);
	assert_in_range(collect(s, 101 * day, 32), 4, 5); /* 2 keys a chunk, 60 + 1 chunks */
	test_expect_blob(s, 1, big);
	assert_int_equal(test_references(s, used), 1);
	assert_int_equal(test_references(s, late), 0);
	assert_int_equal(entries(s, DB_BLOBS), 3);
	assert_int_equal(entries(s, DB_CHUNKS), 62);
	assert_int_equal(entries(s, DB_TRASH), 0);

	/* An upload that was collected is not there to go on with. */
	t = test_begin(s, true);
	assert_int_equal(
		store_blob_append(t, half, CHUNK_SIZE, data, CHUNK_SIZE, &b, NULL), STATUS_NOT_FOUND);
	store_abort(t);
	/* Touching saves from collection. */
	t = test_begin(s, true);
	assert_int_equal(store_blob_begin(t, late, 1000, 109 * day, &b), 0);
	test_commit(t);
	collect(s, 110 * day - 1, 1000);
	assert_int_equal(test_references(s, late), 0);
	assert_int_equal(test_references(s, idle), -1);
	/* Without the dataset, its blob is as old as its last touch. */
	t = test_begin(s, true);
	assert_int_equal(store_dataset_remove(t, "d"), 0);
	test_commit(t);
	collect(s, 120 * day, 1000);
	assert_int_equal(all_entries(s), 1); /* the meta record */
	free(data);
	store_close(s);
}

/* Space that was freed is used again: the file stays near what lives in it. */
static void space_is_used_again(void **state)
{
	struct store *s = test_open(*state);
	struct store_space space;
	size_t len;
	for (uint64_t i = 0; i < 30; i++) {
		uint8_t digest[DIGEST_SIZE];
		test_upload(s, i, 16 * CHUNK_SIZE, (100 + i) * day, digest);
		collect(s, (100 + i) * day, 1000);
	}
	assert_int_equal(store_space(s, &space), 0);
	assert_int_equal(entries(s, DB_BLOBS), 1);
	assert_in_range(space.used, 16 * 262144, 17 * 262144);
	free(test_read_file(((struct test_dir *)*state)->data, &len));
	assert_in_range(len, 1, 3 * 17 * 262144); /* two lived at a time */
	store_close(s);
}

/* ---- requests, events, jobs ---------------------------------------------------------------- */

static void old_requests(void **state)
{
	struct store *s = test_open(*state);
	struct store_txn *t = test_begin(s, true);
	for (unsigned i = 0; i < 100; i++) {
		struct store_request r = {.uid = i, .wall_ns = 100 * day + i};
		r.id[0] = (uint8_t)i;
		r.reply = (struct packed){(uint8_t *)"\x0a\x01x\x12\x02\x08\x00", 7};
		assert_int_equal(store_request_put(t, &r), 0);
	}
	test_commit(t);
	assert_int_equal(collect(s, 101 * day - 1, 1000), 1);
	assert_int_equal(entries(s, DB_REQUESTS), 100);
	assert_int_equal(collect(s, 101 * day + 39, 16), 5); /* 40 of 2 keys */
	assert_int_equal(entries(s, DB_REQUESTS), 60);
	assert_int_equal(collect(s, 102 * day, 1), 8); /* at least 16 keys */
	assert_int_equal(entries(s, DB_REQUESTS), 0);
	assert_int_equal(entries(s, DB_DUE), 0);
	/* The clock may jump. */
	assert_int_equal(collect(s, 0, 16), 1);
	assert_int_equal(collect(s, UINT64_MAX, 16), 1);
	store_close(s);
}

static void ended_jobs(void **state)
{
	struct store *s = test_open(*state);
	uint8_t data[DIGEST_SIZE], saved[DIGEST_SIZE];
	struct store_job j;
	uint64_t id;
	test_upload(s, 1, 1000, 100 * day, data);
	test_upload(s, 2, 1000, 100 * day, saved);
	for (unsigned n = 0; n < 3; n++) {
		static const enum job_state states[] = {JOB_SUCCEEDED, JOB_RUNNING, JOB_CANCELLED};
		struct store_txn *t = test_begin(s, true);
		assert_int_equal(store_job_next_id(t, &id), 0);
		test_job(&j, id, data, 1000);
		test_add_checkpoint(&j, 10, saved, 1000);
		j.state = states[n];
		j.ended_wall_ns = n == 0 ? 100 * day : 0; /* the time of the third's end is not known */
		for (j.last_seq = 0; j.last_seq < 20;) {
			struct packed e = {0};
			test_log_event(&e, ++j.last_seq, "x");
			assert_int_equal(store_event_append(t, id, j.last_seq, EVENT_LOG, e.data, e.len), 0);
			packed_deinit(&e);
		}
		assert_int_equal(store_job_put(t, &j), 0);
		test_commit(t);
		store_job_deinit(&j);
	}
	collect(s, 107 * day - 1, 16);
	assert_int_equal(entries(s, DB_EVENTS), 60);
	collect(s, 107 * day, 16);
	assert_int_equal(entries(s, DB_EVENTS), 40);
	collect(s, 130 * day - 1, 16);
	assert_int_equal(entries(s, DB_JOBS), 3);
	assert_int_equal(test_references(s, saved), 3);
	collect(s, 130 * day, 16);
	assert_int_equal(entries(s, DB_JOBS), 2);
	assert_int_equal(test_references(s, saved), 2);
	collect(s, 9999 * day, 16);
	assert_int_equal(entries(s, DB_JOBS), 2);
	assert_int_equal(entries(s, DB_EVENTS), 40);
	store_close(s);
}

/* Nothing was collected for a month: events and job go together, in slices. */
static void late_collection(void **state)
{
	struct store *s = test_open(*state);
	uint8_t data[DIGEST_SIZE];
	struct store_job j;
	uint64_t id;
	test_upload(s, 1, 1000, 100 * day, data);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_job_next_id(t, &id), 0);
	test_job(&j, id, data, 1000);
	for (j.last_seq = 0; j.last_seq < 100;) {
		struct packed e = {0};
		test_log_event(&e, ++j.last_seq, "x");
		assert_int_equal(store_event_append(t, id, j.last_seq, EVENT_LOG, e.data, e.len), 0);
		packed_deinit(&e);
	}
	j.state = JOB_FAILED;
	j.ended_wall_ns = 100 * day;
	assert_int_equal(store_job_put(t, &j), 0);
	test_commit(t);
	store_job_deinit(&j);
	assert_in_range(collect(s, 200 * day, 16), 7, 8);
	assert_int_equal(all_entries(s), 1); /* the meta record */
	store_close(s);
}

/* ---- a random life ------------------------------------------------------------------------- */

enum {
	BLOBS = 12,
	JOBS = 8,
	NAMES = 4,
};

/* What must be true, kept beside the store. Blob i has content of seed i and a size of its own. */
struct world {
	bool here[BLOBS], was_here[BLOBS];
	uint64_t touched[BLOBS];
	int dataset[NAMES]; /* its blob; -1: none */
	struct {
		bool is;
		uint64_t id;
		int data, eval, adapter; /* eval, adapter: -1 for none */
		int checkpoints[4];
		size_t n;
		uint64_t ended; /* 0: runs */
		uint64_t last_seq, first_seq;
	} job[JOBS];
	uint64_t next_id;
};

static size_t blob_size(int i)
{
	return i % 4 == 3 ? 2 * CHUNK_SIZE + (size_t)i : 100 + (size_t)i;
}

static int references(const struct world *w, int blob)
{
	int n = 0;
	for (int i = 0; i < NAMES; i++) {
		n += w->dataset[i] == blob;
	}
	for (int i = 0; i < JOBS; i++) {
		if (!w->job[i].is) {
			continue;
		}
		n += (w->job[i].data == blob) + (w->job[i].eval == blob) + (w->job[i].adapter == blob);
		for (size_t k = 0; k < w->job[i].n; k++) {
			n += w->job[i].checkpoints[k] == blob;
		}
	}
	return n;
}

static void digest_of(int blob, uint8_t digest[DIGEST_SIZE])
{
	uint8_t *data = malloc(blob_size(blob));
	assert_non_null(data);
	test_fill((uint64_t)blob, data, blob_size(blob));
	test_digest(data, blob_size(blob), digest);
	free(data);
}

static void job_of(const struct world *w, int i, struct store_job *j)
{
	uint8_t digest[DIGEST_SIZE];
	digest_of(w->job[i].data, digest);
	test_job(j, w->job[i].id, digest, blob_size(w->job[i].data));
	if (w->job[i].eval >= 0) {
		digest_of(w->job[i].eval, digest);
		j->eval_dataset.name = strdup("eval");
		test_files(&j->eval_dataset.content, digest, blob_size(w->job[i].eval), 1);
	}
	if (w->job[i].adapter >= 0) {
		digest_of(w->job[i].adapter, digest);
		test_files(&j->init_adapter, digest, blob_size(w->job[i].adapter), 1);
	}
	for (size_t k = 0; k < w->job[i].n; k++) {
		digest_of(w->job[i].checkpoints[k], digest);
		test_add_checkpoint(j, k + 1, digest, blob_size(w->job[i].checkpoints[k]));
	}
	j->state = w->job[i].ended ? JOB_SUCCEEDED : JOB_RUNNING;
	j->ended_wall_ns = w->job[i].ended;
	j->last_seq = w->job[i].last_seq;
}

static int some_blob(const struct world *w, uint64_t *rng)
{
	for (int tries = 0; tries < 20; tries++) {
		int i = (int)(test_random(rng) % BLOBS);
		if (w->here[i]) {
			return i;
		}
	}
	return -1;
}

/* Changes a job in the model and puts it; false when the model must stay as it was. */
static void change_job(struct world *w, struct store_txn *t, uint64_t *rng)
{
	int i = (int)(test_random(rng) % JOBS), blob = some_blob(w, rng);
	if (blob < 0) {
		return;
	}
	if (!w->job[i].is) {
		uint64_t id;
		assert_int_equal(store_job_next_id(t, &id), 0);
		assert_int_equal(id, w->next_id++);
		memset(&w->job[i], 0, sizeof(w->job[i]));
		w->job[i].is = true;
		w->job[i].id = id;
		w->job[i].data = blob;
		w->job[i].eval = w->job[i].adapter = -1;
		w->job[i].first_seq = 1;
	}
	switch (test_random(rng) % 5) {
	case 0:
		w->job[i].eval = w->job[i].eval < 0 ? blob : -1;
		break;
	case 1:
		w->job[i].adapter = blob;
		break;
	case 2:
		w->job[i].n -= w->job[i].n > 0;
		break;
	default:
		w->job[i].checkpoints[w->job[i].n % 4] = blob;
		w->job[i].n = w->job[i].n % 4 + 1;
	}
	if (!w->job[i].ended) {
		for (uint64_t n = test_random(rng) % 4; n > 0; n--) {
			struct packed e = {0};
			uint64_t seq = ++w->job[i].last_seq;
			test_log_event(&e, seq, "x");
			assert_int_equal(store_event_append(t, w->job[i].id, seq, EVENT_LOG, e.data, e.len), 0);
			packed_deinit(&e);
		}
	}
	struct store_job j;
	job_of(w, i, &j);
	assert_int_equal(store_job_put(t, &j), 0);
	store_job_deinit(&j);
}

static void end_or_retry(struct world *w, struct store_txn *t, uint64_t now, uint64_t *rng)
{
	struct store_job j;
	int i = (int)(test_random(rng) % JOBS);
	if (w->job[i].is) {
		w->job[i].ended = w->job[i].ended ? 0 : now;
		job_of(w, i, &j);
		assert_int_equal(store_job_put(t, &j), 0);
		store_job_deinit(&j);
		/* A retry that has no newest event would look like a lost one. */
		if (!w->job[i].ended) {
			struct packed e = {0};
			uint64_t seq = ++w->job[i].last_seq;
			test_log_event(&e, seq, "again");
			assert_int_equal(store_event_append(t, w->job[i].id, seq, EVENT_LOG, e.data, e.len), 0);
			packed_deinit(&e);
			job_of(w, i, &j);
			assert_int_equal(store_job_put(t, &j), 0);
			store_job_deinit(&j);
		}
	}
}

static void change_dataset(struct world *w, struct store_txn *t, uint64_t *rng)
{
	int i = (int)(test_random(rng) % NAMES), blob = some_blob(w, rng);
	char name[] = {'d', (char)('0' + i), 0};
	if (w->dataset[i] >= 0 && test_random(rng) % 2) {
		assert_int_equal(store_dataset_remove(t, name), 0);
		w->dataset[i] = -1;
	} else if (blob >= 0) {
		struct store_dataset d = {.name = name, .content = {.size = blob_size(blob)}};
		digest_of(blob, d.content.digest);
		assert_int_equal(store_dataset_put(t, &d), 0);
		w->dataset[i] = blob;
	}
}

/* What store_collect() must have done by `now`. */
static void model_collect(struct world *w, uint64_t now)
{
	for (int i = 0; i < JOBS; i++) {
		if (w->job[i].is && w->job[i].ended && w->job[i].ended + 30 * day <= now) {
			w->job[i].is = false;
		} else if (w->job[i].is && w->job[i].ended && w->job[i].ended + 7 * day <= now) {
			w->job[i].first_seq = w->job[i].last_seq + 1;
		}
	}
	for (int i = 0; i < BLOBS; i++) {
		if (w->here[i] && references(w, i) == 0 && w->touched[i] + day <= now) {
			w->here[i] = false;
		}
	}
}

static int count_event(void *ctx, uint64_t seq, const void *event, size_t len)
{
	uint64_t *next = ctx;
	assert_int_equal(seq, *next);
	++*next;
	return 0;
}

static void compare(struct store *s, const struct world *w)
{
	uint8_t digest[DIGEST_SIZE];
	uint64_t n_jobs = 0;
	for (int i = 0; i < BLOBS; i++) {
		digest_of(i, digest);
		assert_int_equal(test_references(s, digest), w->here[i] ? references(w, i) : -1);
		if (w->here[i]) {
			test_expect_blob(s, (uint64_t)i, blob_size(i));
		}
	}
	struct store_txn *t = test_begin(s, false);
	for (int i = 0; i < JOBS; i++) {
		if (!w->job[i].is) {
			continue;
		}
		n_jobs++;
		struct store_job j = {0};
		uint64_t first = w->job[i].first_seq, next = first;
		assert_int_equal(store_job_get(t, w->job[i].id, &j), 0);
		assert_int_equal(j.n_checkpoints, w->job[i].n);
		assert_int_equal(j.last_seq, w->job[i].last_seq);
		store_job_deinit(&j);
		assert_int_equal(
			store_event_each(t, w->job[i].id, first - 1, ~0u, 10000, count_event, &next, &first),
			0);
		assert_int_equal(next, w->job[i].last_seq + 1);
	}
	store_abort(t);
	assert_int_equal(entries(s, DB_JOBS), n_jobs);
}

/* Some operations in one transaction, which commits or not. */
static void one_transaction(struct store *s, struct world *w, uint64_t now, uint64_t *rng)
{
	struct world before = *w;
	struct store_txn *t = test_begin(s, true);
	for (uint64_t n = 1 + test_random(rng) % 4; n > 0; n--) {
		switch (test_random(rng) % 4) {
		case 0:
			change_dataset(w, t, rng);
			break;
		case 1:
			end_or_retry(w, t, now, rng);
			break;
		default:
			change_job(w, t, rng);
		}
	}
	if (test_random(rng) % 4 == 0) {
		store_abort(t);
		*w = before;
	} else {
		test_commit(t);
	}
}

static void random_life(void **state)
{
	const char *given = getenv("PEFTD_TEST_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 10) : 1, rng = seed * 77 + 1;
	struct store *s = test_open(*state);
	struct world w = {.next_id = 1};
	uint64_t now = 1000 * day;
	const char *steps = getenv("PEFTD_TEST_STEPS");
	unsigned long n_steps = steps ? strtoul(steps, NULL, 10) : 300;
	for (int i = 0; i < NAMES; i++) {
		w.dataset[i] = -1;
	}
	for (unsigned long step = 0; step < n_steps; step++) {
		uint64_t what = test_random(&rng) % 16;
		if (what < 5) {
			int i = (int)(test_random(&rng) % BLOBS);
			uint8_t digest[DIGEST_SIZE];
			test_upload(s, (uint64_t)i, blob_size(i), now, digest);
			w.here[i] = true;
			w.touched[i] = now;
		} else if (what < 13) {
			one_transaction(s, &w, now, &rng);
		} else if (what < 15) {
			now += test_random(&rng) % (3 * day);
			bool more = true;
			while (more) {
				assert_int_equal(
					store_collect(s, now, 16 + (unsigned)(test_random(&rng) % 60), &more), 0);
			}
			model_collect(&w, now);
		} else {
			store_close(s);
			s = test_open(*state);
		}
		if (step % 20 == 0) {
			compare(s, &w);
			test_check(s);
		}
	}
	compare(s, &w);
	test_check(s);
	store_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(idle_blobs, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(space_is_used_again, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(old_requests, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(ended_jobs, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(late_collection, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(random_life, test_setup, test_teardown),
	};
	return cmocka_run_group_tests_name("store collect", tests, NULL, NULL);
}
