"""Credit: totals that only grow, and never a batch without one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.credit import MAX_CREDIT, CreditAccount


def granted(total: int) -> CreditAccount:
    account = CreditAccount()
    assert account.grant(total) is None
    return account


def test_new_account_has_nothing_to_spend() -> None:
    account = CreditAccount()
    assert account.available == 0
    assert not account.spend()
    assert account.spent == 0


def test_each_batch_costs_one_credit() -> None:
    account = granted(2)
    assert [account.spend(), account.spend(), account.spend()] == [True, True, False]
    assert account.available == 0
    assert account.spent == 2


def test_grants_are_totals_and_not_deltas() -> None:
    account = granted(3)
    account.spend()
    assert account.grant(4) is None
    assert account.available == 3


def test_the_same_total_again_changes_nothing() -> None:
    account = granted(3)
    assert account.grant(3) is None
    assert account.available == 3


def test_credit_does_not_shrink() -> None:
    account = granted(3)
    assert account.grant(2) == "credit total=2 is below the 3 granted before"
    assert account.available == 3


def test_negative_credit_is_refused() -> None:
    assert CreditAccount().grant(-1) is not None


def test_batches_that_are_open_have_a_limit_and_the_total_has_none() -> None:
    account = granted(MAX_CREDIT)
    fault = account.grant(MAX_CREDIT + 1)
    assert fault is not None
    assert f"{MAX_CREDIT + 1} batches open, above {MAX_CREDIT}" in fault
    assert account.granted == MAX_CREDIT
    account.spend()
    assert account.grant(MAX_CREDIT + 1) is None


@given(st.lists(st.none() | st.integers(-5, 40) | st.integers(MAX_CREDIT - 5, MAX_CREDIT + 40)))
def test_credit_is_never_negative_and_never_above_its_limit(acts: list[int | None]) -> None:
    account = CreditAccount()
    for total in acts:
        before = (account.granted, account.spent)
        if total is None:
            spent = account.spend()
            assert spent == (before[0] > before[1])
        elif account.grant(total) is None:
            assert account.granted == total >= before[0]
            assert account.spent == before[1]
        else:
            assert (account.granted, account.spent) == before
        assert 0 <= account.available <= MAX_CREDIT
