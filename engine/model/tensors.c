/* What tensors a model's files must hold: those that the slots of its graph are filled from. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/model/arch.h"
#include "engine/model/model-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct graph *, graph_free);

struct tensor_list {
	struct tensor_spec *specs; /* owned */
	size_t n, cap;
};

static void tensor_list_deinit(struct tensor_list *l)
{
	free(l->specs);
}

static int add_tensor(struct tensor_list *l, const char *module, const char *suffix, int n_dims,
	int64_t rows, int64_t cols)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 64;
		struct tensor_spec *p = realloc_array(l->specs, cap, sizeof(*p));
		if (!p) {
			return -ENOMEM;
		}
		l->specs = p;
		l->cap = cap;
	}
	struct tensor_spec *t = &l->specs[l->n++];
	*t = (struct tensor_spec){.n_dims = n_dims, .rows = rows, .cols = cols};
	snprintf(t->name, sizeof(t->name), "%s.%s", module, suffix);
	return 0;
}

static int add_slot(struct tensor_list *l, const struct weight *w)
{
	bool vector = w->kind == WEIGHT_VECTOR;
	int r = 0;
	for (int i = 0; i < w->n_parts && r == 0 && !w->stored_as; i++) {
		const char *module = w->parts[i].module;
		int64_t rows = vector ? w->cols : w->parts[i].rows;
		r = vector ? add_tensor(l, module, "weight", 1, rows, 1) :
			add_tensor(l, module, "weight", 2, w->transposed ? w->cols : rows,
				w->transposed ? rows : w->cols);
		if (r == 0 && w->bias) {
			r = add_tensor(l, module, "bias", 1, rows, 1);
		}
	}
	return r;
}

int model_tensors(struct tensor_spec **ret, size_t *ret_n, const struct model_config *c)
{
	const struct graph_request q = {
		.config = c,
		.purpose = GRAPH_GENERATE,
		.dtype = DTYPE_F32,
		.tokens = 1,
		.max_seqs = 1,
		.context = 1,
	};
	_cleanup_(graph_freep) struct graph *g = NULL;
	_cleanup_(tensor_list_deinit) struct tensor_list l = {0};
	int r = model_graph(&g, &q, NULL, NULL);
	for (int i = 0; r == 0 && i < g->n_weights; i++) {
		r = add_slot(&l, &g->weights[i]);
	}
	if (r == 0) {
		*ret = steal_ptr(l.specs);
		*ret_n = l.n;
	}
	return r;
}
