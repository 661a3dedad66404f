// Stands between a server and its data folder, put under the C library with LD_PRELOAD: fails the
// n-th call that could fail, or writes down what was done, in the order in which it was done.
// (strace counts calls for each thread by itself, so it cannot name the n-th of a program.)
//
// Watched is what happens below STRONGROOM_DISK, but for RocksDB's log of events (LOG), which holds
// nothing that anybody reads. All watched calls of a process run one after the other.
//
//   STRONGROOM_DISK_CALLS=FILE  gets a line for each call: what it is, and on what
//   STRONGROOM_DISK_FAIL=N      the N-th call fails,
//   STRONGROOM_DISK_ERRNO=E     with this number,
//   STRONGROOM_DISK_MODE=M      once; ever (so do all after it); torn (half of what is written is)
//   STRONGROOM_DISK_TRACE=FILE  gets what is needed to make the folder again: power_model.rs
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static char root[PATH_MAX];
static size_t root_length;
static int calls_fd = -1, trace_fd = -1;
static long fail_at, call_count;
static int fail_errno = EIO, fails_ever, tears;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static int open_log(const char *name) {
  const char *path = getenv(name);
  if (!path) return -1;
  return syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

__attribute__((constructor)) static void begin(void) {
  const char *text = getenv("STRONGROOM_DISK");
  if (!text || strlen(text) >= sizeof root) return;
  strcpy(root, text);
  root_length = strlen(root);
  calls_fd = open_log("STRONGROOM_DISK_CALLS");
  trace_fd = open_log("STRONGROOM_DISK_TRACE");
  if ((text = getenv("STRONGROOM_DISK_FAIL"))) fail_at = atol(text);
  if ((text = getenv("STRONGROOM_DISK_ERRNO"))) fail_errno = atoi(text);
  text = getenv("STRONGROOM_DISK_MODE");
  fails_ever = text && !strcmp(text, "ever");
  tears = text && !strcmp(text, "torn");
}

// --- What is watched ---------------------------------------------------------------------------

static int is_watched(const char *path) {
  if (!root_length || strncmp(path, root, root_length)) return 0;
  if (path[root_length] && path[root_length] != '/') return 0;
  const char *name = strrchr(path, '/');
  return strncmp(name + 1, "LOG", 3) != 0;
}

static void without_double_slashes(char *path) {
  char *to = path;
  for (char *from = path; *from; from++)
    if (from[0] != '/' || from[1] != '/') *to++ = *from;
  if (to > path + 1 && to[-1] == '/') to--;
  *to = 0;
}

static int path_of(int fd, char *path) {
  if (!root_length || fd < 0 || fd == calls_fd || fd == trace_fd) return 0;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return is_watched(path);
}

static int path_at(int at, const char *name, char *path) {
  if (!root_length || !name) return 0;
  if (name[0] == '/') {
    snprintf(path, PATH_MAX, "%s", name);
  } else {
    char link[64], folder[PATH_MAX];
    if (at == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, folder, PATH_MAX - 1);
    if (length < 0) return 0;
    folder[length] = 0;
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX) return 0;
  }
  without_double_slashes(path);
  return is_watched(path);
}

// --- What is written down ----------------------------------------------------------------------

static void put(int fd, const void *bytes, size_t length) {
  for (const char *at = bytes; length;) {
    long done = syscall(SYS_write, fd, at, length);
    if (done <= 0) abort();
    at += done, length -= done;
  }
}

// "KIND NUMBER OFFSET LENGTH PATH" and a line feed; then, for KIND W, LENGTH bytes.
static void note(char kind, unsigned long number, long long offset, size_t length,
                 const char *path, const char *other) {
  if (trace_fd < 0) return;
  char line[2 * PATH_MAX + 128];
  int size = snprintf(line, sizeof line, "%c %lu %lld %zu %s%s%s\n", kind, number, offset, length,
                      path, other ? "\t" : "", other ? other : "");
  put(trace_fd, line, size);
}

static unsigned long number_of(int fd, struct stat *found) {
  return fstat(fd, found) ? 0 : found->st_ino;
}

// Called for each watched call, in order: the error that it shall have, or 0.
static int verdict(const char *kind, const char *path) {
  long this_call = ++call_count;
  if (calls_fd >= 0) {
    char line[PATH_MAX + 64];
    put(calls_fd, line, snprintf(line, sizeof line, "%s %s\n", kind, path));
  }
  if (!fail_at) return 0;
  return this_call == fail_at || (fails_ever && this_call > fail_at) ? fail_errno : 0;
}

