/* The functions that every template has. */

#include <time.h>

#include "engine/text/jinja/jinja-internal.h"

static int global_range(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	int64_t v[3] = {0, 0, 1};
	if (args->n < 1 || args->n > 3 || args->n_kw > 0) {
		return j_error(run, "range takes one to three whole numbers");
	}
	int r = 0;
	for (size_t i = 0; i < args->n && r == 0; i++) {
		r = j_want_int(run, args->pos[i], 0, &v[args->n == 1 ? 1 : i]);
	}
	if (r != 0 || v[2] == 0) {
		return r ? r : j_error(run, "range() arg 3 must not be zero");
	}
	bool some = v[2] > 0 ? v[0] < v[1] : v[0] > v[1];
	uint64_t from = (uint64_t)v[0], to = (uint64_t)v[1];
	uint64_t span = !some ? 0 : v[2] > 0 ? to - from : from - to;
	uint64_t by = v[2] > 0 ? (uint64_t)v[2] : 0 - (uint64_t)v[2];
	uint64_t n = span / by + (span % by != 0);
	if (n > J_MAX_RANGE) {
		return j_error(run, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).",
			J_MAX_RANGE);
	}
	struct j_range *range = j_alloc(run, 1, sizeof(*range));
	if (!range) {
		return j_no_memory(run);
	}
	*range = (struct j_range){.start = v[0], .stop = v[1], .step = v[2], .n = (size_t)n};
	*ret = (struct j_val){.type = J_RANGE, .range = range};
	return 0;
}

/* What dict() is given: pairs or a mapping, then names. */
static int global_dict(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct j_seq seq = {0}, pair;
	if (args->n > 1) {
		return j_error(run, "dict expected at most 1 argument, got %zu", args->n);
	}
	int r = j_dict(run, args->n_kw, ret);
	if (r == 0 && args->n == 1 && args->pos[0].type == J_DICT) {
		for (size_t i = 0; i < args->pos[0].d->n && r == 0; i++) {
			r = j_dict_set(run, ret->d, args->pos[0].d->items[i].key, args->pos[0].d->items[i].value);
		}
	} else if (r == 0 && args->n == 1) {
		r = j_items(run, args->pos[0], &seq);
	}
	for (size_t i = 0; i < seq.n && r == 0; i++) {
		r = j_items(run, seq.items[i], &pair);
		if (r == 0 && pair.n != 2) {
			return j_error(run, "dictionary update sequence element #%zu has length %zu; 2 is "
				"required", i, pair.n);
		}
		r = r ? r : j_dict_set(run, ret->d, pair.items[0], pair.items[1]);
	}
	for (size_t i = 0; i < args->n_kw && r == 0; i++) {
		r = j_dict_set(run, ret->d, j_of_str(args->kw[i].name), args->kw[i].value);
	}
	return r;
}

static int global_namespace(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	int r = global_dict(run, self, args, ret);
	for (size_t i = 0; r == 0 && i < ret->d->n; i++) {
		struct j_val key = ret->d->items[i].key;
		if (key.type == J_STR && key.s->len > 0 && key.s->p[0] == '_') {
			return j_error(run, "a namespace takes no attribute that begins with an underscore");
		}
	}
	ret->type = J_NAMESPACE;
	return r;
}

static int global_raise(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const char *const names[] = {"message"};
	struct j_val message, text;
	int r = j_bind(run, "raise_exception", args, names, 1, 1, &message);
	r = r ? r : j_to_str(run, message, &text);
	return r ? r : errmsg_set(run->err, STATUS_INVALID, JINJA_RAISED "%.*s",
		(int)min_i64((int64_t)text.s->len, 900), text.s->p);
}

/* Python's own are %f, %z and %Z, of which a time without a zone has only the first. */
static int python_format(struct j_run *run, const struct j_str *s, struct j_out *out)
{
	int r = 0;
	for (size_t i = 0; i < s->len && r == 0; i++) {
		char next = s->p[i] == '%' && i + 1 < s->len ? s->p[i + 1] : '\0';
		if (next == 'f') {
			r = j_puts(run, out, "000000");
		} else if (next == '%') {
			r = j_puts(run, out, "%%");
		} else if (next != 'z' && next != 'Z') {
			r = j_put(run, out, s->p + i, 1);
			continue;
		}
		i++;
	}
	return r ? r : j_put(run, out, "|", 2); /* so that an empty result is no failure */
}

static int global_strftime(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	static const char *const names[] = {"format"};
	struct j_val format;
	struct j_out out = {0};
	char text[512];
	struct tm tm;
	time_t now = (time_t)run->now;
	int r = j_bind(run, "strftime_now", args, names, 1, 1, &format);
	if (r == 0 && format.type != J_STR) {
		return j_error(run, "strftime_now needs a string, not %s", j_type_name(format));
	}
	r = r ? r : python_format(run, format.s, &out);
	if (r != 0) {
		return r;
	}
	if (!gmtime_r(&now, &tm)) {
		return j_error(run, "there is no such time");
	}
	size_t n = strftime(text, sizeof(text), out.p, &tm); // NOLINT: the template's own format
	if (n == 0) {
		return j_error(run, "the date is longer than %zu bytes", sizeof(text) - 2);
	}
	char *p = j_alloc(run, n, 1);
	if (!p) {
		return j_no_memory(run);
	}
	memcpy(p, text, n);
	return j_str(run, p, n - 1, ret);
}

static int not_supported(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	return j_error(run, "joiner, cycler, lipsum and self are not supported");
}

const struct j_builtin j_global_functions[] = {
	[SYM_RANGE - SYM_RANGE] = {"range", global_range},
	[SYM_DICT - SYM_RANGE] = {"dict", global_dict},
	[SYM_NAMESPACE - SYM_RANGE] = {"namespace", global_namespace},
	[SYM_RAISE - SYM_RANGE] = {"raise_exception", global_raise},
	[SYM_STRFTIME - SYM_RANGE] = {"strftime_now", global_strftime},
	[SYM_JOINER - SYM_RANGE] = {"joiner", not_supported},
	[SYM_CYCLER - SYM_RANGE] = {"cycler", not_supported},
	[SYM_LIPSUM - SYM_RANGE] = {"lipsum", not_supported},
	[SYM_SELF - SYM_RANGE] = {"self", not_supported},
};
