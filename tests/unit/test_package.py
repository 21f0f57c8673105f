"""What a code package may hold, and what is refused with which words."""

from __future__ import annotations

import contextlib
import io
import random
import stat
import struct
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import package
from schemas.errors import BadPackage
from schemas.package import PackageFacts, check_zip, read_files
from tests.packages import zipped


def with_mode(name: str, mode: int, content: bytes = b"x") -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(info, content)
    return out.getvalue()


def patched(data: bytes, *, central: dict[int, bytes]) -> bytes:
    """The zip with bytes of its first central directory entry replaced."""
    at = data.index(b"PK\1\2")
    out = bytearray(data)
    for offset, value in central.items():
        out[at + offset : at + offset + len(value)] = value
    return bytes(out)


def contents(data: bytes) -> dict[str, bytes]:
    return {entry.path: b"".join(chunks) for entry, chunks in read_files(data, check_zip(data))}


def test_an_honest_zip_gives_its_files_sizes_and_executable_bits() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("lib")
        archive.writestr("index.py", b"print(1)\n" * 100)
        archive.writestr("./lib/über.py", b"")
        info = zipfile.ZipInfo("bootstrap")
        info.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(info, b"#!/bin/sh\n")
    facts = check_zip(out.getvalue())
    assert {(e.path, e.is_dir, e.size, e.executable) for e in facts.entries} == {
        ("lib", True, 0, False),
        ("index.py", False, 900, False),
        ("lib/über.py", False, 0, False),
        ("bootstrap", False, 10, True),
    }
    assert (facts.unpacked_bytes, facts.zip_bytes) == (910, len(out.getvalue()))
    assert contents(out.getvalue())["index.py"] == b"print(1)\n" * 100


def test_a_zip_written_to_a_stream_with_data_descriptors_is_read() -> None:
    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += bytes(data)
            return len(data)

    stream = Stream()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.py", b"x" * 1000)
        with archive.open("big.py", "w", force_zip64=True) as big:
            big.write(b"y" * 1000)
    assert contents(stream.data) == {"index.py": b"x" * 1000, "big.py": b"y" * 1000}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.py", "leads out of the package"),
        ("a/../../evil.py", "leads out of the package"),
        ("a/..", "leads out of the package"),
        ("/etc/passwd", "absolute path"),
        ("C:/evil.py", "absolute path"),
        ("..\\evil.py", "backslash"),
        ("a\nb.py", "control characters"),
        ("a\x1b[31m.py", "control characters"),
        ("x" * 401, "longer than 400"),
        ("ü" * 128, "longer than 255 bytes"),
        (".", "no name"),
    ],
)
def test_a_name_that_is_not_a_plain_relative_path_is_refused(name: str, words: str) -> None:
    with pytest.raises(BadPackage, match=words):
        check_zip(zipped(("index.py", b""), (name, b"x")))


