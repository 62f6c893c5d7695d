"""The account of every dispatched episode. Rule 2 of the house: each ends exactly once.

Invariant, checked after every booking: dispatched = Σ terminal accounts + in flight. Booking an id that was never
dispatched, or twice, is a programming error and raises at once rather than corrupting the account.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rock.domain.outcome import LedgerState

TERMINAL = tuple(s for s in LedgerState if s is not LedgerState.IN_FLIGHT)


class LedgerError(AssertionError):
    """An episode was booked twice, or one that was never dispatched. A defect of the caller."""


@dataclass(slots=True)
class Account:
    episodes: int = 0
    tokens: int = 0
    sandbox_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """Plain numbers for reports and checkpoints."""

    dispatched: int
    in_flight: tuple[str, ...]
    accounts: dict[LedgerState, Account]


@dataclass(slots=True)
class Ledger:
    dispatched: int = 0
    _in_flight: dict[str, None] = field(default_factory=dict)  # a dict, to keep the order of dispatch
    _accounts: dict[LedgerState, Account] = field(default_factory=lambda: {s: Account() for s in TERMINAL})

    def dispatch(self, episode_id: str) -> None:
        if episode_id in self._in_flight:
            raise LedgerError(f"episode {episode_id} dispatched twice")
        self._in_flight[episode_id] = None
        self.dispatched += 1

    def book(self, episode_id: str, state: LedgerState, *, tokens: int = 0, sandbox_s: float = 0.0) -> None:
        if state is LedgerState.IN_FLIGHT:
            raise LedgerError("in_flight is no account to end on")
        if episode_id not in self._in_flight:
            raise LedgerError(f"episode {episode_id} booked as {state} but it is not in flight")
        del self._in_flight[episode_id]
        account = self._accounts[state]
        account.episodes += 1
        account.tokens += tokens
        account.sandbox_s += sandbox_s
        self.check()

    def check(self) -> None:
        ended = sum(a.episodes for a in self._accounts.values())
        if self.dispatched != ended + len(self._in_flight):
            raise LedgerError(f"dispatched {self.dispatched} ≠ ended {ended} + in flight {len(self._in_flight)}")

    def count(self, state: LedgerState) -> int:
        return len(self._in_flight) if state is LedgerState.IN_FLIGHT else self._accounts[state].episodes

    def is_in_flight(self, episode_id: str) -> bool:
        return episode_id in self._in_flight

    def snapshot(self) -> LedgerSnapshot:
        accounts = {s: Account(a.episodes, a.tokens, a.sandbox_s) for s, a in self._accounts.items()}
        return LedgerSnapshot(self.dispatched, tuple(self._in_flight), accounts)

    @classmethod
    def restore(cls, snapshot: LedgerSnapshot) -> Ledger:
        accounts = {s: Account(a.episodes, a.tokens, a.sandbox_s) for s, a in snapshot.accounts.items()}
        ledger = cls(snapshot.dispatched, dict.fromkeys(snapshot.in_flight), accounts)
        ledger.check()
        return ledger
