#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/safetensors.h"
#include "util/cleanup.h"
#include "util/util.h"

/* A file from a header and `data_len` bytes 0, 1, 2, … of data. */
static void make_file(struct buf *out, const char *header, size_t data_len)
{
	uint8_t len[8];
	le64_write(len, strlen(header));
	assert_int_equal(buf_append(out, len, 8), 0);
	assert_int_equal(buf_append(out, header, strlen(header)), 0);
	for (size_t i = 0; i < data_len; i++) {
		uint8_t byte = (uint8_t)i;
		assert_int_equal(buf_append(out, &byte, 1), 0);
	}
}

/* ---- what is refused ----------------------------------------------------------------------- */

#define T(name, dtype, shape, begin, end) \
	"\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape "," \
	"\"data_offsets\":[" begin "," end "]}"

static const struct malformed {
	const char *header;
	size_t data_len;
	const char *expected;
} malformed[] = {
	{"", 0, "no JSON object"},
	{" {}", 0, "no JSON object"},
	{"[]", 0, "no JSON object"},
	{"{", 0, "header: "},
	{"{} x", 0, "header: "},
	{"{\"a\":1}", 0, "'a': the header gives no object"},
	{"{\"a\":{}}", 0, "'a': the header gives no object"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"more\":0}}", 4, "exactly"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"offsets\":[0,4]}}", 4, "must give dtype"},
	{"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "must give dtype"},
	{"{" T("a", "F99", "[1]", "0", "4") "}", 4, "'a': unknown dtype 'F99'"},
	{"{" T("a", "F32", "[1.0]", "0", "4") "}", 4, "dimension 0 of its shape"},
	{"{" T("a", "F32", "[2,-1]", "0", "4") "}", 4, "dimension 1 of its shape"},
	{"{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, "has 9 dimensions"},
	{"{" T("a", "F32", "[4611686018427387904]", "0", "0") "}", 0, "overflows"},
	{"{" T("a", "F32", "[4294967296,4294967296]", "0", "0") "}", 0, "overflows"},
	{"{" T("a", "F32", "[0,4294967296,4294967296]", "0", "0") "}", 0, "overflows"},
	{"{" T("a", "F32", "[9223372036854775808]", "0", "0") "}", 0, "too big integer"},
	{"{" T("a", "F4", "[3]", "0", "1") "}", 1, "no whole number of bytes"},
	{"{" T("a", "F32", "[1]", "0",
		"4") "}", 3, "ends at byte 4 of the data, but the file holds only 3"},
	{"{" T("a", "F32", "[1]", "0",
		"8") "}", 8, "takes 8 bytes, but its shape and dtype F32 make 4"},
	{"{" T("a", "F32", "[1]", "4", "0") "}", 4, "begin ≤ end"},
	{"{" T("a", "F32", "[1]", "-4", "0") "}", 4, "begin ≤ end"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, "two whole numbers"},
	{"{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "2",
		"6") "}", 6, "'b' begins at byte 2"},
	{"{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "0", "4") "}", 4, "overlaps"},
	{"{" T("a", "F32", "[1]", "0", "4") "," T("b", "F32", "[1]", "5",
		"9") "}", 9, "hole before 'b'"},
	{"{" T("a", "F32", "[1]", "1", "5") "}", 5, "hole before 'a'"},
	{"{" T("a", "F32", "[1]", "0", "4") "}", 5, "hole at the end"},
	{"{}", 1, "hole at the end"},
	{"{" T("a", "F32", "[1]", "0", "4") "," T("a", "F32", "[1]", "4",
		"8") "}", 8, "duplicate object key"},
	{"{" T("\xFF", "F32", "[1]", "0", "4") "}", 4, "UTF-8"},
	{"{\"__metadata__\":[]}", 0, "__metadata__ is no object"},
	{"{\"__metadata__\":{\"k\":1}}", 0, "'k' is no string"},
};

static void test_refuses_malformed(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(malformed); i++) {
		_cleanup_(buf_deinit) struct buf file = {0};
		struct safetensors st;
		struct errmsg err = {0};
		make_file(&file, malformed[i].header, malformed[i].data_len);
		int r = safetensors_parse(&st, file.data, file.len, "x.safetensors", &err);
		if (r != STATUS_INVALID || !strstr(err.text, malformed[i].expected) ||
				strncmp(err.text, "x.safetensors: ", 15) != 0) {
			fail_msg("case %zu (%s): %d, '%s'; expected '%s'", i, malformed[i].header, r, err.text,
				malformed[i].expected);
		}
	}
}

