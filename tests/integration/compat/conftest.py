"""The platform of the sandboxes' tests."""

from tests.integration.sandboxes.conftest import _bubblewrap, bubblewrap_home, on_bubblewrap  # noqa: F401
