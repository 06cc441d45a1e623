/* Generation and evaluation: adapters of all methods over one base, beside training, and their ends. */

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
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

#define SETTINGS                                                                                   \
	"--model", "tiny", "--dataset", "rows", "--set", "train.dtype=f32", "--set",                   \
		"train.batch_size=4", "--set", "train.max_length=64"

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

static const char *text_of(json_t *o)
{
	const char *s = json_string_value(json_object_get(o, "text"));
	assert_non_null(s);
	return s;
}

static uint64_t memory_in_use(const struct daemon *d)
{
	json_t *s = ctl_json(d, "status", NULL);
	uint64_t n = (uint64_t)number(s, "memory_in_use");
	json_decref(s);
	return n;
}

/* ---- adapters of all methods ----------------------------------------------------------------- */

enum { METHODS = 11, SEEDS = 2, ADAPTERS = METHODS * SEEDS, TURNS = 60 };

static const char *const questions[] = {"1 plus 2 is", "7 plus 5 is", "3 plus"};

static uint64_t train_all(const struct daemon *d)
{
	_cleanup_(freep) char *out = ctl_ok(d, "submit", "-q", SETTINGS, "--set", "lora.r=4", "--set",
		"select.parameters=[model\\.layers\\.1\\.mlp\\..*]", "--set",
		"prompt_tuning.num_virtual_tokens=3", "--set", "p_tuning.num_virtual_tokens=5", "--set",
		"prefix_tuning.num_virtual_tokens=3", "--set", "train.max_steps=6", "--set",
		"train.learning_rate=2e-2", "--sweep", "method=full,last_k,bitfit,ln_tuning,select,lora,"
		"bottleneck,prompt_tuning,p_tuning,prefix_tuning,ia3", "--sweep", "train.seed=1,2", NULL);
	uint64_t first = strtoull(out + 1, NULL, 10);
	for (uint64_t job = first; job < first + ADAPTERS; job++) {
		wait_job(d, job, "SUCCEEDED");
	}
	return first;
}

/* Bytes of the two files of a job's folder. */
static uint64_t folder_bytes(const struct daemon *d, uint64_t job)
{
	static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors",
		"adapter.safetensors", "delta_config.json", "delta.safetensors"};
	char id[24], name[40];
	uint64_t sum = 0;
	snprintf(id, sizeof(id), "%" PRIu64, job);
	snprintf(name, sizeof(name), "folder-%" PRIu64, job);
	_cleanup_(freep) char *dir = tiny_path(d->dir, name);
	free(ctl_ok(d, "fetch", id, "-o", dir, "-q", NULL));
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct stat st;
		_cleanup_(freep) char *path = tiny_path(dir, names[i]);
		sum += stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
	}
	return sum;
}

static json_t *answer_alone(const struct daemon *d, uint64_t job, const char *question)
{
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	json_t *v = ctl_json(d, "generate", "--model", "tiny", "--adapter", id, "--max-new-tokens", "9",
		question, NULL);
	assert_true(number(v, "switch_seconds") >= 0);
	return v;
}

/* Texts may hold NUL. */
static bool same_text(json_t *a, json_t *b)
{
	return json_equal(json_object_get(a, "text"), json_object_get(b, "text"));
}

/* Twenty-two adapters over one base: in a random order, several prompts at once, each answer is that of
 * its prompt alone; and memory grows by the adapters and nothing else. */
