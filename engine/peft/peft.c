#include "engine/peft/peft.h"

#include <string.h>

int peft_new(struct peft **ret, const struct method_config *m, const struct graph *g,
	struct errmsg *err)
{
	if (strcmp(m->method, "lora") == 0) {
		return lora_new(ret, &m->lora, g, err);
	}
	return errmsg_set(err, STATUS_INVALID, "method: \"%s\" is unknown; there is: lora", m->method);
}

void peft_free(struct peft *p)
{
	if (p) {
		p->method->free(p);
	}
}
