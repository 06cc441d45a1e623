#include "client/compare_eval.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/format.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { SHOTS_MAX = 16 };

static int read_shots(struct ctl *ctl, const char *text, uint64_t list[SHOTS_MAX], size_t *ret_n)
{
	size_t n = 0;
	for (const char *p = text; *p || p == text;) {
		char *end;
		unsigned long long v = strtoull(p, &end, 10);
		if (*p < '0' || *p > '9' || (*end && *end != ',') || v > UINT32_MAX || n == SHOTS_MAX) {
			return ctl_usage(ctl, "--shots %s: numbers of examples, as in 0,1,4; at most %d of them",
				text, SHOTS_MAX);
		}
		list[n++] = v;
		p = *end ? end + 1 : end;
		if (*end && !*p) {
			return ctl_usage(ctl, "--shots %s: a number is missing at the end", text);
		}
	}
	*ret_n = n;
	return 0;
}

static void print_json(const Peftd__V1__EvalReply *r, const struct evaluation *e,
	const Peftd__V1__Job *job)
{
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_open(&j, '{');
	jsonw_key(&j, "evaluation");
	jsonw_string(&j, job ? "adapter" : "base");
	if (job) {
		jsonw_key(&j, "job");
		jsonw_u64(&j, job->id);
	}
	jsonw_key(&j, "dataset");
	jsonw_string(&j, e->dataset);
	if (!job && e->shots.value == 0) {
		jsonw_key(&j, "shots");
		jsonw_u64(&j, 0);
	}
	evaluation_json(&j, r);
	jsonw_close(&j, '}');
	jsonw_print(&j, stdout);
}

static void figure(struct table *t, double v)
{
	char a[FORMAT_SIZE];
	table_cell(t, "%s", isnan(v) ? "-" : format_figure(a, v, 4));
}

static void add_row(struct table *t, const Peftd__V1__EvalReply *r, const struct evaluation *e,
	const Peftd__V1__Job *job)
{
	static const ProtobufCBinaryData none;
	if (job) {
		table_cell(t, "job %llu", (unsigned long long)job->id);
		table_cell_text(t, job->spec ? &job->spec->method : &none);
	} else {
		table_cell(t, "base");
		table_cell(t, "%s", "");
	}
	table_cell(t, "%llu", (unsigned long long)e->shots.value);
	figure(t, r->has_loss ? r->loss : NAN);
	figure(t, r->has_perplexity ? r->perplexity : NAN);
	for (size_t i = 0; i < EVALUATION_METRICS; i++) {
		figure(t, evaluation_metric(r, i));
	}
	table_cell(t, "%llu", (unsigned long long)r->rows);
}

static int evaluate(struct ctl *ctl, struct evaluation *e, const Peftd__V1__Job *job, uint64_t shots,
	struct table *t)
{
	char id[24];
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	e->shots = (struct opt_u64){true, shots};
	e->adapter = NULL;
	if (job) {
		snprintf(id, sizeof(id), "%llu", (unsigned long long)job->id);
		e->adapter = id;
	}
	int status = evaluation_ask(ctl, e, &reply);
	e->adapter = NULL;
	if (status == 0 && ctl->json) {
		print_json(reply->eval, e, job);
		fflush(stdout);
	} else if (status == 0) {
		add_row(t, reply->eval, e, job);
	}
	return status;
}

int compare_evaluate(struct ctl *ctl, const struct comparison *c, struct evaluation *e,
	const char *shots)
{
	static const char *const names[] = {"ON", "METHOD", "SHOTS", "LOSS", "PERPLEXITY"};
	_cleanup_(table_deinit) struct table t = {
		.columns = ARRAY_LEN(names) + EVALUATION_METRICS + 1, .right = 0x7FC};
	uint64_t list[SHOTS_MAX];
	size_t n = 0;
	int status = read_shots(ctl, shots ? shots : "0", list, &n);
	if (status != 0) {
		return status;
	}
	_cleanup_(freep) char *model = c->rows[0].job->spec ? strndup(
		(const char *)c->rows[0].job->spec->model.data, c->rows[0].job->spec->model.len) : NULL;
	if (!model) {
		return ctl_fail(ctl, -ENOMEM, NULL);
	}
	e->model = model;
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		table_cell(&t, "%s", names[i]);
	}
	for (size_t i = 0; i < EVALUATION_METRICS; i++) {
		table_cell(&t, "%s", evaluation_title(i));
	}
	table_cell(&t, "ROWS");
	for (size_t i = 0; i < n && status == 0; i++) {
		status = evaluate(ctl, e, NULL, list[i], &t);
	}
	for (size_t i = 0; i < c->n && status == 0; i++) {
		status = evaluate(ctl, e, c->rows[i].job, 0, &t);
	}
	if (status == 0 && !ctl->json) {
		printf("\n%s on %s:\n", model, e->dataset);
		table_print(&t, stdout);
	}
	e->model = NULL;
	return status;
}
