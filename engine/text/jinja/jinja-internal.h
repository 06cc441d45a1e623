#pragma once
/* Values, syntax tree and the state of a render. For this folder only. */

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja/jinja.h"
#include "util/util.h"

enum {
	J_MAX_SOURCE = 512 << 10, /* bytes of a template */
	J_MAX_NAMES = 4096,       /* different names in one */
	J_MAX_NESTING = 150,      /* of syntax, and of values in values */
	J_MAX_DEPTH = 1200,       /* of evaluations within evaluations */
	J_MAX_CALLS = 150,        /* of macros and recursive loops in one another */
	J_MAX_STEPS = 20000000,   /* evaluations, and 64 bytes or values of other work */
	J_MAX_MEMORY = 256 << 20, /* bytes of a render */
	J_MAX_RANGE = 100000,     /* as jinja2's sandbox has it */
};

/* ---- memory -------------------------------------------------------------------------------- */

/* What is allocated lives until the whole goes. */
struct j_chunk;
struct j_arena {
	struct j_chunk *chunks;
	char *at, *end; /* free room of the newest chunk */
	size_t used, max;
	bool exhausted; /* `max` was met; otherwise there was no memory */
};

void j_arena_deinit(struct j_arena *a);
void *j_arena_alloc(struct j_arena *a, size_t size); /* aligned to 8; NULL when there is none */

/* ---- values -------------------------------------------------------------------------------- */

enum j_type {
	J_MISSING, /* no value at all: an argument that was not given */
	J_UNDEFINED,
	J_NONE,
	J_BOOL,
	J_INT,
	J_FLOAT,
	J_STR,
	J_LIST,
	J_TUPLE,
	J_DICT,
	J_RANGE,
	J_VIEW, /* of a dict's keys, values or items */
	J_ITER, /* what can be gone through once: map, select, reverse, … */
	J_NAMESPACE,
	J_LOOP,
	J_MACRO,
	J_BUILTIN,
	J_METHOD,
};

struct j_val {
	enum j_type type;
	union {
		bool b;
		int64_t i;
		double f;
		const struct j_str *s;
		const struct j_seq *seq;
		struct j_dict *d; /* dict, namespace */
		const struct j_range *range;
		const struct j_view *view;
		struct j_iter *iter;
		struct j_loop *loop;
		const struct j_macro *macro;
		const struct j_builtin *builtin;
		const struct j_method *method;
		const struct j_undefined *undefined;
	};
};

struct j_str {
	const char *p; /* UTF-8, not NUL-terminated */
	size_t len, n; /* bytes, code points */
	bool markup;   /* what `safe` makes: escapes what is added to it */
};

struct j_seq {
	const struct j_val *items;
	size_t n;
};

struct j_pair {
	struct j_val key, value;
};

struct j_dict {
	struct j_pair *items; /* in order of insertion */
	size_t n, cap;
};

struct j_range {
	int64_t start, step;
	size_t n;
	int64_t stop;
};

struct j_view {
	const struct j_dict *d;
	enum { J_KEYS, J_VALUES, J_ITEMS } of;
};

struct j_iter {
	struct j_seq seq;
	size_t at;
};

/* Why a value is undefined: a hint, or the name that is not there, of an object or of none. */
struct j_undefined {
	const char *hint;
	const char *of; /* the object's type, NULL: a variable */
	struct j_val name;
};

struct j_loop {
	struct j_seq seq; /* what is gone through; `at` comes next */
	size_t at;
	const struct j_node *test; /* of `for … if`, tried as the loop goes on; NULL: none */
	const struct j_node *node;
	struct j_scope *outer; /* where the loop stands */
	struct j_val before, current, after; /* J_MISSING: none; after: looked ahead */
	int64_t index0;
	size_t depth0;
	bool has_changed;
	struct j_val changed; /* the arguments of the last loop.changed() */
};

struct j_macro {
	const struct j_node *node;
	struct j_scope *scope; /* where it was defined */
	const char *name;
};

struct j_kwarg {
	const struct j_str *name;
	struct j_val value;
};

struct j_args {
	const struct j_val *pos;
	size_t n;
	const struct j_kwarg *kw;
	size_t n_kw;
};

struct j_run;
typedef int j_function(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret);

struct j_builtin {
	const char *name;
	j_function *call;
};

