#pragma once
/* 16-bit floats to f32, exactly: every value, infinity and NaN included. */

#include <stdint.h>
#include <string.h>

static inline float f32_from_bits(uint32_t bits)
{
	float f;
	memcpy(&f, &bits, sizeof(f));
	return f;
}

static inline float bf16_to_f32(uint16_t h)
{
	return f32_from_bits((uint32_t)h << 16);
}

static inline float f16_to_f32(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3FF;
	if (exponent == 31) {
		return f32_from_bits(sign | 0x7F800000 | mantissa << 13);
	}
	if (exponent == 0) {
		/* Subnormal: mantissa · 2^-24, which f32 holds exactly. */
		float f = (float)mantissa * 0x1p-24f;
		return sign ? -f : f;
	}
	return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}
