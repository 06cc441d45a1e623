/*
 * A training session. A step is: the samples that (seed, epoch) say, cut into microbatches; each
 * run through the graph, forward and backward, adding to the gradients; then one update. The loss
 * is the sum over all target tokens of the step divided by their number, so the cut changes
 * nothing. Nothing is allocated after train_session_new().
 */
#include "engine/train/session.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/train/schedule.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct train_session *, train_session_free);

/* Builds the job that was planned: of the levels of recomputation the one with the plan's arena. */
static int build_planned(struct train_session *s, const struct method_config *m,
	const struct memory_plan *plan, struct errmsg *err)
{
	const struct graph_request q = {
		.config = base_model_config(s->base),
		.purpose = GRAPH_TRAIN,
		.backend = base_model_backend(s->base),
		.dtype = s->config.dtype,
		.tokens = plan->microbatch_tokens,
		.max_seqs = job_max_seqs(plan->microbatch_tokens),
		.trainable = true,
	};
	int r = job_method(&s->peft, &q, m, err);
	uint64_t bytes = 0;
	for (int level = RECOMPUTE_CHEAP; r == 0 && level <= RECOMPUTE_BLOCK; level++) {
		r = job_build(&s->job, &q, s->peft, (enum recompute)level, err);
		if (r == 0) {
			bytes = s->job.layout.total;
			if (bytes == plan->arena) {
				return 0;
			}
			job_deinit(&s->job);
		}
	}
	return r != 0 ? r : errmsg_set(err, STATUS_CONFLICT, "the plan (%llu bytes at %lld tokens a "
		"microbatch) was made for another job, model or machine: here it is %llu bytes",
		(unsigned long long)plan->arena, (long long)plan->microbatch_tokens,
		(unsigned long long)bytes);
}

static int check_arguments(const struct base_model *base, const struct train_config *c,
	const struct memory_plan *plan, struct errmsg *err)
{
	if (base_model_dtype(base) != c->dtype || !base_model_trains(base)) {
		const char *only = base_model_trains(base) ? "" : " for inference only";
		return errmsg_set(err, STATUS_CONFLICT, "the base model is resident in %s%s, the job wants "
			"%s", dtype_name(base_model_dtype(base)), only, dtype_name(c->dtype));
	}
	if (plan->microbatch_tokens < 1) {
		return errmsg_set(err, STATUS_CONFLICT, "the plan has no microbatch_tokens");
	}
	return 0;
}

static int check_samples(const struct train_session *s, struct errmsg *err)
{
	const struct model_config *c = base_model_config(s->base);
	int64_t most = s->job.g->tokens - s->job.g->virtual_tokens;
	int r = samples_check(s->samples, c, most, "dataset", err);
	if (r == 0 && s->eval_samples) {
		r = samples_check(s->eval_samples, c, most, "eval_dataset", err);
	}
	return r;
}

static int start_params(struct train_session *s, const struct adapter *init, struct errmsg *err)
{
	if (init) {
		return job_load_adapter(&s->job, s->arena, init, err);
	}
	_cleanup_(flat_deinit) struct flat masters = {0};
	int r = flat_init(&masters, &s->job, s->arena, s->job.layout.masters);
	if (r != 0) {
		return r;
	}
	memset(masters.values, 0, s->job.g->param_elements * sizeof(float));
	r = peft_init(s->peft, s->job.g, s->base, s->config.seed, masters.values, err);
	if (r == 0) {
		flat_store(&masters, &s->job, s->arena);
		job_refresh_copies(&s->job, s->arena);
	}
	return r;
}