static void test_swapping(void **state)
{
	struct daemon *d = *state;
	uint64_t first = train_all(d), before = memory_in_use(d), adapters = 0;
	json_t *alone[ADAPTERS][ARRAY_LEN(questions)];
	for (size_t i = 0; i < ADAPTERS; i++) {
		adapters += folder_bytes(d, first + i);
		for (size_t q = 0; q < ARRAY_LEN(questions); q++) {
			alone[i][q] = answer_alone(d, first + i, questions[q]);
		}
	}
	/* Statistics come behind answers. */
	for (int i = 0; i < 1000 && memory_in_use(d) != before + adapters; i++) {
		usleep(5000);
	}
	assert_int_equal(memory_in_use(d), before + adapters);

	_cleanup_(freep) char *path = tiny_path(d->dir, "prompts.jsonl");
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	size_t which[TURNS], asked[TURNS];
	uint64_t x = 12345;
	for (size_t i = 0; i < TURNS; i++) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		/* Now and then the same again, so that several go together. */
		which[i] = i > 0 && (x >> 60) < 5 ? which[i - 1] : (x >> 33) % ADAPTERS;
		asked[i] = (x >> 50) % ARRAY_LEN(questions);
		fprintf(f, "{\"prompt\": \"%s\", \"adapter\": \"%" PRIu64 "\"}\n", questions[asked[i]],
			first + which[i]);
	}
	fclose(f);
	_cleanup_(freep) char *out = ctl_ok(d, "generate", "--model", "tiny", "--max-new-tokens", "9",
		"--prompts", path, "--json", NULL);
	json_t *lines = json_lines(out), *line;
	size_t i;
	assert_int_equal(json_array_size(lines), TURNS);
	json_array_foreach(lines, i, line) {
		assert_true(same_text(line, alone[which[i]][asked[i]]));
		assert_int_equal((int)number(line, "index"), (int)i);
		assert_true(json_is_true(json_object_get(line, "adapter_was_here")));
	}
	json_decref(lines);
	for (i = 0; i < ADAPTERS; i++) {
		for (size_t q = 0; q < ARRAY_LEN(questions); q++) {
			json_decref(alone[i][q]);
		}
	}
}

/* ---- what is drawn, and where it ends -------------------------------------------------------- */

static char *drawn(const struct daemon *d, const char *seed)
{
	json_t *v = ctl_json(d, "generate", "--model", "tiny", "--max-new-tokens", "20", "--temperature",
		"1", "--top-k", "50", "--top-p", "0.95", "--repetition-penalty", "1.1", "--seed", seed,
		"1 plus 2 is", NULL);
	char *text = strdup(text_of(v));
	json_decref(v);
	return text;
}

static void test_settings(void **state)
{
	struct daemon *d = *state;
	_cleanup_(freep) char *a = drawn(d, "1"), *b = drawn(d, "1"), *c = drawn(d, "2");
	assert_string_equal(a, b);
	assert_string_not_equal(a, c);

	/* The whole answer, and what comes of it when a part of it ends it. */
	json_t *v = ctl_json(d, "generate", "--model", "tiny", "--max-new-tokens", "24", "ab", NULL);
	_cleanup_(freep) char *whole = strdup(text_of(v));
	json_decref(v);
	char stop[3] = {0};
	size_t at = 0;
	for (size_t i = 1; whole[i] && whole[i + 1]; i++) {
		if ((whole[i] & 0x80) == 0 && (whole[i + 1] & 0x80) == 0) {
			stop[0] = whole[i];
			stop[1] = whole[i + 1];
			at = (size_t)(strstr(whole, stop) - whole);
			break;
		}
	}
	if (stop[0]) {
		v = ctl_json(d, "generate", "--model", "tiny", "--max-new-tokens", "24", "--stop", stop, "ab",
			NULL);
		assert_int_equal(strlen(text_of(v)), at);
		assert_memory_equal(text_of(v), whole, at);
		assert_string_equal(json_string_value(json_object_get(v, "finish_reason")), "stop");
		json_decref(v);
	}

	struct ran r;
	ctl(d, &r, "generate", "--model", "tiny", "--prompt", "a", "--prompt", "", NULL);
	assert_int_equal(r.code, 1);
	assert_words(r.err, "prompt 2 of 2", "no token", NULL);
	ran_deinit(&r);
	ctl(d, &r, "generate", "--model", "tiny", "--top-p", "0.5", "a", NULL);
	assert_int_equal(r.code, 2);
	ran_deinit(&r);
}

/* ---- evaluation ------------------------------------------------------------------------------ */

