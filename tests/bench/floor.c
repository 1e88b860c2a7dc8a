/* floor ROOTFS [--no-groups]: the cheapest thing that is still a container. It makes pids, memory and cpu groups (v1) with
   limits, PID, mount, network, IPC and UTS namespaces, a root with /proc and /dev, sets a seccomp filter (bpf.h, compiled
   beforehand), and runs /bin/true. It reads no configuration, checks nothing, keeps no state, drops no capability, makes no
   device. What a runtime costs beyond it is the runtime's own. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bpf.h"

#define CHECK(act) do { if ((act) < 0) { perror(#act); _exit(9); } } while (0)

static const char *controllers[3] = {"pids", "memory", "cpu"};
static char groups[3][128];

static void put(const char *dir, const char *file, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    int it = open(path, O_WRONLY | O_CLOEXEC);
    if (it < 0 || write(it, text, strlen(text)) < 0) { perror(path); _exit(9); }
    close(it);
}

static void container(const char *root, int begin) {
    char byte, *environment[] = {"PATH=/bin", 0}, *arguments[] = {"/bin/true", 0};
    if (read(begin, &byte, 1) < 0) _exit(9);
    CHECK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0));
    CHECK(mount(root, root, 0, MS_BIND | MS_REC, 0));
    CHECK(chdir(root));
    CHECK(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
    CHECK(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=64k"));
    CHECK(syscall(SYS_pivot_root, ".", "."));
    CHECK(umount2(".", MNT_DETACH));
    CHECK(chdir("/"));
    CHECK(sethostname("floor", 5));
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
    execve(arguments[0], arguments, environment);
    perror("exec");
    _exit(9);
}

int main(int count, char **words) {
    int begin[2], status, grouped = count < 3;
    if (count < 2) return 2;
    for (int i = 0; grouped && i < 3; i++) {
        snprintf(groups[i], sizeof groups[i], "/sys/fs/cgroup/%s/flota-bench-floor-%d", controllers[i], getpid());
        CHECK(mkdir(groups[i], 0755));
    }
    if (grouped) {
        put(groups[0], "pids.max", "100");
        put(groups[1], "memory.limit_in_bytes", "67108864");
        put(groups[2], "cpu.cfs_quota_us", "100000");
        put(groups[2], "cpu.shares", "512");
    }
    CHECK(pipe2(begin, O_CLOEXEC));
    struct clone_args arguments = {
        .flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS, .exit_signal = SIGCHLD};
    pid_t pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    CHECK(pid);
    if (!pid) {
        close(begin[1]);
        container(words[1], begin[0]);
    }
    close(begin[0]);
    char text[16];
    snprintf(text, sizeof text, "%d", pid);
    for (int i = 0; grouped && i < 3; i++) put(groups[i], "cgroup.procs", text);
    close(begin[1]);
    CHECK(waitpid(pid, &status, 0));
    for (int i = 0; grouped && i < 3; i++) CHECK(rmdir(groups[i]));
    return status ? 1 : 0;
}
