#include "client/term.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "util/util.h"

/* What a signal handler needs cannot be handed to it: written before the handler is installed or
 * in one store. */
static char interrupt_text[512] = "\npeftctl: interrupted\n";
static volatile sig_atomic_t interrupt_len = sizeof("\npeftctl: interrupted\n") - 1;
static volatile sig_atomic_t cursor_hidden;

static const char show_cursor[] = "\033[?25h\033[0m";

static bool locale_is_utf8(void)
{
	static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		const char *v = getenv(names[i]);
		if (v && v[0]) {
			return strcasestr(v, "utf-8") || strcasestr(v, "utf8");
		}
	}
	return false;
}

void term_init(struct term *t)
{
	const char *type = getenv("TERM"), *no_colour = getenv("NO_COLOR");
	bool dumb = !type || strcmp(type, "dumb") == 0;
	t->out_tty = isatty(STDOUT_FILENO) && !dumb;
	t->err_tty = isatty(STDERR_FILENO) && !dumb;
	t->colour = t->out_tty && !(no_colour && no_colour[0]);
	t->utf8 = locale_is_utf8();
}

unsigned term_width(int fd)
{
	struct winsize w;
	return ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

/* One well-formed sequence at p, or 0. */
static size_t sequence_length(const uint8_t *p, size_t left)
{
	for (size_t n = 1; n <= 4 && n <= left; n++) {
		if (utf8_valid(p, n, NULL)) {
			return n;
		}
	}
	return 0;
}

static uint32_t code_point(const uint8_t *p, size_t n)
{
	uint32_t c = n == 1 ? p[0] : p[0] & (0x7Fu >> n);
	for (size_t i = 1; i < n; i++) {
		c = c << 6 | (p[i] & 0x3F);
	}
	return c;
}

static bool harmful(uint32_t c)
{
	return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029 ||
		c == 0x200E || c == 0x200F || c == 0x061C || (c >= 0x202A && c <= 0x202E) ||
		(c >= 0x2066 && c <= 0x2069);
}

static int escape_one(struct buf *b, uint32_t c)
{
	switch (c) {
	case '\n':
		return buf_append(b, "\\n", 2);
	case '\r':
		return buf_append(b, "\\r", 2);
	case '\t':
		return buf_append(b, "\\t", 2);
	default:
		return c < 0x100 ? buf_appendf(b, "\\x%02x", c) : buf_appendf(b, "\\u%04x", c);
	}
}

int term_escape(struct buf *b, const void *text, size_t len, unsigned flags)
{
	const uint8_t *p = text;
	for (size_t i = 0, n; i < len; i += n ? n : 1) {
		n = sequence_length(p + i, len - i);
		uint32_t c = n ? code_point(p + i, n) : p[i];
		bool layout = (flags & TERM_KEEP_LAYOUT) && (c == '\n' || c == '\t');
		int r = n && (layout || !harmful(c)) ? buf_append(b, p + i, n) : escape_one(b, c);
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

static void on_interrupt(int sig)
{
	int saved = errno;
	ssize_t n = 0;
	if (cursor_hidden) {
		n += write(STDOUT_FILENO, show_cursor, sizeof(show_cursor) - 1);
	}
	n += write(STDERR_FILENO, interrupt_text, (size_t)interrupt_len);
	errno = saved;
	_exit(n < 0 || sig == SIGINT ? 130 : 128 + sig);
}

void term_on_interrupt(const char *text)
{
	sigset_t set, old;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, &old);
	int n = snprintf(interrupt_text, sizeof(interrupt_text), "\npeftctl: %s\n",
		text ? text : "interrupted");
	interrupt_len = (sig_atomic_t)min_i64(n, (int64_t)sizeof(interrupt_text) - 1);
	struct sigaction sa = {.sa_handler = on_interrupt};
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

void term_cursor(bool visible)
{
	fputs(visible ? show_cursor : "\033[?25l", stdout);
	fflush(stdout);
	cursor_hidden = !visible;
}