static void test_eval(void **state)
{
	struct daemon *d = *state;
	json_t *zero = ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", NULL);
	json_t *all = ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", "--metric",
		"exact_match", "--metric", "last_number", "--metric", "rouge", "--max-new-tokens", "8", NULL);
	assert_true(fabs(number(zero, "loss") - number(all, "loss")) < 1e-6);
	assert_true(number(all, "answers") == 10 || number(all, "answers") > 0);
	assert_null(json_object_get(zero, "exact_match"));
	assert_true(number(all, "exact_match") >= 0 && number(all, "rouge_l") >= 0);
	json_decref(zero);
	json_decref(all);

	/* Examples change the loss, and come from the seed. */
	json_t *two = ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", "--shots", "2",
		"--shots-dataset", "rows", "--limit", "5", "--seed", "3", NULL);
	json_t *again = ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", "--shots", "2",
		"--shots-dataset", "rows", "--limit", "5", "--seed", "3", NULL);
	json_t *other = ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", "--shots", "2",
		"--shots-dataset", "rows", "--limit", "5", "--seed", "4", NULL);
	assert_true(number(two, "loss") == number(again, "loss"));
	assert_true(number(two, "loss") != number(other, "loss"));
	assert_true(number(two, "shots") == 2);
	json_decref(two);
	json_decref(again);
	json_decref(other);

	struct ran r;
	ctl(d, &r, "eval", "--model", "tiny", "--dataset", "test", "--metric", "bleu", NULL);
	assert_int_equal(r.code, 1);
	assert_words(r.err, "bleu", "rouge", NULL);
	ran_deinit(&r);
	ctl(d, &r, "eval", "--model", "tiny", "--dataset", "test", "--shots", "1000", NULL);
	assert_int_equal(r.code, 1);
	assert_words(r.err, "shots", "rows", NULL);
	ran_deinit(&r);
}

/* Prompting against tuning in one command: a row for the base with each number of examples, and one for
 * each job, with what eval says of it alone. */
static void test_compare(void **state)
{
	struct daemon *d = *state;
	uint64_t job = submit(d, SETTINGS, "--set", "lora.r=4", "--set", "train.max_steps=5", NULL);
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	wait_job(d, job, "SUCCEEDED");
	_cleanup_(freep) char *out = ctl_ok(d, "compare", id, "--on", "test", "--shots", "0,2",
		"--shots-dataset", "rows", "--metric", "exact_match", "--max-new-tokens", "6", "--limit", "6",
		"--json", NULL);
	json_t *lines = json_lines(out);
	assert_int_equal(json_array_size(lines), 4); /* the job's own row, and three evaluations */
	json_t *two = ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", "--shots", "2",
		"--shots-dataset", "rows", "--limit", "6", NULL);
	json_t *tuned = ctl_json(d, "eval", "--model", "tiny", "--dataset", "test", "--adapter", id,
		"--limit", "6", NULL);
	assert_true(number(json_array_get(lines, 1), "shots") == 0);
	assert_true(number(json_array_get(lines, 2), "shots") == 2);
	assert_true(number(json_array_get(lines, 2), "loss") == number(two, "loss"));
	assert_true(number(json_array_get(lines, 3), "job") == (double)job);
	assert_true(number(json_array_get(lines, 3), "loss") == number(tuned, "loss"));
	assert_true(number(json_array_get(lines, 3), "exact_match") >= 0);
	json_decref(two);
	json_decref(tuned);
	json_decref(lines);
	_cleanup_(freep) char *table = ctl_ok(d, "compare", id, "--on", "test", "--shots", "0", NULL);
	assert_words(table, "ROUGE-L", "base", "lora", NULL);
	struct ran r;
	ctl(d, &r, "compare", id, "--shots", "1", NULL);
	assert_int_equal(r.code, 2);
	ran_deinit(&r);
	ctl(d, &r, "compare", id, "--on", "test", "--shots", "1,x", NULL);
	assert_int_equal(r.code, 2);
	ran_deinit(&r);
}

/* ---- beside training ------------------------------------------------------------------------- */

enum { STEPS = 600 };

static uint64_t submit_long(const struct daemon *d)
{
	return submit(d, SETTINGS, "--set", "lora.r=4", "--set", "train.max_steps=600", "--set",
		"train.save_steps=0", "--set", "train.learning_rate=1e-3", NULL);
}

