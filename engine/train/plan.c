/* Planning a job: the graph it will run, at the largest microbatch that its memory allows. */
#include <stdio.h>

#include "engine/engine.h"
#include "engine/train/job.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct peft *, peft_free);

struct search {
	const struct model_files *files;
	struct graph_request request;
	struct peft *peft;
	int64_t longest;
	uint64_t base, limit;
};

static void fill_plan(struct memory_plan *p, const struct search *s, const struct job *j)
{
	const struct layout *l = &j->layout;
	*p = (struct memory_plan){
		.base_weights = s->base,
		.trainable_weights = l->exp_avg - l->masters,
		.optimizer_states = l->grads - l->exp_avg,
		.gradients = l->ids - l->grads,
		.activations = j->placement.activations,
		.temporary = l->total - l->ids - j->placement.activations,
		.arena = l->total,
		.checkpoint = job_checkpoint_bytes(j),
		.microbatch_tokens = j->g->tokens,
		.flops_per_token = graph_flops(j->g, s->longest) / (double)j->g->tokens,
		.recompute = (int)j->recompute,
	};
	for (int i = 0; i < j->g->n_params; i++) {
		p->trainable_parameters += (uint64_t)(j->g->params[i].rows * j->g->params[i].cols);
	}
	p->total_parameters = model_files_parameters(s->files) + p->trainable_parameters;
}

static int plan_at(struct memory_plan *ret, const struct search *s, int64_t tokens,
	enum recompute level, struct errmsg *err)
{
	struct graph_request q = s->request;
	q.tokens = tokens;
	q.max_seqs = job_max_seqs(tokens);
	struct job j;
	int r = job_build(&j, &q, s->peft, level, err);
	if (r == 0) {
		fill_plan(ret, s, &j);
		job_deinit(&j);
	}
	return r;
}

static bool fits(const struct search *s, const struct memory_plan *p)
{
	return s->limit == 0 || p->base_weights + p->arena <= s->limit;
}

/* The most tokens in [least, most] that fit, in steps of 16 from `least`; 0 where none do. */
static int search_tokens(struct memory_plan *ret, const struct search *s, int64_t least,
	int64_t most, enum recompute level, int64_t *ret_tokens, struct errmsg *err)
{
	struct memory_plan p;
	int64_t low = -1, high = (most - least) / 16; /* low: fits; -1: not known to */
	*ret_tokens = 0;
	int r = plan_at(&p, s, most, level, err);
	if (r != 0) {
		return r;
	}
	if (fits(s, &p)) {
		*ret = p;
		*ret_tokens = most;
		return 0;
	}
	while (low < high) {
		int64_t middle = low + (high - low + 1) / 2;
		r = plan_at(&p, s, least + middle * 16, level, err);
		if (r != 0) {
			return r;
		}
		if (fits(s, &p)) {
			low = middle;
			*ret = p;
			*ret_tokens = least + middle * 16;
		} else {
			high = middle - 1;
		}
	}
	return 0;
}

static double gib(uint64_t bytes)
{
	return (double)bytes / (double)(1 << 30);
}

/* Says what is needed and the smallest change that would fit. */
static int wont_fit(const struct search *s, int64_t least, struct errmsg *err)
{
	struct memory_plan need, p;
	int64_t tokens = 0;
	int r = plan_at(&need, s, least, RECOMPUTE_BLOCK, err);
	if (r == 0 && least > 16) {
		r = search_tokens(&p, s, 16, least - 16, RECOMPUTE_BLOCK, &tokens, err);
	}
	if (r != 0) {
		return r;
	}
	char change[160];
	if (tokens > 0) {
		snprintf(change, sizeof(change), "train.max_length of at most %lld would fit",
			(long long)tokens);
	} else if (s->request.dtype == DTYPE_F32) {
		snprintf(change, sizeof(change), "train.dtype bf16 halves the weights; a shorter "
			"max_length alone does not suffice");
	} else {
		snprintf(change, sizeof(change), "no shorter max_length fits; the base model's weights "
			"alone take %.2f GiB", gib(s->base));
	}
	return errmsg_set(err, STATUS_WONT_FIT, "needs %.2f GiB for sequences of %lld tokens (%.2f GiB "
		"of base weights, %.2f GiB for training), the limit is %.2f GiB; %s",
		gib(need.base_weights + need.arena), (long long)s->longest, gib(need.base_weights),
		gib(need.arena), gib(s->limit), change);
}

/* Tokens of a microbatch where memory is no matter: enough for efficient products. */
static int choose_tokens(const struct train_config *c, int64_t longest, int64_t *ret_least,
	int64_t *ret_most, struct errmsg *err)
{
	int64_t rounded = (int64_t)align_up((size_t)longest, 16);
	int64_t most = rounded;
	if (c->packing) {
		most = min_i64((int64_t)align_up((size_t)(c->batch_size * longest), 16),
			max_i64(2048, rounded));
	}
	if (c->microbatch_tokens > 0) {
		if (c->microbatch_tokens < longest) {
			return errmsg_set(err, STATUS_INVALID, "train.microbatch_tokens: %lld; the longest row "
				"has %lld tokens, and a row is never cut in two", (long long)c->microbatch_tokens,
				(long long)longest);
		}
		most = c->packing ? c->microbatch_tokens : min_i64(rounded, c->microbatch_tokens);
		rounded = min_i64(rounded, most);
	}
	*ret_least = rounded;
	*ret_most = most;
	return 0;
}

int train_plan(struct memory_plan *ret, const struct model_files *files, struct backend *b,
	const struct train_config *c, const struct method_config *m, int64_t longest,
	uint64_t memory_limit, struct errmsg *err)
{
	int r = train_config_check(c, m, err);
	if (r != 0) {
		return r;
	}
	if (longest < 1) {
		return errmsg_set(err, STATUS_INVALID, "the dataset has no tokens to train on");
	}
	int64_t least = 0, most = 0, tokens = 0;
	r = choose_tokens(c, longest, &least, &most, err);
	if (r != 0) {
		return r;
	}
	struct search s = {
		.files = files,
		.request = {
			.config = model_files_config(files),
			.purpose = GRAPH_TRAIN,
			.backend = b,
			.dtype = c->dtype,
			.tokens = least,
			.max_seqs = job_max_seqs(least),
			.trainable = true,
		},
		.longest = longest,
		.base = base_model_bytes(files, b, c->dtype, true),
		.limit = memory_limit,
	};
	_cleanup_(peft_freep) struct peft *peft = NULL;
	r = job_method(&peft, &s.request, m, err);
	if (r != 0) {
		return r;
	}
	s.peft = peft;

	/* A smaller microbatch costs less time than computing things again. */
	struct memory_plan p;
	r = search_tokens(&p, &s, least, most, RECOMPUTE_CHEAP, &tokens, err);
	for (int level = RECOMPUTE_MLP; r == 0 && tokens == 0 && level <= RECOMPUTE_BLOCK; level++) {
		r = search_tokens(&p, &s, least, least, (enum recompute)level, &tokens, err);
	}
	if (r != 0) {
		return r;
	}
	if (tokens == 0) {
		return wont_fit(&s, least, err);
	}
	*ret = p;
	return 0;
}
