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
	if (!b->ids || !b->positions || !b->targets || !b->seq_start || !b->seq_len || !b->seq_number) {
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
	b->rows = b->n_seqs = 0;
	for (; k < n && b->n_seqs < (packing ? b->max_seqs : 1); k++) {
		uint64_t sample = order_sample(o, step, k);
		int64_t len = s->start[sample + 1] - s->start[sample] + b->virtual_tokens;
		if (b->rows + len > b->max_tokens) {
			break;
		}
		add_sequence(b, s, sample, k);
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
	r->rows = b->rows;
	r->n_seqs = b->n_seqs;
	r->seq_start = b->seq_start;
	r->seq_len = b->seq_len;
	r->seq_number = b->seq_number;
}

int samples_check(const struct samples *s, int64_t vocab_size, int64_t max_tokens, const char *what,
	struct errmsg *err)
{
	if (s->n == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s: no rows", what);
	}
	for (uint64_t i = 0; i < s->n; i++) {
		int64_t len = s->start[i + 1] - s->start[i];
		if (len < 1 || len > max_tokens) {
			return errmsg_set(err, STATUS_INVALID, "%s: row %" PRIu64 " has %" PRId64 " tokens; "
				"the plan allows 1 to %" PRId64, what, s->row ? s->row[i] : i, len, max_tokens);
		}
		for (int64_t k = s->start[i]; k < s->start[i + 1]; k++) {
			if (s->ids[k] < 0 || s->ids[k] >= vocab_size || s->labels[k] >= vocab_size) {
				return errmsg_set(err, STATUS_INVALID, "%s: row %" PRIu64 " has token %d, but the "
					"model's vocab_size is %" PRId64, what, s->row ? s->row[i] : i,
					(int)s->ids[k], vocab_size);
			}
		}
	}
	return 0;
}
