/* Logits of real rows, to hold two models against each other. */
#include <math.h>

#include "engine/base.h"
#include "engine/generate/generate.h"
#include "engine/train/batch.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct generator *, generator_free);

/* Tokens of a row that are read, and how many of them are followed by a look at the logits. Of an
 * encoder-decoder's row the encoder's tokens are read at once; the decoder's first counts as theirs. */
static int64_t row_source(const struct samples *s, uint64_t i)
{
	return s->source_len ? min_i64(s->source_len[i], PROBE_TOKENS) : 0;
}

static int64_t row_tokens(const struct samples *s, uint64_t i)
{
	int64_t source = s->source_len ? s->source_len[i] : 0;
	return row_source(s, i) + min_i64(s->start[i + 1] - s->start[i] - source, PROBE_TOKENS);
}

static int64_t row_looks(const struct samples *s, uint64_t i)
{
	return s->source_len ? min_i64(row_tokens(s, i) - row_source(s, i) + 1, PROBE_LAST) :
		min_i64(row_tokens(s, i), PROBE_LAST);
}

static uint64_t probe_rows(const struct samples *s)
{
	return s->n < PROBE_ROWS ? s->n : PROBE_ROWS;
}

size_t engine_probe_size(const struct samples *s)
{
	size_t n = 0;
	for (uint64_t i = 0; i < probe_rows(s); i++) {
		n += (size_t)row_looks(s, i);
	}
	return n;
}

static void take_logits(struct generator *g, int64_t vocab, float **out)
{
	memcpy(*out, generator_logits(g), (size_t)vocab * sizeof(**out));
	*out += vocab;
}

static int probe_row(struct generator *g, const struct samples *s, uint64_t i, int64_t vocab,
	float **out, struct errmsg *err)
{
	int64_t source = row_source(s, i), n = row_tokens(s, i) - source, at = n - row_looks(s, i) + 1;
	const int32_t *ids = s->ids + s->start[i];
	int r = 0;
	generator_restart(g);
	if (s->source_len) {
		r = generator_feed(g, ids, source, err);
		ids += s->source_len[i];
	}
	r = r ? r : generator_feed(g, ids, at, err);
	for (; r == 0 && at < n; at++) {
		take_logits(g, vocab, out);
		r = generator_feed(g, ids + at, 1, err);
	}
	if (r == 0) {
		take_logits(g, vocab, out);
	}
	return r;
}

/* What is read at once of a row; a generator for the longest has room for all. */
static int64_t row_prompt(const struct samples *s, uint64_t i)
{
	return s->source_len ? row_source(s, i) : row_tokens(s, i);
}

int engine_probe(struct base_model *base, const struct adapter *adapter, const struct samples *s,
	float *ret, struct errmsg *err)
{
	int64_t vocab = base_model_config(base)->vocab_size;
	const struct generate_options o = {.max_new_tokens = PROBE_TOKENS};
	_cleanup_(generator_freep) struct generator *g = NULL;
	int r = samples_check(s, base_model_config(base), INT64_MAX, "dataset", err);
	uint64_t longest = 0;
	for (uint64_t i = 0; i < probe_rows(s); i++) {
		longest = row_prompt(s, i) > row_prompt(s, longest) ? i : longest;
	}
	if (r == 0 && (s->n == 0 || row_prompt(s, longest) == 0)) {
		r = errmsg_set(err, STATUS_INVALID, "dataset: no row to compare on");
	}
	r = r ? r : generator_new(&g, base, adapter, s->ids + s->start[longest],
		(size_t)row_prompt(s, longest), &o, err);
	for (uint64_t i = 0; r == 0 && i < probe_rows(s); i++) {
		r = probe_row(g, s, i, vocab, &ret, err);
	}
	return r;
}

int engine_drift(struct logit_drift *ret, const struct samples *s, int64_t vocab_size,
	const float *a, const float *b, struct errmsg *err)
{
	struct logit_drift d = {.rows = probe_rows(s), .positions = engine_probe_size(s)};
	size_t n = (size_t)d.positions * (size_t)vocab_size;
	double sum = 0;
	for (size_t i = 0; i < n; i++) {
		double x = fabs((double)a[i]), difference = fabs((double)a[i] - (double)b[i]);
		if (!isfinite(difference)) {
			return errmsg_set(err, STATUS_FAILED, "a logit is no finite number");
		}
		sum += difference;
		d.max = difference > d.max ? difference : d.max;
		d.largest = x > d.largest ? x : d.largest;
	}
	d.mean = n > 0 ? sum / (double)n : 0;
	*ret = d;
	return 0;
}
