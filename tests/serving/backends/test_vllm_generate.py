"""vLLM's plain /generate, against a stand-in that answers as its api_server does: prompt and text, over and
over.
"""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from db.errors import InvalidInput
from serving.backends.prompt_formats import FORMATS
from serving.backends.vllm_generate import VllmGenerate
from tests.http_server import Handler, serving_by
from tests.serving.backends.asking import ask, with_backend

SAMPLING_PARAMS = {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "repetition_penalty",
}
SAID = ["Hel", "lo", " wörld"]


class Generating(Handler):
    asked: ClassVar[list[dict[str, Any]]] = []
    end: ClassVar[bytes] = b"\n"

    def do_POST(self) -> None:
        body = json.loads(self.body())
        self.asked.append(dict(body))
        prompt, streams = body.pop("prompt"), body.pop("stream")
        assert set(body) <= SAMPLING_PARAMS, "SamplingParams refuses what it does not know"
        self.send_response(200)
        self.end_headers()
        if not streams:
            self.wfile.write(json.dumps({"text": [prompt + "".join(SAID)]}).encode())
            return
        for number in range(1, len(SAID) + 1):
            line = json.dumps({"text": [prompt + "".join(SAID[:number])]}).encode() + self.end
            self.wfile.write(line[:7])
            self.wfile.flush()
            self.wfile.write(line[7:])
            self.wfile.flush()


@pytest.fixture(params=[b"\n", b"\0"], ids=["newer", "older"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    Generating.asked.clear()
    with serving_by(type("Ending", (Generating,), {"end": request.param})) as url:
        yield url


def put(url: str, **body: Any) -> bytes:
    settings = {"type": "vllm_generate", "options": {"format": "chatml"}}
    route = "complete" if "prompt" in body else "chat"
    _, content = with_backend(
        url, lambda there: ask(there, "m", route=route, **body), kind=VllmGenerate, **settings
    )  # type: ignore[arg-type]
    return content


class TestGenerate:
    def test_a_chat_is_written_as_one_text_and_only_what_is_new_comes_back(self, url: str) -> None:
        messages = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]
        answer = json.loads(put(url, messages=messages, repeat_penalty=1.1, stop="x", max_tokens=9))
        assert answer["choices"][0]["message"]["content"] == "".join(SAID)
        assert Generating.asked[0] == {
            "prompt": "<|im_start|>system\nBe<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n",
            "stream": False,
            "max_tokens": 9,
            "repetition_penalty": 1.1,
            "stop": ["x", "<|im_end|>"],
        }

    def test_a_stream(self, url: str) -> None:
        events = put(url, messages=[{"role": "user", "content": "Hi"}], stream=True).decode().split("\n\n")
        deltas = [json.loads(event[6:])["choices"][0]["delta"].get("content") for event in events[:-2]]
        assert deltas == [*SAID, None]
        assert events[-2] == "data: [DONE]"

    def test_a_completion_meets_no_format(self, url: str) -> None:
        assert json.loads(put(url, prompt="Once"))["choices"][0]["text"] == "".join(SAID)
        assert Generating.asked[0]["prompt"] == "Once"

    def test_more_than_one_answer_is_a_request_each(self, url: str) -> None:
        answer = json.loads(put(url, prompt=["Once", "Once"], n=2))
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert {choice["text"] for choice in answer["choices"]} == {"".join(SAID)}
        assert [asked["prompt"] for asked in Generating.asked] == ["Once"] * 4

    @pytest.mark.parametrize("field", ["tools", "response_format", "logprobs", "echo", "best_of"])
    def test_what_it_would_pass_over_is_refused(self, url: str, field: str) -> None:
        with pytest.raises(InvalidInput, match="not heeded") as caught:
            put(url, prompt="Once", **{field: 3})
        assert caught.value.param == field


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("llama", "[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s>[INST] R [/INST] "),
            (
                "alpaca",
                "S\n\n### Instruction:\nQ\n\n### Response:\nA\n\n### Instruction:\nR\n\n### Response:\n",
            ),
            ("vicuna", "S USER: Q ASSISTANT:A</s>USER: R ASSISTANT:"),
        ],
    )
    def test_a_conversation(self, name: str, text: str) -> None:
        said = [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "R")]
        assert FORMATS[name].render([{"role": role, "content": content} for role, content in said]) == text

    @pytest.mark.parametrize(
        "messages", [None, [], [1], [{"role": "tool", "content": "x"}], [{"role": "user"}]]
    )
    def test_what_is_no_conversation(self, messages: Any) -> None:
        with pytest.raises(InvalidInput) as caught:
            FORMATS["chatml"].render(messages)
        assert caught.value.param == "messages"
