"""What a custom runtime's requests lead to, by SCF's paths and by those of AWS Lambda."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sandbox.runner import worker
from sandbox.runner.http1 import Request
from sandbox.runner.runtimeapi import (
    BAD_EVENT,
    OK,
    REPLY_TOO_LARGE,
    USER_EXCEPTION,
    Answer,
    Done,
    Effect,
    Limits,
    Ready,
    Run,
    RuntimeApi,
)
from schemas.frames import DoneOutcome, Kind

NEXT, RESPONSE, ERROR = "/runtime/invocation/next", "/runtime/invocation/response", "/runtime/invocation/error"
AWS = "/2018-06-01/runtime"
ONE, TWO = Run(1, "id-1", b'{"n":1}'), Run(2, "id-2", b'{"n":2}')


class Talk:
    """A runtime's end, at 1000 ms."""

    def __init__(self) -> None:
        self.api = RuntimeApi(Limits(128, 3000, "qcs::scf:r:uin/1:namespace/default/function/f"))

    def get(self, path: str = NEXT, *, by: int = 1) -> list[Effect]:
        return self.api.request(by, Request("GET", path, {}, b"", True), 1000)

    def post(self, path: str, body: bytes | None = b"", *, by: int = 1) -> list[Effect]:
        return self.api.request(by, Request("POST", path, {}, body, True), 1000)

    def run(self, run: Run) -> list[Effect]:
        return self.api.run(run, 1000)


@pytest.fixture
def talk() -> Talk:
    return Talk()


def status(effects: list[Effect]) -> int:
    (answer,) = [effect for effect in effects if isinstance(effect, Answer)]
    return answer.status


def test_the_outcomes_are_those_of_the_frames() -> None:
    assert list(DoneOutcome)[:4] == [OK, USER_EXCEPTION, BAD_EVENT, REPLY_TOO_LARGE]


def test_the_workers_kinds_of_frames_are_those_of_the_agent() -> None:
    names = ("LOAD", "READY", "RUN", "DONE", "LOG", "RUN_BATCHED", "LEAVING")
    assert [getattr(worker, name) for name in names] == [Kind[name] for name in names]


def test_a_runtime_is_between_events_only_after_it_has_done_one(talk: Talk) -> None:
    acts: list[Callable[[], object]] = [
        talk.get,
        lambda: talk.run(ONE),
        lambda: talk.post(RESPONSE, b"1"),
        lambda: talk.run(TWO),
        talk.get,
    ]
    assert [act() is not None and talk.api.is_between for act in acts] == [False, False, True, True, False]


def test_the_first_ready_counts_and_a_next_is_one_too(talk: Talk) -> None:
    assert talk.post("/runtime/init/ready") == [Ready(), Answer(1, 200, {}, b"")]
    assert talk.post("/runtime/init/ready") == [Answer(1, 200, {}, b"")]
    assert talk.get() == []
    assert Talk().get(f"{AWS}/invocation/next") == [Ready()]


def test_next_waits_for_an_event_and_gets_it_with_scfs_headers(talk: Talk) -> None:
    talk.get()
    (answer,) = talk.run(ONE)
    assert isinstance(answer, Answer)
    assert (answer.to, answer.status, answer.body) == (1, 200, ONE.event)
    own = {"request_id": "id-1", "memory_limit_in_mb": "128", "time_limit_in_ms": "3000"}
    assert own.items() <= answer.headers.items()


def test_by_awss_path_it_has_awss_headers(talk: Talk) -> None:
    talk.get(f"{AWS}/invocation/next")
    (answer,) = talk.run(ONE)
    assert isinstance(answer, Answer)
    own = {
        "Lambda-Runtime-Aws-Request-Id": "id-1",
        "Lambda-Runtime-Deadline-Ms": "4000",
        "Lambda-Runtime-Invoked-Function-Arn": "qcs::scf:r:uin/1:namespace/default/function/f",
    }
    assert own.items() <= answer.headers.items()


def test_next_asked_again_in_the_same_run_gets_the_same_event(talk: Talk) -> None:
    talk.run(ONE)
    talk.run(TWO)
    first, again = talk.get()[1:], talk.get(by=2)
    assert [a.body for a in (*first, *again) if isinstance(a, Answer)] == [ONE.event] * 2


def test_the_next_event_comes_after_the_result_of_the_one_before(talk: Talk) -> None:
    talk.run(ONE)
    talk.run(TWO)
    talk.get()
    assert talk.post(RESPONSE, b"not json") == [Done(1, OK, b"not json"), Answer(1, 200, {}, b"")]
    (answer,) = talk.get()
    assert isinstance(answer, Answer)
    assert answer.body == TWO.event


