/* Expressions: calls, filters, tests, subscripts and operators, by the precedences of jinja2's
 * parser. */

#include "engine/text/jinja/jinja-internal.h"

/* ---- calls, filters, tests, subscripts ----------------------------------------------------- */

static int add_keyword(struct j_parser *p, struct j_node *node, size_t *cap)
{
	const struct j_str *name;
	if (node->n_kws == *cap) {
		*cap = *cap ? 2 * *cap : 4;
		struct j_keyword *kws = j_arena_alloc(&p->t->arena, *cap * sizeof(*kws));
		if (!kws) {
			return -ENOMEM;
		}
		if (node->n_kws > 0) {
			memcpy(kws, node->kws, node->n_kws * sizeof(*kws));
		}
		node->kws = kws;
	}
	int r = j_parse_name(p, &name, NULL);
	j_step(p); /* the sign = */
	if (r == 0) {
		for (size_t i = 0; i < node->n_kws; i++) {
			if (node->kws[i].name->len == name->len &&
				memcmp(node->kws[i].name->p, name->p, name->len) == 0) {
				return j_syntax(p, j_token(p)->line, "keyword argument repeated: %.*s",
					(int)min_i64((int64_t)name->len, 64), name->p);
			}
		}
		node->kws[node->n_kws].name = name;
		r = j_parse_expression(p, true, &node->kws[node->n_kws].value);
		node->n_kws++;
	}
	return r;
}

static int parse_args(struct j_parser *p, struct j_node *node)
{
	struct j_list items = {0};
	size_t cap = 0;
	unsigned line = j_token(p)->line;
	bool comma = false;
	int r = j_expect(p, T_LPAREN);
	while (r == 0 && j_token(p)->type != T_RPAREN) {
		bool order = true;
		struct j_node *item;
		r = comma ? j_expect(p, T_COMMA) : 0;
		if (r != 0 || j_token(p)->type == T_RPAREN) {
			break;
		}
		if (j_skip(p, T_MUL)) {
			order = !node->star && !node->starstar;
			r = j_parse_expression(p, true, &node->star);
		} else if (j_skip(p, T_POW)) {
			order = !node->starstar;
			r = j_parse_expression(p, true, &node->starstar);
		} else if (j_token(p)->type == T_NAME && j_next_token(p)->type == T_ASSIGN) {
			order = !node->starstar;
			r = add_keyword(p, node, &cap);
		} else {
			order = !node->star && !node->starstar && node->n_kws == 0;
			r = j_parse_expression(p, true, &item);
			r = r ? r : j_list_add(p, &items, item);
		}
		if (!order) {
			return j_syntax(p, line, "invalid syntax for function call expression");
		}
		comma = true;
	}
	node->items = items.items;
	node->n = items.n;
	return r ? r : j_expect(p, T_RPAREN);
}

/* A name with dots in it, as filters and tests may have. */
static int dotted_name(struct j_parser *p, const struct j_str **ret)
{
	int r = j_parse_name(p, ret, NULL);
	while (r == 0 && j_skip(p, T_DOT)) {
		r = j_parse_name(p, ret, NULL); /* no known one has a dot: the last part is not found */
		if (r == 0) {
			return j_syntax(p, j_token(p)->line, "there is no filter or test with a dot in its name");
		}
	}
	return r;
}

int j_parse_filters(struct j_parser *p, struct j_node *of, bool inlined, struct j_node **ret)
{
	while (inlined || j_token(p)->type == T_PIPE) {
		const struct j_str *name;
		struct j_node *node;
		if (!inlined) {
			j_step(p);
		}
		unsigned line = j_token(p)->line;
		int r = dotted_name(p, &name);
		r = r ? r : j_node_new(p, N_FILTER, line, &node);
		if (r != 0) {
			return r;
		}
		node->a = of;
		node->what = j_find_filter(name);
		if (!node->what) {
			return j_syntax(p, line, j_filter_unsupported(name) ?
				"the filter '%.*s' is not supported" : "No filter named '%.*s'.",
				(int)min_i64((int64_t)name->len, 64), name->p);
		}
		if (j_token(p)->type == T_LPAREN && (r = parse_args(p, node)) != 0) {
			return r;
		}
		of = node;
		inlined = false;
	}
	*ret = of;
	return 0;
}

static int parse_postfix(struct j_parser *p, struct j_node **node);

