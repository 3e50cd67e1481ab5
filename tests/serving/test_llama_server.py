"""What steps ask of a real llama-server."""

import math
from collections.abc import Iterator

import pytest

from serving.openai_compatible import LlamaServer
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_gguf import write_random_gguf

# The bytes that begin a character of UTF-8 and are none by themselves, as GPT-2's vocabulary writes them.
BEGINNINGS = [chr(byte) for byte in range(0xC2, 0xF0)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    path = tmp_path_factory.mktemp("random") / "model.gguf"
    write_random_gguf(path, more=BEGINNINGS)
    process = LlamaProcess(path)
    yield process.server
    process.stop()


class TestNextToken:
    def test_tells_probabilities_where_the_likeliest_is_half_a_character(self, server: LlamaServer) -> None:
        every = len(BEGINNINGS) + 98
        told = [server.next_token([token], top=every) for token in range(len(BEGINNINGS), every, 7)]
        assert any(next_token.best < len(BEGINNINGS) for next_token in told)
        for next_token in told:
            logprobs = [logprob for _, logprob in next_token.candidates]
            assert logprobs == sorted(logprobs, reverse=True)
            # Over the whole vocabulary: they sum to one, and the bias on what is sampled is not in them.
            assert sum(map(math.exp, logprobs)) == pytest.approx(1, abs=1e-4)
            assert logprobs[0] < 0
