/* The program peftctl, against a daemon played here: exit statuses, output, --json. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_daemon.h"
#include "tests/support/skip.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

/* ---- running it -------------------------------------------------------------------------- */

struct ran {
	int status;
	char *out, *err;
};

static void ran_clear(struct ran *r)
{
	free(r->out);
	free(r->err);
	*r = (struct ran){0};
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

static pid_t start(const struct fake *f, char **argv, const char *input, FILE *out, FILE *err)
{
	const char *exe = getenv("PEFTCTL");
	assert_non_null(exe);
	FILE *in = tmpfile();
	fputs(input ? input : "", in);
	fflush(in);
	rewind(in);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(fileno(in), 0);
		dup2(fileno(out), 1);
		dup2(fileno(err), 2);
		setenv("PEFTD_ENDPOINT", f->endpoint, 1);
		setenv("TZ", "UTC", 1);
		if (chdir(f->dir) == 0) {
			execv(exe, argv);
		}
		_exit(127);
	}
	fclose(in);
	return pid;
}

static int wait_status(pid_t pid)
{
	int status;
	for (int i = 0; i < 2000; i++) {
		if (waitpid(pid, &status, WNOHANG) == pid) {
			return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
		}
		poll(NULL, 0, 10);
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return -1;
}

/* Runs "peftctl <line>", split at spaces. */
static void run(const struct fake *f, struct ran *r, const char *input, const char *line)
{
	char *argv[32] = {"peftctl"}, *save = NULL, copy[512];
	int n = 1;
	ran_clear(r);
	snprintf(copy, sizeof(copy), "%s", line);
	for (char *w = strtok_r(copy, " ", &save); w && n < 31; w = strtok_r(NULL, " ", &save)) {
		argv[n++] = w;
	}
	FILE *out = tmpfile(), *err = tmpfile();
	r->status = wait_status(start(f, argv, input, out, err));
	r->out = slurp(out);
	r->err = slurp(err);
}

static void expect(const struct fake *f, const char *line, int status, const char *out,
	const char *err)
{
	struct ran r = {0};
	run(f, &r, NULL, line);
	if (r.status != status || (out && strcmp(r.out, out) != 0) || (err && !strstr(r.err, err))) {
		fail_msg("peftctl %s: %d\n%s\n%s", line, r.status, r.out, r.err);
	}
	ran_clear(&r);
}

static json_t *parse_line(const char *text)
{
	json_error_t e;
	json_t *v = json_loads(text, JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK, &e);
	if (!v) {
		fail_msg("%s\n%s", e.text, text);
	}
	return v;
}

/* ---- the daemon -------------------------------------------------------------------------- */

struct script {
	int fail;            /* answer everything with this status */
	const char *text;
	int final_state;     /* of the watched job; -1: it goes on for ever */
	uint64_t job;        /* last asked about */
	char last[2048];     /* what was last asked, as far as a test wants to know */
	uint8_t adapter[256];
	size_t adapter_len;
};

static Peftd__V1__Job make_job(const struct script *s, uint64_t id)
{
	Peftd__V1__Job job = PEFTD__V1__JOB__INIT;
	job.id = id;
	job.has_name = job.has_state = job.has_steps = job.has_step = true;
	job.name = proto_bytes("tune\x1B[31m");
	job.state = s->final_state >= 0 ? (Peftd__V1__JobState)s->final_state
		: PEFTD__V1__JOB_STATE__JOB_RUNNING;
	job.step = 2;
	job.steps = 4;
	return job;
}

static void watch(struct fake *f, const Peftd__V1__Request *req)
{
	struct script *s = f->data;
	Peftd__V1__Job job = make_job(s, req->watch->job);
	Peftd__V1__WatchReply w = PEFTD__V1__WATCH_REPLY__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	Peftd__V1__MetricsEvent m = PEFTD__V1__METRICS_EVENT__INIT;
	Peftd__V1__EvalEvent ev = PEFTD__V1__EVAL_EVENT__INIT;
	Peftd__V1__StateEvent st = PEFTD__V1__STATE_EVENT__INIT;
	Peftd__V1__LogEvent log = PEFTD__V1__LOG_EVENT__INIT;
	Peftd__V1__Event e[4] = {PEFTD__V1__EVENT__INIT, PEFTD__V1__EVENT__INIT, PEFTD__V1__EVENT__INIT,
		PEFTD__V1__EVENT__INIT};
	Peftd__V1__Event *list[4];
	m.step = 1;
	m.has_loss = m.has_lr = m.has_grad_norm = m.has_tokens = m.has_seconds = true;
	m.loss = 0.1;
	m.lr = 2e-4;
	m.grad_norm = 1.0 / 3;
	m.tokens = 100;
	m.seconds = 0.5;
	ev.step = 1;
	ev.has_eval_loss = true;
	ev.eval_loss = 2;
	log.has_level = log.has_text = true;
	log.level = proto_bytes("info");
	log.text = proto_bytes("hello\x07");
	st.state = job.state;
	e[0].what_case = PEFTD__V1__EVENT__WHAT_METRICS;
	e[0].metrics = &m;
	e[1].what_case = PEFTD__V1__EVENT__WHAT_EVAL;
	e[1].eval = &ev;
	e[2].what_case = PEFTD__V1__EVENT__WHAT_LOG;
	e[2].log = &log;
	e[3].what_case = PEFTD__V1__EVENT__WHAT_STATE;
	e[3].state = &st;
	for (int i = 0; i < 4; i++) {
		e[i].has_seq = e[i].has_wall_ns = true;
		e[i].seq = (uint64_t)i + 1;
		e[i].wall_ns = 1600000000000000000ull;
		list[i] = &e[i];
	}
	uint64_t after = req->watch->after;
	w.n_events = after < 4 ? 4 - (size_t)after : 0;
	w.events = list + (after < 4 ? after : 4);
	w.job = &job;
	reply.what_case = PEFTD__V1__REPLY__WHAT_WATCH;
	reply.watch = &w;
	reply.has_more = reply.more = s->final_state < 0;
	fake_reply(f, req, &reply, NULL, 0);
}

static void inspect(struct fake *f, const Peftd__V1__Request *req)
{
	int32_t ids[] = {1, 2, 3}, labels[] = {-100, 2, 3};
	ProtobufCBinaryData tokens[] = {proto_bytes("<s>"), proto_bytes(" a\n"), proto_bytes("\x1B")};
	Peftd__V1__InspectRow row = PEFTD__V1__INSPECT_ROW__INIT;
	Peftd__V1__InspectSummary sum = PEFTD__V1__INSPECT_SUMMARY__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	bool texts = req->dataset_inspect->token_texts;
	row.has_row = true;
	row.row = 5;
	row.n_input_id = row.n_label = 2;
	row.input_id = ids;
	row.label = labels;
	row.n_token = texts ? 2 : 0;
	row.token = tokens;
	row.has_continues = row.continues = true;
	reply.has_more = reply.more = true;
	reply.what_case = PEFTD__V1__REPLY__WHAT_INSPECT_ROW;
	reply.inspect_row = &row;
	fake_reply(f, req, &reply, NULL, 0);
	row.n_input_id = row.n_label = 1;
	row.input_id = ids + 2;
	row.label = labels + 2;
	row.n_token = texts ? 1 : 0;
	row.token = tokens + 2;
	row.continues = false;
	fake_reply(f, req, &reply, NULL, 0);
	sum.has_rows = sum.has_tokens = true;
	sum.rows = 1;
	sum.tokens = 3;
	reply.more = false;
	reply.what_case = PEFTD__V1__REPLY__WHAT_INSPECT_SUMMARY;
	reply.inspect_summary = &sum;
	fake_reply(f, req, &reply, NULL, 0);
}

static void generate(struct fake *f, const Peftd__V1__Request *req)
{
	static const char *const parts[] = {" one", " two\n", " three\x1B"};
	Peftd__V1__GenerateReply g = PEFTD__V1__GENERATE_REPLY__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	reply.what_case = PEFTD__V1__REPLY__WHAT_GENERATE;
	reply.generate = &g;
	g.has_text = true;
	for (int i = 0; i < 3; i++) {
		g.text = proto_bytes(parts[i]);
		reply.has_more = reply.more = i < 2;
		g.has_finish_reason = i == 2;
		g.finish_reason = proto_bytes("stop");
		fake_reply(f, req, &reply, NULL, 0);
	}
}

static void submit(struct fake *f, const Peftd__V1__Request *req)
{
	struct script *s = f->data;
	Peftd__V1__SubmitReply r = PEFTD__V1__SUBMIT_REPLY__INIT;
	Peftd__V1__Plan plan = PEFTD__V1__PLAN__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	const Peftd__V1__JobSpec *spec = req->submit->spec;
	snprintf(s->last, sizeof(s->last), "%.*s %.*s lr %g r %u hold %d plan %d init %.*s %zu",
		(int)spec->model.len, spec->model.data, (int)spec->dataset.len, spec->dataset.data,
		spec->train->learning_rate, spec->lora->r, req->submit->hold, req->submit->plan_only,
		(int)spec->init_adapter.len, spec->init_adapter.data,
		req->submit->init_adapter ? req->submit->init_adapter->n_files : 0);
	plan.has_total = plan.has_decision = plan.has_rows_overlong = true;
	plan.total = 1 << 20;
	plan.rows_overlong = 12;
	plan.decision = proto_bytes(spec->train->batch_size > 1000 ? "refuse" : "admit");
	r.plan = &plan;
	r.has_job = !req->submit->plan_only;
	r.job = 42;
	reply.what_case = PEFTD__V1__REPLY__WHAT_SUBMIT;
	reply.submit = &r;
	fake_reply(f, req, &reply, NULL, 0);
}

static void sweep(struct fake *f, const Peftd__V1__Request *req)
{
	struct script *s = f->data;
	const Peftd__V1__SweepRequest *m = req->sweep;
	Peftd__V1__SweepReply r = PEFTD__V1__SWEEP_REPLY__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	Peftd__V1__Plan plans[8], *list[8];
	size_t at = 0;
	s->last[0] = '\0';
	for (size_t i = 0; i < m->n_members; i++) {
		const Peftd__V1__SweepMember *x = m->members[i];
		at += (size_t)snprintf(s->last + at, sizeof(s->last) - at, "[%.*s: r %u seed %llu]",
			(int)x->variant.len, (const char *)x->variant.data, x->spec->lora->r,
			(unsigned long long)x->spec->train->seed);
		plans[i] = (Peftd__V1__Plan)PEFTD__V1__PLAN__INIT;
		plans[i].has_total = plans[i].has_decision = true;
		plans[i].total = (uint64_t)x->spec->lora->r << 20;
		plans[i].decision = proto_bytes(x->spec->lora->r > 100 ? "refuse" : "admit");
		list[i] = &plans[i];
	}
	r.has_sweep = !m->plan_only;
	r.sweep = 42;
	r.n_plans = m->n_members;
	r.plans = list;
	reply.what_case = PEFTD__V1__REPLY__WHAT_SWEEP;
	reply.sweep = &r;
	fake_reply(f, req, &reply, NULL, 0);
}

/* The jobs of sweep s42: 42 has ended, 43 and 44 have not. */
static void list_sweep(struct fake *f, const Peftd__V1__Request *req)
{
	struct script *s = f->data;
	Peftd__V1__JobListReply jobs = PEFTD__V1__JOB_LIST_REPLY__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	Peftd__V1__Job job[3], *list[3];
	static const Peftd__V1__JobState states[] = {PEFTD__V1__JOB_STATE__JOB_SUCCEEDED,
		PEFTD__V1__JOB_STATE__JOB_RUNNING, PEFTD__V1__JOB_STATE__JOB_PENDING};
	static const char *const variants[] = {"lora.r=4", "lora.r=8", "lora.r=16"};
	if (req->job_list->sweep != 42) {
		fake_fail(f, req, STATUS_NOT_FOUND, "there is no such sweep");
		return;
	}
	for (size_t i = 0; i < 3; i++) {
		job[i] = make_job(s, 42 + i);
		job[i].state = states[i];
		job[i].has_sweep = job[i].has_variant = true;
		job[i].sweep = 42;
		job[i].variant = proto_bytes(variants[i]);
		list[i] = &job[i];
	}
	jobs.n_jobs = 3;
	jobs.jobs = list;
	reply.what_case = PEFTD__V1__REPLY__WHAT_JOB_LIST;
	reply.job_list = &jobs;
	s->last[0] = '\0';
	fake_reply(f, req, &reply, NULL, 0);
}

/* Keeps an uploaded adapter, so that it can be fetched again. */
static void upload(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	struct script *s = f->data;
	Peftd__V1__UploadBeginReply b = PEFTD__V1__UPLOAD_BEGIN_REPLY__INIT;
	Peftd__V1__UploadChunkReply c = PEFTD__V1__UPLOAD_CHUNK_REPLY__INIT;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	b.has_offset = c.has_offset = true;
	if (req->what_case == PEFTD__V1__REQUEST__WHAT_UPLOAD_BEGIN) {
		reply.what_case = PEFTD__V1__REPLY__WHAT_UPLOAD_BEGIN;
		reply.upload_begin = &b;
	} else {
		s->adapter_len = n < sizeof(s->adapter) ? n : sizeof(s->adapter);
		memcpy(s->adapter, raw, s->adapter_len);
		c.offset = n;
		reply.what_case = PEFTD__V1__REPLY__WHAT_UPLOAD_CHUNK;
		reply.upload_chunk = &c;
	}
	fake_reply(f, req, &reply, NULL, 0);
}

static void simple(struct fake *f, const Peftd__V1__Request *req)
{
	struct script *s = f->data;
	Peftd__V1__Reply reply = PEFTD__V1__REPLY__INIT;
	Peftd__V1__StatusReply status = PEFTD__V1__STATUS_REPLY__INIT;
	Peftd__V1__Model model = PEFTD__V1__MODEL__INIT, *models[] = {&model};
	Peftd__V1__ModelListReply model_list = PEFTD__V1__MODEL_LIST_REPLY__INIT;
	Peftd__V1__Dataset dataset = PEFTD__V1__DATASET__INIT;
	Peftd__V1__JobListReply jobs = PEFTD__V1__JOB_LIST_REPLY__INIT;
	Peftd__V1__Job job = make_job(s, 7), *job_list[] = {&job};
	Peftd__V1__InferenceTimes times = PEFTD__V1__INFERENCE_TIMES__INIT;
	Peftd__V1__JobSpec shown = PEFTD__V1__JOB_SPEC__INIT;
	Peftd__V1__TrainSpec train = PEFTD__V1__TRAIN_SPEC__INIT;
	Peftd__V1__EvalReply eval = PEFTD__V1__EVAL_REPLY__INIT;
	uint64_t running[] = {7};
	switch (req->what_case) {
	case PEFTD__V1__REQUEST__WHAT_STATUS:
		status.has_device = status.has_trainer_state = true;
		status.device = proto_bytes("cpu");
		status.trainer_state = proto_bytes("idle");
		status.n_running = 1;
		status.running = running;
		reply.what_case = PEFTD__V1__REPLY__WHAT_DAEMON_STATUS;
		reply.daemon_status = &status;
		break;
	case PEFTD__V1__REQUEST__WHAT_MODEL_ADD:
		snprintf(s->last, sizeof(s->last), "%.*s", (int)req->model_add->path.len,
			req->model_add->path.data);
		model.name = req->model_add->name;
		reply.what_case = PEFTD__V1__REPLY__WHAT_MODEL;
		reply.model = &model;
		break;
	case PEFTD__V1__REQUEST__WHAT_MODEL_LIST:
		model.name = proto_bytes("smollm2");
		model_list.n_models = 1;
		model_list.models = models;
		reply.what_case = PEFTD__V1__REPLY__WHAT_MODEL_LIST;
		reply.model_list = &model_list;
		break;
	case PEFTD__V1__REQUEST__WHAT_DATASET_PUT:
		snprintf(s->last, sizeof(s->last), "%.*s %.*s", (int)req->dataset_put->prompt_field.len,
			req->dataset_put->prompt_field.data, (int)req->dataset_put->completion_field.len,
			req->dataset_put->completion_field.data);
		dataset.name = req->dataset_put->name;
		dataset.blob = req->dataset_put->blob;
		reply.what_case = PEFTD__V1__REPLY__WHAT_DATASET;
		reply.dataset = &dataset;
		break;
	case PEFTD__V1__REQUEST__WHAT_JOB_LIST:
		snprintf(s->last, sizeof(s->last), "%d %d", req->job_list->has_state
			? (int)req->job_list->state : -1, req->job_list->mine);
		jobs.n_jobs = 1;
		jobs.jobs = job_list;
		reply.what_case = PEFTD__V1__REPLY__WHAT_JOB_LIST;
		reply.job_list = &jobs;
		break;
	case PEFTD__V1__REQUEST__WHAT_JOB_CONTROL:
		snprintf(s->last + strlen(s->last), sizeof(s->last) - strlen(s->last), " %d:%llu",
			(int)req->job_control->action, (unsigned long long)req->job_control->job);
		reply.what_case = PEFTD__V1__REPLY__WHAT_JOB;
		reply.job = &job;
		break;
	case PEFTD__V1__REQUEST__WHAT_JOB_SHOW:
		job.id = req->job_show->job;
		/* Job 7 has what newer ones have, the others are older. */
		times.has_tokens = times.has_passes = times.has_base_seconds = true;
		times.has_unmerged_seconds = times.has_merged_seconds = true;
		times.tokens = 32;
		times.passes = 9;
		times.base_seconds = 0.25;
		times.unmerged_seconds = 0.5;
		times.merged_seconds = 0.26;
		job.inference = job.id == 7 ? &times : NULL;
		/* They are the same but for their seeds; 42 and 43 have the same one. */
		train.has_seed = true;
		train.seed = job.id == 43 ? 42 : job.id;
		shown.train = &train;
		job.spec = &shown;
		reply.what_case = PEFTD__V1__REPLY__WHAT_JOB;
		reply.job = &job;
		break;
	case PEFTD__V1__REQUEST__WHAT_EVAL:
		snprintf(s->last, sizeof(s->last), "job %d uploaded %d", req->eval->adapter &&
			req->eval->adapter->has_job, req->eval->adapter && req->eval->adapter->uploaded);
		eval.has_loss = eval.has_tokens = eval.has_perplexity = true;
		eval.loss = 1.5;
		eval.tokens = 1000;
		eval.perplexity = 4.4816890703380645;
		reply.what_case = PEFTD__V1__REPLY__WHAT_EVAL;
		reply.eval = &eval;
		break;
	default:
		break;
	}
	fake_reply(f, req, &reply, NULL, 0);
}

static void handle(struct fake *f, const Peftd__V1__Request *req, const void *raw, size_t n)
{
	struct script *s = f->data;
	bool no_reply = req->what_case == PEFTD__V1__REQUEST__WHAT_CREDIT ||
		req->what_case == PEFTD__V1__REQUEST__WHAT_END_STREAM;
	if (no_reply) {
		return;
	}
	if (s->fail) {
		fake_fail(f, req, s->fail, s->text);
		return;
	}
	if (req->what_case == PEFTD__V1__REQUEST__WHAT_JOB_LIST && req->job_list->has_sweep) {
		list_sweep(f, req);
		return;
	}
	switch (req->what_case) {
	case PEFTD__V1__REQUEST__WHAT_WATCH:
		watch(f, req);
		break;
	case PEFTD__V1__REQUEST__WHAT_DATASET_INSPECT:
		inspect(f, req);
		break;
	case PEFTD__V1__REQUEST__WHAT_GENERATE:
		generate(f, req);
		break;
	case PEFTD__V1__REQUEST__WHAT_SUBMIT:
		submit(f, req);
		break;
	case PEFTD__V1__REQUEST__WHAT_SWEEP:
		sweep(f, req);
		break;
	case PEFTD__V1__REQUEST__WHAT_UPLOAD_BEGIN:
	case PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK:
		upload(f, req, raw, n);
		break;
	default:
		simple(f, req);
		break;
	}
}

static int setup(void **state)
{
	struct fake *f = malloc(sizeof(*f));
	struct script *s = calloc(1, sizeof(*s));
	s->final_state = PEFTD__V1__JOB_STATE__JOB_SUCCEEDED;
	fake_init(f, handle, s);
	fake_start(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fake *f = *state;
	fake_deinit(f);
	free(f->data);
	free(f);
	return 0;
}

static void write_file(const struct fake *f, const char *name, const char *text)
{
	char path[160];
	snprintf(path, sizeof(path), "%s/%s", f->dir, name);
	FILE *file = fopen(path, "w");
	assert_non_null(file);
	fputs(text, file);
	fclose(file);
}

/* ---- tests ------------------------------------------------------------------------------- */

static void test_usage(void **state)
{
	struct fake *f = *state;
	expect(f, "--version", 0, "peftctl " PEFTD_VERSION "\n", NULL);
	expect(f, "--help", 0, NULL, NULL);
	expect(f, "help", 0, NULL, NULL);
	expect(f, "help submit", 0, NULL, NULL);
	expect(f, "submit --help", 0, NULL, NULL);
	expect(f, "dataset put --help", 0, NULL, NULL);
	expect(f, "", 2, "", "which command?");
	expect(f, "sumbit", 2, "", "did you mean 'submit'?");
	expect(f, "status now", 2, "", "one too many");
	expect(f, "status --jason", 2, "", "did you mean --json?");
	expect(f, "show", 2, "", "something is missing: peftctl show JOB");
	expect(f, "show seven", 2, "", "'seven' is no job");
	expect(f, "show 0", 2, "", "is no job");
	expect(f, "show -1", 2, "", "unknown option -1");
	expect(f, "watch 7 --from x", 2, "", "not a whole number");
	expect(f, "watch 7 --from", 2, "", "needs a value");
	expect(f, "dataset", 2, "", "dataset what? put, ls, show, rm, inspect");
	expect(f, "dataset push", 2, "", "no command 'dataset push'");
	expect(f, "dataset put d x --prompt-field q", 2, "", "go together");
	expect(f, "dataset inspect d", 2, "", "--model");
	expect(f, "submit", 2, "", "no model");
	expect(f, "submit --model m", 2, "", "no dataset");
	expect(f, "submit --model m --dataset d --priority urgent", 2, "", "low, normal, high");
	expect(f, "submit --model m --dataset d --set train.max_step=1", 2, "",
		"--set train.max_step=1: unknown key 'train.max_step'; did you mean 'max_steps'?");
	expect(f, "submit missing.yaml", 2, "", "missing.yaml: No such file");
	expect(f, "list --state walking", 2, "", "no such state");
	expect(f, "fetch 7 --format gguf", 2, "", "PEFT folders only");
	expect(f, "fetch 7 --format bin", 2, "", "there is: peft");
	expect(f, "eval --model m", 2, "", "--dataset");
	expect(f, "generate --model m", 2, "", "something is missing");
	expect(f, "generate --model m --temperature nan hi", 2, "", "a finite number");
	expect(f, "generate --model m --temperature inf hi", 2, "", "a finite number");
	expect(f, "generate --model m --temperature x hi", 2, "", "not a number");
	expect(f, "generate --model m --temperature -1 hi", 2, "", "0 or more");
	expect(f, "generate --model m --max-new-tokens 0 hi", 2, "", "at least 1");
	expect(f, "generate --model m --dtype f16 hi", 2, "", "f32 or bf16");
	expect(f, "eval --model m --dataset d --dtype f16", 2, "", "f32 or bf16");
	expect(f, "eval --model m --dataset d --max-length 0", 2, "", "at least 1");
	expect(f, "status --endpoint foo", 2, "", "an endpoint looks like ipc:///run/peftd/peftd.sock");
	expect(f, "status --endpoint=", 2, "", "an endpoint looks like ipc:///run/peftd/peftd.sock");
	expect(f, "status --endpoint ipc://", 2, "", "an endpoint looks like");
	expect(f, "fetch 7 -o no/such/dir/x", 1, "", "no/such/dir: there is no such directory");
	expect(f, "fetch 7 --merge -o no/such/dir/x/", 1, "",
		"no/such/dir: there is no such directory");
	expect(f, "--timeout 99999999 status", 2, "", "between 0 and 86400");
	assert_int_equal(f->requests, 0); /* none of these reaches the daemon */
}

static void test_exit_statuses(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	static const struct { int code, status; } cases[] = {
		{STATUS_INVALID, 1}, {STATUS_NOT_FOUND, 1}, {STATUS_CONFLICT, 1}, {STATUS_DENIED, 4},
		{STATUS_QUOTA, 4}, {STATUS_WONT_FIT, 4}, {STATUS_FAILED, 1}, {STATUS_INTERNAL, 1},
		{STATUS_DISK_FULL, 1}, {STATUS_VERSION, 1}, {STATUS_CANCELLED, 1}, {777, 1},
	};
	s->text = "that is\x1B[31m why";
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		s->fail = cases[i].code;
		expect(f, "status", cases[i].status, "", "peftctl: that is\\x1b[31m why\n");
		expect(f, "watch 7", cases[i].status, "", "that is");
		expect(f, "list", cases[i].status, "", "that is");
	}
	/* What the daemon finds is said of what set it. */
	write_file(f, "named.yaml", "model: m\ndataset: d\nname: n\n");
	s->fail = STATUS_INVALID;
	s->text = "name: too long";
	expect(f, "submit named.yaml", 1, "", "peftctl: named.yaml:3: name: too long");
	expect(f, "submit named.yaml --name x", 1, "", "peftctl: --name: name: too long");
	expect(f, "submit named.yaml --set name=x", 1, "", "peftctl: --set: name: too long");
	expect(f, "submit --model m --dataset d --name x", 1, "", "peftctl: --name: name: too long");
	s->text = "that is\x1B[31m why";

	struct ran r = {0};
	s->fail = STATUS_WONT_FIT;
	run(f, &r, NULL, "status --json");
	assert_int_equal(r.status, 4);
	json_t *v = parse_line(r.out), *e = json_object_get(v, "error");
	assert_string_equal(json_string_value(json_object_get(e, "code")), "wont_fit");
	assert_string_equal(json_string_value(json_object_get(e, "message")), "that is\x1B[31m why");
	assert_non_null(strstr(r.err, "peftctl: that is"));
	json_decref(v);

	int64_t begin = clock_monotonic_ns();
	run(f, &r, NULL, "--endpoint ipc:///tmp/peftd-test-nobody.sock --timeout 0.3 status");
	assert_int_equal(r.status, 3);
	assert_non_null(strstr(r.err, "no daemon answers at ipc:///tmp/peftd-test-nobody.sock"));
	assert_true(clock_monotonic_ns() - begin < 2000000000);
	run(f, &r, NULL, "status --endpoint tcp://[nonsense");
	assert_int_equal(r.status, 1);
	ran_clear(&r);
}

static void test_unavailable_in_the_end(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	s->fail = STATUS_UNAVAILABLE;
	s->text = "shutting down";
	expect(f, "status", 3, "", "shutting down");
	assert_true(f->requests > 3); /* it was tried for a while */
}

static void test_status_is_fast(void **state)
{
	struct fake *f = *state;
	int64_t best = INT64_MAX;
	expect(f, "status", 0, NULL, "");
	char *argv[] = {"peftctl", "status", NULL};
	FILE *out = tmpfile(), *err = tmpfile();
	/* The fastest of many: a busy machine slows most of them down, not all. */
	for (int i = 0; i < 200 && best >= 20000000; i++) {
		int status;
		int64_t begin = clock_monotonic_ns();
		pid_t pid = start(f, argv, NULL, out, err);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		best = min_i64(best, clock_monotonic_ns() - begin);
	}
	fclose(out);
	fclose(err);
	print_message("# peftctl status: %.1f ms\n", (double)best / 1e6);
	/* Sanitizers take their own time. */
	assert_true(getenv("PEFTD_TEST_SANITIZED") || best < 20000000);
}

static void test_status(void **state)
{
	struct fake *f = *state;
	struct ran r = {0};
	run(f, &r, NULL, "status --json");
	assert_int_equal(r.status, 0);
	json_t *v = parse_line(r.out);
	assert_string_equal(json_string_value(json_object_get(v, "device")), "cpu");
	assert_int_equal(json_integer_value(json_array_get(json_object_get(v, "running"), 0)), 7);
	json_decref(v);
	run(f, &r, NULL, "--json status");
	assert_int_equal(r.status, 0);
	json_decref(parse_line(r.out));
	ran_clear(&r);
}

static void test_submit(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	struct ran r = {0};
	write_file(f, "job.yaml", "model: m\ndataset: d\nlora: {r: 8}\ntrain: {learning_rate: 2e-4}\n");
	run(f, &r, NULL, "submit job.yaml --set train.learning_rate=1e-3 --dataset e --hold");
	assert_int_equal(r.status, 0);
	assert_string_equal(r.out, "42\n"); /* the id alone */
	assert_non_null(strstr(r.err, "12 rows are longer than max_length"));
	assert_string_equal(s->last, "m e lr 0.001 r 8 hold 1 plan 0 init  0");
	expect(f, "submit -q --model a -d b", 0, "42\n", "");
	assert_string_equal(s->last, "a b lr 0.0002 r 16 hold 0 plan 0 init  0");

	run(f, &r, "model: x\ndataset: y\n", "submit - --json");
	json_t *v = parse_line(r.out);
	assert_int_equal(json_integer_value(json_object_get(v, "job")), 42);
	json_decref(v);

	run(f, &r, NULL, "plan job.yaml");
	assert_int_equal(r.status, 0);
	assert_non_null(strstr(r.out, "optimizer state"));
	assert_non_null(strstr(r.out, "1.0 MiB"));
	assert_string_equal(s->last, "m d lr 0.0002 r 8 hold 0 plan 1 init  0");
	run(f, &r, NULL, "plan job.yaml --json");
	v = parse_line(r.out);
	assert_int_equal(json_integer_value(json_object_get(v, "total")), 1 << 20);
	json_decref(v);
	expect(f, "plan job.yaml --set train.batch_size=2000", 4, NULL, "");

	/* Watched to its end. */
	run(f, &r, NULL, "submit -q job.yaml --watch");
	assert_int_equal(r.status, 0);
	assert_int_equal(strncmp(r.out, "42\n", 3), 0);
	s->final_state = PEFTD__V1__JOB_STATE__JOB_FAILED;
	expect(f, "submit job.yaml --watch", 1, NULL, "job 42 is FAILED");
	ran_clear(&r);
}

static void test_init_adapter(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	char dir[160];
	snprintf(dir, sizeof(dir), "%s/start", f->dir);
	assert_int_equal(mkdir(dir, 0700), 0);
	expect(f, "submit -m m -d d --init-adapter start", 1, "", "adapter_config.json");
	write_file(f, "start/adapter_config.json", "{}");
	expect(f, "submit -m m -d d --init-adapter start", 1, "", "adapter_model.safetensors");
	write_file(f, "start/adapter_model.safetensors", "weights");
	expect(f, "submit -m m -d d --init-adapter start/", 0, "42\n", NULL);
	assert_string_equal(s->last, "m d lr 0.0002 r 16 hold 0 plan 0 init start 2");
	assert_memory_equal(s->adapter, "{}weights", 9);

	expect(f, "eval --model m --dataset d --adapter start", 0, NULL, "");
	assert_string_equal(s->last, "job 0 uploaded 1");
	expect(f, "eval --model m --dataset d --adapter 12", 0, NULL, "");
	assert_string_equal(s->last, "job 1 uploaded 0");
	expect(f, "eval --model m --dataset d --adapter 12x", 1, "", "12x: No such file");
}

static void test_sweep(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	struct ran r = {0};
	write_file(f, "job.yaml", "model: m\ndataset: d\nlora: {r: 8}\n");
	expect(f, "submit job.yaml --sweep lora.r=4,16 --sweep train.seed=1,2", 0, "s42\n", NULL);
	assert_string_equal(s->last, "[lora.r=4 train.seed=1: r 4 seed 1]"
		"[lora.r=4 train.seed=2: r 4 seed 2][lora.r=16 train.seed=1: r 16 seed 1]"
		"[lora.r=16 train.seed=2: r 16 seed 2]");
	/* One value is a sweep, too: what it is called does not depend on how many there are. */
	expect(f, "submit job.yaml --sweep lora.r=4", 0, "s42\n", NULL);
	run(f, &r, NULL, "submit job.yaml --sweep lora.r=4,8 --json");
	json_t *v = parse_line(r.out);
	assert_int_equal(json_integer_value(json_object_get(v, "sweep")), 42);
	assert_string_equal(json_string_value(json_object_get(v, "sweep_id")), "s42");
	json_decref(v);
	run(f, &r, NULL, "plan job.yaml --sweep lora.r=4,8");
	assert_int_equal(r.status, 0);
	assert_non_null(strstr(r.out, "lora.r=8"));
	assert_non_null(strstr(r.out, "8.0 MiB"));
	run(f, &r, NULL, "plan job.yaml --sweep lora.r=4,800 --json");
	assert_int_equal(r.status, 4);
	v = parse_line(strchr(r.out, '\n') + 1);
	assert_string_equal(json_string_value(json_object_get(v, "variant")), "lora.r=800");
	json_decref(v);
	expect(f, "submit job.yaml --sweep lora.r=4,x", 2, "", "'lora.r' must be a whole number");
	expect(f, "submit job.yaml --sweep lora.r", 2, "", "KEY=VALUE,VALUE");
	expect(f, "submit job.yaml --method ia3", 2, "", "'lora.r' is a setting of method lora");

	/* Where a job's id does, a sweep's does. */
	run(f, &r, NULL, "list s42");
	assert_int_equal(r.status, 0);
	assert_non_null(strstr(r.out, "s42"));
	assert_non_null(strstr(r.out, "lora.r=16"));
	expect(f, "list s41", 1, "", "no such sweep");
	expect(f, "list 42", 2, "", "'42' is a job");
	expect(f, "list seven", 2, "", "no job and no sweep");
	expect(f, "show s42", 2, "", "'s42' is no job");
	/* Those that have not ended, the last one first. */
	expect(f, "cancel s42", 0, "", NULL);
	assert_string_equal(s->last, " 0:44 0:43");
	expect(f, "hold s42", 0, "", NULL);
	assert_string_equal(s->last, " 1:44 1:43");
	expect(f, "release s42", 0, "", "no job for which there is anything to do");
	assert_string_equal(s->last, "");
	expect(f, "retry s42", 0, "", "no job for which there is anything to do");
	expect(f, "cancel s", 2, "", "no job and no sweep");
	expect(f, "cancel s0", 2, "", "no job and no sweep");

	run(f, &r, NULL, "watch s42 --json");
	assert_int_equal(r.status, 0);
	v = parse_line(r.out);
	assert_int_equal(json_integer_value(json_object_get(v, "job")), 42);
	json_decref(v);
	assert_non_null(strstr(r.out, "{\"job\":44,"));
	assert_non_null(strstr(r.err, "job 43, 2 of 3: lora.r=8"));
	expect(f, "watch s42 --from 3", 2, "", "--from counts the events of a job");
	s->final_state = PEFTD__V1__JOB_STATE__JOB_FAILED;
	run(f, &r, NULL, "watch s42");
	assert_int_equal(r.status, 1); /* but all of them were followed */
	assert_non_null(strstr(r.err, "job 44 is FAILED"));
	ran_clear(&r);
}

static void test_compare(void **state)
{
	struct fake *f = *state;
	struct ran r = {0};
	char path[200];
	run(f, &r, NULL, "compare 7 s42 43 --json");
	assert_int_equal(r.status, 0);
	static const int jobs[] = {7, 42, 43, 44}; /* each once */
	const char *line = r.out;
	for (size_t i = 0; i < ARRAY_LEN(jobs); i++) {
		json_t *v = parse_line(line);
		assert_int_equal(json_integer_value(json_object_get(v, "job")), jobs[i]);
		assert_true(json_real_value(json_object_get(v, "loss")) == 0.1);
		assert_true(json_real_value(json_object_get(v, "eval_loss")) == 2);
		assert_true(json_real_value(json_object_get(v, "tokens_per_second")) == 200);
		assert_true(json_real_value(json_object_get(v, "step_seconds_median")) == 0.5);
		assert_true(json_is_null(json_object_get(v, "memory_measured")));
		json_t *inference = json_object_get(v, "inference");
		assert_true(jobs[i] == 7 ? json_real_value(json_object_get(inference,
			"unmerged_seconds")) == 0.5
			: json_is_null(json_object_get(inference, "unmerged_seconds")));
		assert_true(jobs[i] == 7 ? json_real_value(json_object_get(inference,
			"merged_seconds")) == 0.26
			: json_is_null(json_object_get(inference, "merged_seconds")));
		json_decref(v);
		line = strchr(line, '\n') + 1;
	}
	/* They are the same but for their seeds, of which two jobs share one. */
	json_t *v = parse_line(line);
	assert_int_equal(json_array_size(json_object_get(v, "jobs")), 4);
	assert_int_equal(json_integer_value(json_object_get(v, "seeds")), 3);
	json_t *loss = json_object_get(v, "loss");
	assert_true(fabs(json_real_value(json_object_get(loss, "mean")) - 0.1) < 1e-12);
	assert_true(json_real_value(json_object_get(loss, "sd")) < 1e-12);
	json_decref(v);

	run(f, &r, NULL, "compare 42 43");
	assert_null(strstr(r.out, "MEAN ± SD OF"));

	run(f, &r, NULL, "compare 7 8 --html page.html");
	assert_int_equal(r.status, 0);
	assert_non_null(strstr(r.out, "MEAN ± SD OF"));
	assert_non_null(strstr(r.out, "FORWARD  MERGED"));
	assert_non_null(strstr(r.out, "2.00 x  1.04 x"));
	assert_non_null(strstr(r.out, "500 ms"));
	snprintf(path, sizeof(path), "%s/page.html", f->dir);
	FILE *file = fopen(path, "r");
	assert_non_null(file);
	char *page = slurp(file);
	assert_non_null(strstr(page, "</html>"));
	assert_non_null(strstr(page, "forward time, unmerged"));
	assert_non_null(strstr(page, "<td>1.0400</td>"));
	assert_non_null(strstr(page, "<polyline"));
	free(page);
	expect(f, "compare 7 --html missing/page.html", 1, "", "missing/page.html: No such file");
	expect(f, "compare", 2, "", "something is missing");
	ran_clear(&r);
}

static char *read_file(const struct fake *f, const char *name)
{
	char path[200];
	snprintf(path, sizeof(path), "%s/%s", f->dir, name);
	FILE *file = fopen(path, "r");
	assert_non_null(file);
	return slurp(file);
}

static mode_t kind_of(const struct fake *f, const char *name)
{
	struct stat st;
	char path[200];
	snprintf(path, sizeof(path), "%s/%s", f->dir, name);
	assert_int_equal(lstat(path, &st), 0);
	return st.st_mode;
}

/* Links stay, what is no regular file is written as it is, and the page comes before the table. */
static void test_page_places(void **state)
{
	struct fake *f = *state;
	char path[200], byte[16];
	write_file(f, "real.html", "old");
	snprintf(path, sizeof(path), "%s/real.html", f->dir);
	assert_int_equal(chmod(path, 0640), 0);
	snprintf(path, sizeof(path), "%s/link.html", f->dir);
	assert_int_equal(symlink("real.html", path), 0);
	expect(f, "compare 7 --html link.html", 0, NULL, "the page is link.html");
	assert_true(S_ISLNK(kind_of(f, "link.html")));
	assert_int_equal(kind_of(f, "real.html"), S_IFREG | 0640);
	_cleanup_(freep) char *page = read_file(f, "real.html");
	assert_non_null(strstr(page, "</html>"));

	snprintf(path, sizeof(path), "%s/dangling.html", f->dir);
	assert_int_equal(symlink("made.html", path), 0);
	expect(f, "compare 7 --html dangling.html", 0, NULL, NULL);
	assert_true(S_ISLNK(kind_of(f, "dangling.html")));
	_cleanup_(freep) char *made = read_file(f, "made.html");
	assert_non_null(strstr(made, "</html>"));

	snprintf(path, sizeof(path), "%s/pipe.html", f->dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a page fits a pipe */
	assert_true(fd >= 0);
	expect(f, "compare 7 --html pipe.html", 0, NULL, NULL);
	assert_true(S_ISFIFO(kind_of(f, "pipe.html")));
	assert_int_equal(read(fd, byte, 15), 15);
	assert_memory_equal(byte, "<!DOCTYPE html>", 15);
	close(fd);

	/* A device that takes nothing, by a link of the test's own. */
	if (access("/dev/full", W_OK) == 0) {
		snprintf(path, sizeof(path), "%s/full.html", f->dir);
		assert_int_equal(symlink("/dev/full", path), 0);
		int was = open("/dev/full", O_WRONLY | O_CLOEXEC);
		struct stat before, after;
		assert_int_equal(fstat(was, &before), 0);
		expect(f, "compare 7 --html full.html", 1, "", "full.html: No space left on device");
		assert_int_equal(stat("/dev/full", &after), 0);
		assert_true(S_ISCHR(after.st_mode) && before.st_ino == after.st_ino);
		close(was);
	}

	/* Nobody reads the table. */
	int ends[2];
	assert_int_equal(pipe(ends), 0);
	close(ends[0]);
	FILE *out = fdopen(ends[1], "w"), *err = tmpfile();
	char *argv[] = {"peftctl", "compare", "7", "--html", "early.html", NULL};
	assert_int_not_equal(wait_status(start(f, argv, NULL, out, err)), 0);
	fclose(out);
	fclose(err);
	_cleanup_(freep) char *early = read_file(f, "early.html");
	assert_non_null(strstr(early, "</html>"));

	/* Standard output itself, as /dev/stdout is: the page, then the table. */
	struct ran r = {0};
	snprintf(path, sizeof(path), "%s/stdout", f->dir);
	assert_int_equal(symlink("/proc/self/fd/1", path), 0);
	run(f, &r, NULL, "compare 7 --html stdout");
	assert_int_equal(r.status, 0);
	assert_int_equal(strncmp(r.out, "<!DOCTYPE html>", 15), 0);
	char *end = strstr(r.out, "</html>");
	assert_true(end && strstr(end, "STEP TIME"));
	ran_clear(&r);
	snprintf(path, sizeof(path), "%s/folder", f->dir);
	assert_int_equal(mkdir(path, 0700), 0);
	expect(f, "compare 7 --html folder", 1, "", "folder: Is a directory");
	rmdir(path);
}

static void test_watch(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	expect(f, "watch 7", 0,
		"2020-09-13 12:26:40  step 1/4  loss 0.10000  lr 2.00e-04  grad_norm 0.3333  200.0 tokens/s\n"
		"2020-09-13 12:26:40  step 1  eval_loss 2.0000\n"
		"2020-09-13 12:26:40  info: hello\\x07\n"
		"2020-09-13 12:26:40  SUCCEEDED\n", "");
	expect(f, "watch 7 --json --from 3", 0,
		"{\"seq\":3,\"wall_ns\":1600000000000000000,\"type\":\"log\",\"level\":\"info\","
		"\"text\":\"hello\\u0007\"}\n"
		"{\"seq\":4,\"wall_ns\":1600000000000000000,\"type\":\"state\",\"state\":\"SUCCEEDED\"}\n",
		"");
	s->final_state = PEFTD__V1__JOB_STATE__JOB_CANCELLED;
	expect(f, "watch 7", 1, NULL, "job 7 is CANCELLED");
	/* Beyond the last event there is still the job's state. */
	expect(f, "watch 7 --from 5", 1, "", "job 7 is CANCELLED");
}

static void test_interrupted_watch(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	s->final_state = -1;
	char *argv[] = {"peftctl", "watch", "7", "--json", NULL};
	FILE *out = tmpfile(), *err = tmpfile();
	pid_t pid = start(f, argv, NULL, out, err);
	struct stat st = {0};
	for (int i = 0; i < 1000 && st.st_size == 0; i++) {
		poll(NULL, 0, 10);
		assert_int_equal(fstat(fileno(out), &st), 0);
	}
	assert_true(st.st_size > 0); /* events appear when they happen, not when a buffer is full */
	assert_int_equal(kill(pid, SIGINT), 0);
	assert_int_equal(wait_status(pid), 130);
	_cleanup_(freep) char *text = slurp(err);
	assert_non_null(strstr(text, "interrupted; job 7 goes on"));
	fclose(out);
}

static void test_metrics_and_logs(void **state)
{
	struct fake *f = *state;
	expect(f, "metrics 7 --json", 0,
		"{\"step\":1,\"loss\":0.1,\"lr\":0.0002,\"grad_norm\":0.3333333333333333,\"tokens\":100,"
		"\"seconds\":0.5}\n{\"step\":1,\"eval_loss\":2.0}\n", "");
	expect(f, "logs 7", 0,
		"2020-09-13 12:26:40  info: hello\\x07\n2020-09-13 12:26:40  SUCCEEDED\n", "");
}

static void test_inspect(void **state)
{
	struct fake *f = *state;
	expect(f, "dataset inspect d --model m --json", 0,
		"{\"row\":5,\"input_ids\":[1,2,3],\"labels\":[-100,2,3]}\n", "1 rows, 3 tokens");
	struct ran r = {0};
	run(f, &r, NULL, "dataset inspect d --model m");
	assert_int_equal(r.status, 0);
	assert_non_null(strstr(r.out, "<s>|[ a\\n]\n  [\\x1b]\n"));
	ran_clear(&r);
}

static void test_generate(void **state)
{
	struct fake *f = *state;
	/* A pipe gets the bytes as they are. */
	expect(f, "generate --model m hi", 0, " one two\n three\x1B\n", "");
	struct ran r = {0};
	run(f, &r, "from standard input", "generate --model m --json -");
	assert_int_equal(r.status, 0);
	json_t *v = parse_line(r.out);
	assert_string_equal(json_string_value(json_object_get(v, "text")), " one two\n three\x1B");
	assert_string_equal(json_string_value(json_object_get(v, "finish_reason")), "stop");
	json_decref(v);
	ran_clear(&r);
}

static void test_others(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	struct ran r = {0};
	expect(f, "eval --model m --dataset d --json", 0,
		"{\"loss\":1.5,\"tokens\":1000,\"perplexity\":4.4816890703380645}\n", "");
	run(f, &r, NULL, "list");
	assert_non_null(strstr(r.out, "tune\\x1b[31m"));
	assert_string_equal(s->last, "-1 0");
	expect(f, "list --state held --mine --json", 0, NULL, "");
	assert_string_equal(s->last, "1 1");
	static const char *const actions[] = {"cancel", "hold", "release", "retry"};
	for (int i = 0; i < 4; i++) {
		char line[32], n[8];
		s->last[0] = '\0';
		snprintf(line, sizeof(line), "%s 7", actions[i]);
		snprintf(n, sizeof(n), " %d:7", i);
		expect(f, line, 0, "", "job 7 is SUCCEEDED");
		assert_string_equal(s->last, n);
	}
	/* A path that exists here is made absolute, a name of a cache is not. */
	write_file(f, "model.gguf", "x");
	char path[160];
	snprintf(path, sizeof(path), "%s/model.gguf", f->dir);
	expect(f, "model add m model.gguf", 0, NULL, "");
	assert_string_equal(s->last, path);
	expect(f, "model add m org/model", 0, NULL, "");
	assert_string_equal(s->last, "org/model");
	run(f, &r, NULL, "model ls");
	assert_non_null(strstr(r.out, "smollm2"));

	write_file(f, "rows.jsonl", "{}\n");
	expect(f, "dataset put d rows.jsonl --prompt-field q --completion-field a", 0, NULL, "");
	assert_string_equal(s->last, "q a");
	assert_memory_equal(s->adapter, "{}\n", 3);
	run(f, &r, "{\"text\":1}\n", "dataset put d -");
	assert_int_equal(r.status, 0);
	assert_memory_equal(s->adapter, "{\"text\":1}\n", 11);
	assert_non_null(strstr(r.out, "stdin"));
	expect(f, "compare 7 8 --json", 0, NULL, "");
	expect(f, "show 7", 0, NULL, "");
	run(f, &r, NULL, "show 7");
	assert_non_null(strstr(r.out, "forward     32 tokens in 250 ms with the bare base, 500 ms "
		"unmerged (2.00 of it), 260 ms merged (1.04)"));
	ran_clear(&r);
}

/* Runs it on a terminal of 60 columns until it ends, or shows `until`; then interrupts it. What the
 * terminal got. */
static char *on_terminal(const struct fake *f, const char *command, const char *until,
	int *ret_status)
{
	struct winsize size = {.ws_col = 60, .ws_row = 20};
	struct buf b = {0};
	int fd, status = 0;
	pid_t pid = forkpty(&fd, NULL, NULL, &size);
	assert_true(pid >= 0);
	if (pid == 0) {
		setenv("PEFTD_ENDPOINT", f->endpoint, 1);
		setenv("TERM", "xterm", 1);
		setenv("LC_ALL", "C.UTF-8", 1);
		unsetenv("NO_COLOR");
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	for (;;) {
		assert_int_equal(buf_reserve(&b, 4096), 0);
		ssize_t n = read(fd, b.data + b.len, 4096);
		if (n <= 0) {
			break; /* EIO: the other end has closed */
		}
		b.len += (size_t)n;
		if (until && strstr(buf_cstr(&b), until)) {
			until = NULL;
			assert_int_equal(write(fd, "\x03", 1), 1); /* Ctrl-C */
		}
	}
	close(fd);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	*ret_status = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
	return buf_steal(&b, NULL);
}

static void check_view(const char *text)
{
	assert_non_null(strstr(text, "\033[?25l"));                 /* the cursor hides */
	assert_non_null(strstr(text, "\033[?25h"));                 /* and comes back */
	assert_non_null(strstr(text, "job 7 tune\\x1b[31m"));       /* the name's escape does nothing */
	assert_null(strstr(text, "\033[31m"));
	assert_non_null(strstr(text, "] 1/4 25 %"));
	assert_non_null(strstr(text, "loss 0.1000"));
	assert_non_null(strstr(text, "eval_loss 2.000"));
	/* No line is longer than the terminal: it would wrap and spoil the next picture. */
	size_t columns = 0;
	for (const char *p = text; *p; p++) {
		if (*p == '\033') {
			p += strcspn(p, "ABCDHJKhlm");
			continue;
		}
		columns = *p == '\n' || *p == '\r' ? 0 : columns + ((*p & 0xC0) != 0x80);
		assert_true(columns <= 100); /* the interruption's sentence is not part of the picture */
	}
}

static void test_terminal(void **state)
{
	struct fake *f = *state;
	struct script *s = f->data;
	int status;
	char command[256];
	const char *exe = getenv("PEFTCTL");
	snprintf(command, sizeof(command), "exec '%s' watch 7", exe);
	_cleanup_(freep) char *done = on_terminal(f, command, NULL, &status);
	assert_int_equal(status, 0);
	check_view(done);
	assert_non_null(strstr(done, "SUCCEEDED"));

	s->final_state = -1;
	_cleanup_(freep) char *cut = on_terminal(f, command, "eval_loss", &status);
	assert_int_equal(status, 130);
	check_view(cut);
	assert_non_null(strstr(cut, "job 7 goes on"));

	/* Tokens trained on stand out in colour, and nothing of theirs reaches the terminal raw. */
	snprintf(command, sizeof(command), "exec '%s' dataset inspect d --model m", exe);
	_cleanup_(freep) char *rows = on_terminal(f, command, NULL, &status);
	assert_int_equal(status, 0);
	assert_non_null(strstr(rows, "<s>|\033[1;32m a\\n\033[0m"));
	assert_non_null(strstr(rows, "\033[1;32m\\x1b\033[0m"));

	snprintf(command, sizeof(command), "exec '%s' generate --model m hi", exe);
	_cleanup_(freep) char *text = on_terminal(f, command, NULL, &status);
	assert_int_equal(status, 0);
	assert_non_null(strstr(text, " three\\x1b"));
}

static void test_full_output(void **state)
{
	struct fake *f = *state;
	FILE *full = fopen("/dev/full", "w"), *err = tmpfile();
	if (!full) {
		SKIP("no /dev/full");
	}
	char *argv[] = {"peftctl", "metrics", "7", "--json", NULL};
	assert_int_equal(wait_status(start(f, argv, NULL, full, err)), 1);
	_cleanup_(freep) char *text = slurp(err);
	assert_non_null(strstr(text, "standard output: No space left"));
	fclose(full);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_usage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_exit_statuses, setup, teardown),
		cmocka_unit_test_setup_teardown(test_unavailable_in_the_end, setup, teardown),
		cmocka_unit_test_setup_teardown(test_status_is_fast, setup, teardown),
		cmocka_unit_test_setup_teardown(test_status, setup, teardown),
		cmocka_unit_test_setup_teardown(test_submit, setup, teardown),
		cmocka_unit_test_setup_teardown(test_init_adapter, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sweep, setup, teardown),
		cmocka_unit_test_setup_teardown(test_compare, setup, teardown),
		cmocka_unit_test_setup_teardown(test_page_places, setup, teardown),
		cmocka_unit_test_setup_teardown(test_watch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_interrupted_watch, setup, teardown),
		cmocka_unit_test_setup_teardown(test_metrics_and_logs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_inspect, setup, teardown),
		cmocka_unit_test_setup_teardown(test_generate, setup, teardown),
		cmocka_unit_test_setup_teardown(test_others, setup, teardown),
		cmocka_unit_test_setup_teardown(test_terminal, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full_output, setup, teardown),
	};
	return cmocka_run_group_tests_name("peftctl", tests, NULL, NULL);
}
