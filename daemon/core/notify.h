#pragma once
/* The service manager, where there is one: readiness, the end, and the watchdog. Without libsystemd
 * at build time these do nothing (notify-none.c). */

#include <stdint.h>

void notify_ready(void);
void notify_stopping(void);
void notify_alive(void);
/* Nanoseconds between calls of notify_alive() that keep the watchdog quiet; INT64_MAX: there is
 * none. */
int64_t notify_interval_ns(void);
