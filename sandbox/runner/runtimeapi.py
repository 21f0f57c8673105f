"""What a custom runtime's requests mean: which event `next` gets, when a run is over, when the runtime is ready. Pure, standard library only.

Two dialects of one conversation: SCF's runtime API (SCF.md section 4.6) and, for runtimes made for it, the paths of the AWS Lambda Runtime API.
One event at a time; `next` asked again before its result gets the same event; the first result wins.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from sandbox.runner.http1 import Request

OK, USER_EXCEPTION, BAD_EVENT, REPLY_TOO_LARGE = range(4)
"""Outcomes of a run, as in schemas.frames.DoneOutcome."""
BODY_LIMIT = 6 * 1024 * 1024
_AWS = "/2018-06-01/runtime/"
_JSON = {"Content-Type": "application/json"}
_TRACE_CHARS = 16_384
_INIT_FAILED = 445


class Run(NamedTuple):
    """One event. `corr` is the agent's number, `request_id` a UUID's text."""

    corr: int
    request_id: str
    event: bytes


class Limits(NamedTuple):
    """What `next` tells of the function; `resource` is its name across the cloud."""

    memory_mb: int
    time_ms: int
    resource: str


class Answer(NamedTuple):
    """To the request of connection `to`."""

    to: int
    status: int
    headers: Mapping[str, str]
    body: bytes


class Done(NamedTuple):
    """A run is over."""

    corr: int
    outcome: int
    body: bytes


class Ready(NamedTuple):
    """The runtime is ready, or (`status` not 0) says that it never will be."""

    status: int = 0
    message: str = ""
    trace: str = ""


Effect = Answer | Done | Ready


class RuntimeApi:
    """One runtime's conversation. Each call returns what is to be done, in that order."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: deque[Run] = deque()
        self._current: Run | None = None
        self._deadline_ms = 0
        self._asking: dict[int, bool] = {}
        """Connections that wait for an event, the longest first → whether by AWS's path."""
        self._last = ""
        self._is_ready = False

    @property
    def writing_for(self) -> int:
        """The run to which what the runtime prints now belongs: the one that it has, else the one that comes; 0 without any."""
        run = self._current or (self._queue[0] if self._queue else None)
        return run.corr if run is not None else 0

    @property
    def is_between(self) -> bool:
        """True after a run and before the next: a runtime that ends here has done its part. (One that never took an event has not.)"""
        return self._current is None and self._last != ""

    def run(self, run: Run, now_ms: int) -> list[Effect]:
        """One more event, behind those that wait. `now_ms` is the time of day."""
        self._queue.append(run)
        return self._deliver(now_ms)

    def gone(self, connection: int) -> None:
        """This connection is closed; it asks for nothing any more."""
        self._asking.pop(connection, None)

    def request(self, connection: int, request: Request, now_ms: int) -> list[Effect]:
        """What a request leads to; without an Answer among it the connection waits for an event."""
        path = request.path
        is_aws = path.startswith(_AWS)
        name = path[len(_AWS) :] if is_aws else path.removeprefix("/runtime/") if path.startswith("/runtime/") else ""
        wanted = "GET" if name == "invocation/next" else "POST"
        if name == "invocation/next" and request.method == wanted:
            return self._next(connection, now_ms, is_aws=is_aws)
        given, identity = self._result_of(name, is_aws=is_aws)
        is_init = name == ("init/error" if is_aws else "init/ready")
        if not given and not is_init and name != "invocation/next":
            return [_refusal(connection, 404, "NotFound", f"there is no {path[:200]} here")]
        if request.method != wanted:
            return [_refusal(connection, 405, "MethodNotAllowed", f"{path[:200]} takes {wanted}")]
        if is_init:
            return self._init_error(connection, request) if is_aws else self._ready(connection)
        return self._result(connection, request, given, identity, now_ms)

    @staticmethod
    def _result_of(name: str, *, is_aws: bool) -> tuple[str, str]:
        """`response` or `error`, and the request id of an AWS path."""
        parts = name.split("/")
        if parts[-1] not in ("response", "error") or parts[0] != "invocation":
            return "", ""
        if is_aws:
            return (parts[2], parts[1]) if len(parts) == 3 else ("", "")
        return (parts[1], "") if len(parts) == 2 else ("", "")

    # init

    def _ready(self, connection: int) -> list[Effect]:
        return [*self._first_ready(), Answer(connection, 200, {}, b"")]

    def _first_ready(self) -> list[Effect]:
        if self._is_ready:
            return []
        self._is_ready = True
        return [Ready()]

    def _init_error(self, connection: int, request: Request) -> list[Effect]:
        if self._is_ready:
            return [_refusal(connection, 403, "InvalidStateTransition", "the runtime has said that it is ready")]
        self._is_ready = True
        said = _words(request)
        first = said.partition("\n")[0] or "without a word"
        ready = Ready(_INIT_FAILED, f"the runtime could not start: {first[:1000]}", said)
        return [Answer(connection, 202, _JSON, b'{"status":"OK"}\n'), ready]

    # events

    def _next(self, connection: int, now_ms: int, *, is_aws: bool) -> list[Effect]:
        effects = self._first_ready()
        if self._current is not None:  # asked again in the same run
            return [*effects, self._event(connection, self._current, is_aws=is_aws)]
        self._asking[connection] = is_aws
        return effects + self._deliver(now_ms)

    def _deliver(self, now_ms: int) -> list[Effect]:
        if self._current is not None or not self._queue or not self._asking:
            return []
        run = self._current = self._queue.popleft()
        if problem := _not_json(run.event):
            self._current = None
            return [Done(run.corr, BAD_EVENT, f"the event is not JSON: {problem}".encode()), *self._deliver(now_ms)]
        self._deadline_ms = now_ms + self._limits.time_ms
        connection = next(iter(self._asking))
        return [self._event(connection, run, is_aws=self._asking.pop(connection))]

    def _event(self, connection: int, run: Run, *, is_aws: bool) -> Answer:
        limits = self._limits
        if is_aws:
            own = {
                "Lambda-Runtime-Aws-Request-Id": run.request_id,
                "Lambda-Runtime-Deadline-Ms": str(self._deadline_ms),
                "Lambda-Runtime-Invoked-Function-Arn": limits.resource,
            }
        else:
            own = {
                "request_id": run.request_id,
                "memory_limit_in_mb": str(limits.memory_mb),
                "time_limit_in_ms": str(limits.time_ms),
            }
        return Answer(connection, 200, {**_JSON, **own}, run.event or b"{}")

    # results

    def _result(self, connection: int, request: Request, given: str, identity: str, now_ms: int) -> list[Effect]:
        run = self._current
        if identity and identity != (run.request_id if run is not None else self._last):
            return [_refusal(connection, 400, "InvalidRequestID", f"{identity[:80]} is not the event that runs")]
        if run is None:
            if identity or not self._last:
                return [
                    _refusal(
                        connection,
                        403,
                        "InvalidStateTransition",
                        "no event runs: its result is given, or it was not asked for",
                    )
                ]
            return [Answer(connection, 200, {}, b"")]  # SCF: the first result wins, and a second is no error
        self._current, self._last = None, run.request_id
        if request.body is None:
            said = f"the reply has more than the limit of {BODY_LIMIT} bytes"
            done = Done(run.corr, REPLY_TOO_LARGE, said.encode())
            return [done, _refusal(connection, 413, "RequestEntityTooLarge", said)]
        if given == "error":
            done = Done(run.corr, USER_EXCEPTION, _failure(_words(request), run.request_id))
        else:
            done = Done(run.corr, OK, request.body)
        accepted = (
            Answer(connection, 202, _JSON, b'{"status":"OK"}\n') if identity else Answer(connection, 200, {}, b"")
        )
        return [done, accepted, *self._deliver(now_ms)]


