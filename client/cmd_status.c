#include <stdio.h>

#include "client/ctl.h"
#include "client/format.h"
#include "client/jsonw.h"
#include "util/cleanup.h"
#include "util/util.h"

static void line(const char *what, const ProtobufCBinaryData *text)
{
	_cleanup_(freep) char *s = format_text(text);
	printf("%-10s  %s\n", what, s ? s : "");
}

static void print_running(const Peftd__V1__StatusReply *s)
{
	printf("%-10s  %u running", "jobs", s->jobs_running);
	for (size_t i = 0; i < s->n_running; i++) {
		printf("%s%llu", i > 0 ? ", " : " (", (unsigned long long)s->running[i]);
	}
	printf("%s, %u waiting\n", s->n_running > 0 ? ")" : "", s->jobs_waiting);
}

static void print_models(const Peftd__V1__StatusReply *s)
{
	for (size_t i = 0; i < s->n_models; i++) {
		char bytes[FORMAT_SIZE];
		_cleanup_(freep) char *name = format_text(&s->models[i]->name);
		_cleanup_(freep) char *dtype = format_text(&s->models[i]->dtype);
		printf("%-10s  %s %s, %s\n", i == 0 ? "resident" : "", name ? name : "",
			dtype ? dtype : "", format_bytes(bytes, s->models[i]->bytes));
	}
}

static void print_status(const Peftd__V1__StatusReply *s)
{
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	_cleanup_(freep) char *device = format_text(&s->device);
	_cleanup_(freep) char *trainer = format_text(&s->trainer_state);
	line("peftd", &s->version);
	printf("%-10s  %s\n", "device", device && device[0] ? device : "not known yet");
	printf("%-10s  %s\n", "trainer", trainer ? trainer : "");
	printf("%-10s  %s of %s in use\n", "memory", format_bytes(a, s->memory_in_use),
		format_bytes(b, s->memory_total));
	print_models(s);
	print_running(s);
	printf("%-10s  %s, %s free\n", "store", format_bytes(a, s->store_bytes),
		format_bytes(b, s->store_free_bytes));
	printf("%-10s  %s\n", "uptime", format_duration(a, (double)s->uptime_seconds));
}

int cmd_status(struct ctl *ctl, int argc, char **argv)
{
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 0, 0, &operands, &status) != 0) {
		return status;
	}
	Peftd__V1__StatusRequest ask = PEFTD__V1__STATUS_REQUEST__INIT;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_STATUS;
	req.status = &ask;
	_cleanup_(msg_freep) Peftd__V1__Reply *reply = NULL;
	status = ctl_call(ctl, &req, CLIENT_QUICK_MS, &reply);
	if (status == 0) {
		status = ctl_expect(ctl, reply, PEFTD__V1__REPLY__WHAT_DAEMON_STATUS);
	}
	if (status != 0) {
		return status;
	}
	if (ctl->json) {
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_message(&j, &reply->daemon_status->base);
		jsonw_print(&j, stdout);
	} else {
		print_status(reply->daemon_status);
	}
	return ctl_finish(ctl, EXIT_DONE);
}
