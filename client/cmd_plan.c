#include <stdio.h>

#include "client/jobargs.h"
#include "client/jsonw.h"
#include "client/planview.h"
#include "util/cleanup.h"

static int print_plan(struct ctl *ctl, const Peftd__V1__SubmitReply *s)
{
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_message(&j, &s->plan->base);
		int r = jsonw_print(&j, stdout);
		if (r < 0) {
			return ctl_fail(ctl, r, NULL);
		}
	} else {
		planview_print(s->plan);
	}
	bool refused = s->plan->has_decision && proto_equal(&s->plan->decision, "refuse");
	return ctl_finish(ctl, refused ? EXIT_REFUSED : EXIT_DONE);
}

int cmd_plan(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(jobargs_deinit) struct jobargs args = {0};
	_cleanup_(texts_deinit) struct texts operands = {0};
	struct opt opts[JOBARGS_OPTIONS];
	size_t n = jobargs_options(&args, false, opts);
	int status;
	if (args_parse(ctl, argc, argv, opts, n, 0, 1, &operands, &status) != 0) {
		return status;
	}
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	status = jobargs_send(ctl, &args, operands.n > 0 ? operands.items[0] : NULL, true, &reply);
	if (status != 0) {
		return status;
	}
	if (!reply->submit->plan) {
		struct errmsg err;
		return ctl_fail(ctl, errmsg_set(&err, STATUS_INTERNAL, "the daemon sent no plan"), &err);
	}
	return print_plan(ctl, reply->submit);
}
