/* peftd as a process, with a fake front and a fake trainer: start, signals, deaths, refusals. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sodium.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/proto.h"
#include "rpc.pb-c.h"
#include "util/buf.h"
#include "util/util.h"

extern char **environ;

#define SECOND INT64_C(1000000000)

struct daemon {
	char dir[64], endpoint[128], state[96];
	pid_t pid; /* 0: it does not run */
	int err;   /* its standard error */
	struct buf said;
	struct link *client;
	uint64_t next_id;
};

/* ---- the process --------------------------------------------------------------------------- */

static void start_with(struct daemon *d, const char *const *extra)
{
	const char *argv[24] = {
		"peftd", "--state-dir", d->state, "--endpoint", d->endpoint, "--log-level", "debug"};
	size_t n = 7;
	while (extra && *extra && n < 23) {
		argv[n++] = *extra++;
	}
	int fds[2];
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, fds[1], 2);
	int r = posix_spawn(&d->pid, getenv("PEFTD"), &files, NULL, (char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&files);
	close(fds[1]);
	assert_int_equal(r, 0);
	d->err = fds[0];
	d->said.len = 0;
}

/* Reads its standard error until it has said `line`, or ends. */
static bool wait_for(struct daemon *d, const char *line, int64_t patience)
{
	int64_t until = clock_monotonic_ns() + patience;
	for (;;) {
		const char *said = buf_cstr(&d->said);
		assert_non_null(said);
		if (line && strstr(said, line)) {
			return true;
		}
		int64_t left = until - clock_monotonic_ns();
		struct pollfd p = {d->err, POLLIN, 0};
		if (left <= 0 || poll(&p, 1, (int)(left / 1000000) + 1) <= 0) {
			return false;
		}
		char chunk[4096];
		ssize_t n = read(d->err, chunk, sizeof(chunk));
		if (n <= 0) {
			return false;
		}
		assert_int_equal(buf_append(&d->said, chunk, (size_t)n), 0);
	}
}

static void start(struct daemon *d, const char *const *extra)
{
	start_with(d, extra);
	if (!wait_for(d, "ready\n", 10 * SECOND)) {
		fail_msg("peftd did not become ready:\n%s", buf_cstr(&d->said));
	}
}

/* Waits for its end; the exit status, or -signal. */
static int wait_end(struct daemon *d, int64_t patience)
{
	int64_t until = clock_monotonic_ns() + patience;
	int status;
	wait_for(d, NULL, patience); /* to the end of its output: children may outlive it by a moment */
	while (waitpid(d->pid, &status, WNOHANG) == 0) {
		if (clock_monotonic_ns() > until) {
			fail_msg("peftd does not end:\n%s", buf_cstr(&d->said));
		}
		poll(NULL, 0, 5);
	}
	d->pid = 0;
	close(d->err);
	d->err = -1;
	link_free(d->client);
	d->client = NULL;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static int setup(void **state)
{
	struct daemon *d = calloc(1, sizeof(*d));
	assert_non_null(d);
	snprintf(d->dir, sizeof(d->dir), "/tmp/peftd-process-XXXXXX");
	assert_non_null(mkdtemp(d->dir));
	snprintf(d->state, sizeof(d->state), "%s/state", d->dir);
	snprintf(d->endpoint, sizeof(d->endpoint), "ipc://%s/sock", d->dir);
	d->err = -1;
	static const char *const knobs[] = {
		"FAKE_TRAINER_EXIT", "FAKE_TRAINER_DELAY", "FAKE_FRONT_EXIT"};
	for (size_t i = 0; i < ARRAY_LEN(knobs); i++) {
		unsetenv(knobs[i]);
	}
	*state = d;
	return 0;
}

static int teardown(void **state)
{
	struct daemon *d = *state;
	if (d->pid > 0) {
		kill(d->pid, SIGKILL);
		waitpid(d->pid, NULL, 0);
		close(d->err);
	}
	link_free(d->client);
	buf_deinit(&d->said);
	char command[128];
	snprintf(command, sizeof(command), "rm -rf '%s'", d->dir);
	int r = system(command);
	free(d);
	return r;
}

/* The process that the daemon has most recently started of this kind, from its log. */
static pid_t child_of(struct daemon *d, const char *name)
{
	char path[64], line[64];
	DIR *proc = opendir("/proc");
	assert_non_null(proc);
	pid_t found = 0;
	for (struct dirent *e; (e = readdir(proc));) {
		pid_t pid = (pid_t)strtol(e->d_name, NULL, 10);
		if (pid <= 0) {
			continue;
		}
		int ppid = 0;
		char comm[64] = "";
		snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
		FILE *f = fopen(path, "re");
		if (!f) {
			continue;
		}
		if (fgets(line, sizeof(line), f)) {
			sscanf(line, "%*d (%63[^)]) %*c %d", comm, &ppid);
		}
		fclose(f);
		if (ppid == d->pid && strncmp(comm, name, strlen(name)) == 0) {
			found = pid;
		}
	}
	closedir(proc);
	return found;
}

/* ---- a client ------------------------------------------------------------------------------ */

static void connect_client(struct daemon *d)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", d->endpoint + 6);
	link_free(d->client);
	d->client = NULL;
	int64_t until = clock_monotonic_ns() + 5 * SECOND;
	for (;;) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		assert_true(fd >= 0);
		if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0) {
			assert_int_equal(link_new(&d->client, fd), 0);
			return;
		}
		close(fd);
		assert_true(clock_monotonic_ns() < until);
		poll(NULL, 0, 5);
	}
}

