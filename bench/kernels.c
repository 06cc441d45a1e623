/*
 * Speed of the kernels on the shapes of SmolLM2-135M (hidden 576, intermediate 1536, 9 query and 3
 * key/value heads of 64, vocabulary 49152), 4 sequences of 512 tokens, LoRA rank 16.
 *
 *	bench_kernels [threads [peak]]        peak: only the speed of the large product, f32 and bf16
 *
 * Every figure is the best of several runs. Products also as a share of the machine's own large-product
 * speed, measured in the same run. With one thread, times are of the processor, not of the clock, so
 * that a busy machine disturbs them less.
 */

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/kernels.h"
#include "util/util.h"

enum { HIDDEN = 576, INTERMEDIATE = 1536, KV = 192, VOCAB = 49152, HEADS = 9, KV_HEADS = 3, DIM = 64 };
enum { SEQS = 4, LENGTH = 512, ROWS = SEQS * LENGTH, RANK = 16 };

struct bench {
	struct backend *b;
	enum dtype dtype;
	double peak; /* GFLOP/s */
};

static int64_t now_ns(const struct bench *x)
{
	struct timespec t;
	clock_gettime(backend_threads(x->b) == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static struct mat mat_random(const struct bench *x, enum dtype dtype, int64_t rows, int64_t cols)
{
	struct mat m = {backend_alloc(x->b, (size_t)(rows * cols) * dtype_size(dtype)), dtype, rows, cols,
		cols};
	struct mat f = {backend_alloc(x->b, (size_t)(rows * cols) * 4), DTYPE_F32, rows, cols, cols};
	float *host = alloc_array((size_t)(rows * cols), sizeof(float));
	if (!m.data || !f.data || !host) {
		fprintf(stderr, "bench_kernels: out of memory\n");
		exit(1);
	}
	for (int64_t i = 0; i < rows * cols; i++) {
		host[i] = ((float)rng_bits((struct rng_key){7, (uint64_t)cols}, (uint64_t)i) * 0x1p-31f - 1) *
			0.5f;
	}
	backend_upload(x->b, f.data, host, (size_t)(rows * cols) * 4);
	cast(x->b, m, f);
	backend_free_memory(x->b, f.data, (size_t)(rows * cols) * 4);
	free(host);
	return m;
}

static void mat_free(const struct bench *x, struct mat m)
{
	backend_free_memory(x->b, m.data, (size_t)(m.rows * m.cols) * dtype_size(m.dtype));
}

/* Prints the best time of repeated runs of `statement`, and what speed that is. */
#define BENCH(x, flops, bytes, statement, ...)                                              \
	do {                                                                                    \
		int64_t best_ = INT64_MAX, start_ = now_ns(x), now_ = start_;                       \
		for (int i_ = 0; i_ < 5 || now_ - start_ < 300000000; i_++) {                       \
			int64_t t_ = now_ns(x);                                                         \
			statement;                                                                      \
			backend_sync((x)->b, NULL);                                                     \
			now_ = now_ns(x);                                                               \
			best_ = min_i64(best_, now_ - t_);                                              \
		}                                                                                   \
		char name_[64];                                                                     \
		snprintf(name_, sizeof(name_), __VA_ARGS__);                                        \
		report((x), name_, best_, (flops), (bytes));                                        \
	} while (0)

static void report(const struct bench *x, const char *name, int64_t ns, double flops, double bytes)
{
	printf("%-4s  %-34s %9.3f ms", dtype_name(x->dtype), name, (double)ns * 1e-6);
	if (flops > 0) {
		printf("  %7.1f GFLOP/s  %5.1f %%", flops / (double)ns, 100 * flops / (double)ns / x->peak);
	} else if (bytes > 0) {
		printf("  %7.1f GB/s", bytes / (double)ns);
	}
	printf("\n");
}

static struct packed_weight *weight_new(const struct bench *x, int64_t out, int64_t in)
{
	struct packed_weight *w;
	struct errmsg err = {""};
	const unsigned uses = PACKED_FORWARD | PACKED_BACKWARD;
	float *src = alloc_array((size_t)(out * in), sizeof(float));
	for (int64_t i = 0; src && i < out * in; i++) {
		src[i] = ((float)rng_bits((struct rng_key){3, 3}, (uint64_t)i) * 0x1p-31f - 1) * 0.05f;
	}
	if (!src || linear_prepare(x->b, out, in, x->dtype, uses, ROWS, &err) ||
		packed_weight_new(&w, x->b, src, out, in, x->dtype, uses, &err)) {
		fprintf(stderr, "bench_kernels: %s\n", err.text);
		exit(1);
	}
	free(src);
	return w;
}

/* GFLOP/s of a product of 1024³, by the same clock as all else. */
static double large_product(const struct bench *x)
{
	const int64_t n = 1024;
	struct packed_weight *w = weight_new(x, n, n);
	struct mat a = mat_random(x, x->dtype, n, n), y = mat_random(x, x->dtype, n, n);
	int64_t best = INT64_MAX;
	for (int i = 0; i < 20; i++) {
		int64_t start = now_ns(x);
		linear_forward(x->b, y, a, w, NULL);
		best = min_i64(best, now_ns(x) - start);
	}
	mat_free(x, a);
	mat_free(x, y);
	packed_weight_free(w);
	return 2.0 * (double)(n * n * n) / (double)best;
}

static void bench_linear(const struct bench *x)
{
	static const int64_t shapes[][2] = {{HIDDEN, HIDDEN}, {KV, HIDDEN}, {HIDDEN + 2 * KV, HIDDEN},
		{INTERMEDIATE, HIDDEN}, {2 * INTERMEDIATE, HIDDEN}, {HIDDEN, INTERMEDIATE}};
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		int64_t out = shapes[i][0], in = shapes[i][1];
		struct packed_weight *w = weight_new(x, out, in);
		struct mat a = mat_random(x, x->dtype, ROWS, in), y = mat_random(x, x->dtype, ROWS, out);
		double flops = 2.0 * ROWS * (double)(out * in);
		BENCH(x, flops, 0, linear_forward(x->b, y, a, w, NULL), "linear forward %dx%d", (int)out,
			(int)in);
		BENCH(x, flops, 0, linear_backward(x->b, a, y, w, false), "linear backward %dx%d",
			(int)out, (int)in);
		BENCH(x, flops, 0, linear_backward(x->b, a, y, w, true), "linear backward += %dx%d",
			(int)out, (int)in);
		struct mat y1 = y, a1 = a;
		y1.rows = a1.rows = 1;
		BENCH(x, 0, (double)(out * in) * (double)dtype_size(x->dtype),
			linear_forward(x->b, y1, a1, w, NULL), "linear one row %dx%d", (int)out, (int)in);
		mat_free(x, a);
		mat_free(x, y);
		packed_weight_free(w);
	}
}

static void bench_lora(const struct bench *x)
{
	static const int64_t shapes[][2] = {{HIDDEN, HIDDEN}, {INTERMEDIATE, HIDDEN},
		{HIDDEN, INTERMEDIATE}};
	for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
		int64_t out = shapes[i][0], in = shapes[i][1];
		struct mat a = mat_random(x, x->dtype, RANK, in), b = mat_random(x, x->dtype, out, RANK);
		struct mat in_ = mat_random(x, x->dtype, ROWS, in), y = mat_random(x, x->dtype, ROWS, out);
		struct mat s = mat_random(x, x->dtype, ROWS, RANK);
		struct mat da = mat_random(x, DTYPE_F32, RANK, in), db = mat_random(x, DTYPE_F32, out, RANK);
		double fa = 2.0 * ROWS * RANK * (double)in, fb = 2.0 * ROWS * RANK * (double)out;
		BENCH(x, fa, 0, matmul(x->b, s, in_, false, a, true, 1, 0), "lora s = x·Aᵀ in %d", (int)in);
		BENCH(x, fb, 0, matmul(x->b, y, s, false, b, true, 2, 1), "lora y += s·Bᵀ out %d", (int)out);
		BENCH(x, fb, 0, matmul(x->b, s, y, false, b, false, 2, 0), "lora ds = dy·B out %d",
			(int)out);
		BENCH(x, fa, 0, matmul(x->b, in_, s, false, a, false, 1, 1), "lora dx += ds·A in %d",
			(int)in);
		BENCH(x, fa, 0, matmul(x->b, da, s, true, in_, false, 1, 1), "lora dA += dsᵀ·x in %d",
			(int)in);
		BENCH(x, fb, 0, matmul(x->b, db, y, true, s, false, 2, 1), "lora dB += dyᵀ·s out %d",
			(int)out);
		struct mat all[] = {a, b, in_, y, s, da, db};
		for (size_t k = 0; k < ARRAY_LEN(all); k++) {
			mat_free(x, all[k]);
		}
	}
	struct mat dw = mat_random(x, DTYPE_F32, INTERMEDIATE, HIDDEN);
	struct mat dy = mat_random(x, x->dtype, ROWS, INTERMEDIATE);
	struct mat in_ = mat_random(x, x->dtype, ROWS, HIDDEN);
	BENCH(x, 2.0 * ROWS * INTERMEDIATE * HIDDEN, 0, matmul(x->b, dw, dy, true, in_, false, 1, 1),
		"full dW += dyᵀ·x %dx%d", INTERMEDIATE, HIDDEN);
	mat_free(x, dw);
	mat_free(x, dy);
	mat_free(x, in_);
}

