/*
 * Which job runs next: by priority class, then by age. Ids count up, so they are the age; the wall
 * clock decides nothing.
 *
 * A trainer runs one job at a time. What is to come has its place here: several resident jobs mean
 * that `has_room` counts planned bytes instead of jobs, fair share is one more comparison in
 * `before`, and preemption is a train_stop() of the victim when the first in line has a higher
 * class.
 */

#include <errno.h>
#include <stdlib.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

static bool before(const struct job *a, const struct job *b)
{
	if (a->rec.priority != b->rec.priority) {
		return a->rec.priority > b->rec.priority;
	}
	return a->rec.id < b->rec.id;
}

static int compare(const void *a, const void *b)
{
	const struct job *x = *(struct job *const *)a, *y = *(struct job *const *)b;
	return x == y ? 0 : before(x, y) ? -1 : 1;
}

static bool has_room(const struct core *c)
{
	if (c->stopping || c->exiting || c->trainer.state != CHILD_READY) {
		return false;
	}
	for (size_t i = 0; i < c->n_jobs; i++) {
		if (c->jobs[i]->task) {
			return false;
		}
	}
	return true;
}

/* The job that is to start now; NULL: none. One that waits after a death lets others pass. */
static struct job *next_job(const struct core *c)
{
	struct job *best = NULL;
	for (size_t i = 0; i < c->n_jobs; i++) {
		struct job *j = c->jobs[i];
		if (j->rec.state == JOB_PENDING && j->not_before_ns <= c->mono &&
			(!best || before(j, best))) {
			best = j;
		}
	}
	return best;
}

int sched_settle(struct core *c)
{
	if (!has_room(c)) {
		return 0;
	}
	struct job *j = next_job(c);
	return j ? train_start(c, j) : 0;
}

int64_t sched_deadline(const struct core *c)
{
	int64_t at = INT64_MAX;
	if (!has_room(c)) {
		return at;
	}
	for (size_t i = 0; i < c->n_jobs; i++) {
		if (c->jobs[i]->rec.state == JOB_PENDING) {
			at = min_i64(at, c->jobs[i]->not_before_ns);
		}
	}
	return at;
}

uint32_t sched_position(const struct core *c, const struct job *j)
{
	if (j->rec.state != JOB_PENDING) {
		return 0;
	}
	uint32_t position = 1;
	for (size_t i = 0; i < c->n_jobs; i++) {
		const struct job *other = c->jobs[i];
		position += other->rec.state == JOB_PENDING && before(other, j);
	}
	return position;
}

int sched_number(struct core *c)
{
	_cleanup_(freep) struct job **order = calloc_array(c->n_jobs, sizeof(struct job *));
	if (!order) {
		return -ENOMEM;
	}
	size_t n = 0;
	for (size_t i = 0; i < c->n_jobs; i++) {
		c->jobs[i]->position = 0;
		if (c->jobs[i]->rec.state == JOB_PENDING) {
			order[n++] = c->jobs[i];
		}
	}
	qsort(order, n, sizeof(struct job *), compare);
	for (size_t i = 0; i < n; i++) {
		order[i]->position = (uint32_t)i + 1;
	}
	return 0;
}

bool sched_busy(const struct core *c)
{
	for (size_t i = 0; i < c->n_jobs; i++) {
		if (c->jobs[i]->task || c->jobs[i]->rec.state == JOB_PENDING) {
			return true;
		}
	}
	return false;
}
