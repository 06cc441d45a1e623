/*
 * Decoding several prompts at once.
 *
 * A lane is a row of every decoding step and a stretch of the key/value cache. Prompts take the first
 * lanes; the others run a token of their own whose only key is itself, so that all products have
 * DECODE_LANES rows whoever is there, and one prompt's bits do not depend on another's presence. On a
 * CPU the rows that go to waste cost little: a step is bound by the reading of the weights.
 *
 * An encoder-decoder has one lane: the prompt goes through the encoder, all at once, its rows stay for the
 * decoder to look at, and the decoder begins with a token of its own.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base.h"
#include "engine/engine.h"
#include "engine/generate/generate.h"
#include "engine/generate/sample.h"
#include "engine/train/job.h"
#include "engine/train/rng.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct decoder *, decoder_free);
DEFINE_CLEANUP(struct peft *, peft_free);

enum { CHUNK = 512 }; /* rows of a run while a prompt is read */

struct lane {
	bool busy;
	uint64_t tag;
	struct generate_options options;
	int32_t *prompt; /* [max_prompt] */
	uint8_t *seen;   /* [vocab]: ids of prompt and answer */
	int64_t n_prompt;
	int64_t fed;  /* of virtual tokens and prompt */
	int64_t rows; /* in the cache */
	int64_t n_new;
	int32_t last; /* the token that is fed next */
};

struct decoder {
	struct base_model *base;
	struct job job;
	struct peft *peft;
	struct run run;
	uint8_t *arena;
	struct kv_cache cache;
	size_t cache_bytes;
	int64_t slots, max_prompt, context; /* context: rows of a lane, virtual tokens included */
	int64_t n_lanes; /* rows of a decoding step */
	struct lane lanes[DECODE_LANES];
	int32_t *ids, *positions; /* host, [tokens of the graph] */
	float *scores;            /* host, [vocab] */
	int32_t *heap;            /* host, [vocab] */
	int32_t seq_start[DECODE_LANES], seq_len[DECODE_LANES];
	int32_t cache_start[DECODE_LANES], cache_len[DECODE_LANES];
	int32_t source_start[1], source_len; /* rows of the encoder's side */
	int64_t place[DECODE_LANES]; /* by token of the last step: its row of the logits */
};

void decoder_free(struct decoder *d)
{
	if (!d) {
		return;
	}
	struct backend *b = base_model_backend(d->base);
	if (d->arena) {
		backend_free_memory(b, d->arena, d->job.layout.total);
	}
	if (d->cache.memory) {
		backend_free_memory(b, d->cache.memory, d->cache_bytes);
	}
	for (int i = 0; i < DECODE_LANES; i++) {
		free(d->lanes[i].prompt);
		free(d->lanes[i].seen);
	}
	job_deinit(&d->job);
	peft_free(d->peft);
	free(d->ids);
	free(d->positions);
	free(d->scores);
	free(d->heap);
	free(d);
}

/* ---- making one ------------------------------------------------------------------------------ */

static int64_t lanes_of(const struct base_model *base)
{
	return base_model_config(base)->is_encoder_decoder ? 1 : DECODE_LANES;
}

static struct graph_request graph_of(const struct base_model *base)
{
	return (struct graph_request){
		.config = base_model_config(base),
		.purpose = GRAPH_GENERATE,
		.backend = base_model_backend(base),
		.dtype = base_model_dtype(base),
		.tokens = lanes_of(base),
		.max_seqs = lanes_of(base),
		.context = 1,
	};
}

/* Rows of the cache: those of the slots, and one for each lane that is empty. */
static bool size_cache(struct decoder *d, const struct graph_request *q)
{
	const struct model_config *c = q->config;
	size_t row = (size_t)(c->num_key_value_heads * c->head_dim) * dtype_size(q->dtype), rows;
	if (!mul_size((size_t)d->slots, (size_t)d->context, &rows) ||
		!add_size(rows, DECODE_LANES, &rows) || rows > INT32_MAX) {
		return false;
	}
	d->cache.capacity = (int64_t)rows;
	return mul_size(rows, 2 * (size_t)d->job.g->n_caches * row, &d->cache_bytes);
}

