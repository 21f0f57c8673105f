"""Limits of the fabric, one place. Source: SCF.md sections 3 and 4.8 unless said."""

from __future__ import annotations

from typing import Final

SYNC_EVENT_BYTES: Final = 6 * 1024 * 1024
REPLY_BYTES: Final = 6 * 1024 * 1024
ASYNC_EVENT_BYTES: Final = 128 * 1024
API_BODY_BYTES: Final = 10 * 1024 * 1024
API_GET_BYTES: Final = 32 * 1024
INLINE_ZIP_BYTES: Final = 7 * 1024 * 1024  # what base64 leaves of the API body
PACKAGE_ZIP_BYTES: Final = 50 * 1024 * 1024
PACKAGE_UNPACKED_BYTES: Final = 500 * 1024 * 1024
PACKAGE_ENTRIES: Final = 20_000  # ours: bounds the unpack time
PACKAGE_PATH_CHARS: Final = 400  # ours
MEMORY_CHOICES_MIB: Final = (64, *range(128, 3072 + 1, 128))
MEMORY_DEFAULT_MIB: Final = 128
TIMEOUT_RANGE_S: Final = (1, 900)
TIMEOUT_DEFAULT_S: Final = 3
INIT_TIMEOUT_DEFAULT_S: Final = 65
INIT_TIMEOUT_RANGE_S: Final = (3, 300)
ENV_BYTES: Final = 4096
LOG_TAIL_BYTES: Final = 4096
LOG_INVOCATION_BYTES: Final = 1024 * 1024  # ours: lines kept of one invocation; the rest is counted
WORKER_PIDS: Final = 1024
WORKER_FILES: Final = 1024
TMP_BYTES: Final = 512 * 1024 * 1024
FUNCTIONS_PER_NAMESPACE: Final = 50
NAMESPACES_PER_TENANT: Final = 5  # SCF: per region; default is one of them
KEYS_PER_TENANT: Final = 10  # ours
KEY_GRACE_RANGE_S: Final = (0, 7 * 86_400)  # ours: how long the secret before a rotation stays good
KEY_GRACE_DEFAULT_S: Final = 86_400  # ours
KEY_VALID_RANGE_S: Final = (60, 10 * 366 * 86_400)  # ours
TRIGGERS_PER_KIND: Final = 10
LAYERS_PER_TENANT: Final = 20  # SCF: per region
VERSIONS_PER_LAYER: Final = 200
LAYERS_PER_FUNCTION: Final = 5
VERSIONS_PER_FUNCTION: Final = 1_000
ALIASES_PER_FUNCTION: Final = 50  # ours: they stand in one record, which Kafka limits to 1 MB
ROUTING_KEY_BYTES: Final = 1_024
ROUTING_RULES: Final = 10  # ours
ROUTING_RULE_CHARS: Final = 128  # ours: of a rule's key, and of its expression
EVENT_RETRIES: Final = 2  # the most, and the default
EVENT_TTL_RANGE_S: Final = (60, 21_600)
TRIGGER_BATCH_RANGE: Final = (1, 10_000)
TRIGGER_RETRIES_RANGE: Final = (0, 10_000)
TRIGGER_CONCURRENCY_RANGE: Final = (1, 1_000)  # ours
FRAME_BYTES: Final = 8 * 1024 * 1024  # ours: largest frame between processes
SIGNATURE_SKEW_S: Final = 300
TENANT_CONCURRENCY_MIB: Final = 128_000  # SCF: the region quota, all namespaces together
UNRESERVED_MIB: Final = 12_800  # what must be left to functions without a reservation
PROVISION_GAP: Final = 100  # provisioned workers of a function stay so many below its concurrency
