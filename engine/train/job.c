#include "engine/train/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/rope.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct graph *, graph_free);

int64_t job_max_seqs(int64_t tokens)
{
	return min_i64(tokens, 1024);
}

int job_method(struct peft **ret, const struct graph_request *q, const struct method_config *m,
	struct errmsg *err)
{
	_cleanup_(graph_freep) struct graph *g = NULL;
	int r = model_graph(&g, q, NULL, err);
	return r != 0 ? r : peft_new(ret, m, g, err);
}

/* Takes `bytes` of the arena. */
static size_t take(struct layout *l, size_t bytes)
{
	size_t at = l->total;
	l->total += align_up(bytes, 64);
	return at;
}

/* Rows of the table of rotary angles: every position that a run may meet. */
static int64_t n_positions(const struct graph *g)
{
	return (g->purpose == GRAPH_GENERATE ? g->context : g->tokens) + g->position_offset;
}

static struct layout lay_out(const struct graph *g, const struct placement *p)
{
	struct layout l = {0};
	size_t flat = g->param_elements * sizeof(float), tokens = (size_t)g->tokens;
	bool train = g->trainable;
	int64_t positions = n_positions(g);

	l.masters = take(&l, flat);
	l.copies = l.masters;
	if (g->dtype != DTYPE_F32) {
		l.copies = take(&l, g->param_elements * dtype_size(g->dtype));
	}
	l.exp_avg = take(&l, train ? flat : 0);
	l.exp_avg_sq = take(&l, train ? flat : 0);
	l.grads = take(&l, train ? flat : 0);
	l.ids = take(&l, tokens * sizeof(int32_t));
	l.positions = take(&l, tokens * sizeof(int32_t));
	l.targets = take(&l, tokens * sizeof(int32_t));
	l.source_ids = take(&l, g->source ? tokens * sizeof(int32_t) : 0);
	l.loss_sum = take(&l, sizeof(double));
	for (int i = 0; i < g->n_rope_tables; i++) {
		l.cos_sin[i] = take(&l, (size_t)positions * (size_t)rope_dim(&g->config) * sizeof(float));
	}
	l.constants = take(&l, g->constants * sizeof(float));
	l.region = take(&l, p->region);
	return l;
}

int job_check_length(const struct model_config *c, const struct peft *peft, int64_t tokens,
	const char *field, struct errmsg *err)
{
	int64_t before = peft && peft->method->virtual_tokens ? peft->method->virtual_tokens(peft) : 0;
	if (peft && peft->method->position_offset) {
		before = peft->method->position_offset(peft);
	}
	if (c->max_sequence == 0 || tokens + before <= c->max_sequence) {
		return 0;
	}
	return errmsg_set(err, STATUS_INVALID, "%s: %lld tokens%s; this model has positions for %lld. Give "
		"shorter ones", field, (long long)(tokens + before), before > 0 ? " with the method's own" : "",
		(long long)c->max_sequence);
}

int job_build(struct job *ret, const struct graph_request *q, struct peft *peft,
	enum recompute recompute, struct errmsg *err)
{
	_cleanup_(graph_freep) struct graph *g = NULL;
	struct placement p;
	int r = model_graph(&g, q, peft, err);
	if (r == 0 && q->purpose == GRAPH_GENERATE) {
		r = job_check_length(q->config, NULL, g->context + g->position_offset - g->virtual_tokens,
			"prompt and max_new_tokens", err);
	}
	if (r == 0 && q->trainable) {
		r = graph_differentiate(g, recompute);
	}
	if (r == 0) {
		r = graph_place(g, &p);
	}
	if (r != 0) {
		return r;
	}
	*ret = (struct job){.peft = peft, .placement = p, .recompute = recompute};
	ret->layout = lay_out(g, &p);
	ret->g = steal_ptr(g);
	return 0;
}

void job_deinit(struct job *j)
{
	graph_free(j->g);
	*j = (struct job){0};
}

struct run job_run(const struct job *j, const struct base_model *base, uint8_t *arena)
{
	const struct layout *l = &j->layout;
	struct run r = {
		.g = j->g,
		.backend = j->g->backend,
		.base = base,
		.region = arena + l->region,
		.params = arena + l->copies,
		.constants = (const float *)(void *)(arena + l->constants),
		.grads = j->g->trainable ? (float *)(void *)(arena + l->grads) : NULL,
		.ids = (const int32_t *)(void *)(arena + l->ids),
		.positions = (const int32_t *)(void *)(arena + l->positions),
		.targets = (const int32_t *)(void *)(arena + l->targets),
		.source.ids = (const int32_t *)(void *)(arena + l->source_ids),
		.loss_sum = (double *)(void *)(arena + l->loss_sum),
		.grad_scale = 1,
	};
	for (int i = 0; i < j->g->n_rope_tables; i++) {
		r.cos_sin[i] = (const float *)(void *)(arena + l->cos_sin[i]);
	}
	return r;
}

