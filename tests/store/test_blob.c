/* Blobs: what comes in by chunks is what goes out, resumes where it was, and is what it says. */

#include "store-test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- an upload by hand --------------------------------------------------------------------- */

struct content {
	uint8_t *data;
	size_t size;
	uint8_t digest[DIGEST_SIZE];
};

static void content_make(struct content *c, uint64_t seed, size_t size)
{
	c->data = malloc(size + 1);
	c->size = size;
	assert_non_null(c->data);
	test_fill(seed, c->data, size);
	test_digest(c->data, size, c->digest);
}

static struct store_blob begin(struct store *s, const struct content *c, int want)
{
	struct store_blob b = {0};
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_blob_begin(t, c->digest, c->size, 5, &b), want);
	if (want == 0) {
		test_commit(t);
	} else {
		store_abort(t);
	}
	return b;
}

/* Appends the chunk that lies at `offset`, in a transaction of its own. */
static struct store_blob append(struct store *s, const struct content *c, uint64_t offset, int want)
{
	struct store_blob b = {0};
	struct errmsg err = {0};
	size_t len = chunk_len(c->size, offset);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(
		store_blob_append(t, c->digest, offset, c->data + offset, len, &b, &err), want);
	assert_int_equal(want != 0, err.text[0] != '\0');
	test_commit(t);
	return b;
}

static int get(struct store *s, const struct content *c, struct store_blob *ret)
{
	struct store_txn *t = test_begin(s, false);
	int r = store_blob_get(t, c->digest, ret);
	store_abort(t);
	return r;
}

static uint64_t count_entries(struct store *s, enum store_db db)
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

/* ---- tests --------------------------------------------------------------------------------- */

static void sizes(void **state)
{
	static const size_t all[] = {0, 1, 4095, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1,
		3 * CHUNK_SIZE, 5 * CHUNK_SIZE + 17};
	struct store *s = test_open(*state);
	uint8_t digest[DIGEST_SIZE];
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		test_upload(s, i + 1, all[i], 5, digest);
		test_expect_blob(s, i + 1, all[i]);
	}
	test_check(s);
	store_close(s);
	s = test_open(*state);
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		test_expect_blob(s, i + 1, all[i]);
	}
	test_check(s);
	store_close(s);
}

/* A chunk is exactly 64 pages with LMDB's header: no page is lost on the way. */
static void chunks_fill_their_pages(void **state)
{
	struct store *s = test_open(*state);
	struct store_space before, after;
	uint8_t digest[DIGEST_SIZE];
	assert_int_equal(store_space(s, &before), 0);
	test_upload(s, 1, 40 * CHUNK_SIZE, 5, digest);
	assert_int_equal(store_space(s, &after), 0);
	uint64_t more = (after.used - before.used) / 4096;
	assert_in_range(more, 40 * 64, 40 * 64 + 8);
	store_close(s);
}

static void parts(void **state)
{
	enum { SIZE = 3 * CHUNK_SIZE + 100 };
	struct store *s = test_open(*state);
	struct content c;
	static const struct {
		uint64_t offset;
		size_t len;
	} all[] = {{0, 1}, {0, SIZE}, {CHUNK_SIZE - 1, 2}, {CHUNK_SIZE, CHUNK_SIZE},
		{CHUNK_SIZE - 5, 2 * CHUNK_SIZE + 50}, {SIZE - 1, 1}, {SIZE, 0}, {3 * CHUNK_SIZE, 100}};
	content_make(&c, 1, SIZE);
	uint8_t digest[DIGEST_SIZE];
	test_upload(s, 1, SIZE, 5, digest);
	uint8_t *out = malloc(SIZE);
	struct store_txn *t = test_begin(s, false);
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		assert_int_equal(store_blob_read(t, c.digest, all[i].offset, out, all[i].len), 0);
		assert_memory_equal(out, c.data + all[i].offset, all[i].len);
	}
	assert_int_equal(store_blob_read(t, c.digest, SIZE, out, 1), -EINVAL);
	assert_int_equal(store_blob_read(t, c.digest, UINT64_MAX, out, 1), -EINVAL);
	assert_int_equal(store_blob_read(t, c.digest, 1, out, SIZE), -EINVAL);
	digest[0] ^= 1;
	assert_int_equal(store_blob_read(t, digest, 0, out, 1), STATUS_NOT_FOUND);
	store_abort(t);
	free(out);
	free(c.data);
	store_close(s);
}

