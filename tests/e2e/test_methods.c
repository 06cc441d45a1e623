/* Every method through the daemon: as jobs of one sweep, each with its trade-offs, an artifact that
 * gives the same loss when it is read again, and the same bits after a kill. */

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
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
#include "util/util.h"

enum { STEPS = 24, KILLED_STEPS = 240 };

#define SETTINGS                                                                                   \
	"--model", "tiny", "--dataset", "rows", "--eval-dataset", "test", "--set", "lora.r=4",         \
		"--set", "select.parameters=[model\\.layers\\.1\\.mlp\\..*]", "--set",                     \
		"prompt_tuning.num_virtual_tokens=3", "--set", "p_tuning.num_virtual_tokens=3", "--set",   \
		"prefix_tuning.num_virtual_tokens=3", "--set", "train.dtype=f32", "--set",                 \
		"train.batch_size=4", "--set", "train.max_length=64", "--set", "train.max_steps=240",      \
		"--set", "train.save_steps=9", "--set", "train.eval_steps=0", "--set",                     \
		"train.learning_rate=1e-3", "--sweep",                                                     \
		"method=full,last_k,bitfit,ln_tuning,select,lora,bottleneck,prompt_tuning,p_tuning,"       \
		"prefix_tuning,ia3"

enum { METHODS = 11 };

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

static double number(json_t *o, const char *key)
{
	json_t *v = json_object_get(o, key);
	if (!json_is_number(v)) {
		fail_msg("no number '%s'", key);
	}
	return json_number_value(v);
}

static const char *text(json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));
	return s ? s : "";
}

/* Submits the sweep; the first job's id. */
static uint64_t submit_all(const struct daemon *d, int steps)
{
	char max_steps[40];
	snprintf(max_steps, sizeof(max_steps), "train.max_steps=%d", steps);
	_cleanup_(freep) char *out = ctl_ok(d, "submit", "-q", SETTINGS, "--set", max_steps, NULL);
	assert_int_equal(out[0], 's');
	return strtoull(out + 1, NULL, 10);
}

/* One by one: each has its own patience. */
static void wait_all(const struct daemon *d, uint64_t first)
{
	for (uint64_t job = first; job < first + METHODS; job++) {
		wait_job(d, job, "SUCCEEDED");
	}
}

/* What the run reserved is what was planned, part by part. */
static void check_memory(json_t *row)
{
	json_t *planned = json_object_get(row, "memory_planned");
	json_t *measured = json_object_get(row, "memory_measured");
	assert_true(json_is_object(planned) && json_equal(planned, measured));
	double arena = number(planned, "trainable_weights") + number(planned, "optimizer_states") +
		number(planned, "gradients") + number(planned, "activations") +
		number(planned, "temporary");
	assert_true(number(row, "measured_arena") == arena);
	assert_true(number(row, "memory") == arena + number(planned, "base_weights"));
}

static void check_row(json_t *row)
{
	assert_string_equal(text(row, "state"), "SUCCEEDED");
	assert_true(number(row, "step") == STEPS);
	assert_true(number(row, "trainable_parameters") > 0);
	double share = number(row, "trainable_share");
	assert_true(share > 0 && share <= 1);
	assert_true(number(row, "tokens_per_second") > 0);
	assert_true(number(row, "step_seconds_median") > 0);
	assert_true(isfinite(number(row, "loss")));
	json_t *inference = json_object_get(row, "inference");
	assert_true(number(inference, "flops_per_token") >= 0);
	assert_true(number(inference, "bytes_per_token") >= 0);
	json_t *mergeable = json_object_get(inference, "mergeable");
	assert_true(json_is_boolean(mergeable));
	assert_true(number(inference, "tokens") == 32);
	assert_true(number(inference, "base_seconds") > 0 && number(inference, "unmerged_seconds") > 0);
	json_t *merged = json_object_get(inference, "merged_seconds");
	assert_true(json_is_true(mergeable) ? json_number_value(merged) > 0 : json_is_null(merged));
	check_memory(row);
}

/* A job that starts from the artifact and learns nothing ends where that job ended. What p_tuning
 * exports is the prompt alone, without the encoder that is trained. */
