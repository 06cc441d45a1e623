/* What was acknowledged is there: after kill -9 at any instant, on a full disk, after a failed
 * commit. */

#include "store-test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* In a child a failed assertion must not jump back into cmocka. */
#define MUST(x)                                                                                    \
	do {                                                                                           \
		if (!(x)) {                                                                                \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                \
			_exit(1);                                                                              \
		}                                                                                          \
	} while (0)

enum {
	CANNOT = 77, /* exit status of a child that may not do what the test needs */
};

/* ---- numbered transactions ----------------------------------------------------------------- */

static size_t blob_size(uint64_t n)
{
	return n % 4 == 0 ? CHUNK_SIZE + 5 : (size_t)(n % 4) * 3000;
}

static void blob_of(uint64_t n, uint8_t *data, uint8_t digest[DIGEST_SIZE])
{
	test_fill(n, data, blob_size(n));
	test_digest(data, blob_size(n), digest);
}

/* Transaction n: a blob, a job that holds it, two events of it, and a request. What store_commit()
 * said, or the first error before. */
static int transaction(struct store *s, uint64_t n)
{
	static uint8_t data[2 * CHUNK_SIZE]; /* too big for a stack */
	struct store_txn *t;
	struct store_blob b;
	struct store_job j;
	struct packed e = {0};
	uint64_t id = 0;
	uint8_t digest[DIGEST_SIZE];
	size_t size = blob_size(n);

	blob_of(n, data, digest);
	int r = store_begin(s, true, &t);
	if (r != 0) {
		return r;
	}
	r = store_blob_begin(t, digest, size, n, &b);
	while (r == 0 && b.received < size) {
		r = store_blob_append(
			t, digest, b.received, data + b.received, chunk_len(size, b.received), &b, NULL);
	}
	if (r == 0) {
		r = store_job_next_id(t, &id);
	}
	MUST(r != 0 || id == n);
	test_job(&j, n, digest, size);
	for (j.last_seq = 0; r == 0 && j.last_seq < 2;) {
		test_log_event(&e, ++j.last_seq, "x");
		r = store_event_append(t, n, j.last_seq, EVENT_LOG, e.data, e.len);
	}
	packed_deinit(&e);
	if (r == 0) {
		r = store_job_put(t, &j);
	}
	store_job_deinit(&j);
	if (r == 0) {
		struct store_request q = {.uid = (uint32_t)n, .wall_ns = n};
		q.reply = (struct packed){(uint8_t *)"\x0a\x01x\x12\x02\x08\x00", 7};
		r = store_request_put(t, &q);
	}
	if (r != 0) {
		store_abort(t);
		return r;
	}
	return store_commit(t);
}

static int count(void *ctx, const struct store_job *j)
{
	uint64_t *n = ctx;
	return j->id == ++*n ? 0 : 99;
}

/* Transactions 1…n are there whole, for n the newest job; *ret its number. */
static void verify(struct store *s, uint64_t *ret)
{
	static uint8_t data[2 * CHUNK_SIZE], got[2 * CHUNK_SIZE];
	uint64_t n = 0;
	uint8_t digest[DIGEST_SIZE];
	struct buf report = {0};
	uint64_t faults = 0;
	int r = store_check(s, &report, &faults);
	if (r != 0 || faults != 0) {
		fprintf(stderr, "store_check: %d: %s\n", r, buf_cstr(&report));
	}
	MUST(r == 0 && faults == 0);
	buf_deinit(&report);

	struct store_txn *t;
	MUST(store_begin(s, false, &t) == 0);
	MUST(store_job_each(t, count, &n) == 0);
	/* All of the newest ones, some of the older: the check has read everything. */
	for (uint64_t i = 1; i <= n; i += n - i > 20 ? 7 : 1) {
		struct store_request q = {0};
		uint8_t id[REQUEST_ID_SIZE] = {0};
		blob_of(i, data, digest);
		MUST(store_blob_read(t, digest, 0, got, blob_size(i)) == 0);
		MUST(memcmp(data, got, blob_size(i)) == 0);
		MUST(store_request_get(t, (uint32_t)i, id, &q) == 0);
		store_request_deinit(&q);
	}
	store_abort(t);
	*ret = n;
}

/* ---- kill -9 ------------------------------------------------------------------------------- */

