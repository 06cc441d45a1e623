#pragma once
/* Log lines to standard error: a time and a level for people, a <priority> prefix for journald.
 * Libraries log at debug level only; what matters to a user travels in errors and events. */

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARNING,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

/* Process-wide settings, set once in main() before threads start. `name` is the process's name in
 * every line and is not copied. */
void log_init(const char *name, enum log_level level);

/* "error", "warning", "info", "debug" → level; -EINVAL otherwise. */
int log_level_parse(const char *s, enum log_level *ret_level);

void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)
