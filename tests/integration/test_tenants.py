"""Tenants on a real fabric: keys made, rotated and deleted by the command line, a second gateway, namespaces, and what Kafka holds of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from infra import clock
from infra.app.client import Client
from infra.credentials import Credentials
from ingest.api.resends import SAME_SECOND_S
from schemas import tc3
from schemas.errors import BadRequest
from tests.fabric import Fabric, running_fabric, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

QUICK_S = 0.2


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with running_fabric(tmp_path_factory.mktemp("tenants") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def second(fabric: Fabric) -> Iterator[str]:
    """The endpoint of a second gateway of the same fabric."""
    with another_gateway(fabric) as endpoint:
        yield endpoint


@contextmanager
def another_gateway(fabric: Fabric) -> Iterator[str]:
    """A second gateway of a fabric; gives its endpoint."""
    environ, command = (
        Path(f"/proc/{fabric.pid('gateway')}/{name}").read_bytes().decode().rstrip("\0").split("\0")
        for name in ("environ", "cmdline")
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    named = dict(entry.split("=", 1) for entry in environ) | {"PENSTOCK_PORT": str(port)}
    slot = command.index("--slot") + 1
    with (fabric.data_dir / "log" / "gateway-2.log").open("wb") as log:
        process = subprocess.Popen([*command[:slot], "gateway-2"], env=named, stdout=log, stderr=log)
    try:
        until(lambda: listens(port), within_s=20, what="a second gateway")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def owner_of(fabric: Fabric) -> Credentials:
    return Credentials(**json.loads((fabric.data_dir / "credentials.json").read_text()))


def client(fabric: Fabric, key: dict[str, Any], api: str = "") -> Client:
    keys = Credentials(key["secret_id"], key["secret_key"], "ap-guangzhou", key["appid"], key["uin"])
    return Client(api or str(fabric.status()["endpoints"]["api"]), keys)


def code(caller: Client, action: str, **fields: Any) -> str:
    try:
        caller.call(action, fields)
    except BadRequest as exc:
        return exc.api_code
    return ""


def seconds_until(caller: Client, wanted: str) -> float:
    began = time.monotonic()
    until(lambda: code(caller, "ListFunctions") == wanted, within_s=5, what=f"answer {wanted!r}", every_s=0.005)
    return time.monotonic() - began


def new_key(fabric: Fabric, *flags: str) -> dict[str, Any]:
    return dict(fabric.ok("keys", "create", "--json", *flags).json)


def test_a_key_works_at_once_and_on_another_gateway_within_200_ms_and_is_gone_as_soon(
    fabric: Fabric, second: str
) -> None:
    owner = owner_of(fabric)
    api = Client(str(fabric.status()["endpoints"]["api"]), owner)
    arrivals, departures = [], []
    for _ in range(3):
        made = api.call("CreateKey", {})["Key"]
        key = {"secret_id": made["SecretId"], "secret_key": made["SecretKey"], "appid": made["AppId"], "uin": "1"}
        arrivals.append(seconds_until(client(fabric, key, second), ""))
        assert code(client(fabric, key), "ListFunctions") == ""
        api.call("DeleteKey", {"SecretId": made["SecretId"]})
        departures.append(seconds_until(client(fabric, key, second), "AuthFailure.SecretIdNotFound"))
        assert code(client(fabric, key), "ListFunctions") == "AuthFailure.SecretIdNotFound"
    print(f"key on another gateway: made {arrivals}, deleted {departures}")
    assert min(arrivals) < QUICK_S
    assert min(departures) < QUICK_S


def test_a_key_is_made_rotated_listed_and_deleted_by_the_command_line(fabric: Fabric, tmp_path: Path) -> None:
    kept = tmp_path / "keys.json"
    made = new_key(fabric, "--description", "ci", "--out", str(kept))
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["secret_key"] == made["secret_key"]
    listed = fabric.ok("keys", "list", "--json")
    assert made["secret_id"] in [k["secret_id"] for k in listed.json]
    assert made["secret_key"] not in listed.out
    rotated = fabric.ok("keys", "rotate", made["secret_id"], "--json").json
    assert rotated["secret_key"] != made["secret_key"]
    assert [code(client(fabric, k), "ListFunctions") for k in (made, rotated)] == ["", ""]
    again = fabric.ok("keys", "rotate", made["secret_id"], "--grace", "0", "--json").json
    assert [code(client(fabric, k), "ListFunctions") for k in (made, rotated, again)] == [
        "AuthFailure.SignatureFailure", "AuthFailure.SignatureFailure", "",
    ]  # fmt: skip
    fabric.ok("keys", "delete", made["secret_id"])
    assert fabric.penstock("keys", "delete", made["secret_id"]).code == 1
    assert code(client(fabric, again), "ListFunctions") == "AuthFailure.SecretIdNotFound"


def test_the_pair_of_the_credentials_file_stays(fabric: Fabric) -> None:
    owner = owner_of(fabric)
    for verb in ("rotate", "delete"):
        refused = fabric.penstock("keys", verb, owner.secret_id)
        assert (refused.code, "credentials file" in refused.err) == (1, True)


def test_a_new_tenant_has_its_own_names_and_keeps_its_last_key(fabric: Fabric, tmp_path: Path) -> None:
    tenant = new_key(fabric, "--new-tenant")
    theirs = client(fabric, tenant)
    fabric.deploy(tmp_path, "hello", "def main_handler(event, context):\n    return 'owner'\n")
    assert theirs.call("ListFunctions", {})["TotalCount"] == 0
    assert code(theirs, "Invoke", FunctionName="hello") == "ResourceNotFound.FunctionName"
    assert code(theirs, "DeleteKey", SecretId=tenant["secret_id"]) == "FailedOperation"
    assert code(theirs, "CreateKey", NewTenant="TRUE") == "UnauthorizedOperation"
    assert code(theirs, "RotateKey", SecretId=owner_of(fabric).secret_id) == "ResourceNotFound"
    assert theirs.call("GetActivity", {})["Members"] == []
    fabric.ok("keys", "delete", tenant["secret_id"])  # it has nothing, so its last key may go
    assert code(theirs, "ListFunctions") == "AuthFailure.SecretIdNotFound"


def test_a_captured_change_is_not_carried_out_again_by_another_gateway_or_after_a_restart(
    fabric: Fabric, second: str
) -> None:
    api = str(fabric.status()["endpoints"]["api"])
    key = new_key(fabric, "--new-tenant")
    body = b'{"Namespace": "captured"}'
    headers = tc3.signed_post(
        secret_id=key["secret_id"], secret_key=key["secret_key"], host="fabric", action="CreateNamespace",
        version="2018-04-16", body=body, timestamp_s=clock.unix_ms() // 1000,
    )  # fmt: skip

    def send(endpoint: str) -> dict[str, Any]:
        request = Request(endpoint, body, headers)
        with urlopen(request, timeout=20) as answer:
            return dict(json.load(answer)["Response"])

    first = send(api)
    assert "Error" not in first
    client(fabric, key).call("DeleteNamespace", {"Namespace": "captured"})
    sent = time.monotonic()
    until(lambda: time.monotonic() - sent > SAME_SECOND_S, within_s=5, what="the same second is over")
    assert send(api) == first
    assert send(second)["Error"]["Code"] == "AuthFailure.SignatureExpire"
    fabric.wait_back("gateway", fabric.kill("gateway"))
    assert send(api)["Error"]["Code"] == "AuthFailure.SignatureExpire"
    assert [n["Name"] for n in client(fabric, key).call("ListNamespaces", {})["Namespaces"]] == ["default"]


def test_keys_and_namespaces_survive_their_processes(fabric: Fabric) -> None:
    key = new_key(fabric)
    caller = client(fabric, key)
    caller.call("CreateNamespace", {"Namespace": "kept", "Description": "it stays"})
    for process in ("streams", "gateway"):
        fabric.wait_back(process, fabric.kill(process))
    listed = {n["Name"]: n["Description"] for n in caller.call("ListNamespaces", {})["Namespaces"]}
    assert listed == {"default": "", "kept": "it stays"}
    assert code(caller, "CreateNamespace", Namespace="kept") == "ResourceInUse.Namespace"
    caller.call("DeleteNamespace", {"Namespace": "kept"})


def test_a_namespaces_life(fabric: Fabric, second: str, tmp_path: Path) -> None:
    key = new_key(fabric, "--new-tenant")
    first, other = client(fabric, key), client(fabric, key, second)
    assert code(first, "ListFunctions", Namespace="ns") == "ResourceNotFound.Namespace"
    first.call("CreateNamespace", {"Namespace": "ns", "Description": "one"})
    assert code(first, "ListFunctions", Namespace="ns") == ""
    began = time.monotonic()
    until(lambda: code(other, "ListFunctions", Namespace="ns") == "", within_s=5, what="ns elsewhere", every_s=0.005)
    print(f"namespace on another gateway after {time.monotonic() - began:.3f} s")
    first.call("UpdateNamespace", {"Namespace": "ns", "Description": "two"})
    assert [n["Description"] for n in first.call("ListNamespaces", {})["Namespaces"] if n["Name"] == "ns"] == ["two"]
    for number in range(3):
        first.call("CreateNamespace", {"Namespace": f"n{number}"})
    assert code(other, "CreateNamespace", Namespace="more") == "LimitExceeded.Namespace"
    usage = first.call("GetAccount", {})["AccountUsage"]
    assert (usage["NamespacesCount"], [n["FunctionsCount"] for n in usage["Namespace"]]) == (5, [0] * 5)
    assert code(first, "DeleteNamespace", Namespace="default") == "InvalidParameterValue.DefaultNamespace"
    first.call("DeleteNamespace", {"Namespace": "ns"})
    assert code(first, "ListFunctions", Namespace="ns") == "ResourceNotFound.Namespace"


def test_deploy_makes_the_namespace_it_is_given_and_one_with_functions_stays(fabric: Fabric, tmp_path: Path) -> None:
    fabric.deploy(tmp_path, "inside", "def main_handler(event, context):\n    return 1\n", "--namespace", "deployed")
    own = Client(str(fabric.status()["endpoints"]["api"]), owner_of(fabric))
    assert code(own, "DeleteNamespace", Namespace="deployed") == "ResourceInUse.Namespace"
    own.call("DeleteFunction", {"FunctionName": "inside", "Namespace": "deployed"})
    own.call("DeleteNamespace", {"Namespace": "deployed"})


def test_no_secret_stands_in_clear_in_kafka_or_in_a_log(fabric: Fabric) -> None:
    key = new_key(fabric)
    secrets = [key["secret_key"], fabric.ok("keys", "rotate", key["secret_id"], "--json").json["secret_key"]]
    topics = [
        "penstock.control.tenants.v1", "penstock.registry.keys.v1", "penstock.control.outcomes.v1",
        "penstock-streams-tenants-changelog",
    ]  # fmt: skip
    held = b"".join(m.value() or b"" for topic in topics for m in fabric.read_all(topic))
    assert key["secret_id"].encode() in held
    logs = b"".join(path.read_bytes() for path in (fabric.data_dir / "log").iterdir())
    for secret in secrets:
        assert secret.encode() not in held
        assert secret.encode() not in logs
    assert os.stat(fabric.data_dir / "fabric.key").st_mode & 0o077 == 0
