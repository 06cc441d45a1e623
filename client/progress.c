#include "client/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/format.h"
#include "client/term.h"
#include "util/cleanup.h"
#include "util/util.h"

/* Eighths of a block, from left to right and from bottom to top. */
static const char *const eighths[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"};
static const char *const heights[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
static const char ascii_heights[] = "_.,-~=+#";

int progress_bar(struct buf *b, double fraction, unsigned width, bool utf8)
{
	double f = fraction > 0 ? fmin(fraction, 1) : 0; /* NaN is 0, too */
	unsigned units = (unsigned)(f * width * 8 + 0.5);
	int r = buf_append(b, "[", 1);
	for (unsigned i = 0; i < width && r == 0; i++) {
		unsigned left = units > i * 8 ? units - i * 8 : 0;
		const char *cell = utf8 ? eighths[left < 8 ? left : 8] : left >= 4 ? "#" : "-";
		r = buf_append(b, cell, strlen(cell));
	}
	return r == 0 ? buf_append(b, "]", 1) : r;
}

/* The mean of the finite ones of v[n]; NaN when there are none. */
static double mean_of(const double *v, size_t n)
{
	double sum = 0;
	size_t count = 0;
	for (size_t i = 0; i < n; i++) {
		if (isfinite(v[i])) {
			sum += v[i];
			count++;
		}
	}
	return count > 0 ? sum / (double)count : NAN;
}

int progress_sparkline(struct buf *b, const double *v, size_t n, unsigned width, bool utf8)
{
	size_t columns = n < width ? n : width;
	double low = INFINITY, high = -INFINITY;
	for (size_t i = 0; i < columns; i++) {
		size_t from = i * n / columns, to = (i + 1) * n / columns;
		double m = mean_of(v + from, to - from);
		low = fmin(low, m); /* fmin and fmax pass over NaN */
		high = fmax(high, m);
	}
	for (size_t i = 0; i < columns; i++) {
		size_t from = i * n / columns, to = (i + 1) * n / columns;
		double m = mean_of(v + from, to - from);
		int r;
		if (isnan(m)) {
			r = buf_append(b, "!", 1);
		} else {
			int h = high > low ? (int)((m - low) / (high - low) * 7 + 0.5) : 0;
			r = utf8 ? buf_append(b, heights[h], strlen(heights[h]))
				: buf_append(b, &ascii_heights[h], 1);
		}
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

void progress_begin(struct progress *p, const char *what, uint64_t done, uint64_t total)
{
	p->what = what;
	p->total = total;
	p->first = done;
	p->started_ns = clock_monotonic_ns();
	p->drawn_ns = 0;
	progress_update(p, done);
}

void progress_update(struct progress *p, uint64_t done)
{
	int64_t now = clock_monotonic_ns();
	if (!p->shown || now - p->drawn_ns < 100000000) {
		return;
	}
	p->drawn_ns = now;
	p->dirty = true;
	char have[FORMAT_SIZE], of[FORMAT_SIZE], rate[FORMAT_SIZE];
	double seconds = (double)(now - p->started_ns) / 1e9;
	uint64_t speed = seconds > 0.3 ? (uint64_t)((double)(done - p->first) / seconds) : 0;
	_cleanup_(buf_deinit) struct buf b = {0};
	if (progress_bar(&b, (double)done / (double)(p->total ? p->total : 1), 24, p->utf8) < 0 ||
		!buf_cstr(&b)) {
		return;
	}
	fprintf(stderr, "\r\033[K%s %s %s of %s%s%s%s", p->what, (char *)b.data,
		format_bytes(have, done), format_bytes(of, p->total), speed ? ", " : "",
		speed ? format_bytes(rate, speed) : "", speed ? "/s" : "");
}

void progress_end(struct progress *p)
{
	if (p->dirty) {
		fputs("\r\033[K", stderr);
		p->dirty = false;
	}
}
