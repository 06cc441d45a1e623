/* Running statements, and a render as a whole. */

#include "engine/text/jinja/jinja-internal.h"

/* ---- variables ----------------------------------------------------------------------------- */

int j_scope_new(struct j_run *run, struct j_scope *parent, struct j_scope **ret)
{
	struct j_scope *s = j_alloc(run, 1, sizeof(*s));
	if (!s) {
		return j_no_memory(run);
	}
	*s = (struct j_scope){.parent = parent};
	*ret = s;
	return 0;
}

int j_assign(struct j_run *run, struct j_scope *scope, uint32_t sym, struct j_val value)
{
	for (struct j_var *v = scope->vars; v; v = v->next) {
		if (v->sym == sym) {
			v->value = value;
			return 0;
		}
	}
	struct j_var *v = j_alloc(run, 1, sizeof(*v));
	if (!v) {
		return j_no_memory(run);
	}
	*v = (struct j_var){.sym = sym, .value = value, .next = scope->vars};
	scope->vars = v;
	return 0;
}

static int assign_attribute(struct j_run *run, struct j_scope *scope, const struct j_node *target,
	struct j_val value)
{
	const struct j_str *name = target->value.s;
	struct j_val ns;
	if (!j_lookup(scope, target->sym, &ns) || ns.type != J_NAMESPACE) {
		return j_error(run, "cannot assign attribute on non-namespace object");
	}
	if (name->len > 0 && name->p[0] == '_') {
		return j_error(run, "a namespace takes no attribute that begins with an underscore");
	}
	return j_dict_set(run, ns.d, j_of_str(name), value);
}

int j_assign_target(struct j_run *run, struct j_scope *scope, const struct j_node *target,
	struct j_val value)
{
	struct j_seq seq;
	if (target->kind == N_NAME) {
		return j_assign(run, scope, target->sym, value);
	}
	if (target->kind == N_NSREF) {
		return assign_attribute(run, scope, target, value);
	}
	int r = j_items(run, value, &seq);
	if (r == 0 && seq.n != target->n) {
		return seq.n < target->n ?
			j_error(run, "not enough values to unpack (expected %zu, got %zu)", target->n, seq.n) :
			j_error(run, "too many values to unpack (expected %zu)", target->n);
	}
	for (size_t i = 0; i < target->n && r == 0; i++) {
		r = j_assign_target(run, scope, target->items[i], seq.items[i]);
	}
	return r;
}

/* Runs a body in a scope of its own, its text going to `out`. */
static int exec_captured(struct j_run *run, struct j_scope *scope, struct j_node *const *nodes,
	size_t n, struct j_val *ret)
{
	struct j_out out = {0}, *before = run->out;
	run->out = &out;
	int r = j_exec(run, scope, nodes, n);
	run->out = before;
	return r ? r : j_out_str(run, &out, ret);
}

/* ---- macros -------------------------------------------------------------------------------- */

static const struct j_kwarg *take_kwarg(const struct j_args *args, const char *name)
{
	for (size_t i = 0; i < args->n_kw; i++) {
		if (j_str_is(args->kw[i].name, name)) {
			return &args->kw[i];
		}
	}
	return NULL;
}

static int bind_param(struct j_run *run, struct j_scope *scope, const struct j_node *node, size_t i,
	const struct j_args *args, size_t *used)
{
	const struct j_node *param = node->params[i];
	const char *name = run->t->names[param->sym]->p;
	const struct j_kwarg *kw = NULL;
	struct j_val v;
	int r = 0;
	if (i < args->n) {
		v = args->pos[i];
	} else if ((kw = take_kwarg(args, name))) {
		v = kw->value;
		(*used)++;
	} else if (node->orelse[i]) {
		r = j_eval(run, scope, node->orelse[i], &v);
	} else {
		char hint[160];
		const char *why;
		snprintf(hint, sizeof(hint), "parameter '%.100s' was not provided", name);
		r = j_copy(run, hint, &why);
		r = r ? r : j_undefined(run, why, NULL, param->value, &v);
	}
	return r ? r : j_assign(run, scope, param->sym, v);
}