int train_session_new(struct train_session **ret, struct base_model *base,
	const struct train_config *c, const struct method_config *m, const struct memory_plan *plan,
	const struct samples *samples, const struct samples *eval_samples, const struct adapter *init,
	struct errmsg *err)
{
	int r = train_config_check(c, m, err);
	if (r == 0) {
		r = check_arguments(base, c, plan, err);
	}
	if (r != 0) {
		return r;
	}
	_cleanup_(train_session_freep) struct train_session *s = calloc(1, sizeof(*s));
	if (!s) {
		return -ENOMEM;
	}
	s->base = base;
	s->samples = samples;
	s->eval_samples = eval_samples;
	s->config = *c;
	s->order = (struct order){samples->n, c->batch_size, c->seed, c->sequential};
	r = build_planned(s, m, plan, err);
	if (r != 0) {
		return r;
	}
	if (!base_model_matches(base, s->job.g)) {
		return errmsg_set(err, STATUS_INTERNAL, "base model and graph disagree on the weights");
	}
	const struct graph *g = s->job.g;
	r = check_samples(s, err);
	if (r == 0) {
		r = batch_init(&s->batch, g);
	}
	if (r == 0) {
		s->arena = backend_alloc(g->backend, s->job.layout.total);
		if (!s->arena) {
			return errmsg_set(err, -ENOMEM, "no memory for the arena of %llu bytes",
				(unsigned long long)s->job.layout.total);
		}
		r = job_upload_tables(&s->job, base, s->arena, err);
	}
	if (r == 0) {
		s->run = job_run(&s->job, base, s->arena);
		s->run.seed = c->seed;
		r = run_prepare(&s->run, err);
	}
	if (r == 0) {
		r = start_params(s, init, err);
	}
	if (r == 0) {
		r = session_fingerprint(s, &s->fingerprint);
	}
	if (r == 0) {
		*ret = steal_ptr(s);
	}
	return r;
}

void train_session_free(struct train_session *s)
{
	if (!s) {
		return;
	}
	if (s->arena) {
		backend_free_memory(s->job.g->backend, s->arena, s->job.layout.total);
	}
	job_deinit(&s->job);
	peft_free(s->peft);
	batch_deinit(&s->batch);
	free(s->fingerprint);
	free(s);
}

uint64_t train_session_arena(const struct train_session *s)
{
	return s->job.layout.total;
}

int64_t train_session_step(const struct train_session *s)
{
	return s->step;
}

/* A flat f32 buffer of the arena as one row. */
static struct mat flat_buffer(const struct train_session *s, size_t offset)
{
	int64_t n = (int64_t)s->job.g->param_elements;
	return (struct mat){s->arena + offset, DTYPE_F32, 1, n, n};
}

int session_accumulate(struct train_session *s, int64_t step, struct step_sums *ret,
	struct errmsg *err)
{
	const struct layout *l = &s->job.layout;
	struct backend *b = s->job.g->backend;
	struct step_sums sums = {0};
	int64_t n = order_step_size(&s->order, step);
	for (int64_t k = 0; k < n; k++) {
		uint64_t i = order_sample(&s->order, step, k);
		sums.tokens += s->samples->start[i + 1] - s->samples->start[i];
		sums.targets += sample_targets(s->samples, i, s->job.g->virtual_tokens);
	}
	if (sums.targets == 0) {
		return errmsg_set(err, STATUS_FAILED, "step %lld has no token to train on",
			(long long)step + 1);
	}

	const double zero = 0;
	backend_upload(b, s->arena + l->loss_sum, &zero, sizeof(zero));
	fill_zero(b, flat_buffer(s, l->grads));
	s->run.training = true;
	s->run.step = (uint64_t)step;
	s->run.grad_scale = (float)(1.0 / (double)sums.targets);
	for (int64_t k = 0; k < n;) {
		k = batch_fill(&s->batch, s->samples, &s->order, step, k, s->config.packing);
		batch_upload(&s->batch, &s->job, s->arena, &s->run);
		run_nodes(&s->run, 0, s->job.g->n_nodes);
	}
	int r = backend_sync(b, err);
	if (r != 0) {
		return r;
	}
	backend_download(b, &sums.loss_sum, s->arena + l->loss_sum, sizeof(sums.loss_sum));
	*ret = sums;
	return 0;
}

