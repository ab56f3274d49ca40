"""Checks of arguments that several orders take."""

from __future__ import annotations

from psa_triton.inputs import as_int


def check_triple(name: str, value: tuple[int, int, int]) -> tuple[int, int, int]:
    """`value` as three positive ints (t, h, w).

    Raises:
        TypeError: `value` is no sequence of integers.
        ValueError: it has another length, or an entry below 1.
    """
    message = f"{name}: expected three positive integers (t, h, w), got {value!r}"
    try:
        triple = tuple(as_int(name, entry) for entry in value)
    except TypeError as error:
        raise TypeError(message) from error
    if len(triple) != 3 or min(triple) < 1:
        raise ValueError(message)
    return triple


def check_prefix(tokens: int) -> int:
    """`tokens` as an int that is not negative.

    Raises:
        TypeError: it is no integer.
        ValueError: it is negative.
    """
    try:
        count = as_int("prefix_tokens", tokens)
    except TypeError as error:
        raise TypeError(f"prefix_tokens: expected an integer from 0, got {tokens!r}") from error
    if count < 0:
        raise ValueError(f"prefix_tokens: expected an integer from 0, got {tokens!r}")
    return count
