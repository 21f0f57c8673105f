"""Custom runtimes on the real jail: what a bootstrap is given, what its callers get, and what it can't do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from infra import clock
from sandbox.jail import JailConfig, JailDriver
from schemas.frames import Result, Spec
from tests.agent_client import Gateway, Running, running_agent, until
from tests.custom_runtimes import ECHO, SCF, bootstrap
from tests.jail_client import spec as jail_spec
from tests.jail_client import started

pytestmark = [pytest.mark.jail, pytest.mark.timeout(120)]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_agent(tmp_path) as made:
        yield made


def custom(running: Running, code: str | bytes, **fields: Any) -> Spec:
    """A function version of Runtime CustomRuntime whose package has this bootstrap."""
    digest = running.store.add_zip(bootstrap(code))
    return dataclasses.replace(running.spec(""), runtime="CustomRuntime", code_sha256=digest, **fields)


def error(result: Result) -> str:
    said = json.loads(result.body)
    assert said["statusCode"] == result.status
    return str(said["errorMessage"])


async def test_a_bootstrap_gets_events_headers_and_scfs_environment_in_one_process(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "names = ['GREETING', '_HANDLER', 'SCF_FUNCTIONNAME', 'SCF_NAMESPACE', 'SCF_RUNTIME', 'USER_CODE_ROOT', 'SCF_RUNTIME_API']\n"
        "loop(lambda event, headers: [event, [os.environ[n] for n in names], os.getcwd(), os.getpid(), headers['request_id'],\n"
        "     headers['memory_limit_in_mb'], headers['time_limit_in_ms']])\n"
    )
    spec = custom(running, code, environment={"GREETING": "hello"}, handler="main.go")
    said = await gateway.value({"a": [1, "ü"]}, spec)
    again = await gateway.value({}, spec)
    assert said[0] == {"a": [1, "ü"]}
    assert said[1] == ["hello", "main.go", "f", "default", "CustomRuntime", "/var/user/", "127.0.0.1"]
    assert said[2] == "/var/user"
    assert (said[5], said[6]) == ("128", "5000")
    assert again[3] == said[3]
    assert again[4] != said[4]


async def test_a_package_without_permissions_in_its_zip_runs_too_and_a_python_file_beside_it_is_no_matter(
    running: Running,
) -> None:
    gateway = await running.gateway()
    assert await gateway.value({"n": 1}, custom(running, ECHO)) == {"n": 1}


async def test_results_are_the_bytes_that_were_sent_and_two_at_once_are_the_first(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "ready()\n"
        "while True:\n"
        "    _, event = next_event()\n"
        "    body = b'x' * event if isinstance(event, int) else event.encode()\n"
        "    first = respond(body)\n"
        "    print(first, respond(b'second'), ask('POST', 'invocation/error', 'third')[0])\n"
    )
    spec = custom(running, code)
    assert (await gateway.call("not json", spec)).body == b"not json"
    assert (await gateway.call("", spec)).body == b""
    assert len((await gateway.call(6 << 20, spec)).body) == 6 << 20
    over = await gateway.call((6 << 20) + 1, spec)
    assert (over.status, "6291456" in error(over)) == (407, True)
    assert (await gateway.call("after", spec)).body == b"after"


async def test_a_large_event_comes_through(running: Running) -> None:
    gateway = await running.gateway()
    spec = custom(running, SCF + "loop(lambda event, headers: len(event))\n", memory_mib=256)
    assert await gateway.value("y" * 5_000_000, spec) == 5_000_000


async def test_what_is_printed_stands_in_the_log_of_its_own_run_and_that_of_init_in_the_first(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "print('loading', flush=True)\n"
        "def handler(event, headers):\n"
        "    print('out', event, flush=True)\n"
        "    print('err without end', file=sys.stderr, end='', flush=True)\n"
        "loop(handler)\n"
    )
    spec = custom(running, code)
    first, second = gateway.send("first", spec), None
    await first
    second = gateway.send("second", spec)
    await second
    assert [line for _, line in await log_of(running, gateway, first)][1:3] == ["loading", "out first"]
    assert "loading" not in [line for _, line in await log_of(running, gateway, second)]
    answers = [gateway.send(n, spec) for n in range(40)]
    assert {r.status for r in await asyncio.gather(*answers)} == {200}
    for number, answer in enumerate(answers):
        lines = await log_of(running, gateway, answer)
        said = sorted(line for stream, line in lines if stream in ("stdout", "stderr") and line != "loading")
        assert said == ["err without end", f"out {number}"], lines


async def log_of(running: Running, gateway: Gateway, answer: asyncio.Future[Result]) -> list[tuple[str, str]]:
    """Stream and text of all lines of a run, START to REPORT."""
    name = str(gateway.request_id(running_corr(gateway, answer)))

    def whole() -> list[tuple[str, str]]:
        lines = [(x.stream, x.line) for x in running.topics.lines if x.request_id == name]
        return lines if lines and lines[-1][1].startswith("REPORT") else []

    found: list[tuple[str, str]] = await until(whole)
    return found


async def test_what_a_run_said_before_it_ended_badly_is_in_its_log(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "def handler(event, headers):\n"
        "    print('last words', flush=True)\n"
        "    raise ValueError(event) if event == 'raise' else os.kill(os.getpid(), 11) if event == 'fault' else time.sleep(9)\n"
        "loop(handler)\n"
    )
    spec = custom(running, code, timeout_s=1)
    for how, status, says in (
        ("raise", 439, "ValueError: raise"),
        ("fault", 439, "ended by SIGSEGV"),
        ("hang", 433, ""),
    ):
        answer = gateway.send(how, spec)
        assert (await answer).status == status
        lines = [line for _, line in await log_of(running, gateway, answer)]
        assert lines[1] == "last words"
        assert any(says in line for line in lines)


async def test_a_result_counts_also_when_its_sender_is_gone_at_once(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "ready()\nnext_event()\nours.request('POST', '/runtime/invocation/response', b'1' * 1_000_000)\nos._exit(0)\n"
    )
    spec = custom(running, code)
    assert [(await gateway.call({}, spec)).status for _ in range(9)] == [200] * 9


def running_corr(gateway: Gateway, answer: asyncio.Future[Result]) -> int:
    return next(corr for corr, kept in gateway._answers.items() if kept is answer)


LISTEN_ONLY = "#!/bin/sh\nexec sleep 60\n"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (SCF + "ready()\nnext_event()\nask('POST', 'invocation/error', 'it broke')\ntime.sleep(9)\n", 430, "user code"),
        (SCF + "ready()\nnext_event()\nsys.exit(3)\n", 439, "exited with code 3"),
        (SCF + "ready()\nnext_event()\nos.kill(os.getpid(), 11)\n", 439, "exited with code 139"),
        (SCF + "ready()\nnext_event()\ntime.sleep(30)\n", 433, "time limit of 1 s"),
        (SCF + "ready()\nnext_event()\nx = b'x' * (400 << 20)\n", 434, "more memory than its 128 MB"),
        (SCF + "x = b'x' * (400 << 20)\n", 434, "while it was loaded"),
        (SCF + "sys.exit(4)\n", 405, "exited with code 4 before it was ready"),
        (LISTEN_ONLY, 450, "did not say ready within 1 s"),
        ("#!/no/such/interpreter\n", 445, "interpreter"),
        ("echo hello\n", 445, "neither with #!"),
        (b"\x7fELF nonsense", 445, "neither with #!"),
        (
            SCF
            + 'ours.request(\'POST\', \'/2018-06-01/runtime/init/error\', \'{"errorType":"A","errorMessage":"no model"}\')\n'
            "ours.getresponse().read()\ntime.sleep(9)\n",
            445,
            "could not start: A: no model",
        ),
    ],
)
async def test_each_way_to_fail_has_its_status_and_the_neighbour_keeps_working(
    running: Running, code: str | bytes, status: int, words: str
) -> None:
    gateway = await running.gateway()
    init_s = 1 if status == 450 else 10
    spec = custom(running, code, timeout_s=1, init_timeout_s=init_s)
    neighbour = custom(running, ECHO, function="neighbour")
    assert await gateway.value(1, neighbour) == 1
    result, beside = await asyncio.gather(gateway.call({}, spec), gateway.call(2, neighbour))
    assert result.status == status, result
    assert words in error(result)
    assert beside.body == b"2"


async def test_whoever_ends_takes_along_what_it_started(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "import subprocess\n"
        "def handler(event, headers):\n"
        "    subprocess.Popen(['sleep', '987654'], start_new_session=True)\n"
        "    if event == 'orphan':\n"
        "        subprocess.run(['sh', '-c', '(sleep 0.01 &)'])\n"
        "        time.sleep(0.2)\n"
        "        return [open(f'/proc/{p}/stat').read().split()[2] for p in os.listdir('/proc') if p.isdigit()].count('Z')\n"
        "    os._exit(1) if event == 'exit' else time.sleep(9)\n"
        "loop(handler)\n"
    )
    spec = custom(running, code, timeout_s=2)
    assert await gateway.value("orphan", spec) == 0
    assert [(await gateway.call(how, spec)).status for how in ("exit", "hang")] == [439, 433]
    await until(lambda: not any(b"987654" in line for line in commands()))


def commands() -> list[bytes]:
    """Command lines of all processes of the machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((folder / "cmdline").read_bytes())
    return found