static void check_start(const struct daemon *d, json_t *row, const char *dir)
{
	static const struct { const char *method, *set; } sets[] = {{"lora", "lora.r=4"},
		{"select", "select.parameters=[model\\.layers\\.1\\.mlp\\..*]"},
		{"prompt_tuning", "prompt_tuning.num_virtual_tokens=3"},
		{"p_tuning", "p_tuning.num_virtual_tokens=3"},
		{"prefix_tuning", "prefix_tuning.num_virtual_tokens=3"}};
	const char *method = text(row, "method"), *set = "train.seed=5";
	for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
		set = strcmp(sets[i].method, method) == 0 ? sets[i].set : set;
	}
	struct ran r;
	ctl(d, &r, "submit", "-q", "--model", "tiny", "--dataset", "rows", "--eval-dataset", "test",
		"--method", method, "--set", set, "--init-adapter", dir, "--set", "train.max_steps=1",
		"--set", "train.learning_rate=0", "--set", "train.dtype=f32", "--set",
		"train.max_length=64", NULL);
	if (strcmp(method, "p_tuning") == 0) {
		assert_int_equal(r.code, 1);
		assert_words(r.err, "init_adapter", "not the encoder", NULL);
		ran_deinit(&r);
		return;
	}
	if (r.code != 0) {
		fail_msg("%s: %s", method, r.err);
	}
	uint64_t job = strtoull(r.out, NULL, 10);
	ran_deinit(&r);
	wait_job(d, job, "SUCCEEDED");
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	json_t *j = ctl_json(d, "show", id, NULL);
	double loss = number(json_object_get(j, "outcome"), "eval_loss");
	double want = number(row, "last_eval_loss");
	if (!(fabs(loss - want) <= 1e-6 * fabs(want))) {
		fail_msg("%s: starts with %g, not %g", method, loss, want);
	}
	json_decref(j);
}

/* The artifact, read again by another process, has the job's last evaluation. */
static void check_artifact(const struct daemon *d, json_t *row)
{
	char id[24], dir[400];
	snprintf(id, sizeof(id), "%.0f", number(row, "job"));
	snprintf(dir, sizeof(dir), "%s/adapter-%s", d->dir, id);
	free(ctl_ok(d, "fetch", id, "-o", dir, NULL));
	const char *const adapters[] = {id, dir};
	for (size_t i = 0; i < ARRAY_LEN(adapters); i++) {
		json_t *e = ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", "--adapter",
			adapters[i], NULL);
		double loss = number(e, "loss"), want = number(row, "last_eval_loss");
		if (!(fabs(loss - want) <= 1e-5 * fabs(want))) {
			fail_msg("%s: %g, not %g", text(row, "method"), loss, want);
		}
		json_decref(e);
	}
	check_start(d, row, dir);
}

/* Refused by name, and nothing is fetched instead. */
static void check_not_merged(const struct daemon *d, const char *id, const char *dir,
	const char *says)
{
	struct ran r;
	ctl(d, &r, "fetch", id, "--merge", "-o", dir, NULL);
	assert_int_equal(r.code, 1);
	assert_words(r.err, says, NULL);
	assert_int_equal(access(dir, F_OK), -1);
	ran_deinit(&r);
}

/* The merged model, registered as any other, gives the loss that base and adapter give. */
static void check_merged(const struct daemon *d, json_t *row, const char *id, const char *dir)
{
	char name[64];
	json_t *f = ctl_json(d, "fetch", id, "--merge", "-o", dir, NULL);
	json_t *report = json_object_get(f, "merge");
	fprintf(stderr, "%s: merged, off by %g of %g\n", text(row, "method"),
		number(report, "drift_max"), number(report, "logit_max"));
	assert_true(number(report, "drift_max") <= 1e-5 * number(report, "logit_max"));
	assert_true(number(report, "drift_mean") <= number(report, "drift_max"));
	assert_true(number(report, "positions") >= 8 && number(report, "rows") == 8);
	json_decref(f);
	_cleanup_(freep) char *note = tiny_path(dir, "peftd_merge.json");
	_cleanup_(freep) char *facts = tiny_read_file(note, NULL);
	assert_words(facts, "base_digest", text(row, "method"), NULL);

	snprintf(name, sizeof(name), "merged-%s", id);
	free(ctl_ok(d, "model", "add", name, dir, NULL));
	json_t *e = ctl_json(d, "eval", "--model", name, "--dataset", "test", NULL);
	double loss = number(e, "loss"), want = number(row, "last_eval_loss");
	if (!(fabs(loss - want) <= 1e-5 * fabs(want))) {
		fail_msg("%s, merged: %g, not %g", text(row, "method"), loss, want);
	}
	json_decref(e);
	free(ctl_ok(d, "model", "rm", name, NULL));
	/* Again into the same place: it is there, and the same bytes. */
	f = ctl_json(d, "fetch", id, "--merge", "-o", dir, NULL);
	assert_true(json_is_true(json_object_get(f, "was_there")));
	json_decref(f);
}

