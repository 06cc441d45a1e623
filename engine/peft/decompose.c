/*
 * Singular values come from the eigenvalues of W·Wᵀ or Wᵀ·W, whichever is smaller: reduced to
 * tridiagonal form by Householder reflections, then diagonalised by implicit QL (Wilkinson & Reinsch
 * 1971; Golub & Van Loan, chapter 8). Squaring halves the digits of the small singular values; the large
 * ones, which are wanted, keep more than f32 has.
 */
#include "engine/peft/decompose.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/util.h"

/* ---- symmetric eigenproblem ---------------------------------------------------------------- */

/*
 * Reduces the symmetric z[n, n] to tridiagonal form, T = H₁·H₂·…·z·…·H₂·H₁: d its diagonal, e[1…] what
 * stands beside it. Row k of z then holds H_k = 1 - beta·v·vᵀ: v in its first k places, beta in the next.
 */
static void tridiagonalize(double *z, int64_t n, double *d, double *e, double *v, double *p)
{
	for (int64_t k = n - 1; k >= 1; k--) {
		/* Row k, columns 0…k-1, is reflected onto its last element. */
		double *row = z + k * n, norm = 0;
		for (int64_t j = 0; j < k; j++) {
			norm += row[j] * row[j];
		}
		norm = sqrt(norm);
		e[k] = 0;
		d[k] = row[k];
		if (norm == 0) {
			row[k] = 0; /* no reflection */
			continue;
		}
		double alpha = row[k - 1] > 0 ? -norm : norm, square = 0;
		e[k] = alpha;
		row[k - 1] -= alpha;
		for (int64_t j = 0; j < k; j++) {
			square += row[j] * row[j];
		}
		double beta = 2 / square;
		row[k] = beta;
		/* p = beta·M·v; M -= v·qᵀ + q·vᵀ with q = p - (beta/2)(pᵀv)·v. */
		double dot = 0;
		for (int64_t i = 0; i < k; i++) {
			double sum = 0;
			for (int64_t j = 0; j < k; j++) {
				sum += z[i * n + j] * row[j];
			}
			p[i] = beta * sum;
			dot += p[i] * row[i];
		}
		for (int64_t i = 0; i < k; i++) {
			v[i] = row[i];
			p[i] -= beta / 2 * dot * v[i];
		}
		for (int64_t i = 0; i < k; i++) {
			for (int64_t j = 0; j < k; j++) {
				z[i * n + j] -= v[i] * p[j] + p[i] * v[j];
			}
		}
	}
	d[0] = z[0];
}

/* H₁·H₂·…, the product of the reflections that tridiagonalize() left in the rows of z, into q. */
static void gather_reflections(const double *z, int64_t n, double *q)
{
	memset(q, 0, (size_t)(n * n) * sizeof(*q));
	for (int64_t i = 0; i < n; i++) {
		q[i * n + i] = 1;
	}
	for (int64_t k = 1; k < n; k++) {
		const double *v = z + k * n;
		for (int64_t i = 0; i < k; i++) {
			double *row = q + i * n, dot = 0;
			for (int64_t j = 0; j < k; j++) {
				dot += row[j] * v[j];
			}
			dot *= v[k]; /* beta; 0: no reflection */
			for (int64_t j = 0; j < k; j++) {
				row[j] -= dot * v[j];
			}
		}
	}
}

