#include "engine/peft/soft-prompt.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "util/util.h"

#define KEY "prompt_embeddings"

const char *const soft_prompt_harmless[] = {"token_dim", "num_attention_heads", "num_layers",
	"prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", NULL};

const char *soft_prompt_unmergeable(const struct method_config *m, const struct model_config *c)
{
	return "virtual tokens stand before the input, and no weight of the base can hold them";
}

int soft_prompt_check(const char *section, int64_t num_virtual_tokens, struct errmsg *err)
{
	if (num_virtual_tokens < 1 || num_virtual_tokens > VIRTUAL_TOKENS_MAX) {
		return errmsg_set(err, STATUS_INVALID, "%s.num_virtual_tokens: %lld; it must be from 1 to "
			"%d", section, (long long)num_virtual_tokens, VIRTUAL_TOKENS_MAX);
	}
	return 0;
}

int soft_prompt_matches(const char *section, int64_t have, int64_t want, struct errmsg *err)
{
	return have == want ? 0 : errmsg_set(err, STATUS_INVALID, "the adapter has %lld virtual tokens, "
		"the job %lld; set %s.num_virtual_tokens: %lld", (long long)have, (long long)want, section,
		(long long)have);
}

int soft_prompt_read_int(const json_t *o, const char *key, int64_t least, int64_t otherwise,
	int64_t *ret, struct errmsg *err)
{
	const json_t *v = json_object_get(o, key);
	if (!v || json_is_null(v)) {
		*ret = otherwise;
		return 0;
	}
	if (!json_is_integer(v) || json_integer_value(v) < least || json_integer_value(v) > 1 << 24) {
		return errmsg_set(err, STATUS_INVALID, "adapter_config.json: %s must be an integer of at "
			"least %lld", key, (long long)least);
	}
	*ret = json_integer_value(v);
	return 0;
}

int soft_prompt_read(const json_t *o, int64_t *ret_num_virtual_tokens, struct errmsg *err)
{
	const char *task = json_string_value(json_object_get(o, "task_type"));
	int64_t want = task && strcmp(task, "SEQ_2_SEQ_LM") == 0 ? 2 : 1, submodules;
	int r = soft_prompt_read_int(o, "num_transformer_submodules", 1, want, &submodules, err);
	if (r == 0 && submodules != want) {
		return errmsg_set(err, STATUS_INVALID, "adapter_config.json: num_transformer_submodules is "
			"%lld; %s", (long long)submodules, want == 1 ? "a decoder has 1" :
			"an encoder-decoder has 2");
	}
	r = r ? r : soft_prompt_read_int(o, "num_virtual_tokens", 1, 0, ret_num_virtual_tokens, err);
	if (r == 0 && *ret_num_virtual_tokens == 0) {
		return errmsg_set(err, STATUS_INVALID, "adapter_config.json: num_virtual_tokens is missing");
	}
	return r;
}

int soft_prompt_write(json_t *o, int64_t num_virtual_tokens, int64_t token_dim,
	int64_t num_attention_heads, const struct model_config *c)
{
	int64_t num_layers = c->num_hidden_layers, submodules = c->is_encoder_decoder ? 2 : 1;
	bool failed = json_object_set_new(o, "num_virtual_tokens", json_integer(num_virtual_tokens)) ||
		json_object_set_new(o, "token_dim", json_integer(token_dim)) ||
		json_object_set_new(o, "num_attention_heads", json_integer(num_attention_heads)) ||
		json_object_set_new(o, "num_layers", json_integer(num_layers)) ||
		json_object_set_new(o, "num_transformer_submodules", json_integer(submodules)) ||
		json_object_set_new(o, "modules_to_save", json_null());
	return failed ? -ENOMEM : 0;
}

int64_t soft_prompt_rows(const struct graph *g, int64_t num_virtual_tokens)
{
	return g->source ? 2 * num_virtual_tokens : num_virtual_tokens;
}

bool soft_prompt_belongs(const struct graph *g, int x)
{
	return !g->source || g->tensors[x].rows == ROWS_SOURCE;
}

int soft_prompt_check_tensors(const struct adapter *a, int64_t num_virtual_tokens, bool may_double,
	struct errmsg *err)
{
	for (size_t i = 0; i < a->tensors.n_tensors; i++) {
		const struct st_tensor *t = &a->tensors.tensors[i];
		if (strcmp(t->name, KEY) != 0) {
			return errmsg_set(err, STATUS_INVALID, "adapter_model.safetensors: tensor '%.200s' is "
				"left over; there is only " KEY, t->name);
		}
		bool rows = t->dims[0] == num_virtual_tokens ||
			(may_double && t->dims[0] == 2 * num_virtual_tokens);
		if (t->n_dims != 2 || !rows) {
			return errmsg_set(err, STATUS_INVALID, "adapter_model.safetensors: " KEY " must be a "
				"matrix of num_virtual_tokens = %lld rows; its dimensions are %d: [%lld, …]",
				(long long)num_virtual_tokens, t->n_dims, (long long)t->dims[0]);
		}
	}
	return a->tensors.n_tensors == 1 ? 0 :
		errmsg_set(err, STATUS_INVALID, "adapter_model.safetensors: tensor '" KEY "' is missing");
}

void soft_prompt_tensor(const struct graph *g, int param, struct peft_tensor *ret)
{
	const struct param *p = &g->params[param];
	*ret = (struct peft_tensor){.n_dims = 2, .dims = {p->rows, p->cols}, .offset = p->offset};
	snprintf(ret->name, sizeof(ret->name), KEY);
}

void soft_prompt_init_linear(const struct graph *g, int weight, int bias, uint64_t seed,
	uint64_t index, float *flat)
{
	const struct param *w = &g->params[weight], *b = &g->params[bias];
	double bound = 1 / sqrt((double)w->cols);
	peft_fill_uniform(flat + w->offset, (size_t)(w->rows * w->cols), bound, seed, index);
	peft_fill_uniform(flat + b->offset, (size_t)b->cols, bound, seed, index + 1);
}

void soft_prompt_linear(float *y, const float *x, int64_t n, const struct graph *g, int weight,
	int bias, const float *flat)
{
	int64_t out = g->params[weight].rows, in = g->params[weight].cols;
	const float *w = flat + g->params[weight].offset, *b = flat + g->params[bias].offset;
	for (int64_t i = 0; i < n; i++) {
		for (int64_t j = 0; j < out; j++) {
			double sum = b[j];
			for (int64_t k = 0; k < in; k++) {
				sum += (double)x[i * in + k] * w[j * in + k];
			}
			y[i * out + j] = (float)sum;
		}
	}
}
