"""Whether the Hub can be reached, asked once and quickly, before anything could hang on it.

Stands before every download of data (`data`), texts (`prose`) and models (`checkpoints`).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from xlcore.errors import InputError


def hub_available(timeout: float = 5.0) -> bool:
    """Return whether the Hub's endpoint answers within `timeout` seconds.

    False at once where HF_HUB_OFFLINE is set. Any answer below status 500 counts, since a mirror
    may refuse its bare address and still serve files.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[int] = []
    # A name look-up ignores the client's timeout; a daemon thread bounds that as well.
    probe = threading.Thread(target=_probe, args=(timeout, answers), daemon=True)
    probe.start()
    probe.join(timeout)
    return bool(answers) and answers[0] < 500


def require_hub(what: str, instead: str = "") -> None:
    """Raise InputError, naming `what` needs the Hub and what to do `instead`, if it is away."""
    if not hub_available():
        raise no_hub(what, instead)


def no_hub(what: str, instead: str = "") -> InputError:
    """Return the error that says `what` needs the Hub, why it is away and what to do `instead`."""
    reason = "did not answer"
    if constants.HF_HUB_OFFLINE:
        reason = "is switched off by HF_HUB_OFFLINE"
    hint = f"; {instead}" if instead else ""
    return InputError(f"{what} needs the Hub, but {constants.ENDPOINT} {reason}{hint}")


@contextmanager
def cached_only() -> Iterator[None]:
    """Let `datasets` use its local cache only, without trying the network first."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _probe(timeout: float, answers: list[int]) -> None:
    try:
        answers.append(get_session().head(constants.ENDPOINT, timeout=timeout).status_code)
    except Exception:  # whatever went wrong (name, proxy, certificate), there is no Hub to use
        return
