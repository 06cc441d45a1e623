#include <stdio.h>

#include "client/jobargs.h"
#include "client/jsonw.h"
#include "client/planview.h"
#include "client/watch.h"
#include "util/cleanup.h"

/* `name`: what commands take. A sweep's is not the number in the reply, so that comes, too. */
static void print_reply(struct ctl *ctl, const ProtobufCMessage *reply, bool sweep,
	const char *name)
{
	if (!ctl->json) {
		puts(name);
		return;
	}
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_open(&j, '{');
	jsonw_members(&j, reply);
	if (sweep) {
		jsonw_key(&j, "sweep_id");
		jsonw_string(&j, name);
	}
	jsonw_close(&j, '}');
	jsonw_print(&j, stdout);
}

static int nothing_named(struct ctl *ctl)
{
	struct errmsg err;
	return ctl_fail(ctl, errmsg_set(&err, STATUS_INTERNAL, "the daemon named no job"), &err);
}

static int job_submitted(struct ctl *ctl, const struct jobargs *args,
	const Peftd__V1__SubmitReply *s)
{
	if (!s->has_job) {
		return nothing_named(ctl);
	}
	char name[32];
	snprintf(name, sizeof(name), "%llu", (unsigned long long)s->job);
	print_reply(ctl, &s->base, false, name);
	if (s->plan) {
		planview_note_rows(ctl, s->plan);
	}
	int status = ctl_finish(ctl, EXIT_DONE);
	return status == EXIT_DONE && args->watch ? watch_job(ctl, s->job, 0) : status;
}

static int sweep_submitted(struct ctl *ctl, const struct jobargs *args,
	const Peftd__V1__SweepReply *s)
{
	if (!s->has_sweep || s->sweep == 0) {
		return nothing_named(ctl);
	}
	char name[32];
	snprintf(name, sizeof(name), "s%llu", (unsigned long long)s->sweep);
	print_reply(ctl, &s->base, true, name);
	if (s->n_plans > 0) {
		planview_note_rows(ctl, s->plans[0]);
	}
	int status = ctl_finish(ctl, EXIT_DONE);
	return status == EXIT_DONE && args->watch ? watch_sweep(ctl, s->sweep) : status;
}

int cmd_submit(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(jobargs_deinit) struct jobargs args = {0};
	_cleanup_(texts_deinit) struct texts operands = {0};
	struct opt opts[JOBARGS_OPTIONS];
	size_t n = jobargs_options(&args, true, opts);
	int status;
	if (args_parse(ctl, argc, argv, opts, n, 0, 1, &operands, &status) != 0) {
		return status;
	}
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	_cleanup_(sweep_deinit) struct sweep jobs = {0};
	status = jobargs_send(ctl, &args, operands.n > 0 ? operands.items[0] : NULL, false, &jobs,
		&reply);
	if (status != 0) {
		return status;
	}
	return reply->what_case == PEFTD__V1__REPLY__WHAT_SWEEP
		? sweep_submitted(ctl, &args, reply->sweep) : job_submitted(ctl, &args, reply->submit);
}
