/* Makes one chosen system call under one folder fail, or kills the process there (tests/tools/fault_proof.py).

   Preloaded (LD_PRELOAD) it does nothing until fault_arm() is called in the process. Calls are counted
   by kind; the count, and the file that was hit, stand in a shared file that outlives the process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, WRITE, FSYNC, RENAME, READ, KINDS };
enum { KILL = -1, SHORT = -2 };

struct shared {
    atomic_long count[KINDS]; /* calls so far */
    atomic_long hits;         /* how often it failed */
    char path[PATH_MAX];      /* the first file that was hit */
};

static struct shared *shared;
static char folder[PATH_MAX];
static int kind = -1, fault, sticky;
static long nth;

/* folder: absolute, what lies in it counts. which: the kind of call. at: its number, from 1; 0 only
   counts. what: errno, KILL or SHORT. every: all later calls of the kind fail as well. */
int fault_arm(const char *where, const char *state, int which, long at, int what, int every) {
    int file = open(state, O_RDWR);
    if (file < 0) return -1;
    void *mapped = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return -1;
    snprintf(folder, sizeof folder, "%s/", where);
    nth = at, fault = what, sticky = every, kind = which;
    shared = mapped;
    return 0;
}

static int inside(const char *path) { return strncmp(path, folder, strlen(folder)) == 0; }

/* Whether this call is the one: 0, or errno, KILL or SHORT. */
static int due(int which, const char *path) {
    long number = atomic_fetch_add(&shared->count[which], 1) + 1;
    if (which != kind || !nth || number < nth || (number > nth && !sticky)) return 0;
    if (atomic_fetch_add(&shared->hits, 1) == 0) strncpy(shared->path, path, PATH_MAX - 1);
    if (fault == KILL) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    return fault;
}

static int due_path(int which, int at, const char *path) {
    char whole[PATH_MAX + 256], link[64];
    if (!shared || !path) return 0;
    if (path[0] != '/') {
        ssize_t size;
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        if (at == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        size = readlink(link, whole, PATH_MAX - 1);
        if (size < 0) return 0;
        snprintf(whole + size, sizeof whole - size, "/%s", path);
        path = whole;
    }
    return inside(path) ? due(which, path) : 0;
}

static int due_file(int which, int file) {
    char path[PATH_MAX], link[64];
    ssize_t size;
    int saved = errno, found = 0;
    if (!shared) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    size = readlink(link, path, sizeof path - 1);
    if (size > 0) {
        path[size] = 0;
        if (inside(path)) found = due(which, path);
    }
    errno = saved;
    return found;
}

#define REAL(name, type) \
    static __typeof__(type) real; \
    if (!real) real = (__typeof__(type))dlsym(RTLD_NEXT, name)
#define FAIL(code) \
    do { \
        errno = (code); \
        return -1; \
    } while (0)

#define OPENER(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; \
        mode_t mode = 0; \
        int code; \
        REAL(#name, int (*)(const char *, int, ...)); \
        if (flags & (O_CREAT | __O_TMPFILE)) { va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } \
        if ((code = due_path(OPEN, AT_FDCWD, path)) > 0) FAIL(code); \
        return real(path, flags, mode); \
    }
OPENER(open)
OPENER(open64)

#define OPENER_AT(name) \
    int name(int at, const char *path, int flags, ...) { \
        va_list list; \
        mode_t mode = 0; \
        int code; \
        REAL(#name, int (*)(int, const char *, int, ...)); \
        if (flags & (O_CREAT | __O_TMPFILE)) { va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } \
        if ((code = due_path(OPEN, at, path)) > 0) FAIL(code); \
        return real(at, path, flags, mode); \
    }
OPENER_AT(openat)
OPENER_AT(openat64)

#define STREAM(name) \
    FILE *name(const char *path, const char *mode) { \
        int code; \
        REAL(#name, FILE *(*)(const char *, const char *)); \
        if ((code = due_path(OPEN, AT_FDCWD, path)) > 0) { errno = code; return NULL; } \
        return real(path, mode); \
    }
STREAM(fopen)
STREAM(fopen64)

static size_t half(size_t size) { return size > 1 ? size / 2 : size; }

#define MOVER(name, which, pointer) \
    ssize_t name(int file, pointer data, size_t size) { \
        int code = due_file(which, file); \
        REAL(#name, ssize_t (*)(int, pointer, size_t)); \
        if (code > 0) FAIL(code); \
        return real(file, data, code == SHORT ? half(size) : size); \
    }
MOVER(write, WRITE, const void *)
MOVER(read, READ, void *)

#define MOVER_AT(name, which, pointer, place) \
    ssize_t name(int file, pointer data, size_t size, place at) { \
        int code = due_file(which, file); \
        REAL(#name, ssize_t (*)(int, pointer, size_t, place)); \
        if (code > 0) FAIL(code); \
        return real(file, data, code == SHORT ? half(size) : size, at); \
    }
MOVER_AT(pwrite, WRITE, const void *, off_t)
MOVER_AT(pwrite64, WRITE, const void *, off64_t)
MOVER_AT(pread, READ, void *, off_t)
MOVER_AT(pread64, READ, void *, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
    int code = due_file(WRITE, file);
    REAL("writev", ssize_t (*)(int, const struct iovec *, int));
    if (code > 0) FAIL(code);
    return real(file, parts, code == SHORT && count > 1 ? count / 2 : count);
}

#define SYNC(name) \
    int name(int file) { \
        int code = due_file(FSYNC, file); \
        REAL(#name, int (*)(int)); \
        if (code > 0) FAIL(code); \
        return real(file); \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    int code = due_path(RENAME, AT_FDCWD, to);
    REAL("rename", int (*)(const char *, const char *));
    if (code > 0) FAIL(code);
    return real(from, to);
}

int renameat(int here, const char *from, int there, const char *to) {
    int code = due_path(RENAME, there, to);
    REAL("renameat", int (*)(int, const char *, int, const char *));
    if (code > 0) FAIL(code);
    return real(here, from, there, to);
}

int renameat2(int here, const char *from, int there, const char *to, unsigned flags) {
    int code = due_path(RENAME, there, to);
    REAL("renameat2", int (*)(int, const char *, int, const char *, unsigned));
    if (code > 0) FAIL(code);
    return real(here, from, there, to, flags);
}