static bool starts_test_argument(const struct j_parser *p)
{
	switch (j_token(p)->type) {
	case T_NAME:
		return !j_at_name(p, "else") && !j_at_name(p, "or") && !j_at_name(p, "and");
	case T_STRING:
	case T_INTEGER:
	case T_FLOAT:
	case T_LBRACKET:
	case T_LBRACE:
		return true;
	default:
		return false;
	}
}

static int parse_test(struct j_parser *p, struct j_node **io)
{
	const struct j_str *name;
	struct j_node *node, *arg;
	unsigned line = j_token(p)->line;
	j_step(p); /* `is` */
	bool negated = j_skip_name(p, "not");
	int r = dotted_name(p, &name);
	r = r ? r : j_node_new(p, N_TEST, line, &node);
	if (r != 0) {
		return r;
	}
	node->a = *io;
	node->what = j_find_test(name);
	if (!node->what) {
		return j_syntax(p, line, "No test named '%.*s'.", (int)min_i64((int64_t)name->len, 64),
			name->p);
	}
	if (j_token(p)->type == T_LPAREN) {
		r = parse_args(p, node);
	} else if (starts_test_argument(p)) {
		struct j_list items = {0};
		if (j_at_name(p, "is")) {
			return j_syntax(p, line, "You cannot chain multiple tests with is");
		}
		r = j_parse_primary(p, false, &arg);
		r = r ? r : parse_postfix(p, &arg);
		r = r ? r : j_list_add(p, &items, arg);
		node->items = items.items;
		node->n = items.n;
	}
	*io = node;
	if (r == 0 && negated) {
		r = j_node_new(p, N_NOT, line, io);
		(*io)->a = node;
	}
	return r;
}

static int optional_part(struct j_parser *p, struct j_node **ret)
{
	enum j_token_type t = j_token(p)->type;
	return t == T_COLON || t == T_RBRACKET || t == T_COMMA ? 0 : j_parse_expression(p, true, ret);
}

/* One entry between brackets: an index or a slice. */
static int parse_subscribed(struct j_parser *p, struct j_node **ret)
{
	struct j_node *start = NULL, *node;
	unsigned line = j_token(p)->line;
	int r = optional_part(p, &start);
	if (r != 0 || !j_skip(p, T_COLON)) {
		char text[80];
		*ret = start;
		return r || start ? r : j_syntax(p, line, "unexpected '%s'",
			j_describe(j_token(p), text, sizeof(text)));
	}
	r = j_node_new(p, N_SLICE, line, &node);
	if (r == 0) {
		node->a = start;
		r = optional_part(p, &node->b);
		if (r == 0 && j_skip(p, T_COLON)) {
			r = optional_part(p, &node->c);
		}
		*ret = node;
	}
	return r;
}

static int parse_subscript(struct j_parser *p, struct j_node **io)
{
	struct j_node *node, *arg;
	unsigned line = j_token(p)->line;
	int r;
	if (j_skip(p, T_DOT)) {
		const struct j_token *t = j_token(p);
		bool index = t->type == T_INTEGER;
		if (t->type != T_NAME && !index) {
			return j_syntax(p, t->line, "expected name or number");
		}
		j_step(p);
		r = j_node_new(p, index ? N_GETITEM : N_GETATTR, line, &node);
		if (r == 0 && index) {
			r = j_const_node(p, t->line, j_int(t->i), &node->b);
		} else if (r == 0) {
			const struct j_str *s = NULL;
			r = j_parser_str(p, t->p, t->len, &s);
			node->value = j_of_str(s);
		}
	} else {
		struct j_list args = {0};
		r = j_expect(p, T_LBRACKET);
		while (r == 0 && j_token(p)->type != T_RBRACKET) {
			r = args.n > 0 ? j_expect(p, T_COMMA) : 0;
			r = r ? r : parse_subscribed(p, &arg);
			r = r ? r : j_list_add(p, &args, arg);
		}
		r = r ? r : j_expect(p, T_RBRACKET);
		r = r ? r : j_node_new(p, N_GETITEM, line, &node);
		if (r == 0 && args.n == 1) {
			node->b = args.items[0];
		} else if (r == 0) {
			for (size_t i = 0; i < args.n; i++) {
				if (args.items[i]->kind == N_SLICE) {
					return j_syntax(p, line, "several slices at once are not supported");
				}
			}
			r = j_node_new(p, N_TUPLE, line, &node->b);
			if (r == 0) {
				node->b->items = args.items;
				node->b->n = args.n;
			}
		}
	}
	if (r == 0) {
		node->a = *io;
		*io = node;
	}
	return r;
}

