/* A program that runs and waits, without a C library: what a container costs until its program runs, and no more. Built
   with -nostdlib -static. */
#include <sys/syscall.h>

void _start(void) {
    for (;;) {
#ifdef __x86_64__
        long number = SYS_pause;
        __asm__ volatile("syscall" : "+a"(number) : : "rcx", "r11", "memory");
#else
        /* pselect6 without a time. */
        register long number __asm__("x8") = SYS_pselect6;
        register long zero __asm__("x0") = 0, sets __asm__("x1") = 0, more __asm__("x2") = 0, rest __asm__("x3") = 0,
                           time __asm__("x4") = 0, mask __asm__("x5") = 0;
        __asm__ volatile("svc 0" : "+r"(zero) : "r"(number), "r"(sets), "r"(more), "r"(rest), "r"(time), "r"(mask) : "memory");
#endif
    }
}
