"""The command `penstock`: what it takes, and which module does it. Modules are imported when their verb is used, not before."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

from infra.app.console import ExitStatus, complain, status_of
from schemas.errors import PenstockError, PlatformError
from schemas.limits import (
    INIT_TIMEOUT_RANGE_S,
    MEMORY_CHOICES_MIB,
    TIMEOUT_RANGE_S,
    TRIGGER_BATCH_RANGE,
    TRIGGER_CONCURRENCY_RANGE,
    TRIGGER_RETRIES_RANGE,
)

VERSION: Final = "0.1.0"
"""As in pyproject.toml; asking the installed distribution would cost a fifth of `status`."""
_EXITS: Final = "exit status: 0 done; 1 refused or failed; 2 wrong command line or setting; 3 the fabric does not answer, or is at fault"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a log line may hold anything
    try:
        try:
            return _carry_out(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.BROKEN_PIPE


def _carry_out(arguments: Sequence[str]) -> int:
    try:
        args = make_parser().parse_args(arguments)
        args.data_dir = args.data_dir or args.data_dir_first
        module, _, function = args.handler_of_verb.partition(":")
        return int(getattr(import_module(module), function)(args))
    except PenstockError as exc:
        complain(exc)
        return status_of(exc)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as exc:  # noqa: BLE001 - the last door: never a traceback, unless asked for
        fault = PlatformError(f"{type(exc).__name__}: {exc} (a fault of Penstock; PENSTOCK_DEBUG=1 shows where)")
        fault.__cause__ = exc
        complain(fault)
        return ExitStatus.PLATFORM


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong; the usage text is what --help is for."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitStatus.USAGE, f"{self.prog}: {message}; `{self.prog} --help` shows what it takes\n")


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="penstock",
        description="Carries events from Kafka to functions that run in sandboxes.",
        epilog="The data folder (--data-dir, else PENSTOCK_DATA_DIR, else ~/.penstock) says which fabric is meant. "
        + _EXITS,
    )
    parser.add_argument("--version", action="version", version=f"penstock {VERSION}")
    parser.add_argument("--data-dir", dest="data_dir_first", metavar="DIR", help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in (_up, _demo, _status, _deploy, _invoke, _logs, _trigger, _keys, _workflow, _top, _version):
        add(verbs)
    return parser


def show_version(args: argparse.Namespace) -> ExitStatus:
    """`penstock version`."""
    import json

    print(json.dumps({"version": VERSION}) if args.json else f"penstock {VERSION}")
    return ExitStatus.OK


def _verb(verbs: Any, name: str, handler: str, summary: str, **more: Any) -> argparse.ArgumentParser:
    """A verb with what all verbs take."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_EXITS,
        allow_abbrev=False,
        **more,
    )
    parser.set_defaults(handler_of_verb=handler, verb=name)
    parser.add_argument(
        "--data-dir", metavar="DIR", help="the fabric's data folder (default: PENSTOCK_DATA_DIR, else ~/.penstock)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _namespaced(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--namespace", default="default", metavar="N", help="the function's namespace (default: default)"
    )


