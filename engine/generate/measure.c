/* What a forward pass takes, with and without an adapter. */
#include <stdlib.h>

#include "engine/base.h"
#include "engine/generate/generate.h"
#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct generator *, generator_free);

enum { TOKENS = 32, ROUNDS = 15 };

static double seconds_since(int64_t start_ns)
{
	return (double)(clock_monotonic_ns() - start_ns) * 1e-9;
}

static int timed_pass(struct generator *g, const int32_t *ids, int64_t n, double *ret,
	struct errmsg *err)
{
	int64_t start = clock_monotonic_ns();
	generator_restart(g);
	int r = generator_feed(g, ids, n, err);
	*ret = seconds_since(start);
	return r;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
	qsort(v, n, sizeof(*v), compare_doubles);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

int engine_measure_forward(struct forward_times *ret, struct base_model *base,
	const struct adapter *adapter, const struct samples *s, double seconds, uint64_t memory_limit,
	struct errmsg *err)
{
	_cleanup_(generator_freep) struct generator *bare = NULL;
	_cleanup_(generator_freep) struct generator *adapted = NULL;
	struct generate_options o = {.max_new_tokens = 1, .memory_limit = memory_limit};
	double times[3][ROUNDS];
	int64_t start = clock_monotonic_ns();
	int64_t n = s->n > 0 ? min_i64(s->start[s->n] - s->start[0], TOKENS) : 0;
	const int32_t *ids = s->n > 0 ? s->ids + s->start[0] : NULL;
	bool mergeable = !peft_unmergeable(&adapter->config, base_model_config(base));
	/* Both read the tokens once while they are made: what a first pass does besides is done then.
	 */
	int r = generator_new(&bare, base, NULL, ids, (size_t)n, &o, err);
	if (r == 0 && memory_limit > 0) {
		o.memory_limit -= min_i64((int64_t)generator_bytes(bare), (int64_t)memory_limit - 1);
	}
	r = r ? r : generator_new(&adapted, base, adapter, ids, (size_t)n, &o, err);
	size_t rounds = 0;
	while (r == 0 && rounds < ROUNDS && (rounds == 0 || seconds_since(start) < seconds)) {
		r = timed_pass(bare, ids, n, &times[0][rounds], err);
		r = r ? r : timed_pass(adapted, ids, n, &times[1][rounds], err);
		r = r || !mergeable ? r : timed_pass(bare, ids, n, &times[2][rounds], err);
		rounds++;
	}
	if (r == 0) {
		*ret = (struct forward_times){.tokens = n, .passes = (int64_t)rounds,
			.base = median(times[0], rounds), .unmerged = median(times[1], rounds),
			.merged = mergeable ? median(times[2], rounds) : 0};
	}
	return r;
}