static bool is_param(const struct j_node *node, const struct j_str *name)
{
	for (size_t i = 0; i < node->n_params; i++) {
		const struct j_str *p = node->params[i]->value.s;
		if (p->len == name->len && memcmp(p->p, name->p, p->len) == 0) {
			return true;
		}
	}
	return false;
}

/* caller, kwargs and varargs, for bodies that use them and have no parameter of that name. */
static int bind_special(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	const struct j_args *args, size_t *used)
{
	const struct j_kwarg *caller = take_kwarg(args, "caller");
	bool takes_caller = node->uses_caller && !is_param(node, run->t->names[SYM_CALLER]);
	bool takes_kwargs = node->uses_kwargs && !is_param(node, run->t->names[SYM_KWARGS]);
	bool takes_varargs = node->uses_varargs && !is_param(node, run->t->names[SYM_VARARGS]);
	struct j_val v;
	int r = 0;
	if (takes_caller) {
		r = caller ? 0 : j_undefined(run, "No caller defined", NULL, j_none(), &v);
		v = caller ? caller->value : v;
		*used += caller != NULL;
		r = r ? r : j_assign(run, scope, SYM_CALLER, v);
	}
	if (r == 0 && takes_kwargs) {
		r = j_dict(run, args->n_kw, &v);
		for (size_t i = 0; i < args->n_kw && r == 0; i++) {
			const struct j_str *name = args->kw[i].name;
			if (!is_param(node, name) && !(takes_caller && j_str_is(name, "caller"))) {
				r = j_dict_set(run, v.d, j_of_str(name), args->kw[i].value);
			}
		}
		*used = args->n_kw;
		r = r ? r : j_assign(run, scope, SYM_KWARGS, v);
	}
	if (r == 0 && takes_varargs) {
		size_t n = args->n > node->n_params ? args->n - node->n_params : 0;
		r = j_seq(run, J_TUPLE, n > 0 ? args->pos + node->n_params : NULL, n, &v);
		r = r ? r : j_assign(run, scope, SYM_VARARGS, v);
	} else if (r == 0 && args->n > node->n_params) {
		return j_error(run, "macro takes not more than %zu argument(s)", node->n_params);
	}
	return r;
}

int j_call_macro(struct j_run *run, const struct j_macro *macro, const struct j_args *args,
	struct j_val *ret)
{
	const struct j_node *node = macro->node;
	struct j_scope *scope;
	size_t used = 0;
	if (run->calls >= J_MAX_CALLS) {
		return j_error(run, "macros call one another more than %d deep", J_MAX_CALLS);
	}
	int r = j_scope_new(run, macro->scope, &scope);
	for (size_t i = 0; i < node->n_params && r == 0; i++) {
		r = bind_param(run, scope, node, i, args, &used);
	}
	r = r ? r : bind_special(run, scope, node, args, &used);
	if (r == 0 && used < args->n_kw) {
		return j_error(run, "macro '%s' got a keyword argument that it does not take, or twice",
			macro->name ? macro->name : "caller");
	}
	run->calls++;
	r = r ? r : exec_captured(run, scope, node->items, node->n, ret);
	run->calls--;
	return r;
}

static int new_macro(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	const char *name, struct j_val *ret)
{
	struct j_macro *m = j_alloc(run, 1, sizeof(*m));
	if (!m) {
		return j_no_memory(run);
	}
	*m = (struct j_macro){.node = node, .scope = scope, .name = name};
	*ret = (struct j_val){.type = J_MACRO, .macro = m};
	return 0;
}

static int exec_macro(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	struct j_val macro;
	int r = new_macro(run, scope, node, run->t->names[node->sym]->p, &macro);
	return r ? r : j_assign(run, scope, node->sym, macro);
}

