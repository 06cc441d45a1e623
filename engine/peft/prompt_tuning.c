/*
 * Prompt tuning: n trained rows take the place of an embedding's before every sequence. Lester et al.
 * 2021; names and initialisation as in PEFT's tuners/prompt_tuning.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base.h"
#include "engine/ops_peft.h"
#include "engine/peft/soft-prompt.h"
#include "engine/train/rng.h"
#include "util/cleanup.h"
#include "util/util.h"

struct prompt_tuning {
	struct peft peft;
	int param;
	int table; /* slot of the embedding */
};

static const char *const inits[] = {
	[PROMPT_INIT_RANDOM] = "RANDOM",
	[PROMPT_INIT_TEXT] = "TEXT",
	[PROMPT_INIT_SAMPLE_VOCAB] = "SAMPLE_VOCAB",
};

static struct prompt_tuning *of(struct peft *p)
{
	return (struct prompt_tuning *)p;
}

static const struct prompt_tuning *of_const(const struct peft *p)
{
	return (const struct prompt_tuning *)p;
}

static int prompt_check(const struct method_config *m, struct errmsg *err)
{
	const struct prompt_tuning_config *c = &m->prompt_tuning;
	bool text = c->prompt_tuning_init_text && c->prompt_tuning_init_text[0] != '\0';
	if (c->prompt_tuning_init == PROMPT_INIT_TEXT && !text) {
		return errmsg_set(err, STATUS_INVALID, "prompt_tuning.prompt_tuning_init_text: empty, but "
			"prompt_tuning_init is TEXT");
	}
	if (c->prompt_tuning_init != PROMPT_INIT_TEXT && text) {
		return errmsg_set(err, STATUS_INVALID, "prompt_tuning.prompt_tuning_init_text: given, but "
			"prompt_tuning_init is %s, not TEXT", inits[c->prompt_tuning_init]);
	}
	return soft_prompt_check("prompt_tuning", c->num_virtual_tokens, err);
}

static int64_t prompt_virtual_tokens(const struct peft *p)
{
	return p->config.prompt_tuning.num_virtual_tokens;
}

static int prompt_inputs(struct peft *p, struct graph *g, int weight, int x)
{
	if (!soft_prompt_belongs(g, x)) {
		return x;
	}
	of(p)->param = graph_param(g, soft_prompt_rows(g, prompt_virtual_tokens(p)), g->tensors[x].cols);
	of(p)->table = weight;
	return graph_virtual_tokens(g, x, graph_of_param(g, of(p)->param));
}

/* The embedding's row of a token, in f32. */
static void read_row(const struct base_model *base, int table, int64_t id, float *out)
{
	struct mat m = base_mat(base, table);
	size_t size = dtype_size(m.dtype), n = (size_t)m.cols;
	const uint8_t *row = (const uint8_t *)m.data + (size_t)(id * m.stride) * size;
	backend_download(base_model_backend(base), out, row, n * size);
	for (size_t i = n; i-- > 0 && m.dtype == DTYPE_BF16;) {
		/* Backwards and in place: element i lies before where it goes. */
		uint16_t h;
		memcpy(&h, (const uint8_t *)out + 2 * i, sizeof(h));
		out[i] = bf16_to_f32(h);
	}
}

