#pragma once
/* Terminals: what they can do, and what they must be kept from. */

#include <stdbool.h>
#include <stddef.h>

#include "util/buf.h"

struct term {
	bool out_tty, err_tty; /* standard output and error are terminals */
	bool colour;           /* of standard output */
	bool utf8;
};

void term_init(struct term *t);

/* Columns of the terminal at `fd`; 80 when it has none. */
unsigned term_width(int fd);

enum {
	TERM_KEEP_LAYOUT = 1, /* newlines and tabs stay as they are */
};

/*
 * Appends text from outside so that it can do no harm to a terminal: control characters (C0, C1,
 * DEL), marks that change the direction of writing, and bytes that are no UTF-8 become visible
 * escapes as in C. 0 or -ENOMEM.
 */
int term_escape(struct buf *b, const void *text, size_t len, unsigned flags);

/* ---- being interrupted ------------------------------------------------------------------- */

/*
 * From now on Ctrl-C prints `text` on standard error, after bringing the terminal back to order,
 * and ends the process with status 130. `text` is copied; NULL says just "interrupted".
 */
void term_on_interrupt(const char *text);

/* While a live view hides the cursor, an interruption must show it again. */
void term_cursor(bool visible);
