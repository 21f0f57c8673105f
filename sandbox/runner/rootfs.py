"""The file tree of a node: read-only binds of the machine's programs, an /etc and a /dev of its own. Standard library only."""

from __future__ import annotations

import glob
import os

from sandbox.runner import kernel

PYTHON_HOME = "/var/lang"
"""Where the interpreter stands inside when its own place is not below /usr (a home folder must not be listed)."""
RUNNER_HOME = "/var/penstock"
"""Where this package stands inside."""
CODE_ROOT = "/var/code"
USER_CODE = "/var/user"
LAYERS = "/opt"
"""Empty, or the layers of the function, bound there by each worker."""
_FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/false\nuser:x:1000:1000:user:/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "etc/group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/hostname": "penstock\n",
    "etc/resolv.conf": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_FROM_HOST = ("etc/localtime", "etc/ssl/certs", "etc/ld.so.cache", "etc/mime.types", "etc/alternatives")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_HIDDEN = ("lib/python3*/site-packages", "lib/python3/dist-packages", "local/lib/python3*/*-packages")


def is_system(prefix: str) -> bool:
    """True for an interpreter that is seen through the bind of /usr."""
    return prefix == "/usr" or prefix.startswith("/usr/")


def build(root: str, code: str, python_prefix: str, runner: str) -> None:
    """Mount the tree on `root`; needs a mount namespace of one's own and the right to mount. Nothing is left outside of it.

    Args:
        root: an empty folder.
        code: the host folder that appears at CODE_ROOT.
        python_prefix: `sys.base_prefix` of the interpreter that will run.
        runner: host folder that holds `sandbox/runner`; nothing else of it is shown.
    """
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=4m,mode=755")
    os.chdir(root)
    for folder in ("etc", "dev", "proc", "tmp", "opt", "var", "var/code", "var/user", "usr"):
        os.mkdir(folder)
    _programs()
    if not is_system(python_prefix):
        _interpreter(python_prefix)
    _copy_runner(f"{runner}/sandbox/runner", f"{RUNNER_HOME[1:]}/sandbox")
    for name, text in _FILES.items():
        with open(name, "w") as file:
            file.write(text)
    for name in _FROM_HOST:
        if os.path.exists(f"/{name}"):
            _bind(f"/{name}", name)
    _devices()
    kernel.bind(code, "var/code")
    os.chmod("tmp", 0o1777)  # noqa: S103 - a worker mounts its own over it


def _bind(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        with open(target, "w"):
            pass
    kernel.bind(os.path.realpath(source), target)


def _programs() -> None:
    _bind("/usr", "usr")
    for path in ("/bin", "/sbin", *glob.glob("/lib*")):
        name = path[1:]
        if os.path.islink(path):
            os.symlink(os.readlink(path), name)
        elif os.path.isdir(path):
            _bind(path, name)
    for pattern in _HIDDEN:
        for folder in glob.glob(f"usr/{pattern}"):
            _hide(folder)
    for folder in ("usr/local/share", "usr/src", "usr/games"):
        if os.path.isdir(folder):
            _hide(folder)


def _interpreter(prefix: str) -> None:
    home = PYTHON_HOME[1:]
    _bind(prefix, home)
    for folder in glob.glob(f"{home}/lib/python3*/site-packages"):
        _hide(folder)


def _copy_runner(source: str, package: str) -> None:
    """A copy, for the node's user may not be allowed to read the original."""
    os.makedirs(f"{package}/runner")
    for path in (f"{package}/__init__.py", *glob.glob(f"{source}/*.py")):
        text = b""
        if path.startswith(source):
            with open(path, "rb") as file:
                text = file.read()
            path = f"{package}/runner/{os.path.basename(path)}"
        with open(path, "wb") as file:
            file.write(text)


def _hide(folder: str) -> None:
    kernel.mount("tmpfs", folder, "tmpfs", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV, "size=4k,mode=555")


def _devices() -> None:
    for name in _DEVICES:
        with open(f"dev/{name}", "w"):
            pass
        kernel.bind(f"/dev/{name}", f"dev/{name}", read_only=False, recursive=False, extra=kernel.MS_NOSUID)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"dev/{name}")
    os.mkdir("dev/shm")


def seal() -> None:
    """Make the root itself read-only, once everything is in place and it is `/`."""
    kernel.mount(
        "", "/", flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    )
