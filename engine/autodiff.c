/*
 * The backward pass, derived.
 *
 * Forward nodes are visited in reverse; each whose outputs need a gradient appends the nodes that
 * carry it on. A tensor needs one only where a trainable parameter lies upstream (graph_append()
 * passes that on), so what is below the lowest parameter is never visited, and frozen weights have
 * no gradient because no node makes one.
 *
 * What the backward pass reads of the forward pass it asks for through autodiff_use(). That is
 * where recomputation happens: a tensor that is not kept at the chosen level is computed again by a
 * copy of its node, appended right there, just before its first use. The inputs of the copy are
 * asked for in the same way, so one rule serves a norm and a whole block.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "engine/graph.h"
#include "util/cleanup.h"
#include "util/util.h"

int autodiff_grad(const struct autodiff *ad, int t)
{
	assert(t >= 0 && t < ad->n);
	return ad->grad[t];
}

bool autodiff_needs(const struct autodiff *ad, int t)
{
	return t != NONE && ad->g->tensors[t].needs_grad;
}

void autodiff_set(struct autodiff *ad, int t, int grad)
{
	assert(t >= 0 && t < ad->n);
	ad->grad[t] = grad;
}

void autodiff_add(struct autodiff *ad, int t, int grad)
{
	struct graph *g = ad->g;
	int before = autodiff_grad(ad, t);
	if (before == NONE) {
		ad->grad[t] = grad;
		return;
	}
	struct node n = graph_node_init(&op_add);
	n.in[0] = before;
	n.in[1] = grad;
	struct tensor like = g->tensors[t];
	n.out[0] = graph_tensor(g, like.dtype, like.rows, like.cols, RECOMPUTE_NEVER);
	g->tensors[n.out[0]].n_rows = like.n_rows;
	graph_append(g, &n, false);
	ad->grad[t] = n.out[0];
}

int autodiff_use(struct autodiff *ad, int t)
{
	struct graph *g = ad->g;
	if (t == NONE || ad->level < g->tensors[t].recompute) {
		return t;
	}
	if (ad->again[t] != NONE) {
		return ad->again[t];
	}

	struct node original = g->nodes[g->tensors[t].producer];
	struct node copy = original;
	if (copy.op->again) {
		copy.op->again(ad, &original, &copy);
	}
	for (int i = 0; i < NODE_INPUTS; i++) {
		copy.in[i] = autodiff_use(ad, copy.in[i]);
	}
	for (int i = 0; i < NODE_OUTPUTS; i++) {
		if (copy.out[i] != NONE) {
			struct tensor o = g->tensors[copy.out[i]];
			copy.out[i] = graph_tensor(g, o.dtype, o.rows, o.cols, RECOMPUTE_NEVER);
			g->tensors[copy.out[i]].n_rows = o.n_rows;
			ad->again[original.out[i]] = copy.out[i];
		}
	}
	graph_append(g, &copy, false);
	return ad->again[t];
}

static bool outputs_have_grad(const struct autodiff *ad, const struct node *n)
{
	for (int i = 0; i < NODE_OUTPUTS; i++) {
		if (n->out[i] != NONE && ad->g->tensors[n->out[i]].needs_grad) {
			return true;
		}
	}
	return false;
}

int graph_differentiate(struct graph *g, enum recompute level)
{
	_cleanup_(freep) int *grad = alloc_array((size_t)g->n_tensors, sizeof(*grad));
	_cleanup_(freep) int *again = alloc_array((size_t)g->n_tensors, sizeof(*again));
	if (!grad || !again || g->error) {
		return -ENOMEM;
	}
	for (int i = 0; i < g->n_tensors; i++) {
		grad[i] = again[i] = NONE;
	}
	struct autodiff ad = {.g = g, .level = level, .n = g->n_tensors, .grad = grad, .again = again};

	g->n_forward = g->n_nodes;
	for (int i = g->n_forward - 1; i >= 0; i--) {
		/* A copy: appending may move the array. */
		struct node n = g->nodes[i];
		if (n.op->backward && outputs_have_grad(&ad, &n)) {
			n.op->backward(&ad, &n);
		}
	}
	return g->error;
}
