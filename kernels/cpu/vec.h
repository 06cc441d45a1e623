#pragma once
/*
 * Vectors as wide as the instruction set this file is compiled for, by the compiler's own vector
 * types, so that one source serves all of them. A tail shorter than a vector goes through a padded
 * copy.
 */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VLEN 16
#elif defined(__AVX__)
#define VLEN 8
#else
#define VLEN 4
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VLEN * 4)));
typedef int32_t vi __attribute__((vector_size(VLEN * 4)));
typedef uint32_t vu __attribute__((vector_size(VLEN * 4)));
typedef uint16_t vh __attribute__((vector_size(VLEN * 2)));

ALWAYS_INLINE vf vf_set(float x)
{
	return x - (vf){0}; /* not +: the sum of -0 and 0 is 0 */
}

ALWAYS_INLINE vf vf_load(const float *p)
{
	vf v;
	memcpy(&v, p, sizeof(v));
	return v;
}

ALWAYS_INLINE void vf_store(float *p, vf v)
{
	memcpy(p, &v, sizeof(v));
}

ALWAYS_INLINE vf vf_select(vi mask, vf yes, vf no)
{
	return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

ALWAYS_INLINE vf vf_max(vf a, vf b)
{
	return vf_select(a > b, a, b);
}

ALWAYS_INLINE float vf_sum(vf v)
{
	/* Halves onto halves: a fixed order. */
	float a[VLEN];
	vf_store(a, v);
	for (int n = VLEN / 2; n > 0; n /= 2) {
		for (int i = 0; i < n; i++) {
			a[i] += a[i + n];
		}
	}
	return a[0];
}

ALWAYS_INLINE float vf_hmax(vf v)
{
	float a[VLEN];
	vf_store(a, v);
	float m = a[0];
	for (int i = 1; i < VLEN; i++) {
		m = a[i] > m ? a[i] : m;
	}
	return m;
}

/* Between lanes of 16 and 32 bits; narrowing drops the high half. Compilers make many instructions of
 * __builtin_convertvector() where there is one. */
ALWAYS_INLINE vu vh_widen(vh h)
{
#if defined(__AVX512F__)
	return (vu)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
	return (vu)_mm256_cvtepu16_epi32((__m128i)h);
#else
	return __builtin_convertvector(h, vu);
#endif
}

ALWAYS_INLINE vh vu_narrow(vu u)
{
#if defined(__AVX512F__)
	return (vh)_mm512_cvtepi32_epi16((__m512i)u);
#elif defined(__AVX2__)
	__m256i halves = _mm256_packus_epi32((__m256i)(u & 0xFFFFu), _mm256_setzero_si256());
	return (vh)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
#else
	return __builtin_convertvector(u, vh);
#endif
}

ALWAYS_INLINE vf vf_from_bf16(vh h)
{
	return (vf)(vh_widen(h) << 16);
}

/* bf16 in the low half of each lane. Round to nearest even; NaN stays NaN. */
ALWAYS_INLINE vu bf16_lanes(vf v)
{
	vu u = (vu)v;
	vu rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
	vu quiet = (u >> 16) | 0x40u;
	vu nan = (vu)(v != v);
	return (rounded & ~nan) | (quiet & nan);
}

ALWAYS_INLINE vh vf_to_bf16_exact(vf v)
{
	return vu_narrow(bf16_lanes(v));
}

/* The same, except that values below 2^-126 may become 0: what the processor's own instruction does,
 * and the products of bf16 after it. */
ALWAYS_INLINE vh vf_to_bf16(vf v)
{
#if defined(__AVX512BF16__)
	return (vh)_mm512_cvtneps_pbh((__m512)v);
#else
	return vf_to_bf16_exact(v);
#endif
}

/* Lane by lane, lo in the low half and hi in the high half. */
ALWAYS_INLINE vu vf_bf16_pair(vf lo, vf hi)
{
#if defined(__AVX512BF16__)
	return vh_widen(vf_to_bf16(lo)) | vh_widen(vf_to_bf16(hi)) << 16;
#else
	return bf16_lanes(lo) | bf16_lanes(hi) << 16;
#endif
}

/* The same of what is bf16 already. */
ALWAYS_INLINE vu vh_pair(vh lo, vh hi)
{
	return vh_widen(lo) | vh_widen(hi) << 16;
}

/* Whether any lane of a comparison holds. */
ALWAYS_INLINE bool vf_any(vi mask)
{
#if defined(__AVX512F__)
	return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX__)
	return _mm256_movemask_ps((__m256)mask) != 0;
#else
	return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

/* ---- elements of either dtype of activations ----------------------------------------------- */

/* `bf16` is a constant wherever these are called, so the branch is gone after inlining. */

ALWAYS_INLINE const void *act_at(const void *p, int64_t i, bool bf16)
{
	return (const char *)p + i * (bf16 ? 2 : 4);
}

ALWAYS_INLINE void *act_at_mut(void *p, int64_t i, bool bf16)
{
	return (char *)p + i * (bf16 ? 2 : 4);
}

ALWAYS_INLINE const void *mat_row(struct mat m, int64_t i, bool bf16)
{
	return act_at(m.data, i * m.stride, bf16);
}

ALWAYS_INLINE void *mat_row_mut(struct mat m, int64_t i, bool bf16)
{
	return act_at_mut(m.data, i * m.stride, bf16);
}

/* VLEN elements from element i on. */
ALWAYS_INLINE vf act_load(const void *p, int64_t i, bool bf16)
{
	if (bf16) {
		vh h;
		memcpy(&h, (const uint16_t *)p + i, sizeof(h));
		return vf_from_bf16(h);
	}
	return vf_load((const float *)p + i);
}

ALWAYS_INLINE void act_store(void *p, int64_t i, bool bf16, vf v)
{
	if (bf16) {
		vh h = vf_to_bf16(v);
		memcpy((uint16_t *)p + i, &h, sizeof(h));
	} else {
		vf_store((float *)p + i, v);
	}
}

/* The same for the n elements there are, where n < VLEN; those beyond are read as 0 and not written. */
ALWAYS_INLINE vf act_load_n(const void *p, int64_t i, int64_t n, bool bf16)
{
	if (n >= VLEN) {
		return act_load(p, i, bf16);
	}
#if defined(__AVX512F__)
	__mmask16 mask = (__mmask16)((1u << n) - 1);
	if (bf16) {
		return vf_from_bf16((vh)_mm256_maskz_loadu_epi16(mask, (const uint16_t *)p + i));
	}
	return (vf)_mm512_maskz_loadu_ps(mask, (const float *)p + i);
#else
	if (bf16) {
		uint16_t h[VLEN] = {0};
		memcpy(h, (const uint16_t *)p + i, (size_t)n * sizeof(h[0]));
		return act_load(h, 0, true);
	}
	float f[VLEN] = {0};
	memcpy(f, (const float *)p + i, (size_t)n * sizeof(f[0]));
	return vf_load(f);
#endif
}

ALWAYS_INLINE void act_store_n(void *p, int64_t i, int64_t n, bool bf16, vf v)
{
	if (n >= VLEN) {
		act_store(p, i, bf16, v);
		return;
	}
#if defined(__AVX512F__)
	__mmask16 mask = (__mmask16)((1u << n) - 1);
	if (bf16) {
		_mm256_mask_storeu_epi16((uint16_t *)p + i, mask, (__m256i)vf_to_bf16(v));
	} else {
		_mm512_mask_storeu_ps((float *)p + i, mask, (__m512)v);
	}
#else
	if (bf16) {
		uint16_t h[VLEN];
		act_store(h, 0, true, v);
		memcpy((uint16_t *)p + i, h, (size_t)n * sizeof(h[0]));
	} else {
		float f[VLEN];
		vf_store(f, v);
		memcpy((float *)p + i, f, (size_t)n * sizeof(f[0]));
	}
#endif
}

/* The value as it is after a stay in memory: rounded to bf16, or as it is. */
ALWAYS_INLINE vf act_round(vf v, bool bf16)
{
	return bf16 ? vf_from_bf16(vf_to_bf16(v)) : v;
}

/* ---- exponentials -------------------------------------------------------------------------- */

/* The larger; `b` where either is NaN. */
ALWAYS_INLINE vf vf_max_or_b(vf a, vf b)
{
#if defined(__AVX512F__)
	return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
	return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
	return vf_select(a > b, a, b);
#endif
}

ALWAYS_INLINE vf vf_min_or_b(vf a, vf b)
{
#if defined(__AVX512F__)
	return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
	return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
	return vf_select(a < b, a, b);
#endif
}

/* Its sum with an n of at most 22 bits is n rounded to an integer, and holds n + 127 in its low bits. */
#define EXP_MAGIC (12582912.0f + 127.0f)

/* 2^f for |f| <= 1/2 times 2^n, where `shifted` is n + EXP_MAGIC. The polynomial interpolates 2^f at
 * Chebyshev's points: relative error 2e-8 before rounding. n = -127 gives 0. */
ALWAYS_INLINE vf exp2_parts(vf f, vf shifted)
{
	vf p = f * 1.5461445e-4f + 1.3400427e-3f;
	p = p * f + 9.6180569e-3f;
	p = p * f + 5.5503272e-2f;
	p = p * f + 2.4022651e-1f;
	p = p * f + 6.9314718e-1f;
	p = p * f + 1.0f;
	return p * (vf)((vi)shifted << 23);
}

/* 2^x for x <= 127; 0 below -126.5; NaN for NaN. */
ALWAYS_INLINE vf vf_exp2(vf x)
{
	x = vf_max_or_b(vf_set(-127.0f), x);
	vf shifted = x + EXP_MAGIC;
	return exp2_parts(x - (shifted - EXP_MAGIC), shifted);
}

/* e^x within 2 units in the last place; 0 below -87.7, e^88 above 88, NaN for NaN. */
ALWAYS_INLINE vf vf_exp(vf x)
{
	x = vf_max_or_b(vf_set(-88.0f), x);
	x = vf_min_or_b(vf_set(88.0f), x);
	vf shifted = x * 1.44269504f + EXP_MAGIC;
	vf n = shifted - EXP_MAGIC;
	/* x − n·ln 2, with ln 2 in two parts so that the first product is exact; then back to base 2. */
	vf f = ((x - n * 0.693359375f) + n * 2.12194440e-4f) * 1.44269504f;
	return exp2_parts(f, shifted);
}

/* ---- one body for both dtypes of activations ----------------------------------------------- */

/* From `fn(const type *args, begin, end, part, bf16)`, always inlined, two range functions fn_f32 and
 * fn_bf16 with the last argument constant; ACT_PICK is the one for a dtype. */
#define ACT_PAIR(fn, type)                                                               \
	static void fn##_f32(const void *args, int64_t begin, int64_t end, unsigned part)    \
	{                                                                                    \
		fn((const type *)args, begin, end, part, false);                                 \
	}                                                                                    \
	static void fn##_bf16(const void *args, int64_t begin, int64_t end, unsigned part)   \
	{                                                                                    \
		fn((const type *)args, begin, end, part, true);                                  \
	}

#define ACT_PICK(fn, dtype_) ((dtype_) == DTYPE_BF16 ? fn##_bf16 : fn##_f32)
