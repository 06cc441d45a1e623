/* The life of a job as a user sees it: add, put, plan, submit, watch, fetch, eval, generate. */

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/e2e/daemon.h"
#include "tests/support/tiny.h"
#include "util/cleanup.h"

#define SETTINGS                                                                     \
	"--model", "tiny", "--dataset", "rows", "--set", "lora.r=4", "--set",            \
		"train.dtype=f32", "--set", "train.batch_size=4", "--set",                   \
		"train.max_length=64", "--set", "train.learning_rate=5e-3"

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

static int64_t integer(json_t *o, const char *key)
{
	json_t *v = json_object_get(o, key);
	if (!json_is_integer(v)) {
		fail_msg("no integer '%s'", key);
	}
	return json_integer_value(v);
}

static double number(json_t *o, const char *key)
{
	json_t *v = json_object_get(o, key);
	if (!json_is_number(v)) {
		fail_msg("no number '%s'", key);
	}
	return json_number_value(v);
}

static void test_status(void **state)
{
	struct daemon *d = *state;
	json_t *s = ctl_json(d, "status", NULL);
	assert_true(integer(s, "memory_total") > 0);
	assert_string_equal(json_string_value(json_object_get(s, "trainer_state")), "idle");
	json_decref(s);
}

static void test_model_and_dataset(void **state)
{
	struct daemon *d = *state;
	json_t *m = ctl_json(d, "model", "show", "tiny", NULL);
	assert_int_equal(integer(m, "hidden_size"), TINY_HIDDEN);
	json_decref(m);
	json_t *s = ctl_json(d, "dataset", "show", "rows", NULL);
	assert_int_equal(integer(s, "rows"), 40);
	json_decref(s);

	_cleanup_(freep) char *out = ctl_ok(d, "dataset", "inspect", "rows", "--model", "tiny",
		"--rows", "3", "--json", NULL);
	json_t *lines = json_lines(out), *row;
	size_t i, rows = 0;
	json_array_foreach(lines, i, row) {
		json_t *ids = json_object_get(row, "input_ids"), *labels = json_object_get(row, "labels");
		if (!ids) {
			continue; /* the summary */
		}
		assert_int_equal(integer(row, "row"), rows);
		assert_int_equal(json_array_size(ids), json_array_size(labels));
		assert_int_equal(json_integer_value(json_array_get(labels, 0)), -100);
		size_t last = json_array_size(ids) - 1;
		assert_int_equal(json_integer_value(json_array_get(ids, last)), TINY_EOS);
		assert_int_equal(json_integer_value(json_array_get(labels, last)), TINY_EOS);
		rows++;
	}
	assert_int_equal(rows, 3);
	json_decref(lines);
}

static void test_plan(void **state)
{
	struct daemon *d = *state;
	json_t *v = ctl_json(d, "plan", SETTINGS, "--set", "train.max_steps=7", NULL);
	json_t *p = json_object_get(v, "plan") ? json_object_get(v, "plan") : v;
	assert_int_equal(integer(p, "steps"), 7);
	assert_int_equal(integer(p, "total"), integer(p, "base_weights") +
		integer(p, "trainable_weights") + integer(p, "optimizer_states") + integer(p, "gradients") +
		integer(p, "activations") + integer(p, "temporary"));
	json_decref(v);
	/* Nothing was queued. */
	_cleanup_(freep) char *list = ctl_ok(d, "list", "--json", NULL);
	assert_string_equal(list, "");
}

static void check_metrics(const struct daemon *d, const char *id, int64_t steps, int64_t evals)
{
	_cleanup_(freep) char *out = ctl_ok(d, "metrics", id, "--json", NULL);
	json_t *lines = json_lines(out), *row;
	size_t i;
	int64_t step = 0, n_evals = 0;
	json_array_foreach(lines, i, row) {
		if (json_object_get(row, "eval_loss")) {
			n_evals++;
			continue;
		}
		assert_int_equal(integer(row, "step"), ++step);
		assert_true(number(row, "loss") > 0 && number(row, "grad_norm") > 0);
		assert_true(number(row, "seconds") > 0 && integer(row, "tokens") > 0);
		assert_true(number(row, "lr") >= 0);
	}
	assert_int_equal(step, steps);
	assert_int_equal(n_evals, evals);
	json_decref(lines);
}

static double eval_loss(const struct daemon *d, const char *adapter)
{
	json_t *v = adapter ? ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", "--adapter",
							  adapter, NULL)
						: ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", NULL);
	double loss = number(v, "loss");
	assert_true(integer(v, "tokens") > 0);
	assert_true(fabs(number(v, "perplexity") - exp(loss)) < 1e-6 * exp(loss));
	json_decref(v);
	return loss;
}

static char *joined(const char *dir, const char *name)
{
	char *path = NULL;
	assert_true(asprintf(&path, "%s/%s", dir, name) > 0);
	return path;
}

