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
}

/* The options that stand for one key each. */
static int apply_option(Peftd__V1__JobSpec *spec, const char *key, const char *option,
	const char *value, struct errmsg *err)
{
	if (!value) {
		return 0;
	}
	int r = spec_set(&spec->base, spec_field(spec->base.descriptor, key), value, SPEC_TEXT, key,
		err);
	return r > 0 ? errmsg_prefix(err, r, "--%s", option) : r;
}

static int apply_options(Peftd__V1__JobSpec *spec, const struct jobargs *a, struct errmsg *err)
{
	const struct { const char *key, *option, *value; } options[] = {
		{"model", "model", a->model},
		{"dataset", "dataset", a->dataset},
		{"eval_dataset", "eval-dataset", a->eval_dataset},
		{"method", "method", a->method},
		{"name", "name", a->name},
		{"priority", "priority", a->priority},
		{"init_adapter", "init-adapter", a->init_adapter},
	};
	int r = 0;
	for (size_t i = 0; i < a->sets.n && r == 0; i++) {
		r = spec_assign(spec, a->sets.items[i], err);
		r = r > 0 ? errmsg_prefix(err, r, "--set %.64s", a->sets.items[i]) : r;
	}
	for (size_t i = 0; i < ARRAY_LEN(options) && r == 0; i++) {
		r = apply_option(spec, options[i].key, options[i].option, options[i].value, err);
	}
	return r;
}

static int read_spec(struct ctl *ctl, const struct jobargs *a, const char *file,
	Peftd__V1__JobSpec *spec)
{
	struct errmsg err = {0};
	int r = file ? jobfile_read(file, spec, &err) : 0;
	if (r == 0) {
		r = apply_options(spec, a, &err);
	}
	if (r == 0) {
		r = spec_fill_defaults(spec);
	}
	if (r > 0) {
		return ctl_usage(ctl, "%s", err.text);
	}
	if (r < 0) {
		return ctl_fail(ctl, r, NULL);
	}
	if (!spec->has_model || spec->model.len == 0) {
		return ctl_usage(ctl, "%s names no model: give --model NAME, or 'model:' in a job file",
			file ? file : "the command");
	}
	if (!spec->has_dataset || spec->dataset.len == 0) {
		return ctl_usage(ctl,
			"%s names no dataset: give --dataset NAME, or 'dataset:' in a job file",
			file ? file : "the command");
	}
	return 0;
}

/* Sends the adapter that init_adapter names; what stays in the specification is its folder's
 * name. */
static int send_init_adapter(struct ctl *ctl, Peftd__V1__JobSpec *spec, struct source *folder)
{
	struct errmsg err = {0};
	struct progress p = ctl_progress(ctl);
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	_cleanup_(freep) char *dir = NULL;
	int r = proto_str(&spec->init_adapter, "init_adapter", &dir, &err);
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
	r = name ? spec_set(&spec->base, spec_field(spec->base.descriptor, "init_adapter"), name,
		SPEC_TEXT, "init_adapter", &err) : -ENOMEM;
	return r == 0 ? 0 : ctl_fail(ctl, r, &err);
}

int jobargs_send(struct ctl *ctl, const struct jobargs *a, const char *file, bool plan_only,
	Peftd__V1__Reply **ret)
{
	_cleanup_(msg_freep) Peftd__V1__JobSpec *spec = spec_new();
	_cleanup_(source_deinit) struct source folder = {0};
	int status = spec ? read_spec(ctl, a, file, spec) : ctl_fail(ctl, -ENOMEM, NULL);
	if (status != 0) {
		return status;
	}
	Peftd__V1__SubmitRequest submit = PEFTD__V1__SUBMIT_REQUEST__INIT;
	if (spec->has_init_adapter && spec->init_adapter.len > 0) {
		status = send_init_adapter(ctl, spec, &folder);
		if (status != 0) {
			return status;
		}
		submit.init_adapter = &folder.blob;
	}
	submit.spec = spec;
	submit.has_hold = submit.hold = a->hold;
	submit.has_plan_only = submit.plan_only = plan_only;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_SUBMIT;
	req.submit = &submit;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	/* No limit: planning reads the dataset. */
	status = ctl_call(ctl, &req, -1, &reply);
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_SUBMIT);
	}
	if (status == 0) {
		*ret = steal_ptr(reply);
	}
	return status;
}
