/* Pulling models: what may go wrong on the way, and going on from there. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hub_world.h"
#include "tests/support/skip.h"
#include "util/cleanup.h"
#include "util/util.h"

static void test_resume(void **state)
{
	struct world *w = *state;
	_cleanup_(hub_pulled_deinit) struct hub_pulled p = {0};
	struct errmsg err;
	add_model(w);
	/* The connection breaks twice; each time it goes on from there. */
	w->store.cuts = 1;
	w->store.cut_at = 100000;
	expect_pulled(w, "org/tiny", NULL);
	assert_int_equal(w->store.n_log, 2);
	assert_string_equal(w->store.log[0].range, "");
	assert_string_equal(w->store.log[1].range, "bytes=100000-");
	assert_int_equal(w->store.sent, WEIGHTS);
	assert_non_null(strstr(w->notes, "trying again"));
	check_weights(w);

	/* What an earlier pull left. */
	char path[512];
	assert_int_equal(unlink(blob(w, path, "model.safetensors", "")), 0);
	leave_part(w, w->weights, 123456);
	hub_forget(&w->store);
	assert_int_equal(pull(w, "org/tiny", NULL, &p, &err), 0);
	assert_string_equal(hub_last(&w->store, "/blob/").range, "bytes=123456-");
	assert_int_equal(p.fetched, WEIGHTS - 123456);
	check_weights(w);

	/* All of it, but killed before it got its name: no request at all. */
	assert_int_equal(unlink(blob(w, path, "model.safetensors", "")), 0);
	leave_part(w, w->weights, WEIGHTS);
	hub_forget(&w->store);
	expect_pulled(w, "org/tiny", NULL);
	assert_int_equal(w->store.n_log, 0);
	check_weights(w);
}

static void test_resume_from_bad_parts(void **state)
{
	struct world *w = *state;
	char path[512];
	add_model(w);
	/* Too much. */
	leave_part(w, w->weights, WEIGHTS + 1);
	expect_pulled(w, "org/tiny", NULL);
	check_weights(w);
	/* Damaged: seen at the end, and fetched from the start once. */
	static const char junk[5000] = "junk";
	assert_int_equal(unlink(blob(w, path, "model.safetensors", "")), 0);
	leave_part(w, junk, sizeof(junk));
	hub_forget(&w->store);
	expect_pulled(w, "org/tiny", NULL);
	assert_non_null(strstr(w->notes, "what an earlier pull left is damaged"));
	assert_int_equal(w->store.n_log, 2);
	check_weights(w);
	/* A server that knows no ranges. */
	assert_int_equal(unlink(blob(w, path, "model.safetensors", "")), 0);
	leave_part(w, w->weights, 7777);
	w->store.no_ranges = true;
	expect_pulled(w, "org/tiny", NULL);
	check_weights(w);
	/* A link where the part should be is not followed. */
	assert_int_equal(unlink(blob(w, path, "model.safetensors", "")), 0);
	char outside[512];
	snprintf(outside, sizeof(outside), "%s/outside", w->dir);
	put_file(outside, "mine", 4);
	assert_int_equal(symlink(outside, blob(w, path, "model.safetensors", ".incomplete")), 0);
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, ".incomplete");
	check_file(outside, "mine", 4);
}

static void test_truncated(void **state)
{
	struct world *w = *state;
	char path[512];
	add_model(w);
	w->store.cuts = 100;
	w->store.cut_at = 100000;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "tried 3 times");
	assert_int_equal(size_at(blob(w, path, "model.safetensors", ".incomplete")), 100000);
	assert_false(exists(in_cache(w, path, "refs/main")));
	w->store.cuts = 0;
	hub_forget(&w->store);
	expect_pulled(w, "org/tiny", NULL);
	assert_int_equal(w->store.sent, WEIGHTS - 100000);
	check_weights(w);
}

