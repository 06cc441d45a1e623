/* What a configuration says of rotary embeddings: kinds of scaling and their parameters, as
 * transformers' modeling_rope_utils has them. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/model/config.h"
#include "util/json.h"
#include "engine/model/model-internal.h"
#include "util/util.h"

static const struct {
	const char *name;
	enum rope_scaling kind;
} kinds[] = {
	{"default", ROPE_SCALING_NONE},
	{"linear", ROPE_SCALING_LINEAR},
	{"llama3", ROPE_SCALING_LLAMA3},
	{"dynamic", ROPE_SCALING_DYNAMIC},
	{"yarn", ROPE_SCALING_YARN},
	{"longrope", ROPE_SCALING_LONGROPE},
	{"su", ROPE_SCALING_LONGROPE},
};

struct rope_rules config_rope_rules(double theta)
{
	return (struct rope_rules){.theta = theta, .theta_key = "rope_theta",
		.scalings = 1u << ROPE_SCALING_LINEAR | 1u << ROPE_SCALING_LLAMA3 |
			1u << ROPE_SCALING_DYNAMIC | 1u << ROPE_SCALING_YARN};
}

static void fault_of_kind(struct config_reader *r, const char *type, const struct rope_rules *rules)
{
	char list[96] = "default";
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		if (kinds[i].kind != ROPE_SCALING_NONE && rules->scalings >> kinds[i].kind & 1 &&
			strcmp(kinds[i].name, "su") != 0) {
			snprintf(list + strlen(list), sizeof(list) - strlen(list), ", %s", kinds[i].name);
		}
	}
	config_fault(r, "rope type \"%.40s\" is not supported; known are: %s", type, list);
}

static void read_kind(struct config_reader *r, const struct rope_rules *rules)
{
	const char *type = NULL;
	r->r = r->r ? r->r : json_get_string(r->o, "rope_type", &type, r->what, r->err);
	if (r->r == 0 && !type) {
		r->r = json_get_string(r->o, "type", &type, r->what, r->err);
	}
	if (r->r != 0 || !type) {
		return;
	}
	if (rules->yarn_is_longrope && strcmp(type, "yarn") == 0) {
		type = "longrope";
	}
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		if (strcmp(kinds[i].name, type) == 0 && (kinds[i].kind == ROPE_SCALING_NONE ||
				rules->scalings >> kinds[i].kind & 1)) {
			r->c->rope_scaling = kinds[i].kind;
			return;
		}
	}
	fault_of_kind(r, type, rules);
}

static void read_llama3(struct config_reader *r)
{
	config_real(r, "low_freq_factor", 1e-6, 1e6, &r->c->rope.low_freq_factor);
	config_real(r, "high_freq_factor", 1e-6, 1e6, &r->c->rope.high_freq_factor);
}

static void read_yarn(struct config_reader *r)
{
	bool truncate = true;
	r->c->rope.beta_fast = 32;
	r->c->rope.beta_slow = 1;
	config_real(r, "beta_fast", 1e-6, 1e6, &r->c->rope.beta_fast);
	config_real(r, "beta_slow", 1e-6, 1e6, &r->c->rope.beta_slow);
	config_real(r, "mscale", 0, 1e6, &r->c->rope.mscale);
	config_real(r, "mscale_all_dim", 0, 1e6, &r->c->rope.mscale_all_dim);
	config_real(r, "attention_factor", 1e-6, 1e6, &r->c->rope.attention_factor);
	config_bool(r, "truncate", &truncate);
	r->c->rope.no_truncate = !truncate;
}

/* The long factors count beyond the original length alone, which is where sequences end here. */
static void read_longrope(struct config_reader *r)
{
	int64_t dim = r->c->rotary_dim ? r->c->rotary_dim : r->c->head_dim;
	const json_t *list = json_object_get(r->o, "short_factor");
	config_real(r, "attention_factor", 1e-6, 1e6, &r->c->rope.attention_factor);
	if (!json_is_array(list) || (int64_t)json_array_size(list) != dim / 2 ||
		dim / 2 > ROPE_MAX_FREQUENCIES) {
		config_fault(r, "'short_factor' must be a list of %" PRId64 " numbers, one for each pair of "
			"a head's rotating dimensions", dim / 2);
		return;
	}
	for (size_t i = 0; i < json_array_size(list); i++) {
		double v = json_number_value(json_array_get(list, i));
		if (!(v >= 1e-6 && v <= 1e6)) {
			config_fault(r, "'short_factor' holds %s; each must be a number above 0",
				json_short(json_array_get(list, i)).s);
			return;
		}
		r->c->rope.short_factor[i] = (float)v;
	}
}

static void read_scaling(struct config_reader *r, int64_t original)
{
	struct model_config *c = r->c;
	enum rope_scaling kind = c->rope_scaling;
	if (kind == ROPE_SCALING_NONE || r->r != 0) {
		return;
	}
	if (kind != ROPE_SCALING_LINEAR && kind != ROPE_SCALING_DYNAMIC) {
		c->rope.original_max_position_embeddings = c->max_position_embeddings;
		config_int(r, "original_max_position_embeddings", 2, CONFIG_MAX_POSITIONS,
			&c->rope.original_max_position_embeddings);
		if (original > 0) {
			c->rope.original_max_position_embeddings = original;
		}
	}
	config_real(r, "factor", 1e-6, 1e6, &c->rope.factor);
	if (c->rope.factor == 0 && (kind == ROPE_SCALING_YARN || kind == ROPE_SCALING_LONGROPE)) {
		c->rope.factor = (double)c->max_position_embeddings /
			(double)c->rope.original_max_position_embeddings;
	}
	if (kind == ROPE_SCALING_LLAMA3) {
		read_llama3(r);
	} else if (kind == ROPE_SCALING_YARN) {
		read_yarn(r);
	} else if (kind == ROPE_SCALING_LONGROPE) {
		read_longrope(r);
		c->max_sequence = c->rope.original_max_position_embeddings;
	} else if (kind == ROPE_SCALING_DYNAMIC) {
		c->max_sequence = c->max_position_embeddings;
	}
}

