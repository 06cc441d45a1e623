/* What stands behind `is`. */

#include "engine/text/jinja/jinja-internal.h"

#define TEST(name) \
	static int test_##name(struct j_run *run, struct j_val self, const struct j_args *args, \
		struct j_val *ret)

/* The one argument of a test that compares. */
static int one_argument(struct j_run *run, const struct j_args *args, struct j_val *ret)
{
	if (args->n != 1 || args->n_kw != 0) {
		return j_error(run, "this test takes one argument");
	}
	*ret = args->pos[0];
	return 0;
}

static int answer(struct j_run *run, const struct j_args *args, bool holds, struct j_val *ret)
{
	*ret = j_bool(holds);
	return args->n == 0 && args->n_kw == 0 ? 0 : j_error(run, "this test takes no arguments");
}

/* ---- of types ------------------------------------------------------------------------------ */

TEST(defined) { return answer(run, args, self.type != J_UNDEFINED, ret); }
TEST(undefined) { return answer(run, args, self.type == J_UNDEFINED, ret); }
TEST(none) { return answer(run, args, self.type == J_NONE, ret); }
TEST(boolean) { return answer(run, args, self.type == J_BOOL, ret); }
TEST(true) { return answer(run, args, self.type == J_BOOL && self.b, ret); }
TEST(false) { return answer(run, args, self.type == J_BOOL && !self.b, ret); }
TEST(integer) { return answer(run, args, self.type == J_INT, ret); }
TEST(float) { return answer(run, args, self.type == J_FLOAT, ret); }
TEST(number) { return answer(run, args, j_is_number(self), ret); }
TEST(string) { return answer(run, args, self.type == J_STR, ret); }
TEST(mapping) { return answer(run, args, self.type == J_DICT, ret); }
TEST(iterable)
{
	return answer(run, args, j_is_iterable(self) || self.type == J_LOOP, ret);
}
TEST(sequence)
{
	return answer(run, args, (j_has_length(self) && self.type != J_VIEW) || self.type == J_LOOP, ret);
}
TEST(callable) { return answer(run, args, self.type >= J_LOOP || self.type == J_UNDEFINED, ret); }
TEST(escaped) { return answer(run, args, self.type == J_STR && self.s->markup, ret); }

static int is_case(struct j_run *run, struct j_val self, const struct j_args *args, bool upper,
	struct j_val *ret)
{
	struct j_val s;
	int r = j_to_str(run, self, &s);
	r = r ? r : j_work(run, s.s->len);
	return r ? r : answer(run, args, j_is_case(s.s, upper), ret);
}

TEST(lower) { return is_case(run, self, args, false, ret); }
TEST(upper) { return is_case(run, self, args, true, ret); }

TEST(filter)
{
	return answer(run, args, self.type == J_STR && (j_find_filter(self.s) ||
		j_filter_unsupported(self.s)), ret);
}

TEST(test) { return answer(run, args, self.type == J_STR && j_find_test(self.s), ret); }

/* ---- of numbers ---------------------------------------------------------------------------- */

static int divides(struct j_run *run, struct j_val self, struct j_val by, int64_t rest,
	struct j_val *ret)
{
	struct j_val left;
	bool same = false;
	int r = j_binary(run, T_MOD, self, by, &left);
	r = r ? r : j_equal(run, left, j_int(rest), &same);
	*ret = j_bool(same);
	return r;
}

TEST(odd)
{
	int r = answer(run, args, false, ret);
	return r ? r : divides(run, self, j_int(2), 1, ret);
}

TEST(even)
{
	int r = answer(run, args, false, ret);
	return r ? r : divides(run, self, j_int(2), 0, ret);
}

TEST(divisibleby)
{
	static const char *const names[] = {"num"};
	struct j_val by;
	int r = j_bind(run, "divisibleby", args, names, 1, 1, &by);
	return r ? r : divides(run, self, by, 0, ret);
}

/* ---- of two values ------------------------------------------------------------------------- */

TEST(in)
{
	static const char *const names[] = {"seq"};
	struct j_val in;
	bool holds = false;
	int r = j_bind(run, "in", args, names, 1, 1, &in);
	r = r ? r : j_contains(run, self, in, &holds);
	*ret = j_bool(holds);
	return r;
}

TEST(sameas)
{
	static const char *const names[] = {"other"};
	struct j_val other;
	bool same = false;
	int r = j_bind(run, "sameas", args, names, 1, 1, &other);
	if (r != 0) {
		return r;
	}
	if (self.type != other.type) {
		same = false;
	} else if (self.type == J_NONE || self.type == J_BOOL) {
		same = self.type == J_NONE || self.b == other.b;
	} else if (self.type == J_INT || self.type == J_FLOAT || self.type == J_STR) {
		return j_error(run, "whether two values of type %s are the same object is not known here",
			j_type_name(self));
	} else {
		same = self.d == other.d;
	}
	*ret = j_bool(same);
	return 0;
}

TEST(eq)
{
	struct j_val other;
	bool same = false;
	int r = one_argument(run, args, &other);
	r = r ? r : j_equal(run, self, other, &same);
	*ret = j_bool(same);
	return r;
}

TEST(ne)
{
	int r = test_eq(run, self, args, ret);
	ret->b = r == 0 && !ret->b;
	return r;
}

static int ordered(struct j_run *run, struct j_val self, const struct j_args *args, const char *op,
	struct j_val *ret)
{
	struct j_val other;
	int c = 2, r = one_argument(run, args, &other);
	r = r ? r : j_compare(run, self, other, op, &c);
	*ret = j_bool((c == 1 && op[0] == '>') || (c == -1 && op[0] == '<') || (c == 0 && op[1]));
	return r;
}

TEST(gt) { return ordered(run, self, args, ">", ret); }
TEST(ge) { return ordered(run, self, args, ">=", ret); }
TEST(lt) { return ordered(run, self, args, "<", ret); }
TEST(le) { return ordered(run, self, args, "<=", ret); }

const struct j_builtin *j_find_test(const struct j_str *name)
{
	static const struct j_builtin tests[] = {
		{"defined", test_defined}, {"undefined", test_undefined}, {"none", test_none},
		{"string", test_string}, {"mapping", test_mapping}, {"iterable", test_iterable},
		{"sequence", test_sequence}, {"boolean", test_boolean}, {"true", test_true},
		{"false", test_false}, {"integer", test_integer}, {"float", test_float},
		{"number", test_number}, {"callable", test_callable}, {"escaped", test_escaped},
		{"lower", test_lower}, {"upper", test_upper}, {"filter", test_filter}, {"test", test_test},
		{"odd", test_odd}, {"even", test_even}, {"divisibleby", test_divisibleby}, {"in", test_in},
		{"sameas", test_sameas}, {"eq", test_eq}, {"==", test_eq}, {"equalto", test_eq},
		{"ne", test_ne}, {"!=", test_ne}, {"gt", test_gt}, {">", test_gt},
		{"greaterthan", test_gt}, {"ge", test_ge}, {">=", test_ge}, {"lt", test_lt},
		{"<", test_lt}, {"lessthan", test_lt}, {"le", test_le}, {"<=", test_le},
	};
	for (size_t i = 0; i < ARRAY_LEN(tests); i++) {
		if (j_str_is(name, tests[i].name)) {
			return &tests[i];
		}
	}
	return NULL;
}
