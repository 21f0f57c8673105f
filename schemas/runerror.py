"""The error JSON that a failed run answers with (SCF.md section 4.4, events/error_result_python.json)."""

from __future__ import annotations

import json
from uuid import UUID

from schemas.runstatus import ERROR_NAMES, RunStatus


def error_body(status: RunStatus, message: str, request_id: bytes, *, stack: str = "") -> bytes:
    """JSON text: errorCode -1 for the user's own failure, else the status; errorMessage, requestId, stackTrace, statusCode."""
    return json.dumps(
        {
            "errorCode": -1 if status == RunStatus.USER_EXCEPTION else int(status),
            "errorMessage": f"{ERROR_NAMES[status]}: {message}",
            "requestId": str(UUID(bytes=request_id)),
            "stackTrace": stack,
            "statusCode": int(status),
        },
        ensure_ascii=False,
    ).encode()
