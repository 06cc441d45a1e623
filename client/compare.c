/* What is compared: read from the daemon, and reckoned over seeds. */

#include "client/compare.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/format.h"
#include "client/spec.h"
#include "client/sweep.h"
#include "client/watch.h"
#include "util/cleanup.h"
#include "util/util.h"

void comparison_deinit(struct comparison *c)
{
	for (size_t i = 0; i < c->n; i++) {
		proto_free(c->rows[i].reply);
		free(c->rows[i].train.at);
		free(c->rows[i].eval.at);
	}
	for (size_t i = 0; i < c->n_groups; i++) {
		free(c->groups[i].label);
	}
	free(c->rows);
	free(c->groups);
	*c = (struct comparison){0};
}

/* ---- reading ----------------------------------------------------------------------------- */

static int curve_add(struct curve *c, double step, double loss)
{
	if (c->n == c->cap) {
		size_t cap = c->cap ? 2 * c->cap : 256;
		struct curve_point *grown = realloc_array(c->at, cap, sizeof(*grown));
		if (!grown) {
			return -ENOMEM;
		}
		c->at = grown;
		c->cap = cap;
	}
	c->at[c->n++] = (struct curve_point){step, loss};
	return 0;
}

/* What the events say. */
struct reading {
	struct compare_row sums;
	struct curve train, eval, times; /* times: of the steps, in `loss` */
};

static void reading_deinit(struct reading *r)
{
	free(r->train.at);
	free(r->eval.at);
	free(r->times.at);
}

static int on_event(void *data, const Peftd__V1__Event *e)
{
	struct reading *r = data;
	if (e->what_case == PEFTD__V1__EVENT__WHAT_METRICS) {
		const Peftd__V1__MetricsEvent *m = e->metrics;
		r->sums.loss = m->has_loss ? m->loss : r->sums.loss;
		r->sums.seconds += m->has_seconds ? m->seconds : 0;
		r->sums.tokens += (double)m->tokens;
		int k = m->has_seconds ? curve_add(&r->times, (double)m->step, m->seconds) : 0;
		return k || !m->has_loss ? k : curve_add(&r->train, (double)m->step, m->loss);
	}
	if (e->what_case == PEFTD__V1__EVENT__WHAT_EVAL && e->eval->has_eval_loss) {
		r->sums.eval_loss = e->eval->eval_loss;
		r->sums.best_eval_loss = fmin(r->sums.best_eval_loss, e->eval->eval_loss);
		return curve_add(&r->eval, (double)e->eval->step, e->eval->eval_loss);
	}
	return 0;
}

static int compare_points(const void *a, const void *b)
{
	double x = ((const struct curve_point *)a)->loss, y = ((const struct curve_point *)b)->loss;
	return (x > y) - (x < y);
}

static double median(struct curve *times)
{
	size_t n = times->n;
	if (n == 0) {
		return NAN;
	}
	qsort(times->at, n, sizeof(*times->at), compare_points);
	return n % 2 ? times->at[n / 2].loss : (times->at[n / 2 - 1].loss + times->at[n / 2].loss) / 2;
}

/* The job's own record outlasts its events; what it lacks (it is older than such records, or still
 * runs) is reckoned from them. */
static void take_outcome(struct compare_row *row, const Peftd__V1__Outcome *o)
{
	row->loss = o->has_train_loss ? o->train_loss : NAN;
	row->eval_loss = o->has_eval_loss ? o->eval_loss : NAN;
	row->best_eval_loss = o->has_best_eval_loss ? o->best_eval_loss : NAN;
	row->seconds = o->seconds;
	row->tokens = (double)o->tokens;
	if (o->has_step_seconds_median) {
		row->step_seconds = o->step_seconds_median;
	}
}

static int read_events(struct ctl *ctl, struct compare_row *row, bool curves)
{
	_cleanup_(reading_deinit) struct reading r = {.sums = {
		.loss = NAN, .eval_loss = NAN, .best_eval_loss = NAN}};
	struct event_stream_options o = {.job = row->job->id, .metrics_only = true, .tick_ms = -1};
	struct event_handler h = {.event = on_event, .data = &r};
	struct errmsg err = {0};
	int status;
	struct client *c = ctl_client(ctl, &status);
	if (!c) {
		return status;
	}
	int result = event_stream(c, &o, &h, &err);
	if (result == STATUS_COMPACTED) {
		row->no_curves = true;
		return 0;
	}
	if (result != 0) {
		return ctl_fail(ctl, result, &err);
	}
	row->step_seconds = median(&r.times);
	row->loss = r.sums.loss;
	row->eval_loss = r.sums.eval_loss;
	row->best_eval_loss = r.sums.best_eval_loss;
	row->seconds = r.sums.seconds;
	row->tokens = r.sums.tokens;
	if (curves) {
		row->train = r.train;
		row->eval = r.eval;
		r.train = r.eval = (struct curve){0};
	}
	return 0;
}

