#include "tests/e2e/daemon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/tiny.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

extern char **environ;

enum { PATIENCE_MS = 120000, MAX_ARGS = 40 };

static const char *need_env(const char *name)
{
	const char *value = getenv(name);
	if (!value) {
		fail_msg("%s is not set", name);
	}
	return value;
}

static char *format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *format(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	char *s = NULL;
	int n = vasprintf(&s, fmt, ap);
	va_end(ap);
	assert_true(n >= 0);
	return s;
}

/* ---- the daemon ------------------------------------------------------------------------------ */

void daemon_init(struct daemon *d)
{
	*d = (struct daemon){.err_fd = -1};
	d->dir = tiny_tempdir();
	d->state = tiny_path(d->dir, "state");
	d->endpoint = format("ipc://%s/s", d->dir);
	d->model = tiny_path(d->dir, "model");
	d->rows = tiny_path(d->dir, "rows.jsonl");
	d->eval_rows = tiny_path(d->dir, "eval.jsonl");
	d->log = tiny_path(d->dir, "log");
	tiny_model_write(d->model, 1);
	size_t len;
	_cleanup_(freep) char *rows = tiny_rows(40, 2, &len);
	tiny_write_file(d->rows, rows, len);
	_cleanup_(freep) char *eval_rows = tiny_rows(10, 3, &len);
	tiny_write_file(d->eval_rows, eval_rows, len);
}

void daemon_deinit(struct daemon *d)
{
	/* Of a test that failed half-way. */
	for (size_t i = 0; i < ARRAY_LEN(d->background); i++) {
		if (d->background[i] > 0) {
			kill(d->background[i], SIGKILL);
			waitpid(d->background[i], NULL, 0);
		}
	}
	if (d->pid > 0) {
		daemon_kill(d);
	}
	if (getenv("PEFTD_KEEP")) {
		fprintf(stderr, "kept: %s\n", d->dir);
	} else {
		tiny_remove_tree(d->dir);
	}
	free(d->dir);
	free(d->state);
	free(d->endpoint);
	free(d->model);
	free(d->rows);
	free(d->eval_rows);
	free(d->log);
}

static pid_t spawn_peftd(const struct daemon *d, const char *state, int err_fd)
{
	const char *argv[] = {"peftd", "--state-dir", state, "--endpoint", d->endpoint, "--device",
		"cpu", NULL};
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, err_fd, 2);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	pid_t pid = 0;
	int r = posix_spawn(&pid, need_env("PEFTD"), &actions, NULL, (char **)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	assert_int_equal(r, 0);
	return pid;
}

/* Moves what a pipe gives to the end of the log until all writers are gone. */
static void *drain(void *arg)
{
	struct daemon *d = arg;
	_cleanup_(fclosep) FILE *log = fopen(d->log, "ae");
	char chunk[4096];
	ssize_t n;
	while ((n = read(d->err_fd, chunk, sizeof(chunk))) > 0) {
		if (log) {
			fwrite(chunk, 1, (size_t)n, log);
			fflush(log);
		}
	}
	return NULL;
}

/* Reads lines until one says "ready" and nothing after it. */
static bool wait_ready(struct daemon *d)
{
	_cleanup_(fclosep) FILE *log = fopen(d->log, "ae");
	_cleanup_(buf_deinit) struct buf line = {0};
	int64_t deadline = clock_monotonic_ns() + PATIENCE_MS * INT64_C(1000000);
	while (clock_monotonic_ns() < deadline) {
		struct pollfd p = {d->err_fd, POLLIN, 0};
		char c;
		if (poll(&p, 1, 1000) > 0) {
			if (read(d->err_fd, &c, 1) <= 0) {
				return false;
			}
			fputc(c, log);
			buf_append(&line, &c, 1);
			if (c != '\n') {
				continue;
			}
			bool ready = line.len >= 6 && memcmp(line.data + line.len - 6, "ready\n", 6) == 0;
			line.len = 0;
			if (ready) {
				return true;
			}
		}
	}
	return false;
}

