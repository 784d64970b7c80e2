"""The clients that people use, through the gateway, to a real vLLM: they must not notice that there is a gateway.

One daemon and one server are shared by all tests here. The model is tiny and random: it says any printable characters,
so what a test checks is form, not sense.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from stoker.types.serving import Replica
from tests.harness import Stokerd, wait_for
from tests.system.tiny import NEEDS_VLLM, tiny_deployment, tiny_vllm

pytestmark = NEEDS_VLLM
DEPLOYMENT = tiny_deployment(
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes", extra="aliases: [gpt-tiny]", max_model_len=1024
)
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "maxLength": 8}},
                       "required": ["place"], "additionalProperties": False},
    },
}  # fmt: skip


class Pet(BaseModel):
    """What structured output is asked to be."""

    is_good: bool


@pytest.fixture(scope="module")
def daemon() -> Iterator[Stokerd]:
    with tiny_vllm(DEPLOYMENT) as running:
        yield running


@pytest.fixture
def url(daemon: Stokerd) -> str:
    return f"http://127.0.0.1:{daemon.port}"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def direct(daemon: Stokerd) -> Iterator[openai.OpenAI]:
    """The same client, without a gateway."""
    replica = daemon.client.get(Replica, "tiny-v1-0")
    http = httpx.Client(transport=httpx.HTTPTransport(uds=replica.address.removeprefix("unix:")))
    with openai.OpenAI(base_url="http://vllm/v1", api_key="none", max_retries=0, http_client=http) as made:
        yield made


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def running(daemon: Stokerd) -> float:
    """How many requests vLLM works on."""
    replica = daemon.client.get(Replica, "tiny-v1-0")
    transport = httpx.HTTPTransport(uds=replica.address.removeprefix("unix:"))
    with httpx.Client(transport=transport, base_url="http://vllm") as direct:
        lines = direct.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running{"))


def test_openai_chats_streamed_and_not_and_says_the_same(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 24
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 24


def test_openai_lists_models_and_uses_an_alias(client: openai.OpenAI) -> None:
    assert "tiny" in [m.id for m in client.models.list()]
    assert client.models.retrieve("tiny").id == "tiny"
    assert client.completions.create(model="gpt-tiny", prompt="Hi", max_tokens=2).choices[0].text


def token_of(character: str) -> str:
    """The id of a printable character's token in `tiny_model.make_tokenizer`."""
    return str(ord(character) - ord("!") + 2)


def test_openai_calls_a_tool_as_it_would_without_a_gateway(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    """What a random model takes for arguments is its own affair; that nothing of it is lost is ours."""
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    options: Any = {"model": "tiny", "messages": MESSAGES, "tools": [WEATHER], "tool_choice": choice}
    # Its logits are those of the machine, too: on some it begins a number that has no end. So an object it is to be.
    wanted = {"{": 100, "}": 90, '"': 80}
    options |= {"max_tokens": 100, "temperature": 0, "logit_bias": {token_of(c): b for c, b in wanted.items()}}

    def whole(asked: openai.OpenAI) -> list[tuple[str, str]]:
        calls = asked.chat.completions.create(**options).choices[0].message.tool_calls or []
        return [(c.function.name, c.function.arguments) for c in calls if c.type == "function"]

    def streamed(asked: openai.OpenAI) -> str:
        chunks = asked.chat.completions.create(**options, stream=True)
        deltas = [t for c in chunks if c.choices for t in c.choices[0].delta.tool_calls or []]
        return "".join(d.function.arguments or "" for d in deltas if d.function)

    assert [name for name, _ in whole(client)] == ["weather"]
    assert whole(client) == whole(direct)
    assert streamed(client) == streamed(direct) != ""


def test_openai_gets_structured_output(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Pet, max_tokens=64)
    assert isinstance(answer.choices[0].message.parsed, Pet)


def test_openai_uses_the_responses_api(client: openai.OpenAI) -> None:
    assert client.responses.create(model="tiny", input="Hi", max_output_tokens=8).output_text
    kinds = [e.type for e in client.responses.create(model="tiny", input="Hi", max_output_tokens=8, stream=True)]
    assert "response.output_text.delta" in kinds
    assert kinds[-1] in {"response.completed", "response.incomplete"}


def test_openai_is_told_of_its_mistakes_as_it_expects(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.completions.create(model="nope", prompt="Hi")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="Hi", max_tokens=-1)


def test_a_stream_that_is_left_frees_the_engine(daemon: Stokerd, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="tiny", prompt="Hi", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_for(lambda: running(daemon) == 0, "vLLM has stopped generating")


def test_anthropic_talks_streamed_and_not(claude: anthropic.Anthropic) -> None:
    options: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**options)
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 16
    with claude.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
    assert text == "".join(block.text for block in whole.content if block.type == "text")


def test_anthropic_counts_tokens_and_is_told_of_its_mistakes(claude: anthropic.Anthropic) -> None:
    assert claude.messages.count_tokens(model="tiny", messages=MESSAGES).input_tokens > 0
    with pytest.raises(anthropic.NotFoundError, match="nope"):
        claude.messages.create(model="nope", messages=MESSAGES, max_tokens=4)


def test_langchain_chats_streams_and_binds_tools(url: str) -> None:
    options: Any = {"max_retries": 0, "temperature": 0, "max_completion_tokens": 16}
    model = ChatOpenAI(model="tiny", base_url=f"{url}/v1", api_key=SecretStr("none"), **options)
    whole = model.invoke("Hi")
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] == 16
    assert "".join(str(piece.content) for piece in model.stream("Hi")) == whole.content
    assert model.bind_tools([WEATHER]).invoke("Hi").response_metadata["model_name"] == "tiny"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_streams_and_asks_what_has_no_client(url: str) -> None:
    def curl(path: str, body: dict[str, Any]) -> str:
        command = ["curl", "-sS", "-N", "--fail-with-body", f"{url}{path}", "--json", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    streamed = curl("/v1/completions", {"model": "tiny", "prompt": "Hi", "max_tokens": 4, "stream": True})
    assert streamed.rstrip().endswith("data: [DONE]")
    tokens = json.loads(curl("/tokenize", {"model": "tiny", "prompt": "Hi"}))["tokens"]
    assert json.loads(curl("/detokenize", {"model": "tiny", "tokens": tokens}))["prompt"].endswith("Hi")
