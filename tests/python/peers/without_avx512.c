// Hides AVX-512 and AMX from every program it is preloaded into, so that a processor that has them shows what one with AVX2 alone would run:
//
//     cc -O1 -shared -fPIC -o without_avx512.so without_avx512.c
//     LD_PRELOAD=$PWD/without_avx512.so train ...
//
// Libraries ask the processor with `cpuid`. Linux can make that instruction fault (arch_prctl(2), ARCH_SET_CPUID; x86 alone, where /proc/cpuinfo
// lists cpuid_fault); the handler asks in their place and takes the bits of the extensions away. The C library has asked before: what it chose
// itself is set by GLIBC_TUNABLES. A program ends at once with 97 where the processor cannot do it.

#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

// What the program wants to be done with a fault of its own.
static struct sigaction earlier;

typedef int (*set_action)(int, const struct sigaction *, struct sigaction *);
typedef sighandler_t (*set_handler)(int, sighandler_t);

static int set_for_good(const struct sigaction *action) {
    return ((set_action)dlsym(RTLD_NEXT, "sigaction"))(SIGSEGV, action, NULL);
}

// Compilers and Rust's runtime handle faults too; they are let believe that theirs is the only handler.
int sigaction(int number, const struct sigaction *action, struct sigaction *before) {
    if (number != SIGSEGV) {
        return ((set_action)dlsym(RTLD_NEXT, "sigaction"))(number, action, before);
    }
    struct sigaction wanted = action ? *action : earlier;
    if (before) {
        *before = earlier;
    }
    earlier = wanted;
    return 0;
}

// Where the signal is blocked, a fault ends the program.
static int mask(const char *name, int how, const sigset_t *set, sigset_t *before) {
    int (*real)(int, const sigset_t *, sigset_t *) = (int (*)(int, const sigset_t *, sigset_t *))dlsym(RTLD_NEXT, name);
    sigset_t open;
    if (set && how != SIG_UNBLOCK) {
        open = *set;
        sigdelset(&open, SIGSEGV);
        set = &open;
    }
    return real(how, set, before);
}

int pthread_sigmask(int how, const sigset_t *set, sigset_t *before) {
    return mask("pthread_sigmask", how, set, before);
}

int sigprocmask(int how, const sigset_t *set, sigset_t *before) {
    return mask("sigprocmask", how, set, before);
}

sighandler_t signal(int number, sighandler_t handler) {
    if (number != SIGSEGV) {
        return ((set_handler)dlsym(RTLD_NEXT, "signal"))(number, handler);
    }
    sighandler_t before = earlier.sa_handler;
    memset(&earlier, 0, sizeof earlier);
    earlier.sa_handler = handler;
    return before;
}

// Of leaf 7, as Intel's manual numbers them (volume 2A, CPUID).
static const unsigned EBX_7_0 = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const unsigned ECX_7_0 = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const unsigned EDX_7_0 = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
// AVX-VNNI, AVX512-BF16 and AMX-FP16.
static const unsigned EAX_7_1 = BIT(4) | BIT(5) | BIT(21);
// State that the system saves: masks, both halves of the wide registers, tiles.
static const unsigned EAX_13_0 = BIT(5) | BIT(6) | BIT(7) | BIT(17) | BIT(18);

static void let_through(int allowed) {
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, (unsigned long)allowed);
}

static void answer(int number, siginfo_t *information, void *context) {
    (void)number;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
    // Any other fault happens again, with the program's own handler.
    if (information->si_code != SI_KERNEL || instruction[0] != 0x0f || instruction[1] != 0xa2) {
        set_for_good(&earlier);
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], a, b, c, d;
    let_through(1);
    __cpuid_count(leaf, part, a, b, c, d);
    let_through(0);
    if (leaf == 7 && part == 0) {
        b &= ~EBX_7_0;
        c &= ~ECX_7_0;
        d &= ~EDX_7_0;
    } else if (leaf == 7 && part == 1) {
        a &= ~EAX_7_1;
    } else if (leaf == 13 && part == 0) {
        a &= ~EAX_13_0;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
    struct sigaction handler;
    memset(&handler, 0, sizeof handler);
    handler.sa_sigaction = answer;
    handler.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    set_for_good(&handler);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0UL) != 0) {
        perror("this processor cannot hide its instructions");
        _exit(97);
    }
}
