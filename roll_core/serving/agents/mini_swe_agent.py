"""mini-swe-agent as the program of an episode: the policy is its model, the episode's environment its shell.

    python mini_swe_agent.py [CONFIG.yaml]

Runs in an environment of its own that has mini-swe-agent (2.x) installed; imports nothing else but the standard
library. CONFIG is one of mini-swe-agent's own configurations (its sections ``agent`` and ``model``), a file or a name
that it ships; ``mini`` is what it takes without. The task is the environment's first observation, a command is a step.

Exit status 0 when the agent came to an end of its own, whatever that was; else it crashed.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

# Before it is imported: no questions, no files outside of the episode's directory, no prices from the network.
os.environ.setdefault("MSWEA_GLOBAL_CONFIG_DIR", os.path.join(os.getcwd(), ".mini-swe-agent"))
os.environ.setdefault("MSWEA_CONFIGURED", "true")
os.environ.setdefault("MSWEA_SILENT_STARTUP", "true")
os.environ.setdefault("MSWEA_COST_TRACKING", "ignore_errors")
# What the endpoint refuses it refuses again: a limit was reached, or the episode is over.
os.environ.setdefault("MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

_TIMEOUT_S = 3600.0
"""Longer than any step: the trainer's deadlines end it."""
_SUBMITS = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


def call(path: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the episode's environment."""
    request = urllib.request.Request(
        os.environ["ROCK_EPISODE_URL"] + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        found: dict[str, Any] = json.load(response)
    return found


class EpisodeEnvironment:
    """mini-swe-agent's environment, whose commands are steps of the episode."""

    def __init__(self) -> None:
        self.config = None

    def execute(self, action: dict[str, Any], cwd: str = "", *, timeout: int | None = None) -> dict[str, Any]:
        from minisweagent.exceptions import Submitted

        step = call("/step", {"action": action.get("command", "")})
        output = as_output(step["observation"], step["info"])
        said = output["output"].lstrip().splitlines()
        if step["over"] or (said and said[0].strip() == _SUBMITS and output["returncode"] == 0):
            rest = "\n".join(said[1:])
            end = {"exit_status": "Submitted", "submission": rest}
            raise Submitted({"role": "exit", "content": rest, "extra": end})
        return output

    def get_template_vars(self, **values: Any) -> dict[str, Any]:
        names = ("system", "release", "version", "machine")
        return {"cwd": "", **dict.fromkeys(names, "Linux"), **values}

    def serialize(self) -> dict[str, Any]:
        return {"info": {"config": {"environment_type": "episode"}}}


def as_output(observation: Any, info: dict[str, Any]) -> dict[str, Any]:
    """What a command put out. Environments say it as a mapping with ``output`` and ``returncode``, or as text, the exit
    status beside it in ``info``."""
    given = observation if isinstance(observation, dict) else {"output": str(observation)}
    status = given.get("returncode", given.get("exit_code", info.get("returncode", info.get("exit_code", 0))))
    return {"output": str(given.get("output", "")), "returncode": status, "exception_info": ""}


def main(config_name: str) -> int:
    import yaml
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.config import get_config_path
    from minisweagent.models import get_model

    config = yaml.safe_load(get_config_path(config_name).read_text())
    model = {"model_class": "litellm", **config.get("model", {})}
    model["model_kwargs"] = {
        "drop_params": True,
        **model.get("model_kwargs", {}),
        "api_base": os.environ["OPENAI_BASE_URL"],
        "api_key": os.environ["OPENAI_API_KEY"],
        "timeout": _TIMEOUT_S,
        "max_retries": 0,
    }
    settings = {k: v for k, v in config["agent"].items() if k in ("system_template", "instance_template", "step_limit")}
    agent = DefaultAgent(
        get_model("openai/" + os.environ["OPENAI_MODEL"], model), EpisodeEnvironment(), cost_limit=0.0, **settings
    )
    end = agent.run(str(call()["observation"]))
    print(end.get("exit_status", ""))  # noqa: T201 - the last words of the program
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "mini"))
