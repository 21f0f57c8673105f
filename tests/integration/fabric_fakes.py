"""Stand-ins for our own processes, so that `up` can be tried with a real broker and store and nothing else.

As a program: `fabric_fakes.py KIND --data-dir D --slot S` behaves as `infra.app.KIND` would towards `up`.
A file `behave.json` in the data folder changes it: {KIND: "crash" | "deaf", "agent": "refuse", "gateway": "unready"}.
As a program with `up` first: runs `up` with these stand-ins.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import sys
import time
from pathlib import Path


def main(kind: str, data_dir: Path) -> None:
    try:
        behave = json.loads((data_dir / "behave.json").read_text()).get(kind, "")
    except OSError:
        behave = ""
    if behave == "crash":
        raise SystemExit("it broke")
    if behave == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "agent":
        refuses = behave == "refuse"
        said = {"driver": "jail", "missing": ["memory cgroup"] if refuses else [], "notes": []}
        if refuses:
            said["message"] = "this machine can't isolate functions fully; missing: memory cgroup"
        (data_dir / "agent").mkdir(exist_ok=True)
        (data_dir / "agent" / "capabilities.json").write_text(json.dumps(said))
        if refuses:
            raise SystemExit(78)
    if kind == "gateway":
        serve(int(os.environ["PENSTOCK_PORT"]), is_ready=behave != "unready")
    (data_dir / f"{kind}.env").write_text(
        json.dumps({k: v for k, v in os.environ.items() if k.startswith("PENSTOCK_")})
    )
    while True:
        time.sleep(3600)


def serve(port: int, *, is_ready: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"ready": is_ready, "parts": {"tables": True, "agent": is_ready}}).encode()
            self.send_response(200 if is_ready else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def run_up(arguments: list[str]) -> None:
    import functools

    from infra.app import cli, up
    from infra.app.state import FabricFolder

    def own(kind: str, folder: FabricFolder, slot: str) -> list[str]:
        return [sys.executable, __file__, kind, "--data-dir", str(folder.path), "--slot", slot]

    up.Fabric = functools.partial(up.Fabric, own=own)  # type: ignore[misc, assignment]
    cli.main(["up", *arguments])


if __name__ == "__main__":
    if sys.argv[1] == "up":
        run_up(sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--slot")
    given = parser.parse_args()
    main(given.kind, given.data_dir)
