/* Leading factors by subspace iteration, as pissa_niter_N has them, against the exact ones. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/peft/decompose.h"
#include "engine/peft/peft.h"

enum { OUT = 56, IN = 40, R = 5, SMALL = 40 };

/* Rows q[n, len], made orthonormal one after the other. */
static void orthonormal(double *q, int n, int len)
{
	for (int i = 0; i < n; i++) {
		double *row = q + i * len, norm = 0;
		for (int pass = 0; pass < 2; pass++) {
			for (int k = 0; k < i; k++) {
				double dot = 0;
				for (int j = 0; j < len; j++) {
					dot += row[j] * q[k * len + j];
				}
				for (int j = 0; j < len; j++) {
					row[j] -= dot * q[k * len + j];
				}
			}
		}
		for (int j = 0; j < len; j++) {
			norm += row[j] * row[j];
		}
		for (int j = 0; j < len; j++) {
			row[j] /= sqrt(norm);
		}
	}
}

static void random_rows(double *q, int n, int len, uint64_t index)
{
	float draws[OUT * OUT];
	peft_fill_normal(draws, (size_t)(n * len), 0, 1, 11, index);
	for (int i = 0; i < n * len; i++) {
		q[i] = (double)draws[i];
	}
	orthonormal(q, n, len);
}

/* Singular values: R of them from 1 down to 0.6, then from 0.6·gap down. */
static double value(int k, double gap)
{
	return k < R ? 1 - 0.1 * k : 0.6 * gap * pow(0.9, k - R);
}

static void make_matrix(float *w, double gap)
{
	static double left[SMALL * OUT], right[SMALL * IN];
	random_rows(left, SMALL, OUT, 0);
	random_rows(right, SMALL, IN, 1);
	for (int i = 0; i < OUT; i++) {
		for (int j = 0; j < IN; j++) {
			double sum = 0;
			for (int k = 0; k < SMALL; k++) {
				sum += left[k * OUT + i] * value(k, gap) * right[k * IN + j];
			}
			w[i * IN + j] = (float)sum;
		}
	}
}

/* How far the rows of a lie outside the space of the rows of b: at least the sine of the largest
 * angle. */
static double outside(const float *a, const float *b)
{
	double p[R * IN], q[R * IN], sum = 0;
	for (int i = 0; i < R * IN; i++) {
		p[i] = (double)a[i];
		q[i] = (double)b[i];
	}
	orthonormal(p, R, IN);
	orthonormal(q, R, IN);
	for (int i = 0; i < R; i++) {
		double rest[IN];
		for (int j = 0; j < IN; j++) {
			rest[j] = p[i * IN + j];
		}
		for (int k = 0; k < R; k++) {
			double dot = 0;
			for (int j = 0; j < IN; j++) {
				dot += p[i * IN + j] * q[k * IN + j];
			}
			for (int j = 0; j < IN; j++) {
				rest[j] -= dot * q[k * IN + j];
			}
		}
		for (int j = 0; j < IN; j++) {
			sum += rest[j] * rest[j];
		}
	}
	return sqrt(sum);
}

/* |B·A - B'·A'|, Frobenius. */
static double products_apart(const float *a, const float *b, const float *a2, const float *b2)
{
	double sum = 0;
	for (int i = 0; i < OUT; i++) {
		for (int j = 0; j < IN; j++) {
			double d = 0;
			for (int k = 0; k < R; k++) {
				d += (double)b[i * R + k] * (double)a[k * IN + j] -
					(double)b2[i * R + k] * (double)a2[k * IN + j];
			}
			sum += d * d;
		}
	}
	return sqrt(sum);
}

/*
 * Each iteration makes the tangent of the angle to the exact space smaller by the square of the
 * ratio of the singular values on both sides of the cut: after n, tan <= ratio^(2n+1) · tan of the
 * random start (Golub & Van Loan, theorem 8.2.2). A random start of R rows among IN has a tangent
 * below 100 with this seed; what is stored in f32 cannot be nearer than its rounding.
 */
static void test_iterations(void **state)
{
	static float w[OUT * IN], a[R * IN], b[OUT * R], a2[R * IN], b2[OUT * R];
	static const double ratios[] = {0.25, 0.5, 0.8};
	for (size_t g = 0; g < sizeof(ratios) / sizeof(ratios[0]); g++) {
		make_matrix(w, ratios[g]);
		assert_int_equal(decompose_svd(w, OUT, IN, R, a, b), 0);
		double before = INFINITY;
		for (int64_t n = 0; n <= 12; n += 2) {
			double bound = 100 * pow(ratios[g], 2 * (double)n + 1) + 2e-6;
			assert_int_equal(decompose_svd_random(w, OUT, IN, R, n, 0, a2, b2), 0);
			double off = outside(a2, a), apart = products_apart(a, b, a2, b2);
			if (!(off <= bound && apart <= 2 * bound)) {
				fail_msg("ratio %g, %d iterations: off by %g, products by %g, bound %g", ratios[g],
					(int)n, off, apart, bound);
			}
			assert_true(off <= before || off < 2e-6);
			before = off;
		}
	}
	/* With a gap that is wide it comes to the exact factors. */
	make_matrix(w, 0.25);
	assert_int_equal(decompose_svd(w, OUT, IN, R, a, b), 0);
	assert_int_equal(decompose_svd_random(w, OUT, IN, R, 8, 0, a2, b2), 0);
	assert_true(outside(a2, a) < 2e-6);
	for (int i = 0; i < R; i++) {
		double norm = 0;
		for (int j = 0; j < IN; j++) {
			norm += (double)a2[i * IN + j] * (double)a2[i * IN + j];
		}
		assert_true(fabs(norm - value(i, 0.25)) < 1e-5); /* √S·Uᵀ, in order */
	}
}

static void test_same_bits(void **state)
{
	static float w[OUT * IN], a[R * IN], b[OUT * R], a2[R * IN], b2[OUT * R];
	make_matrix(w, 0.8);
	assert_int_equal(decompose_svd_random(w, OUT, IN, R, 4, 3, a, b), 0);
	assert_int_equal(decompose_svd_random(w, OUT, IN, R, 4, 3, a2, b2), 0);
	assert_memory_equal(a, a2, sizeof(a));
	assert_memory_equal(b, b2, sizeof(b));
	assert_int_equal(decompose_svd_random(w, OUT, IN, R, 4, 4, a2, b2), 0);
	assert_true(products_apart(a, b, a2, b2) > 0); /* the seed is what it starts from */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_iterations),
		cmocka_unit_test(test_same_bits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
