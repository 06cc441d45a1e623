#pragma once
/*
 * Activation functions and their derivatives, within some units in the last place also where they are
 * small. With s the logistic function, Φ and φ the normal distribution and its density:
 *
 *	silu(x) = x·s(x)                     gelu(x) = x·Φ(x), derivative Φ(x) + x·φ(x)
 *	gelu_new(x) = x·s(2u), u = √(2/π)·(x + 0.044715·x³): the tanh form, as tanh(u) = 2·s(2u) − 1
 *
 * Each is a function of x alone, so the backward pass keeps no more than x.
 */

#include "kernels/cpu/vec.h"

#define LEAKY_SLOPE 0.01f /* torch.nn.functional.leaky_relu's default */

ALWAYS_INLINE vf sigmoid(vf x)
{
	return 1.0f / (1.0f + vf_exp(-x));
}

ALWAYS_INLINE vf vf_abs(vf x)
{
	return (vf)((vi)x & 0x7FFFFFFF);
}

/* Near 0, where 1 − 2/(e^2x + 1) would cancel, an odd polynomial fitted to 2e-8. */
ALWAYS_INLINE vf vf_tanh(vf x)
{
	vf z = x * x;
	vf p = z * -6.001799502e-3f + 2.09314231e-2f;
	p = p * z - 5.383701618e-2f;
	p = p * z + 1.33326790e-1f;
	p = p * z - 3.333332807e-1f;
	vf near = x + x * z * p;
	vf far = 1.0f - 2.0f / (1.0f + vf_exp(2.0f * x));
	return vf_select(vf_abs(x) < 0.625f, near, far);
}

/* Φ(x), and e^(-x²/2) besides. For x < 0 it is e^(-x²/2) · t·Q(t), t = 1/(1 + 0.3|x|), with Q fitted to
 * erfcx at Chebyshev's points, relative error 2e-8; x² is cut in two so that its rounding does not show
 * in the exponential. */
ALWAYS_INLINE vf normal(vf x, vf *ret_exp)
{
	vf a = vf_min_or_b(vf_abs(x), vf_set(14.0f)); /* beyond, the exponential is 0 */
	vf t = 1.0f / (1.0f + 0.3f * a);
	vf q = t * -1.106227898e-2f + 4.030691956e-2f;
	q = q * t - 3.337616052e-2f;
	q = q * t - 2.924608357e-2f;
	q = q * t + 2.096093529e-2f;
	q = q * t + 1.664452708e-2f;
	q = q * t + 6.043820197e-2f;
	q = q * t + 8.703618296e-2f;
	q = q * t + 1.089329046e-1f;
	q = q * t + 1.196821539e-1f;
	q = q * t + 1.196826862e-1f;
	vf hi = (vf)((vi)a & (int32_t)0xFFFFF000);
	vf e = vf_exp(-0.5f * hi * hi) * vf_exp(-0.5f * (a - hi) * (a + hi));
	*ret_exp = e;
	vf tail = e * (t * q);
	return vf_select(x < 0.0f, tail, 1.0f - tail);
}

#define GELU_NEW_SCALE 1.5957691216057308f /* 2·√(2/π) */

ALWAYS_INLINE vf activation_vec(vf x, enum activation kind)
{
	vf e;
	switch (kind) {
	case ACTIVATION_RELU:
		return vf_select(x > 0.0f, x, vf_select(x != x, x, vf_set(0)));
	case ACTIVATION_GELU:
		return x * normal(x, &e);
	case ACTIVATION_GELU_NEW:
		return x * sigmoid(GELU_NEW_SCALE * (x + 0.044715f * x * x * x));
	case ACTIVATION_SILU:
		return x * sigmoid(x);
	case ACTIVATION_TANH:
		return vf_tanh(x);
	case ACTIVATION_SIGMOID:
		return sigmoid(x);
	case ACTIVATION_LEAKY_RELU:
		return vf_select(x > 0.0f, x, LEAKY_SLOPE * x);
	}
	return x;
}

ALWAYS_INLINE vf activation_derivative_vec(vf x, enum activation kind)
{
	vf e, s, p;
	switch (kind) {
	case ACTIVATION_RELU:
		return vf_select(x > 0.0f, vf_set(1), vf_set(0));
	case ACTIVATION_GELU:
		p = normal(x, &e);
		return p + x * e * 0.3989422804f;
	case ACTIVATION_GELU_NEW:
		s = sigmoid(GELU_NEW_SCALE * (x + 0.044715f * x * x * x));
		return s + x * s * (1.0f - s) * (GELU_NEW_SCALE * (1.0f + 0.134145f * x * x));
	case ACTIVATION_SILU:
		s = sigmoid(x);
		return s * (1.0f + x * (1.0f - s));
	case ACTIVATION_TANH:
		s = sigmoid(2.0f * x);
		return 4.0f * s * (1.0f - s);
	case ACTIVATION_SIGMOID:
		s = sigmoid(x);
		return s * (1.0f - s);
	case ACTIVATION_LEAKY_RELU:
		return vf_select(x > 0.0f, vf_set(1), vf_set(LEAKY_SLOPE));
	}
	return vf_set(1);
}

/* cap · tanh(x / cap). */
ALWAYS_INLINE vf softcap_vec(vf x, float cap)
{
	return cap * vf_tanh(x * (1.0f / cap));
}
