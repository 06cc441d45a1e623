/* What a job must fulfil before it is admitted, beside what planning its memory finds. */
#include "engine/engine.h"
#include "engine/train/job.h"
#include "util/cleanup.h"

DEFINE_CLEANUP(struct peft *, peft_free);
DEFINE_CLEANUP(struct graph *, graph_free);

static int check_init(const struct peft *p, const struct graph *g, const struct adapter *init,
	struct errmsg *err)
{
	int r = adapter_can_start(init, &p->config, err);
	r = r ? r : job_check_task(g, init, err);
	if (r != 0) {
		return r;
	}
	struct errmsg why = {0};
	r = peft_can_load(p, g, init, &why);
	const char *field = p->method->decides;
	return r <= 0 ? r : errmsg_set(err, r, "%s%s%s%s", why.text, field ? "; set " : "",
		field ? field : "", field ? " to what the adapter has, and check that it was made for this "
		"model" : "");
}

int train_check(const struct model_files *files, struct backend *b, const struct train_config *c,
	const struct method_config *m, const struct adapter *init, struct errmsg *err)
{
	const struct graph_request q = {
		.config = model_files_config(files),
		.purpose = GRAPH_TRAIN,
		.backend = b,
		.dtype = c->dtype,
		.tokens = 16,
		.max_seqs = 16,
		.trainable = true,
	};
	_cleanup_(peft_freep) struct peft *p = NULL;
	_cleanup_(graph_freep) struct graph *g = NULL;
	int r = train_config_check(c, m, err);
	r = r ? r : job_method(&p, &q, m, err);
	r = r ? r : model_graph(&g, &q, p, err);
	if (r != 0) {
		return r;
	}
	r = p->method->admit ? p->method->admit(p, g, err) : 0;
	r = r ? r : peft_can_save(p, g, "base", err);
	if (r == 0 && init) {
		r = check_init(p, g, init, err);
		return r > 0 ? errmsg_prefix(err, r, "init_adapter") : r;
	}
	return r;
}
