"""The fabric's own secrets, as files in its data folder that only their owner may read.

    credentials.json    {"secret_id", "secret_key", "region", "appid", "uin"}: the key pair of the fabric's tenant for the cloud API
    fabric.key          32 random bytes: what gateways and agents prove to one another
    store/keys.json     {"access_key", "secret_key"}: keys of the embedded object store (infra.objectstore.rclone makes them)

Made once, on the first start; a process gets them by reading the file, never by its command line or environment.
Standard library only: the command line imports this.
"""

from __future__ import annotations

import json
import os
import secrets
import string
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from schemas.errors import ConfigError

CREDENTIALS_FILE: Final = "credentials.json"
KEY_FILE: Final = "fabric.key"
STORE_KEYS_FILE: Final = "store/keys.json"
KEY_BYTES: Final = 32
_ALPHABET: Final = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key pair for the cloud API, and whose it is."""

    secret_id: str
    secret_key: str = field(repr=False)
    region: str
    appid: str
    uin: str


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """A key pair of the S3 API."""

    access_key: str
    secret_key: str = field(repr=False)


def credentials(data_dir: Path) -> Credentials:
    """The fabric's credentials. Raises ConfigError when there are none, or the file is damaged."""
    path = data_dir / CREDENTIALS_FILE
    return Credentials(**_read(path, Credentials.__slots__))


def make_credentials(data_dir: Path, *, region: str, appid: str | None = None, uin: str | None = None) -> Credentials:
    """The fabric's credentials, made with these attributes when there are none yet; existing ones stay as they are."""
    path = data_dir / CREDENTIALS_FILE
    if not path.exists():
        fresh = Credentials(
            secret_id="AKID" + _random(32),
            secret_key=_random(32),
            region=region,
            appid=appid or "12" + _random(8, string.digits),
            uin=uin or "1000" + _random(8, string.digits),
        )
        write_private(path, json.dumps(asdict(fresh), indent=1).encode() + b"\n")
    return credentials(data_dir)


def fabric_key(data_dir: Path, *, make: bool = False) -> bytes:
    """The key that the fabric's processes share; with `make`, made when there is none. Raises ConfigError."""
    path = data_dir / KEY_FILE
    if make and not path.exists():
        write_private(path, secrets.token_bytes(KEY_BYTES))
    try:
        key = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path} can't be read ({exc.strerror}): `penstock up` makes it on the first start") from exc
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path} must hold {KEY_BYTES} bytes, not {len(key)}: delete it and start the fabric again")
    return key


def store_keys(data_dir: Path) -> StoreKeys:
    """The embedded object store's keys. Raises ConfigError."""
    return StoreKeys(**_read(data_dir / STORE_KEYS_FILE, StoreKeys.__slots__))


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, whole or not at all; it is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _random(length: int, alphabet: str = _ALPHABET) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _read(path: Path, names: Any) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
        return {name: _text(found[name]) for name in names}
    except OSError as exc:
        raise ConfigError(f"{path} can't be read ({exc.strerror}): `penstock up` makes it on the first start") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"{path} is damaged ({exc}): restore it, or delete it and start the fabric again, which makes a new one"
        ) from exc


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is not a text")
    return value