static void take_inference(struct compare_row *row, const Peftd__V1__InferenceTimes *t)
{
	row->unmerged_ratio = row->merged_ratio = NAN;
	if (t && t->base_seconds > 0) {
		row->unmerged_ratio = t->unmerged_seconds / t->base_seconds;
		row->merged_ratio = t->has_merged_seconds ? t->merged_seconds / t->base_seconds : NAN;
	}
}

static int read_row(struct ctl *ctl, uint64_t job, bool curves, struct compare_row *row)
{
	*row = (struct compare_row){.loss = NAN, .eval_loss = NAN, .best_eval_loss = NAN,
		.step_seconds = NAN};
	int status = ctl_show_job(ctl, job, &row->reply);
	if (status != 0) {
		return status;
	}
	row->job = row->reply->job;
	take_inference(row, row->job->inference);
	const Peftd__V1__Outcome *o = row->job->outcome;
	bool complete = o && o->has_step_seconds_median && format_state_is_final((int)row->job->state);
	if (curves || !complete) {
		status = read_events(ctl, row, curves);
	}
	if (status == 0 && o) {
		take_outcome(row, o);
	}
	return status;
}

int compare_read(struct ctl *ctl, const struct texts *operands, bool curves,
	struct comparison *ret)
{
	_cleanup_(job_list_deinit) struct job_list jobs = {0};
	int status = ctl_target_jobs(ctl, operands, &jobs);
	if (status != 0) {
		return status;
	}
	ret->rows = calloc_array(jobs.n, sizeof(*ret->rows));
	if (!ret->rows) {
		return ctl_fail(ctl, -ENOMEM, NULL);
	}
	for (size_t i = 0; i < jobs.n && status == 0; i++) {
		status = read_row(ctl, jobs.jobs[i]->id, curves, &ret->rows[ret->n++]);
	}
	if (status == 0 && compare_group_rows(ret) < 0) {
		status = ctl_fail(ctl, -ENOMEM, NULL);
	}
	return status;
}

/* ---- groups ------------------------------------------------------------------------------ */

struct spread compare_spread(const double *values, size_t n)
{
	double sum = 0, squares = 0;
	size_t k = 0;
	for (size_t i = 0; i < n; i++) {
		if (isfinite(values[i])) {
			sum += values[i];
			k++;
		}
	}
	if (k == 0) {
		return (struct spread){NAN, NAN};
	}
	double mean = sum / (double)k;
	for (size_t i = 0; i < n; i++) {
		if (isfinite(values[i])) {
			squares += (values[i] - mean) * (values[i] - mean);
		}
	}
	return (struct spread){mean, k > 1 ? sqrt(squares / (double)(k - 1)) : NAN};
}

/* The packed specification without what jobs of one group may differ in; NULL without memory. */
static uint8_t *group_key(const Peftd__V1__Job *job, size_t *ret_len)
{
	static const Peftd__V1__JobSpec none = PEFTD__V1__JOB_SPEC__INIT;
	Peftd__V1__JobSpec spec = job->spec ? *job->spec : none;
	Peftd__V1__TrainSpec train = PEFTD__V1__TRAIN_SPEC__INIT;
	spec.has_name = spec.has_priority = false;
	if (spec.train) {
		train = *spec.train;
		train.has_seed = false;
		spec.train = &train;
	}
	return proto_pack(&spec, ret_len);
}

/* Whether an assignment of a variant tells a group apart, beyond its method. */
static bool labels(const char *assignment, size_t len)
{
	static const char *const others[] = {"train.seed=", "method=", "name=", "priority="};
	for (size_t i = 0; i < ARRAY_LEN(others); i++) {
		size_t n = strlen(others[i]);
		if (len >= n && memcmp(assignment, others[i], n) == 0) {
			return false;
		}
	}
	return true;
}

/* "lora.r=8 train.seed=2" without the seed. */
static int add_variant(struct buf *b, const ProtobufCBinaryData *variant)
{
	const char *s = (const char *)variant->data;
	for (size_t at = 0, len; at < variant->len; at += len + 1) {
		const char *space = memchr(s + at, ' ', variant->len - at);
		len = space ? (size_t)(space - (s + at)) : variant->len - at;
		if (labels(s + at, len) && (buf_append(b, " ", 1) < 0 || buf_append(b, s + at, len) < 0)) {
			return -ENOMEM;
		}
	}
	return 0;
}

/* The method, and what the sweep says of it or the job's name. */
static char *group_label(const Peftd__V1__Job *job)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	int r = job->spec ? buf_append(&b, job->spec->method.data, job->spec->method.len) : 0;
	size_t before = b.len;
	r = r ? r : add_variant(&b, &job->variant);
	if (r == 0 && b.len == before && job->name.len > 0) {
		r = buf_append(&b, " ", 1);
		r = r ? r : buf_append(&b, job->name.data, job->name.len);
	}
	if (r == 0 && b.len == before) {
		r = buf_appendf(&b, " %llu", (unsigned long long)job->id);
	}
	return r == 0 && buf_cstr(&b) ? buf_steal(&b, NULL) : NULL;
}

static double tokens_per_second(const struct compare_row *row)
{
	return row->seconds > 0 ? row->tokens / row->seconds : NAN;
}

