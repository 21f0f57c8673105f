"""Layers on the real jail: what a function sees of them, which of two wins, what is shared, and why a bad one is refused."""

from __future__ import annotations

import dataclasses
import io
import os
import stat
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.jail import JailConfig, JailDriver
from schemas.frames import Spec
from schemas.records import FunctionConfig, LayerRef, StepCommand
from tests.agent_client import Gateway, Running, running_agent
from tests.jail_client import Talk, package
from tests.jail_client import spec as jail_spec
from tests.packages import zipped

pytestmark = [pytest.mark.jail, pytest.mark.timeout(120)]

EVAL = """
import os, subprocess, sys

def attempt(what):
    try:
        return eval(what, globals())
    except Exception as exc:
        return "refused: " + repr(exc)

def main_handler(event, context):
    return [attempt(what) for what in event]
"""
SAYS = "def main_handler(event, context):\n    import shared\n    return shared.WORD\n"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_agent(tmp_path) as made:
        yield made


@pytest.fixture
async def gateway(running: Running) -> Gateway:
    return await running.gateway()


def layer(running: Running, **files: str) -> str:
    """A layer's hash; `a__b` is the file `a/b.py`."""
    return running.store.add_zip(zipped(*((f"{n.replace('__', '/')}.py", text.encode()) for n, text in files.items())))


def word(said: str) -> str:
    return f"WORD = {said!r}\n"


def with_layers(spec: Spec, *layers: str, function: str = "f") -> Spec:
    return dataclasses.replace(spec, layers=layers, function=function)


async def test_of_two_layers_with_the_same_module_the_later_one_wins(running: Running, gateway: Gateway) -> None:
    one, two = layer(running, shared=word("one"), only="A = 1\n"), layer(running, shared=word("two"))
    spec = running.spec("import only\n" + SAYS)
    assert await gateway.value(0, with_layers(spec, one, two)) == "two"
    assert await gateway.value(0, with_layers(spec, two, one)) == "one"
    failed = await gateway.call(0, with_layers(spec, two))
    assert (failed.status, b"only" in failed.body) == (443, True)


async def test_the_functions_own_module_wins_over_its_layers(running: Running, gateway: Gateway) -> None:
    spec = running.spec(EVAL)
    both = zipped(("index.py", SAYS.encode()), ("shared.py", word("own").encode()))
    spec = dataclasses.replace(spec, code_sha256=running.store.add_zip(both))
    assert await gateway.value(0, with_layers(spec, layer(running, shared=word("layer")))) == "own"


async def test_modules_are_found_in_the_layers_top_and_then_in_its_folder_python(
    running: Running, gateway: Gateway
) -> None:
    both = layer(running, shared=word("top"), python__shared=word("folder"), python__deep="WORD = 'deep'\n")
    spec = with_layers(running.spec(EVAL), both)
    asked = [
        "__import__('shared').WORD",
        "__import__('deep').WORD",
        "sys.path[:3]",
        "os.environ['PYTHONPATH']",
        "subprocess.check_output([sys.executable, '-c', 'import deep; print(deep.__file__)'], text=True).strip()",
    ]
    paths = ["/var/user", "/opt", "/opt/python"]
    assert await gateway.value(asked, spec) == ["top", "deep", paths, ":".join(paths), "/opt/python/deep.py"]


async def test_layers_are_read_only_and_nothing_else_is_in_opt(running: Running, gateway: Gateway) -> None:
    one, two = layer(running, shared=word("one")), layer(running, more__b="")
    spec = with_layers(running.spec(EVAL), one, two)
    seen, *tries = await gateway.value(
        [
            "sorted(os.listdir('/opt'))",
            "open('/opt/shared.py', 'a').write('x')",
            "open('/opt/new.py', 'w')",
            "os.remove('/opt/shared.py')",
            "os.mkdir('/opt/more/deep')",
            "os.chmod('/opt/shared.py', 0o777)",
            "os.rename('/opt/more', '/opt/less')",
        ],
        spec,
    )
    assert seen == ["more", "shared.py"]
    for said in tries:
        assert str(said).startswith("refused: "), said
    assert "Read-only" in tries[1]
    cached = running.folder / "agent" / "code" / one / "shared.py"
    assert cached.read_text() == word("one")


async def test_without_layers_opt_is_empty_and_no_other_package_is_seen(running: Running, gateway: Gateway) -> None:
    spec = running.spec(EVAL)
    await gateway.value(["1"], with_layers(spec, layer(running, shared=word("one")), function="other"))
    asked = ["os.listdir('/opt')", "os.listdir('/var/code')", "sys.path[0]", "os.environ['PYTHONPATH']"]
    assert await gateway.value(asked, spec) == [[], [], "/var/user", "/var/user"]


async def test_two_functions_with_the_same_layers_share_the_unpacked_files(running: Running, gateway: Gateway) -> None:
    one, two = layer(running, shared=word("one")), layer(running, more="")
    where = "(os.stat('/opt/shared.py').st_ino, os.stat('/opt/shared.py').st_dev, os.stat('/opt').st_ino)"
    first = await gateway.value([where], with_layers(running.spec(EVAL), one, two, function="a"))
    second = await gateway.value([where], with_layers(running.spec(EVAL + "#\n"), one, two, function="b"))
    assert first == second
    [node] = (running.folder / "jail").iterdir()
    assert len([tree for tree in (node / "code").iterdir() if tree.name.startswith("layers-")]) == 1
    cached = running.folder / "agent" / "code" / one / "shared.py"
    assert first[0][0] == cached.stat().st_ino


