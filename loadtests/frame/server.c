/* The floor: accept, reply, close, in one blocking loop. What it costs is the kernel's own work
   for a connection, and no server in Python can cost less.

   server BACKLOG REPLY    prints its port on 127.0.0.1, then serves until it is killed */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: server BACKLOG REPLY\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY); /* strace attaches; see Yama in the kernel's docs */
    const char *reply = argv[2];
    size_t length = strlen(reply);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 ||
        listen(listener, atoi(argv[1])) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0) {
        perror("can't listen");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) {
            if (errno == ECONNABORTED || errno == EINTR)
                continue;
            perror("can't accept");
            return 1;
        }
        /* A peer that left is not our trouble. */
        (void)!send(connection, reply, length, MSG_NOSIGNAL);
        close(connection);
    }
}
