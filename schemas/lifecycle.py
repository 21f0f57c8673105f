"""Function states and the legal moves between them (SCF.md section 3, "statuses")."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class FunctionStatus(StrEnum):
    """What GetFunction shows as Status."""

    CREATING = "Creating"
    CREATE_FAILED = "CreateFailed"
    ACTIVE = "Active"
    UPDATING = "Updating"
    UPDATE_FAILED = "UpdateFailed"
    DELETING = "Deleting"
    DELETE_FAILED = "DeleteFailed"


GOING: Final = (FunctionStatus.DELETING, FunctionStatus.DELETE_FAILED)
"""Of a function that is not to be used any more."""


class FunctionMove(StrEnum):
    """What can happen to a function."""

    UPDATE = "update"
    DELETE = "delete"
    SUCCEED = "succeed"
    FAIL = "fail"


_S, _M = FunctionStatus, FunctionMove
_MOVES: dict[tuple[FunctionStatus, FunctionMove], FunctionStatus] = {
    (_S.CREATING, _M.SUCCEED): _S.ACTIVE,
    (_S.CREATING, _M.FAIL): _S.CREATE_FAILED,
    (_S.CREATING, _M.DELETE): _S.DELETING,
    (_S.CREATE_FAILED, _M.UPDATE): _S.CREATING,
    (_S.CREATE_FAILED, _M.DELETE): _S.DELETING,
    (_S.ACTIVE, _M.UPDATE): _S.UPDATING,
    (_S.ACTIVE, _M.DELETE): _S.DELETING,
    (_S.UPDATING, _M.SUCCEED): _S.ACTIVE,
    (_S.UPDATING, _M.FAIL): _S.UPDATE_FAILED,
    (_S.UPDATING, _M.DELETE): _S.DELETING,
    (_S.UPDATE_FAILED, _M.UPDATE): _S.UPDATING,
    (_S.UPDATE_FAILED, _M.DELETE): _S.DELETING,
    (_S.DELETING, _M.FAIL): _S.DELETE_FAILED,
    (_S.DELETE_FAILED, _M.DELETE): _S.DELETING,
}


def after(status: FunctionStatus, move: FunctionMove) -> FunctionStatus | None:
    """The status after a move, or None when the move is not legal now."""
    return _MOVES.get((status, move))
