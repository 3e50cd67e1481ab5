"""Fetching by huggingface_hub's own client, unmodified, from a server that answers as the hub does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput, Unavailable
from db.params.fine_tune import FineTuneParams
from tests.serving.random_gguf import write_random_gguf
from tests.worker.steps.export_fixtures import step_of, step_settings
from tests.worker.steps.fake_hub import COMMIT, TOKEN, FakeHub
from tests.worker.steps.test_pull import Pulling
from worker.step import BaseWeights, FileInput
from worker.steps import prepare, pull
from worker.steps.base_model import fetch_base

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "random.gguf"
    write_random_gguf(path)
    return path.read_bytes()


@pytest.fixture
def hub(gguf: bytes, micro_model: Path) -> Iterator[FakeHub]:
    micro = {path.name: path.read_bytes() for path in micro_model.iterdir() if path.is_file()}
    server = FakeHub(
        {
            "org/micro": {**micro, "modeling.py": b"raise SystemExit", "README.md": b"#"},
            "org/gguf": {"only.gguf": gguf, "README.md": b"#"},
            "org/several": {"a-Q4_K_M.gguf": gguf, "sub/a-Q8_0.gguf": gguf},
            "org/pickles": {"config.json": b"{}", "pytorch_model.bin": b"\x80"},
            "org/empty": {"README.md": b"#"},
            "org/gated": {"only.gguf": gguf},
        },
        gated={"org/gated"},
    ).start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


def pulling(root: Path, hub: FakeHub, source: dict[str, Any], **settings: Any) -> Pulling:
    return Pulling(root / "job", source, hub_url=hub.url, **settings)


class TestPull:
    def test_a_gguf_with_the_commit_that_it_was(self, tmp_path: Path, hub: FakeHub, gguf: bytes) -> None:
        job = pulling(tmp_path, hub, {"hub": "org/gguf", "revision": "main"})
        result = job.run(pull, "pull")
        assert result["source"] == {
            "hub": "org/gguf", "revision": COMMIT, "filename": "only.gguf", "format": "gguf",
        }  # fmt: skip
        assert (tmp_path / "job" / "pull" / result["files"][0]["path"]).read_bytes() == gguf
        assert any(row["type"] == "progress" for row in job.said)

    def test_safetensors_without_the_code_beside_them(self, tmp_path: Path, hub: FakeHub) -> None:
        result = pulling(tmp_path, hub, {"hub": "org/micro"}).run(pull, "pull")
        assert result["source"] == {"hub": "org/micro", "revision": COMMIT, "format": "safetensors"}
        assert (tmp_path / "job" / "pull" / result["folder"] / "config.json").is_file()
        assert not [request for request in hub.requests if request.endswith((".py", "README.md"))]

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"hub": "org/several"}, "name one as filename"),
            ({"hub": "org/several", "filename": "b.gguf"}, "has no b.gguf"),
            ({"hub": "org/pickles"}, "pickles only"),
            ({"hub": "org/empty"}, "neither safetensors nor a GGUF"),
            ({"hub": "org/nothing"}, "knows no such model"),
            ({"hub": "org/gguf", "revision": "v9"}, "no revision 'v9'"),
            ({"hub": "org/gated"}, "LATHE_HUB_TOKEN"),
        ],
    )
    def test_is_refused(self, tmp_path: Path, hub: FakeHub, source: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message) as caught:
            pulling(tmp_path, hub, source).run(pull, "pull")
        assert caught.value.param == "source"

    def test_a_file_of_a_folder_by_its_name(self, tmp_path: Path, hub: FakeHub) -> None:
        source = {"hub": "org/several", "filename": "sub/a-Q8_0.gguf"}
        assert pulling(tmp_path, hub, source).run(pull, "pull")["source"]["filename"] == "sub/a-Q8_0.gguf"

    def test_a_gated_one_by_the_operators_token(self, tmp_path: Path, hub: FakeHub) -> None:
        job = pulling(tmp_path, hub, {"hub": "org/gated"}, hub_token=TOKEN)
        assert job.run(pull, "pull")["files"]
        assert TOKEN not in str(job.said)

    def test_an_outage_is_worth_another_try(self, tmp_path: Path, hub: FakeHub, quick: None) -> None:
        hub.down = True
        with pytest.raises(Unavailable, match="cannot be had now"):
            pulling(tmp_path, hub, {"hub": "org/gguf"}).run(pull, "pull")

    def test_offline_asks_nobody(self, tmp_path: Path, hub: FakeHub) -> None:
        with pytest.raises(InvalidInput, match="LATHE_HUB_OFFLINE"):
            pulling(tmp_path, hub, {"hub": "org/gguf"}, hub_offline=True).run(pull, "pull")
        assert hub.requests == []

    def test_goes_on_where_a_connection_broke(
        self, tmp_path: Path, hub: FakeHub, quick: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what it writes at once: 10 MB
        hub.breaks = [20_000]
        assert pulling(tmp_path, hub, {"hub": "org/gguf"}).run(pull, "pull")["files"]
        assert "bytes=20000-" in hub.ranges


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client waits for seconds between tries."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


class TestBase:
    def fetch(self, root: Path, hub: FakeHub, repository: str = "org/micro", **settings: Any) -> Path:
        step, _ = step_of(root / "train", step_settings(root / "served", **{"hub_url": hub.url, **settings}))
        return fetch_base(BaseWeights(repository, "hub", repository), step)

    def test_an_outage_in_mid_download_is_worth_another_try(
        self, tmp_path: Path, hub: FakeHub, quick: None
    ) -> None:
        hub.breaks = [1000] * 50
        with pytest.raises(Unavailable):
            self.fetch(tmp_path, hub)
        hub.breaks = []
        folder = self.fetch(tmp_path, hub)
        assert (folder / "model.safetensors").stat().st_size == len(
            hub.repositories["org/micro"]["model.safetensors"]
        )

    def test_prepare_says_which_commit_it_is(self, tmp_path: Path, hub: FakeHub) -> None:
        rows = tmp_path / "rows.csv"
        rows.write_text("question,answer\nWho?,She.\n")
        params = {"base_model": "org/micro@main", "training_file": "file-1", "name": "x"}
        step, said = step_of(
            tmp_path / "prepare",
            step_settings(tmp_path / "served", hub_url=hub.url),
            params=FineTuneParams.model_validate(params).model_dump(mode="json"),
            files={"file-1": FileInput(rows, rows.name, rows.stat().st_size)},
            base=BaseWeights("org/micro@main", "hub", "org/micro", "main"),
        )
        assert prepare.run(step)["base_revision"] == COMMIT
        assert any(COMMIT in row.get("message", "") for row in said)

    def test_what_was_fetched_is_there_offline_and_when_the_hub_is_away(
        self, tmp_path: Path, hub: FakeHub, quick: None
    ) -> None:
        folder = self.fetch(tmp_path, hub)
        hub.down = True
        assert self.fetch(tmp_path, hub) == folder
        hub.requests.clear()
        assert self.fetch(tmp_path, hub, hub_offline=True) == folder
        assert hub.requests == []

    @pytest.mark.parametrize(
        "case",
        [
            ("org/nothing", {}, "model_not_found", "check the spelling"),
            ("org/gated", {}, "model_gated", "set LATHE_HUB_TOKEN"),
            ("org/micro", {"hub_offline": True}, "hub_offline", "LATHE_BASE_MODELS_DIR"),
            ("org/micro", {"hub_url": "http://127.0.0.1:1"}, "hub_unavailable", "1:1 cannot be reached"),
        ],
    )
    def test_that_cannot_be_had_says_what_to_do(
        self, tmp_path: Path, hub: FakeHub, quick: None, case: tuple[str, dict[str, Any], str, str]
    ) -> None:
        repository, settings, code, says = case
        with pytest.raises((InvalidInput, Unavailable), match=says) as caught:
            self.fetch(tmp_path, hub, repository, **settings)
        assert (caught.value.code, caught.value.param) == (code, "base_model")
        assert repository in caught.value.message
        assert not re.search(r"\w+(Error|Exception)\b", caught.value.message)

    def test_of_a_hub_that_is_down_tells_its_answer(self, tmp_path: Path, hub: FakeHub, quick: None) -> None:
        hub.down = True
        with pytest.raises(Unavailable, match=r"answers 503.*LATHE_HUB_URL") as caught:
            self.fetch(tmp_path, hub)
        assert caught.value.param == "base_model"
