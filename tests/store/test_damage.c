/* Opening: what is refused, and that refusing changes nothing. Damage: what is found. */

#include "store-test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* A file's bytes, to compare with later. */
struct before {
	uint8_t *data;
	size_t len;
};

static struct before keep(const struct test_dir *d)
{
	struct before b;
	b.data = test_read_file(d->data, &b.len);
	return b;
}

static void same(const struct test_dir *d, const struct before *b)
{
	size_t len;
	uint8_t *now = test_read_file(d->data, &len);
	assert_int_equal(len, b->len);
	assert_memory_equal(now, b->data, len);
	free(now);
}

/* A store with something of everything. */
static void fill_store(struct store *s)
{
	uint8_t data[DIGEST_SIZE], big[DIGEST_SIZE], gone[DIGEST_SIZE];
	struct store_job j;
	uint64_t id;
	test_upload(s, 1, 1000, 5, data);
	test_upload(s, 2, 2 * CHUNK_SIZE + 99, 5, big);
	test_upload(s, 3, 1000, 5, gone);
	for (int n = 0; n < 20; n++) {
		struct store_txn *t = test_begin(s, true);
		struct store_request r = {.uid = 7, .wall_ns = 9};
		r.id[0] = (uint8_t)n;
		r.reply = (struct packed){(uint8_t *)"\x0a\x01x\x12\x02\x08\x00", 7};
		assert_int_equal(store_request_put(t, &r), 0);
		assert_int_equal(store_job_next_id(t, &id), 0);
		test_job(&j, id, data, 1000);
		test_add_checkpoint(&j, 10, big, 2 * CHUNK_SIZE + 99);
		for (j.last_seq = 0; j.last_seq < 15;) {
			struct packed e = {0};
			test_log_event(&e, ++j.last_seq, "something that happened to this job");
			assert_int_equal(store_event_append(t, id, j.last_seq, EVENT_LOG, e.data, e.len), 0);
			packed_deinit(&e);
		}
		assert_int_equal(store_job_put(t, &j), 0);
		test_commit(t);
		store_job_deinit(&j);
	}
	bool more;
	assert_int_equal(store_collect(s, 6, 1000, &more), 0);
}

/* The digest of every entry there is. */
static void dump(struct store *s, uint8_t out[DIGEST_SIZE])
{
	crypto_generichash_state h;
	crypto_generichash_init(&h, NULL, 0, DIGEST_SIZE);
	struct store_txn *t = test_begin(s, false);
	for (int db = 0; db < DB_N; db++) {
		struct db_iter it;
		struct bytes key, value;
		assert_int_equal(db_iter_init(&it, t, (enum store_db)db, NULL, 0), 0);
		while (db_iter_next(&it, &key, &value) == 0) {
			uint64_t lens[3] = {(uint64_t)db, key.len, value.len};
			crypto_generichash_update(&h, (uint8_t *)lens, sizeof(lens));
			crypto_generichash_update(&h, key.data, key.len);
			crypto_generichash_update(&h, value.data, value.len);
		}
		db_iter_deinit(&it);
	}
	store_abort(t);
	crypto_generichash_final(&h, out, DIGEST_SIZE);
}

/* ---- the place ----------------------------------------------------------------------------- */

static void permissions(void **state)
{
	struct test_dir *d = *state;
	mode_t old = umask(0);
	store_close(test_open(d));
	umask(old);
	static const char *const names[] = {
		"", "/store", "/lock", "/store/data.mdb", "/store/lock.mdb"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		char path[400];
		struct stat st;
		snprintf(path, sizeof(path), "%s%s", d->state, names[i]);
		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(st.st_mode & 0777, S_ISDIR(st.st_mode) ? 0700 : 0600);
	}
}

static void places(void **state)
{
	struct test_dir *d = *state, other = *d;
	snprintf(other.state, sizeof(other.state), "%s/no/such", d->path);
	test_refused(&other, STATUS_INVALID, "cannot make the directory: No such file or directory");
	snprintf(other.state, sizeof(other.state), "%s/file", d->path);
	test_write_file(other.state, "x", 1);
	test_refused(&other, STATUS_INVALID, "cannot open the directory: Not a directory");

	char path[300];
	assert_int_equal(mkdir(d->state, 0700), 0);
	snprintf(path, sizeof(path), "%s/store", d->state);
	test_write_file(path, "x", 1);
	test_refused(d, STATUS_INVALID, "not a directory");
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("/tmp", path), 0); /* not followed */
	test_refused(d, STATUS_INVALID, "not a directory");
	assert_int_equal(unlink(path), 0);
	store_close(test_open(d));
}

