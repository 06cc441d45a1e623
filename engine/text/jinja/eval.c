/* Evaluating expressions. */

#include "engine/text/jinja/jinja-internal.h"

/* ---- names and calls ----------------------------------------------------------------------- */

bool j_lookup(const struct j_scope *scope, uint32_t sym, struct j_val *ret)
{
	for (; scope; scope = scope->parent) {
		for (const struct j_var *v = scope->vars; v; v = v->next) {
			if (v->sym == sym) {
				*ret = v->value;
				return true;
			}
		}
	}
	return false;
}

static int eval_name(struct j_run *run, struct j_scope *scope, uint32_t sym, struct j_val *ret)
{
	return j_lookup(scope, sym, ret) ? 0 :
		j_undefined(run, NULL, NULL, j_of_str(run->t->names[sym]), ret);
}

int j_bind(struct j_run *run, const char *what, const struct j_args *args, const char *const *names,
	size_t n, size_t required, struct j_val *out)
{
	if (args->n > n) {
		return j_error(run, "%s takes at most %zu arguments, but %zu were given", what, n, args->n);
	}
	for (size_t i = 0; i < n; i++) {
		out[i] = i < args->n ? args->pos[i] : (struct j_val){.type = J_MISSING};
	}
	for (size_t k = 0; k < args->n_kw; k++) {
		size_t i = 0;
		while (i < n && !j_str_is(args->kw[k].name, names[i])) {
			i++;
		}
		if (i == n || out[i].type != J_MISSING) {
			return j_error(run, i == n ? "%s has no argument '%.*s'" :
				"%s got several values for the argument '%.*s'", what,
				(int)min_i64((int64_t)args->kw[k].name->len, 64), args->kw[k].name->p);
		}
		out[i] = args->kw[k].value;
	}
	for (size_t i = 0; i < required; i++) {
		if (out[i].type == J_MISSING) {
			return j_error(run, "%s needs the argument '%s'", what, names[i]);
		}
	}
	return 0;
}

int j_call(struct j_run *run, struct j_val what, const struct j_args *args, struct j_val *ret)
{
	switch (what.type) {
	case J_BUILTIN:
		return what.builtin->call(run, j_none(), args, ret);
	case J_METHOD:
		return what.method->what->call(run, what.method->self, args, ret);
	case J_MACRO:
		return j_call_macro(run, what.macro, args, ret);
	case J_LOOP:
		return j_call_loop(run, what.loop, args, ret);
	case J_UNDEFINED:
		return j_undefined_error(run, what);
	default:
		return j_error(run, "'%s' object is not callable", j_type_name(what));
	}
}

static int eval_kwargs(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_args *ret)
{
	struct j_val more = {.type = J_MISSING};
	int r = node->starstar ? j_eval(run, scope, node->starstar, &more) : 0;
	if (r == 0 && node->starstar && more.type != J_DICT) {
		return j_error(run, "argument after ** must be a mapping, not %s", j_type_name(more));
	}
	size_t extra = more.type == J_DICT ? more.d->n : 0, n = 0;
	/* One more: a call block adds its caller. */
	struct j_kwarg *kw = r == 0 ? j_alloc(run, node->n_kws + extra + 1, sizeof(*kw)) : NULL;
	if (!kw) {
		return r ? r : j_no_memory(run);
	}
	for (; n < node->n_kws && r == 0; n++) {
		kw[n].name = node->kws[n].name;
		r = j_eval(run, scope, node->kws[n].value, &kw[n].value);
	}
	for (size_t i = 0; i < extra && r == 0; i++) {
		if (more.d->items[i].key.type != J_STR) {
			return j_error(run, "keywords must be strings");
		}
		kw[n].name = more.d->items[i].key.s;
		kw[n++].value = more.d->items[i].value;
	}
	ret->kw = kw;
	ret->n_kw = n;
	return r;
}