// Runs CALL between others, unless it is to fail; gives its result.
#define ORDERLY(KIND, PATH, CALL, AFTER)              \
  do {                                                \
    pthread_mutex_lock(&order);                       \
    int error = verdict(KIND, PATH);                  \
    long result = error ? -1 : (long)(CALL);          \
    if (!error) error = errno;                        \
    if (result >= 0) {                                \
      AFTER;                                          \
    }                                                 \
    pthread_mutex_unlock(&order);                     \
    if (result < 0) errno = error;                    \
    return result;                                    \
  } while (0)

// --- Contents of files -------------------------------------------------------------------------

static void note_written(int fd, const char *path, const void *bytes, long done, long long at) {
  struct stat found;
  if (trace_fd < 0 || done <= 0) return;
  unsigned long number = number_of(fd, &found);
  if (at < 0) at = syscall(SYS_lseek, fd, 0, SEEK_CUR) - done;
  note('W', number, at, done, path, NULL);
  put(trace_fd, bytes, done);
}

static long do_write(int fd, const void *bytes, size_t length, long long at) {
  return at < 0 ? syscall(SYS_write, fd, bytes, length)
                : syscall(SYS_pwrite64, fd, bytes, length, at);
}

static long writing(int fd, const void *bytes, size_t length, long long at) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return do_write(fd, bytes, length, at);
  pthread_mutex_lock(&order);
  int error = verdict("write", path);
  if (!error || (tears && length > 1)) {
    long done = do_write(fd, bytes, error ? length / 2 : length, at);
    if (!error && done < 0) error = errno;
    note_written(fd, path, bytes, done, at);
    if (!error) {
      pthread_mutex_unlock(&order);
      return done;
    }
  }
  pthread_mutex_unlock(&order);
  errno = error;
  return -1;
}

EXPORT ssize_t write(int fd, const void *bytes, size_t length) {
  return writing(fd, bytes, length, -1);
}
EXPORT ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
  return writing(fd, bytes, length, at);
}
EXPORT ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
  return writing(fd, bytes, length, at);
}

// In pieces: a caller must be content with less than it asked for.
EXPORT ssize_t writev(int fd, const struct iovec *pieces, int count) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return syscall(SYS_writev, fd, pieces, count);
  for (int i = 0; i < count; i++)
    if (pieces[i].iov_len) return writing(fd, pieces[i].iov_base, pieces[i].iov_len, -1);
  return 0;
}

static long truncating(int fd, off64_t length) {
  char path[PATH_MAX];
  struct stat found;
  if (!path_of(fd, path)) return syscall(SYS_ftruncate, fd, length);
  ORDERLY("truncate", path, syscall(SYS_ftruncate, fd, length),
          note('T', number_of(fd, &found), length, 0, path, NULL));
}
EXPORT int ftruncate(int fd, off_t length) { return truncating(fd, length); }
EXPORT int ftruncate64(int fd, off64_t length) { return truncating(fd, length); }

static long allocating(int fd, int mode, off64_t at, off64_t length) {
  char path[PATH_MAX];
  struct stat found;
  if (!path_of(fd, path)) return syscall(SYS_fallocate, fd, mode, at, length);
  ORDERLY("allocate", path, syscall(SYS_fallocate, fd, mode, at, length),
          unsigned long number = number_of(fd, &found);
          if (!(mode & FALLOC_FL_KEEP_SIZE)) note('T', number, found.st_size, 0, path, NULL));
}
EXPORT int fallocate(int fd, int mode, off_t at, off_t length) {
  return allocating(fd, mode, at, length);
}
EXPORT int fallocate64(int fd, int mode, off64_t at, off64_t length) {
  return allocating(fd, mode, at, length);
}

static long syncing(const char *kind, long call, int fd) {
  char path[PATH_MAX];
  struct stat found;
  if (!path_of(fd, path)) return syscall(call, fd);
  ORDERLY(kind, path, syscall(call, fd),
          unsigned long number = number_of(fd, &found);
          note(S_ISDIR(found.st_mode) ? 'D' : 'S', number, 0, 0, path, NULL));
}
EXPORT int fsync(int fd) { return syncing("sync", SYS_fsync, fd); }
EXPORT int fdatasync(int fd) { return syncing("sync", SYS_fdatasync, fd); }
EXPORT int sync_file_range(int fd, off64_t at, off64_t length, unsigned flags) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return syscall(SYS_sync_file_range, fd, at, length, flags);
  ORDERLY("push", path, syscall(SYS_sync_file_range, fd, at, length, flags), (void)0);
}