static int exec_call_block(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	const struct j_node *call = node->a;
	struct j_val what, text;
	struct j_args args;
	int r = j_eval(run, scope, call->a, &what);
	r = r ? r : j_eval_args(run, scope, call, &args);
	struct j_kwarg *kw = r == 0 ? j_alloc(run, args.n_kw + 1, sizeof(*kw)) : NULL;
	if (!kw) {
		return r ? r : j_no_memory(run);
	}
	for (size_t i = 0; i < args.n_kw; i++) {
		kw[i] = args.kw[i];
	}
	kw[args.n_kw].name = run->t->names[SYM_CALLER];
	r = new_macro(run, scope, node, NULL, &kw[args.n_kw].value);
	args.kw = kw;
	args.n_kw++;
	run->line = node->line;
	r = r ? r : j_call(run, what, &args, &text);
	return r ? r : j_put_str(run, run->out, text);
}

/* ---- statements ---------------------------------------------------------------------------- */

static int exec_print(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	struct j_val v;
	int r = node->a ? j_eval(run, scope, node->a, &v) : 0;
	r = r || !node->a ? r : j_put_str(run, run->out, v);
	for (size_t i = 0; i < node->n && r == 0; i++) {
		r = j_eval(run, scope, node->items[i], &v);
		r = r ? r : j_put_str(run, run->out, v);
	}
	return r;
}

static int exec_if(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	for (;;) {
		struct j_val test;
		int r = j_eval(run, scope, node->a, &test);
		if (r != 0) {
			return r;
		}
		if (j_truth(test)) {
			return j_exec(run, scope, node->items, node->n);
		}
		if (node->n_else == 1 && node->orelse[0]->kind == N_IF) {
			node = node->orelse[0];
			continue;
		}
		return j_exec(run, scope, node->orelse, node->n_else);
	}
}

static int exec_set_block(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	struct j_scope *inner;
	struct j_val v;
	int r = j_scope_new(run, scope, &inner);
	r = r ? r : exec_captured(run, inner, node->items, node->n, &v);
	r = r || !node->b ? r : j_filter_block(run, inner, node->b, v, &v);
	return r ? r : j_assign_target(run, scope, node->a, v);
}

static int exec_filter_block(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	struct j_scope *inner;
	struct j_val v;
	int r = j_scope_new(run, scope, &inner);
	r = r ? r : exec_captured(run, inner, node->items, node->n, &v);
	r = r ? r : j_filter_block(run, inner, node->a, v, &v);
	return r ? r : j_put_str(run, run->out, v);
}

static int exec_with(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	struct j_scope *inner;
	struct j_val v;
	int r = j_scope_new(run, scope, &inner);
	for (size_t i = 0; i < node->n_params && r == 0; i++) {
		r = j_eval(run, scope, node->orelse[i], &v);
		r = r ? r : j_assign_target(run, inner, node->params[i], v);
	}
	return r ? r : j_exec(run, inner, node->items, node->n);
}

static int exec_generation(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	struct jinja_marks *marks = run->marks;
	struct j_scope *inner;
	size_t start = run->out->len;
	if (marks && (run->out != &run->whole || run->in_generation)) {
		/* transformers counts from what was written before the macro: no place in the text */
		return j_error(run, "{%% generation %%} within a macro, a set block or another one has no "
			"place in the text");
	}
	bool before = run->in_generation;
	run->in_generation = true;
	int r = j_scope_new(run, scope, &inner);
	r = r ? r : j_exec(run, inner, node->items, node->n);
	run->in_generation = before;
	if (r == 0 && marks) {
		if (marks->n < marks->cap) {
			marks->data[marks->n] = (struct jinja_mark){start, run->out->len};
		}
		marks->n++;
	}
	return r;
}

