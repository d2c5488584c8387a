"""What a run will need, before the first request: tokens and dollars. And the question whether to go on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import UserError
from data.tasks import Task
from eval.api.prices import Prices
from eval.api.setup import Request
from eval.api.tokens import Counter


@dataclass(frozen=True)
class Estimate:
    """Tokens of some requests.

    Attributes:
        n_input: of all messages.
        n_output: of all answers, if they are as long as the gold answers.
        most_output: of all answers, if each is as long as it may be.
        n_truncated: requests whose document was cut.
    """

    n_requests: int
    n_input: int
    n_output: int
    most_output: int
    n_truncated: int

    def dollars(self, prices: Prices) -> tuple[float, float]:
        """What they cost, with answers like the gold answers and with the longest."""
        return prices.of(self.n_input, self.n_output), prices.of(self.n_input, self.most_output)


def estimate(task: Task, requests: Sequence[Request], counter: Counter) -> Estimate:
    """Count the tokens of requests."""
    gold = (task.write(request.example.labels, request.example.words) for request in requests)
    return Estimate(
        n_requests=len(requests),
        n_input=sum(request.n_tokens for request in requests),
        n_output=sum(counter.count(answer) for answer in gold),
        most_output=sum(request.max_tokens for request in requests),
        n_truncated=sum(request.truncated for request in requests),
    )


def describe(found: Estimate, counter: Counter, prices: Prices | None) -> str:
    """The estimate in two or three lines."""
    lines = [
        f"{found.n_requests:,} requests: {found.n_input:,} tokens in prompts, about {found.n_output:,} in answers, at "
        f"most {found.most_output:,} (counted by {counter.how})"
    ]
    if found.n_truncated:
        lines.append(f"{found.n_truncated:,} documents are truncated")
    if prices is None:
        lines.append("cost: not known, there is no price for this model")
    else:
        likely, highest = found.dollars(prices)
        lines.append(
            f"cost: about {_dollars(likely)}, at most {_dollars(highest)} by this count "
            f"(${prices.input:g} and ${prices.output:g} per million tokens; {prices.source}, {prices.date})"
        )
    return "\n".join(lines)


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 0.1 else f"${amount:.4f}"


def confirm(yes: bool) -> bool:
    """Ask on a terminal whether to go on.

    Args:
        yes: do not ask.

    Raises:
        UserError: there is no terminal to ask on.
    """
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "nothing was asked yet: give --yes to go on with these requests (there is no terminal to ask on)."
        )
    try:
        return input("go on? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False
