#include "client/ctl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/jsonw.h"
#include "util/cleanup.h"
#include "util/util.h"

const struct command ctl_commands[] = {
	{"status", "", "Show the daemon, its device, memory, models and jobs", NULL, cmd_status},
	{"model", "add NAME PATH | pull ORG/NAME | ls | show NAME | rm NAME",
		"Fetch, register and list base models",
		"PATH is on the daemon's machine: a Hugging Face folder (config.json, tokenizer.json,\n"
		"*.safetensors), a name from the local Hugging Face cache, or a .gguf file.", cmd_model},
	{"dataset", "put NAME FILE... | ls | show NAME | rm NAME | inspect NAME",
		"Upload, list and inspect datasets",
		"FILEs hold JSON Lines with the keys prompt and completion, or messages, or text, or\n"
		"others: see 'peftctl dataset put --help'. 'peftctl dataset inspect --help' tells about\n"
		"looking at tokens.", cmd_dataset},
	{"plan", "[FILE]", "Show what a job would need, without queueing it",
		"Takes the arguments of submit.", cmd_plan},
	{"submit", "[FILE]", "Queue a job; prints its id",
		"FILE is a job file in YAML or JSON, '-' is standard input. Options override it:\n"
		"  peftctl submit job.yaml --set train.learning_rate=1e-4 --set lora.r=8", cmd_submit},
	{"list", "[SWEEP...]", "List jobs: all, or those of sweeps", NULL, cmd_list},
	{"show", "JOB", "Show everything about one job", NULL, cmd_show},
	{"watch", "JOB|SWEEP", "Follow a job's progress, or a sweep's, until it ends",
		"On a terminal a live view, on a pipe one line an event. Ctrl-C leaves the job running.\n"
		"Exit status: 0 when the job succeeded, 1 when it failed or was cancelled.", cmd_watch},
	{"metrics", "JOB", "Print every recorded step",
		"With --json a line a step, with the keys step, loss, lr, grad_norm, tokens and seconds,\n"
		"and for evaluations with step and eval_loss.", cmd_metrics},
	{"logs", "JOB", "Print a job's log", NULL, cmd_logs},
	{"cancel", "JOB|SWEEP", "End a job, or those of a sweep", NULL, cmd_control},
	{"hold", "JOB|SWEEP", "Keep a job from running until it is released", NULL, cmd_control},
	{"release", "JOB|SWEEP", "Let a held job run", NULL, cmd_control},
	{"retry", "JOB|SWEEP", "Queue a failed or cancelled job again, from its last checkpoint", NULL,
		cmd_control},
	{"fetch", "JOB", "Bring the adapter of a job here, as a folder",
		"The folder is complete from the moment it has its name. An interrupted fetch goes on\n"
		"where it was when it is repeated.", cmd_fetch},
	{"eval", "--model M --dataset D", "Measure the loss of a model on a dataset",
		"--adapter takes a job's id or a folder in PEFT format (write ./3 for a folder named 3).\n"
		"With --json one object with the keys loss, tokens and perplexity, and those of what was\n"
		"asked for: shots, exact_match, last_number, rouge1, rouge2, rouge_l, answers, new_tokens.",
		cmd_eval},
	{"generate", "--model M PROMPT", "Continue a text",
		"PROMPT '-' is standard input. --adapter takes a job's id or a folder in PEFT format.\n"
		"Several prompts are answered together, each as if it were alone. With --json one object each:\n"
		"text, prompt_tokens, new_tokens, finish_reason, seconds (of the request); of several index, from\n"
		"0; with an adapter its name, switch_seconds and adapter_was_here.",
		cmd_generate},
	{"compare", "JOB|SWEEP...", "Show the trade-offs of jobs side by side",
		"Of jobs that differ in train.seed alone, mean and standard deviation come below.\n"
		"With --on DATASET tuning is held against prompting: adapters, and the base with examples.",
		cmd_compare},
};

const size_t ctl_n_commands = ARRAY_LEN(ctl_commands);

const struct command *ctl_find_command(const char *name, const char **ret_nearest)
{
	unsigned best = 3;
	*ret_nearest = NULL;
	for (size_t i = 0; i < ctl_n_commands; i++) {
		unsigned d = edit_distance(name, ctl_commands[i].name);
		if (d == 0 && strcmp(name, ctl_commands[i].name) == 0) {
			return &ctl_commands[i];
		}
		if (d < best) {
			best = d;
			*ret_nearest = ctl_commands[i].name;
		}
	}
	return NULL;
}

static int exit_status(int code)
{
	switch (code) {
	case STATUS_UNAVAILABLE:
	case CLIENT_LOST:
		return EXIT_NO_DAEMON;
	case STATUS_DENIED:
	case STATUS_QUOTA:
	case STATUS_WONT_FIT:
		return EXIT_REFUSED;
	default:
		return EXIT_REQUEST_FAILED;
	}
}

