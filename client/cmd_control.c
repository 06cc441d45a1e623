#include <stdio.h>
#include <string.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "util/cleanup.h"
#include "util/util.h"

static Peftd__V1__JobControlRequest__Action action_of(const char *name)
{
	static const struct {
		const char *name;
		Peftd__V1__JobControlRequest__Action action;
	} actions[] = {
		{"cancel", PEFTD__V1__JOB_CONTROL_REQUEST__ACTION__CANCEL},
		{"hold", PEFTD__V1__JOB_CONTROL_REQUEST__ACTION__HOLD},
		{"release", PEFTD__V1__JOB_CONTROL_REQUEST__ACTION__RELEASE},
		{"retry", PEFTD__V1__JOB_CONTROL_REQUEST__ACTION__RETRY},
	};
	size_t i = 0;
	while (i + 1 < ARRAY_LEN(actions) && strcmp(actions[i].name, name) != 0) {
		i++;
	}
	return actions[i].action;
}

static int control(struct ctl *ctl, uint64_t job, Peftd__V1__JobControlRequest__Action action)
{
	Peftd__V1__JobControlRequest m = PEFTD__V1__JOB_CONTROL_REQUEST__INIT;
	m.job = job;
	m.action = action;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_JOB_CONTROL;
	req.job_control = &m;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status = ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
	if (status != 0) {
		return status;
	}
	bool has_job = reply->what_case == PEFTD__V1__REPLY__WHAT_JOB;
	if (ctl->json && has_job) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_message(&j, &reply->job->base);
		jsonw_print(&j, stdout);
	} else if (has_job) {
		ctl_note(ctl, "job %llu is %s", (unsigned long long)job,
			format_state((int)reply->job->state));
	}
	return ctl_finish(ctl, EXIT_DONE);
}

int cmd_control(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	uint64_t job;
	if (args_parse(ctl, argc, argv, NULL, 0, 1, 1, &operands, &status) != 0 ||
		(status = ctl_job_operand(ctl, operands.items[0], &job)) != 0) {
		return status;
	}
	return control(ctl, job, action_of(ctl->command->name));
}
