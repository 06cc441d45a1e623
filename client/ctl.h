#pragma once
/* peftctl: what its commands share. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/client.h"
#include "client/term.h"

/* Exit statuses; a contract. */
enum {
	EXIT_DONE = 0,
	EXIT_REQUEST_FAILED = 1, /* the job or request failed */
	EXIT_USAGE = 2,
	EXIT_NO_DAEMON = 3,
	EXIT_REFUSED = 4, /* access, quota, admission */
	EXIT_INTERRUPTED = 130,
};

struct ctl;

typedef int (*ctl_pull)(struct ctl *ctl, int argc, char **argv);

struct command {
	const char *name;
	const char *args;    /* "JOB", "[FILE]"; shown behind the name */
	const char *summary; /* one line */
	const char *details; /* further lines of its help, or NULL */
	/* argv[0] is the command's name. Returns an exit status. */
	int (*run)(struct ctl *ctl, int argc, char **argv);
};

struct ctl {
	const struct command *command;
	char *endpoint; /* NULL: the default one */
	bool json, quiet;
	double timeout; /* seconds to wait for a daemon */
	struct term term;
	struct client *client; /* made on first use */
	char **program_args;   /* the whole command line */
	ctl_pull pull;         /* runs `model pull` */
};

/* peftctl as a whole; returns its exit status. Programs differ in how they pull. */
int ctl_main(int argc, char **argv, ctl_pull pull);

/* ---- errors ------------------------------------------------------------------------------ */

/* Prints "peftctl: <text>" to standard error, with --json also {"error": {"code", "message"}} as a
 * line of standard output, and returns the exit status for a code of the client or the daemon. */
int ctl_fail(struct ctl *ctl, int code, const struct errmsg *err);

/* Says what is wrong with the command line, and where its help is; EXIT_USAGE. */
int ctl_usage(struct ctl *ctl, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A remark for people on standard error, unless --quiet. */
void ctl_note(struct ctl *ctl, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- the command line (args.c) ----------------------------------------------------------- */

enum opt_kind {
	OPT_FLAG,   /* bool */
	OPT_TEXT,   /* const char *, pointing into argv */
	OPT_TEXTS,  /* struct texts */
	OPT_U32,    /* struct opt_u64, at most UINT32_MAX */
	OPT_U64,    /* struct opt_u64 */
	OPT_DOUBLE, /* struct opt_double, finite */
};

struct opt_u64 {
	bool given;
	uint64_t value;
};

struct opt_double {
	bool given;
	double value;
};

struct texts {
	const char **items; /* owned array of borrowed strings */
	size_t n;
};

void texts_deinit(struct texts *t);

struct opt {
	const char *name; /* without "--" */
	char letter;      /* 0: none */
	enum opt_kind kind;
	const char *arg;  /* the value's name in the help; NULL for flags */
	const char *help;
	void *dest;
};

enum { ARGS_STOP = 1 }; /* help was printed, or a usage error: leave with *ret_status */

/*
 * Parses a command's options, which may stand anywhere before "--", and the global ones, which may
 * stand here too. What is left are its operands, between `min` and `max` (SIZE_MAX: any number).
 * 0, or ARGS_STOP with *ret_status.
 */
int args_parse(struct ctl *ctl, int argc, char **argv, const struct opt *opts, size_t n_opts,
	size_t min, size_t max, struct texts *ret_operands, int *ret_status);

/* Parses the global options before the command. The index of the command in argv (argc: none is
 * there), or -1 with *ret_status. */
int args_parse_global(struct ctl *ctl, int argc, char **argv, int *ret_status);

/* A dtype that models run in: f32 or bf16. */
bool args_dtype(const char *text);

/* A job's id: a whole number from 1 on. False otherwise. */
bool args_job(const char *text, uint64_t *ret);

extern const struct command ctl_commands[];
extern const size_t ctl_n_commands;

/* The command of this name; NULL, with the nearest name (or NULL) in *ret_nearest. */
const struct command *ctl_find_command(const char *name, const char **ret_nearest);

/* ---- requests ---------------------------------------------------------------------------- */

/* The connection, made on first use; NULL after saying what is wrong, with *ret_status. */
struct client *ctl_client(struct ctl *ctl, int *ret_status);

/* client_call() on that connection. 0 and *ret, or the exit status after saying what is wrong. */
int ctl_call(struct ctl *ctl, Peftd__V1__Request *req, int timeout_ms, Peftd__V1__Reply **ret);

/* The reply's kind, or a complaint about a daemon that answers something else: 0 or exit status. */
int ctl_expect(struct ctl *ctl, const Peftd__V1__Reply *reply, Peftd__V1__Reply__WhatCase what);

/* A job as `show` knows it: 0 and *ret, to be freed with proto_free(), its `job` set. */
int ctl_show_job(struct ctl *ctl, uint64_t job, Peftd__V1__Reply **ret);

/* Parses the operand that names a job. 0, or EXIT_USAGE after saying what is wrong. */
int ctl_job_operand(struct ctl *ctl, const char *text, uint64_t *ret);

/* Ends output: EXIT_REQUEST_FAILED, with words, when standard output took not all of it; otherwise
 * `status`. */
int ctl_finish(struct ctl *ctl, int status);

/* Cleanup for pointers to messages of proto_unpack(). */
static inline void msg_freep(void *p)
{
	proto_free(*(void **)p);
}

/* ---- the commands, cmd_<name>.c ---------------------------------------------------------- */

int cmd_status(struct ctl *ctl, int argc, char **argv);
int cmd_model(struct ctl *ctl, int argc, char **argv);
int cmd_dataset(struct ctl *ctl, int argc, char **argv);
int cmd_inspect(struct ctl *ctl, int argc, char **argv); /* dataset inspect */
int cmd_plan(struct ctl *ctl, int argc, char **argv);
int cmd_submit(struct ctl *ctl, int argc, char **argv);
int cmd_list(struct ctl *ctl, int argc, char **argv);
int cmd_show(struct ctl *ctl, int argc, char **argv);
int cmd_watch(struct ctl *ctl, int argc, char **argv);
int cmd_metrics(struct ctl *ctl, int argc, char **argv);
int cmd_logs(struct ctl *ctl, int argc, char **argv);
int cmd_control(struct ctl *ctl, int argc, char **argv); /* cancel, hold, release, retry */
int cmd_fetch(struct ctl *ctl, int argc, char **argv);
int cmd_eval(struct ctl *ctl, int argc, char **argv);
int cmd_generate(struct ctl *ctl, int argc, char **argv);
int cmd_compare(struct ctl *ctl, int argc, char **argv);
