"""Read-only file trees of a node, made of unpacked packages: hard links where the file system allows, else copies."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path


def merged_name(packages: Sequence[str]) -> str:
    """Name of the tree that layers with these hashes make in this order."""
    return f"layers-{sha256('/'.join(packages).encode()).hexdigest()}"


def merge(sources: Sequence[Path], target: Path) -> None:
    """A tree of the files of all sources, of which the later one wins: its file hides a file or a whole folder, its folder a file.

    Appears whole or not at all; of several at a time the first one stays. Blocking: 0.4 s for the largest package. Raises OSError.
    """
    part = Path(tempfile.mkdtemp(prefix=f".{target.name[:12]}-", dir=target.parent))
    try:
        for at, source in enumerate(sources):
            _lay(source, part, is_first=at == 0)
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _lay(source: Path, target: Path, *, is_first: bool) -> None:
    for folder, _, files in os.walk(source, onerror=_raise):
        into = target / os.path.relpath(folder, source)
        if not into.is_dir():
            into.unlink(missing_ok=True)
            into.mkdir()
        into.chmod(0o755)  # read by the node's user
        for name in files:
            path = f"{into}/{name}"
            if not is_first:
                _make_way(path)
            _link_or_copy(f"{folder}/{name}", path)


def _raise(error: OSError) -> None:
    raise error


def _make_way(path: str) -> None:
    """Never write over a file: it may be a link to a package that others use."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.unlink(path)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or too many links
        shutil.copy(source, target)
    mode = os.stat(target).st_mode
    if mode & 0o444 != 0o444:
        os.chmod(target, mode | 0o444)
