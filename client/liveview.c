#include "client/liveview.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/format.h"
#include "client/progress.h"
#include "client/watch.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	LOSSES_MAX = 512,  /* of the curve; halved when it is full */
	SPEED_WINDOW = 16, /* steps that the estimate of speed looks back on */
};

struct liveview {
	FILE *out;
	bool utf8, lost, dirty;
	uint64_t job, step, steps;
	int state;
	uint32_t attempt, queue_position;
	char *name, *reason, *log;
	double loss, lr, grad_norm, eval_loss;
	uint64_t eval_step, checkpoint_step;
	double *losses;
	size_t n_losses, stride, skipped; /* each kept loss stands for `stride` */
	struct { double seconds; uint64_t tokens, step, wall_ns; } recent[SPEED_WINDOW];
	size_t n_recent;
	int64_t drawn_ns;
	unsigned drawn_lines;
};

int liveview_new(struct liveview **ret, FILE *out, bool utf8)
{
	struct liveview *v = calloc(1, sizeof(*v));
	double *losses = calloc(LOSSES_MAX, sizeof(*losses));
	if (!v || !losses) {
		free(v);
		free(losses);
		return -ENOMEM;
	}
	v->out = out;
	v->utf8 = utf8;
	v->losses = losses;
	v->stride = 1;
	v->loss = v->eval_loss = NAN;
	term_cursor(false);
	*ret = v;
	return 0;
}

void liveview_free(struct liveview *v)
{
	if (!v) {
		return;
	}
	term_cursor(true);
	free(v->name);
	free(v->reason);
	free(v->log);
	free(v->losses);
	free(v);
}

/* ---- what is known ----------------------------------------------------------------------- */

static void replace_text(char **at, const ProtobufCBinaryData *b)
{
	free(*at);
	*at = b->len > 0 ? format_text(b) : NULL;
}

void liveview_job(struct liveview *v, const Peftd__V1__Job *job)
{
	v->job = job->id;
	v->state = (int)job->state;
	v->attempt = job->attempt;
	v->queue_position = job->queue_position;
	if (job->has_step) {
		v->step = job->step;
	}
	if (job->has_steps) {
		v->steps = job->steps;
	} else if (job->plan && job->plan->has_steps) {
		v->steps = job->plan->steps;
	}
	replace_text(&v->name, &job->name);
	replace_text(&v->reason, &job->reason);
	v->dirty = true;
}

static void add_loss(struct liveview *v, double loss)
{
	if (++v->skipped < v->stride) {
		return;
	}
	v->skipped = 0;
	if (v->n_losses == LOSSES_MAX) {
		for (size_t i = 0; i < LOSSES_MAX / 2; i++) {
			v->losses[i] = (v->losses[2 * i] + v->losses[2 * i + 1]) / 2;
		}
		v->n_losses = LOSSES_MAX / 2;
		v->stride *= 2;
	}
	v->losses[v->n_losses++] = loss;
}

static void on_metrics(struct liveview *v, const Peftd__V1__MetricsEvent *m, uint64_t wall_ns)
{
	if (v->n_recent > 0 && m->step <= v->recent[(v->n_recent - 1) % SPEED_WINDOW].step) {
		v->n_recent = 0; /* gone back to a checkpoint */
	}
	if (m->has_loss) {
		v->loss = m->loss;
		add_loss(v, m->loss);
	}
	v->lr = m->lr;
	v->grad_norm = m->grad_norm;
	if (m->has_seconds && m->seconds > 0) {
		size_t at = v->n_recent++ % SPEED_WINDOW;
		v->recent[at].seconds = m->seconds;
		v->recent[at].tokens = m->tokens;
		v->recent[at].step = m->step;
		v->recent[at].wall_ns = wall_ns;
	}
	v->step = m->step;
}

void liveview_event(struct liveview *v, const Peftd__V1__Event *e)
{
	switch (e->what_case) {
	case PEFTD__V1__EVENT__WHAT_STATE:
		v->state = (int)e->state->state;
		v->attempt = e->state->has_attempt ? e->state->attempt : v->attempt;
		replace_text(&v->reason, &e->state->reason);
		break;
	case PEFTD__V1__EVENT__WHAT_METRICS:
		on_metrics(v, e->metrics, e->wall_ns);
		break;
	case PEFTD__V1__EVENT__WHAT_EVAL:
		v->eval_loss = e->eval->eval_loss;
		v->eval_step = e->eval->step;
		break;
	case PEFTD__V1__EVENT__WHAT_LOG:
		replace_text(&v->log, &e->log->text);
		break;
	case PEFTD__V1__EVENT__WHAT_CHECKPOINT:
		v->checkpoint_step = e->checkpoint->step;
		break;
	default:
		break;
	}
	v->dirty = true;
}

void liveview_lost(struct liveview *v, bool lost)
{
	v->lost = lost;
	v->dirty = true;
	liveview_draw(v, true);
}

/* ---- the picture ------------------------------------------------------------------------- */

/* Tokens a second and seconds a step over the last steps; 0 while unknown. Steps are counted by the
 * clock, so that evaluations and checkpoints between them are part of the estimate. */
static void speed(const struct liveview *v, double *ret_tokens, double *ret_step)
{
	size_t n = v->n_recent < SPEED_WINDOW ? v->n_recent : SPEED_WINDOW;
	size_t oldest = v->n_recent - n, newest = v->n_recent - 1;
	double seconds = 0, tokens = 0;
	for (size_t i = 0; i < n; i++) {
		seconds += v->recent[i].seconds;
		tokens += (double)v->recent[i].tokens;
	}
	*ret_tokens = seconds > 0 ? tokens / seconds : 0;
	*ret_step = n > 0 ? seconds / (double)n : 0;
	oldest %= SPEED_WINDOW;
	newest %= SPEED_WINDOW;
	if (n > 1 && v->recent[newest].wall_ns > v->recent[oldest].wall_ns) {
		*ret_step = (double)(v->recent[newest].wall_ns - v->recent[oldest].wall_ns) / 1e9 /
			(double)(v->recent[newest].step - v->recent[oldest].step);
	}
}

