/*
 * Placement: where each tensor lies in the arena.
 *
 * A tensor lives from the node that writes it to the last node that reads it. Tensors that share
 * memory by an in-place node are one block that lives from the first's birth to the last's death.
 * Blocks are placed largest first, each at the lowest offset where it overlaps no placed block that
 * lives at the same time (greedy by size; Pisarchyk & Lee 2020). The result depends on the graph
 * alone.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "engine/graph.h"
#include "util/cleanup.h"
#include "util/util.h"

struct block {
	int owner; /* the tensor that stands for it */
	int first, last;
	size_t bytes, offset;
};

static void find_lifetimes(struct graph *g)
{
	for (int i = 0; i < g->n_tensors; i++) {
		g->tensors[i].first = g->tensors[i].last = NONE;
		g->tensors[i].owner = i;
	}
	for (int i = 0; i < g->n_nodes; i++) {
		const struct node *n = &g->nodes[i];
		for (int k = 0; k < NODE_OUTPUTS; k++) {
			if (n->out[k] != NONE) {
				g->tensors[n->out[k]].first = g->tensors[n->out[k]].last = i;
			}
		}
		for (int k = 0; k < NODE_INPUTS; k++) {
			if (n->in[k] != NONE) {
				g->tensors[n->in[k]].last = i;
			}
		}
	}
	/* The nodes after n_source run again and again on what those before it left. */
	for (int i = 0; i < g->n_tensors; i++) {
		struct tensor *t = &g->tensors[i];
		if (t->first != NONE && t->first < g->n_source && t->last >= g->n_source) {
			t->last = g->n_nodes - 1;
		}
	}
}

/* Lets outputs take the memory of inputs that die at the same node. */
static void share_memory(struct graph *g)
{
	for (int i = 0; i < g->n_nodes; i++) {
		const struct node *n = &g->nodes[i];
		int taken = NONE;
		for (int k = 0; k < NODE_OUTPUTS; k++) {
			for (int j = 0; n->out[k] != NONE && j < NODE_INPUTS; j++) {
				if (!(n->op->inplace[k] & (1u << j)) || n->in[j] == NONE || n->in[j] == taken) {
					continue;
				}
				struct tensor *out = &g->tensors[n->out[k]], *in = &g->tensors[n->in[j]];
				/* A tensor that comes in twice may still be read after it is overwritten. */
				int times = 0;
				for (int l = 0; l < NODE_INPUTS; l++) {
					times += n->in[l] == n->in[j];
				}
				if (in->last == i && times == 1 &&
					tensor_bytes(g, n->in[j]) == tensor_bytes(g, n->out[k])) {
					out->owner = in->owner;
					taken = n->in[j];
					break;
				}
			}
		}
	}
}

static int compare_blocks(const void *a, const void *b)
{
	const struct block *x = a, *y = b;
	if (x->bytes != y->bytes) {
		return x->bytes > y->bytes ? -1 : 1;
	}
	return x->first != y->first ? (x->first < y->first ? -1 : 1) : x->owner - y->owner;
}

static int compare_offsets(const void *a, const void *b)
{
	const struct block *x = *(const struct block *const *)a, *y = *(const struct block *const *)b;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* `scratch`: room for n pointers. */
static size_t place_block(struct block *b, struct block *placed, int n,
	const struct block **scratch)
{
	int m = 0;
	for (int i = 0; i < n; i++) {
		if (placed[i].first <= b->last && b->first <= placed[i].last) {
			scratch[m++] = &placed[i];
		}
	}
	qsort(scratch, (size_t)m, sizeof(*scratch), compare_offsets);
	size_t at = 0;
	for (int i = 0; i < m; i++) {
		if (scratch[i]->offset >= at + b->bytes) {
			break;
		}
		if (scratch[i]->offset + scratch[i]->bytes > at) {
			at = scratch[i]->offset + scratch[i]->bytes;
		}
	}
	return at;
}

int graph_place(struct graph *g, struct placement *ret)
{
	if (g->error) {
		return g->error;
	}
	find_lifetimes(g);
	share_memory(g);

	size_t n_tensors = (size_t)g->n_tensors;
	_cleanup_(freep) struct block *blocks = calloc_array(n_tensors, sizeof(*blocks));
	_cleanup_(freep) int *block_of = alloc_array(n_tensors, sizeof(*block_of));
	_cleanup_(freep) const struct block **scratch = alloc_array(n_tensors, sizeof(*scratch));
	if (!blocks || !block_of || !scratch) {
		return -ENOMEM;
	}
	int n = 0;
	for (int i = 0; i < g->n_tensors; i++) {
		const struct tensor *t = &g->tensors[i];
		if (t->first == NONE) {
			continue;
		}
		if (t->owner == i) {
			blocks[n] = (struct block){i, t->first, t->last, tensor_bytes(g, i), 0};
			block_of[i] = n++;
		} else {
			/* Owners come before those who share with them. */
			struct block *b = &blocks[block_of[t->owner]];
			b->last = t->last > b->last ? t->last : b->last;
		}
	}
	qsort(blocks, (size_t)n, sizeof(*blocks), compare_blocks);

	*ret = (struct placement){0};
	for (int i = 0; i < n; i++) {
		struct block *b = &blocks[i];
		b->offset = place_block(b, blocks, i, scratch);
		g->tensors[b->owner].offset = b->offset;
		ret->region = b->offset + b->bytes > ret->region ? b->offset + b->bytes : ret->region;
		/* What the last forward node writes is the loss's gradient: no activation. */
		if (b->first < g->n_forward - 1 && b->last >= g->n_forward) {
			ret->activations += b->bytes;
		}
	}
	for (int i = 0; i < g->n_tensors; i++) {
		g->tensors[i].offset = g->tensors[g->tensors[i].owner].offset;
	}
	return 0;
}
