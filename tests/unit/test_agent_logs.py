"""Logs of functions: the hand-made encoding equals Avro's, the frame is SCF's, nothing grows without bound."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import mono_s, unix_ms
from sandbox.agent import logs
from sandbox.agent.journal import Journal
from sandbox.agent.logencoding import STREAMS, BlockEncoder, Entry, end_line, report_line, start_line
from sandbox.agent.logs import FunctionLog, LogShipper
from sandbox.agent.recentlogs import RecentBlocks, read_recent
from schemas import avro, topics
from schemas.errors import BrokerUnavailable
from schemas.limits import LOG_INVOCATION_BYTES, LOG_TAIL_BYTES
from schemas.records import LogBlock, LogLine

REQUEST = UUID("f03dc946-0000-4000-8000-000000000001")

ids = st.binary(min_size=16, max_size=16)
seconds = st.integers(0, 2**33).map(float)
entries = st.lists(
    st.one_of(
        st.tuples(st.just(0), ids, seconds, seconds, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
        st.tuples(st.just(1), ids, seconds, st.integers(0, 2), st.text(max_size=300).map(str.encode)),
    ),
    max_size=5,
)


def as_lines(entry: Entry) -> list[LogLine]:
    request_id = str(UUID(bytes=entry[1]))
    begin = int(entry[2] * 1000)
    if entry[0] == 1:
        return [LogLine(request_id, begin, STREAMS[entry[3]], entry[4].decode())]
    end = int(entry[3] * 1000)
    report = report_line(request_id, duration_us=entry[4], memory_mib=128, peak_kib=entry[5])
    return [
        LogLine(request_id, begin, "platform", start_line(request_id)),
        LogLine(request_id, end, "platform", end_line(request_id)),
        LogLine(request_id, end, "platform", report),
    ]


@given(entries)
def test_blocks_encoded_by_hand_equal_those_of_the_general_encoder(given_entries: list[Entry]) -> None:
    lines = tuple(line for entry in given_entries for line in as_lines(entry))
    made = BlockEncoder("1/default/echo", "$LATEST", "agent-1", 128).encode(given_entries, lambda s: int(s * 1000))
    assert made == avro.encode(LogBlock("1/default/echo", "$LATEST", "agent-1", lines))


@pytest.mark.parametrize(
    ("duration_us", "peak_kib", "said"),
    [
        (0, 0, "Duration: 0 ms Billed Duration: 1 ms Memory Size: 128 MB Max Memory Used: 0 MB"),
        (499, 1, "Duration: 0 ms Billed Duration: 1 ms Memory Size: 128 MB Max Memory Used: 1 MB"),
        (1_000, 1024, "Duration: 1 ms Billed Duration: 1 ms Memory Size: 128 MB Max Memory Used: 1 MB"),
        (50_001, 20_000, "Duration: 50 ms Billed Duration: 51 ms Memory Size: 128 MB Max Memory Used: 20 MB"),
    ],
)
def test_the_report_bills_started_milliseconds(duration_us: int, peak_kib: int, said: str) -> None:
    assert report_line("R", duration_us=duration_us, memory_mib=128, peak_kib=peak_kib) == f"REPORT RequestId: R {said}"


class Sink:
    def __init__(self) -> None:
        self.blocks: list[LogBlock] = []
        self.full = False
        self.gate = asyncio.Event()
        self.gate.set()

    def send_nowait(self, topic: str, *, key: bytes | None, value: bytes | None) -> bool:
        assert topic == topics.LOGS
        assert value is not None
        if not self.full:
            self.blocks.append(avro.decode(LogBlock, value))
            assert key == self.blocks[-1].key.encode()
        return not self.full

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, timeout_s: float) -> None:
        await self.gate.wait()
        if not self.send_nowait(topic, key=key, value=value):
            raise BrokerUnavailable("away")

    @property
    def lines(self) -> list[LogLine]:
        return [line for block in self.blocks for line in block.lines]


def function_log(sink: Sink) -> tuple[LogShipper, FunctionLog]:
    shipper = LogShipper("agent-1", sink)
    return shipper, FunctionLog(shipper, "1/default/f", "$LATEST", 128)


async def test_an_invocation_that_says_nothing_is_shipped_within_the_flush_time_as_three_lines() -> None:
    sink = Sink()
    _, function = function_log(sink)
    now = mono_s()
    function.whole(REQUEST.bytes, now, now, 1_500, 9_000)
    async with asyncio.timeout(2):
        while not sink.blocks:
            await asyncio.sleep(0.005)
    assert [line.line.split()[0] for line in sink.lines] == ["START", "END", "REPORT"]
    assert all(abs(line.unix_ms - unix_ms()) < 2_000 for line in sink.lines)
    assert {line.request_id for line in sink.lines} == {str(REQUEST)}


async def test_lines_stand_between_start_and_end_with_their_stream() -> None:
    sink = Sink()
    shipper, function = function_log(sink)
    call = function.begin(REQUEST.bytes, 0.0)
    function.lines(call, logs.STDOUT, b"one\ntwo\n", 0.0)
    function.lines(call, logs.STDERR, "drei ü".encode(), 0.0)
    function.end(call, 0.0, duration_us=1, peak_kib=1, error='Result: {"errorCode":-1}')
    shipper.flush()
    assert [(line.stream, line.line.split(" RequestId")[0]) for line in sink.lines] == [
        ("platform", "START"),
        ("stdout", "one"),
        ("stdout", "two"),
        ("stderr", "drei ü"),
        ("platform", "ERROR"),
        ("platform", "END"),
        ("platform", "REPORT"),
    ]


async def test_a_flood_is_cut_at_the_limit_and_the_rest_counted() -> None:
    sink = Sink()
    shipper, function = function_log(sink)
    call = function.begin(REQUEST.bytes, 0.0, want_tail=True)
    for _ in range(40):
        function.lines(call, logs.STDOUT, b"x" * 99_999, 0.0)
    tail = function.end(call, 0.0, duration_us=1, peak_kib=1)
    shipper.flush()
    said = [line.line for line in sink.lines if line.stream == "stdout"]
    dropped = [line.line for line in sink.lines if line.line.startswith("…")]
    kept = sum(map(len, said))
    assert LOG_INVOCATION_BYTES * 0.9 < kept <= LOG_INVOCATION_BYTES
    assert dropped == [f"… {40 * 99_999 - kept} bytes dropped"]
    assert max(map(len, said)) <= logs.LINE_BYTES
    assert len(tail) <= LOG_TAIL_BYTES
    assert b"REPORT RequestId" in tail
    assert max(len(avro.encode(block)) for block in sink.blocks) < 200_000


async def test_the_tail_of_a_short_log_is_the_whole_log() -> None:
    _, function = function_log(Sink())
    call = function.begin(REQUEST.bytes, 0.0, want_tail=True)
    function.lines(call, logs.STDOUT, b"hello", 0.0)
    tail = function.end(call, 0.0, duration_us=1, peak_kib=1).decode().splitlines()
    assert [line.split()[0] for line in tail] == ["START", "hello", "END", "REPORT"]


@given(text=st.binary(max_size=200))
def test_any_bytes_become_readable_lines(text: bytes) -> None:
    async def run() -> None:
        sink = Sink()
        shipper, function = function_log(sink)
        call = function.begin(REQUEST.bytes, 0.0)
        function.lines(call, logs.STDOUT, text, 0.0)
        shipper.flush()
        said = "\n".join(line.line for line in sink.lines[1:])
        assert said == text.decode(errors="replace").removesuffix("\n")

    asyncio.run(run())


async def test_lines_that_kafka_does_not_take_are_counted() -> None:
    sink = Sink()
    sink.full = True
    shipper, function = function_log(sink)
    for _ in range(1_000):
        function.whole(REQUEST.bytes, 0.0, 0.0, 1, 1)
    shipper.flush()
    assert shipper.lost_lines == 1_000
    assert function.entries == []


def journaled(folder: Path, sink: Sink) -> tuple[LogShipper, FunctionLog]:
    shipper = LogShipper("agent-1", sink, journal=Journal(folder))
    return shipper, FunctionLog(shipper, "1/default/f", "$LATEST", 128)


def unshipped(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.unshipped"))


async def test_lines_of_a_killed_agent_are_sent_by_its_successor_with_their_own_times(tmp_path: Path) -> None:
    killed, after = Sink(), Sink()
    killed.gate.clear()
    shipper, function = journaled(tmp_path, killed)
    assert shipper.recover() == 0
    began_ms, now = unix_ms(), mono_s()
    for _ in range(200):  # more than a block: some are shipped and not acknowledged, some still collected
        function.whole(REQUEST.bytes, now, now, 1, 1)
    call = function.begin(REQUEST.bytes, now)
    function.lines(call, logs.STDOUT, b"last words", now)
    await asyncio.sleep(0)
    assert killed.blocks == []
    again, _ = journaled(tmp_path, after)
    assert again.recover() > 0
    await again.drain(5)
    assert [line.line for line in after.lines][-2:] == [f"START RequestId: {REQUEST}", "last words"]
    assert len(after.lines) == 602
    assert all(abs(line.unix_ms - began_ms) < 2_000 for line in after.lines)
    assert unshipped(tmp_path) == []
    assert journaled(tmp_path, Sink())[0].recover() == 0
    killed.gate.set()
    await shipper.drain(5)


async def test_a_successor_that_is_killed_too_before_kafka_answered_leaves_the_lines_to_the_next(
    tmp_path: Path,
) -> None:
    stuck, last = Sink(), Sink()
    stuck.gate.clear()
    shipper, function = journaled(tmp_path, stuck)
    shipper.recover()
    function.whole(REQUEST.bytes, 0.0, 0.0, 1, 1)
    await asyncio.sleep(0)
    second, _ = journaled(tmp_path, stuck)
    assert second.recover() == 1
    third, _ = journaled(tmp_path, last)
    assert third.recover() == 1
    await third.drain(5)
    assert len(last.lines) == 3
    stuck.gate.set()
    await second.drain(5)


async def test_what_kafka_has_leaves_the_journal(tmp_path: Path) -> None:
    sink = Sink()
    shipper, function = journaled(tmp_path, sink)
    shipper.recover()
    for _ in range(10):
        function.whole(REQUEST.bytes, 0.0, 0.0, 1, 1)
        await asyncio.sleep(0)
        assert unshipped(tmp_path)
        shipper.flush()
        await shipper.drain(5)
        assert unshipped(tmp_path) == []
    assert len(sink.lines) == 30


async def test_a_journal_cut_off_by_the_kill_gives_what_is_whole(tmp_path: Path) -> None:
    sink = Sink()
    shipper, function = journaled(tmp_path, sink)
    shipper.recover()
    for _ in range(2):
        function.whole(REQUEST.bytes, 0.0, 0.0, 1, 1)
        await asyncio.sleep(0)
    (path,) = unshipped(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    again, _ = journaled(tmp_path, sink)
    assert again.recover() == 1
    await again.drain(5)
    assert len(sink.lines) == 3


def block(number: int) -> LogBlock:
    return LogBlock("1/default/f", "$LATEST", "a", (LogLine("r", number, "stdout", "x" * 1000),))


def test_recent_blocks_keep_the_newest_in_order_within_their_bound_also_over_restarts(tmp_path: Path) -> None:
    for start in (0, 200):
        recent = RecentBlocks(tmp_path, limit_bytes=80_000, files=8)
        recent.start()
        for number in range(start, start + 200):
            while not recent.append(avro.encode(block(number))):
                pass
        recent.close()
    numbers = [b.lines[0].unix_ms for b in read_recent(tmp_path)]
    assert numbers == list(range(numbers[0], 400))
    assert 40 <= len(numbers) <= 100
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 100_000


def test_a_block_cut_off_by_a_kill_ends_its_file_only(tmp_path: Path) -> None:
    for _ in range(2):
        recent = RecentBlocks(tmp_path)
        recent.start()
        recent.append(avro.encode(block(1)))
        recent.append(avro.encode(block(2)))
        recent.close()
        newest = max(tmp_path.iterdir())
        newest.write_bytes(newest.read_bytes()[:-5])
    assert [b.lines[0].unix_ms for b in read_recent(tmp_path)] == [1, 1]
