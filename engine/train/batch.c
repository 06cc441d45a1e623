#include "engine/train/batch.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "util/util.h"

int batch_init(struct batch *b, const struct graph *g)
{
	size_t tokens = (size_t)g->tokens, seqs = (size_t)g->max_seqs;
	*b = (struct batch){
		.ids = calloc_array(tokens, sizeof(int32_t)),
		.positions = calloc_array(tokens, sizeof(int32_t)),
		.targets = calloc_array(tokens, sizeof(int32_t)),
		.seq_start = calloc_array(seqs, sizeof(int32_t)),
		.seq_len = calloc_array(seqs, sizeof(int32_t)),
		.seq_number = calloc_array(seqs, sizeof(int32_t)),
		.max_tokens = g->tokens,
		.max_seqs = g->max_seqs,
		.virtual_tokens = g->virtual_tokens,
		.position_offset = g->position_offset,
	};
	bool failed = !b->ids || !b->positions || !b->targets || !b->seq_start || !b->seq_len ||
		!b->seq_number;
	if (g->source) {
		b->source.there = true;
		b->source.ids = calloc_array(tokens, sizeof(int32_t));
		b->source.seq_start = calloc_array(seqs, sizeof(int32_t));
		b->source.seq_len = calloc_array(seqs, sizeof(int32_t));
		b->source.start_id = g->config.decoder_start_token_id;
		failed |= !b->source.ids || !b->source.seq_start || !b->source.seq_len;
	}
	if (failed) {
		batch_deinit(b);
		return -ENOMEM;
	}
	return 0;
}

void batch_deinit(struct batch *b)
{
	free(b->ids);
	free(b->positions);
	free(b->targets);
	free(b->seq_start);
	free(b->seq_len);
	free(b->seq_number);
	free(b->source.ids);
	free(b->source.seq_start);
	free(b->source.seq_len);
	*b = (struct batch){0};
}

int64_t sample_targets(const struct samples *s, uint64_t sample, int64_t virtual_tokens)
{
	int64_t n = 0;
	for (int64_t i = s->start[sample] + (virtual_tokens == 0); i < s->start[sample + 1]; i++) {
		n += s->labels[i] >= 0;
	}
	return n;
}

int64_t sample_longest_side(const struct samples *s, uint64_t sample)
{
	int64_t len = s->start[sample + 1] - s->start[sample];
	return s->source_len ? max_i64(s->source_len[sample], len - s->source_len[sample]) : len;
}

/* A sequence of both sides. */
static void add_pair(struct batch *b, const struct samples *s, uint64_t sample, int64_t number)
{
	const int32_t *ids = s->ids + s->start[sample], *labels = s->labels + s->start[sample];
	int64_t len = s->start[sample + 1] - s->start[sample], n = s->source_len[sample];
	int64_t at = b->source.rows, virtual = b->virtual_tokens;
	for (int64_t i = 0; i < virtual; i++) {
		b->source.ids[at + i] = (int32_t)(-1 - i);
	}
	for (int64_t i = 0; i < n; i++) {
		b->source.ids[at + virtual + i] = ids[i];
	}
	b->source.seq_start[b->n_seqs] = (int32_t)at;
	b->source.seq_len[b->n_seqs] = (int32_t)(virtual + n);
	b->source.rows += virtual + n;

	at = b->rows;
	for (int64_t i = n; i < len; i++) {
		b->ids[at + i - n] = i == n ? b->source.start_id : ids[i - 1];
		b->positions[at + i - n] = (int32_t)(i - n);
		b->targets[at + i - n] = labels[i] >= 0 ? labels[i] : -1;
	}
	b->seq_start[b->n_seqs] = (int32_t)at;
	b->seq_len[b->n_seqs] = (int32_t)(len - n);
	b->seq_number[b->n_seqs] = (int32_t)number;
	b->n_seqs++;
	b->rows += len - n;
}