def test_one_of_several_that_wait_gets_the_event_and_one_that_is_gone_does_not(talk: Talk) -> None:
    for connection in (1, 2, 3):
        talk.get(by=connection)
    talk.api.gone(1)
    (answer,) = talk.run(ONE)
    assert isinstance(answer, Answer)
    assert answer.to == 2
    done, accepted, following = [*talk.run(TWO), *talk.post(RESPONSE, b"1", by=2)]
    assert isinstance(done, Done)
    assert isinstance(accepted, Answer)
    assert isinstance(following, Answer)
    assert (accepted.to, following.to, following.body) == (2, 3, TWO.event)


def test_the_first_result_wins_and_a_second_is_ignored(talk: Talk) -> None:
    talk.get()
    talk.run(ONE)
    talk.post(RESPONSE, b"1")
    assert talk.post(ERROR, b"2") == [Answer(1, 200, {}, b"")]


def test_a_result_before_any_event_is_refused(talk: Talk) -> None:
    assert status(talk.post(RESPONSE, b"1")) == 403
    assert status(talk.post(f"{AWS}/invocation/id-1/response", b"1")) == 400


def test_awss_paths_check_the_request_id_and_the_state(talk: Talk) -> None:
    talk.get()
    talk.run(ONE)
    assert status(talk.post(f"{AWS}/invocation/other/response", b"1")) == 400
    accepted = talk.post(f"{AWS}/invocation/id-1/response", b"1")
    assert accepted[0] == Done(1, OK, b"1")
    assert status(accepted) == 202
    assert status(talk.post(f"{AWS}/invocation/id-1/response", b"1")) == 403
    talk.run(TWO)
    talk.get()
    assert status(talk.post(f"{AWS}/invocation/id-1/response", b"1")) == 400


def test_a_reply_over_the_limit_ends_the_run_and_is_said(talk: Talk) -> None:
    talk.get()
    talk.run(ONE)
    done, answer = talk.post(RESPONSE, None)
    assert isinstance(done, Done)
    assert (done.corr, done.outcome) == (1, REPLY_TOO_LARGE)
    assert isinstance(answer, Answer)
    assert answer.status == 413


@pytest.mark.parametrize(
    ("path", "body", "trace"),
    [
        (ERROR, b"it broke", "it broke"),
        (ERROR, b"\xff{", "\ufffd{"),
        (
            f"{AWS}/invocation/id-1/error",
            b'{"errorType":"Oops","errorMessage":"no","stackTrace":["a","b"]}',
            "Oops: no\na\nb",
        ),
        (f"{AWS}/invocation/id-1/error", b'{"errorMessage":"no"}', "Error: no"),
    ],
)
def test_an_error_is_scfs_error_of_a_run(talk: Talk, path: str, body: bytes, trace: str) -> None:
    talk.get()
    talk.run(ONE)
    done = talk.post(path, body)[0]
    assert isinstance(done, Done)
    assert done.outcome == USER_EXCEPTION
    said = json.loads(done.body)
    assert (said["errorMessage"], said["statusCode"]) == ("user code exception caught", 430)
    assert (said["stackTrace"], said["requestId"]) == (trace, "id-1")


def test_an_event_that_is_not_json_is_answered_without_the_runtime(talk: Talk) -> None:
    talk.get()
    (done,) = talk.run(Run(7, "id-7", b"{"))
    assert isinstance(done, Done)
    assert (done.corr, done.outcome) == (7, BAD_EVENT)
    assert status(talk.run(ONE)) == 200


def test_what_is_printed_belongs_to_the_run_that_is_on_else_to_the_one_that_comes(talk: Talk) -> None:
    assert talk.api.writing_for == 0
    talk.get()
    talk.run(ONE)
    talk.run(TWO)
    assert talk.api.writing_for == 1
    talk.post(RESPONSE)
    assert talk.api.writing_for == 2


def test_an_init_error_says_why_and_only_before_it_was_ready(talk: Talk) -> None:
    said = talk.post(f"{AWS}/init/error", b'{"errorType":"Bad","errorMessage":"no model"}')
    assert said[1] == Ready(445, "the runtime could not start: Bad: no model", "Bad: no model")
    assert status(said) == 202
    other = Talk()
    other.get()
    assert status(other.post(f"{AWS}/init/error", b"late")) == 403


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("POST", NEXT, 405),
        ("GET", RESPONSE, 405),
        ("GET", "/runtime/init/ready", 405),
        ("POST", "/runtime/init/error", 404),
        ("POST", f"{AWS}/init/ready", 404),
        ("POST", f"{AWS}/invocation/response", 404),
        ("GET", "/", 404),
        ("POST", "/runtime/invocation/a/b/response", 404),
    ],
)
def test_what_is_not_there_is_said(talk: Talk, method: str, path: str, wanted: int) -> None:
    assert status(talk.api.request(1, Request(method, path, {}, b"", True), 0)) == wanted