static int plan(struct decoder *d, const struct method_config *method, struct errmsg *err)
{
	struct graph_request q = graph_of(d->base);
	int r = method ? job_method(&d->peft, &q, method, err) : 0;
	if (r != 0) {
		return r;
	}
	int64_t n_virtual = d->peft && d->peft->method->virtual_tokens ?
		d->peft->method->virtual_tokens(d->peft) : 0;
	d->context += n_virtual;
	q.context = d->context;
	/* Enough for a whole chunk of whatever is read, so that chunks are the same in every decoder. */
	q.tokens = q.config->is_encoder_decoder ? d->max_prompt + n_virtual :
		min_i64(CHUNK, max_i64(DECODE_LANES, max_i64(d->max_prompt, n_virtual)));
	r = job_build(&d->job, &q, d->peft, RECOMPUTE_CHEAP, err);
	if (r == 0 && !size_cache(d, &q)) {
		r = errmsg_set(err, STATUS_INVALID, "%" PRId64 " prompts with %" PRId64 " tokens each are "
			"more than a key/value cache can hold", d->slots, d->context);
	}
	return r;
}

int decoder_new(struct decoder **ret, struct base_model *base, const struct method_config *method,
	int64_t max_prompt, int64_t context, int64_t slots, struct errmsg *err)
{
	if (max_prompt < 1 || context < max_prompt || context > (int64_t)1 << 25) {
		return errmsg_set(err, STATUS_INVALID, "a prompt of %" PRId64 " tokens in a context of %"
			PRId64 "; it needs at least one", max_prompt, context);
	}
	_cleanup_(decoder_freep) struct decoder *d = calloc(1, sizeof(*d));
	if (!d) {
		return -ENOMEM;
	}
	d->base = base;
	d->max_prompt = max_prompt;
	d->context = context;
	d->n_lanes = lanes_of(base);
	d->slots = min_i64(d->n_lanes, max_i64(1, slots));
	int r = plan(d, method, err);
	if (r == 0) {
		*ret = steal_ptr(d);
	}
	return r;
}

uint64_t decoder_bytes(const struct decoder *d)
{
	uint64_t vocab = (uint64_t)base_model_config(d->base)->vocab_size;
	uint64_t host = (uint64_t)d->job.g->tokens * 2 * sizeof(int32_t) +
		vocab * (sizeof(float) + sizeof(int32_t)) +
		(uint64_t)d->slots * (vocab + (uint64_t)d->max_prompt * sizeof(int32_t));
	return d->job.layout.total + d->cache_bytes + host;
}

static bool reserve_host(struct decoder *d)
{
	size_t tokens = (size_t)d->job.g->tokens;
	size_t vocab = (size_t)base_model_config(d->base)->vocab_size;
	d->ids = calloc_array(tokens, sizeof(int32_t));
	d->positions = calloc_array(tokens, sizeof(int32_t));
	d->scores = calloc_array(vocab, sizeof(float));
	d->heap = calloc_array(vocab, sizeof(int32_t));
	bool all = d->ids && d->positions && d->scores && d->heap;
	for (int64_t i = 0; i < d->slots; i++) {
		d->lanes[i].prompt = calloc_array((size_t)d->max_prompt, sizeof(int32_t));
		d->lanes[i].seen = calloc_array(vocab, 1);
		all = all && d->lanes[i].prompt && d->lanes[i].seen;
	}
	return all;
}

int decoder_reserve(struct decoder *d, struct errmsg *err)
{
	struct backend *b = base_model_backend(d->base);
	d->arena = backend_alloc(b, d->job.layout.total);
	d->cache.memory = backend_alloc(b, d->cache_bytes);
	if (!d->arena || !d->cache.memory || !reserve_host(d)) {
		return errmsg_set(err, -ENOMEM, "no memory for %" PRId64 " prompts with %" PRId64
			" tokens each", d->slots, d->context);
	}
	d->cache.start = d->cache_start;
	d->cache.len = d->cache_len;
	d->run = job_run(&d->job, d->base, d->arena);
	d->run.cache = &d->cache;
	d->run.seq_start = d->seq_start;
	d->run.seq_len = d->seq_len;
	d->run.source.seq_start = d->source_start;
	d->run.source.seq_len = &d->source_len;
	int r = job_upload_tables(&d->job, d->base, d->arena, err);
	return r == 0 ? run_prepare(&d->run, err) : r;
}

int decoder_load(struct decoder *d, const struct adapter *a, struct errmsg *err)
{
	return job_load_adapter(&d->job, d->arena, a, err);
}

/* All that decides what is computed with an adapter of a method. */
static int describe(struct buf *out, const struct peft *p)
{
	int r = buf_appendf(out, "%s ", p->method->name);
	return r == 0 && p->method->describe ? p->method->describe(p, out) : r;
}

