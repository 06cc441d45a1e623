/* Tokens to nodes: what both halves of the parser use, literals, tuples and targets. */

#include <stdarg.h>

#include "engine/text/jinja/jinja-internal.h"

/* ---- tokens and nodes ---------------------------------------------------------------------- */

int j_syntax(struct j_parser *p, unsigned line, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return errmsg_set(p->err, STATUS_INVALID, "line %u: %s", line, text);
}

const struct j_token *j_token(const struct j_parser *p)
{
	return &p->tokens[p->at];
}

const struct j_token *j_next_token(const struct j_parser *p)
{
	return &p->tokens[p->at + (p->at + 1 < p->n)];
}

void j_step(struct j_parser *p)
{
	p->at += p->at + 1 < p->n;
}

bool j_token_is(const struct j_token *t, const char *name)
{
	return t->type == T_NAME && t->len == strlen(name) && memcmp(t->p, name, t->len) == 0;
}

bool j_at_name(const struct j_parser *p, const char *name)
{
	return j_token_is(j_token(p), name);
}

bool j_skip(struct j_parser *p, enum j_token_type type)
{
	bool there = j_token(p)->type == type;
	if (there) {
		j_step(p);
	}
	return there;
}

bool j_skip_name(struct j_parser *p, const char *name)
{
	bool there = j_at_name(p, name);
	if (there) {
		j_step(p);
	}
	return there;
}

const char *j_describe(const struct j_token *t, char *text, size_t size)
{
	if (t->type == T_NAME) {
		snprintf(text, size, "%.*s", (int)min_i64((int64_t)t->len, 64), t->p);
	} else {
		snprintf(text, size, "%s", j_token_name(t->type));
	}
	return text;
}

int j_expect(struct j_parser *p, enum j_token_type type)
{
	char text[80];
	const struct j_token *t = j_token(p);
	if (j_skip(p, type)) {
		return 0;
	}
	if (t->type == T_EOF) {
		return j_syntax(p, t->line, "unexpected end of template, expected '%s'.",
			j_token_name(type));
	}
	return j_syntax(p, t->line, "expected token '%s', got '%s'", j_token_name(type),
		j_describe(t, text, sizeof(text)));
}

int j_node_new(struct j_parser *p, enum j_kind kind, unsigned line, struct j_node **ret)
{
	struct j_node *node = j_arena_alloc(&p->t->arena, sizeof(*node));
	if (!node) {
		return -ENOMEM;
	}
	*node = (struct j_node){.kind = kind, .line = line};
	*ret = node;
	return 0;
}

int j_list_add(struct j_parser *p, struct j_list *l, struct j_node *node)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 4;
		struct j_node **items = j_arena_alloc(&p->t->arena, cap * sizeof(*items));
		if (!items) {
			return -ENOMEM;
		}
		if (l->n > 0) {
			memcpy(items, l->items, l->n * sizeof(*items));
		}
		l->items = items;
		l->cap = cap;
	}
	l->items[l->n++] = node;
	return 0;
}

int j_parser_str(struct j_parser *p, const char *text, size_t len, const struct j_str **ret)
{
	struct j_str *s = j_arena_alloc(&p->t->arena, sizeof(*s));
	if (!s) {
		return -ENOMEM;
	}
	*s = (struct j_str){.p = text, .len = len, .n = j_count_points(text, len)};
	*ret = s;
	return 0;
}

int j_parse_name(struct j_parser *p, const struct j_str **ret, uint32_t *ret_sym)
{
	const struct j_token *t = j_token(p);
	int r = j_expect(p, T_NAME);
	if (r == 0 && ret) {
		r = j_parser_str(p, t->p, t->len, ret);
	}
	return r == 0 && ret_sym ? j_intern(p->t, t->p, t->len, ret_sym) : r;
}

int j_deeper(struct j_parser *p)
{
	if (++p->depth > J_MAX_NESTING) {
		return j_syntax(p, j_token(p)->line, "nested more than %d deep", J_MAX_NESTING);
	}
	return 0;
}

