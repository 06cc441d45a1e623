#include <errno.h>
#include <stdio.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/watch.h"
#include "util/cleanup.h"

struct metrics {
	struct ctl *ctl;
	struct jsonw json;
};

static void json_optional(struct jsonw *j, const char *key, bool has, double v)
{
	jsonw_key(j, key);
	if (has) {
		jsonw_double(j, v);
	} else {
		jsonw_null(j);
	}
}

static int print_step(struct metrics *m, const Peftd__V1__MetricsEvent *e)
{
	struct jsonw *j = &m->json;
	jsonw_open(j, '{');
	jsonw_key(j, "step");
	jsonw_u64(j, e->step);
	json_optional(j, "loss", e->has_loss, e->loss);
	json_optional(j, "lr", e->has_lr, e->lr);
	json_optional(j, "grad_norm", e->has_grad_norm, e->grad_norm);
	jsonw_key(j, "tokens");
	jsonw_u64(j, e->tokens);
	json_optional(j, "seconds", e->has_seconds, e->seconds);
	jsonw_close(j, '}');
	return jsonw_print(j, stdout);
}

static int print_eval(struct metrics *m, const Peftd__V1__EvalEvent *e)
{
	struct jsonw *j = &m->json;
	jsonw_open(j, '{');
	jsonw_key(j, "step");
	jsonw_u64(j, e->step);
	json_optional(j, "eval_loss", e->has_eval_loss, e->eval_loss);
	jsonw_close(j, '}');
	return jsonw_print(j, stdout);
}

static int on_event(void *data, const Peftd__V1__Event *e)
{
	struct metrics *m = data;
	bool step = e->what_case == PEFTD__V1__EVENT__WHAT_METRICS;
	bool eval = e->what_case == PEFTD__V1__EVENT__WHAT_EVAL;
	if (!step && !eval) {
		return 0;
	}
	if (m->ctl->json) {
		return step ? print_step(m, e->metrics) : print_eval(m, e->eval);
	}
	_cleanup_(buf_deinit) struct buf b = {0};
	int r = watch_event_words(&b, e, 0);
	if (r == 0 && buf_cstr(&b)) {
		puts((char *)b.data);
	}
	return r;
}

int cmd_metrics(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	uint64_t job;
	if (args_parse(ctl, argc, argv, NULL, 0, 1, 1, &operands, &status) != 0 ||
		(status = ctl_job_operand(ctl, operands.items[0], &job)) != 0) {
		return status;
	}
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	struct metrics m = {.ctl = ctl};
	struct event_stream_options o = {.job = job, .metrics_only = true, .tick_ms = -1};
	struct event_handler h = {.event = on_event, .data = &m};
	struct errmsg err = {0};
	int r = event_stream(c, &o, &h, &err);
	jsonw_deinit(&m.json);
	return ctl_finish(ctl, r == 0 ? EXIT_DONE : ctl_fail(ctl, r, &err));
}
