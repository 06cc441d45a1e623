#include "daemon/core/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/proto.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

extern char **environ;

void programs_deinit(struct programs *p)
{
	free(p->front);
	free(p->trainer);
	*p = (struct programs){0};
}

static char *own_folder(void)
{
	char *path = realpath("/proc/self/exe", NULL);
	char *slash = path ? strrchr(path, '/') : NULL;
	if (slash) {
		*slash = '\0';
	}
	return path;
}

/* Tries BASE/FOLDER/NAME for each folder in turn. */
static int find_program(const char *base, const char *const *folders, size_t n, const char *name,
	char **ret, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf tried = {0};
	for (size_t i = 0; i < n; i++) {
		_cleanup_(freep) char *path = NULL;
		if (asprintf(&path, "%s%s/%s", base, folders[i], name) < 0) {
			path = NULL;
			return -ENOMEM;
		}
		if (access(path, X_OK) == 0) {
			*ret = steal_ptr(path);
			return 0;
		}
		if (buf_appendf(&tried, "%s%s", i ? ", " : "", path) < 0) {
			return -ENOMEM;
		}
	}
	const char *list = buf_cstr(&tried);
	return errmsg_set(err, STATUS_NOT_FOUND,
		"%s is missing: it is not at %s; PEFTD_LIBEXEC can name its folder", name,
		list ? list : "");
}

int programs_find(struct programs *ret, struct errmsg *err)
{
	static const char *const here[] = {""};
	static const char *const front_folders[] = {"/../libexec/peftd", "", "/../front"};
	static const char *const trainer_folders[] = {"/../libexec/peftd", "", "/../trainer"};
	const char *set = getenv("PEFTD_LIBEXEC");
	_cleanup_(freep) char *own = own_folder();
	if (!own) {
		return -ENOMEM;
	}
	struct programs p = {0};
	int r = set ? find_program(set, here, 1, "peftd-front", &p.front, err)
				: find_program(own, front_folders, 3, "peftd-front", &p.front, err);
	if (r == 0) {
		r = set ? find_program(set, here, 1, "peftd-trainer", &p.trainer, err)
				: find_program(own, trainer_folders, 3, "peftd-trainer", &p.trainer, err);
	}
	if (r != 0) {
		programs_deinit(&p);
		return r;
	}
	*ret = p;
	return 0;
}

static int set_attributes(posix_spawnattr_t *attr)
{
	sigset_t none, all;
	sigemptyset(&none);
	sigfillset(&all);
	int r = posix_spawnattr_setsigmask(attr, &none);
	r = r ? r : posix_spawnattr_setsigdefault(attr, &all);
	r = r ? r : posix_spawnattr_setpgroup(attr, 0);
	return r ? r
			 : posix_spawnattr_setflags(
				   attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
}

/* 0 or an errno, as all of posix_spawn's kin. */
static int spawn(pid_t *ret, const char *path, char *const argv[], int link_fd)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	int r = posix_spawn_file_actions_init(&files);
	if (r != 0) {
		return r;
	}
	r = posix_spawnattr_init(&attr);
	if (r != 0) {
		posix_spawn_file_actions_destroy(&files);
		return r;
	}
	r = set_attributes(&attr);
	r = r ? r : posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	/* What a library prints is for the log, not for whoever reads peftd's output. */
	r = r ? r : posix_spawn_file_actions_adddup2(&files, 2, 1);
	r = r ? r : posix_spawn_file_actions_adddup2(&files, link_fd, 3);
	r = r ? r : posix_spawn_file_actions_addclosefrom_np(&files, 4);
	r = r ? r : posix_spawn(ret, path, &files, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	return r;
}

/* The kernel ends a trainer before the core when memory runs out. Lowering one's own protection
 * needs no right; where it fails anyway, the default holds. */
static void offer_to_oom_killer(pid_t pid)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)pid);
	_cleanup_(closep) int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "500", 3) < 0) {
		log_debug("oom_score_adj of %d could not be set: %s", (int)pid, strerror(errno));
	}
}

int process_start(struct process *ret, uint64_t id, enum child_kind kind, const struct programs *p,
	enum log_level level)
{
	static const char *const levels[] = {"error", "warning", "info", "debug"};
	const char *path = kind == CHILD_FRONT ? p->front : p->trainer;
	const char *name = kind == CHILD_FRONT ? "peftd-front" : "peftd-trainer";
	const char *argv[] = {name, "--link-fd", "3", "--log-level", levels[level],
		kind == CHILD_INSPECT ? "--inspect" : NULL, NULL};
	int fds[2];
	int r = link_pair(fds);
	if (r < 0) {
		return r;
	}
	_cleanup_(closep) int mine = fds[0], theirs = fds[1];
	struct process q = {.id = id, .kind = kind, .pidfd = -1, .eof_ns = INT64_MAX};
	r = link_new(&q.link, mine);
	if (r < 0) {
		return r;
	}
	steal_fd(&mine);
	r = -spawn(&q.pid, path, (char *const *)argv, theirs);
	if (r < 0) {
		link_free(q.link);
		return r;
	}
	q.pidfd = pidfd_open(q.pid, 0);
	if (q.pidfd < 0) {
		r = -errno;
		kill(q.pid, SIGKILL);
		waitpid(q.pid, NULL, 0);
		link_free(q.link);
		return r;
	}
	if (kind != CHILD_FRONT) {
		offer_to_oom_killer(q.pid);
	}
	if (kind == CHILD_INSPECT) {
		/* It reads untrusted files: nothing of them is to be left behind. */
		struct rlimit none = {0, 0};
		prlimit(q.pid, RLIMIT_CORE, &none, NULL);
	}
	*ret = q;
	return 0;
}

void process_kill(const struct process *p)
{
	pidfd_send_signal(p->pidfd, SIGKILL, NULL, 0);
}

int process_reap(const struct process *p, bool block, bool *ret_signalled, int *ret_code)
{
	siginfo_t info = {0};
	int r;
	do {
		r = waitid(P_PIDFD, (id_t)p->pidfd, &info, WEXITED | (block ? 0 : WNOHANG));
	} while (r < 0 && errno == EINTR);
	if (r < 0) {
		return -errno;
	}
	if (info.si_pid == 0) {
		return 0;
	}
	*ret_signalled = info.si_code != CLD_EXITED;
	*ret_code = info.si_status;
	return 1;
}

void process_deinit(struct process *p)
{
	link_free(p->link);
	if (p->pidfd >= 0) {
		close(p->pidfd);
	}
	*p = (struct process){.pidfd = -1};
}
