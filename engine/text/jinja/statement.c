/* From tokens to statements, and a template's making. */

#include "engine/text/jinja/jinja-internal.h"

/* ---- names --------------------------------------------------------------------------------- */

int j_intern(struct jinja *t, const char *p, size_t len, uint32_t *ret)
{
	for (size_t i = 0; i < t->n_names; i++) {
		if (t->names[i]->len == len && memcmp(t->names[i]->p, p, len) == 0) {
			*ret = (uint32_t)i;
			return 0;
		}
	}
	if (t->n_names == J_MAX_NAMES) {
		return -E2BIG;
	}
	if (t->n_names == t->cap_names) {
		size_t cap = t->cap_names ? 2 * t->cap_names : 64;
		const struct j_str **names = j_arena_alloc(&t->arena, cap * sizeof(*names));
		if (!names) {
			return -ENOMEM;
		}
		if (t->n_names > 0) {
			memcpy(names, t->names, t->n_names * sizeof(*names));
		}
		t->names = names;
		t->cap_names = cap;
	}
	struct j_str *s = j_arena_alloc(&t->arena, sizeof(*s));
	char *text = j_arena_alloc(&t->arena, len + 1);
	if (!s || !text) {
		return -ENOMEM;
	}
	memcpy(text, p, len);
	text[len] = '\0';
	*s = (struct j_str){.p = text, .len = len, .n = len};
	t->names[t->n_names] = s;
	*ret = (uint32_t)t->n_names++;
	return 0;
}

/* ---- bodies -------------------------------------------------------------------------------- */

static int parse_statement(struct j_parser *p, struct j_node **ret);

/* `ends`: up to four tags that end the body, the last of which closes the statement. */
struct ends {
	const char *tags[4];
	const char *tag; /* the statement that is open */
};

static bool at_end(const struct j_parser *p, const struct ends *ends)
{
	for (size_t i = 0; ends && i < ARRAY_LEN(ends->tags) && ends->tags[i]; i++) {
		if (j_at_name(p, ends->tags[i])) {
			return true;
		}
	}
	return false;
}

static int parse_data(struct j_parser *p, struct j_node **ret)
{
	const struct j_token *t = j_token(p);
	const struct j_str *s;
	int r = j_expect(p, T_DATA);
	r = r ? r : j_parser_str(p, t->p, t->len, &s);
	r = r ? r : j_node_new(p, N_DATA, t->line, ret);
	if (r == 0) {
		(*ret)->value = j_of_str(s);
	}
	return r;
}

static int parse_print(struct j_parser *p, struct j_node **ret)
{
	unsigned line = j_token(p)->line;
	int r = j_expect(p, T_VARIABLE_BEGIN);
	r = r ? r : j_node_new(p, N_PRINT, line, ret);
	r = r ? r : j_parse_tuple(p, true, NULL, false, &(*ret)->a);
	return r ? r : j_expect(p, T_VARIABLE_END);
}

/* Statements up to one of the ends, whose name is then the current token; the template's end where
 * `ends` is NULL. */
static int subparse(struct j_parser *p, const struct ends *ends, struct j_list *list)
{
	int r = 0;
	while (r == 0) {
		struct j_node *node = NULL;
		switch (j_token(p)->type) {
		case T_DATA:
			r = parse_data(p, &node);
			break;
		case T_VARIABLE_BEGIN:
			r = parse_print(p, &node);
			break;
		case T_BLOCK_BEGIN:
			j_skip(p, T_BLOCK_BEGIN);
			if (at_end(p, ends)) {
				return 0;
			}
			r = parse_statement(p, &node);
			r = r ? r : j_expect(p, T_BLOCK_END);
			break;
		default: /* the end */
			return !ends ? 0 : j_syntax(p, j_token(p)->line, "Unexpected end of template. Jinja was "
				"looking for the following tags: '%s'. The innermost block that needs to be "
				"closed is '%s'.", ends->tags[0], ends->tag);
		}
		r = r ? r : j_list_add(p, list, node);
	}
	return r;
}

