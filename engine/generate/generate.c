/* One prompt, token by token. */
#include "engine/generate/generate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct generator *, generator_free);

struct generator {
	struct decoder *decoder;
	struct generate_options options;
	int32_t *stop_ids;
	struct decoded next;
};

void generator_free(struct generator *g)
{
	if (g) {
		decoder_free(g->decoder);
		free(g->stop_ids);
		free(g);
	}
}

/* Works until the next token is there. */
static int advance(struct generator *g, struct errmsg *err)
{
	struct decoded out[DECODE_LANES];
	size_t n = 0;
	while (n == 0) {
		int r = decoder_step(g->decoder, out, &n, err);
		if (r != 0) {
			return r;
		}
	}
	g->next = out[0];
	return 0;
}

static int begin(struct generator *g, struct base_model *base, const struct adapter *adapter,
	const int32_t *prompt, size_t n_prompt, struct errmsg *err)
{
	int64_t n = (int64_t)n_prompt;
	int r = decoder_new(&g->decoder, base, adapter ? &adapter->config : NULL, n,
		n + g->options.max_new_tokens, 1, err);
	if (r == 0 && g->options.memory_limit > 0 && generator_bytes(g) > g->options.memory_limit) {
		r = errmsg_set(err, STATUS_WONT_FIT,
			"%lld tokens of context take %llu bytes; %llu are there",
			(long long)(n + g->options.max_new_tokens), (unsigned long long)generator_bytes(g),
			(unsigned long long)g->options.memory_limit);
	}
	if (r == 0) {
		r = decoder_reserve(g->decoder, err);
	}
	if (r == 0 && adapter) {
		r = decoder_load(g->decoder, adapter, err);
	}
	if (r == 0) {
		r = decoder_add(g->decoder, 0, prompt, n_prompt, &g->options, err);
	}
	return r == 0 ? advance(g, err) : r;
}

int generator_new(struct generator **ret, struct base_model *base, const struct adapter *adapter,
	const int32_t *prompt, size_t n_prompt, const struct generate_options *o, struct errmsg *err)
{
	_cleanup_(generator_freep) struct generator *g = calloc(1, sizeof(*g));
	if (!g) {
		return -ENOMEM;
	}
	g->options = *o;
	g->stop_ids = calloc_array(o->n_stop_ids + 1, sizeof(int32_t));
	if (!g->stop_ids) {
		return -ENOMEM;
	}
	if (o->n_stop_ids > 0) {
		memcpy(g->stop_ids, o->stop_ids, o->n_stop_ids * sizeof(int32_t));
	}
	g->options.stop_ids = g->stop_ids;
	int r = begin(g, base, adapter, prompt, n_prompt, err);
	if (r == 0) {
		*ret = steal_ptr(g);
	}
	return r;
}

uint64_t generator_bytes(const struct generator *g)
{
	return decoder_bytes(g->decoder);
}

void generator_restart(struct generator *g)
{
	decoder_restart(g->decoder);
}

int generator_feed(struct generator *g, const int32_t *ids, int64_t n, struct errmsg *err)
{
	return decoder_feed(g->decoder, ids, n, err);
}

const float *generator_logits(struct generator *g)
{
	return decoder_logits(g->decoder, 0);
}

int generator_next(struct generator *g, int32_t *ret_id, bool *ret_stopped, struct errmsg *err)
{
	struct decoded now = g->next;
	if (now.id < 0) {
		*ret_stopped = now.stopped;
		return 0;
	}
	if (now.ended) {
		g->next.id = -1;
	} else {
		int r = advance(g, err);
		if (r != 0) {
			return r;
		}
	}
	*ret_id = now.id;
	*ret_stopped = false;
	return 1;
}
