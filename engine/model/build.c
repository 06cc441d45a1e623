#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/model/arch.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct graph *, graph_free);

static const struct arch *const archs[] = {
	&arch_llama,
};

int arch_find(const struct arch **ret, const struct model_config *c, struct errmsg *err)
{
	for (size_t i = 0; i < ARRAY_LEN(archs); i++) {
		if (strcmp(archs[i]->model_type, c->model_type) == 0) {
			*ret = archs[i];
			return 0;
		}
	}
	return errmsg_set(err, STATUS_INVALID, "model_type: \"%s\" is not supported; there is: llama",
		c->model_type);
}

const char *const *model_linear_modules(const struct model_config *c)
{
	static const char *const none[] = {NULL};
	const struct arch *arch;
	return arch_find(&arch, c, NULL) == 0 ? arch->linear_modules : none;
}

int model_graph(struct graph **ret, const struct graph_request *q, struct peft *peft,
	struct errmsg *err)
{
	const struct arch *arch;
	int r = arch_find(&arch, q->config, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(graph_freep) struct graph *g = NULL;
	r = graph_new(&g, q->config, q->purpose, q->backend, q->dtype, q->tokens, q->max_seqs,
		q->trainable);
	if (r < 0) {
		return r;
	}
	g->context = q->context;
	if (peft && peft->method->virtual_tokens) {
		g->virtual_tokens = g->position_offset = peft->method->virtual_tokens(peft);
	}
	if (peft && peft->method->position_offset) {
		g->position_offset = peft->method->position_offset(peft);
	}
	if (peft && peft->method->begin) {
		peft->method->begin(peft, g);
	}
	struct build b = {g, peft};
	arch->build(&b);
	g->n_forward = g->n_nodes;
	if (g->error) {
		return g->error;
	}
	*ret = steal_ptr(g);
	return 0;
}

/* Adds a slot and lets the method say what of it is trained. */
static int add_weight(struct build *b, const struct weight *w)
{
	int slot = graph_weight(b->g, w);
	if (b->peft && b->peft->method->weight) {
		b->peft->method->weight(b->peft, b->g, slot);
	}
	return slot;
}

int build_embedding(struct build *b, const char *module)
{
	struct graph *g = b->g;
	struct weight w = {
		.kind = WEIGHT_TABLE,
		.n_parts = 1,
		.rows = g->config.vocab_size,
		.cols = g->config.hidden_size,
	};
	snprintf(w.parts[0].module, sizeof(w.parts[0].module), "%s", module);
	w.parts[0].rows = w.rows;
	int slot = add_weight(b, &w), x = graph_embedding(g, slot);
	bool hooked = b->peft && b->peft->method->embedding;
	return hooked ? b->peft->method->embedding(b->peft, g, slot, x) : x;
}

struct normed build_norm(struct build *b, int x, int delta, const char *module)
{
	struct graph *g = b->g;
	struct weight w = {
		.kind = WEIGHT_VECTOR,
		.n_parts = 1,
		.rows = 1,
		.cols = g->config.hidden_size,
	};
	snprintf(w.parts[0].module, sizeof(w.parts[0].module), "%s", module);
	w.parts[0].rows = 1;
	int slot = add_weight(b, &w);
	struct normed n = graph_rmsnorm(g, x, delta, slot);
	if (b->peft && b->peft->method->norm) {
		n.y = b->peft->method->norm(b->peft, g, slot, n.y);
	}
	return n;
}

int build_linear(struct build *b, int x, const char *prefix, const struct part *parts, int n_parts,
	bool bias)
{
	struct graph *g = b->g;
	struct weight w = {
		.kind = WEIGHT_LINEAR,
		.n_parts = n_parts,
		.cols = g->tensors[x].cols,
		.bias = bias,
		.adaptable = true,
	};
	for (int i = 0; i < n_parts; i++) {
		snprintf(w.parts[i].module, sizeof(w.parts[i].module), "%s.%s", prefix, parts[i].name);
		w.parts[i].rows = parts[i].rows;
		w.rows += parts[i].rows;
	}
	struct linear_site site = {.weight = add_weight(b, &w), .x = x};
	if (b->peft && b->peft->method->linear_input) {
		site.x = b->peft->method->linear_input(b->peft, g, site.weight, x);
	}
	site.y = graph_linear(g, site.x, site.weight);
	bool hooked = b->peft && b->peft->method->linear;
	return hooked ? b->peft->method->linear(b->peft, g, &site) : site.y;
}

int build_attention(struct build *b, int64_t layer, int qkv)
{
	bool hooked = b->peft && b->peft->method->attention;
	return hooked ? b->peft->method->attention(b->peft, b->g, layer, qkv) :
		graph_attention(b->g, qkv);
}

int build_sublayer(struct build *b, const struct sublayer_site *site)
{
	bool hooked = b->peft && b->peft->method->sublayer;
	return hooked ? b->peft->method->sublayer(b->peft, b->g, site) : site->output;
}

void build_head(struct build *b, int x, const char *module, const char *stored_as)
{
	struct graph *g = b->g;
	struct weight w = {
		.kind = WEIGHT_LINEAR,
		.n_parts = 1,
		.rows = g->config.vocab_size,
		.cols = g->config.hidden_size,
		.head = true,
		.stored_as = stored_as,
	};
	snprintf(w.parts[0].module, sizeof(w.parts[0].module), "%s", module);
	w.parts[0].rows = w.rows;
	int slot = add_weight(b, &w);
	struct low_rank l = {.a = NONE};
	bool adapted = b->peft && b->peft->method->head &&
		b->peft->method->head(b->peft, g, slot, &l);
	graph_head(g, x, slot, adapted ? &l : NULL);
}
