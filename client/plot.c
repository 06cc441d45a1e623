#include "client/plot.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "client/format.h"
#include "util/util.h"

enum {
	WIDTH = 720,
	HEIGHT = 420,
	LEFT = 78,
	RIGHT = 24,
	TOP = 40,
	BOTTOM = 56,
	TICKS = 5,
};

/* Okabe and Ito's colours, which people with any colour vision can tell apart. */
static const char *const colors[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
	"#56b4e9", "#000000", "#8c6d31"};

const char *plot_color(unsigned color)
{
	return color == PLOT_GREY ? "#777777" : colors[color % ARRAY_LEN(colors)];
}

int plot_text(struct buf *out, const char *text, size_t len)
{
	int r = 0;
	for (size_t i = 0, n; i < len && r == 0; i += n) {
		const char *s = text + i;
		for (n = 1; n < 4 && n < len - i && !utf8_valid(s, n, NULL); n++) {
		}
		if (!utf8_valid(s, n, NULL)) {
			n = 1;
			r = buf_append(out, "?", 1);
		} else if (*s == '&' || *s == '<' || *s == '>' || *s == '"' || *s == '\'') {
			r = buf_appendf(out, "&#%d;", *s);
		} else if ((unsigned char)*s >= 0x20 && *s != 0x7F) {
			r = buf_append(out, s, n);
		}
	}
	return r;
}

static int text(struct buf *out, const char *s)
{
	return s ? plot_text(out, s, strlen(s)) : 0;
}

/* ---- scales ------------------------------------------------------------------------------ */

struct scale {
	double low, high, step; /* of the values; a tick at each multiple of step */
	double from, to;        /* pixels */
};

static bool is_there(const struct plot_point *p)
{
	return isfinite(p->x) && isfinite(p->y);
}

static double spread_of(const struct plot_point *p)
{
	return isfinite(p->spread) ? p->spread : 0;
}

/* 1, 2 or 5 times a power of ten; of bytes, a power of two. */
static double round_step(double raw, bool bytes)
{
	if (bytes) {
		return exp2(round(log2(raw)));
	}
	double power = pow(10, floor(log10(raw))), unit = raw / power;
	return power * (unit < 1.5 ? 1 : unit < 3.5 ? 2 : unit < 7.5 ? 5 : 10);
}

/* Some TICKS ticks. */
static void make_scale(struct scale *s, double low, double high, double from, double to, bool bytes)
{
	double room = high > low ? 0.05 * (high - low) : fmax(fabs(high) * 0.05, 1e-6);
	bool positive = low >= 0;
	low -= room;
	high += room;
	low = positive && low < 0 ? 0 : low;
	*s = (struct scale){low, high, round_step((high - low) / TICKS, bytes), from, to};
}

static double place(const struct scale *s, double v)
{
	return s->from + (v - s->low) / (s->high - s->low) * (s->to - s->from);
}

static bool make_scales(const struct plot *p, struct scale *x, struct scale *y)
{
	double left = INFINITY, right = -INFINITY, low = INFINITY, high = -INFINITY;
	for (size_t i = 0; i < p->n; i++) {
		for (size_t k = 0; k < p->series[i].n; k++) {
			const struct plot_point *at = &p->series[i].points[k];
			if (is_there(at)) {
				left = fmin(left, at->x);
				right = fmax(right, at->x);
				low = fmin(low, at->y - spread_of(at));
				high = fmax(high, at->y + spread_of(at));
			}
		}
	}
	if (!isfinite(left)) {
		return false;
	}
	make_scale(x, left, right, LEFT, WIDTH - RIGHT, p->x_bytes);
	make_scale(y, low, high, HEIGHT - BOTTOM, TOP, false);
	return true;
}

/* ---- drawing ----------------------------------------------------------------------------- */

static int draw_ticks(struct buf *out, const struct plot *p, const struct scale *s, bool is_x)
{
	int r = 0;
	for (double v = ceil(s->low / s->step) * s->step; v <= s->high && r == 0; v += s->step) {
		char words[FORMAT_SIZE];
		double at = place(s, v);
		double shown = fabs(v) < s->step / 1e6 ? 0 : v;
		if (is_x && p->x_bytes) {
			format_bytes(words, (uint64_t)fmax(shown, 0));
		} else if (is_x && p->x_seconds) {
			format_duration(words, shown);
		} else {
			format_figure(words, shown, 4);
		}
		if (is_x) {
			r = buf_appendf(out, "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>"
				"<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", at, TOP,
				at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 16, words);
		} else {
			r = buf_appendf(out, "<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>"
				"<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", LEFT, at,
				WIDTH - RIGHT, at, LEFT - 6, at + 4, words);
		}
	}
	return r;
}

