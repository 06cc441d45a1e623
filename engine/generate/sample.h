#pragma once
/*
 * The choice of a token from the model's logits, as transformers' processors make it, in their order:
 * repetition penalty; then, unless greedy, temperature, the top_k likeliest, and of these the
 * likeliest that together reach top_p.
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "kernels/kernels.h"

/* Changes scores[n] to the logarithms, up to a constant, of what is drawn from; -inf: never. seen[n]:
 * what the prompt and the answer so far hold. `heap`: scratch, [n]. */
void sample_process(const struct generate_options *o, float *scores, const uint8_t *seen,
	int32_t *heap, int64_t n);

int32_t sample_greedy(const float *scores, int64_t n);
/* Draws by one uniform number, that of `key`: the token at which the running sum passes it. */
int32_t sample_draw(const float *scores, int64_t n, struct rng_key key);
