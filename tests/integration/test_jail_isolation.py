"""What a function can't do in a jail, each tried for real, and that its neighbours keep working meanwhile."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.jail import JailConfig, JailDriver
from sandbox.jailnode import JailNode
from schemas.errors import IsolationUnavailable
from tests.agent_client import until
from tests.jail_client import Ended, Talk, package, spec, started

pytestmark = [
    pytest.mark.jail,
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="the full jail needs root"),
]

TRY = """
import ctypes, errno, os, socket, subprocess, sys

def attempt(what):
    try:
        return ["done", repr(eval(what, globals()))[:200]]
    except OSError as exc:
        return ["refused", errno.errorcode.get(exc.errno, str(exc))]
    except Exception as exc:
        return ["refused", type(exc).__name__]

libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
    return "ok"

def syscall(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), str(number))
    return "ok"

def main_handler(event, context):
    return [attempt(what) for what in event]
"""


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[JailDriver]:
    tmp_path.chmod(0o755)
    made = JailDriver(JailConfig(tmp_path / "nodes", f"{os.getpid():08x}", allow_weaker=False))
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def node(driver: JailDriver) -> JailNode:
    return await driver.create_node("tenant-a")


@pytest.fixture
async def prober(node: JailNode, tmp_path: Path) -> AsyncIterator[Talk]:
    talk = await started(node, package(tmp_path / "try", TRY))
    yield talk
    talk.worker.close()


async def refused(prober: Talk, *attempts: str) -> None:
    """Each expression must have been refused."""
    for attempt, (outcome, detail) in zip(attempts, await prober.run(list(attempts)), strict=True):
        assert outcome == "refused", f"{attempt} gave {detail}"


async def test_the_machine_has_every_layer_and_says_so(driver: JailDriver) -> None:
    assert driver.probe().missing == ()


async def test_files_of_the_host_and_of_other_tenants_are_not_there(
    driver: JailDriver, prober: Talk, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not for you")
    other = await driver.create_node("tenant-b")
    theirs = await started(other, package(tmp_path / "theirs", TRY), spec(sha256="cd" * 32))
    assert (await theirs.run(["open('/tmp/mine', 'w').write('x')"]))[0][0] == "done"
    await refused(
        prober,
        f"open({str(secret)!r}).read()",
        f"os.listdir({str(tmp_path)!r})",
        "open('/etc/shadow').read()",
        "os.listdir('/root')",
        "os.listdir('/home')",
        "open('/tmp/mine').read()",
        f"os.listdir('/var/code/{'cd' * 32}')",
        "open('/proc/sys/kernel/core_pattern', 'w').write('x')",
        "os.listdir('/proc/%d/root' % 2)",
        "os.listdir('/sys/fs/cgroup')",
    )
    theirs.worker.close()


async def test_it_sees_only_its_own_processes_and_an_environment_of_its_own(
    node: JailNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_TEST_SECRET", "of the agent")
    talk = await started(node, package(tmp_path / "see", TRY))
    pids, environment, own, descriptors = await talk.run(
        [
            "[p for p in os.listdir('/proc') if p.isdigit()]",
            "dict(os.environ)",
            "open('/proc/1/environ').read()",
            "sorted(int(f) for f in os.listdir('/proc/self/fd'))",
        ]
    )
    assert pids == ["done", "['1']"]
    assert "PENSTOCK_TEST_SECRET" not in environment[1] + own[1]
    assert descriptors[1] in ("[0, 1, 2, 3]", "[0, 1, 2, 3, 4]")  # the last is the listing's own
    talk.worker.close()


async def test_processes_outside_cannot_be_signalled(node: JailNode, prober: Talk, tmp_path: Path) -> None:
    neighbour = await started(node, package(tmp_path / "n", TRY), spec(sha256="ef" * 32))
    await refused(
        prober,
        f"os.kill({os.getpid()}, 0)",
        f"os.kill({neighbour.worker.pid}, 9)",
        f"os.kill({prober.worker.pid}, 0)",
        "os.kill(2, 0)",
    )
    assert await neighbour.run(["1 + 1"]) == [["done", "2"]]
    neighbour.worker.close()


async def test_no_network_reaches_outside(prober: Talk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        name = f"penstock-isolation-{os.getpid()}"
        unix.bind("\0" + name)
        unix.listen()
        await refused(
            prober,
            f"socket.create_connection(('127.0.0.1', {tcp.getsockname()[1]}), 2)",
            "socket.create_connection(('10.255.255.1', 80), 2)",
            f"socket.socket(socket.AF_UNIX).connect('\\0{name}')",
            "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        )


async def test_rights_cannot_be_regained(prober: Talk) -> None:
    status = (await prober.run(["open('/proc/self/status').read().split('CapInh')[1]"]))[0][1]
    assert status.count("0000000000000000") == 5
    assert "NoNewPrivs:\\t1" in status
    assert "Seccomp:\\t2" in status
    await refused(
        prober,
        "os.setuid(0)",
        "os.chroot('/tmp')",
        "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
        "call('umount2', b'/tmp', 0)",
        "call('unshare', 0x10000000)",
        "call('setns', 0, 0)",
        "call('ptrace', 0, 0, 0, 0)",
        "syscall(250, 0, 0)",  # keyctl
        "syscall(321, 0, 0, 0)",  # bpf
        "syscall(425, 1, 0)",  # io_uring_setup
        "syscall(298, 0, 0, 0, 0, 0)",  # perf_event_open
        "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0)) or open('/tmp/disk', 'rb').read(1)",
    )


async def test_the_tree_is_read_only_but_for_tmp(prober: Talk) -> None:
    await refused(
        prober,
        "open('/var/user/index.py', 'w')",
        "open('/var/user/new', 'w')",
        "open('/usr/bin/new', 'w')",
        "open('/new', 'w')",
        "os.mkdir('/opt/new')",
        "open('/etc/passwd', 'a')",
    )
    assert (await prober.run(["open('/tmp/new', 'w').write('mine')"]))[0] == ["done", "4"]


async def test_host_packages_are_hidden_and_the_standard_library_works(prober: Talk) -> None:
    await refused(prober, "__import__('confluent_kafka')", "__import__('sandbox')", "__import__('schemas')")
    usable = (
        "__import__('ssl').OPENSSL_VERSION",
        "__import__('sqlite3').connect(':memory:').execute('select 1').fetchone()",
        "__import__('tempfile').NamedTemporaryFile().write(b'x')",
        "subprocess.run([sys.executable, '-c', 'print(42)'], capture_output=True, check=True).stdout",
        "__import__('concurrent.futures', fromlist=['x']).ThreadPoolExecutor(2).submit(max, 1, 2).result()",
        "__import__('multiprocessing').Pool(2).map(abs, [-1, -2])",
        "__import__('asyncio').run(__import__('asyncio').sleep(0, 'slept'))",
        "__import__('urllib.request', fromlist=['x']) and __import__('zoneinfo').ZoneInfo('UTC')",
    )
    for what, (outcome, detail) in zip(usable, await prober.run(list(usable)), strict=True):
        assert outcome == "done", f"{what}: {detail}"


async def test_tenants_have_host_users_of_their_own_that_are_not_root(
    driver: JailDriver, prober: Talk, tmp_path: Path
) -> None:
    theirs = await started(await driver.create_node("tenant-b"), package(tmp_path / "b", TRY))
    uids = [os.stat(f"/proc/{t.worker.pid}").st_uid for t in (prober, theirs)]
    assert min(uids) >= 0x4000_0000
    assert len(set(uids)) == 2
    theirs.worker.close()


MEMORY = """
def main_handler(event, context):
    kept = []
    while True:
        kept.append(bytearray(8 << 20))
