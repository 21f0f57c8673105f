"""Fixtures of every suite: one real broker and one real object store per pytest process, started when first asked for.

With pytest-xdist each worker has its own: nothing is shared, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from infra.broker import installation
from infra.broker.install import install
from infra.broker.kafka import serving_broker
from infra.objectstore.rclone import RunningStore, serving_store
from schemas.errors import SetupError

_REQUIRED = {"kafka", "store", "jail", "chaos"}


def pytest_configure() -> None:
    """Say that there is no current event loop, else pytest-asyncio makes one (Python 3.11) and never closes it."""
    asyncio.set_event_loop(None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under PENSTOCK_CI a required suite may not skip: a machine that can't run it has not tested Penstock."""
    report = yield
    marks = _REQUIRED & {mark.name for mark in item.iter_markers()}
    if os.environ.get("PENSTOCK_CI") and report.skipped and marks and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under PENSTOCK_CI, marked {', '.join(sorted(marks))}: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def broker_installation() -> installation.Installation:
    """What `make setup` made for the broker; made now when it is not there."""
    try:
        return installation.load()
    except SetupError:
        return install(installation.build_folder())


@pytest.fixture(scope="session")
def bootstrap(
    broker_installation: installation.Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """`host:port` of a real broker that lives as long as the session; use topics and groups of your own."""
    folder = tmp_path_factory.mktemp("broker")
    with serving_broker(folder, installation=broker_installation) as running:
        yield running.bootstrap_servers


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStore]:
    """A real object store that lives as long as the session; use buckets of your own, and leave it running."""
    with serving_store(tmp_path_factory.mktemp("store")) as running:
        yield running