/* The first start was killed before its store was in place. */
static void half_made(void **state)
{
	struct test_dir *d = *state;
	char dir[300], file[400];
	snprintf(dir, sizeof(dir), "%s/store.new", d->state);
	assert_int_equal(mkdir(d->state, 0700), 0);
	assert_int_equal(mkdir(dir, 0700), 0);
	snprintf(file, sizeof(file), "%s/data.mdb", dir);
	test_write_file(file, "half", 4);
	store_close(test_open(d));
	assert_int_equal(access(dir, F_OK), -1);

	/* What is not ours is not removed. */
	snprintf(dir, sizeof(dir), "%s/store", d->state);
	snprintf(file, sizeof(file), "%s/elsewhere", d->state);
	assert_int_equal(rename(dir, file), 0);
	snprintf(dir, sizeof(dir), "%s/store.new", d->state);
	assert_int_equal(mkdir(dir, 0700), 0);
	snprintf(file, sizeof(file), "%s/thesis.tex", dir);
	test_write_file(file, "x", 1);
	test_refused(d, STATUS_INVALID, "left-over");
	assert_int_equal(access(file, F_OK), 0);
}

static void network_file_systems(void **state)
{
	static const struct {
		uint64_t magic;
		const char *name;
	} refused[] = {{0x6969, "NFS"}, {0xFF534D42, "SMB"}, {0xFE534D42, "SMB"}, {0x5346414F, "AFS"},
		{0x00C36400, "Ceph"}, {0x01021997, "9P"}, {0x65735546, "FUSE"}, {0x0BD00BD0, "Lustre"}};
	static const uint64_t fine[] = {0xEF53 /* ext4 */, 0x58465342 /* xfs */, 0x9123683E /* btrfs */,
		0x01021994 /* tmpfs */, 0x794C7630 /* overlay */, 0x2FC12FC1 /* zfs */,
		0xF2F52010 /* f2fs */};
	for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
		assert_string_equal(store_refused_fs(refused[i].magic), refused[i].name);
	}
	for (size_t i = 0; i < ARRAY_LEN(fine); i++) {
		assert_null(store_refused_fs(fine[i]));
	}
}

static void settings(void **state)
{
	struct test_dir *d = *state;
	static const char *const bad[] = {"", "x", "12 GiB", "-1", "99999999999999999999999"};
	static const char *const names[] = {"PEFTD_STORE_MAP", "PEFTD_STORE_RESERVE"};
	for (size_t n = 0; n < ARRAY_LEN(names); n++) {
		const char *was = getenv(names[n]);
		char *kept = was ? strdup(was) : NULL;
		for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
			setenv(names[n], bad[i], 1);
			test_refused(d, STATUS_INVALID, "not a number of bytes");
		}
		if (kept) {
			setenv(names[n], kept, 1);
		} else {
			unsetenv(names[n]);
		}
		free(kept);
	}
	store_close(test_open(d));
}

/* ---- the lock ------------------------------------------------------------------------------ */

static void lock_in_the_same_process(void **state)
{
	struct store *s = test_open(*state);
	char pid[40];
	snprintf(pid, sizeof(pid), "process %ld holds", (long)getpid());
	test_refused(*state, STATUS_CONFLICT, pid);
	/* The first is unharmed. */
	fill_store(s);
	test_check(s);
	store_close(s);
	store_close(test_open(*state));
}

static void lock_of_another_process(void **state)
{
	struct test_dir *d = *state;
	int up[2];
	char byte;
	assert_int_equal(pipe(up), 0);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		struct store *s;
		struct errmsg err;
		int r = store_open(&s, d->state, &err);
		if (r != 0 || write(up[1], "x", 1) != 1) {
			_exit(1);
		}
		for (;;) {
			pause();
		}
	}
	assert_int_equal(read(up[0], &byte, 1), 1);
	struct before b = keep(d);
	char says[400];
	snprintf(says, sizeof(says), "process %ld holds %s/lock", (long)child, d->state);
	test_refused(d, STATUS_CONFLICT, says);
	same(d, &b);
	free(b.data);

	/* However it ends, the lock ends with it. */
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, NULL, 0), child);
	close(up[0]);
	close(up[1]);
	store_close(test_open(d));
}

