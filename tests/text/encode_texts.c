/* encode_texts TOKENIZER.json|MODEL IN OUT [special]: encodes texts, each preceded by its length in
 * four bytes, and writes the ids, each text's preceded by their number. Prints the speed.
 *
 * encode_texts TOKENIZER.json|MODEL IN OUT decode [special]: the other way; ids are preceded by the
 * length of all of them in bytes. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

static char *slurp(const char *path, size_t *ret_len)
{
	struct buf b = {0};
	FILE *f = fopen(path, "rb");
	size_t n = 1;
	while (f && n > 0 && buf_reserve(&b, 1 << 20) == 0) {
		n = fread(b.data + b.len, 1, 1 << 20, f);
		b.len += n;
	}
	if (!f || n > 0) {
		perror(path);
		exit(1);
	}
	fclose(f);
	return buf_steal(&b, ret_len);
}

static struct tokenizer *load(const char *path)
{
	struct tokenizer *t = NULL;
	struct model_files *files = NULL;
	struct errmsg err = {0};
	const char *dot = strrchr(path, '.');
	int r;
	if (dot && strcmp(dot, ".json") == 0) {
		size_t len;
		char *json = slurp(path, &len);
		r = tokenizer_new_json(&t, json, len, path, &err);
		free(json);
	} else {
		r = model_files_open(&files, path, &err);
		r = r != 0 ? r : tokenizer_new(&t, files, &err);
	}
	if (r != 0) {
		fprintf(stderr, "%d: %s\n", r, err.text);
		exit(1);
	}
	model_files_free(files);
	return t;
}

static int decode(const struct tokenizer *t, const char *in, size_t len, bool special, FILE *out)
{
	struct buf text = {0};
	int r = 0;
	for (size_t at = 0; at < len && r == 0;) {
		uint32_t n = le32_read(in + at);
		struct token_stream *s = NULL;
		text.len = 0;
		r = token_stream_new(&s, t, !special);
		for (size_t i = 0; i + 4 <= n && r == 0; i += 4) {
			r = token_stream_put(s, (int32_t)le32_read(in + at + 4 + i), &text);
		}
		r = r < 0 ? r : token_stream_end(s, &text);
		token_stream_free(s);
		uint32_t count = (uint32_t)text.len;
		fwrite(&count, sizeof(count), 1, out);
		fwrite(text.data ? text.data : (uint8_t *)"", 1, text.len, out);
		at += 4 + (size_t)n;
	}
	buf_deinit(&text);
	return r;
}

int main(int argc, char **argv)
{
	struct encoder e;
	struct ids ids = {0};
	struct errmsg err = {0};
	size_t len, bytes = 0;
	if (argc < 4) {
		fprintf(stderr, "usage: encode_texts TOKENIZER.json|MODEL IN OUT [decode] [special]\n");
		return 2;
	}
	struct tokenizer *t = load(argv[1]);
	char *in = slurp(argv[2], &len);
	FILE *out = fopen(argv[3], "wb");
	if (!out || encoder_init(&e, t, true) != 0) {
		perror(argv[3]);
		return 1;
	}
	if (argc > 4 && strcmp(argv[4], "decode") == 0) {
		return decode(t, in, len, argc > 5, out) != 0 || fclose(out) != 0;
	}
	int64_t start = clock_monotonic_ns();
	for (size_t at = 0; at < len;) {
		uint32_t n = le32_read(in + at), count;
		ids.len = 0;
		if (encoder_run(&e, in + at + 4, n, argc > 4, &ids, NULL, &err) != 0) {
			fprintf(stderr, "text at %zu: %s\n", at, err.text);
			return 1;
		}
		count = (uint32_t)ids.len;
		fwrite(&count, sizeof(count), 1, out);
		fwrite(ids.data, sizeof(*ids.data), ids.len, out);
		at += 4 + (size_t)n;
		bytes += n;
	}
	double seconds = (double)(clock_monotonic_ns() - start) * 1e-9;
	printf("%.1f MB in %.3f s: %.1f MB/s\n", (double)bytes * 1e-6, seconds,
		(double)bytes * 1e-6 / seconds);
	fclose(out);
	free(in);
	ids_deinit(&ids);
	encoder_deinit(&e);
	tokenizer_free(t);
	return 0;
}
