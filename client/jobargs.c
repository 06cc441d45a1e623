#include "client/jobargs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/adapter.h"
#include "client/jobfile.h"
#include "client/spec.h"
#include "util/cleanup.h"
#include "util/util.h"

size_t jobargs_options(struct jobargs *a, bool submit, struct opt *opts)
{
	const struct opt all[JOBARGS_OPTIONS] = {
		{"model", 'm', OPT_TEXT, "NAME", "the base model", &a->model},
		{"dataset", 'd', OPT_TEXT, "NAME", "the dataset to train on", &a->dataset},
		{"eval-dataset", 0, OPT_TEXT, "NAME", "a dataset to evaluate on", &a->eval_dataset},
		{"method", 0, OPT_TEXT, "METHOD", "how to fine-tune (default lora)", &a->method},
		{"set", 's', OPT_TEXTS, "KEY=VALUE", "a setting, as in lora.r=8; repeatable", &a->sets},
		{"sweep", 0, OPT_TEXTS, "KEY=V,V,…", "a job for each value, as in lora.r=4,8; repeatable: for "
			"each combination", &a->sweeps},
		{"name", 'n', OPT_TEXT, "NAME", "a name for the job", &a->name},
		{"priority", 'p', OPT_TEXT, "CLASS", "low, normal or high", &a->priority},
		{"init-adapter", 0, OPT_TEXT, "DIR", "start from this adapter, a folder in PEFT format",
			&a->init_adapter},
		{"hold", 0, OPT_FLAG, NULL, "keep it from running until it is released", &a->hold},
		{"watch", 'w', OPT_FLAG, NULL, "follow it until it ends, as 'peftctl watch' does",
			&a->watch},
	};
	memcpy(opts, all, sizeof(all));
	return submit ? JOBARGS_OPTIONS : JOBARGS_OPTIONS - 2;
}

void jobargs_deinit(struct jobargs *a)
{
	texts_deinit(&a->sets);
	texts_deinit(&a->sweeps);
}

/* The options that stand for one key each. */
static int apply_option(Peftd__V1__JobSpec *spec, const char *key, const char *option,
	const char *value, struct errmsg *err)
{
	if (!value) {
		return 0;
	}
	int r = value[0] == '\0'
		? errmsg_set(err, STATUS_INVALID, "empty; leave it out if there is nothing to say")
		: spec_set(&spec->base, spec_field(spec->base.descriptor, key), value, SPEC_TEXT, key, err);
	return r > 0 ? errmsg_prefix(err, r, "--%s", option) : r;
}

struct key_option {
	const char *key, *option, *value; /* value: as given; NULL */
};
struct key_options {
	struct key_option at[7];
};

static struct key_options key_options(const struct jobargs *a)
{
	return (struct key_options){{
		{"model", "model", a->model},
		{"dataset", "dataset", a->dataset},
		{"eval_dataset", "eval-dataset", a->eval_dataset},
		{"method", "method", a->method},
		{"name", "name", a->name},
		{"priority", "priority", a->priority},
		{"init_adapter", "init-adapter", a->init_adapter},
	}};
}

static int apply_options(Peftd__V1__JobSpec *spec, const struct jobargs *a, struct errmsg *err)
{
	struct key_options options = key_options(a);
	int r = 0;
	for (size_t i = 0; i < a->sets.n && r == 0; i++) {
		r = spec_assign(spec, a->sets.items[i], err);
		r = r > 0 ? errmsg_prefix(err, r, "--set %.64s", a->sets.items[i]) : r;
	}
	for (size_t i = 0; i < ARRAY_LEN(options.at) && r == 0; i++) {
		struct key_option o = options.at[i];
		r = apply_option(spec, o.key, o.option, o.value, err);
	}
	return r;
}

/* Whether one of the assignments is to the setting that the first n bytes of `path` name. */
static bool assigns(const struct texts *assignments, const char *path, size_t n)
{
	for (size_t i = 0; i < assignments->n; i++) {
		if (strncmp(assignments->items[i], path, n) == 0 && assignments->items[i][n] == '=') {
			return true;
		}
	}
	return false;
}

/* A refusal that begins with the name of a setting gets what set it: the option, or the line of the
 * job file. */
static void point_at_source(const struct jobargs *a, const char *file, struct errmsg *err)
{
	char path[128];
	size_t n = strspn(err->text, "abcdefghijklmnopqrstuvwxyz0123456789_.");
	if (n == 0 || n >= sizeof(path) || err->text[n] != ':') {
		return;
	}
	memcpy(path, err->text, n);
	path[n] = '\0';
	if (assigns(&a->sweeps, path, n)) {
		errmsg_prefix(err, STATUS_INVALID, "--sweep");
		return;
	}
	struct key_options options = key_options(a);
	for (size_t i = 0; i < ARRAY_LEN(options.at); i++) {
		if (options.at[i].value && strcmp(options.at[i].key, path) == 0) {
			errmsg_prefix(err, STATUS_INVALID, "--%s", options.at[i].option);
			return;
		}
	}
	if (assigns(&a->sets, path, n)) {
		errmsg_prefix(err, STATUS_INVALID, "--set");
		return;
	}
	size_t line = file ? jobfile_line(file, path) : 0;
	if (line > 0) {
		errmsg_prefix(err, STATUS_INVALID, "%.200s:%zu", file, line);
	}
}