static void wait_step(struct daemon *d, uint64_t job, const char *step, pid_t *ret_watcher)
{
	char id[24], name[40];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	snprintf(name, sizeof(name), "watch-%" PRIu64, job);
	_cleanup_(freep) char *path = tiny_path(d->dir, name);
	*ret_watcher = ctl_spawn(d, path, "watch", id, "--json", NULL);
	for (;;) {
		_cleanup_(freep) char *text = tiny_read_file(path, NULL);
		if (strstr(text, step)) {
			return;
		}
		usleep(2000);
	}
}

/* The longest time between two steps' events, in seconds. */
static double longest_gap(const struct daemon *d, uint64_t job)
{
	json_t *events = check_record(d, job, STEPS), *e;
	double last = 0, longest = 0;
	size_t i;
	json_array_foreach(events, i, e) {
		if (strcmp(json_string_value(json_object_get(e, "type")), "metrics") == 0) {
			double at = number(e, "wall_ns") * 1e-9;
			longest = last > 0 && at - last > longest ? at - last : longest;
			last = at;
		}
	}
	json_decref(events);
	return longest;
}

/* Answers that take long hold up no step for long, and change no bit of the job. */
static void test_beside_training(void **state)
{
	struct daemon *d = *state;
	uint64_t undisturbed = submit_long(d);
	wait_job(d, undisturbed, "SUCCEEDED");
	uint64_t job = submit_long(d);
	pid_t watcher;
	wait_step(d, job, "\"step\":20,", &watcher);
	json_t *v = ctl_json(d, "generate", "--model", "tiny", "--max-new-tokens", "450", "--temperature",
		"1", "1 plus 2 is", NULL);
	double seconds = number(v, "seconds");
	json_decref(v);
	v = ctl_json(d, "eval", "--model", "tiny", "--dataset", "rows", "--metric", "rouge", NULL);
	json_decref(v);
	wait_job(d, job, "SUCCEEDED");
	assert_int_equal(ctl_wait(d, watcher), 0);
	_cleanup_(freep) char *a = final_digest(d, undisturbed);
	_cleanup_(freep) char *b = final_digest(d, job);
	assert_string_equal(a, b);
	double gap = longest_gap(d, job);
	print_message("# a step waited %.3f s at most while an answer took %.3f s\n", gap, seconds);
#ifndef __SANITIZE_ADDRESS__ /* sanitizers take their own time */
	if (!(gap < seconds / 2)) {
		fail_msg("a step waited %.3f s while an answer took %.3f s", gap, seconds);
	}
#endif
}

/* A client that is killed takes its generation with it: memory is as before, and the job ends. */
static void test_client_gone(void **state)
{
	struct daemon *d = *state;
	uint64_t before = memory_in_use(d);
	_cleanup_(freep) char *path = tiny_path(d->dir, "gone");
	uint64_t job = submit_long(d);
	pid_t watcher, client = ctl_spawn(d, path, "generate", "--model", "tiny", "--max-new-tokens",
		"480", "--temperature", "1", "1 plus 2 is", NULL);
	for (;;) {
		_cleanup_(freep) char *text = tiny_read_file(path, NULL);
		if (text[0]) {
			break; /* it has begun to answer */
		}
		usleep(1000);
	}
	kill(client, SIGKILL);
	assert_int_equal(ctl_wait(d, client), 128 + SIGKILL);
	wait_step(d, job, "\"step\":40,", &watcher);
	wait_job(d, job, "SUCCEEDED");
	assert_int_equal(ctl_wait(d, watcher), 0);
	for (int i = 0; i < 1000 && memory_in_use(d) != before; i++) {
		usleep(5000);
	}
	assert_int_equal(memory_in_use(d), before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_settings),
		cmocka_unit_test(test_eval),
		cmocka_unit_test(test_compare),
		cmocka_unit_test(test_swapping),
		cmocka_unit_test(test_beside_training),
		cmocka_unit_test(test_client_gone),
	};
	return cmocka_run_group_tests_name("e2e-generate", tests, setup, teardown);
}
