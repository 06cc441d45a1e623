#pragma once
/* Nodes that methods in engine/peft/ add. As in graph.h: constructors append a node and return its
 * result; parameters are those of graph_param(). */

#include "engine/graph.h"

/* A parameter as a tensor of fixed rows, so that what computes with tensors can use it. */
int graph_of_param(struct graph *g, int param);

/* y = x ∘ l: x times the vector `param`[1, cols] in every row. */
int graph_scale(struct graph *g, int x, int param);
/* The same for parts of a slot's output y, which have their vectors in param[part] (NONE: as it
 * is). */
int graph_scale_parts(struct graph *g, int y, int weight, const int param[LINEAR_PARTS]);
/* y, but with part `part` of the slot's output taken from `from`. */
int graph_splice(struct graph *g, int y, int from, int weight, int part);

/* y[·,out] = x[·,in]·Wᵀ + b with parameters w[out, in] and bias[1, out] (NONE: none). */
int graph_dense(struct graph *g, int x, int w, int bias);
int graph_activation(struct graph *g, int x, enum activation kind);
/* y = a + scale · c. */
int graph_add_scaled(struct graph *g, int a, int c, float scale);

/* x with the rows of virtual tokens taken from prompt[n, d], a tensor of fixed rows. */
int graph_virtual_tokens(struct graph *g, int x, int prompt);

/*
 * A bidirectional layer of LSTM over the rows of x (tensors of fixed rows), forward direction first:
 * h[n, 2d] from xg[2], x·W_ihᵀ + b_ih of each direction, and parameters w[2] = W_hh[4d, d] and
 * bias[2] = b_hh[1, 4d].
 */
int graph_lstm(struct graph *g, const int xg[2], const int w[2], const int bias[2]);
/* Dropout of a tensor of fixed rows: one mask a step, whatever the microbatches. */
int graph_dropout_fixed(struct graph *g, int x, float p);

/* As graph_attention(), with the layer's keys and values of prefix[n, layers · 2 · kv_heads · head_dim], a
 * tensor of fixed rows in PEFT's order K₀V₀K₁V₁…, before those of every sequence. NONE: without. */
int graph_attention_prefix(struct graph *g, int qkv, const struct attention_spec *spec, int prefix,
	int64_t layer);

extern const struct op op_of_param, op_of_param_backward, op_scale, op_scale_backward, op_splice,
	op_splice_backward, op_dense, op_dense_backward, op_activation, op_activation_backward,
	op_add_scaled, op_times, op_cast, op_virtual_tokens, op_virtual_tokens_backward, op_lstm,
	op_lstm_backward, op_dropout_fixed, op_dropout_fixed_backward;