/* ---- literals ------------------------------------------------------------------------------ */

int j_const_node(struct j_parser *p, unsigned line, struct j_val value, struct j_node **ret)
{
	int r = j_node_new(p, N_CONST, line, ret);
	if (r == 0) {
		(*ret)->value = value;
	}
	return r;
}

/* Strings that follow one another are one. */
static int parse_string(struct j_parser *p, struct j_node **ret)
{
	const struct j_token *first = j_token(p);
	size_t len = 0, n = 0;
	for (size_t i = p->at; p->tokens[i].type == T_STRING; i++) {
		len += p->tokens[i].len;
	}
	char *text = j_arena_alloc(&p->t->arena, len + 1);
	if (!text) {
		return -ENOMEM;
	}
	for (; j_token(p)->type == T_STRING; j_step(p)) {
		memcpy(text + n, j_token(p)->p, j_token(p)->len);
		n += j_token(p)->len;
	}
	const struct j_str *s;
	int r = j_parser_str(p, text, len, &s);
	return r ? r : j_const_node(p, first->line, j_of_str(s), ret);
}

static int parse_name_expr(struct j_parser *p, bool with_namespace, struct j_node **ret)
{
	const struct j_token *t = j_token(p);
	j_step(p);
	if (j_token_is(t, "true") || j_token_is(t, "True") || j_token_is(t, "false") || j_token_is(t, "False")) {
		return j_const_node(p, t->line, j_bool((t->p[0] | 0x20) == 't'), ret);
	}
	if (j_token_is(t, "none") || j_token_is(t, "None")) {
		return j_const_node(p, t->line, j_none(), ret);
	}
	bool ns = with_namespace && j_skip(p, T_DOT);
	int r = j_node_new(p, ns ? N_NSREF : N_NAME, t->line, ret);
	r = r ? r : j_intern(p->t, t->p, t->len, &(*ret)->sym);
	if (r == 0 && (*ret)->sym < 32) {
		p->names_used |= 1u << (*ret)->sym;
	}
	if (r == 0 && ns) {
		const struct j_str *s = NULL;
		r = j_parse_name(p, &s, NULL);
		(*ret)->value = j_of_str(s);
	}
	return r;
}

static int parse_list(struct j_parser *p, struct j_node **ret)
{
	struct j_list items = {0};
	unsigned line = j_token(p)->line;
	int r = j_expect(p, T_LBRACKET);
	while (r == 0 && j_token(p)->type != T_RBRACKET) {
		struct j_node *item;
		r = items.n > 0 ? j_expect(p, T_COMMA) : 0;
		if (r == 0 && j_token(p)->type == T_RBRACKET) {
			break;
		}
		r = r ? r : j_parse_expression(p, true, &item);
		r = r ? r : j_list_add(p, &items, item);
	}
	r = r ? r : j_expect(p, T_RBRACKET);
	r = r ? r : j_node_new(p, N_LIST, line, ret);
	if (r == 0) {
		(*ret)->items = items.items;
		(*ret)->n = items.n;
	}
	return r;
}

static int parse_dict(struct j_parser *p, struct j_node **ret)
{
	struct j_list items = {0};
	unsigned line = j_token(p)->line;
	int r = j_expect(p, T_LBRACE);
	while (r == 0 && j_token(p)->type != T_RBRACE) {
		struct j_node *key, *value;
		r = items.n > 0 ? j_expect(p, T_COMMA) : 0;
		if (r == 0 && j_token(p)->type == T_RBRACE) {
			break;
		}
		r = r ? r : j_parse_expression(p, true, &key);
		r = r ? r : j_expect(p, T_COLON);
		r = r ? r : j_parse_expression(p, true, &value);
		r = r ? r : j_list_add(p, &items, key);
		r = r ? r : j_list_add(p, &items, value);
	}
	r = r ? r : j_expect(p, T_RBRACE);
	r = r ? r : j_node_new(p, N_DICT, line, ret);
	if (r == 0) {
		(*ret)->items = items.items;
		(*ret)->n = items.n;
	}
	return r;
}