static void test_refuses_cut_short(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	struct safetensors st;
	struct errmsg err;
	make_file(&file, "{" T("a", "F32", "[2]", "0", "8") "}", 8);
	for (size_t n = 0; n < file.len; n++) {
		/* A copy of exactly n bytes, so that a sanitizer sees any step beyond. */
		_cleanup_(freep) uint8_t *copy = malloc(n ? n : 1);
		memcpy(copy, file.data, n);
		err.text[0] = '\0';
		assert_int_equal(safetensors_parse(&st, copy, n, "x", &err), STATUS_INVALID);
		assert_true(strlen(err.text) > 10);
	}
	assert_int_equal(safetensors_parse(&st, file.data, file.len, "x", &err), 0);
	safetensors_deinit(&st);
}

static void test_refuses_large_header(void **state)
{
	uint8_t file[16] = {0};
	struct safetensors st;
	struct errmsg err = {0};
	le64_write(file, (8 << 20) + 1);
	assert_int_equal(safetensors_parse(&st, file, sizeof(file), "x", &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "more than the 8388608 allowed"));
	le64_write(file, UINT64_MAX);
	assert_int_equal(safetensors_parse(&st, file, sizeof(file), "x", &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "more than the 8388608 allowed"));
}

/* ---- what is read -------------------------------------------------------------------------- */

static void test_reads(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	_cleanup_(safetensors_deinit) struct safetensors st = {0};
	struct errmsg err = {0};
	make_file(&file, "{\"__metadata__\":{\"format\":\"pt\",\"é\":\"\"},"
		T("b", "U8", "[2,3]", "4", "10") "," T("empty", "F32", "[0,7]", "4", "4") ","
		T("a", "F32", "[]", "0", "4") "," T("é", "F8_E4M3", "[1]", "10", "11") "}  ", 11);
	assert_int_equal(safetensors_parse(&st, file.data, file.len, "x", &err), 0);
	assert_int_equal(st.n_tensors, 4);
	assert_string_equal(st.tensors[0].name, "a");
	assert_string_equal(st.tensors[1].name, "b");
	assert_string_equal(st.tensors[2].name, "empty");
	assert_int_equal(st.n_metadata, 2);
	assert_string_equal(st.metadata[0], "format");
	assert_string_equal(st.metadata[1], "pt");

	const struct st_tensor *b = safetensors_find(&st, "b");
	assert_non_null(b);
	assert_int_equal(b->dtype, ST_U8);
	assert_int_equal(b->n_dims, 2);
	assert_int_equal(b->dims[0], 2);
	assert_int_equal(b->dims[1], 3);
	assert_int_equal(b->bytes, 6);
	assert_int_equal(b->data[0], 4);
	assert_int_equal(safetensors_find(&st, "a")->n_dims, 0);
	assert_int_equal(safetensors_find(&st, "a")->bytes, 4);
	assert_int_equal(safetensors_find(&st, "empty")->bytes, 0);
	assert_int_equal(safetensors_find(&st, "é")->dtype, ST_OTHER);
	assert_string_equal(safetensors_find(&st, "é")->dtype_name, "F8_E4M3");
	assert_null(safetensors_find(&st, "c"));
	assert_null(safetensors_find(&st, ""));

	float unused;
	assert_int_equal(st_tensor_read_f32(b, &unused, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "'b' has dtype U8"));
	assert_int_equal(st_tensor_read_f32(safetensors_find(&st, "empty"), NULL, &err), 0);
}

