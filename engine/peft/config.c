/* Lists of modules, values by module, and struct method_config as a whole. */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "engine/peft/config.h"

#include <errno.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "engine/peft/peft.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { MAX_REGEX = 4096 };

/* ---- regular expressions ------------------------------------------------------------------- */

/* PEFT matches by Python's re.fullmatch. PCRE2 knows nearly the same language; limits bound the
 * time that a pattern from outside may take. */
static pcre2_code *compile_regex(const char *pattern, int *ret_error, size_t *ret_at)
{
	return pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
		PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_DOLLAR_ENDONLY |
			PCRE2_NEVER_BACKSLASH_C,
		ret_error, ret_at, NULL);
}

bool regex_fullmatch(const char *pattern, const char *s)
{
	int error;
	size_t at;
	bool found = false;
	pcre2_code *code = compile_regex(pattern, &error, &at);
	pcre2_match_data *match = code ? pcre2_match_data_create(1, NULL) : NULL;
	pcre2_match_context *limits = match ? pcre2_match_context_create(NULL) : NULL;
	if (limits) {
		pcre2_set_match_limit(limits, 10000);
		pcre2_set_depth_limit(limits, 1000);
		found = pcre2_match(code, (PCRE2_SPTR)s, strlen(s), 0, 0, match, limits) >= 0;
	}
	pcre2_match_context_free(limits);
	pcre2_match_data_free(match);
	pcre2_code_free(code);
	return found;
}

int regex_check(const char *pattern, const char *what, struct errmsg *err)
{
	int error;
	size_t at;
	if (strlen(pattern) > MAX_REGEX) {
		return errmsg_set(err, STATUS_INVALID, "%s is a regular expression of %zu bytes; at most "
			"%d are read", what, strlen(pattern), MAX_REGEX);
	}
	pcre2_code *code = compile_regex(pattern, &error, &at);
	if (!code) {
		char reason[128];
		pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof(reason));
		return errmsg_set(err, STATUS_INVALID, "%s is no regular expression: %s (at character %zu)",
			what, reason, at);
	}
	pcre2_code_free(code);
	return 0;
}

/* ---- modules ------------------------------------------------------------------------------- */

static bool name_matches(const char *name, const char *module)
{
	size_t n = strlen(module), k = strlen(name);
	if (strcmp(name, module) == 0) {
		return true;
	}
	return n > k && module[n - k - 1] == '.' && strcmp(module + n - k, name) == 0;
}

bool modules_match(const struct modules *m, const char *module)
{
	if (m->is_regex) {
		return m->n == 1 && regex_fullmatch(m->names[0], module);
	}
	for (size_t i = 0; i < m->n; i++) {
		if (name_matches(m->names[i], module)) {
			return true;
		}
	}
	return false;
}

int modules_add(struct modules *m, const char *name)
{
	char **p = realloc_array(m->names, m->n + 1, sizeof(*p));
	if (!p) {
		return -ENOMEM;
	}
	m->names = p;
	p[m->n] = strdup(name);
	if (!p[m->n]) {
		return -ENOMEM;
	}
	m->n++;
	return 0;
}

int modules_copy(struct modules *ret, const struct modules *m)
{
	*ret = (struct modules){.is_regex = m->is_regex};
	int r = 0;
	for (size_t i = 0; i < m->n && r == 0; i++) {
		r = modules_add(ret, m->names[i]);
	}
	return r;
}

void modules_deinit(struct modules *m)
{
	for (size_t i = 0; i < m->n; i++) {
		free(m->names[i]);
	}
	free(m->names);
	*m = (struct modules){0};
}

/* ---- values by module ---------------------------------------------------------------------- */

bool pattern_matches(const char *key, const char *module)
{
	char pattern[MAX_REGEX + 32];
	int n = snprintf(pattern, sizeof(pattern), "(.*\\.)?(%s)", key);
	return n > 0 && (size_t)n < sizeof(pattern) && regex_fullmatch(pattern, module);
}

double patterns_value(const struct patterns *p, const char *module, double otherwise)
{
	for (size_t i = 0; i < p->n; i++) {
		if (pattern_matches(p->items[i].key, module)) {
			return p->items[i].value;
		}
	}
	return otherwise;
}

int patterns_add(struct patterns *p, const char *key, double value)
{
	struct pattern *items = realloc_array(p->items, p->n + 1, sizeof(*items));
	if (!items) {
		return -ENOMEM;
	}
	p->items = items;
	items[p->n] = (struct pattern){strdup(key), value};
	if (!items[p->n].key) {
		return -ENOMEM;
	}
	p->n++;
	return 0;
}

void patterns_deinit(struct patterns *p)
{
	for (size_t i = 0; i < p->n; i++) {
		free(p->items[i].key);
	}
	free(p->items);
	*p = (struct patterns){0};
}

