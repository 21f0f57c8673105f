"""A small process of its own that makes a Kafka cluster fit for the fabric: `python -m infra.app.prepare --data-dir D …`.

It waits until the cluster answers, makes Penstock's topics where they are missing, lets one consumer group join, and ends. After each
part it writes the part's name on stdout: `broker`, `topics`, `warm-up`.

Not done inside `penstock up`, for librdkafka can abort its process when a broker drops a coordinator request, and a client that got no
answer is best thrown away whole: ADR-0007.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from infra import clock
from infra.kafka import probe
from infra.kafka.admin import Admin
from infra.kafka.clients import Cluster
from infra.restarts import EXIT_CONFIG
from infra.settings import load
from schemas.errors import BrokerUnavailable, ConfigError, PenstockError, UserError
from schemas.topics import TOPICS

_FIRST_PATIENCE_S = 0.25
_PATIENCE_S = 2.0


async def prepare(cluster: Cluster, *, cluster_id: str, wait_s: float, warm_up: bool) -> None:
    """Do all parts; `cluster_id` is what must answer, empty when any may. Raises BrokerUnavailable or ConfigError."""
    found = await _answer(cluster, wait_s)
    if cluster_id and found != cluster_id:
        raise ConfigError(f"another Kafka cluster ({found}) answers at {cluster.bootstrap_servers}: stop it")
    _done("broker")
    admin = Admin(cluster)
    await admin.provision(TOPICS)
    _done("topics")
    if warm_up:
        await asyncio.to_thread(probe.warm_up, cluster.bootstrap_servers, timeout_s=30.0)
    _done("warm-up")


async def _answer(cluster: Cluster, wait_s: float) -> str:
    """The id of the cluster, once it answers. A broker that has just begun to listen may forget its first caller."""
    deadline_s = clock.mono_s() + wait_s
    patience_s = _FIRST_PATIENCE_S
    while True:
        try:
            return await Admin(cluster, timeout_s=patience_s).cluster_id()
        except BrokerUnavailable:
            if clock.mono_s() > deadline_s:
                raise
            patience_s = min(2 * patience_s, _PATIENCE_S)


def _done(part: str) -> None:
    print(part, flush=True)


def main() -> int:
    """The process; exit status 0 done, 78 something must be changed first, 1 try again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cluster-id", default="")
    parser.add_argument("--wait-s", type=float, default=120.0)
    parser.add_argument("--no-warm-up", action="store_true")
    args = parser.parse_args()
    try:
        settings = load(args.data_dir)
        options = {**settings.kafka_options, "log_level": "0"}  # every call's own result says what matters
        cluster = Cluster(settings.bootstrap_servers or "", tuple(options.items()))
        warm_up = not args.no_warm_up
        asyncio.run(prepare(cluster, cluster_id=args.cluster_id, wait_s=args.wait_s, warm_up=warm_up))
    except PenstockError as exc:
        print(exc, file=sys.stderr)
        return EXIT_CONFIG if isinstance(exc, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
