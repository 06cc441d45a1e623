/*
 * The permutation is a Feistel network over the smallest even number of bits that holds n, with
 * Philox as round function; what lands outside of [0, n) walks on until it is inside (cycle
 * walking; Black & Rogaway 2002). No table, nothing to seek through: any element of any epoch in a
 * microsecond.
 */
#include "engine/train/order.h"

#include "engine/train/rng.h"
#include "util/util.h"

enum { ROUNDS = 12 };

static uint64_t feistel(uint64_t x, unsigned half_bits, uint64_t seed, uint64_t epoch)
{
	uint64_t mask = ((uint64_t)1 << half_bits) - 1;
	uint64_t left = x >> half_bits, right = x & mask;
	for (uint64_t round = 0; round < ROUNDS; round++) {
		struct rng_key key = {seed, rng_stream(RNG_ORDER, epoch, round, 0)};
		uint64_t next = left ^ (rng_bits(key, right) & mask);
		left = right;
		right = next;
	}
	return left << half_bits | right;
}

uint64_t order_permute(uint64_t i, uint64_t n, uint64_t seed, uint64_t epoch)
{
	unsigned half_bits = 1;
	while (half_bits < 31 && (uint64_t)1 << 2 * half_bits < n) {
		half_bits++;
	}
	do {
		i = feistel(i, half_bits, seed, epoch);
	} while (i >= n);
	return i;
}

int64_t order_steps_per_epoch(const struct order *o)
{
	return (int64_t)((o->n + (uint64_t)o->batch_size - 1) / (uint64_t)o->batch_size);
}

int64_t order_step_size(const struct order *o, int64_t step)
{
	int64_t in_epoch = step % order_steps_per_epoch(o);
	return min_i64(o->batch_size, (int64_t)o->n - in_epoch * o->batch_size);
}

uint64_t order_sample(const struct order *o, int64_t step, int64_t k)
{
	int64_t per_epoch = order_steps_per_epoch(o);
	uint64_t i = (uint64_t)(step % per_epoch * o->batch_size + k);
	return o->sequential ? i : order_permute(i, o->n, o->seed, (uint64_t)(step / per_epoch));
}
