/*
 * The page of `peftctl compare --html`: one file that loads nothing and runs nothing, well-formed
 * as XML too, so that other programs can read it. The rows stand in it as tables, the plots are SVG.
 */

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/compare.h"
#include "client/format.h"
#include "client/plot.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { CURVE_POINTS = 400 }; /* of a drawn curve; more are averaged, some at a time */

static const char head[] =
	"<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
	"<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>peftd: jobs compared</title>\n"
	"<style>\n"
	"body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px;\n"
	"  padding: 0 1em; color: #222; background: #fff }\n"
	"table { border-collapse: collapse; font-size: 13px; margin: 1em 0 }\n"
	"th, td { padding: 3px 9px; border-bottom: 1px solid #ddd; text-align: right;\n"
	"  white-space: nowrap }\n"
	"th.l, td.l { text-align: left }\n"
	"svg { max-width: 100%; height: auto; margin: 0 1em 1em 0 }\n"
	"svg text { font: 12px system-ui, sans-serif; fill: #222 }\n"
	"svg .title { font-size: 15px; font-weight: 600 } svg .name { font-size: 11px }\n"
	"svg .grid { stroke: #e4e4e4 } svg .spread { stroke-width: 1.5 }\n"
	".key { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.4em }\n"
	"</style>\n</head>\n<body>\n";

static int escaped(struct buf *b, const ProtobufCBinaryData *t)
{
	return plot_text(b, (const char *)t->data, t->len);
}

/* ---- tables ------------------------------------------------------------------------------ */

static int cell(struct buf *b, const char *text)
{
	return buf_appendf(b, "<td>%s</td>", text);
}

static int figure(struct buf *b, double v)
{
	char a[FORMAT_SIZE];
	return cell(b, isfinite(v) ? format_figure(a, v, 5) : "–");
}

static int duration(struct buf *b, double v)
{
	char a[FORMAT_SIZE];
	return cell(b, isfinite(v) && v > 0 ? format_duration(a, v) : "–");
}

static int size(struct buf *b, bool has, uint64_t v)
{
	char a[FORMAT_SIZE];
	return cell(b, has ? format_bytes(a, v) : "–");
}

static int job_row(struct buf *b, const struct compare_row *row)
{
	static const ProtobufCBinaryData none;
	const Peftd__V1__Job *job = row->job;
	const Peftd__V1__Plan *p = job->plan;
	char a[FORMAT_SIZE];
	int r = buf_appendf(b, "<tr><td>%llu</td><td class=\"l\"><span class=\"key\" "
		"style=\"background:%s\"></span>", (unsigned long long)job->id,
		plot_color((unsigned)row->group));
	r = r ? r : escaped(b, &job->name);
	r = r ? r : buf_appendf(b, "</td><td class=\"l\">");
	r = r ? r : escaped(b, job->spec ? &job->spec->method : &none);
	r = r ? r : buf_appendf(b, "</td><td class=\"l\">");
	r = r ? r : escaped(b, &job->variant);
	r = r ? r : buf_appendf(b, "</td><td class=\"l\">%s</td>", format_state((int)job->state));
	r = r ? r : cell(b, p ? format_count(a, p->trainable_parameters) : "–");
	r = r ? r : figure(b, p && p->total_parameters > 0
		? 100 * (double)p->trainable_parameters / (double)p->total_parameters : NAN);
	r = r ? r : figure(b, row->loss);
	r = r ? r : figure(b, row->best_eval_loss);
	r = r ? r : figure(b, row->eval_loss);
	r = r ? r : duration(b, row->seconds);
	r = r ? r : figure(b, row->seconds > 0 ? row->tokens / row->seconds : NAN);
	r = r ? r : cell(b, row->step_seconds > 0 ? format_span(a, row->step_seconds) : "–");
	r = r ? r : cell(b, p && p->has_inference_flops_per_token
		? format_count(a, (uint64_t)p->inference_flops_per_token) : "–");
	r = r ? r : size(b, p && p->has_inference_bytes_per_token,
		p ? p->inference_bytes_per_token : 0);
	r = r ? r : cell(b, p && p->has_mergeable ? p->mergeable ? "yes" : "no" : "–");
	r = r ? r : figure(b, row->unmerged_ratio);
	r = r ? r : figure(b, row->merged_ratio);
	return r ? r : buf_appendf(b, "</tr>\n");
}

