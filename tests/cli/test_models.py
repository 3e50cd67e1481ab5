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