/* Stops before each chunk, with the process gone or only the transaction. */
static void interrupted_at_any_chunk(void **state)
{
	enum { CHUNKS = 6 };
	for (int stop = 0; stop <= CHUNKS; stop++) {
		for (int reopen = 0; reopen < 2; reopen++) {
			struct test_dir d;
			struct content c;
			struct store_blob b;
			test_dir_make(&d);
			struct store *s = test_open(&d);
			content_make(&c, 1, (CHUNKS - 1) * CHUNK_SIZE + 1234);
			b = begin(s, &c, 0);
			assert_int_equal(b.received, 0);
			for (int i = 0; i < stop; i++) {
				append(s, &c, (uint64_t)i * CHUNK_SIZE, 0);
			}
			/* One more, twice, and then it was not so. */
			if (stop + 2 <= CHUNKS) {
				struct store_txn *t = test_begin(s, true);
				for (int i = stop; i < stop + 2; i++) {
					size_t at = (size_t)i * CHUNK_SIZE;
					assert_int_equal(store_blob_append(t, c.digest, at, c.data + at,
										 chunk_len(c.size, at), &b, NULL),
						0);
				}
				store_abort(t);
			}
			if (reopen) {
				store_close(s);
				s = test_open(&d);
			}
			b = begin(s, &c, 0);
			assert_int_equal(b.size, c.size);
			assert_int_equal(b.received, stop == CHUNKS ? c.size : (size_t)stop * CHUNK_SIZE);
			struct store_txn *t = test_begin(s, false);
			uint8_t byte;
			assert_int_equal(
				store_blob_read(t, c.digest, 0, &byte, 1), stop == CHUNKS ? 0 : STATUS_NOT_FOUND);
			store_abort(t);
			while (b.received < b.size) {
				b = append(s, &c, b.received, 0);
			}
			test_expect_blob(s, 1, c.size);
			test_check(s);
			store_close(s);
			free(c.data);
			test_dir_remove(&d);
		}
	}
}

/* An upload goes on after a restart, its running digest made anew beforehand or along the way. */
static void prepared(void **state)
{
	enum { CHUNKS = 40 };
	static const struct {
		bool prepare;
		uint64_t here;
	} ways[] = {{true, 37}, {false, 37}, {false, 39}}; /* the last: more than goes with one chunk */
	for (size_t way = 0; way < ARRAY_LEN(ways); way++) {
		const bool prepare = ways[way].prepare;
		const uint64_t here = ways[way].here;
		struct test_dir d;
		struct content c;
		bool more = true;
		uint64_t calls = 0;
		test_dir_make(&d);
		struct store *s = test_open(&d);
		content_make(&c, 9, CHUNKS * CHUNK_SIZE);
		begin(s, &c, 0);
		for (uint64_t i = 0; i < here; i++) {
			append(s, &c, i * CHUNK_SIZE, 0);
		}
		store_close(s);
		s = test_open(&d);
		while (prepare && more) {
			assert_int_equal(store_blob_prepare(s, c.digest, 4 * CHUNK_SIZE, &more), 0);
			calls++;
		}
		if (prepare) {
			assert_int_equal(calls, (here + 3) / 4);
		}
		for (uint64_t i = here; i < CHUNKS; i++) {
			append(s, &c, i * CHUNK_SIZE, 0);
		}
		test_expect_blob(s, 9, c.size);
		assert_int_equal(store_blob_prepare(s, c.digest, 1, &more), 0);
		assert_false(more);
		c.digest[3] ^= 8;
		assert_int_equal(store_blob_prepare(s, c.digest, 1, &more), STATUS_NOT_FOUND);
		test_check(s);
		store_close(s);
		free(c.data);
		test_dir_remove(&d);
	}
}

static void complete_is_instantaneous(void **state)
{
	struct store *s = test_open(*state);
	struct content c;
	content_make(&c, 1, 2 * CHUNK_SIZE);
	begin(s, &c, 0);
	append(s, &c, 0, 0);
	append(s, &c, CHUNK_SIZE, 0);
	struct store_blob b = begin(s, &c, 0);
	assert_int_equal(b.received, c.size);
	/* Nothing more is due. */
	b = append(s, &c, CHUNK_SIZE, STATUS_CONFLICT);
	assert_int_equal(b.received, c.size);
	/* The digest says what the size is. */
	c.size++;
	begin(s, &c, STATUS_CONFLICT);
	c.size = 0;
	begin(s, &c, STATUS_INVALID);
	test_digest("", 0, c.digest);
	b = begin(s, &c, 0);
	assert_int_equal(b.received, 0);
	c.size = 1;
	begin(s, &c, STATUS_INVALID);
	test_check(s);
	free(c.data);
	store_close(s);
}