async def test_another_tenants_worker_sees_only_its_own_layers(running: Running, gateway: Gateway) -> None:
    mine, theirs = layer(running, mine=word("mine")), layer(running, theirs=word("theirs"))
    spec = with_layers(running.spec(EVAL), mine)
    other = dataclasses.replace(with_layers(running.spec(EVAL), theirs), appid="1250000001")
    assert await gateway.value(["os.listdir('/opt')"], spec) == [["mine.py"]]
    assert await gateway.value(["os.listdir('/opt')"], other) == [["theirs.py"]]


async def test_a_start_without_a_layers_content_is_the_platforms_failure_and_a_damaged_one_the_codes(
    running: Running, gateway: Gateway
) -> None:
    spec = running.spec(SAYS)
    missing = await gateway.call(0, with_layers(spec, layer(running, shared=word("x")), "ab" * 32))
    assert (missing.status, b"no worker can be started" in missing.body) == (500, True)
    bad = await gateway.call(0, with_layers(spec, running.store.add_zip(zipped(("../x", b"")))))
    assert (bad.status, b"leads out" in bad.body) == (443, True)
    assert running.agent.host.facts()["workers"] == 0


def step(code: str, *layers: str, operation: str = "check", handler: str = "index.main_handler") -> StepCommand:
    refs = tuple(LayerRef(f"l{at}", 1, sha256) for at, sha256 in enumerate(layers))
    config = FunctionConfig("$LATEST", code, 1, handler, "Python3.10", 128, 3, 65, {}, refs)
    return StepCommand("s", "g", "code", operation, "1250000000/default/f", 0, config)


async def test_the_code_module_sees_the_layers_and_names_one_that_can_not_be_used(running: Running) -> None:
    store, handle = running.store, running.agent.modules["code"]
    code, good = store.add("import shared\n" + SAYS), layer(running, shared=word("x"), entry=SAYS)
    bad = store.add_zip(zipped(("../x", b"")))
    assert await handle(step(code, good)) == ()
    assert await handle(step(code, good, handler="entry.main_handler")) == ()
    reasons = [
        await handle(step(code, good, "ab" * 32, operation="store")),
        await handle(step(code, good, "ab" * 32)),
        await handle(step(code, bad)),
        await handle(step(code, handler="entry.main_handler")),
    ]
    assert [[reason.code for reason in some] for some in reasons] == [
        ["ResourceNotFound.LayerVersion"],
        ["ResourceNotFound.LayerVersion"],
        ["InvalidParameterValue.Layers"],
        ["InvalidParameterValue.Handler"],
    ]
    assert "version 1 of layer 'l1'" in reasons[0][0].message
    prepare = running.agent.modules["compute"]
    assert await prepare(dataclasses.replace(step(code, good), operation="prepare")) == ()
    [refused] = await prepare(dataclasses.replace(step(code, "ab" * 32), operation="prepare"))
    assert refused.code == "ResourceNotFound.LayerVersion"


async def test_new_layers_take_over_as_new_code_does(running: Running, gateway: Gateway) -> None:
    spec = running.spec(SAYS)
    for said in ("one", "two"):
        assert await gateway.value(0, with_layers(spec, layer(running, shared=word(said)))) == said


async def test_a_program_of_a_layer_can_be_run(running: Running, gateway: Gateway) -> None:
    data = executable("bin/tool", "#!/bin/sh\necho from the layer\n")
    spec = with_layers(running.spec(EVAL), running.store.add_zip(data))
    assert await gateway.value(["subprocess.check_output(['tool'], text=True)"], spec) == ["from the layer\n"]


def executable(name: str, text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(info, text)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["full", "userns", "bare"])
async def test_every_mode_of_the_jail_has_layers_that_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    if mode == "full" and os.geteuid() != 0:
        pytest.skip("the full jail needs root")
    monkeypatch.setattr("sandbox.jail._MODES", (mode,))
    tmp_path.chmod(0o755)
    driver = JailDriver(JailConfig(tmp_path / "nodes", f"{os.getpid():08x}", allow_weaker=True))
    await driver.start()
    node, code = await driver.create_node("t"), package(tmp_path / "code", EVAL)
    layers = [package(tmp_path / name, word(name)) for name in ("one", "two")]
    for folder in layers:
        (folder / "index.py").rename(folder / "shared.py")
    wanted = dataclasses.replace(jail_spec(), layers=("1" * 64, "2" * 64))
    in_layer = dataclasses.replace(wanted, handler="shared.main_handler")
    assert await node.check_code(wanted, code, layers) == ()
    [reason] = await node.check_code(in_layer, code, layers)
    assert "shared.py has no function main_handler" in reason.message
    talk = Talk(await node.start_worker(wanted, code, layers, environment={}))
    assert await talk.load() == {"ok": True}
    found, wrote = await talk.run(["__import__('shared').WORD", "open(__import__('shared').__file__, 'w')"])
    assert (found, wrote.startswith("refused: ")) == ("two", True)
    talk.worker.close()
    await driver.close()
    assert [(folder / "shared.py").read_text() for folder in layers] == [word("one"), word("two")]
