#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/compare.h"
#include "client/compare_eval.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "client/outfile.h"
#include "util/cleanup.h"
#include "util/util.h"

/* ---- JSON -------------------------------------------------------------------------------- */

static void key_u64(struct jsonw *j, const char *key, bool has, uint64_t v)
{
	jsonw_key(j, key);
	if (has) {
		jsonw_u64(j, v);
	} else {
		jsonw_null(j);
	}
}

static void key_double(struct jsonw *j, const char *key, double v)
{
	jsonw_key(j, key);
	jsonw_double(j, v);
}

static double share(const Peftd__V1__Plan *p)
{
	return p && p->total_parameters > 0
		? (double)p->trainable_parameters / (double)p->total_parameters : NAN;
}

/* The five parts, as planned or as a run reserved them. */
static void json_parts(struct jsonw *j, const char *key, const ProtobufCMessage *m)
{
	static const char *const parts[] = {"base_weights", "trainable_weights", "optimizer_states",
		"gradients", "activations", "temporary"};
	jsonw_key(j, key);
	if (!m) {
		jsonw_null(j);
		return;
	}
	jsonw_open(j, '{');
	for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
		const ProtobufCFieldDescriptor *f =
			protobuf_c_message_descriptor_get_field_by_name(m->descriptor, parts[i]);
		const uint8_t *base = (const uint8_t *)m;
		bool has = *(const protobuf_c_boolean *)(base + f->quantifier_offset) != 0;
		key_u64(j, parts[i], has, *(const uint64_t *)(const void *)(base + f->offset));
	}
	jsonw_close(j, '}');
}

static void json_inference(struct jsonw *j, const Peftd__V1__Plan *p,
	const Peftd__V1__InferenceTimes *t)
{
	jsonw_key(j, "inference");
	jsonw_open(j, '{');
	key_double(j, "flops_per_token",
		p && p->has_inference_flops_per_token ? p->inference_flops_per_token : NAN);
	key_u64(j, "bytes_per_token", p && p->has_inference_bytes_per_token,
		p ? p->inference_bytes_per_token : 0);
	jsonw_key(j, "mergeable");
	if (p && p->has_mergeable) {
		jsonw_bool(j, p->mergeable);
	} else {
		jsonw_null(j);
	}
	key_u64(j, "tokens", t, t ? t->tokens : 0);
	key_double(j, "base_seconds", t ? t->base_seconds : NAN);
	key_double(j, "unmerged_seconds", t ? t->unmerged_seconds : NAN);
	key_double(j, "merged_seconds", t && t->has_merged_seconds ? t->merged_seconds : NAN);
	jsonw_close(j, '}');
}

static void json_row(struct jsonw *j, const struct compare_row *row)
{
	const Peftd__V1__Job *job = row->job;
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
	key_u64(j, "sweep", job->has_sweep, job->sweep);
	jsonw_key(j, "variant");
	jsonw_bytes(j, &job->variant);
	key_u64(j, "seed", job->spec && job->spec->train, job->spec && job->spec->train
		? job->spec->train->seed : 0);
	jsonw_key(j, "state");
	jsonw_string(j, format_state((int)job->state));
	jsonw_key(j, "step");
	jsonw_u64(j, job->step);
	jsonw_key(j, "trainable_parameters");
	jsonw_u64(j, p ? p->trainable_parameters : 0);
	key_double(j, "trainable_share", share(p));
	jsonw_key(j, "memory");
	jsonw_u64(j, p ? p->total : 0);
	json_parts(j, "memory_planned", p ? &p->base : NULL);
	json_parts(j, "memory_measured", job->measured ? &job->measured->base : NULL);
	key_u64(j, "measured_arena", job->has_measured_arena, job->measured_arena);
	key_u64(j, "measured_peak_rss", job->has_measured_peak_rss, job->measured_peak_rss);
	key_double(j, "loss", row->loss);
	key_double(j, "eval_loss", row->best_eval_loss);
	key_double(j, "last_eval_loss", row->eval_loss);
	key_double(j, "seconds", row->seconds);
	key_double(j, "tokens_per_second", row->tokens / row->seconds);
	key_double(j, "step_seconds_median", row->step_seconds);
	json_inference(j, p, job->inference);
	jsonw_close(j, '}');
}

static void json_spread(struct jsonw *j, const char *key, struct spread s)
{
	jsonw_key(j, key);
	jsonw_open(j, '{');
	key_double(j, "mean", s.mean);
	key_double(j, "sd", s.sd);
	jsonw_close(j, '}');
}

