/* A wall clock that is WRONG_CLOCK_S seconds wrong, for one process. Everything else, waits included, stays right.
 *
 * The kernel has one wall clock for all processes. So this library sits between the process and libc (LD_PRELOAD). It
 * shifts the time of day that the process reads, and shifts a wait until a time of day back, as on a machine whose
 * clock is wrong. It never touches monotonic clocks and waits on them. libfaketime cannot do that: it does not shift
 * the futex calls of gRPC's core, which end ten minutes late, and it breaks absolute waits on the monotonic clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(name)                                          \
  ({                                                        \
    static __typeof__(&name) real;                          \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    real;                                                   \
  })

static time_t wrong_s;

__attribute__((constructor)) static void start(void) {
  const char *text = getenv("WRONG_CLOCK_S");
  wrong_s = text ? atol(text) : 0;
}

static int is_wall(clockid_t id) { return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE; }

static const struct timespec *back(const struct timespec *until, struct timespec *room) {
  *room = *until;
  room->tv_sec -= wrong_s;
  if (room->tv_sec < 0) room->tv_sec = 0;
  return room;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  int result = REAL(clock_gettime)(id, now);
  if (!result && is_wall(id)) now->tv_sec += wrong_s;
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  int result = REAL(gettimeofday)(now, zone);
  if (!result) now->tv_sec += wrong_s;
  return result;
}

time_t time(time_t *place) {
  time_t now = REAL(time)(NULL) + wrong_s;
  if (place) *place = now;
  return now;
}

int timespec_get(struct timespec *now, int base) {
  int result = REAL(timespec_get)(now, base);
  if (result == TIME_UTC) now->tv_sec += wrong_s;
  return result;
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *until, struct timespec *rest) {
  struct timespec room;
  if (is_wall(id) && flags & TIMER_ABSTIME) until = back(until, &room);
  return REAL(clock_nanosleep)(id, flags, until, rest);
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until) {
  /* libc does not say which clock the condition was made for; a time of day is far beyond any machine's uptime. */
  struct timespec room;
  if (until->tv_sec > 1000000000) until = back(until, &room);
  return REAL(pthread_cond_timedwait)(cond, mutex, until);
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t id, const struct timespec *until) {
  struct timespec room;
  if (is_wall(id)) until = back(until, &room);
  return REAL(pthread_cond_clockwait)(cond, mutex, id, until);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until) {
  struct timespec room;
  return REAL(pthread_mutex_timedlock)(mutex, back(until, &room));
}

int sem_timedwait(sem_t *sem, const struct timespec *until) {
  struct timespec room;
  return REAL(sem_timedwait)(sem, back(until, &room));
}

int sem_clockwait(sem_t *sem, clockid_t id, const struct timespec *until) {
  struct timespec room;
  if (is_wall(id)) until = back(until, &room);
  return REAL(sem_clockwait)(sem, id, until);
}

long syscall(long number, ...) {
  long a[6];
  struct timespec room;
  va_list rest;
  va_start(rest, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_futex && a[3] && (a[1] & FUTEX_CLOCK_REALTIME) && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET)
    a[3] = (long)back((const struct timespec *)a[3], &room);
  return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
