"""The streams process: `python -m infra.app.streams --data-dir D --slot streams-1`."""

from __future__ import annotations

from infra.app.process import Process, main, wait_for_kafka
from streams.worker import StreamsConfig, run_streams


async def run(process: Process) -> None:
    """Wait for Kafka, then work."""
    settings = process.settings
    await wait_for_kafka(process.cluster)
    await run_streams(
        StreamsConfig(
            bootstrap_servers=process.cluster.bootstrap_servers,
            instance_id=process.slot,
            data_dir=settings.data_dir / "streams",
            host=settings.host,
            zone=settings.zone,
        )
    )


if __name__ == "__main__":
    main(run, quick_loop=False)