/* Appends a line, cut to the terminal's width: a line that wraps would spoil the next drawing. */
static void put_line(struct buf *picture, struct buf *line, unsigned width, unsigned *lines)
{
	size_t columns = 0, at = 0;
	if (!buf_cstr(line)) {
		return;
	}
	while (at < line->len && columns < width) {
		at++;
		while (at < line->len && (line->data[at] & 0xC0) == 0x80) {
			at++;
		}
		columns++;
	}
	buf_append(picture, line->data, at);
	buf_append(picture, "\033[K\n", 4);
	line->len = 0;
	(*lines)++;
}

static void state_line(const struct liveview *v, struct buf *line)
{
	buf_appendf(line, "job %llu", (unsigned long long)v->job);
	if (v->name) {
		buf_appendf(line, " %s", v->name);
	}
	buf_appendf(line, "  %s", format_state(v->state));
	if (v->queue_position > 0 && v->state == PEFTD__V1__JOB_STATE__JOB_PENDING) {
		buf_appendf(line, ", number %u in the queue", v->queue_position);
	}
	if (v->attempt > 1) {
		buf_appendf(line, ", attempt %u", v->attempt);
	}
	if (v->reason) {
		buf_appendf(line, ": %s", v->reason);
	}
	if (v->lost) {
		buf_appendf(line, "  (connection lost, trying again)");
	}
}

static void bar_line(const struct liveview *v, struct buf *line, unsigned width)
{
	char eta[FORMAT_SIZE], rate[FORMAT_SIZE];
	double tokens, seconds;
	speed(v, &tokens, &seconds);
	unsigned bar = width > 70 ? 32 : width > 50 ? 16 : 8;
	double fraction = v->steps > 0 ? (double)v->step / (double)v->steps : 0;
	progress_bar(line, fraction, bar, v->utf8);
	buf_appendf(line, " %llu/%llu", (unsigned long long)v->step, (unsigned long long)v->steps);
	if (v->steps > 0) {
		buf_appendf(line, " %.0f %%", 100 * fraction);
	}
	if (tokens > 0) {
		buf_appendf(line, "  %s tokens/s", format_figure(rate, tokens, 4));
	}
	if (seconds > 0 && v->steps > v->step && !format_state_is_final(v->state)) {
		buf_appendf(line, "  ETA %s",
			format_duration(eta, seconds * (double)(v->steps - v->step)));
	}
}

static void loss_line(const struct liveview *v, struct buf *line)
{
	char t[FORMAT_SIZE];
	buf_appendf(line, "loss %s", format_figure(t, v->loss, 5));
	buf_appendf(line, "  lr %s", format_figure(t, v->lr, 3));
	buf_appendf(line, "  grad_norm %s", format_figure(t, v->grad_norm, 4));
	if (!isnan(v->eval_loss)) {
		buf_appendf(line, "  eval_loss %s", format_figure(t, v->eval_loss, 5));
		buf_appendf(line, " (step %llu)", (unsigned long long)v->eval_step);
	}
	if (v->checkpoint_step > 0) {
		buf_appendf(line, "  checkpoint %llu", (unsigned long long)v->checkpoint_step);
	}
}

static void curve_line(const struct liveview *v, struct buf *line, unsigned width)
{
	char from[FORMAT_SIZE], to[FORMAT_SIZE];
	format_figure(from, v->losses[0], 4);
	format_figure(to, v->losses[v->n_losses - 1], 4);
	unsigned room = (unsigned)(strlen(from) + strlen(to) + 4);
	buf_appendf(line, "%s ", from);
	progress_sparkline(line, v->losses, v->n_losses, width > room + 8 ? width - room : 8, v->utf8);
	buf_appendf(line, " %s", to);
}

void liveview_draw(struct liveview *v, bool now)
{
	int64_t t = clock_monotonic_ns();
	if (!now && (t - v->drawn_ns < 100000000 || (!v->dirty && t - v->drawn_ns < 1000000000))) {
		return;
	}
	unsigned width = term_width(fileno(v->out)), lines = 0;
	_cleanup_(buf_deinit) struct buf picture = {0}, line = {0};
	if (v->drawn_lines > 0) {
		buf_appendf(&picture, "\033[%uA\r", v->drawn_lines);
	}
	state_line(v, &line);
	put_line(&picture, &line, width, &lines);
	if (v->steps > 0 || v->step > 0) {
		bar_line(v, &line, width);
		put_line(&picture, &line, width, &lines);
	}
	if (!isnan(v->loss) || v->n_losses > 0) {
		loss_line(v, &line);
		put_line(&picture, &line, width, &lines);
	}
	if (v->n_losses > 1) {
		curve_line(v, &line, width);
		put_line(&picture, &line, width, &lines);
	}
	if (v->log) {
		buf_appendf(&line, "%s", v->log);
		put_line(&picture, &line, width, &lines);
	}
	/* A picture with fewer lines than the one before leaves nothing of it. */
	buf_append(&picture, "\033[J", 3);
	fwrite(picture.data, 1, picture.len, v->out);
	fflush(v->out);
	v->drawn_lines = lines;
	v->drawn_ns = t;
	v->dirty = false;
}
