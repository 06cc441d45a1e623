#include "client/format.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "client/term.h"
#include "job.pb-c.h"
#include "util/cleanup.h"
#include "util/util.h"

static const char *const state_names[] = {
	[PEFTD__V1__JOB_STATE__JOB_PENDING] = "PENDING",
	[PEFTD__V1__JOB_STATE__JOB_HELD] = "HELD",
	[PEFTD__V1__JOB_STATE__JOB_STARTING] = "STARTING",
	[PEFTD__V1__JOB_STATE__JOB_RUNNING] = "RUNNING",
	[PEFTD__V1__JOB_STATE__JOB_PREEMPTING] = "PREEMPTING",
	[PEFTD__V1__JOB_STATE__JOB_CANCELLING] = "CANCELLING",
	[PEFTD__V1__JOB_STATE__JOB_SUCCEEDED] = "SUCCEEDED",
	[PEFTD__V1__JOB_STATE__JOB_FAILED] = "FAILED",
	[PEFTD__V1__JOB_STATE__JOB_CANCELLED] = "CANCELLED",
};

char *format_bytes(char out[FORMAT_SIZE], uint64_t bytes)
{
	static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	if (bytes < 1024) {
		snprintf(out, FORMAT_SIZE, "%llu B", (unsigned long long)bytes);
		return out;
	}
	double v = (double)bytes / 1024;
	size_t u = 0;
	while (v >= 1023.95 && u + 1 < ARRAY_LEN(units)) {
		v /= 1024;
		u++;
	}
	snprintf(out, FORMAT_SIZE, v < 99.95 ? "%.1f %s" : "%.0f %s", v, units[u]);
	return out;
}

char *format_count(char out[FORMAT_SIZE], uint64_t n)
{
	static const char units[] = {'k', 'M', 'G', 'T', 'P', 'E'};
	if (n < 10000) {
		snprintf(out, FORMAT_SIZE, "%llu", (unsigned long long)n);
		return out;
	}
	double v = (double)n / 1000;
	size_t u = 0;
	while (v >= 999.95 && u + 1 < ARRAY_LEN(units)) {
		v /= 1000;
		u++;
	}
	snprintf(out, FORMAT_SIZE, "%.1f %c", v, units[u]);
	return out;
}

