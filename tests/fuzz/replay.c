/*
 * main() of fuzz targets in builds without libFuzzer: runs each input once. Arguments are files, or
 * folders of which every file is an input; -options are skipped, so that a target can be called the
 * same way in either build.
 */

#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "util/buf.h"
#include "util/cleanup.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t replay_file(const char *path)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "rb");
	_cleanup_(buf_deinit) struct buf input = {0};
	uint8_t chunk[4096];
	size_t n;
	if (!f) {
		perror(path);
		exit(2);
	}
	while ((n = fread(chunk, 1, sizeof(chunk), f)) > 0) {
		if (buf_append(&input, chunk, n) < 0) {
			abort();
		}
	}
	/* Exactly as large as the input, so that a sanitizer sees any step beyond it. */
	_cleanup_(freep) uint8_t *exact = malloc(input.len ? input.len : 1);
	if (!exact) {
		abort();
	}
	if (input.len > 0) {
		memcpy(exact, input.data, input.len);
	}
	LLVMFuzzerTestOneInput(exact, input.len);
	return 1;
}

static size_t replay(const char *path)
{
	struct stat st;
	size_t n = 0;
	if (stat(path, &st) < 0) {
		perror(path);
		exit(2);
	}
	if (!S_ISDIR(st.st_mode)) {
		return replay_file(path);
	}
	struct dirent **entries;
	int count = scandir(path, &entries, NULL, alphasort);
	if (count < 0) {
		perror(path);
		exit(2);
	}
	for (int i = 0; i < count; i++) {
		char child[4096];
		snprintf(child, sizeof(child), "%s/%s", path, entries[i]->d_name);
		if (entries[i]->d_name[0] != '.') {
			n += replay(child);
		}
		free(entries[i]);
	}
	free(entries);
	return n;
}

int main(int argc, char **argv)
{
	size_t n = 0;
	for (int i = 1; i < argc; i++) {
		n += argv[i][0] == '-' ? 0 : replay(argv[i]);
	}
	printf("%zu inputs replayed\n", n);
	return n > 0 ? 0 : 2; /* a corpus that went missing is a fault, not a success */
}
