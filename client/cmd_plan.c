#include <stdio.h>

#include "client/format.h"
#include "client/jobargs.h"
#include "client/jsonw.h"
#include "client/planview.h"
#include "util/cleanup.h"
#include "util/util.h"

static bool is_refused(const Peftd__V1__Plan *p)
{
	return p->has_decision && proto_equal(&p->decision, "refuse");
}

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
	return ctl_finish(ctl, is_refused(s->plan) ? EXIT_REFUSED : EXIT_DONE);
}

static void json_plan(const struct sweep_job *job, const Peftd__V1__Plan *p)
{
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_open(&j, '{');
	jsonw_key(&j, "variant");
	jsonw_string(&j, job->variant);
	jsonw_members(&j, &p->base);
	jsonw_close(&j, '}');
	jsonw_print(&j, stdout);
}

static void plan_row(struct table *t, const struct sweep_job *job, const Peftd__V1__Plan *p)
{
	char a[FORMAT_SIZE];
	table_cell(t, "%s", job->variant);
	table_cell(t, "%s", format_count(a, p->trainable_parameters));
	table_cell(t, "%s", format_bytes(a, p->total));
	table_cell(t, "%llu", (unsigned long long)p->steps);
	table_cell(t, "%s", p->has_tokens_per_second ? format_figure(a, p->tokens_per_second, 3) : "-");
	table_cell(t, "%s", p->has_seconds ? format_duration(a, p->seconds) : "-");
	table_cell_text(t, &p->decision);
}

/* A line for each job of a sweep. */
static int print_plans(struct ctl *ctl, const struct sweep *jobs, const Peftd__V1__SweepReply *s)
{
	_cleanup_(table_deinit) struct table t = {.columns = 7, .right = 0x3E};
	static const char *const heads[] = {"VARIANT", "TRAINABLE", "MEMORY", "STEPS", "TOKENS/S",
		"TIME", "DECISION"};
	bool refused = false;
	for (size_t i = 0; i < ARRAY_LEN(heads); i++) {
		table_cell(&t, "%s", heads[i]);
	}
	for (size_t i = 0; i < s->n_plans && i < jobs->n; i++) {
		refused |= is_refused(s->plans[i]);
		if (ctl->json) {
			json_plan(&jobs->jobs[i], s->plans[i]);
		} else {
			plan_row(&t, &jobs->jobs[i], s->plans[i]);
		}
	}
	if (!ctl->json) {
		table_print(&t, stdout);
	}
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
	_cleanup_(sweep_deinit) struct sweep jobs = {0};
	status = jobargs_send(ctl, &args, operands.n > 0 ? operands.items[0] : NULL, true, &jobs,
		&reply);
	if (status != 0) {
		return status;
	}
	if (reply->what_case == PEFTD__V1__REPLY__WHAT_SWEEP) {
		return print_plans(ctl, &jobs, reply->sweep);
	}
	if (!reply->submit->plan) {
		struct errmsg err;
		return ctl_fail(ctl, errmsg_set(&err, STATUS_INTERNAL, "the daemon sent no plan"), &err);
	}
	return print_plan(ctl, reply->submit);
}
