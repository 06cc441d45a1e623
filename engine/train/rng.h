#pragma once
/*
 * Streams of the counter-based generator (kernels/kernels.h): every random number of a run is a
 * function of (seed, purpose, up to three coordinates, element). No generator has a state, so none
 * needs saving.
 */

#include <stdint.h>

#include "kernels/kernels.h"

enum rng_purpose {
	RNG_INIT = 1,    /* module */
	RNG_DROPOUT = 2, /* step, site, sequence within the step */
	RNG_ORDER = 3,   /* epoch, round */
	RNG_SAMPLE = 4,  /* position */
};

/* Mixes the coordinates into one stream, by the finalizer of SplitMix64 (Steele et al. 2014). */
static inline uint64_t rng_stream(enum rng_purpose purpose, uint64_t a, uint64_t b, uint64_t c)
{
	const uint64_t words[4] = {(uint64_t)purpose, a, b, c};
	uint64_t x = 0;
	for (int i = 0; i < 4; i++) {
		x += words[i] + 0x9e3779b97f4a7c15u;
		x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
		x = (x ^ x >> 27) * 0x94d049bb133111ebu;
		x ^= x >> 31;
	}
	return x;
}
