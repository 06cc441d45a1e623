/* Evaluation: the forward part of a graph over samples, packed into microbatches. */
#include <errno.h>

#include "engine/train/session.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct peft *, peft_free);

int eval_samples_loss(const struct job *j, uint8_t *arena, struct run *run, struct batch *batch,
	const struct samples *samples, struct eval_metrics *ret, struct errmsg *err)
{
	int64_t start = clock_monotonic_ns();
	struct backend *b = j->g->backend;
	const struct order order = {samples->n, (int64_t)samples->n, 0, true};
	const double zero = 0;
	struct eval_metrics m = {.rows = samples->n};
	double loss_sum;

	backend_upload(b, arena + j->layout.loss_sum, &zero, sizeof(zero));
	run->training = false;
	for (int64_t k = 0; k < (int64_t)samples->n;) {
		k = batch_fill(batch, samples, &order, 0, k, true);
		batch_upload(batch, j, arena, run);
		run_nodes(run, 0, j->g->n_forward);
		for (int64_t i = 0; i < batch->rows; i++) {
			m.target_tokens += batch->targets[i] >= 0;
		}
	}
	int r = backend_sync(b, err);
	if (r != 0) {
		return r;
	}
	if (m.target_tokens == 0) {
		return errmsg_set(err, STATUS_INVALID, "no row has a token to compute a loss on");
	}
	backend_download(b, &loss_sum, arena + j->layout.loss_sum, sizeof(loss_sum));
	m.loss = loss_sum / (double)m.target_tokens;
	m.seconds = (double)(clock_monotonic_ns() - start) * 1e-9;
	*ret = m;
	return 0;
}

static int eval_in(const struct job *j, struct base_model *base, uint8_t *arena,
	struct batch *batch, const struct adapter *adapter, const struct samples *samples,
	struct eval_metrics *ret, struct errmsg *err)
{
	struct run run = job_run(j, base, arena);
	int r = job_upload_tables(j, base, arena, err);
	if (r == 0) {
		r = run_prepare(&run, err);
	}
	if (r == 0 && adapter) {
		r = job_load_adapter(j, arena, adapter, err);
	}
	return r != 0 ? r : eval_samples_loss(j, arena, &run, batch, samples, ret, err);
}

int engine_eval(struct base_model *base, const struct adapter *adapter,
	const struct samples *samples, struct eval_metrics *ret, struct errmsg *err)
{
	int64_t longest = 1;
	for (uint64_t i = 0; i < samples->n; i++) {
		longest = max_i64(longest, sample_longest_side(samples, i));
	}
	int r = samples_check(samples, base_model_config(base), longest, "dataset", err);
	if (r != 0) {
		return r;
	}
	int64_t all = samples->start[samples->n] - samples->start[0];
	struct graph_request q = {
		.config = base_model_config(base),
		.purpose = GRAPH_TRAIN,
		.backend = base_model_backend(base),
		.dtype = base_model_dtype(base),
		.tokens = 16,
		.max_seqs = 16,
	};
	_cleanup_(peft_freep) struct peft *peft = NULL;
	if (adapter) {
		r = job_method(&peft, &q, &adapter->config, err);
	}
	r = r ? r : job_check_length(q.config, peft, longest, "dataset", err);
	if (r == 0 && peft && peft->method->virtual_tokens) {
		int64_t n = peft->method->virtual_tokens(peft);
		longest += n;
		all += n * (int64_t)samples->n;
	}
	q.tokens = (int64_t)align_up((size_t)max_i64(longest, min_i64(2048, all)), 16);
	q.max_seqs = job_max_seqs(q.tokens);
	struct job j = {0};
	struct batch batch = {0};
	if (r == 0) {
		r = job_build(&j, &q, peft, RECOMPUTE_CHEAP, err);
	}
	if (r == 0) {
		r = batch_init(&batch, j.g);
	}
	if (r == 0) {
		uint8_t *arena = backend_alloc(q.backend, j.layout.total);
		r = arena ? eval_in(&j, base, arena, &batch, adapter, samples, ret, err) : -ENOMEM;
		if (arena) {
			backend_free_memory(q.backend, arena, j.layout.total);
		}
	}
	batch_deinit(&batch);
	job_deinit(&j);
	return r;
}
