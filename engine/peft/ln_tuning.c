/* LayerNorm tuning: the scales of norms, and the biases of those that have them (Zhao et al. 2023; PEFT's
 * tuners/ln_tuning). PEFT keeps whole norms under the keys P.ln_tuning_layers.weight and .bias. */
#include <stdio.h>
#include <string.h>

#include "engine/peft/peft.h"

#define KEY_PREFIX "base_model.model."

static void ln_weight(struct peft *p, struct graph *g, int slot)
{
	const struct weight *w = &g->weights[slot];
	if (peft_is_norm(w) && modules_match(&p->config.ln_tuning.target_modules, w->parts[0].module)) {
		graph_train_weight(g, slot, 0);
		if (g->weights[slot].bias) {
			graph_train_bias(g, slot, 0);
		}
	}
}

static int ln_check(const struct method_config *m, struct errmsg *err)
{
	return peft_check_list(&m->ln_tuning.target_modules, "ln_tuning.target_modules", err);
}

static int ln_start(struct peft *p, const struct graph *g, struct errmsg *err)
{
	struct modules *targets = &p->config.ln_tuning.target_modules;
	int r = targets->n == 0 ? peft_add_suffixes(targets, g, peft_is_norm) : 0;
	return r ? r : peft_check_targets(targets, g, peft_is_norm, "ln_tuning.target_modules", "norm",
		err);
}

static void ln_tensor(const struct peft *p, const struct graph *g, size_t i,
	struct peft_tensor *ret)
{
	struct peft_tensor t;
	peft_base_tensor(g, i, &t);
	*ret = t;
	const char *suffix = strrchr(t.name, '.'); /* .weight or .bias */
	snprintf(ret->name, sizeof(ret->name), KEY_PREFIX "%.*s.ln_tuning_layers%s",
		(int)(suffix - t.name), t.name, suffix);
}

static int ln_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	static const char *const known[] = {"target_modules", NULL};
	int r = json_refuse_others(o, known, NULL, err);
	r = r ? r : json_read_modules(&ret->ln_tuning.target_modules, o, "target_modules", true, err);
	if (r == 0 && ret->ln_tuning.target_modules.n == 0) {
		r = errmsg_set(err, STATUS_INVALID, "adapter_config.json: 'target_modules' is missing");
	}
	return r;
}

static int ln_config_write(json_t *o, const struct method_config *m, const struct model_config *c)
{
	return json_write_modules(o, "target_modules", &m->ln_tuning.target_modules);
}

static int ln_merge(const struct adapter *a, const char *module, const char *tensor, int64_t rows,
	int64_t cols, float *w, struct errmsg *err)
{
	return strcmp(tensor, "weight") != 0 ? 0 :
		peft_merge_whole(a, KEY_PREFIX, module, ".ln_tuning_layers.weight", rows, cols, w, err);
}

static int ln_describe(const struct peft *p, struct buf *out)
{
	int r = buf_appendf(out, "ln_tuning");
	return r ? r : peft_describe_modules(out, "targets", &p->config.ln_tuning.target_modules);
}

const struct peft_method peft_ln_tuning = {
	.name = "ln_tuning",
	.kind = ADAPTER_PEFT,
	.peft_type = "LN_TUNING",
	.decides = "ln_tuning.target_modules",
	.size = sizeof(struct peft),
	.check = ln_check,
	.config_read = ln_config_read,
	.config_write = ln_config_write,
	.start = ln_start,
	.weight = ln_weight,
	.tensor = ln_tensor,
	.merge = ln_merge,
	.describe = ln_describe,
};
