/* What a client sends the front. The first byte chooses the length of the raw frame. */

#include <stdint.h>
#include <stdlib.h>

#include "daemon/front/endpoint.h"
#include "daemon/front/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const size_t raw_lens[] = {0, 1, CHUNK_SIZE, CHUNK_SIZE + 1};
	struct errmsg err = {0};
	uint8_t id[REQUEST_ID_SIZE];
	size_t id_len;
	Peftd__V1__Request *req = NULL;
	if (size == 0) {
		return 0;
	}
	int r = request_parse(data + 1, size - 1, raw_lens[data[0] % 4], &req, id, &id_len, &err);
	if (r == 0) {
		size_t len;
		void *packed = proto_pack(req, &len); /* as it goes on to the core */
		if (!packed || id_len != REQUEST_ID_SIZE) {
			abort();
		}
		free(packed);
	} else if (r != STATUS_INVALID || req || err.text[0] == '\0') {
		abort();
	}
	proto_free(req);
	return 0;
}
