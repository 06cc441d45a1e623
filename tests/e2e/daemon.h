#pragma once
/* The real peftd and peftctl, on a temporary folder, with a tiny model. Every function fails the
 * running test when something goes wrong that the test did not ask for. */

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct daemon {
	char *dir;      /* everything is below it */
	char *state;    /* --state-dir; below dir unless a test sets it before the start */
	char *endpoint;
	char *model;    /* a Hugging Face folder */
	char *rows, *eval_rows; /* JSONL files */
	char *log;      /* what the processes have written to standard error, of all starts */
	pid_t pid;      /* 0: not running */
	int err_fd;
	pthread_t reader;
	bool reading;
	pid_t background[8]; /* peftctl processes, 0 where there is none */
};

/* Makes the folder, the model and the rows; starts nothing. */
void daemon_init(struct daemon *d);
/* Kills what runs and removes the folder; keeps it, and says where, when PEFTD_KEEP is set. */
void daemon_deinit(struct daemon *d);

/* Starts peftd and waits until it says that it is ready. */
void daemon_start(struct daemon *d);
/* SIGTERM, then the exit status. Fails after 30 s. */
int daemon_stop(struct daemon *d);
/* SIGKILL, and the end of all its children. */
void daemon_kill(struct daemon *d);
/* The process of this name below peftd ("peftd-front", "peftd-trainer", no inspecting children);
 * waits until there is one. */
pid_t daemon_child(const struct daemon *d, const char *name);

/* A peftd that is expected not to start: its exit status, and its words in *ret_err (freed by the
 * caller). `state` is its state directory. */
int daemon_fails(struct daemon *d, const char *state, char **ret_err);

/* What a command has said. */
struct ran {
	int code; /* exit status; 128 + n when a signal n ended it */
	char *out, *err;
};
void ran_deinit(struct ran *r);

/* Runs peftctl with these arguments, up to NULL, and waits for its end. */
void ctl(const struct daemon *d, struct ran *ret, ...) __attribute__((sentinel));
/* The same, for commands that must succeed: what they printed, freed by the caller. */
char *ctl_ok(const struct daemon *d, ...) __attribute__((sentinel));
/* One that must succeed and print one JSON object. */
json_t *ctl_json(const struct daemon *d, ...) __attribute__((sentinel));

/* Starts a peftctl that goes on by itself, with output into a file; wait for it with ctl_wait(). */
pid_t ctl_spawn(struct daemon *d, const char *out_path, ...) __attribute__((sentinel));
/* Its exit status, 128 + n after a signal n. */
int ctl_wait(struct daemon *d, pid_t pid);

/* JSON objects, one a line, as an array. */
json_t *json_lines(const char *text);

/* Fails unless `text` holds each of the words, up to NULL. */
void assert_words(const char *text, ...) __attribute__((sentinel));

/* Submits with `peftctl submit ARGS…`; the job's id. */
uint64_t submit(const struct daemon *d, ...) __attribute__((sentinel));
/* Waits until a job has ended; fails unless its state is then `state`. */
void wait_job(const struct daemon *d, uint64_t job, const char *state);
/* The digest of the final checkpoint of a job: adapter, optimizer and counters. Freed by the
 * caller. */
char *final_digest(const struct daemon *d, uint64_t job);
/* Holds a job's whole record against itself: numbers from 1 without gap or double, every step's
 * metrics once and in order. Returns the events, as an array. */
json_t *check_record(const struct daemon *d, uint64_t job, int64_t steps);
