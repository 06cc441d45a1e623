#include <stdio.h>
#include <string.h>

#include "client/format.h"
#include "client/jsonw.h"
#include "client/liveview.h"
#include "client/sweep.h"
#include "client/watch.h"
#include "util/cleanup.h"

DEFINE_CLEANUP(struct liveview *, liveview_free);

struct watch {
	struct ctl *ctl;
	struct jsonw *json;
	struct liveview *view; /* NULL unless live */
	uint64_t steps;
	uint64_t sweep_job; /* of a sweep: the one that is watched now */
	int state; /* the last one heard of; -1: none */
	char reason[512];
};

static void note_state(struct watch *w, int state, const ProtobufCBinaryData *reason)
{
	_cleanup_(freep) char *text = reason->len > 0 ? format_text(reason) : NULL;
	w->state = state;
	snprintf(w->reason, sizeof(w->reason), "%s", text ? text : "");
}

static int print_words(struct watch *w, const Peftd__V1__Event *e)
{
	char when[FORMAT_SIZE];
	_cleanup_(buf_deinit) struct buf b = {0};
	int r = watch_event_words(&b, e, w->steps);
	if (r == 0 && buf_cstr(&b)) {
		printf("%s  %s\n", format_time(when, e->wall_ns), (char *)b.data);
	}
	return r;
}

static int on_event(void *data, const Peftd__V1__Event *e)
{
	struct watch *w = data;
	if (e->what_case == PEFTD__V1__EVENT__WHAT_STATE) {
		note_state(w, (int)e->state->state, &e->state->reason);
	}
	if (w->view) {
		liveview_event(w->view, e);
		liveview_draw(w->view, false);
		return 0;
	}
	int r;
	if (w->ctl->json) {
		r = watch_event_json(w->json, w->sweep_job, e);
		r = r == 0 ? jsonw_print(w->json, stdout) : r;
	} else {
		r = print_words(w, e);
	}
	fflush(stdout); /* a line an event, when it happens */
	return r;
}

static void on_job(void *data, const Peftd__V1__Job *job)
{
	struct watch *w = data;
	w->steps = job->has_steps ? job->steps
		: job->plan && job->plan->has_steps ? job->plan->steps : w->steps;
	note_state(w, (int)job->state, &job->reason);
	if (w->view) {
		liveview_job(w->view, job);
	}
}

static void on_tick(void *data)
{
	struct watch *w = data;
	if (w->view) {
		liveview_draw(w->view, false);
	}
}

static void on_lost(void *data, bool lost)
{
	struct watch *w = data;
	if (w->view) {
		liveview_lost(w->view, lost);
	} else {
		ctl_note(w->ctl, lost ? "peftctl: the connection to the daemon is lost; trying again"
			: "peftctl: connected again");
	}
}

static int result(struct watch *w, uint64_t job)
{
	if (w->state == PEFTD__V1__JOB_STATE__JOB_SUCCEEDED) {
		return EXIT_DONE;
	}
	ctl_note(w->ctl, "peftctl: job %llu is %s%s%s", (unsigned long long)job,
		w->state >= 0 ? format_state(w->state) : "in an unknown state", w->reason[0] ? ": " : "",
		w->reason);
	return EXIT_REQUEST_FAILED;
}

/* Where the events asked for are gone already: what the daemon still knows, from there on. */
static int compacted(struct ctl *ctl, struct watch *w, uint64_t job, const struct errmsg *err,
	uint64_t *ret_after)
{
	ctl_note(ctl, "peftctl: %s", err->text);
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status = ctl_show_job(ctl, job, &reply);
	if (status == 0) {
		on_job(w, reply->job);
		*ret_after = reply->job->last_seq;
	}
	return status;
}

static int follow(struct ctl *ctl, uint64_t job, uint64_t after, bool in_sweep)
{
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	char interrupted[160];
	snprintf(interrupted, sizeof(interrupted),
		"interrupted; job %llu goes on. 'peftctl watch %llu' follows it again, 'peftctl cancel "
		"%llu' ends it", (unsigned long long)job, (unsigned long long)job, (unsigned long long)job);
	term_on_interrupt(interrupted);

	bool live = ctl->term.out_tty && !ctl->json && !ctl->quiet;
	_cleanup_(liveview_freep) struct liveview *view = NULL;
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	struct watch w = {.ctl = ctl, .json = &j, .state = -1, .sweep_job = in_sweep ? job : 0};
	struct event_stream_options o = {.job = job, .after = after, .follow = true,
		.tick_ms = live ? 200 : -1};
	struct event_handler h = {on_event, on_job, on_tick, on_lost, &w};
	if (live) {
		int r = liveview_new(&view, stdout, ctl->term.utf8);
		if (r < 0) {
			return ctl_fail(ctl, r, NULL);
		}
		w.view = view;
	}
	struct errmsg err = {0};
	int r = event_stream(c, &o, &h, &err);
	if (r == STATUS_COMPACTED) {
		status = compacted(ctl, &w, job, &err, &o.after);
		if (status != 0) {
			return status;
		}
		r = format_state_is_final(w.state) ? 0 : event_stream(c, &o, &h, &err);
	}
	if (view) {
		liveview_draw(view, true);
		liveview_free(steal_ptr(view));
	}
	if (r != 0) {
		return ctl_fail(ctl, r, &err);
	}
	return ctl_finish(ctl, result(&w, job));
}

int watch_job(struct ctl *ctl, uint64_t job, uint64_t after)
{
	return follow(ctl, job, after, false);
}

int watch_sweep(struct ctl *ctl, uint64_t sweep)
{
	_cleanup_(job_list_deinit) struct job_list jobs = {0};
	Peftd__V1__JobListRequest ask = PEFTD__V1__JOB_LIST_REQUEST__INIT;
	ask.has_sweep = true;
	ask.sweep = sweep;
	int status = ctl_list_jobs(ctl, &ask, &jobs);
	int worst = EXIT_DONE;
	/* In the order in which they run. What has ended already is told in its turn. */
	for (size_t i = 0; i < jobs.n && status == 0; i++) {
		_cleanup_(freep) char *variant = format_text(&jobs.jobs[i]->variant);
		ctl_note(ctl, "job %llu, %zu of %zu: %s", (unsigned long long)jobs.jobs[i]->id, i + 1,
			jobs.n, variant ? variant : "");
		status = follow(ctl, jobs.jobs[i]->id, 0, true);
		if (status == EXIT_REQUEST_FAILED) { /* it failed or was cancelled; the others go on */
			worst = status;
			status = 0;
		}
	}
	return status != 0 ? status : worst;
}

int cmd_watch(struct ctl *ctl, int argc, char **argv)
{
	struct opt_u64 from = {0};
	const struct opt opts[] = {
		{"from", 0, OPT_U64, "SEQ", "begin with the event of this number (default 1)", &from},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	struct target t;
	if (args_parse(ctl, argc, argv, opts, 1, 1, 1, &operands, &status) != 0 ||
		(status = ctl_target_operand(ctl, operands.items[0], &t)) != 0) {
		return status;
	}
	if (t.sweep && from.given) {
		return ctl_usage(ctl, "--from counts the events of a job; a sweep has several");
	}
	return t.sweep ? watch_sweep(ctl, t.id)
		: watch_job(ctl, t.id, from.given && from.value > 0 ? from.value - 1 : 0);
}
