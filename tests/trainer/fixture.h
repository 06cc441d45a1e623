#pragma once
/* A tiny model and rows for the tests of a binary. */

#include <stddef.h>

struct fixture {
	char *dir, *model;
	char *rows, *eval_rows;
	size_t rows_len, eval_rows_len;
};

int fixture_setup(void **state);
int fixture_teardown(void **state);
