#pragma once
/* Figures and tables for people. Each format_x() writes into a caller's array and returns it. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/proto.h"
#include "util/buf.h"

enum { FORMAT_SIZE = 40 };

/* 1536 → "1.5 KiB". */
char *format_bytes(char out[FORMAT_SIZE], uint64_t bytes);

/* 134515008 → "134.5 M". */
char *format_count(char out[FORMAT_SIZE], uint64_t n);

/* 3725 → "1:02:05", 75 → "1:15", 4.2 → "4.2 s". "unknown" for what is no duration. */
char *format_duration(char out[FORMAT_SIZE], double seconds);

/* A time that was measured, to three digits: 0.00123 → "1.23 ms", 0.123 → "123 ms", 1.23 →
 * "1.23 s"; from a minute on as format_duration(). */
char *format_span(char out[FORMAT_SIZE], double seconds);

/* "2026-11-23 08:35:07", local time; "-" for 0. */
char *format_time(char out[FORMAT_SIZE], uint64_t wall_ns);

/* A figure with `digits` significant digits, without an exponent where that is readable. */
char *format_figure(char out[FORMAT_SIZE], double v, int digits);

/* The shortest decimal that reads back as the same double; "null" when it is not finite, since JSON
 * has no word for that. */
char *format_double(char out[FORMAT_SIZE], double v);

/* "PENDING", "RUNNING", …; "UNKNOWN" for a state of a newer daemon. And back, in any case: false
 * for none. */
const char *format_state(int state);
bool format_parse_state(const char *s, int *ret);

/* A name's state is final: SUCCEEDED, FAILED, CANCELLED. */
bool format_state_is_final(int state);

/* Text from outside, escaped for a terminal, in its own memory; NULL without memory. */
char *format_text(const ProtobufCBinaryData *b);

/* Columns a terminal needs, taking each code point for one. */
size_t format_columns(const char *s, size_t len);

/*
 * A table: cells row by row, printed with columns as wide as they need to be. Cells whose column is
 * in `right` (a bit a column) are aligned to the right.
 */
struct table {
	size_t columns;
	unsigned right;
	char **cells; /* owned, as are the strings */
	size_t n, cap;
	bool failed;  /* out of memory: table_print() says so */
};

void table_deinit(struct table *t);
void table_cell(struct table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void table_cell_text(struct table *t, const ProtobufCBinaryData *b); /* escaped */
int table_print(struct table *t, FILE *f);
