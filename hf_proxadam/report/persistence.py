"""Asking the Hub until it answers: which failures pass, how long to wait, and what to tell when they don't."""

import json
import random
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

ATTEMPTS = 7
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
TIMEOUT = 120.0
"""Seconds without a byte after which an answer counts as lost."""

_PASSING = {408, 409, 412, 425, 429}
# huggingface_hub's errors derive from those of its HTTP client, which is another one by its version.
_LOST: tuple[type[Exception], ...] = (
    *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
    OSError,
    json.JSONDecodeError,
)

T = TypeVar("T")


class HubError(Exception):
    """What the Hub refused, or did not answer in time: one sentence for the person at the keyboard."""


_CAUGHT: tuple[type[Exception], ...] = (HubError, RuntimeError, ValueError, *_LOST)


def persistently(attempt: Callable[[], T], repo_id: str) -> T:
    """Call `attempt` until it succeeds, fails for good, or has been called `ATTEMPTS` times.

    Args:
        attempt: what to do; it must be right to do it again when it was done already and only the answer was lost.
        repo_id: the repository, for the sentence.

    Raises:
        ValueError: what `attempt` raises for a wrong input, and what the client raises for a card that is refused.
        HubError: everything else, as one sentence.
    """
    wait = FIRST_WAIT
    for left in reversed(range(ATTEMPTS)):
        # Without it the client would wait for a lost answer for ever. Set anew: it forgets it when a connection fails.
        get_session().timeout = TIMEOUT
        try:
            return attempt()
        except _CAUGHT as error:
            cause = _cause(error)
            if not left or not _is_passing(cause):
                raise _told(cause, repo_id) from error
            # At a random moment, so that two publishers don't meet again and again.
            time.sleep(max(wait * random.uniform(0.5, 1.0), _asked_wait(cause)))
            wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("the last attempt returns or raises")


def _cause(error: BaseException) -> BaseException:
    """What is behind the client's "Error while uploading ..."."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error


def _status(error: BaseException) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, HubError | OfflineModeIsEnabled | LocalTokenNotFoundError):
        return False
    if isinstance(error, OSError) and error.filename is not None:
        return False  # of a file here, not of the network
    status = _status(error)
    return isinstance(error, _LOST) if status is None else status in _PASSING or status >= 500


def _asked_wait(error: BaseException) -> float:
    """Seconds that the server asks to wait (`Retry-After`), within bounds."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = str(headers.get("Retry-After", ""))
    return min(float(asked), 10 * LONGEST_WAIT) if asked.isdecimal() else 0.0


def _told(error: BaseException, repo_id: str) -> BaseException:
    """The error as one sentence, with the server's own reason where it gives one."""
    status = _status(error)
    if isinstance(error, HubError) or (status is None and not isinstance(error, _LOST)):
        return error if not isinstance(error, ValueError) else ValueError(" ".join(str(error).split()))
    reason = " ".join(str(getattr(error, "server_message", None) or "").split())
    said = f" (the Hub says: {reason})" if reason else ""
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(f"{repo_id} can't be reached: HF_HUB_OFFLINE is set in the environment; unset it.")
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return HubError(
            f"The Hub doesn't know who is asking for {repo_id} (401){said}: log in with `hf auth login`, or set "
            "HF_TOKEN to a valid access token with the right to write."
        )
    if status == 403:
        return HubError(
            f"This access token has no right to write to {repo_id} (403){said}: it needs the role “write”, or, if it "
            f"is a fine-grained one, “Write access to contents/settings of all repos” of {repo_id.split('/')[0]}."
        )
    if status is not None and status not in _PASSING and status < 500:
        return HubError(f"The Hub refused {repo_id} ({status}){said or f': {_flat(error)}'}.")
    if isinstance(error, OSError) and error.filename is not None:
        return ValueError(f"{error.filename} can't be read: {error.strerror}.")
    what = f"answered {status}{said}" if status is not None else f"could not be reached ({_flat(error)})"
    return HubError(
        f"The Hub {what} in {ATTEMPTS} attempts for {repo_id}. Run the same command again later: what is there already "
        "will not be sent twice."
    )


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
