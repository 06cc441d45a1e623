#pragma once
/* Plots as inline SVG. */

#include <stdbool.h>
#include <stddef.h>

#include "util/buf.h"

enum { PLOT_GREY = 9999 }; /* a colour that no number has */

struct plot_point {
	double x, y;
	double spread; /* of y, up and down; NaN or 0: none */
	const char *label; /* beside it; NULL: none */
	bool marked;   /* filled */
};

struct plot_series {
	const struct plot_point *points; /* those with an x or y that is no number are left out */
	size_t n;
	unsigned color; /* a number; equal ones look equal */
	bool line, dots;
	const char *title; /* what a pointer over it tells; may be NULL */
};

struct plot {
	const char *title, *x_label, *y_label;
	bool x_bytes, x_seconds; /* how x is written at the axis */
	const struct plot_series *series;
	size_t n;
};

/* Appends an <svg> element, 720 by 420, well-formed as XML; without a point it says so. -ENOMEM. */
int plot_svg(struct buf *out, const struct plot *p);

/* "#rrggbb" of a colour's number. */
const char *plot_color(unsigned color);

/* Appends text for HTML: what means something there is escaped, control characters are left out. */
int plot_text(struct buf *out, const char *text, size_t len);
