#include "store-test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "event.pb-c.h"
#include "job.pb-c.h"

void test_dir_make(struct test_dir *d)
{
	const char *tmp = getenv("TMPDIR");
	snprintf(d->path, sizeof(d->path), "%s/peftd-store-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(d->path)) {
		fail_msg("%s: %s", d->path, strerror(errno));
	}
	snprintf(d->state, sizeof(d->state), "%s/state", d->path);
	snprintf(d->data, sizeof(d->data), "%s/store/data.mdb", d->state);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

void test_dir_remove(struct test_dir *d)
{
	nftw(d->path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

int test_setup(void **state)
{
	struct test_dir *d = calloc(1, sizeof(*d));
	assert_non_null(d);
	test_dir_make(d);
	*state = d;
	return 0;
}

int test_teardown(void **state)
{
	test_dir_remove(*state);
	free(*state);
	return 0;
}

struct store *test_open(const struct test_dir *d)
{
	struct store *s = NULL;
	struct errmsg err = {0};
	int r = store_open(&s, d->state, &err);
	if (r != 0) {
		fail_msg("store_open: %d: %s", r, err.text);
	}
	return s;
}

void test_refused(const struct test_dir *d, int status, const char *says)
{
	struct store *s = NULL;
	struct errmsg err = {0};
	int r = store_open(&s, d->state, &err);
	if (r != status || !strstr(err.text, says)) {
		fail_msg("store_open: %d (\"%s\") instead of %d with \"%s\"", r, err.text, status, says);
	}
	assert_null(s);
}

struct store_txn *test_begin(struct store *s, bool write)
{
	struct store_txn *t = NULL;
	assert_int_equal(store_begin(s, write, &t), 0);
	return t;
}

void test_commit(struct store_txn *t)
{
	assert_int_equal(store_commit(t), 0);
}

void test_check(struct store *s)
{
	struct buf report = {0};
	uint64_t faults = 99;
	int r = store_check(s, &report, &faults);
	if (r != 0 || faults != 0) {
		fail_msg(
			"store_check: %d, %llu faults:\n%s", r, (unsigned long long)faults, buf_cstr(&report));
	}
	assert_int_equal(report.len, 0);
	buf_deinit(&report);
}

void test_check_finds(struct store *s, const char *says)
{
	struct buf report = {0};
	uint64_t faults = 0;
	int r = store_check(s, &report, &faults);
	if (r != 0 || faults == 0 || !strstr(buf_cstr(&report), says)) {
		fail_msg("store_check: %d, %llu faults, looking for \"%s\" in:\n%s", r,
			(unsigned long long)faults, says, buf_cstr(&report));
	}
	buf_deinit(&report);
}

uint64_t test_random(uint64_t *state)
{
	uint64_t x = *state;
	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * UINT64_C(2685821657736338717);
}

void test_fill(uint64_t seed, void *out, size_t len)
{
	uint8_t *p = out;
	uint64_t state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
	for (size_t i = 0; i < len; i += 8) {
		uint64_t v = test_random(&state);
		memcpy(p + i, &v, len - i < 8 ? len - i : 8);
	}
}

void test_digest(const void *data, size_t len, uint8_t digest[DIGEST_SIZE])
{
	crypto_generichash(digest, DIGEST_SIZE, data, len, NULL, 0);
}

void test_upload(
	struct store *s, uint64_t seed, size_t size, uint64_t now, uint8_t digest[DIGEST_SIZE])
{
	_cleanup_(freep) uint8_t *data = malloc(size + 1);
	struct store_blob b;
	struct errmsg err;
	assert_non_null(data);
	test_fill(seed, data, size);
	test_digest(data, size, digest);

	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_blob_begin(t, digest, size, now, &b), 0);
	for (unsigned n = 0; b.received < size; n++) {
		if (n % 4 == 3) {
			test_commit(t);
			t = test_begin(s, true);
		}
		size_t len = chunk_len(size, b.received);
		assert_int_equal(
			store_blob_append(t, digest, b.received, data + b.received, len, &b, &err), 0);
	}
	test_commit(t);
}

void test_expect_blob(struct store *s, uint64_t seed, size_t size)
{
	_cleanup_(freep) uint8_t *data = malloc(size + 1), *got = malloc(size + 1);
	uint8_t digest[DIGEST_SIZE];
	assert_non_null(data);
	assert_non_null(got);
	test_fill(seed, data, size);
	test_digest(data, size, digest);
	struct store_txn *t = test_begin(s, false);
	assert_int_equal(store_blob_read(t, digest, 0, got, size), 0);
	assert_true(size == 0 || memcmp(data, got, size) == 0);
	store_abort(t);
}

int test_references(struct store *s, const uint8_t digest[DIGEST_SIZE])
{
	struct store_blob b;
	struct store_txn *t = test_begin(s, false);
	int r = store_blob_get(t, digest, &b);
	store_abort(t);
	assert_true(r == 0 || r == STATUS_NOT_FOUND);
	return r == 0 ? (int)b.references : -1;
}

void test_files(struct store_files *f, const uint8_t digest[DIGEST_SIZE], uint64_t size, size_t n)
{
	*f = (struct store_files){.size = size, .n = n};
	memcpy(f->digest, digest, DIGEST_SIZE);
	if (n > 0) {
		f->files = calloc(n, sizeof(*f->files));
		assert_non_null(f->files);
	}
	for (size_t i = 0; i < n; i++) {
		char name[40];
		snprintf(name, sizeof(name), "file-%zu-ü.jsonl", i);
		f->files[i].name = strdup(name);
		f->files[i].size = i + 1 < n ? size / n : size - size / n * (n - 1);
	}
}

static void pack_message(struct packed *p, const void *msg)
{
	packed_deinit(p);
	p->data = proto_pack(msg, &p->len);
	assert_non_null(p->data);
}

void test_job(struct store_job *j, uint64_t id, const uint8_t digest[DIGEST_SIZE], uint64_t size)
{
	Peftd__V1__JobSpec spec = PEFTD__V1__JOB_SPEC__INIT;
	Peftd__V1__Plan plan = PEFTD__V1__PLAN__INIT;
	spec.has_name = true;
	spec.name = proto_bytes("first try");
	plan.has_total = true;
	plan.total = 123456789;

	*j = (struct store_job){
		.id = id,
		.owner_uid = 1000,
		.name = strdup("first try"),
		.model = strdup("smol"),
		.model_path = strdup("/models/smol"),
		.state = JOB_PENDING,
		.reason = NULL,
		.priority = -1,
		.planned_bytes = 123456789,
		.steps = 200,
		.submitted_wall_ns = 1700000000000000000,
		.started_wall_ns = 1700000001000000000,
		.attempt = 2,
		.tries = 1,
		.last_step = 17,
		.last_eval_step = 10,
		.last_loss = (double)NAN,
		.measured_arena = 1 << 30,
		.measured_peak_rss = 1 << 29,
	};
	memset(j->request_id, (int)id, sizeof(j->request_id));
	memset(j->model_digest, 7, sizeof(j->model_digest));
	pack_message(&j->spec, &spec);
	pack_message(&j->plan, &plan);
	test_files(&j->dataset.content, digest, size, 2);
	j->dataset.name = strdup("gsm8k");
	j->dataset.prompt_field = strdup("question");
	j->dataset.rows = 7473;
}

void test_add_checkpoint(
	struct store_job *j, uint64_t step, const uint8_t digest[DIGEST_SIZE], uint64_t size)
{
	j->checkpoints = realloc(j->checkpoints, (j->n_checkpoints + 1) * sizeof(*j->checkpoints));
	assert_non_null(j->checkpoints);
	struct store_checkpoint *c = &j->checkpoints[j->n_checkpoints++];
	*c = (struct store_checkpoint){.step = step, .eval_loss = (double)NAN, .wall_ns = 5};
	test_files(&c->content, digest, size, 2);
}

void test_log_event(struct packed *p, uint64_t seq, const char *text)
{
	Peftd__V1__Event e = PEFTD__V1__EVENT__INIT;
	Peftd__V1__LogEvent log = PEFTD__V1__LOG_EVENT__INIT;
	log.has_text = true;
	log.text = proto_bytes(text);
	e.has_seq = true;
	e.seq = seq;
	e.what_case = PEFTD__V1__EVENT__WHAT_LOG;
	e.log = &log;
	pack_message(p, &e);
}

uint8_t *test_read_file(const char *path, size_t *ret_len)
{
	FILE *f = fopen(path, "rb");
	assert_non_null(f);
	assert_int_equal(fseek(f, 0, SEEK_END), 0);
	long len = ftell(f);
	rewind(f);
	uint8_t *data = malloc((size_t)len + 1);
	assert_non_null(data);
	assert_int_equal(fread(data, 1, (size_t)len, f), len);
	fclose(f);
	*ret_len = (size_t)len;
	return data;
}

void test_write_file(const char *path, const void *data, size_t len)
{
	FILE *f = fopen(path, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}