static void json_group(struct jsonw *j, const struct comparison *c, size_t group)
{
	const struct compare_group *g = &c->groups[group];
	jsonw_open(j, '{');
	jsonw_key(j, "jobs");
	jsonw_open(j, '[');
	for (size_t i = 0; i < c->n; i++) {
		if (c->rows[i].group == group) {
			jsonw_u64(j, c->rows[i].job->id);
		}
	}
	jsonw_close(j, ']');
	jsonw_key(j, "label");
	jsonw_string(j, g->label);
	jsonw_key(j, "seeds");
	jsonw_u64(j, g->seeds);
	json_spread(j, "loss", g->loss);
	json_spread(j, "eval_loss", g->best_eval_loss);
	json_spread(j, "seconds", g->seconds);
	json_spread(j, "tokens_per_second", g->tokens_per_second);
	json_spread(j, "step_seconds_median", g->step_seconds);
	jsonw_close(j, '}');
}

static void print_json(const struct comparison *c)
{
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	for (size_t i = 0; i < c->n; i++) {
		json_row(&j, &c->rows[i]);
		jsonw_print(&j, stdout);
	}
	for (size_t g = 0; g < c->n_groups; g++) {
		if (c->groups[g].seeds > 1) {
			json_group(&j, c, g);
			jsonw_print(&j, stdout);
		}
	}
}

/* ---- tables ------------------------------------------------------------------------------ */

static void heads(struct table *t, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		table_cell(t, "%s", names[i]);
	}
}

static void figure(struct table *t, double v, int digits)
{
	char a[FORMAT_SIZE];
	table_cell(t, "%s", isnan(v) ? "-" : format_figure(a, v, digits));
}

static void seconds(struct table *t, double v)
{
	char a[FORMAT_SIZE];
	table_cell(t, "%s", isnan(v) || v <= 0 ? "-" : format_duration(a, v));
}

/* Of the bare base's forward time. */
static void times(struct table *t, double ratio)
{
	table_cell(t, isnan(ratio) ? "-" : "%.2f x", ratio);
}

static void print_jobs(const struct comparison *c)
{
	static const char *const names[] = {"JOB", "NAME", "METHOD", "VARIANT", "STATE", "STEP",
		"TRAINABLE", "SHARE", "LOSS", "BEST EVAL_LOSS", "TIME", "TOKENS/S", "STEP TIME",
		"+FLOPS/TOKEN", "FORWARD", "MERGED"};
	static const ProtobufCBinaryData none;
	_cleanup_(table_deinit) struct table t = {.columns = ARRAY_LEN(names), .right = 1 | 0xFFE0};
	char a[FORMAT_SIZE];
	heads(&t, names, ARRAY_LEN(names));
	for (size_t i = 0; i < c->n; i++) {
		const struct compare_row *row = &c->rows[i];
		const Peftd__V1__Job *job = row->job;
		const Peftd__V1__Plan *p = job->plan;
		table_cell(&t, "%llu", (unsigned long long)job->id);
		table_cell_text(&t, &job->name);
		table_cell_text(&t, job->spec ? &job->spec->method : &none);
		table_cell_text(&t, &job->variant);
		table_cell(&t, "%s", format_state((int)job->state));
		table_cell(&t, "%llu/%llu", (unsigned long long)job->step, (unsigned long long)job->steps);
		table_cell(&t, "%s", p ? format_count(a, p->trainable_parameters) : "-");
		table_cell(&t, isnan(share(p)) ? "-" : "%.3g %%", 100 * share(p));
		figure(&t, row->loss, 4);
		figure(&t, row->best_eval_loss, 4);
		seconds(&t, row->seconds);
		figure(&t, row->seconds > 0 ? row->tokens / row->seconds : NAN, 4);
		table_cell(&t, "%s", row->step_seconds > 0 ? format_span(a, row->step_seconds) : "-");
		table_cell(&t, "%s", p && p->has_inference_flops_per_token
			? format_count(a, (uint64_t)p->inference_flops_per_token) : "-");
		times(&t, row->unmerged_ratio);
		times(&t, row->merged_ratio);
	}
	table_print(&t, stdout);
}

static void bytes(struct table *t, bool has, uint64_t v)
{
	char a[FORMAT_SIZE];
	table_cell(t, "%s", has ? format_bytes(a, v) : "-");
}

/* Planned and, a line below, as the run had it. */
static void print_memory(const struct comparison *c)
{
	static const char *const names[] = {"MEMORY", "", "WEIGHTS", "OPTIMIZER", "GRADIENTS",
		"ACTIVATIONS", "TEMPORARY", "TOTAL"};
	_cleanup_(table_deinit) struct table t = {.columns = ARRAY_LEN(names), .right = 1 | 0xFC};
	heads(&t, names, ARRAY_LEN(names));
	for (size_t i = 0; i < c->n; i++) {
		const Peftd__V1__Plan *p = c->rows[i].job->plan;
		const Peftd__V1__Measured *m = c->rows[i].job->measured;
		table_cell(&t, "%llu", (unsigned long long)c->rows[i].job->id);
		table_cell(&t, "planned");
		bytes(&t, p, p ? p->base_weights + p->trainable_weights : 0);
		bytes(&t, p, p ? p->optimizer_states : 0);
		bytes(&t, p, p ? p->gradients : 0);
		bytes(&t, p, p ? p->activations : 0);
		bytes(&t, p, p ? p->temporary : 0);
		bytes(&t, p, p ? p->total : 0);
		if (!m) {
			continue;
		}
		table_cell(&t, "%s", "");
		table_cell(&t, "measured");
		bytes(&t, true, m->base_weights + m->trainable_weights);
		bytes(&t, true, m->optimizer_states);
		bytes(&t, true, m->gradients);
		bytes(&t, true, m->activations);
		bytes(&t, true, m->temporary);
		bytes(&t, true, m->base_weights + m->arena);
	}
	puts("");
	table_print(&t, stdout);
}

