#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl.h"
#include "util/util.h"

/* Those that stand before the command or among its own options. */
struct globals {
	const char *endpoint;
	bool json, quiet, help, version;
	struct opt_double timeout;
};

enum { N_GLOBALS = 6 };

static void list_globals(struct globals *g, struct opt out[N_GLOBALS])
{
	const struct opt opts[N_GLOBALS] = {
		{"endpoint", 0, OPT_TEXT, "URL", "where the daemon answers (or PEFTD_ENDPOINT)",
			&g->endpoint},
		{"json", 0, OPT_FLAG, NULL, "print JSON: one object, or one a line", &g->json},
		{"quiet", 'q', OPT_FLAG, NULL, "no progress and no remarks", &g->quiet},
		{"timeout", 0, OPT_DOUBLE, "SECONDS", "wait this long for a daemon (default 3)",
			&g->timeout},
		{"help", 'h', OPT_FLAG, NULL, "show this help", &g->help},
		{"version", 0, OPT_FLAG, NULL, "show the version", &g->version},
	};
	memcpy(out, opts, sizeof(opts));
}

void texts_deinit(struct texts *t)
{
	free(t->items);
	*t = (struct texts){0};
}

static int texts_add(struct texts *t, const char *s)
{
	const char **grown = realloc_array(t->items, t->n + 1, sizeof(*grown));
	if (!grown) {
		return -ENOMEM;
	}
	grown[t->n++] = s;
	t->items = grown;
	return 0;
}

bool args_job(const char *text, uint64_t *ret)
{
	char *end;
	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || n == 0) {
		return false;
	}
	*ret = n;
	return true;
}

/* ---- help -------------------------------------------------------------------------------- */

static void print_options(const struct opt *opts, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char left[64], letter[8] = "    ";
		if (opts[i].letter) {
			snprintf(letter, sizeof(letter), "-%c, ", opts[i].letter);
		}
		snprintf(left, sizeof(left), "%s--%s%s%s", letter, opts[i].name, opts[i].arg ? " " : "",
			opts[i].arg ? opts[i].arg : "");
		printf("  %-32s %s\n", left, opts[i].help);
	}
}

static void print_help(const struct command *cmd, const struct opt *opts, size_t n)
{
	printf("Usage: peftctl %s%s%s%s\n\n%s.\n", cmd->name, n > 0 ? " [OPTIONS]" : "",
		cmd->args[0] ? " " : "", cmd->args, cmd->summary);
	if (cmd->details) {
		printf("\n%s\n", cmd->details);
	}
	if (n > 0) {
		printf("\nOptions:\n");
		print_options(opts, n);
	}
	struct globals g = {0};
	struct opt globals[N_GLOBALS];
	list_globals(&g, globals);
	printf("\nFor every command:\n");
	print_options(globals, N_GLOBALS - 1);
}

static void print_overview(void)
{
	printf("Usage: peftctl [--endpoint URL] [--json] [--quiet] COMMAND ...\n\n"
		"Talks to peftd, the fine-tuning server.\n\nCommands:\n");
	for (size_t i = 0; i < ctl_n_commands; i++) {
		char left[64];
		snprintf(left, sizeof(left), "%s %s", ctl_commands[i].name, ctl_commands[i].args);
		if (strlen(left) > 30) {
			snprintf(left, sizeof(left), "%s ...", ctl_commands[i].name);
		}
		printf("  %-32s %s\n", left, ctl_commands[i].summary);
	}
	struct globals g = {0};
	struct opt globals[N_GLOBALS];
	list_globals(&g, globals);
	printf("\nOptions, before or behind the command:\n");
	print_options(globals, N_GLOBALS);
	printf("\n'peftctl COMMAND --help' tells more. Exit status: 0 done, 1 the job or request\n"
		"failed, 2 usage, 3 no daemon answers, 4 refused (access, quota, admission),\n"
		"130 interrupted.\n");
}

/* ---- parsing ----------------------------------------------------------------------------- */

/* Several lists of options seen as one. */
struct opt_lists {
	const struct opt *lists[2];
	size_t sizes[2];
};

static const struct opt *find_option(const struct opt_lists *l, const char *name, size_t len,
	char letter)
{
	for (size_t k = 0; k < 2; k++) {
		for (size_t i = 0; i < l->sizes[k]; i++) {
			const struct opt *o = &l->lists[k][i];
			if (name ? strlen(o->name) == len && strncmp(o->name, name, len) == 0
				: o->letter && o->letter == letter) {
				return o;
			}
		}
	}
	return NULL;
}

