#pragma once
/* Faults that a user can mend, in words. */

#include <stdarg.h>
#include <stddef.h>

/*
 * The project's three kinds of return value:
 *   < 0   a negative errno: fatal to the operation, handed on untouched;
 *     0   done;
 *   > 0   a documented code that the caller must handle. The codes below are those that end up
 *         before a user; they equal peftd.v1.StatusCode on the wire.
 * Functions that return one of these also fill a `struct errmsg` that says what was wrong, where,
 * and what would be right.
 */
enum status {
	STATUS_OK = 0,
	STATUS_INVALID = 1,     /* bad request, file or value */
	STATUS_NOT_FOUND = 2,   /* no such model, dataset, job, file */
	STATUS_CONFLICT = 3,    /* exists already, or is in a state that does not allow it */
	STATUS_DENIED = 4,      /* no authority */
	STATUS_QUOTA = 5,       /* a quota is used up */
	STATUS_WONT_FIT = 6,    /* admission: can never fit on this device */
	STATUS_FAILED = 7,      /* the work was tried and failed */
	STATUS_UNAVAILABLE = 8, /* not now: restarting, shutting down, no trainer; try again */
	STATUS_INTERNAL = 9,    /* a fault of ours */
	STATUS_COMPACTED = 10,  /* the range of events asked for is gone */
	STATUS_DISK_FULL = 11,  /* the store has no room */
	STATUS_VERSION = 12,    /* the other side speaks another version */
	STATUS_CANCELLED = 13,  /* ended because somebody asked for it */
};

struct errmsg {
	char text[1024]; /* one or more lines of UTF-8, no trailing newline; "" when unset */
};

/* Formats into `err` (which may be NULL) and returns `code`, so that a fault is one statement:
 * `return errmsg_set(err, STATUS_INVALID, "%s: …", path);` */
int errmsg_set(struct errmsg *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts `fmt…: ` before what `err` already says, and returns `code`. */
int errmsg_prefix(struct errmsg *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The code's name in lower case ("not_found"); "unknown" for a number that is none. */
const char *status_name(int code);
