"""What a server's responses mean: answers, errors, waits. Nothing here sends anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeGuard

from data.characters import whole_characters
from data.errors import UserError
from data.files.documents import parse_line
from eval.api.answers import Answer

SHORTEST_KEY = 8  # characters
MOST_TOKENS = 10**9  # of one answer; a larger count is nonsense
QUOTED = 300  # characters of a server's text in a message
FILTER_CODES = ("content_filter", "content_policy_violation", "invalid_prompt")  # Azure, OpenAI; proxies keep them
# In messages, of Azure, LiteLLM and OpenRouter, whose codes are numbers.
_FILTERED = re.compile("content management policy|ContentPolicyViolation|input was flagged")
NO_CHOICES = "no_choices"  # the reason, in our words, why such an answer is empty
_KEY = re.compile(r"\b(sk-|Bearer )[^\s\"'.,;]+(\.[^\s\"'.,;]+)*")  # a key, also one that the server has masked


def read_completion(record: Any, example_id: str) -> Answer | None:
    """The answer in a chat completion, as the API returns it and a batch's output has it; None if it is none.

    An empty answer and a refusal are answers. Some servers send them without a message, with a ``finish_reason``. Some
    proxies and filters send no choices at all: that is an empty answer, whose ``finish_reason`` is `NO_CHOICES`.
    """
    try:
        if record["choices"] in (None, []) and not record.get("error"):
            record = record | {"choices": [{"message": {}, "finish_reason": NO_CHOICES}]}
        choice, usage = record["choices"][0], record.get("usage")
        message, usage = choice.get("message"), usage if isinstance(usage, dict) else {}
        if message is None and choice.get("finish_reason") and not {"text", "delta"} & choice.keys():
            message = {}  # nothing was written; those two keys are of other APIs, whose answers are not read
        content, refusal = message.get("content"), message.get("refusal")
        finish_reason = whole_characters(str(choice.get("finish_reason") or ""))
        return Answer(
            id=example_id,
            answer=whole_characters(str(refusal or "") if content is None else _text(content)),
            finish_reason=finish_reason,
            refused=bool(refusal) or finish_reason == "content_filter",
            model=whole_characters(str(record.get("model") or "")),
            prompt_tokens=as_count(usage.get("prompt_tokens")),
            completion_tokens=as_count(usage.get("completion_tokens")),
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        return None


def refusal_in(status: object, error: Mapping[str, Any], example_id: str) -> Answer | None:
    """The answer that an API's error is if the server's filter refuses the text; None for any other error."""
    if status not in (400, 403):
        return None
    if error.get("code") not in FILTER_CODES and not _FILTERED.search(str(error.get("message"))):
        return None
    return Answer(example_id, "", finish_reason="content_filter", refused=True)


def as_count(value: object) -> int | None:
    """A number of tokens; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS else None


def _text(content: object) -> str:
    """A message's text; a few servers send it in parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError(content)
    return content


def error_details(text: str) -> dict[str, Any]:
    """The error object in the text of an API's error."""
    try:
        return error_in(parse_line(text, "the response", as_python=True))
    except UserError:
        return {}


def error_in(record: Any) -> dict[str, Any]:
    """The error object in an API's error."""
    error = record.get("error", record) if isinstance(record, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def is_html(text: str, headers: Mapping[str, str]) -> bool:
    return "text/html" in headers.get("content-type", "").lower() or text.lstrip()[:1] == "<"


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """What a server's headers say of how long to wait: ``Retry-After`` in seconds or as a date, ``retry-after-ms``."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter of a year or an offset with many digits
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def without_key(text: str, key: str | None) -> str:
    """A response without the key, also where JSON spells it otherwise (``\\/``)."""
    if not _is_secret(key):
        return text
    try:
        text = json.dumps(parse_line(text, "the response", as_python=True), ensure_ascii=False)
    except UserError:
        pass
    return text.replace(key, "[key]")


def clean(text: str, key: str | None) -> str:
    """A server's text for a message: one line, not too long, and without keys."""
    if _is_secret(key):
        text = text.replace(key, "[key]")
    return " ".join(_KEY.sub("[key]", text).split())[:QUOTED]


def _is_secret(key: str | None) -> TypeGuard[str]:
    """Whether a key is to be hidden. A shorter one is a placeholder, such as "x" or "none", and may be a part of any
    text."""
    return key is not None and len(key) >= SHORTEST_KEY
