"""Settings of a fabric: flags, then environment `PENSTOCK_*`, then penstock.toml, then defaults.

    PENSTOCK_PORT=8080           sets `port`; so does `port = 8080` in penstock.toml
    penstock.toml                in the data folder, else in the current folder (the first that exists is the only one read)

Processes get them the same way: `penstock up` starts its children in its own folder, with its environment plus what it decided
(`child_environment`: flags, addresses, ports), so that each reads the same file and sees the same values. Nothing secret is put on a
command line or into an environment by us: keys stand in files (infra.credentials), or where the user wrote them.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from infra.credentials import StoreKeys, store_keys
from schemas.errors import ConfigError

PREFIX: Final = "PENSTOCK_"
FILE: Final = "penstock.toml"
_NO_SETTINGS: Final = frozenset({"BUILD_DIR", "CI", "DEBUG", "TEST_SECRET"})
"""Variables of ours that set nothing of a fabric: the set-up's, the tests' and the command line's."""
_BOOTSTRAP: Final = re.compile(r"[^\s:,/]+:\d{1,5}(,[^\s:,/]+:\d{1,5})*\Z")
_SECRET_OPTION: Final = re.compile(r"password|secret|token|key\.pem", re.I)

Port = Annotated[int, Field(ge=1, le=65535)]


class FabricSettings(BaseSettings):
    """All settings. One instance is read when a process starts; nothing reads settings later."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    data_dir: Path
    """Folder of everything that this fabric keeps; by flag or environment only, for penstock.toml stands in it."""

    bootstrap_servers: str | None = None
    """`host:port[,host:port]` of a Kafka cluster to use; without it the embedded broker is started."""

    kafka_options: dict[str, str] = {}
    """More client options (librdkafka's names) for that cluster, e.g. security.protocol; in the environment as JSON."""

    kafka_port: Port | None = None
    """Port of the embedded broker; without it the last used one, else a free one."""

    s3_endpoint: str | None = None
    """`http(s)://host[:port]` of an S3 API for code packages; without it the embedded store is started."""

    s3_access_key: SecretStr | None = None
    """Its access key id; needed with s3_endpoint."""

    s3_secret_key: SecretStr | None = None
    """Its secret key; needed with s3_endpoint."""

    s3_region: str = "us-east-1"
    """The region that requests to it are signed for."""

    s3_bucket: str = "penstock-code"
    """The bucket of code packages; made when it is not there. On a shared endpoint choose a name of your own."""

    s3_port: Port | None = None
    """Port of the embedded store; without it the last used one, else a free one."""

    port: Port | None = None
    """Port of the cloud API; without it the last used one, else a free one. A given port that is taken is an error."""

    driver: Literal["auto", "jail", "microvm"] = "auto"
    """How nodes are made; auto takes the strongest that works here."""

    allow_weaker_isolation: bool = False
    """Go on although this machine can't isolate functions fully; what is missing is shown by `penstock status`."""

    region: str = "ap-guangzhou"
    """The region that functions see and API calls name. Read when the credentials are made; they keep it."""

    appid: str | None = Field(default=None, pattern=r"^\d{1,20}$")
    """The tenant's APPID; random when the credentials are made, which keep it."""

    uin: str | None = Field(default=None, pattern=r"^\d{1,20}$")
    """The tenant's account number; random when the credentials are made, which keep it."""

    zone: str = Field(default="zone-1", pattern=r"^[A-Za-z0-9._-]{1,60}$")
    """The availability zone this machine is in."""

    host: str = Field(default_factory=lambda: os.uname().nodename, min_length=1, max_length=200)
    """This machine's name in the fabric; the default is its host name."""

    worker_idle_s: float = Field(default=60.0, ge=0, le=86_400)
    """Keep-alive: how long a worker without work is kept, seconds. More memory, fewer cold starts."""

    event_retry_s: float = Field(default=60.0, ge=0.1, le=3_600)
    """How long an asynchronous event that failed waits before it runs again, seconds."""

    node_memory_share: float = Field(default=0.5, gt=0, le=1)
    """Share of this machine's memory that all workers together may hold; idle ones end first when it is reached."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """From which level on processes log."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("bootstrap_servers")
    @classmethod
    def _servers(cls, value: str | None) -> str | None:
        if value is not None and not _BOOTSTRAP.match(value):
            raise ValueError("must be host:port, or several with commas between")
        return value

    @field_validator("s3_endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s?#]+/?\Z", value):
            raise ValueError("must be http://host:port or https://host, without a path")
        return value.rstrip("/") if value is not None else None

    @model_validator(mode="after")
    def _store_has_keys(self) -> FabricSettings:
        if self.s3_endpoint and not (self.s3_access_key and self.s3_secret_key):
            raise ValueError(
                "s3_endpoint needs s3_access_key and s3_secret_key: set PENSTOCK_S3_ACCESS_KEY and PENSTOCK_S3_SECRET_KEY"
            )
        return self


def load(data_dir: Path, *, flags: Mapping[str, Any] | None = None) -> FabricSettings:
    """The effective settings: flags, the process's environment, penstock.toml, defaults.

    Args:
        data_dir: the fabric's folder; need not exist.
        flags: from the command line, by field name; None values count as not given.

    Raises:
        ConfigError: a value is wrong, or penstock.toml is malformed; says where and what to do.
    """
    given = {"data_dir": data_dir, **{k: v for k, v in (flags or {}).items() if v is not None}}
    source = config_file(data_dir)
    from_file = _read(source) if source is not None else {}

    class Sourced(FabricSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=from_file)

    try:
        return Sourced(**given)
    except ValidationError as exc:
        raise ConfigError(_complaint(exc, given, source, from_file)) from exc
    except ValueError as exc:  # pydantic-settings: a variable that must be JSON and is not
        raise ConfigError(f"a {PREFIX} environment variable can't be read: {exc}") from exc


def config_file(data_dir: Path) -> Path | None:
    """The penstock.toml that counts, or None."""
    for folder in (data_dir.expanduser(), Path.cwd()):
        if (folder / FILE).is_file():
            return folder / FILE
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path} can't be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not UTF-8 text: save it as such") from exc
    except tomllib.TOMLDecodeError as exc:
        at = re.search(r"line (\d+)", str(exc))
        line = at.group(1) if at else str(path.read_text(encoding="utf-8").rstrip().count("\n") + 1)
        raise ConfigError(
            f"{path}, line {line}: no valid TOML: {exc}. Correct the line, or move the file away"
        ) from exc
    known = FabricSettings.model_fields.keys() - {"data_dir"}
    for name in values:
        if name == "data_dir":
            raise ConfigError(
                f"{path}, {_line(path, name)}: data_dir can't be set here: use --data-dir or PENSTOCK_DATA_DIR"
            )
        if name not in known:
            raise ConfigError(f"{path}, {_line(path, name)}: there is no setting {name!r}; {_advice(name, known)}")
    return values