static void check_merge(const struct daemon *d, json_t *row)
{
	static const struct {
		const char *method, *says;
	} never[] = {
		{"bitfit", "no biases"},
		{"bottleneck", "non-linearity"},
		{"prompt_tuning", "virtual tokens"},
		{"p_tuning", "virtual tokens"},
		{"prefix_tuning", "virtual tokens"},
	};
	char id[24];
	snprintf(id, sizeof(id), "%.0f", number(row, "job"));
	_cleanup_(freep) char *name = NULL;
	assert_true(asprintf(&name, "merged-%s", text(row, "method")) > 0);
	_cleanup_(freep) char *dir = tiny_path(d->dir, name);
	for (size_t i = 0; i < ARRAY_LEN(never); i++) {
		if (strcmp(text(row, "method"), never[i].method) == 0) {
			check_not_merged(d, id, dir, never[i].says);
			return;
		}
	}
	check_merged(d, row, id, dir);
}

static void test_all(void **state)
{
	struct daemon *d = *state;
	char sweep[24];
	uint64_t first = submit_all(d, STEPS);
	snprintf(sweep, sizeof(sweep), "s%" PRIu64, first);
	wait_all(d, first);
	free(ctl_ok(d, "watch", sweep, NULL));
	_cleanup_(freep) char *html = tiny_path(d->dir, "page.html");
	_cleanup_(freep) char *out = ctl_ok(d, "compare", sweep, "--json", "-q", "--html", html, NULL);
	json_t *rows = json_lines(out), *row;
	size_t i;
	assert_int_equal(json_array_size(rows), METHODS);
	double base = 0;
	json_array_foreach(rows, i, row) {
		fprintf(stderr, "%s: loss %g, %g parameters\n", text(row, "method"), number(row, "loss"),
			number(row, "trainable_parameters"));
		check_row(row);
		check_artifact(d, row);
		check_merge(d, row);
		base = i == 0 ? number(row, "trainable_parameters") : base;
		assert_true(i == 0 || number(row, "trainable_parameters") < base); /* full is most */
	}
	json_decref(rows);
	_cleanup_(freep) char *page = tiny_read_file(html, NULL);
	assert_words(page, "prefix_tuning", "<svg", "</html>", NULL);
}

/* Until a step from `step` on is on record. */
static void wait_step(const char *watched, unsigned step)
{
	for (;;) {
		_cleanup_(freep) char *seen = tiny_read_file(watched, NULL);
		for (const char *s = seen; (s = strstr(s, "\"type\":\"metrics\",\"step\":")); s++) {
			if (strtoul(s + 24, NULL, 10) >= step) {
				return;
			}
		}
		usleep(2000);
	}
}

/* Each job's trainer is killed once in the middle. */
static void test_killed(void **state)
{
	struct daemon *d = *state;
	uint64_t quiet = submit_all(d, KILLED_STEPS);
	wait_all(d, quiet);
	uint64_t first = submit_all(d, KILLED_STEPS);
	for (uint64_t job = first; job < first + METHODS; job++) {
		char id[24], name[40];
		snprintf(id, sizeof(id), "%" PRIu64, job);
		snprintf(name, sizeof(name), "watched-%s", id);
		_cleanup_(freep) char *path = tiny_path(d->dir, name);
		pid_t watcher = ctl_spawn(d, path, "watch", id, "--json", NULL);
		wait_step(path, 20);
		kill(daemon_child(d, "peftd-trainer"), SIGKILL);
		assert_int_equal(ctl_wait(d, watcher), 0);
		wait_job(d, job, "SUCCEEDED");
		json_decref(check_record(d, job, KILLED_STEPS));
		json_t *j = ctl_json(d, "show", id, NULL);
		if (number(j, "attempt") < 2) {
			fail_msg("job %s ended before it could be killed", id);
		}
		assert_true(number(json_object_get(j, "outcome"), "steps") == KILLED_STEPS);
		_cleanup_(freep) char *want = final_digest(d, quiet + (job - first));
		_cleanup_(freep) char *got = final_digest(d, job);
		if (strcmp(want, got) != 0) {
			fail_msg("%s ends with other bits", text(j, "variant"));
		}
		json_decref(j);
	}
}

