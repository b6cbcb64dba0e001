"""Check digits: what tells a number of a kind from any other digits. Each takes the number without spaces and hyphens."""

from __future__ import annotations

from datetime import date

ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
CREDIT_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"  # no I, O, S, V, Z
CREDIT_WEIGHTS = (1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28)
PROVINCES = frozenset(
    (*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83)
)


def identity_card(number: str) -> bool:
    """A citizen's number of mainland China (GB 11643-1999): division, birthday, order, check digit (ISO 7064 MOD 11-2)."""
    if len(number) != 18 or not number[:17].isdigit() or int(number[:2]) not in PROVINCES or not _day(number[6:14]):
        return False
    total = sum(weight * int(digit) for weight, digit in zip(ID_WEIGHTS, number[:17], strict=True))
    return "10X98765432"[total % 11] == number[17].upper()


def identity_card_15(number: str) -> bool:
    """Its form before 1999: 15 digits without a check digit, so division and birthday have to be enough."""
    return len(number) == 15 and number.isdigit() and int(number[:2]) in PROVINCES and _day("19" + number[6:12])


def _day(text: str) -> bool:
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return 1900 <= day.year <= 2100


def credit_code(code: str) -> bool:
    """A unified social credit code of mainland China (GB 32100-2015): 17 characters and a check character, MOD 31."""
    code = code.upper()
    if len(code) != 18 or any(c not in CREDIT_ALPHABET for c in code):
        return False
    total = sum(weight * CREDIT_ALPHABET.index(c) for weight, c in zip(CREDIT_WEIGHTS, code[:17], strict=True))
    return CREDIT_ALPHABET[-total % 31] == code[17]


def luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B: bank cards. A number of one digit alone, such as sixteen zeros, is none."""
    if not number.isdigit() or len(set(number)) == 1:
        return False
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
