"""Names and identifiers: shapes, validation, and the names derived from them.

A function is known everywhere by its `FunctionKey`; in Kafka keys and on the wire it is spelled `appid/namespace/name`.
Source of the name rules: SCF.md section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import NewType

RequestId = NewType("RequestId", str)
"""A UUID in its 36-character form; one per invocation or API call."""

DEFAULT_NAMESPACE = "default"
LATEST = "$LATEST"
DEFAULT_ALIAS = "$DEFAULT"
CUSTOM_RUNTIME = "CustomRuntime"
"""The Runtime of functions whose package brings its own: an executable `bootstrap` at its top."""

_FUNCTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,58}[A-Za-z0-9]\Z")
_NAMESPACE = re.compile(r"[A-Za-z](?:[A-Za-z0-9_-]{0,28}[A-Za-z0-9])?\Z")
_LAYER_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?\Z")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
_TRIGGER_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?\Z")
_HANDLER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_/-]{0,59}\.[A-Za-z_][A-Za-z0-9_]{0,59}\Z")
_ENV_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")


@dataclass(frozen=True, slots=True, order=True)
class FunctionKey:
    """One function of one tenant."""

    appid: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.appid}/{self.namespace}/{self.name}"

    @staticmethod
    def parse(text: str) -> FunctionKey:
        """Inverse of `str()`; raises ValueError."""
        appid, namespace, name = text.split("/")
        return FunctionKey(appid, namespace, name)


@dataclass(frozen=True, slots=True, order=True)
class TriggerKey:
    """One trigger of one function."""

    function: FunctionKey
    name: str

    def __str__(self) -> str:
        return f"{self.function}/{self.name}"

    @staticmethod
    def parse(text: str) -> TriggerKey:
        """Inverse of `str()`; raises ValueError."""
        appid, namespace, function, name = text.split("/")
        return TriggerKey(FunctionKey(appid, namespace, function), name)


def is_function_name(text: str) -> bool:
    """2-60 characters, letters digits `-` `_`, starts with a letter, does not end with `-` or `_`."""
    return _FUNCTION_NAME.match(text) is not None


def is_namespace(text: str) -> bool:
    """1-30 characters, starts with a letter, does not end with `-` or `_`."""
    return _NAMESPACE.match(text) is not None


def is_alias(text: str) -> bool:
    """1-64 letters, digits, `-` `_`, starts with a letter; `$DEFAULT`, which every function has, is none of these."""
    return _ALIAS.match(text) is not None


def is_layer_name(text: str) -> bool:
    """1-64 letters, digits, `-` `_`, starts with a letter, does not end with `-` or `_`."""
    return _LAYER_NAME.match(text) is not None


def layer_key(appid: str, name: str, version: int) -> str:
    """Key of one version of a layer: all of a tenant's stand under its appid."""
    return f"{appid}/{name}@{version}"


def is_trigger_name(text: str) -> bool:
    """1-100 characters; a dot, `-` and `_` are allowed inside (CKafka names are `INSTANCE-TOPIC`)."""
    return _TRIGGER_NAME.match(text) is not None


def is_handler(text: str) -> bool:
    """`file.function`, each 1-60 characters; the file part may name folders with `/`."""
    return _HANDLER.match(text) is not None


def is_env_key(text: str) -> bool:
    """A name that an environment variable of a function may have."""
    return _ENV_KEY.match(text) is not None


def is_topic(text: str) -> bool:
    """A legal Kafka topic name."""
    return _TOPIC.match(text) is not None and text not in {".", ".."}


def dead_letter_topic(key: TriggerKey) -> str:
    """Topic of a trigger's dead letters (DESIGN.md section 10 fixes the shape)."""
    return f"penstock.dead.{key.function.namespace}.{key.function.name}.{key.name}"


def consumer_group(key: TriggerKey, generation: str) -> str:
    """Consumer group of one Kafka trigger; read it from its `KafkaSource.group_id`.

    `generation` differs each time a trigger of this name is made: a new one can pin its offsets while members of its predecessor's
    group still hang on (static members stay until their session ends), and clearing that group away never hits the new one.
    """
    return f"penstock.{key.function.appid}.{key.function.namespace}.{key.function.name}.{key.name}.{generation}"


def function_id(command_id: str) -> str:
    """FunctionId of a function, from the command that created it."""
    return "lam-" + sha256(command_id.encode()).hexdigest()[:8]
