"""Packages with a `bootstrap`, for tests of custom runtimes."""

from __future__ import annotations

from tests.packages import zipped

SCF = '''#!/usr/bin/env python3
import http.client, json, os, sys, time

ours = http.client.HTTPConnection(os.environ["SCF_RUNTIME_API"], int(os.environ["SCF_RUNTIME_API_PORT"]))

def ask(method, path, body=None, **headers):
    """Status, headers, bytes."""
    ours.request(method, "/runtime/" + path, body, headers)
    answer = ours.getresponse()
    return answer.status, answer.headers, answer.read()

def ready():
    return ask("POST", "init/ready", " ")[0]

def next_event():
    _, headers, body = ask("GET", "invocation/next")
    return headers, json.loads(body)

def respond(body):
    return ask("POST", "invocation/response", body)[0]

def loop(handler):
    ready()
    while True:
        headers, event = next_event()
        respond(json.dumps(handler(event, headers)))

'''
"""Beginning of a Python bootstrap that speaks SCF's runtime API."""

ECHO = SCF + "loop(lambda event, headers: event)\n"


def bootstrap(code: str | bytes, *more: tuple[str, bytes]) -> bytes:
    """A package whose bootstrap is this program."""
    return zipped(("bootstrap", code if isinstance(code, bytes) else code.encode()), *more)