static void write_until_killed(const char *state_dir, uint64_t next, int fd)
{
	struct store *s;
	struct errmsg err;
	int r = store_open(&s, state_dir, &err);
	if (r != 0) {
		fprintf(stderr, "store_open: %d: %s\n", r, err.text);
		_exit(1);
	}
	bool more;
	for (;; next++) {
		MUST(transaction(s, next) == 0);
		MUST(write(fd, &next, sizeof(next)) == sizeof(next));
		if (next % 5 == 0) { /* long before anything is due */
			MUST(store_collect(s, 5, 100, &more) == 0);
		}
	}
}

/* cmocka turns these into failures of the test, by a jump that a child must not make. */
static void signals_of_a_child(void)
{
	static const int fatal[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGSYS};
	for (size_t i = 0; i < ARRAY_LEN(fatal); i++) {
		signal(fatal[i], SIG_DFL);
	}
}

/* One life: killed so long after so many transactions; the number of the last acknowledged. */
static uint64_t one_life(
	const char *state_dir, uint64_t acknowledged, unsigned transactions, unsigned microseconds)
{
	uint64_t n;
	int up[2];
	assert_int_equal(pipe2(up, O_CLOEXEC), 0);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		signals_of_a_child();
		write_until_killed(state_dir, acknowledged + 1, up[1]);
	}
	close(up[1]);
	struct timespec wait = {.tv_nsec = (long)microseconds * 1000};
	int status;
	for (; transactions > 0 && read(up[0], &n, sizeof(n)) == sizeof(n); transactions--) {
		assert_int_equal(n, acknowledged + 1);
		acknowledged = n;
	}
	/* Not to synchronise: the instant of the kill is what is random here. */
	ppoll(NULL, 0, &wait, NULL);
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	while (read(up[0], &n, sizeof(n)) == sizeof(n)) {
		assert_int_equal(n, acknowledged + 1);
		acknowledged = n;
	}
	close(up[0]);
	return acknowledged;
}

static void killed_at_any_instant(void **state)
{
	struct test_dir *d = *state;
	const char *given = getenv("PEFTD_TEST_KILLS"), *seed = getenv("PEFTD_TEST_SEED");
	int kills = given ? (int)strtol(given, NULL, 10) : 50;
	uint64_t rng = seed ? strtoull(seed, NULL, 10) * 31 + 5 : 5, there = 0, lost_answers = 0;
	for (int i = 0; i < kills; i++) {
		uint64_t acknowledged = one_life(d->state, there, (unsigned)(test_random(&rng) % 4),
			(unsigned)(test_random(&rng) % 9000));
		struct store *s = test_open(d);
		uint64_t n;
		verify(s, &n);
		if (n != acknowledged && n != acknowledged + 1) {
			fail_msg("kill %d: %" PRIu64 " transactions were acknowledged, %" PRIu64 " are there",
				i, acknowledged, n);
		}
		lost_answers += n != acknowledged;
		there = n;
		store_close(s);
	}
	print_message("# %d kills, %" PRIu64 " transactions, %" PRIu64 " of them without an answer\n",
		kills, there, lost_answers);
	assert_true(there >= (uint64_t)kills / 2);
}

/* The first start, killed anywhere: the next one finds a store or none, never half of one. */
static void killed_while_made(void **state)
{
	for (int i = 0; i < 30; i++) {
		struct test_dir d;
		test_dir_make(&d);
		pid_t child = fork();
		assert_true(child >= 0);
		if (child == 0) {
			signals_of_a_child();
			struct store *s;
			store_open(&s, d.state, NULL);
			_exit(0);
		}
		struct timespec wait = {.tv_nsec = i * 150000L};
		ppoll(NULL, 0, &wait, NULL);
		kill(child, SIGKILL);
		assert_int_equal(waitpid(child, NULL, 0), child);
		struct store *s = test_open(&d);
		test_check(s);
		store_close(s);
		test_dir_remove(&d);
	}
}

/* ---- a full disk --------------------------------------------------------------------------- */

static int in_child(void (*fn)(const struct test_dir *d), const struct test_dir *d)
{
	fflush(stdout);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		signals_of_a_child();
		fn(d);
		_exit(0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFEXITED(status) && WEXITSTATUS(status) == CANNOT) {
		return CANNOT;
	}
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	return 0;
}

static void fill_file_system(const char *path)
{
	static const char block[4096] = {1};
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	MUST(fd >= 0);
	while (write(fd, block, sizeof(block)) > 0) {
	}
	MUST(errno == ENOSPC);
	close(fd);
}

/* Writes until there is no room; the number of the last acknowledged. */
static uint64_t write_until_full(struct store *s, uint64_t next)
{
	for (;; next++) {
		int r = transaction(s, next);
		if (r == STATUS_DISK_FULL) {
			return next - 1;
		}
		MUST(r == 0);
		MUST(next < 10000);
	}
}

