/*
 * Speed of tokenizers.
 *
 *	bench_tokenize MODEL|TOKENIZER.json FILE.jsonl [prompt_field completion_field]
 *
 * Two figures, for one thread, the best of five runs: encoding the file's lines as texts, and
 * making samples of its rows (reading JSON, encoding prompts twice).
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/text-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { RUNS = 5 };

static int fail(const struct errmsg *err)
{
	fprintf(stderr, "%s\n", err->text[0] ? err->text : "out of memory");
	return 1;
}

static char *slurp(const char *path, size_t *ret_len)
{
	struct buf b = {0};
	_cleanup_(fclosep) FILE *f = fopen(path, "rb");
	size_t n = 1;
	while (f && n > 0 && buf_reserve(&b, 1 << 20) == 0) {
		n = fread(b.data + b.len, 1, 1 << 20, f);
		b.len += n;
	}
	if (!f || n > 0) {
		perror(path);
		exit(1);
	}
	return buf_steal(&b, ret_len);
}

static int load(struct tokenizer **ret, const char *path, struct errmsg *err)
{
	const char *dot = strrchr(path, '.');
	if (dot && strcmp(dot, ".json") == 0) {
		/* Names no end-of-sequence token; samples need one. */
		static const char *const ends[] = {"<|endoftext|>", "</s>", "<eos>", "<|eot_id|>"};
		size_t len;
		char *json = slurp(path, &len);
		int r = tokenizer_new_json(ret, json, len, path, err);
		free(json);
		for (size_t i = 0; r == 0 && i < ARRAY_LEN(ends) && (*ret)->eos < 0; i++) {
			(*ret)->eos = tokenizer_id(*ret, ends[i]);
		}
		return r;
	}
	struct model_files *files = NULL;
	int r = model_files_open(&files, path, err);
	r = r != 0 ? r : tokenizer_new(ret, files, err);
	model_files_free(files);
	return r;
}

static int encode_lines(const struct tokenizer *t, const char *text, size_t len, size_t *ret_ids,
	struct errmsg *err)
{
	struct encoder e;
	struct ids ids = {0};
	int r = encoder_init(&e, t, true);
	for (size_t at = 0; at < len && r == 0;) {
		const char *end = memchr(text + at, '\n', len - at);
		size_t n = end ? (size_t)(end - text) - at + 1 : len - at;
		r = encoder_run(&e, text + at, n, false, &ids, NULL, err);
		at += n;
	}
	*ret_ids = ids.len;
	ids_deinit(&ids);
	encoder_deinit(&e);
	return r;
}

int main(int argc, char **argv)
{
	struct tokenizer *t = NULL;
	struct errmsg err = {0};
	size_t len, ids = 0;
	int64_t best[2] = {INT64_MAX, INT64_MAX};
	if (argc < 3) {
		fprintf(stderr, "usage: bench_tokenize MODEL|TOKENIZER.json FILE.jsonl [prompt_field "
			"completion_field]\n");
		return 2;
	}
	int64_t start = clock_monotonic_ns();
	if (load(&t, argv[1], &err) != 0) {
		return fail(&err);
	}
	printf("load: %.0f ms\n", (double)(clock_monotonic_ns() - start) * 1e-6);
	char *text = slurp(argv[2], &len);
	struct sample_options o = {.rows = {argc > 3 ? argv[3] : NULL, argc > 4 ? argv[4] : NULL}};
	struct chat_template *template = NULL;
	o.chat_template = chat_template_new(&template, NULL, "chatml", &err) == 0 ? template : NULL;
	for (unsigned i = 0; i < RUNS; i++) {
		struct samples *s = NULL;
		start = clock_monotonic_ns();
		if (encode_lines(t, text, len, &ids, &err) != 0) {
			return fail(&err);
		}
		best[0] = min_i64(best[0], clock_monotonic_ns() - start);
		start = clock_monotonic_ns();
		if (samples_new(&s, text, len, t, &o, 1, &err) != 0) {
			return fail(&err);
		}
		best[1] = min_i64(best[1], clock_monotonic_ns() - start);
		samples_free(s);
	}
	printf("encode: %.1f MB, %zu ids, %.1f MB/s\n", (double)len * 1e-6, ids,
		(double)len * 1e3 / (double)best[0]);
	printf("samples: %.1f MB/s\n", (double)len * 1e3 / (double)best[1]);
	free(text);
	chat_template_free(template);
	tokenizer_free(t);
	return 0;
}
