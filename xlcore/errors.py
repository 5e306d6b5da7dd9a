"""One kind of error for bad input, with the nearest right value in its text.

Used by every module before any expensive step; nothing here knows about models or data.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value the user gave is not allowed; the message names it, the rule and the nearest fit."""


def nearest(value: object, allowed: Iterable[str], n: int = 3) -> list[str]:
    """Return the `n` allowed strings most similar to `value`, the best first."""
    wanted = str(value).lower()
    return sorted(
        map(str, allowed),
        key=lambda a: -difflib.SequenceMatcher(None, wanted, a.lower()).ratio(),
    )[:n]


def choose(thing: str, value: object, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`.

    Raises InputError that names the thing, the value, what is allowed and the three nearest.
    """
    allowed = list(allowed)
    if value in allowed:
        return str(value)
    close = ", ".join(nearest(value, allowed))
    raise InputError(
        f"unknown {thing} {value!r}; did you mean {close}? allowed: {', '.join(allowed)}"
    )
