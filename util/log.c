#include "util/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The one piece of process-wide state: written by log_init(), read-only afterwards. */
static const char *log_name = "peftd";
static enum log_level log_max = LOG_LEVEL_INFO;
static bool log_to_journal;

static const char *const level_names[] = {"error", "warning", "info", "debug"};
static const int level_priorities[] = {3, 4, 6, 7}; /* those of syslog */

void log_init(const char *name, enum log_level level)
{
	log_name = name;
	log_max = level;
	log_to_journal = getenv("JOURNAL_STREAM") != NULL;
}

int log_level_parse(const char *s, enum log_level *ret_level)
{
	for (int i = 0; i <= LOG_LEVEL_DEBUG; i++) {
		if (strcmp(s, level_names[i]) == 0) {
			*ret_level = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

void log_line(enum log_level level, const char *fmt, ...)
{
	if (level > log_max) {
		return;
	}

	char line[2048];
	int n;
	if (log_to_journal) {
		n = snprintf(line, sizeof(line), "<%d>%s: ", level_priorities[level], log_name);
	} else {
		struct timespec ts;
		struct tm tm;
		clock_gettime(CLOCK_REALTIME, &ts);
		localtime_r(&ts.tv_sec, &tm);
		n = snprintf(line, sizeof(line), "%02d:%02d:%02d.%03ld %s[%d] %s: ", tm.tm_hour, tm.tm_min,
			tm.tm_sec, ts.tv_nsec / 1000000, log_name, (int)getpid(), level_names[level]);
	}

	va_list ap;
	va_start(ap, fmt);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	if ((size_t)n > sizeof(line) - 2) {
		n = sizeof(line) - 2;
	}
	line[n] = '\n';

	/* One write a line, so that the lines of several processes never mix. */
	if (write(STDERR_FILENO, line, (size_t)n + 1) < 0) {
		return;
	}
}
