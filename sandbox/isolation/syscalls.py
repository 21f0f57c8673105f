"""The system calls that user code may make: an allow-list, built once into a BPF program.

What is not listed fails with EPERM. `clone3` says ENOSYS, so that the C library falls back to `clone`, whose flags can be checked:
new namespaces are refused. Absent on purpose: mount and its new forms, pivot_root, chroot, setns, unshare, ptrace, process_vm_*, bpf,
perf_event_open, userfaultfd, keyctl, io_uring, kexec, module loading, clock setting, swap, reboot, open_by_handle_at, personality.
"""

from __future__ import annotations

import errno
import tempfile
from functools import cache
from typing import Any

NAMESPACE_FLAGS = 0x7E020080
"""CLONE_NEW*: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME."""

ALLOWED = """
read write open openat openat2 close close_range stat fstat lstat newfstatat statx poll ppoll lseek mmap mprotect munmap brk mremap madvise
msync mincore mlock mlock2 munlock pread64 pwrite64 preadv pwritev preadv2 pwritev2 readv writev access faccessat faccessat2 pipe pipe2
select pselect6 sched_yield dup dup2 dup3 pause nanosleep clock_nanosleep getitimer alarm setitimer getpid gettid getppid
sendfile splice tee socket connect accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown bind listen getsockname
getpeername socketpair setsockopt getsockopt fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo rt_sigsuspend sigaltstack
ioctl fcntl flock fsync fdatasync sync_file_range truncate ftruncate getdents getdents64 getcwd chdir fchdir rename renameat renameat2
mkdir mkdirat rmdir creat link linkat unlink unlinkat symlink symlinkat readlink readlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown
fchownat umask mknod mknodat utime utimes utimensat futimesat statfs fstatfs fallocate copy_file_range fadvise64 readahead
gettimeofday time clock_gettime clock_getres times getrlimit setrlimit prlimit64 getrusage sysinfo uname
getuid geteuid getgid getegid getgroups getresuid getresgid setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups
getpgid setpgid getpgrp getsid setsid capget capset prctl arch_prctl set_tid_address set_robust_list get_robust_list rseq restart_syscall
futex futex_waitv get_thread_area set_thread_area membarrier
sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_get_priority_max
sched_get_priority_min sched_getattr sched_setattr sched_rr_get_interval getpriority setpriority ioprio_get ioprio_set getcpu
epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime
timerfd_gettime timer_create timer_settime timer_gettime timer_getoverrun timer_delete inotify_init inotify_init1 inotify_add_watch
inotify_rm_watch memfd_create getrandom pidfd_open pidfd_send_signal
shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
mq_getsetattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
landlock_create_ruleset landlock_add_rule landlock_restrict_self pkey_alloc pkey_free pkey_mprotect seccomp
sync syncfs set_mempolicy get_mempolicy io_setup io_destroy io_submit io_getevents io_cancel
""".split()  # noqa: SIM905 - 300 quoted names would hide the list


@cache
def program() -> bytes:
    """The BPF program. Raises ImportError or OSError where libseccomp is not to be had."""
    import pyseccomp

    rules: Any = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in ALLOWED:
        try:
            rules.add_rule(pyseccomp.ALLOW, name)
        except (ValueError, OSError, RuntimeError):
            continue  # a call that this architecture or library does not know
    rules.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, NAMESPACE_FLAGS, 0))
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
