/* A disk that is full, during an upload and during a checkpoint. Needs root for a small tmpfs;
 * skipped without. */

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/e2e/daemon.h"
#include "tests/support/skip.h"
#include "tests/support/tiny.h"
#include "util/buf.h"
#include "util/cleanup.h"

enum { MIB = 1024 * 1024 };

struct disk {
	struct daemon daemon;
	bool mounted;
};

static int setup(void **state)
{
	struct disk *k = calloc(1, sizeof(*k));
	if (!k) {
		return -1;
	}
	daemon_init(&k->daemon);
	if (mkdir(k->daemon.state, 0700) < 0) {
		return -1;
	}
	if (mount("tmpfs", k->daemon.state, "tmpfs", MS_NOSUID | MS_NODEV, "size=24m,mode=0700") == 0) {
		k->mounted = true;
		setenv("PEFTD_STORE_RESERVE", "1048576", 1);
		daemon_start(&k->daemon);
		free(ctl_ok(&k->daemon, "model", "add", "tiny", k->daemon.model, NULL));
		free(ctl_ok(&k->daemon, "dataset", "put", "rows", k->daemon.rows, NULL));
	}
	*state = k;
	return 0;
}

static int teardown(void **state)
{
	struct disk *k = *state;
	if (k->daemon.pid > 0) {
		daemon_kill(&k->daemon);
	}
	if (k->mounted) {
		umount2(k->daemon.state, MNT_DETACH);
	}
	daemon_deinit(&k->daemon);
	free(k);
	return 0;
}

/* Declares d, the daemon; skips the test where the setup could mount nothing. */
#define NEED(d, state)                                                                  \
	struct daemon *d = &((struct disk *)*(state))->daemon;                              \
	if (!((struct disk *)*(state))->mounted) {                                          \
		SKIP("no small file system can be mounted here (needs root)");                  \
	}

static void test_upload(void **state)
{
	NEED(d, state);
	_cleanup_(buf_deinit) struct buf rows = {0};
	while (rows.len < 40 * MIB) {
		buf_appendf(&rows, "{\"text\":\"%08192zu\"}\n", rows.len);
	}
	_cleanup_(freep) char *path = tiny_path(d->dir, "huge.jsonl");
	tiny_write_file(path, rows.data, rows.len);
	struct ran r;
	ctl(d, &r, "dataset", "put", "huge", path, NULL);
	assert_int_equal(r.code, 1);
	assert_words(r.err, "MiB", NULL);
	ran_deinit(&r);
	/* The daemon goes on, and what fits still fits. */
	json_decref(ctl_json(d, "status", NULL));
	free(ctl_ok(d, "dataset", "put", "small", d->eval_rows, NULL));
	assert_int_equal(daemon_stop(d), 0);
	daemon_start(d);
	json_decref(ctl_json(d, "dataset", "show", "small", NULL));
}

#define SETTINGS                                                                        \
	"--model", "tiny", "--dataset", "rows", "--set", "lora.r=16", "--set",              \
		"train.dtype=f32", "--set", "train.max_steps=40", "--set", "train.save_steps=10"

/* Leaves `left` bytes on the file system. */
static void fill(const struct daemon *d, const char *path, uint64_t left)
{
	struct statvfs fs;
	assert_int_equal(statvfs(d->state, &fs), 0);
	uint64_t available = (uint64_t)fs.f_bavail * fs.f_frsize;
	size_t n = available > left ? (size_t)(available - left) : 0;
	_cleanup_(freep) char *zeros = calloc(1, n + 1);
	assert_non_null(zeros);
	tiny_write_file(path, zeros, n);
}

static void test_checkpoint(void **state)
{
	NEED(d, state);
	uint64_t whole = submit(d, SETTINGS, NULL);
	wait_job(d, whole, "SUCCEEDED");
	_cleanup_(freep) char *want = final_digest(d, whole);

	uint64_t job = submit(d, SETTINGS, "--hold", NULL);
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	_cleanup_(freep) char *filler = tiny_path(d->state, "filler");
	fill(d, filler, MIB + MIB / 4);
	free(ctl_ok(d, "release", id, NULL));
	/* It comes to rest, with the reason, and does not fail. */
	for (;;) {
		json_t *j = ctl_json(d, "show", id, NULL);
		const char *now = json_string_value(json_object_get(j, "state"));
		bool held = strcmp(now, "HELD") == 0;
		const char *reason = json_string_value(json_object_get(j, "reason"));
		if (held) {
			assert_non_null(reason);
			assert_words(reason, "MiB", NULL);
		} else if (strcmp(now, "SUCCEEDED") == 0 || strcmp(now, "FAILED") == 0) {
			fail_msg("the job is %s (%s)", now, reason ? reason : "");
		}
		json_decref(j);
		if (held) {
			break;
		}
		usleep(20000);
	}
	assert_int_equal(unlink(filler), 0);
	free(ctl_ok(d, "release", id, NULL));
	wait_job(d, job, "SUCCEEDED");
	json_decref(check_record(d, job, 40));
	_cleanup_(freep) char *got = final_digest(d, job);
	assert_string_equal(got, want);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_upload),
		cmocka_unit_test(test_checkpoint),
	};
	return cmocka_run_group_tests_name("e2e-disk", tests, setup, teardown);
}
