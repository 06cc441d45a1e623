#pragma once
/* Jobs side by side: what each of them cost and brought. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "client/ctl.h"
#include "util/buf.h"

struct curve_point {
	double step, loss;
};
struct curve {
	struct curve_point *at; /* owned */
	size_t n, cap;
};

/* A job. NaN: not known. */
struct compare_row {
	Peftd__V1__Reply *reply; /* owned */
	const Peftd__V1__Job *job;
	double loss;                      /* of the last step */
	double eval_loss, best_eval_loss; /* the last, and the lowest */
	double seconds, tokens;           /* of all recorded steps */
	double step_seconds;              /* the median */
	double unmerged_ratio, merged_ratio; /* forward time to that of the bare base */
	size_t group;
	bool counted; /* in its group; not, where another job of the same seed is */
	struct curve train, eval; /* only where they were asked for */
	bool no_curves;           /* they are past their time */
};

/* Jobs that differ in their seed alone (and in name and priority, which change nothing that is
 * compared): mean and standard deviation over the seeds, which is NaN for one. Copies of a seed
 * count once, as the one that succeeded or got furthest. */
struct spread {
	double mean, sd;
};
struct compare_group {
	size_t seeds;       /* different ones */
	const Peftd__V1__Job *first;
	char *label;        /* owned; what sets it apart */
	struct spread loss, best_eval_loss, seconds, tokens_per_second, step_seconds;
	double memory;      /* bytes as planned; NaN */
};

struct comparison {
	struct compare_row *rows; /* owned */
	size_t n;
	struct compare_group *groups; /* owned; in the order of their first rows */
	size_t n_groups;
};
void comparison_deinit(struct comparison *c);

/* Asks for the jobs that operands name, with their curves where `curves`. 0 or an exit status, with
 * words said. */
int compare_read(struct ctl *ctl, const struct texts *operands, bool curves,
	struct comparison *ret);

/* Fills in the groups of rows whose numbers are there. -ENOMEM. */
int compare_group_rows(struct comparison *c);

/* Mean and sample standard deviation of those values that are numbers; NaN without any. */
struct spread compare_spread(const double *values, size_t n);

/* The whole page: tables, loss curves, and quality against memory and against time. It loads
 * nothing. `when`: the date it bears. -ENOMEM. */
int compare_html(struct buf *out, const struct comparison *c, const char *when);

/* Whether every job was evaluated: then that is what quality means, otherwise the last loss of
 * training. */
bool compare_by_eval(const struct comparison *c);

/* Which groups nobody beats in both: cost (memory or seconds) and quality, less being better.
 * `ret` has one for each group; those of unknown values are not among them. */
void compare_front(const struct comparison *c, bool by_time, bool *ret);
