/*
 * Chat templates.
 *
 * A template is a Jinja program; running those means an interpreter for what is, in nearly all
 * models, one of a few formats. So the formats are here and a program is recognised by its exact
 * text: by the digest of its source without one newline at its end (which Jinja drops too). Of
 * programs that are all tags, where a line can only break inside a string, a newline written as
 * `\n` counts as a newline. Any other difference, however small, makes it an unknown template.
 *
 * What counts as the assistant's words follows TRL's training templates, which wrap them in
 * {% generation %}: for ChatML the content, <|im_end|> and the newline behind it (qwen2_5_vl, qwen3
 * and lfm2 there; qwen2_5 starts at the newline before the content); for Llama 3 the content and
 * <|eot_id|>.
 */

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

enum {
	MAX_SOURCES = 3,
};

struct chat_template {
	const char *name;
	const char *start;          /* once, before the first message */
	const char *default_system; /* its content, where the first message is not the system's */
	const char *open, *opened;  /* around the role */
	const char *close;          /* after the content */
	bool trim;                  /* the content loses white space at both ends */
	size_t lead;                /* bytes of `opened` that belong to the assistant's span */
	const char *roles[5];
	struct {
		bool all_tags;
		const char *digest; /* BLAKE2b-256 of the source */
	} sources[MAX_SOURCES];
};

#define CHATML .start = "", .open = "<|im_start|>", .opened = "\n", .close = "<|im_end|>\n"

static const struct chat_template templates[] = {
	{
		.name = "chatml",
		CHATML,
		.roles = {"system", "user", "assistant", "tool"},
		.sources = {
			{true, "827b1b44d7e035c3f79e595cfd2472e7f08a2764ccbb98d1d4e95d96f882ae0b"},
			/* with a first line that sets add_generation_prompt where it is not defined */
			{true, "f684f8fbcf83f20019a7d2348fbb779bb15b98c521a57c3024b9cb4458e43f32"},
		},
	},
	{
		.name = "smollm2",
		CHATML,
		.default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
		.roles = {"system", "user", "assistant", "tool"},
		.sources = {
			{true, "786dc803909c78d9d03264ecb6d82c6bcbbe28070b7e342b474af75e0d1c93db"},
		},
	},
	{
		.name = "qwen2",
		CHATML,
		.default_system = "You are a helpful assistant.",
		.roles = {"system", "user", "assistant", "tool"},
		.sources = {
			{true, "7cb398e81113b4aee262bd9621f9186062cf6d071f87ac2c0f735f064e2a3e50"},
		},
	},
	{
		.name = "qwen2.5",
		CHATML,
		.default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
		.lead = 1,
		.roles = {"system", "user", "assistant"}, /* it renders tools' answers in another way */
		.sources = {
			{false, "ef0829bf42c538a9bbd234c9664d95d9504fb8e6939b293dea2c595107b35170"},
		},
	},
	{
		.name = "llama3",
		.start = "<|begin_of_text|>",
		.open = "<|start_header_id|>",
		.opened = "<|end_header_id|>\n\n",
		.close = "<|eot_id|>",
		.trim = true,
		.roles = {"system", "user", "assistant"},
		.sources = {
			{true, "05facb19f527d33e1ba2066abb9656dc46ff7f61a33d5419bbd0f773d3519478"},
		},
	},
};

/* ---- recognising ------------------------------------------------------------------------- */

static void digest_of(const char *text, size_t len, char hex[65])
{
	uint8_t digest[32];
	crypto_generichash(digest, sizeof(digest), (const uint8_t *)text, len, NULL, 0);
	hex_encode(hex, digest, sizeof(digest));
}

static int source_digests(const char *jinja, char as_is[65], char unescaped[65])
{
	size_t len = strlen(jinja), n = 0;
	if (len > 0 && jinja[len - 1] == '\n') {
		len--;
	}
	char *text = malloc(len + 1);
	if (!text) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < len; i++) {
		bool newline = jinja[i] == '\\' && i + 1 < len && jinja[i + 1] == 'n';
		text[n++] = newline ? '\n' : jinja[i];
		i += newline;
	}
	digest_of(jinja, len, as_is);
	digest_of(text, n, unescaped);
	free(text);
	return 0;
}

static int unknown(struct errmsg *err, const char *what)
{
	char names[256] = "";
	for (size_t i = 0, at = 0; i < ARRAY_LEN(templates) && at < sizeof(names); i++) {
		at += (size_t)snprintf(names + at, sizeof(names) - at, "%s%s", i ? ", " : "",
			templates[i].name);
	}
	return errmsg_set(err, STATUS_INVALID, "%s; choose one with chat_template: %s", what, names);
}

