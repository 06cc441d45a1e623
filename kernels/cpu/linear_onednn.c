/*
 * Linear layers with frozen weights on oneDNN.
 *
 * oneDNN compiles a product for fixed sizes, while the rows of a call vary. So each shape of weight
 * has products for blocks of 1, 2, 4, …, 1024 rows, and a call is cut into blocks from the largest
 * down. All blocks read the same packed weight, in the layout the library prefers for BLOCK_LAYOUT
 * rows; where a block cannot take that layout on a fast path, the shape keeps plain matrices. The
 * layout depends on the shape alone, so packing and preparing may come in either order.
 */

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/onednn_api.h"
#include "util/cleanup.h"
#include "util/util.h"

#define N_BLOCKS 11 /* 1 << 0 … 1 << 10 rows */
#define BLOCK_LAYOUT 256
#define STAGE_BYTES ((size_t)4 << 20)

/* The products a shape of weight is used in. */
enum product {
	FORWARD,
	FORWARD_BIAS,
	FORWARD_F32,      /* bf16 weights, f32 result: logits */
	FORWARD_F32_BIAS,
	BACKWARD,
	BACKWARD_ADD,
	N_PRODUCTS,
};

static const struct product_kind {
	unsigned use; /* enum packed_use */
	bool bias, accumulate, f32_result;
} product_kinds[N_PRODUCTS] = {
	[FORWARD] = {PACKED_FORWARD, false, false, false},
	[FORWARD_BIAS] = {PACKED_FORWARD, true, false, false},
	[FORWARD_F32] = {PACKED_FORWARD, false, false, true},
	[FORWARD_F32_BIAS] = {PACKED_FORWARD, true, false, true},
	[BACKWARD] = {PACKED_BACKWARD, false, false, false},
	[BACKWARD_ADD] = {PACKED_BACKWARD, false, true, false},
};

/* All there is for weights of one shape and dtype. */
struct shape {
	struct shape *next;
	int64_t out, in;
	enum dtype dtype;
	struct onednn_layout *layouts[2]; /* forward, backward; NULL until asked for */
	struct onednn_matmul *products[N_PRODUCTS][N_BLOCKS];
};

struct products {
	struct onednn *onednn;
	struct shape *shapes;
	void *workspace; /* the library's, for the hungriest product */
	size_t workspace_bytes;
	void *stage[2]; /* rows without gaps, for operands that have some: in, out */
};

struct onednn_weight {
	struct packed_weight base;
	struct shape *shape;
	void *data[2]; /* forward, backward; NULL where not packed */
	size_t bytes[2];
	struct onednn_memory *memory[2];
};

