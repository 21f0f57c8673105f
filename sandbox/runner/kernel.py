"""The kernel calls of a jail that Python 3.11 has no name for. Standard library only: runs inside nodes."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Sequence

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = (
    1,
    4,
    24,
    22,
    38,
    47,
)
SYS_PIVOT_ROOT, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 155, 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave namespaces."""
    _check(_libc.unshare(flags), f"unshare {flags:#x}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); empty strings are NULL."""
    result = _libc.mount(
        source.encode() or None,
        target.encode(),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, f"mount {source or kind} on {target}")


def bind(
    source: str, target: str, *, read_only: bool = True, recursive: bool = True, extra: int = MS_NOSUID | MS_NODEV
) -> None:
    """Bind-mount; the remount keeps flags that the source's mount has locked."""
    mount(source, target, flags=MS_BIND | (MS_REC if recursive else 0))
    kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    mount("", target, flags=MS_REMOUNT | MS_BIND | kept | extra | (MS_RDONLY if read_only else 0))


def pivot_root_here() -> None:
    """Make the current folder the root and let the old one go."""
    _check(_libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount old root")
    os.chdir("/")


def prctl(option: int, value: int = 0) -> None:
    """prctl(2) with one argument."""
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def die_with_parent(signal_number: int = 9) -> None:
    """Be killed when the parent dies."""
    prctl(PR_SET_PDEATHSIG, signal_number)


def drop_bounding_set() -> None:
    """No later exec can gain a capability."""
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            return


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_capabilities() -> None:
    """Give up every capability of this process, for good together with no_new_privs."""
    zero = ctypes.c_ulong(0)
    _libc.prctl(PR_CAP_AMBIENT, ctypes.c_ulong(4), zero, zero, zero)  # PR_CAP_AMBIENT_CLEAR_ALL
    header = _CapHeader(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def load_seccomp(program: bytes) -> None:
    """Load a BPF program (8 bytes an instruction); needs no_new_privs or CAP_SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = _FilterProgram(len(program) // 8, ctypes.addressof(buffer))
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(fprog), zero, zero), "seccomp")


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("fd", ctypes.c_int32))


class _PortRule(ctypes.Structure):
    _fields_ = (("access", ctypes.c_uint64), ("port", ctypes.c_uint64))


_FS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15}
LL_READ = 0b1101
"""Landlock rights: execute, read file, read folder."""


def landlock_abi() -> int:
    """Version of Landlock in this kernel; 0 when there is none."""
    found: int = _libc.syscall(SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(0, found)


def landlock(readable: Sequence[str], writable: Sequence[str], *, network: bool, connect_to: int = 0) -> None:
    """Allow reading below `readable` and everything below `writable`; TCP only when `network`, or to the port `connect_to`.

    Nothing scoped out may be signalled.
    """
    abi = landlock_abi()
    if abi == 0:
        return
    every = (1 << _FS_BY_ABI.get(abi, 16)) - 1
    rules = _Ruleset(every, 0 if network or abi < 4 else 3, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset: int = _libc.syscall(SYS_LANDLOCK_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint(0))
    if ruleset < 0:
        _check(ruleset, "landlock_create_ruleset")
    for paths, access in ((readable, LL_READ), (writable, every & ~1)):
        for path in paths:
            if not os.path.exists(path):
                continue
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = (
                access if os.path.isdir(path) else access & 0x4006
            )  # a file has no folder rights: write, read, truncate
            rule = _PathRule(allowed & every, fd)
            _check(_libc.syscall(SYS_LANDLOCK_ADD, ruleset, 1, ctypes.byref(rule), 0), f"landlock rule for {path}")
            os.close(fd)
    if rules.net and connect_to:
        port = _PortRule(2, connect_to)  # LANDLOCK_ACCESS_NET_CONNECT_TCP
        _check(_libc.syscall(SYS_LANDLOCK_ADD, ruleset, 2, ctypes.byref(port), 0), "landlock rule for a port")
    _check(_libc.syscall(SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def bring_loopback_up() -> None:
    """Set IFF_UP on `lo` of this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 1)
        fcntl.ioctl(sock.fileno(), 0x8914, request)  # SIOCSIFFLAGS


def recv_with_fds(sock: socket.socket, size: int = 65536, most: int = 16) -> tuple[bytes, list[int]]:
    """One message with the descriptors that came along, close-on-exec."""
    item = array.array("i")
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(most * item.itemsize), socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            got = array.array("i")
            got.frombytes(payload[: len(payload) - len(payload) % got.itemsize])
            fds += got
    return data, fds
