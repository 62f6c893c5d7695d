"""An agent program that plays an episode over HTTP: asks the policy, acts, until the episode is over.

``python scripted_agent.py MANNER``. The manners: ``plain``; ``stream``; ``tidy`` (sends back tidied answers); ``crash``
(dies after the first answer); ``leave`` (ends well after the first answer, without acting); ``silent`` (asks nothing);
``hang``; ``twice`` (asks for every answer twice and takes the second).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import httpx

ACTIONS = httpx.Client(headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}, timeout=60)
EPISODE = os.environ["ROCK_EPISODE_URL"]


def ask(messages: list[dict], stream: bool) -> str:
    body = {"model": os.environ["OPENAI_MODEL"], "messages": messages, "temperature": 0.1, "stream": stream}
    answer = ACTIONS.post(f"{os.environ['OPENAI_BASE_URL']}/chat/completions", json=body)
    answer.raise_for_status()
    if not stream:
        return answer.json()["choices"][0]["message"]["content"]
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)


def main(manner: str) -> int:
    if manner == "silent":
        return 0
    episode = ACTIONS.get(EPISODE).json()
    messages = [{"role": "user", "content": str(episode["observation"])}]
    while not episode["over"]:
        action = ask(messages, manner == "stream")
        if manner == "twice":
            action = ask(messages, False)
        if manner == "crash":
            print("something went wrong", file=sys.stderr)
            return 3
        if manner == "leave":
            return 0
        if manner == "hang":
            subprocess.run(["sleep", "3600"])
        step = ACTIONS.post(f"{EPISODE}/step", json={"action": action.strip()}).raise_for_status().json()
        episode = ACTIONS.get(EPISODE).json()
        said = f"  {action}\n" if manner == "tidy" else action
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": str(step["observation"])}]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
