"""Limits of the rate: requests and tokens per minute, requests in flight, and a pause for all."""

import asyncio
import time

SETTLING = 1.0  # seconds; refusals within it are one sign of too much, not several
GLANCE = 0.05  # seconds; answers give tokens back, so that a wait for them may be over sooner


class Bucket:
    """A token bucket of `per_minute`, holding one second's worth; 0 sets no limit. An amount above what it can hold
    waits until it is full and leaves it in debt."""

    def __init__(self, per_minute: float):
        self._rate = per_minute / 60.0
        self._size = max(1.0, self._rate)
        self._level = self._size
        self._at = time.monotonic()

    def wait(self, amount: float) -> float:
        """Takes `amount` where it is there (0.0), else seconds until it will be."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        missing = min(amount, self._size) - self._level
        if missing > 1e-9:  # less is rounding, and would be waited for in vain
            return missing / self._rate
        self._level -= amount
        return 0.0

    def give_back(self, amount: float) -> None:
        """Corrects an estimate: what was taken too much comes back, what was taken too little is owed."""
        self._level = min(self._size, self._level + amount)


class Gate:
    """Lets requests out in turn.

    The number in flight starts at `concurrency`, halves when the server says that it is too much, and grows by one for
    every round of answers (additive increase, multiplicative decrease, as in TCP).
    """

    def __init__(self, concurrency: int, requests_per_minute: float, tokens_per_minute: float):
        self._most = concurrency
        self._limit = float(concurrency)
        self._requests, self._tokens = Bucket(requests_per_minute), Bucket(tokens_per_minute)
        self._paused_until, self._halved = 0.0, float("-inf")
        self._changed = asyncio.Condition()
        self._turn = asyncio.Lock()
        self.active = 0

    async def enter(self, tokens: int) -> None:
        """Waits for a place, the buckets and the end of a pause, in the order of arrival."""
        async with self._turn:
            async with self._changed:
                await self._changed.wait_for(lambda: self.active < max(1, int(self._limit)))
            while wait := self._requests.wait(1):
                await asyncio.sleep(wait)
            while wait := self._tokens.wait(tokens):
                await asyncio.sleep(min(wait, GLANCE))
            while (left := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            self.active += 1

    async def leave(self, unused: int = 0, well: bool = False) -> None:
        """Frees a place; `unused` tokens of the estimate come back, and an answer that went `well` widens the gate."""
        self._tokens.give_back(unused)
        if well:
            self._limit = min(self._most, self._limit + 1.0 / self._limit)
        async with self._changed:
            self.active -= 1
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Lets nothing out for so long, and half as many in flight after it; a pause in a pause, or shortly after the
        last one, only lengthens it."""
        now = time.monotonic()
        if now >= max(self._paused_until, self._halved + SETTLING):
            self._limit, self._halved = max(1.0, self._limit / 2), now
        self._paused_until = max(self._paused_until, now + seconds)


class Ledger:
    """Dollars: what is spent, and what the requests in flight may still cost at most.

    A request that the budget might not bear waits while others are in flight, since they mostly cost less than they
    may; with none in flight it is refused.
    """

    def __init__(self, budget: float, spent: float):
        self.budget, self.spent, self._reserved, self._open = budget, spent, 0.0, 0
        self._changed = asyncio.Condition()

    async def reserve(self, dollars: float) -> bool:
        """Sets `dollars` aside; False where the budget cannot bear them."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._bears(dollars) or not self._open)
            if not self._bears(dollars):
                return False
            self._reserved += dollars
            self._open += 1
            return True

    async def settle(self, reserved: float, cost: float) -> None:
        """Turns what was set aside into what was spent."""
        async with self._changed:
            self._open -= 1
            self._reserved = self._reserved - reserved if self._open else 0.0  # no residue of rounding is left
            self.spent += cost
            self._changed.notify_all()

    def _bears(self, dollars: float) -> bool:
        return not self.budget or self.spent + self._reserved + dollars <= self.budget