static int jobs_table(struct buf *b, const struct comparison *c)
{
	int r = buf_appendf(b, "<table id=\"jobs\">\n<tr><th>job</th><th class=\"l\">name</th><th "
		"class=\"l\">method</th><th class=\"l\">variant</th><th class=\"l\">state</th><th>trainable"
		"</th><th>%% of all</th><th>loss</th><th>best eval loss</th><th>last eval loss</th><th>time"
		"</th><th>tokens/s</th><th>step time, median</th><th>extra FLOPs a token</th><th>extra bytes"
		" a token</th><th>mergeable</th><th>forward time, unmerged, of the base's</th>"
		"<th>merged</th></tr>\n");
	for (size_t i = 0; i < c->n && r == 0; i++) {
		r = job_row(b, &c->rows[i]);
	}
	return r ? r : buf_appendf(b, "</table>\n");
}

static int memory_row(struct buf *b, uint64_t job, const char *what, const uint64_t parts[6])
{
	int r = buf_appendf(b, "<tr><td>%llu</td><td class=\"l\">%s</td>", (unsigned long long)job,
		what);
	for (size_t i = 0; i < 6 && r == 0; i++) {
		r = size(b, true, parts[i]);
	}
	return r ? r : buf_appendf(b, "</tr>\n");
}

static int memory_table(struct buf *b, const struct comparison *c)
{
	int r = buf_appendf(b, "<table id=\"memory\">\n<tr><th>job</th><th class=\"l\">memory</th><th>"
		"weights</th><th>optimizer</th><th>gradients</th><th>activations</th><th>temporary</th><th>"
		"total</th></tr>\n");
	for (size_t i = 0; i < c->n && r == 0; i++) {
		const Peftd__V1__Plan *p = c->rows[i].job->plan;
		const Peftd__V1__Measured *m = c->rows[i].job->measured;
		if (p) {
			r = memory_row(b, c->rows[i].job->id, "planned", (uint64_t[]){p->base_weights +
				p->trainable_weights, p->optimizer_states, p->gradients, p->activations,
				p->temporary, p->total});
		}
		if (r == 0 && m) {
			r = memory_row(b, c->rows[i].job->id, "measured", (uint64_t[]){m->base_weights +
				m->trainable_weights, m->optimizer_states, m->gradients, m->activations,
				m->temporary, m->base_weights + m->arena});
		}
	}
	return r ? r : buf_appendf(b, "</table>\n");
}

static int spread_cell(struct buf *b, struct spread s)
{
	char a[FORMAT_SIZE], d[FORMAT_SIZE];
	if (!isfinite(s.mean)) {
		return cell(b, "–");
	}
	return isfinite(s.sd) ? buf_appendf(b, "<td>%s ± %s</td>", format_figure(a, s.mean, 5),
		format_figure(d, s.sd, 3)) : cell(b, format_figure(a, s.mean, 5));
}

static int groups_table(struct buf *b, const struct comparison *c)
{
	bool any = false;
	for (size_t i = 0; i < c->n_groups; i++) {
		any = any || c->groups[i].seeds > 1;
	}
	if (!any) {
		return 0;
	}
	int r = buf_appendf(b, "<h2>Over seeds</h2>\n<p>Mean and standard deviation of jobs that differ "
		"in their seed alone.</p>\n<table id=\"seeds\">\n<tr><th class=\"l\">jobs</th><th>seeds</th>"
		"<th>loss</th><th>best eval loss</th><th>seconds</th><th>tokens/s</th></tr>\n");
	for (size_t i = 0; i < c->n_groups && r == 0; i++) {
		const struct compare_group *g = &c->groups[i];
		r = buf_appendf(b, "<tr><td class=\"l\"><span class=\"key\" style=\"background:%s\"></span>",
			plot_color((unsigned)i));
		r = r ? r : plot_text(b, g->label, strlen(g->label));
		r = r ? r : buf_appendf(b, "</td><td>%zu</td>", g->seeds);
		r = r ? r : spread_cell(b, g->loss);
		r = r ? r : spread_cell(b, g->best_eval_loss);
		r = r ? r : spread_cell(b, g->seconds);
		r = r ? r : spread_cell(b, g->tokens_per_second);
		r = r ? r : buf_appendf(b, "</tr>\n");
	}
	return r ? r : buf_appendf(b, "</table>\n");
}

/* ---- plots ------------------------------------------------------------------------------- */

/* At most CURVE_POINTS points: means of neighbours. */
static struct plot_point *thin(const struct curve *c, size_t *ret_n)
{
	size_t each = (c->n + CURVE_POINTS - 1) / CURVE_POINTS, n = 0;
	struct plot_point *points = calloc_array(c->n ? c->n : 1, sizeof(*points));
	for (size_t i = 0; points && i < c->n; i += each) {
		size_t end = i + each < c->n ? i + each : c->n;
		struct plot_point *p = &points[n++];
		for (size_t k = i; k < end; k++) {
			p->x += c->at[k].step / (double)(end - i);
			p->y += c->at[k].loss / (double)(end - i);
		}
	}
	*ret_n = n;
	return points;
}

