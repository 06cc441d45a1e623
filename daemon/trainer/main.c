/* peftd-trainer: started by peftd, never by hand. */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/trainer/link-internal.h"
#include "daemon/trainer/trainer.h"
#include "util/log.h"

struct options {
	int link_fd;
	bool inspect;
	enum log_level log_level;
};

static int usage(void)
{
	fprintf(stderr,
		"usage: peftd-trainer [--inspect] --link-fd FD [--log-level error|warning|info|debug]\n"
		"peftd starts this program; FD is its end of a socket pair.\n");
	return 2;
}

static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longopts[] = {
		{"link-fd", required_argument, NULL, 'l'},
		{"inspect", no_argument, NULL, 'i'},
		{"log-level", required_argument, NULL, 'v'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	int c;
	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		char *end;
		switch (c) {
		case 'l':
			errno = 0;
			o->link_fd = (int)strtol(optarg, &end, 10);
			if (errno != 0 || end == optarg || *end || o->link_fd < 3) {
				fprintf(stderr, "peftd-trainer: --link-fd: '%s' is no descriptor of 3 or more\n",
					optarg);
				return usage();
			}
			break;
		case 'i':
			o->inspect = true;
			break;
		case 'v':
			if (log_level_parse(optarg, &o->log_level) < 0) {
				fprintf(stderr, "peftd-trainer: --log-level: '%s' is no level\n", optarg);
				return usage();
			}
			break;
		default:
			return usage();
		}
	}
	if (o->link_fd < 0 || optind != argc) {
		return usage();
	}
	if (fcntl(o->link_fd, F_GETFD) < 0) {
		fprintf(stderr, "peftd-trainer: --link-fd: descriptor %d is not open\n", o->link_fd);
		return usage();
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct options o = {.link_fd = -1, .log_level = LOG_LEVEL_INFO};
	int r = parse_options(argc, argv, &o);
	if (r != 0) {
		return r;
	}
	log_init(o.inspect ? "peftd-inspect" : "peftd-trainer", o.log_level);
	fcntl(o.link_fd, F_SETFD, FD_CLOEXEC);
	if (sodium_init() < 0) {
		log_error("libsodium does not start");
		return 1;
	}
	r = process_harden(o.inspect);
	if (r < 0) {
		log_error("cannot set the process's limits: %s", strerror(-r));
		return 1;
	}

	struct trainer t;
	r = trainer_init(&t, o.inspect);
	if (r < 0) {
		log_error("cannot start: %s", strerror(-r));
		return 1;
	}
	pthread_t compute;
	r = -pthread_create(&compute, NULL, compute_main, &t);
	if (r < 0) {
		log_error("cannot start a thread: %s", strerror(-r));
		return 1;
	}
	r = link_run(&t, o.link_fd);
	if (r < 0) {
		/* The compute thread may be in the middle of a long product. Nothing here is worth waiting
		 * for: what matters is with the core. */
		if (r == -ECONNRESET || r == -EPIPE) {
			log_debug("the link is closed; ending");
			_exit(0);
		}
		if (r != -ECANCELED) {
			log_error("ending: %s", strerror(-r));
		}
		_exit(1);
	}
	pthread_join(compute, NULL);
	trainer_deinit(&t);
	return 0;
}
