/* Generation: the prompt in chunks through the graph, its keys and values kept; then a token a
 * run. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base.h"
#include "engine/engine.h"
#include "engine/generate/generate.h"
#include "engine/train/job.h"
#include "engine/train/rng.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct generator *, generator_free);

enum { CHUNK = 512 }; /* rows of a run while the prompt is read */

struct generator {
	struct base_model *base;
	struct job job;
	struct peft *peft;
	struct run run;
	uint8_t *arena;
	struct kv_cache cache;
	size_t cache_bytes;
	int32_t *ids, *positions; /* host, [tokens of the graph] */
	float *scores;            /* logits; host, [vocab] */
	int32_t *stop_ids;
	struct generate_options options;
	int64_t n_generated;
	bool ended, stopped;
};

void generator_free(struct generator *g)
{
	if (!g) {
		return;
	}
	struct backend *b = base_model_backend(g->base);
	if (g->arena) {
		backend_free_memory(b, g->arena, g->job.layout.total);
	}
	if (g->cache.memory) {
		backend_free_memory(b, g->cache.memory, g->cache_bytes);
	}
	job_deinit(&g->job);
	peft_free(g->peft);
	free(g->ids);
	free(g->positions);
	free(g->scores);
	free(g->stop_ids);
	free(g);
}

uint64_t generator_bytes(const struct generator *g)
{
	return g->job.layout.total + g->cache_bytes;
}

/* Runs n tokens that follow what the cache holds. */
static void feed(struct generator *g, const int32_t *ids, int64_t n)
{
	struct backend *b = g->job.g->backend;
	/* Rows of virtual tokens are in the cache; a prefix is not. */
	int64_t shift = g->job.g->position_offset - g->job.g->virtual_tokens;
	for (int64_t i = 0; i < n; i++) {
		g->ids[i] = ids[i];
		g->positions[i] = (int32_t)(g->cache.len + i + shift);
	}
	backend_upload(b, g->arena + g->job.layout.ids, g->ids, (size_t)n * sizeof(int32_t));
	backend_upload(b, g->arena + g->job.layout.positions, g->positions,
		(size_t)n * sizeof(int32_t));
	g->run.rows = n;
	run_nodes(&g->run, 0, g->job.g->n_nodes);
	g->cache.len += n;
}

static void feed_virtual_tokens(struct generator *g)
{
	int32_t ids[CHUNK];
	int64_t n = g->job.g->virtual_tokens, most = g->job.g->tokens;
	for (int64_t i = 0; i < n; i += most) {
		int64_t rows = min_i64(most, n - i);
		for (int64_t k = 0; k < rows; k++) {
			ids[k] = (int32_t)(-1 - (i + k));
		}
		feed(g, ids, rows);
	}
}

void generator_restart(struct generator *g)
{
	g->cache.len = 0;
	feed_virtual_tokens(g);
}

int generator_feed(struct generator *g, const int32_t *ids, int64_t n, struct errmsg *err)
{
	int64_t chunk = g->job.g->tokens;
	for (int64_t i = 0; i < n; i += chunk) {
		feed(g, ids + i, min_i64(chunk, n - i));
	}
	return backend_sync(g->job.g->backend, err);
}

static int check_options(const struct base_model *base, const int32_t *prompt, size_t n_prompt,
	const struct generate_options *o, struct errmsg *err)
{
	if (n_prompt == 0 || n_prompt > (size_t)1 << 24) {
		return errmsg_set(err, STATUS_INVALID, "the prompt has %zu tokens; it needs at least one",
			n_prompt);
	}
	if (o->max_new_tokens < 1 || o->max_new_tokens > (int64_t)1 << 24) {
		return errmsg_set(err, STATUS_INVALID, "max_new_tokens: %lld; it must be at least 1",
			(long long)o->max_new_tokens);
	}
	if (!isfinite(o->temperature) || o->temperature < 0) {
		return errmsg_set(err, STATUS_INVALID, "temperature: %g; it must be 0 (greedy) or above",
			o->temperature);
	}
	int64_t vocab = base_model_config(base)->vocab_size;
	for (size_t i = 0; i < n_prompt; i++) {
		if (prompt[i] < 0 || prompt[i] >= vocab) {
			return errmsg_set(err, STATUS_INVALID, "prompt: token %d, but the model's vocab_size "
				"is %lld", (int)prompt[i], (long long)vocab);
		}
	}
	return 0;
}

