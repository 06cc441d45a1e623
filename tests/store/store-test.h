#pragma once
/* What the tests of store/ share: a directory of their own, and records with something in them. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the above before itself */
#include <cmocka.h>

#include "store/store-internal.h"
#include "tests/support/skip.h"

/* A temporary directory; the store is in DIR/state. Removed by test_dir_remove(). */
struct test_dir {
	char path[200];
	char state[256];
	char data[300]; /* the data file */
};

void test_dir_make(struct test_dir *d);
void test_dir_remove(struct test_dir *d);

/* cmocka set-up and tear-down: *state is a struct test_dir. */
int test_setup(void **state);
int test_teardown(void **state);

/* Opens a store that must open. */
struct store *test_open(const struct test_dir *d);
/* Opens a store that must be refused with `status`; its message contains `says`. */
void test_refused(const struct test_dir *d, int status, const char *says);

struct store_txn *test_begin(struct store *s, bool write);
void test_commit(struct store_txn *t);

/* store_check() finds nothing; otherwise its report is shown and the test fails. */
void test_check(struct store *s);
/* store_check() finds faults, and says `says`. */
void test_check_finds(struct store *s, const char *says);

/* Repeatable bytes: `seed` chooses them. */
void test_fill(uint64_t seed, void *out, size_t len);
void test_digest(const void *data, size_t len, uint8_t digest[DIGEST_SIZE]);
/* xorshift64*; *state must not be 0. */
uint64_t test_random(uint64_t *state);

/* Uploads content of `seed` and `size` in a transaction for every 4 chunks; its digest. */
void test_upload(
	struct store *s, uint64_t seed, size_t size, uint64_t now, uint8_t digest[DIGEST_SIZE]);
/* Reads a whole blob and compares it with what test_fill() makes. */
void test_expect_blob(struct store *s, uint64_t seed, size_t size);
int test_references(struct store *s, const uint8_t digest[DIGEST_SIZE]);

/* Content with two files; n == 0 for a nameless one. */
void test_files(struct store_files *f, const uint8_t digest[DIGEST_SIZE], uint64_t size, size_t n);
/* A job with every field set, whose dataset is `digest`; free with store_job_deinit(). */
void test_job(struct store_job *j, uint64_t id, const uint8_t digest[DIGEST_SIZE], uint64_t size);
void test_add_checkpoint(
	struct store_job *j, uint64_t step, const uint8_t digest[DIGEST_SIZE], uint64_t size);

/* A packed Event: a log line. Free with packed_deinit(). */
void test_log_event(struct packed *p, uint64_t seq, const char *text);

/* Whole files. */
uint8_t *test_read_file(const char *path, size_t *ret_len);
void test_write_file(const char *path, const void *data, size_t len);