/* Diagonalises the tridiagonal matrix; rotates the rows of q along. False when it does not end. */
static bool diagonalize(double *d, double *e, int64_t n, double *q)
{
	for (int64_t i = 1; i < n; i++) {
		e[i - 1] = e[i];
	}
	e[n - 1] = 0;
	for (int64_t l = 0; l < n; l++) {
		for (int tries = 0;; tries++) {
			int64_t m = l;
			while (m < n - 1 && fabs(e[m]) > DBL_EPSILON * (fabs(d[m]) + fabs(d[m + 1]))) {
				m++;
			}
			if (m == l) {
				break;
			}
			if (tries == 60) {
				return false;
			}
			/* A step of QL with Wilkinson's shift, chasing the bulge from m up to l. */
			double g = (d[l + 1] - d[l]) / (2 * e[l]), r = hypot(g, 1);
			g = d[m] - d[l] + e[l] / (g + copysign(r, g));
			double s = 1, c = 1, p = 0;
			int64_t i = m - 1;
			for (; i >= l; i--) {
				double f = s * e[i], b = c * e[i];
				r = hypot(f, g);
				e[i + 1] = r;
				if (r == 0) {
					d[i + 1] -= p;
					e[m] = 0;
					break;
				}
				s = f / r;
				c = g / r;
				g = d[i + 1] - p;
				r = (d[i] - g) * s + 2 * c * b;
				p = s * r;
				d[i + 1] = g + p;
				g = c * r - b;
				double *low = q + i * n, *high = q + (i + 1) * n;
				for (int64_t k = 0; k < n; k++) {
					double x = high[k];
					high[k] = s * low[k] + c * x;
					low[k] = c * low[k] - s * x;
				}
			}
			if (r == 0 && i >= l) {
				continue;
			}
			d[l] -= p;
			e[l] = g;
			e[m] = 0;
		}
	}
	return true;
}

/* Eigenvectors of the symmetric m[n, n], as the rows of q[n, n], with eigenvalues d[n]; m is used up.
 * -ENOMEM; -EDOM when it does not converge. */
static int eigen(double *m, int64_t n, double *d, double *q)
{
	_cleanup_(freep) double *e = calloc_array((size_t)n + 1, sizeof(*e));
	_cleanup_(freep) double *v = calloc_array((size_t)n, sizeof(*v));
	_cleanup_(freep) double *p = calloc_array((size_t)n, sizeof(*p));
	if (!e || !v || !p) {
		return -ENOMEM;
	}
	tridiagonalize(m, n, d, e, v, p);
	gather_reflections(m, n, q);
	return diagonalize(d, e, n, q) ? 0 : -EDOM;
}

/* The indices of the r largest of d[n]; ties by index. */
static void largest(const double *d, int64_t n, int64_t r, int64_t *ret)
{
	for (int64_t k = 0; k < r; k++) {
		int64_t best = -1;
		for (int64_t i = 0; i < n; i++) {
			bool taken = false;
			for (int64_t j = 0; j < k && !taken; j++) {
				taken = ret[j] == i;
			}
			if (!taken && (best < 0 || d[i] > d[best])) {
				best = i;
			}
		}
		ret[k] = best;
	}
}

/* ---- singular values ----------------------------------------------------------------------- */

/* m = x·xᵀ for x[rows, cols]. */
static void gram(const double *x, int64_t rows, int64_t cols, double *m)
{
	for (int64_t i = 0; i < rows; i++) {
		for (int64_t j = 0; j <= i; j++) {
			double sum = 0;
			for (int64_t k = 0; k < cols; k++) {
				sum += x[i * cols + k] * x[j * cols + k];
			}
			m[i * rows + j] = m[j * rows + i] = sum;
		}
	}
}

/*
 * Of x[rows, cols], rows <= cols: the r largest singular values s, left vectors left[r, rows] and right
 * vectors right[r, cols], all as rows.
 */
