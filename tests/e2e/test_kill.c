/*
 * Any of the three processes killed at random instants: what was acknowledged stays, a job ends
 * with the same bits, and a watcher sees every event once.
 *
 * PEFTD_KILL_ROUNDS (default 4) jobs are run, each through some kills; PEFTD_KILL_SEED repeats a
 * run.
 */

#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/e2e/daemon.h"
#include "tests/support/tiny.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { STEPS = 150, KILLS = 4 };

#define SETTINGS                                                                             \
	"--model", "tiny", "--dataset", "rows", "--eval-dataset", "test", "--set", "lora.r=4",   \
		"--set", "train.dtype=f32", "--set", "train.batch_size=4", "--set",                  \
		"train.max_length=64", "--set", "train.max_steps=150", "--set",                      \
		"train.save_steps=20", "--set", "train.eval_steps=50"

static int setup(void **state)
{
	struct daemon *d = malloc(sizeof(*d));
	if (!d) {
		return -1;
	}
	daemon_init(d);
	daemon_start(d);
	free(ctl_ok(d, "model", "add", "tiny", d->model, NULL));
	free(ctl_ok(d, "dataset", "put", "rows", d->rows, NULL));
	free(ctl_ok(d, "dataset", "put", "test", d->eval_rows, NULL));
	*state = d;
	return 0;
}

static int teardown(void **state)
{
	struct daemon *d = *state;
	daemon_deinit(d);
	free(d);
	return 0;
}

static uint64_t env_number(const char *name, uint64_t otherwise)
{
	const char *s = getenv(name);
	return s ? strtoull(s, NULL, 10) : otherwise;
}

static uint64_t next_random(uint64_t *state)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return *state >> 33;
}

/* The instants are random on purpose: this is the one wait that is for a time, not an event. */
static void random_pause(uint64_t *random)
{
	int64_t ns = (int64_t)(next_random(random) % 250) * 1000000;
	struct timespec ts = {0, ns};
	nanosleep(&ts, NULL);
}

static const char *kill_one(struct daemon *d, uint64_t *random)
{
	switch (next_random(random) % 3) {
	case 0:
		daemon_kill(d);
		daemon_start(d);
		return "peftd";
	case 1:
		kill(daemon_child(d, "peftd-front"), SIGKILL);
		return "peftd-front";
	default:
		kill(daemon_child(d, "peftd-trainer"), SIGKILL);
		return "peftd-trainer";
	}
}

/* Events that a watcher saw live, through all of it, are those on record. */
static void check_watcher(const char *path, json_t *events)
{
	_cleanup_(freep) char *text = tiny_read_file(path, NULL);
	json_t *seen = json_lines(text);
	assert_int_equal(json_array_size(seen), json_array_size(events));
	assert_true(json_equal(seen, events));
	json_decref(seen);
}

static void one_round(struct daemon *d, const char *want, uint64_t *random)
{
	uint64_t job = submit(d, SETTINGS, NULL);
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	_cleanup_(freep) char *path = tiny_path(d->dir, "watched");
	pid_t watcher = ctl_spawn(d, path, "watch", id, "--from", "0", "--json", NULL);
	for (int i = 0; i < KILLS; i++) {
		random_pause(random);
		const char *who = kill_one(d, random);
		fprintf(stderr, "job %s: %s killed\n", id, who);
	}
	assert_int_equal(ctl_wait(d, watcher), 0);
	wait_job(d, job, "SUCCEEDED");
	json_t *events = check_record(d, job, STEPS);
	check_watcher(path, events);
	json_decref(events);
	_cleanup_(freep) char *digest = final_digest(d, job);
	assert_string_equal(digest, want);
}

static void test_same_bits(void **state)
{
	struct daemon *d = *state;
	uint64_t seed = env_number("PEFTD_KILL_SEED", (uint64_t)clock_wall_ns() / 1000);
	fprintf(stderr, "PEFTD_KILL_SEED=%" PRIu64 "\n", seed);
	uint64_t random = seed;
	uint64_t reference = submit(d, SETTINGS, NULL);
	wait_job(d, reference, "SUCCEEDED");
	json_decref(check_record(d, reference, STEPS));
	_cleanup_(freep) char *want = final_digest(d, reference);
	uint64_t rounds = env_number("PEFTD_KILL_ROUNDS", 4);
	for (uint64_t i = 0; i < rounds; i++) {
		one_round(d, want, &random);
	}
}

/* What submit has printed is there after the core was killed right then. */
static void test_acknowledged(void **state)
{
	struct daemon *d = *state;
	for (int i = 0; i < 3; i++) {
		uint64_t job = submit(d, SETTINGS, "--hold", NULL);
		daemon_kill(d);
		daemon_start(d);
		char id[24];
		snprintf(id, sizeof(id), "%" PRIu64, job);
		json_t *j = ctl_json(d, "show", id, NULL);
		assert_string_equal(json_string_value(json_object_get(j, "state")), "HELD");
		json_decref(j);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_bits),
		cmocka_unit_test(test_acknowledged),
	};
	return cmocka_run_group_tests_name("e2e-kill", tests, setup, teardown);
}