struct j_method {
	struct j_val self;
	const struct j_builtin *what;
};

/* ---- syntax -------------------------------------------------------------------------------- */

enum j_token_type {
	T_EOF, T_DATA, T_VARIABLE_BEGIN, T_VARIABLE_END, T_BLOCK_BEGIN, T_BLOCK_END,
	T_NAME, T_STRING, T_INTEGER, T_FLOAT,
	T_ADD, T_SUB, T_MUL, T_DIV, T_FLOORDIV, T_MOD, T_POW, T_TILDE,
	T_EQ, T_NE, T_LT, T_LE, T_GT, T_GE, T_ASSIGN,
	T_LPAREN, T_RPAREN, T_LBRACKET, T_RBRACKET, T_LBRACE, T_RBRACE,
	T_DOT, T_COMMA, T_COLON, T_PIPE, T_SEMICOLON,
};

struct j_token {
	enum j_token_type type;
	unsigned line;
	const char *p; /* data and strings: their value; names and signs: as written */
	size_t len;
	int64_t i;
	double f;
};

enum j_kind {
	/* expressions */
	N_CONST, N_NAME, N_TUPLE, N_LIST, N_DICT, N_GETATTR, N_GETITEM, N_SLICE, N_CALL, N_FILTER,
	N_TEST, N_COND, N_AND, N_OR, N_NOT, N_COMPARE, N_CONCAT, N_BINARY, N_NEG, N_POS, N_NSREF,
	/* statements */
	N_DATA, N_PRINT, N_IF, N_FOR, N_SET, N_SET_BLOCK, N_MACRO, N_CALL_BLOCK, N_FILTER_BLOCK,
	N_WITH, N_GENERATION, N_BREAK, N_CONTINUE,
};

struct j_keyword {
	const struct j_str *name;
	struct j_node *value;
};

/* What the children are, by kind:
 *   GETATTR a.value; GETITEM a[b]; SLICE a:b:c; COND b if a else c; COMPARE a, items by ops;
 *   CALL a(items, kws, *star, **starstar); FILTER, TEST likewise with `what`, a NULL in blocks;
 *   DICT items are keys and values by turns; BINARY a op b; NAME, NSREF: sym (and value: attribute).
 *   IF a, body items, otherwise orelse; FOR a in b if c; SET a = b; SET_BLOCK a, b a filter or NULL;
 *   MACRO and CALL_BLOCK: params, kws the defaults, CALL_BLOCK's call a; WITH: params are targets. */
struct j_node {
	enum j_kind kind;
	enum j_token_type op;
	unsigned line;
	uint32_t sym;
	struct j_node *a, *b, *c;
	struct j_node **items;
	size_t n;
	struct j_node **orelse;
	size_t n_else;
	struct j_node **params;
	size_t n_params;
	struct j_keyword *kws;
	size_t n_kws;
	struct j_node *star, *starstar;
	enum j_token_type *ops;
	struct j_val value;
	const struct j_builtin *what;
	bool recursive;
	bool uses_caller, uses_kwargs, uses_varargs;
};

struct jinja {
	struct j_arena arena;
	struct j_node **body;
	size_t n_body;
	const struct j_str **names; /* by symbol */
	size_t n_names, cap_names;
	bool has_generation;
};

/* Symbols of the names that the language itself knows, interned in this order. */
enum j_symbol {
	SYM_LOOP, SYM_CALLER, SYM_KWARGS, SYM_VARARGS,
	SYM_RANGE, SYM_DICT, SYM_NAMESPACE, SYM_RAISE, SYM_STRFTIME, SYM_JOINER, SYM_CYCLER, SYM_LIPSUM,
	SYM_SELF,
	SYM_N_FIXED,
};

extern const char *const j_fixed_names[SYM_N_FIXED];

struct j_parser {
	struct jinja *t;
	struct j_token *tokens;
	size_t at, n, cap;
	unsigned depth, loops; /* of nested syntax; of loops that break may leave */
	unsigned names_used;   /* bits of SYM_CALLER, … seen since a macro began */
	struct errmsg *err;
};

int j_lex(struct j_parser *p, const char *source, size_t len);


/* Between the two halves of the parser. */
int j_parse_tuple(struct j_parser *p, bool with_cond, const char *end, bool parens,
	struct j_node **ret);