static void bench_attention(const struct bench *x, int64_t n_seqs)
{
	int32_t start[SEQS], len[SEQS];
	for (int i = 0; i < n_seqs; i++) {
		len[i] = (int32_t)(ROWS / n_seqs);
		start[i] = (int32_t)(i * ROWS / n_seqs);
	}
	struct attention a = {.n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = DIM, .scale = 0.125f,
		.causal = true, .n_seqs = n_seqs, .q_start = start, .q_len = len, .k_start = start, .k_len = len};
	size_t bytes = attention_workspace(x->b, &a, ROWS, n_seqs);
	void *workspace = backend_alloc(x->b, bytes);
	struct mat q = mat_random(x, x->dtype, ROWS, HIDDEN), o = mat_random(x, x->dtype, ROWS, HIDDEN);
	struct mat k = mat_random(x, x->dtype, ROWS, KV), v = mat_random(x, x->dtype, ROWS, KV);
	struct mat dq = mat_random(x, x->dtype, ROWS, HIDDEN), d = mat_random(x, x->dtype, ROWS, HIDDEN);
	struct mat dk = mat_random(x, x->dtype, ROWS, KV), dv = mat_random(x, x->dtype, ROWS, KV);
	struct mat lse = mat_random(x, DTYPE_F32, ROWS, HEADS);
	/* Causal: half of the scores. */
	double flops = 2.0 * ROWS * (double)(ROWS / n_seqs) * HEADS * DIM;
	BENCH(x, flops, 0, attention_forward(x->b, o, lse.data, q, k, v, &a, workspace),
		"attention forward %dx%d", (int)n_seqs, (int)(ROWS / n_seqs));
	BENCH(x, 2.5 * flops, 0,
		attention_backward(x->b, dq, dk, dv, d, o, lse.data, q, k, v, &a, workspace),
		"attention backward %dx%d", (int)n_seqs, (int)(ROWS / n_seqs));
	struct mat all[] = {q, k, v, o, dq, dk, dv, d, lse};
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		mat_free(x, all[i]);
	}
	backend_free_memory(x->b, workspace, bytes);
}

