/* Full fine-tuning: every parameter of the base. Tied embeddings and head are one, as in
 * transformers. */
#include "engine/peft/peft.h"

static void full_weight(struct peft *p, struct graph *g, int slot)
{
	peft_train_slot(g, slot);
}

static int full_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	return 0;
}

static int full_config_write(json_t *o, const struct method_config *m,
	const struct model_config *c)
{
	return 0;
}

static int full_describe(const struct peft *p, struct buf *out)
{
	return buf_appendf(out, "full");
}

const struct peft_method peft_full = {
	.name = "full",
	.kind = ADAPTER_DELTA,
	.size = sizeof(struct peft),
	.config_read = full_config_read,
	.config_write = full_config_write,
	.weight = full_weight,
	.merge = peft_merge_delta,
	.describe = full_describe,
};