/* ---- versions ------------------------------------------------------------------------------ */

static void put_meta(const struct test_dir *d, const void *record, size_t len)
{
	struct store *s = test_open(d);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(record_put(t, DB_META, "meta", 4, record, len), 0);
	test_commit(t);
	store_close(s);
}

static void newer_version(void **state)
{
	struct test_dir *d = *state;
	struct store *s = test_open(d);
	fill_store(s);
	store_close(s);
	/* Version 2, and a field 200 that this peftd does not know. */
	static const uint8_t record[] = {0x08, 0x02, 0xc2, 0x0c, 3, 'n', 'e', 'w'};
	put_meta(d, record, sizeof(record));
	struct before b = keep(d);
	test_refused(d, STATUS_VERSION, "store version 2, this one knows 1");
	test_refused(d, STATUS_VERSION, "run that one");
	same(d, &b);
	free(b.data);
}

static void meta_record_missing_or_bad(void **state)
{
	struct test_dir *d = *state;
	static const uint8_t zero[] = {0x08, 0x00}, none[] = {0x10, 0x05};
	store_close(test_open(d));
	struct before good = keep(d);

	put_meta(d, zero, sizeof(zero));
	test_refused(d, STATUS_INVALID, "its version is 0");
	test_write_file(d->data, good.data, good.len);
	put_meta(d, none, sizeof(none)); /* no version at all */
	test_refused(d, STATUS_INVALID, "meta record is unreadable");
	test_write_file(d->data, good.data, good.len);

	struct store *s = test_open(d);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(db_del(t, DB_META, "meta", 4), 0);
	test_commit(t);
	store_close(s);
	struct before b = keep(d);
	test_refused(d, STATUS_INVALID, "meta record is missing");
	same(d, &b);
	free(b.data);
	free(good.data);
}

/* ---- damaged files ------------------------------------------------------------------------- */

static void refused_as_it_is(
	const struct test_dir *d, const void *data, size_t len, int status, const char *says)
{
	test_write_file(d->data, data, len);
	struct before b = {(uint8_t *)data, len};
	test_refused(d, status, says);
	same(d, &b);
}

static void not_a_store(void **state)
{
	struct test_dir *d = *state;
	struct store *s = test_open(d);
	fill_store(s);
	store_close(s);
	struct before good = keep(d);
	uint8_t *bad = malloc(good.len);
	assert_non_null(bad);

	refused_as_it_is(d, "", 0, STATUS_INVALID, "the store is damaged");
	refused_as_it_is(d, "hello", 5, STATUS_INVALID, "the store is damaged");
	refused_as_it_is(d, good.data, 4096, STATUS_INVALID, "ends within its meta pages");
	refused_as_it_is(d, good.data, 8191, STATUS_INVALID, "the file");
	memset(bad, 0, good.len);
	refused_as_it_is(d, bad, good.len, STATUS_INVALID, "no LMDB meta page");
	test_fill(5, bad, good.len);
	refused_as_it_is(d, bad, good.len, STATUS_INVALID, "no LMDB meta page");
	memcpy(bad, good.data, good.len);
	bad[4096 + 16] ^= 1; /* the magic number of the second meta page */
	refused_as_it_is(d, bad, good.len, STATUS_INVALID, "no LMDB meta page at offset 4096");
	memcpy(bad, good.data, good.len);
	bad[20] = 2; /* the data version */
	refused_as_it_is(d, bad, good.len, STATUS_VERSION, "data version 2");
	memcpy(bad, good.data, good.len);
	memset(bad + 8192, 0, good.len - 8192);
	refused_as_it_is(d, bad, good.len, STATUS_INVALID, "the store is damaged");

	assert_int_equal(unlink(d->data), 0);
	test_refused(d, STATUS_INVALID, "data.mdb is missing");
	assert_int_equal(access(d->data, F_OK), -1);

	test_write_file(d->data, good.data, good.len);
	s = test_open(d);
	test_check(s);
	store_close(s);
	free(good.data);
	free(bad);
}

