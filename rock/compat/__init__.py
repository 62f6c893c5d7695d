"""Doors for agents that were written for something else. Each stands on the SDK alone and is imported by nobody."""
