/* The last k blocks are trained, and with `head` and `final_norm` what follows them. A tied head is
 * the embedding, which is then trained as such, in both of its places. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/peft.h"
#include "util/json.h"

#define DELTA_CONFIG "delta_config.json"

/* The number of the block that a module belongs to, or -1. */
static int64_t block_of(const struct model_config *c, const char *module)
{
	const char *blocks = model_blocks(c);
	size_t n = strlen(blocks);
	return strncmp(module, blocks, n) == 0 && module[n] == '.' ? strtol(module + n + 1, NULL, 10) : -1;
}

static void last_k_weight(struct peft *p, struct graph *g, int slot)
{
	const struct last_k_config *c = &p->config.last_k;
	const struct weight *w = &g->weights[slot];
	int64_t block = block_of(&g->config, w->parts[0].module);
	bool tied = g->config.tie_word_embeddings;
	bool train = block >= g->config.num_hidden_layers - c->k;
	if (block < 0) {
		train = (w->kind == WEIGHT_VECTOR && c->final_norm) || (w->head && c->head) ||
			(w->tokens && c->head && tied);
	}
	if (train) {
		peft_train_slot(g, slot);
	}
}

static int last_k_check(const struct method_config *m, struct errmsg *err)
{
	if (m->last_k.k < 0) {
		return errmsg_set(err, STATUS_INVALID, "last_k.k: %lld; it must be 0 or above",
			(long long)m->last_k.k);
	}
	if (m->last_k.k == 0 && !m->last_k.head && !m->last_k.final_norm) {
		return errmsg_set(err, STATUS_INVALID, "last_k.k: 0 leaves nothing to train; set head or "
			"final_norm, or a k above 0");
	}
	return 0;
}

static int last_k_start(struct peft *p, const struct graph *g, struct errmsg *err)
{
	if (g->source) {
		return errmsg_set(err, STATUS_INVALID, "last_k: this model has an encoder and a decoder, so "
			"that it does not say which blocks are the last; name parameters with select");
	}
	if (p->config.last_k.k > g->config.num_hidden_layers) {
		return errmsg_set(err, STATUS_INVALID, "last_k.k: %lld; this model has %lld blocks",
			(long long)p->config.last_k.k, (long long)g->config.num_hidden_layers);
	}
	return 0;
}

static int last_k_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	int r = json_get_int(o, "k", 0, INT32_MAX, &ret->last_k.k, DELTA_CONFIG, err);
	r = r ? r : json_get_bool(o, "head", &ret->last_k.head, DELTA_CONFIG, err);
	return r ? r : json_get_bool(o, "final_norm", &ret->last_k.final_norm, DELTA_CONFIG, err);
}

static int last_k_config_write(json_t *o, const struct method_config *m,
	const struct model_config *c)
{
	int r = json_object_set_new(o, "k", json_integer(m->last_k.k));
	r |= json_object_set_new(o, "head", json_boolean(m->last_k.head));
	r |= json_object_set_new(o, "final_norm", json_boolean(m->last_k.final_norm));
	return r == 0 ? 0 : -ENOMEM;
}

static int last_k_matches(const struct method_config *have, const struct method_config *want,
	struct errmsg *err)
{
	const struct last_k_config *a = &have->last_k, *b = &want->last_k;
	if (a->k != b->k || a->head != b->head || a->final_norm != b->final_norm) {
		return errmsg_set(err, STATUS_INVALID, "the delta has k %lld, head %s, final_norm %s; set "
			"last_k's fields to these", (long long)a->k, a->head ? "true" : "false",
			a->final_norm ? "true" : "false");
	}
	return 0;
}

static int last_k_describe(const struct peft *p, struct buf *out)
{
	const struct last_k_config *c = &p->config.last_k;
	return buf_appendf(out, "last_k k=%lld head=%d final_norm=%d", (long long)c->k, c->head,
		c->final_norm);
}

const struct peft_method peft_last_k = {
	.name = "last_k",
	.kind = ADAPTER_DELTA,
	.decides = "last_k.k, head and final_norm",
	.size = sizeof(struct peft),
	.check = last_k_check,
	.config_read = last_k_config_read,
	.config_write = last_k_config_write,
	.matches = last_k_matches,
	.start = last_k_start,
	.weight = last_k_weight,
	.merge = peft_merge_delta,
	.describe = last_k_describe,
};
