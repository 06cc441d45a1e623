#include <stdio.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/watch.h"
#include "util/cleanup.h"

struct logs {
	struct ctl *ctl;
	struct jsonw json;
};

static int on_event(void *data, const Peftd__V1__Event *e)
{
	struct logs *l = data;
	int r;
	if (e->what_case != PEFTD__V1__EVENT__WHAT_LOG &&
		e->what_case != PEFTD__V1__EVENT__WHAT_STATE) {
		return 0;
	}
	if (l->ctl->json) {
		r = watch_event_json(&l->json, 0, e);
		r = r == 0 ? jsonw_print(&l->json, stdout) : r;
	} else {
		char when[FORMAT_SIZE];
		_cleanup_(buf_deinit) struct buf b = {0};
		r = watch_event_words(&b, e, 0);
		if (r == 0 && buf_cstr(&b)) {
			printf("%s  %s\n", format_time(when, e->wall_ns), (char *)b.data);
		}
	}
	fflush(stdout);
	return r;
}

int cmd_logs(struct ctl *ctl, int argc, char **argv)
{
	bool follow = false;
	const struct opt opts[] = {
		{"follow", 'f', OPT_FLAG, NULL, "go on until the job has ended", &follow},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	uint64_t job;
	if (args_parse(ctl, argc, argv, opts, 1, 1, 1, &operands, &status) != 0 ||
		(status = ctl_job_operand(ctl, operands.items[0], &job)) != 0) {
		return status;
	}
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	struct logs l = {.ctl = ctl};
	struct event_stream_options o = {.job = job, .logs_only = true, .follow = follow,
		.tick_ms = -1};
	struct event_handler h = {.event = on_event, .data = &l};
	struct errmsg err = {0};
	int r = event_stream(c, &o, &h, &err);
	jsonw_deinit(&l.json);
	return ctl_finish(ctl, r == 0 ? EXIT_DONE : ctl_fail(ctl, r, &err));
}