static void bench_rows(const struct bench *x)
{
	double size = (double)dtype_size(x->dtype);
	struct mat h = mat_random(x, x->dtype, ROWS, HIDDEN), y = mat_random(x, x->dtype, ROWS, HIDDEN);
	struct mat d = mat_random(x, x->dtype, ROWS, HIDDEN), s = mat_random(x, x->dtype, ROWS, HIDDEN);
	struct mat w = mat_random(x, x->dtype, 1, HIDDEN), rstd = mat_random(x, DTYPE_F32, 1, ROWS);
	struct mat dw = mat_random(x, DTYPE_F32, 1, HIDDEN), cs = mat_random(x, DTYPE_F32, LENGTH, DIM);
	double n = (double)ROWS * HIDDEN * size;
	int32_t positions[ROWS];
	for (int i = 0; i < ROWS; i++) {
		positions[i] = i % LENGTH;
	}
	BENCH(x, 0, 4 * n, rmsnorm_forward(x->b, y, s, rstd.data, h, d, w.data, 1e-5f, false),
		"rmsnorm forward + residual");
	BENCH(x, 0, 4 * n, rmsnorm_backward(x->b, h, NULL, y, d, s, rstd.data, w.data, false),
		"rmsnorm backward + residual");
	BENCH(x, 0, 6 * n, rmsnorm_backward(x->b, h, dw.data, y, d, s, rstd.data, w.data, false),
		"rmsnorm backward with dw");
	BENCH(x, 0, 2 * n, rope(x->b, y, positions, cs.data, HEADS, DIM, DIM, false), "rope");
	BENCH(x, 0, 3 * n, add(x->b, y, h, d), "add");
	BENCH(x, 0, 2 * n, dropout(x->b, y, h, 0.1f, (struct rng_key){1, 2}, false), "dropout");
	struct mat g = mat_random(x, x->dtype, ROWS, INTERMEDIATE);
	struct mat u = mat_random(x, x->dtype, ROWS, INTERMEDIATE);
	struct mat p = mat_random(x, x->dtype, ROWS, INTERMEDIATE);
	struct mat dg = mat_random(x, x->dtype, ROWS, INTERMEDIATE);
	struct mat du = mat_random(x, x->dtype, ROWS, INTERMEDIATE);
	n = (double)ROWS * INTERMEDIATE * size;
	BENCH(x, 0, 3 * n, swiglu_forward(x->b, p, g, u), "swiglu forward");
	BENCH(x, 0, 5 * n, swiglu_backward(x->b, dg, du, p, g, u), "swiglu backward");
	struct mat all[] = {h, y, d, s, w, rstd, dw, cs, g, u, p, dg, du};
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		mat_free(x, all[i]);
	}
}

