"""Which env requests may act: sequence numbers, the end of the episode, and the fencing epoch. Pure; no I/O.

Invariants:
- No request acts twice: a repeated number gives the first answer again (or waits for it, while it is being made).
- Nothing acts out of order: a gap, an older number, or a number used for another request is a ``conflict``.
- After the environment failed or was lost, nothing acts until a new reset.
- Whoever speaks for a lower epoch than the one bound is refused, whatever it asks.
"""

from __future__ import annotations

from rock.guest.errors import GuestError, invalid

TYPE_CHECKING = False
if TYPE_CHECKING:  # a sandbox starts sooner without the typing module
    from typing import Any

RUN, JOIN, CACHED = "run", "join", "cached"


class Fence:
    """The highest epoch bound so far; 0 until the first."""

    def __init__(self) -> None:
        self.epoch = 0

    def bind(self, epoch: int) -> None:
        self.check(epoch)
        self.epoch = epoch

    def check(self, epoch: Any) -> None:
        if epoch is None:
            return
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
            raise invalid("epoch is %r, expected a whole number from 0" % (epoch,))
        if epoch < self.epoch:
            raise GuestError(
                "stale-epoch",
                "the request speaks for epoch %d, this sandbox is bound to epoch %d" % (epoch, self.epoch),
                "Another holder has taken over; stop using this lease.",
            )


class Episode:
    """The place in the sequence of env requests, and the last answer.

    ``admit`` says what to do with a request: RUN it and then call ``settle``, JOIN the one that runs, or send what is
    CACHED in ``answer``. A reset carries number 0, or the next one; a restored episode goes on from any number. (A
    reset that arrives a second time, late, begins the episode anew; its holder learns of it, because the next step then
    leaves a gap.)
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything: the environment was closed in order."""
        self.last_seq = -1
        self.request: Any = None
        self.running = False
        self.answer: Any = None
        self.begun = False
        self.over = False
        self.failure: Any = None  # GuestError

    def admit(self, seq: int, request: Any, is_reset: bool, is_restore: bool = False) -> str:
        if not isinstance(seq, int) or isinstance(seq, bool) or seq < 0:
            raise invalid("seq is %r, expected a whole number from 0" % (seq,))
        if self.running:
            if seq == self.last_seq and request == self.request:
                return JOIN
            raise GuestError("conflict", "env request %d came while request %d still runs" % (seq, self.last_seq))
        repeated = seq == self.last_seq and request == self.request
        begins = is_restore or (is_reset and seq in (0, self.last_seq + 1))
        if begins and not (repeated and self.failure is None):
            return self._run(seq, request)
        if repeated:
            if self.failure is not None:
                raise self.failure
            return CACHED
        self._refuse_out_of_order(seq)
        self._refuse_outside_episode()
        return self._run(seq, request)

    def settle(self, answer: Any, over: bool) -> None:
        """The running request has its answer; ``over``: it ended the episode."""
        self.running = False
        self.answer = answer
        self.begun = True
        self.over = over

    def fail(self, failure: GuestError) -> None:
        """The environment raised, or is lost; the episode, if any, is void. Also while nothing runs."""
        self.running = False
        self.answer = None
        self.failure = failure

    def _run(self, seq: int, request: Any) -> str:
        self.last_seq = seq
        self.request = request
        self.running = True
        self.answer = None
        self.failure = None
        self.over = False
        return RUN

    def _refuse_out_of_order(self, seq: int) -> None:
        expected = self.last_seq + 1
        if seq == expected:
            return
        if seq == self.last_seq:
            raise GuestError("conflict", "seq %d was used for another request" % seq)
        kind = "is older than" if seq < expected else "leaves a gap after"
        raise GuestError(
            "conflict",
            "seq %d %s the last one, %d; expected %d" % (seq, kind, self.last_seq, expected),
            "Count env requests from 0 (the reset), one at a time.",
        )

    def _refuse_outside_episode(self) -> None:
        if self.failure is not None:
            raise self.failure
        if not self.begun:
            raise GuestError("invalid-action", "no episode has begun", "Call env.reset first.")
        if self.over:
            raise GuestError("invalid-action", "the episode is over", "Call env.reset to begin another.")
