#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/trainer/trainer.h"

int process_harden(bool inspect)
{
	umask(077);
	struct rlimit none = {0, 0};
	if (setrlimit(RLIMIT_CORE, &none) < 0) {
		return -errno;
	}
	/* The parser of bytes from outside needs to create nothing. */
	if (inspect && setrlimit(RLIMIT_FSIZE, &none) < 0) {
		return -errno;
	}
	/* A closed link ends the process too; this also ends it in the middle of a computation. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
		return -errno;
	}
	/* A signal to the whole process group or control group (Ctrl-C, systemd) is the core's
	 * business, which then asks for a checkpoint. */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	return 0;
}

/* Not getrusage(): its ru_maxrss begins with what the parent had when it forked. */
uint64_t process_peak_rss(void)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/self/status", "re");
	if (!f) {
		return 0;
	}
	char line[256];
	while (fgets(line, sizeof(line), f)) {
		uint64_t kib;
		if (sscanf(line, "VmHWM: %" SCNu64, &kib) == 1) {
			return kib * 1024;
		}
	}
	return 0;
}

/* The number in a one-line file; UINT64_MAX for "max", for nonsense, and without the file. */
static uint64_t read_limit(const char *path)
{
	_cleanup_(fclosep) FILE *f = fopen(path, "re");
	uint64_t v;
	if (!f || fscanf(f, "%" SCNu64, &v) != 1) {
		return UINT64_MAX;
	}
	return v;
}

/* The smallest memory.max of the process's control group and all above it (version 2, or the memory
 * controller of version 1). */
static uint64_t cgroup_limit(void)
{
	_cleanup_(fclosep) FILE *f = fopen("/proc/self/cgroup", "re");
	if (!f) {
		return UINT64_MAX;
	}
	uint64_t limit = UINT64_MAX;
	char line[1024];
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		const char *root, *file;
		char *path;
		if (strncmp(line, "0::", 3) == 0) {
			root = "/sys/fs/cgroup";
			file = "memory.max";
			path = line + 3;
		} else if ((path = strstr(line, ":memory:"))) {
			root = "/sys/fs/cgroup/memory";
			file = "memory.limit_in_bytes";
			path += 8;
		} else {
			continue;
		}
		for (;;) {
			char full[1200];
			snprintf(full, sizeof(full), "%s%s/%s", root, path, file);
			uint64_t v = read_limit(full);
			limit = v < limit ? v : limit;
			char *slash = strrchr(path, '/');
			if (!slash) {
				break;
			}
			*slash = '\0';
		}
	}
	return limit;
}

uint64_t process_memory_total(void)
{
	uint64_t total = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t limit = cgroup_limit();
	return (limit < total ? limit : total) / 10 * 8;
}
