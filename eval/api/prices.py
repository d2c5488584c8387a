"""What tokens cost: a list of prices, and a budget that a run never passes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from data.errors import UserError, nearest
from data.files.documents import parse_toml, read_bytes, shaped
from data.readers.encoding import decode_utf8
from eval.api.answers import Answer, Lost
from eval.api.setup import Request
from eval.api.tokens import most_tokens

LIST = Path(__file__).parent / "prices.toml"
MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """A model's prices, in US dollars per million tokens, and where they are from."""

    input: float
    output: float
    date: str
    source: str

    def of(self, n_input: float, n_output: float) -> float:
        """Dollars for that many tokens of prompts and of answers."""
        return (n_input * self.input + n_output * self.output) / MILLION

    def record(self) -> dict[str, Any]:
        """For ``results.json``."""
        return {"dollars_per_million": {"input": self.input, "output": self.output}, "date": self.date,
                "source": self.source}  # fmt: skip


_Dollars = Annotated[float, msgspec.Meta(ge=0, lt=MILLION)]  # per million tokens


class _Price(msgspec.Struct):
    input: _Dollars
    output: _Dollars


class _List(msgspec.Struct):
    date: Any = None  # a text or a date
    source: str = ""
    models: dict[str, Any] = {}


def read_prices(model: str, path: Path | None = None, required: bool = True) -> Prices | None:
    """A model's prices.

    Args:
        model: its name at the server.
        path: the list; None: the one beside this file.
        required: without them the list is wrong. Otherwise None is returned for a model that is not in it.

    Raises:
        UserError: no such file, not a price list, or one without the model.
    """
    file = path or LIST
    text = decode_utf8(read_bytes(file), str(file), file.name)
    found: _List = parse_toml(text, str(file), _List)
    if not found.models:
        raise UserError(f'{file} has no prices. Write, for example, [models."{model}"], input = 1.0 and output = 2.0.')
    if not found.date:
        raise UserError(f'{file} has no date: prices change. Add, for example, date = "2025-01-31" at the top.')
    if model not in found.models:
        if not required:
            return None
        raise UserError(
            f"{file} has no price for {model}.{nearest(model, found.models)} Add to it, or to a list of your own for "
            f'--prices, [models."{model}"] with input and output in US dollars per million tokens.'
        )
    own: _Price = shaped(found.models[model], f'{file}, [models."{model}"]', _Price)
    return Prices(own.input, own.output, str(found.date), found.source or file.name)


def most(prices: Prices, request: Request) -> float:
    """The most that a request can cost, in dollars."""
    return prices.of(*at_most(request))


def at_most(request: Request) -> tuple[int, int]:
    """The most tokens of a request's prompt and of its answer."""
    return most_tokens(request.messages), request.max_tokens


def cost_of(prices: Prices, answer: Answer, request: Request) -> float:
    """What an answer has cost, in dollars; without the server's ``usage``, the most that it can have cost."""
    return prices.of(*(answer.usage or at_most(request)))


class Budget:
    """Money for a run's requests. It is shared by threads.

    A request reserves the most that it can cost before it is sent. So the sum of what was spent and what is in flight
    never passes the limit. Attempts that the server may have charged without an answer count as spent.

    Args:
        limit: in dollars; None: no limit.
        prices: None: costs are not known, and there is no limit.
        spent: dollars that earlier answers have cost.
    """

    def __init__(self, limit: float | None, prices: Prices | None, spent: float = 0.0) -> None:
        assert limit is None or prices is not None, "a limit needs prices"
        self.limit, self.prices, self.spent, self.reserved = limit, prices, spent, 0.0
        self._lock = threading.Lock()

    def reserve(self, request: Request) -> bool:
        """Reserve the most that a request can cost. False if that may pass the limit."""
        if self.prices is None:
            return True
        with self._lock:
            amount = most(self.prices, request)
            if self.limit is not None and self.spent + self.reserved + amount > self.limit:
                return False
            self.reserved += amount
            return True

    def spend(self, request: Request, dollars: float) -> None:
        """Replace a request's reservation by what it has cost."""
        if self.prices is not None:
            with self._lock:
                self.reserved -= most(self.prices, request)
                self.spent += dollars

    def lose(self, request: Request, empty: Answer | None = None) -> bool:
        """Count an attempt as charged without an answer, and reserve another. False if that may pass the limit.

        Args:
            empty: what came instead, if it has the server's ``usage``.
        """
        if self.prices is not None:
            self.spend(request, cost_of(self.prices, empty, request) if empty else most(self.prices, request))
        return self.reserve(request)


def lost(request: Request, empty: Answer | None = None) -> Lost:
    """An attempt at a request that may have been charged; see `Budget.lose`."""
    return Lost(request.example.id, *((empty and empty.usage) or at_most(request)))


def total(
    prices: Prices | None,
    answers: Iterable[Answer],
    attempts: Iterable[Lost],
    requests: Iterable[Request],
    longest: int,
) -> float:
    """What answers and lost attempts have cost, in dollars; 0 without prices.

    An answer without ``usage`` counts as the most that it can have cost: that is in its line, or known of its request.

    Args:
        requests: of this run; other answers are those of other runs.
        longest: tokens of prompt and of answer to count if neither is known.
    """
    if prices is None:
        return 0.0
    known = {request.fingerprint: at_most(request) for request in requests}
    counts = [(attempt.prompt_tokens, attempt.completion_tokens) for attempt in attempts]
    counts += [answer.usage or answer.at_most or known.get(answer.request, (longest, longest)) for answer in answers]
    return sum(prices.of(*count) for count in counts)