AWS = """#!/usr/bin/env python3
import http.client, json, os
ours = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
def ask(method, path, body=None, **headers):
    ours.request(method, "/2018-06-01/runtime/" + path, body, headers)
    answer = ours.getresponse()
    return answer.status, answer.headers, answer.read()
while True:
    _, headers, event = ask("GET", "invocation/next")
    name = headers["Lambda-Runtime-Aws-Request-Id"]
    if event == b'"fail"':
        ask("POST", f"invocation/{name}/error", '{"errorType": "Oops", "errorMessage": "no", "stackTrace": ["here"]}')
        continue
    wrong = ask("POST", "invocation/00000000-0000-0000-0000-000000000000/response", "1")[0]
    said = [wrong, headers["Lambda-Runtime-Deadline-Ms"], headers["Lambda-Runtime-Invoked-Function-Arn"], name]
    ours.request("POST", f"/2018-06-01/runtime/invocation/{name}/response", iter([json.dumps(said).encode()]), encode_chunked=True)
    print(ours.getresponse().read())
"""


async def test_a_runtime_for_aws_lambda_runs_unchanged(running: Running) -> None:
    gateway = await running.gateway()
    spec = custom(running, AWS)
    answer = gateway.send({}, spec)
    wrong, deadline_ms, resource, name = json.loads((await answer).body)
    assert wrong == 400
    assert abs(int(deadline_ms) / 1000 - 5 - clock.unix_ms() / 1000) < 5
    assert resource == "qcs::scf:ap-guangzhou:uin/100000000001:namespace/default/function/f"
    assert name == str(gateway.request_id(running_corr(gateway, answer)))
    failed = await gateway.call("fail", spec)
    assert (failed.status, json.loads(failed.body)["stackTrace"]) == (430, "Oops: no\nhere")


