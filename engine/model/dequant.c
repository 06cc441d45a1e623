/*
 * ggml's block formats, as its quantizer lays them out (ggml-common.h, ggml-quants.c; the gguf
 * Python package's quants.py). A block holds 32 or 256 values of a row:
 *
 *   Q8_0   d:f16, q:i8[32]                           d·q
 *   Q4_0   d:f16, q:u4[32]                           d·(q − 8)
 *   Q4_1   d:f16, m:f16, q:u4[32]                    d·q + m
 *   Q5_0   d:f16, h:u32, q:u4[32]                    d·(q + 16·h − 16)     (h: a fifth bit each)
 *   Q5_1   d:f16, m:f16, h:u32, q:u4[32]             d·(q + 16·h) + m
 *   Q4_K   d:f16, m:f16, s:u6[8]+u6[8], q:u4[256]    (d·s)·q − (m·s')      (s, s' for each 32)
 *   Q5_K   d:f16, m:f16, s, h:u1[256], q:u4[256]     (d·s)·(q + 16·h) − (m·s')
 *   Q6_K   q:u4[256], h:u2[256], s:i8[16], d:f16     (d·s)·(q + 16·h − 32) (s for each 16)
 *
 * Nibbles: of 32 values, byte i holds value i below and value i + 16 above; in the K formats, of 64
 * values, i and i + 32.
 */

#include "engine/model/dequant.h"

#include "engine/model/convert.h"
#include "util/util.h"

const struct weight_type_info weight_types[WEIGHT_N_TYPES] = {
	[WEIGHT_F32] = {"f32", 1, 4, 0},
	[WEIGHT_F16] = {"f16", 1, 2, 1},
	[WEIGHT_BF16] = {"bf16", 1, 2, 30},
	[WEIGHT_F64] = {"f64", 1, 8, -1},
	[WEIGHT_Q8_0] = {"q8_0", 32, 34, 8},
	[WEIGHT_Q4_0] = {"q4_0", 32, 18, 2},
	[WEIGHT_Q4_1] = {"q4_1", 32, 20, 3},
	[WEIGHT_Q5_0] = {"q5_0", 32, 22, 6},
	[WEIGHT_Q5_1] = {"q5_1", 32, 24, 7},
	[WEIGHT_Q4_K] = {"q4_k", 256, 144, 12},
	[WEIGHT_Q5_K] = {"q5_k", 256, 176, 13},
	[WEIGHT_Q6_K] = {"q6_k", 256, 210, 14},
};