/* Cut anywhere: refused as it is, or nothing was lost. */
static void truncated(void **state)
{
	struct test_dir *d = *state;
	struct store *s = test_open(d);
	uint8_t want[DIGEST_SIZE], got[DIGEST_SIZE];
	fill_store(s);
	dump(s, want);
	store_close(s);
	struct before good = keep(d);
	unsigned opened = 0, refused = 0;
	uint64_t rng = 3;
	/* Every page of the last hundred, then anywhere. */
	for (int i = 1; i <= 160; i++) {
		size_t len = i <= 100 ? good.len - (size_t)i * 4096 : test_random(&rng) % good.len;
		struct before b = {good.data, len};
		struct errmsg err = {0};
		test_write_file(d->data, good.data, len);
		int r = store_open(&s, d->state, &err);
		if (r == 0) {
			dump(s, got);
			assert_memory_equal(want, got, DIGEST_SIZE);
			test_check(s);
			store_close(s);
			opened++;
		} else {
			assert_int_equal(r, STATUS_INVALID);
			assert_non_null(strstr(err.text, "damaged"));
			refused++;
		}
		same(d, &b);
	}
	print_message("# %u cuts refused, %u harmless\n", refused, opened);
	assert_in_range(refused, 100, 160);
	free(good.data);
}

/* Whole pages that got lost: zeroes, or the content of another page. */
static void lost_pages(void **state)
{
	struct test_dir *d = *state;
	struct store *s = test_open(d);
	uint8_t want[DIGEST_SIZE], got[DIGEST_SIZE];
	fill_store(s);
	dump(s, want);
	store_close(s);
	struct before good = keep(d);
	uint8_t *bad = malloc(good.len);
	assert_non_null(bad);
	unsigned found = 0;
	for (size_t page = 2; page < good.len / 4096; page++) {
		memcpy(bad, good.data, good.len);
		if (page % 2) {
			memset(bad + page * 4096, 0, 4096);
		} else {
			size_t from = (page * 7 + 3) % (good.len / 4096);
			memcpy(bad + page * 4096, good.data + from * 4096, 4096);
		}
		test_write_file(d->data, bad, good.len);
		struct buf report = {0};
		struct errmsg err;
		uint64_t faults = 0;
		int r = store_open(&s, d->state, &err);
		if (r != 0) {
			assert_int_equal(r, STATUS_INVALID);
			found++;
			continue;
		}
		assert_int_equal(store_check(s, &report, &faults), 0);
		if (faults == 0) {
			dump(s, got);
			assert_memory_equal(want, got, DIGEST_SIZE);
		}
		found += faults > 0;
		buf_deinit(&report);
		store_close(s);
	}
	print_message("# %zu pages lost one by one: %u found\n", good.len / 4096 - 2, found);
	assert_true(found > 100);
	free(good.data);
	free(bad);
}

