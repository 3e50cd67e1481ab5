from pathlib import Path

import pytest

from tests.cli.conftest import Hand, Run


@pytest.mark.usefixtures("api_url")
class TestModels:
    def test_lists_names_with_their_current_files(self, run: Run, hand: Hand) -> None:
        hand.publish("faq", "Q4_K_M")
        hand.publish("faq", "Q4_K_M", "Q8_0")
        out = run("models").out
        rows = [line.split() for line in out.splitlines()]
        assert ["tiny", "not", "made", "yet"] in rows
        assert ["default", "embeddings"] in rows
        figures = ["99.3", "%", "of", "tokens,", "KL", "0.0042"]
        assert ["faq", "@2", "Q4_K_M", "3.1", "MB", "tiny", *figures] in rows
        assert ["Q8_0", "3.1", "MB", *figures] in rows
        assert "@1" not in out
        assert "1 older: --versions shows them." in out

    def test_lists_older_versions_when_asked(self, run: Run, hand: Hand) -> None:
        hand.publish("faq", "Q4_K_M")
        hand.publish("faq", "Q4_K_M")
        assert "@1" in run("models", "--versions").out

    def test_json_is_the_list_of_the_api(self, run: Run, hand: Hand) -> None:
        hand.publish("faq", "Q4_K_M")
        rows = {row["id"]: row for row in run("models", "--json").json()}
        assert rows["faq"]["versions"][0]["quantizations"][0]["name"] == "faq:Q4_K_M"


@pytest.mark.usefixtures("api_url")
class TestDelete:
    def test_of_an_unknown_model_says_what_can_be_deleted(self, run: Run, hand: Hand) -> None:
        hand.publish("faq", "Q4_K_M")
        ran = run("models", "delete", "nothing")
        assert ran.status == 4
        assert "What can be deleted: faq." in ran.err


@pytest.mark.usefixtures("api_url")
class TestMadeWithoutTraining:
    def test_create_copy_show_and_delete_all(self, run: Run, hand: Hand) -> None:
        hand.publish("faq", "Q4_K_M")
        said = ("--system", "Be brief.", "-p", "temperature=0.5", "-p", "stop=END", "-m", "user:Hi")
        assert (
            "pirate@1 is created from faq@1." in run("models", "create", "pirate", "--from", "faq", *said).out
        )
        shown = run("models", "show", "pirate").json()["versions"][0]["prompting"]
        assert shown == {
            "system": "Be brief.", "messages": [{"role": "user", "content": "Hi"}],
            "parameters": {"temperature": 0.5, "stop": ["END"]},
        }  # fmt: skip
        assert "mate@1 is made from pirate@1." in run("models", "copy", "pirate", "mate").out
        assert "Deleted: pirate, mate." in run("models", "delete", "--all-created", "--yes").out
        assert "There were none." in run("models", "delete", "--all-created", "--yes").out
        assert run("models", "delete").status == 2

    def test_pull_submits_a_job(self, run: Run, tmp_path: Path) -> None:
        chosen = ["--name", "mine", "--revision", "v1", "--prompt-format", "vicuna"]
        job = run("models", "pull", "org/name", *chosen, "--json").json()
        assert job["params"]["prompt_format"] == "vicuna"
        assert job["params"]["source"] == {
            "hub": "org/name", "revision": "v1", "file": None, "filename": None, "ollama": None,
        }  # fmt: skip
        pushed = run("models", "push", "nothing", "org/name", "--public", "--what", "gguf")
        assert pushed.status != 0
        assert "model: There is no model 'nothing'" in pushed.err
        old = tmp_path / "old.bin"
        old.write_bytes(b"tjgg\x01\0\0\0" + bytes(16))
        refused = run("models", "pull", str(old), "--name", "old")
        assert refused.status != 0
        assert "GGJT v1" in refused.err
