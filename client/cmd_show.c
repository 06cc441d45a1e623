#include <math.h>
#include <stdio.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/planview.h"
#include "util/cleanup.h"

static void text_line(const char *what, const ProtobufCBinaryData *b)
{
	_cleanup_(freep) char *s = format_text(b);
	if (s && s[0]) {
		printf("%-10s  %s\n", what, s);
	}
}

static void print_checkpoints(const Peftd__V1__Job *job)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	for (size_t i = 0; i < job->n_checkpoints; i++) {
		const Peftd__V1__Checkpoint *c = job->checkpoints[i];
		printf("%-10s  step %llu, %s%s%s%s%s\n", i == 0 ? "checkpoint" : "",
			(unsigned long long)c->step, format_bytes(a, c->blob->size),
			c->has_eval_loss ? ", eval_loss " : "",
			c->has_eval_loss ? format_figure(b, c->eval_loss, 5) : "",
			c->has_best && c->best ? ", the best" : "",
			c->has_final && c->final ? ", the last" : "");
	}
}

/* The specification as a job file would have it: JSON is YAML. */
static void print_spec(const Peftd__V1__JobSpec *spec)
{
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_message(&j, &spec->base);
	printf("%-10s  ", "spec");
	jsonw_print(&j, stdout);
}

static void print_outcome(const Peftd__V1__Outcome *o)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	if (o->has_best_eval_loss) {
		printf("%-10s  eval_loss %s, the lowest %s at step %llu\n", "quality",
			format_figure(a, o->eval_loss, 5), format_figure(b, o->best_eval_loss, 5),
			(unsigned long long)o->best_eval_step);
	}
	printf("%-10s  %s for %llu steps", "speed", format_duration(a, o->seconds),
		(unsigned long long)o->steps);
	if (o->seconds > 0) {
		printf(", %s tokens/s", format_figure(a, (double)o->tokens / o->seconds, 4));
	}
	if (o->has_step_seconds_median) {
		printf(", %s a step (median)", format_span(a, o->step_seconds_median));
	}
	puts("");
}

/* As the run reserved it; the plan, which says the same before, follows. */
static void print_measured(const Peftd__V1__Measured *m)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE], c[FORMAT_SIZE], d[FORMAT_SIZE], e[FORMAT_SIZE];
	printf("%-10s  weights %s, optimizer state %s, gradients %s, activations %s, temporary %s\n", "",
		format_bytes(a, m->base_weights + m->trainable_weights),
		format_bytes(b, m->optimizer_states), format_bytes(c, m->gradients),
		format_bytes(d, m->activations), format_bytes(e, m->temporary));
}

static double ratio(double v, double base)
{
	return base > 0 ? v / base : NAN;
}

static void print_inference(const Peftd__V1__InferenceTimes *t)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE], c[FORMAT_SIZE];
	printf("%-10s  %u tokens in %s ms with the bare base, %s ms unmerged (%.2f of it)", "forward",
		t->tokens, format_figure(a, 1e3 * t->base_seconds, 3),
		format_figure(b, 1e3 * t->unmerged_seconds, 3), ratio(t->unmerged_seconds,
			t->base_seconds));
	if (t->has_merged_seconds) {
		printf(", %s ms merged (%.2f)", format_figure(c, 1e3 * t->merged_seconds, 3),
			ratio(t->merged_seconds, t->base_seconds));
	}
	puts("");
}

static void print_job(const Peftd__V1__Job *job)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	printf("%-10s  %llu\n", "job", (unsigned long long)job->id);
	text_line("name", &job->name);
	text_line("owner", &job->owner);
	if (job->has_sweep) {
		printf("%-10s  s%llu, of %u jobs\n", "sweep", (unsigned long long)job->sweep,
			job->sweep_size);
		text_line("variant", &job->variant);
	}
	printf("%-10s  %s", "state", format_state((int)job->state));
	if (job->has_queue_position && job->queue_position > 0) {
		printf(", number %u in the queue", job->queue_position);
	}
	puts("");
	text_line("reason", &job->reason);
	printf("%-10s  %llu of %llu", "step", (unsigned long long)job->step,
		(unsigned long long)job->steps);
	if (job->has_loss) {
		printf(", loss %s", format_figure(a, job->loss, 5));
	}
	printf("\n%-10s  %u\n", "attempt", job->attempt);
	printf("%-10s  %s\n", "submitted", format_time(a, job->submitted_wall_ns));
	printf("%-10s  %s\n", "started", format_time(a, job->started_wall_ns));
	printf("%-10s  %s\n", "ended", format_time(a, job->ended_wall_ns));
	if (job->has_measured_arena || job->has_measured_peak_rss) {
		printf("%-10s  arena %s, process %s\n", "measured", format_bytes(a, job->measured_arena),
			format_bytes(b, job->measured_peak_rss));
	}
	if (job->measured) {
		print_measured(job->measured);
	}
	if (job->outcome) {
		print_outcome(job->outcome);
	}
	if (job->inference) {
		print_inference(job->inference);
	} else if (job->state == PEFTD__V1__JOB_STATE__JOB_SUCCEEDED) {
		printf("%-10s  -\n", "forward"); /* older than such records, or not to be measured */
	}
	print_checkpoints(job);
	if (job->plan) {
		planview_print(job->plan);
	}
	if (job->spec) {
		print_spec(job->spec);
	}
}

int cmd_show(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	int status;
	uint64_t job;
	if (args_parse(ctl, argc, argv, NULL, 0, 1, 1, &operands, &status) != 0 ||
		(status = ctl_job_operand(ctl, operands.items[0], &job)) != 0 ||
		(status = ctl_show_job(ctl, job, &reply)) != 0) {
		return status;
	}
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_message(&j, &reply->job->base);
		jsonw_print(&j, stdout);
	} else {
		print_job(reply->job);
	}
	return ctl_finish(ctl, EXIT_DONE);
}
