"""A tenant's limits: whatever is asked for in whatever order, the sums hold, and what is refused changes nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.limits import PROVISION_GAP, TENANT_CONCURRENCY_MIB, UNRESERVED_MIB
from streams import concurrency
from streams.concurrency import NONE, Allotment, Grant, Provision
from streams.layers import Refusal

namespaces = st.sampled_from(["default", "ns"])
functions = st.sampled_from(["ff", "gg"])
sizes = st.integers(0, TENANT_CONCURRENCY_MIB + 1_000) | st.integers(0, 10).map(lambda n: n * 12_800)
applied = st.integers(-1, 3)
wishes = st.one_of(
    st.tuples(st.just(concurrency.put_reserved), st.builds(Grant, namespaces, functions, sizes, applied)),
    st.tuples(st.just(concurrency.put_total), st.builds(Grant, namespaces, st.just(""), sizes, applied)),
    st.tuples(st.just(concurrency.delete_grant), st.builds(Grant, namespaces, functions | st.just(""), sizes, applied)),
    st.tuples(
        st.just(concurrency.put_provision),
        st.builds(
            Provision, namespaces, functions, st.sampled_from("12"), st.integers(1, 1_000),
            st.sampled_from([64, 128, 1_024]), applied,
        ),
    ),
    st.tuples(
        st.just(concurrency.delete_provision),
        st.builds(Provision, namespaces, functions, st.sampled_from("12"), st.just(0), st.just(0), applied),
    ),
)  # fmt: skip


def check(allotment: Allotment) -> None:
    """Adds the rows up anew, by the rules as SCF has them."""
    taken = dict.fromkeys(("default", "ns"), 0)
    own = {(r.namespace, r.function): r.memory_mib for r in allotment.reserved}
    assert len(own) == len(allotment.reserved)
    for (namespace, _), memory_mib in own.items():
        taken[namespace] += memory_mib
    workers: dict[tuple[str, str], list[Provision]] = {}
    for row in allotment.provisions:
        workers.setdefault((row.namespace, row.function), []).append(row)
        if (row.namespace, row.function) not in own:
            taken[row.namespace] += row.number * row.memory_mib
    totals = {t.namespace: t.memory_mib for t in allotment.totals}
    for namespace, used in taken.items():
        assert used + UNRESERVED_MIB <= totals.get(namespace, TENANT_CONCURRENCY_MIB)
    assert sum(taken.values()) + UNRESERVED_MIB <= TENANT_CONCURRENCY_MIB
    for where, rows in workers.items():
        if where in own and len({row.memory_mib for row in rows}) == 1:
            assert sum(row.number for row in rows) <= own[where] // rows[0].memory_mib - PROVISION_GAP


@settings(max_examples=300)
@given(st.lists(wishes, max_size=25))
def test_whatever_is_asked_for_no_sum_is_ever_too_much(history: list[tuple[object, Grant | Provision]]) -> None:
    allotment = NONE
    for decide, wanted in history:
        decided = decide(allotment, wanted)  # type: ignore[operator]
        if isinstance(decided, Refusal):
            assert decided.code.startswith(("LimitExceeded.", "FailedOperation."))
            assert decided.message
        else:
            allotment = decided
        check(allotment)


@given(st.lists(wishes, max_size=12), wishes)
def test_what_was_put_is_there_and_alone_and_its_end_leaves_the_rest(
    history: list[tuple[object, Grant | Provision]], last: tuple[object, Grant | Provision]
) -> None:
    allotment = NONE
    for decide, wanted in history:
        decided = decide(allotment, wanted)  # type: ignore[operator]
        allotment = allotment if isinstance(decided, Refusal) else decided
    _, wanted = last
    if isinstance(wanted, Grant) and wanted.function:
        then = concurrency.put_reserved(allotment, wanted)
        if not isinstance(then, Refusal):
            assert [r for r in then.reserved if r.function == wanted.function and r.namespace == wanted.namespace] == [
                wanted
            ]
            gone = concurrency.delete_grant(then, wanted)
            assert concurrency.reserved_mib(gone, wanted.namespace, wanted.function) is None
            assert (gone.totals, gone.provisions) == (allotment.totals, allotment.provisions)
            assert set(gone.reserved) <= set(allotment.reserved)


def test_a_row_that_was_changed_since_is_not_deleted() -> None:
    grant = Grant("ns", "ff", 128, 5)
    worker = Provision("ns", "ff", "1", 1, 128, 7)
    allotment = Allotment(reserved=(grant,), provisions=(worker,))
    assert concurrency.delete_grant(allotment, Grant("ns", "ff", 0, 4)) == allotment
    assert concurrency.delete_grant(allotment, Grant("ns", "ff", 0, 5)).reserved == ()
    assert concurrency.delete_grant(allotment, Grant("ns", "ff", 0, -1)).reserved == ()
    assert concurrency.delete_provision(allotment, Provision("ns", "ff", "1", 0, 0, 6)) == allotment
    assert concurrency.delete_provision(allotment, Provision("ns", "ff", "1", 0, 0, 7)).provisions == ()
