#include "tests/trainer/fixture.h"

#include <sodium.h>
#include <stdlib.h>

#include "tests/support/tiny.h"

int fixture_setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	if (!f || sodium_init() < 0) {
		return -1;
	}
	f->dir = tiny_tempdir();
	f->model = tiny_path(f->dir, "model");
	tiny_model_write(f->model, 1);
	f->rows = tiny_rows(40, 2, &f->rows_len);
	f->eval_rows = tiny_rows(10, 3, &f->eval_rows_len);
	*state = f;
	return 0;
}

int fixture_teardown(void **state)
{
	struct fixture *f = *state;
	tiny_remove_tree(f->dir);
	free(f->dir);
	free(f->model);
	free(f->rows);
	free(f->eval_rows);
	free(f);
	return 0;
}
