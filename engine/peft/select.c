/* Parameters of the base chosen by regular expressions on their full Hugging Face names. A name that
 * several places share (tied embeddings) is the one that transformers' named_parameters() has. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "engine/peft/peft.h"
#include "util/util.h"

static bool selected(const struct select_config *c, const char *module, const char *tensor)
{
	char name[TENSOR_NAME_MAX];
	snprintf(name, sizeof(name), "%s.%s", module, tensor);
	for (size_t i = 0; i < c->parameters.n; i++) {
		if (regex_fullmatch(c->parameters.names[i], name)) {
			return true;
		}
	}
	return false;
}

static void select_weight(struct peft *p, struct graph *g, int slot)
{
	const struct select_config *c = &p->config.select;
	const struct weight w = g->weights[slot];
	for (int i = 0; i < w.n_parts; i++) {
		const char *module = w.stored_as ? w.stored_as : w.parts[i].module;
		if (selected(c, module, "weight")) {
			peft_train_weight(g, slot, i);
		}
		if (w.bias && selected(c, w.parts[i].module, "bias")) {
			graph_train_bias(g, slot, i);
		}
	}
}

static int select_check(const struct method_config *m, struct errmsg *err)
{
	const struct modules *list = &m->select.parameters;
	if (list->n == 0) {
		return errmsg_set(err, STATUS_INVALID, "select.parameters: empty; name parameters by "
			"regular expressions, like \"model\\.layers\\.0\\..*\"");
	}
	int r = 0;
	for (size_t i = 0; i < list->n && r == 0; i++) {
		r = regex_check(list->names[i], "select.parameters", err);
	}
	return r;
}

struct nearest {
	char name[TENSOR_NAME_MAX];
	unsigned distance;
	size_t matches;
};

static void consider(struct nearest *n, const char *pattern, const char *module, const char *tensor)
{
	char name[TENSOR_NAME_MAX];
	snprintf(name, sizeof(name), "%s.%s", module, tensor);
	n->matches += regex_fullmatch(pattern, name);
	unsigned d = edit_distance(name, pattern);
	if (d < n->distance) {
		n->distance = d;
		memcpy(n->name, name, sizeof(n->name));
	}
}

/* Every expression matches a parameter. */
static int select_start(struct peft *p, const struct graph *g, struct errmsg *err)
{
	const struct modules *list = &p->config.select.parameters;
	for (size_t i = 0; i < list->n; i++) {
		struct nearest n = {.distance = UINT_MAX};
		for (int s = 0; s < g->n_weights; s++) {
			const struct weight *w = &g->weights[s];
			for (int k = 0; k < w->n_parts; k++) {
				const char *module = w->stored_as ? w->stored_as : w->parts[k].module;
				consider(&n, list->names[i], module, "weight");
				if (w->bias) {
					consider(&n, list->names[i], w->parts[k].module, "bias");
				}
			}
		}
		if (n.matches == 0) {
			return errmsg_set(err, STATUS_INVALID, "select.parameters: \"%s\" matches no parameter "
				"of this model; the nearest name is %s", list->names[i], n.name);
		}
	}
	return 0;
}

static int select_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	int r = json_read_modules(&ret->select.parameters, o, "parameters", false, err);
	return r ? r : select_check(ret, err);
}

static int select_config_write(json_t *o, const struct method_config *m,
	const struct model_config *c)
{
	return json_write_modules(o, "parameters", &m->select.parameters);
}

static int select_describe(const struct peft *p, struct buf *out)
{
	int r = buf_appendf(out, "select");
	return r ? r : peft_describe_modules(out, "parameters", &p->config.select.parameters);
}

const struct peft_method peft_select = {
	.name = "select",
	.kind = ADAPTER_DELTA,
	.decides = "select.parameters",
	.size = sizeof(struct peft),
	.check = select_check,
	.config_read = select_config_read,
	.config_write = select_config_write,
	.start = select_start,
	.weight = select_weight,
	.merge = peft_merge_delta,
	.describe = select_describe,
};