/* What stands between a statement's tag and the tag that ends it, which stays where it is. */
static int parse_until(struct j_parser *p, const struct ends *ends, struct j_node ***ret,
	size_t *ret_n)
{
	struct j_list list = {0};
	int r = 0;
	j_skip(p, T_COLON);
	r = j_expect(p, T_BLOCK_END);
	if (r == 0 && ++p->depth > J_MAX_NESTING) {
		r = j_syntax(p, j_token(p)->line, "nested more than %d deep", J_MAX_NESTING);
	}
	r = r ? r : subparse(p, ends, &list);
	p->depth--;
	*ret = list.items;
	*ret_n = list.n;
	return r;
}

/* A body with one end, which is taken too. */
static int parse_block(struct j_parser *p, const char *tag, const char *end, struct j_node *node)
{
	const struct ends ends = {{end}, tag};
	int r = parse_until(p, &ends, &node->items, &node->n);
	j_skip_name(p, end);
	return r;
}

/* A body that runs as a function of its own: no loop around it can be left from there. */
static int parse_closure(struct j_parser *p, const char *tag, const char *end, struct j_node *node)
{
	unsigned loops = p->loops, used = p->names_used;
	p->loops = 0;
	p->names_used = 0;
	int r = parse_block(p, tag, end, node);
	node->uses_caller = p->names_used >> SYM_CALLER & 1;
	node->uses_kwargs = p->names_used >> SYM_KWARGS & 1;
	node->uses_varargs = p->names_used >> SYM_VARARGS & 1;
	p->loops = loops;
	p->names_used |= used;
	return r;
}

/* ---- statements ---------------------------------------------------------------------------- */

static int parse_for(struct j_parser *p, struct j_node *node)
{
	static const struct ends ends = {{"endfor", "else"}, "for"};
	static const struct ends last = {{"endfor"}, "for"};
	p->loops++;
	int r = j_parse_target(p, "in", false, &node->a);
	p->loops--;
	if (r == 0 && !j_skip_name(p, "in")) {
		char text[80];
		return j_syntax(p, j_token(p)->line, "expected token 'in', got '%s'",
			j_describe(j_token(p), text, sizeof(text)));
	}
	r = r ? r : j_parse_tuple(p, false, "recursive", false, &node->b);
	if (r == 0 && j_skip_name(p, "if")) {
		r = j_parse_expression(p, true, &node->c);
	}
	if (r != 0) {
		return r;
	}
	node->recursive = j_skip_name(p, "recursive");
	p->loops++;
	r = parse_until(p, &ends, &node->items, &node->n);
	p->loops--;
	if (r == 0 && j_skip_name(p, "else")) {
		r = parse_until(p, &last, &node->orelse, &node->n_else);
	}
	j_skip_name(p, "endfor");
	return r;
}

/* elif is an if in the else of the one before; the chain of them is walked without recursion. */
static int parse_if(struct j_parser *p, struct j_node *node)
{
	static const struct ends ends = {{"elif", "else", "endif"}, "if"};
	static const struct ends last = {{"endif"}, "if"};
	for (;;) {
		int r = j_parse_tuple(p, false, NULL, false, &node->a);
		r = r ? r : parse_until(p, &ends, &node->items, &node->n);
		if (r != 0) {
			return r;
		}
		unsigned line = j_token(p)->line;
		if (j_skip_name(p, "elif")) {
			struct j_list list = {0};
			struct j_node *next;
			r = j_node_new(p, N_IF, line, &next);
			r = r ? r : j_list_add(p, &list, next);
			if (r != 0) {
				return r;
			}
			node->orelse = list.items;
			node->n_else = 1;
			node = next;
			continue;
		}
		if (j_skip_name(p, "else")) {
			r = parse_until(p, &last, &node->orelse, &node->n_else);
		}
		j_skip_name(p, "endif");
		return r;
	}
}

static int parse_set(struct j_parser *p, struct j_node *node)
{
	int r = j_parse_target(p, NULL, true, &node->a);
	if (r != 0) {
		return r;
	}
	if (j_skip(p, T_ASSIGN)) {
		return j_parse_tuple(p, true, NULL, false, &node->b);
	}
	node->kind = N_SET_BLOCK;
	r = j_parse_filters(p, NULL, false, &node->b);
	return r ? r : parse_block(p, "set", "endset", node);
}

