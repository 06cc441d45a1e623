#pragma once
/* Tables of rotary position embeddings. */

#include "engine/model/model.h"

/* out[n_positions, head_dim], host memory: cosines in the first half of a row, sines in the
 * second, in f32 step by step as transformers' modeling_rope_utils computes them. */
void rope_table(const struct model_config *c, int64_t n_positions, float *out);