/* One step of AdamW on the elements [begin, end) of the flat buffers, which have the settings of p. */
static void update_range(struct train_session *s, struct adamw a, size_t begin, size_t end,
	const struct param *p)
{
	const struct layout *l = &s->job.layout;
	a.lr *= (double)p->lr_scale;
	if (p->learning_rate > 0 && s->config.learning_rate > 0) {
		a.lr *= p->learning_rate / s->config.learning_rate;
	}
	a.weight_decay = p->no_decay ? 0 : a.weight_decay;
	adamw_step(s->job.g->backend, (float *)(void *)(s->arena + l->masters) + begin,
		(float *)(void *)(s->arena + l->exp_avg) + begin,
		(float *)(void *)(s->arena + l->exp_avg_sq) + begin,
		(const float *)(void *)(s->arena + l->grads) + begin, (int64_t)(end - begin), &a);
}

static bool same_group(const struct param *a, const struct param *b)
{
	return a->lr_scale == b->lr_scale && a->learning_rate == b->learning_rate &&
		a->no_decay == b->no_decay;
}

static void update(struct train_session *s, double lr, double grad_norm)
{
	const struct train_config *c = &s->config;
	const struct graph *g = s->job.g;
	double clip = 1;
	if (c->max_grad_norm > 0) {
		clip = fmin(1, c->max_grad_norm / (grad_norm + 1e-6));
	}
	const struct adamw a = {
		.lr = (float)lr,
		.beta1 = (float)c->adam_beta1,
		.beta2 = (float)c->adam_beta2,
		.eps = (float)c->adam_epsilon,
		.weight_decay = (float)c->weight_decay,
		.grad_scale = (float)clip,
		.step = s->step + 1,
	};
	/* Neighbours with the same settings go in one call. */
	for (int i = 0, end; i < g->n_params; i = end) {
		for (end = i + 1; end < g->n_params && same_group(&g->params[i], &g->params[end]); end++) {
		}
		size_t to = end < g->n_params ? g->params[end].offset : g->param_elements;
		update_range(s, a, g->params[i].offset, to, &g->params[i]);
	}
	job_refresh_copies(&s->job, s->arena);
}

static int not_finite(const struct train_session *s, const struct step_metrics *m,
	struct errmsg *err)
{
	bool loss = !isfinite(m->loss), bf16 = s->config.dtype == DTYPE_BF16;
	const char *advice = s->step > 0 ?
		bf16 ? "a lower learning_rate, longer warmup_steps or dtype f32 may help" :
			"a lower learning_rate or longer warmup_steps may help" :
		bf16 ? "nothing was trained before it, so that the model, what training starts from or the "
			"method's scale make it; dtype f32 may help" :
			"nothing was trained before it, so that the model, what training starts from or the "
			"method's scale make it";
	return errmsg_set(err, STATUS_FAILED, "step %lld: the %s is no finite number (%g); %s",
		(long long)m->step, loss ? "loss" : "norm of the gradients", loss ? m->loss : m->grad_norm,
		advice);
}

int train_session_run_step(struct train_session *s, struct step_metrics *ret, struct errmsg *err)
{
	int64_t start = clock_monotonic_ns();
	struct step_sums sums;
	int r = session_accumulate(s, s->step, &sums, err);
	if (r != 0) {
		return r;
	}
	struct backend *b = s->job.g->backend;
	const float *grads = (const float *)(void *)(s->arena + s->job.layout.grads);
	struct step_metrics m = {
		.step = s->step + 1,
		.loss = sums.loss_sum / (double)sums.targets,
		.lr = schedule_lr(&s->config, s->step + 1),
		.grad_norm = sqrt(sum_squares(b, grads, (int64_t)s->job.g->param_elements)),
		.tokens = (uint64_t)sums.tokens,
		.target_tokens = (uint64_t)sums.targets,
	};
	if (!isfinite(m.loss) || !isfinite(m.grad_norm)) {
		return not_finite(s, &m, err);
	}
	update(s, m.lr, m.grad_norm);
	r = backend_sync(b, err);
	if (r != 0) {
		return r;
	}
	s->step++;
	m.seconds = (double)(clock_monotonic_ns() - start) * 1e-9;
	*ret = m;
	return 0;
}

int train_session_eval(struct train_session *s, struct eval_metrics *ret, struct errmsg *err)
{
	if (!s->eval_samples) {
		return errmsg_set(err, STATUS_INVALID, "the job has no eval_dataset");
	}
	return eval_samples_loss(&s->job, s->arena, &s->run, &s->batch, s->eval_samples, ret, err);
}
