"""Code packages on their way in: from a request to checked bytes in the object store, named by their hash."""

from __future__ import annotations

import asyncio
import binascii
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from ingest.api.fields import short
from ingest.api.function_requests import CodeFields
from ingest.api.ports import CodeStore
from schemas.errors import BadPackage, BadRequest, ObjectNotFound
from schemas.limits import INLINE_ZIP_BYTES, PACKAGE_ZIP_BYTES
from schemas.package import CODE_BUCKET, check_zip

URL_VALID_S: Final = 600
"""How long the URL of a download is good."""
_SPACE: Final = re.compile(r"[\r\n]+")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,126}[a-z0-9]\Z")
_KEY_BYTES: Final = 1_024
_CODE_SOURCES: Final = {"ZipFile": "zip", "Inline": "zip", "Cos": "cos"}


@dataclass(frozen=True, slots=True)
class Package:
    """A checked package. `sha256` is hex; it is the package's name in the store and in every record."""

    sha256: str
    data: bytes


@dataclass(frozen=True, slots=True)
class InlineZip:
    """A package in the request, base64 text."""

    text: str


@dataclass(frozen=True, slots=True)
class StoredZip:
    """A package in a bucket of the fabric's store."""

    bucket: str
    name: str


def source_of(code: CodeFields, code_source: str | None, *, region: str) -> InlineZip | StoredZip:
    """Where the package is; raises BadRequest when that is not said, said twice, or not allowed."""
    has_cos = bool(code.cos_bucket_name or code.cos_object_name)
    if code.zip_file and has_cos:
        raise BadRequest(
            "InvalidParameterValue.Code", "give either ZipFile or CosBucketName with CosObjectName, not both"
        )
    if not code.zip_file and not has_cos:
        raise BadRequest(
            "MissingParameter.Code", "the package is missing: give ZipFile (base64), or CosBucketName and CosObjectName"
        )
    _check_code_source(code_source, "cos" if has_cos else "zip")
    if code.zip_file:
        return InlineZip(code.zip_file)
    bucket, name = code.cos_bucket_name or "", code.cos_object_name or ""
    if not _BUCKET.match(bucket) or bucket == CODE_BUCKET:
        raise BadRequest(
            "InvalidParameterValue.CosBucketName",
            f"{short(bucket)} is not a bucket of the fabric's store that may be read",
        )
    if not name or len(name.encode()) > _KEY_BYTES:
        raise BadRequest(
            "InvalidParameterValue.CosObjectName", f"CosObjectName is required, with at most {_KEY_BYTES} bytes"
        )
    if code.cos_bucket_region and code.cos_bucket_region != region:
        raise BadRequest(
            "InvalidParameterValue.CosBucketRegion",
            f"packages come from the fabric's own store, in region {region}; leave CosBucketRegion out",
        )
    return StoredZip(bucket, name.lstrip("/"))


def _check_code_source(code_source: str | None, given: str) -> None:
    if not code_source:
        return
    wanted = _CODE_SOURCES.get(code_source)
    if wanted is None:
        raise BadRequest(
            "UnsupportedOperation", f"CodeSource {short(code_source)} is not supported by Penstock: use ZipFile or Cos"
        )
    if wanted != given:
        raise BadRequest(
            "InvalidParameterValue.CodeSource", f"CodeSource is {code_source}, but the package is not given that way"
        )


def decode_inline(text: str) -> bytes:
    """The bytes of a base64 package; raises BadRequest."""
    try:
        data = binascii.a2b_base64(_SPACE.sub("", text), strict_mode=True)
    except ValueError as exc:
        raise BadRequest("InvalidParameterValue.ZipFileBase64BinasciiError", f"ZipFile is not base64: {exc}") from exc
    if len(data) > INLINE_ZIP_BYTES:
        raise BadRequest(
            "InvalidParameterValue.ZipFile",
            f"ZipFile is {len(data)} bytes; a request holds {INLINE_ZIP_BYTES}: put it into the store and name CosBucketName",
        )
    return data


def checked(data: bytes) -> Package:
    """A package that is safe to unpack; raises BadRequest with the reason. Takes milliseconds for a large one: run it in a thread."""
    try:
        check_zip(data)
    except BadPackage as exc:
        raise BadRequest("InvalidParameterValue.ZipFile", f"the package is refused: {exc}") from exc
    return Package(sha256(data).hexdigest(), data)


async def take_in(store: CodeStore, source: InlineZip | StoredZip, *, appid: str) -> Package:
    """Fetch, check and keep a package. When this returns, the store has it under its hash.

    Raises:
        BadRequest: the package is refused, or is not where the request says.
        StoreUnavailable: the store does not answer.
    """
    if isinstance(source, InlineZip):
        package = await asyncio.to_thread(lambda: checked(decode_inline(source.text)))
    else:
        data = await _read(store, source, appid=appid)
        package = await asyncio.to_thread(checked, data)
    await store.put_package(package.sha256, package.data)
    return package


async def _read(store: CodeStore, source: StoredZip, *, appid: str) -> bytes:
    # SCF names a bucket without its -APPID; S3 stores know no such rule, so both spellings are looked for.
    buckets = [source.bucket] if source.bucket.endswith(f"-{appid}") else [source.bucket, f"{source.bucket}-{appid}"]
    for bucket in buckets:
        try:
            return await store.read_object(bucket, source.name, limit_bytes=PACKAGE_ZIP_BYTES)
        except ObjectNotFound:
            continue
        except BadPackage as exc:
            raise BadRequest("InvalidParameterValue.Code", str(exc)) from exc
    raise BadRequest(
        "ResourceNotFound.CosObject",
        f"the fabric's store has no object {short(source.name)} in bucket {source.bucket!r}",
    )
