/* Threads of the pool without a C library, for the static runner: clone and futex of Linux. */
#include "pool.h"
#include "system.h"

#include <asm/unistd.h>
#include <linux/futex.h>
#include <linux/sched.h>

/* Starts a thread on the stack whose top holds a function and its argument; returns its number, or
 * minus the number of the error. The function never returns. */
long pool_clone(unsigned long flags, void *stack);

#if defined(__x86_64__)
__asm__(".globl pool_clone\n"
        "pool_clone:\n"
        "    mov $56, %eax\n"
        "    xor %edx, %edx\n"
        "    xor %r10d, %r10d\n"
        "    xor %r8d, %r8d\n"
        "    syscall\n"
        "    test %rax, %rax\n"
        "    jz 1f\n"
        "    ret\n"
        "1:  xor %ebp, %ebp\n"
        "    mov (%rsp), %rax\n"
        "    mov 8(%rsp), %rdi\n"
        "    call *%rax\n"
        "    hlt\n");
#elif defined(__aarch64__)
__asm__(".globl pool_clone\n"
        "pool_clone:\n"
        "    mov x8, #220\n"
        "    mov x2, #0\n"
        "    mov x3, #0\n"
        "    mov x4, #0\n"
        "    svc #0\n"
        "    cbz x0, 1f\n"
        "    ret\n"
        "1:  mov x29, #0\n"
        "    mov x30, #0\n"
        "    ldr x1, [sp]\n"
        "    ldr x0, [sp, #8]\n"
        "    blr x1\n"
        "    brk #0\n");
#elif defined(__riscv) && __riscv_xlen == 64
__asm__(".globl pool_clone\n"
        "pool_clone:\n"
        "    li a7, 220\n"
        "    li a2, 0\n"
        "    li a3, 0\n"
        "    li a4, 0\n"
        "    ecall\n"
        "    beqz a0, 1f\n"
        "    ret\n"
        "1:  ld a1, 0(sp)\n"
        "    ld a0, 8(sp)\n"
        "    jalr a1\n"
        "    ebreak\n");
#endif

int pool_start_thread(void (*start)(int), int number) {
    char *stack = system_allocate(POOL_STACK_BYTES);
    if (!stack) return -1;
    void **top = (void **)(stack + POOL_STACK_BYTES - 64);
    top[0] = (void *)start;
    top[1] = (void *)(long)number;
    unsigned long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    return pool_clone(flags, top) < 0 ? -1 : 0;
}

void pool_sleep(unsigned *word, unsigned seen) {
    system_call(__NR_futex, (long)word, FUTEX_WAIT_PRIVATE, (long)seen, 0, 0, 0);
}

void pool_wake(unsigned *word) {
    system_call(__NR_futex, (long)word, FUTEX_WAKE_PRIVATE, POOL_MOST_THREADS, 0, 0, 0);
}

void pool_yield(void) { system_call(__NR_sched_yield, 0, 0, 0, 0, 0, 0); }
