/*
 * What the daemon itself costs, on a tiny model: submits, lists, watchers, uploads, idling.
 *
 *     PEFTD=BUILD/daemon/core/peftd PEFTCTL=BUILD/client/peftctl BUILD/bench/bench_daemon [CASE]…
 *
 * Cases: submits, list (after submits), watchers, upload, idle; none: all. Prints a line of JSON a case.
 * The state folder lies below TMPDIR: name a real disk there, or durability costs nothing.
 */

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/client.h"
#include "client/spec.h"
#include "tests/e2e/daemon.h"
#include "tests/support/tiny.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { SUBMITS = 1000, OUTSTANDING = 64, JOBS = 10000, WATCHERS = 1000, CONNECTIONS = 20 };

static void must(int r, const struct errmsg *err, const char *what)
{
	if (r != 0) {
		fprintf(stderr, "bench_daemon: %s: %d %s\n", what, r, err->text);
		exit(1);
	}
}

static double since(int64_t begin)
{
	return (double)(clock_monotonic_ns() - begin) / 1e9;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double quantile(double *v, size_t n, double q)
{
	qsort(v, n, sizeof(*v), compare_doubles);
	return v[min_i64((int64_t)n - 1, (int64_t)(q * (double)n))];
}

static ProtobufCBinaryData bytes(const char *s)
{
	return (ProtobufCBinaryData){strlen(s), (uint8_t *)s};
}

/* A held job of one step; `seed` makes each another. */
struct submit {
	uint8_t id[REQUEST_ID_SIZE];
	Peftd__V1__TrainSpec train;
	Peftd__V1__JobSpec spec;
	Peftd__V1__SubmitRequest body;
	Peftd__V1__Request req;
};

static void submit_init(struct submit *s, uint64_t seed)
{
	s->train = (Peftd__V1__TrainSpec)PEFTD__V1__TRAIN_SPEC__INIT;
	s->train.has_seed = true;
	s->train.seed = seed;
	s->train.has_max_steps = true;
	s->train.max_steps = 1;
	s->spec = (Peftd__V1__JobSpec)PEFTD__V1__JOB_SPEC__INIT;
	s->spec.has_model = s->spec.has_dataset = true;
	s->spec.model = bytes("tiny");
	s->spec.dataset = bytes("rows");
	s->spec.train = &s->train;
	s->body = (Peftd__V1__SubmitRequest)PEFTD__V1__SUBMIT_REQUEST__INIT;
	s->body.spec = &s->spec;
	s->body.has_hold = s->body.hold = true;
	s->req = (Peftd__V1__Request)PEFTD__V1__REQUEST__INIT;
	client_make_id(s->id);
	s->req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, s->id};
	s->req.what_case = PEFTD__V1__REQUEST__WHAT_SUBMIT;
	s->req.submit = &s->body;
}

static struct client *connect_to(const struct daemon *d)
{
	struct client *c = NULL;
	struct errmsg err = {""};
	must(client_new(&c, d->endpoint, CLIENT_CONNECT_MS), &err, "connect");
	return c;
}

static void submit_one_by_one(struct client *c, double *seconds, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct submit s;
		struct errmsg err = {""};
		Peftd__V1__Reply *reply = NULL;
		submit_init(&s, i);
		int64_t begin = clock_monotonic_ns();
		must(client_call(c, &s.req, -1, &reply, &err), &err, "submit");
		seconds[i] = since(begin);
		proto_free(&reply->base);
	}
}

static void submit_at_once(struct client *c, size_t n)
{
	static struct submit s[OUTSTANDING];
	struct call *calls[OUTSTANDING] = {0};
	struct errmsg err = {""};
	for (size_t i = 0; i < n + OUTSTANDING; i++) {
		struct call **call = &calls[i % OUTSTANDING];
		if (*call) {
			struct answer a = {0};
			must(client_next(c, *call, -1, &a, &err), &err, "submit");
			answer_deinit(&a);
			client_end(c, *call);
			*call = NULL;
		}
		if (i < n) {
			submit_init(&s[i % OUTSTANDING], i);
			must(client_start(c, &s[i % OUTSTANDING].req, NULL, 0, CLIENT_RESEND, call, &err), &err,
				"submit");
		}
	}
}