def test_a_name_cut_by_a_null_byte_is_refused() -> None:
    data = zipped(("index.pyX../x", b"x")).replace(b"index.pyX", b"index.py\0")
    with pytest.raises(BadPackage, match="control characters"):
        check_zip(data)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (stat.S_IFLNK | 0o777, "is a link"),
        (stat.S_IFCHR | 0o666, "no plain file"),
        (stat.S_IFBLK | 0o666, "no plain file"),
        (stat.S_IFIFO | 0o666, "no plain file"),
        (stat.S_IFSOCK | 0o666, "no plain file"),
        (stat.S_IFDIR | 0o755, "folder with content"),
    ],
)
def test_links_devices_pipes_and_folders_with_content_are_refused(mode: int, words: str) -> None:
    with pytest.raises(BadPackage, match=words):
        check_zip(with_mode("thing", mode, b"/etc/passwd"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a.py", "a.py"), "twice"),
        (("a.py", "./a.py"), "twice"),
        (("b//a.py", "b/a.py"), "twice"),
        (("a", "a/b.py"), "file and a folder"),
        (("a/b.py", "a"), "file and a folder"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_for_one_place_are_refused(names: tuple[str, str], words: str) -> None:
    with pytest.raises(BadPackage, match=words):
        check_zip(zipped(*((name, b"x") for name in names)))


def test_a_declared_bomb_is_refused_before_it_is_unpacked() -> None:
    data = zipped(*((f"{i}.bin", bytes(30 * 1024 * 1024)) for i in range(18)))
    assert len(data) < 1_000_000
    with pytest.raises(BadPackage, match="unpacks to"):
        check_zip(data)


def test_a_bomb_that_declares_little_ends_at_what_it_declared() -> None:
    data = zipped(("index.py", bytes(50 * 1024 * 1024)))
    lying = patched(data, central={24: struct.pack("<L", 100)})
    facts = check_zip(lying)
    assert facts.unpacked_bytes == 100
    files = read_files(lying, facts)
    _, chunks = next(files)
    seen: list[int] = []
    with pytest.raises(BadPackage, match="damaged: Bad CRC"):
        seen.extend(len(chunk) for chunk in chunks)
    assert sum(seen) <= 100


def test_entries_that_share_bytes_are_refused() -> None:
    data = bytearray(zipped(("a.py", b"x" * 100), ("b.py", b"y" * 100)))
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    data[second + 42 : second + 46] = struct.pack("<L", 10)
    with pytest.raises(BadPackage, match="lies over another"):
        check_zip(bytes(data))


def test_a_local_header_with_another_name_is_refused() -> None:
    data = zipped(("index.py", b"x")).replace(b"index.py", b"other.py", 1)
    with pytest.raises(BadPackage, match="another name in its own header"):
        check_zip(data)


@pytest.mark.parametrize("flag", [0x1, 0x41])
def test_encrypted_entries_are_refused(flag: int) -> None:
    with pytest.raises(BadPackage, match="encrypted"):
        check_zip(patched(zipped(("index.py", b"x")), central={8: struct.pack("<H", flag)}))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_other_than_deflate_is_refused(method: int) -> None:
    with pytest.raises(BadPackage, match="use deflate"):
        check_zip(zipped(("index.py", b"x" * 100), compression=method))


def test_a_damaged_file_is_found_while_it_is_read() -> None:
    data = bytearray(zipped(("index.py", random.Random(1).randbytes(10_000))))
    data[5_000] ^= 0xFF
    with pytest.raises(BadPackage, match=r"index\.py.*damaged"):
        contents(bytes(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a zip"),
        (b"def main_handler(e, c): pass\n", "not a zip"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "not a zip"),
        (zipped(("index.py", b"x"))[:-1], "not a zip"),
        (zipped(("index.py", b"x"))[:40], "not a zip"),
        (zipped(("index.py", b"x")) + b"trailing", "after the end"),
        (zipped(), "no file"),
        (zipped(("only/", b"")), "no file"),
    ],
    # Not the bytes: zips hold the time, and pytest-xdist wants the same names in every process.
    ids=["nothing", "python", "gzip", "cut by one", "cut short", "trailing", "no entry", "only a folder"],
)
def test_what_is_no_whole_zip_or_is_empty_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadPackage, match=words):
        check_zip(data)


def test_too_many_entries_and_too_large_a_zip_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "PACKAGE_ENTRIES", 10)
    with pytest.raises(BadPackage, match="11 entries"):
        check_zip(zipped(*((f"{i}.py", b"") for i in range(11))))
    monkeypatch.setattr(package, "PACKAGE_ZIP_BYTES", 100)
    with pytest.raises(BadPackage, match="the limit is 100"):
        check_zip(zipped(("index.py", bytes(range(256)))))


def test_a_directory_too_large_to_parse_is_refused_by_its_end_record_also_in_zip64() -> None:
    data = zipped(("index.py", b"x"))
    end = data.index(b"PK\5\6")
    huge = data[:end] + data[end:][:12] + struct.pack("<L", 200_000_000) + data[end:][16:]
    with pytest.raises(BadPackage, match="entries"):
        check_zip(huge)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 200_000_000, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    with pytest.raises(BadPackage, match="entries"):
        check_zip(data[:end] + record + locator + data[end:])


def only_bad_package(call: Callable[[], object]) -> None:
    with contextlib.suppress(BadPackage):
        call()


@given(garbage=st.binary(max_size=300))
def test_garbage_raises_nothing_but_bad_package(garbage: bytes) -> None:
    only_bad_package(lambda: check_zip(garbage))


VALID = zipped(("index.py", b"x" * 50), ("lib/a.py", b"y" * 50), ("lib/é.py", b""))


@given(changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_zip_with_changed_bytes_reads_within_its_declaration_or_raises_bad_package(
    changes: list[tuple[int, int]],
) -> None:
    data = bytearray(VALID)
    for at, value in changes:
        data[at] = value

    def read() -> PackageFacts:
        facts = check_zip(bytes(data))
        for entry, chunks in read_files(bytes(data), facts):
            assert not entry.path.startswith("/")
            assert ".." not in entry.path.split("/")
            assert sum(map(len, chunks)) == entry.size
        return facts

    only_bad_package(read)