static void wrong_offsets_and_lengths(void **state)
{
	struct store *s = test_open(*state);
	struct content c;
	struct store_blob b;
	struct errmsg err;
	content_make(&c, 1, 3 * CHUNK_SIZE + 10);

	struct store_txn *t = test_begin(s, true);
	assert_int_equal(
		store_blob_append(t, c.digest, 0, c.data, CHUNK_SIZE, &b, &err), STATUS_NOT_FOUND);
	store_abort(t);
	begin(s, &c, 0);
	b = append(s, &c, CHUNK_SIZE, STATUS_CONFLICT);
	assert_int_equal(b.received, 0);
	append(s, &c, 0, 0);
	b = append(s, &c, 0, STATUS_CONFLICT); /* the same chunk again, after a lost answer */
	assert_int_equal(b.received, CHUNK_SIZE);
	assert_int_equal(b.size, c.size);

	static const size_t bad[] = {0, 1, CHUNK_SIZE - 1, CHUNK_SIZE + 1};
	t = test_begin(s, true);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(
			store_blob_append(t, c.digest, CHUNK_SIZE, c.data, bad[i], &b, &err), STATUS_INVALID);
		assert_non_null(strstr(err.text, "262128 are due"));
	}
	store_abort(t);
	append(s, &c, CHUNK_SIZE, 0);
	append(s, &c, 2 * CHUNK_SIZE, 0);
	t = test_begin(s, true);
	assert_int_equal(
		store_blob_append(t, c.digest, 3 * CHUNK_SIZE, c.data, 11, &b, &err), STATUS_INVALID);
	store_abort(t);
	append(s, &c, 3 * CHUNK_SIZE, 0);
	test_expect_blob(s, 1, c.size);
	free(c.data);
	store_close(s);
}

/* At most 8 MiB of chunks a transaction: 31 whole ones. */
static void transaction_is_bounded(void **state)
{
	struct store *s = test_open(*state);
	struct content c;
	struct store_blob b;
	content_make(&c, 1, 40 * CHUNK_SIZE);
	begin(s, &c, 0);
	struct store_txn *t = test_begin(s, true);
	for (uint64_t i = 0; i < 32; i++) {
		assert_int_equal(store_blob_append(t, c.digest, i * CHUNK_SIZE, c.data + i * CHUNK_SIZE,
							 CHUNK_SIZE, &b, NULL),
			0);
	}
	assert_int_equal(
		store_blob_append(t, c.digest, UINT64_C(32) * CHUNK_SIZE, c.data, CHUNK_SIZE, &b, NULL),
		-E2BIG);
	test_commit(t);
	assert_int_equal(get(s, &c, &b), 0);
	assert_int_equal(b.received, 32 * CHUNK_SIZE);
	free(c.data);
	store_close(s);
}

/* Content that is not what it was announced as: dropped, and the right content can follow. */
static void wrong_content(void **state)
{
	for (int aborted = 0; aborted < 2; aborted++) {
		struct test_dir d;
		struct content c;
		struct store_blob b;
		struct errmsg err = {0};
		bool more;
		test_dir_make(&d);
		struct store *s = test_open(&d);
		content_make(&c, 1, 2 * CHUNK_SIZE + 5);
		begin(s, &c, 0);
		c.data[77] ^= 1;
		append(s, &c, 0, 0);
		append(s, &c, CHUNK_SIZE, 0);
		c.data[77] ^= 1;
		struct store_txn *t = test_begin(s, true);
		assert_int_equal(
			store_blob_append(t, c.digest, 2 * CHUNK_SIZE, c.data + 2 * CHUNK_SIZE, 5, &b, &err),
			STATUS_INVALID);
		assert_non_null(strstr(err.text, "send it again"));
		if (aborted) {
			store_abort(t);
			assert_int_equal(get(s, &c, &b), 0);
			assert_int_equal(b.received, 2 * CHUNK_SIZE);
		} else {
			test_commit(t);
			assert_int_equal(get(s, &c, &b), STATUS_NOT_FOUND);
		}
		test_check(s);
		b = begin(s, &c, 0);
		assert_int_equal(b.received, 0);
		for (uint64_t at = 0; at < c.size; at += CHUNK_SIZE) {
			append(s, &c, at, 0);
		}
		test_expect_blob(s, 1, c.size);
		/* What was dropped is garbage until it is collected. */
		assert_int_equal(count_entries(s, DB_TRASH), 1);
		test_check(s);
		assert_int_equal(store_collect(s, 6, 1000, &more), 0);
		assert_false(more);
		assert_int_equal(count_entries(s, DB_TRASH), 0);
		assert_int_equal(count_entries(s, DB_CHUNKS), 3);
		assert_int_equal(count_entries(s, DB_DIGESTS), 3);
		test_check(s);
		free(c.data);
		store_close(s);
		test_dir_remove(&d);
	}
}

