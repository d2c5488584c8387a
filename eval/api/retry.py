"""Send requests until they are answered, a few at a time, and stop in good order.

Threads send; the calling thread keeps each answer when it arrives. The first request goes alone, so that a wrong key or
URL costs one request. When something ends the run (a signal, an error, the budget), no request is sent any more, and
the answers in flight, which will be paid for, are still kept.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from data.errors import UserError
from eval.api.answers import Answer, Lost
from eval.api.client import TryAgain
from eval.api.prices import Budget, at_most, cost_of, lost
from eval.api.setup import Request

FIRST_SECONDS, MOST_SECONDS = 1.0, 60.0  # of a wait; it doubles with each attempt
LONGEST_WAIT = 3600.0  # seconds; a server that names more is not waited for
NOTICE_SECONDS = 30.0  # between two messages of one kind

log = logging.getLogger("eval")


@dataclass
class Asking:
    """What the threads of a run share.

    Attributes:
        send: sends a request once; raises `TryAgain` or UserError.
        lose: keeps that an attempt may have been charged without an answer.
        attempts: how often a request is sent at most. A rate limit does not count while others are answered.
        concurrency: requests in flight at a time.
        stop: set when nothing more is to be sent.
    """

    send: Callable[[Request], Answer]
    lose: Callable[[Lost], None]
    budget: Budget
    attempts: int
    concurrency: int
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    n_answered: int = field(default=0, init=False)
    _resume: float = field(default=0.0, init=False)  # when the server's last Retry-After ends
    _noted: dict[str, float] = field(default_factory=dict, init=False)

    def pause(self, seconds: float) -> None:
        """Let no thread send for some seconds: a rate limit is one of all requests."""
        with self._lock:
            self._resume = max(self._resume, time.monotonic() + seconds)

    def sleep(self, seconds: float = 0.0) -> bool:
        """Wait, at least until the end of a pause. False if the run stops meanwhile."""
        until = time.monotonic() + seconds
        while not self.stop.is_set():
            left = max(until, self._resume) - time.monotonic()
            if left <= 0:
                return True
            self.stop.wait(left)
        return False

    def note(self, text: str) -> None:
        """Log a message, unless one that begins alike was logged a moment ago."""
        kind, now = text.split(" (")[0], time.monotonic()
        with self._lock:
            if now - self._noted.get(kind, -NOTICE_SECONDS) < NOTICE_SECONDS:
                return
            self._noted[kind] = now
        log.info("%s", text)


def ask_all(asking: Asking, requests: Iterable[Request], keep: Callable[[Request, Answer], None]) -> bool:
    """Ask until all requests are answered or something stops the run.

    Args:
        keep: called in this thread with each answer when it arrives.

    Returns:
        False if the budget does not suffice for the next request.

    Raises:
        Exception: the first error of any request, a UserError or a defect; answers in flight at that time are kept.
    """
    waiting, in_flight = deque(requests), dict[Future[Answer | None], Request]()
    allowed, affordable = 1, True
    problem: Exception | None = None
    pool = ThreadPoolExecutor(asking.concurrency)
    try:
        while True:
            while waiting and len(in_flight) < allowed and not asking.stop.is_set():
                affordable = asking.budget.reserve(waiting[0])
                if not affordable:  # unless an answer in flight costs less than it reserves
                    break
                request = waiting.popleft()
                in_flight[pool.submit(ask, asking, request)] = request
            if not in_flight:
                break
            for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                request = in_flight.pop(future)
                try:
                    answer = future.result()
                except OverBudget:
                    affordable, waiting = False, deque()
                except Exception as error:  # of any kind: the answers in flight will be paid for
                    problem = problem or error
                    asking.stop.set()
                else:
                    if answer is not None:
                        keep(request, answer)
                        asking.n_answered += 1
                        allowed = asking.concurrency
    finally:
        asking.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    if problem is not None:
        raise problem
    return affordable


class OverBudget(Exception):
    """Another attempt at a request may cost more than the budget allows."""


def ask(asking: Asking, request: Request) -> Answer | None:
    """Send a request until it is answered. None: the run stopped before.

    Raises:
        UserError: an error that will not pass, or none of the attempts succeeded.
        OverBudget: see there.
    """
    attempt, n_failed, n_waits = 0, 0, 0  # n_failed: since another request was answered
    n_answered = asking.n_answered
    while True:
        attempt += 1
        if not asking.sleep():
            asking.budget.spend(request, 0.0)
            return None
        try:
            return _paid(asking, request, asking.send(request), attempt)
        except TryAgain as again:
            if again.empty is not None and n_failed + 1 == asking.attempts:
                # Some filters answer a text so each time; an error would stop every further start at this example.
                log.warning("example %s: %s in %d attempts; kept as an empty answer",
                            request.example.id, again, attempt)  # fmt: skip
                return _paid(asking, request, again.empty, attempt)
            if again.lost:
                asking.lose(lost(request, again.empty))
                if not asking.budget.lose(request, again.empty):
                    raise OverBudget from None
            # Where others get through, waiting as long as now passes a rate limit: attempts before count no more.
            if again.limited and asking.n_answered > n_answered:
                n_failed, n_answered = 0, asking.n_answered
            else:
                n_waits += 1
            n_failed, reason = n_failed + 1, str(again)
            if n_failed == asking.attempts:
                raise UserError(
                    f"example {request.example.id}: no answer in {attempt} attempts, at last: {reason}. Check the "
                    "server (--base_url), or give more --attempts, a longer --timeout or a lower --concurrency."
                ) from None
            seconds = wait_before(max(n_waits, 1) + 1)
            if again.after is not None:
                if again.after > LONGEST_WAIT:
                    raise UserError(
                        f"{reason}: the server says to wait {again.after / 3600:.1f} hours. Start the same command "
                        "again after that; it keeps the answers that it has."
                    ) from None
                seconds = max(seconds, again.after)
                asking.pause(again.after)
            elif again.limited:
                asking.pause(seconds)
            asking.note(f"{reason}: example {request.example.id} is sent again in {seconds:.1f} s")
            asking.sleep(seconds)


def _paid(asking: Asking, request: Request, answer: Answer, attempts: int) -> Answer:
    """An answer as it is kept; its cost is counted."""
    if asking.budget.prices is not None:
        asking.budget.spend(request, cost_of(asking.budget.prices, answer, request))
    return replace(answer, attempts=attempts, at_most=None if answer.usage else at_most(request))


def wait_before(attempt: int) -> float:
    """Seconds to wait before an attempt, from the second on: twice as long each time, with jitter of a half."""
    doubled = FIRST_SECONDS * 2 ** min(attempt - 2, 30)  # a float has no space for 2**1024
    return min(doubled, MOST_SECONDS) * random.uniform(0.5, 1.0)
