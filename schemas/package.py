"""Rules for code packages: what a zip may hold. Pure: bytes in, facts or `BadPackage` out.

A package is refused when any entry could land outside its folder, is no plain file or folder, hides another, is encrypted or
compressed by other means than deflate, or when it is larger than the limits, declared or real. Names are read from the central
directory and compared with each local header, so that every reader of the zip sees the same files.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from schemas.errors import BadPackage
from schemas.limits import PACKAGE_ENTRIES, PACKAGE_PATH_CHARS, PACKAGE_UNPACKED_BYTES, PACKAGE_ZIP_BYTES

CODE_BUCKET: Final = "penstock-code"

_END: Final = struct.Struct("<4s4H2LH")
_END_MAGIC: Final = b"PK\5\6"
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64_MAGIC: Final = b"PK\6\7"
_LOCATOR64_BYTES: Final = 20
_LOCAL: Final = struct.Struct("<4s5HLLLHH")
_LOCAL_MAGIC: Final = b"PK\3\4"
_DIRECTORY_LIMIT: Final = PACKAGE_ENTRIES * 512  # before it is parsed; far above what honest entries need
_SEGMENT_BYTES: Final = 255
_CHUNK: Final = 256 * 1024
_DRIVE_CHARS: Final = 2
_DAMAGE: Final = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,  # UnicodeDecodeError and dates that do not exist among them
    NotImplementedError,
    RuntimeError,
    OverflowError,
    IndexError,
    OSError,  # BytesIO.seek to a negative place
)
"""What zipfile raises on damaged bytes."""


@dataclass(frozen=True, slots=True)
class PackageEntry:
    """One file or folder. `path` is relative and normal (`a/b.py`); `name` is what the zip calls it."""

    path: str
    name: str
    is_dir: bool
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """What a package declares. Sizes in bytes; `unpacked_bytes` is the sum over the files."""

    zip_bytes: int
    unpacked_bytes: int
    entries: tuple[PackageEntry, ...]

    @property
    def files(self) -> frozenset[str]:
        """Paths of the files."""
        return frozenset(e.path for e in self.entries if not e.is_dir)


def package_object(sha256: str) -> str:
    """Name of a package in the code bucket, from the hex digest of its bytes."""
    return f"sha256/{sha256}.zip"


def check_zip(data: bytes) -> PackageFacts:
    """Read a package's directory and apply every rule that needs no decompression.

    Raises:
        BadPackage: with a message that names the entry and says what to do.
    """
    if len(data) > PACKAGE_ZIP_BYTES:
        raise BadPackage(f"the package has {len(data):,} bytes; the limit is {PACKAGE_ZIP_BYTES:,}: make it smaller")
    _check_end(data)
    with _opened(data) as archive:
        infos = archive.infolist()
        if len(infos) > PACKAGE_ENTRIES:
            raise BadPackage(f"the package has {len(infos):,} entries; the limit is {PACKAGE_ENTRIES:,}")
        entries = tuple(entry for info in infos if (entry := _entry(info)) is not None)
        _check_layout(data, infos, archive.start_dir)
    total = sum(e.size for e in entries)
    if total > PACKAGE_UNPACKED_BYTES:
        raise BadPackage(f"the package unpacks to {total:,} bytes; the limit is {PACKAGE_UNPACKED_BYTES:,}")
    _check_tree(entries)
    if not any(not e.is_dir for e in entries):
        raise BadPackage("the package holds no file")
    return PackageFacts(len(data), total, entries)


def read_files(data: bytes, facts: PackageFacts) -> Iterator[tuple[PackageEntry, Iterator[bytes]]]:
    """Every file of a checked package with its bytes in chunks, which must be used up in turn.

    Raises:
        BadPackage: while iterating, when an entry is damaged or holds another number of bytes than it declares.
    """
    with _opened(data) as archive:
        by_name = {info.orig_filename: info for info in archive.infolist()}
        for entry in facts.entries:
            if not entry.is_dir:
                yield entry, _chunks(archive, by_name[entry.name], entry)


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, entry: PackageEntry) -> Iterator[bytes]:
    seen = 0
    try:
        with archive.open(info) as stream:
            while chunk := stream.read(_CHUNK):
                seen += len(chunk)
                yield chunk
    except _DAMAGE as exc:
        raise BadPackage(f"{_shown(entry.path)} is damaged: {exc}; make the zip again") from exc
    if seen != entry.size:
        raise BadPackage(f"{_shown(entry.path)} holds {seen:,} bytes but declares {entry.size:,}")


def _opened(data: bytes) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(data))
    except _DAMAGE as exc:
        raise BadPackage(f"the package is no readable zip: {exc}") from exc


def _check_end(data: bytes) -> None:
    """Bound the directory before it is parsed, and refuse what is no zip up to its last byte."""
    at = data.rfind(_END_MAGIC, max(0, len(data) - 65_535 - _END.size))
    if at < 0 or len(data) - at < _END.size:
        raise BadPackage("the package is not a zip file")
    _, disk, directory_disk, _, _, size, _, comment = _END.unpack_from(data, at)
    if disk not in (0, 0xFFFF) or directory_disk not in (0, 0xFFFF):
        raise BadPackage("the package is one part of a split zip: send it as one file")
    if at + _END.size + comment != len(data):
        raise BadPackage("the package has bytes after the end of its zip: make the zip again")
    end64 = at - _LOCATOR64_BYTES - _END64.size
    if end64 >= 0 and data.startswith(_LOCATOR64_MAGIC, at - _LOCATOR64_BYTES):  # zipfile then believes this one
        size = _END64.unpack_from(data, end64)[-2]
    if size > _DIRECTORY_LIMIT:
        raise BadPackage(f"the package has more than {PACKAGE_ENTRIES:,} entries")


def _entry(info: zipfile.ZipInfo) -> PackageEntry | None:
    """The entry by our rules; None for the folder itself (`./`)."""
    name = info.orig_filename
    is_dir = name.endswith("/")
    path = _normal(name)
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a link" if kind == stat.S_IFLNK else "no plain file"
        raise BadPackage(f"{_shown(name)} is {what}: packages hold plain files and folders only")
    if kind == stat.S_IFDIR and not is_dir and info.file_size:
        raise BadPackage(f"{_shown(name)} is a folder with content: make the zip again")
    if info.flag_bits & 0x1 or info.flag_bits & 0x40:
        raise BadPackage(f"{_shown(name)} is encrypted: make the zip without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadPackage(f"{_shown(name)} is compressed by method {info.compress_type}: use deflate")
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise BadPackage(f"{_shown(name)} is stored with two different sizes: make the zip again")
    is_dir = is_dir or kind == stat.S_IFDIR
    if is_dir and info.file_size:
        raise BadPackage(f"{_shown(name)} is a folder with content: make the zip again")
    if not path:
        if is_dir:
            return None
        raise BadPackage("an entry of the package has no name")
    return PackageEntry(path, name, is_dir, info.file_size, bool(mode & 0o111) and not is_dir)


def _normal(name: str) -> str:
    """The path without `.` segments; raises BadPackage for what may not be."""
    if len(name) > PACKAGE_PATH_CHARS:
        raise BadPackage(f"{_shown(name)} is longer than {PACKAGE_PATH_CHARS} characters")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name):
        raise BadPackage(f"{_shown(name)} has control characters in its name")
    if "\\" in name:
        raise BadPackage(f"{_shown(name)} has a backslash in its name: make the zip with forward slashes")
    if name.startswith("/") or (len(name) >= _DRIVE_CHARS and name[1] == ":" and name[0].isalpha()):
        raise BadPackage(f"{_shown(name)} is an absolute path: paths in a package are relative")
    segments = [s for s in name.split("/") if s not in ("", ".")]
    if ".." in segments:
        raise BadPackage(f"{_shown(name)} leads out of the package: paths may not hold '..'")
    if any(len(s.encode()) > _SEGMENT_BYTES for s in segments):
        raise BadPackage(f"{_shown(name)} has a part longer than {_SEGMENT_BYTES} bytes")
    return "/".join(segments)


def _check_tree(entries: tuple[PackageEntry, ...]) -> None:
    """No file twice, and no file where another entry needs a folder."""
    files: set[str] = set()
    folders: set[str] = set()
    for entry in entries:
        parents = entry.path.split("/")
        folders.update("/".join(parents[:n]) for n in range(1, len(parents)))
        if entry.is_dir:
            folders.add(entry.path)
        elif entry.path in files:
            raise BadPackage(f"{_shown(entry.path)} is in the package twice")
        else:
            files.add(entry.path)
    if both := files & folders:
        raise BadPackage(f"{_shown(min(both))} is a file and a folder at once")


def _check_layout(data: bytes, infos: list[zipfile.ZipInfo], directory_at: int) -> None:
    """Local headers say the same names as the directory, and no two entries share bytes (the way of small huge bombs)."""
    end = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        at = info.header_offset
        if at < end or at + _LOCAL.size > directory_at:
            raise BadPackage(f"{_shown(info.orig_filename)} lies over another entry: make the zip again")
        magic, *_, name_len, extra_len = _LOCAL.unpack_from(data, at)
        if magic != _LOCAL_MAGIC:
            raise BadPackage(f"{_shown(info.orig_filename)} has no header: make the zip again")
        raw = data[at + _LOCAL.size : at + _LOCAL.size + name_len]
        if raw.decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace") != info.orig_filename:
            raise BadPackage(f"{_shown(info.orig_filename)} has another name in its own header: make the zip again")
        end = at + _LOCAL.size + name_len + extra_len + info.compress_size
        if end > directory_at:
            raise BadPackage(f"{_shown(info.orig_filename)} is longer than the zip")


def _shown(name: str) -> str:
    """A name for a message: printable, and short."""
    text = ascii(name[:100])
    return text if len(name) <= 100 else text[:-1] + "…'"
