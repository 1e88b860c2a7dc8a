/* Both ends of the measurements of networks (network.py): a small HTTP server, an echo server, and clients that print what
   they have measured. One thread, no more work for each request than the kernel's, linked statically, so that it runs in
   an image of its own as well as in any namespace. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROUND_TRIP_BYTES = 64, EVENTS = 256, ASKERS = 16, MOST_SAMPLES = 4000000, MOST_TRIES = 20000 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Nanoseconds of a clock; the monotonic one is the same in every container. */
static long long now(clockid_t clock) {
    struct timespec it;
    clock_gettime(clock, &it);
    return it.tv_sec * 1000000000LL + it.tv_nsec;
}

static struct sockaddr_in place(const char *address, const char *port) {
    struct sockaddr_in it = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (inet_pton(AF_INET, address, &it.sin_addr) != 1)
        fail(address);
    return it;
}

static void at_once(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int listener(const char *port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in it = place("0.0.0.0", port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (void *)&it, sizeof it) || listen(fd, 4096))
        fail("listen");
    return fd;
}

static void watch(int epoll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

/* Answers every request with the monotonic time at which it began to listen. A request is one segment. */
static void http(const char *port) {
    int server = listener(port), epoll = epoll_create1(0);
    char body[32], kept[256], closed[256], request[4096];
    int length = snprintf(body, sizeof body, "%lld\n", now(CLOCK_MONOTONIC));
    int keep = snprintf(kept, sizeof kept, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", length, body);
    int close_after = snprintf(closed, sizeof closed, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", length, body);
    struct epoll_event events[EVENTS];
    watch(epoll, server);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == server) {
                int client = accept(server, NULL, NULL);
                at_once(client);
                watch(epoll, client);
                continue;
            }
            ssize_t got = read(fd, request, sizeof request - 1);
            request[got > 0 ? got : 0] = 0;
            int last = got <= 0 || strstr(request, "onnection: close") != NULL;
            if (got > 0 && write(fd, last ? closed : kept, last ? close_after : keep) < 0)
                last = 1;
            if (last)
                close(fd);
        }
    }
}

static void echo(const char *port) {
    int server = listener(port);
    char data[ROUND_TRIP_BYTES];
    for (;;) {
        int client = accept(server, NULL, NULL);
        at_once(client);
        while (recv(client, data, sizeof data, MSG_WAITALL) == sizeof data && send(client, data, sizeof data, 0) > 0)
            ;
        close(client);
    }
}

static int by_size(const void *a, const void *b) {
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x > y) - (x < y);
}

/* Prints the median round trip in microseconds. */
static void round_trips(const char *address, const char *port, int count) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in it = place(address, port);
    char data[ROUND_TRIP_BYTES] = {0};
    long long *took = calloc(count, sizeof *took);
    if (connect(fd, (void *)&it, sizeof it))
        fail("connect");
    at_once(fd);
    for (int i = 0; i < count; i++) {
        long long begun = now(CLOCK_MONOTONIC);
        if (send(fd, data, sizeof data, 0) < 0 || recv(fd, data, sizeof data, MSG_WAITALL) != sizeof data)
            fail("round trip");
        took[i] = now(CLOCK_MONOTONIC) - begun;
    }
    qsort(took, count, sizeof *took, by_size);
    printf("%.2f\n", took[count / 2] / 1e3);
}

/* Writes a question for the IPv4 addresses of a name (RFC 1035, 4.1) and returns its length. */
static int question(unsigned char *to, const char *name, unsigned id) {
    unsigned char head[12] = {id >> 8, id, 1, 0, 0, 1}, *at = to + sizeof head;
    memcpy(to, head, sizeof head);
    for (const char *label = name; *label;) {
        size_t length = strcspn(label, ".");
        *at++ = length;
        memcpy(at, label, length);
        at += length;
        label += length + (label[length] == '.');
    }
    memcpy(at, "\0\0\1\0\1", 5);
    return at + 5 - to;
}

static int asker(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in server = place("127.0.0.11", "53");
    if (connect(fd, (void *)&server, sizeof server))
        fail("connect");
    return fd;
}

