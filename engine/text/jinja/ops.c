/* Operators, attributes, subscripts and slices. */

#include "engine/text/jinja/jinja-internal.h"

/* ---- arithmetic ---------------------------------------------------------------------------- */

static int operand_error(struct j_run *run, const char *op, struct j_val a, struct j_val b)
{
	if (a.type == J_UNDEFINED || b.type == J_UNDEFINED) {
		return j_undefined_error(run, a.type == J_UNDEFINED ? a : b);
	}
	return j_error(run, "unsupported operand type(s) for %s: '%s' and '%s'", op, j_type_name(a),
		j_type_name(b));
}

static int too_large(struct j_run *run)
{
	return j_error(run, "a whole number beyond 64 bits is not supported");
}

static int64_t floor_div(int64_t a, int64_t b)
{
	return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static int integer_power(struct j_run *run, int64_t base, int64_t exponent, struct j_val *ret)
{
	int64_t result = 1;
	if (exponent < 0) {
		if (base == 0) {
			return j_error(run, "0.0 cannot be raised to a negative power");
		}
		*ret = j_float(pow((double)base, (double)exponent));
		return 0;
	}
	if (base == 0 || base == 1 || base == -1) {
		*ret = j_int(exponent == 0 || base == 1 ? 1 : base == 0 ? 0 : exponent % 2 ? -1 : 1);
		return 0;
	}
	for (; exponent > 0; exponent--) {
		if (__builtin_mul_overflow(result, base, &result)) {
			return too_large(run);
		}
	}
	*ret = j_int(result);
	return 0;
}

static int integers(struct j_run *run, enum j_token_type op, int64_t a, int64_t b,
	struct j_val *ret)
{
	int64_t i = 0;
	bool over = false;
	switch (op) {
	case T_ADD:
		over = __builtin_add_overflow(a, b, &i);
		break;
	case T_SUB:
		over = __builtin_sub_overflow(a, b, &i);
		break;
	case T_MUL:
		over = __builtin_mul_overflow(a, b, &i);
		break;
	case T_POW:
		return integer_power(run, a, b, ret);
	default:
		if (b == 0) {
			return j_error(run, op == T_DIV ? "division by zero" :
				"integer division or modulo by zero");
		}
		if (op == T_DIV) {
			*ret = j_float((double)a / (double)b);
			return 0;
		}
		if (b == -1) { /* the smallest by -1 has no place in 64 bits */
			over = op == T_FLOORDIV && __builtin_sub_overflow(0, a, &i);
		} else {
			i = op == T_FLOORDIV ? floor_div(a, b) : a - floor_div(a, b) * b;
		}
	}
	*ret = j_int(i);
	return over ? too_large(run) : 0;
}

static int floats(struct j_run *run, enum j_token_type op, double a, double b, struct j_val *ret)
{
	double f = 0;
	if (b == 0 && (op == T_DIV || op == T_FLOORDIV || op == T_MOD)) {
		return j_error(run, "float division by zero");
	}
	switch (op) {
	case T_ADD:
		f = a + b;
		break;
	case T_SUB:
		f = a - b;
		break;
	case T_MUL:
		f = a * b;
		break;
	case T_DIV:
		f = a / b;
		break;
	case T_POW:
		f = pow(a, b);
		if ((a == 0 && b < 0) || (a < 0 && b != floor(b) && isfinite(b)) ||
			(isinf(f) && isfinite(a) && isfinite(b))) {
			return j_error(run, "this power is no real number");
		}
		break;
	default: /* as Python's float_divmod */
		f = fmod(a, b);
		double quotient = (a - f) / b;
		if (f != 0 && (b < 0) != (f < 0)) {
			f += b;
			quotient -= 1;
		} else if (f == 0) {
			f = copysign(0, b);
		}
		if (op == T_FLOORDIV) {
			double whole = floor(quotient);
			f = quotient == 0 ? copysign(0, a / b) : whole + (quotient - whole > 0.5);
		}
	}
	*ret = j_float(f);
	return 0;
}

static int concat_strs(struct j_run *run, struct j_val a, struct j_val b, struct j_val *ret)
{
	bool markup = a.s->markup || b.s->markup;
	int r = 0;
	if (markup) { /* what is not safe is escaped */
		r = a.s->markup ? 0 : j_escape(run, a, &a);
		r = r || b.s->markup ? r : j_escape(run, b, &b);
	}
	struct j_str *s = r == 0 ? j_alloc(run, 1, sizeof(*s)) : NULL;
	char *p = s ? j_alloc(run, a.s->len + b.s->len, 1) : NULL;
	if (!p) {
		return r ? r : j_no_memory(run);
	}
	memcpy(p, a.s->p, a.s->len);
	memcpy(p + a.s->len, b.s->p, b.s->len);
	*s = (struct j_str){.p = p, .len = a.s->len + b.s->len, .n = a.s->n + b.s->n, .markup = markup};
	*ret = j_of_str(s);
	return j_work(run, s->len);
}

static int concat_seqs(struct j_run *run, struct j_val a, struct j_val b, struct j_val *ret)
{
	size_t n = a.seq->n + b.seq->n;
	struct j_val *items = j_alloc(run, n, sizeof(*items));
	if (!items) {
		return j_no_memory(run);
	}
	if (a.seq->n > 0) {
		memcpy(items, a.seq->items, a.seq->n * sizeof(*items));
	}
	if (b.seq->n > 0) {
		memcpy(items + a.seq->n, b.seq->items, b.seq->n * sizeof(*items));
	}
	int r = j_work(run, n);
	return r ? r : j_seq(run, a.type, items, n, ret);
}

static int repeat(struct j_run *run, struct j_val v, int64_t times, struct j_val *ret)
{
	size_t unit = v.type == J_STR ? v.s->len : v.seq->n, n;
	times = times < 0 ? 0 : times;
	if (!mul_size(unit, (size_t)times, &n)) {
		run->arena.exhausted = true;
		return j_no_memory(run);
	}
	size_t size = v.type == J_STR ? 1 : sizeof(struct j_val);
	char *p = j_alloc(run, n, size);
	int r = p ? j_work(run, n) : j_no_memory(run);
	for (int64_t i = 0; r == 0 && unit > 0 && i < times; i++) {
		memcpy(p + (size_t)i * unit * size,
			v.type == J_STR ? (const void *)v.s->p : (const void *)v.seq->items, unit * size);
	}
	if (r != 0 || v.type != J_STR) {
		return r ? r : j_seq(run, v.type, (const struct j_val *)(const void *)p, n, ret);
	}
	return j_str(run, p, n, ret);
}

int j_binary(struct j_run *run, enum j_token_type op, struct j_val a, struct j_val b,
	struct j_val *ret)
{
	bool seq_a = a.type == J_LIST || a.type == J_TUPLE, seq_b = b.type == J_LIST || b.type == J_TUPLE;
	if (op == T_MOD && a.type == J_STR) {
		return a.s->markup ? j_error(run, "'%%' of what is marked safe is not supported") :
			j_percent(run, a, b, ret);
	}
	if (j_is_number(a) && j_is_number(b)) {
		return j_is_integral(a) && j_is_integral(b) ?
			integers(run, op, j_integer(a), j_integer(b), ret) :
			floats(run, op, j_real(a), j_real(b), ret);
	}
	if (op == T_ADD && a.type == J_STR && b.type == J_STR) {
		return concat_strs(run, a, b, ret);
	}
	if (op == T_ADD && seq_a && a.type == b.type) {
		return concat_seqs(run, a, b, ret);
	}
	if (op == T_MUL && (a.type == J_STR || seq_a) && j_is_integral(b)) {
		return repeat(run, a, j_integer(b), ret);
	}
	if (op == T_MUL && (b.type == J_STR || seq_b) && j_is_integral(a)) {
		return repeat(run, b, j_integer(a), ret);
	}
	if (op == T_ADD && a.type == J_STR && b.type != J_UNDEFINED) {
		return j_error(run, "can only concatenate str (not \"%s\") to str", j_type_name(b));
	}
	return operand_error(run, j_token_name(op), a, b);
}

int j_negate(struct j_run *run, struct j_val a, bool minus, struct j_val *ret)
{
	if (a.type == J_FLOAT) {
		*ret = j_float(minus ? -a.f : a.f);
		return 0;
	}
	if (j_is_integral(a)) {
		int64_t i = j_integer(a);
		if (minus && __builtin_sub_overflow(0, i, &i)) {
			return too_large(run);
		}
		*ret = j_int(i);
		return 0;
	}
	return a.type == J_UNDEFINED ? j_undefined_error(run, a) :
		j_error(run, "bad operand type for unary %c: '%s'", minus ? '-' : '+', j_type_name(a));
}

int j_contains(struct j_run *run, struct j_val item, struct j_val in, bool *ret)
{
	struct j_val ignored;
	struct j_seq seq;
	*ret = false;
	if (in.type == J_STR) {
		if (item.type != J_STR) {
			return j_error(run, "'in <string>' requires string as left operand, not %s",
				j_type_name(item));
		}
		*ret = item.s->len == 0 || memmem(in.s->p, in.s->len, item.s->p, item.s->len);
		return j_work(run, in.s->len);
	}
	if (in.type == J_DICT || (in.type == J_VIEW && in.view->of == J_KEYS)) {
		const struct j_dict *d = in.type == J_DICT ? in.d : in.view->d;
		int r = j_hashable(run, item);
		*ret = r == 0 && j_dict_get(run, d, item, &ignored);
		return r ? r : j_work(run, d->n);
	}
	if (!j_is_iterable(in)) {
		return j_error(run, "argument of type '%s' is not iterable", j_type_name(in));
	}
	size_t at = in.type == J_ITER ? in.iter->at : 0;
	int r = j_items(run, in, &seq);
	for (size_t i = 0; i < seq.n && r == 0 && !*ret; i++) {
		r = j_equal(run, seq.items[i], item, ret);
		if (in.type == J_ITER) { /* gone through only so far */
			in.iter->at = at + i + 1;
		}
	}
	return r;
}

/* ---- attributes and subscripts ------------------------------------------------------------- */

static int method_value(struct j_run *run, struct j_val self, const struct j_builtin *what,
	struct j_val *ret)
{
	struct j_method *m = j_alloc(run, 1, sizeof(*m));
	if (!m) {
		return j_no_memory(run);
	}
	*m = (struct j_method){.self = self, .what = what};
	*ret = (struct j_val){.type = J_METHOD, .method = m};
	return 0;
}

/* What Python's getattr() finds, as far as a template may see it. */
static int attribute(struct j_run *run, struct j_val of, const struct j_str *name, bool *ret_has,
	struct j_val *ret)
{
	const struct j_builtin *method;
	bool unsafe = false;
	*ret_has = true;
	if (of.type == J_UNDEFINED) {
		return j_undefined_error(run, of);
	}
	if (of.type == J_NAMESPACE && j_dict_get_str(of.d, name, ret)) {
		return 0;
	}
	if (of.type == J_LOOP) {
		int r = j_loop_attribute(run, of.loop, name, ret_has, ret);
		if (r != 0 || *ret_has) {
			return r;
		}
	} else if (of.type == J_MACRO && j_str_is(name, "name")) {
		return j_cstr(run, of.macro->name ? of.macro->name : "", ret);
	} else if ((method = j_find_method(of.type, name))) {
		return method_value(run, of, method, ret);
	}
	const char *why = j_attribute_refused(of.type, name, &unsafe);
	if (why && !unsafe) {
		return j_error(run, "'%s' of a %s is not supported", why, j_type_name(of));
	}
	if (why) {
		struct j_out hint = {0};
		int r = j_puts(run, &hint, "access to attribute '");
		r = r ? r : j_put(run, &hint, name->p, name->len);
		r = r ? r : j_puts(run, &hint, "' of '");
		r = r ? r : j_puts(run, &hint, j_type_name(of));
		r = r ? r : j_put(run, &hint, "' object is unsafe.", sizeof("' object is unsafe."));
		return r ? r : j_undefined(run, hint.p, NULL, j_of_str(name), ret);
	}
	*ret_has = false;
	return 0;
}

/* Python's of[key]; *ret_has false where that is a TypeError or LookupError. */
static int item(struct j_run *run, struct j_val of, struct j_val key, bool *ret_has,
	struct j_val *ret)
{
	*ret_has = false;
	if (of.type == J_UNDEFINED) {
		return j_undefined_error(run, of);
	}
	if (of.type == J_DICT) {
		if (key.type == J_LIST || key.type == J_DICT) {
			return 0;
		}
		*ret_has = j_dict_get(run, of.d, key, ret);
		return j_work(run, 0);
	}
	bool seq = of.type == J_LIST || of.type == J_TUPLE || of.type == J_RANGE || of.type == J_STR;
	size_t n;
	if (!seq || !j_is_integral(key)) {
		return 0;
	}
	int r = j_length(run, of, &n);
	int64_t i = j_integer(key);
	i += i < 0 ? (int64_t)n : 0;
	if (r != 0 || i < 0 || i >= (int64_t)n) {
		return r;
	}
	*ret_has = true;
	if (of.type == J_RANGE) {
		*ret = j_int(of.range->start + i * of.range->step);
	} else if (of.type == J_STR) {
		return j_substr(run, of.s, (size_t)i, (size_t)i + 1, ret);
	} else {
		*ret = of.seq->items[i];
	}
	return 0;
}

int j_getattr(struct j_run *run, struct j_val of, const struct j_str *name, struct j_val *ret)
{
	struct j_val key = j_of_str(name);
	bool has;
	int r = attribute(run, of, name, &has, ret);
	if (r == 0 && !has) {
		r = item(run, of, key, &has, ret);
	}
	return r || has ? r : j_undefined(run, NULL, j_type_name(of), key, ret);
}

int j_getitem(struct j_run *run, struct j_val of, struct j_val key, struct j_val *ret)
{
	bool has;
	int r = item(run, of, key, &has, ret);
	if (r == 0 && !has && key.type == J_STR) {
		r = attribute(run, of, key.s, &has, ret);
	}
	return r || has ? r : j_undefined(run, NULL, j_type_name(of), key, ret);
}

int j_get_path(struct j_run *run, struct j_val of, struct j_val path, struct j_val fallback,
	struct j_val *ret)
{
	int r = 0;
	if (path.type == J_NONE || path.type == J_MISSING) {
		*ret = of;
		return 0;
	}
	if (path.type != J_STR) {
		r = j_getitem(run, of, path, ret);
	}
	for (size_t at = 0; r == 0 && path.type == J_STR && at <= path.s->len;) {
		const char *dot = memchr(path.s->p + at, '.', path.s->len - at);
		size_t end = dot ? (size_t)(dot - path.s->p) : path.s->len;
		bool number = end > at && end - at < 10;
		int64_t n = 0;
		for (size_t i = at; i < end && number; i++) {
			number = path.s->p[i] >= '0' && path.s->p[i] <= '9';
			n = n * 10 + (path.s->p[i] - '0');
		}
		struct j_val key = j_int(n);
		r = number ? 0 : j_str(run, path.s->p + at, end - at, &key);
		r = r ? r : j_getitem(run, of, key, &of);
		if (r == 0 && of.type == J_UNDEFINED && fallback.type != J_MISSING &&
			fallback.type != J_NONE) {
			of = fallback;
		}
		*ret = of;
		at = end + 1;
	}
	if (r == 0 && path.type != J_STR && ret->type == J_UNDEFINED && fallback.type != J_MISSING &&
		fallback.type != J_NONE) {
		*ret = fallback;
	}
	return r;
}

/* ---- slices -------------------------------------------------------------------------------- */

static int bound(struct j_run *run, struct j_val v, int64_t n, bool down, int64_t otherwise,
	int64_t *ret)
{
	if (v.type == J_NONE || v.type == J_MISSING) {
		*ret = otherwise;
		return 0;
	}
	if (!j_is_integral(v)) {
		return j_error(run, "slice indices must be integers or None or have an __index__ method");
	}
	int64_t i = j_integer(v), low = down ? -1 : 0, high = down ? n - 1 : n;
	if (i < 0) {
		i = i < -n ? low : i + n;
	}
	*ret = i > high ? high : i < low ? low : i;
	return 0;
}

int j_slice(struct j_run *run, struct j_val of, struct j_val start, struct j_val stop,
	struct j_val step, struct j_val *ret)
{
	int64_t by = 1, from = 0, to = 0;
	size_t length;
	if (of.type == J_UNDEFINED) {
		return j_undefined_error(run, of);
	}
	if (of.type != J_STR && of.type != J_LIST && of.type != J_TUPLE) {
		return j_error(run, "'%s' object is not subscriptable by a slice", j_type_name(of));
	}
	int r = j_length(run, of, &length);
	int64_t n = (int64_t)length, at = 0, count = 0;
	if (step.type != J_NONE && step.type != J_MISSING) {
		if (!j_is_integral(step)) {
			return j_error(run,
				"slice indices must be integers or None or have an __index__ method");
		}
		by = j_integer(step);
	}
	if (by == 0) {
		return j_error(run, "slice step cannot be zero");
	}
	by = by > n + 1 ? n + 1 : by < -n - 1 ? -n - 1 : by;
	r = r ? r : bound(run, start, n, by < 0, by < 0 ? n - 1 : 0, &from);
	r = r ? r : bound(run, stop, n, by < 0, by < 0 ? -1 : n, &to);
	if (r != 0) {
		return r;
	}
	if (by > 0 ? from < to : from > to) {
		count = by > 0 ? (to - from - 1) / by + 1 : (from - to - 1) / -by + 1;
	}
	if (of.type == J_STR && by == 1) {
		return j_substr(run, of.s, (size_t)from, (size_t)(from + count), ret);
	}
	struct j_seq seq;
	r = j_items(run, of, &seq);
	struct j_val *items = r == 0 ? j_alloc(run, (size_t)count, sizeof(*items)) : NULL;
	if (!items) {
		return r ? r : j_no_memory(run);
	}
	for (int64_t i = from; at < count; at++, i += by) {
		items[at] = seq.items[i];
	}
	seq = (struct j_seq){items, (size_t)count};
	if (of.type == J_STR) {
		static const struct j_str nothing = {.p = ""};
		return j_join(run, &nothing, &seq, true, ret);
	}
	return j_seq(run, of.type, items, (size_t)count, ret);
}
