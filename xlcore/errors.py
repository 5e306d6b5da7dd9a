"""One kind of error for bad input, with the nearest right value in its text.

Used by every module before any expensive step; nothing here knows about models or data.
"""

import difflib
import math
from collections.abc import Callable, Iterable


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


def check_number(name: str, value: object, kind: type, rule: str, holds: Callable) -> None:
    """Refuse a value of another type, one that is not finite, and one that breaks the rule."""
    fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not (fits and math.isfinite(value) and holds(value)):
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} {value!r} must be {rule}, {what}")