static void bench_submits(struct daemon *d)
{
	struct client *c = connect_to(d);
	double seconds[SUBMITS];
	int64_t begin = clock_monotonic_ns();
	submit_one_by_one(c, seconds, SUBMITS);
	double one_by_one = since(begin);
	begin = clock_monotonic_ns();
	submit_at_once(c, SUBMITS);
	printf("{\"case\": \"submits\", \"per_second\": %.1f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, "
		"\"outstanding\": %d, \"per_second_outstanding\": %.1f}\n", SUBMITS / one_by_one,
		1e3 * quantile(seconds, SUBMITS, 0.5), 1e3 * quantile(seconds, SUBMITS, 0.99), OUTSTANDING,
		SUBMITS / since(begin));
	client_free(c);
}

static size_t list_all(struct client *c)
{
	Peftd__V1__JobListRequest list = PEFTD__V1__JOB_LIST_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	uint8_t id[REQUEST_ID_SIZE];
	struct errmsg err = {""};
	struct call *call = NULL;
	client_make_id(id);
	req.id = (ProtobufCBinaryData){sizeof(id), id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_JOB_LIST;
	req.job_list = &list;
	must(client_start(c, &req, NULL, 0, CLIENT_RESEND, &call, &err), &err, "list");
	size_t n = 0;
	while (!call_finished(call)) {
		struct answer a = {0};
		must(client_next(c, call, -1, &a, &err), &err, "list");
		n += a.reply->job_list ? a.reply->job_list->n_jobs : 0;
		answer_deinit(&a);
		client_credit(c, call, 1);
	}
	client_end(c, call);
	return n;
}

static void bench_list(struct daemon *d)
{
	struct client *c = connect_to(d);
	size_t have = list_all(c);
	if (have < JOBS) {
		submit_at_once(c, JOBS - have);
	}
	double seconds[5];
	size_t n = 0;
	for (size_t i = 0; i < ARRAY_LEN(seconds); i++) {
		int64_t begin = clock_monotonic_ns();
		n = list_all(c);
		seconds[i] = since(begin);
	}
	printf("{\"case\": \"list\", \"jobs\": %zu, \"median_ms\": %.1f}\n", n,
		1e3 * quantile(seconds, ARRAY_LEN(seconds), 0.5));
	client_free(c);
}

/* The steps' median seconds of a job, from its metrics. */
static double step_seconds(const struct daemon *d, uint64_t job)
{
	char id[24];
	snprintf(id, sizeof(id), "%" PRIu64, job);
	_cleanup_(freep) char *text = ctl_ok(d, "--json", "metrics", id, NULL);
	json_t *lines = json_lines(text), *line;
	static double seconds[4096];
	size_t n = 0, i;
	json_array_foreach(lines, i, line) {
		json_t *s = json_object_get(line, "seconds");
		if (s && json_object_get(line, "loss") && n < ARRAY_LEN(seconds)) {
			seconds[n++] = json_number_value(s);
		}
	}
	json_decref(lines);
	return n ? quantile(seconds, n, 0.5) : 0;
}

/* Opens WATCHERS streams and reads them all to their end; the number of events. */
static size_t watch_all(const struct daemon *d, uint64_t job)
{
	static struct client *clients[CONNECTIONS];
	static struct call *calls[WATCHERS];
	Peftd__V1__WatchRequest watch = PEFTD__V1__WATCH_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	struct errmsg err = {""};
	char id[24];
	watch.job = job;
	req.what_case = PEFTD__V1__REQUEST__WHAT_WATCH;
	req.watch = &watch;
	for (size_t i = 0; i < CONNECTIONS; i++) {
		clients[i] = connect_to(d);
	}
	for (size_t i = 0; i < WATCHERS; i++) {
		uint8_t rid[REQUEST_ID_SIZE];
		client_make_id(rid);
		req.id = (ProtobufCBinaryData){sizeof(rid), rid};
		must(client_start(clients[i % CONNECTIONS], &req, NULL, 0, 0, &calls[i], &err), &err, "watch");
	}
	snprintf(id, sizeof(id), "%" PRIu64, job);
	free(ctl_ok(d, "release", id, NULL));
	size_t events = 0;
	for (size_t open = WATCHERS; open > 0;) {
		for (size_t i = 0; i < WATCHERS; i++) {
			while (calls[i]) {
				struct answer a = {0};
				int r = client_next(clients[i % CONNECTIONS], calls[i], 0, &a, &err);
				if (r == -ETIMEDOUT) {
					break;
				}
				must(r, &err, "watch");
				size_t n = a.reply->watch ? a.reply->watch->n_events : 0;
				events += n;
				answer_deinit(&a);
				if (call_finished(calls[i])) {
					client_end(clients[i % CONNECTIONS], calls[i]);
					calls[i] = NULL;
					open--;
				} else if (n > 0) {
					client_credit(clients[i % CONNECTIONS], calls[i], (uint32_t)n);
				}
			}
		}
	}
	for (size_t i = 0; i < CONNECTIONS; i++) {
		client_free(clients[i]);
	}
	return events;
}

static void bench_watchers(struct daemon *d)
{
	const char *steps = "train.max_steps=300";
	uint64_t alone = submit(d, "--model", "tiny", "--dataset", "rows", "--set", steps, "--set",
		"train.save_steps=0", NULL);
	wait_job(d, alone, "SUCCEEDED");
	uint64_t watched = submit(d, "--model", "tiny", "--dataset", "rows", "--set", steps, "--set",
		"train.save_steps=0", "--hold", NULL);
	int64_t begin = clock_monotonic_ns();
	size_t events = watch_all(d, watched);
	double seconds = since(begin);
	printf("{\"case\": \"watchers\", \"watchers\": %d, \"events\": %zu, \"events_per_second\": %.0f, "
		"\"step_ms_alone\": %.3f, \"step_ms_watched\": %.3f}\n", WATCHERS, events,
		(double)events / seconds, 1e3 * step_seconds(d, alone), 1e3 * step_seconds(d, watched));
}

static void bench_upload(struct daemon *d)
{
	/* Long rows: what counts is the way of the bytes, not their tokens. */
	const size_t total = (size_t)1 << 30, row = 1 << 16;
	_cleanup_(freep) char *path = tiny_path(d->dir, "big.jsonl");
	_cleanup_(fclosep) FILE *f = fopen(path, "we");
	_cleanup_(freep) char *text = calloc(1, row);
	if (!f || !text) {
		perror(path);
		exit(1);
	}
	uint64_t bits = 88172645463325252u;
	for (size_t n = 0; n < total; n += row) {
		for (size_t i = 0; i < row - 1; i++) {
			bits ^= bits << 13;
			bits ^= bits >> 7;
			bits ^= bits << 17;
			text[i] = (char)('a' + bits % 26);
		}
		fprintf(f, "{\"text\": \"%s\"}\n", text);
	}
	fflush(f);
	int64_t begin = clock_monotonic_ns();
	free(ctl_ok(d, "dataset", "put", "big", path, NULL));
	double seconds = since(begin);
	printf("{\"case\": \"upload\", \"bytes\": %zu, \"seconds\": %.2f, \"mb_per_second\": %.0f}\n", total,
		seconds, (double)total / 1e6 / seconds);
}

/* Resident bytes of a process of ours, and its voluntary context switches so far. */
static long status_field(pid_t pid, const char *field)
{
	char path[64], line[256];
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, field, strlen(field)) == 0) {
			return strtol(line + strlen(field) + 1, NULL, 10);
		}
	}
	return -1;
}