/* One request, and its reply (proto_free); NULL when the connection broke. */
static Peftd__V1__Reply *try_ask(
	struct daemon *d, Peftd__V1__Request *req, const void *raw, size_t raw_len)
{
	uint8_t id[16] = {0};
	le64_write(id, ++d->next_id);
	req->id = (ProtobufCBinaryData){16, id};
	if (link_send(d->client, req, raw, raw_len) < 0) {
		return NULL;
	}
	for (;;) {
		void *msg;
		const void *got;
		size_t len;
		struct errmsg err;
		int r =
			link_recv_wait(d->client, 10000, &peftd__v1__reply__descriptor, &msg, &got, &len, &err);
		if (r < 0) {
			return NULL;
		}
		Peftd__V1__Reply *reply = msg;
		if (reply->id.len == 16 && memcmp(reply->id.data, id, 16) == 0) {
			return reply;
		}
		proto_free(msg);
	}
}

static Peftd__V1__Reply *must_ask(
	struct daemon *d, Peftd__V1__Request *req, const void *raw, size_t raw_len)
{
	Peftd__V1__Reply *r = try_ask(d, req, raw, raw_len);
	assert_non_null(r);
	if (r->status->code != 0) {
		fail_msg("status %u: %.*s", r->status->code, (int)r->status->message.len,
			(char *)r->status->message.data);
	}
	return r;
}

static char *trainer_state(struct daemon *d)
{
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	Peftd__V1__StatusRequest s = PEFTD__V1__STATUS_REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_STATUS;
	req.status = &s;
	Peftd__V1__Reply *r = must_ask(d, &req, NULL, 0);
	char *state = NULL;
	proto_str(&r->daemon_status->trainer_state, "state", &state, NULL);
	proto_free(r);
	return state;
}

