#include "engine/generate/sample.h"

#include <math.h>

/* Keskar et al. 2019; transformers' RepetitionPenaltyLogitsProcessor. */
static void penalize(float *scores, const uint8_t *seen, int64_t n, float penalty)
{
	for (int64_t i = 0; i < n; i++) {
		if (seen[i]) {
			scores[i] = scores[i] < 0 ? scores[i] * penalty : scores[i] / penalty;
		}
	}
}

/* ---- the likeliest, one after the other: a heap of tokens ------------------------------------ */

/* Of equal ones the first comes first. */
static bool before(const float *scores, int32_t a, int32_t b)
{
	return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
}

static void sift(const float *scores, int32_t *heap, int64_t n, int64_t i)
{
	int32_t token = heap[i];
	for (int64_t child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && before(scores, heap[child + 1], heap[child])) {
			child++;
		}
		if (!before(scores, heap[child], token)) {
			break;
		}
		heap[i] = heap[child];
	}
	heap[i] = token;
}

static void heap_make(const float *scores, int32_t *heap, int64_t n)
{
	for (int64_t i = 0; i < n; i++) {
		heap[i] = (int32_t)i;
	}
	for (int64_t i = n / 2 - 1; i >= 0; i--) {
		sift(scores, heap, n, i);
	}
}

/* Takes the likeliest of the *n that are left. */
static int32_t heap_take(const float *scores, int32_t *heap, int64_t *n)
{
	int32_t token = heap[0];
	heap[0] = heap[--*n];
	if (*n > 0) {
		sift(scores, heap, *n, 0);
	}
	return token;
}

/* ---- processors ------------------------------------------------------------------------------ */

/* What scores less than `least` is out. */
static void cut_below(float *scores, int64_t n, float least)
{
	for (int64_t i = 0; i < n; i++) {
		scores[i] = scores[i] < least ? -INFINITY : scores[i];
	}
}

/* Fan et al. 2018; ties with the last of them stay, as in TopKLogitsWarper. */
static void cut_top_k(float *scores, int32_t *heap, int64_t n, int64_t k)
{
	int64_t left = n;
	int32_t last = 0;
	heap_make(scores, heap, n);
	for (int64_t i = 0; i < k && left > 0; i++) {
		last = heap_take(scores, heap, &left);
	}
	cut_below(scores, n, scores[last]);
}

/* Holtzman et al. 2020: a token stays when those before it have not reached p yet. Those that stay are
 * at the end of the heap's memory, which the heap no longer needs. */
static void cut_top_p(float *scores, int32_t *heap, int64_t n, double p)
{
	int64_t left = n, kept = n;
	double sum = 0, reached = 0;
	heap_make(scores, heap, n);
	float top = scores[heap[0]];
	for (int64_t i = 0; i < n; i++) {
		sum += exp((double)(scores[i] - top));
	}
	do {
		int32_t token = heap_take(scores, heap, &left);
		reached += exp((double)(scores[token] - top)) / sum;
		heap[--kept] = token;
	} while (left > 0 && reached < p);
	for (int64_t i = 0; i < left; i++) {
		scores[heap[i]] = -INFINITY;
	}
}

void sample_process(const struct generate_options *o, float *scores, const uint8_t *seen,
	int32_t *heap, int64_t n)
{
	if (o->repetition_penalty > 0 && o->repetition_penalty != 1) {
		penalize(scores, seen, n, (float)o->repetition_penalty);
	}
	if (o->temperature == 0) {
		return;
	}
	for (int64_t i = 0; i < n; i++) {
		scores[i] = (float)(scores[i] / o->temperature);
	}
	if (o->top_k > 0 && o->top_k < n) {
		cut_top_k(scores, heap, n, o->top_k);
	}
	if (o->top_p > 0 && o->top_p < 1) {
		cut_top_p(scores, heap, n, o->top_p);
	}
}

int32_t sample_greedy(const float *scores, int64_t n)
{
	int32_t best = 0;
	for (int64_t i = 1; i < n; i++) {
		best = scores[i] > scores[best] ? (int32_t)i : best;
	}
	return best;
}

int32_t sample_draw(const float *scores, int64_t n, struct rng_key key)
{
	double top = scores[sample_greedy(scores, n)], sum = 0, running = 0;
	for (int64_t i = 0; i < n; i++) {
		sum += exp(scores[i] - top);
	}
	double target = ((double)rng_bits(key, 0) + 0.5) / 4294967296.0 * sum;
	int32_t last = 0;
	for (int64_t i = 0; i < n; i++) {
		double p = exp(scores[i] - top);
		running += p;
		last = p > 0 ? (int32_t)i : last;
		if (running >= target) {
			return last;
		}
	}
	return last;
}
