/* Job files and --set: any text is either a specification that survives the wire, or a complaint
 * that names its line. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "client/jobfile.h"
#include "client/spec.h"
#include "proto/jobspec.h"
#include "proto/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_copy(const Peftd__V1__JobSpec *spec)
{
	size_t len, copy_len;
	void *packed = proto_pack(spec, &len);
	void *copy = proto_unpack(&peftd__v1__job_spec__descriptor, packed, len, len, NULL);
	void *again = copy ? proto_pack(copy, &copy_len) : NULL;
	if (!again || copy_len != len || memcmp(packed, again, len) != 0) {
		abort();
	}
	free(packed);
	free(again);
	proto_free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct errmsg err = {0};
	Peftd__V1__JobSpec *spec = spec_new();
	int r = jobfile_parse("f", data, size, spec, &err);
	if (r == 0) {
		check_copy(spec);
		if (jobspec_complete(&spec->base, &err) == 0) {
			check_copy(spec);
		}
	} else if (r != STATUS_INVALID || strncmp(err.text, "f:", 2) != 0) {
		abort();
	}
	/* The same bytes as an assignment, on top of whatever was read. */
	char *text = malloc(size + 1);
	memcpy(text, data, size);
	text[size] = '\0';
	r = spec_assign(spec, text, &err);
	if (r != 0 && r != STATUS_INVALID) {
		abort();
	}
	check_copy(spec);
	free(text);
	proto_free(spec);
	return 0;
}