static uint64_t submit(struct daemon *d, uint32_t steps)
{
	static const char data[] = "{\"text\": \"x\"}\n";
	uint8_t digest[32];
	crypto_generichash(digest, 32, (const uint8_t *)data, sizeof(data) - 1, NULL, 0);
	Peftd__V1__Blob blob = PEFTD__V1__BLOB__INIT;
	blob.digest = (ProtobufCBinaryData){32, digest};
	blob.size = sizeof(data) - 1;

	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	Peftd__V1__ModelAddRequest add = PEFTD__V1__MODEL_ADD_REQUEST__INIT;
	add.name = proto_bytes("m");
	add.path = proto_bytes("/models/m");
	req.what_case = PEFTD__V1__REQUEST__WHAT_MODEL_ADD;
	req.model_add = &add;
	proto_free(must_ask(d, &req, NULL, 0));

	Peftd__V1__UploadBeginRequest begin = PEFTD__V1__UPLOAD_BEGIN_REQUEST__INIT;
	begin.blob = &blob;
	req.what_case = PEFTD__V1__REQUEST__WHAT_UPLOAD_BEGIN;
	req.upload_begin = &begin;
	proto_free(must_ask(d, &req, NULL, 0));

	Peftd__V1__UploadChunkRequest chunk = PEFTD__V1__UPLOAD_CHUNK_REQUEST__INIT;
	chunk.digest = blob.digest;
	req.what_case = PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK;
	req.upload_chunk = &chunk;
	proto_free(must_ask(d, &req, data, sizeof(data) - 1));

	Peftd__V1__DatasetPutRequest put = PEFTD__V1__DATASET_PUT_REQUEST__INIT;
	put.name = proto_bytes("d");
	put.blob = &blob;
	req.what_case = PEFTD__V1__REQUEST__WHAT_DATASET_PUT;
	req.dataset_put = &put;
	proto_free(must_ask(d, &req, NULL, 0));

	Peftd__V1__JobSpec spec = PEFTD__V1__JOB_SPEC__INIT;
	Peftd__V1__TrainSpec train = PEFTD__V1__TRAIN_SPEC__INIT;
	spec.has_model = spec.has_dataset = true;
	spec.model = proto_bytes("m");
	spec.dataset = proto_bytes("d");
	spec.train = &train;
	train.has_max_steps = train.has_save_steps = true;
	train.max_steps = steps;
	train.save_steps = 10;
	Peftd__V1__SubmitRequest s = PEFTD__V1__SUBMIT_REQUEST__INIT;
	s.spec = &spec;
	req.what_case = PEFTD__V1__REQUEST__WHAT_SUBMIT;
	req.submit = &s;
	Peftd__V1__Reply *r = must_ask(d, &req, NULL, 0);
	uint64_t job = r->submit->job;
	proto_free(r);
	return job;
}

static Peftd__V1__Reply *show(struct daemon *d, uint64_t job)
{
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	Peftd__V1__JobRequest s = PEFTD__V1__JOB_REQUEST__INIT;
	s.job = job;
	req.what_case = PEFTD__V1__REQUEST__WHAT_JOB_SHOW;
	req.job_show = &s;
	return must_ask(d, &req, NULL, 0);
}

/* Asks until the job has reached the state and this many steps. */
static void wait_job(struct daemon *d, uint64_t job, Peftd__V1__JobState state, uint64_t step)
{
	int64_t until = clock_monotonic_ns() + 20 * SECOND;
	for (;;) {
		Peftd__V1__Reply *r = show(d, job);
		bool there = r->job->state == state && r->job->step >= step;
		if (!there && clock_monotonic_ns() > until) {
			fail_msg("job in state %d at step %d", (int)r->job->state, (int)r->job->step);
		}
		proto_free(r);
		if (there) {
			return;
		}
		poll(NULL, 0, 2);
	}
}

/* ---- tests --------------------------------------------------------------------------------- */

