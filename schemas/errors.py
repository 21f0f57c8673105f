"""Every error that crosses a package boundary.

    PenstockError
    ├── UserError                    the caller must change something
    │   ├── ConfigError              settings, flags, malformed penstock.toml
    │   ├── SetupError               Java, jars or a needed program is missing
    │   ├── PortTaken                an explicitly asked port has a listener already
    │   ├── BadRequest               cloud API: carries a Tencent Cloud error code
    │   └── BadPackage               code package refused (path, size, format)
    ├── DependencyError              something Penstock stands on is away; trying again may help
    │   ├── BrokerUnavailable        Kafka does not answer
    │   ├── StoreUnavailable         the object store does not answer
    │   ├── AgentUnavailable         no host agent, or its connection broke
    │   ├── ApiUnavailable           no fabric runs, or its cloud API does not answer
    │   └── DeadlineExceeded         an inner wait passed its limit
    └── PlatformError                our own fault or broken state
        ├── ObjectNotFound           the store has no such object
        ├── PackageCorrupt           bytes don't have the hash they are stored under
        ├── WireError                a frame that does not parse, or a failed handshake
        ├── IsolationUnavailable     the machine can't isolate as asked
        └── WorkerStartFailed        a sandbox or worker did not come up

`code` is stable and published; `retryable` says whether the same call can succeed later unchanged.
Expected outcomes (throttled, duplicate, function failed) are values, not exceptions.
"""

from __future__ import annotations

from typing import ClassVar


class PenstockError(Exception):
    """Root of all errors that Penstock raises on purpose."""

    code: ClassVar[str] = "Penstock"
    retryable: ClassVar[bool] = False


class UserError(PenstockError):
    """The caller must change something; the message says what."""

    code = "UserError"


class ConfigError(UserError):
    """A setting, flag or configuration file is wrong."""

    code = "ConfigError"


class SetupError(UserError):
    """A program or file that Penstock needs is missing; the message says how to get it."""

    code = "SetupError"


class PortTaken(UserError):
    """An explicitly asked port already has a listener."""

    code = "PortTaken"

    def __init__(self, port: int, *, wanted_for: str) -> None:
        super().__init__(
            f"port {port} (wanted for {wanted_for}) is taken: stop what listens there, or choose another port"
        )
        self.port, self.wanted_for = port, wanted_for


class BadRequest(UserError):
    """A cloud API call that is answered with a Tencent Cloud error code.

    Args:
        api_code: e.g. `InvalidParameterValue.MemorySize`; published, checked by clients.
        message: one sentence that says what to do.
    """

    code = "BadRequest"

    def __init__(self, api_code: str, message: str) -> None:
        super().__init__(message)
        self.api_code, self.message = api_code, message


class BadPackage(UserError):
    """A code package is refused: it leaves its folder, is too large, or is no zip."""

    code = "BadPackage"


class DependencyError(PenstockError):
    """Something Penstock stands on does not answer."""

    code = "DependencyError"
    retryable = True


class BrokerUnavailable(DependencyError):
    """Kafka does not answer, or refused the call for a reason that may pass."""

    code = "BrokerUnavailable"


class StoreUnavailable(DependencyError):
    """The object store does not answer."""

    code = "StoreUnavailable"


class AgentUnavailable(DependencyError):
    """No host agent is connected, or the connection broke while a call was out."""

    code = "AgentUnavailable"


class ApiUnavailable(DependencyError):
    """No fabric runs in the data folder, or its cloud API does not answer."""

    code = "ApiUnavailable"


class DeadlineExceeded(DependencyError):
    """An inner wait passed its limit."""

    code = "DeadlineExceeded"


class PlatformError(PenstockError):
    """Penstock's own fault, or broken state."""

    code = "PlatformError"


class ObjectNotFound(PlatformError):
    """The object store has no object of this name."""

    code = "ObjectNotFound"


class PackageCorrupt(PlatformError):
    """Bytes do not have the hash they are stored under."""

    code = "PackageCorrupt"


class WireError(PlatformError):
    """A frame does not parse, or the other end failed the handshake."""

    code = "WireError"


class IsolationUnavailable(PlatformError):
    """The machine can't isolate as asked.

    Args:
        missing: names of the layers that are missing, e.g. `("network namespace", "memory cgroup")`.
    """

    code = "IsolationUnavailable"

    def __init__(self, missing: tuple[str, ...]) -> None:
        super().__init__(
            "this machine can't isolate functions fully; missing: "
            + ", ".join(missing)
            + ". Run as root on a kernel that has them, or accept less with --allow-weaker-isolation"
        )
        self.missing = missing


class WorkerStartFailed(PlatformError):
    """A node or worker did not come up."""

    code = "WorkerStartFailed"
    retryable = True
