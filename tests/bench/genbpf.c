/* genbpf < NAMES > bpf.h: the filter that allows the calls of these names, made by libseccomp as runc and crun make it,
   as a C array for floor.c: what is compiled beforehand costs a start nothing. */
#include <errno.h>
#include <linux/filter.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>

int main(void) {
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    char name[128];
    if (!filter) return 1;
#ifdef __x86_64__
    seccomp_arch_add(filter, SCMP_ARCH_X86);
    seccomp_arch_add(filter, SCMP_ARCH_X32);
#endif
    while (fgets(name, sizeof name, stdin)) {
        name[strcspn(name, "\n")] = 0;
        int number = seccomp_syscall_resolve_name(name);
        /* One that this libseccomp does not know is left out. */
        if (number != __NR_SCMP_ERROR) seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
    }
    FILE *file = tmpfile();
    if (!file || seccomp_export_bpf(filter, fileno(file))) return 1;
    rewind(file);
    struct sock_filter step;
    printf("struct sock_filter filter[] = {\n");
    while (fread(&step, sizeof step, 1, file) == 1)
        printf("{%u, %u, %u, %uu},\n", step.code, step.jt, step.jf, step.k);
    printf("};\n");
    return 0;
}
