#pragma once
/* Microbatches: sequences laid end to end, with positions and shifted targets. */

#include "engine/text/text.h"
#include "engine/train/job.h"
#include "engine/train/order.h"

/* Host memory in which a microbatch is put together. */
struct batch {
	int32_t *ids, *positions, *targets;        /* [max_tokens] */
	int32_t *seq_start, *seq_len, *seq_number; /* [max_seqs] */
	int64_t max_tokens, max_seqs;
	int64_t virtual_tokens, position_offset; /* as in struct graph */
	int64_t rows, n_seqs;
	/* The encoder's side of an encoder-decoder, of which a sequence's other side begins with `start_id`
	 * and goes on with what was before predicted. */
	struct {
		bool there;
		int32_t *ids;                 /* [max_tokens] */
		int32_t *seq_start, *seq_len; /* [max_seqs] */
		int64_t rows;
		int32_t start_id;
	} source;
};

/* For microbatches of a graph. -ENOMEM. */
int batch_init(struct batch *b, const struct graph *g);
void batch_deinit(struct batch *b);

/* Labels of a sample that are trained on, after the shift by one: the first token's is predicted only
 * where virtual tokens come before it. */
int64_t sample_targets(const struct samples *s, uint64_t sample, int64_t virtual_tokens);

/* Fills it with the step's samples from number `first` on, in order, as many as fit (one without
 * packing). Returns the number of the first that is left. */
int64_t batch_fill(struct batch *b, const struct samples *s, const struct order *o, int64_t step,
	int64_t first, bool packing);

/* Copies it to an arena and points the run at it. */
void batch_upload(const struct batch *b, const struct job *j, uint8_t *arena, struct run *r);

/* Tokens of the longer side of a sample. */
int64_t sample_longest_side(const struct samples *s, uint64_t sample);

/* Every token below vocab_size, every sample within max_tokens: STATUS_INVALID names the row. */
int samples_check(const struct samples *s, const struct model_config *c, int64_t max_tokens,
	const char *what, struct errmsg *err);
