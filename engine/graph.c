#include "engine/graph.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct graph *, graph_free);

int graph_new(struct graph **ret, const struct model_config *config, enum graph_purpose purpose,
	struct backend *backend, enum dtype dtype, int64_t tokens, int64_t max_seqs, bool trainable)
{
	_cleanup_(graph_freep) struct graph *g = calloc(1, sizeof(*g));
	if (!g) {
		return -ENOMEM;
	}
	g->config = *config;
	g->purpose = purpose;
	g->backend = backend;
	g->dtype = dtype;
	g->tokens = tokens;
	g->max_seqs = max_seqs;
	g->trainable = trainable;
	g->source = config->is_encoder_decoder;
	g->region = RECOMPUTE_NEVER;

	/* Slot 0 of each is there from the start and is what a failed addition returns, so that
	 * constructors always have something valid to look at. */
	g->weights = calloc(1, sizeof(*g->weights));
	g->params = calloc(1, sizeof(*g->params));
	g->tensors = calloc(1, sizeof(*g->tensors));
	g->nodes = calloc(1, sizeof(*g->nodes));
	if (!g->weights || !g->params || !g->tensors || !g->nodes) {
		return -ENOMEM;
	}
	g->cap_weights = g->cap_params = g->cap_tensors = g->cap_nodes = 1;
	*ret = steal_ptr(g);
	return 0;
}

void graph_free(struct graph *g)
{
	if (!g) {
		return;
	}
	free(g->weights);
	free(g->params);
	free(g->tensors);
	free(g->nodes);
	free(g->buckets[0]);
	free(g->buckets[1]);
	free(g);
}

/* Room for one more in an array; false, with the graph's error set, where there is none. */
static bool grow(struct graph *g, void **array, int n, int *cap, size_t size)
{
	if (n < *cap) {
		return true;
	}
	int new_cap = *cap * 2;
	void *p = realloc_array(*array, (size_t)new_cap, size);
	if (!p) {
		g->error = -ENOMEM;
		return false;
	}
	*array = p;
	*cap = new_cap;
	return true;
}

int graph_weight(struct graph *g, const struct weight *w)
{
	if (!grow(g, (void **)&g->weights, g->n_weights, &g->cap_weights, sizeof(*g->weights))) {
		return 0;
	}
	struct weight *slot = &g->weights[g->n_weights];
	*slot = *w;
	for (int i = 0; i < LINEAR_PARTS; i++) {
		slot->parts[i].param = slot->parts[i].bias_param = NONE;
	}
	return g->n_weights++;
}

int graph_param(struct graph *g, int64_t rows, int64_t cols)
{
	if (!grow(g, (void **)&g->params, g->n_params, &g->cap_params, sizeof(*g->params))) {
		return 0;
	}
	g->params[g->n_params] = (struct param){.rows = rows, .cols = cols,
		.offset = g->param_elements, .lr_scale = 1};
	/* 32 elements: 64 bytes in bf16, too. */
	g->param_elements += align_up((size_t)(rows * cols), 32);
	return g->n_params++;
}

size_t graph_constant(struct graph *g, size_t n)
{
	size_t at = g->constants;
	g->constants += align_up(n, 16);
	return at;
}

int graph_train_weight(struct graph *g, int slot, int part)
{
	const struct weight *w = &g->weights[slot];
	int64_t rows = w->parts[part].rows;
	int p = graph_param(g, w->transposed ? w->cols : rows, w->transposed ? rows : w->cols);
	g->params[p].of_base = true;
	g->weights[slot].parts[part].param = p;
	return p;
}

int graph_train_bias(struct graph *g, int slot, int part)
{
	const struct weight *w = &g->weights[slot];
	int p = graph_param(g, 1, w->kind == WEIGHT_VECTOR ? w->cols : w->parts[part].rows);
	g->params[p].of_base = g->weights[slot].bias;
	g->weights[slot].parts[part].bias_param = p;
	return p;
}

void graph_train_as(struct graph *g, int slot, int part, int param)
{
	g->weights[slot].parts[part].param = param;
}

bool graph_find_module(const struct graph *g, const char *module, int *ret_slot, int *ret_part)
{
	for (int i = 0; i < g->n_weights; i++) {
		for (int k = 0; k < g->weights[i].n_parts; k++) {
			if (strcmp(g->weights[i].parts[k].module, module) == 0) {
				*ret_slot = i;
				*ret_part = k;
				return true;
			}
		}
	}
	return false;
}

int graph_tensor_fixed(struct graph *g, enum dtype dtype, int64_t rows, int64_t cols,
	enum recompute recompute)
{
	int t = graph_tensor(g, dtype, ROWS_FIXED, cols, recompute);
	g->tensors[t].n_rows = rows;
	return t;
}

int graph_tensor(struct graph *g, enum dtype dtype, enum tensor_rows rows, int64_t cols,
	enum recompute recompute)
{
	if (!grow(g, (void **)&g->tensors, g->n_tensors, &g->cap_tensors, sizeof(*g->tensors))) {
		return 0;
	}
	g->tensors[g->n_tensors] = (struct tensor){
		.dtype = dtype,
		.rows = rows,
		.cols = cols,
		.producer = NONE,
		.recompute = recompute,
	};
	return g->n_tensors++;
}

struct node graph_node_init(const struct op *op)
{
	struct node n = {.op = op, .weight = NONE, .site = NONE};
	for (int i = 0; i < NODE_INPUTS; i++) {
		n.in[i] = NONE;
	}
	for (int i = 0; i < NODE_OUTPUTS; i++) {
		n.out[i] = NONE;
	}
	for (int i = 0; i < NODE_PARAMS; i++) {
		n.param[i] = NONE;
	}
	n.low_rank.a = NONE;
	n.attention.bias = NONE;
	return n;
}

int graph_append(struct graph *g, const struct node *n, bool trains)
{
	if (!grow(g, (void **)&g->nodes, g->n_nodes, &g->cap_nodes, sizeof(*g->nodes))) {
		return 0;
	}
	g->nodes[g->n_nodes] = *n;
	for (int i = 0; i < NODE_INPUTS; i++) {
		trains |= n->in[i] != NONE && g->tensors[n->in[i]].needs_grad;
	}
	for (int i = 0; i < NODE_OUTPUTS; i++) {
		if (n->out[i] != NONE) {
			g->tensors[n->out[i]].producer = g->n_nodes;
			g->tensors[n->out[i]].needs_grad = trains;
		}
	}
	return g->n_nodes++;
}

int64_t tensor_rows(const struct graph *g, int t)
{
	const struct tensor *x = &g->tensors[t];
	switch (x->rows) {
	case ROWS_TOKENS:
	case ROWS_SOURCE:
		return g->tokens;
	case ROWS_FIXED:
		return x->n_rows;
	case ROWS_ONE:
	case ROWS_BYTES:
		break;
	}
	return 1;
}

size_t tensor_bytes(const struct graph *g, int t)
{
	const struct tensor *x = &g->tensors[t];
	size_t size = x->rows == ROWS_BYTES ? 1 : dtype_size(x->dtype);
	size_t bytes = (size_t)tensor_rows(g, t) * (size_t)x->cols * size;
	return align_up(bytes ? bytes : 1, 64);
}

double graph_flops(const struct graph *g, int64_t seq_len)
{
	double sum = 0;
	for (int i = 0; i < g->n_nodes; i++) {
		const struct node *n = &g->nodes[i];
		if (n->op->flops) {
			sum += n->op->flops(g, n, seq_len);
		}
	}
	return sum;
}
