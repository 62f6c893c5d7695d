"""Which images go: as few as needed, the longest unused first, never one that is in use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rock.domain.eviction import Kept, to_evict

IMAGES = st.lists(
    st.builds(
        Kept,
        tag=st.text("abc", min_size=1, max_size=4),
        own_bytes=st.integers(0, 100),
        used_at_s=st.integers(0, 20).map(float),
        pinned=st.booleans(),
    ),
    unique_by=lambda image: image.tag,
)


@given(IMAGES, st.integers(0, 500))
def test_what_is_left_fits_unless_the_rest_is_in_use(images: list[Kept], limit: int) -> None:
    gone = to_evict(images, limit)
    left = [image for image in images if image not in gone]
    assert not any(image.pinned for image in gone)
    assert sum(image.own_bytes for image in left) <= limit or all(image.pinned for image in left)


@given(IMAGES, st.integers(0, 500))
def test_nothing_goes_that_was_used_later_than_something_that_stays(images: list[Kept], limit: int) -> None:
    gone = to_evict(images, limit)
    free = [image for image in images if not image.pinned and image not in gone]
    assert all(one.used_at_s <= other.used_at_s for one in gone for other in free)


@given(IMAGES, st.integers(0, 500))
def test_the_last_to_go_was_needed(images: list[Kept], limit: int) -> None:
    gone = to_evict(images, limit)
    if gone:
        before_last = sum(image.own_bytes for image in images) - sum(image.own_bytes for image in gone[:-1])
        assert before_last > limit
