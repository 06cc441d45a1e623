#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "link.pb-c.h"
#include "proto/proto.h"
#include "record.pb-c.h"
#include "rpc.pb-c.h"
#include "util/cleanup.h"
#include "util/util.h"

/* ---- invariants of the schema --------------------------------------------------------------- */

struct walk {
	const ProtobufCMessageDescriptor *path[64];
	size_t depth;
};

static void walk_message(struct walk *w, const ProtobufCMessageDescriptor *d)
{
	for (size_t i = 0; i < w->depth; i++) {
		if (w->path[i] == d) {
			fail_msg("%s refers to itself", d->name);
		}
	}
	assert_true(w->depth < ARRAY_LEN(w->path));
	w->path[w->depth++] = d;
	for (unsigned i = 0; i < d->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &d->fields[i];
		if (f->type == PROTOBUF_C_TYPE_STRING) {
			fail_msg("%s.%s is a string; texts are bytes", d->name, f->name);
		}
		if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
			walk_message(w, f->descriptor);
		}
	}
	w->depth--;
}

static void no_recursion_and_no_strings(void **state)
{
	const ProtobufCMessageDescriptor *const roots[] = {
		&peftd__v1__request__descriptor, &peftd__v1__reply__descriptor,
		&peftd__v1__front_to_core__descriptor, &peftd__v1__core_to_front__descriptor,
		&peftd__v1__core_to_trainer__descriptor, &peftd__v1__trainer_to_core__descriptor,
		&peftd__v1__job_record__descriptor, &peftd__v1__model_record__descriptor,
		&peftd__v1__dataset_record__descriptor, &peftd__v1__blob_record__descriptor,
		&peftd__v1__request_record__descriptor,
	};
	for (size_t i = 0; i < ARRAY_LEN(roots); i++) {
		walk_message(&(struct walk){0}, roots[i]);
	}
}

/* The wire's status codes are those of util/errmsg.h, by number and name. */
static void status_codes_agree(void **state)
{
	const ProtobufCEnumDescriptor *d = &peftd__v1__status_code__descriptor;
	for (unsigned i = 0; i < d->n_values; i++) {
		char lower[32] = {0};
		for (size_t k = 0; d->values[i].name[k] && k + 1 < sizeof(lower); k++) {
			char c = d->values[i].name[k];
			lower[k] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
		}
		assert_string_equal(status_name(d->values[i].value), lower);
	}
	assert_string_equal(status_name((int)d->n_values), "unknown");
}

/* ---- checked decoding ----------------------------------------------------------------------- */

static void unpack_refuses(void **state)
{
	struct errmsg err = {0};
	assert_null(proto_unpack(&peftd__v1__request__descriptor, "\xFF\xFF", 2, 64, &err));
	assert_non_null(strstr(err.text, "well-formed"));
	assert_null(proto_unpack(&peftd__v1__request__descriptor, "0123456789", 10, 9, &err));
	assert_non_null(strstr(err.text, "at most 9"));

	/* Empty submessages of a repeated field take two bytes on the wire and far more in memory:
	 * the budget stops them. */
	size_t n = 8 * 1024 * 1024;
	uint8_t *many = malloc(2 * n);
	for (size_t i = 0; i < n; i++) {
		many[2 * i] = 1 << 3 | 2; /* WatchReply.events */
		many[2 * i + 1] = 0;
	}
	assert_null(proto_unpack(&peftd__v1__watch_reply__descriptor, many, 2 * n, 2 * n, &err));
	free(many);
}

static void texts(void **state)
{
	struct errmsg err = {0};
	char *s = NULL;
	ProtobufCBinaryData good = {3, (uint8_t *)"abc"};
	ProtobufCBinaryData nul = {3, (uint8_t *)"a\0c"};
	ProtobufCBinaryData bad = {3, (uint8_t *)"ab\xFF"};
	ProtobufCBinaryData slash = {3, (uint8_t *)"a/b"};
	ProtobufCBinaryData empty = {0, NULL};

	assert_int_equal(proto_str(&good, "name", &s, &err), 0);
	assert_string_equal(s, "abc");
	free(s);
	assert_int_equal(proto_str(&empty, "name", &s, &err), 0);
	assert_string_equal(s, "");
	free(s);
	assert_int_equal(proto_str(&nul, "name", &s, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "NUL"));
	assert_int_equal(proto_str(&bad, "name", &s, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "byte 2"));
	assert_int_equal(proto_str(&slash, "name", &s, &err), 0);
	free(s);
	assert_int_equal(proto_name(&slash, "the model's name", &s, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "the model's name '"));
	assert_non_null(strstr(err.text, "no '/'"));
	assert_int_equal(proto_name(&empty, "name", &s, &err), STATUS_INVALID);
	assert_true(proto_equal(&good, "abc"));
	assert_false(proto_equal(&good, "ab"));
	assert_true(proto_equal(&empty, ""));
}