static void end_reading(struct daemon *d)
{
	if (d->reading) {
		pthread_join(d->reader, NULL);
		d->reading = false;
	}
	if (d->err_fd >= 0) {
		close(d->err_fd);
		d->err_fd = -1;
	}
}

void daemon_start(struct daemon *d)
{
	assert_int_equal(d->pid, 0);
	int fds[2];
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	d->err_fd = fds[0];
	d->pid = spawn_peftd(d, d->state, fds[1]);
	close(fds[1]);
	if (!wait_ready(d)) {
		daemon_kill(d);
		_cleanup_(freep) char *log = tiny_read_file(d->log, NULL);
		fail_msg("peftd did not start:\n%s", log);
	}
	assert_int_equal(pthread_create(&d->reader, NULL, drain, d), 0);
	d->reading = true;
}

static int exit_code(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The exit code, or -1 when the process has not ended in time. */
static int wait_exit(pid_t pid, int timeout_ms)
{
	int status;
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	assert_true(fd >= 0);
	struct pollfd p = {fd, POLLIN, 0};
	int r = poll(&p, 1, timeout_ms);
	close(fd);
	if (r <= 0) {
		return -1;
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return exit_code(status);
}

int daemon_stop(struct daemon *d)
{
	assert_true(d->pid > 0);
	kill(d->pid, SIGTERM);
	int code = wait_exit(d->pid, 30000);
	if (code < 0) {
		daemon_kill(d);
		fail_msg("peftd did not end within 30 s of SIGTERM");
	}
	d->pid = 0;
	end_reading(d);
	return code;
}

void daemon_kill(struct daemon *d)
{
	kill(d->pid, SIGKILL);
	waitpid(d->pid, NULL, 0);
	d->pid = 0;
	/* The pipe ends when the children have ended too. */
	if (!d->reading && d->err_fd >= 0) {
		drain(d);
	}
	end_reading(d);
}

int daemon_fails(struct daemon *d, const char *state, char **ret_err)
{
	int fds[2];
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	pid_t pid = spawn_peftd(d, state, fds[1]);
	close(fds[1]);
	struct buf err = {0};
	char chunk[4096];
	ssize_t n;
	while ((n = read(fds[0], chunk, sizeof(chunk))) > 0) {
		buf_append(&err, chunk, (size_t)n);
	}
	close(fds[0]);
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	*ret_err = buf_steal(&err, NULL);
	assert_non_null(*ret_err);
	return exit_code(status);
}

static bool is_child(pid_t pid, const char *name)
{
	char path[64], cmdline[512];
	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	size_t n = f ? fread(cmdline, 1, sizeof(cmdline) - 1, f) : 0;
	cmdline[n] = '\0';
	const char *slash = strrchr(cmdline, '/');
	const char *base = slash ? slash + 1 : cmdline;
	return strcmp(base, name) == 0 && !memmem(cmdline, n, "--inspect", 9);
}

pid_t daemon_child(const struct daemon *d, const char *name)
{
	int64_t deadline = clock_monotonic_ns() + PATIENCE_MS * INT64_C(1000000);
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)d->pid, (int)d->pid);
	do {
		_cleanup_(fclosep) FILE *f = fopen(path, "re");
		int pid;
		while (f && fscanf(f, "%d", &pid) == 1) {
			if (is_child(pid, name)) {
				return pid;
			}
		}
		poll(NULL, 0, 5); /* it is being started again */
	} while (clock_monotonic_ns() < deadline);
	fail_msg("peftd has no child %s", name);
	return 0;
}

/* ---- commands -------------------------------------------------------------------------------- */

void ran_deinit(struct ran *r)
{
	free(r->out);
	free(r->err);
	*r = (struct ran){0};
}

struct args {
	const char *argv[MAX_ARGS];
};

static void collect(struct args *a, const struct daemon *d, va_list ap)
{
	int n = 0;
	a->argv[n++] = "peftctl";
	a->argv[n++] = "--endpoint";
	a->argv[n++] = d->endpoint;
	while ((a->argv[n] = va_arg(ap, const char *))) {
		n++;
		assert_true(n < MAX_ARGS);
	}
}