static int svd(const double *x, int64_t rows, int64_t cols, int64_t r, double *s, double *left,
	double *right)
{
	size_t square;
	if (!mul_size((size_t)rows, (size_t)rows, &square)) {
		return -ENOMEM;
	}
	_cleanup_(freep) double *m = alloc_array(square, sizeof(*m));
	_cleanup_(freep) double *q = alloc_array(square, sizeof(*q));
	_cleanup_(freep) double *d = alloc_array((size_t)rows, sizeof(*d));
	_cleanup_(freep) int64_t *order = alloc_array((size_t)r, sizeof(*order));
	if (!m || !q || !d || !order) {
		return -ENOMEM;
	}
	gram(x, rows, cols, m);
	int res = eigen(m, rows, d, q);
	if (res != 0) {
		return res;
	}
	largest(d, rows, r, order);
	for (int64_t k = 0; k < r; k++) {
		const double *u = q + order[k] * rows;
		double *v = right + k * cols;
		memcpy(left + k * rows, u, (size_t)rows * sizeof(*u));
		memset(v, 0, (size_t)cols * sizeof(*v));
		for (int64_t i = 0; i < rows; i++) {
			for (int64_t j = 0; j < cols; j++) {
				v[j] += u[i] * x[i * cols + j];
			}
		}
		double norm = 0;
		for (int64_t j = 0; j < cols; j++) {
			norm += v[j] * v[j];
		}
		s[k] = sqrt(norm);
		for (int64_t j = 0; j < cols && s[k] > 0; j++) {
			v[j] /= s[k];
		}
	}
	return 0;
}

/* w[out, in], or its transpose, in f64. */
static double *widen(const float *w, int64_t out, int64_t in, bool transpose)
{
	size_t n;
	double *x = mul_size((size_t)out, (size_t)in, &n) ? alloc_array(n, sizeof(*x)) : NULL;
	for (int64_t i = 0; x && i < out; i++) {
		for (int64_t j = 0; j < in; j++) {
			x[transpose ? j * out + i : i * in + j] = (double)w[i * in + j];
		}
	}
	return x;
}

/* a[r, in] and b[out, r] from singular values and vectors by rows. */
static void share(const double *s, const double *by_out, const double *by_in, int64_t out, int64_t in,
	int64_t r, float *a, float *b)
{
	for (int64_t k = 0; k < r; k++) {
		double root = sqrt(s[k]);
		for (int64_t j = 0; j < in; j++) {
			a[k * in + j] = (float)(root * by_in[k * in + j]);
		}
		for (int64_t i = 0; i < out; i++) {
			b[i * r + k] = (float)(root * by_out[k * out + i]);
		}
	}
}

int decompose_svd(const float *w, int64_t out, int64_t in, int64_t r, float *a, float *b)
{
	bool wide = out <= in;
	int64_t rows = wide ? out : in, cols = wide ? in : out;
	_cleanup_(freep) double *x = widen(w, out, in, !wide);
	_cleanup_(freep) double *s = alloc_array((size_t)r, sizeof(*s));
	_cleanup_(freep) double *left = alloc_array((size_t)r, (size_t)rows * sizeof(*left));
	_cleanup_(freep) double *right = alloc_array((size_t)r, (size_t)cols * sizeof(*right));
	if (!x || !s || !left || !right) {
		return -ENOMEM;
	}
	int res = svd(x, rows, cols, r, s, left, right);
	if (res == 0) {
		share(s, wide ? left : right, wide ? right : left, out, in, r, a, b);
	}
	return res;
}

/* ---- orthogonal vectors -------------------------------------------------------------------- */

/* Makes the rows of q[r, n] orthonormal, one after the other, twice for the sake of rounding. A row
 * that depends on those before it becomes zero. */
static void orthonormalize(double *q, int64_t r, int64_t n)
{
	for (int64_t k = 0; k < r; k++) {
		double *row = q + k * n, before = 0, after = 0;
		for (int64_t j = 0; j < n; j++) {
			before += row[j] * row[j];
		}
		for (int64_t i = 0; i < 2 * k; i++) {
			const double *other = q + (i % k) * n;
			double dot = 0;
			for (int64_t j = 0; j < n; j++) {
				dot += row[j] * other[j];
			}
			for (int64_t j = 0; j < n; j++) {
				row[j] -= dot * other[j];
			}
		}
		for (int64_t j = 0; j < n; j++) {
			after += row[j] * row[j];
		}
		double factor = after > before * 1e-24 ? 1 / sqrt(after) : 0;
		for (int64_t j = 0; j < n; j++) {
			row[j] *= factor;
		}
	}
}