int cpu_products_new(struct products **ret, struct backend *b, struct errmsg *err)
{
	struct products *p = calloc(1, sizeof(*p));
	if (!p) {
		return -ENOMEM;
	}
	int r = onednn_new(&p->onednn);
	for (int i = 0; i < 2 && !r; i++) {
		p->stage[i] = cpu_memory_new(STAGE_BYTES);
		r = p->stage[i] ? 0 : -ENOMEM;
	}
	if (r) {
		cpu_products_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

static void shape_free(struct shape *s)
{
	for (int i = 0; i < N_PRODUCTS; i++) {
		for (int k = 0; k < N_BLOCKS; k++) {
			onednn_matmul_free(s->products[i][k]);
		}
	}
	onednn_layout_free(s->layouts[0]);
	onednn_layout_free(s->layouts[1]);
	free(s);
}

void cpu_products_free(struct products *p)
{
	if (!p) {
		return;
	}
	while (p->shapes) {
		struct shape *next = p->shapes->next;
		shape_free(p->shapes);
		p->shapes = next;
	}
	cpu_memory_free(p->stage[0], STAGE_BYTES);
	cpu_memory_free(p->stage[1], STAGE_BYTES);
	cpu_memory_free(p->workspace, p->workspace_bytes);
	onednn_free(p->onednn);
	free(p);
}

void cpu_products_describe(char *text, size_t size)
{
	onednn_describe(text, size);
}

/* ---- shapes -------------------------------------------------------------------------------- */

static struct onednn_matmul_spec product_spec(const struct shape *s, enum product product,
	int64_t rows)
{
	const struct product_kind *kind = &product_kinds[product];
	bool forward = kind->use == PACKED_FORWARD;
	return (struct onednn_matmul_spec){
		.m = rows,
		.n = forward ? s->out : s->in,
		.k = forward ? s->in : s->out,
		.src_dtype = s->dtype,
		.dst_dtype = kind->f32_result ? DTYPE_F32 : s->dtype,
		.bias = kind->bias,
		.accumulate = kind->accumulate,
	};
}

/* f32 weights have f32 results anyhow. */
static bool product_exists(const struct shape *s, enum product product)
{
	return s->dtype == DTYPE_BF16 || !product_kinds[product].f32_result;
}

static int layout_choose(struct onednn_layout **ret, struct products *p, const struct shape *s,
	unsigned use)
{
	enum product first = use == PACKED_FORWARD ? FORWARD : BACKWARD;
	struct onednn_layout *l = NULL;
	struct onednn_matmul_spec spec = product_spec(s, first, BLOCK_LAYOUT);
	int r = onednn_matmul_layout(&l, p->onednn, &spec);
	if (r) {
		return r;
	}

	bool all = true;
	for (int i = 0; i < N_PRODUCTS && all; i++) {
		for (int k = 0; k < N_BLOCKS && all; k++) {
			spec = product_spec(s, (enum product)i, (int64_t)1 << k);
			all = product_kinds[i].use != use || !product_exists(s, (enum product)i) ||
				onednn_matmul_supported(p->onednn, &spec, l);
		}
	}
	if (!all) {
		onednn_layout_free(l);
		bool forward = use == PACKED_FORWARD;
		r = onednn_layout_plain(&l, s->dtype, spec.k, spec.n, forward);
		if (r) {
			return r;
		}
	}
	*ret = l;
	return 0;
}

/* The entry for a shape, with the layouts of `uses` chosen; made where there is none. */
static int shape_get(struct shape **ret, struct backend *b, int64_t out, int64_t in,
	enum dtype dtype, unsigned uses)
{
	struct products *p = cpu_backend(b)->products;
	struct shape *s = p->shapes;
	while (s && !(s->out == out && s->in == in && s->dtype == dtype)) {
		s = s->next;
	}
	if (!s) {
		s = calloc(1, sizeof(*s));
		if (!s) {
			return -ENOMEM;
		}
		s->out = out;
		s->in = in;
		s->dtype = dtype;
		s->next = p->shapes;
		p->shapes = s;
	}

	cpu_enter(b); /* the library looks at the thread count when it chooses */
	for (int i = 0; i < 2; i++) {
		unsigned use = i == 0 ? PACKED_FORWARD : PACKED_BACKWARD;
		if ((uses & use) && !s->layouts[i]) {
			int r = layout_choose(&s->layouts[i], p, s, use);
			if (r) {
				return r;
			}
		}
	}
	*ret = s;
	return 0;
}

static int workspace_grow(struct products *p, size_t bytes)
{
	if (bytes <= p->workspace_bytes) {
		return 0;
	}
	void *w = cpu_memory_new(bytes);
	if (!w) {
		return -ENOMEM;
	}
	cpu_memory_free(p->workspace, p->workspace_bytes);
	p->workspace = w;
	p->workspace_bytes = bytes;
	return 0;
}

int cpu_linear_prepare(struct backend *b, int64_t out, int64_t in, enum dtype dtype, unsigned uses,
	int64_t max_rows, struct errmsg *err)
{
	struct products *p = cpu_backend(b)->products;
	struct shape *s;
	int r = shape_get(&s, b, out, in, dtype, uses);
	for (int i = 0; i < N_PRODUCTS && !r; i++) {
		if (!(product_kinds[i].use & uses) || !product_exists(s, (enum product)i)) {
			continue;
		}
		for (int k = 0; k < N_BLOCKS && !r && ((int64_t)1 << k) <= max_rows; k++) {
			if (s->products[i][k]) {
				continue;
			}
			struct onednn_matmul_spec spec = product_spec(s, (enum product)i, (int64_t)1 << k);
			r = onednn_matmul_new(&s->products[i][k], p->onednn, &spec,
				s->layouts[product_kinds[i].use == PACKED_BACKWARD]);
			if (!r) {
				r = workspace_grow(p, onednn_matmul_workspace(s->products[i][k]));
			}
		}
	}
	return r;
}

/* ---- packed weights ------------------------------------------------------------------------ */

size_t cpu_packed_weight_bytes(struct backend *b, int64_t out, int64_t in, enum dtype dtype,
	unsigned uses)
{
	struct shape *s;
	size_t bytes = 0;
	if (shape_get(&s, b, out, in, dtype, uses)) {
		return SIZE_MAX;
	}
	for (int i = 0; i < 2; i++) {
		if (uses & (i == 0 ? PACKED_FORWARD : PACKED_BACKWARD)) {
			bytes += align_up(onednn_layout_bytes(s->layouts[i]), 4096);
		}
	}
	return bytes;
}

void cpu_packed_weight_free(struct packed_weight *base)
{
	struct onednn_weight *w = (struct onednn_weight *)base;
	for (int i = 0; i < 2; i++) {
		onednn_memory_free(w->memory[i]);
		cpu_memory_free(w->data[i], w->bytes[i]);
	}
	free(w);
}

DEFINE_CLEANUP(struct onednn_layout *, onednn_layout_free);

/* Packs one copy. Forward multiplies by Wᵀ, which is W read in columns. */
static int weight_pack(struct onednn_weight *w, struct products *p, const float *src, bool backward)
{
	const struct packed_weight *base = &w->base;
	const struct onednn_layout *layout = w->shape->layouts[backward];
	_cleanup_(onednn_layout_freep) struct onednn_layout *plain = NULL;
	int r = onednn_layout_plain(&plain, DTYPE_F32, backward ? base->out : base->in,
		backward ? base->in : base->out, !backward);
	if (r) {
		return r;
	}
	w->bytes[backward] = align_up(onednn_layout_bytes(layout), 4096);
	w->data[backward] = cpu_memory_new(w->bytes[backward]);
	if (!w->data[backward]) {
		return -ENOMEM;
	}
	r = onednn_reorder(p->onednn, layout, w->data[backward], plain, src);
	return r ? r
			 : onednn_memory_new(&w->memory[backward], p->onednn, layout, w->data[backward]);
}

int cpu_packed_weight_new(struct packed_weight **ret, struct backend *b, const float *src,
	int64_t out, int64_t in, enum dtype dtype, unsigned uses, struct errmsg *err)
{
	struct shape *s;
	int r = shape_get(&s, b, out, in, dtype, uses);
	if (r) {
		return r;
	}
	struct onednn_weight *w = calloc(1, sizeof(*w));
	if (!w) {
		return -ENOMEM;
	}
	w->base = (struct packed_weight){b, out, in, dtype, uses};
	w->shape = s;
	if (uses & PACKED_FORWARD) {
		r = weight_pack(w, cpu_backend(b)->products, src, false);
	}
	if (!r && (uses & PACKED_BACKWARD)) {
		r = weight_pack(w, cpu_backend(b)->products, src, true);
	}
	if (r) {
		cpu_packed_weight_free(&w->base);
		return r;
	}
	*ret = &w->base;
	return 0;
}

/* ---- products ------------------------------------------------------------------------------ */

static void copy_rows(void *dst, int64_t dst_stride, const void *src, int64_t src_stride,
	int64_t rows, int64_t cols, size_t size)
{
	for (int64_t i = 0; i < rows; i++) {
		memcpy((char *)dst + (size_t)(i * dst_stride) * size,
			(const char *)src + (size_t)(i * src_stride) * size, (size_t)cols * size);
	}
}

/* Runs `product` over all rows of x, block by block. */
static void run(struct backend *b, enum product product, struct mat y, struct mat x,
	const struct packed_weight *base, const float *bias)
{
	const struct onednn_weight *w = (const struct onednn_weight *)base;
	struct products *p = cpu_backend(b)->products;
	struct onednn_matmul *const *blocks = w->shape->products[product];
	bool backward = product_kinds[product].use == PACKED_BACKWARD;
	size_t x_size = dtype_size(x.dtype), y_size = dtype_size(y.dtype);
	bool stage_x = x.stride != x.cols && x.rows > 1, stage_y = y.stride != y.cols && y.rows > 1;
	int64_t limit = (int64_t)1 << (N_BLOCKS - 1);
	if (stage_x) {
		limit = min_i64(limit, (int64_t)(STAGE_BYTES / ((size_t)x.cols * x_size)));
	}
	if (stage_y) {
		limit = min_i64(limit, (int64_t)(STAGE_BYTES / ((size_t)y.cols * y_size)));
	}

	cpu_enter(b);
	int k = N_BLOCKS - 1;
	for (int64_t i = 0; i < x.rows; i += (int64_t)1 << k) {
		while (k >= 0 && (((int64_t)1 << k) > min_i64(limit, x.rows - i) || !blocks[k])) {
			k--;
		}
		assert(k >= 0 && "linear_prepare() comes first");
		int64_t rows = (int64_t)1 << k;
		char *yi = (char *)y.data + (size_t)(i * y.stride) * y_size;
		char *xi = (char *)x.data + (size_t)(i * x.stride) * x_size;
		char *from = stage_x ? p->stage[0] : xi, *to = stage_y ? p->stage[1] : yi;
		if (stage_x) {
			copy_rows(from, x.cols, xi, x.stride, rows, x.cols, x_size);
		}
		if (stage_y && product_kinds[product].accumulate) {
			copy_rows(to, y.cols, yi, y.stride, rows, y.cols, y_size);
		}
		int r = onednn_matmul_run(blocks[k], p->onednn, to, from, w->memory[backward], bias,
			p->workspace);
		assert(r == 0);
		(void)r;
		if (stage_y) {
			copy_rows(yi, y.stride, to, y.cols, rows, y.cols, y_size);
		}
	}
}

void cpu_linear_forward(struct backend *b, struct mat y, struct mat x,
	const struct packed_weight *w, const float *bias)
{
	enum product product = bias ? FORWARD_BIAS : FORWARD;
	if (y.dtype != w->dtype) {
		product = bias ? FORWARD_F32_BIAS : FORWARD_F32;
	}
	run(b, product, y, x, w, bias);
}

void cpu_linear_backward(struct backend *b, struct mat dx, struct mat dy,
	const struct packed_weight *w, bool accumulate)
{
	run(b, accumulate ? BACKWARD_ADD : BACKWARD, dx, dy, w, NULL);
}
