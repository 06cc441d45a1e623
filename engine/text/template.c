/*
 * Chat templates: their making, and conversations through them as transformers' apply_chat_template
 * hands them over (tokenization_utils_base.py, utils/chat_template_utils.py).
 */

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>

#include "engine/model/model.h"
#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

/* ---- making ------------------------------------------------------------------------------ */

static int unknown(struct errmsg *err, const char *name)
{
	char names[256] = "";
	for (size_t i = 0, at = 0; builtin_template(i) && at < sizeof(names); i++) {
		at += (size_t)snprintf(names + at, sizeof(names) - at, "%s%s", i ? ", " : "",
			builtin_template(i)->name);
	}
	return name ? errmsg_set(err, STATUS_INVALID,
		"there is no chat template %.64s; choose one with chat_template: %s", name, names) :
		errmsg_set(err, STATUS_INVALID,
			"the model has no chat template; choose one with chat_template: %s", names);
}

static int render_json(const struct chat_template *t, json_t *messages, bool prompt,
	struct buf *out, struct jinja_marks *marks, struct errmsg *err);

/* Whether add_generation_prompt makes a difference: some templates do not heed it. */
static bool writes_prompt(const struct chat_template *t)
{
	_cleanup_(buf_deinit) struct buf with = {0}, without = {0};
	struct errmsg ignored;
	json_t *messages = json_pack("[{ssss}]", "role", "user", "content", "x");
	bool writes = messages && render_json(t, messages, true, &with, NULL, &ignored) == 0 &&
		render_json(t, messages, false, &without, NULL, &ignored) == 0 && with.len > without.len &&
		memcmp(with.data, without.data, without.len) == 0;
	json_decref(messages);
	return writes;
}

static int finish(struct chat_template *t, const char *source, json_t *vars, struct errmsg *err)
{
	int r = jinja_new(&t->jinja, source, strlen(source), err);
	if (r != 0) {
		return r;
	}
	/* transformers names these even where there are none */
	t->vars = vars ? json_copy(vars) : json_object();
	char *text = t->vars ? json_dumps(t->vars, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
	if (!text || json_object_set_new(t->vars, "tools", json_null()) != 0 ||
		json_object_set_new(t->vars, "documents", json_null()) != 0) {
		free(text);
		return -ENOMEM;
	}
	crypto_generichash_state state;
	crypto_generichash_init(&state, NULL, 0, 32);
	crypto_generichash_update(&state, (const uint8_t *)source, strlen(source) + 1);
	crypto_generichash_update(&state, (const uint8_t *)text, strlen(text));
	crypto_generichash_final(&state, t->digest, 32);
	free(text);
	t->has_tool_calls = strstr(source, "tool_calls") != NULL;
	t->writes_prompt = writes_prompt(t);
	t->closes_alike = chat_closes_alike(t);
	return 0;
}

static int make(struct chat_template **ret, const char *name, const char *source, json_t *vars,
	struct errmsg *err)
{
	struct chat_template *t = calloc_array(1, sizeof(*t));
	if (!t) {
		return -ENOMEM;
	}
	t->name = name;
	int r = finish(t, source, vars, err);
	if (r != 0) {
		chat_template_free(t);
		return r > 0 ? errmsg_prefix(err, r, "the chat template") : r;
	}
	*ret = t;
	return 0;
}

int chat_template_new_source(struct chat_template **ret, const char *jinja, const char *tokens,
	struct errmsg *err)
{
	json_error_t e;
	json_t *vars = tokens ? json_loads(tokens, 0, &e) : NULL;
	int r = tokens && !json_is_object(vars) ? -EINVAL : make(ret, "own", jinja, vars, err);
	json_decref(vars);
	return r;
}

void chat_template_free(struct chat_template *t)
{
	if (t) {
		jinja_free(t->jinja);
		json_decref(t->vars);
		free(t);
	}
}

const char *chat_template_name(const struct chat_template *t)
{
	return t->name;
}

void chat_template_digest(const struct chat_template *t, uint8_t ret[32])
{
	memcpy(ret, t->digest, 32);
}

/* ---- a model's special tokens ------------------------------------------------------------ */

static const char *const token_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
	"pad_token", "cls_token", "mask_token"};

