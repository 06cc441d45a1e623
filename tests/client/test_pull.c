/* peftctl model pull, the program: what it prints, being killed, two at once, and the daemon. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_daemon.h"
#include "tests/support/hub.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { WEIGHTS = 2000000 };

static const char commit[] = "0123456789abcdef0123456789abcdef01234567";

struct world {
	char dir[32], snapshot[160];
	struct hub hub, store;
	struct fake daemon;
	char added[256]; /* the path that the daemon was last asked to add */
	bool absent;     /* the daemon finds nothing */
	uint8_t *weights;
};

struct run {
	pid_t pid;
	FILE *out, *err;
};

struct ran {
	int status;
	char *out, *err;
};

/* ---- the daemon -------------------------------------------------------------------------- */

static void handle(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t raw_len)
{
	struct world *w = f->data;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	Peftd__V1__StatusReply status = PEFTD__V1__STATUS_REPLY__INIT;
	Peftd__V1__Model model = PEFTD__V1__MODEL__INIT;
	if (req->what_case == PEFTD__V1__REQUEST__WHAT_STATUS) {
		reply.what_case = PEFTD__V1__REPLY__WHAT_DAEMON_STATUS;
		reply.daemon_status = &status;
		fake_reply(f, req, &reply, NULL, 0);
	} else if (req->what_case == PEFTD__V1__REQUEST__WHAT_MODEL_ADD) {
		snprintf(w->added, sizeof(w->added), "%.*s", (int)req->model_add->path.len,
			req->model_add->path.data);
		model.name = req->model_add->name;
		model.path = req->model_add->path;
		reply.what_case = PEFTD__V1__REPLY__WHAT_MODEL;
		reply.model = &model;
		if (w->absent) {
			fake_fail(f, req, STATUS_INVALID, "cannot be opened: Permission denied");
		} else {
			fake_reply(f, req, &reply, NULL, 0);
		}
	} else {
		fake_fail(f, req, STATUS_INTERNAL, "not in this play");
	}
}

