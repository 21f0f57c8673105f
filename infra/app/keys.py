"""`penstock keys create|list|rotate|delete`."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from infra.app.client import connect
from infra.app.console import ExitStatus, UsageProblem, note, say, say_json, table
from infra.app.state import choose_folder
from infra.credentials import credentials, write_private
from schemas.limits import KEY_GRACE_RANGE_S, KEY_VALID_RANGE_S

_SPAN: Final = re.compile(r"([0-9]{1,9})([smhd]?)\Z")
_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def span_s(text: str, low: int, high: int) -> int:
    """Seconds of `90`, `90s`, `10m`, `24h`, `7d`. Raises UsageProblem outside of [low, high]."""
    match = _SPAN.match(text)
    seconds = int(match[1]) * _UNITS_S[match[2]] if match is not None else -1
    if not low <= seconds <= high:
        raise UsageProblem(f"{text!r} is no time from {low} s to {high // 86_400} d; write it like 30m, 24h or 7d")
    return seconds


def create(args: argparse.Namespace) -> ExitStatus:
    """`keys create`: shows the secret, once."""
    folder = choose_folder(args.data_dir)
    valid_s = span_s(args.valid, *KEY_VALID_RANGE_S) if args.valid else 0
    if args.out is not None and Path(args.out).exists():
        raise UsageProblem(f"--out {args.out}: that file exists; a key is never written over another")
    fields = {
        "AppId": args.appid,
        "NewTenant": "TRUE" if args.new_tenant else None,
        "Description": args.description,
        "ValidSeconds": valid_s or None,
    }
    key = connect(folder).call("CreateKey", fields)["Key"]
    if args.out is not None:
        _write(Path(args.out), key, region=credentials(folder.path).region)
    _show_secret(args, key, f"key {key['SecretId']} of tenant {key['AppId']} made")
    return ExitStatus.OK


def list_keys(args: argparse.Namespace) -> ExitStatus:
    """`keys list`: without secrets."""
    fields = {"AppId": args.appid, "EveryTenant": "TRUE" if args.all else None}
    keys = [_shown(key) for key in connect(choose_folder(args.data_dir)).call("ListKeys", fields)["Keys"]]
    if args.json:
        say_json(keys)
        return ExitStatus.OK
    header = ("SECRET ID", "TENANT", "MADE", "ROTATED", "EXPIRES", "EARLIER SECRET GOOD UNTIL", "DESCRIPTION")
    rows = [
        (k["secret_id"], k["appid"], k["created"], k["rotated"], k["expires"], k["earlier_until"], k["description"])
        for k in keys
    ]
    say(table(header, rows))
    return ExitStatus.OK


def rotate(args: argparse.Namespace) -> ExitStatus:
    """`keys rotate`: a new secret, shown once; the one before stays good for the grace."""
    grace_s = span_s(args.grace, *KEY_GRACE_RANGE_S)
    fields = {"SecretId": args.secret_id, "GraceSeconds": grace_s}
    key = connect(choose_folder(args.data_dir)).call("RotateKey", fields)["Key"]
    until = f"until {key['EarlierUntil']} UTC" if key["EarlierUntil"] else "no longer"
    _show_secret(args, key, f"key {args.secret_id} has a new secret; the one before is good {until}")
    return ExitStatus.OK


def delete(args: argparse.Namespace) -> ExitStatus:
    """`keys delete`: it is not good any more when this returns."""
    connect(choose_folder(args.data_dir)).call("DeleteKey", {"SecretId": args.secret_id})
    if args.json:
        say_json({"secret_id": args.secret_id, "deleted": True})
    else:
        say(f"key {args.secret_id} deleted")
    return ExitStatus.OK


def _show_secret(args: argparse.Namespace, key: Mapping[str, Any], what: str) -> None:
    if args.json:
        say_json({**_shown(key), "secret_key": key["SecretKey"]})
        return
    note(what)
    say(f"secret id   {key['SecretId']}")
    say(f"secret key  {key['SecretKey']}")
    note("the secret key is shown this once; Penstock keeps it sealed and never shows it again")


def _shown(key: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "secret_id": key["SecretId"],
        "appid": key["AppId"],
        "uin": key["Uin"],
        "description": key["Description"],
        "enabled": key["Enabled"],
        "created": key["AddTime"],
        "rotated": key["RotateTime"],
        "expires": key["ExpireTime"],
        "earlier_until": key["EarlierUntil"],
        "in_file": key["InFile"],
    }


def _write(path: Path, key: Mapping[str, Any], *, region: str) -> None:
    """A credentials file (mode 0600) as the fabric's own."""
    fields = {
        "secret_id": key["SecretId"],
        "secret_key": key["SecretKey"],
        "region": region,
        "appid": key["AppId"],
        "uin": key["Uin"],
    }
    write_private(path.absolute(), json.dumps(fields, indent=1).encode() + b"\n")