static void test_damaged(void **state)
{
	struct world *w = *state;
	char path[512], other[256];
	add_model(w);
	w->store.flips = 1;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "model.safetensors: what came is damaged");
	assert_false(exists(blob(w, path, "model.safetensors", "")));
	assert_false(exists(blob(w, path, "model.safetensors", ".incomplete")));
	snprintf(other, sizeof(other), "snapshots/%s/model.safetensors", commit);
	assert_false(exists(in_cache(w, path, other)));
	assert_false(exists(in_cache(w, path, "refs/main")));
	/* The small ones are held against git's digest. */
	unlink(blob(w, path, "config.json", "")); /* it may have come before the other failed */
	unlink(blob(w, path, "config.json", ".incomplete"));
	w->hub.flips = 100;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "it was deleted");
	w->hub.flips = 0;
	unlink(blob(w, path, "model.safetensors", ""));
	w->store.too_long = true;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "more than the 300000 bytes");
	w->store.too_long = false;
	expect_pulled(w, "org/tiny", NULL);
	check_weights(w);
}

static void test_busy(void **state)
{
	struct world *w = *state;
	add_model(w);
	w->hub.fails = 1;
	w->hub.fail_status = 429;
	w->hub.fail_header = "Retry-After: 1\r\n";
	int64_t before = clock_monotonic_ns();
	expect_pulled(w, "org/tiny", NULL);
	assert_true(clock_monotonic_ns() - before >= 1000000000);
	assert_non_null(strstr(w->notes, "429 (too many requests); trying again in 1 s"));

	w->hub.fails = 1;
	w->hub.fail_header = "Retry-After: 4000\r\n";
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "asks to come back in 4000 s");
	w->hub.fail_header = NULL;
	w->hub.fail_status = 503;
	w->hub.fails = 2;
	expect_pulled(w, "org/tiny", NULL);
	w->hub.fails = 3;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "answers 503; tried 3 times");
	w->hub.fails = 1;
	w->hub.fail_status = 418;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "answers 418");
}

static void test_silence(void **state)
{
	struct world *w = *state;
	add_model(w);
	w->config.stall_s = 1;
	w->config.tries = 1;
	w->store.silent = true;
	w->store.cut_at = 1000;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "tried 1 time");
	/* Nobody there. */
	free(w->config.endpoint);
	w->config.endpoint = strdup("http://127.0.0.1:1");
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "127.0.0.1:1");
}

static void test_redirects(void **state)
{
	struct world *w = *state;
	char url[256];
	add_model(w);
	static const struct {
		const char *to, *words;
	} cases[] = {
		{"ftp://127.0.0.1/x", "leads to ftp://127.0.0.1; only https is followed"},
		{"file:///etc/passwd", "leads to"},
		{"gopher://127.0.0.1/x", "only https is followed"},
		{"http://name:secret@127.0.0.1:1/x", "with a user name in it"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		w->hub.redirect = cases[i].to;
		expect_refused(w, "org/tiny", NULL, STATUS_FAILED, cases[i].words);
	}
	snprintf(url, sizeof(url), "%s/org/tiny/resolve/%s/model.safetensors", w->hub.url, commit);
	w->hub.redirect = url;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "redirected more than 10 times");
	/* A store that refuses is not the hub refusing. */
	w->hub.redirect = NULL;
	w->store.fails = 1;
	w->store.fail_status = 403;
	snprintf(url, sizeof(url), "127.0.0.1:%d answers 403", w->store.port);
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, url);
}

static void test_https(void **state)
{
	struct world *w = *state;
	char path[128];
	struct hub secure;
	snprintf(path, sizeof(path), "%s/certificate.pem", w->dir);
	hub_start(&secure, "org/tiny", path);
	hub_add(&secure, "config.json", "hello\n", 6, false);
	hub_add(&secure, "model.safetensors", w->weights, WEIGHTS, true);
	add_weights(w, "model.safetensors", WEIGHTS);
	free(w->config.endpoint);
	w->config.endpoint = strdup(secure.url);
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "cannot prove who it is");
	assert_int_equal(secure.n_log, 0);
	w->config.ca_file = strdup("/nonexistent");
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "SSL_CERT_FILE");
	free(w->config.ca_file);
	w->config.ca_file = strdup(path);
	/* From https to http: never. */
	secure.store = &w->store;
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "leads to http://127.0.0.1; only https");
	assert_int_equal(w->store.n_log, 0);
	secure.store = NULL;
	expect_pulled(w, "org/tiny", NULL);
	check_weights(w);
	hub_stop(&secure);
}