const char *ggml_type_name(uint32_t ggml_id)
{
	static const char *const names[] = {
		[0] = "F32", [1] = "F16", [2] = "Q4_0", [3] = "Q4_1", [6] = "Q5_0", [7] = "Q5_1",
		[8] = "Q8_0", [9] = "Q8_1", [10] = "Q2_K", [11] = "Q3_K", [12] = "Q4_K", [13] = "Q5_K",
		[14] = "Q6_K", [15] = "Q8_K", [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS",
		[19] = "IQ1_S", [20] = "IQ4_NL", [21] = "IQ3_S", [22] = "IQ2_S", [23] = "IQ4_XS",
		[24] = "I8", [25] = "I16", [26] = "I32", [27] = "I64", [28] = "F64", [29] = "IQ1_M",
		[30] = "BF16", [34] = "TQ1_0", [35] = "TQ2_0", [39] = "MXFP4", [40] = "NVFP4",
		[41] = "Q1_0",
	};
	return ggml_id < ARRAY_LEN(names) ? names[ggml_id] : NULL;
}

bool weight_bytes(enum weight_type type, int64_t rows, int64_t cols, size_t *ret)
{
	const struct weight_type_info *t = &weight_types[type];
	size_t n;
	if (rows < 0 || cols < 0 || (size_t)cols % t->block_values != 0) {
		return false;
	}
	return mul_size((size_t)rows, (size_t)cols / t->block_values, &n) &&
		mul_size(n, t->block_bytes, ret);
}

static float read_f16(const uint8_t *p)
{
	return f16_to_f32(le16_read(p));
}

static void read_q8_0(const uint8_t *b, float *out)
{
	float d = read_f16(b);
	for (size_t i = 0; i < 32; i++) {
		out[i] = (float)(int8_t)b[2 + i] * d;
	}
}

static void read_q4_0(const uint8_t *b, float *out)
{
	float d = read_f16(b);
	const uint8_t *q = b + 2;
	for (size_t i = 0; i < 16; i++) {
		out[i] = d * (float)((q[i] & 15) - 8);
		out[i + 16] = d * (float)((q[i] >> 4) - 8);
	}
}

static void read_q4_1(const uint8_t *b, float *out)
{
	float d = read_f16(b), m = read_f16(b + 2);
	const uint8_t *q = b + 4;
	for (size_t i = 0; i < 16; i++) {
		float low = d * (float)(q[i] & 15), high = d * (float)(q[i] >> 4);
		out[i] = low + m;
		out[i + 16] = high + m;
	}
}

/* Value i of 32, its fifth bit from `h`. */
static int five_bits(const uint8_t *q, uint32_t h, size_t i)
{
	int low = i < 16 ? q[i] & 15 : q[i - 16] >> 4;
	return low | (int)(h >> i & 1) << 4;
}

static void read_q5_0(const uint8_t *b, float *out)
{
	float d = read_f16(b);
	uint32_t h = le32_read(b + 2);
	for (size_t i = 0; i < 32; i++) {
		out[i] = d * (float)(five_bits(b + 6, h, i) - 16);
	}
}

static void read_q5_1(const uint8_t *b, float *out)
{
	float d = read_f16(b), m = read_f16(b + 2);
	uint32_t h = le32_read(b + 4);
	for (size_t i = 0; i < 32; i++) {
		float product = d * (float)five_bits(b + 8, h, i);
		out[i] = product + m;
	}
}

/* Of the 12 bytes that hold eight 6-bit scales and eight 6-bit minima: the first four of each lie
 * in the low bits of bytes 0–3 and 4–7; the last four are split, low nibbles in bytes 8–11 (scale
 * below, minimum above), high pairs in the top bits of bytes 0–3 and 4–7. */
static void k_scale(const uint8_t *s, size_t j, int *ret_scale, int *ret_min)
{
	if (j < 4) {
		*ret_scale = s[j] & 63;
		*ret_min = s[j + 4] & 63;
	} else {
		*ret_scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
		*ret_min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
	}
}

/* Q4_K and Q5_K differ in the fifth bits: bit j of byte i of `high` (NULL: none) belongs to value i
 * of the j-th group of 32. */
static void read_k(const uint8_t *b, const uint8_t *high, const uint8_t *q, float *out)
{
	float d = read_f16(b), m = read_f16(b + 2);
	for (size_t j = 0; j < 8; j++) {
		int scale, min;
		k_scale(b + 4, j, &scale, &min);
		float ds = d * (float)scale, ms = m * (float)min;
		for (size_t i = 0; i < 32; i++) {
			int v = q[j / 2 * 32 + i];
			v = j % 2 == 0 ? v & 15 : v >> 4;
			v |= high ? (high[i] >> j & 1) << 4 : 0;
			float product = ds * (float)v;
			out[j * 32 + i] = product - ms;
		}
	}
}

static void read_q4_k(const uint8_t *b, float *out)
{
	read_k(b, NULL, b + 16, out);
}

static void read_q5_k(const uint8_t *b, float *out)
{
	read_k(b, b + 16, b + 48, out);
}

/* Two halves of 128 values; of each, 64 bytes of low nibbles (values 0–63 below, 64–127 above) and
 * 32 bytes of high pairs (one pair for each 32 values). */
static void read_q6_k(const uint8_t *b, float *out)
{
	const uint8_t *low = b, *high = b + 128, *scales = b + 192;
	float d = read_f16(b + 208);
	for (size_t k = 0; k < 256; k++) {
		size_t half = k / 128, at = k % 128;
		int v = low[half * 64 + at % 64];
		v = at < 64 ? v & 15 : v >> 4;
		v |= (high[half * 32 + at % 32] >> at / 32 * 2 & 3) << 4;
		float ds = d * (float)(int8_t)scales[k / 16];
		out[k] = ds * (float)(v - 32);
	}
}

static void read_plain(enum weight_type type, const uint8_t *src, float *out, size_t n)
{
	switch (type) {
	case WEIGHT_F32:
		if (n > 0) {
			memcpy(out, src, n * sizeof(float));
		}
		break;
	case WEIGHT_F16:
		for (size_t i = 0; i < n; i++) {
			out[i] = f16_to_f32(le16_read(src + 2 * i));
		}
		break;
	case WEIGHT_BF16:
		for (size_t i = 0; i < n; i++) {
			out[i] = bf16_to_f32(le16_read(src + 2 * i));
		}
		break;
	default:
		for (size_t i = 0; i < n; i++) {
			double v;
			memcpy(&v, src + 8 * i, sizeof(v));
			out[i] = (float)v;
		}
		break;
	}
}

void weight_read(enum weight_type type, const void *src, float *out, size_t n)
{
	static void (*const blocks[WEIGHT_N_TYPES])(const uint8_t *, float *) = {
		[WEIGHT_Q8_0] = read_q8_0,
		[WEIGHT_Q4_0] = read_q4_0,
		[WEIGHT_Q4_1] = read_q4_1,
		[WEIGHT_Q5_0] = read_q5_0,
		[WEIGHT_Q5_1] = read_q5_1,
		[WEIGHT_Q4_K] = read_q4_k,
		[WEIGHT_Q5_K] = read_q5_k,
		[WEIGHT_Q6_K] = read_q6_k,
	};
	const struct weight_type_info *t = &weight_types[type];
	const uint8_t *b = src;
	if (!blocks[type]) {
		read_plain(type, b, out, n);
		return;
	}
	for (size_t i = 0; i < n; i += t->block_values, b += t->block_bytes) {
		blocks[type](b, out + i);
	}
}