/* How much of a head rotates: int(head_dim · factor), as transformers has it. */
static void read_partial(struct config_reader *r, const char *key, const struct rope_rules *rules,
	double *partial)
{
	double got = *partial;
	config_real(r, key, 0, 1, &got);
	if (!rules->partial_key && got != 1) {
		config_fault(r, "'%s' is %g; only 1 is supported", key, got);
	}
	*partial = got;
}

void config_rope_object(struct config_reader *r, const json_t *o, const char *key,
	const struct rope_rules *rules)
{
	char what[96];
	const char *name;
	json_t *value;
	int64_t original = 0;
	double partial = rules->partial_key ? rules->partial : 1;
	if (r->r != 0) {
		return;
	}
	config_int(r, "original_max_position_embeddings", 2, CONFIG_MAX_POSITIONS, &original);
	read_partial(r, rules->partial_key ? rules->partial_key : "partial_rotary_factor", rules, &partial);
	if (o && !json_is_object(o)) {
		config_fault(r, "'%s' must be an object or null", key);
		return;
	}
	json_object_foreach((json_t *)(uintptr_t)o, name, value) {
		if (json_is_object(value)) { /* one set of parameters for each kind of layer */
			config_fault(r, "'%s' holds an object '%.40s'; only one set of parameters for all "
				"layers is supported", key, name);
		}
	}
	snprintf(what, sizeof(what), "%.64s: '%.24s'", r->what, key);
	struct config_reader inner = *r;
	inner.o = o;
	inner.what = what;
	if (o) {
		config_real(&inner, "rope_theta", 1, 1e12, &r->c->rope_theta);
		read_partial(&inner, "partial_rotary_factor", rules, &partial);
	}
	if (partial != 1) {
		r->c->rotary_dim = (int64_t)((double)r->c->head_dim * partial);
		if (r->c->rotary_dim < 2) {
			config_fault(&inner, "%g of head_dim = %" PRId64 " rotates; that is less than a pair",
				partial, r->c->head_dim);
		}
	}
	if (o) {
		read_kind(&inner, rules);
		read_scaling(&inner, original);
	}
	r->r = inner.r;
}

/* Where both are given, transformers lets the older one win. */
void config_rope(struct config_reader *r, const struct rope_rules *rules)
{
	const json_t *scaling = json_object_get(r->o, "rope_scaling");
	const json_t *parameters = json_object_get(r->o, "rope_parameters");
	const char *key = "rope_scaling";
	r->c->rope_theta = rules->theta;
	config_real(r, rules->theta_key, 1, 1e12, &r->c->rope_theta);
	if (!scaling || json_is_null(scaling) ||
		(json_is_object(scaling) && json_object_size(scaling) == 0)) {
		scaling = parameters;
		key = "rope_parameters";
	}
	config_rope_object(r, json_is_null(scaling) ? NULL : scaling, key, rules);
}

/* ---- scalings that a converter hid --------------------------------------------------------- */

/* The divisor of a rotary frequency under llama3 scaling (transformers'
 * _compute_llama3_parameters). */
static double llama3_factor(const struct model_config *c, int64_t i)
{
	double frequency = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
	double wavelength = 2 * M_PI / frequency;
	double context = (double)c->rope.original_max_position_embeddings;
	if (wavelength < context / c->rope.high_freq_factor) {
		return 1;
	}
	if (wavelength > context / c->rope.low_freq_factor) {
		return c->rope.factor;
	}
	double smooth = (context / wavelength - c->rope.low_freq_factor) /
		(c->rope.high_freq_factor - c->rope.low_freq_factor);
	return 1 / ((1 - smooth) / c->rope.factor + smooth);
}

bool model_config_llama3_from_factors(struct model_config *c, const float *factors, int64_t n)
{
	struct model_config trial = *c;
	if (n != c->head_dim / 2) {
		return false;
	}
	/* Every Llama with this scaling was made with these three; the factor (8 in 3.1, 32 in 3.2) is
	 * the divisor of the lowest frequencies. */
	trial.rope_scaling = ROPE_SCALING_LLAMA3;
	trial.rope.low_freq_factor = 1;
	trial.rope.high_freq_factor = 4;
	trial.rope.original_max_position_embeddings = 8192;
	trial.rope.factor = (double)factors[n - 1];
	if (!(trial.rope.factor > 1 && trial.rope.factor <= 1e6)) {
		return false;
	}
	for (int64_t i = 0; i < n; i++) {
		double want = llama3_factor(&trial, i);
		/* The converter worked in f32, where the smooth part loses a few digits. */
		if (!(fabs((double)factors[i] - want) <= 1e-4 * want)) {
			return false;
		}
	}
	*c = trial;
	return true;
}