static double field(const struct compare_row *row, int which)
{
	switch (which) {
	case 0:
		return row->loss;
	case 1:
		return row->best_eval_loss;
	case 2:
		return row->seconds > 0 ? row->seconds : NAN;
	case 3:
		return tokens_per_second(row);
	default:
		return row->step_seconds;
	}
}

static void reckon(const struct comparison *c, size_t group, double *values)
{
	struct compare_group *g = &c->groups[group];
	struct spread *const spreads[] = {&g->loss, &g->best_eval_loss, &g->seconds,
		&g->tokens_per_second, &g->step_seconds};
	for (int f = 0; f < (int)ARRAY_LEN(spreads); f++) {
		size_t n = 0;
		for (size_t i = 0; i < c->n; i++) {
			if (c->rows[i].group == group && c->rows[i].counted) {
				values[n++] = field(&c->rows[i], f);
			}
		}
		*spreads[f] = compare_spread(values, n);
	}
	const Peftd__V1__Plan *p = g->first->plan;
	g->memory = p && p->has_total ? (double)p->total : NAN;
}

/* The group of row i, new or not. Keys are those of the groups' first rows. */
static int assign_group(struct comparison *c, size_t i, uint8_t **keys, size_t *lens)
{
	size_t len, g = 0;
	uint8_t *key = group_key(c->rows[i].job, &len);
	if (!key) {
		return -ENOMEM;
	}
	while (g < c->n_groups && (lens[g] != len || memcmp(keys[g], key, len) != 0)) {
		g++;
	}
	c->rows[i].group = g;
	if (g < c->n_groups) {
		free(key);
		return 0;
	}
	keys[g] = key;
	lens[g] = len;
	c->groups[c->n_groups++] = (struct compare_group){.first = c->rows[i].job,
		.label = group_label(c->rows[i].job)};
	return c->groups[g].label ? 0 : -ENOMEM;
}

static uint64_t seed_of(const Peftd__V1__Job *job)
{
	static const Peftd__V1__TrainSpec none = PEFTD__V1__TRAIN_SPEC__INIT;
	return (job->spec && job->spec->train ? job->spec->train : &none)->seed;
}

static bool got_further(const Peftd__V1__Job *a, const Peftd__V1__Job *b)
{
	bool done_a = a->state == PEFTD__V1__JOB_STATE__JOB_SUCCEEDED;
	bool done_b = b->state == PEFTD__V1__JOB_STATE__JOB_SUCCEEDED;
	return done_a != done_b ? done_a : a->step > b->step;
}

/* Chooses of each seed in a group the job that counts: copies would only feign a small spread. */
static void count_seeds(struct comparison *c)
{
	for (size_t i = 0; i < c->n; i++) {
		struct compare_row *row = &c->rows[i], *other = c->rows;
		while (other < row && !(other->counted && other->group == row->group &&
				seed_of(other->job) == seed_of(row->job))) {
			other++;
		}
		if (other == row) {
			row->counted = true;
			c->groups[row->group].seeds++;
		} else if (got_further(row->job, other->job)) {
			row->counted = true;
			other->counted = false;
		}
	}
}

int compare_group_rows(struct comparison *c)
{
	_cleanup_(freep) double *values = calloc_array(c->n, sizeof(*values));
	_cleanup_(freep) size_t *lens = calloc_array(c->n, sizeof(*lens));
	_cleanup_(freep) uint8_t **keys = calloc_array(c->n, sizeof(*keys));
	c->groups = calloc_array(c->n, sizeof(*c->groups));
	int r = values && lens && keys && c->groups ? 0 : -ENOMEM;
	for (size_t i = 0; i < c->n && r == 0; i++) {
		r = assign_group(c, i, keys, lens);
	}
	if (r == 0) {
		count_seeds(c);
	}
	for (size_t g = 0; g < c->n_groups && r == 0; g++) {
		reckon(c, g, values);
	}
	for (size_t g = 0; keys && g < c->n_groups; g++) {
		free(keys[g]);
	}
	return r;
}

/* ---- quality and cost -------------------------------------------------------------------- */

bool compare_by_eval(const struct comparison *c)
{
	for (size_t i = 0; i < c->n; i++) {
		if (isnan(c->rows[i].best_eval_loss)) {
			return false;
		}
	}
	return c->n > 0;
}

void compare_front(const struct comparison *c, bool by_time, bool *ret)
{
	bool eval = compare_by_eval(c);
	for (size_t i = 0; i < c->n_groups; i++) {
		const struct compare_group *a = &c->groups[i];
		double cost = by_time ? a->seconds.mean : a->memory;
		double loss = eval ? a->best_eval_loss.mean : a->loss.mean;
		ret[i] = isfinite(cost) && isfinite(loss);
		for (size_t k = 0; k < c->n_groups && ret[i]; k++) {
			const struct compare_group *b = &c->groups[k];
			double other_cost = by_time ? b->seconds.mean : b->memory;
			double other = eval ? b->best_eval_loss.mean : b->loss.mean;
			ret[i] = !(other <= loss && other_cost <= cost && (other < loss || other_cost < cost));
		}
	}
}
