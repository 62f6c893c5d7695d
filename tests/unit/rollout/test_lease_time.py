"""How long the trainer's leases are held at most: as long as an episode may take, never refused by the platform."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rock.control.admission import check_time
from rock.wire.models import EnvView, LeaseRequest
from roll_core.rollout.sessions import lease_time_s

seconds = st.floats(0, 1e5, allow_nan=False)


@given(st.floats(1, 1e5), seconds, seconds, seconds)
def test_a_lease_outlasts_the_episode_and_is_never_refused(
    episode_s: float, declared_s: float, scoring_s: float, cleanup_s: float
) -> None:
    env = EnvView(name="toy", version="1", description="", recovery="none", built=True)
    env = env.model_copy(update={"episode_s": declared_s, "scoring_s": scoring_s, "cleanup_s": cleanup_s})
    needs_s = lease_time_s(episode_s, env, 1)
    assert needs_s >= episode_s + scoring_s + cleanup_s
    check_time(LeaseRequest(env="toy", needs_s=needs_s), env)


def test_a_sandbox_that_plays_several_episodes_is_held_without_a_limit() -> None:
    env = EnvView(name="toy", version="1", description="", recovery="none", built=True)
    assert lease_time_s(60.0, env, 8) == 0.0