static void bench_head(const struct bench *x)
{
	struct packed_weight *w = weight_new(x, VOCAB, HIDDEN);
	struct mat h = mat_random(x, x->dtype, ROWS, HIDDEN), d = mat_random(x, x->dtype, ROWS, HIDDEN);
	size_t bytes = lm_head_workspace(x->b, VOCAB, HIDDEN, x->dtype, ROWS);
	void *workspace = backend_alloc(x->b, bytes);
	int32_t targets[ROWS];
	double loss = 0;
	for (int i = 0; i < ROWS; i++) {
		targets[i] = i * 7 % VOCAB;
	}
	struct mat none = {0};
	double flops = 2.0 * ROWS * VOCAB * HIDDEN;
	BENCH(x, 2 * flops, 0, lm_head_loss(x->b, d, &loss, h, targets, w, 1, workspace),
		"lm_head loss and gradient");
	BENCH(x, flops, 0, lm_head_loss(x->b, none, &loss, h, targets, w, 1, workspace),
		"lm_head loss");
	printf("      workspace of lm_head: %.1f MB\n", (double)bytes * 1e-6);
	backend_free_memory(x->b, workspace, bytes);
	mat_free(x, h);
	mat_free(x, d);
	packed_weight_free(w);
}

static void bench_optimizer(const struct bench *x)
{
	enum { N = 4884480 }; /* LoRA rank 16 on all linear layers */
	struct mat p = mat_random(x, DTYPE_F32, 1, N), m = mat_random(x, DTYPE_F32, 1, N);
	struct mat v = mat_random(x, DTYPE_F32, 1, N), g = mat_random(x, DTYPE_F32, 1, N);
	struct mat c = mat_random(x, DTYPE_BF16, 1, N);
	struct adamw a = {1e-4, 0.9, 0.999, 1e-8, 0, 1, 1};
	fill_zero(x->b, v);
	BENCH(x, 0, 28.0 * N, adamw_step(x->b, p.data, m.data, v.data, g.data, N, &a), "adamw 4.9M");
	BENCH(x, 0, 4.0 * N, sum_squares(x->b, g.data, N), "sum_squares 4.9M");
	BENCH(x, 0, 6.0 * N, cast(x->b, c, p), "cast f32->bf16 4.9M");
	struct mat all[] = {p, m, v, g, c};
	for (size_t i = 0; i < ARRAY_LEN(all); i++) {
		mat_free(x, all[i]);
	}
}

int main(int argc, char **argv)
{
	struct errmsg err = {""};
	struct bench x = {NULL};
	unsigned threads = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
	if (backend_cpu_new(&x.b, threads, &err)) {
		fprintf(stderr, "bench_kernels: %s\n", err.text);
		return 1;
	}
	bool only_peak = argc > 2 && strcmp(argv[2], "peak") == 0;
	printf("%s\n", backend_device(x.b));
	for (int i = 0; i < 2; i++) {
		x.dtype = i == 0 ? DTYPE_F32 : DTYPE_BF16;
		x.peak = large_product(&x);
		printf("\n%-4s  large product: %.1f GFLOP/s\n", dtype_name(x.dtype), x.peak);
		if (only_peak) {
			continue;
		}
		bench_linear(&x);
		bench_lora(&x);
		bench_attention(&x, SEQS);
		bench_attention(&x, 1);
		bench_rows(&x);
		bench_head(&x);
	}
	if (!only_peak) {
		bench_optimizer(&x);
	}
	backend_free(x.b);
	return 0;
}
