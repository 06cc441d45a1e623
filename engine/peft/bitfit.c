/*
 * BitFit: biases alone (Ben Zaken et al. 2022). Where the model has biases, these are trained and leave
 * as a delta. Where its linear layers have none, biases that start at zero are added to them, as in
 * PEFT's tuners/beft, and leave in that form (P.beft_bias).
 */
#include <stdio.h>
#include <string.h>

#include "engine/peft/peft.h"

#define KEY_PREFIX "base_model.model."

static bool targeted(const struct bitfit_config *c, const char *module)
{
	return c->target_modules.n == 0 || modules_match(&c->target_modules, module);
}

static void bitfit_weight(struct peft *p, struct graph *g, int slot)
{
	const struct bitfit_config *c = &p->config.bitfit;
	const struct weight w = g->weights[slot];
	for (int i = 0; i < w.n_parts; i++) {
		bool there = c->added ? peft_is_linear(&w) : w.bias;
		if (there && targeted(c, w.parts[i].module)) {
			graph_train_bias(g, slot, i);
		}
	}
}

static int bitfit_check(const struct method_config *m, struct errmsg *err)
{
	return peft_check_list(&m->bitfit.target_modules, "bitfit.target_modules", err);
}

static bool has_bias(const struct weight *w)
{
	return w->bias;
}

static int bitfit_start(struct peft *p, const struct graph *g, struct errmsg *err)
{
	struct bitfit_config *c = &p->config.bitfit;
	int r = peft_resolve_all_linear(&c->target_modules, g);
	bool some = false, other = false; /* targets with a bias, and without */
	for (int i = 0; i < g->n_weights; i++) {
		const struct weight *w = &g->weights[i];
		for (int k = 0; peft_is_linear(w) && k < w->n_parts; k++) {
			bool target = targeted(c, w->parts[k].module);
			some |= target && w->bias;
			other |= target && !w->bias;
		}
	}
	c->added = !some;
	if (r == 0 && c->target_modules.n == 0) {
		r = peft_add_suffixes(&c->target_modules, g, some ? has_bias : peft_is_linear);
	} else if (r == 0 && some && other) {
		r = errmsg_set(err, STATUS_INVALID, "bitfit.target_modules: some targets have a bias in "
			"this model and some have none; name the ones or the others");
	}
	return r ? r : peft_check_targets(&c->target_modules, g, peft_is_linear,
		"bitfit.target_modules", "linear layer", err);
}

static enum adapter_kind bitfit_kind(const struct method_config *m)
{
	return m->bitfit.added ? ADAPTER_PEFT : ADAPTER_DELTA;
}

static void bitfit_tensor(const struct peft *p, const struct graph *g, size_t i,
	struct peft_tensor *ret)
{
	struct peft_tensor t;
	peft_base_tensor(g, i, &t);
	*ret = t;
	if (!p->config.bitfit.added) {
		return;
	}
	ret->n_dims = 2;
	ret->dims[0] = 1;
	ret->dims[1] = t.dims[0];
	snprintf(ret->name, sizeof(ret->name), KEY_PREFIX "%.*s.beft_bias",
		(int)(strlen(t.name) - strlen(".bias")), t.name);
}

static int bitfit_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	static const char *const known[] = {"target_modules", NULL};
	static const char *const harmless[] = {"init_weights", NULL};
	bool beft = json_object_get(o, "peft_type");
	int r = beft ? json_refuse_others(o, known, harmless, err) : 0;
	r = r ? r : json_read_modules(&ret->bitfit.target_modules, o, "target_modules", true, err);
	if (r == 0 && ret->bitfit.target_modules.n == 0) {
		r = errmsg_set(err, STATUS_INVALID, "'target_modules' is missing in the configuration");
	}
	ret->bitfit.added = beft;
	return r;
}

static int bitfit_config_write(json_t *o, const struct method_config *m,
	const struct model_config *c)
{
	return json_write_modules(o, "target_modules", &m->bitfit.target_modules);
}

static const char *bitfit_unmergeable(const struct method_config *m, const struct model_config *c)
{
	return m->bitfit.added ? "this model's linear layers have no biases, so that those that were "
		"added have no place in its weights" : NULL;
}

static int bitfit_describe(const struct peft *p, struct buf *out)
{
	int r = buf_appendf(out, "bitfit added=%d", p->config.bitfit.added);
	return r ? r : peft_describe_modules(out, "targets", &p->config.bitfit.target_modules);
}

const struct peft_method peft_bitfit = {
	.name = "bitfit",
	.kind = ADAPTER_PEFT,
	.kind_of = bitfit_kind,
	.peft_type = "BEFT",
	.decides = "bitfit.target_modules",
	.size = sizeof(struct peft),
	.check = bitfit_check,
	.config_read = bitfit_config_read,
	.config_write = bitfit_config_write,
	.start = bitfit_start,
	.weight = bitfit_weight,
	.tensor = bitfit_tensor,
	.unmergeable = bitfit_unmergeable,
	.merge = peft_merge_delta,
	.describe = bitfit_describe,
};