/* ---- running it -------------------------------------------------------------------------- */

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	signal(SIGPIPE, SIG_IGN);
	w->weights = malloc(WEIGHTS);
	for (size_t i = 0; i < WEIGHTS; i++) {
		w->weights[i] = (uint8_t)(i * 2654435761u >> 11);
	}
	snprintf(w->dir, sizeof(w->dir), "/tmp/test_pull.XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	snprintf(w->snapshot, sizeof(w->snapshot), "%s/models--org--tiny/snapshots/%s", w->dir, commit);
	hub_start(&w->hub, "org/tiny", NULL);
	hub_start(&w->store, "org/tiny", NULL);
	w->hub.store = &w->store;
	w->hub.token = "hf_secret";
	hub_add(&w->hub, "config.json", "hello\n", 6, false);
	hub_add(&w->hub, "model.safetensors", w->weights, WEIGHTS, true);
	hub_add(&w->store, "model.safetensors", w->weights, WEIGHTS, true);
	fake_init(&w->daemon, handle, w);
	*state = w;
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int teardown(void **state)
{
	struct world *w = *state;
	hub_stop(&w->hub);
	hub_stop(&w->store);
	fake_deinit(&w->daemon);
	nftw(w->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(w->weights);
	free(w);
	return 0;
}

static struct run start_to(const struct world *w, const char *line, FILE *out, FILE *err)
{
	struct run r = {.out = out, .err = err};
	char *argv[16] = {"peftctl"}, *save = NULL, copy[512];
	int n = 1;
	snprintf(copy, sizeof(copy), "%s", line);
	for (char *s = strtok_r(copy, " ", &save); s && n < 15; s = strtok_r(NULL, " ", &save)) {
		argv[n++] = s;
	}
	r.pid = fork();
	assert_true(r.pid >= 0);
	if (r.pid == 0) {
		dup2(fileno(r.out), 1);
		dup2(fileno(r.err), 2);
		setenv("PEFTD_ENDPOINT", w->daemon.endpoint, 0);
		setenv("HF_HUB_CACHE", w->dir, 1);
		setenv("HF_ENDPOINT", w->hub.url, 1);
		setenv("HF_TOKEN", "hf_secret", 1);
		setenv("no_proxy", "127.0.0.1", 1);
		unsetenv("HF_HUB_OFFLINE");
		unsetenv("SSL_CERT_FILE");
		execv(getenv("PEFTCTL"), argv);
		_exit(127);
	}
	return r;
}

static struct run start(const struct world *w, const char *line)
{
	return start_to(w, line, tmpfile(), tmpfile());
}

static char *slurp(FILE *f)
{
	struct buf b = {0};
	size_t n;
	rewind(f);
	do {
		assert_int_equal(buf_reserve(&b, 4096), 0);
		n = fread(b.data + b.len, 1, 4096, f);
		b.len += n;
	} while (n > 0);
	fclose(f);
	return buf_steal(&b, NULL);
}

static void ran_clear(struct ran *r)
{
	free(r->out);
	free(r->err);
	*r = (struct ran){0};
}

static void finish(struct run *run, struct ran *ret)
{
	int status;
	ran_clear(ret);
	assert_int_equal(waitpid(run->pid, &status, 0), run->pid);
	ret->status = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
	ret->out = slurp(run->out);
	ret->err = slurp(run->err);
	assert_null(strstr(ret->out, "secret")); /* neither the token nor a signature */
	assert_null(strstr(ret->err, "secret"));
}

static void run(const struct world *w, const char *line, int status, struct ran *ret)
{
	struct run r = start(w, line);
	finish(&r, ret);
	if (ret->status != status) {
		fail_msg("peftctl %s: %d\n%s\n%s", line, ret->status, ret->out, ret->err);
	}
}

static void check_weights(const struct world *w)
{
	char path[256];
	_cleanup_(freep) char *have = malloc(WEIGHTS + 1);
	snprintf(path, sizeof(path), "%s/model.safetensors", w->snapshot);
	FILE *f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fread(have, 1, WEIGHTS + 1, f), WEIGHTS);
	fclose(f);
	assert_memory_equal(have, w->weights, WEIGHTS);
}

/* ---- tests ------------------------------------------------------------------------------- */

static void test_output(void **state)
{
	struct world *w = *state;
	_cleanup_(ran_clear) struct ran r = {0};
	char line[256];
	run(w, "model pull org/tiny", 0, &r);
	snprintf(line, sizeof(line), "%s\n", w->snapshot);
	assert_string_equal(r.out, line); /* the path alone */
	assert_non_null(strstr(r.err, "config.json  6 B\n"));
	assert_non_null(strstr(r.err, "model.safetensors  1.9 MiB\n"));
	assert_null(strchr(r.err, '\r')); /* no bar on a pipe */

	run(w, "--json model pull org/tiny", 0, &r);
	json_auto_t *j = json_loads(r.out, JSON_REJECT_DUPLICATES, NULL);
	assert_non_null(j);
	assert_string_equal(json_string_value(json_object_get(j, "repo")), "org/tiny");
	assert_string_equal(json_string_value(json_object_get(j, "revision")), "main");
	assert_string_equal(json_string_value(json_object_get(j, "commit")), commit);
	assert_string_equal(json_string_value(json_object_get(j, "path")), w->snapshot);
	assert_int_equal(json_integer_value(json_object_get(j, "fetched_bytes")), 0);
	const json_t *file = json_array_get(json_object_get(j, "files"), 0);
	assert_string_equal(json_string_value(json_object_get(file, "name")), "model.safetensors");
	assert_int_equal(json_integer_value(json_object_get(file, "size")), WEIGHTS);
	assert_true(json_is_true(json_object_get(file, "was_there")));

	run(w, "--quiet model pull org/tiny", 0, &r);
	assert_string_equal(r.err, "");
	run(w, "model pull org/tiny", 0, &r);
	assert_non_null(strstr(r.err, "org/tiny at 0123456789ab was there already"));
	run(w, "model pull", 2, &r);
	run(w, "model pull org/../tiny", 2, &r);
	assert_non_null(strstr(r.err, "it must be ORG/NAME or ORG/NAME@REVISION"));
	run(w, "model pull org/tiny@v9", 1, &r);
	assert_non_null(strstr(r.err, "there is no revision 'v9'"));
	w->hub.gated = true;
	run(w, "model pull org/tiny", 0, &r); /* what is there needs no leave */
	w->hub.token = "hf_other";
	run(w, "model pull org/tiny", 4, &r);
	assert_non_null(strstr(r.err, "does not accept the token"));
}

static void test_killed(void **state)
{
	struct world *w = *state;
	_cleanup_(ran_clear) struct ran r = {0};
	w->store.silent = true;
	w->store.cut_at = 1000000;
	struct run first = start(w, "model pull org/tiny");
	hub_wait_sent(&w->store, 1000000);
	char part[256];
	snprintf(part, sizeof(part), "%s/models--org--tiny/blobs/%s.incomplete", w->dir,
		w->store.objects[0].digest);
	struct stat st = {0};
	while (stat(part, &st) < 0 || st.st_size < 500000) {
		poll(NULL, 0, 5);
	}
	kill(first.pid, SIGKILL);
	finish(&first, &r);
	assert_int_equal(r.status, 1000 + SIGKILL);
	assert_int_equal(stat(part, &st), 0);
	w->store.silent = false;
	hub_forget(&w->store);
	run(w, "model pull org/tiny", 0, &r);
	char range[64];
	snprintf(range, sizeof(range), "bytes=%lld-", (long long)st.st_size);
	assert_string_equal(hub_last(&w->store, "/blob/").range, range);
	assert_int_equal(w->store.sent, WEIGHTS - st.st_size);
	check_weights(w);
}

static void test_interrupted(void **state)
{
	struct world *w = *state;
	_cleanup_(ran_clear) struct ran r = {0};
	w->store.silent = true;
	w->store.cut_at = 1000;
	struct run first = start(w, "model pull org/tiny");
	hub_wait_sent(&w->store, 1000);
	kill(first.pid, SIGINT);
	finish(&first, &r);
	assert_int_equal(r.status, 130);
	assert_non_null(strstr(r.err, "interrupted; what came is kept: repeat the command to go on"));
	w->store.silent = false;
	run(w, "model pull org/tiny", 0, &r);
	check_weights(w);
}

/* On a terminal a bar, and no lines for files. */
static void test_terminal(void **state)
{
	struct world *w = *state;
	int master, slave;
	assert_int_equal(openpty(&master, &slave, NULL, NULL, NULL), 0);
	w->store.silent = true;
	w->store.cut_at = 1000000;
	assert_int_equal(setenv("TERM", "xterm", 1), 0);
	assert_int_equal(setenv("LC_ALL", "C", 1), 0);
	struct run first = start_to(w, "model pull org/tiny", tmpfile(), fdopen(slave, "r+"));
	char shown[8192];
	size_t n = 0;
	while (!(n > 0 && strstr(shown, "976.6 KiB of 1.9 MiB")) && n + 1 < sizeof(shown)) {
		ssize_t k = read(master, shown + n, sizeof(shown) - 1 - n);
		assert_true(k > 0);
		n += (size_t)k;
		shown[n] = '\0';
	}
	kill(first.pid, SIGINT);
	int status;
	assert_int_equal(waitpid(first.pid, &status, 0), first.pid);
	assert_int_equal(WEXITSTATUS(status), 130);
	assert_non_null(strstr(shown, "fetching [############"));
	assert_null(strstr(shown, "config.json  6 B"));
	fclose(first.out);
	fclose(first.err);
	close(master);
}

static void test_two_at_once(void **state)
{
	struct world *w = *state;
	_cleanup_(ran_clear) struct ran a = {0}, b = {0};
	for (int i = 0; i < 5; i++) {
		nftw(w->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
		assert_int_equal(mkdir(w->dir, 0700), 0);
		hub_forget(&w->store);
		struct run one = start(w, "model pull org/tiny"), two = start(w, "model pull org/tiny");
		finish(&one, &a);
		finish(&two, &b);
		assert_int_equal(a.status, 0);
		assert_int_equal(b.status, 0);
		assert_int_equal(hub_count(&w->store, "/blob/"), 1);
		check_weights(w);
	}
}

static void test_add(void **state)
{
	struct world *w = *state;
	_cleanup_(ran_clear) struct ran r = {0};
	/* No daemon: said before anything is fetched. */
	run(w, "--timeout 0.2 model pull org/tiny --add tiny", 3, &r);
	run(w, "--endpoint tcp://192.0.2.1:7 model pull org/tiny --add tiny", 1, &r);
	assert_non_null(strstr(r.err, "is on another machine"));
	assert_int_equal(w->hub.n_log, 0);

	fake_start(&w->daemon);
	/* Not pulled yet, and no file: the daemon may know the name. */
	run(w, "model add tiny org/tiny", 0, &r);
	assert_string_equal(w->added, "org/tiny");
	run(w, "model pull org/tiny --add tiny", 0, &r);
	assert_string_equal(w->added, w->snapshot);
	assert_non_null(strstr(r.out, "name          tiny\n"));
	run(w, "--json model pull org/tiny --add tiny", 0, &r);
	json_auto_t *j = json_loads(r.out, JSON_REJECT_DUPLICATES, NULL);
	assert_string_equal(json_string_value(json_object_get(json_object_get(j, "model"), "name")),
		"tiny");
	/* Pulled by this user: by its name, wherever the daemon's own cache is. */
	w->added[0] = '\0';
	run(w, "model add tiny org/tiny", 0, &r);
	assert_string_equal(w->added, w->snapshot);
	char line[128];
	snprintf(line, sizeof(line), "model add tiny org/tiny@%s", commit);
	run(w, line, 0, &r);
	assert_string_equal(w->added, w->snapshot);
	/* The daemon cannot read it. */
	w->absent = true;
	run(w, "model pull org/tiny --add tiny", 1, &r);
	assert_non_null(strstr(r.err, "the daemon's user must be able to read it"));
	run(w, "model pull org/tiny --add tiny --include *.gguf", 2, &r);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_output), T(test_killed), T(test_interrupted), T(test_terminal),
		T(test_two_at_once), T(test_add),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
