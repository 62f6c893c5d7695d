"""ROCK: keeps isolated environments alive and serves them to an RL trainer.

Import the client from :mod:`rock.sdk`; everything else is the platform itself.
"""

__version__ = "0.1.0"
