/* for loops, their variable `loop`, and loops that call themselves. */

#include "engine/text/jinja/jinja-internal.h"

/* The next item that the loop's `if` lets through; J_MISSING at the end. */
static int pull(struct j_run *run, struct j_loop *loop, struct j_val *ret)
{
	int r = 0;
	while (r == 0 && loop->at < loop->seq.n) {
		struct j_val item = loop->seq.items[loop->at++], test = j_bool(true);
		if (loop->test) {
			struct j_scope *scope;
			r = j_scope_new(run, loop->outer, &scope);
			r = r ? r : j_assign_target(run, scope, loop->node->a, item);
			r = r ? r : j_eval(run, scope, loop->test, &test);
		}
		if (r == 0 && j_truth(test)) {
			*ret = item;
			return 0;
		}
	}
	*ret = (struct j_val){.type = J_MISSING};
	return r;
}

static int look_ahead(struct j_run *run, struct j_loop *loop)
{
	return loop->after.type != J_MISSING ? 0 : pull(run, loop, &loop->after);
}

static int loop_length(struct j_run *run, struct j_loop *loop, int64_t *ret)
{
	size_t n = 0;
	int r = 0;
	if (loop->test) { /* all that is left is tried at once */
		struct j_val *items = j_alloc(run, loop->seq.n - loop->at, sizeof(*items));
		if (!items) {
			return j_no_memory(run);
		}
		while (r == 0) {
			struct j_val item;
			r = pull(run, loop, &item);
			if (r != 0 || item.type == J_MISSING) {
				break;
			}
			items[n++] = item;
		}
		/* Laid out as if all had been a list from the start. */
		size_t done = (size_t)loop->index0 + 1 + (loop->after.type != J_MISSING);
		struct j_val *all = r == 0 ? j_alloc(run, done + n, sizeof(*all)) : NULL;
		if (!all) {
			return r ? r : j_no_memory(run);
		}
		for (size_t i = 0; i < done + n; i++) {
			all[i] = i < done ? j_none() : items[i - done];
		}
		loop->seq = (struct j_seq){all, done + n};
		loop->at = done;
		loop->test = NULL;
	}
	*ret = (int64_t)loop->seq.n;
	return r;
}

static int loop_cycle(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	if (args->n == 0 || args->n_kw > 0) {
		return j_error(run, "no items for cycling given");
	}
	*ret = args->pos[(size_t)self.loop->index0 % args->n];
	return 0;
}

static int loop_changed(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret)
{
	struct j_val now;
	bool same = false;
	int r = j_seq(run, J_TUPLE, args->pos, args->n, &now);
	if (r == 0 && self.loop->has_changed) {
		r = j_equal(run, self.loop->changed, now, &same);
	}
	self.loop->has_changed = true;
	self.loop->changed = now;
	*ret = j_bool(!same);
	return r;
}

static int loop_method(struct j_run *run, struct j_loop *loop, const struct j_builtin *what,
	struct j_val *ret)
{
	struct j_method *m = j_alloc(run, 1, sizeof(*m));
	if (!m) {
		return j_no_memory(run);
	}
	*m = (struct j_method){.self = {.type = J_LOOP, .loop = loop}, .what = what};
	*ret = (struct j_val){.type = J_METHOD, .method = m};
	return 0;
}

int j_loop_attribute(struct j_run *run, struct j_loop *loop, const struct j_str *name, bool *ret_has,
	struct j_val *ret)
{
	static const struct j_builtin cycle = {"cycle", loop_cycle}, changed = {"changed", loop_changed};
	int64_t i = loop->index0, n = 0;
	int r;
	*ret_has = true;
	if (j_str_is(name, "index") || j_str_is(name, "index0")) {
		*ret = j_int(i + (name->len == 5));
	} else if (j_str_is(name, "first")) {
		*ret = j_bool(i == 0);
	} else if (j_str_is(name, "last")) {
		r = look_ahead(run, loop);
		*ret = j_bool(loop->after.type == J_MISSING);
		return r;
	} else if (j_str_is(name, "length")) {
		r = loop_length(run, loop, &n);
		*ret = j_int(n);
		return r;
	} else if (j_str_is(name, "revindex") || j_str_is(name, "revindex0")) {
		r = loop_length(run, loop, &n);
		*ret = j_int(n - i - (name->len == 9));
		return r;
	} else if (j_str_is(name, "previtem")) {
		*ret = loop->before;
		return i > 0 ? 0 : j_undefined(run, "there is no previous item", NULL, j_none(), ret);
	} else if (j_str_is(name, "nextitem")) {
		r = look_ahead(run, loop);
		*ret = loop->after;
		return r || ret->type != J_MISSING ? r :
			j_undefined(run, "there is no next item", NULL, j_none(), ret);
	} else if (j_str_is(name, "depth") || j_str_is(name, "depth0")) {
		*ret = j_int((int64_t)loop->depth0 + (name->len == 5));
	} else if (j_str_is(name, "cycle") || j_str_is(name, "changed")) {
		return loop_method(run, loop, name->len == 5 ? &cycle : &changed, ret);
	} else {
		*ret_has = false;
	}
	return 0;
}

int j_run_loop(struct j_run *run, struct j_scope *outer, const struct j_node *node,
	struct j_val over, size_t depth0)
{
	struct j_loop *loop = j_alloc(run, 1, sizeof(*loop));
	if (!loop) {
		return j_no_memory(run);
	}
	*loop = (struct j_loop){.node = node, .outer = outer, .test = node->c, .index0 = -1,
		.depth0 = depth0};
	struct j_scope *scope;
	bool whole = false; /* a body ran to its end: as jinja2 has it, what forgoes the else */
	int r = j_items(run, over, &loop->seq);
	while (r == 0) {
		struct j_val item = loop->after;
		r = item.type == J_MISSING ? pull(run, loop, &item) : 0;
		loop->after.type = J_MISSING;
		if (r != 0 || item.type == J_MISSING) {
			break;
		}
		loop->index0++;
		loop->before = loop->current;
		loop->current = item;
		r = j_scope_new(run, outer, &scope);
		r = r ? r : j_assign(run, scope, SYM_LOOP, (struct j_val){.type = J_LOOP, .loop = loop});
		r = r ? r : j_assign_target(run, scope, node->a, item);
		r = r ? r : j_exec(run, scope, node->items, node->n);
		enum j_flow flow = run->flow;
		whole |= flow == J_GO_ON;
		run->flow = J_GO_ON;
		if (flow == J_BREAK) {
			break;
		}
	}
	if (r == 0 && !whole && node->n_else > 0) {
		r = j_scope_new(run, outer, &scope);
		r = r ? r : j_exec(run, scope, node->orelse, node->n_else);
	}
	return r;
}

int j_call_loop(struct j_run *run, struct j_loop *loop, const struct j_args *args,
	struct j_val *ret)
{
	if (!loop->node->recursive) {
		return j_error(run,
			"The loop must have the 'recursive' marker to be called recursively.");
	}
	if (args->n != 1 || args->n_kw != 0) {
		return j_error(run, "a recursive loop takes what it is to go through, and nothing else");
	}
	if (run->calls >= J_MAX_CALLS) {
		return j_error(run, "a loop calls itself more than %d deep", J_MAX_CALLS);
	}
	struct j_out out = {0}, *before = run->out;
	run->out = &out;
	run->calls++;
	int r = j_run_loop(run, loop->outer, loop->node, args->pos[0], loop->depth0 + 1);
	run->calls--;
	run->out = before;
	return r ? r : j_out_str(run, &out, ret);
}