int j_eval_args(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_args *ret)
{
	struct j_seq more = {0};
	struct j_val star;
	struct j_val *pos = NULL;
	int r = 0;
	*ret = (struct j_args){0};
	if (node->n > 0 || node->star) {
		pos = j_alloc(run, node->n, sizeof(*pos));
		if (!pos) {
			return j_no_memory(run);
		}
		for (size_t i = 0; i < node->n && r == 0; i++) {
			r = j_eval(run, scope, node->items[i], &pos[i]);
		}
		ret->n = node->n;
	}
	if (r == 0 && node->star) {
		r = j_eval(run, scope, node->star, &star);
		r = r ? r : j_items(run, star, &more);
		struct j_val *all = r == 0 ? j_alloc(run, node->n + more.n, sizeof(*all)) : NULL;
		if (!all) {
			return r ? r : j_no_memory(run);
		}
		for (size_t i = 0; i < node->n; i++) {
			all[i] = pos[i];
		}
		for (size_t i = 0; i < more.n; i++) {
			all[node->n + i] = more.items[i];
		}
		pos = all;
		ret->n = node->n + more.n;
	}
	ret->pos = pos;
	return r || (node->n_kws == 0 && !node->starstar) ? r : eval_kwargs(run, scope, node, ret);
}

static int eval_call(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_val what;
	struct j_args args;
	int r = j_eval(run, scope, node->a, &what);
	r = r ? r : j_eval_args(run, scope, node, &args);
	run->line = node->line;
	return r ? r : j_call(run, what, &args, ret);
}

int j_filter_block(struct j_run *run, struct j_scope *scope, const struct j_node *filter,
	struct j_val text, struct j_val *ret)
{
	struct j_args args;
	int r = filter->a ? j_filter_block(run, scope, filter->a, text, &text) : 0;
	r = r ? r : j_eval_args(run, scope, filter, &args);
	run->line = filter->line;
	return r ? r : filter->what->call(run, text, &args, ret);
}

/* Filters and tests. */
static int eval_applied(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_val self;
	struct j_args args;
	int r = j_eval(run, scope, node->a, &self);
	r = r ? r : j_eval_args(run, scope, node, &args);
	run->line = node->line;
	return r ? r : node->what->call(run, self, &args, ret);
}

/* ---- the rest ------------------------------------------------------------------------------ */

static int eval_items(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_val *items = j_alloc(run, node->n, sizeof(*items));
	int r = items ? 0 : j_no_memory(run);
	for (size_t i = 0; i < node->n && r == 0; i++) {
		r = j_eval(run, scope, node->items[i], &items[i]);
	}
	return r ? r : j_seq(run, node->kind == N_LIST ? J_LIST : J_TUPLE, items, node->n, ret);
}

static int eval_dict(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	int r = j_dict(run, node->n / 2, ret);
	for (size_t i = 0; i + 1 < node->n && r == 0; i += 2) {
		struct j_val key, value;
		r = j_eval(run, scope, node->items[i], &key);
		r = r ? r : j_eval(run, scope, node->items[i + 1], &value);
		r = r ? r : j_dict_set(run, ret->d, key, value);
	}
	return r;
}

static int eval_slice(struct j_run *run, struct j_scope *scope, struct j_val of,
	const struct j_node *node, struct j_val *ret)
{
	const struct j_node *parts[3] = {node->a, node->b, node->c};
	struct j_val v[3];
	int r = 0;
	for (size_t i = 0; i < 3 && r == 0; i++) {
		v[i] = j_none();
		r = parts[i] ? j_eval(run, scope, parts[i], &v[i]) : 0;
	}
	run->line = node->line;
	return r ? r : j_slice(run, of, v[0], v[1], v[2], ret);
}

static int eval_getitem(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_val of, key;
	int r = j_eval(run, scope, node->a, &of);
	if (r == 0 && node->b->kind == N_SLICE) {
		return eval_slice(run, scope, of, node->b, ret);
	}
	r = r ? r : j_eval(run, scope, node->b, &key);
	run->line = node->line;
	return r ? r : j_getitem(run, of, key, ret);
}

static int eval_concat(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_out out = {0};
	struct j_val v;
	int r = 0;
	for (size_t i = 0; i < node->n && r == 0; i++) {
		r = j_eval(run, scope, node->items[i], &v);
		r = r ? r : j_put_str(run, &out, v);
	}
	return r ? r : j_out_str(run, &out, ret);
}