def _not_json(event: bytes) -> str:
    try:
        json.loads(event or b"{}")
    except ValueError as exc:
        return str(exc)
    except RecursionError:
        pass  # deeper than this parser goes; the runtime's own may
    return ""


def _refusal(connection: int, status: int, kind: str, message: str) -> Answer:
    body = json.dumps({"errorType": kind, "errorMessage": message}).encode()
    return Answer(connection, status, _JSON, body + b"\n")


def _words(request: Request) -> str:
    """An error as text: AWS's object as TYPE: MESSAGE and its stack, anything else as it is."""
    text = (request.body or b"").decode("utf-8", "replace")[:_TRACE_CHARS]
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(said, dict) or "errorMessage" not in said:
        return text
    kind = said.get("errorType") or request.headers.get("lambda-runtime-function-error-type") or "Error"
    stack = said.get("stackTrace")
    lines = [str(line) for line in stack] if isinstance(stack, list) else []
    return "\n".join([f"{kind}: {said['errorMessage']}", *lines])[:_TRACE_CHARS]


def _failure(words: str, request_id: str) -> bytes:
    """SCF's error of a run, as for an exception of Python code."""
    value = {
        "errorCode": -1,
        "errorMessage": "user code exception caught",
        "requestId": request_id,
        "stackTrace": words,
        "statusCode": 430,
    }
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
