#include <errno.h>
#include <stdio.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/sweep.h"
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
	if (job->has_sweep) {
		table_cell(t, "s%llu", (unsigned long long)job->sweep);
	} else {
		table_cell(t, "-");
	}
	table_cell_text(t, job->has_reason && job->reason.len > 0 ? &job->reason : &job->variant);
}

static void print_list(struct ctl *ctl, const struct job_list *jobs)
{
	_cleanup_(table_deinit) struct table t = {.columns = 9, .right = 1 << 0 | 1 << 4 | 1 << 5};
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	static const char *const heads[] = {"JOB", "NAME", "OWNER", "STATE", "STEP", "LOSS",
		"SUBMITTED", "SWEEP", "REASON"};
	for (size_t i = 0; i < ARRAY_LEN(heads); i++) {
		table_cell(&t, "%s", heads[i]);
	}
	for (size_t i = 0; i < jobs->n; i++) {
		if (ctl->json) {
			jsonw_message(&j, &jobs->jobs[i]->base);
			jsonw_print(&j, stdout);
		} else {
			add_job(&t, jobs->jobs[i]);
		}
	}
	if (!ctl->json) {
		table_print(&t, stdout);
	}
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
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 0, SIZE_MAX, &operands, &status) != 0) {
		return status;
	}
	if (state_name && !format_parse_state(state_name, &state)) {
		return ctl_usage(ctl, "--state %s: no such state; states are pending, held, starting, "
			"running, preempting, cancelling, succeeded, failed, cancelled", state_name);
	}
	_cleanup_(job_list_deinit) struct job_list jobs = {0};
	Peftd__V1__JobListRequest l = PEFTD__V1__JOB_LIST_REQUEST__INIT;
	l.has_state = state_name != NULL;
	l.state = (Peftd__V1__JobState)state;
	l.has_mine = l.mine = mine;
	for (size_t i = 0; i == 0 || i < operands.n; i++) {
		struct target t = {0};
		if (operands.n > 0 && (status = ctl_target_operand(ctl, operands.items[i], &t)) != 0) {
			return status;
		}
		if (operands.n > 0 && !t.sweep) {
			return ctl_usage(ctl, "'%s' is a job; 'peftctl show %s' tells about it, and list takes "
				"sweeps", operands.items[i], operands.items[i]);
		}
		l.has_sweep = t.sweep;
		l.sweep = t.id;
		status = ctl_list_jobs(ctl, &l, &jobs);
		if (status != 0) {
			return status;
		}
	}
	print_list(ctl, &jobs);
	return ctl_finish(ctl, EXIT_DONE);
}