/* The parameters of a macro or call block, with the defaults of the last ones. */
static int parse_signature(struct j_parser *p, struct j_node *node)
{
	struct j_list params = {0};
	struct j_list defaults = {0};
	int r = j_expect(p, T_LPAREN);
	while (r == 0 && j_token(p)->type != T_RPAREN) {
		struct j_node *param, *value = NULL;
		r = params.n > 0 ? j_expect(p, T_COMMA) : 0;
		unsigned line = j_token(p)->line;
		r = r ? r : j_node_new(p, N_NAME, line, &param);
		const struct j_str *name = NULL;
		r = r ? r : j_parse_name(p, &name, &param->sym);
		if (r == 0) {
			param->value = j_of_str(name);
			r = j_list_add(p, &params, param);
		}
		if (r == 0 && j_skip(p, T_ASSIGN)) {
			r = j_parse_expression(p, true, &value);
		} else if (r == 0 && defaults.n > 0 && defaults.items[defaults.n - 1]) {
			return j_syntax(p, line, "non-default argument follows default argument");
		}
		r = r ? r : j_list_add(p, &defaults, value);
	}
	node->params = params.items;
	node->n_params = params.n;
	node->orelse = defaults.items; /* one for each parameter, NULL where there is none */
	node->n_else = defaults.n;
	return r ? r : j_expect(p, T_RPAREN);
}

static int parse_macro(struct j_parser *p, struct j_node *node)
{
	const struct j_str *name = NULL;
	int r = j_parse_name(p, &name, &node->sym);
	node->value = j_of_str(name);
	r = r ? r : parse_signature(p, node);
	return r ? r : parse_closure(p, "macro", "endmacro", node);
}

static int parse_call_block(struct j_parser *p, struct j_node *node)
{
	int r = j_token(p)->type == T_LPAREN ? parse_signature(p, node) : 0;
	r = r ? r : j_parse_expression(p, true, &node->a);
	if (r == 0 && node->a->kind != N_CALL) {
		return j_syntax(p, node->line, "expected call");
	}
	return r ? r : parse_closure(p, "call", "endcall", node);
}

static int parse_filter_block(struct j_parser *p, struct j_node *node)
{
	int r = j_parse_filters(p, NULL, true, &node->a);
	return r ? r : parse_block(p, "filter", "endfilter", node);
}

static int parse_with(struct j_parser *p, struct j_node *node)
{
	struct j_list targets = {0}, values = {0};
	int r = 0;
	while (r == 0 && j_token(p)->type != T_BLOCK_END) {
		struct j_node *target, *value;
		r = targets.n > 0 ? j_expect(p, T_COMMA) : 0;
		r = r ? r : j_parse_target(p, NULL, false, &target);
		r = r ? r : j_expect(p, T_ASSIGN);
		r = r ? r : j_parse_expression(p, true, &value);
		r = r ? r : j_list_add(p, &targets, target);
		r = r ? r : j_list_add(p, &values, value);
	}
	node->params = targets.items;
	node->n_params = targets.n;
	node->orelse = values.items;
	node->n_else = values.n;
	return r ? r : parse_block(p, "with", "endwith", node);
}

static int parse_print_tag(struct j_parser *p, struct j_node *node)
{
	struct j_list items = {0};
	int r = 0;
	while (r == 0 && j_token(p)->type != T_BLOCK_END) {
		struct j_node *item;
		r = items.n > 0 ? j_expect(p, T_COMMA) : 0;
		r = r ? r : j_parse_expression(p, true, &item);
		r = r ? r : j_list_add(p, &items, item);
	}
	node->items = items.items;
	node->n = items.n;
	return r;
}

static int parse_generation(struct j_parser *p, struct j_node *node)
{
	p->t->has_generation = true;
	return parse_closure(p, "generation", "endgeneration", node);
}

static int parse_leave(struct j_parser *p, struct j_node *node)
{
	return p->loops > 0 ? 0 : j_syntax(p, node->line, "'%s' outside loop",
		node->kind == N_BREAK ? "break" : "continue");
}

