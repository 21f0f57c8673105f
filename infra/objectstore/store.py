"""The one door to boto3: any S3 store, from a running event loop.

boto3 is blocking, so each call runs in a thread of a small pool of the store's own; more calls than threads wait for
their turn within their time limit. Every failure is one of

    ObjectNotFound      no such object or bucket
    PackageCorrupt      bytes without the hash that was given
    StoreUnavailable    no answer, too slow, or an answer that may be another one later (retryable)
    ConfigError         the store refuses our keys, or the request as such
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from schemas.errors import BadPackage, ConfigError, ObjectNotFound, PackageCorrupt, PenstockError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 2.0
_ATTEMPTS = 3
_WEEK_S = 7 * 86_400
_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_MINE_ALREADY = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
_OVERLOADED = {"SlowDown", "Throttling", "RequestTimeout", "ServiceUnavailable", "InternalError"}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One line of a listing. `modified_unix_ms` is the store's clock, not ours."""

    key: str
    size_bytes: int
    modified_unix_ms: int


class ObjectStore:
    """Objects of one S3 endpoint.

    Cancelling a call stops waiting for it; the request itself may still be carried out.

    Args:
        endpoint: `http(s)://host[:port]`; None is AWS's own for the region.
        access_key: Key id.
        secret_key: Its secret; kept out of every message.
        region: What the endpoint wants to see signed; most stores besides AWS take any.
        timeout_s: Limit of one call, its retries and its wait for a thread included; > 0.
        parallel: Calls at a time, each a thread and a connection; > 0.
    """

    def __init__(
        self,
        endpoint: str | None,
        access_key: str,
        secret_key: str,
        *,
        region: str = "us-east-1",
        timeout_s: float = 20.0,
        parallel: int = 8,
    ) -> None:
        self._where = endpoint or f"AWS, region {region}"
        self._region = region
        self._timeout_s = timeout_s
        self._client = _client(endpoint, access_key, secret_key, region=region, timeout_s=timeout_s, parallel=parallel)
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="objectstore")

    async def put(self, bucket: str, key: str, data: bytes, sha256: str) -> None:
        """Store bytes under a key, whole or not at all; replaces what was there.

        Args:
            bucket: It must exist (`ensure_bucket`).
            key: At most 1,024 bytes.
            data: May be empty.
            sha256: Hash of `data` in hexadecimal.

        Raises:
            PackageCorrupt: `data` has another hash; nothing is sent.
            ObjectNotFound: there is no such bucket.
        """

        def call() -> None:
            _check(data, sha256, f"{bucket}/{key} (to be stored)")
            self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentLength=len(data))

        await self._run(f"{bucket}/{key}", call)

    async def get(
        self, bucket: str, key: str, expect_sha256: str | None = None, *, limit_bytes: int | None = None
    ) -> bytes:
        """The bytes of an object; with `expect_sha256` (hexadecimal) their hash is checked.

        Raises:
            ObjectNotFound: there is no such object.
            PackageCorrupt: the bytes have another hash.
            BadPackage: the object is larger than `limit_bytes`; it is not read.
        """

        def call() -> bytes:
            answer = self._client.get_object(Bucket=bucket, Key=key)
            with answer["Body"] as body:
                if limit_bytes is not None and answer["ContentLength"] > limit_bytes:
                    raise BadPackage(
                        f"{bucket}/{key} has {answer['ContentLength']:,} bytes; the limit is {limit_bytes:,}"
                    )
                data: bytes = body.read()
            if expect_sha256 is not None:
                _check(data, expect_sha256, f"{bucket}/{key}")
            return data

        return await self._run(f"{bucket}/{key}", call)

    async def presigned_url(self, bucket: str, key: str, *, valid_s: int) -> str:
        """A URL by which anybody may GET the object, without keys of their own, for `valid_s` seconds (at most a week).

        Nothing is asked of the store: whether there is such an object shows when the URL is used. It names our access key's id, not its
        secret, and the endpoint as this process reaches it.
        """

        def call() -> str:
            # A week is SigV4's own limit; past it the store would refuse what we handed out.
            where = {"Bucket": bucket, "Key": key}
            return self._client.generate_presigned_url("get_object", Params=where, ExpiresIn=min(valid_s, _WEEK_S))

        return await self._run(f"{bucket}/{key}", call)

    async def exists(self, bucket: str, key: str) -> bool:
        """Whether there is such an object."""
        try:
            await self._run(f"{bucket}/{key}", lambda: self._client.head_object(Bucket=bucket, Key=key))
        except ObjectNotFound:
            return False
        return True

    async def delete(self, bucket: str, key: str) -> None:
        """Remove an object; one that is not there is fine."""
        try:
            await self._run(f"{bucket}/{key}", lambda: self._client.delete_object(Bucket=bucket, Key=key))
        except ObjectNotFound:
            return

    async def list(self, bucket: str, prefix: str = "") -> list[StoredObject]:
        """Every object whose key starts with the prefix, by key.

        Raises:
            ObjectNotFound: there is no such bucket.
        """

        def call() -> list[StoredObject]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return [
                StoredObject(entry["Key"], entry["Size"], int(entry["LastModified"].timestamp() * 1000))
                for page in pages
                for entry in page.get("Contents", ())
            ]

        return await self._run(bucket, call)

    async def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket unless it is there. Two at a time are fine."""
        try:
            await self._run(bucket, lambda: self._client.head_bucket(Bucket=bucket))
        except ObjectNotFound:
            await self._run(bucket, lambda: self._make_bucket(bucket))

    async def close(self) -> None:
        """Let running calls end, then close the connections."""
        await asyncio.to_thread(self._pool.shutdown)
        self._client.close()

    def _make_bucket(self, bucket: str) -> None:
        try:
            if self._region == "us-east-1":  # the one region that must not be named
                self._client.create_bucket(Bucket=bucket)
            else:
                where = {"LocationConstraint": self._region}
                self._client.create_bucket(Bucket=bucket, CreateBucketConfiguration=where)  # type: ignore[arg-type]
        except ClientError as exc:
            if _code(exc) not in _MINE_ALREADY:
                raise

    async def _run(self, what: str, call: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call)
        except TimeoutError as exc:
            raise StoreUnavailable(f"{what}: {self._where} did not answer within {self._timeout_s:g} s") from exc
        except (ClientError, BotoCoreError) as exc:
            raise _converted(what, self._where, exc) from exc


def ask_identity(endpoint: str, access_key: str, secret_key: str, *, timeout_s: float) -> None:
    """Make one signed call. Blocks up to about `timeout_s`; call it from a thread.

    Raises:
        StoreUnavailable: nothing answers.
        ConfigError: what answers does not know the key.
    """
    client = _client(endpoint, access_key, secret_key, region="us-east-1", timeout_s=timeout_s, parallel=1, attempts=1)
    try:
        client.list_buckets()
    except (ClientError, BotoCoreError) as exc:
        raise _converted("list of buckets", endpoint, exc) from exc
    finally:
        client.close()


def _client(
    endpoint: str | None,
    access_key: str,
    secret_key: str,
    *,
    region: str,
    timeout_s: float,
    parallel: int,
    attempts: int = _ATTEMPTS,
) -> S3Client:
    # The settings are Penstock's: not those of an AWS profile that the user happens to have.
    session = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
    for name in ("config_file", "credentials_file"):
        session.set_config_variable(name, os.devnull)
    config = Config(
        signature_version="s3v4",  # a presigned URL would else be of version 2, which stores have begun to refuse
        s3={"addressing_style": "path"},
        connect_timeout=min(_CONNECT_TIMEOUT_S, timeout_s),
        read_timeout=timeout_s / 2,  # so that a thread is not kept long after its caller gave up
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=parallel,
        # Newer checksums come as trailers of a chunked body, which stores other than AWS's often don't read; the
        # bytes are covered by the request's signature on the way in, and by our own hash on the way out.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={} if endpoint is not None and _is_loopback(endpoint) else None,
    )
    made: S3Client = boto3.Session(botocore_session=session).client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=config,
    )
    return made


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(data: bytes, sha256: str, what: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise PackageCorrupt(f"{what} has SHA-256 {found}, not {sha256} as expected ({len(data)} bytes)")


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _converted(what: str, where: str, exc: ClientError | BotoCoreError) -> PenstockError:
    if not isinstance(exc, ClientError):  # connections, time-outs, bodies cut short
        return StoreUnavailable(f"{what}: {where} does not answer: {exc}")
    code = _code(exc)
    status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _NOT_FOUND or status == 404:
        return ObjectNotFound(f"{what} is not in {where}")
    if status >= 500 or status == 429 or code in _OVERLOADED:
        return StoreUnavailable(f"{what}: {where} answers {code or status}; it may be overloaded")
    if status in (401, 403):
        return ConfigError(f"{what}: {where} refuses our key ({code or status}): check the key pair and its rights")
    said = exc.response.get("Error", {}).get("Message") or "no reason given"
    return ConfigError(f"{what}: {where} refuses the request ({code or status}: {said}): check endpoint and region")
