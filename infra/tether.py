"""Start a program that does not outlive its parent.

`tethered(argv)` is a command line that runs `argv` in the same process (the pid stays), killed by the kernel when the
thread that started it ends, however that happens. It goes through a small Python of its own, not through
`preexec_fn`: forking Python code in a process with librdkafka's threads can hang.

Because the kernel watches the starting *thread*, start such a child from the main thread, never from an executor.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tethered(argv: list[str], *, death_signal: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line that runs `argv` until it ends, or until the calling thread does."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), *argv]


def _main() -> None:
    parent, death_signal, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call above
        raise SystemExit(1)
    try:
        os.execvp(argv[0], argv)
    except OSError as exc:
        sys.stderr.write(f"{argv[0]}: {exc.strerror}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    _main()