int j_parse_expression(struct j_parser *p, bool with_cond, struct j_node **ret);
int j_parse_target(struct j_parser *p, const char *end, bool with_namespace, struct j_node **ret);
int j_parse_filters(struct j_parser *p, struct j_node *of, bool inlined, struct j_node **ret);
int j_parse_name(struct j_parser *p, const struct j_str **ret, uint32_t *ret_sym);

const struct j_token *j_token(const struct j_parser *p);
const struct j_token *j_next_token(const struct j_parser *p);
void j_step(struct j_parser *p);
bool j_token_is(const struct j_token *t, const char *name);
/* Refuses what is nested too deep; pairs with p->depth--, also where it fails. */
int j_deeper(struct j_parser *p);
int j_const_node(struct j_parser *p, unsigned line, struct j_val value, struct j_node **ret);
int j_parse_primary(struct j_parser *p, bool with_namespace, struct j_node **ret);
bool j_at_name(const struct j_parser *p, const char *name);
bool j_skip(struct j_parser *p, enum j_token_type type);
bool j_skip_name(struct j_parser *p, const char *name);
int j_expect(struct j_parser *p, enum j_token_type type);
int j_syntax(struct j_parser *p, unsigned line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
const char *j_token_name(enum j_token_type type);
/* "what stands here" for a message, into text[size]. */
const char *j_describe(const struct j_token *t, char *text, size_t size);
int j_node_new(struct j_parser *p, enum j_kind kind, unsigned line, struct j_node **ret);
int j_intern(struct jinja *t, const char *p, size_t len, uint32_t *ret);
int j_parser_str(struct j_parser *p, const char *text, size_t len, const struct j_str **ret);

/* A growing list of pointers in the template's arena. */
struct j_list {
	struct j_node **items;
	size_t n, cap;
};
int j_list_add(struct j_parser *p, struct j_list *l, struct j_node *node);

/* ---- a render ------------------------------------------------------------------------------ */

struct j_var {
	uint32_t sym;
	struct j_val value;
	struct j_var *next;
};

struct j_scope {
	struct j_scope *parent;
	struct j_var *vars;
};

/* Text that grows in the arena. */
struct j_out {
	char *p;
	size_t len, cap;
};

enum j_flow { J_GO_ON, J_BREAK, J_CONTINUE };

struct j_run {
	const struct jinja *t;
	struct j_arena arena;
	struct j_out *out;  /* where the text goes now */
	struct j_out whole; /* the render's own */
	struct jinja_marks *marks;
	int64_t now;
	uint64_t steps;
	unsigned depth, calls, line;
	enum j_flow flow;
	bool in_generation;
	struct errmsg *err;
};

/* Fails with words; the line is put before them. Returns STATUS_INVALID. */
int j_error(struct j_run *run, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int j_no_memory(struct j_run *run); /* what an allocation that failed returns */
int j_work(struct j_run *run, size_t n); /* counts n bytes or values of work */
void *j_alloc(struct j_run *run, size_t n, size_t size);

int j_copy(struct j_run *run, const char *text, const char **ret);
/* Fails as jinja2 does where an undefined value is used. */
int j_undefined_error(struct j_run *run, struct j_val v);
int j_undefined(struct j_run *run, const char *hint, const char *of, struct j_val name,
	struct j_val *ret);

static inline struct j_val j_none(void) { return (struct j_val){.type = J_NONE}; }
static inline struct j_val j_bool(bool b) { return (struct j_val){.type = J_BOOL, .b = b}; }
static inline struct j_val j_int(int64_t i) { return (struct j_val){.type = J_INT, .i = i}; }
static inline struct j_val j_float(double f) { return (struct j_val){.type = J_FLOAT, .f = f}; }
static inline struct j_val j_of_str(const struct j_str *s)
{
	return (struct j_val){.type = J_STR, .s = s};
}
static inline bool j_is_number(struct j_val v)
{
	return v.type == J_BOOL || v.type == J_INT || v.type == J_FLOAT;
}
static inline bool j_is_integral(struct j_val v) { return v.type == J_BOOL || v.type == J_INT; }
static inline int64_t j_integer(struct j_val v) { return v.type == J_BOOL ? v.b : v.i; }
static inline double j_real(struct j_val v)
{
	return v.type == J_FLOAT ? v.f : (double)j_integer(v);
}

/* Strings over bytes that outlive the render or lie in its arena: the bytes are not copied. */
int j_str(struct j_run *run, const char *p, size_t len, struct j_val *ret);
int j_cstr(struct j_run *run, const char *text, struct j_val *ret);
size_t j_count_points(const char *p, size_t len);
bool j_str_is(const struct j_str *s, const char *text);

int j_seq(struct j_run *run, enum j_type type, const struct j_val *items, size_t n,
	struct j_val *ret);
int j_iter(struct j_run *run, const struct j_val *items, size_t n, struct j_val *ret);
int j_pair_tuple(struct j_run *run, struct j_val a, struct j_val b, struct j_val *ret);
int j_dict(struct j_run *run, size_t cap, struct j_val *ret);
int j_dict_set(struct j_run *run, struct j_dict *d, struct j_val key, struct j_val value);
/* false where there is none; the key must be hashable. */
bool j_dict_get(struct j_run *run, const struct j_dict *d, struct j_val key, struct j_val *ret);
bool j_dict_get_str(const struct j_dict *d, const struct j_str *key, struct j_val *ret);
int j_hashable(struct j_run *run, struct j_val key);
int j_from_json(struct j_run *run, const json_t *json, unsigned depth, struct j_val *ret);

const char *j_type_name(struct j_val v); /* Python's */
bool j_truth(struct j_val v);
/* The length, or an error for what has none. */
int j_length(struct j_run *run, struct j_val v, size_t *ret);
bool j_has_length(struct j_val v);
/* All that iterating v gives (an iterator is then used up). */
int j_items(struct j_run *run, struct j_val v, struct j_seq *ret);
bool j_is_iterable(struct j_val v);
int j_equal(struct j_run *run, struct j_val a, struct j_val b, bool *ret);
/* -1, 0, 1; fails for what has no order. `op` is for the message. */
int j_compare(struct j_run *run, struct j_val a, struct j_val b, const char *op, int *ret);

/* ---- text ---------------------------------------------------------------------------------- */

int j_put(struct j_run *run, struct j_out *out, const char *p, size_t len);
int j_puts(struct j_run *run, struct j_out *out, const char *text);
int j_out_str(struct j_run *run, const struct j_out *out, struct j_val *ret);
/* str(v) and repr(v) as Python has them. */
int j_put_str(struct j_run *run, struct j_out *out, struct j_val v);
int j_put_repr(struct j_run *run, struct j_out *out, struct j_val v, unsigned depth);
int j_to_str(struct j_run *run, struct j_val v, struct j_val *ret);
int j_put_float(struct j_run *run, struct j_out *out, double f);

struct j_json {
	bool ensure_ascii, sort_keys;
	const struct j_str *indent; /* NULL: on one line */
	const struct j_str *item, *key; /* separators */
};
int j_put_json(struct j_run *run, struct j_out *out, struct j_val v, const struct j_json *how,
	unsigned depth);

int j_percent(struct j_run *run, struct j_val format, struct j_val args, struct j_val *ret);
int j_format(struct j_run *run, const struct j_str *format, const struct j_args *args,
	struct j_val *ret);
bool j_is_space(uint32_t c);
int j_strip(struct j_run *run, const struct j_str *s, const struct j_str *chars, bool left,
	bool right, struct j_val *ret);
enum j_case { J_UPPER, J_LOWER, J_CAPITALIZE, J_TITLE, J_TITLE_FILTER };
int j_change_case(struct j_run *run, const struct j_str *s, enum j_case to, struct j_val *ret);
bool j_is_case(const struct j_str *s, bool upper);
int j_replace(struct j_run *run, const struct j_str *s, const struct j_str *old,
	const struct j_str *new, int64_t count, struct j_val *ret);
int j_join(struct j_run *run, const struct j_str *sep, const struct j_seq *seq, bool any,
	struct j_val *ret);
int j_splitlines(struct j_run *run, const struct j_str *s, bool keep, struct j_val *ret);
/* Code points [start, end) of s. */
int j_substr(struct j_run *run, const struct j_str *s, size_t start, size_t end, struct j_val *ret);
size_t j_byte_of_point(const struct j_str *s, size_t point);
int j_escape(struct j_run *run, struct j_val v, struct j_val *ret);

/* ---- operations ---------------------------------------------------------------------------- */

int j_binary(struct j_run *run, enum j_token_type op, struct j_val a, struct j_val b,
	struct j_val *ret);
int j_negate(struct j_run *run, struct j_val a, bool minus, struct j_val *ret);
int j_contains(struct j_run *run, struct j_val item, struct j_val in, bool *ret);
int j_getattr(struct j_run *run, struct j_val of, const struct j_str *name, struct j_val *ret);
int j_getitem(struct j_run *run, struct j_val of, struct j_val key, struct j_val *ret);
int j_slice(struct j_run *run, struct j_val of, struct j_val start, struct j_val stop,
	struct j_val step, struct j_val *ret);
/* A dotted path, as map(attribute='a.b') has it. */
int j_get_path(struct j_run *run, struct j_val of, struct j_val path, struct j_val fallback,
	struct j_val *ret);

extern const struct j_builtin j_str_methods[]; /* up to a NULL name */
/* Fails unless there are from `least` to `most` arguments, none by name. */
int j_positional(struct j_run *run, const struct j_args *args, size_t least, size_t most);
/* The method `name` of a value's type; NULL where it has none. */
const struct j_builtin *j_find_method(enum j_type type, const struct j_str *name);
/* Attributes that Python has there but a template may not use (append), or not use here. */
const char *j_attribute_refused(enum j_type type, const struct j_str *name, bool *ret_unsafe);
const struct j_builtin *j_find_filter(const struct j_str *name);
const struct j_builtin *j_find_test(const struct j_str *name);
bool j_filter_unsupported(const struct j_str *name);
extern const struct j_builtin j_text_filters[], j_seq_filters[]; /* up to a NULL name */
/* Keeps a string marked safe where `was` is. */
int j_keep_markup(struct j_run *run, struct j_val was, struct j_val *io);
/* The rest of an argument list behind its first n. */
struct j_args j_args_from(const struct j_args *args, size_t n);
/* A whole number from an argument that may be missing. */
int j_want_int(struct j_run *run, struct j_val v, int64_t otherwise, int64_t *ret);
/* The string of an argument; NULL where it is missing or none. */
int j_want_str(struct j_run *run, struct j_val v, const struct j_str **ret);
int j_filter_count(struct j_run *run, struct j_val self, const struct j_args *args,
	struct j_val *ret);
extern const struct j_builtin j_global_functions[]; /* of SYM_RANGE and those that follow it */

/* ---- evaluating ---------------------------------------------------------------------------- */

int j_eval(struct j_run *run, struct j_scope *scope, const struct j_node *node, struct j_val *ret);
int j_call(struct j_run *run, struct j_val what, const struct j_args *args, struct j_val *ret);
int j_eval_args(struct j_run *run, struct j_scope *scope, const struct j_node *node,
	struct j_args *ret);
int j_exec(struct j_run *run, struct j_scope *scope, struct j_node *const *nodes, size_t n);
int j_call_macro(struct j_run *run, const struct j_macro *macro, const struct j_args *args,
	struct j_val *ret);
int j_run_loop(struct j_run *run, struct j_scope *outer, const struct j_node *node,
	struct j_val over, size_t depth0);
int j_call_loop(struct j_run *run, struct j_loop *loop, const struct j_args *args,
	struct j_val *ret);
/* Applies the filters of a block to its text. */
int j_filter_block(struct j_run *run, struct j_scope *scope, const struct j_node *filter,
	struct j_val text, struct j_val *ret);
int j_loop_attribute(struct j_run *run, struct j_loop *loop, const struct j_str *name, bool *ret_has,
	struct j_val *ret);
int j_scope_new(struct j_run *run, struct j_scope *parent, struct j_scope **ret);
int j_assign(struct j_run *run, struct j_scope *scope, uint32_t sym, struct j_val value);
int j_assign_target(struct j_run *run, struct j_scope *scope, const struct j_node *target,
	struct j_val value);
bool j_lookup(const struct j_scope *scope, uint32_t sym, struct j_val *ret);

/* Arguments by position or name into out[n]; J_MISSING where one of those after the first `required`
 * is not given. */
int j_bind(struct j_run *run, const char *what, const struct j_args *args, const char *const *names,
	size_t n, size_t required, struct j_val *out);