/* From one of a folder's files: a name has a string, or an object with its `content`. */
static int tokens_of_file(const struct model_files *files, const char *file, json_t *vars)
{
	size_t len = 0;
	const char *text = model_files_text(files, file, &len);
	json_error_t e;
	json_t *root = text ? json_loadb(text, len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &e) : NULL;
	int r = 0;
	/* What is no JSON is refused where the tokenizer is read. */
	for (size_t i = 0; i < ARRAY_LEN(token_names) && r == 0; i++) {
		json_t *v = json_object_get(root, token_names[i]);
		v = json_is_object(v) ? json_object_get(v, "content") : v;
		if (json_is_string(v) && !json_object_get(vars, token_names[i])) {
			r = json_object_set(vars, token_names[i], v) == 0 ? 0 : -ENOMEM;
		}
	}
	json_decref(root);
	return r;
}

static int tokens_of_gguf(const struct gguf_tokenizer *g, json_t *vars)
{
	const struct {
		const char *name;
		int32_t id;
	} ids[] = {{"bos_token", g->bos_token_id}, {"eos_token", g->eos_token_id},
		{"unk_token", g->unk_token_id}, {"pad_token", g->pad_token_id}};
	for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
		if (ids[i].id < 0 || ids[i].id >= g->n_tokens) {
			continue;
		}
		/* NULL for bytes that are no UTF-8, which no template can write either */
		json_t *v = json_stringn(g->tokens[ids[i].id], g->token_lens[ids[i].id]);
		if (v && json_object_set_new(vars, ids[i].name, v) != 0) {
			return -ENOMEM;
		}
	}
	return 0;
}

int chat_template_new(struct chat_template **ret, const struct model_files *files, const char *name,
	struct errmsg *err)
{
	for (size_t i = 0; name && builtin_template(i); i++) {
		if (strcmp(builtin_template(i)->name, name) == 0) {
			return make(ret, builtin_template(i)->name, builtin_template(i)->source, NULL, err);
		}
	}
	const char *source = files && !name ? model_files_chat_template(files) : NULL;
	if (!source) {
		return unknown(err, name);
	}
	json_t *vars = json_object();
	const struct gguf_tokenizer *g = model_files_gguf_tokenizer(files);
	int r = !vars ? -ENOMEM : g ? tokens_of_gguf(g, vars) : 0;
	r = r || g ? r : tokens_of_file(files, "tokenizer_config.json", vars);
	r = r || g ? r : tokens_of_file(files, "special_tokens_map.json", vars);
	r = r ? r : make(ret, "own", source, vars, err);
	json_decref(vars);
	return r;
}

/* ---- conversations ----------------------------------------------------------------------- */

/* Keys without a value go, and what a model thought has all the names that templates know it by. */
static json_t *normalized(const json_t *fields)
{
	static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
	json_t *m = json_object(), *reasoning = NULL, *value;
	const char *key;
	bool ok = m;
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		json_t *v = json_object_get(fields, names[i]);
		reasoning = !reasoning && v && !json_is_null(v) ? v : reasoning;
	}
	ok = ok && (!reasoning || json_object_set(m, "thinking", reasoning) == 0);
	json_object_foreach((json_t *)(uintptr_t)fields, key, value) {
		ok = ok && (json_is_null(value) || json_object_set(m, key, value) == 0);
	}
	ok = ok && (!reasoning || json_object_set(m, "reasoning_content", reasoning) == 0);
	if (!ok) {
		json_decref(m);
		return NULL;
	}
	return m;
}

