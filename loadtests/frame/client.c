/* Load for one listener on loopback: one thread, one epoll, and as few system calls as the job
   can be done with, so that the server is what is measured.

   client -m MODE -p PORT -c CONCURRENCY -t SECONDS [-n COUNT] [-r RATE] [-s SKIP]
          -e EXPECT [-b BODY] [-q REQUEST] [-w FILE]

   MODE is one of
     close  closed loop: CONCURRENCY at a time connect, send REQUEST (if any), read to the end,
            close; COUNT in all. A latency is from connect() to the end of the reply.
     keep   closed loop on CONCURRENCY connections that are kept: requests for SECONDS. A latency
            is from the request to the last byte of the reply, whose length its Content-Length
            tells; the first SKIP of each connection are served, but not in the latencies.
     open   open loop: RATE connections a second, on a schedule, for SECONDS. A latency is from
            when the connection was *due*, so a server that stalls pays for all who waited.

   In `close`, SECONDS is when to give up; in `open`, unanswered connections are given one more
   second. What is unanswered then, refused or reset is an error, and so is a reply that is not
   EXPECT, all of it. With BODY, or an EXPECT that begins with HTTP/, replies are HTTP's: one begins
   with EXPECT, tells the length of its body, and has that, which is BODY if given, after its head
   and nothing behind it. An EXPECT of "" is any reply.
   Prints one JSON object. To FILE is written, in the order in which they were answered, a line for
   each connection of `close` and `open`: when it was due and when the reply was whole, in ns of
   CLOCK_MONOTONIC, and the first word of the reply.

   No TIME_WAIT is left: the server closes first, and when its whole reply is here, the client
   dissolves the connection with connect(AF_UNSPEC), which sends a reset, and dials with the same
   descriptor again. Otherwise each round would leave tens of thousands of sockets, whose timers
   go off a minute later, in the round of somebody else, and whose table overflows. The reset is
   handled in the client's system call, on the client's CPU, and the server is done by then.
   Beside socket() and close() with an SO_LINGER of 0 for each, it took the client from 28 to
   20 us a connection (6.18, 2 cores), at the same cost to the server. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 256, REPLY_MAX = 4096 };

/* In an open loop: how many may wait at once. At 1,000 a second, a stall of 8 seconds. */
enum { OPEN_MAX_WAITING = 8192 };

/* Keep-alive runs by the clock: room for more requests than one core can do in its seconds. */
enum { LATENCIES_MAX = 1 << 22 };

enum mode { MODE_CLOSE, MODE_KEEP, MODE_OPEN };

struct record {
    int64_t started, ended;
    char word[16];
};

struct connection {
    int fd;
    int is_idle;   /* dissolved, though epoll may still tell of it */
    int is_unsent; /* the request waits for the handshake */
    int64_t started;
    long served;
    size_t length;
    char reply[REPLY_MAX];
};

static enum mode mode;
static struct sockaddr_in server;
static const char *expect = "", *body, *request = "";
static size_t expect_length, body_length, request_length;
static int epoll;
static struct connection *connections, **idle;
static int idle_count;
static float *latencies;
static long latency_count, answered, errors, skip;
static struct record *records; /* of as many as are answered, if they are to be written */

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static double cpu_seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void hang_up(struct connection *connection) {
    static const struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    if (mode == MODE_KEEP) {
        /* The server still reads: let it find an end there, not a reset. */
        close(connection->fd);
        connection->fd = -1;
    } else if (connect(connection->fd, &nobody, sizeof nobody) < 0) {
        fail("can't dissolve a connection");
    }
    connection->is_idle = 1;
    idle[idle_count++] = connection;
}

static void send_request(struct connection *connection) {
    ssize_t sent = send(connection->fd, request, request_length, MSG_NOSIGNAL);
    /* Other errors show up in the reply. */
    connection->is_unsent = sent < 0 && (errno == EAGAIN || errno == ENOTCONN);
}

static void watch(struct connection *connection, int operation) {
    /* The end of the stream says that the reply is whole: one event a connection. Told once: an
       idle connection is hung up, and in `open` epoll would tell so again and again. */
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET, .data.ptr = connection};
    if (mode == MODE_KEEP)
        event.events = EPOLLRDHUP | EPOLLIN;
    if (connection->is_unsent)
        event.events |= EPOLLOUT;
    if (epoll_ctl(epoll, operation, connection->fd, &event) < 0)
        fail("can't watch a connection");
}

