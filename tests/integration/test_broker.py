"""The embedded broker: a real Kafka that starts anywhere, is known by its cluster id and survives its crashes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from infra.broker.installation import Installation
from infra.broker.kafka import Broker, running_broker, serving_broker
from infra.loopback import free_port
from infra.tether import tethered
from schemas.errors import BrokerUnavailable, PortTaken
from tests.kafka_client import join_and_read, make_topic, publish, read_all

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def test_a_restarted_broker_has_its_records_its_cluster_id_and_its_ports(
    tmp_path: Path, broker_installation: Installation
) -> None:
    with serving_broker(tmp_path, installation=broker_installation) as first:
        topic = make_topic(first.bootstrap_servers)
        publish(first.bootstrap_servers, topic, [b"one", b"two"])
        cluster, servers = first.broker.cluster_id, first.bootstrap_servers
    with serving_broker(tmp_path, installation=broker_installation) as second:
        assert (second.broker.cluster_id, second.bootstrap_servers) == (cluster, servers)
        assert [m.value() for m in read_all(second.bootstrap_servers, topic, 2)] == [b"one", b"two"]


def test_a_killed_broker_starts_again_with_every_acknowledged_record(
    tmp_path: Path, broker_installation: Installation
) -> None:
    sent = [b"%d" % i for i in range(2_000)]
    with serving_broker(tmp_path, installation=broker_installation) as first:
        topic = make_topic(first.bootstrap_servers)
        publish(first.bootstrap_servers, topic, sent)
        first.kill()
    started = time.monotonic()
    with serving_broker(tmp_path, installation=broker_installation) as second:
        assert time.monotonic() - started < 15  # with Kafka's own session time-out it is 11 s and more
        assert [m.value() for m in read_all(second.bootstrap_servers, topic, len(sent))] == sent


def test_a_data_folder_may_have_an_unusual_name(tmp_path: Path, broker_installation: Installation) -> None:
    with serving_broker(tmp_path / "dätä 数据 \\x", installation=broker_installation, warm=False) as running:
        running.broker.probe(5.0)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_after_the_warm_up_a_group_joins_and_reads_within_a_moment(bootstrap: str, topic: str, protocol: str) -> None:
    publish(bootstrap, topic, [b"x"])
    # The best of three, so that a busy machine does not fail it: without the warm-up the first takes 3 s.
    assert min(join_and_read(bootstrap, topic, protocol=protocol) for _ in range(3)) < 1.5


def test_the_first_group_of_a_warmed_broker_joins_within_a_moment(
    tmp_path: Path, broker_installation: Installation
) -> None:
    with serving_broker(tmp_path, installation=broker_installation) as running:
        topic = make_topic(running.bootstrap_servers)
        publish(running.bootstrap_servers, topic, [b"x"])
        assert join_and_read(running.bootstrap_servers, topic) < 1.5


def test_an_asked_port_that_is_taken_is_an_error_that_names_it(
    tmp_path: Path, broker_installation: Installation
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} .* choose another"):
            Broker(tmp_path, broker_installation, port=port).prepare()


def test_a_port_that_was_not_asked_for_is_changed_when_it_is_taken(
    tmp_path: Path, broker_installation: Installation
) -> None:
    with serving_broker(tmp_path, installation=broker_installation) as first:
        topic = make_topic(first.bootstrap_servers)
        publish(first.bootstrap_servers, topic, [b"x"])
        port = first.broker.port
    with (
        socket.create_server(("127.0.0.1", port)),
        serving_broker(tmp_path, installation=broker_installation) as second,
    ):
        assert second.broker.port != port
        assert join_and_read(second.bootstrap_servers, topic) < 20


def test_another_kafka_on_our_port_is_not_taken_for_ours(
    tmp_path: Path, broker_installation: Installation, bootstrap: str
) -> None:
    ours = Broker(tmp_path, broker_installation)
    ours.prepare()
    ours.port = int(bootstrap.rpartition(":")[2])
    with pytest.raises(PortTaken, match="another Kafka answers there"):
        ours.probe(5.0)


def test_a_listener_that_is_no_kafka_is_not_taken_for_ours(tmp_path: Path, broker_installation: Installation) -> None:
    ours = Broker(tmp_path, broker_installation)
    ours.prepare()
    with socket.create_server(("127.0.0.1", ours.port)), pytest.raises(BrokerUnavailable):
        ours.probe(0.5)


def test_a_broker_that_can_not_start_says_why(tmp_path: Path, broker_installation: Installation) -> None:
    with serving_broker(tmp_path, installation=broker_installation, warm=False) as first:
        with pytest.raises(BrokerUnavailable, match=r"(?s)ended with status \d+ before it was ready.*\.lock"):
            with serving_broker(tmp_path, installation=broker_installation):
                pass
        first.broker.probe(5.0)


async def test_an_event_loop_goes_on_while_a_broker_starts(tmp_path: Path, broker_installation: Installation) -> None:
    async with running_broker(tmp_path, installation=broker_installation, warm=False) as running:
        assert await running.broker.is_ready()
    assert not running.process.is_running
    assert not await running.broker.is_ready()


def test_a_broker_does_not_outlive_a_killed_parent(tmp_path: Path, broker_installation: Installation) -> None:
    program = textwrap.dedent(
        """
        import pathlib, sys
        from infra.broker.kafka import serving_broker
        with serving_broker(pathlib.Path(sys.argv[1]), warm=False) as running:
            print(running.process.pid, flush=True)
            sys.stdin.read()
        """
    )
    parent = subprocess.Popen(
        tethered([sys.executable, "-c", program, str(tmp_path)]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None and parent.stdout is not None
    with parent, parent.stdin, parent.stdout:
        broker_pid = int(parent.stdout.readline())
        os.kill(broker_pid, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while Path(f"/proc/{broker_pid}/stat").exists() and " Z " not in Path(f"/proc/{broker_pid}/stat").read_text():
            assert time.monotonic() < deadline, "the broker still runs"
            time.sleep(0.01)


def test_an_asked_port_is_used(tmp_path: Path, broker_installation: Installation) -> None:
    port = free_port()
    with serving_broker(tmp_path, installation=broker_installation, port=port, warm=False) as running:
        assert running.bootstrap_servers == f"127.0.0.1:{port}"