/* Keeps a few questions open at any time, and prints answers, seconds, and the 99th percentile of the wait in ms. */
static void names(const char *name, double seconds) {
    unsigned char asked[512], answer[512];
    long long *took = calloc(MOST_SAMPLES, sizeof *took), sent[ASKERS], begun = now(CLOCK_MONOTONIC), at = begun;
    struct pollfd sockets[ASKERS];
    int answers = 0, length = question(asked, name, 7);
    for (int i = 0; i < ASKERS; i++) {
        sockets[i] = (struct pollfd){.fd = asker(), .events = POLLIN};
        sent[i] = now(CLOCK_MONOTONIC);
        send(sockets[i].fd, asked, length, 0);
    }
    while (at - begun < seconds * 1e9 && answers < MOST_SAMPLES - ASKERS) {
        if (poll(sockets, ASKERS, 1000) <= 0)
            fail("no answer");
        for (int i = 0; i < ASKERS; i++) {
            if (!sockets[i].revents)
                continue;
            if (recv(sockets[i].fd, answer, sizeof answer, 0) <= 12 || (answer[3] & 15) || !answer[7])
                fail("not an answer");
            at = now(CLOCK_MONOTONIC);
            took[answers++] = at - sent[i];
            sent[i] = at;
            send(sockets[i].fd, asked, length, 0);
        }
    }
    qsort(took, answers, sizeof *took, by_size);
    printf("%d %.3f %.3f\n", answers, (at - begun) / 1e9, took[(long long)answers * 99 / 100] / 1e6);
}

/* Asks for the address of a name once. */
static int resolve(int fd, const char *name, struct in_addr *found) {
    unsigned char message[512];
    struct pollfd socket = {.fd = fd, .events = POLLIN};
    send(fd, message, question(message, name, 7), 0);
    if (poll(&socket, 1, 1000) <= 0)
        return 0;
    ssize_t got = recv(fd, message, sizeof message, 0);
    if (got < 16 || !message[7])
        return 0;
    /* The only record's data is last. */
    memcpy(found, message + got - sizeof *found, sizeof *found);
    return 1;
}

/* Waits until a server is reached by its name, and prints for how many microseconds it has listened. */
static void served(const char *name, const char *port) {
    int names = asker();
    for (int i = 0; i < MOST_TRIES; i++, usleep(500)) {
        struct sockaddr_in it = place("0.0.0.0", port);
        char answer[512], *body;
        if (!resolve(names, name, &it.sin_addr))
            continue;
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        static const char request[] = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
        ssize_t got = connect(fd, (void *)&it, sizeof it) || send(fd, request, sizeof request - 1, 0) < 0 ? -1
                                                                                                         : recv(fd, answer, sizeof answer - 1, 0);
        close(fd);
        answer[got > 0 ? got : 0] = 0;
        if ((body = strstr(answer, "\r\n\r\n"))) {
            printf("%.1f\n", (now(CLOCK_MONOTONIC) - atoll(body + 4)) / 1e3);
            return;
        }
    }
    errno = ETIMEDOUT;
    fail(name);
}

/* Connects every two milliseconds, and prints the seconds since 1970 at which the last connection was begun that nobody
   had answered after half a second. */
static void last_unanswered(const char *address, const char *port, double seconds) {
    enum { OPEN = 250 };
    struct { int fd; long long begun; } tries[OPEN];
    struct sockaddr_in it = place(address, port);
    long long last = 0, end = now(CLOCK_REALTIME) + seconds * 1e9;
    int count = 0;
    for (long long at; (at = now(CLOCK_REALTIME)) < end; usleep(2000), count++) {
        int slot = count % OPEN, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (count >= OPEN) {
            struct pollfd old = {.fd = tries[slot].fd, .events = POLLOUT};
            /* An error is an answer, too. */
            if (poll(&old, 1, 0) == 0)
                last = tries[slot].begun;
            close(old.fd);
        }
        tries[slot].fd = fd;
        tries[slot].begun = at;
        connect(fd, (void *)&it, sizeof it);
    }
    printf("%.6f\n", last / 1e9);
}

/* The first process of a container gets only signals that it handles (pid_namespaces(7)). */
static void end(int signal) {
    _exit(128 + signal);
}

int main(int count, char **words) {
    signal(SIGTERM, end);
    const char *act = count > 2 ? words[1] : "";
    if (!strcmp(act, "http"))
        http(words[2]);
    else if (!strcmp(act, "echo"))
        echo(words[2]);
    else if (!strcmp(act, "round-trips") && count == 5)
        round_trips(words[2], words[3], atoi(words[4]));
    else if (!strcmp(act, "names") && count == 4)
        names(words[2], atof(words[3]));
    else if (!strcmp(act, "served") && count == 4)
        served(words[2], words[3]);
    else if (!strcmp(act, "last-unanswered") && count == 5)
        last_unanswered(words[2], words[3], atof(words[4]));
    else
        return fprintf(stderr, "usage: peer http PORT | echo PORT | round-trips ADDRESS PORT COUNT | names NAME SECONDS | "
                               "served NAME PORT | last-unanswered ADDRESS PORT SECONDS\n"), 2;
    return 0;
}
