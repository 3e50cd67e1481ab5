import httpx
import pytest

from tests.cli.conftest import Hand, Run


@pytest.fixture
def complete(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """What bash is told when Tab is pressed after these words, line by line in `out`."""
    monkeypatch.setenv("_LATHE_COMPLETE", "complete_bash")
    monkeypatch.setattr("cli.completion.QUICK", httpx.Timeout(60))  # where much else runs, nothing is quick

    def press_tab(*words: str) -> object:
        monkeypatch.setenv("COMP_WORDS", " ".join(["lathe", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return run()

    return press_tab


class TestFlags:
    def test_values_are_those_that_the_flag_takes(self, complete: Run) -> None:
        assert complete("fine-tune", "--method", "k").out.split() == ["kto"]
        assert set(complete("fine-tune", "--bits", "").out.split()) == {"4", "8", "16", "auto"}
        assert complete("fine-tune", "--use-dora", "t").out.split() == ["true"]

    def test_of_several_the_last_is_completed(self, complete: Run) -> None:
        completed = complete("fine-tune", "--quantizations", "Q8_0,Q4_K_").out.split()
        assert set(completed) == {"Q8_0,Q4_K_S", "Q8_0,Q4_K_M"}

    def test_a_path_is_left_to_the_shell(self, complete: Run) -> None:
        assert complete("fine-tune", "--data", "my").out.split() == []


class TestNames:
    def test_jobs_models_and_collections_are_asked_for(self, complete: Run, api_url: str, hand: Hand) -> None:
        job_id = hand.fine_tune("support")
        hand.publish("support", "Q4_K_M")
        assert complete("watch", "job-").out.split() == [job_id]
        assert complete("chat", "su").out.split() == ["support"]
        assert complete("evaluate", "su").out.split() == ["support"]
        assert "support" in complete("fine-tune", "--base", "").out.split()

    def test_without_a_server_nothing_is_said(self, complete: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LATHE_API_URL", "http://127.0.0.1:1")
        pressed = complete("watch", "job-")
        assert (pressed.status, pressed.out.strip(), pressed.err) == (0, "", "")