static int upload_constants(const struct job *j, const struct base_model *base, uint8_t *arena,
	struct errmsg *err)
{
	const struct graph *g = j->g;
	if (g->constants == 0) {
		return 0;
	}
	_cleanup_(freep) float *host = calloc_array(g->constants, sizeof(*host));
	if (!host) {
		return -ENOMEM;
	}
	int r = j->peft->method->constants(j->peft, g, base, host, err);
	if (r == 0) {
		backend_upload(g->backend, arena + j->layout.constants, host,
			g->constants * sizeof(*host));
	}
	return r;
}

int job_upload_tables(const struct job *j, const struct base_model *base, uint8_t *arena,
	struct errmsg *err)
{
	const struct graph *g = j->g;
	int64_t n = n_positions(g);
	size_t elements = (size_t)n * (size_t)rope_dim(&g->config);
	_cleanup_(freep) float *host = alloc_array(elements, sizeof(*host));
	if (!host) {
		return -ENOMEM;
	}
	for (int i = 0; i < g->n_rope_tables; i++) {
		rope_table(&g->config, i, n, host);
		backend_upload(g->backend, arena + j->layout.cos_sin[i], host, elements * sizeof(*host));
	}
	return upload_constants(j, base, arena, err);
}

static struct mat flat_mat(const struct job *j, uint8_t *arena, size_t offset, enum dtype dtype)
{
	int64_t n = (int64_t)j->g->param_elements;
	return (struct mat){arena + offset, dtype, 1, n, n};
}

void job_refresh_copies(const struct job *j, uint8_t *arena)
{
	if (j->g->dtype != DTYPE_F32 && j->g->param_elements > 0) {
		cast(j->g->backend, flat_mat(j, arena, j->layout.copies, j->g->dtype),
			flat_mat(j, arena, j->layout.masters, DTYPE_F32));
	}
}

void job_upload_params(const struct job *j, uint8_t *arena, const float *flat)
{
	backend_upload(j->g->backend, arena + j->layout.masters, flat,
		j->g->param_elements * sizeof(*flat));
	job_refresh_copies(j, arena);
}

int flat_init(struct flat *f, const struct job *j, uint8_t *arena, size_t offset)
{
	struct backend *b = j->g->backend;
	*f = (struct flat){.values = backend_host_view(b, arena + offset), .offset = offset};
	if (!f->values) {
		f->values = f->copy = alloc_array(j->g->param_elements, sizeof(float));
		if (!f->copy) {
			return -ENOMEM;
		}
		backend_download(b, f->copy, arena + offset, j->g->param_elements * sizeof(float));
	}
	return 0;
}

void flat_store(const struct flat *f, const struct job *j, uint8_t *arena)
{
	if (f->copy) {
		backend_upload(j->g->backend, arena + f->offset, f->copy,
			j->g->param_elements * sizeof(float));
	}
}

void flat_deinit(struct flat *f)
{
	free(f->copy);
}

uint64_t job_checkpoint_bytes(const struct job *j)
{
	/* Masters and two moments, and where the folder holds something else than what is trained, the
	 * folder's, which are fewer. A header's entry of a tensor has its name, shape and place. */
	uint64_t copies = j->peft && j->peft->method->exported ? 4 : 3;
	uint64_t entry = 2 * MODULE_NAME_MAX + 256, n = j->peft ? peft_n_tensors(j->peft, j->g) : 0;
	return copies * (j->g->param_elements * sizeof(float) + n * entry) + 65536;
}

int job_check_task(const struct graph *g, const struct adapter *a, struct errmsg *err)
{
	enum task_type task = a->config.task_type;
	if (task != TASK_UNKNOWN && (task == TASK_SEQ_2_SEQ_LM) != g->source) {
		return errmsg_set(err, STATUS_INVALID, "adapter_config.json: 'task_type' is of %s, but the "
			"base model is %s", g->source ? "a decoder alone" : "an encoder-decoder",
			g->source ? "an encoder-decoder" : "a decoder alone");
	}
	return 0;
}

int job_load_adapter(const struct job *j, uint8_t *arena, const struct adapter *a,
	struct errmsg *err)
{
	_cleanup_(flat_deinit) struct flat masters = {0};
	int r = job_check_task(j->g, a, err);
	r = r ? r : flat_init(&masters, j, arena, j->layout.masters);
	if (r != 0) {
		return r;
	}
	memset(masters.values, 0, j->g->param_elements * sizeof(float)); /* what lies between, too */
	r = peft_load(j->peft, j->g, a, masters.values, err);
	if (r == 0) {
		flat_store(&masters, j, arena);
		job_refresh_copies(j, arena);
	}
	return r;
}