static void on_small_disk(const struct test_dir *d)
{
	char filler[300];
	struct store *s;
	struct errmsg err = {0};
	uint64_t there, n;
	/* A mount namespace of one's own: nobody else sees the mount, and it ends with the process. */
	if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, "") != 0 ||
		mount("tmpfs", d->path, "tmpfs", 0, "size=8m") != 0) {
		fprintf(stderr, "cannot mount a tmpfs: %s\n", strerror(errno));
		_exit(CANNOT);
	}
	setenv("PEFTD_STORE_RESERVE", "0", 1);
	MUST(store_open(&s, d->state, &err) == 0);
	uint64_t acknowledged = write_until_full(s, 1);
	MUST(acknowledged >= 20);
	verify(s, &there);
	MUST(there == acknowledged);
	MUST(store_room(s, 4 << 20, &err) == STATUS_DISK_FULL);

	/* Not a byte left: it says so, it opens, it reads. */
	snprintf(filler, sizeof(filler), "%s/filler", d->path);
	fill_file_system(filler);
	for (int i = 0; i < 3; i++) {
		MUST(transaction(s, acknowledged + 1) == STATUS_DISK_FULL);
	}
	bool more;
	MUST(store_collect(s, UINT64_C(1) << 62, 100, &more) == STATUS_DISK_FULL);
	store_close(s);
	MUST(store_open(&s, d->state, &err) == 0);
	verify(s, &there);
	MUST(there == acknowledged);

	/* Somebody makes room: it goes on. */
	MUST(unlink(filler) == 0);
	n = write_until_full(s, acknowledged + 1);
	MUST(n >= acknowledged);
	verify(s, &there);
	MUST(there == n);
	store_close(s);

	/* A new store on a full disk is refused, and made when there is room. */
	struct test_dir other = *d;
	snprintf(other.state, sizeof(other.state), "%s/other", d->path);
	fill_file_system(filler);
	MUST(store_open(&s, other.state, &err) == STATUS_DISK_FULL);
	char data[300];
	snprintf(data, sizeof(data), "%s/store/data.mdb", d->state);
	MUST(unlink(data) == 0);
	MUST(store_open(&s, other.state, &err) == 0);
	verify(s, &there);
	MUST(there == 0);
	store_close(s);
}

static void full_disk(void **state)
{
	if (in_child(on_small_disk, *state) == CANNOT) {
		SKIP("no tmpfs of its own can be mounted (needs root, or a user namespace)");
	}
}

/* ---- a commit that fails ------------------------------------------------------------------- */

/* The file may not grow any more: write() fails in the middle of a commit, as on a disk that is
 * full by a quota, which statvfs() does not show. */
static void with_limited_file(const struct test_dir *d)
{
	struct store *s;
	struct store_txn *t;
	struct errmsg err = {0};
	struct rlimit limit, none = {RLIM_INFINITY, RLIM_INFINITY};
	uint64_t there, n = 1;
	int r;

	MUST(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
	MUST(getrlimit(RLIMIT_FSIZE, &none) == 0);
	for (int round = 0; round < 4; round++) {
		MUST(store_open(&s, d->state, &err) == 0);
		struct store_space space;
		MUST(store_space(s, &space) == 0);
		limit = (struct rlimit){(round + 1) * 1500000, none.rlim_max};
		MUST(setrlimit(RLIMIT_FSIZE, &limit) == 0);
		while ((r = transaction(s, n)) == 0) {
			n++;
		}
		MUST(r < 0);
		/* Nothing goes on with this store, whoever asks. */
		MUST(store_begin(s, true, &t) == -EIO);
		MUST(store_begin(s, false, &t) == -EIO);
		store_close(s);
		MUST(setrlimit(RLIMIT_FSIZE, &none) == 0);

		MUST(store_open(&s, d->state, &err) == 0);
		verify(s, &there);
		MUST(there == n - 1 || there == n); /* the outcome was unknown */
		n = there + 1;
		MUST(transaction(s, n) == 0);
		n++;
		store_close(s);
	}
	MUST(n > 20);
}

static void failed_commit(void **state)
{
	assert_int_equal(in_child(with_limited_file, *state), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(killed_at_any_instant, test_setup, test_teardown),
		cmocka_unit_test(killed_while_made),
		cmocka_unit_test_setup_teardown(full_disk, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(failed_commit, test_setup, test_teardown),
	};
	return cmocka_run_group_tests_name("store crash", tests, NULL, NULL);
}
