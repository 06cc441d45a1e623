/*
 * Linear layers with frozen weights on our own products, where there is no oneDNN: the weight is kept as
 * it is, one copy for both directions, and matmul() packs what it needs of it in each call.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "util/util.h"

#define STAGE_FLOATS ((size_t)1 << 20)

struct products {
	float *stage; /* STAGE_FLOATS */
};

struct own_weight {
	struct packed_weight base;
	void *data; /* [out, in] */
	size_t bytes;
};

int cpu_products_new(struct products **ret, struct backend *b, struct errmsg *err)
{
	struct products *p = calloc(1, sizeof(*p));
	if (!p) {
		return -ENOMEM;
	}
	p->stage = cpu_memory_new(STAGE_FLOATS * sizeof(float));
	if (!p->stage) {
		free(p);
		return -ENOMEM;
	}
	*ret = p;
	return 0;
}

void cpu_products_free(struct products *p)
{
	if (p) {
		cpu_memory_free(p->stage, STAGE_FLOATS * sizeof(float));
		free(p);
	}
}

void cpu_products_describe(char *text, size_t size)
{
	snprintf(text, size, "own products");
}

int cpu_linear_prepare(struct backend *b, int64_t out, int64_t in, enum dtype dtype, unsigned uses,
	int64_t max_rows, struct errmsg *err)
{
	return 0;
}

size_t cpu_packed_weight_bytes(struct backend *b, int64_t out, int64_t in, enum dtype dtype,
	unsigned uses)
{
	return align_up((size_t)out * (size_t)in * dtype_size(dtype), 4096);
}

int cpu_packed_weight_new(struct packed_weight **ret, struct backend *b, const float *src,
	int64_t out, int64_t in, enum dtype dtype, unsigned uses, struct errmsg *err)
{
	struct own_weight *w = calloc(1, sizeof(*w));
	if (!w) {
		return -ENOMEM;
	}
	w->base = (struct packed_weight){b, out, in, dtype, uses};
	w->bytes = cpu_packed_weight_bytes(b, out, in, dtype, uses);
	w->data = cpu_memory_new(w->bytes);
	if (!w->data) {
		free(w);
		return -ENOMEM;
	}
	if (dtype == DTYPE_F32) {
		memcpy(w->data, src, (size_t)(out * in) * sizeof(float));
	} else {
		uint16_t *to = w->data;
		for (int64_t i = 0; i < out * in; i++) {
			to[i] = bf16_from_f32(src[i]);
		}
	}
	*ret = &w->base;
	return 0;
}

void cpu_packed_weight_free(struct packed_weight *base)
{
	struct own_weight *w = (struct own_weight *)base;
	cpu_memory_free(w->data, w->bytes);
	free(w);
}

static struct mat weight_mat(const struct packed_weight *base)
{
	const struct own_weight *w = (const struct own_weight *)base;
	return (struct mat){w->data, base->dtype, base->out, base->in, base->in};
}

struct bias_args {
	struct mat y, sums; /* sums: f32, y's memory or the stage */
	const float *bias;
};

static void add_bias(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct bias_args *a = args;
	for (int64_t i = begin; i < end; i++) {
		float *sums = (float *)a->sums.data + i * a->sums.stride;
		for (int64_t j = 0; j < a->y.cols; j++) {
			sums[j] += a->bias[j];
		}
		if (a->y.dtype == DTYPE_BF16) {
			uint16_t *y = (uint16_t *)a->y.data + i * a->y.stride;
			for (int64_t j = 0; j < a->y.cols; j++) {
				y[j] = bf16_from_f32(sums[j]);
			}
		}
	}
}

static struct mat mat_rows(struct mat m, int64_t first, int64_t n)
{
	m.data = (char *)m.data + (size_t)(first * m.stride) * dtype_size(m.dtype);
	m.rows = n;
	return m;
}

void cpu_linear_forward(struct backend *b, struct mat y, struct mat x,
	const struct packed_weight *w, const float *bias)
{
	if (!bias) {
		matmul(b, y, x, false, weight_mat(w), true, 1, 0);
		return;
	}

	/* The bias joins the sum before it is rounded; so in bf16 the sums pass through the stage. */
	struct products *p = cpu_backend(b)->products;
	bool staged = y.dtype == DTYPE_BF16;
	int64_t most = staged ? (int64_t)STAGE_FLOATS / y.cols : y.rows;
	for (int64_t i = 0; i < y.rows; i += most) {
		struct bias_args a = {.y = mat_rows(y, i, min_i64(most, y.rows - i)), .bias = bias};
		a.sums = staged ? (struct mat){p->stage, DTYPE_F32, a.y.rows, y.cols, y.cols} : a.y;
		matmul(b, a.sums, mat_rows(x, i, a.y.rows), false, weight_mat(w), true, 1, 0);
		cpu_parallel(b, a.y.rows, cpu_row_grain(y.cols), add_bias, &a);
	}
}

void cpu_linear_backward(struct backend *b, struct mat dx, struct mat dy,
	const struct packed_weight *w, bool accumulate)
{
	matmul(b, dx, dy, false, weight_mat(w), false, 1, accumulate ? 1 : 0);
}
