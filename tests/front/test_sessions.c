/* The front's parts that need no socket: sessions, the form of requests, endpoints. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/front/endpoint.h"
#include "daemon/front/request.h"
#include "daemon/front/session.h"

static void rid_of(uint8_t rid[SESSION_ROUTING_ID_SIZE], uint32_t n)
{
	rid[0] = 0;
	for (int i = 0; i < 4; i++) {
		rid[1 + i] = (uint8_t)(n >> (24 - 8 * i));
	}
}

static void test_find_and_remove(void **state)
{
	struct session_table *t;
	struct session *s, *all[1000];
	uint8_t rid[SESSION_ROUTING_ID_SIZE];
	assert_int_equal(session_table_new(&t), 0);
	for (uint32_t i = 0; i < 1000; i++) {
		/* Steps of 16384 put all of them into one bucket of routing ids. */
		rid_of(rid, i * 16384);
		assert_int_equal(session_add(t, rid, 1000, 0, &all[i], NULL), 0);
		assert_int_equal(all[i]->number, i + 1);
	}
	assert_int_equal(session_count(t), 1000);
	for (uint32_t i = 0; i < 1000; i += 2) {
		session_remove(t, all[i]);
	}
	for (uint32_t i = 0; i < 1000; i++) {
		rid_of(rid, i * 16384);
		s = session_by_rid(t, rid);
		assert_ptr_equal(s, i % 2 ? all[i] : NULL);
		assert_ptr_equal(session_by_number(t, i + 1), i % 2 ? all[i] : NULL);
	}
	size_t n = 0;
	for (s = session_next(t, NULL); s; s = session_next(t, s)) {
		n++;
	}
	assert_int_equal(n, 500);
	/* A number is never used again. */
	rid_of(rid, 7);
	assert_int_equal(session_add(t, rid, 1000, 0, &s, NULL), 0);
	assert_int_equal(s->number, 1001);
	session_table_free(t);
}

static void test_limits_of_sessions(void **state)
{
	struct session_table *t;
	struct session *s;
	struct errmsg err;
	uint8_t rid[SESSION_ROUTING_ID_SIZE];
	assert_int_equal(session_table_new(&t), 0);
	for (uint32_t i = 0; i < SESSION_MAX_PER_UID; i++) {
		rid_of(rid, i);
		assert_int_equal(session_add(t, rid, 1000, 0, &s, &err), 0);
	}
	rid_of(rid, SESSION_MAX_PER_UID);
	assert_int_equal(session_add(t, rid, 1000, 0, &s, &err), STATUS_UNAVAILABLE);
	assert_non_null(strstr(err.text, "user 1000"));
	for (uint32_t i = SESSION_MAX_PER_UID; i < SESSION_MAX; i++) {
		rid_of(rid, i);
		assert_int_equal(session_add(t, rid, 1001, 0, &s, &err), 0);
	}
	rid_of(rid, SESSION_MAX);
	assert_int_equal(session_add(t, rid, 1002, 0, &s, &err), STATUS_UNAVAILABLE);
	session_table_free(t);
}

static void test_outstanding(void **state)
{
	struct session_table *t;
	struct session *s;
	struct errmsg err;
	uint8_t rid[SESSION_ROUTING_ID_SIZE], id[REQUEST_ID_SIZE] = {0};
	rid_of(rid, 1);
	assert_int_equal(session_table_new(&t), 0);
	assert_int_equal(session_add(t, rid, 0, 0, &s, &err), 0);
	for (int i = 0; i < SESSION_OUTSTANDING_MAX; i++) {
		id[3] = (uint8_t)i;
		assert_false(session_waits_for(s, id));
		assert_int_equal(session_note(s, id, &err), 0);
		assert_true(session_waits_for(s, id));
	}
	id[3] = 200;
	assert_int_equal(session_note(s, id, &err), STATUS_UNAVAILABLE);
	for (int i = 0; i < SESSION_OUTSTANDING_MAX; i++) {
		id[3] = (uint8_t)i;
		assert_true(session_forget(s, id));
		assert_false(session_forget(s, id));
	}
	assert_int_equal(session_note(s, id, &err), 0);
	session_table_free(t);
}

static void test_queue_is_bounded(void **state)
{
	struct session_table *t;
	struct session *s;
	uint8_t rid[SESSION_ROUTING_ID_SIZE];
	rid_of(rid, 1);
	uint8_t *raw = calloc(1, CHUNK_SIZE);
	assert_int_equal(session_table_new(&t), 0);
	assert_int_equal(session_add(t, rid, 0, 0, &s, NULL), 0);
	int n = 0, r;
	while ((r = session_queue(s, "abc", 3, raw, CHUNK_SIZE)) == 0) {
		n++;
	}
	assert_int_equal(r, STATUS_QUOTA);
	assert_int_equal(n, SESSION_QUEUE_BYTES_MAX / (CHUNK_SIZE + 3));
	while (s->queue) {
		assert_memory_equal(s->queue->data, "abc", 3);
		session_dequeue(s);
		n--;
	}
	assert_int_equal(n, 0);
	assert_int_equal(s->queued_bytes, 0);
	while ((r = session_queue(s, &n, sizeof(n), NULL, 0)) == 0) {
		n++;
	}
	assert_int_equal(n, SESSION_QUEUE_MAX);
	for (int i = 0; s->queue; i++) {
		assert_memory_equal(s->queue->data, &i, sizeof(i)); /* in order */
		session_dequeue(s);
	}
	free(raw);
	session_table_free(t);
}

