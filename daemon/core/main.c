/* peftd: the core. Options, the store, and then the loop. */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/core/config.h"
#include "daemon/core/loop.h"
#include "store/store.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { EXIT_USAGE = 2 };

static const char usage[] =
	"usage: peftd [--config FILE] [--state-dir DIR] [--endpoint URL]... [--device "
	"auto|cpu|cuda:N]\n"
	"             [--log-level error|warning|info|debug]\n"
	"       peftd --check [--state-dir DIR]\n"
	"\n"
	"  --config FILE      YAML with these options as keys, and memory_limit and threads\n"
	"  --state-dir DIR    jobs, datasets and adapters (default: /var/lib/peftd as root, otherwise\n"
	"                     $XDG_STATE_HOME/peftd or ~/.local/state/peftd)\n"
	"  --endpoint URL     where clients connect; may be given more than once (default:\n"
	"                     ipc:///run/peftd/peftd.sock as a service, otherwise\n"
	"                     ipc://$XDG_RUNTIME_DIR/peftd.sock)\n"
	"  --device DEVICE    what to train on (default: auto)\n"
	"  --memory-limit N   bytes a job may take, or 16GiB (default: 80 % of the device's memory)\n"
	"  --threads N        of computation on the CPU (default: one a core)\n"
	"  --log-level LEVEL  what to say on standard error (default: info)\n"
	"  --check            verify the store of a daemon that does not run, and exit\n"
	"  --version, --help\n";

DEFINE_CLEANUP(struct store *, store_close);

struct arguments {
	struct config config;
	char *config_file; /* borrowed from argv */
	bool check;
};