static void test_whole_life(void **state)
{
	struct daemon *d = *state;
	uint64_t job = submit(d, SETTINGS, "--set", "train.max_steps=12", "--set", "train.save_steps=5",
		"--set", "train.eval_steps=6", "--eval-dataset", "test", NULL);
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	wait_job(d, job, "SUCCEEDED");
	json_decref(check_record(d, job, 12));
	check_metrics(d, id, 12, 2);

	json_t *j = ctl_json(d, "show", id, NULL);
	json_t *plan = json_object_get(j, "plan");
	assert_non_null(plan);
	/* The run takes what was planned, to the byte. */
	assert_int_equal(integer(j, "measured_arena"), integer(plan, "total") -
		integer(plan, "base_weights"));
	json_decref(j);

	_cleanup_(freep) char *out = joined(d->dir, "adapter");
	free(ctl_ok(d, "fetch", id, "-o", out, NULL));
	_cleanup_(freep) char *config = joined(out, "adapter_config.json");
	_cleanup_(freep) char *weights = joined(out, "adapter_model.safetensors");
	_cleanup_(freep) char *text = tiny_read_file(config, NULL);
	assert_words(text, "\"peft_type\": \"LORA\"", "\"q_proj\"", "\"r\": 4", NULL);
	assert_int_equal(access(weights, R_OK), 0);
	_cleanup_(freep) char *private = joined(out, "peftd_state.safetensors");
	assert_int_not_equal(access(private, F_OK), 0);

	double base = eval_loss(d, NULL), trained = eval_loss(d, id), fetched = eval_loss(d, out);
	assert_true(trained < base);
	assert_true(trained == fetched);

	_cleanup_(freep) char *a = ctl_ok(d, "generate", "--model", "tiny", "--max-new-tokens", "12",
		"--adapter", id, "1 plus 2 is", NULL);
	_cleanup_(freep) char *b = ctl_ok(d, "generate", "--model", "tiny", "--max-new-tokens", "12",
		"--adapter", out, "1 plus 2 is", NULL);
	assert_string_equal(a, b);

	/* Training on from the fetched adapter begins where the other ended. */
	_cleanup_(freep) char *init = NULL;
	assert_true(asprintf(&init, "init_adapter=%s", out) > 0);
	uint64_t second = submit(d, SETTINGS, "--set", "train.max_steps=2", "--set", init, NULL);
	wait_job(d, second, "SUCCEEDED");
}

/* The same spec and seed: the same bits, whatever ran before. */
static void test_repeatable(void **state)
{
	struct daemon *d = *state;
	uint64_t a = submit(d, SETTINGS, "--set", "train.max_steps=6", NULL);
	uint64_t b = submit(d, SETTINGS, "--set", "train.max_steps=6", NULL);
	uint64_t other = submit(d, SETTINGS, "--set", "train.max_steps=6", "--set", "train.seed=7",
		NULL);
	wait_job(d, a, "SUCCEEDED");
	wait_job(d, b, "SUCCEEDED");
	wait_job(d, other, "SUCCEEDED");
	_cleanup_(freep) char *x = final_digest(d, a);
	_cleanup_(freep) char *y = final_digest(d, b);
	_cleanup_(freep) char *z = final_digest(d, other);
	assert_string_equal(x, y);
	assert_string_not_equal(x, z);
}

static void test_cancel_hold_release(void **state)
{
	struct daemon *d = *state;
	char id[24];
	uint64_t held = submit(d, SETTINGS, "--set", "train.max_steps=3", "--hold", NULL);
	snprintf(id, sizeof(id), "%" PRIu64, held);
	json_t *j = ctl_json(d, "show", id, NULL);
	assert_string_equal(json_string_value(json_object_get(j, "state")), "HELD");
	json_decref(j);
	free(ctl_ok(d, "release", id, NULL));
	wait_job(d, held, "SUCCEEDED");

	uint64_t job = submit(d, SETTINGS, "--set", "train.max_steps=100000", "--set",
		"train.save_steps=0", "--set", "train.logging_steps=1000", NULL);
	snprintf(id, sizeof(id), "%" PRIu64, job);
	free(ctl_ok(d, "cancel", id, NULL));
	wait_job(d, job, "CANCELLED");
}

/* An orderly end: the running job writes a checkpoint, and goes on to the same bits after it. */
static void test_restart(void **state)
{
	struct daemon *d = *state;
	uint64_t whole = submit(d, SETTINGS, "--set", "train.max_steps=400", "--set",
		"train.save_steps=0", NULL);
	wait_job(d, whole, "SUCCEEDED");
	uint64_t job = submit(d, SETTINGS, "--set", "train.max_steps=400", "--set",
		"train.save_steps=0", NULL);
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	/* Until it has done some steps. */
	_cleanup_(freep) char *path = joined(d->dir, "watched");
	pid_t watcher = ctl_spawn(d, path, "watch", id, "--json", NULL);
	for (;;) {
		_cleanup_(freep) char *text = tiny_read_file(path, NULL);
		if (strstr(text, "\"step\":20,")) {
			break;
		}
		usleep(2000);
	}
	assert_int_equal(daemon_stop(d), 0);
	assert_int_equal(access(d->endpoint + strlen("ipc://"), F_OK), -1); /* nothing is left lying there */
	daemon_start(d);
	wait_job(d, job, "SUCCEEDED");
	assert_int_equal(ctl_wait(d, watcher), 0);
	json_t *events = check_record(d, job, 400), *e;
	size_t i, checkpoints = 0;
	json_array_foreach(events, i, e) {
		const char *type = json_string_value(json_object_get(e, "type"));
		checkpoints += strcmp(type, "checkpoint") == 0;
	}
	assert_int_equal(checkpoints, 2); /* that of the end of the daemon, and the final one */
	json_decref(events);
	_cleanup_(freep) char *a = final_digest(d, whole);
	_cleanup_(freep) char *b = final_digest(d, job);
	assert_string_equal(a, b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_status),
		cmocka_unit_test(test_model_and_dataset),
		cmocka_unit_test(test_plan),
		cmocka_unit_test(test_whole_life),
		cmocka_unit_test(test_repeatable),
		cmocka_unit_test(test_cancel_hold_release),
		cmocka_unit_test(test_restart),
	};
	return cmocka_run_group_tests_name("e2e-jobs", tests, setup, teardown);
}
