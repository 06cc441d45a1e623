#pragma once
/* Bars and curves made of characters. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/buf.h"

/* Appends a bar of `width` columns, filled to `fraction` (clamped to 0…1). 0 or -ENOMEM. */
int progress_bar(struct buf *b, double fraction, unsigned width, bool utf8);

/*
 * Appends a curve of at most `width` columns: each shows the mean of its share of v[n], on eight
 * heights from the least to the greatest mean. Values that are not finite do not count; a column of
 * nothing else is '!'. 0 or -ENOMEM.
 */
int progress_sparkline(struct buf *b, const double *v, size_t n, unsigned width, bool utf8);

/* A line on standard error that shows how far a transfer is, redrawn at most ten times a second. */
struct progress {
	bool shown; /* whether to draw at all */
	bool utf8;
	const char *what;
	uint64_t total;
	uint64_t first; /* where it began: what was there already takes no time */
	int64_t started_ns, drawn_ns;
	bool dirty;
};

void progress_begin(struct progress *p, const char *what, uint64_t done, uint64_t total);
void progress_update(struct progress *p, uint64_t done);

/* Wipes the line. */
void progress_end(struct progress *p);
