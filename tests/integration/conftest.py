"""Fixtures of the integration suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import kafka_client


@pytest.fixture
def make_topic(bootstrap: str) -> Callable[..., str]:
    """`make_topic(name=…, partitions=…, config=…)`: a new topic on the session's broker, by default with a new name."""

    def make(**wishes: object) -> str:
        return kafka_client.make_topic(bootstrap, **wishes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def topic(bootstrap: str) -> str:
    """A new topic of one partition."""
    return kafka_client.make_topic(bootstrap)