/* y[r, rows] = q[r, cols]·xᵀ, x[rows, cols]; or y[r, cols] = q[r, rows]·x. */
static void times(const double *q, int64_t r, const double *x, int64_t rows, int64_t cols,
	bool transpose, double *y)
{
	memset(y, 0, (size_t)(r * (transpose ? rows : cols)) * sizeof(*y));
	for (int64_t k = 0; k < r; k++) {
		for (int64_t i = 0; i < rows; i++) {
			if (transpose) {
				double sum = 0;
				for (int64_t j = 0; j < cols; j++) {
					sum += q[k * cols + j] * x[i * cols + j];
				}
				y[k * rows + i] = sum;
			} else {
				for (int64_t j = 0; j < cols; j++) {
					y[k * cols + j] += q[k * rows + i] * x[i * cols + j];
				}
			}
		}
	}
}

int decompose_svd_random(const float *w, int64_t out, int64_t in, int64_t r, int64_t niter,
	uint64_t seed, float *a, float *b)
{
	size_t by_in, by_out;
	if (!mul_size((size_t)r, (size_t)in, &by_in) || !mul_size((size_t)r, (size_t)out, &by_out)) {
		return -ENOMEM;
	}
	_cleanup_(freep) double *x = widen(w, out, in, false);
	_cleanup_(freep) float *start = alloc_array(by_in, sizeof(*start));
	_cleanup_(freep) double *p = alloc_array(by_in, sizeof(*p)); /* rows of length in */
	_cleanup_(freep) double *q = alloc_array(by_out, sizeof(*q)); /* rows of length out */
	_cleanup_(freep) double *s = alloc_array((size_t)r, sizeof(*s));
	_cleanup_(freep) double *left = alloc_array((size_t)r, (size_t)r * sizeof(*left));
	_cleanup_(freep) double *right = alloc_array(by_in, sizeof(*right));
	_cleanup_(freep) double *turned = calloc_array(by_out, sizeof(*turned));
	if (!x || !start || !p || !q || !s || !left || !right || !turned) {
		return -ENOMEM;
	}
	peft_fill_normal(start, by_in, 0, 1, seed, 0);
	for (size_t i = 0; i < by_in; i++) {
		p[i] = (double)start[i];
	}
	times(p, r, x, out, in, true, q);
	orthonormalize(q, r, out);
	for (int64_t i = 0; i < niter; i++) {
		times(q, r, x, out, in, false, p);
		orthonormalize(p, r, in);
		times(p, r, x, out, in, true, q);
		orthonormalize(q, r, out);
	}
	/* W ≈ Qᵀ·(Q·W) and the small factor's own values. */
	times(q, r, x, out, in, false, p);
	int res = svd(p, r, in, r, s, left, right);
	for (int64_t k = 0; k < r && res == 0; k++) {
		for (int64_t l = 0; l < r; l++) {
			for (int64_t i = 0; i < out; i++) {
				turned[k * out + i] += left[k * r + l] * q[l * out + i];
			}
		}
	}
	if (res == 0) {
		share(s, turned, right, out, in, r, a, b);
	}
	return res;
}

int decompose_qr(const float *w, int64_t out, int64_t in, int64_t r, float *a, float *b)
{
	_cleanup_(freep) double *x = widen(w, out, in, false);
	_cleanup_(freep) double *q = alloc_array((size_t)r, (size_t)out * sizeof(*q));
	_cleanup_(freep) double *upper = alloc_array((size_t)r, (size_t)in * sizeof(*upper));
	if (!x || !q || !upper) {
		return -ENOMEM;
	}
	for (int64_t k = 0; k < r; k++) {
		for (int64_t i = 0; i < out; i++) {
			q[k * out + i] = x[i * in + k];
		}
	}
	orthonormalize(q, r, out);
	times(q, r, x, out, in, false, upper);
	for (int64_t k = 0; k < r; k++) {
		for (int64_t j = 0; j < in; j++) {
			a[k * in + j] = (float)upper[k * in + j];
		}
		for (int64_t i = 0; i < out; i++) {
			b[i * r + k] = (float)q[k * out + i];
		}
	}
	return 0;
}