static int prompt_init(const struct peft *p, const struct graph *g, const struct base_model *base,
	uint64_t seed, float *flat, struct errmsg *err)
{
	const struct prompt_tuning *t = of_const(p);
	const struct prompt_tuning_config *c = &p->config.prompt_tuning;
	const struct param *param = &g->params[t->param];
	float *out = flat + param->offset;
	if (c->prompt_tuning_init == PROMPT_INIT_RANDOM) {
		peft_fill_normal(out, (size_t)(param->rows * param->cols), 0, 1, seed, 0);
		return 0;
	}
	bool text = c->prompt_tuning_init == PROMPT_INIT_TEXT;
	if (text && c->n_init_ids == 0) {
		return errmsg_set(err, STATUS_INVALID, "prompt_tuning.prompt_tuning_init_text: the "
			"tokenizer makes no token of it");
	}
	int64_t vocab = base_model_config(base)->vocab_size;
	struct rng_key key = {seed, rng_stream(RNG_INIT, 0, 0, 0)};
	for (int64_t i = 0; i < param->rows; i++) {
		/* A text that is too short is repeated. */
		int64_t id = text ? c->init_ids[(size_t)i % c->n_init_ids] :
			(int64_t)((uint64_t)rng_bits(key, (uint64_t)i) * (uint64_t)vocab >> 32);
		if (id < 0 || id >= vocab) {
			return errmsg_set(err, STATUS_INVALID, "prompt_tuning.prompt_tuning_init_text: token "
				"%lld, but the model's vocab_size is %lld", (long long)id, (long long)vocab);
		}
		read_row(base, t->table, id, out + i * param->cols);
		/* As the model scales its embeddings, which the prompt stands beside. */
		double scale = base_model_config(base)->embedding_scale;
		for (int64_t k = 0; k < param->cols && scale != 0; k++) {
			out[i * param->cols + k] *= (float)scale;
		}
	}
	return 0;
}

static size_t prompt_n_tensors(const struct peft *p, const struct graph *g)
{
	return 1;
}

static void prompt_tensor(const struct peft *p, const struct graph *g, size_t i,
	struct peft_tensor *ret)
{
	soft_prompt_tensor(g, of_const(p)->param, ret);
}

static int prompt_describe(const struct peft *p, struct buf *out)
{
	return buf_appendf(out, "prompt_tuning n=%lld", (long long)prompt_virtual_tokens(p));
}

static int prompt_config_read(struct method_config *ret, const json_t *o, struct errmsg *err)
{
	static const char *const known[] = {"num_virtual_tokens", "num_transformer_submodules",
		"prompt_tuning_init", NULL};
	/* How it began says nothing about what it is: only the rows count. */
	int r = json_refuse_others(o, known, soft_prompt_harmless, err);
	return r ? r : soft_prompt_read(o, &ret->prompt_tuning.num_virtual_tokens, err);
}

/* An init of TEXT makes PEFT ask for the tokenizer again, though it would not use it: the base's. */
static int prompt_config_write(json_t *o, const struct method_config *m,
	const struct model_config *c)
{
	const struct prompt_tuning_config *t = &m->prompt_tuning;
	json_t *base = json_object_get(o, "base_model_name_or_path");
	bool text = t->prompt_tuning_init == PROMPT_INIT_TEXT && json_is_string(base);
	enum prompt_init init = t->prompt_tuning_init == PROMPT_INIT_TEXT && !text ?
		PROMPT_INIT_RANDOM : t->prompt_tuning_init;
	bool failed = json_object_set_new(o, "prompt_tuning_init", json_string(inits[init])) ||
		(text && (json_object_set_new(o, "prompt_tuning_init_text",
			json_string(t->prompt_tuning_init_text)) ||
			json_object_set(o, "tokenizer_name_or_path", base)));
	return failed ? -ENOMEM : soft_prompt_write(o, t->num_virtual_tokens, c->hidden_size,
		c->num_attention_heads, c);
}

static int prompt_check_tensors(const struct adapter *a, struct errmsg *err)
{
	return soft_prompt_check_tensors(a, a->config.prompt_tuning.num_virtual_tokens, true,
		err);
}

static int prompt_matches(const struct method_config *have, const struct method_config *want,
	struct errmsg *err)
{
	return soft_prompt_matches("prompt_tuning", have->prompt_tuning.num_virtual_tokens,
		want->prompt_tuning.num_virtual_tokens, err);
}

const struct peft_method peft_prompt_tuning = {
	.name = "prompt_tuning",
	.kind = ADAPTER_PEFT,
	.peft_type = "PROMPT_TUNING",
	.size = sizeof(struct prompt_tuning),
	.check = prompt_check,
	.config_read = prompt_config_read,
	.config_write = prompt_config_write,
	.check_tensors = prompt_check_tensors,
	.matches = prompt_matches,
	.virtual_tokens = prompt_virtual_tokens,
	.inputs = prompt_inputs,
	.init = prompt_init,
	.n_tensors = prompt_n_tensors,
	.tensor = prompt_tensor,
	.unmergeable = soft_prompt_unmergeable,
	.describe = prompt_describe,
};
