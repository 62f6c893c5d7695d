"""Property tests of the pure cores: what takes long on a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("patient")
settings.load_profile("patient")