static pid_t spawn_ctl(const struct args *a, int out, int err)
{
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&actions, out, 1);
	posix_spawn_file_actions_adddup2(&actions, err, 2);
	pid_t pid = 0;
	int r = posix_spawn(&pid, need_env("PEFTCTL"), &actions, NULL, (char **)a->argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	assert_int_equal(r, 0);
	return pid;
}

static bool take(int *fd, struct buf *b)
{
	char chunk[65536];
	ssize_t n = read(*fd, chunk, sizeof(chunk));
	if (n <= 0) {
		close(*fd);
		*fd = -1;
		return false;
	}
	buf_append(b, chunk, (size_t)n);
	return true;
}

static void run(const struct args *a, struct ran *ret)
{
	int out[2], err[2];
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(err, O_CLOEXEC), 0);
	pid_t pid = spawn_ctl(a, out[1], err[1]);
	close(out[1]);
	close(err[1]);
	struct buf o = {0}, e = {0};
	int64_t deadline = clock_monotonic_ns() + PATIENCE_MS * INT64_C(1000000);
	while (out[0] >= 0 || err[0] >= 0) {
		struct pollfd p[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
		poll(p, 2, 1000);
		if (p[0].revents) {
			take(&out[0], &o);
		}
		if (p[1].revents) {
			take(&err[0], &e);
		}
		if (clock_monotonic_ns() > deadline) {
			kill(pid, SIGKILL);
			fail_msg("peftctl %s … takes too long; so far: %s%s", a->argv[3], buf_cstr(&o),
				buf_cstr(&e));
		}
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	ret->code = exit_code(status);
	ret->out = buf_steal(&o, NULL);
	ret->err = buf_steal(&e, NULL);
	assert_true(ret->out && ret->err);
}

static char *must_succeed(const struct args *a)
{
	struct ran r;
	run(a, &r);
	if (r.code != 0) {
		_cleanup_(buf_deinit) struct buf words = {0};
		for (int i = 3; a->argv[i]; i++) {
			buf_appendf(&words, " %s", a->argv[i]);
		}
		fail_msg("peftctl%s: status %d: %s%s", buf_cstr(&words), r.code, r.out, r.err);
	}
	free(r.err);
	return r.out;
}

void ctl(const struct daemon *d, struct ran *ret, ...)
{
	struct args a;
	va_list ap;
	va_start(ap, ret);
	collect(&a, d, ap);
	va_end(ap);
	run(&a, ret);
}

char *ctl_ok(const struct daemon *d, ...)
{
	struct args a;
	va_list ap;
	va_start(ap, d);
	collect(&a, d, ap);
	va_end(ap);
	return must_succeed(&a);
}

json_t *ctl_json(const struct daemon *d, ...)
{
	struct args a;
	va_list ap;
	va_start(ap, d);
	collect(&a, d, ap);
	va_end(ap);
	int n = 3;
	while (a.argv[n]) {
		n++;
	}
	assert_true(n + 1 < MAX_ARGS);
	a.argv[n] = "--json";
	a.argv[n + 1] = NULL;
	_cleanup_(freep) char *out = must_succeed(&a);
	json_error_t error;
	json_t *v = json_loads(out, JSON_ALLOW_NUL, &error);
	if (!v) {
		fail_msg("no JSON object: %s: %s", error.text, out);
	}
	return v;
}

static void remember(struct daemon *d, pid_t old, pid_t new)
{
	for (size_t i = 0; i < ARRAY_LEN(d->background); i++) {
		if (d->background[i] == old) {
			d->background[i] = new;
			return;
		}
	}
	fail_msg("too many commands in the background");
}

pid_t ctl_spawn(struct daemon *d, const char *out_path, ...)
{
	struct args a;
	va_list ap;
	va_start(ap, out_path);
	collect(&a, d, ap);
	va_end(ap);
	_cleanup_(closep) int out = open(out_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	_cleanup_(closep) int err = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	assert_true(out >= 0 && err >= 0);
	pid_t pid = spawn_ctl(&a, out, err);
	remember(d, 0, pid);
	return pid;
}

int ctl_wait(struct daemon *d, pid_t pid)
{
	int code = wait_exit(pid, PATIENCE_MS);
	if (code < 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		fail_msg("a peftctl in the background does not end");
	}
	remember(d, pid, 0);
	return code;
}

json_t *json_lines(const char *text)
{
	json_t *array = json_array();
	for (const char *p = text; *p;) {
		size_t n = strcspn(p, "\n");
		json_error_t error;
		json_t *v = json_loadb(p, n, JSON_ALLOW_NUL, &error);
		if (!v) {
			fail_msg("no JSON object: %s: %.*s", error.text, (int)n, p);
		}
		json_array_append_new(array, v);
		p += n + (p[n] == '\n');
	}
	return array;
}

void assert_words(const char *text, ...)
{
	va_list ap;
	va_start(ap, text);
	const char *word;
	while ((word = va_arg(ap, const char *))) {
		if (!strstr(text, word)) {
			va_end(ap);
			fail_msg("'%s' is missing in: %s", word, text);
		}
	}
	va_end(ap);
}

/* ---- jobs ------------------------------------------------------------------------------------ */

uint64_t submit(const struct daemon *d, ...)
{
	struct args a;
	va_list ap;
	va_start(ap, d);
	collect(&a, d, ap);
	va_end(ap);
	int n = 3;
	while (a.argv[n]) {
		n++;
	}
	assert_true(n + 1 < MAX_ARGS);
	memmove(&a.argv[4], &a.argv[3], (size_t)(n - 3 + 1) * sizeof(a.argv[0]));
	a.argv[3] = "submit";
	_cleanup_(freep) char *out = must_succeed(&a);
	char *end;
	uint64_t job = strtoull(out, &end, 10);
	assert_true(end != out && strcmp(end, "\n") == 0); /* the id alone */
	return job;
}

static char *job_text(uint64_t job)
{
	return format("%" PRIu64, job);
}

static json_t *show(const struct daemon *d, uint64_t job)
{
	_cleanup_(freep) char *id = job_text(job);
	return ctl_json(d, "show", id, NULL);
}

void wait_job(const struct daemon *d, uint64_t job, const char *state)
{
	_cleanup_(freep) char *id = job_text(job);
	struct ran r;
	ctl(d, &r, "watch", id, NULL);
	json_t *j = show(d, job);
	const char *got = json_string_value(json_object_get(j, "state"));
	if (!got || strcmp(got, state) != 0) {
		const char *reason = json_string_value(json_object_get(j, "reason"));
		fail_msg("job %" PRIu64 " is %s (%s), not %s; watch ended with %d: %s%s", job,
			got ? got : "?", reason ? reason : "no reason", state, r.code, r.out, r.err);
	}
	assert_int_equal(r.code, strcmp(state, "SUCCEEDED") == 0 ? 0 : 1);
	json_decref(j);
	ran_deinit(&r);
}

char *final_digest(const struct daemon *d, uint64_t job)
{
	json_t *j = show(d, job);
	json_t *list = json_object_get(j, "checkpoints"), *k;
	size_t i;
	char *digest = NULL;
	json_array_foreach(list, i, k) {
		if (json_is_true(json_object_get(k, "final"))) {
			json_t *blob = json_object_get(k, "blob");
			digest = strdup(json_string_value(json_object_get(blob, "digest")));
		}
	}
	json_decref(j);
	assert_non_null(digest);
	assert_int_equal(strlen(digest), 64);
	return digest;
}

json_t *check_record(const struct daemon *d, uint64_t job, int64_t steps)
{
	_cleanup_(freep) char *id = job_text(job);
	_cleanup_(freep) char *out = ctl_ok(d, "watch", id, "--from", "0", "--json", NULL);
	json_t *events = json_lines(out), *e;
	size_t i;
	int64_t step = 0;
	json_array_foreach(events, i, e) {
		assert_int_equal(json_integer_value(json_object_get(e, "seq")), i + 1);
		const char *type = json_string_value(json_object_get(e, "type"));
		assert_non_null(type);
		if (strcmp(type, "metrics") == 0) {
			step++;
			assert_int_equal(json_integer_value(json_object_get(e, "step")), step);
		}
	}
	assert_int_equal(step, steps);
	return events;
}
