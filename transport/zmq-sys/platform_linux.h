/* What libzmq's own build finds out about Linux with glibc 2.17 or newer, included before every file.
   Names as in libzmq's builds/cmake/platform.hpp.in. */
#ifndef PILOTFISH_ZMQ_PLATFORM_LINUX_H
#define PILOTFISH_ZMQ_PLATFORM_LINUX_H

/* One eventfd for each socket's mailbox in place of a socket pair. */
#define ZMQ_HAVE_EVENTFD 1
#define ZMQ_HAVE_EVENTFD_CLOEXEC 1

/* Tasks are child processes: they must not inherit the links of the manager that starts them. */
#define ZMQ_HAVE_O_CLOEXEC 1
#define ZMQ_HAVE_SOCK_CLOEXEC 1
#define ZMQ_IOTHREAD_POLLER_USE_EPOLL_CLOEXEC 1
#define HAVE_ACCEPT4 1

#define ZMQ_HAVE_SO_KEEPALIVE 1
#define ZMQ_HAVE_TCP_KEEPCNT 1
#define ZMQ_HAVE_TCP_KEEPIDLE 1
#define ZMQ_HAVE_TCP_KEEPINTVL 1

#define ZMQ_HAVE_IFADDRS 1
#define ZMQ_HAVE_SO_BINDTODEVICE 1
#define ZMQ_HAVE_SO_PEERCRED 1
#define ZMQ_HAVE_SO_PRIORITY 1
#define ZMQ_HAVE_PPOLL 1
#define ZMQ_HAVE_PTHREAD_SETNAME_2 1
#define ZMQ_HAVE_PTHREAD_SET_AFFINITY 1
#define HAVE_CLOCK_GETTIME 1
#define HAVE_FORK 1
#define HAVE_IF_NAMETOINDEX 1
#define HAVE_MKDTEMP 1
#define HAVE_POSIX_MEMALIGN 1
#define ZMQ_HAVE_NOEXCEPT 1
#define ZMQ_CACHELINE_SIZE 64

#endif