async def test_another_worker_of_the_tenant_can_not_speak_to_it(running: Running) -> None:
    gateway = await running.gateway()
    shows = custom(running, SCF + "loop(lambda event, headers: [os.environ['SCF_RUNTIME_API_PORT'], os.getpid()])\n")
    port, _ = await gateway.value({}, shows)
    code = """
import socket
def main_handler(event, context):
    with open("/proc/net/tcp") as table:
        is_seen = f"0100007F:{int(event):04X}" in table.read()
    with socket.create_connection(("127.0.0.1", int(event)), timeout=5) as sock:
        try:
            sock.sendall(b"GET /runtime/invocation/next HTTP/1.1\\r\\n\\r\\n")
            return [is_seen, sock.recv(100).decode()]
        except ConnectionError:
            return [is_seen, ""]
"""
    assert await gateway.value(port, running.spec(code, function="other")) == [True, ""]
    assert (await gateway.value({}, shows))[0] == port


async def test_a_bootstrap_is_as_confined_as_a_python_worker(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def refused(what):\n"
        "    try:\n"
        "        return repr(what())\n"
        "    except OSError:\n"
        "        return 'refused'\n"
        "def call(*arguments):\n"
        "    if libc.syscall(*arguments) == -1:\n"
        "        raise OSError(ctypes.get_errno(), '')\n"
        "loop(lambda event, headers: [\n"
        "    refused(lambda: open('/var/user/x', 'w')), refused(lambda: open('/proc/1/mem', 'r+b')),\n"
        "    refused(lambda: os.listdir('/proc/1/fd')), refused(lambda: call(272, 0x10000000)), refused(lambda: call(101, 16, 1)),\n"
        "    refused(lambda: os.setuid(0)), refused(lambda: os.listdir('/root'))])\n"
    )
    assert await gateway.value({}, custom(running, code)) == ["refused"] * 7
    uids = (
        "loop(lambda event, headers: [os.getuid(), open('/proc/self/status').read().split('Seccomp:')[1].split()[0],\n"
    )
    uids += "    open('/proc/self/limits').read().split('Max open files')[1].split()[0], sorted(os.listdir('/proc/self/fd'))])\n"
    uid, seccomp, files, descriptors = await gateway.value({}, custom(running, SCF + uids, function="g"))
    assert (uid, seccomp, files) == (1000, "2", "1024")
    assert descriptors[:3] == ["0", "1", "2"]
    assert len(descriptors) <= 5  # the listing's own, and the connection