static int exec_one(struct j_run *run, struct j_scope *scope, const struct j_node *node)
{
	struct j_val v;
	int r;
	run->line = node->line;
	switch (node->kind) {
	case N_DATA:
		return j_put(run, run->out, node->value.s->p, node->value.s->len);
	case N_PRINT:
		return exec_print(run, scope, node);
	case N_IF:
		return exec_if(run, scope, node);
	case N_FOR:
		r = j_eval(run, scope, node->b, &v);
		return r ? r : j_run_loop(run, scope, node, v, 0);
	case N_SET:
		r = j_eval(run, scope, node->b, &v);
		return r ? r : j_assign_target(run, scope, node->a, v);
	case N_SET_BLOCK:
		return exec_set_block(run, scope, node);
	case N_MACRO:
		return exec_macro(run, scope, node);
	case N_CALL_BLOCK:
		return exec_call_block(run, scope, node);
	case N_FILTER_BLOCK:
		return exec_filter_block(run, scope, node);
	case N_WITH:
		return exec_with(run, scope, node);
	case N_GENERATION:
		return exec_generation(run, scope, node);
	case N_BREAK:
	case N_CONTINUE:
		run->flow = node->kind == N_BREAK ? J_BREAK : J_CONTINUE;
		return 0;
	default:
		return j_error(run, "this is no statement");
	}
}

int j_exec(struct j_run *run, struct j_scope *scope, struct j_node *const *nodes, size_t n)
{
	if (run->depth >= J_MAX_DEPTH) {
		return j_error(run, "statements nested more than %d deep", J_MAX_DEPTH);
	}
	run->depth++;
	int r = 0;
	for (size_t i = 0; i < n && r == 0 && run->flow == J_GO_ON; i++) {
		run->steps++;
		r = j_work(run, 0);
		r = r ? r : exec_one(run, scope, nodes[i]);
	}
	run->depth--;
	return r;
}

/* ---- a render ------------------------------------------------------------------------------ */

/* Those of the variables that the template names. */
static int set_variables(struct j_run *run, struct j_scope *scope, const json_t *vars)
{
	const char *key;
	json_t *value;
	json_object_foreach((json_t *)(uintptr_t)vars, key, value) {
		for (size_t sym = 0; sym < run->t->n_names; sym++) {
			struct j_val v;
			if (j_str_is(run->t->names[sym], key)) {
				int r = j_from_json(run, value, 0, &v);
				r = r ? r : j_assign(run, scope, (uint32_t)sym, v);
				if (r != 0) {
					return r;
				}
				break;
			}
		}
	}
	return 0;
}

static int render(struct j_run *run, const json_t *const *vars, size_t n_vars)
{
	struct j_scope *globals, *scope;
	int r = j_scope_new(run, NULL, &globals);
	for (uint32_t sym = SYM_RANGE; sym < SYM_N_FIXED && r == 0; sym++) {
		struct j_val v = {.type = J_BUILTIN, .builtin = &j_global_functions[sym - SYM_RANGE]};
		r = j_assign(run, globals, sym, v);
	}
	for (size_t i = 0; i < n_vars && r == 0; i++) {
		r = set_variables(run, globals, vars[i]);
	}
	r = r ? r : j_scope_new(run, globals, &scope);
	return r ? r : j_exec(run, scope, run->t->body, run->t->n_body);
}

int jinja_render(const struct jinja *t, const json_t *const *vars, size_t n_vars, int64_t now,
	struct buf *out, struct jinja_marks *marks, struct errmsg *err)
{
	struct j_run run = {.t = t, .arena = {.max = J_MAX_MEMORY}, .marks = marks, .now = now,
		.err = err};
	run.out = &run.whole;
	if (marks) {
		marks->n = 0;
	}
	int r = render(&run, vars, n_vars);
	if (r == 0) {
		r = buf_append(out, run.whole.p ? run.whole.p : "", run.whole.len);
	}
	j_arena_deinit(&run.arena);
	return r;
}