/* Mean and spread over seeds; and all or none. */
static void test_seeds(void **state)
{
	struct daemon *d = *state;
	_cleanup_(freep) char *out = ctl_ok(d, "submit", "-q", "--model", "tiny", "--dataset", "rows",
		"--set", "train.max_steps=3", "--set", "train.dtype=f32", "--sweep", "lora.r=2,4", "--sweep",
		"train.seed=1,2", NULL);
	char sweep[24];
	snprintf(sweep, sizeof(sweep), "%.*s", (int)strcspn(out, "\n"), out);
	free(ctl_ok(d, "watch", sweep, NULL));
	_cleanup_(freep) char *rows_text = ctl_ok(d, "compare", sweep, "--json", NULL);
	json_t *rows = json_lines(rows_text);
	assert_int_equal(json_array_size(rows), 4 + 2);
	for (size_t g = 0; g < 2; g++) {
		json_t *group = json_array_get(rows, 4 + g), *loss = json_object_get(group, "loss");
		double a = number(json_array_get(rows, 2 * g), "loss");
		double b = number(json_array_get(rows, 2 * g + 1), "loss");
		assert_string_equal(text(group, "label"), g == 0 ? "lora lora.r=2" : "lora lora.r=4");
		assert_true(fabs(number(loss, "mean") - (a + b) / 2) < 1e-9);
		assert_true(fabs(number(loss, "sd") - fabs(a - b) / sqrt(2)) < 1e-9);
	}
	json_decref(rows);
	/* All or none: one rank too many. */
	struct ran r;
	ctl(d, &r, "submit", "--model", "tiny", "--dataset", "rows", "--set", "train.max_steps=3",
		"--sweep", "lora.r=2,100000", NULL);
	assert_int_equal(r.code, 1);
	assert_words(r.err, "lora.r=100000", NULL);
	ran_deinit(&r);
}

/* ---- an encoder-decoder -------------------------------------------------------------------- */

#define T5_METHODS "full,bitfit,ln_tuning,select,lora,bottleneck,prompt_tuning,p_tuning,prefix_tuning,ia3"
enum { N_T5_METHODS = 10 };

static void check_t5_job(const struct daemon *d, json_t *row)
{
	char id[24];
	snprintf(id, sizeof(id), "%.0f", number(row, "job"));
	check_row(row);
	json_t *e = ctl_json(d, "eval", "--model", "t5", "--dataset", "test", "--adapter", id, NULL);
	double loss = number(e, "loss"), want = number(row, "last_eval_loss");
	if (!(fabs(loss - want) <= 1e-5 * fabs(want))) {
		fail_msg("%s: %g, not %g", text(row, "method"), loss, want);
	}
	json_decref(e);
	e = ctl_json(d, "generate", "--model", "t5", "--adapter", id, "--max-new-tokens", "5", "7 plus 5 is",
		NULL);
	assert_true(number(e, "new_tokens") >= 1);
	json_decref(e);
}

static void test_encoder_decoder(void **state)
{
	struct daemon *d = *state;
	_cleanup_(freep) char *dir = tiny_path(d->dir, "t5"), *chat = tiny_path(d->dir, "chat.jsonl");
	tiny_t5_write(dir, 1);
	free(ctl_ok(d, "model", "add", "t5", dir, NULL));
	_cleanup_(freep) char *submitted = ctl_ok(d, "submit", "-q", "--model", "t5", "--dataset", "rows",
		"--eval-dataset", "test", "--set", "select.parameters=[.*relative_attention_bias\\.weight]",
		"--set", "prompt_tuning.num_virtual_tokens=3", "--set", "p_tuning.num_virtual_tokens=3", "--set",
		"prefix_tuning.num_virtual_tokens=3", "--set", "train.dtype=f32", "--set",
		"train.batch_size=4", "--set", "train.max_length=64", "--set", "train.max_steps=24", "--set",
		"train.learning_rate=1e-3", "--sweep", "method=" T5_METHODS, NULL);
	assert_int_equal(submitted[0], 's');
	uint64_t first = strtoull(submitted + 1, NULL, 10);
	for (uint64_t job = first; job < first + N_T5_METHODS; job++) {
		wait_job(d, job, "SUCCEEDED");
	}
	char sweep[24];
	snprintf(sweep, sizeof(sweep), "s%" PRIu64, first);
	_cleanup_(freep) char *out = ctl_ok(d, "compare", sweep, "--json", "-q", NULL);
	json_t *rows = json_lines(out), *row;
	size_t i;
	assert_int_equal(json_array_size(rows), N_T5_METHODS);
	json_array_foreach(rows, i, row) {
		check_t5_job(d, row);
	}
	json_decref(rows);

	static const char talk[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, "
		"{\"role\": \"assistant\", \"content\": \"b\"}]}\n";
	tiny_write_file(chat, talk, strlen(talk));
	free(ctl_ok(d, "dataset", "put", "chat", chat, NULL));
	struct ran r;
	ctl(d, &r, "submit", "--model", "t5", "--dataset", "chat", NULL);
	assert_int_equal(r.code, 1);
	assert_words(r.err, "pairs of prompt and completion", NULL);
	ran_deinit(&r);
	ctl(d, &r, "submit", "--model", "t5", "--dataset", "rows", "--method", "last_k", NULL);
	assert_int_equal(r.code, 1);
	assert_words(r.err, "last_k: this model has an encoder and a decoder", NULL);
	ran_deinit(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_encoder_decoder),
		cmocka_unit_test(test_seeds),
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_all),
	};
	return cmocka_run_group_tests_name("e2e-methods", tests, setup, teardown);
}
