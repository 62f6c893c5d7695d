"""The reward of an environment that does not give its own: another one judges what was submitted, in a fresh sandbox.

Invariants: what the first environment said of reward and success is dropped, so nothing that its sandbox holds, or an
agent did to it, becomes a reward; whatever goes wrong while judging is raised, never a reward of 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rock.domain.errors import EnvironmentError as EnvironmentFailed

if TYPE_CHECKING:
    from rock.sdk.session import EnvSession

SUBMISSION = "submission"


async def judged(judge: EnvSession, value: dict[str, Any]) -> dict[str, Any]:
    """``value``, the answer to an episode's last step, with the judge's reward, success and words.

    Raises: EnvironmentError (environment) when there is no submission, or the judge's episode does not end with it;
    and what :meth:`EnvSession.open`, ``reset`` and ``step`` of the judge raise.
    """
    info = dict(value["info"])
    if SUBMISSION not in info:
        raise EnvironmentFailed(
            f"the episode ended without info[{SUBMISSION!r}], which {judge.name!r} is to judge",
            hint="Put the submission into the info of the step that ends the episode.",
        )
    async with judge:
        await judge.reset()
        verdict = await judge.step(info[SUBMISSION])
        if not verdict.terminated:
            raise EnvironmentFailed(
                f"the judge {judge.name!r} did not end its episode with the submission",
                hint="The only step of a judge's episode must return terminated=True.",
            )
        info["success"] = bool(verdict.info.get("success", verdict.reward > 0))
        info["verdict"] = {"observation": verdict.observation, "info": verdict.info, "sandbox_id": judge.sandbox_id}
    return value | {"reward": verdict.reward, "info": info}