def _whole(low: int, high: int) -> Any:
    """A converter for whole numbers in a range, ends included."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return number

    return convert


def _memory(text: str) -> int:
    if not text.isdigit() or int(text) not in MEMORY_CHOICES_MIB:
        raise argparse.ArgumentTypeError(f"{text!r} is none of 64, 128, 256, … {MEMORY_CHOICES_MIB[-1]} (steps of 128)")
    return int(text)


def _up(verbs: Any) -> None:
    parser = _verb(
        verbs, "up", "infra.app.up:run", "start a fabric in the foreground; Ctrl-C stops it and its state stays"
    )
    parser.add_argument(
        "--port", type=_whole(1, 65_535), help="of the cloud API (default: the last used, else a free one)"
    )
    parser.add_argument(
        "--bootstrap-servers", metavar="HOST:PORT,…", help="use this Kafka cluster, and start no broker"
    )
    parser.add_argument(
        "--s3-endpoint",
        metavar="URL",
        help="keep code packages in this S3 API, and start no object store (keys: PENSTOCK_S3_ACCESS_KEY, PENSTOCK_S3_SECRET_KEY)",
    )
    parser.add_argument(
        "--driver",
        choices=("auto", "jail", "microvm"),
        help="how functions are isolated (default: auto, the strongest that works here)",
    )
    parser.add_argument(
        "--allow-weaker-isolation",
        action="store_const",
        const=True,
        help="go on although this machine can't isolate functions fully",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the effective settings (secrets masked), and end"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="say what is being done, and how long each part of the start took"
    )


def _demo(verbs: Any) -> None:
    _verb(verbs, "demo", "infra.app.demo:run", "show the main job end to end: real records run a function in a sandbox")


def _status(verbs: Any) -> None:
    _verb(
        verbs,
        "status",
        "infra.app.status:run",
        "show endpoints, processes and warnings; exit status 0 when ready, else 3",
    )


def _deploy(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "deploy",
        "infra.app.deploy:run",
        "create or update a function from a folder or zip, and wait until it is Active",
    )
    parser.add_argument(
        "source", metavar="DIR|ZIP", help="the code; .git, __pycache__ and .venv are left out of a folder"
    )
    parser.add_argument(
        "--handler", metavar="FILE.FUNCTION", help="what to call, e.g. index.main_handler; CustomRuntime goes without"
    )
    parser.add_argument("--name", metavar="F", help="the function's name (default: the folder's)")
    parser.add_argument(
        "--runtime", metavar="R", help="Python3.10 (a new function), or CustomRuntime for a package with a bootstrap"
    )
    parser.add_argument(
        "--memory", type=_memory, metavar="MIB", help="64, or 128 to 3072 in steps of 128 (a new function: 128)"
    )
    parser.add_argument(
        "--timeout", type=_whole(*TIMEOUT_RANGE_S), metavar="S", help="seconds a run may take (a new function: 3)"
    )
    parser.add_argument(
        "--init-timeout",
        type=_whole(*INIT_TIMEOUT_RANGE_S),
        metavar="S",
        help="seconds its import may take (a new function: 65)",
    )
    parser.add_argument(
        "--env",
        action="append",
        metavar="K=V",
        help="an environment variable; repeat it; those given replace all that were",
    )
    parser.add_argument("--description", metavar="TEXT")
    _namespaced(parser)


def _invoke(verbs: Any) -> None:
    parser = _verb(
        verbs, "invoke", "infra.app.invoke:run", "run a function once and print what it returned (--json: SCF's Result)"
    )
    parser.add_argument("function", metavar="F")
    parser.add_argument("--payload", metavar="JSON|@FILE", help="the event; @- reads stdin (default: {})")
    parser.add_argument("--qualifier", metavar="Q", help="version or alias (default: $LATEST)")
    parser.add_argument("--async", dest="is_async", action="store_true", help="hand the event over and don't wait")
    parser.add_argument("--tail", action="store_true", help="show the end of the run's log, on stderr")
    _namespaced(parser)


def _logs(verbs: Any) -> None:
    parser = _verb(
        verbs, "logs", "infra.app.logs:run", "print a function's log, oldest first: everything kept, or from --since on"
    )
    parser.add_argument("function", metavar="F")
    parser.add_argument("--follow", action="store_true", help="go on with new lines until Ctrl-C")
    parser.add_argument("--since", metavar="T", help="10m (30s, 2h, 1d) ago, an ISO-8601 time, or unix milliseconds")
    parser.add_argument("--request-id", metavar="ID", help="of one invocation only")
    _namespaced(parser)


def _trigger(verbs: Any) -> None:
    summary = "bind functions to what they are to be run by"
    group = verbs.add_parser("trigger", help=summary, description=summary[0].upper() + summary[1:] + ".")
    verbs = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    _trigger_create(verbs)
    parser = _verb(
        verbs,
        "list",
        "infra.app.trigger:list_sources",
        "show triggers, where they stand in each partition, and why one does not move",
    )
    parser.add_argument("function", metavar="F", nargs="?", help="of this function only")
    _namespaced(parser)
    for name, summary in (
        ("delete", "delete a trigger; its dead letters stay"),
        ("pause", "stop a trigger where it is"),
        ("resume", "let a paused trigger go on from where it stopped"),
    ):
        parser = _verb(verbs, name, "infra.app.trigger:change", summary)
        parser.add_argument(
            "names",
            metavar="[F] NAME",
            nargs="+",
            help="the trigger's name, behind its function's if several have one of this name",
        )
        parser.add_argument("--name", metavar="NAME", help="the trigger's name; the function's then stands alone")
        _namespaced(parser)


def _trigger_create(verbs: Any) -> None:
    parser = _verb(verbs, "create", "infra.app.trigger:create", "run a function for every record of a Kafka topic")
    parser.add_argument("function", metavar="F")
    parser.add_argument("--type", required=True, choices=("ckafka",), help="the kind of source")
    parser.add_argument("--topic", required=True, metavar="T", help="it must exist")
    parser.add_argument("--name", metavar="N", help="of the trigger, unique in its namespace (default: the topic's)")
    parser.add_argument(
        "--bootstrap-servers", metavar="HOST:PORT,…", help="of the topic's cluster (default: the fabric's)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        default="latest",
        metavar="WHEN",
        help="where to begin: latest (the default), earliest, unix milliseconds, or an ISO-8601 time",
    )
    parser.add_argument(
        "--batch", type=_whole(*TRIGGER_BATCH_RANGE), metavar="N", help="records at most in one invocation (default: 1)"
    )
    parser.add_argument(
        "--concurrency",
        type=_whole(*TRIGGER_CONCURRENCY_RANGE),
        metavar="N",
        help="invocations at once, over all partitions (default: 32)",
    )
    parser.add_argument(
        "--retries", type=_whole(*TRIGGER_RETRIES_RANGE), metavar="N", help="tries after the first (default: 3)"
    )
    parser.add_argument("--ordering", choices=("key", "partition", "none"), help="what keeps its order (default: key)")
    parser.add_argument(
        "--on-poison",
        choices=("skip",),
        help="when all tries of a record failed: skip lets it go to the dead-letter topic, and goes on",
    )
    _namespaced(parser)


def _keys(verbs: Any) -> None:
    summary = "make, list, rotate and delete the key pairs that calls are signed with"
    group = verbs.add_parser("keys", help=summary, description=summary[0].upper() + summary[1:] + ".")
    verbs = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    parser = _verb(verbs, "create", "infra.app.keys:create", "make a key pair; its secret is shown this once")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--appid", metavar="A", help="for this tenant (default: the fabric's own)")
    whose.add_argument("--new-tenant", action="store_true", help="for a new tenant, whose appid is made up")
    parser.add_argument("--description", metavar="TEXT")
    parser.add_argument("--valid", metavar="T", help="how long it is good, e.g. 30d (default: for ever)")
    parser.add_argument("--out", metavar="FILE", help="write it to a new credentials file too, which only you may read")
    parser = _verb(verbs, "list", "infra.app.keys:list_keys", "show keys, without their secrets")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--appid", metavar="A", help="of this tenant (default: the fabric's own)")
    whose.add_argument("--all", action="store_true", help="of every tenant")
    parser = _verb(verbs, "rotate", "infra.app.keys:rotate", "give a key a new secret, which is shown this once")
    parser.add_argument("secret_id", metavar="SECRET_ID")
    parser.add_argument(
        "--grace", default="24h", metavar="T", help="how long the secret before stays good, 0 to 7d (default: 24h)"
    )
    parser = _verb(verbs, "delete", "infra.app.keys:delete", "delete a key; calls signed with it are refused at once")
    parser.add_argument("secret_id", metavar="SECRET_ID")


def _workflow(verbs: Any) -> None:
    summary = "show and replay what the control plane did: each create, update and delete of a function, step by step"
    group = verbs.add_parser("workflow", help=summary, description=summary[0].upper() + summary[1:] + ".")
    verbs = group.add_subparsers(title="verbs", metavar="VERB", required=True)
    parser = _verb(
        verbs, "list", "infra.app.workflow:list_workflows", "the newest of the last 7 days, and what they wait for"
    )
    parser.add_argument("function", nargs="?", metavar="FUNCTION", help="of this function only")
    parser.add_argument("--namespace", metavar="N", help="of this namespace only")
    parser.add_argument("--state", choices=("running", "undoing", "succeeded", "failed"), help="in this state only")
    parser.add_argument("--limit", type=_whole(1, 200), default=50, metavar="N", help="at most so many (default: 50)")
    for name, what in (
        ("show", "every step, attempt, time and reason of one"),
        ("replay", "decide its recorded history again and compare; exit 1 when other decisions come out"),
    ):
        parser = _verb(verbs, name, f"infra.app.workflow:{name}", what)
        parser.add_argument("id", metavar="ID")


def _top(verbs: Any) -> None:
    parser = _verb(verbs, "top", "infra.app.top:run", "show what runs now, by function; Ctrl-C ends")
    parser.add_argument("--once", action="store_true", help="print it once")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between two looks (default: 1)")


def _version(verbs: Any) -> None:
    _verb(verbs, "version", "infra.app.cli:show_version", "print Penstock's version")


if __name__ == "__main__":
    main()
