/* Planning a job: the graph it will run, at the largest microbatch that its memory allows. */
#include <stdio.h>
#include <string.h>

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

/* FLOPs of a microbatch by its tokens, on both sides where there are two. */
static double flops_per_token(const struct graph *g, int64_t seq_len)
{
	return graph_flops(g, seq_len) / ((double)g->tokens * (g->source ? 2 : 1));
}

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
		.flops_per_token = flops_per_token(j->g, s->longest),
		.recompute = (int)j->recompute,
	};
	p->total_parameters = model_files_parameters(s->files);
	for (int i = 0; i < j->g->n_params; i++) {
		const struct param *x = &j->g->params[i];
		uint64_t n = (uint64_t)x->rows * (uint64_t)x->cols;
		p->trainable_parameters += n;
		p->total_parameters += x->of_base ? 0 : n;
	}
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

/* FLOPs of a forward pass a row, in sequences of `seq_len` rows; and bytes of the method's own parameters. */
static int forward_cost(const struct search *s, struct peft *peft, int64_t seq_len,
	double *ret_flops, uint64_t *ret_bytes, struct errmsg *err)
{
	struct graph_request q = s->request;
	struct job j;
	q.tokens = 256;
	q.trainable = false;
	int r = job_build(&j, &q, peft, RECOMPUTE_CHEAP, err);
	if (r != 0) {
		return r;
	}
	*ret_flops = flops_per_token(j.g, seq_len);
	*ret_bytes = 0;
	for (int i = 0; i < j.g->n_params; i++) {
		const struct param *p = &j.g->params[i];
		*ret_bytes += p->of_base ? 0 : (uint64_t)p->rows * (uint64_t)p->cols * dtype_size(q.dtype);
	}
	job_deinit(&j);
	return 0;
}

/* What the method costs where it is used unmerged: beside the bare base, for a sequence of `longest`
 * rows, virtual tokens among them, by real token. */
static int fill_inference(struct memory_plan *p, const struct search *s, int64_t virtual_tokens,
	struct errmsg *err)
{
	double with = 0, without = 0;
	uint64_t bytes = 0, none = 0;
	int64_t real = s->longest - virtual_tokens;
	int r = forward_cost(s, s->peft, s->longest, &with, &bytes, err);
	r = r ? r : forward_cost(s, NULL, real, &without, &none, err);
	if (r == 0) {
		double extra = with * (double)s->longest / (double)real - without;
		p->inference_flops_per_token = extra > 0 ? extra : 0;
		p->inference_bytes_per_token = bytes;
		p->mergeable = !peft_unmergeable(&s->peft->config, s->request.config);
	}
	return r;
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

/* What would help where no sequence is short enough: the largest of what stands in the way. */
static void advise(const struct search *s, const struct memory_plan *need, char *out, size_t cap)
{
	uint64_t trained = need->trainable_weights + need->optimizer_states + need->gradients;
	bool f32 = s->request.dtype == DTYPE_F32;
	if (need->base_weights > s->limit) {
		snprintf(out, cap, "no shorter max_length fits; the base model's weights alone take %.2f "
			"GiB%s", gib(s->base), f32 ? ", half of that with train.dtype bf16" : "");
	} else if (need->base_weights + trained > s->limit || trained > need->arena / 2) {
		bool lora = strcmp(s->peft->method->name, "lora") == 0;
		snprintf(out, cap, "no shorter max_length fits; the %llu parameters that method %s trains "
			"take %.2f GiB with their gradients and optimizer state: train fewer%s",
			(unsigned long long)need->trainable_parameters, s->peft->method->name, gib(trained),
			lora ? " (a smaller lora.r, fewer lora.target_modules)" : "");
	} else if (f32) {
		snprintf(out, cap, "train.dtype bf16 halves the weights; a shorter max_length alone does "
			"not suffice");
	} else {
		snprintf(out, cap, "no shorter max_length fits; the base model's weights alone take %.2f "
			"GiB", gib(s->base));
	}
}

/* Says what is needed and the smallest change that would fit; the plan that comes nearest. */
static int wont_fit(struct memory_plan *ret, const struct search *s, int64_t least,
	struct errmsg *err)
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
	char change[256];
	if (tokens > 0) {
		snprintf(change, sizeof(change), "train.max_length of at most %lld would fit",
			(long long)tokens);
	} else {
		advise(s, &need, change, sizeof(change));
	}
	*ret = need;
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
	struct search s = {
		.files = files,
		.request = {
			.config = model_files_config(files),
			.purpose = GRAPH_TRAIN,
			.backend = b,
			.dtype = c->dtype,
			.tokens = 16,
			.max_seqs = 16,
			.trainable = true,
		},
		.base = base_model_bytes(files, b, c->dtype, true),
		.limit = memory_limit,
	};
	_cleanup_(peft_freep) struct peft *peft = NULL;
	r = job_method(&peft, &s.request, m, err);
	if (r != 0) {
		return r;
	}
	s.peft = peft;
	r = job_check_length(s.request.config, peft, longest, "train.max_length", err);
	if (r != 0) {
		return r;
	}
	s.longest = longest + (peft->method->virtual_tokens ? peft->method->virtual_tokens(peft) : 0);
	r = choose_tokens(c, s.longest, &least, &most, err);
	if (r != 0) {
		return r;
	}

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
		r = wont_fit(&p, &s, least, err);
	}
	if (r != 0 && r != STATUS_WONT_FIT) {
		return r;
	}
	int filled = fill_inference(&p, &s, s.longest - longest, err);
	if (filled != 0) {
		return filled;
	}
	*ret = p;
	return r;
}
