/* Takes and gives back one lease of sanlock, by its library.
 *
 * usage: lease LOCKSPACE RESOURCE PATH OFFSET pairs|refused MILLISECONDS
 *        lease LOCKSPACE RESOURCE PATH OFFSET hold|take
 *
 * pairs takes it and gives it back, and refused asks for what another host has, for
 * as long as it is told; they print how often that was, and the nanoseconds that it
 * took. hold takes it and keeps it; take asks for it until it is granted, and ends. */
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <sanlock.h>
#include <sanlock_resource.h>
#include <sanlock_rv.h>

static volatile sig_atomic_t over;

static void on_alarm(int sig)
{
	(void)sig;
	over = 1;
}

static void die(const char *what, int rv)
{
	fprintf(stderr, "%s: %d\n", what, rv);
	exit(1);
}

/* What sanlock answers while another host has the lease, or may have it. */
static int refused(int rv)
{
	return rv <= SANLK_ACQUIRE_IDDISK && rv >= SANLK_ACQUIRE_OWNED_RETRY;
}

int main(int argc, char **argv)
{
	struct sanlk_resource *r = calloc(1, sizeof(*r) + sizeof(struct sanlk_disk));
	struct itimerval timer = { 0 };
	struct timespec begin, end;
	long done = 0;
	int sock, rv, ms = argc == 7 ? atoi(argv[6]) : 0;

	if (argc < 6 || !r)
		return 2;
	strncpy(r->lockspace_name, argv[1], SANLK_NAME_LEN - 1);
	strncpy(r->name, argv[2], SANLK_NAME_LEN - 1);
	r->num_disks = 1;
	strncpy(r->disks[0].path, argv[3], SANLK_PATH_LEN - 1);
	r->disks[0].offset = strtoull(argv[4], NULL, 10);
	sock = sanlock_register();
	if (sock < 0)
		die("register", sock);
	if (!strcmp(argv[5], "hold") || !strcmp(argv[5], "take")) {
		while ((rv = sanlock_acquire(sock, -1, 0, 1, &r, NULL)) < 0) {
			if (!refused(rv) || argv[5][0] == 'h')
				die("acquire", rv);
			usleep(100000);
		}
		printf("bench: ready\n");
		fflush(stdout);
		if (argv[5][0] == 'h')
			pause();
		return 0;
	}
	if (ms < 1)
		return 2;
	signal(SIGALRM, on_alarm);
	timer.it_value.tv_sec = ms / 1000;
	timer.it_value.tv_usec = ms % 1000 * 1000;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (; !over; done++) {
		rv = sanlock_acquire(sock, -1, 0, 1, &r, NULL);
		if (!strcmp(argv[5], "refused")) {
			if (!refused(rv))
				die("a lease that is to be refused", rv);
			continue;
		}
		if (rv < 0)
			die("acquire", rv);
		rv = sanlock_release(sock, -1, 0, 1, &r);
		if (rv < 0)
			die("release", rv);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%ld %lld\n", done, (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec);
	return 0;
}