C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <sys/socket.h>
static char text[65536];
static int ask(const char *request) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(getenv("SCF_RUNTIME_API_PORT")))};
    inet_pton(AF_INET, getenv("SCF_RUNTIME_API"), &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0), have = 0, got;
    if (connect(fd, (struct sockaddr *)&to, sizeof to) || write(fd, request, strlen(request)) < 0) exit(9);
    while ((got = read(fd, text + have, sizeof text - 1 - have)) > 0) have += got;
    text[have] = 0;
    close(fd);
    return have;
}
int main(void) {
    static char reply[65536], body[60000];
    ask("POST /runtime/init/ready HTTP/1.0\r\nContent-Length: 1\r\n\r\n ");
    for (;;) {
        ask("GET /runtime/invocation/next HTTP/1.0\r\n\r\n");
        snprintf(body, sizeof body, "{\"c\":%s}", strstr(text, "\r\n\r\n") + 4);
        snprintf(reply, sizeof reply, "POST /runtime/invocation/response HTTP/1.1\r\nConnection: close\r\n"
                 "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
        ask(reply);
        puts("from C");
        fflush(stdout);
    }
}
"""
GO = """package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"
	for {
		got, err := http.Get(base + "next")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		event, _ := io.ReadAll(got.Body)
		got.Body.Close()
		reply := bytes.NewBufferString(`{"go":` + string(event) + "}")
		said, err := http.Post(base+got.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "application/json", reply)
		if err != nil {
			os.Exit(2)
		}
		io.Copy(io.Discard, said.Body)
		said.Body.Close()
	}
}
"""
SHELL = """#!/bin/sh
api="http://$SCF_RUNTIME_API:$SCF_RUNTIME_API_PORT/runtime"
curl -sS -X POST -d ' ' "$api/init/ready"
while true; do
    event=$(curl -sS -D /tmp/head "$api/invocation/next")
    echo "shell has $event"
    curl -sS -X POST -d "{\\"sh\\":$event}" "$api/invocation/response"