static void dial(int64_t started) {
    struct connection *connection = idle[--idle_count];
    int is_new = connection->fd < 0;
    if (is_new) {
        connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (connection->fd < 0)
            fail("can't make a socket");
    }
    connection->is_idle = 0;
    connection->started = started;
    connection->length = 0;
    connection->served = 0;
    connection->is_unsent = 0;
    if (connect(connection->fd, (struct sockaddr *)&server, sizeof server) < 0 &&
        errno != EINPROGRESS) {
        errors++;
        hang_up(connection);
        return;
    }
    /* On loopback the handshake is done by now, unless the accept queue is full. */
    if (request_length > 0)
        send_request(connection);
    if (is_new)
        watch(connection, EPOLL_CTL_ADD);
    else if (connection->is_unsent)
        watch(connection, EPOLL_CTL_MOD);
}

/* Of an HTTP reply: how long it is as a whole, and where its body begins. 0 if its head isn't here
   yet, or doesn't tell. */
static size_t whole_length(const struct connection *connection, const char **start) {
    const char *end = strstr(connection->reply, "\r\n\r\n");
    const char *length = strcasestr(connection->reply, "\r\nContent-Length:");
    if (!end || !length || length > end)
        return 0;
    *start = end + 4;
    return *start - connection->reply + atol(length + 17);
}

/* Whether a reply that is over is what it should be: not cut short, and nothing behind it. */
static int is_expected(const struct connection *connection) {
    const char *start;
    if (connection->length == 0 || connection->length < expect_length ||
        memcmp(connection->reply, expect, expect_length) != 0)
        return 0;
    if (body)
        return whole_length(connection, &start) == connection->length &&
               connection->reply + connection->length == start + body_length &&
               memcmp(start, body, body_length) == 0;
    if (strncmp(expect, "HTTP/", 5) == 0)
        return whole_length(connection, &start) == connection->length;
    return expect_length == 0 || connection->length == expect_length;
}

static void note(int64_t started) {
    answered++;
    if (latency_count < LATENCIES_MAX)
        latencies[latency_count++] = (now() - started) / 1e3f;
}

/* 1 if the stream has ended, 0 if more may come, -1 if it broke. */
static int read_some(struct connection *connection) {
    size_t room = REPLY_MAX - 1 - connection->length;
    ssize_t got = recv(connection->fd, connection->reply + connection->length, room, 0);
    if (got < 0)
        return errno == EAGAIN ? 0 : -1;
    connection->length += got;
    connection->reply[connection->length] = 0;
    return got == 0 || (size_t)got == room;
}

static void record(const struct connection *connection) {
    struct record *place = &records[answered];
    place->started = connection->started;
    place->ended = now();
    sscanf(connection->reply, "%15s", place->word);
}

static void write_records(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file)
        fail("can't open the file for the records");
    for (long index = 0; index < answered; index++)
        fprintf(file, "%lld %lld %s\n", (long long)records[index].started,
                (long long)records[index].ended, records[index].word);
    if (fclose(file) != 0)
        fail("can't write the records");
}

/* The end of a connection that serves one reply. */
static void finish(struct connection *connection) {
    if (read_some(connection) >= 0 && is_expected(connection)) {
        if (records)
            record(connection);
        note(connection->started);
    } else {
        errors++;
    }
    hang_up(connection);
}

/* The next piece of a reply on a connection that is kept. */
static void go_on(struct connection *connection, int64_t deadline) {
    if (read_some(connection) != 0) {
        errors++;
        hang_up(connection);
        dial(now());
        return;
    }
    const char *start;
    size_t whole = whole_length(connection, &start);
    if (whole == 0 || connection->length < whole)
        return;
    if (!is_expected(connection))
        errors++;
    else if (connection->served++ < skip)
        answered++;
    else
        note(connection->started);
    connection->length = 0;
    connection->started = now();
    if (connection->started < deadline)
        send_request(connection);
    else
        hang_up(connection);
}

