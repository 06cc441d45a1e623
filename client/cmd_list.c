#include <errno.h>
#include <stdio.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "util/cleanup.h"
#include "util/util.h"

static void add_job(struct table *t, const Peftd__V1__Job *job)
{
	char a[FORMAT_SIZE];
	table_cell(t, "%llu", (unsigned long long)job->id);
	table_cell_text(t, &job->name);
	table_cell_text(t, &job->owner);
	table_cell(t, "%s", format_state((int)job->state));
	if (job->has_steps && job->steps > 0) {
		table_cell(t, "%llu/%llu", (unsigned long long)job->step, (unsigned long long)job->steps);
	} else {
		table_cell(t, "-");
	}
	table_cell(t, "%s", job->has_loss ? format_figure(a, job->loss, 4) : "-");
	table_cell(t, "%s", format_time(a, job->submitted_wall_ns));
	table_cell_text(t, &job->reason);
}

static void take(struct ctl *ctl, struct table *t, const Peftd__V1__JobListReply *list)
{
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	for (size_t i = 0; i < list->n_jobs; i++) {
		if (ctl->json) {
			jsonw_message(&j, &list->jobs[i]->base);
			jsonw_print(&j, stdout);
		} else {
			add_job(t, list->jobs[i]);
		}
	}
}

static int list_jobs(struct ctl *ctl, struct client *c, const Peftd__V1__Request *req,
	struct table *t, struct errmsg *err)
{
	struct call *call = NULL;
	int r = client_start(c, req, NULL, 0, 0, &call, err);
	while (r == 0 && !call_finished(call)) {
		struct answer a = {0};
		r = client_next(c, call, CLIENT_QUICK_MS, &a, err);
		if (r == 0 && a.reply->what_case == PEFTD__V1__REPLY__WHAT_JOB_LIST) {
			take(ctl, t, a.reply->job_list);
		}
		answer_deinit(&a);
	}
	if (r == -ETIMEDOUT) {
		r = errmsg_set(err, STATUS_UNAVAILABLE, "the daemon does not answer; see its log");
	}
	client_end(c, call);
	return r;
}

int cmd_list(struct ctl *ctl, int argc, char **argv)
{
	const char *state_name = NULL;
	bool mine = false;
	const struct opt opts[] = {
		{"state", 0, OPT_TEXT, "S", "only jobs in this state, as in --state running", &state_name},
		{"mine", 0, OPT_FLAG, NULL, "only your own", &mine},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status, state = 0;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 0, 0, &operands, &status) != 0) {
		return status;
	}
	if (state_name && !format_parse_state(state_name, &state)) {
		return ctl_usage(ctl, "--state %s: no such state; states are pending, held, starting, "
			"running, preempting, cancelling, succeeded, failed, cancelled", state_name);
	}
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	uint8_t id[REQUEST_ID_SIZE];
	client_make_id(id);
	Peftd__V1__JobListRequest l = PEFTD__V1__JOB_LIST_REQUEST__INIT;
	l.has_state = state_name != NULL;
	l.state = (Peftd__V1__JobState)state;
	l.has_mine = l.mine = mine;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_JOB_LIST;
	req.job_list = &l;

	_cleanup_(table_deinit) struct table t = {.columns = 8, .right = 1 << 0 | 1 << 4 | 1 << 5};
	static const char *const heads[] = {"JOB", "NAME", "OWNER", "STATE", "STEP", "LOSS",
		"SUBMITTED", "REASON"};
	for (size_t i = 0; i < ARRAY_LEN(heads); i++) {
		table_cell(&t, "%s", heads[i]);
	}
	struct errmsg err = {0};
	int r = list_jobs(ctl, c, &req, &t, &err);
	if (r != 0) {
		return ctl_fail(ctl, r, &err);
	}
	if (!ctl->json) {
		table_print(&t, stdout);
	}
	return ctl_finish(ctl, EXIT_DONE);
}