static int unknown_option(struct ctl *ctl, const struct opt_lists *l, const char *name, size_t len)
{
	char given[64];
	const char *nearest = NULL;
	unsigned best = 4;
	snprintf(given, sizeof(given), "%.*s", (int)len, name);
	for (size_t k = 0; k < 2; k++) {
		for (size_t i = 0; i < l->sizes[k]; i++) {
			unsigned d = edit_distance(given, l->lists[k][i].name);
			if (d < best) {
				best = d;
				nearest = l->lists[k][i].name;
			}
		}
	}
	return nearest ? ctl_usage(ctl, "unknown option --%s; did you mean --%s?", given, nearest)
		: ctl_usage(ctl, "unknown option --%s", given);
}

static int store_u64(struct ctl *ctl, const struct opt *o, const char *text)
{
	uint64_t max = o->kind == OPT_U32 ? UINT32_MAX : UINT64_MAX;
	char *end;
	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end != '\0') {
		return ctl_usage(ctl, "--%s %s: not a whole number", o->name, text);
	}
	if (errno != 0 || n > max) {
		return ctl_usage(ctl, "--%s %s: at most %llu", o->name, text, (unsigned long long)max);
	}
	*(struct opt_u64 *)o->dest = (struct opt_u64){true, n};
	return 0;
}

bool args_dtype(const char *text)
{
	return strcmp(text, "f32") == 0 || strcmp(text, "bf16") == 0;
}

static int store_double(struct ctl *ctl, const struct opt *o, const char *text)
{
	char *end;
	double v = strtod(text, &end);
	if (end == text || *end != '\0') {
		return ctl_usage(ctl, "--%s %s: not a number", o->name, text);
	}
	if (!isfinite(v)) {
		return ctl_usage(ctl, "--%s %s: it must be a finite number", o->name, text);
	}
	*(struct opt_double *)o->dest = (struct opt_double){true, v};
	return 0;
}

static int store(struct ctl *ctl, const struct opt *o, const char *text)
{
	switch (o->kind) {
	case OPT_FLAG:
		*(bool *)o->dest = true;
		return 0;
	case OPT_TEXT:
		*(const char **)o->dest = text;
		return 0;
	case OPT_TEXTS:
		return texts_add(o->dest, text) < 0 ? ctl_fail(ctl, -ENOMEM, NULL) : 0;
	case OPT_U32:
	case OPT_U64:
		return store_u64(ctl, o, text);
	case OPT_DOUBLE:
		return store_double(ctl, o, text);
	}
	return 0;
}

/* "--name", "--name=value" or "--name value". Moves *at past what was used; 0 or an exit status. */
static int parse_long(struct ctl *ctl, const struct opt_lists *l, int argc, char **argv, int *at)
{
	const char *name = argv[*at] + 2, *equals = strchr(name, '=');
	size_t len = equals ? (size_t)(equals - name) : strlen(name);
	const struct opt *o = find_option(l, name, len, 0);
	if (!o) {
		return unknown_option(ctl, l, name, len);
	}
	const char *text = equals ? equals + 1 : NULL;
	if (o->kind == OPT_FLAG && text) {
		return ctl_usage(ctl, "--%s takes no value", o->name);
	}
	(*at)++;
	if (o->kind != OPT_FLAG && !text) {
		if (*at >= argc) {
			return ctl_usage(ctl, "--%s needs a value: --%s %s", o->name, o->name, o->arg);
		}
		text = argv[(*at)++];
	}
	return store(ctl, o, text);
}

/* "-x", "-xvalue", "-x value" and "-xy" of flags. */
static int parse_letters(struct ctl *ctl, const struct opt_lists *l, int argc, char **argv, int *at)
{
	const char *p = argv[(*at)++] + 1;
	for (; *p; p++) {
		const struct opt *o = find_option(l, NULL, 0, *p);
		if (!o) {
			return ctl_usage(ctl, "unknown option -%c", *p);
		}
		if (o->kind == OPT_FLAG) {
			store(ctl, o, NULL);
			continue;
		}
		if (p[1]) {
			return store(ctl, o, p + 1);
		}
		if (*at >= argc) {
			return ctl_usage(ctl, "-%c needs a value: -%c %s", *p, *p, o->arg);
		}
		return store(ctl, o, argv[(*at)++]);
	}
	return 0;
}