def unknown_variables(environ: Iterable[str]) -> tuple[str, ...]:
    """A sentence for each environment variable that looks like a setting and is none: another program's may not stop a fabric."""
    known = FabricSettings.model_fields.keys()
    names = (name.removeprefix(PREFIX) for name in sorted(environ) if name.startswith(PREFIX))
    return tuple(
        f"environment variable {PREFIX}{name} sets nothing: {_advice(name.lower(), known, otherwise='unset it')}"
        for name in names
        if name not in _NO_SETTINGS and name.lower() not in known
    )


def _advice(name: str, known: Iterable[str], *, otherwise: str = "remove the line") -> str:
    import difflib

    found = difflib.get_close_matches(name, known, 1)
    return f"did you mean {found[0]!r}?" if found else f"{otherwise} (`penstock up --print-config` lists all settings)"


def _line(path: Path, name: str) -> str:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if re.match(rf"\s*\[?\s*[\"']?{re.escape(name)}\b", line):
            return f"line {number}"
    return f"setting {name}"


def _complaint(
    error: ValidationError, given: Mapping[str, Any], source: Path | None, from_file: Mapping[str, Any]
) -> str:
    parts = []
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(one["loc"][0]) if one["loc"] else ""
        text = one["msg"].removeprefix("Value error, ")
        parts.append(f"{_place(name, given, source, from_file)}{text[:1].lower()}{text[1:]}")
    return "; ".join(parts)


def _place(name: str, given: Mapping[str, Any], source: Path | None, from_file: Mapping[str, Any]) -> str:
    """Who set the value, for a message."""
    if not name:
        return ""
    if name in given:
        return f"--{name.replace('_', '-')}: "
    if (variable := PREFIX + name.upper()) in os.environ:
        return f"environment variable {variable}: "
    if source is not None and name in from_file:
        return f"{source}, {_line(source, name)}, {name}: "
    return f"{name}: "


def show(settings: FabricSettings) -> dict[str, Any]:
    """The effective values as plain data, secrets masked; what `--print-config` prints."""
    values = settings.model_dump(mode="json")
    for name, value in values.items():
        if isinstance(getattr(settings, name), SecretStr):
            values[name] = "***"
        elif name == "kafka_options":
            values[name] = {k: "***" if _SECRET_OPTION.search(k) else v for k, v in value.items()}
    return values


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where code packages are: an S3 endpoint, its bucket, and the keys for it."""

    endpoint: str
    region: str
    bucket: str
    keys: StoreKeys


def store_address(settings: FabricSettings) -> StoreAddress:
    """The given object store, else the embedded one, whose port `penstock up` chose and whose keys stand in the data folder.

    Raises:
        ConfigError: no endpoint is given and no port is chosen, or the keys are missing.
    """
    if settings.s3_endpoint and settings.s3_access_key and settings.s3_secret_key:
        keys = StoreKeys(settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value())
        return StoreAddress(settings.s3_endpoint, settings.s3_region, settings.s3_bucket, keys)
    if settings.s3_port is None:
        raise ConfigError("no object store: set PENSTOCK_S3_ENDPOINT, or PENSTOCK_S3_PORT of the embedded one")
    endpoint = f"http://127.0.0.1:{settings.s3_port}"
    return StoreAddress(endpoint, settings.s3_region, settings.s3_bucket, store_keys(settings.data_dir))


def child_environment(decided: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the environment of a child process.

    Args:
        decided: by field name, as flags and choices made them; never a secret.
    """
    secret = decided.keys() & {"s3_access_key", "s3_secret_key", "kafka_options"}
    if secret or decided.keys() - FabricSettings.model_fields.keys():
        raise TypeError(f"not for a child's environment: {sorted(decided)}")
    environment = {}
    for name, value in decided.items():
        if value is not None:
            environment[PREFIX + name.upper()] = json.dumps(value) if isinstance(value, bool) else str(value)
    return environment