/* The jobs: one, or those of a sweep. */
static int read_specs(struct ctl *ctl, const struct jobargs *a, const char *file,
	struct sweep *ret)
{
	struct errmsg err = {0};
	_cleanup_(msg_freep) Peftd__V1__JobSpec *base = spec_new();
	int r = base ? 0 : -ENOMEM;
	if (r == 0 && file) {
		r = jobfile_read(file, base, &err);
	}
	r = r ? r : apply_options(base, a, &err);
	r = r ? r : sweep_expand(ret, base, &a->sweeps, &err);
	if (r > 0) {
		point_at_source(a, file, &err);
		return ctl_usage(ctl, "%s", err.text);
	}
	if (r < 0) {
		return ctl_fail(ctl, r, NULL);
	}
	for (size_t i = 0; i < ret->n; i++) {
		const Peftd__V1__JobSpec *spec = ret->jobs[i].spec;
		if (!spec->has_model || spec->model.len == 0) {
			return ctl_usage(ctl, "%s names no model: give --model NAME, or 'model:' in a job file",
				file ? file : "the command");
		}
		if (!spec->has_dataset || spec->dataset.len == 0) {
			return ctl_usage(ctl,
				"%s names no dataset: give --dataset NAME, or 'dataset:' in a job file",
				file ? file : "the command");
		}
	}
	return 0;
}

/* Sends the adapter that init_adapter names; what stays in the specifications is its folder's
 * name. */
static int send_init_adapter(struct ctl *ctl, struct sweep *jobs, struct source *folder)
{
	const Peftd__V1__JobSpec *first = jobs->jobs[0].spec;
	struct errmsg err = {0};
	struct progress p = ctl_progress(ctl);
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	_cleanup_(freep) char *dir = NULL;
	int r = proto_str(&first->init_adapter, "init_adapter", &dir, &err);
	if (r == 0) {
		r = adapter_open(folder, dir, &p, &err);
		r = r > 0 ? errmsg_prefix(&err, r, "init_adapter") : r;
	}
	if (r == 0) {
		r = transfer_upload(c, folder, &p, &err);
	}
	if (r != 0) {
		return ctl_fail(ctl, r, &err);
	}
	_cleanup_(freep) char *name = adapter_folder_name(dir);
	r = name ? 0 : -ENOMEM;
	for (size_t i = 0; i < jobs->n && r == 0; i++) {
		ProtobufCMessage *spec = &jobs->jobs[i].spec->base;
		r = spec_set(spec, spec_field(spec->descriptor, "init_adapter"), name, SPEC_TEXT,
			"init_adapter", &err);
	}
	return r == 0 ? 0 : ctl_fail(ctl, r, &err);
}

static int ask(struct ctl *ctl, const struct jobargs *a, const char *file,
	Peftd__V1__Request *req, Peftd__V1__Reply__WhatCase what, Peftd__V1__Reply **ret)
{
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	struct errmsg err = {0};
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	/* No limit: planning reads the dataset. */
	int r = client_call(c, req, -1, &reply, &err);
	if (r == STATUS_INVALID) {
		point_at_source(a, file, &err);
	}
	status = r == 0 ? ctl_expect(ctl, reply, what) : ctl_fail(ctl, r, &err);
	if (status == 0) {
		*ret = steal_ptr(reply);
	}
	return status;
}

static int ask_one(struct ctl *ctl, const struct jobargs *a, const char *file,
	const struct sweep_job *job, Peftd__V1__Blob *adapter, bool plan_only, Peftd__V1__Reply **ret)
{
	Peftd__V1__SubmitRequest submit = PEFTD__V1__SUBMIT_REQUEST__INIT;
	submit.spec = job->spec;
	submit.init_adapter = adapter;
	submit.has_hold = submit.hold = a->hold;
	submit.has_plan_only = submit.plan_only = plan_only;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_SUBMIT;
	req.submit = &submit;
	return ask(ctl, a, file, &req, PEFTD__V1__REPLY__WHAT_SUBMIT, ret);
}

static int ask_sweep(struct ctl *ctl, const struct jobargs *a, const char *file,
	const struct sweep *jobs, Peftd__V1__Blob *adapter, bool plan_only, Peftd__V1__Reply **ret)
{
	Peftd__V1__SweepMember members[SWEEP_MAX], *list[SWEEP_MAX];
	Peftd__V1__SweepRequest sweep = PEFTD__V1__SWEEP_REQUEST__INIT;
	for (size_t i = 0; i < jobs->n; i++) {
		members[i] = (Peftd__V1__SweepMember)PEFTD__V1__SWEEP_MEMBER__INIT;
		members[i].spec = jobs->jobs[i].spec;
		members[i].variant = proto_bytes(jobs->jobs[i].variant);
		list[i] = &members[i];
	}
	sweep.members = list;
	sweep.n_members = jobs->n;
	sweep.init_adapter = adapter;
	sweep.has_hold = sweep.hold = a->hold;
	sweep.has_plan_only = sweep.plan_only = plan_only;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_SWEEP;
	req.sweep = &sweep;
	return ask(ctl, a, file, &req, PEFTD__V1__REPLY__WHAT_SWEEP, ret);
}

int jobargs_send(struct ctl *ctl, const struct jobargs *a, const char *file, bool plan_only,
	struct sweep *ret_sweep, Peftd__V1__Reply **ret)
{
	_cleanup_(source_deinit) struct source folder = {0};
	int status = read_specs(ctl, a, file, ret_sweep);
	if (status != 0) {
		return status;
	}
	Peftd__V1__Blob *adapter = NULL;
	const Peftd__V1__JobSpec *first = ret_sweep->jobs[0].spec;
	if (first->has_init_adapter && first->init_adapter.len > 0) {
		status = send_init_adapter(ctl, ret_sweep, &folder);
		if (status != 0) {
			return status;
		}
		adapter = &folder.blob;
	}
	return a->sweeps.n == 0 ? ask_one(ctl, a, file, &ret_sweep->jobs[0], adapter, plan_only, ret)
		: ask_sweep(ctl, a, file, ret_sweep, adapter, plan_only, ret);
}