static int draw_line(struct buf *out, const struct plot_series *s, const struct scale *x,
	const struct scale *y)
{
	const char *dashes[] = {"", " stroke-dasharray=\"6 3\"", " stroke-dasharray=\"2 3\""};
	size_t dash = s->color == PLOT_GREY ? 2 : s->color / ARRAY_LEN(colors) % ARRAY_LEN(dashes);
	int r = buf_appendf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"%s points=\"",
		plot_color(s->color), dashes[dash]);
	bool first = true;
	for (size_t i = 0; i < s->n && r == 0; i++) {
		if (is_there(&s->points[i])) {
			r = buf_appendf(out, "%s%.1f,%.1f", first ? "" : " ", place(x, s->points[i].x),
				place(y, s->points[i].y));
			first = false;
		}
	}
	r = r ? r : buf_appendf(out, "\"><title>");
	r = r ? r : text(out, s->title);
	return r ? r : buf_appendf(out, "</title></polyline>\n");
}

static int draw_dot(struct buf *out, const struct plot_series *s, const struct plot_point *p,
	const struct scale *x, const struct scale *y)
{
	double cx = place(x, p->x), cy = place(y, p->y);
	const char *color = plot_color(s->color);
	int r = 0;
	if (spread_of(p) > 0) {
		r = buf_appendf(out, "<line class=\"spread\" stroke=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" "
			"y2=\"%.1f\"/>", color, cx, place(y, p->y - spread_of(p)), cx,
			place(y, p->y + spread_of(p)));
	}
	r = r ? r : buf_appendf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%s\" stroke=\"%s\" fill=\"%s\">"
		"<title>", cx, cy, p->label ? "5" : "2.5", color, p->marked ? color : "none");
	r = r ? r : text(out, p->label ? p->label : s->title);
	r = r ? r : buf_appendf(out, "</title></circle>\n");
	if (r == 0 && p->label) {
		bool right = cx > WIDTH - 200;
		r = buf_appendf(out, "<text class=\"name\" x=\"%.1f\" y=\"%.1f\"%s>", cx + (right ? -8 : 8),
			cy - 6, right ? " text-anchor=\"end\"" : "");
		r = r ? r : text(out, p->label);
		r = r ? r : buf_appendf(out, "</text>\n");
	}
	return r;
}

static int draw_series(struct buf *out, const struct plot_series *s, const struct scale *x,
	const struct scale *y)
{
	int r = s->line ? draw_line(out, s, x, y) : 0;
	for (size_t i = 0; s->dots && i < s->n && r == 0; i++) {
		if (is_there(&s->points[i])) {
			r = draw_dot(out, s, &s->points[i], x, y);
		}
	}
	return r;
}

static int draw_labels(struct buf *out, const struct plot *p)
{
	int r = buf_appendf(out, "<text class=\"title\" x=\"%d\" y=\"24\">", LEFT);
	r = r ? r : text(out, p->title);
	r = r ? r : buf_appendf(out, "</text>\n<text class=\"axis\" x=\"%d\" y=\"%d\" "
		"text-anchor=\"middle\">", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14);
	r = r ? r : text(out, p->x_label);
	r = r ? r : buf_appendf(out, "</text>\n<text class=\"axis\" text-anchor=\"middle\" "
		"transform=\"translate(16 %d) rotate(-90)\">", (TOP + HEIGHT - BOTTOM) / 2);
	r = r ? r : text(out, p->y_label);
	return r ? r : buf_appendf(out, "</text>\n");
}

int plot_svg(struct buf *out, const struct plot *p)
{
	struct scale x, y;
	int r = buf_appendf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
		"width=\"%d\" height=\"%d\" role=\"img\">\n", WIDTH, HEIGHT, WIDTH, HEIGHT);
	r = r ? r : draw_labels(out, p);
	if (r == 0 && !make_scales(p, &x, &y)) {
		r = buf_appendf(out, "<text class=\"axis\" x=\"%d\" y=\"%d\">nothing is known</text>\n",
			LEFT, HEIGHT / 2);
	} else if (r == 0) {
		r = draw_ticks(out, p, &x, true);
		r = r ? r : draw_ticks(out, p, &y, false);
		for (size_t i = 0; i < p->n && r == 0; i++) {
			r = draw_series(out, &p->series[i], &x, &y);
		}
	}
	return r ? r : buf_appendf(out, "</svg>\n");
}
