#include <stdio.h>
#include <string.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/sweep.h"
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

/* Whether there is something to do for a job that a sweep's list shows: of a sweep, jobs that have
 * ended are not cancelled, and so on, without a word. */
static bool applies(const Peftd__V1__Job *job, Peftd__V1__JobControlRequest__Action action)
{
	bool final = format_state_is_final((int)job->state);
	switch (action) {
	case PEFTD__V1__JOB_CONTROL_REQUEST__ACTION__RELEASE:
		return job->state == PEFTD__V1__JOB_STATE__JOB_HELD;
	case PEFTD__V1__JOB_CONTROL_REQUEST__ACTION__RETRY:
		return final && job->state != PEFTD__V1__JOB_STATE__JOB_SUCCEEDED;
	default:
		return !final && job->state != PEFTD__V1__JOB_STATE__JOB_CANCELLING;
	}
}

/* The last jobs first: they wait, and shall not start when the first one is out of their way. */
static int control_sweep(struct ctl *ctl, const struct texts *operands,
	Peftd__V1__JobControlRequest__Action action)
{
	_cleanup_(job_list_deinit) struct job_list jobs = {0};
	int status = ctl_target_jobs(ctl, operands, &jobs);
	size_t done = 0;
	for (size_t i = jobs.n; i-- > 0 && status == 0;) {
		if (applies(jobs.jobs[i], action)) {
			status = control(ctl, jobs.jobs[i]->id, action);
			done++;
		}
	}
	if (status == 0 && done == 0) {
		ctl_note(ctl, "sweep %s has no job for which there is anything to do", operands->items[0]);
	}
	return status == 0 ? ctl_finish(ctl, EXIT_DONE) : status;
}

int cmd_control(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	struct target t;
	if (args_parse(ctl, argc, argv, NULL, 0, 1, 1, &operands, &status) != 0 ||
		(status = ctl_target_operand(ctl, operands.items[0], &t)) != 0) {
		return status;
	}
	Peftd__V1__JobControlRequest__Action action = action_of(ctl->command->name);
	return t.sweep ? control_sweep(ctl, &operands, action) : control(ctl, t.id, action);
}