static void test_converts(void **state)
{
	static const struct {
		uint16_t f16;
		float value;
	} halves[] = {
		{0x0000, 0.0f}, {0x3C00, 1.0f}, {0xC000, -2.0f}, {0x7BFF, 65504.0f}, {0x0400, 0x1p-14f},
		{0x0001, 0x1p-24f}, {0x83FF, -0x1.ff8p-15f}, {0x3555, 0x1.554p-2f}, {0x7C00, INFINITY},
	};
	for (size_t i = 0; i < ARRAY_LEN(halves); i++) {
		struct st_tensor t = {.name = "h", .dtype = ST_F16, .n_dims = 1, .dims = {1}, .bytes = 2};
		float got;
		t.data = (const uint8_t *)&halves[i].f16;
		assert_int_equal(st_tensor_read_f32(&t, &got, NULL), 0);
		assert_memory_equal(&got, &halves[i].value, 4);
	}
	uint16_t bf16[] = {0x3F80, 0xC049, 0x0001};
	float want[] = {1.0f, -3.140625f, 0x1p-133f}, got[3];
	struct st_tensor t = {.name = "b", .dtype = ST_BF16, .n_dims = 1, .dims = {3},
		.data = (const uint8_t *)bf16, .bytes = 6};
	assert_int_equal(st_tensor_read_f32(&t, got, NULL), 0);
	assert_memory_equal(got, want, sizeof(want));

	double f64[] = {0.1, -1e300};
	float want64[] = {0.1f, -INFINITY};
	t = (struct st_tensor){.name = "d", .dtype = ST_F64, .n_dims = 1, .dims = {2},
		.data = (const uint8_t *)f64, .bytes = 16};
	assert_int_equal(st_tensor_read_f32(&t, got, NULL), 0);
	assert_memory_equal(got, want64, sizeof(want64));
}

/* ---- what is written ----------------------------------------------------------------------- */

static void test_writes(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	_cleanup_(safetensors_deinit) struct safetensors st = {0};
	struct errmsg err = {0};
	const float a[6] = {1, -2, 3, 4, 5, 6.5f};
	const uint16_t c[1] = {0x3C00};
	const char *metadata[] = {"format", "pt", "quote\"", "back\\slash\n"};
	struct st_out out[] = {
		{"a", ST_F32, 2, {2, 3}, a},
		{"empty", ST_F32, 1, {0}, NULL},
		{"ü \"c\"\x01", ST_F16, 1, {1}, c},
	};
	assert_int_equal(safetensors_write(&file, out, 3, metadata, 2), 0);

	static const char header[] =
		"{\"__metadata__\":{\"format\":\"pt\",\"quote\\\"\":\"back\\\\slash\\u000a\"},"
		"\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},";
	assert_memory_equal(file.data + 8, header, sizeof(header) - 1);
	assert_int_equal(le64_read(file.data) % 8, 0);

	assert_int_equal(safetensors_parse(&st, file.data, file.len, "x", &err), 0);
	assert_int_equal(st.n_tensors, 3);
	assert_string_equal(st.metadata[2], "quote\"");
	assert_string_equal(st.metadata[3], "back\\slash\n");
	const struct st_tensor *t = safetensors_find(&st, "a");
	assert_int_equal(t->bytes, sizeof(a));
	assert_memory_equal(t->data, a, sizeof(a));
	assert_int_equal((t->data - file.data) % 8, 0);
	t = safetensors_find(&st, "ü \"c\"\x01");
	assert_non_null(t);
	assert_int_equal(t->dtype, ST_F16);
	assert_memory_equal(t->data, c, 2);

	/* Nothing at all is a file too. */
	_cleanup_(buf_deinit) struct buf none = {0};
	struct safetensors empty;
	assert_int_equal(safetensors_write(&none, NULL, 0, NULL, 0), 0);
	assert_int_equal(safetensors_parse(&empty, none.data, none.len, "x", &err), 0);
	assert_int_equal(empty.n_tensors, 0);
	safetensors_deinit(&empty);
}

static void test_writes_no_nonsense(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	struct st_out other = {"a", ST_OTHER, 1, {1}, ""};
	struct st_out huge = {"a", ST_F32, 2, {INT64_MAX, 2}, ""};
	assert_int_equal(buf_append(&file, "kept", 4), 0);
	assert_true(safetensors_write(&file, &other, 1, NULL, 0) < 0);
	assert_true(safetensors_write(&file, &huge, 1, NULL, 0) < 0);
	assert_int_equal(file.len, 4);
	assert_memory_equal(file.data, "kept", 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refuses_malformed),
		cmocka_unit_test(test_refuses_cut_short),
		cmocka_unit_test(test_refuses_large_header),
		cmocka_unit_test(test_reads),
		cmocka_unit_test(test_converts),
		cmocka_unit_test(test_writes),
		cmocka_unit_test(test_writes_no_nonsense),
	};
	return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
