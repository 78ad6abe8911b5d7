/* Locks and unlocks in the kernel's DLM by libdlm, and nothing else, for as long
 * as it is told: what a program in C that needs no daemon would have.
 *
 * usage: pairs LOCKSPACE PREFIX EX|PR COUNT MILLISECONDS [refused]
 *
 * It keeps COUNT resources, PREFIX followed by a number from 0, in flight: one by
 * the waiting calls of the library, more by those with a completion routine. With
 * "refused" the one lock is somebody else's, and what is counted are the refusals.
 * It prints how many there were, and the nanoseconds that they took.
 *
 * The clock is looked at twice in all, as a look is a system call in User-Mode
 * Linux. */
#include <sys/types.h> /* before libdlm.h, which takes mode_t for known */

#include <errno.h>
#include <libdlm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct resource {
	char name[DLM_RESNAME_MAXLEN + 1];
	struct dlm_lksb sb;
	int held;
};

static volatile sig_atomic_t over;
static dlm_lshandle_t space;
static uint32_t mode;
static long done;
static int busy; /* resources in flight */

static void on_alarm(int sig)
{
	(void)sig;
	over = 1;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Persistent, as the daemon's locks are. */
#define FLAGS (LKF_NOQUEUE | LKF_PERSISTENT)

static void pair(struct resource *r)
{
	if (dlm_ls_lock_wait(space, mode, &r->sb, FLAGS, r->name, strlen(r->name), 0, NULL, NULL, NULL) || r->sb.sb_status)
		die("lock");
	if (dlm_ls_unlock_wait(space, r->sb.sb_lkid, 0, &r->sb) || r->sb.sb_status != EUNLOCK)
		die("unlock");
}

static void refusal(struct resource *r)
{
	int rv = dlm_ls_lock_wait(space, mode, &r->sb, FLAGS, r->name, strlen(r->name), 0, NULL, NULL, NULL);
	if ((rv && errno != EAGAIN) || r->sb.sb_status != EAGAIN)
		die("a lock that is to be refused");
}

static void completed(void *arg);

static void ask(struct resource *r)
{
	if (dlm_ls_lock(space, mode, &r->sb, FLAGS, r->name, strlen(r->name), 0, completed, r, NULL, NULL))
		die("lock");
}

static void completed(void *arg)
{
	struct resource *r = arg;
	if (!r->held) {
		if (r->sb.sb_status)
			die("lock");
		r->held = 1;
		if (dlm_ls_unlock(space, r->sb.sb_lkid, 0, &r->sb, r))
			die("unlock");
		return;
	}
	if (r->sb.sb_status != EUNLOCK)
		die("unlock");
	r->held = 0;
	done++;
	if (over)
		busy--;
	else
		ask(r);
}

static void in_flight(struct resource *list, int count)
{
	struct pollfd p = { .events = POLLIN };
	p.fd = dlm_ls_get_fd(space);
	for (busy = 0; busy < count; busy++)
		ask(&list[busy]);
	while (busy) {
		if (poll(&p, 1, -1) < 0 && errno != EINTR)
			die("poll");
		if (dlm_dispatch(p.fd) < 0 && errno != EINTR)
			die("dispatch");
	}
}

int main(int argc, char **argv)
{
	int i, count, ms, refused = argc == 7 && !strcmp(argv[6], "refused");
	struct resource *list;
	struct timespec begin, end;
	struct itimerval timer = { 0 };

	if (argc != 6 && !refused)
		return 2;
	mode = strcmp(argv[3], "PR") ? LKM_EXMODE : LKM_PRMODE;
	count = atoi(argv[4]);
	ms = atoi(argv[5]);
	list = calloc(count, sizeof(*list));
	if (count < 1 || ms < 1 || !list)
		return 2;
	for (i = 0; i < count; i++)
		snprintf(list[i].name, sizeof(list[i].name), "%s%d", argv[2], i);
	space = dlm_open_lockspace(argv[1]);
	if (!space)
		die(argv[1]);
	signal(SIGALRM, on_alarm);
	timer.it_value.tv_sec = ms / 1000;
	timer.it_value.tv_usec = ms % 1000 * 1000;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	setitimer(ITIMER_REAL, &timer, NULL);
	if (count > 1)
		in_flight(list, count);
	else
		while (!over) {
			if (refused)
				refusal(list);
			else
				pair(list);
			done++;
		}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%ld %lld\n", done, (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec);
	return 0;
}
