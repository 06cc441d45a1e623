/* What users do wrong, and what they are told. Each case: a command, its exit status, and words
 * that its message must hold. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/e2e/daemon.h"
#include "tests/support/tiny.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { FAILED = 1, USAGE = 2, NO_DAEMON = 3 };

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

static void check_fail(const struct ran *r, int code, const char *what, const char *const *words)
{
	if (r->code != code) {
		fail_msg("%s: status %d, not %d: %s%s", what, r->code, code, r->out, r->err);
	}
	for (; *words; words++) {
		if (!strstr(r->err, *words)) {
			fail_msg("%s: '%s' is missing in: %s", what, *words, r->err);
		}
	}
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* ctl(), expected to fail. */
#define EXPECT_FAIL(d, status, words, ...)              \
	do {                                                \
		struct ran r_;                                  \
		ctl(d, &r_, __VA_ARGS__, NULL);                 \
		check_fail(&r_, status, #__VA_ARGS__, words);   \
		ran_deinit(&r_);                                \
	} while (0)

static char *write_file(const struct daemon *d, const char *name, const char *text, size_t len)
{
	char *path = tiny_path(d->dir, name);
	tiny_write_file(path, text, len);
	return path;
}

static char *write_text(const struct daemon *d, const char *name, const char *text)
{
	return write_file(d, name, text, strlen(text));
}

/* ---- job files and settings ------------------------------------------------------------------ */

static void test_job_file(void **state)
{
	struct daemon *d = *state;
	_cleanup_(freep) char *unknown = write_text(d, "unknown.yaml",
		"model: tiny\ndataset: rows\ntrain:\n  max_steps: 2\n  batchsize: 8\n");
	EXPECT_FAIL(d, USAGE, WORDS("unknown.yaml:5", "batchsize", "batch_size"), "submit", unknown);

	_cleanup_(freep) char *type = write_text(d, "type.yaml",
		"model: tiny\ndataset: rows\nlora:\n  r: many\n");
	EXPECT_FAIL(d, USAGE, WORDS("type.yaml:4", "r"), "submit", type);

	/* Ranges are the daemon's to check; the line is the file's all the same. */
	_cleanup_(freep) char *range = write_text(d, "range.yaml",
		"model: tiny\ndataset: rows\nlora:\n  lora_alpha: 8\n  r: 0\n");
	EXPECT_FAIL(d, FAILED, WORDS("range.yaml:5", "lora.r"), "submit", range);
	_cleanup_(freep) char *empty = write_text(d, "empty.yaml",
		"model: tiny\ndataset: rows\nlora:\n  target_modules: []\n");
	EXPECT_FAIL(d, USAGE, WORDS("empty.yaml:4", "target_modules"), "submit", empty);

	EXPECT_FAIL(d, FAILED, WORDS("nope"), "submit", "--model", "nope", "--dataset", "rows");
	EXPECT_FAIL(d, FAILED, WORDS("nope"), "submit", "--model", "tiny", "--dataset", "nope");
	/* Nothing of all this is queued. */
	_cleanup_(freep) char *list = ctl_ok(d, "list", "--json", NULL);
	assert_string_equal(list, "");
}

#define SUBMIT(...) "submit", "--model", "tiny", "--dataset", "rows", "--set", __VA_ARGS__

static void test_settings(void **state)
{
	struct daemon *d = *state;
	EXPECT_FAIL(d, FAILED, WORDS("lora.r"), SUBMIT("lora.r=0"));
	EXPECT_FAIL(d, FAILED, WORDS("c_attn", "q_proj"), SUBMIT("lora.target_modules=[c_attn]"));
	EXPECT_FAIL(d, USAGE, WORDS("learning_rate"), SUBMIT("train.learning_rate=.nan"));
	EXPECT_FAIL(d, FAILED, WORDS("learning_rate"), SUBMIT("train.learning_rate=-1"));
	EXPECT_FAIL(d, USAGE, WORDS("train.dtype", "fp16", "bf16"), SUBMIT("train.dtype=fp16"));
	EXPECT_FAIL(d, FAILED, WORDS("batch_size"), SUBMIT("train.batch_size=0"));
	EXPECT_FAIL(d, USAGE, WORDS("max_steps", "num_train_epochs"), SUBMIT("train.max_steps=0"));
	EXPECT_FAIL(d, USAGE, WORDS("target_modules", "empty"), SUBMIT("lora.target_modules=[]"));
	EXPECT_FAIL(d, USAGE, WORDS("--init-adapter"), SUBMIT("lora.r=4"), "--init-adapter", "");
	EXPECT_FAIL(d, USAGE, WORDS("method", "voodoo"), SUBMIT("method=voodoo"));
	EXPECT_FAIL(d, USAGE, WORDS("train.max_step", "max_steps"), SUBMIT("train.max_step=1"));
}

/* ---- datasets -------------------------------------------------------------------------------- */

static void test_datasets(void **state)
{
	struct daemon *d = *state;
	EXPECT_FAIL(d, FAILED, WORDS("none.jsonl"), "dataset", "put", "x", "/nonexistent/none.jsonl");

	_cleanup_(freep) char *empty = write_text(d, "empty.jsonl", "");
	EXPECT_FAIL(d, FAILED, WORDS("empty.jsonl"), "dataset", "put", "x", empty);

	_cleanup_(freep) char *json = write_text(d, "json.jsonl",
		"{\"text\":\"fine\"}\nthis is no JSON\n");
	EXPECT_FAIL(d, FAILED, WORDS("json.jsonl:2"), "dataset", "put", "x", json);

	_cleanup_(freep) char *utf8 = write_text(d, "utf8.jsonl",
		"{\"text\":\"fine\"}\n{\"text\":\"fine\"}\n{\"text\":\"\xff\"}\n");
	EXPECT_FAIL(d, FAILED, WORDS("utf8.jsonl:3", "UTF-8"), "dataset", "put", "x", utf8);

	_cleanup_(freep) char *fields = write_text(d, "fields.jsonl",
		"{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a\"}\n");
	EXPECT_FAIL(d, FAILED, WORDS("fields.jsonl:2", "completion"), "dataset", "put", "x", fields);
	EXPECT_FAIL(d, FAILED, WORDS("fields.jsonl:1", "question"), "dataset", "put", "x", fields,
		"--prompt-field", "question", "--completion-field", "answer");

	/* A fault in the second file is told with that file's own line. */
	_cleanup_(freep) char *good = write_text(d, "good.jsonl", "{\"text\":\"fine\"}\n");
	EXPECT_FAIL(d, FAILED, WORDS("json.jsonl:2"), "dataset", "put", "x", good, json);
	EXPECT_FAIL(d, FAILED, WORDS("x"), "dataset", "show", "x");
}

static void test_overlong(void **state)
{
	struct daemon *d = *state;
	_cleanup_(freep) char *path = write_text(d, "long.jsonl",
		"{\"prompt\":\"ab\",\"completion\":\"cd\"}\n"
		"{\"prompt\":\"0123456789\",\"completion\":\"0123456789\"}\n");
	free(ctl_ok(d, "dataset", "put", "long", path, NULL));
#define PLAN(policy, max)                                                              \
	"plan", "--model", "tiny", "--dataset", "long", "--set", "train.max_length=" max, \
		"--set", "train.overlong=" policy
	json_t *v = ctl_json(d, PLAN("drop", "12"), NULL);
	json_t *p = json_object_get(v, "plan") ? json_object_get(v, "plan") : v;
	assert_int_equal(json_integer_value(json_object_get(p, "rows")), 1);
	assert_int_equal(json_integer_value(json_object_get(p, "rows_overlong")), 1);
	json_decref(v);
	v = ctl_json(d, PLAN("truncate", "12"), NULL);
	p = json_object_get(v, "plan") ? json_object_get(v, "plan") : v;
	assert_int_equal(json_integer_value(json_object_get(p, "rows")), 2);
	assert_int_equal(json_integer_value(json_object_get(p, "rows_overlong")), 1);
	json_decref(v);
	EXPECT_FAIL(d, FAILED, WORDS("long.jsonl:2", "12"), PLAN("raise", "12"));
	/* Every row too long; and, cut, none with anything left to train on. */
	EXPECT_FAIL(d, FAILED, WORDS("max_length"), PLAN("drop", "2"));
	EXPECT_FAIL(d, FAILED, WORDS("train"), PLAN("truncate", "2"));
}

/* ---- models ---------------------------------------------------------------------------------- */

static char *copy_model(const struct daemon *d, const char *name)
{
	char *dir = tiny_path(d->dir, name);
	tiny_model_write(dir, 1);
	return dir;
}

static void replace_file(const char *dir, const char *file, const void *data, size_t len)
{
	_cleanup_(freep) char *path = tiny_path(dir, file);
	tiny_write_file(path, data, len);
}

/* The model's weights with the second tensor laid over the first. */
static void overlap(const char *dir)
{
	_cleanup_(freep) char *path = tiny_path(dir, "model.safetensors");
	size_t len;
	_cleanup_(freep) char *data = tiny_read_file(path, &len);
	uint64_t header = le64_read(data);
	char *first = memmem(data + 8, header, "\"data_offsets\":[", 16);
	assert_non_null(first);
	char *second = memmem(first + 16, (size_t)(data + 8 + header - first - 16),
		"\"data_offsets\":[", 16);
	assert_non_null(second);
	/* Its start is a number of several digits; 0 with zeros before it would be no JSON. */
	second += 16;
	assert_true(second[0] != '0');
	for (char *p = second + 1; *p >= '0' && *p <= '9'; p++) {
		*p = '0';
	}
	second[0] = '1';
	tiny_write_file(path, data, len);
}

static void test_models(void **state)
{
	struct daemon *d = *state;
	EXPECT_FAIL(d, FAILED, WORDS("/nonexistent"), "model", "add", "m", "/nonexistent");

	_cleanup_(freep) char *cut = copy_model(d, "cut");
	_cleanup_(freep) char *weights = tiny_path(cut, "model.safetensors");
	size_t len;
	_cleanup_(freep) char *data = tiny_read_file(weights, &len);
	tiny_write_file(weights, data, len / 2);
	EXPECT_FAIL(d, FAILED, WORDS("model.safetensors"), "model", "add", "m", cut);

	_cleanup_(freep) char *over = copy_model(d, "overlap");
	overlap(over);
	EXPECT_FAIL(d, FAILED, WORDS("model.safetensors", "overlap"), "model", "add", "m", over);

	_cleanup_(freep) char *arch = copy_model(d, "arch");
	static const char config[] = "{\"model_type\":\"perceptron\",\"hidden_size\":8}";
	replace_file(arch, "config.json", config, strlen(config));
	EXPECT_FAIL(d, FAILED, WORDS("perceptron"), "model", "add", "m", arch);

	_cleanup_(freep) char *tok = copy_model(d, "tok");
	_cleanup_(freep) char *tok_json = tiny_path(tok, "tokenizer.json");
	assert_int_equal(unlink(tok_json), 0);
	EXPECT_FAIL(d, FAILED, WORDS("tokenizer.json"), "model", "add", "m", tok);

	uint8_t gguf[64] = "GGUF";
	le32_write(gguf + 4, 3);
	le64_write(gguf + 8, UINT64_C(1) << 60);
	le64_write(gguf + 16, UINT64_C(1) << 60);
	_cleanup_(freep) char *absurd = write_file(d, "absurd.gguf", (char *)gguf, sizeof(gguf));
	EXPECT_FAIL(d, FAILED, WORDS("absurd.gguf"), "model", "add", "m", absurd);

	_cleanup_(freep) char *list = ctl_ok(d, "model", "ls", "--json", NULL);
	assert_null(strstr(list, "\"m\""));
}

/* ---- daemons --------------------------------------------------------------------------------- */

static void test_no_daemon(void **state)
{
	struct daemon *d = *state;
	struct daemon none = *d;
	char endpoint[] = "ipc:///nonexistent/peftd.sock";
	none.endpoint = endpoint;
	EXPECT_FAIL(&none, NO_DAEMON, WORDS("/nonexistent/peftd.sock"), "status");
}

static void test_second_daemon(void **state)
{
	struct daemon *d = *state;
	_cleanup_(freep) char *err = NULL;
	int code = daemon_fails(d, d->state, &err);
	assert_true(code != 0 && code < 128);
	assert_words(err, d->state, NULL);
	/* The first is none the worse. */
	json_decref(ctl_json(d, "status", NULL));
}

static void test_corrupt_store(void **state)
{
	struct daemon *d = *state;
	_cleanup_(freep) char *state_dir = tiny_path(d->dir, "corrupt-state");
	_cleanup_(freep) char *old = d->state;
	struct daemon other = *d;
	assert_int_equal(daemon_stop(d), 0);
	other.pid = 0;
	other.state = state_dir;
	daemon_start(&other);
	free(ctl_ok(&other, "dataset", "put", "rows", d->rows, NULL));
	assert_int_equal(daemon_stop(&other), 0);

	_cleanup_(freep) char *path = tiny_path(state_dir, "store/data.mdb");
	size_t len;
	_cleanup_(freep) char *data = tiny_read_file(path, &len);
	memset(data, 0xa5, 3 * 4096);
	tiny_write_file(path, data, len);
	_cleanup_(freep) char *err = NULL;
	int code = daemon_fails(d, state_dir, &err);
	assert_true(code != 0 && code < 128);
	assert_words(err, state_dir, NULL);
	/* It has not started over with an empty store. */
	size_t len_after;
	_cleanup_(freep) char *after = tiny_read_file(path, &len_after);
	assert_int_equal(len_after, len);
	assert_memory_equal(after, data, len);

	d->state = steal_ptr(old);
	daemon_start(d);
}

/* ---- clients that are killed ----------------------------------------------------------------- */

static void pause_ms(unsigned ms)
{
	struct timespec ts = {0, ms * 1000000L};
	nanosleep(&ts, NULL);
}

/* Killed again and again on its way, at the end an upload is whole. */
static void test_upload_killed(void **state)
{
	struct daemon *d = *state;
	enum { ROWS = 3000 };
	_cleanup_(buf_deinit) struct buf rows = {0};
	for (int i = 0; i < ROWS; i++) {
		buf_appendf(&rows, "{\"text\":\"%06d %08192d\"}\n", i, i);
	}
	_cleanup_(freep) char *path = write_file(d, "big.jsonl", (char *)rows.data, rows.len);
	_cleanup_(freep) char *out = tiny_path(d->dir, "put");
	unsigned killed = 0;
	for (unsigned i = 0; i < 6; i++) {
		pid_t pid = ctl_spawn(d, out, "dataset", "put", "big", path, NULL);
		pause_ms(10 + 15 * i);
		kill(pid, SIGKILL);
		killed += ctl_wait(d, pid) == 128 + SIGKILL;
	}
	assert_true(killed > 0);
	free(ctl_ok(d, "dataset", "put", "big", path, NULL));
	json_t *v = ctl_json(d, "dataset", "show", "big", NULL);
	assert_int_equal(json_integer_value(json_object_get(v, "rows")), ROWS);
	json_decref(v);
}

static void test_fetch_killed(void **state)
{
	struct daemon *d = *state;
	uint64_t job = submit(d, "--model", "tiny", "--dataset", "rows", "--set", "lora.r=32", "--set",
		"train.max_steps=1", "--set", "train.dtype=f32", NULL);
	wait_job(d, job, "SUCCEEDED");
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	_cleanup_(freep) char *clean = tiny_path(d->dir, "clean");
	_cleanup_(freep) char *broken = tiny_path(d->dir, "broken");
	free(ctl_ok(d, "fetch", id, "-o", clean, NULL));
	_cleanup_(freep) char *out = tiny_path(d->dir, "fetch");
	for (unsigned i = 0; i < 10; i++) {
		pid_t pid = ctl_spawn(d, out, "fetch", id, "-o", broken, NULL);
		pause_ms(2 + i);
		kill(pid, SIGKILL);
		ctl_wait(d, pid);
		/* What is in place is whole: never half an adapter under its final name. */
		_cleanup_(freep) char *config = tiny_path(broken, "adapter_config.json");
		if (access(broken, F_OK) == 0) {
			assert_int_equal(access(config, F_OK), 0);
			break;
		}
	}
	if (access(broken, F_OK) != 0) {
		free(ctl_ok(d, "fetch", id, "-o", broken, NULL));
	}
	_cleanup_(freep) char *a = tiny_path(clean, "adapter_model.safetensors");
	_cleanup_(freep) char *b = tiny_path(broken, "adapter_model.safetensors");
	size_t a_len, b_len;
	_cleanup_(freep) char *x = tiny_read_file(a, &a_len);
	_cleanup_(freep) char *y = tiny_read_file(b, &b_len);
	assert_int_equal(a_len, b_len);
	assert_memory_equal(x, y, a_len);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_job_file),
		cmocka_unit_test(test_settings),
		cmocka_unit_test(test_datasets),
		cmocka_unit_test(test_overlong),
		cmocka_unit_test(test_models),
		cmocka_unit_test(test_no_daemon),
		cmocka_unit_test(test_second_daemon),
		cmocka_unit_test(test_corrupt_store),
		cmocka_unit_test(test_upload_killed),
		cmocka_unit_test(test_fetch_killed),
	};
	return cmocka_run_group_tests_name("e2e-bad-input", tests, setup, teardown);
}
