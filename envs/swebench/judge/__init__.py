"""The judge: applies a submitted patch to a fresh repository, runs the hidden tests, grades by SWE-bench's rules."""
