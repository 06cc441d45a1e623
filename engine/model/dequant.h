#pragma once
/* Types of stored weights and their values in f32. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum weight_type {
	WEIGHT_F32,
	WEIGHT_F16,
	WEIGHT_BF16,
	WEIGHT_F64,
	WEIGHT_Q8_0,
	WEIGHT_Q4_0,
	WEIGHT_Q4_1,
	WEIGHT_Q5_0,
	WEIGHT_Q5_1,
	WEIGHT_Q4_K,
	WEIGHT_Q5_K,
	WEIGHT_Q6_K,
	WEIGHT_N_TYPES,
};

struct weight_type_info {
	const char *name;    /* "q4_1" */
	size_t block_values; /* values of one block; 1 for plain numbers */
	size_t block_bytes;
	int32_t ggml_id; /* in GGUF; -1: does not occur there */
};
extern const struct weight_type_info weight_types[WEIGHT_N_TYPES];

/* Bytes of rows × cols values. False when cols is no multiple of a block, or on overflow. */
bool weight_bytes(enum weight_type type, int64_t rows, int64_t cols, size_t *ret);

/* out[n] = the values of n / block_values blocks at `src` (which need not be aligned), in f32 as
 * ggml computes them: the same operations in the same order, so the same bits. */
void weight_read(enum weight_type type, const void *src, float *out, size_t n);

/* Name of a ggml type that is not read here ("Q2_K"), or NULL for a number that is none. */
const char *ggml_type_name(uint32_t ggml_id);
