#pragma once
/* assert_allclose() for cmocka: arrays of doubles that should agree within a tolerance. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

/* How far one value may be from what is wanted. Two infinities of one sign agree, and two NaNs. */
static inline int allclose_one(double got, double want, double tolerance)
{
	if (isnan(got) || isnan(want)) {
		return isnan(got) && isnan(want);
	}
	return got == want || fabs(got - want) <= tolerance;
}

/*
 * Fails the test unless |got[i] - want[i]| <= atol + rtol · |want[i]| + bound[i] for all i < n (bound
 * NULL: 0). Names the first wrong index, where `cols` > 0 as row and column, the worst one, and how
 * many there are.
 */
static inline void allclose_check(const char *what, const double *got, const double *want, int64_t n,
	int64_t cols, double rtol, double atol, const double *bound, const char *file, int line)
{
	int64_t wrong = 0, first = -1, worst = -1;
	double worst_excess = -1;

	for (int64_t i = 0; i < n; i++) {
		double tolerance = atol + rtol * fabs(want[i]) + (bound ? bound[i] : 0);
		if (allclose_one(got[i], want[i], tolerance)) {
			continue;
		}
		double excess = fabs(got[i] - want[i]) / (tolerance > 0 ? tolerance : 1e-300);
		if (isnan(excess)) {
			excess = INFINITY;
		}
		if (wrong++ == 0) {
			first = i;
		}
		if (excess > worst_excess) {
			worst_excess = excess;
			worst = i;
		}
	}
	if (wrong == 0) {
		return;
	}

	int64_t width = cols > 0 ? cols : (n > 0 ? n : 1);
	print_error("%s: %lld of %lld values differ\n", what, (long long)wrong, (long long)n);
	print_error("  first at (%lld, %lld): got %.9g, want %.9g\n", (long long)(first / width),
		(long long)(first % width), got[first], want[first]);
	print_error("  worst at (%lld, %lld): got %.9g, want %.9g, %.3g times the tolerance\n",
		(long long)(worst / width), (long long)(worst % width), got[worst], want[worst],
		worst_excess);
	_fail(file, line);
}

#define assert_allclose(got, want, n, rtol, atol) \
	allclose_check(#got, (got), (want), (n), 0, (rtol), (atol), NULL, __FILE__, __LINE__)