"""
PROCESSES = """
import os, time

def main_handler(event, context):
    made = 0
    try:
        while made < 5000:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            made += 1
    except OSError as exc:
        return {"made": made, "errno": exc.errno}
    return {"made": made}
"""
DISK = """
def main_handler(event, context):
    written = 0
    try:
        with open('/tmp/big', 'wb') as file:
            while written < 2000:
                file.write(bytes(1 << 20))
                written += 1
    except OSError as exc:
        return {"written": written, "errno": exc.errno}
    return {"written": written}
"""


async def greedy(node: JailNode, folder: Path, code: str) -> tuple[Any, Talk]:
    """What a greedy handler gives, or Ended."""
    talk = await started(node, package(folder / "greedy", code), spec(sha256="99" * 32))
    try:
        return await talk.run({}), talk
    except Ended:
        return Ended, talk


async def test_memory_ends_at_the_functions_limit_and_is_told_apart(
    node: JailNode, prober: Talk, tmp_path: Path
) -> None:
    result, talk = await greedy(node, tmp_path, MEMORY)
    assert result is Ended
    ended = await talk.worker.exited()
    assert ended.reason == "oom"
    assert ended.peak_kib <= 129 * 1024
    talk.worker.close()
    assert await prober.run(["1 + 1"]) == [["done", "2"]]


async def test_processes_end_at_the_limit_and_all_die_with_the_worker(
    node: JailNode, prober: Talk, tmp_path: Path
) -> None:
    result, talk = await greedy(node, tmp_path, PROCESSES)
    if result is not Ended:  # the memory limit may come first
        assert 0 < result["made"] < 1_100
        assert "errno" in result
    assert await prober.run(["1 + 1"]) == [["done", "2"]]
    talk.worker.kill()
    await talk.worker.exited()
    talk.worker.close()
    uid = os.stat(f"/proc/{prober.worker.pid}").st_uid
    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _uid(p) == uid]
    assert [p.name for p in left] == [str(prober.worker.pid)]


def _uid(process: Path) -> int:
    try:
        return process.stat().st_uid
    except OSError:
        return -1


async def test_the_scratch_folder_ends_at_its_limit(node: JailNode, prober: Talk, tmp_path: Path) -> None:
    result, talk = await greedy(node, tmp_path, DISK)
    if result is Ended:
        assert (await talk.worker.exited()).reason == "oom"
    else:
        assert result["written"] <= 512
    talk.worker.close()
    assert (await prober.run(["open('/tmp/small', 'w').write('x')"]))[0] == ["done", "1"]


async def test_a_dead_zygote_ends_its_workers_and_another_node_can_be_made(
    driver: JailDriver, node: JailNode, prober: Talk, tmp_path: Path
) -> None:
    os.kill(node.launcher_pid, 9)
    assert (await prober.worker.exited()).reason in ("killed", "exit")
    assert not node.alive
    again = await started(await driver.create_node("tenant-a"), package(tmp_path / "again", TRY))
    assert await again.run(["1 + 1"]) == [["done", "2"]]
    again.worker.close()


async def test_closing_the_driver_leaves_no_cgroup_no_mount_and_no_folder(tmp_path: Path) -> None:
    made = JailDriver(JailConfig(tmp_path / "gone", "0badcafe", allow_weaker=False))
    await made.start()
    await started(await made.create_node("t"), package(tmp_path / "x", TRY))
    assert list(Path("/sys/fs/cgroup").glob("**/penstock-0badcafe"))
    await made.close()
    assert not list(Path("/sys/fs/cgroup").glob("**/penstock-0badcafe"))
    assert str(tmp_path / "gone") not in Path("/proc/self/mounts").read_text()
    assert not (tmp_path / "gone").exists()


async def test_less_isolation_is_refused_unless_it_was_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.jail._MODES", ("userns", "bare"))
    strict = JailDriver(JailConfig(tmp_path / "strict", "0badcaf1", allow_weaker=False))
    with pytest.raises(IsolationUnavailable) as refusal:
        await strict.start()
    assert "separate host user per tenant" in refusal.value.missing
    await strict.close()


@pytest.mark.parametrize("mode", ["userns", "bare"])
async def test_weaker_modes_run_functions_and_name_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("sandbox.jail._MODES", (mode,))
    weaker = JailDriver(JailConfig(tmp_path / "weaker", "0badcaf2", allow_weaker=True))
    await weaker.start()
    assert weaker.probe().missing
    talk = await started(await weaker.create_node("t"), package(tmp_path / "w", TRY))
    assert await talk.run(["1 + 1", "open('/new', 'w')"]) == [
        ["done", "2"],
        ["refused", "EACCES" if mode == "bare" else "EROFS"],
    ]
    talk.worker.close()
    await weaker.close()


async def blank_pids() -> list[int]:
    """Processes in worker groups of this test's driver once there are two."""
    parent = Path(f"/sys/fs/cgroup/memory/penstock-{os.getpid():08x}")

    def both() -> list[int] | None:
        pids = [int(p) for f in parent.glob("w*/cgroup.procs") for p in f.read_text().split()]
        return pids if len(pids) == 2 else None

    found: list[int] = await until(both, 10)
    return found


@pytest.mark.skipif(not Path("/sys/fs/cgroup/memory").exists(), reason="reads groups of version 1")
async def test_a_blank_worker_gets_the_functions_limits_at_its_claim_and_a_dead_one_harms_no_start(
    node: JailNode, tmp_path: Path
) -> None:
    code = package(tmp_path / "claimed", TRY)
    waiting = await blank_pids()
    talk = await started(node, code, spec(memory_mib=192))
    assert talk.worker.pid in waiting, "the start did not claim a blank"
    group = Path(f"/proc/{talk.worker.pid}/cgroup").read_text().split("memory:")[1].split()[0]
    assert int(Path(f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes").read_text()) == 192 << 20
    talk.worker.close()
    await talk.worker.exited()
    for pid in await blank_pids():
        ended = os.pidfd_open(pid)
        os.kill(pid, 9)
        assert select.select([ended], [], [], 5)[0]  # blocks the loop: the node can't have heard of it
        os.close(ended)
    again = await started(node, code)
    assert await again.run(["1 + 1"]) == [["done", "2"]]
    again.worker.close()
