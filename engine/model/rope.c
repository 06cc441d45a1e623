#include "engine/model/rope.h"

#include <math.h>

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones left alone, those between
 * blended; as transformers' _compute_llama3_parameters. */
static float scale_llama3(const struct model_config *c, float inv_freq)
{
	double low = c->rope.low_freq_factor, high = c->rope.high_freq_factor;
	double old_len = (double)c->rope.original_max_position_embeddings;
	float factor = (float)c->rope.factor;
	float wavelength = (float)(2 * M_PI) / inv_freq;
	if (wavelength > (float)(old_len / low)) {
		return inv_freq / factor;
	}
	if (wavelength < (float)(old_len / high)) {
		return inv_freq;
	}
	float smooth = ((float)old_len / wavelength - (float)low) / (float)(high - low);
	return (1 - smooth) * inv_freq / factor + smooth * inv_freq;
}

void rope_table(const struct model_config *c, int64_t n_positions, float *out)
{
	int64_t half = c->head_dim / 2;
	for (int64_t i = 0; i < half; i++) {
		float exponent = (float)(2 * i) / (float)c->head_dim;
		float inv_freq = 1.0f / powf((float)c->rope_theta, exponent);
		if (c->rope_scaling == ROPE_SCALING_LINEAR) {
			inv_freq /= (float)c->rope.factor;
		} else if (c->rope_scaling == ROPE_SCALING_LLAMA3) {
			inv_freq = scale_llama3(c, inv_freq);
		}
		for (int64_t p = 0; p < n_positions; p++) {
			float angle = (float)p * inv_freq;
			out[p * c->head_dim + i] = cosf(angle);
			out[p * c->head_dim + half + i] = sinf(angle);
		}
	}
}
