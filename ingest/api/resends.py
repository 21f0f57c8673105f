"""What a changing action does when a request that was signed once comes again (docs/adr has the why).

A signature stays good for 300 s and no scheme of the cloud API says that it is good for one call only. So a gateway remembers the signatures
that changed something for as long as they are good:

    again after an end that was not final         a call of its own: a part of the fabric did not answer
    again within `SAME_SECOND_S`, signed by TC3   a call of its own: two equal wishes of one second have equal signatures
    again after that, or signed with a Nonce      the first call's answer, with its RequestId; nothing is done again
    the same, but its answer is not kept          refused with AuthFailure.SignatureExpire (it holds a secret, or is large)
    for another action (it is not signed)         refused likewise
    carried out at another gateway                refused likewise; gateways tell each other after the call, so not while it is under way

Per tenant at most `PER_TENANT` are remembered; beyond it the oldest are let go, so no tenant shortens another's. No clock, no I/O in here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from schemas.errors import BadRequest
from schemas.limits import SIGNATURE_SKEW_S

SAME_SECOND_S: Final = 2.0
"""A second of equal timestamps, and one for the way here."""
KEPT_S: Final = 2.0 * SIGNATURE_SKEW_S
"""From first sight: a client whose clock is 300 s ahead signs what stays good for 600 s."""
PER_TENANT: Final = 20_000
ANSWER_BYTES: Final = 16 * 1024


@dataclass(slots=True, eq=False)
class Sent:
    """One signed request that changes something, since it was first seen. `answer` is set at its end: the body, or None when not kept."""

    action: str
    first_mono_s: float
    waiting: list[asyncio.Future[bytes | None]] = field(default_factory=list)
    is_over: bool = False
    is_final: bool = True
    answer: bytes | None = None

    def end(self, answer: bytes | None, *, is_final: bool) -> None:
        """The call is over. None keeps no answer; one that is not final may be carried out again."""
        self.is_over, self.is_final = True, is_final
        self.answer = answer if answer is not None and len(answer) <= ANSWER_BYTES else None
        for future in self.waiting:
            if not future.done():
                future.set_result(self.answer)
        self.waiting.clear()

    async def ended(self) -> bytes | None:
        """The answer, once the call is over; None when it isn't kept."""
        if not self.is_over:
            future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            return await future
        return self.answer


class Resends:
    """The memory of one gateway."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, OrderedDict[bytes, Sent]] = {}

    def first(self, appid: str, signature: str, action: str, *, has_nonce: bool, mono_s: float) -> tuple[Sent, bool]:
        """What is known of a signature, and whether this call is to be carried out (then `end` it).

        Raises BadRequest when the signature was used for another action.
        """
        sent = self._by_tenant.setdefault(appid, OrderedDict())
        mark = mark_of(signature)
        known = sent.get(mark)
        if known is None or (known.is_over and not known.is_final):
            self._let_go(sent, mono_s)
            known = sent[mark] = Sent(action, mono_s)
            return known, True
        if not has_nonce and mono_s - known.first_mono_s <= SAME_SECOND_S:
            # Keeps the time of the first: a series of repetitions does not last longer than one second's own.
            sent[mark] = again = Sent(action, known.first_mono_s)
            return again, True
        if known.action != action:
            raise used_before()
        return known, False

    def heard(self, appid: str, mark: bytes, action: str, *, first_mono_s: float, mono_s: float) -> None:
        """A request was carried out at another gateway, or here before a restart: its answer is not known here."""
        if mono_s - first_mono_s > KEPT_S:
            return
        sent = self._by_tenant.setdefault(appid, OrderedDict())
        if mark not in sent:
            self._let_go(sent, mono_s)
            sent[mark] = Sent(action, first_mono_s, is_over=True)

    def __len__(self) -> int:
        return sum(len(sent) for sent in self._by_tenant.values())

    def _let_go(self, sent: OrderedDict[bytes, Sent], mono_s: float) -> None:
        while sent:
            mark, oldest = next(iter(sent.items()))
            if len(sent) < PER_TENANT and mono_s - oldest.first_mono_s <= KEPT_S:
                return
            del sent[mark]


def mark_of(signature: str) -> bytes:
    """What is remembered of a signature; nothing can be signed with it."""
    return blake2b(signature.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def used_before() -> BadRequest:
    """The refusal of a signature that did its work."""
    return BadRequest(
        "AuthFailure.SignatureExpire",
        "this very request was sent before and took effect then; to do it again, sign it again (a new timestamp is enough)",
    )