char *format_duration(char out[FORMAT_SIZE], double seconds)
{
	if (!(seconds >= 0) || seconds > 1e9) {
		snprintf(out, FORMAT_SIZE, "unknown");
	} else if (seconds < 59.95) {
		snprintf(out, FORMAT_SIZE, seconds < 9.95 ? "%.1f s" : "%.0f s", seconds);
	} else {
		unsigned long s = (unsigned long)(seconds + 0.5);
		if (s < 3600) {
			snprintf(out, FORMAT_SIZE, "%lu:%02lu", s / 60, s % 60);
		} else {
			snprintf(out, FORMAT_SIZE, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
		}
	}
	return out;
}

char *format_span(char out[FORMAT_SIZE], double seconds)
{
	char figure[FORMAT_SIZE];
	if (!(seconds >= 0) || seconds >= 59.95) {
		return format_duration(out, seconds);
	}
	bool ms = seconds < 1;
	snprintf(out, FORMAT_SIZE, "%.30s %s", format_figure(figure, ms ? 1e3 * seconds : seconds, 3),
		ms ? "ms" : "s");
	return out;
}

char *format_time(char out[FORMAT_SIZE], uint64_t wall_ns)
{
	time_t t = (time_t)(wall_ns / 1000000000);
	struct tm tm;
	if (wall_ns == 0 || !localtime_r(&t, &tm) ||
		strftime(out, FORMAT_SIZE, "%Y-%m-%d %H:%M:%S", &tm) == 0) {
		snprintf(out, FORMAT_SIZE, "-");
	}
	return out;
}

char *format_figure(char out[FORMAT_SIZE], double v, int digits)
{
	double a = fabs(v);
	if (!isfinite(v)) {
		snprintf(out, FORMAT_SIZE, "%s", isnan(v) ? "NaN" : v > 0 ? "inf" : "-inf");
	} else if (a != 0 && (a < 1e-3 || a >= 1e7)) {
		snprintf(out, FORMAT_SIZE, "%.*e", digits - 1, v);
	} else {
		int before = a == 0 ? 1 : (int)floor(log10(a)) + 1;
		snprintf(out, FORMAT_SIZE, "%.*f", before < digits ? digits - before : 0, v);
	}
	return out;
}

char *format_double(char out[FORMAT_SIZE], double v)
{
	if (!isfinite(v)) {
		snprintf(out, FORMAT_SIZE, "null");
		return out;
	}
	/* 15 digits always fit, 17 always suffice. */
	for (int digits = 15; digits <= 17; digits++) {
		snprintf(out, FORMAT_SIZE, "%.*g", digits, v);
		if (strtod(out, NULL) == v) {
			break;
		}
	}
	/* A whole number stays a real number for readers that tell the two apart. */
	if (!strpbrk(out, ".e")) {
		size_t n = strlen(out);
		snprintf(out + n, FORMAT_SIZE - n, ".0");
	}
	return out;
}

const char *format_state(int state)
{
	return state >= 0 && (size_t)state < ARRAY_LEN(state_names) ? state_names[state] : "UNKNOWN";
}

bool format_parse_state(const char *s, int *ret)
{
	for (size_t i = 0; i < ARRAY_LEN(state_names); i++) {
		if (strcasecmp(s, state_names[i]) == 0) {
			*ret = (int)i;
			return true;
		}
	}
	return false;
}

bool format_state_is_final(int state)
{
	return state == PEFTD__V1__JOB_STATE__JOB_SUCCEEDED ||
		state == PEFTD__V1__JOB_STATE__JOB_FAILED ||
		state == PEFTD__V1__JOB_STATE__JOB_CANCELLED;
}

char *format_text(const ProtobufCBinaryData *b)
{
	_cleanup_(buf_deinit) struct buf out = {0};
	return term_escape(&out, b->data, b->len, 0) < 0 ? NULL : buf_steal(&out, NULL);
}

size_t format_columns(const char *s, size_t len)
{
	size_t n = 0;
	for (size_t i = 0; i < len; i++) {
		n += ((unsigned char)s[i] & 0xC0) != 0x80;
	}
	return n;
}

/* ---- tables ------------------------------------------------------------------------------ */

void table_deinit(struct table *t)
{
	for (size_t i = 0; i < t->n; i++) {
		free(t->cells[i]);
	}
	free(t->cells);
}

/* Takes ownership of `s`. */
static void add_cell(struct table *t, char *s)
{
	if (t->n == t->cap) {
		size_t cap = t->cap ? 2 * t->cap : 64;
		char **grown = realloc_array(t->cells, cap, sizeof(*grown));
		if (!grown) {
			free(s);
			t->failed = true;
			return;
		}
		t->cells = grown;
		t->cap = cap;
	}
	if (!s) {
		t->failed = true;
		return;
	}
	t->cells[t->n++] = s;
}

void table_cell(struct table *t, const char *fmt, ...)
{
	va_list ap;
	char *s;
	va_start(ap, fmt);
	int n = vasprintf(&s, fmt, ap);
	va_end(ap);
	add_cell(t, n < 0 ? NULL : s);
}

void table_cell_text(struct table *t, const ProtobufCBinaryData *b)
{
	add_cell(t, format_text(b));
}

/* One row, without spaces at its end. */
static void print_row(const struct table *t, FILE *f, const size_t *widths, char *const *cells)
{
	size_t last = t->columns;
	while (last > 0 && cells[last - 1][0] == '\0') {
		last--;
	}
	for (size_t i = 0; i < last; i++) {
		int pad = (int)(widths[i] - format_columns(cells[i], strlen(cells[i])));
		bool right = t->right >> i & 1;
		fprintf(f, "%*s%s%*s%s", right ? pad : 0, "", cells[i],
			right || i + 1 == last ? 0 : pad, "", i + 1 < last ? "  " : "");
	}
	fputc('\n', f);
}

int table_print(struct table *t, FILE *f)
{
	if (t->failed) {
		return -ENOMEM;
	}
	_cleanup_(freep) size_t *widths = calloc_array(t->columns, sizeof(*widths));
	if (!widths) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < t->n; i++) {
		size_t w = format_columns(t->cells[i], strlen(t->cells[i]));
		widths[i % t->columns] = (size_t)max_i64((int64_t)widths[i % t->columns], (int64_t)w);
	}
	for (size_t i = 0; i + t->columns <= t->n; i += t->columns) {
		print_row(t, f, widths, t->cells + i);
	}
	return 0;
}
