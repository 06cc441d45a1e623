/* The machinery of the parity suite; the operations are in parity_*.c. */

#include "tests/kernels/parity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/allclose.h"
#include "tests/support/skip.h"
#include "util/errmsg.h"
#include "util/util.h"

#define GAP_BYTE 0x5A

static const double bf16_ulp = 0x1p-8; /* relative distance of neighbours, at most */

/* ---- random numbers ------------------------------------------------------------------------ */

static uint64_t next_random(struct parity *p)
{
	/* splitmix64 */
	uint64_t z = (p->seed += 0x9E3779B97F4A7C15u);
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
	return z ^ (z >> 31);
}

int64_t parity_random(struct parity *p, int64_t n)
{
	return (int64_t)(next_random(p) % (uint64_t)n);
}

/* ---- tensors ------------------------------------------------------------------------------- */

static char *element_at(const struct tensor *t, int64_t i)
{
	return t->bytes +
		(size_t)(i / t->m.cols * t->m.stride + i % t->m.cols) * dtype_size(t->m.dtype);
}

/* From v to the image, rounding v on the way. */
static void image_from_values(struct tensor *t)
{
	for (int64_t i = 0; i < t->m.rows * t->m.cols; i++) {
		float f = (float)t->v[i];
		if (t->m.dtype == DTYPE_BF16) {
			uint16_t h = bf16_from_f32(f);
			memcpy(element_at(t, i), &h, sizeof(h));
			t->v[i] = bf16_to_f32(h);
		} else {
			memcpy(element_at(t, i), &f, sizeof(f));
			t->v[i] = f;
		}
	}
}

static void values_from_image(struct tensor *t)
{
	for (int64_t i = 0; i < t->m.rows * t->m.cols; i++) {
		float f;
		if (t->m.dtype == DTYPE_BF16) {
			uint16_t h;
			memcpy(&h, element_at(t, i), sizeof(h));
			f = bf16_to_f32(h);
		} else {
			memcpy(&f, element_at(t, i), sizeof(f));
		}
		t->v[i] = f;
	}
}

static void check_gaps(const struct parity *p, const struct tensor *t)
{
	size_t size = dtype_size(t->m.dtype), gap = (size_t)(t->m.stride - t->m.cols) * size;
	for (int64_t i = 0; i < t->m.rows; i++) {
		const char *end = t->bytes + (size_t)(i * t->m.stride + t->m.cols) * size;
		for (size_t k = 0; k < gap; k++) {
			if (end[k] != GAP_BYTE) {
				print_error("%s: written beyond the end of row %lld\n", p->context, (long long)i);
				fail();
			}
		}
	}
}

static struct tensor *tensor_new(struct parity *p, enum dtype dtype, int64_t rows, int64_t cols,
	int64_t gap)
{
	assert_true(p->n_tensors < PARITY_TENSORS);
	struct tensor *t = &p->tensors[p->n_tensors];
	t->m = (struct mat){NULL, dtype, rows, cols, cols + gap};
	t->size = (size_t)(rows * t->m.stride) * dtype_size(dtype);
	t->v = calloc_array((size_t)(rows * cols), sizeof(double));
	t->bytes = alloc_array(t->size, 1);
	assert_non_null(t->v);
	assert_non_null(t->bytes);
	memset(t->bytes, GAP_BYTE, t->size);
	t->m.data = backend_alloc(p->b, t->size);
	assert_non_null(t->m.data);
	p->n_tensors++;
	return t;
}

static struct tensor *tensor_finish(struct parity *p, struct tensor *t)
{
	image_from_values(t);
	backend_upload(p->b, t->m.data, t->bytes, t->size);
	return t;
}

struct tensor *tensor_random(struct parity *p, enum dtype dtype, int64_t rows, int64_t cols,
	int64_t gap, double scale)
{
	struct tensor *t = tensor_new(p, dtype, rows, cols, gap);
	for (int64_t i = 0; i < rows * cols; i++) {
		t->v[i] = ((double)(next_random(p) >> 11) * 0x1p-52 - 1) * scale;
	}
	return tensor_finish(p, t);
}

struct tensor *tensor_zero(struct parity *p, enum dtype dtype, int64_t rows, int64_t cols, int64_t gap)
{
	return tensor_finish(p, tensor_new(p, dtype, rows, cols, gap));
}

struct tensor *tensor_from(struct parity *p, enum dtype dtype, int64_t rows, int64_t cols,
	const double *values)
{
	struct tensor *t = tensor_new(p, dtype, rows, cols, 0);
	memcpy(t->v, values, (size_t)(rows * cols) * sizeof(double));
	return tensor_finish(p, t);
}

struct tensor *tensor_i32(struct parity *p, const int32_t *values, int64_t n)
{
	struct tensor *t = tensor_new(p, DTYPE_I32, 1, n, 0);
	memcpy(t->bytes, values, (size_t)n * sizeof(*values));
	backend_upload(p->b, t->m.data, t->bytes, t->size);
	return t;
}

double *parity_doubles(struct parity *p, int64_t n)
{
	assert_true(p->n_arrays < PARITY_ARRAYS);
	double *a = calloc_array((size_t)n, sizeof(*a));
	assert_non_null(a);
	p->arrays[p->n_arrays++] = a;
	return a;
}