int chat_template_find(const struct chat_template **ret, const char *jinja, const char *name,
	struct errmsg *err)
{
	char as_is[65], unescaped[65], what[160];
	for (size_t i = 0; name && i < ARRAY_LEN(templates); i++) {
		if (strcmp(templates[i].name, name) == 0) {
			*ret = &templates[i];
			return 0;
		}
	}
	if (name) {
		snprintf(what, sizeof(what), "there is no chat template %.64s", name);
		return unknown(err, what);
	}
	if (!jinja) {
		return unknown(err, "the model has no chat template");
	}
	int r = source_digests(jinja, as_is, unescaped);
	if (r < 0) {
		return r;
	}
	for (size_t i = 0; i < ARRAY_LEN(templates); i++) {
		for (size_t j = 0; j < MAX_SOURCES && templates[i].sources[j].digest; j++) {
			const char *seen = templates[i].sources[j].all_tags ? unescaped : as_is;
			if (strcmp(templates[i].sources[j].digest, seen) == 0) {
				*ret = &templates[i];
				return 0;
			}
		}
	}
	return unknown(err, "the model's chat template is not one of those known here");
}

const char *chat_template_name(const struct chat_template *t)
{
	return t->name;
}

/* ---- rendering --------------------------------------------------------------------------- */

static bool is(const char *text, size_t len, const char *word)
{
	return len == strlen(word) && memcmp(text, word, len) == 0;
}

static int check_role(const struct chat_template *t, const struct message *m, size_t i,
	struct errmsg *err)
{
	char roles[128] = "";
	size_t at = 0;
	for (size_t k = 0; t->roles[k]; k++) {
		if (is(m->role, m->role_len, t->roles[k])) {
			return 0;
		}
		at += (size_t)snprintf(roles + at, sizeof(roles) - at, "%s%s", k ? ", " : "", t->roles[k]);
	}
	return errmsg_set(err, STATUS_INVALID,
		"message %zu has the role `%.*s`, which the chat template %s "
		"does not know; it knows %s",
		i + 1, (int)min_i64((int64_t)m->role_len, 64), m->role, t->name, roles);
}

static int put(struct buf *out, const char *text)
{
	return buf_append(out, text, strlen(text));
}

/* What Python's str.strip() takes off. */
static bool is_strip_space(uint32_t c)
{
	return unicode_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static void trim(const char **text, size_t *len)
{
	const uint8_t *p = (const uint8_t *)*text;
	size_t start = 0, end = *len;
	unsigned width;
	while (start < end && is_strip_space(utf8_get(p + start, &width))) {
		start += width;
	}
	while (end > start && is_strip_space(utf8_get(p + end - utf8_last_len(p, end), &width))) {
		end -= width;
	}
	*text += start;
	*len = end - start;
}

static int put_message(const struct chat_template *t, const struct message *m, struct buf *out,
	struct span *ret_span)
{
	const char *content = m->content;
	size_t len = m->content_len;
	if (t->trim) {
		trim(&content, &len);
	}
	int r = put(out, t->open);
	r = r < 0 ? r : buf_append(out, m->role, m->role_len);
	r = r < 0 ? r : put(out, t->opened);
	ret_span->start = out->len - t->lead;
	r = r < 0 ? r : buf_append(out, content, len);
	r = r < 0 ? r : put(out, t->close);
	ret_span->end = out->len;
	return r;
}

static int put_start(const struct chat_template *t, const struct message *first, struct buf *out)
{
	struct message system = {.role = "system", .role_len = strlen("system")};
	struct span ignored;
	int r = put(out, t->start);
	if (r < 0 || !t->default_system || is(first->role, first->role_len, "system")) {
		return r;
	}
	system.content = t->default_system;
	system.content_len = strlen(t->default_system);
	return put_message(t, &system, out, &ignored);
}

int chat_template_render(const struct chat_template *t, const struct message *messages, size_t n,
	bool add_generation_prompt, struct buf *out, struct span *spans, size_t max_spans,
	size_t *ret_n_spans, struct errmsg *err)
{
	size_t n_spans = 0, before = out->len;
	int r = 0;
	if (n == 0) {
		return errmsg_set(err, STATUS_INVALID, "there are no messages; there must be at least one");
	}
	for (size_t i = 0; i < n; i++) {
		if ((r = check_role(t, &messages[i], i, err)) != 0) {
			return r;
		}
		size_t bad;
		if (!utf8_valid(messages[i].content, messages[i].content_len, &bad)) {
			return errmsg_set(
				err, STATUS_INVALID, "message %zu: byte %zu is not UTF-8", i + 1, bad);
		}
	}
	r = put_start(t, &messages[0], out);
	for (size_t i = 0; i < n && r == 0; i++) {
		struct span span;
		r = put_message(t, &messages[i], out, &span);
		if (is(messages[i].role, messages[i].role_len, "assistant") && spans &&
			n_spans < max_spans) {
			spans[n_spans++] = span;
		}
	}
	if (r == 0 && add_generation_prompt) {
		r = put(out, t->open);
		r = r < 0 ? r : put(out, "assistant");
		r = r < 0 ? r : put(out, t->opened);
	}
	if (r < 0) {
		out->len = before;
		return r;
	}
	if (ret_n_spans) {
		*ret_n_spans = n_spans;
	}
	return 0;
}
