/*
 * What a job brought and how fast: sums that go on with every recorded step, so that they outlast the
 * events, which are kept for some days only.
 */

#include <errno.h>
#include <stdlib.h>

#include "daemon/core/core-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { MEDIAN_OF = 4096 }; /* steps, the last ones: reading them is the work of an instant */

void outcome_metrics(struct job *j, const struct job_event *e)
{
	struct store_outcome *o = &j->rec.outcome;
	o->steps++;
	o->tokens += e->tokens;
	o->seconds += e->seconds;
}

void outcome_eval(struct job *j, const struct job_event *e)
{
	struct store_outcome *o = &j->rec.outcome;
	o->eval_loss = e->loss;
	if (o->best_eval_step == 0 || e->loss < o->best_eval_loss) {
		o->best_eval_loss = e->loss;
		o->best_eval_step = e->step;
	}
}

struct times {
	double *seconds; /* a ring of MEDIAN_OF */
	size_t n;
};

static int note_time(void *ctx, uint64_t seq, const void *event, size_t len)
{
	struct times *t = ctx;
	double v = convert_step_seconds(event, len);
	if (v > 0) {
		t->seconds[t->n++ % MEDIAN_OF] = v;
	}
	return 0;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

int outcome_finish(struct core *c, struct job *j)
{
	if (j->rec.outcome.steps == 0) {
		return 0;
	}
	_cleanup_(freep) double *ring = calloc_array(MEDIAN_OF, sizeof(*ring));
	struct times t = {.seconds = ring};
	struct store_txn *txn;
	uint64_t last = j->rec.last_seq, first;
	/* Between two metrics events there are few others. */
	uint64_t after = last > 2 * MEDIAN_OF ? last - 2 * MEDIAN_OF : 0;
	if (!ring) {
		return -ENOMEM;
	}
	int r = core_read(c, &txn);
	r = r ? r : store_event_each(txn, j->rec.id, after, EVENT_METRICS, 2 * MEDIAN_OF, note_time, &t,
		&first);
	if (r != 0) {
		return r == STATUS_COMPACTED ? 0 : store_fatal(r);
	}
	size_t n = t.n < MEDIAN_OF ? t.n : MEDIAN_OF;
	if (n > 0) {
		qsort(ring, n, sizeof(*ring), compare_doubles);
		j->rec.outcome.step_seconds_median = n % 2 ? ring[n / 2]
												   : (ring[n / 2 - 1] + ring[n / 2]) / 2;
	}
	job_touch(c, j);
	return 0;
}