static const struct {
	const char *tag;
	enum j_kind kind;
	int (*parse)(struct j_parser *p, struct j_node *node);
} statements[] = {
	{"if", N_IF, parse_if},
	{"for", N_FOR, parse_for},
	{"set", N_SET, parse_set},
	{"macro", N_MACRO, parse_macro},
	{"generation", N_GENERATION, parse_generation},
	{"break", N_BREAK, parse_leave},
	{"continue", N_CONTINUE, parse_leave},
	{"call", N_CALL_BLOCK, parse_call_block},
	{"filter", N_FILTER_BLOCK, parse_filter_block},
	{"with", N_WITH, parse_with},
	{"print", N_PRINT, parse_print_tag},
};

static int parse_statement(struct j_parser *p, struct j_node **ret)
{
	static const char *const refused[] = {"extends", "block", "include", "import", "from",
		"autoescape"};
	const struct j_token *t = j_token(p);
	if (t->type != T_NAME) {
		return j_syntax(p, t->line, "tag name expected");
	}
	for (size_t i = 0; i < ARRAY_LEN(statements); i++) {
		if (j_skip_name(p, statements[i].tag)) {
			int r = j_node_new(p, statements[i].kind, t->line, ret);
			return r ? r : statements[i].parse(p, *ret);
		}
	}
	for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
		if (j_at_name(p, refused[i])) {
			return j_syntax(p, t->line, "the tag '%s' is not supported", refused[i]);
		}
	}
	return j_syntax(p, t->line, "Encountered unknown tag '%.*s'.",
		(int)min_i64((int64_t)t->len, 64), t->p);
}

/* ---- the whole ----------------------------------------------------------------------------- */

const char *const j_fixed_names[SYM_N_FIXED] = {
	[SYM_LOOP] = "loop", [SYM_CALLER] = "caller", [SYM_KWARGS] = "kwargs",
	[SYM_VARARGS] = "varargs", [SYM_RANGE] = "range", [SYM_DICT] = "dict",
	[SYM_NAMESPACE] = "namespace", [SYM_RAISE] = "raise_exception",
	[SYM_STRFTIME] = "strftime_now", [SYM_JOINER] = "joiner", [SYM_CYCLER] = "cycler",
	[SYM_LIPSUM] = "lipsum", [SYM_SELF] = "self",
};

static int parse(struct j_parser *p, const char *source, size_t len)
{
	struct j_list body = {0};
	uint32_t sym;
	int r = 0;
	for (size_t i = 0; i < SYM_N_FIXED && r == 0; i++) {
		r = j_intern(p->t, j_fixed_names[i], strlen(j_fixed_names[i]), &sym);
	}
	r = r ? r : j_lex(p, source, len);
	r = r ? r : subparse(p, NULL, &body);
	p->t->body = body.items;
	p->t->n_body = body.n;
	return r;
}

int jinja_new(struct jinja **ret, const char *source, size_t len, struct errmsg *err)
{
	size_t bad;
	if (len > J_MAX_SOURCE) {
		return errmsg_set(err, STATUS_INVALID, "it has %zu bytes; at most %d are read", len,
			J_MAX_SOURCE);
	}
	if (!utf8_valid(source, len, &bad)) {
		return errmsg_set(err, STATUS_INVALID, "byte %zu is not UTF-8", bad);
	}
	struct jinja *t = calloc_array(1, sizeof(*t));
	if (!t) {
		return -ENOMEM;
	}
	t->arena.max = J_MAX_MEMORY;
	struct j_parser p = {.t = t, .err = err};
	int r = parse(&p, source, len);
	free(p.tokens);
	if (r == -E2BIG) {
		r = errmsg_set(err, STATUS_INVALID, "it has more than %d different names", J_MAX_NAMES);
	}
	if (r != 0) {
		jinja_free(t);
		return r;
	}
	*ret = t;
	return 0;
}

void jinja_free(struct jinja *t)
{
	if (t) {
		j_arena_deinit(&t->arena);
		free(t);
	}
}

bool jinja_has_generation(const struct jinja *t)
{
	return t->has_generation;
}
