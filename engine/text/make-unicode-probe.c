/* Prints, as JSON, what PCRE2 and utf8proc know of Unicode; read by make-unicode.py. Not part of
 * the build: cc -I../.. make-unicode-probe.c -lpcre2-8 -lutf8proc */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <utf8proc.h>

static const char *const categories[] = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl",
	"No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc",
	"Cf"};

static void print_category(const char *name)
{
	char pattern[16];
	int error;
	PCRE2_SIZE at;
	snprintf(pattern, sizeof(pattern), "\\p{%s}", name);
	pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
		PCRE2_UTF | PCRE2_UCP, &error, &at, NULL);
	pcre2_match_data *match = pcre2_match_data_create(1, NULL);
	const char *comma = "";

	printf("\"%s\": [", name);
	for (int32_t c = 0; c < 0x110000; c++) {
		uint8_t text[4];
		if (c >= 0xD800 && c < 0xE000) {
			continue;
		}
		size_t n = (size_t)utf8proc_encode_char(c, text);
		if (pcre2_match(code, text, n, 0, 0, match, NULL) > 0) {
			printf("%s%d", comma, c);
			comma = ",";
		}
	}
	printf("]");
	pcre2_match_data_free(match);
	pcre2_code_free(code);
}

int main(void)
{
	printf("{\"category\": {");
	for (size_t i = 0; i < sizeof(categories) / sizeof(categories[0]); i++) {
		printf("%s", i ? ",\n" : "");
		print_category(categories[i]);
	}
	printf("},\n\"combining\": {");
	const char *comma = "";
	for (int32_t c = 0; c < 0x110000; c++) {
		if (utf8proc_get_property(c)->combining_class) {
			printf("%s\"%d\": %d", comma, c, utf8proc_get_property(c)->combining_class);
			comma = ",";
		}
	}
	printf("},\n\"compat\": [");
	comma = "";
	for (int32_t c = 0; c < 0x110000; c++) {
		int32_t out[32];
		int boundary = 0;
		ssize_t n = c >= 0xD800 && c < 0xE000 ? 0 : utf8proc_decompose_char(c, out, 32,
			UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, &boundary);
		if (n > 1 || (n == 1 && out[0] != c)) {
			printf("%s%d", comma, c);
			comma = ",";
		}
	}
	printf("],\n\"compositions\": [");
	comma = "";
	for (int32_t c = 0; c < 0x110000; c++) {
		int32_t out[4];
		int boundary = 0;
		if ((c >= 0xD800 && c < 0xE000) || (c >= 0xAC00 && c < 0xD7A4)) {
			continue;
		}
		ssize_t n = utf8proc_decompose_char(c, out, 4, UTF8PROC_DECOMPOSE, &boundary);
		if (n == 2) {
			printf("%s[%d,%d,%d]", comma, out[0], out[1], c);
			comma = ",";
		}
	}
	printf("],\n\"unassigned\": [");
	comma = "";
	for (int32_t c = 0; c < 0x110000; c++) {
		if (utf8proc_category(c) == UTF8PROC_CATEGORY_CN) {
			printf("%s%d", comma, c);
			comma = ",";
		}
	}
	printf("],\n\"lower\": {");
	comma = "";
	for (int32_t c = 0; c < 0x110000; c++) {
		if (utf8proc_tolower(c) != c) {
			printf("%s\"%d\": %d", comma, c, utf8proc_tolower(c));
			comma = ",";
		}
	}
	printf("}}\n");
	return 0;
}
