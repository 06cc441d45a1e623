#pragma once
/* The Jinja that chat templates are written in, as jinja2's ImmutableSandboxedEnvironment runs it
 * with the settings that transformers gives it (utils/chat_template_utils.py). */

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/buf.h"
#include "util/errmsg.h"

/* A parsed template: immutable, safe to render from several threads at once. */
struct jinja;

/* Parses source[len], UTF-8. STATUS_INVALID names the line and what is wrong there or not supported
 * (inheritance, imports, filters that need more than the conversation, …); -ENOMEM. */
int jinja_new(struct jinja **ret, const char *source, size_t len, struct errmsg *err);
void jinja_free(struct jinja *t);

/* True when the template marks what the assistant says with {% generation %}. */
bool jinja_has_generation(const struct jinja *t);

/* A {% generation %} block's bytes in the text. */
struct jinja_mark {
	size_t start, end;
};

/* The first `cap` marks of the `n` there are. */
struct jinja_marks {
	struct jinja_mark *data; /* room for `cap`; may be NULL when that is 0 */
	size_t n, cap;
};

/* Appends the rendered text. vars[n_vars] are objects of names and values, later ones winning; they
 * are borrowed and only read. `now` (seconds, UTC) is what strftime_now tells.
 * marks (may be NULL): the generation blocks, by bytes from the start of this text.
 * STATUS_INVALID: the template raises an exception, fails, or needs more steps, depth, memory or
 * output than a render may take; `out` is then as before. -ENOMEM. */
int jinja_render(const struct jinja *t, const json_t *const *vars, size_t n_vars, int64_t now,
	struct buf *out, struct jinja_marks *marks, struct errmsg *err);

/* How the message of raise_exception() is introduced in an errmsg. */
#define JINJA_RAISED "the template refuses this conversation: "
