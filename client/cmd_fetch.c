#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/adapter.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/transfer.h"
#include "util/cleanup.h"
#include "util/util.h"

struct fetch_options {
	const char *output, *format;
	struct opt_u64 step;
	bool best, merge;
};

/* A copy without those at its end. */
static char *without_slashes(const char *path)
{
	char *dir = strdup(path);
	for (size_t n = dir ? strlen(dir) : 0; n > 1 && dir[n - 1] == '/'; n--) {
		dir[n - 1] = '\0';
	}
	return dir;
}

static int check_options(struct ctl *ctl, const struct fetch_options *o)
{
	if (o->format && strcmp(o->format, "gguf") == 0) {
		return ctl_usage(ctl, "--format gguf: this version writes PEFT folders only; llama.cpp's "
			"convert_lora_to_gguf.py makes a GGUF of one");
	}
	if (o->format && strcmp(o->format, "peft") != 0) {
		return ctl_usage(ctl, "--format %s: no such format; there is: peft", o->format);
	}
	if (o->step.given && o->best) {
		return ctl_usage(ctl, "--step and --best exclude each other");
	}
	if (o->output && !o->output[0]) {
		return ctl_usage(ctl, "-o needs the name of a folder");
	}
	struct errmsg err = {0};
	_cleanup_(freep) char *dir = o->output ? without_slashes(o->output) : NULL;
	int r = dir ? transfer_check_place(dir, &err) : o->output ? -ENOMEM : 0;
	return r ? ctl_fail(ctl, r, &err) : 0;
}

static int ask(struct ctl *ctl, uint64_t job, const struct fetch_options *o, Peftd__V1__Reply **ret)
{
	Peftd__V1__FetchRequest f = PEFTD__V1__FETCH_REQUEST__INIT;
	f.job = job;
	f.has_step = o->step.given;
	f.step = o->step.value;
	f.has_best = f.best = o->best;
	f.has_merge = f.merge = o->merge;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_FETCH;
	req.fetch = &f;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	/* Merging takes the time that it takes: the base is read and the result compared. */
	int status = ctl_call(ctl, &req, o->merge ? -1 : CLIENT_QUICK_MS, &reply);
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_FETCH);
	}
	if (status == 0 && !reply->fetch->blob) {
		struct errmsg err;
		status = ctl_fail(ctl, errmsg_set(&err, STATUS_INTERNAL, "the daemon names no content"),
			&err);
	}
	if (status == 0 && o->merge != (reply->fetch->merge != NULL)) {
		struct errmsg err;
		status = ctl_fail(ctl, errmsg_set(&err, STATUS_INTERNAL, "the daemon gives something else "
			"than what was asked for: update it, or leave --merge away"), &err);
	}
	if (status == 0) {
		*ret = steal_ptr(reply);
	}
	return status;
}

/* Where it goes: what -o says, what the daemon suggests if that is a name, or job-ID. */
static char *destination(const struct fetch_options *o, const Peftd__V1__FetchReply *f,
	uint64_t job)
{
	char *dir = NULL;
	if (o->output) {
		dir = without_slashes(o->output);
	} else if (!f->has_folder_name || proto_name(&f->folder_name, "folder", &dir, NULL) != 0) {
		dir = asprintf(&dir, "job-%llu", (unsigned long long)job) < 0 ? NULL : dir;
	}
	return dir;
}

/* How far the merged model is from base and adapter. */
static void print_report(struct ctl *ctl, const Peftd__V1__MergeReport *m)
{
	_cleanup_(buf_deinit) struct buf words = {0};
	const char *weights = (const char *)m->base_weights.data;
	if (m->has_base_weights &&
		term_escape(&words, weights, m->base_weights.len, 0) == 0 && buf_cstr(&words)) {
		ctl_note(ctl, "merged in float32 onto the base's weights (%s)", (char *)words.data);
	}
	ctl_note(ctl, "its logits differ from those of base and adapter by at most %.2g, on average "
		"%.2g (the largest is %.3g; %u positions in %u rows of the dataset)", m->drift_max,
			m->drift_mean, m->logit_max, m->positions, m->rows);
}

static void print_result(struct ctl *ctl, const struct download *d,
	const Peftd__V1__MergeReport *merge)
{
	if (!ctl->json) {
		if (merge) {
			print_report(ctl, merge);
		}
		if (d->was_there) {
			ctl_note(ctl, "%s is already there, complete and the same", d->dir);
		}
		_cleanup_(buf_deinit) struct buf b = {0};
		if (term_escape(&b, d->dir, strlen(d->dir), 0) == 0 && buf_cstr(&b)) {
			puts((char *)b.data);
		}
		return;
	}
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_open(&j, '{');
	jsonw_key(&j, "job");
	jsonw_u64(&j, d->job);
	jsonw_key(&j, "step");
	jsonw_u64(&j, d->step);
	jsonw_key(&j, "path");
	jsonw_string(&j, d->dir);
	jsonw_key(&j, "was_there");
	jsonw_bool(&j, d->was_there);
	jsonw_members(&j, &d->blob->base);
	if (merge) {
		jsonw_key(&j, "merge");
		jsonw_message(&j, &merge->base);
	}
	jsonw_close(&j, '}');
	jsonw_print(&j, stdout);
}

static int bring(struct ctl *ctl, uint64_t job, const Peftd__V1__FetchReply *f, const char *dir)
{
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	term_on_interrupt("interrupted; repeat the command to go on where it was");
	struct errmsg err = {0};
	struct progress p = ctl_progress(ctl);
	struct download d = {.job = job, .step = f->step, .blob = f->blob, .dir = dir,
		.merged = f->merge != NULL};
	int r = transfer_download(c, &d, &p, &err);
	if (r != 0) {
		return ctl_fail(ctl, r, &err);
	}
	print_result(ctl, &d, f->merge);
	return ctl_finish(ctl, EXIT_DONE);
}

int cmd_fetch(struct ctl *ctl, int argc, char **argv)
{
	struct fetch_options o = {0};
	const struct opt opts[] = {
		{"output", 'o', OPT_TEXT, "DIR", "where to put it (default: the job's name)", &o.output},
		{"step", 0, OPT_U64, "N", "the checkpoint of this step (default: the last)", &o.step},
		{"best", 0, OPT_FLAG, NULL, "the checkpoint with the lowest eval_loss", &o.best},
		{"format", 0, OPT_TEXT, "FORMAT", "peft, the only one in this version", &o.format},
		{"merge", 0, OPT_FLAG, NULL, "the base model with the adapter merged into it", &o.merge},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status;
	uint64_t job;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 1, 1, &operands, &status) != 0 ||
		(status = check_options(ctl, &o)) != 0 ||
		(status = ctl_job_operand(ctl, operands.items[0], &job)) != 0 ||
		(status = ask(ctl, job, &o, &reply)) != 0) {
		return status;
	}
	_cleanup_(freep) char *dir = destination(&o, reply->fetch, job);
	return dir ? bring(ctl, job, reply->fetch, dir) : ctl_fail(ctl, -ENOMEM, NULL);
}