static void free_series(struct plot_series *series, size_t n)
{
	for (size_t i = 0; series && i < n; i++) {
		free((void *)series[i].points);
		free((void *)series[i].title);
	}
	free(series);
}

static int curves(struct buf *b, const struct comparison *c, bool eval)
{
	struct plot_series *series = calloc_array(c->n, sizeof(*series));
	size_t n = 0;
	int r = series ? 0 : -ENOMEM;
	for (size_t i = 0; i < c->n && r == 0; i++) {
		const struct compare_row *row = &c->rows[i];
		struct plot_series *s = &series[n++];
		char *title = NULL;
		if (asprintf(&title, "job %llu, %s", (unsigned long long)row->job->id,
				c->groups[row->group].label) < 0) {
			title = NULL;
		}
		*s = (struct plot_series){.color = (unsigned)row->group, .line = true, .dots = eval,
			.title = title};
		s->points = thin(eval ? &row->eval : &row->train, &s->n);
		r = title && s->points ? 0 : -ENOMEM;
	}
	if (r == 0) {
		r = plot_svg(b, &(struct plot){.title = eval ? "Evaluation loss" : "Training loss",
			.x_label = "step", .y_label = "loss", .series = series, .n = n});
	}
	free_series(series, n);
	return r;
}

/* Groups as points; those that nobody beats are filled and joined by a line. */
static int pareto(struct buf *b, const struct comparison *c, bool by_time)
{
	_cleanup_(freep) bool *front = calloc_array(c->n_groups, sizeof(*front));
	_cleanup_(freep) struct plot_point *points = calloc_array(c->n_groups, 2 * sizeof(*points));
	_cleanup_(freep) struct plot_series *series =
		calloc_array(c->n_groups + 1, sizeof(*series));
	if (!front || !points || !series) {
		return -ENOMEM;
	}
	bool eval = compare_by_eval(c);
	struct plot_point *line = points + c->n_groups;
	size_t n = 0;
	compare_front(c, by_time, front);
	for (size_t i = 0; i < c->n_groups; i++) {
		const struct compare_group *g = &c->groups[i];
		struct spread q = eval ? g->best_eval_loss : g->loss;
		points[i] = (struct plot_point){by_time ? g->seconds.mean : g->memory, q.mean, q.sd,
			g->label, front[i]};
		series[i + 1] = (struct plot_series){.points = &points[i], .n = 1, .color = (unsigned)i,
			.dots = true};
		if (front[i]) { /* in the order of their cost */
			size_t at = n++;
			for (; at > 0 && line[at - 1].x > points[i].x; at--) {
				line[at] = line[at - 1];
			}
			line[at] = (struct plot_point){points[i].x, points[i].y, 0, NULL, false};
		}
	}
	series[0] = (struct plot_series){.points = line, .n = n, .color = PLOT_GREY, .line = n > 1,
		.title = "nobody is better in both"};
	return plot_svg(b, &(struct plot){
		.title = by_time ? "Quality against time" : "Quality against memory",
		.x_label = by_time ? "time of all steps" : "memory, planned",
		.y_label = eval ? "lowest evaluation loss" : "last training loss",
		.x_bytes = !by_time, .x_seconds = by_time, .series = series, .n = c->n_groups + 1});
}

static int plots(struct buf *b, const struct comparison *c)
{
	bool evaluated = false, gone = false;
	for (size_t i = 0; i < c->n; i++) {
		evaluated |= c->rows[i].eval.n > 0;
		gone |= c->rows[i].no_curves;
	}
	int r = buf_appendf(b, "<h2>Trade-offs</h2>\n<p>Less is better on both axes. Filled points are "
		"those that no other beats in both; bars are standard deviations over seeds.</p>\n");
	r = r ? r : pareto(b, c, false);
	r = r ? r : pareto(b, c, true);
	r = r ? r : buf_appendf(b, "<h2>Curves</h2>\n");
	if (r == 0 && gone) {
		r = buf_appendf(b, "<p>Of some jobs the steps are kept no longer; they have no curve.</p>\n");
	}
	r = r ? r : curves(b, c, false);
	return r || !evaluated ? r : curves(b, c, true);
}

int compare_html(struct buf *out, const struct comparison *c, const char *when)
{
	int r = buf_append(out, head, sizeof(head) - 1);
	r = r ? r : buf_appendf(out, "<h1>%zu jobs compared</h1>\n<p>By peftctl, %s.</p>\n", c->n, when);
	r = r ? r : jobs_table(out, c);
	r = r ? r : groups_table(out, c);
	r = r ? r : plots(out, c);
	r = r ? r : buf_appendf(out, "<h2>Memory</h2>\n<p>Weights include the base model, which jobs on "
		"it share. Measured: what the run reserved.</p>\n");
	r = r ? r : memory_table(out, c);
	return r ? r : buf_appendf(out, "</body>\n</html>\n");
}
