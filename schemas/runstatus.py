"""Status codes of one run of a function (SCF.md section 4.4), and what each means for a retry."""

from __future__ import annotations

from enum import IntEnum


class RunStatus(IntEnum):
    """Outcome of one invocation, as SCF numbers it."""

    OK = 200
    BAD_EVENT = 400
    CONTAINER_EXIT = 405
    EVENT_TOO_LARGE = 406
    REPLY_TOO_LARGE = 407
    START_RATE = 429
    USER_EXCEPTION = 430
    CONCURRENCY = 432
    TIMEOUT = 433
    MEMORY = 434
    NO_FUNCTION = 435
    BAD_PARAMETER = 436
    NO_HANDLER = 437
    FUNCTION_STATE = 438
    PROCESS_EXIT = 439
    NO_QUALIFIER = 442
    USER_CODE = 443
    INIT_FAILED = 445
    NO_RESOURCES = 449
    INIT_TIMEOUT = 450
    CANCELLED = 499
    INTERNAL = 500


_PLATFORM = frozenset(
    {RunStatus.START_RATE, RunStatus.CONCURRENCY, RunStatus.NO_RESOURCES, RunStatus.CANCELLED, RunStatus.INTERNAL}
)

ERROR_NAMES: dict[RunStatus, str] = {
    RunStatus.BAD_EVENT: "InvalidEvent",
    RunStatus.CONTAINER_EXIT: "ContainerExited",
    RunStatus.EVENT_TOO_LARGE: "RequestTooLarge",
    RunStatus.REPLY_TOO_LARGE: "ResponseTooLarge",
    RunStatus.START_RATE: "InstanceStartRateLimit",
    RunStatus.USER_EXCEPTION: "UserCodeException",
    RunStatus.CONCURRENCY: "ResourceLimitReached",
    RunStatus.TIMEOUT: "TimeLimitExceeded",
    RunStatus.MEMORY: "MemoryLimitExceeded",
    RunStatus.NO_FUNCTION: "FunctionNotFound",
    RunStatus.BAD_PARAMETER: "InvalidParameter",
    RunStatus.NO_HANDLER: "HandlerNotFound",
    RunStatus.FUNCTION_STATE: "FunctionStatusError",
    RunStatus.PROCESS_EXIT: "UserProcessExit",
    RunStatus.NO_QUALIFIER: "QualifierNotFound",
    RunStatus.USER_CODE: "UserCodeError",
    RunStatus.INIT_FAILED: "ContainerInitError",
    RunStatus.NO_RESOURCES: "NoResources",
    RunStatus.INIT_TIMEOUT: "InitTimeout",
    RunStatus.CANCELLED: "Cancelled",
    RunStatus.INTERNAL: "InternalError",
}


def blames_platform(status: RunStatus) -> bool:
    """True when the function is not at fault: such a failure is tried again without counting as the record's attempt."""
    return status in _PLATFORM


def recycles_worker(status: RunStatus) -> bool:
    """True when the worker must not serve again after this outcome (SCF: 433, 434 and 439)."""
    return status in {RunStatus.TIMEOUT, RunStatus.MEMORY, RunStatus.PROCESS_EXIT, RunStatus.CANCELLED}
