"""Unpacking a code package onto disk. The rules are in `schemas.package`; here is the writing.

What comes out belongs to us, is read-only and has no link: files 0444 or 0555, folders 0755.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from schemas.errors import BadPackage
from schemas.package import PackageEntry, PackageFacts, check_zip, read_files

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


_BOOTSTRAP: Final = "bootstrap"
"""Started as a program where the Runtime is CustomRuntime; zips made on Windows have no permissions."""


def unpack(data: bytes, folder: Path) -> PackageFacts:
    """Unpack a zip into a folder that does not exist yet; on any failure the folder is gone again.

    Blocking, seconds for a large package: run it in a thread.

    Raises:
        BadPackage: the zip breaks a rule, or is damaged.
        OSError: the disk is full, or the folder exists.
    """
    facts = check_zip(data)
    folder.mkdir(mode=0o755)
    try:
        for entry in facts.entries:
            if entry.is_dir:
                (folder / entry.path).mkdir(mode=0o755, parents=True, exist_ok=True)
        for entry, chunks in read_files(data, facts):
            _write(folder / entry.path, entry, chunks)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return facts


def _write(path: Path, entry: PackageEntry, chunks: Iterator[bytes]) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, _FLAGS, 0o555 if entry.executable or entry.path == _BOOTSTRAP else 0o444)
    except FileExistsError as exc:  # two names that this file system holds for one
        raise BadPackage(f"{entry.path!r} is in the package twice") from exc
    with os.fdopen(descriptor, "wb") as out:
        out.writelines(chunks)