static int parse_call(struct j_parser *p, struct j_node **io)
{
	struct j_node *node;
	int r = j_node_new(p, N_CALL, j_token(p)->line, &node);
	if (r == 0) {
		node->a = *io;
		r = parse_args(p, node);
		*io = node;
	}
	return r;
}

static int parse_postfix(struct j_parser *p, struct j_node **node)
{
	int r = 0;
	for (unsigned links = 0; r == 0; links++) {
		enum j_token_type t = j_token(p)->type;
		if (links > J_MAX_NESTING) {
			return j_syntax(p, j_token(p)->line, "a chain of more than %d links", J_MAX_NESTING);
		}
		if (t == T_DOT || t == T_LBRACKET) {
			r = parse_subscript(p, node);
		} else if (t == T_LPAREN) {
			r = parse_call(p, node);
		} else {
			return 0;
		}
	}
	return r;
}

static int parse_filter_expr(struct j_parser *p, struct j_node **node)
{
	int r = 0;
	for (unsigned links = 0; r == 0; links++) {
		if (links > J_MAX_NESTING) {
			return j_syntax(p, j_token(p)->line, "a chain of more than %d links", J_MAX_NESTING);
		}
		if (j_token(p)->type == T_PIPE) {
			r = j_parse_filters(p, *node, false, node);
		} else if (j_at_name(p, "is")) {
			r = parse_test(p, node);
		} else if (j_token(p)->type == T_LPAREN) {
			r = parse_call(p, node);
		} else {
			return 0;
		}
	}
	return r;
}

/* ---- operators, from the tightest to the loosest ------------------------------------------- */

static int parse_unary(struct j_parser *p, bool with_filter, struct j_node **ret)
{
	enum j_token_type t = j_token(p)->type;
	unsigned line = j_token(p)->line;
	int r = j_deeper(p);
	if (r == 0 && (t == T_SUB || t == T_ADD)) {
		struct j_node *of;
		j_step(p);
		r = parse_unary(p, false, &of);
		r = r ? r : j_node_new(p, t == T_SUB ? N_NEG : N_POS, line, ret);
		if (r == 0) {
			(*ret)->a = of;
		}
	} else if (r == 0) {
		r = j_parse_primary(p, false, ret);
	}
	r = r ? r : parse_postfix(p, ret);
	r = r || !with_filter ? r : parse_filter_expr(p, ret);
	p->depth--;
	return r;
}

typedef int parse_function(struct j_parser *p, struct j_node **ret);

static int parse_operand(struct j_parser *p, struct j_node **ret)
{
	return parse_unary(p, true, ret);
}

/* Operators that bind to the left, as many as there are. */
static int parse_left(struct j_parser *p, parse_function *operand, unsigned operators,
	struct j_node **ret)
{
	int r = operand(p, ret);
	for (unsigned links = 0; r == 0 && j_token(p)->type < 32 &&
		(operators >> j_token(p)->type & 1); links++) {
		struct j_node *node, *right;
		const struct j_token *t = j_token(p);
		if (links > J_MAX_NESTING) {
			return j_syntax(p, t->line, "a chain of more than %d operators", J_MAX_NESTING);
		}
		j_step(p);
		r = operand(p, &right);
		r = r ? r : j_node_new(p, N_BINARY, t->line, &node);
		if (r == 0) {
			node->op = t->type;
			node->a = *ret;
			node->b = right;
			*ret = node;
		}
	}
	return r;
}

static int parse_pow(struct j_parser *p, struct j_node **ret)
{
	return parse_left(p, parse_operand, 1u << T_POW, ret);
}

static int parse_product(struct j_parser *p, struct j_node **ret)
{
	return parse_left(p, parse_pow, 1u << T_MUL | 1u << T_DIV | 1u << T_FLOORDIV | 1u << T_MOD, ret);
}

static int parse_concat(struct j_parser *p, struct j_node **ret)
{
	struct j_list items = {0};
	unsigned line = j_token(p)->line;
	int r = parse_product(p, ret);
	if (r != 0 || j_token(p)->type != T_TILDE) {
		return r;
	}
	r = j_list_add(p, &items, *ret);
	while (r == 0 && j_skip(p, T_TILDE)) {
		r = parse_product(p, ret);
		r = r ? r : j_list_add(p, &items, *ret);
	}
	r = r ? r : j_node_new(p, N_CONCAT, line, ret);
	if (r == 0) {
		(*ret)->items = items.items;
		(*ret)->n = items.n;
	}
	return r;
}