/* 0: go on; 1: done; 2: usage. */
static int parse_arguments(int argc, char **argv, struct arguments *a)
{
	static const struct option options[] = {
		{"config", required_argument, NULL, 'c'},
		{"state-dir", required_argument, NULL, 'k'},
		{"endpoint", required_argument, NULL, 'k'},
		{"device", required_argument, NULL, 'k'},
		{"log-level", required_argument, NULL, 'k'},
		{"memory-limit", required_argument, NULL, 'k'},
		{"threads", required_argument, NULL, 'k'},
		{"check", no_argument, NULL, 'C'},
		{"version", no_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	int option, index = 0;
	struct errmsg err;
	while ((option = getopt_long(argc, argv, "", options, &index)) != -1) {
		switch (option) {
		case 'c':
			a->config_file = optarg;
			break;
		case 'k':
			if (config_set(&a->config, options[index].name, optarg, &err) != 0) {
				fprintf(stderr, "peftd: --%s\n", err.text);
				return EXIT_USAGE;
			}
			break;
		case 'C':
			a->check = true;
			break;
		case 'V':
			puts("peftd " PEFTD_VERSION);
			return 1;
		case 'h':
			fputs(usage, stdout);
			return 1;
		default:
			fputs(usage, stderr);
			return EXIT_USAGE;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "peftd: '%s': there are only options\n%s", argv[optind], usage);
		return EXIT_USAGE;
	}
	return 0;
}

static int load_config(struct arguments *a)
{
	_cleanup_(config_deinit) struct config file = {.log_level = -1};
	struct errmsg err = {.text = ""};
	int r = a->config_file ? config_read(&file, a->config_file, &err) : 0;
	r = r ? r : config_complete(&a->config, &file, &err);
	if (r != 0) {
		fprintf(stderr, "peftd: %s\n", r > 0 ? err.text : strerror(-r));
		return EXIT_USAGE;
	}
	return 0;
}

/* Makes DIR and what is missing above it, for its owner alone. */
static int make_folder(const char *dir)
{
	_cleanup_(freep) char *path = strdup(dir);
	if (!path) {
		return -ENOMEM;
	}
	for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		if (mkdir(path, 0755) < 0 && errno != EEXIST) {
			return -errno;
		}
		*slash = '/';
	}
	return mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

static int open_store(const struct config *c, bool create, struct store **ret)
{
	struct errmsg err = {.text = ""};
	int r = create ? make_folder(c->state_dir) : 0;
	if (r < 0) {
		fprintf(stderr, "peftd: %s: %s\n", c->state_dir, strerror(-r));
		return r;
	}
	r = store_open(ret, c->state_dir, &err);
	if (r != 0) {
		fprintf(stderr, "peftd: %s\n", r > 0 || err.text[0] ? err.text : strerror(-r));
	}
	return r;
}

static int check(const struct config *c)
{
	_cleanup_(store_closep) struct store *store = NULL;
	_cleanup_(buf_deinit) struct buf report = {0};
	uint64_t faults = 0;
	/* To open a store makes one where there is none; a check changes nothing. */
	_cleanup_(freep) char *folder = NULL;
	if (asprintf(&folder, "%s/store", c->state_dir) < 0) {
		folder = NULL;
		return 1;
	}
	if (access(folder, F_OK) < 0) {
		fprintf(stderr, "peftd: %s: there is no store to check: %s\n", folder, strerror(errno));
		return 1;
	}
	if (open_store(c, false, &store) != 0) {
		return 1;
	}
	int r = store_check(store, &report, &faults);
	if (report.len > 0) {
		fwrite(report.data, 1, report.len, stdout);
	}
	if (r < 0) {
		fprintf(stderr, "peftd: %s: the check broke off: %s\n", c->state_dir, strerror(-r));
		return 1;
	}
	printf("%s: %" PRIu64 " faults\n", c->state_dir, faults);
	return faults == 0 ? 0 : 1;
}

static uint64_t default_memory(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
	return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page / 10 * 8 : 0;
}

static int serve(const struct config *c)
{
	_cleanup_(programs_deinit) struct programs programs = {0};
	_cleanup_(store_closep) struct store *store = NULL;
	struct errmsg err = {.text = ""};
	if (c->needs_run_folder && mkdir(CONFIG_RUN_FOLDER, 0755) < 0 && errno != EEXIST) {
		fprintf(stderr, "peftd: %s: %s; give --endpoint ipc://PATH, or set XDG_RUNTIME_DIR\n",
			CONFIG_RUN_FOLDER, strerror(errno));
		return 1;
	}
	int r = programs_find(&programs, &err);
	if (r != 0) {
		fprintf(stderr, "peftd: %s\n", r > 0 ? err.text : strerror(-r));
		return 1;
	}
	/* Before anything is started: the loop hears them through a descriptor. */
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGHUP);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	/* For the trainer's threads, which read it before main(): between two products they spin for a
	 * fraction of a millisecond and then sleep. The default is some milliseconds, and where another
	 * process wants the cores those are taken from the thread that is waited for. */
	if (setenv("GOMP_SPINCOUNT", "10000", 0) < 0) {
		fprintf(stderr, "peftd: %s\n", strerror(errno));
		return 1;
	}
	if (open_store(c, true, &store) != 0) {
		return 1;
	}
	struct loop_options options = {
		.core =
			{
				.version = PEFTD_VERSION,
				.memory_limit = c->memory_limit,
				.memory_default = default_memory(),
				.daemon_uid = getuid(),
			},
		.children =
			{
				.endpoints = (const char *const *)c->endpoints,
				.n_endpoints = c->n_endpoints,
				.device = c->device,
				.threads = c->threads,
				.memory_limit = c->memory_limit,
			},
		.programs = programs,
		.level = (enum log_level)c->log_level,
	};
	return loop_run(store, &options);
}

int main(int argc, char **argv)
{
	_cleanup_(config_deinit) struct config none = {.log_level = -1};
	struct arguments a = {.config = none};
	int r = parse_arguments(argc, argv, &a);
	if (r == 0) {
		r = load_config(&a);
		if (r == 0) {
			umask(077);
			log_init("peftd", (enum log_level)a.config.log_level);
			if (sodium_init() < 0) {
				fprintf(stderr, "peftd: libsodium does not start\n");
				r = 1;
			} else {
				r = a.check ? check(&a.config) : serve(&a.config);
			}
		}
	} else if (r == 1) {
		r = 0;
	}
	config_deinit(&a.config);
	return r;
}
