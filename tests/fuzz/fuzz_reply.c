/* What a daemon sends peftctl: whatever it holds, what is printed of it is JSON without control
 * characters, and harmless to a terminal. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "client/format.h"
#include "client/jsonw.h"
#include "client/watch.h"
#include "rpc.pb-c.h"
#include "util/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_harmless(const struct buf *b)
{
	for (size_t i = 0; i < b->len; i++) {
		if (b->data[i] < 0x20 || b->data[i] == 0x7F) {
			abort();
		}
	}
	if (!utf8_valid(b->data, b->len, NULL)) {
		abort();
	}
}

static void check_json(const struct jsonw *j)
{
	json_error_t e;
	check_harmless(&j->buf);
	/* Integers beyond jansson's range are right all the same. */
	json_t *v = json_loadb((const char *)j->buf.data, j->buf.len,
		JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, &e);
	if (!v) {
		abort();
	}
	json_decref(v);
}

static void check_events(const Peftd__V1__WatchReply *w)
{
	for (size_t i = 0; i < w->n_events; i++) {
		struct jsonw j = {0};
		struct buf words = {0};
		if (watch_event_json(&j, 0, w->events[i]) == 0) {
			check_json(&j);
		}
		if (watch_event_words(&words, w->events[i], 100) == 0) {
			check_harmless(&words);
		}
		jsonw_deinit(&j);
		buf_deinit(&words);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Peftd__V1__Reply *reply = proto_unpack(&peftd__v1__reply__descriptor, data, size, MESSAGE_MAX,
		NULL);
	if (!reply) {
		return 0;
	}
	struct jsonw j = {0};
	jsonw_message(&j, &reply->base);
	if (j.error == 0) {
		check_json(&j);
	}
	jsonw_deinit(&j);
	if (reply->what_case == PEFTD__V1__REPLY__WHAT_WATCH) {
		check_events(reply->watch);
	}
	char *text = format_text(&reply->id);
	struct buf b = {.data = (uint8_t *)text, .len = text ? strlen(text) : 0};
	check_harmless(&b);
	free(text);
	proto_free(reply);
	return 0;
}