static void test_proxy(void **state)
{
	struct world *w = *state;
	add_model(w);
	free(w->config.endpoint);
	w->config.endpoint = strdup("http://hub.invalid");
	w->config.tries = 1;
	assert_int_equal(setenv("http_proxy", w->hub.url, 1), 0);
	expect_refused(w, "org/tiny", NULL, STATUS_NOT_FOUND, "no such model");
	hub_last(&w->hub, "http://hub.invalid/api/models/org/tiny/revision/main");
	hub_forget(&w->hub);
	assert_int_equal(setenv("no_proxy", "hub.invalid", 1), 0);
	expect_refused(w, "org/tiny", NULL, STATUS_FAILED, "hub.invalid");
	assert_int_equal(w->hub.n_log, 0);
	assert_int_equal(unsetenv("http_proxy"), 0);
	assert_int_equal(unsetenv("no_proxy"), 0);
}

/* A disk that fills up while it is written: what came stays, and the pull goes on later. */
static void test_disk_fills(void **state)
{
	struct world *w = *state;
	char path[512];
	if (mount("tmpfs", w->dir, "tmpfs", MS_NOSUID | MS_NODEV, "size=2m,mode=0700") < 0) {
		SKIP("no small file system can be mounted here (needs root)");
	}
	w->mounted = true;
	add(w, "config.json", "hello\n");
	add_weights(w, "model.safetensors", 3 * MIB);
	expect_refused(w, "org/tiny", NULL, STATUS_DISK_FULL, "needs 3.0 MiB more, and its disk has ");
	/* A part that seems whole needs no room, until it proves to be none. */
	leave_part(w, "", 0);
	assert_int_equal(truncate(blob(w, path, "model.safetensors", ".incomplete"), 3 * MIB), 0);
	expect_refused(w, "org/tiny", NULL, STATUS_DISK_FULL, "No space left on device; what came is "
		"kept");
	assert_true(size_at(blob(w, path, "model.safetensors", ".incomplete")) > MIB);
	assert_int_equal(mount("tmpfs", w->dir, "tmpfs", MS_REMOUNT, "size=8m"), 0);
	hub_forget(&w->store);
	expect_pulled(w, "org/tiny", NULL);
	assert_true(w->store.sent < 2 * MIB);
	check_file(blob(w, path, "model.safetensors", ""), w->weights, 3 * MIB);
}

struct finisher {
	struct world *w;
	int lock;
};

/* Plays another process: brings the blob once it is waited for, and lets go. */
static void *finish_elsewhere(void *data)
{
	struct finisher *f = data;
	char path[512];
	while (hub_count(&f->w->hub, "/resolve-cache/") < 2) { /* the others are under way */
		sched_yield();
	}
	put_file(blob(f->w, path, "model.safetensors", ""), f->w->weights, WEIGHTS);
	close(f->lock);
	return NULL;
}

static void test_lock(void **state)
{
	struct world *w = *state;
	struct finisher f = {.w = w};
	char path[512];
	pthread_t thread;
	add_model(w);
	leave_part(w, "", 0);
	assert_int_equal(unlink(blob(w, path, "model.safetensors", ".incomplete")), 0);
	snprintf(path, sizeof(path), "%s/.locks", w->dir);
	assert_int_equal(mkdir(path, 0777), 0);
	snprintf(path, sizeof(path), "%s/.locks/models--org--tiny", w->dir);
	assert_int_equal(mkdir(path, 0777), 0);
	snprintf(path, sizeof(path), "%s/.locks/models--org--tiny/%s.lock", w->dir,
		digest_of(w, "model.safetensors"));
	f.lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	assert_int_equal(flock(f.lock, LOCK_EX), 0);
	assert_int_equal(pthread_create(&thread, NULL, finish_elsewhere, &f), 0);
	expect_pulled(w, "org/tiny", NULL);
	pthread_join(thread, NULL);
	assert_non_null(strstr(w->notes, "model.safetensors: another process is fetching it; waiting"));
	assert_int_equal(w->store.n_log, 0);
	check_weights(w);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, hub_world_setup, hub_world_teardown)
	const struct CMUnitTest tests[] = {
		T(test_resume), T(test_resume_from_bad_parts), T(test_truncated), T(test_damaged),
		T(test_busy), T(test_silence), T(test_redirects), T(test_https), T(test_proxy),
		T(test_disk_fills), T(test_lock),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
