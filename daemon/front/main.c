/* peftd-front: started by peftd with one end of its link as --link-fd. */

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "daemon/front/front.h"
#include "util/cleanup.h"
#include "util/log.h"

enum {
	MAX_FILES = 65536,
	EXIT_CONFIGURATION = 2, /* starting again would end the same way */
};

static const char usage[] =
	"Usage: peftd-front --link-fd FD [--log-level LEVEL]\n"
	"Serves clients of peftd over ZeroMQ. Started by peftd, not by hand.\n"
	"PEFTD_SOCKET_MODE: permissions of the ipc socket in octal (default 0600; 0660 lets its\n"
	"group in).\n";

DEFINE_CLEANUP(struct front *, front_free);

static int parse_number(const char *s, int base, long max, long *ret)
{
	char *end;
	errno = 0;
	long n = strtol(s, &end, base);
	if (errno != 0 || end == s || *end != '\0' || n < 0 || n > max) {
		return -EINVAL;
	}
	*ret = n;
	return 0;
}

/* Raises the soft limit of descriptors as far as the hard one allows, and returns it. */
static unsigned raise_files(void)
{
	struct rlimit l;
	if (getrlimit(RLIMIT_NOFILE, &l) < 0) {
		return 1024;
	}
	rlim_t want = l.rlim_max < MAX_FILES ? l.rlim_max : MAX_FILES;
	if (l.rlim_cur < want) {
		struct rlimit raised = {want, l.rlim_max};
		if (setrlimit(RLIMIT_NOFILE, &raised) == 0) {
			l.rlim_cur = want;
		}
	}
	return l.rlim_cur < MAX_FILES ? (unsigned)l.rlim_cur : MAX_FILES;
}

static int parse_args(int argc, char **argv, struct front_options *o, enum log_level *level)
{
	static const struct option options[] = {
		{"link-fd", required_argument, NULL, 'f'},
		{"log-level", required_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'v'},
		{0},
	};
	long n;
	int c;
	o->link_fd = -1;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'f':
			if (parse_number(optarg, 10, MAX_FILES, &n) < 0) {
				fprintf(stderr, "peftd-front: --link-fd %s: not a file descriptor\n", optarg);
				return -EINVAL;
			}
			o->link_fd = (int)n;
			break;
		case 'l':
			if (log_level_parse(optarg, level) < 0) {
				fprintf(stderr, "peftd-front: --log-level %s: error, warning, info or debug\n",
					optarg);
				return -EINVAL;
			}
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		case 'v':
			puts("peftd-front " PEFTD_VERSION);
			exit(0);
		default:
			return -EINVAL;
		}
	}
	if (o->link_fd < 0 || optind < argc) {
		fputs(usage, stderr);
		return -EINVAL;
	}
	const char *mode = getenv("PEFTD_SOCKET_MODE");
	o->socket_mode = 0600;
	if (mode) {
		if (parse_number(mode, 8, 0777, &n) < 0) {
			fprintf(stderr, "peftd-front: PEFTD_SOCKET_MODE=%s: not permissions in octal\n", mode);
			return -EINVAL;
		}
		o->socket_mode = (unsigned)n;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct front_options o = {0};
	enum log_level level = LOG_LEVEL_INFO;
	if (parse_args(argc, argv, &o, &level) < 0) {
		return EXIT_CONFIGURATION;
	}
	log_init("peftd-front", level);
	o.max_files = raise_files();
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	signal(SIGPIPE, SIG_IGN);
	/* Ctrl-C and a service manager's stop reach the whole group; the core decides when we go. */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);

	struct errmsg err = {0};
	_cleanup_(front_freep) struct front *front = NULL;
	int r = front_new(&front, &o, &err);
	if (r == 0) {
		r = front_run(front, &err);
	}
	if (r == 0) {
		return 0;
	}
	log_error("%s", err.text[0] ? err.text : strerror(r < 0 ? -r : EIO));
	return r == STATUS_INVALID || r == STATUS_CONFLICT || r == STATUS_VERSION ? EXIT_CONFIGURATION
		: 1;
}