static int compare_once(struct j_run *run, enum j_token_type op, struct j_val a, struct j_val b,
	bool *ret)
{
	int c = 0, r;
	switch (op) {
	case T_EQ:
	case T_NE:
		r = j_equal(run, a, b, ret);
		*ret = op == T_EQ ? *ret : !*ret;
		return r;
	case T_NAME: /* in */
	case T_STRING:
		r = j_contains(run, a, b, ret);
		*ret = op == T_NAME ? *ret : !*ret;
		return r;
	default:
		r = j_compare(run, a, b, j_token_name(op), &c);
		*ret = op == T_LT ? c == -1 : op == T_LE ? c == -1 || c == 0 : op == T_GT ? c == 1 :
			c == 1 || c == 0;
		return r;
	}
}

/* a < b < c: each once, up to the first that does not hold. */
static int eval_compare(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_val left, right;
	bool holds = true;
	int r = j_eval(run, scope, node->a, &left);
	for (size_t i = 0; i < node->n && r == 0 && holds; i++) {
		r = j_eval(run, scope, node->items[i], &right);
		run->line = node->line;
		r = r ? r : compare_once(run, node->ops[i], left, right, &holds);
		left = right;
	}
	*ret = j_bool(holds);
	return r;
}

static int eval_cond(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_val test;
	const char *why;
	int r = j_eval(run, scope, node->a, &test);
	if (r != 0) {
		return r;
	}
	if (j_truth(test)) {
		return j_eval(run, scope, node->b, ret);
	}
	if (node->c) {
		return j_eval(run, scope, node->c, ret);
	}
	char hint[128];
	snprintf(hint, sizeof(hint), "the inline if-expression on line %u evaluated to false and no else "
		"section was defined.", node->line);
	r = j_copy(run, hint, &why);
	return r ? r : j_undefined(run, why, NULL, j_none(), ret);
}

static int eval_logic(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	int r = j_eval(run, scope, node->a, ret);
	if (r != 0 || j_truth(*ret) == (node->kind == N_OR)) {
		return r;
	}
	return j_eval(run, scope, node->b, ret);
}

static int eval_binary(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_val a, b;
	int r = j_eval(run, scope, node->a, &a);
	r = r ? r : j_eval(run, scope, node->b, &b);
	run->line = node->line;
	return r ? r : j_binary(run, node->op, a, b, ret);
}

static int eval_by_kind(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_val *ret)
{
	struct j_val v;
	int r;
	switch (node->kind) {
	case N_CONST:
		*ret = node->value;
		return 0;
	case N_NAME:
		return eval_name(run, scope, node->sym, ret);
	case N_TUPLE:
	case N_LIST:
		return eval_items(run, scope, node, ret);
	case N_DICT:
		return eval_dict(run, scope, node, ret);
	case N_GETATTR:
		r = j_eval(run, scope, node->a, &v);
		run->line = node->line;
		return r ? r : j_getattr(run, v, node->value.s, ret);
	case N_GETITEM:
		return eval_getitem(run, scope, node, ret);
	case N_CALL:
		return eval_call(run, scope, node, ret);
	case N_FILTER:
	case N_TEST:
		return eval_applied(run, scope, node, ret);
	case N_COND:
		return eval_cond(run, scope, node, ret);
	case N_AND:
	case N_OR:
		return eval_logic(run, scope, node, ret);
	case N_NOT:
		r = j_eval(run, scope, node->a, &v);
		if (r == 0) {
			*ret = j_bool(!j_truth(v));
		}
		return r;
	case N_COMPARE:
		return eval_compare(run, scope, node, ret);
	case N_CONCAT:
		return eval_concat(run, scope, node, ret);
	case N_BINARY:
		return eval_binary(run, scope, node, ret);
	case N_NEG:
	case N_POS:
		r = j_eval(run, scope, node->a, &v);
		run->line = node->line;
		return r ? r : j_negate(run, v, node->kind == N_NEG, ret);
	default:
		return j_error(run, "this is no expression");
	}
}

int j_eval(struct j_run *run, struct j_scope *scope, const struct j_node *node, struct j_val *ret)
{
	run->line = node->line;
	if (run->depth >= J_MAX_DEPTH) {
		return j_error(run, "evaluations nested more than %d deep", J_MAX_DEPTH);
	}
	run->depth++;
	run->steps++;
	int r = j_work(run, 0);
	r = r ? r : eval_by_kind(run, scope, node, ret);
	run->depth--;
	return r;
}
