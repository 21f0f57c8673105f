"""From a configuration to what an agent runs: gateways and agents must say it alike, for workers started ahead are found by it."""

from __future__ import annotations

from schemas.frames import Spec
from schemas.records import FunctionConfig


def spec_of_config(config: FunctionConfig, *, appid: str, uin: str, namespace: str, function: str, region: str) -> Spec:
    """The Spec of a configuration; `uin` is that of the function or version it belongs to."""
    return Spec(
        appid=appid,
        uin=uin,
        namespace=namespace,
        function=function,
        version=config.version,
        code_sha256=config.code_sha256,
        handler=config.handler,
        runtime=config.runtime,
        memory_mib=config.memory_mib,
        timeout_s=config.timeout_s,
        init_timeout_s=config.init_timeout_s,
        region=region,
        environment=config.environment,
        layers=tuple(ref.sha256 for ref in config.layers),
    )