static bool is_option(const char *s)
{
	return s[0] == '-' && s[1] != '\0'; /* "-" alone is standard input */
}

static int apply_globals(struct ctl *ctl, const struct globals *g)
{
	if (g->endpoint) {
		free(ctl->endpoint);
		ctl->endpoint = strdup(g->endpoint);
		if (!ctl->endpoint) {
			return ctl_fail(ctl, -ENOMEM, NULL);
		}
	}
	ctl->json = ctl->json || g->json;
	ctl->quiet = ctl->quiet || g->quiet;
	if (g->timeout.given) {
		if (g->timeout.value < 0 || g->timeout.value > 86400) {
			return ctl_usage(ctl, "--timeout %g: between 0 and 86400 seconds", g->timeout.value);
		}
		ctl->timeout = g->timeout.value;
	}
	return 0;
}

/* Options and operands of argv[from…]; stops at the first operand when `operands` is NULL. The
 * index where it stopped, or -1 with *ret_status. */
static int parse(struct ctl *ctl, const struct opt_lists *l, int argc, char **argv, int from,
	struct texts *operands, int *ret_status)
{
	int at = from, status = 0;
	while (at < argc && status == 0) {
		if (strcmp(argv[at], "--") == 0) {
			at++;
			break;
		}
		if (is_option(argv[at])) {
			status = argv[at][1] == '-' ? parse_long(ctl, l, argc, argv, &at)
				: parse_letters(ctl, l, argc, argv, &at);
		} else if (!operands) {
			break;
		} else if (texts_add(operands, argv[at++]) < 0) {
			status = ctl_fail(ctl, -ENOMEM, NULL);
		}
	}
	while (operands && at < argc && status == 0) {
		if (texts_add(operands, argv[at++]) < 0) {
			status = ctl_fail(ctl, -ENOMEM, NULL);
		}
	}
	*ret_status = status;
	return status == 0 ? at : -1;
}

int args_parse_global(struct ctl *ctl, int argc, char **argv, int *ret_status)
{
	struct globals g = {0};
	struct opt opts[N_GLOBALS];
	list_globals(&g, opts);
	struct opt_lists l = {{opts, NULL}, {N_GLOBALS, 0}};
	int at = parse(ctl, &l, argc, argv, 1, NULL, ret_status);
	if (at < 0) {
		return -1;
	}
	if (g.help || g.version) {
		if (g.version) {
			puts("peftctl " PEFTD_VERSION);
		} else {
			print_overview();
		}
		*ret_status = ctl_finish(ctl, EXIT_DONE);
		return -1;
	}
	*ret_status = apply_globals(ctl, &g);
	return *ret_status == 0 ? at : -1;
}

static int check_operands(struct ctl *ctl, const struct texts *operands, size_t min, size_t max)
{
	const struct command *cmd = ctl->command;
	if (operands->n < min) {
		return ctl_usage(ctl, "something is missing: peftctl %s %s", cmd->name, cmd->args);
	}
	if (operands->n > max) {
		return ctl_usage(ctl, "'%s' is one too many: peftctl %s %s", operands->items[max],
			cmd->name, cmd->args);
	}
	return 0;
}

int args_parse(struct ctl *ctl, int argc, char **argv, const struct opt *opts, size_t n_opts,
	size_t min, size_t max, struct texts *ret_operands, int *ret_status)
{
	struct globals g = {0};
	struct opt globals[N_GLOBALS];
	list_globals(&g, globals);
	struct opt_lists l = {{opts, globals}, {n_opts, N_GLOBALS - 1}};
	if (parse(ctl, &l, argc, argv, 1, ret_operands, ret_status) < 0) {
		return ARGS_STOP;
	}
	if (g.help) {
		print_help(ctl->command, opts, n_opts);
		*ret_status = ctl_finish(ctl, EXIT_DONE);
		return ARGS_STOP;
	}
	*ret_status = apply_globals(ctl, &g);
	if (*ret_status == 0) {
		*ret_status = check_operands(ctl, ret_operands, min, max);
	}
	return *ret_status == 0 ? 0 : ARGS_STOP;
}
