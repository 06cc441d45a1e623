#pragma once
/*
 * The operations of kernels.h in float64, written as plainly as possible: contiguous row-major arrays,
 * one loop an index. Gradients are written out from the formulas; test_reference.c holds them against
 * finite differences of the forward functions.
 */

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"

/* c = alpha · op(a)·op(b) + beta · c. Where magnitude is not NULL it gets the same with all terms'
 * absolute values, the scale of rounding errors. */
void ref_matmul(double *c, double *magnitude, const double *a, bool trans_a, const double *b,
	bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, double beta);

void ref_rmsnorm_forward(double *y, double *sum, double *rstd, const double *x,
	const double *delta, const double *w, int64_t rows, int64_t d, double eps);
void ref_rmsnorm_backward(double *dx, double *dw, const double *dy, const double *dsum,
	const double *sum, const double *w, int64_t rows, int64_t d, double eps);

void ref_layernorm_forward(double *y, double *sum, double *stats, const double *x,
	const double *delta, const double *w, const double *bias, int64_t rows, int64_t d, double eps);
void ref_layernorm_backward(double *dx, double *dw, double *dbias, const double *dy,
	const double *dsum, const double *sum, const double *w, int64_t rows, int64_t d, double eps);

void ref_rope(double *x, const int32_t *positions, const double *cos_sin, int64_t rows,
	int64_t n_heads, int64_t head_dim, int64_t rotary_dim, bool inverse);

void ref_swiglu_forward(double *h, const double *gate, const double *up, int64_t n);
void ref_swiglu_backward(double *dgate, double *dup, const double *dh, const double *gate,
	const double *up, int64_t n);

double ref_activation(double x, enum activation kind);
double ref_activation_derivative(double x, enum activation kind);

/* torch.nn.LSTM's cell; gates after their functions. h, cell and gates are written. */
void ref_lstm_forward(double *h, double *gates, double *cell, const double *xg, const double *w,
	const double *bias, int64_t n, int64_t d, bool reverse);

/* Rows outside all sequences are left alone; the prefix is. bias[buckets, n_heads], by a->bias.bucket, and
 * dbias may be NULL. */
void ref_attention_forward(double *o, double *lse, const double *q, const double *k, const double *v,
	const double *bias, const struct attention *a);
void ref_attention_backward(double *dq, double *dk, double *dv, double *dbias, const double *do_,
	const double *q, const double *k, const double *v, const double *bias,
	const struct attention *a);

/* The sum of losses; dx (may be NULL) assigned, dw (may be NULL) added to. w[vocab, d]; cap 0: none. */
double ref_lm_head(double *dx, double *dw, const double *x, const int32_t *targets, const double *w,
	int64_t rows, int64_t vocab, int64_t d, double cap, double grad_scale);

void ref_adamw(double *p, double *m, double *v, const double *g, int64_t n, const struct adamw *a);

/* Philox4x32-10 as published, for the test's own use. */
void ref_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);