static void starts_and_ends(void **state)
{
	struct daemon *d = *state;
	start(d, NULL);
	connect_client(d);
	char *s = trainer_state(d);
	assert_string_equal(s, "idle");
	free(s);
	struct stat st;
	assert_int_equal(stat(d->state, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	kill(d->pid, SIGTERM);
	assert_int_equal(wait_end(d, 5 * SECOND), 0);
}

static void term_lets_the_job_write_a_checkpoint(void **state)
{
	struct daemon *d = *state;
	setenv("FAKE_TRAINER_DELAY", "5", 1);
	start(d, NULL);
	connect_client(d);
	uint64_t job = submit(d, 1000);
	wait_job(d, job, PEFTD__V1__JOB_STATE__JOB_RUNNING, 5);
	kill(d->pid, SIGINT);
	int64_t before = clock_monotonic_ns();
	assert_int_equal(wait_end(d, 30 * SECOND), 0);
	assert_true(clock_monotonic_ns() - before < 5 * SECOND);

	start(d, NULL);
	connect_client(d);
	Peftd__V1__Reply *r = show(d, job);
	assert_true(r->job->n_checkpoints > 0);
	uint64_t step = r->job->checkpoints[r->job->n_checkpoints - 1]->step;
	assert_true(step >= 5);
	assert_true(r->job->step >= step);
	proto_free(r);
	kill(d->pid, SIGTERM);
	assert_int_equal(wait_end(d, 30 * SECOND), 0);
}

static void killed_children_come_back(void **state)
{
	struct daemon *d = *state;
	setenv("FAKE_TRAINER_DELAY", "2", 1);
	start(d, NULL);
	connect_client(d);
	uint64_t job = submit(d, 400);
	for (int i = 0; i < 3; i++) {
		wait_job(d, job, PEFTD__V1__JOB_STATE__JOB_RUNNING, 20 * (uint64_t)(i + 1));
		pid_t trainer = child_of(d, "peftd-trainer");
		assert_true(trainer > 0);
		kill(trainer, SIGKILL);
		int64_t killed = clock_monotonic_ns();
		d->said.len = 0;
		assert_true(wait_for(d, "trainer ready", 2 * SECOND));
		assert_true(clock_monotonic_ns() - killed < 2 * SECOND);
	}
	pid_t front = child_of(d, "peftd-front");
	kill(front, SIGKILL);
	int64_t killed = clock_monotonic_ns();
	/* A client that sees its connection break connects again, and is answered. */
	Peftd__V1__Reply *r = NULL;
	while (!r) {
		connect_client(d);
		Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
		Peftd__V1__StatusRequest s = PEFTD__V1__STATUS_REQUEST__INIT;
		req.what_case = PEFTD__V1__REQUEST__WHAT_STATUS;
		req.status = &s;
		r = try_ask(d, &req, NULL, 0);
		assert_true(clock_monotonic_ns() - killed < 2 * SECOND);
	}
	proto_free(r);
	assert_true(child_of(d, "peftd-front") != front);
	wait_job(d, job, PEFTD__V1__JOB_STATE__JOB_SUCCEEDED, 400);
	kill(d->pid, SIGTERM);
	assert_int_equal(wait_end(d, 5 * SECOND), 0);
}

static void killed_core_takes_its_children_along(void **state)
{
	struct daemon *d = *state;
	setenv("FAKE_TRAINER_DELAY", "2", 1);
	start(d, NULL);
	connect_client(d);
	uint64_t job = submit(d, 300);
	wait_job(d, job, PEFTD__V1__JOB_STATE__JOB_RUNNING, 15);
	kill(d->pid, SIGKILL);
	assert_int_equal(wait_end(d, 5 * SECOND), -SIGKILL);
	start(d, NULL);
	connect_client(d);
	wait_job(d, job, PEFTD__V1__JOB_STATE__JOB_SUCCEEDED, 300);
	kill(d->pid, SIGTERM);
	assert_int_equal(wait_end(d, 5 * SECOND), 0);
}

static void second_daemon_is_refused(void **state)
{
	struct daemon *d = *state;
	start(d, NULL);
	struct daemon second = *d;
	second.said = (struct buf){0};
	second.client = NULL;
	start_with(&second, NULL);
	assert_int_equal(wait_end(&second, 5 * SECOND), 1);
	const char *said = buf_cstr(&second.said);
	assert_non_null(strstr(said, d->state));
	assert_null(strstr(said, "ready"));
	assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1); /* one sentence */
	buf_deinit(&second.said);

	/* The first one goes on. */
	connect_client(d);
	free(trainer_state(d));
	kill(d->pid, SIGTERM);
	assert_int_equal(wait_end(d, 5 * SECOND), 0);
}

static void corrupt_store_is_refused(void **state)
{
	struct daemon *d = *state;
	start(d, NULL);
	kill(d->pid, SIGTERM);
	assert_int_equal(wait_end(d, 5 * SECOND), 0);
	char path[160];
	snprintf(path, sizeof(path), "%s/store/data.mdb", d->state);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	static const char junk[12288] = "this is no store";
	assert_int_equal(pwrite(fd, junk, sizeof(junk), 0), sizeof(junk));
	uint8_t before[64], after[64];
	assert_int_equal(pread(fd, before, sizeof(before), 0), sizeof(before));

	start_with(d, NULL);
	assert_int_equal(wait_end(d, 5 * SECOND), 1);
	const char *said = buf_cstr(&d->said);
	assert_null(strstr(said, "ready"));
	assert_non_null(strstr(said, d->state));
	assert_int_equal(pread(fd, after, sizeof(after), 0), sizeof(after));
	assert_memory_equal(before, after, sizeof(before));
	close(fd);
}

static void children_that_cannot_start_end_it(void **state)
{
	struct daemon *d = *state;
	setenv("FAKE_TRAINER_EXIT", "3", 1);
	start_with(d, NULL);
	assert_int_equal(wait_end(d, 5 * SECOND), 1);
	assert_non_null(strstr(buf_cstr(&d->said), "peftd-trainer ended with status 3"));
	unsetenv("FAKE_TRAINER_EXIT");
	setenv("FAKE_FRONT_EXIT", "2", 1);
	start_with(d, NULL);
	assert_int_equal(wait_end(d, 5 * SECOND), 1);
	assert_non_null(strstr(buf_cstr(&d->said), "peftd-front ended with status 2"));
}

/* Runs peftd with these arguments alone: its exit status, and what it said. */
static int run(const char *const *argv, char *said, size_t cap)
{
	int fds[2];
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, fds[1], 1);
	posix_spawn_file_actions_adddup2(&files, fds[1], 2);
	pid_t pid;
	assert_int_equal(
		posix_spawn(&pid, getenv("PEFTD"), &files, NULL, (char *const *)argv, environ), 0);
	posix_spawn_file_actions_destroy(&files);
	close(fds[1]);
	size_t len = 0;
	ssize_t n;
	while (len + 1 < cap && (n = read(fds[0], said + len, cap - 1 - len)) > 0) {
		len += (size_t)n;
	}
	said[len] = '\0';
	close(fds[0]);
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void wrong_options(void **state)
{
	static const struct {
		const char *argv[4];
		int status;
		const char *says;
	} cases[] = {
		{{"peftd", "--nonsense"}, 2, "usage"},
		{{"peftd", "here"}, 2, "here"},
		{{"peftd", "--device", "gpu"}, 2, "auto, cpu or cuda:N"},
		{{"peftd", "--device", "cuda:x"}, 2, "cuda:N"},
		{{"peftd", "--endpoint", "/tmp/x"}, 2, "ipc://"},
		{{"peftd", "--log-level", "loud"}, 2, "debug"},
		{{"peftd", "--memory-limit", "lots"}, 2, "16GiB"},
		{{"peftd", "--memory-limit", "1.5"}, 2, "256MiB"},
		{{"peftd", "--threads", "-1"}, 2, "threads"},
		{{"peftd", "--config", "/nonexistent"}, 2, "/nonexistent"},
		{{"peftd", "--help"}, 0, "--state-dir"},
		{{"peftd", "--version"}, 0, "peftd 0."},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char said[8192];
		int r = run(cases[i].argv, said, sizeof(said));
		if (r != cases[i].status || !strstr(said, cases[i].says)) {
			fail_msg("case %zu: status %d, said: %s", i, r, said);
		}
	}
}

static void configuration_file(void **state)
{
	struct daemon *d = *state;
	static const struct {
		const char *text, *says;
	} bad[] = {
		{"device: cpu\nstate_dirr: x\n",
			":2: state_dirr: there is no such key; did you mean state-dir"},
		{"device: [cpu]\n", ":1: device: a single value"},
		{"threads: many\n", ":1: threads"},
		{"device: cpu\ndevice: cpu\n", ":2: device: given twice"},
		{"- a\n", ":1: a mapping"},
		{"device: \"cpu\n", "not YAML"},
		{"device: cpu\n---\ndevice: cpu\n", "more than one"},
	};
	char path[128], said[8192];
	snprintf(path, sizeof(path), "%s/config.yaml", d->dir);
	const char *argv[] = {"peftd", "--config", path, NULL};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		FILE *f = fopen(path, "we");
		assert_non_null(f);
		fputs(bad[i].text, f);
		fclose(f);
		int r = run(argv, said, sizeof(said));
		if (r != 2 || !strstr(said, bad[i].says)) {
			fail_msg("case %zu: status %d, said: %s", i, r, said);
		}
	}
	FILE *f = fopen(path, "we");
	assert_non_null(f);
	fprintf(f,
		"endpoint:\n  - %s\nstate-dir: %s\nmemory_limit: 2GiB\nthreads: 1\nlog-level: info\n",
		d->endpoint, d->state);
	fclose(f);
	snprintf(d->state, sizeof(d->state), "%s/other", d->dir); /* the command line wins */
	const char *extra[] = {"--config", path, NULL};
	start(d, extra);
	connect_client(d);
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	Peftd__V1__StatusRequest s = PEFTD__V1__STATUS_REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_STATUS;
	req.status = &s;
	Peftd__V1__Reply *r = must_ask(d, &req, NULL, 0);
	assert_int_equal(r->daemon_status->memory_total, (uint64_t)2 << 30);
	proto_free(r);
	struct stat st;
	assert_int_equal(stat(d->state, &st), 0);
	kill(d->pid, SIGTERM);
	assert_int_equal(wait_end(d, 5 * SECOND), 0);
}