int decoder_suits(const struct decoder *d, const struct method_config *method, struct errmsg *err)
{
	if (!method || !d->peft) {
		return !method && !d->peft;
	}
	struct graph_request q = graph_of(d->base);
	_cleanup_(peft_freep) struct peft *other = NULL;
	_cleanup_(buf_deinit) struct buf mine = {0}, theirs = {0};
	int r = job_method(&other, &q, method, err);
	r = r ? r : describe(&mine, d->peft);
	r = r ? r : describe(&theirs, other);
	return r ? r : mine.len == theirs.len && memcmp(mine.data, theirs.data, mine.len) == 0;
}

/* ---- prompts --------------------------------------------------------------------------------- */

int generate_options_check(const struct generate_options *o, struct errmsg *err)
{
	if (o->max_new_tokens < 1 || o->max_new_tokens > (int64_t)1 << 24) {
		return errmsg_set(err, STATUS_INVALID, "max_new_tokens: %" PRId64 "; it must be at least 1",
			o->max_new_tokens);
	}
	if (!isfinite(o->temperature) || o->temperature < 0) {
		return errmsg_set(err, STATUS_INVALID, "temperature: %g; it must be 0 (greedy) or above",
			o->temperature);
	}
	if (o->top_k < 0) {
		return errmsg_set(err, STATUS_INVALID, "top_k: %" PRId64 "; it must be 0 (all) or above",
			o->top_k);
	}
	if (!(o->top_p >= 0 && o->top_p <= 1)) {
		return errmsg_set(err, STATUS_INVALID, "top_p: %g; it must be above 0, and 1 (all) at most",
			o->top_p);
	}
	if (!isfinite(o->repetition_penalty) || o->repetition_penalty < 0) {
		return errmsg_set(err, STATUS_INVALID, "repetition_penalty: %g; it must be above 0, where "
			"1 is none", o->repetition_penalty);
	}
	return 0;
}

static int check_prompt(const struct decoder *d, const int32_t *prompt, size_t n_prompt,
	const struct generate_options *o, struct errmsg *err)
{
	if (n_prompt == 0) {
		return errmsg_set(err, STATUS_INVALID, "the prompt has no token; it needs at least one");
	}
	int r = generate_options_check(o, err);
	if (r != 0) {
		return r;
	}
	int64_t virtual_tokens = d->job.g->virtual_tokens;
	if (n_prompt > (size_t)d->max_prompt ||
		(int64_t)n_prompt + virtual_tokens + o->max_new_tokens > d->context) {
		return errmsg_set(err, STATUS_INVALID, "the prompt's %zu tokens and %" PRId64 " new ones are "
			"more than there is room for", n_prompt, o->max_new_tokens);
	}
	int64_t vocab = base_model_config(d->base)->vocab_size;
	for (size_t i = 0; i < n_prompt; i++) {
		if (prompt[i] < 0 || prompt[i] >= vocab) {
			return errmsg_set(err, STATUS_INVALID, "prompt: token %d, but the model's vocab_size "
				"is %" PRId64, (int)prompt[i], vocab);
		}
	}
	return 0;
}

static struct lane *free_lane(const struct decoder *d)
{
	for (int64_t i = 0; i < d->slots; i++) {
		if (!d->lanes[i].busy) {
			return (struct lane *)&d->lanes[i];
		}
	}
	return NULL;
}

bool decoder_has_room(const struct decoder *d)
{
	return free_lane(d) != NULL;
}

bool decoder_idle(const struct decoder *d)
{
	for (int64_t i = 0; i < d->slots; i++) {
		if (d->lanes[i].busy) {
			return false;
		}
	}
	return true;
}

int decoder_add(struct decoder *d, uint64_t tag, const int32_t *prompt, size_t n_prompt,
	const struct generate_options *o, struct errmsg *err)
{
	struct lane *l = free_lane(d);
	int r = check_prompt(d, prompt, n_prompt, o, err);
	if (r != 0) {
		return r;
	}
	if (!l) {
		return errmsg_set(err, STATUS_UNAVAILABLE, "%" PRId64 " prompts are under way", d->slots);
	}
	*l = (struct lane){.busy = true, .tag = tag, .options = *o, .prompt = l->prompt,
		.seen = l->seen, .n_prompt = (int64_t)n_prompt};
	memcpy(l->prompt, prompt, n_prompt * sizeof(*prompt));
	const struct model_config *c = base_model_config(d->base);
	memset(l->seen, 0, (size_t)c->vocab_size);
	for (size_t i = 0; i < n_prompt && !d->job.g->source; i++) {
		l->seen[prompt[i]] = 1;
	}
	if (d->job.g->source) {
		l->seen[c->decoder_start_token_id] = 1;
	}
	return 0;
}

