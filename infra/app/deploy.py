"""`penstock deploy`: a folder or zip becomes an Active function, or all stays as it was.

A function that this deploy created and that failed is deleted again. A failed update leaves the earlier code serving; a
configuration that was changed before the code was refused is put back.
"""

from __future__ import annotations

import argparse
import base64
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from infra import clock
from infra.app.bundle import bundle, check_bootstrap, check_handler
from infra.app.client import connect
from infra.app.console import ExitStatus, UsageProblem, note, say, say_json
from infra.app.state import FabricFolder, choose_folder
from schemas.errors import BadRequest, DeadlineExceeded
from schemas.ids import CUSTOM_RUNTIME, is_function_name
from schemas.limits import INLINE_ZIP_BYTES
from schemas.package import check_zip

WAIT_S: Final = 120.0
_POLL_S: Final = 0.05
_MOVING: Final = frozenset({"Creating", "Updating", "Publishing", "Deleting"})


class Api(Protocol):
    """The cloud API, as far as deploying goes; `infra.app.client.Client` is one."""

    def call(self, action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The answer's fields; raises BadRequest."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be deployed.

    `code` is the API's structure Code; `handler` is empty for what is there, or the default; `configuration` holds what was asked for, by the API's names; the rest stays, or is default.
    """

    function: str
    namespace: str
    handler: str
    code: Mapping[str, str]
    configuration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Deployed:
    """How it ended. `reasons` are StatusReasons when it failed; `is_serving` says whether any version runs now."""

    created: bool
    status: str
    reasons: tuple[str, ...] = ()
    is_serving: bool = True

    @property
    def is_good(self) -> bool:
        return self.status == "Active"


class Deployment:
    """One deploy over the API.

    Args:
        api: the fabric's.
        wish: what to deploy.
        wait_s: the most to wait for one change to settle.
        pause: called between two looks at a function that is changing.
    """

    def __init__(
        self, api: Api, wish: Wish, *, wait_s: float = WAIT_S, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._api, self._wish, self._wait_s, self._pause = api, wish, wait_s, pause
        self._name = {"FunctionName": wish.function, "Namespace": wish.namespace}

    def run(self) -> Deployed:
        """Create or update, and wait.

        Raises:
            BadRequest: the API refused; nothing is changed.
            DeadlineExceeded: it did not settle in time.
        """
        existing = self._settled(self._look())
        if existing is not None and existing["Status"] in ("CreateFailed", "DeleteFailed"):
            self._delete()  # a leftover that never ran
            existing = None
        return self._create() if existing is None else self._update(existing)

    def _create(self) -> Deployed:
        configuration = {"Runtime": "Python3.10", **self._wish.configuration}
        fields = {**self._name, **self._code(), **configuration}
        try:
            self._api.call("CreateFunction", fields)
        except BadRequest as exc:
            if exc.api_code != "ResourceNotFound.Namespace":
                raise
            self._make_namespace()
            self._api.call("CreateFunction", fields)
        made = self._settled(self._look())
        if made is None:
            raise BadRequest("ResourceNotFound.Function", f"function {self._wish.function} was deleted by someone else")
        if made["Status"] == "Active":
            return Deployed(created=True, status="Active")
        self._delete()
        return Deployed(created=True, status=made["Status"], reasons=_reasons(made), is_serving=False)

    def _make_namespace(self) -> None:
        """Nobody asks for a function in a namespace to be told to make the namespace first."""
        try:
            self._api.call("CreateNamespace", {"Namespace": self._wish.namespace})
        except BadRequest as exc:
            if exc.api_code != "ResourceInUse.Namespace":  # made by another just now
                raise

    def _update(self, existing: Mapping[str, Any]) -> Deployed:
        before = {name: existing.get(name) for name in self._wish.configuration}
        changed = {n: v for n, v in self._wish.configuration.items() if not _equal(n, v, before[n])}
        if changed:
            after = self._change("UpdateFunctionConfiguration", changed)
            if after["Status"] != "Active":
                return Deployed(created=False, status=after["Status"], reasons=_reasons(after))
        try:
            after = self._change("UpdateFunctionCode", self._code())
        except BadRequest:
            self._put_back(before, changed)
            raise
        if after["Status"] != "Active":
            self._put_back(before, changed)
        return Deployed(created=False, status=after["Status"], reasons=_reasons(after))

    def _code(self) -> dict[str, Any]:
        handler = {"Handler": self._wish.handler} if self._wish.handler else {}
        return {**handler, "Code": self._wish.code}

    def _put_back(self, before: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
        if changed:
            self._change("UpdateFunctionConfiguration", {name: before[name] for name in changed})

    def _change(self, action: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        self._api.call(action, {**self._name, **fields})
        after = self._settled(self._look())
        if after is None:
            raise BadRequest("ResourceNotFound.Function", f"function {self._wish.function} was deleted by someone else")
        return after

    def _delete(self) -> None:
        self._api.call("DeleteFunction", self._name)
        deadline_s = clock.mono_s() + self._wait_s
        while (seen := self._look()) is not None and seen["Status"] != "DeleteFailed":
            self._pause_until(deadline_s, seen)

    def _look(self) -> dict[str, Any] | None:
        try:
            return self._api.call("GetFunction", self._name)
        except BadRequest as exc:
            if exc.api_code.startswith(("ResourceNotFound.Function", "ResourceNotFound.Namespace")):
                return None
            raise

    def _settled(self, seen: dict[str, Any] | None) -> dict[str, Any] | None:
        """The function when nothing is under way with it."""
        deadline_s = clock.mono_s() + self._wait_s
        while seen is not None and seen["Status"] in _MOVING:
            self._pause_until(deadline_s, seen)
            seen = self._look()
        return seen

    def _pause_until(self, deadline_s: float, seen: Mapping[str, Any]) -> None:
        if clock.mono_s() >= deadline_s:
            raise DeadlineExceeded(
                f"function {self._wish.function} is still {seen['Status']} after {self._wait_s:g} s:"
                " are streams and agent running? See `penstock status`"
            )
        self._pause(_POLL_S)


def _reasons(function: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{r['ErrorCode']}: {r['ErrorMessage']}" for r in function.get("StatusReasons") or ())


def _equal(name: str, wanted: Any, there: Any) -> bool:
    if name == "Environment":
        return _variables(wanted) == _variables(there)
    return bool(wanted == there)


def _variables(environment: Any) -> dict[str, str]:
    return {v["Key"]: v["Value"] for v in (environment or {}).get("Variables") or ()}


def run(args: argparse.Namespace) -> ExitStatus:
    """The command."""
    package = bundle(Path(args.source))
    handler = handler_of(args)
    check_package(package, handler, args.runtime)
    name, configuration = name_of(args), configuration_of(args)
    folder = choose_folder(args.data_dir)
    with _sent(folder, package) as code:
        wish = Wish(name, args.namespace, handler, code, configuration)
        deployed = Deployment(connect(folder), wish).run()
    if args.json:
        say_json(
            {
                "FunctionName": name,
                "Namespace": args.namespace,
                "Status": deployed.status,
                "StatusReasons": list(deployed.reasons),
                "Created": deployed.created,
                "CodeSize": len(package),
            }
        )
    if deployed.is_good:
        if not args.json:
            done = "created" if deployed.created else "updated"
            what = f"handler {handler}" if handler else "by its bootstrap"
            say(f"{name} is {done} and Active ({len(package):,} bytes, {what})")
        return ExitStatus.OK
    note(f"penstock: {name} could not be {'created' if deployed.created else 'updated'} ({deployed.status})")
    for reason in deployed.reasons:
        note(f"  {reason}")
    note("  the version from before keeps serving" if deployed.is_serving else "  nothing was kept of it")
    return ExitStatus.FAILED


def check_package(package: bytes, handler: str, runtime: str | None) -> None:
    """What can be seen before anything is sent. Raises BadPackage."""
    if runtime == CUSTOM_RUNTIME:
        check_bootstrap(package)
        return
    may_be_custom = runtime is None and "bootstrap" in check_zip(package).files  # the function that is there may be one
    if not may_be_custom:
        check_handler(package, handler)


def handler_of(args: argparse.Namespace) -> str:
    """The handler as given; a custom runtime may go without (empty). Raises UsageProblem."""
    if args.handler is not None:
        handler: str = args.handler
        return handler
    if args.runtime != CUSTOM_RUNTIME:
        raise UsageProblem(
            "--handler is needed, e.g. --handler index.main_handler; only --runtime CustomRuntime goes without (see penstock deploy --help)"
        )
    return ""


@contextmanager
def _sent(folder: FabricFolder, package: bytes) -> Iterator[Mapping[str, str]]:
    """Structure Code for the package: in the request, or through the store when it is too large for one."""
    if len(package) <= INLINE_ZIP_BYTES:
        yield {"ZipFile": base64.b64encode(package).decode()}
        return
    from infra.app.upload import uploaded

    with uploaded(folder, package) as code:
        yield code


def name_of(args: argparse.Namespace) -> str:
    """The function's name: as given, else the folder's or zip's. Raises UsageProblem."""
    name: str = args.name or _name_of(Path(args.source))
    if not is_function_name(name):
        raise UsageProblem(
            f"{name!r} can't be a function's name (2 to 60 letters, digits, - or _, from a letter to a letter or digit):"
            " give one with --name"
        )
    return name


def configuration_of(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for of the function's configuration, by the API's names. Raises UsageProblem."""
    asked = {
        "Runtime": args.runtime,
        "MemorySize": args.memory,
        "Timeout": args.timeout,
        "InitTimeout": args.init_timeout,
        "Description": args.description,
        "Environment": {"Variables": _pairs(args.env)} if args.env is not None else None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _name_of(source: Path) -> str:
    resolved = source.resolve()
    return resolved.name if resolved.is_dir() else re.sub(r"\.zip\Z", "", resolved.name, flags=re.IGNORECASE)


def _pairs(given: list[str]) -> list[dict[str, str]]:
    pairs = []
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageProblem(f"--env {text!r} is not of the form NAME=VALUE")
        pairs.append({"Key": key, "Value": value})
    return pairs
