#include <stdio.h>

#include "client/jobargs.h"
#include "client/jsonw.h"
#include "client/planview.h"
#include "client/watch.h"
#include "util/cleanup.h"

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
	status = jobargs_send(ctl, &args, operands.n > 0 ? operands.items[0] : NULL, false, &reply);
	if (status != 0) {
		return status;
	}
	const Peftd__V1__SubmitReply *s = reply->submit;
	if (!s->has_job) {
		struct errmsg err;
		return ctl_fail(ctl, errmsg_set(&err, STATUS_INTERNAL, "the daemon named no job"), &err);
	}
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_message(&j, &s->base);
		jsonw_print(&j, stdout);
	} else {
		printf("%llu\n", (unsigned long long)s->job);
	}
	if (s->plan) {
		planview_note_rows(ctl, s->plan);
	}
	status = ctl_finish(ctl, EXIT_DONE);
	return status == EXIT_DONE && args.watch ? watch_job(ctl, s->job, 0) : status;
}