static void add_sequence(struct batch *b, const struct samples *s, uint64_t sample, int64_t number)
{
	const int32_t *ids = s->ids + s->start[sample], *labels = s->labels + s->start[sample];
	int64_t len = s->start[sample + 1] - s->start[sample], at = b->rows, n = b->virtual_tokens;
	for (int64_t i = 0; i < n; i++) {
		b->ids[at + i] = (int32_t)(-1 - i);
		b->positions[at + i] = (int32_t)i;
		b->targets[at + i] = -1;
	}
	if (n > 0) {
		/* The last of them stands before the first token. */
		b->targets[at + n - 1] = labels[0] >= 0 ? labels[0] : -1;
	}
	len += n;
	for (int64_t i = n; i < len; i++) {
		int64_t next = i + 1 < len ? labels[i - n + 1] : -1;
		b->ids[at + i] = ids[i - n];
		b->positions[at + i] = (int32_t)(i - n + b->position_offset);
		b->targets[at + i] = next >= 0 ? (int32_t)next : -1;
	}
	b->seq_start[b->n_seqs] = (int32_t)at;
	b->seq_len[b->n_seqs] = (int32_t)len;
	b->seq_number[b->n_seqs] = (int32_t)number;
	b->n_seqs++;
	b->rows += len;
}

int64_t batch_fill(struct batch *b, const struct samples *s, const struct order *o, int64_t step,
	int64_t first, bool packing)
{
	int64_t n = order_step_size(o, step), k = first;
	b->rows = b->n_seqs = b->source.rows = 0;
	for (; k < n && b->n_seqs < (packing ? b->max_seqs : 1); k++) {
		uint64_t sample = order_sample(o, step, k);
		int64_t len = s->start[sample + 1] - s->start[sample];
		int64_t source = b->source.there ? s->source_len[sample] : 0;
		int64_t virtual = b->virtual_tokens;
		if (b->rows + len - source + (b->source.there ? 0 : virtual) > b->max_tokens ||
			b->source.rows + source + (b->source.there ? virtual : 0) > b->max_tokens) {
			break;
		}
		b->source.there ? add_pair(b, s, sample, k) : add_sequence(b, s, sample, k);
	}
	assert(k > first);
	return k;
}

void batch_upload(const struct batch *b, const struct job *j, uint8_t *arena, struct run *r)
{
	size_t bytes = (size_t)b->rows * sizeof(int32_t);
	struct backend *be = j->g->backend;
	backend_upload(be, arena + j->layout.ids, b->ids, bytes);
	backend_upload(be, arena + j->layout.positions, b->positions, bytes);
	backend_upload(be, arena + j->layout.targets, b->targets, bytes);
	if (b->source.there) {
		backend_upload(be, arena + j->layout.source_ids, b->source.ids,
			(size_t)b->source.rows * sizeof(int32_t));
		r->source.rows = b->source.rows;
		r->source.seq_start = b->source.seq_start;
		r->source.seq_len = b->source.seq_len;
	}
	r->rows = b->rows;
	r->n_seqs = b->n_seqs;
	r->seq_start = b->seq_start;
	r->seq_len = b->seq_len;
	r->seq_number = b->seq_number;
}

static int check_sample(const struct samples *s, uint64_t i, const struct model_config *c,
	int64_t max_tokens, const char *what, struct errmsg *err)
{
	uint64_t row = s->row ? s->row[i] : i;
	int64_t len = s->start[i + 1] - s->start[i], longest = sample_longest_side(s, i);
	if (len < 1 || longest > max_tokens) {
		return errmsg_set(err, STATUS_INVALID, "%s: row %" PRIu64 " has %" PRId64 " tokens; "
			"the plan allows 1 to %" PRId64, what, row, longest, max_tokens);
	}
	if (s->source_len && (s->source_len[i] < 1 || s->source_len[i] >= len)) {
		return errmsg_set(err, STATUS_INVALID, "%s: row %" PRIu64 " has no %s, which an "
			"encoder-decoder needs", what, row, s->source_len[i] < 1 ? "prompt" : "completion");
	}
	for (int64_t k = s->start[i]; k < s->start[i + 1]; k++) {
		if (s->ids[k] < 0 || s->ids[k] >= c->vocab_size || s->labels[k] >= c->vocab_size) {
			return errmsg_set(err, STATUS_INVALID, "%s: row %" PRIu64 " has token %d, but the "
				"model's vocab_size is %" PRId64, what, row, (int)s->ids[k], c->vocab_size);
		}
	}
	return 0;
}

int samples_check(const struct samples *s, const struct model_config *c, int64_t max_tokens,
	const char *what, struct errmsg *err)
{
	if (s->n == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: no rows", what);
	}
	if (c->is_encoder_decoder != (s->source_len != NULL)) {
		return errmsg_set(err, STATUS_INTERNAL, "%s: tokenized for %s", what,
			s->source_len ? "an encoder-decoder" : "a decoder alone");
	}
	int r = 0;
	for (uint64_t i = 0; i < s->n && r == 0; i++) {
		r = check_sample(s, i, c, max_tokens, what, err);
	}
	return r;
}
