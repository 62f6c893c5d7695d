"""The platform's decisions and vocabulary: plain functions and small classes, no I/O, clock passed in."""
