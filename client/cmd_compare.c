#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/watch.h"
#include "util/cleanup.h"
#include "util/util.h"

/* What a job cost and what it brought. NaN: unknown. */
struct outcome {
	double loss, eval_loss; /* the last, and the lowest */
	double seconds, tokens; /* of all recorded steps */
};

static int on_event(void *data, const Peftd__V1__Event *e)
{
	struct outcome *o = data;
	if (e->what_case == PEFTD__V1__EVENT__WHAT_METRICS) {
		const Peftd__V1__MetricsEvent *m = e->metrics;
		o->loss = m->has_loss ? m->loss : o->loss;
		o->seconds += m->has_seconds ? m->seconds : 0;
		o->tokens += (double)m->tokens;
	} else if (e->what_case == PEFTD__V1__EVENT__WHAT_EVAL && e->eval->has_eval_loss) {
		o->eval_loss = fmin(o->eval_loss, e->eval->eval_loss);
	}
	return 0;
}

static int read_outcome(struct ctl *ctl, uint64_t job, struct outcome *ret)
{
	struct event_stream_options o = {.job = job, .metrics_only = true, .tick_ms = -1};
	struct event_handler h = {.event = on_event, .data = ret};
	struct errmsg err = {0};
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	*ret = (struct outcome){.loss = NAN, .eval_loss = NAN};
	int r = event_stream(c, &o, &h, &err);
	return r == 0 ? 0 : ctl_fail(ctl, r, &err);
}

static void json_row(struct jsonw *j, const Peftd__V1__Job *job, const struct outcome *o)
{
	const Peftd__V1__Plan *p = job->plan;
	jsonw_open(j, '{');
	jsonw_key(j, "job");
	jsonw_u64(j, job->id);
	jsonw_key(j, "name");
	jsonw_bytes(j, &job->name);
	jsonw_key(j, "method");
	if (job->spec) {
		jsonw_bytes(j, &job->spec->method);
	} else {
		jsonw_null(j);
	}
	jsonw_key(j, "state");
	jsonw_string(j, format_state((int)job->state));
	jsonw_key(j, "step");
	jsonw_u64(j, job->step);
	jsonw_key(j, "trainable_parameters");
	jsonw_u64(j, p ? p->trainable_parameters : 0);
	jsonw_key(j, "memory");
	jsonw_u64(j, p ? p->total : 0);
	jsonw_key(j, "loss");
	jsonw_double(j, o->loss);
	jsonw_key(j, "eval_loss");
	jsonw_double(j, o->eval_loss);
	jsonw_key(j, "seconds");
	jsonw_double(j, o->seconds);
	jsonw_key(j, "tokens_per_second");
	jsonw_double(j, o->tokens / o->seconds);
	jsonw_close(j, '}');
}

static void table_row(struct table *t, const Peftd__V1__Job *job, const struct outcome *o)
{
	static const ProtobufCBinaryData none;
	char a[FORMAT_SIZE];
	const Peftd__V1__Plan *p = job->plan;
	table_cell(t, "%llu", (unsigned long long)job->id);
	table_cell_text(t, &job->name);
	table_cell_text(t, job->spec ? &job->spec->method : &none);
	table_cell(t, "%s", format_state((int)job->state));
	table_cell(t, "%llu/%llu", (unsigned long long)job->step, (unsigned long long)job->steps);
	table_cell(t, "%s", p ? format_count(a, p->trainable_parameters) : "-");
	table_cell(t, "%s", p ? format_bytes(a, p->total) : "-");
	table_cell(t, "%s", isnan(o->loss) ? "-" : format_figure(a, o->loss, 4));
	table_cell(t, "%s", isnan(o->eval_loss) ? "-" : format_figure(a, o->eval_loss, 4));
	table_cell(t, "%s", o->seconds > 0 ? format_duration(a, o->seconds) : "-");
	table_cell(t, "%s", o->seconds > 0 ? format_figure(a, o->tokens / o->seconds, 4) : "-");
}

static int add_job(struct ctl *ctl, const char *operand, struct table *t, struct jsonw *j)
{
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	struct outcome o;
	uint64_t job;
	int status;
	if ((status = ctl_job_operand(ctl, operand, &job)) != 0 ||
		(status = ctl_show_job(ctl, job, &reply)) != 0 ||
		(status = read_outcome(ctl, job, &o)) != 0) {
		return status;
	}
	if (ctl->json) {
		json_row(j, reply->job, &o);
		jsonw_print(j, stdout);
	} else {
		table_row(t, reply->job, &o);
	}
	return 0;
}

int cmd_compare(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	_cleanup_(table_deinit) struct table t = {.columns = 11, .right = 1 | 0x7F0};
	static const char *const heads[] = {"JOB", "NAME", "METHOD", "STATE", "STEP", "TRAINABLE",
		"MEMORY", "LOSS", "BEST EVAL_LOSS", "TIME", "TOKENS/S"};
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 1, SIZE_MAX, &operands, &status) != 0) {
		return status;
	}
	for (size_t i = 0; i < ARRAY_LEN(heads); i++) {
		table_cell(&t, "%s", heads[i]);
	}
	for (size_t i = 0; i < operands.n && status == 0; i++) {
		status = add_job(ctl, operands.items[i], &t, &j);
	}
	if (status == 0 && !ctl->json) {
		table_print(&t, stdout);
	}
	return status == 0 ? ctl_finish(ctl, EXIT_DONE) : status;
}
