#pragma once
/* Tables of rotary position embeddings. */

#include "engine/model/model.h"

/* Elements of a head that turn. */
int64_t rope_dim(const struct model_config *c);

/*
 * out[n_positions, rope_dim()], host memory: cosines in the first half of a row, sines in the second, in
 * f32 step by step as transformers' modeling_rope_utils computes them. `table` 0: the model's; 1: that
 * of its local layers, rope_local_theta without scaling.
 */
void rope_table(const struct model_config *c, int table, int64_t n_positions, float *out);
