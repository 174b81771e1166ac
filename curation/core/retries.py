"""What the Hub is too busy for, or the network loses, is asked for again after a while: when publishing and when reading."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from curation.core.errors import UserError

AGAIN = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8, 16, 32)  # seconds between tries
LONGEST = 300  # seconds to wait where the Hub asks for it
P = ParamSpec("P")
R = TypeVar("R")
_asking: ContextVar[bool] = ContextVar("_asking", default=False)


def again(call: Callable[[], Any], say: Callable[[str], None]) -> Any:
    """Return what a call gives; one that fails for the moment is tried again, with a line to say so."""
    for number, wait in enumerate((*WAITS, None)):
        try:
            return call()
        except Exception as error:
            what, asked = passing(error, first=number == 0)
            if wait is None or not what:
                if isinstance(error, RuntimeError) and error.__cause__:  # how the client tells of a large file
                    raise error.__cause__ from None
                raise
        pause = asked if asked is not None else wait
        say(f"{what}; trying again in {pause} s")
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def asked_again(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function that asks the Hub try again; of one within another the outer one does."""

    @functools.wraps(function)
    def asking(*args: P.args, **more: P.kwargs) -> R:
        if _asking.get():
            return function(*args, **more)
        before = _asking.set(True)
        try:
            given: R = again(lambda: function(*args, **more), logging.getLogger("tuplesmith").warning)
            return given
        finally:
            _asking.reset(before)

    return asking


def passing(error: BaseException, first: bool = False) -> tuple[str, int | None]:
    """Return what will pass, and after how many seconds if the Hub says so; nothing of what will not.

    Where nobody answers to begin with there is no network, and waiting does not bring it.
    """
    from httpx2 import ConnectError, TransportError
    from huggingface_hub.errors import HfHubHTTPError

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in AGAIN:
            asked = cause.response.headers.get("Retry-After", "")
            return f"the Hub answers {cause.response.status_code}", min(int(asked), LONGEST) if asked.isdigit() else None
        reading = isinstance(error, UserError)
        if isinstance(cause, TransportError) and not (reading and first and isinstance(cause, ConnectError)):
            return f"the Hub cannot be reached ({type(cause).__name__})", None
    return "", None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came of."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
