#pragma once
/* Which samples make up a step: a function of (seed, epoch), so that any step is found at once. */

#include <stdbool.h>
#include <stdint.h>

struct order {
	uint64_t n; /* samples */
	int64_t batch_size;
	uint64_t seed;
	bool sequential;
};

int64_t order_steps_per_epoch(const struct order *o);
/* Samples of step `step` (from 0): batch_size, fewer in the last of an epoch. */
int64_t order_step_size(const struct order *o, int64_t step);
/* Sample number k of that step. */
uint64_t order_sample(const struct order *o, int64_t step, int64_t k);

/* Where position `i` of an epoch lands: a permutation of [0, n). */
uint64_t order_permute(uint64_t i, uint64_t n, uint64_t seed, uint64_t epoch);
