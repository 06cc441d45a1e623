#include "engine/model/rope.h"

#include <math.h>
#include <stdbool.h>

int64_t rope_dim(const struct model_config *c)
{
	return c->rotary_dim > 0 ? c->rotary_dim : c->head_dim;
}

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

/* YaRN (Peng et al. 2023): the dimension that turns so often within the original length. */
static double yarn_dimension(const struct model_config *c, double rotations)
{
	double context = (double)c->rope.original_max_position_embeddings;
	return (double)rope_dim(c) * log(context / (rotations * 2 * M_PI)) / (2 * log(c->rope_theta));
}

/* Frequency i is interpolated beyond `beta_slow` rotations, left alone below `beta_fast`, blended by a
 * ramp over dimensions between them; as transformers' _compute_yarn_parameters. */
static float scale_yarn(const struct model_config *c, int64_t i, float pos_freq)
{
	double low = yarn_dimension(c, c->rope.beta_fast), high = yarn_dimension(c, c->rope.beta_slow);
	if (!c->rope.no_truncate) {
		low = floor(low);
		high = ceil(high);
	}
	low = fmax(low, 0);
	high = fmin(high, (double)(rope_dim(c) - 1));
	if (low == high) {
		high += 0.001;
	}
	float ramp = ((float)i - (float)low) / (float)(high - low);
	float keep = 1 - fminf(fmaxf(ramp, 0), 1);
	float extrapolated = 1.0f / pos_freq, interpolated = 1.0f / ((float)c->rope.factor * pos_freq);
	return interpolated * (1 - keep) + extrapolated * keep;
}

static double yarn_mscale(double factor, double mscale)
{
	return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

/* What cosines and sines are multiplied by. */
static double attention_factor(const struct model_config *c)
{
	double factor = c->rope.factor, original = (double)c->rope.original_max_position_embeddings;
	if (c->rope_scaling != ROPE_SCALING_YARN && c->rope_scaling != ROPE_SCALING_LONGROPE) {
		return 1;
	}
	if (c->rope.attention_factor > 0) {
		return c->rope.attention_factor;
	}
	if (c->rope_scaling == ROPE_SCALING_LONGROPE) {
		return factor <= 1 ? 1 : sqrt(1 + log(factor) / log(original));
	}
	if (c->rope.mscale > 0 && c->rope.mscale_all_dim > 0) {
		return yarn_mscale(factor, c->rope.mscale) / yarn_mscale(factor, c->rope.mscale_all_dim);
	}
	return yarn_mscale(factor, 1);
}

/* Angle by position. Dynamic scaling and long factors begin beyond the original length, which no
 * sequence exceeds here. */
static float frequency(const struct model_config *c, int table, int64_t i)
{
	float exponent = (float)(2 * i) / (float)rope_dim(c);
	float pos_freq = powf((float)(table ? c->rope_local_theta : c->rope_theta), exponent);
	float inv_freq = 1.0f / pos_freq;
	if (table) {
		return inv_freq;
	}
	switch (c->rope_scaling) {
	case ROPE_SCALING_NONE:
	case ROPE_SCALING_DYNAMIC:
		break;
	case ROPE_SCALING_LINEAR:
		return inv_freq / (float)c->rope.factor;
	case ROPE_SCALING_LLAMA3:
		return scale_llama3(c, inv_freq);
	case ROPE_SCALING_YARN:
		return scale_yarn(c, i, pos_freq);
	case ROPE_SCALING_LONGROPE:
		return 1.0f / (c->rope.short_factor[i] * pos_freq);
	}
	return inv_freq;
}

void rope_table(const struct model_config *c, int table, int64_t n_positions, float *out)
{
	int64_t dim = rope_dim(c), half = dim / 2;
	float scale = (float)(table ? 1 : attention_factor(c));
	for (int64_t i = 0; i < half; i++) {
		float inv_freq = frequency(c, table, i);
		for (int64_t p = 0; p < n_positions; p++) {
			float angle = (float)p * inv_freq;
			out[p * dim + i] = cosf(angle) * scale;
			out[p * dim + half + i] = sinf(angle) * scale;
		}
	}
}
