"""Repositories with a bug: an agent mends it with shell commands, a judge in another sandbox says whether it did."""