double *parity_copy(struct parity *p, const double *src, int64_t n)
{
	double *a = parity_doubles(p, n);
	memcpy(a, src, (size_t)n * sizeof(*a));
	return a;
}

static void free_case(struct parity *p)
{
	for (size_t i = 0; i < p->n_tensors; i++) {
		backend_free_memory(p->b, p->tensors[i].m.data, p->tensors[i].size);
		free(p->tensors[i].v);
		free(p->tensors[i].bytes);
	}
	for (size_t i = 0; i < p->n_arrays; i++) {
		free(p->arrays[i]);
	}
	p->n_tensors = p->n_arrays = 0;
}

/* ---- cases --------------------------------------------------------------------------------- */

void parity_case(struct parity *p, const char *fmt, ...)
{
	free_case(p);
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(p->context, sizeof(p->context), fmt, ap);
	va_end(ap);
}

void parity_run(struct parity *p, void (*fn)(struct backend *b, void *ctx), void *ctx,
	struct tensor *output, ...)
{
	struct tensor *outputs[8];
	char *first[8];
	size_t n = 0;
	va_list ap;
	va_start(ap, output);
	for (struct tensor *t = output; t; t = va_arg(ap, struct tensor *)) {
		assert_true(n < ARRAY_LEN(outputs));
		outputs[n++] = t;
	}
	va_end(ap);

	struct errmsg err = {""};
	fn(p->b, ctx);
	assert_int_equal(backend_sync(p->b, &err), 0);
	for (size_t i = 0; i < n; i++) {
		first[i] = alloc_array(outputs[i]->size, 1);
		assert_non_null(first[i]);
		backend_download(p->b, first[i], outputs[i]->m.data, outputs[i]->size);
		backend_upload(p->b, outputs[i]->m.data, outputs[i]->bytes, outputs[i]->size);
	}
	fn(p->b, ctx);
	assert_int_equal(backend_sync(p->b, &err), 0);
	for (size_t i = 0; i < n; i++) {
		struct tensor *t = outputs[i];
		backend_download(p->b, t->bytes, t->m.data, t->size);
		bool same = memcmp(first[i], t->bytes, t->size) == 0;
		free(first[i]);
		if (!same) {
			print_error("%s: a second run gave other bits\n", p->context);
			fail();
		}
		if (t->m.dtype != DTYPE_I32) {
			values_from_image(t);
			check_gaps(p, t);
		}
	}
}

void parity_check(struct parity *p, const char *name, const struct tensor *t, const double *want,
	double rtol, double atol, const double *bound)
{
	char what[512];
	snprintf(what, sizeof(what), "%s: %s", p->context, name);
	if (t->m.dtype == DTYPE_BF16) {
		rtol += 1.5 * bf16_ulp;
		atol += 1e-30;
	}
	allclose_check(what, t->v, want, t->m.rows * t->m.cols, t->m.cols, rtol, atol, bound, __FILE__,
		__LINE__);
}

/* ---- main ---------------------------------------------------------------------------------- */

struct run {
	const struct parity_target *target;
	const struct parity_test *test;
};

static void test_on_target(void **state)
{
	const struct run *run = *state;
	struct parity p = {.seed = 1};
	struct errmsg err = {""};
	int r = run->target->new(&p.b, run->target, &err);
	if (r == STATUS_UNAVAILABLE) {
		SKIP(err.text);
	}
	if (r != 0) {
		print_error("%s: %d: %s\n", run->target->name, r, err.text);
		fail();
	}
	run->test->run(&p);
	free_case(&p);
	backend_free(p.b);
}

int parity_main(const struct parity_target *targets, size_t n_targets)
{
	const struct parity_test *const tables[] = {parity_tests_products, parity_tests_rows,
		parity_tests_attention, parity_tests_adapters};
	size_t n_tests = 0, n = 0;
	for (size_t i = 0; i < ARRAY_LEN(tables); i++) {
		for (const struct parity_test *t = tables[i]; t->name; t++) {
			n_tests++;
		}
	}

	struct CMUnitTest *tests = calloc_array(n_targets * n_tests, sizeof(*tests));
	struct run *runs = calloc_array(n_targets * n_tests, sizeof(*runs));
	char(*names)[96] = calloc_array(n_targets * n_tests, sizeof(*names));
	if (!tests || !runs || !names) {
		return 1;
	}
	for (size_t k = 0; k < n_targets; k++) {
		for (size_t i = 0; i < ARRAY_LEN(tables); i++) {
			for (const struct parity_test *t = tables[i]; t->name; t++, n++) {
				snprintf(names[n], sizeof(names[n]), "%s: %s", targets[k].name, t->name);
				runs[n] = (struct run){&targets[k], t};
				tests[n] = (struct CMUnitTest){.name = names[n], .test_func = test_on_target,
					.initial_state = &runs[n]};
			}
		}
	}
	int r = _cmocka_run_group_tests("parity", tests, n, NULL, NULL);
	free(tests);
	free(runs);
	free(names);
	return r;
}