static int compare(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static double percentile(double percent) {
    if (latency_count == 0)
        return 0;
    long index = (long)(percent / 100 * latency_count);
    return latencies[index < latency_count ? index : latency_count - 1];
}

int main(int argc, char **argv) {
    long count = 0;
    int option, concurrency = 1, port = 0;
    double seconds = 0, rate = 0;
    const char *path = NULL;
    while ((option = getopt(argc, argv, "m:p:c:t:n:r:s:e:b:q:w:")) != -1) {
        switch (option) {
        case 'm': mode = *optarg == 'k' ? MODE_KEEP : *optarg == 'o' ? MODE_OPEN : MODE_CLOSE; break;
        case 'p': port = atoi(optarg); break;
        case 'c': concurrency = atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'n': count = atol(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 's': skip = atol(optarg); break;
        case 'e': expect = optarg; break;
        case 'b': body = optarg; break;
        case 'q': request = optarg; break;
        case 'w': path = optarg; break;
        default: return 2;
        }
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    server = (struct sockaddr_in){.sin_family = AF_INET,
                                  .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    expect_length = strlen(expect);
    body_length = body ? strlen(body) : 0;
    request_length = strlen(request);
    if (mode == MODE_OPEN) {
        concurrency = OPEN_MAX_WAITING;
        count = (long)(rate * seconds);
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(concurrency, sizeof *connections);
    idle = calloc(concurrency, sizeof *idle);
    latencies = malloc(LATENCIES_MAX * sizeof *latencies);
    if (path)
        records = calloc(count + 1, sizeof *records);
    if (epoll < 0 || !connections || !idle || !latencies || (path && !records))
        fail("can't begin");
    for (int index = concurrency; index-- > 0;) {
        connections[index].fd = -1;
        connections[index].is_idle = 1;
        idle[idle_count++] = &connections[index];
    }

    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event ticks = {.events = EPOLLIN, .data.ptr = NULL};
    if (timer < 0 || (mode == MODE_OPEN && epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &ticks) < 0))
        fail("can't make a timer");

    double cpu_before = cpu_seconds();
    int64_t began = now(), deadline = began + (int64_t)(seconds * 1e9);
    int64_t give_up = deadline + (mode == MODE_CLOSE ? 0 : 1000000000LL);
    long started = 0;
    for (;;) {
        if (mode == MODE_OPEN) {
            int64_t due = 0, time = now();
            while (started < count &&
                   (due = began + (int64_t)(started * (1e9 / rate))) <= time) {
                started++;
                if (idle_count > 0)
                    dial(due);
                else
                    errors++;
            }
            if (started < count) {
                struct itimerspec at = {
                    .it_value = {.tv_sec = due / 1000000000LL, .tv_nsec = due % 1000000000LL}};
                timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
            }
        } else if (mode == MODE_CLOSE) {
            while (idle_count > 0 && started < count) {
                started++;
                dial(now());
            }
        } else {
            for (; started < concurrency; started++)
                dial(now());
        }
        if (idle_count == concurrency && (mode == MODE_KEEP || started == count))
            break;
        if (now() > give_up) {
            errors += concurrency - idle_count;
            if (mode != MODE_KEEP)
                errors += count - started;
            break;
        }
        struct epoll_event events[BATCH];
        int ready = epoll_wait(epoll, events, BATCH, 1000);
        for (int index = 0; index < ready; index++) {
            struct connection *connection = events[index].data.ptr;
            if (!connection) {
                uint64_t expired;
                (void)!read(timer, &expired, sizeof expired);
                continue;
            }
            if (connection->is_idle)
                continue;
            if (connection->is_unsent && events[index].events & EPOLLOUT) {
                send_request(connection);
                watch(connection, EPOLL_CTL_MOD);
            }
            if (mode == MODE_KEEP) {
                if (events[index].events & ~EPOLLOUT)
                    go_on(connection, deadline);
            } else if (events[index].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
                finish(connection);
            }
        }
    }
    double wall = (now() - began) * 1e-9, cpu = cpu_seconds() - cpu_before;
    if (path)
        write_records(path);
    qsort(latencies, latency_count, sizeof *latencies, compare);
    printf("{\"count\": %ld, \"errors\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.6f, "
           "\"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f}\n",
           answered, errors, wall, cpu, percentile(50), percentile(99), percentile(99.9));
    return 0;
}