static int parse_sum(struct j_parser *p, struct j_node **ret)
{
	return parse_left(p, parse_concat, 1u << T_ADD | 1u << T_SUB, ret);
}

/* The comparison that stands here; T_NAME: `in`, T_STRING: `not in`; T_EOF: none. */
static enum j_token_type take_comparison(struct j_parser *p)
{
	enum j_token_type t = j_token(p)->type;
	if (t >= T_EQ && t <= T_GE) {
		j_step(p);
		return t;
	}
	if (j_skip_name(p, "in")) {
		return T_NAME;
	}
	if (j_at_name(p, "not") && j_token_is(j_next_token(p), "in")) {
		j_step(p);
		j_step(p);
		return T_STRING;
	}
	return T_EOF;
}

static int parse_compare(struct j_parser *p, struct j_node **ret)
{
	enum j_token_type ops[16], op;
	struct j_list items = {0};
	struct j_node *first, *node;
	unsigned line = j_token(p)->line;
	int r = parse_sum(p, &first);
	*ret = first;
	while (r == 0 && (op = take_comparison(p)) != T_EOF) {
		if (items.n == ARRAY_LEN(ops)) {
			return j_syntax(p, line, "a chain of more than %zu comparisons", ARRAY_LEN(ops));
		}
		ops[items.n] = op;
		r = parse_sum(p, &node);
		r = r ? r : j_list_add(p, &items, node);
	}
	if (r != 0 || items.n == 0) {
		return r;
	}
	r = j_node_new(p, N_COMPARE, line, ret);
	enum j_token_type *own = j_arena_alloc(&p->t->arena, items.n * sizeof(*own));
	if (r != 0 || !own) {
		return r ? r : -ENOMEM;
	}
	memcpy(own, ops, items.n * sizeof(*own));
	(*ret)->a = first;
	(*ret)->items = items.items;
	(*ret)->n = items.n;
	(*ret)->ops = own;
	return 0;
}

static int parse_not(struct j_parser *p, struct j_node **ret)
{
	unsigned line = j_token(p)->line, nots = 0;
	while (j_skip_name(p, "not")) {
		nots++;
	}
	if (nots > J_MAX_NESTING) {
		return j_syntax(p, line, "nested more than %d deep", J_MAX_NESTING);
	}
	int r = parse_compare(p, ret);
	for (; r == 0 && nots > 0; nots--) {
		struct j_node *of = *ret;
		r = j_node_new(p, N_NOT, line, ret);
		if (r == 0) {
			(*ret)->a = of;
		}
	}
	return r;
}

static int parse_words(struct j_parser *p, parse_function *operand, const char *word,
	enum j_kind kind, struct j_node **ret)
{
	int r = operand(p, ret);
	for (unsigned links = 0; r == 0 && j_at_name(p, word); links++) {
		struct j_node *node, *right;
		unsigned line = j_token(p)->line;
		if (links > J_MAX_NESTING) {
			return j_syntax(p, line, "a chain of more than %d operators", J_MAX_NESTING);
		}
		j_step(p);
		r = operand(p, &right);
		r = r ? r : j_node_new(p, kind, line, &node);
		if (r == 0) {
			node->a = *ret;
			node->b = right;
			*ret = node;
		}
	}
	return r;
}

static int parse_and(struct j_parser *p, struct j_node **ret)
{
	return parse_words(p, parse_not, "and", N_AND, ret);
}

static int parse_or(struct j_parser *p, struct j_node **ret)
{
	return parse_words(p, parse_and, "or", N_OR, ret);
}

int j_parse_expression(struct j_parser *p, bool with_cond, struct j_node **ret)
{
	int r = j_deeper(p);
	r = r ? r : parse_or(p, ret);
	for (unsigned links = 0; r == 0 && with_cond && j_at_name(p, "if"); links++) {
		struct j_node *node;
		unsigned line = j_token(p)->line;
		if (links > J_MAX_NESTING) {
			return j_syntax(p, line, "a chain of more than %d conditions", J_MAX_NESTING);
		}
		j_step(p);
		r = j_node_new(p, N_COND, line, &node);
		r = r ? r : parse_or(p, &node->a);
		if (r == 0 && j_skip_name(p, "else")) {
			r = j_parse_expression(p, true, &node->c);
		}
		if (r == 0) {
			node->b = *ret;
			*ret = node;
		}
	}
	p->depth--;
	return r;
}