/* A single bit anywhere: refused, found by the check, or without any effect on what is read. */
static void flipped_bits(void **state)
{
	struct test_dir *d = *state;
	struct store *s = test_open(d);
	uint8_t want[DIGEST_SIZE], got[DIGEST_SIZE];
	fill_store(s);
	dump(s, want);
	store_close(s);
	struct before good = keep(d);
	const char *given = getenv("PEFTD_TEST_FLIPS");
	unsigned long n = given ? strtoul(given, NULL, 10) : 600;
	unsigned long refused = 0, found = 0;
	uint64_t rng = 11;
	int fd = open(d->data, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	for (unsigned long i = 0; i < n; i++) {
		/* A third each: the meta pages' fields, the tree pages at the beginning, anywhere. */
		size_t limits[] = {160, good.len < 400000 ? good.len : 400000, good.len};
		size_t at = test_random(&rng) % limits[i % 3];
		at += i % 6 == 3 ? 4096 : 0;
		uint8_t byte = good.data[at] ^ (uint8_t)(1u << test_random(&rng) % 8);
		assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
		struct errmsg err;
		int r = store_open(&s, d->state, &err);
		if (r != 0) {
			assert_true(r == STATUS_INVALID || r == STATUS_VERSION);
			refused++;
		} else {
			struct buf report = {0};
			uint64_t faults = 0;
			assert_int_equal(store_check(s, &report, &faults), 0);
			if (faults == 0) {
				dump(s, got);
				if (memcmp(want, got, DIGEST_SIZE) != 0) {
					fail_msg("bit flipped in byte %zu: not found, and what is read is other", at);
				}
			}
			found += faults > 0;
			buf_deinit(&report);
			store_close(s);
		}
		assert_int_equal(pwrite(fd, &good.data[at], 1, (off_t)at), 1);
	}
	close(fd);
	print_message(
		"# %lu flips: %lu refused at opening, %lu found by the check\n", n, refused, found);
	assert_true(refused > n / 20 && found > n / 4);
	s = test_open(d);
	test_check(s);
	store_close(s);
	free(good.data);
}

/* What the core meets when a bit of content or of a record flips while it runs. */
static void flipped_while_open(void **state)
{
	struct test_dir *d = *state;
	struct store *s = test_open(d);
	uint8_t digest[DIGEST_SIZE], *out = malloc(3 * CHUNK_SIZE);
	uint8_t content[64];
	struct store_job j;
	uint64_t id;
	test_upload(s, 1, 3 * CHUNK_SIZE, 5, digest);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_job_next_id(t, &id), 0);
	test_job(&j, id, digest, 3 * CHUNK_SIZE);
	free(j.reason);
	j.reason = strdup("a reason to look for");
	assert_int_equal(store_job_put(t, &j), 0);
	assert_int_equal(store_event_append(t, id, 1, EVENT_LOG, "an event to look for", 20), 0);
	test_commit(t);
	store_job_deinit(&j);

	struct before b = keep(d);
	uint8_t *all = malloc(3 * CHUNK_SIZE);
	test_fill(1, all, 3 * CHUNK_SIZE);
	memcpy(content, all + 2 * CHUNK_SIZE - 100, sizeof(content)); /* in the second chunk */
	free(all);
	int fd = open(d->data, O_RDWR | O_CLOEXEC);
	const struct {
		const void *bytes;
		size_t len;
	} places[] = {
		{content, sizeof(content)}, {"a reason to look for", 20}, {"an event to look for", 20}};
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		uint8_t *p = memmem(b.data, b.len, places[i].bytes, places[i].len);
		assert_non_null(p);
		/* Every copy there is: older ones lie in free pages. */
		for (; p;
			 p = memmem(p + 1, b.len - (size_t)(p + 1 - b.data), places[i].bytes, places[i].len)) {
			uint8_t byte = *p ^ 4;
			assert_int_equal(pwrite(fd, &byte, 1, p - b.data), 1);
		}
	}
	close(fd);

	t = test_begin(s, false);
	uint64_t first;
	assert_int_equal(store_blob_read(t, digest, 0, out, CHUNK_SIZE), 0);
	assert_int_equal(store_blob_read(t, digest, CHUNK_SIZE, out, 1), -EIO);
	assert_int_equal(store_blob_read(t, digest, 0, out, 3 * CHUNK_SIZE), -EIO);
	assert_int_equal(store_blob_read(t, digest, 2 * CHUNK_SIZE, out, CHUNK_SIZE), 0);
	assert_int_equal(store_job_get(t, id, &j), -EIO);
	assert_int_equal(store_event_each(t, id, 0, ~0u, 10, NULL, NULL, &first), -EIO);
	store_abort(t);
	test_check_finds(s, "the chunk at offset 262128 is missing or does not match");
	test_check_finds(s, "jobs: the record of key 0000000000000001 does not match its digest");
	test_check_finds(
		s, "events: the record of key 00000000000000010000000000000001 does not match");
	store_close(s);
	free(b.data);
	free(out);
}

/* docs/storage.md: the data file is all there is to a backup. */
static void data_file_is_a_backup(void **state)
{
	struct test_dir *d = *state, other = *d;
	char dir[300];
	uint8_t want[DIGEST_SIZE], got[DIGEST_SIZE];
	struct store *s = test_open(d);
	fill_store(s);
	dump(s, want);
	store_close(s);
	struct before b = keep(d);

	snprintf(other.state, sizeof(other.state), "%s/restored", d->path);
	snprintf(other.data, sizeof(other.data), "%s/store/data.mdb", other.state);
	snprintf(dir, sizeof(dir), "%s/store", other.state);
	assert_int_equal(mkdir(other.state, 0700), 0);
	assert_int_equal(mkdir(dir, 0700), 0);
	test_write_file(other.data, b.data, b.len);
	s = test_open(&other);
	dump(s, got);
	assert_memory_equal(want, got, DIGEST_SIZE);
	test_check(s);
	test_upload(s, 77, 1000, 5, got);
	store_close(s);
	free(b.data);
}

/* A commit waits for the disk, its meta page included, and nobody writes through the map. */
static void commits_are_synchronous(void **state)
{
	struct store *s = test_open(*state);
	unsigned flags = 0;
	assert_int_equal(mdb_env_get_flags(s->env, &flags), 0);
	assert_int_equal(
		flags & (MDB_NOSYNC | MDB_NOMETASYNC | MDB_MAPASYNC | MDB_WRITEMAP | MDB_NOLOCK), 0);
	assert_int_equal(flags & MDB_NOTLS, MDB_NOTLS);
	store_close(s);
}

