/* Datasets from anybody: what passes the check can be read again, as many rows, with any template.
 */

#include <stdlib.h>
#include <string.h>

#include "engine/text/text.h"

static const char tokenizer_json[] =
	"{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 4, \"content\": \"<|im_end|>\", "
	"\"special\": true}],"
	"\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
	"\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": "
	"{\"id\": \"e\"}},"
	"{\"Sequence\": {\"id\": \"A\"}}], \"special_tokens\": {\"e\": {\"ids\": [4]}}},"
	"\"model\": {\"type\": \"BPE\", \"unk_token\": \"e\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": "
	"2, \"e\": 3},"
	"\"merges\": [\"a b\"]}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	const struct rows_spec named = {"a", "b"};
	/* The first byte says how: the file cut in two, fields named. */
	unsigned how = size > 0 ? data[0] : 0;
	text += size > 0;
	size -= size > 0;
	size_t cut = size * (how & 15) / 16;
	const struct rows_file files[] = {{"one", cut}, {"two", size - cut}};
	const struct rows_spec *spec = how & 16 ? &named : NULL;
	struct rows_check check;
	struct buf faults = {0};
	struct errmsg err = {0};

	int r = rows_check(text, size, files, 2, spec, &check, &faults, &err);
	if (r > 0 && !err.text[0]) {
		abort();
	}
	if (r == 0) {
		struct tokenizer *t = NULL;
		struct chat_template *tmpl = NULL;
		struct samples *s = NULL;
		struct sample_options o = {.rows = spec ? named : (struct rows_spec){0}, .keep_all = true,
			.max_length = how & 32 ? 8 : 0, .overlong = OVERLONG_TRUNCATE};
		if (tokenizer_new_json(&t, tokenizer_json, strlen(tokenizer_json), "x", &err) != 0 ||
			chat_template_new(&tmpl, NULL, how & 64 ? "llama3" : "smollm2", &err) != 0) {
			abort();
		}
		o.chat_template = tmpl;
		/* No end-of-sequence token here, so only conversations come through. */
		if (samples_new(&s, text, size, t, &o, 1 + how % 4, &err) == 0 && s->rows != check.rows) {
			abort();
		}
		samples_free(s);
		chat_template_free(tmpl);
		tokenizer_free(t);
	}
	buf_deinit(&faults);
	return 0;
}