void decoder_end(struct decoder *d, uint64_t tag)
{
	for (int64_t i = 0; i < d->slots; i++) {
		if (d->lanes[i].busy && d->lanes[i].tag == tag) {
			d->lanes[i].busy = false;
		}
	}
}

/* ---- steps ----------------------------------------------------------------------------------- */

static void run_rows(struct decoder *d, int64_t rows, int64_t n_seqs)
{
	struct backend *b = d->job.g->backend;
	size_t bytes = (size_t)rows * sizeof(int32_t);
	backend_upload(b, d->arena + d->job.layout.ids, d->ids, bytes);
	backend_upload(b, d->arena + d->job.layout.positions, d->positions, bytes);
	d->run.rows = rows;
	d->run.n_seqs = n_seqs;
	run_nodes(&d->run, d->job.g->n_source, d->job.g->n_nodes);
}

/* Rows of virtual tokens are in the cache; a prefix is not. Of an encoder-decoder neither is. */
static int32_t position_of(const struct decoder *d, int64_t row)
{
	const struct graph *g = d->job.g;
	return (int32_t)(g->source ? row : row + g->position_offset - g->virtual_tokens);
}

/* Runs n tokens, in d->ids, that follow what a lane holds. */
static void run_lane(struct decoder *d, struct lane *l, int64_t n)
{
	for (int64_t i = 0; i < n; i++) {
		d->positions[i] = position_of(d, l->rows + i);
	}
	d->seq_start[0] = 0;
	d->seq_len[0] = (int32_t)n;
	d->cache_start[0] = (int32_t)((l - d->lanes) * d->context);
	d->cache_len[0] = (int32_t)(l->rows + n);
	run_rows(d, n, 1);
	l->rows += n;
}

/* Runs the encoder on virtual tokens and prompt, and starts the decoder. */
static void read_source(struct decoder *d, struct lane *l, const int32_t *prompt, int64_t n)
{
	const struct graph *g = d->job.g;
	int64_t n_virtual = g->virtual_tokens;
	for (int64_t i = 0; i < n_virtual; i++) {
		d->ids[i] = (int32_t)(-1 - i);
	}
	memcpy(d->ids + n_virtual, prompt, (size_t)n * sizeof(*prompt));
	d->source_len = (int32_t)(n_virtual + n);
	backend_upload(g->backend, d->arena + d->job.layout.source_ids, d->ids,
		(size_t)d->source_len * sizeof(int32_t));
	d->run.source.rows = d->source_len;
	d->run.rows = d->run.n_seqs = 1;
	run_nodes(&d->run, 0, g->n_source);
	d->ids[0] = g->config.decoder_start_token_id;
	run_lane(d, l, 1);
}

/* Reads the next chunk of a prompt, or of the virtual tokens before it. */
static void read_chunk(struct decoder *d, struct lane *l)
{
	int64_t n_virtual = d->job.g->virtual_tokens, at = l->fed;
	int64_t n = min_i64(CHUNK, (at < n_virtual ? n_virtual : n_virtual + l->n_prompt) - at);
	if (d->job.g->source) {
		read_source(d, l, l->prompt, l->n_prompt);
		l->fed = n_virtual + l->n_prompt;
		return;
	}
	for (int64_t i = 0; i < n; i++, at++) {
		d->ids[i] = at < n_virtual ? (int32_t)(-1 - at) : l->prompt[at - n_virtual];
	}
	run_lane(d, l, n);
	l->fed += n;
}

/* The next token of every prompt that is read, in the first rows of all. */
static void feed_tokens(struct decoder *d)
{
	for (int64_t i = 0; i < d->n_lanes; i++) {
		struct lane *l = &d->lanes[i];
		d->seq_start[i] = (int32_t)i;
		d->seq_len[i] = 1;
		if (l->busy) {
			d->ids[i] = l->last;
			d->positions[i] = position_of(d, l->rows);
			d->cache_start[i] = (int32_t)(i * d->context);
			d->cache_len[i] = (int32_t)++l->rows;
		} else {
			d->ids[i] = d->positions[i] = 0;
			d->cache_start[i] = (int32_t)(d->slots * d->context + i);
			d->cache_len[i] = 1;
		}
	}
	run_rows(d, d->n_lanes, d->n_lanes);
}

