import pytest

from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import HermitcrabError


def test_row_that_is_neither_kept_nor_dropped_raises():
    ledger = Ledger()
    ledger.take(3)
    ledger.keep()
    ledger.drop("short")
    with pytest.raises(HermitcrabError, match="does not balance: taken 3, kept 1, dropped 1"):
        ledger.as_json()
    ledger.drop("short")
    assert ledger.as_json() == {"unit": "rows", "taken": 3, "kept": 1, "dropped": {"short": 2}, "changed": {}}


def test_merged_ledgers_count_together():
    one, two = Ledger(), Ledger()
    for ledger in (one, two):
        ledger.take(2)
        ledger.keep()
        ledger.drop("short")
        ledger.change("cut")
    one.merge(two)
    assert one.as_json() == {"unit": "rows", "taken": 4, "kept": 2, "dropped": {"short": 2}, "changed": {"cut": 2}}