/* A record, sound in itself, in the place of another. */
static void misplaced_record(void **state)
{
	struct store *s = test_open(*state);
	struct store_job j;
	struct store_txn *t;
	uint8_t one[8], two[8];
	struct bytes sealed;
	fill_store(s);
	be64_write(one, 1);
	be64_write(two, 2);
	t = test_begin(s, true);
	assert_int_equal(db_get(t, DB_JOBS, one, sizeof(one), &sealed), 0);
	uint8_t *copy = malloc(sealed.len);
	assert_non_null(copy);
	memcpy(copy, sealed.data, sealed.len);
	assert_int_equal(db_put(t, DB_JOBS, two, sizeof(two), copy, sealed.len), 0);
	free(copy);
	test_commit(t);
	t = test_begin(s, false);
	assert_int_equal(store_job_get(t, 2, &j), -EIO);
	store_abort(t);
	test_check_finds(s, "jobs: the record of key 0000000000000002 does not match its digest");
	store_close(s);
}

/* The newest meta page of a data file in memory, and the tree of free pages' root in it. */
static uint8_t *newest_meta(uint8_t *data)
{
	enum { TXN = 16 + 24 + 2 * 48 + 8 };
	return le64_read(data + TXN) > le64_read(data + 4096 + TXN) ? data : data + 4096;
}

/* A page that is in use, in the list of those that are not: the next transactions would write over
 * it. */
static void live_page_in_the_free_list(void **state)
{
	enum { FREE_ROOT = 16 + 24 + 40, MAIN_ROOT = FREE_ROOT + 48 };
	struct test_dir *d = *state;
	struct store *s = test_open(d);
	fill_store(s);
	store_close(s);
	struct before b = keep(d);
	uint8_t *meta = newest_meta(b.data);
	uint64_t main_root = le64_read(meta + MAIN_ROOT);
	uint8_t *leaf = b.data + 4096 * le64_read(meta + FREE_ROOT);
	assert_int_equal(le16_read(leaf + 10) & 2, 2); /* a leaf: the list is short */
	uint8_t *node = leaf + le16_read(leaf + 16);
	assert_int_equal(le16_read(node + 4), 0); /* its value is inside */
	uint8_t *value = node + 8 + 8;
	uint64_t free_page = le64_read(value + 8);

	/* Another page of the list instead of a free one is found, each in its own way. */
	const struct {
		uint64_t page;
		const char *says;
	} all[] = {{main_root, "is used twice"}, {1, "is in the list of free pages"},
		{UINT64_C(1) << 40, "is in the list of free pages"}};
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		le64_write(value + 8, all[i].page);
		test_write_file(d->data, b.data, b.len);
		s = test_open(d);
		test_check_finds(s, all[i].says);
		store_close(s);
	}
	le64_write(value + 8, free_page);
	le64_write(value, 999999);
	test_write_file(d->data, b.data, b.len);
	s = test_open(d);
	test_check_finds(s, "a damaged entry in the list of free pages");
	store_close(s);
	free(b.data);
}

/* Trees so big that their leaves are not read at every opening: only when the file is too short. */
static void big_tree_cut_off(void **state)
{
	struct test_dir *d = *state;
	struct store *s = test_open(d);
	enum { EVENTS = 17500, LEN = 1900 }; /* two on a page */
	static const uint8_t event[LEN] = {1};
	struct store_txn *t = test_begin(s, true);
	for (uint64_t seq = 1; seq <= EVENTS; seq++) {
		assert_int_equal(store_event_append(t, 1, seq, EVENT_LOG, event, LEN), 0);
	}
	test_commit(t);
	store_close(s);
	struct before b = keep(d);
	assert_true(b.len > (size_t)8192 * 4096);
	for (size_t cut = 4096; cut < 4096 * 40; cut += 4096 * 3) {
		assert_int_equal(truncate(d->data, (off_t)(b.len - cut)), 0);
		test_refused(d, STATUS_INVALID, "cut off");
	}
	/* A hole in the middle of the leaves is not seen at opening, and found by the check. */
	memset(b.data + b.len / 2 / 4096 * 4096, 0, 4096);
	test_write_file(d->data, b.data, b.len);
	s = test_open(d);
	test_check_finds(s, "is not a page of its tree");
	store_close(s);
	free(b.data);
}