// --- Names -------------------------------------------------------------------------------------

static long opening(int at, const char *name, int flags, mode_t mode) {
  char path[PATH_MAX];
  struct stat found;
  if (!path_at(at, name, path)) return syscall(SYS_openat, at, name, flags, mode);
  int is_there = !fstatat(at, name, &found, 0);
  ORDERLY("open", path, syscall(SYS_openat, at, name, flags, mode),
          unsigned long number = number_of(result, &found);
          if (S_ISREG(found.st_mode)) {
            note(is_there ? 'O' : 'C', number, 0, 0, path, NULL);
            if (is_there && (flags & O_TRUNC)) note('T', number, 0, 0, path, NULL);
          });
}

#define MODE_OF(FLAGS)                                            \
  mode_t mode = 0;                                                \
  if ((FLAGS) & (O_CREAT | __O_TMPFILE)) {                        \
    va_list more;                                                 \
    va_start(more, FLAGS);                                        \
    mode = va_arg(more, mode_t);                                  \
    va_end(more);                                                 \
  }

EXPORT int open(const char *name, int flags, ...) {
  MODE_OF(flags)
  return opening(AT_FDCWD, name, flags, mode);
}
EXPORT int open64(const char *name, int flags, ...) {
  MODE_OF(flags)
  return opening(AT_FDCWD, name, flags, mode);
}
EXPORT int openat(int at, const char *name, int flags, ...) {
  MODE_OF(flags)
  return opening(at, name, flags, mode);
}
EXPORT int openat64(int at, const char *name, int flags, ...) {
  MODE_OF(flags)
  return opening(at, name, flags, mode);
}

static long renaming(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
  char old[PATH_MAX], new[PATH_MAX];
  int is_ours = path_at(from_at, from, old);
  if (!path_at(to_at, to, new) || !is_ours)
    return syscall(SYS_renameat2, from_at, from, to_at, to, flags);
  ORDERLY("rename", new, syscall(SYS_renameat2, from_at, from, to_at, to, flags),
          note('R', 0, 0, 0, old, new));
}
EXPORT int rename(const char *from, const char *to) {
  return renaming(AT_FDCWD, from, AT_FDCWD, to, 0);
}
EXPORT int renameat(int from_at, const char *from, int to_at, const char *to) {
  return renaming(from_at, from, to_at, to, 0);
}
EXPORT int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
  return renaming(from_at, from, to_at, to, flags);
}

static long linking(int from_at, const char *from, int to_at, const char *to, int flags) {
  char old[PATH_MAX], new[PATH_MAX];
  int is_ours = path_at(from_at, from, old);
  if (!path_at(to_at, to, new) || !is_ours)
    return syscall(SYS_linkat, from_at, from, to_at, to, flags);
  ORDERLY("link", new, syscall(SYS_linkat, from_at, from, to_at, to, flags),
          note('L', 0, 0, 0, old, new));
}
EXPORT int link(const char *from, const char *to) {
  return linking(AT_FDCWD, from, AT_FDCWD, to, 0);
}
EXPORT int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
  return linking(from_at, from, to_at, to, flags);
}

static long removing(int at, const char *name, int flags) {
  char path[PATH_MAX];
  if (!path_at(at, name, path)) return syscall(SYS_unlinkat, at, name, flags);
  ORDERLY("remove", path, syscall(SYS_unlinkat, at, name, flags),
          note(flags & AT_REMOVEDIR ? 'X' : 'U', 0, 0, 0, path, NULL));
}
EXPORT int unlink(const char *name) { return removing(AT_FDCWD, name, 0); }
EXPORT int rmdir(const char *name) { return removing(AT_FDCWD, name, AT_REMOVEDIR); }
EXPORT int unlinkat(int at, const char *name, int flags) { return removing(at, name, flags); }
EXPORT int remove(const char *name) {
  int outcome = removing(AT_FDCWD, name, 0);
  return outcome && errno == EISDIR ? removing(AT_FDCWD, name, AT_REMOVEDIR) : outcome;
}

static long making(int at, const char *name, mode_t mode) {
  char path[PATH_MAX];
  if (!path_at(at, name, path)) return syscall(SYS_mkdirat, at, name, mode);
  ORDERLY("mkdir", path, syscall(SYS_mkdirat, at, name, mode),
          note('M', 0, 0, 0, path, NULL));
}
EXPORT int mkdir(const char *name, mode_t mode) { return making(AT_FDCWD, name, mode); }
EXPORT int mkdirat(int at, const char *name, mode_t mode) { return making(at, name, mode); }
