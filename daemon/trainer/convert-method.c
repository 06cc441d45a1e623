/*
 * The settings of a job's method as the engine has them. The specification comes completed
 * (proto/jobspec.c); what its values mean is checked by the engine.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/trainer/convert-internal.h"
#include "util/util.h"

/* PEFT takes a list of names or one text that is a regular expression. In a job file both are
 * lists; what no module's name can hold tells them apart. */
static bool is_regex(const char *s)
{
	return strpbrk(s, "*+?()[]{}|^$\\") != NULL;
}

static int modules(const ProtobufCBinaryData *list, size_t n, const char *what,
	struct modules *ret, struct errmsg *err)
{
	for (size_t i = 0; i < n; i++) {
		_cleanup_(freep) char *name = NULL;
		int r = proto_str(&list[i], what, &name, err);
		if (r == 0 && name[0] == '\0') {
			r = errmsg_set(err, STATUS_INVALID, "%s: an empty name", what);
		}
		if (r == 0 && is_regex(name) && n > 1) {
			r = errmsg_set(err, STATUS_INVALID, "%s: '%s' is no module's name; a regular expression "
				"stands alone, and matches whole names", what, name);
		}
		r = r ? r : modules_add(ret, name);
		if (r != 0) {
			return r;
		}
		ret->is_regex = is_regex(name);
	}
	return 0;
}