static void bench_idle(struct daemon *d)
{
	daemon_stop(d);
	daemon_start(d);
	const pid_t pids[] = {d->pid, daemon_child(d, "peftd-front"), daemon_child(d, "peftd-trainer")};
	long kib = 0, before = 0, after = 0;
	const int wait = 20;
	sleep(3);
	for (size_t i = 0; i < ARRAY_LEN(pids); i++) {
		kib += status_field(pids[i], "RssAnon") + status_field(pids[i], "RssFile");
		before += status_field(pids[i], "voluntary_ctxt_switches");
	}
	sleep((unsigned)wait);
	for (size_t i = 0; i < ARRAY_LEN(pids); i++) {
		after += status_field(pids[i], "voluntary_ctxt_switches");
	}
	printf("{\"case\": \"idle\", \"rss_mib\": %.1f, \"wakeups_per_second\": %.2f}\n",
		(double)kib / 1024, (double)(after - before) / wait);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(struct daemon *d);
	} cases[] = {{"submits", bench_submits}, {"list", bench_list}, {"watchers", bench_watchers},
		{"upload", bench_upload}, {"idle", bench_idle}};
	struct daemon d;
	daemon_init(&d);
	daemon_start(&d);
	free(ctl_ok(&d, "model", "add", "tiny", d.model, NULL));
	free(ctl_ok(&d, "dataset", "put", "rows", d.rows, NULL));
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		bool wanted = argc < 2;
		for (int k = 1; k < argc; k++) {
			wanted = wanted || strcmp(argv[k], cases[i].name) == 0;
		}
		if (wanted) {
			cases[i].run(&d);
		}
	}
	daemon_stop(&d);
	daemon_deinit(&d);
	return 0;
}