static void spread(struct table *t, struct spread s, int digits)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	if (isnan(s.mean)) {
		table_cell(t, "-");
	} else {
		table_cell(t, "%s ± %s", format_figure(a, s.mean, digits),
			isnan(s.sd) ? "?" : format_figure(b, s.sd, 3));
	}
}

static void print_groups(const struct comparison *c)
{
	static const char *const names[] = {"MEAN ± SD OF", "SEEDS", "LOSS", "BEST EVAL_LOSS",
		"SECONDS", "TOKENS/S"};
	_cleanup_(table_deinit) struct table t = {.columns = ARRAY_LEN(names), .right = 0x3E};
	bool any = false;
	heads(&t, names, ARRAY_LEN(names));
	for (size_t i = 0; i < c->n_groups; i++) {
		const struct compare_group *g = &c->groups[i];
		if (g->seeds > 1) {
			ProtobufCBinaryData label = proto_bytes(g->label);
			any = true;
			table_cell_text(&t, &label);
			table_cell(&t, "%zu", g->seeds);
			spread(&t, g->loss, 4);
			spread(&t, g->best_eval_loss, 4);
			spread(&t, g->seconds, 4);
			spread(&t, g->tokens_per_second, 4);
		}
	}
	if (any) {
		puts("");
		table_print(&t, stdout);
	}
}

/* ---- the page ---------------------------------------------------------------------------- */

static int write_page(struct ctl *ctl, const struct comparison *c, const char *path)
{
	_cleanup_(buf_deinit) struct buf page = {0};
	struct errmsg err = {0};
	char when[FORMAT_SIZE];
	int r = compare_html(&page, c, format_time(when, (uint64_t)clock_wall_ns()));
	r = r ? r : outfile_write(path, page.data, page.len, &err);
	if (r != 0) {
		return ctl_fail(ctl, r, &err);
	}
	ctl_note(ctl, "the page is %s", path);
	return 0;
}

int cmd_compare(struct ctl *ctl, int argc, char **argv)
{
	const char *html = NULL, *shots = NULL;
	_cleanup_(evaluation_deinit) struct evaluation e = evaluation_init();
	const struct opt opts[] = {
		{"html", 0, OPT_TEXT, "FILE", "write a page with curves and plots, too", &html},
		{"on", 0, OPT_TEXT, "DATASET", "evaluate the jobs' adapters and the bare base on it, too",
			&e.dataset},
		{"shots", 0, OPT_TEXT, "K,…", "with --on: the base with so many examples, as in 0,1,4 "
			"(default 0)", &shots},
		{"shots-dataset", 0, OPT_TEXT, "NAME", "draw them from here (default: the dataset itself)",
			&e.shots_dataset},
		{"metric", 0, OPT_TEXTS, "M", "as of eval", &e.metrics},
		{"limit", 0, OPT_U64, "N", "as of eval", &e.limit},
		{"seed", 0, OPT_U64, "N", "as of eval", &e.seed},
		{"max-length", 0, OPT_U32, "L", "as of eval", &e.max_length},
		{"max-new-tokens", 0, OPT_U32, "N", "as of eval", &e.max_new_tokens},
		{"stop", 0, OPT_TEXTS, "TEXT", "as of eval", &e.stops},
		{"dtype", 0, OPT_TEXT, "TYPE", "as of eval", &e.dtype},
	};
	_cleanup_(texts_deinit) struct texts operands = {0};
	_cleanup_(comparison_deinit) struct comparison c = {0};
	int status;
	if (args_parse(ctl, argc, argv, opts, ARRAY_LEN(opts), 1, SIZE_MAX, &operands, &status) != 0) {
		return status;
	}
	if (!e.dataset && (shots || e.shots_dataset || e.metrics.n > 0 || e.limit.given)) {
		return ctl_usage(ctl, "--shots, --shots-dataset, --metric and --limit go with --on DATASET");
	}
	if ((status = compare_read(ctl, &operands, html != NULL, &c)) != 0) {
		return status;
	}
	/* Before anything is printed: whoever reads that may stop reading. */
	if (html && (status = write_page(ctl, &c, html)) != 0) {
		return status;
	}
	if (ctl->json) {
		print_json(&c);
	} else {
		print_jobs(&c);
		print_memory(&c);
		print_groups(&c);
	}
	status = e.dataset ? compare_evaluate(ctl, &c, &e, shots) : 0;
	return status == 0 ? ctl_finish(ctl, EXIT_DONE) : status;
}