/* A number of a blob that never came to be is handed out again: nothing of the first may stick. */
static void number_given_twice(void **state)
{
	struct store *s = test_open(*state);
	struct content one, two;
	struct store_blob b;
	struct errmsg err;
	content_make(&one, 1, 100);
	content_make(&two, 2, 2 * CHUNK_SIZE);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_blob_begin(t, one.digest, one.size, 5, &b), 0);
	one.data[0] ^= 1;
	assert_int_equal(
		store_blob_append(t, one.digest, 0, one.data, one.size, &b, &err), STATUS_INVALID);
	store_abort(t);
	begin(s, &two, 0);
	append(s, &two, 0, 0);
	b = begin(s, &two, 0);
	assert_int_equal(b.received, CHUNK_SIZE);
	append(s, &two, CHUNK_SIZE, 0);
	test_expect_blob(s, 2, two.size);
	free(one.data);
	free(two.data);
	store_close(s);
}

/* What came in a transaction that was given up never came, also for the running digest. */
static void other_content_was_given_up(void **state)
{
	struct store *s = test_open(*state);
	struct content c;
	struct store_blob b;
	content_make(&c, 1, 3 * CHUNK_SIZE);
	begin(s, &c, 0);
	append(s, &c, 0, 0);
	c.data[CHUNK_SIZE] ^= 1;
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(
		store_blob_append(t, c.digest, CHUNK_SIZE, c.data + CHUNK_SIZE, CHUNK_SIZE, &b, NULL), 0);
	store_abort(t);
	c.data[CHUNK_SIZE] ^= 1;
	append(s, &c, CHUNK_SIZE, 0);
	append(s, &c, 2 * CHUNK_SIZE, 0);
	test_expect_blob(s, 1, c.size);
	free(c.data);
	store_close(s);
}

/* Announced with one size, then with another: the second counts while nothing is complete. */
static void other_size(void **state)
{
	struct store *s = test_open(*state);
	struct content c;
	content_make(&c, 1, 2 * CHUNK_SIZE);
	c.size += 5;
	begin(s, &c, 0);
	append(s, &c, 0, 0);
	c.size -= 5;
	struct store_blob b = begin(s, &c, 0);
	assert_int_equal(b.size, c.size);
	assert_int_equal(b.received, 0);
	append(s, &c, 0, 0);
	append(s, &c, CHUNK_SIZE, 0);
	test_expect_blob(s, 1, c.size);
	test_check(s);
	free(c.data);
	store_close(s);
}

/* More uploads side by side than there are running digests. */
static void many_at_once(void **state)
{
	enum { N = UPLOADS_MAX + 20 };
	struct store *s = test_open(*state);
	static struct content all[N];
	for (size_t i = 0; i < N; i++) {
		content_make(&all[i], i + 100, 2 * CHUNK_SIZE + i);
		begin(s, &all[i], 0);
	}
	for (uint64_t at = 0; at < 2 * CHUNK_SIZE + N; at += CHUNK_SIZE) {
		for (size_t i = 0; i < N; i++) {
			if (at < all[i].size) {
				append(s, &all[i], at, 0);
			}
		}
	}
	for (size_t i = 0; i < N; i++) {
		test_expect_blob(s, i + 100, all[i].size);
		free(all[i].data);
	}
	test_check(s);
	store_close(s);
}

static void references(void **state)
{
	struct store *s = test_open(*state);
	struct content c;
	content_make(&c, 1, CHUNK_SIZE + 1);
	begin(s, &c, 0);
	append(s, &c, 0, 0);
	struct store_txn *t = test_begin(s, true);
	assert_int_equal(store_blob_ref(t, c.digest), STATUS_NOT_FOUND); /* not complete */
	store_abort(t);
	append(s, &c, CHUNK_SIZE, 0);
	t = test_begin(s, true);
	assert_int_equal(store_blob_ref(t, c.digest), 0);
	assert_int_equal(store_blob_ref(t, c.digest), 0);
	assert_int_equal(store_blob_unref(t, c.digest), 0);
	test_commit(t);
	assert_int_equal(test_references(s, c.digest), 1);
	test_check_finds(s, "counts 1 references, and has 0");
	t = test_begin(s, true);
	assert_int_equal(store_blob_unref(t, c.digest), 0);
	assert_int_equal(store_blob_unref(t, c.digest), -EINVAL);
	test_commit(t);
	test_check(s);
	free(c.data);
	store_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(sizes, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(chunks_fill_their_pages, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(parts, test_setup, test_teardown),
		cmocka_unit_test(interrupted_at_any_chunk),
		cmocka_unit_test(prepared),
		cmocka_unit_test_setup_teardown(complete_is_instantaneous, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(wrong_offsets_and_lengths, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(transaction_is_bounded, test_setup, test_teardown),
		cmocka_unit_test(wrong_content),
		cmocka_unit_test_setup_teardown(number_given_twice, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(other_content_was_given_up, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(other_size, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(many_at_once, test_setup, test_teardown),
		cmocka_unit_test_setup_teardown(references, test_setup, test_teardown),
	};
	return cmocka_run_group_tests_name("store blobs", tests, NULL, NULL);
}