static int rank_patterns(Peftd__V1__RankPattern *const *list, size_t n, struct patterns *ret,
	struct errmsg *err)
{
	for (size_t i = 0; i < n; i++) {
		_cleanup_(freep) char *key = NULL;
		int r = proto_str(&list[i]->key, "lora.rank_pattern", &key, err);
		r = r ? r : patterns_add(ret, key, list[i]->value);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int alpha_patterns(Peftd__V1__AlphaPattern *const *list, size_t n, struct patterns *ret,
	struct errmsg *err)
{
	for (size_t i = 0; i < n; i++) {
		_cleanup_(freep) char *key = NULL;
		int r = proto_str(&list[i]->key, "lora.alpha_pattern", &key, err);
		r = r ? r : patterns_add(ret, key, list[i]->value);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int lora_init(const ProtobufCBinaryData *b, struct lora_config *c, struct errmsg *err)
{
	static const char *const words[] = {"true", "false", "gaussian", "pissa", "olora", NULL};
	static const enum lora_init inits[] = {LORA_INIT_DEFAULT, LORA_INIT_RANDOM, LORA_INIT_GAUSSIAN,
		LORA_INIT_PISSA, LORA_INIT_OLORA};
	static const char prefix[] = "pissa_niter_";
	_cleanup_(freep) char *text = NULL;
	int i = 0, r = proto_str(b, "lora.init_lora_weights", &text, err);
	if (r == 0 && strncmp(text, prefix, strlen(prefix)) == 0) {
		char *end;
		errno = 0;
		long n = strtol(text + strlen(prefix), &end, 10);
		if (errno != 0 || *end != '\0' || n < 1 || n > 1000) {
			return errmsg_set(err, STATUS_INVALID, "lora.init_lora_weights: '%s'; the number of "
				"iterations is from 1 to 1000, as in pissa_niter_16", text);
		}
		c->init_lora_weights = LORA_INIT_PISSA;
		c->pissa_niter = n;
		return 0;
	}
	r = r ? r : convert_word(b, "lora.init_lora_weights", words, &i, err);
	c->init_lora_weights = inits[i];
	return r;
}

static int lora(const Peftd__V1__LoraSpec *pb, struct lora_config *c, struct errmsg *err)
{
	static const char *const biases[] = {"none", "all", "lora_only", NULL};
	static const enum lora_bias values[] = {LORA_BIAS_NONE, LORA_BIAS_ALL, LORA_BIAS_LORA_ONLY};
	int bias = 0;
	c->r = pb->r;
	c->lora_alpha = pb->lora_alpha;
	c->lora_dropout = pb->lora_dropout;
	c->use_rslora = pb->use_rslora;
	c->use_dora = pb->use_dora;
	c->loraplus_lr_ratio = pb->loraplus_lr_ratio;
	int r = modules(pb->target_modules, pb->n_target_modules, "lora.target_modules",
		&c->target_modules, err);
	if (r == 0 && pb->n_target_modules == 0) {
		r = modules_add(&c->target_modules, "all-linear");
	}
	r = r ? r : modules(pb->modules_to_save, pb->n_modules_to_save, "lora.modules_to_save",
		&c->modules_to_save, err);
	r = r ? r : convert_word(&pb->bias, "lora.bias", biases, &bias, err);
	r = r ? r : lora_init(&pb->init_lora_weights, c, err);
	r = r ? r : rank_patterns(pb->rank_pattern, pb->n_rank_pattern, &c->rank_pattern, err);
	r = r ? r : alpha_patterns(pb->alpha_pattern, pb->n_alpha_pattern, &c->alpha_pattern, err);
	c->bias = values[bias];
	size_t n = pb->n_layers_to_transform;
	if (r != 0 || n == 0) {
		return r;
	}
	c->layers_to_transform = calloc_array(n, sizeof(*c->layers_to_transform));
	if (!c->layers_to_transform) {
		return -ENOMEM;
	}
	c->n_layers_to_transform = n;
	for (size_t i = 0; i < n; i++) {
		c->layers_to_transform[i] = pb->layers_to_transform[i];
	}
	return 0;
}

static int bottleneck(const Peftd__V1__BottleneckSpec *pb, struct bottleneck_config *c,
	struct errmsg *err)
{
	static const char *const inits[] = {"bert", "mam_adapter", NULL};
	_cleanup_(freep) char *name = NULL;
	int init = 0;
	c->mh_adapter = pb->mh_adapter;
	c->output_adapter = pb->output_adapter;
	c->reduction_factor = pb->reduction_factor;
	c->scaling = pb->scaling;
	c->is_parallel = pb->is_parallel;
	c->original_ln_before = pb->original_ln_before;
	int r = proto_str(&pb->non_linearity, "bottleneck.non_linearity", &name, err);
	if (r == 0 && !activation_from_name(name, &c->non_linearity)) {
		r = errmsg_set(err, STATUS_INVALID, "bottleneck.non_linearity: '%s' is unknown; there are, "
			"for example, relu, gelu, gelu_new, swish, tanh", name);
	}
	r = r ? r : convert_word(&pb->init_weights, "bottleneck.init_weights", inits, &init, err);
	c->mam_adapter_init = init == 1;
	return r;
}

static int prompt_tuning(const Peftd__V1__PromptTuningSpec *pb, struct prompt_tuning_config *c,
	struct errmsg *err)
{
	static const char *const inits[] = {"RANDOM", "TEXT", "SAMPLE_VOCAB", NULL};
	static const enum prompt_init values[] = {PROMPT_INIT_RANDOM, PROMPT_INIT_TEXT,
		PROMPT_INIT_SAMPLE_VOCAB};
	int init = 0;
	c->num_virtual_tokens = pb->num_virtual_tokens;
	int r = convert_word(&pb->prompt_tuning_init, "prompt_tuning.prompt_tuning_init", inits, &init,
		err);
	c->prompt_tuning_init = values[init];
	bool text = r == 0 && values[init] == PROMPT_INIT_TEXT;
	if (r == 0 && text != (pb->prompt_tuning_init_text.len > 0)) {
		return errmsg_set(err, STATUS_INVALID, text
			? "prompt_tuning.prompt_tuning_init_text: missing; prompt_tuning_init TEXT starts from it"
			: "prompt_tuning.prompt_tuning_init_text: only prompt_tuning_init TEXT starts from it");
	}
	return text ? proto_str(&pb->prompt_tuning_init_text, "prompt_tuning.prompt_tuning_init_text",
		&c->prompt_tuning_init_text, err) : r;
}

static int p_tuning(const Peftd__V1__PTuningSpec *pb, struct p_tuning_config *c,
	struct errmsg *err)
{
	static const char *const types[] = {"MLP", "LSTM", NULL};
	int type = 0;
	c->num_virtual_tokens = pb->num_virtual_tokens;
	c->encoder_hidden_size = pb->encoder_hidden_size;
	c->encoder_num_layers = pb->encoder_num_layers;
	c->encoder_dropout = pb->encoder_dropout;
	int r = convert_word(&pb->encoder_reparameterization_type,
		"p_tuning.encoder_reparameterization_type", types, &type, err);
	c->encoder_reparameterization_type = type == 0 ? P_TUNING_MLP : P_TUNING_LSTM;
	return r;
}

static int ia3(const Peftd__V1__Ia3Spec *pb, struct ia3_config *c, struct errmsg *err)
{
	c->random_init = !pb->init_ia3_weights;
	int r = modules(pb->target_modules, pb->n_target_modules, "ia3.target_modules",
		&c->target_modules, err);
	return r ? r : modules(pb->feedforward_modules, pb->n_feedforward_modules,
		"ia3.feedforward_modules", &c->feedforward_modules, err);
}

static int select_parameters(const Peftd__V1__SelectSpec *pb, struct select_config *c,
	struct errmsg *err)
{
	for (size_t i = 0; i < pb->n_parameters; i++) {
		_cleanup_(freep) char *pattern = NULL;
		int r = proto_str(&pb->parameters[i], "select.parameters", &pattern, err);
		r = r ? r : modules_add(&c->parameters, pattern);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

int convert_method(const Peftd__V1__JobSpec *pb, struct method_config *ret, struct errmsg *err)
{
	if (pb->last_k) {
		ret->last_k = (struct last_k_config){pb->last_k->k, pb->last_k->head,
			pb->last_k->final_norm};
	}
	if (pb->prefix_tuning) {
		ret->prefix_tuning = (struct prefix_tuning_config){pb->prefix_tuning->num_virtual_tokens,
			pb->prefix_tuning->prefix_projection, pb->prefix_tuning->encoder_hidden_size};
	}
	int r = pb->lora ? lora(pb->lora, &ret->lora, err) : 0;
	if (r == 0 && pb->bitfit) {
		r = modules(pb->bitfit->target_modules, pb->bitfit->n_target_modules,
			"bitfit.target_modules", &ret->bitfit.target_modules, err);
	}
	if (r == 0 && pb->ln_tuning) {
		r = modules(pb->ln_tuning->target_modules, pb->ln_tuning->n_target_modules,
			"ln_tuning.target_modules", &ret->ln_tuning.target_modules, err);
	}
	r = r || !pb->select ? r : select_parameters(pb->select, &ret->select, err);
	r = r || !pb->bottleneck ? r : bottleneck(pb->bottleneck, &ret->bottleneck, err);
	r = r || !pb->prompt_tuning ? r : prompt_tuning(pb->prompt_tuning, &ret->prompt_tuning, err);
	r = r || !pb->p_tuning ? r : p_tuning(pb->p_tuning, &ret->p_tuning, err);
	return r || !pb->ia3 ? r : ia3(pb->ia3, &ret->ia3, err);
}
