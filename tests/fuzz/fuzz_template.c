/* Any bytes as a chat template: refused, or a conversation is rendered or refused, twice alike; spans lie
 * in the text, in order. */

#include <stdlib.h>
#include <string.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

static const char conversation[] = "[{\"role\": \"system\", \"content\": \" s \"},"
	"{\"role\": \"user\", \"content\": \"h\\u00e9 <&>\", \"n\": [1, 2.5, null, true, {\"k\": \"v\"}]},"
	"{\"role\": \"assistant\", \"content\": \"\\nyes\", \"tool_calls\": [{\"name\": \"f\"}]},"
	"{\"role\": \"user\", \"content\": \"\"}, {\"role\": \"assistant\", \"content\": \"x\"}]";

enum { MESSAGES = 5, SPANS = 16 };

static void check(const struct chat_template *t, const struct message *messages, bool prompt)
{
	struct span spans[SPANS];
	struct buf plain = {0}, marked = {0};
	struct errmsg err = {0};
	size_t n = 0, at = 0;
	int r = chat_template_render(t, messages, MESSAGES, prompt, &plain, NULL, 0, NULL, &err);
	if (r != 0 && (plain.len > 0 || (r > 0 && !err.text[0]))) {
		abort();
	}
	if (chat_template_render(t, messages, MESSAGES, prompt, &marked, spans, SPANS, &n, &err) == 0) {
		if (r != 0 || marked.len != plain.len ||
			(plain.len > 0 && memcmp(marked.data, plain.data, plain.len) != 0)) {
			abort();
		}
		for (size_t i = 0; i < n && i < SPANS; i++) {
			if (spans[i].start < at || spans[i].end < spans[i].start || spans[i].end > marked.len) {
				abort();
			}
			at = spans[i].end;
		}
	}
	buf_deinit(&plain);
	buf_deinit(&marked);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *source = malloc(size + 1);
	struct chat_template *t = NULL;
	struct errmsg err = {0};
	struct message messages[MESSAGES];
	json_t *list = json_loads(conversation, 0, NULL);
	if (!source || !list) {
		abort();
	}
	memcpy(source, data, size);
	source[size] = '\0';
	int r = chat_template_new_source(&t, source, "{\"eos_token\": \"</s>\"}", &err);
	if (r > 0 && !err.text[0]) {
		abort();
	}
	if (r == 0) {
		for (size_t i = 0; i < MESSAGES; i++) {
			messages[i] = row_message(list, i);
		}
		check(t, messages, false);
		check(t, messages, true);
	}
	chat_template_free(t);
	json_decref(list);
	free(source);
	return 0;
}