int j_parse_primary(struct j_parser *p, bool with_namespace, struct j_node **ret)
{
	const struct j_token *t = j_token(p);
	char text[80];
	int r;
	switch (t->type) {
	case T_NAME:
		return parse_name_expr(p, with_namespace, ret);
	case T_STRING:
		return parse_string(p, ret);
	case T_INTEGER:
		j_step(p);
		return j_const_node(p, t->line, j_int(t->i), ret);
	case T_FLOAT:
		j_step(p);
		return j_const_node(p, t->line, j_float(t->f), ret);
	case T_LPAREN:
		j_step(p);
		r = j_parse_tuple(p, true, NULL, true, ret);
		return r ? r : j_expect(p, T_RPAREN);
	case T_LBRACKET:
		return parse_list(p, ret);
	case T_LBRACE:
		return parse_dict(p, ret);
	default:
		return j_syntax(p, t->line, "unexpected '%s'", j_describe(t, text, sizeof(text)));
	}
}

/* ---- tuples and targets -------------------------------------------------------------------- */

static bool at_tuple_end(const struct j_parser *p, const char *end)
{
	enum j_token_type t = j_token(p)->type;
	return t == T_VARIABLE_END || t == T_BLOCK_END || t == T_RPAREN || (end && j_at_name(p, end));
}

/* simplified: of names and literals only, for targets. */
static int tuple(struct j_parser *p, bool simplified, bool with_cond, const char *end, bool parens,
	bool with_namespace, struct j_node **ret)
{
	struct j_list items = {0};
	unsigned line = j_token(p)->line;
	bool is_tuple = false;
	char text[80];
	int r = 0;
	for (;;) {
		struct j_node *item;
		if (items.n > 0 && (r = j_expect(p, T_COMMA)) != 0) {
			return r;
		}
		if (at_tuple_end(p, end)) {
			break;
		}
		r = simplified ? j_parse_primary(p, with_namespace, &item) :
			j_parse_expression(p, with_cond, &item);
		r = r ? r : j_list_add(p, &items, item);
		if (r != 0) {
			return r;
		}
		if (j_token(p)->type != T_COMMA) {
			break;
		}
		is_tuple = true;
	}
	if (!is_tuple && items.n > 0) {
		*ret = items.items[0];
		return 0;
	}
	if (!is_tuple && !parens) {
		return j_syntax(p, j_token(p)->line, "Expected an expression, got '%s'",
			j_describe(j_token(p), text, sizeof(text)));
	}
	r = j_node_new(p, N_TUPLE, line, ret);
	if (r == 0) {
		(*ret)->items = items.items;
		(*ret)->n = items.n;
	}
	return r;
}

int j_parse_tuple(struct j_parser *p, bool with_cond, const char *end, bool parens,
	struct j_node **ret)
{
	return tuple(p, false, with_cond, end, parens, false, ret);
}

static int check_target(struct j_parser *p, const struct j_node *node)
{
	int r = 0;
	if (node->kind == N_TUPLE) {
		for (size_t i = 0; i < node->n && r == 0; i++) {
			r = check_target(p, node->items[i]);
		}
		return r;
	}
	if (node->kind == N_NAME && node->sym == SYM_LOOP && p->loops > 0) {
		return j_syntax(p, node->line, "Can't assign to special loop variable in for-loop target");
	}
	return node->kind == N_NAME || node->kind == N_NSREF ? 0 :
		j_syntax(p, node->line, "can't assign to what is no name");
}

int j_parse_target(struct j_parser *p, const char *end, bool with_namespace, struct j_node **ret)
{
	int r = tuple(p, true, true, end, false, with_namespace, ret);
	return r ? r : check_target(p, *ret);
}
