/* A test that cannot run here. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Ends the calling test, saying why. Not cmocka's skip(): in TAP it prints "not ok … # SKIP", which
 * meson takes for a failure. scripts/test counts these lines. */
#define SKIP(why)                                                                                  \
	do {                                                                                           \
		print_message("# skipped: %s: %s\n", __func__, why);                                       \
		return;                                                                                    \
	} while (0)