/* ---- the form of requests ---------------------------------------------------------------- */

static int parse(const Peftd__V1__Request *req, size_t raw_len, struct errmsg *err)
{
	uint8_t id[REQUEST_ID_SIZE];
	size_t len, id_len;
	Peftd__V1__Request *parsed = NULL;
	void *data = proto_pack(req, &len);
	int r = request_parse(data, len, raw_len, &parsed, id, &id_len, err);
	if (r == 0) {
		assert_int_equal(id_len, REQUEST_ID_SIZE);
		assert_int_equal(parsed->what_case, req->what_case);
	} else {
		assert_null(parsed);
	}
	proto_free(parsed);
	free(data);
	return r;
}

static void test_request_form(void **state)
{
	struct errmsg err = {0};
	Peftd__V1__StatusRequest status = PEFTD__V1__STATUS_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){16, (uint8_t *)"0123456789abcdef"};
	req.what_case = PEFTD__V1__REQUEST__WHAT_STATUS;
	req.status = &status;
	assert_int_equal(parse(&req, 0, &err), 0);
	assert_int_equal(parse(&req, 1, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "raw bytes"));

	req.id.len = 15;
	assert_int_equal(parse(&req, 0, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "16 bytes"));
	req.id.len = 16;

	req.what_case = PEFTD__V1__REQUEST__WHAT__NOT_SET;
	assert_int_equal(parse(&req, 0, &err), STATUS_INVALID);

	uint8_t digest[DIGEST_SIZE] = {0};
	Peftd__V1__UploadChunkRequest chunk = PEFTD__V1__UPLOAD_CHUNK_REQUEST__INIT;
	chunk.digest = (ProtobufCBinaryData){sizeof(digest), digest};
	req.what_case = PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK;
	req.upload_chunk = &chunk;
	assert_int_equal(parse(&req, 0, &err), STATUS_INVALID);
	assert_int_equal(parse(&req, CHUNK_SIZE + 1, &err), STATUS_INVALID);
	assert_int_equal(parse(&req, CHUNK_SIZE, &err), 0);
	assert_int_equal(parse(&req, 1, &err), 0);
}

static void test_unknown_fields_are_refused(void **state)
{
	struct errmsg err = {0};
	Peftd__V1__LoraSpec lora = PEFTD__V1__LORA_SPEC__INIT;
	Peftd__V1__JobSpec spec = PEFTD__V1__JOB_SPEC__INIT;
	Peftd__V1__SubmitRequest submit = PEFTD__V1__SUBMIT_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	spec.lora = &lora;
	submit.spec = &spec;
	req.id = (ProtobufCBinaryData){16, (uint8_t *)"0123456789abcdef"};
	req.what_case = PEFTD__V1__REQUEST__WHAT_SUBMIT;
	req.submit = &submit;
	assert_int_equal(parse(&req, 0, &err), 0);

	/* Deep inside: a setting that only a newer client knows must not be dropped in silence. */
	uint8_t value = 1;
	ProtobufCMessageUnknownField unknown = {999, PROTOBUF_C_WIRE_TYPE_VARINT, 1, &value};
	lora.base.n_unknown_fields = 1;
	lora.base.unknown_fields = &unknown;
	assert_int_equal(parse(&req, 0, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "LoraSpec"));
	assert_non_null(strstr(err.text, "999"));
}

static void test_peer_uid(void **state)
{
	assert_int_equal(endpoint_peer_uid("localhost:1000:100:4321"), 1000);
	assert_int_equal(endpoint_peer_uid(":0:0:1"), 0);
	assert_int_equal(endpoint_peer_uid("a:b:c:7:8:9"), 7);
	static const char *const bad[] = {NULL, "", "127.0.0.1", "1:2", "1:2:3", "x::2:3", "x:-1:2:3",
		"x:99999999999:2:3", "x:4294967295:1:1", "x: 5:1:1"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(endpoint_peer_uid(bad[i]), UINT32_MAX);
	}
}

static void test_endpoints(void **state)
{
	struct errmsg err = {0};
	assert_int_equal(endpoint_check("ipc:///run/peftd/peftd.sock", &err), 0);
	assert_int_equal(endpoint_check("tcp://0.0.0.0:5555", &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "CURVE"));
	static const char *const bad[] = {"", "ipc://", "ipc://relative.sock", "ipc://@abstract",
		"inproc://x", "/run/peftd.sock", "udp://1.2.3.4:5"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err.text[0] = '\0';
		assert_int_equal(endpoint_check(bad[i], &err), STATUS_INVALID);
		assert_true(err.text[0] != '\0');
	}
	char path[200];
	memset(path, 'x', sizeof(path) - 1);
	memcpy(path, "ipc:///", 7);
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(endpoint_check(path, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "107"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_find_and_remove),
		cmocka_unit_test(test_limits_of_sessions),
		cmocka_unit_test(test_outstanding),
		cmocka_unit_test(test_queue_is_bounded),
		cmocka_unit_test(test_request_form),
		cmocka_unit_test(test_unknown_fields_are_refused),
		cmocka_unit_test(test_peer_uid),
		cmocka_unit_test(test_endpoints),
	};
	return cmocka_run_group_tests_name("front: sessions", tests, NULL, NULL);
}
