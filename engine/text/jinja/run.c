/* What every part of a render uses: memory, the count of work, errors. */

#include <stdarg.h>

#include "engine/text/jinja/jinja-internal.h"

/* ---- memory -------------------------------------------------------------------------------- */

struct j_chunk {
	struct j_chunk *next;
	size_t size;
};

enum { CHUNK = 64 << 10 };

void j_arena_deinit(struct j_arena *a)
{
	while (a->chunks) {
		struct j_chunk *next = a->chunks->next;
		free(a->chunks);
		a->chunks = next;
	}
	a->at = a->end = NULL;
}

void *j_arena_alloc(struct j_arena *a, size_t size)
{
	size_t need = size == 0 ? 8 : (size + 7) & ~(size_t)7;
	if (need < size) {
		a->exhausted = true;
		return NULL;
	}
	if ((size_t)(a->end - a->at) < need) {
		size_t room = need > CHUNK / 4 ? need : CHUNK - sizeof(struct j_chunk);
		if (room > a->max - a->used) {
			a->exhausted = true;
			return NULL;
		}
		struct j_chunk *c = malloc(sizeof(*c) + room);
		if (!c) {
			return NULL;
		}
		a->used += room;
		c->size = room;
		c->next = a->chunks;
		a->chunks = c;
		if (need > CHUNK / 4 && a->at != a->end) { /* keep filling the one there is */
			return c + 1;
		}
		a->at = (char *)(c + 1);
		a->end = a->at + room;
	}
	void *p = a->at;
	a->at += need;
	return p;
}

void *j_alloc(struct j_run *run, size_t n, size_t size)
{
	size_t bytes;
	if (!mul_size(n, size, &bytes)) {
		run->arena.exhausted = true;
		return NULL;
	}
	return j_arena_alloc(&run->arena, bytes);
}

int j_no_memory(struct j_run *run)
{
	return run->arena.exhausted ? j_error(run, "it needs more than %d MiB of memory",
		J_MAX_MEMORY >> 20) : -ENOMEM;
}

int j_work(struct j_run *run, size_t n)
{
	run->steps += n / 64;
	return run->steps <= J_MAX_STEPS ? 0 : j_error(run, "it takes more than %d steps", J_MAX_STEPS);
}

/* ---- errors -------------------------------------------------------------------------------- */

int j_error(struct j_run *run, const char *fmt, ...)
{
	char text[600];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return errmsg_set(run->err, STATUS_INVALID, "line %u: %s", run->line, text);
}

int j_copy(struct j_run *run, const char *text, const char **ret)
{
	size_t size = strlen(text) + 1;
	char *p = j_alloc(run, size, 1);
	if (!p) {
		return j_no_memory(run);
	}
	memcpy(p, text, size);
	*ret = p;
	return 0;
}

int j_undefined(struct j_run *run, const char *hint, const char *of, struct j_val name,
	struct j_val *ret)
{
	struct j_undefined *u = j_alloc(run, 1, sizeof(*u));
	if (!u) {
		return j_no_memory(run);
	}
	*u = (struct j_undefined){.hint = hint, .of = of, .name = name};
	*ret = (struct j_val){.type = J_UNDEFINED, .undefined = u};
	return 0;
}

int j_undefined_error(struct j_run *run, struct j_val v)
{
	const struct j_undefined *u = v.undefined;
	struct j_out name = {0};
	int r = u->hint ? 0 : j_put_repr(run, &name, u->name, 0);
	int n = (int)min_i64((int64_t)name.len, 200);
	if (r != 0) {
		return r;
	}
	if (u->hint) {
		return j_error(run, "%s", u->hint);
	}
	if (!u->of) {
		return j_error(run, "%.*s is undefined", n, name.p);
	}
	/* As object_type_repr() has it: None without the word. */
	bool none = strcmp(u->of, "NoneType") == 0;
	if (u->name.type != J_STR) {
		return j_error(run, "%s%s has no element %.*s", none ? "None" : u->of,
			none ? "" : " object", n, name.p);
	}
	return j_error(run, "'%s%s' has no attribute %.*s", none ? "None" : u->of,
		none ? "" : " object", n, name.p);
}