done
"""
NODE = """#!/usr/bin/env node
const base = `http://${process.env.AWS_LAMBDA_RUNTIME_API}/2018-06-01/runtime/invocation/`;
(async () => {
  for (;;) {
    const got = await fetch(base + "next");
    const event = await got.json();
    console.log("node has", JSON.stringify(event));
    await fetch(base + got.headers.get("lambda-runtime-aws-request-id") + "/response",
      { method: "POST", body: JSON.stringify({ node: event }) });
  }
})();
"""


def built_c(folder: Path) -> bytes:
    (folder / "main.c").write_text(C)
    if subprocess.run(["gcc", "-static", "-O1", "-o", folder / "bootstrap", folder / "main.c"], check=False).returncode:
        pytest.skip("gcc can't link static programs here: the C library's archive is missing")
    return (folder / "bootstrap").read_bytes()


def built_go(folder: Path) -> bytes:
    (folder / "main.go").write_text(GO)
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=mod",
        "GOTOOLCHAIN": "local",
        "GO111MODULE": "off",
    }
    subprocess.run(["go", "build", "-o", folder / "bootstrap", folder / "main.go"], check=True, env=environment)
    return (folder / "bootstrap").read_bytes()


LANGUAGES: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "c": ("gcc", built_c),
    "go": ("go", built_go),
    "sh": ("curl", lambda _folder: SHELL.encode()),
    "node": ("node", lambda _folder: NODE.encode()),
}


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_bootstrap_in_any_language_runs(running: Running, tmp_path: Path, language: str) -> None:
    tool, made = LANGUAGES[language]
    where = shutil.which(tool)
    if where is None or (
        language in ("sh", "node") and not where.startswith(("/usr/bin/", "/bin/", "/usr/local/bin/"))
    ):
        pytest.skip(f"{tool} is not on this machine, or not where a jail sees it")
    (tmp_path / "build").mkdir()
    spec = custom(running, made(tmp_path / "build"), memory_mib=512, timeout_s=10, init_timeout_s=30)
    gateway = await running.gateway()
    for number in range(3):
        assert await gateway.value({"n": number}, spec) == {language: {"n": number}}
    assert running.agent.host.facts()["workers"] == 1


@pytest.mark.parametrize("mode", ["full", "userns", "bare"])
async def test_every_mode_of_the_jail_runs_a_bootstrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    if mode == "full" and os.geteuid() != 0:
        pytest.skip("the full jail needs root")
    monkeypatch.setattr("sandbox.jail._MODES", (mode,))
    tmp_path.chmod(0o755)
    driver = JailDriver(JailConfig(tmp_path / "nodes", f"{os.getpid():08x}", allow_weaker=True))
    await driver.start()
    node, code = await driver.create_node("t"), tmp_path / "code"
    code.mkdir()
    python = os.path.realpath(sys.executable)
    inside = python if mode == "bare" else "/usr/bin/env python3"
    reaches = "lambda event, headers: [event, ours.sock.getpeername()[0], connects(event)]"
    (code / "bootstrap").write_text(SCF.replace("/usr/bin/env python3", inside) + CONNECTS + f"loop({reaches})\n")
    (code / "bootstrap").chmod(0o555)
    wanted = dataclasses.replace(jail_spec(), runtime="CustomRuntime")
    assert await node.check_code(wanted, code) == ()
    with socket.create_server(("127.0.0.1", 0)) as hosts:
        talk = await started(node, code, wanted)
        for _ in range(2):
            assert await talk.run(hosts.getsockname()[1]) == [hosts.getsockname()[1], "127.0.0.1", "refused"]
    talk.worker.close()
    await driver.close()


CONNECTS = """
import socket
def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return "connected"
    except OSError:
        return "refused"
"""


HOSTILE = (
    SCF
    + """
import socket

def raw(data, family=socket.AF_INET, host="127.0.0.1"):
    with socket.socket(family) as sock:
        sock.settimeout(5)
        sock.connect((host, int(os.environ["SCF_RUNTIME_API_PORT"])))
        try:
            sock.sendall(data)
            return sock.recv(65536).split(b" ")[1].decode()
        except ConnectionError:
            return "closed"

def handler(event, headers):
    again = b"GET /runtime/invocation/next HTTP/1.1\\r\\n\\r\\n"
    many = [socket.create_connection(("127.0.0.1", int(os.environ["SCF_RUNTIME_API_PORT"]))) for _ in range(80)]
    for sock in many:
        sock.close()
    return [
        raw(b"\\0" * 100_000),
        raw(b"GET / HTTP/9\\r\\n\\r\\n"),
        raw(b"POST /nowhere HTTP/1.1\\r\\nContent-Length: 3\\r\\n\\r\\nabc"),
        raw(b"POST /runtime/invocation/response HTTP/1.1\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\nzz\\r\\n"),
        raw(again + again),
        raw(again, socket.AF_INET6, "::ffff:127.0.0.1"),
    ]

loop(handler)
"""
)


async def test_whatever_it_sends_its_server_goes_on(running: Running) -> None:
    gateway = await running.gateway()
    spec = custom(running, HOSTILE)
    for _ in range(2):
        said = await gateway.value({}, spec)
        assert said[0] in ("431", "closed")  # it is answered and closed while the rest is still on its way
        assert said[1:] == ["400", "404", "400", "200", "200"]
    assert running.agent.host.facts()["workers"] == 1


async def test_neither_a_huge_log_nor_closed_output_stops_it(running: Running) -> None:
    gateway = await running.gateway()
    code = SCF + (
        "def handler(event, headers):\n"
        "    sys.stdout.write('z' * event + '\\n' * 100_000)\n"
        "    sys.stdout.flush()\n"
        "    if not event:\n"
        "        os.close(1), os.close(2)\n"
        "    return event\n"
        "loop(handler)\n"
    )
    spec = custom(running, code)
    assert [await gateway.value(size, spec) for size in (20_000_000, 1000)] == [20_000_000, 1000]
    assert [await gateway.value(0, spec), running.agent.host.facts()["workers"]] == [0, 1]
