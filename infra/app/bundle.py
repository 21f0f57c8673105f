"""A code package from a folder or a zip, as `penstock deploy` sends it. The same files give the same bytes.

Entries are sorted, have one fixed time and the modes 0644 or 0755; `.git`, `__pycache__` and `.venv` are left out at any depth.
Links inside the folder are followed, and stored as what they lead to; one that leaves the folder is refused.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from schemas.errors import BadPackage
from schemas.ids import is_handler
from schemas.limits import PACKAGE_ENTRIES, PACKAGE_UNPACKED_BYTES, PACKAGE_ZIP_BYTES
from schemas.package import PackageFacts, check_zip

LEFT_OUT: Final = frozenset({".git", "__pycache__", ".venv"})
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold


def bundle(source: Path) -> bytes:
    """The package of a folder, or a zip's own bytes.

    Raises:
        BadPackage: it is neither, or breaks a rule of packages; the message names the file and says what to do.
    """
    if not source.exists():
        raise BadPackage(f"{source} does not exist: name a folder with the function's code, or a zip of it")
    try:
        if source.is_dir():
            return _zip(source.resolve())
        size = source.stat().st_size
        if size > PACKAGE_ZIP_BYTES:
            raise BadPackage(f"{source} has {size:,} bytes; a package has at most {PACKAGE_ZIP_BYTES:,}")
        return source.read_bytes()
    except OSError as exc:
        raise BadPackage(f"{exc.filename or source} can't be read: {exc.strerror}") from exc


def check_handler(data: bytes, handler: str) -> PackageFacts:
    """The package's facts, when it is well formed and has the handler's file.

    Raises:
        BadPackage: otherwise.
    """
    facts = check_zip(data)
    if not is_handler(handler):
        raise BadPackage(f"handler {handler!r} is not of the form FILE.FUNCTION, such as index.main_handler")
    wanted = handler.rpartition(".")[0] + ".py"
    if wanted in facts.files:
        return facts
    nested = sorted(path for path in facts.files if path.endswith("/" + wanted))
    if nested:
        raise BadPackage(
            f"the handler {handler} needs {wanted} at the top of the package, but it is at {nested[0]}:"
            f" deploy the folder {nested[0].removesuffix('/' + wanted)} itself"
        )
    raise BadPackage(f"the handler {handler} needs {wanted}, which is not in the package (it holds: {_top(facts)})")


def check_bootstrap(data: bytes) -> PackageFacts:
    """The package's facts, when it is well formed and has a file `bootstrap` at its top, which CustomRuntime starts.

    Raises:
        BadPackage: otherwise.
    """
    facts = check_zip(data)
    if "bootstrap" in facts.files:
        return facts
    raise BadPackage(
        f"CustomRuntime needs an executable file bootstrap at the top of the package, which has: {_top(facts)}"
    )


def _top(facts: PackageFacts) -> str:
    top = sorted({path.split("/")[0] for path in facts.files})
    return ", ".join(top[:8]) + (", …" if len(top) > 8 else "")


def _zip(folder: Path) -> bytes:
    out = io.BytesIO()
    total = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for number, (name, path) in enumerate(sorted(_files(folder, folder, "", (folder,)))):
            facts = path.stat()
            total += facts.st_size
            if number >= PACKAGE_ENTRIES:
                raise BadPackage(
                    f"{folder} holds more than {PACKAGE_ENTRIES:,} files, the most that a package may have"
                )
            if total > PACKAGE_UNPACKED_BYTES:
                raise BadPackage(
                    f"{folder} holds more than {PACKAGE_UNPACKED_BYTES:,} bytes, the most that a package may have"
                )
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix: so that modes count
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | (0o755 if facts.st_mode & 0o111 else 0o644)) << 16
            archive.writestr(entry, path.read_bytes())
    if not archive.filelist:
        raise BadPackage(f"{folder} holds no file: put the function's code there")
    if out.tell() > PACKAGE_ZIP_BYTES:
        raise BadPackage(
            f"{folder} makes a package of {out.tell():,} bytes; the limit is {PACKAGE_ZIP_BYTES:,}: take out what it does not need"
        )
    return out.getvalue()


def _files(folder: Path, root: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Names in the package and real paths of all files under a folder. `above` are the real folders on the way here."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in LEFT_OUT:
                continue
            name, path = prefix + entry.name, Path(entry.path)
            if not name.isprintable():  # control characters, and bytes that are no UTF-8
                raise BadPackage(f"{name!a} has characters in its name that a package can't have: rename it")
            if entry.is_symlink():
                path = _inner(path, root, name)
            if path.is_dir():
                if path in above:
                    raise BadPackage(f"the link {name} leads in a circle: remove it")
                yield from _files(path, root, name + "/", (*above, path))
            elif path.is_file():
                yield name, path
            else:
                raise BadPackage(f"{name} is no plain file: packages hold plain files and folders only")


def _inner(link: Path, root: Path, name: str) -> Path:
    """Where a link ends, when that is inside the root."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as exc:
        raise BadPackage(f"the link {name} leads nowhere: remove it, or mend it") from exc
    if not target.is_relative_to(root):
        raise BadPackage(
            f"the link {name} leaves the folder (to {target}): put a copy of what it leads to there, or remove it"
        )
    return target