static void download_logits(struct decoder *d, int64_t row)
{
	const struct graph *g = d->job.g;
	struct mat m = run_mat(&d->run, g->nodes[g->n_nodes - 1].out[0]);
	backend_download(g->backend, d->scores, (float *)m.data + row * m.stride,
		(size_t)m.cols * sizeof(float));
}

const float *decoder_logits(struct decoder *d, size_t i)
{
	download_logits(d, d->place[i]);
	return d->scores;
}

static bool is_stop(const struct generate_options *o, int32_t id)
{
	for (size_t i = 0; i < o->n_stop_ids; i++) {
		if (o->stop_ids[i] == id) {
			return true;
		}
	}
	return false;
}

/* Chooses a prompt's next token from a row of the logits. */
static int choose(struct decoder *d, struct lane *l, int64_t row, struct decoded *ret,
	struct errmsg *err)
{
	int64_t vocab = base_model_config(d->base)->vocab_size;
	download_logits(d, row);
	for (int64_t i = 0; i < vocab; i++) {
		if (!isfinite(d->scores[i])) {
			return errmsg_set(err, STATUS_FAILED, "the model's logits are no finite numbers");
		}
	}
	struct rng_key key = {l->options.seed, rng_stream(RNG_SAMPLE, (uint64_t)l->rows, 0, 0)};
	sample_process(&l->options, d->scores, l->seen, d->heap, vocab);
	int32_t id = l->options.temperature == 0 ? sample_greedy(d->scores, vocab) :
		sample_draw(d->scores, vocab, key);
	l->n_new++;
	l->last = id;
	l->seen[id] = 1;
	*ret = (struct decoded){.tag = l->tag, .id = id};
	if (is_stop(&l->options, id)) {
		*ret = (struct decoded){.tag = l->tag, .id = -1, .ended = true, .stopped = true};
	} else if (l->n_new == l->options.max_new_tokens) {
		ret->ended = true;
	}
	l->busy = !ret->ended;
	return 0;
}

/* A prompt that is not read to its end; NULL: none. */
static struct lane *unread_lane(struct decoder *d)
{
	for (int64_t i = 0; i < d->slots; i++) {
		struct lane *l = &d->lanes[i];
		if (l->busy && l->fed < d->job.g->virtual_tokens + l->n_prompt) {
			return l;
		}
	}
	return NULL;
}

int decoder_step(struct decoder *d, struct decoded out[DECODE_LANES], size_t *ret_n,
	struct errmsg *err)
{
	size_t n = 0;
	*ret_n = 0;
	if (decoder_idle(d)) {
		return 0;
	}
	struct lane *unread = unread_lane(d);
	if (unread) {
		read_chunk(d, unread);
	} else {
		feed_tokens(d);
	}
	int r = backend_sync(d->job.g->backend, err);
	if (r == 0 && unread && unread->fed == d->job.g->virtual_tokens + unread->n_prompt) {
		d->place[0] = 0;
		r = choose(d, unread, 0, &out[n++], err);
	}
	for (int64_t i = 0; r == 0 && !unread && i < d->slots; i++) {
		if (d->lanes[i].busy) {
			d->place[n] = i;
			r = choose(d, &d->lanes[i], i, &out[n++], err);
		}
	}
	if (r == 0) {
		*ret_n = n;
	}
	return r;
}

/* ---- reading without an answer --------------------------------------------------------------- */

void decoder_restart(struct decoder *d)
{
	struct lane *l = &d->lanes[0];
	*l = (struct lane){.prompt = l->prompt, .seen = l->seen};
	while (!d->job.g->source && l->fed < d->job.g->virtual_tokens) {
		read_chunk(d, l);
	}
}

int decoder_feed(struct decoder *d, const int32_t *ids, int64_t n, struct errmsg *err)
{
	struct lane *l = &d->lanes[0];
	int64_t most = d->job.g->tokens;
	d->place[0] = 0;
	if (d->job.g->source && l->rows == 0) {
		read_source(d, l, ids, n);
		n = 0;
	}
	for (int64_t i = 0; i < n; i += most) {
		int64_t rows = min_i64(most, n - i);
		memcpy(d->ids, ids + i, (size_t)rows * sizeof(*ids));
		run_lane(d, l, rows);
	}
	return backend_sync(d->job.g->backend, err);
}