static int build(struct generator *g, const struct adapter *adapter, int64_t n_prompt,
	struct errmsg *err)
{
	const struct model_config *c = base_model_config(g->base);
	struct graph_request q = {
		.config = c,
		.purpose = GRAPH_GENERATE,
		.backend = base_model_backend(g->base),
		.dtype = base_model_dtype(g->base),
		.tokens = min_i64(n_prompt, CHUNK),
		.max_seqs = 1,
		.context = n_prompt + g->options.max_new_tokens,
	};
	int r = 0;
	if (adapter) {
		r = job_method(&g->peft, &q, &adapter->config, err);
	}
	if (r == 0 && g->peft && g->peft->method->virtual_tokens) {
		int64_t n = g->peft->method->virtual_tokens(g->peft);
		q.context += n;
		q.tokens = min_i64(q.tokens + n, CHUNK);
	}
	if (r == 0) {
		r = job_build(&g->job, &q, g->peft, RECOMPUTE_CHEAP, err);
	}
	if (r != 0) {
		return r;
	}
	size_t tokens = (size_t)q.tokens, vocab = (size_t)c->vocab_size;
	size_t row = (size_t)(c->num_key_value_heads * c->head_dim) * dtype_size(q.dtype);
	if (!mul_size((size_t)q.context * 2 * (size_t)c->num_hidden_layers, row, &g->cache_bytes)) {
		return -ENOMEM;
	}
	if (g->options.memory_limit > 0 && generator_bytes(g) > g->options.memory_limit) {
		return errmsg_set(err, STATUS_WONT_FIT,
			"%lld tokens of context take %llu bytes; %llu are there",
			(long long)q.context, (unsigned long long)generator_bytes(g),
			(unsigned long long)g->options.memory_limit);
	}
	g->arena = backend_alloc(q.backend, g->job.layout.total);
	g->cache.memory = backend_alloc(q.backend, g->cache_bytes);
	g->cache.capacity = q.context;
	g->ids = calloc_array(tokens, sizeof(int32_t));
	g->positions = calloc_array(tokens, sizeof(int32_t));
	g->scores = calloc_array(vocab, sizeof(float));
	if (!g->arena || !g->cache.memory || !g->ids || !g->positions || !g->scores) {
		return errmsg_set(err, -ENOMEM, "no memory for %lld tokens of context",
			(long long)q.context);
	}
	g->run = job_run(&g->job, g->base, g->arena);
	g->run.cache = &g->cache;
	r = job_upload_tables(&g->job, g->base, g->arena, err);
	if (r == 0) {
		r = run_prepare(&g->run, err);
	}
	return r == 0 && adapter ? job_load_adapter(&g->job, g->arena, adapter, err) : r;
}

int generator_new(struct generator **ret, struct base_model *base, const struct adapter *adapter,
	const int32_t *prompt, size_t n_prompt, const struct generate_options *o, struct errmsg *err)
{
	int r = check_options(base, prompt, n_prompt, o, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(generator_freep) struct generator *g = calloc(1, sizeof(*g));
	if (!g) {
		return -ENOMEM;
	}
	g->base = base;
	g->options = *o;
	g->stop_ids = calloc_array(o->n_stop_ids + 1, sizeof(int32_t));
	if (!g->stop_ids) {
		return -ENOMEM;
	}
	if (o->n_stop_ids > 0) {
		memcpy(g->stop_ids, o->stop_ids, o->n_stop_ids * sizeof(int32_t));
	}
	g->options.stop_ids = g->stop_ids;
	r = build(g, adapter, (int64_t)n_prompt, err);
	if (r != 0) {
		return r;
	}
	generator_restart(g);
	r = generator_feed(g, prompt, (int64_t)n_prompt, err);
	if (r == 0) {
		*ret = steal_ptr(g);
	}
	return r;
}

const float *generator_logits(struct generator *g)
{
	const struct graph *gr = g->job.g;
	struct mat m = run_mat(&g->run, gr->nodes[gr->n_nodes - 1].out[0]);
	backend_download(gr->backend, g->scores, m.data, (size_t)m.cols * sizeof(float));
	return g->scores;
}

static int32_t pick_greedy(const float *scores, int64_t n)
{
	int32_t best = 0;
	for (int64_t i = 1; i < n; i++) {
		best = scores[i] > scores[best] ? (int32_t)i : best;
	}
	return best;
}

/* Draws from softmax(scores / temperature): the token at which the running sum passes a uniform
 * number that (seed, position) gives. */
static int32_t pick_sampled(const struct generator *g, int64_t n)
{
	const float *scores = g->scores;
	double top = scores[pick_greedy(scores, n)], t = g->options.temperature, sum = 0, running = 0;
	for (int64_t i = 0; i < n; i++) {
		sum += exp((scores[i] - top) / t);
	}
	struct rng_key key = {g->options.seed, rng_stream(RNG_SAMPLE, (uint64_t)g->cache.len, 0, 0)};
	double target = ((double)rng_bits(key, 0) + 0.5) / 4294967296.0 * sum;
	int32_t last = 0;
	for (int64_t i = 0; i < n; i++) {
		double p = exp((scores[i] - top) / t);
		running += p;
		last = p > 0 ? (int32_t)i : last;
		if (running >= target) {
			return last;
		}
	}
	return last;
}

static bool is_stop(const struct generator *g, int32_t id)
{
	for (size_t i = 0; i < g->options.n_stop_ids; i++) {
		if (g->stop_ids[i] == id) {
			return true;
		}
	}
	return false;
}

int generator_next(struct generator *g, int32_t *ret_id, bool *ret_stopped, struct errmsg *err)
{
	int64_t vocab = base_model_config(g->base)->vocab_size;
	if (g->ended || g->n_generated == g->options.max_new_tokens) {
		*ret_stopped = g->stopped;
		return 0;
	}
	generator_logits(g);
	for (int64_t i = 0; i < vocab; i++) {
		if (!isfinite(g->scores[i])) {
			return errmsg_set(err, STATUS_FAILED, "the model's logits are no finite numbers");
		}
	}
	bool greedy = g->options.temperature == 0;
	int32_t id = greedy ? pick_greedy(g->scores, vocab) : pick_sampled(g, vocab);
	g->n_generated++;
	if (is_stop(g, id)) {
		g->ended = g->stopped = true;
		*ret_stopped = true;
		return 0;
	}
	if (g->n_generated < g->options.max_new_tokens) {
		int r = generator_feed(g, &id, 1, err);
		if (r != 0) {
			return r;
		}
	}
	*ret_id = id;
	*ret_stopped = false;
	return 1;
}