static void defaults_stand_in_the_schema(void **state)
{
	Peftd__V1__TrainSpec t = PEFTD__V1__TRAIN_SPEC__INIT;
	assert_int_equal(t.batch_size, 8);
	assert_int_equal(t.max_length, 1024);
	assert_true(t.learning_rate == 2e-4);
	assert_true(proto_equal(&t.dtype, "bf16"));
}

/* ---- link ----------------------------------------------------------------------------------- */

struct pair {
	struct link *a, *b;
};

static int setup_pair(void **state)
{
	struct pair *p = calloc(1, sizeof(*p));
	int fds[2];
	assert_int_equal(link_pair(fds), 0);
	assert_int_equal(link_new(&p->a, fds[0]), 0);
	assert_int_equal(link_new(&p->b, fds[1]), 0);
	*state = p;
	return 0;
}

static int teardown_pair(void **state)
{
	struct pair *p = *state;
	link_free(p->a);
	link_free(p->b);
	free(p);
	return 0;
}

static void link_carries_messages_and_raw(void **state)
{
	struct pair *p = *state;
	Peftd__V1__Chunk m = PEFTD__V1__CHUNK__INIT;
	_cleanup_(freep) uint8_t *raw = malloc(CHUNK_SIZE);
	for (size_t i = 0; i < CHUNK_SIZE; i++) {
		raw[i] = (uint8_t)(i * 7);
	}
	/* More than the socket takes at once: the rest is queued and flushed as the reader reads. */
	for (uint64_t i = 0; i < 20; i++) {
		m.task = i;
		assert_int_equal(link_send(p->a, &m.base, raw, CHUNK_SIZE - i), 0);
	}
	assert_true(link_queued(p->a) > 0);
	for (uint64_t i = 0; i < 20; i++) {
		void *msg;
		const void *got;
		size_t len;
		struct errmsg err = {0};
		assert_int_equal(link_flush(p->a), 0);
		int r = link_recv_wait(p->b, 1000, &peftd__v1__chunk__descriptor, &msg, &got, &len, &err);
		assert_int_equal(r, 1);
		assert_int_equal(((Peftd__V1__Chunk *)msg)->task, i);
		assert_int_equal(len, CHUNK_SIZE - i);
		assert_memory_equal(got, raw, len);
		proto_free(msg);
	}
	assert_int_equal(link_queued(p->a), 0);
	assert_int_equal(link_queued_bytes(p->a), 0);
}

static void link_refuses_what_is_too_long(void **state)
{
	struct pair *p = *state;
	Peftd__V1__Chunk m = PEFTD__V1__CHUNK__INIT;
	_cleanup_(freep) uint8_t *raw = calloc(1, LINK_FRAME_MAX);
	assert_int_equal(link_send(p->a, &m.base, raw, LINK_FRAME_MAX), -EMSGSIZE);
	assert_int_equal(link_send(p->a, &m.base, raw, SIZE_MAX), -EMSGSIZE);
}

static void link_notices_junk_and_the_end(void **state)
{
	struct pair *p = *state;
	void *msg;
	const void *raw;
	size_t len;
	struct errmsg err = {0};
	static const char *const junk[] = {"x", "\xFF\xFF\xFF\xFFzz", "\x02\0\0\0\xFF\xFF"};
	static const size_t junk_len[] = {1, 6, 6};

	const ProtobufCMessageDescriptor *d = &peftd__v1__chunk__descriptor;
	assert_int_equal(link_recv(p->b, d, &msg, &raw, &len, &err), 0);
	for (size_t i = 0; i < ARRAY_LEN(junk); i++) {
		assert_int_equal(send(link_fd(p->a), junk[i], junk_len[i], 0), junk_len[i]);
		assert_int_equal(link_recv(p->b, d, &msg, &raw, &len, &err), -EPROTO);
	}
	assert_int_equal(link_recv_wait(p->b, 10, d, &msg, &raw, &len, &err), -ETIMEDOUT);
	link_free(p->a);
	p->a = NULL;
	assert_int_equal(link_recv(p->b, d, &msg, &raw, &len, &err), -ECONNRESET);
	Peftd__V1__Chunk m = PEFTD__V1__CHUNK__INIT;
	assert_int_equal(link_send(p->b, &m.base, NULL, 0), -EPIPE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_recursion_and_no_strings),
		cmocka_unit_test(status_codes_agree),
		cmocka_unit_test(unpack_refuses),
		cmocka_unit_test(texts),
		cmocka_unit_test(defaults_stand_in_the_schema),
		cmocka_unit_test_setup_teardown(link_carries_messages_and_raw, setup_pair, teardown_pair),
		cmocka_unit_test_setup_teardown(link_refuses_what_is_too_long, setup_pair, teardown_pair),
		cmocka_unit_test_setup_teardown(link_notices_junk_and_the_end, setup_pair, teardown_pair),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