static int patterns_copy(struct patterns *ret, const struct patterns *p)
{
	*ret = (struct patterns){0};
	int r = 0;
	for (size_t i = 0; i < p->n && r == 0; i++) {
		r = patterns_add(ret, p->items[i].key, p->items[i].value);
	}
	return r;
}

/* ---- the whole ----------------------------------------------------------------------------- */

/* Replaces a borrowed string or array in a copy by one of its own. */
static int own_string(char **s)
{
	if (*s && !(*s = strdup(*s))) {
		return -ENOMEM;
	}
	return 0;
}

static int own_array(void **data, size_t n, size_t size)
{
	if (!*data || n == 0) {
		*data = NULL;
		return 0;
	}
	void *p = alloc_array(n, size);
	if (p) {
		memcpy(p, *data, n * size);
	}
	*data = p;
	return p ? 0 : -ENOMEM;
}

int method_config_copy(struct method_config *ret, const struct method_config *m)
{
	struct method_config c = *m;
	/* What is to be owned is taken out first, so that a failure leaves nothing borrowed. */
	struct {
		struct modules *to;
		const struct modules *from;
	} lists[] = {
		{&c.lora.target_modules, &m->lora.target_modules},
		{&c.lora.modules_to_save, &m->lora.modules_to_save},
		{&c.bitfit.target_modules, &m->bitfit.target_modules},
		{&c.ln_tuning.target_modules, &m->ln_tuning.target_modules},
		{&c.select.parameters, &m->select.parameters},
		{&c.ia3.target_modules, &m->ia3.target_modules},
		{&c.ia3.feedforward_modules, &m->ia3.feedforward_modules},
	};
	for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
		*lists[i].to = (struct modules){0};
	}
	c.lora.rank_pattern = c.lora.alpha_pattern = (struct patterns){0};
	c.base_model_name_or_path = c.prompt_tuning.prompt_tuning_init_text = NULL;
	c.lora.layers_to_transform = NULL;
	c.prompt_tuning.init_ids = NULL;

	int r = 0;
	for (size_t i = 0; i < ARRAY_LEN(lists) && r == 0; i++) {
		r = modules_copy(lists[i].to, lists[i].from);
	}
	r = r ? r : patterns_copy(&c.lora.rank_pattern, &m->lora.rank_pattern);
	r = r ? r : patterns_copy(&c.lora.alpha_pattern, &m->lora.alpha_pattern);
	if (r == 0) {
		c.base_model_name_or_path = m->base_model_name_or_path;
		r = own_string(&c.base_model_name_or_path);
	}
	if (r == 0) {
		c.prompt_tuning.prompt_tuning_init_text = m->prompt_tuning.prompt_tuning_init_text;
		r = own_string(&c.prompt_tuning.prompt_tuning_init_text);
	}
	if (r == 0) {
		c.lora.layers_to_transform = m->lora.layers_to_transform;
		r = own_array((void **)&c.lora.layers_to_transform, c.lora.n_layers_to_transform,
			sizeof(*c.lora.layers_to_transform));
	}
	if (r == 0) {
		c.prompt_tuning.init_ids = m->prompt_tuning.init_ids;
		r = own_array((void **)&c.prompt_tuning.init_ids, c.prompt_tuning.n_init_ids,
			sizeof(*c.prompt_tuning.init_ids));
	}
	if (r != 0) {
		method_config_deinit(&c);
		return r;
	}
	*ret = c;
	return 0;
}

void method_config_deinit(struct method_config *m)
{
	modules_deinit(&m->lora.target_modules);
	modules_deinit(&m->lora.modules_to_save);
	patterns_deinit(&m->lora.rank_pattern);
	patterns_deinit(&m->lora.alpha_pattern);
	free(m->lora.layers_to_transform);
	modules_deinit(&m->bitfit.target_modules);
	modules_deinit(&m->ln_tuning.target_modules);
	modules_deinit(&m->select.parameters);
	modules_deinit(&m->ia3.target_modules);
	modules_deinit(&m->ia3.feedforward_modules);
	free(m->prompt_tuning.prompt_tuning_init_text);
	free(m->prompt_tuning.init_ids);
	free(m->base_model_name_or_path);
	*m = (struct method_config){0};
}

int method_config_check(const struct method_config *m, struct errmsg *err)
{
	const struct peft_method *method = m->method ? peft_method_find(m->method) : NULL;
	if (method) {
		return method->check ? method->check(m, err) : 0;
	}
	char names[256];
	size_t len = 0;
	names[0] = '\0';
	for (size_t i = 0; peft_methods[i] && len < sizeof(names); i++) {
		int n = snprintf(names + len, sizeof(names) - len, "%s%s", len ? ", " : "",
			peft_methods[i]->name);
		len += n > 0 ? (size_t)n : 0;
	}
	return errmsg_set(err, STATUS_INVALID, "method: \"%s\" is not there; there are: %s",
		m->method ? m->method : "", names);
}
