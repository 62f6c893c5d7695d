"""The endpoint as OpenAI's clients know it: answers, streams, tools, errors, keys."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from roll_core.errors import EngineDead, RecipeError
from roll_core.serving.app import make_app
from roll_core.serving.doors import EpisodeKeys, OpenDoor, Seat
from roll_core.serving.server import is_loopback, serving

from .conftest import TOKENIZER, Parrot

TOOL = {"type": "function", "function": {"name": "bash", "parameters": {}}}
CALL = '<tool_call>{"name": "bash", "arguments": {"command": "ls"}}</tool_call>'


class Desk:
    """A client of an endpoint in this process."""

    def __init__(self, make_session, engine: Parrot | None = None, *, key: str = "", **how) -> None:
        self.engine = engine or Parrot()
        self.sessions = {}

        def make(name: str):
            self.sessions[name] = make_session(self.engine, name, **how)
            return self.sessions[name]

        app = make_app(OpenDoor(make, key), TOKENIZER, "policy")
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def ask(self, *messages: str | dict, headers=None, **parameters) -> httpx.Response:
        listed = [m if isinstance(m, dict) else {"role": "user", "content": m} for m in messages]
        body = {"model": "policy", "messages": listed, **parameters}
        return asyncio.run(self.client.post("/v1/chat/completions", json=body, headers=headers or {}))

    def get(self, path: str, **headers: str) -> httpx.Response:
        return asyncio.run(self.client.get(path, headers=headers))


@pytest.fixture
def desk(make_session):
    return lambda *lines, **how: Desk(make_session, Parrot(lines or ("hello",)), **how)


def test_an_answer_with_its_tokens_and_what_it_cost(desk) -> None:
    at = desk("hello there")
    body = at.ask("a", logprobs=True, return_token_ids=True).json()
    choice = body["choices"][0]
    assert (body["object"], body["model"], choice["finish_reason"]) == ("chat.completion", "policy", "stop")
    assert choice["message"] == {"role": "assistant", "content": "hello there"}
    assert TOKENIZER.decode(choice["token_ids"]) == "hello there<|im_end|>"
    assert set(choice["versions"]) == {3}
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == [-0.5] * len(choice["token_ids"])
    prompt = TOKENIZER.encode(at.engine.prompts[0], specials=True)
    assert body["prompt_token_ids"] == prompt
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(choice["token_ids"]),
        "total_tokens": len(prompt) + len(choice["token_ids"]),
    }


def test_a_stream_says_the_same_and_ends(desk) -> None:
    response = desk(CALL).ask("a", tools=[TOOL], stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    first, last, usage = [json.loads(line) for line in lines[:-1]]
    delta = first["choices"][0]["delta"]
    assert delta["tool_calls"][0]["function"] == {"name": "bash", "arguments": '{"command": "ls"}'}
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    assert usage["usage"]["completion_tokens"] > 0


def test_a_tool_is_offered_called_and_its_result_goes_on_in_the_same_chat(desk) -> None:
    at = desk("look: " + CALL, "done")
    answer = at.ask("a", tools=[TOOL]).json()["choices"][0]
    message = answer["message"]
    assert answer["finish_reason"] == "tool_calls"
    assert message["content"] == "look:"
    result = {"role": "tool", "content": "file", "tool_call_id": message["tool_calls"][0]["id"]}
    at.ask("a", message, result, tools=[TOOL])
    assert at.engine.prompts[1] == (
        at.engine.prompts[0] + "look: " + CALL + "<|im_end|>\n<|im_start|>tool\nfile<|im_end|>\n<|im_start|>assistant\n"
    )
    at.ask("a", tools=[TOOL], tool_choice="none")
    assert "bash" not in at.engine.prompts[2]


def test_without_a_name_a_request_belongs_to_the_chat_that_it_extends(desk) -> None:
    at = desk("one", "two", "three")
    for opening in ("a", "b"):
        at.ask(opening)
    at.ask("b", {"role": "assistant", "content": "two"}, "c")
    nodes = at.sessions[""].chats.nodes()
    assert [node.parent for node in nodes] == [None, None, nodes[1]]


def test_a_header_or_user_names_the_session(desk) -> None:
    at = desk()
    at.ask("a", headers={"X-Session-Id": "mine"})
    at.ask("a", user="yours")
    assert set(at.sessions) == {"mine", "yours"}


def test_a_server_without_end_keeps_so_many_chats_and_no_more(desk) -> None:
    at = desk()
    for i in range(300):
        at.ask(f"chat {i}")
    assert len(at.sessions[""].chats.roots) <= 257


def test_stop_strings_and_limits_are_obeyed_and_cut_from_what_is_told(desk) -> None:
    at = desk("one STOP two")
    assert at.ask("a", stop="STOP").json()["choices"][0]["message"]["content"] == "one "
    assert at.engine.params[0].stop == ("STOP",)
    choice = at.ask("a", max_tokens=2).json()["choices"][0]
    assert (choice["finish_reason"], at.engine.params[1].max_tokens) == ("length", 2)


def test_a_request_says_how_to_sample_unless_training_does(desk) -> None:
    free, fixed = desk(), desk(fixed=True)
    for at in (free, fixed):
        at.ask("a", temperature=0.1, top_p=0.5, seed=7)
    assert [(p.temperature, p.top_p, p.seed) for p in free.engine.params] == [(0.1, 0.5, 7)]
    assert [(p.temperature, p.top_p, p.seed) for p in fixed.engine.params] == [(0.7, 1.0, 1)]


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"n": 2}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"presence_penalty": 0.5}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"temperature": 9}, "temperature"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(desk, parameters, param) -> None:
    at = desk()
    response = at.ask("a", **parameters)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert error["message"]
    assert not at.engine.prompts


def test_errors_have_openais_shape(desk) -> None:
    at = desk()
    assert at.ask("a", model="gpt").json()["error"]["code"] == "model_not_found"
    assert at.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert at.get("/v1/episode").json()["error"]["code"] == "no_environment"
    long = at.ask("a " * 600)
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 600 tokens" in long.json()["error"]["message"]


def test_a_dead_engine_is_no_fault_of_the_client(desk) -> None:
    at = desk(EngineDead("it died"))
    response = at.ask("a")
    assert (response.status_code, response.json()["error"]["type"]) == (503, "server_error")
    streamed = at.ask("a", stream=True).text
    assert json.loads(streamed.removeprefix("data: "))["error"]["message"] == "it died"
    assert isinstance(at.sessions[""].error, EngineDead)


def test_the_models(desk) -> None:
    at = desk()
    assert [card["id"] for card in at.get("/v1/models").json()["data"]] == ["policy"]
    assert at.get("/v1/models/policy").json()["id"] == "policy"
    assert at.get("/v1/models/other").status_code == 404


def test_a_key_is_needed_where_there_is_one(desk) -> None:
    at = desk(key="sk-1")
    assert at.ask("a").status_code == 401
    assert at.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert at.ask("a", headers={"Authorization": "Bearer sk-2"}).status_code == 401
    assert at.ask("a", headers={"Authorization": "Bearer sk-1"}).status_code == 200


def test_an_episodes_key_names_its_session_until_it_is_dismissed(make_session) -> None:
    keys, session = EpisodeKeys(), make_session(Parrot())
    key = keys.admit(Seat(session))
    headers = {"authorization": f"Bearer {key}"}
    assert keys.seat(headers, "").session is session
    keys.dismiss(key)
    with pytest.raises(Exception, match="No episode has this key"):
        keys.check(headers)


def test_what_a_client_gave_up_is_ended_in_the_engine_and_counted(make_session) -> None:
    async def main() -> None:
        engine = Parrot([None])
        session = make_session(engine)
        app = make_app(OpenDoor(lambda name: session), TOKENIZER, "policy")
        async with serving(app, "127.0.0.1", 0) as address, httpx.AsyncClient(base_url=address) as client:
            body = {"messages": [{"role": "user", "content": "a"}]}
            for stream in (False, True):
                asking = asyncio.ensure_future(client.post("/v1/chat/completions", json={**body, "stream": stream}))
                await engine.asked.wait()
                engine.asked.clear()
                asking.cancel()
                await asyncio.wait({asking})
                while session.unused_tokens < (4 if stream else 2):  # noqa: ASYNC110 - the server is told by nobody
                    await asyncio.sleep(0)
        assert engine.aborted == ["s/0", "s/1"]
        assert not session.aborted
        with pytest.raises(httpx.ConnectError):
            await httpx.AsyncClient().get(address)

    asyncio.run(main())


def test_an_address_that_is_taken_is_refused_with_its_name(make_session) -> None:
    async def main() -> None:
        app = make_app(OpenDoor(lambda name: make_session(Parrot(), name)), TOKENIZER, "policy")
        async with serving(app, "127.0.0.1", 0) as address:
            port = int(address.rpartition(":")[2])
            with pytest.raises(RecipeError, match=str(port)):
                async with serving(app, "127.0.0.1", port):
                    pass

    asyncio.run(main())


def test_loopback_is_known_by_address() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4