/* Every kind of disagreement that the check knows, made by hand. */
static void check_finds(void **state)
{
	struct store *s = test_open(*state);
	struct packed p = {0};
	uint8_t data[DIGEST_SIZE], key[16] = {0};
	struct store_job j;
	struct store_txn *t;
	fill_store(s);
	test_fill(1, key, 1);
	uint8_t *content = malloc(1000);
	test_fill(1, content, 1000);
	test_digest(content, 1000, data);
	free(content);

	t = test_begin(s, true); /* an event in the middle is gone, and the newest of another job */
	be64_write(key, 3);
	be64_write(key + 8, 7);
	assert_int_equal(db_del(t, DB_EVENTS, key, 16), 0);
	be64_write(key, 4);
	be64_write(key + 8, 15);
	assert_int_equal(db_del(t, DB_EVENTS, key, 16), 0);
	be64_write(key, 99);
	assert_int_equal(record_put(t, DB_EVENTS, key, 16, "\x08x", 2), 0);
	be64_write(key, 5); /* an event that is none */
	assert_int_equal(record_put(t, DB_EVENTS, key, 16, "\x08\xff\xff", 3), 0);
	test_commit(t);
	test_check_finds(s, "job 3: events 7 to 7 are missing");
	test_check_finds(s, "job 4: its newest event is 14, and should be 15");
	test_check_finds(s, "event 15 of job 99: there is no such job");
	test_check_finds(s, "event 15 of job 5: not well-formed");

	t = test_begin(s, true); /* a job of id 500, and one with a bad spec */
	test_job(&j, 500, data, 1000);
	assert_int_equal(store_job_put(t, &j), 0);
	j.id = 6;
	j.last_seq = 15;
	packed_set(&j.spec, "\xff\xff", 2);
	assert_int_equal(store_job_put(t, &j), 0);
	store_job_deinit(&j);
	test_commit(t);
	test_check_finds(s, "job 500: its id was never given");
	test_check_finds(s, "job 6: its spec is not well-formed");

	t = test_begin(s, true); /* a chunk and a blob are gone, an entry of what is due is too many */
	uint8_t chunk[12] = {0};
	be64_write(chunk, 2);
	be32_write(chunk + 8, 1);
	assert_int_equal(db_del(t, DB_CHUNKS, chunk, 12), 0);
	be64_write(chunk, 77);
	assert_int_equal(db_put(t, DB_CHUNKS, chunk, 12, "x", 1), 0);
	assert_int_equal(db_del(t, DB_BLOBS, data, DIGEST_SIZE), 0);
	assert_int_equal(due_put(t, DUE_JOB, 55, key, 8), 0);
	memset(chunk, 0, sizeof(chunk));
	test_commit(t);
	test_check_finds(s, "the chunk at offset 262128 is missing");
	test_check_finds(s, "a chunk 000000000000004d00000001 belongs to no blob");
	test_check_finds(s, "job 1: refers to blob ");
	test_check_finds(s, "is about nothing");
	packed_deinit(&p);
	store_close(s);
}

/* ---- limits -------------------------------------------------------------------------------- */

/* The map is the most a store can hold: a clean error, and everything before it stays. */
static void full_map(void **state)
{
	char *kept = getenv("PEFTD_STORE_MAP");
	kept = kept ? strdup(kept) : NULL;
	setenv("PEFTD_STORE_MAP", "16777216", 1);
	struct store *s = test_open(*state);
	uint64_t n = 0;
	int r = 0;
	uint8_t *data = malloc(CHUNK_SIZE), digest[DIGEST_SIZE];
	struct errmsg err;
	assert_int_equal(store_room(s, UINT64_C(17) << 20, &err), STATUS_DISK_FULL);
	assert_non_null(strstr(err.text, "PEFTD_STORE_MAP"));
	for (; n < 100 && r == 0; n++) {
		struct store_blob b;
		test_fill(n, data, CHUNK_SIZE);
		test_digest(data, CHUNK_SIZE, digest);
		struct store_txn *t = test_begin(s, true);
		r = store_blob_begin(t, digest, CHUNK_SIZE, 5, &b);
		if (r == 0) {
			r = store_blob_append(t, digest, 0, data, CHUNK_SIZE, &b, &err);
		}
		/* A caller that did not look is told again. */
		int c = store_commit(t);
		assert_int_equal(r != 0 ? r : c, c);
		r = c;
	}
	assert_int_equal(r, STATUS_DISK_FULL);
	assert_in_range(n, 50, 64);
	for (uint64_t i = 0; i + 1 < n; i++) {
		test_expect_blob(s, i, CHUNK_SIZE);
	}
	test_check(s);
	/* There is room again after a collection. */
	bool more = true;
	while (more) {
		assert_int_equal(store_collect(s, UINT64_C(1) << 62, 16, &more), 0);
	}
	test_upload(s, 1000, 20 * CHUNK_SIZE, 5, digest);
	test_check(s);
	store_close(s);
	free(data);
	if (kept) {
		setenv("PEFTD_STORE_MAP", kept, 1);
	} else {
		unsetenv("PEFTD_STORE_MAP");
	}
	free(kept);
}