static int message_json(const struct chat_template *t, const struct message *m, size_t i,
	json_t **ret, struct errmsg *err)
{
	size_t bad;
	if (m->fields) {
		const json_t *calls = json_object_get(m->fields, "tool_calls");
		if (calls && !json_is_null(calls) && !t->has_tool_calls) {
			return errmsg_set(err, STATUS_INVALID, "message %zu has `tool_calls`, which the chat "
				"template does not write; put them into `content` as the model is to write them",
				i + 1);
		}
		*ret = normalized(m->fields);
		return *ret ? 0 : -ENOMEM;
	}
	if (!utf8_valid(m->content, m->content_len, &bad)) {
		return errmsg_set(err, STATUS_INVALID, "message %zu: byte %zu is not UTF-8", i + 1, bad);
	}
	if (!utf8_valid(m->role, m->role_len, &bad)) {
		return errmsg_set(err, STATUS_INVALID, "message %zu: its role is not UTF-8", i + 1);
	}
	*ret = json_pack("{ss%ss%}", "role", m->role, m->role_len, "content", m->content,
		m->content_len);
	return *ret ? 0 : -ENOMEM;
}

static int render_json(const struct chat_template *t, json_t *messages, bool prompt,
	struct buf *out, struct jinja_marks *marks, struct errmsg *err)
{
	json_t *call = json_object();
	int r = call && json_object_set(call, "messages", messages) == 0 &&
		json_object_set_new(call, "add_generation_prompt", json_boolean(prompt)) == 0 ? 0 : -ENOMEM;
	if (r == 0) {
		const json_t *vars[] = {t->vars, call};
		r = jinja_render(t->jinja, vars, ARRAY_LEN(vars), CHAT_TEMPLATE_NOW, out, marks, err);
	}
	json_decref(call);
	return r;
}

int chat_render(const struct chat_template *t, json_t *messages, bool prompt, struct buf *out,
	struct errmsg *err)
{
	return render_json(t, messages, prompt, out, NULL, err);
}

/* What the template marks by itself. */
static int render_marked(const struct chat_template *t, json_t *messages, bool prompt,
	struct buf *out, struct span *spans, size_t max_spans, size_t *ret_n, struct errmsg *err)
{
	struct jinja_marks marks = {.cap = max_spans};
	size_t before = out->len;
	if (max_spans > 0 && !(marks.data = alloc_array(max_spans, sizeof(*marks.data)))) {
		return -ENOMEM;
	}
	int r = render_json(t, messages, prompt, out, &marks, err);
	for (size_t i = 0; r == 0 && i < marks.n && i < max_spans; i++) {
		spans[i] = (struct span){before + marks.data[i].start, before + marks.data[i].end};
	}
	*ret_n = r == 0 ? marks.n : 0;
	free(marks.data);
	return r;
}

int chat_template_render(const struct chat_template *t, const struct message *messages, size_t n,
	bool add_generation_prompt, struct buf *out, struct span *spans, size_t max_spans,
	size_t *ret_n_spans, struct errmsg *err)
{
	size_t n_spans = 0, before = out->len;
	if (n == 0) {
		return errmsg_set(err, STATUS_INVALID, "there are no messages; there must be at least one");
	}
	json_t *list = json_array();
	int r = list ? 0 : -ENOMEM;
	for (size_t i = 0; i < n && r == 0; i++) {
		json_t *m = NULL;
		r = message_json(t, &messages[i], i, &m, err);
		r = r ? r : json_array_append_new(list, m) == 0 ? 0 : -ENOMEM;
	}
	if (r == 0 && spans && jinja_has_generation(t->jinja)) {
		r = render_marked(t, list, add_generation_prompt, out, spans, max_spans, &n_spans, err);
	} else {
		r = r ? r : render_json(t, list, add_generation_prompt, out, NULL, err);
		r = r || !spans ? r : chat_spans(t, list, out, before, spans, max_spans, &n_spans, err);
	}
	json_decref(list);
	if (r != 0) {
		out->len = before;
		return r;
	}
	if (ret_n_spans) {
		*ret_n_spans = n_spans;
	}
	return 0;
}