static void print_error(struct ctl *ctl, const char *code, const char *text)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	fflush(stdout);
	if (term_escape(&b, text, strlen(text), TERM_KEEP_LAYOUT) == 0 && buf_cstr(&b)) {
		fprintf(stderr, "peftctl: %s\n", (char *)b.data);
	}
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_open(&j, '{');
		jsonw_key(&j, "error");
		jsonw_open(&j, '{');
		jsonw_key(&j, "code");
		jsonw_string(&j, code);
		jsonw_key(&j, "message");
		jsonw_string(&j, text);
		jsonw_close(&j, '}');
		jsonw_close(&j, '}');
		jsonw_print(&j, stdout);
		fflush(stdout);
	}
}

int ctl_fail(struct ctl *ctl, int code, const struct errmsg *err)
{
	const char *text = err && err->text[0] ? err->text : NULL;
	if (code < 0) {
		print_error(ctl, "internal", text ? text : strerror(-code));
	} else if (code == CLIENT_LOST) {
		print_error(ctl, "unavailable", text ? text : "the connection was lost");
	} else {
		print_error(ctl, status_name(code), text ? text : status_name(code));
	}
	return exit_status(code);
}

int ctl_usage(struct ctl *ctl, const char *fmt, ...)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	char *text;
	va_list ap;
	va_start(ap, fmt);
	int n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0) {
		return EXIT_USAGE;
	}
	buf_appendf(&b, "%s\nSee 'peftctl %s%s--help'.", text, ctl->command ? ctl->command->name : "",
		ctl->command ? " " : "");
	free(text);
	print_error(ctl, "usage", buf_cstr(&b) ? (char *)b.data : "usage");
	return EXIT_USAGE;
}

void ctl_note(struct ctl *ctl, const char *fmt, ...)
{
	char *text;
	va_list ap;
	va_start(ap, fmt);
	int n = ctl->quiet ? -1 : vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0) {
		return;
	}
	_cleanup_(buf_deinit) struct buf b = {0};
	fflush(stdout);
	if (term_escape(&b, text, (size_t)n, TERM_KEEP_LAYOUT) == 0 && buf_cstr(&b)) {
		fprintf(stderr, "%s\n", (char *)b.data);
	}
	free(text);
}

/* A transport and something behind it. What is wrong with that, the daemon's side says. */
static bool endpoint_valid(const char *s)
{
	const char *rest = strstr(s, "://");
	return rest && rest > s && rest[3];
}

struct client *ctl_client(struct ctl *ctl, int *ret_status)
{
	if (ctl->client) {
		return ctl->client;
	}
	if (!ctl->endpoint) {
		ctl->endpoint = client_default_endpoint();
	}
	if (ctl->endpoint && !endpoint_valid(ctl->endpoint)) {
		*ret_status = ctl_usage(ctl, "endpoint '%s': not one; an endpoint looks like "
			"ipc:///run/peftd/peftd.sock", ctl->endpoint);
		return NULL;
	}
	int r = ctl->endpoint ? client_new(&ctl->client, ctl->endpoint, (int)(ctl->timeout * 1000))
		: -ENOMEM;
	if (r < 0) {
		*ret_status = ctl_fail(ctl, r, NULL);
		return NULL;
	}
	return ctl->client;
}

int ctl_call(struct ctl *ctl, Peftd__V1__Request *req, int timeout_ms, Peftd__V1__Reply **ret)
{
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	struct errmsg err = {0};
	int r = client_call(c, req, timeout_ms, ret, &err);
	return r == 0 ? 0 : ctl_fail(ctl, r, &err);
}

int ctl_expect(struct ctl *ctl, const Peftd__V1__Reply *reply, Peftd__V1__Reply__WhatCase what)
{
	if (reply->what_case == what) {
		return 0;
	}
	struct errmsg err;
	return ctl_fail(ctl, errmsg_set(&err, STATUS_INTERNAL,
		"the daemon's reply is of kind %d where %d belongs; are the versions the same?",
		(int)reply->what_case, (int)what), &err);
}

int ctl_show_job(struct ctl *ctl, uint64_t job, Peftd__V1__Reply **ret)
{
	Peftd__V1__JobRequest show = PEFTD__V1__JOB_REQUEST__INIT;
	show.job = job;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_JOB_SHOW;
	req.job_show = &show;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status = ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_JOB);
	}
	if (status == 0) {
		*ret = steal_ptr(reply);
	}
	return status;
}

int ctl_job_operand(struct ctl *ctl, const char *text, uint64_t *ret)
{
	return args_job(text, ret) ? 0 : ctl_usage(ctl,
		"'%s' is no job: jobs are named by the number that submit printed; 'peftctl list' shows "
		"them", text);
}

int ctl_finish(struct ctl *ctl, int status)
{
	if (fflush(stdout) == 0 && !ferror(stdout)) {
		return status;
	}
	struct errmsg err;
	bool json = ctl->json;
	ctl->json = false; /* there is no output left to say it on */
	status = ctl_fail(ctl, errmsg_set(&err, STATUS_FAILED, "standard output: %s", strerror(errno)),
		&err);
	ctl->json = json;
	return status;
}
