"""Weights on their way from the learner to engines in other processes: versioned, checked, whole or as changes."""

from roll_core.weights.publishing import Published, Publisher, Subscriber

__all__ = ["Published", "Publisher", "Subscriber"]