static void room(void **state)
{
	struct store *s = test_open(*state);
	struct store_space space;
	struct errmsg err = {0};
	assert_int_equal(store_space(s, &space), 0);
	assert_in_range(space.used, 4096 * 4, 4096 * 40);
	assert_true(space.fs_free <= space.fs_total && space.fs_total > 0);
	assert_int_equal(store_room(s, 0, &err), 0);
	assert_int_equal(store_room(s, space.fs_total, &err), STATUS_DISK_FULL);
	assert_non_null(strstr(err.text, "must stay free"));
	store_close(s);

	setenv("PEFTD_STORE_RESERVE", "999999999999999", 1); /* more than there is */
	s = test_open(*state);
	assert_int_equal(store_room(s, 64 << 20, &err), STATUS_DISK_FULL);
	/* What was deleted in the file is room all the same. */
	uint8_t digest[DIGEST_SIZE];
	bool more = true;
	test_upload(s, 1, 40 * CHUNK_SIZE, 5, digest);
	assert_int_equal(store_room(s, 5 << 20, &err), STATUS_DISK_FULL);
	while (more) {
		assert_int_equal(store_collect(s, UINT64_C(1) << 62, 100, &more), 0);
	}
	assert_int_equal(store_room(s, 5 << 20, &err), 0);
	assert_int_equal(store_room(s, 40 * CHUNK_SIZE, &err), STATUS_DISK_FULL);
	store_close(s);
	unsetenv("PEFTD_STORE_RESERVE");
}

static void little_address_space(void **state)
{
#if defined(__SANITIZE_ADDRESS__)
	SKIP("the address sanitizer needs the address space that this test limits");
#else
	if (getenv("PEFTD_STORE_MAP")) {
		SKIP("PEFTD_STORE_MAP is set, and this is about the default");
	}
	struct test_dir *d = *state;
	pid_t child = fork();
	if (child == 0) {
		struct rlimit limit = {UINT64_C(8) << 30, UINT64_C(8) << 30};
		struct store *s = NULL;
		struct errmsg err = {0};
		setrlimit(RLIMIT_AS, &limit);
		if (store_open(&s, d->state, &err) != STATUS_INVALID ||
			!strstr(err.text, "LimitAS=infinity")) {
			_exit(1);
		}
		setenv("PEFTD_STORE_MAP", "1073741824", 1);
		_exit(store_open(&s, d->state, &err) == 0 ? 0 : 2);
	}
	int status = -1;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
#endif
}

#define WITH_DIR(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_DIR(permissions),
		WITH_DIR(places),
		WITH_DIR(half_made),
		WITH_DIR(network_file_systems),
		WITH_DIR(settings),
		WITH_DIR(lock_in_the_same_process),
		WITH_DIR(lock_of_another_process),
		WITH_DIR(newer_version),
		WITH_DIR(meta_record_missing_or_bad),
		WITH_DIR(not_a_store),
		WITH_DIR(truncated),
		WITH_DIR(lost_pages),
		WITH_DIR(flipped_bits),
		WITH_DIR(flipped_while_open),
		WITH_DIR(data_file_is_a_backup),
		WITH_DIR(commits_are_synchronous),
		WITH_DIR(misplaced_record),
		WITH_DIR(live_page_in_the_free_list),
		WITH_DIR(big_tree_cut_off),
		WITH_DIR(check_finds),
		WITH_DIR(full_map),
		WITH_DIR(room),
		WITH_DIR(little_address_space),
	};
	return cmocka_run_group_tests_name("store damage", tests, NULL, NULL);
}