static void check_says_what_is_wrong(void **state)
{
	struct daemon *d = *state;
	start(d, NULL);
	connect_client(d);
	uint64_t job = submit(d, 30);
	wait_job(d, job, PEFTD__V1__JOB_STATE__JOB_SUCCEEDED, 30);
	kill(d->pid, SIGTERM);
	assert_int_equal(wait_end(d, 5 * SECOND), 0);
	const char *argv[] = {"peftd", "--check", "--state-dir", d->state, NULL};
	char said[8192];
	assert_int_equal(run(argv, said, sizeof(said)), 0);
	assert_non_null(strstr(said, " 0 faults"));

	/* A single bit of the adapter. */
	char path[160];
	snprintf(path, sizeof(path), "%s/store/data.mdb", d->state);
	FILE *f = fopen(path, "r+be");
	assert_non_null(f);
	static char all[8 << 20];
	size_t n = fread(all, 1, sizeof(all), f);
	char *at = memmem(all, n, "{\"peft_type\"", 12);
	assert_non_null(at);
	unsigned flips = 0;
	for (; at; at = memmem(at + 1, n - (size_t)(at + 1 - all), "{\"peft_type\"", 12), flips++) {
		fseek(f, at - all, SEEK_SET);
		fputc('[', f);
	}
	fclose(f);
	assert_true(flips > 0);
	assert_int_equal(run(argv, said, sizeof(said)), 1);
	assert_null(strstr(said, " 0 faults"));
	const char *none[] = {"peftd", "--check", "--state-dir", "/nonexistent/peftd", NULL};
	assert_int_equal(run(none, said, sizeof(said)), 1);
}

int main(void)
{
	if (!getenv("PEFTD") || !getenv("PEFTD_LIBEXEC")) {
		fprintf(stderr, "PEFTD and PEFTD_LIBEXEC name the daemon and the fakes' folder\n");
		return 1;
	}
	if (sodium_init() < 0) {
		return 1;
	}
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(starts_and_ends),
		TEST(term_lets_the_job_write_a_checkpoint),
		TEST(killed_children_come_back),
		TEST(killed_core_takes_its_children_along),
		TEST(second_daemon_is_refused),
		TEST(corrupt_store_is_refused),
		TEST(children_that_cannot_start_end_it),
		TEST(wrong_options),
		TEST(configuration_file),
		TEST(check_says_what_is_wrong),
	};
	return cmocka_run_group_tests_name("core process", tests, NULL, NULL);
}
