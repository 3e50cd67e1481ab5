"""Pushing by huggingface_hub's own client, unmodified, to a server that answers as the hub does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from db.errors import InvalidInput, Unavailable
from db.params.push import PushParams
from db.sources import Held, Source, hold
from tests.worker.steps.export_fixtures import base_weights, step_of, step_settings
from tests.worker.steps.fake_hub import COMMIT, TOKEN, FakeHub
from tests.worker.steps.fake_hub_writing import oid_of
from tests.worker.steps.test_hub import own_cache, quick  # noqa: F401 - fixtures
from worker.step import BaseWeights
from worker.steps import push
from worker.steps.base_model import fetch_base

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::UserWarning",
    "ignore:Use 'content=<...>':DeprecationWarning",  # huggingface_hub's own call
)
ABOUT = {
    "kind": "fine_tune", "prompted": False, "model": "faq@1", "base": None, "trained": None, "published": [],
}  # fmt: skip

RECIPE = {
    "name": "faq", "job": "job-1", "seed": 7, "rewards": None, "evaluation": None, "verification": [],
    "base": {"name": "Qwen/Qwen3-0.6B", "source": "hub", "revision": "abc"}, "files": [],
    "data": {
        "files": {"file-1": {"filename": "customers.csv", "bytes": 1, "sha256": "d" * 64}},
        "dataset": None, "rows": {"train": 8}, "splits": {"train.jsonl": "e" * 64},
    },
    "template": {"source": "the base", "sha256": "f" * 64}, "hyperparameters": {"method": "dpo", "epochs": 3},
    "environment": {"packages": {"torch": "2.13.0"}, "python": "3.11"}, "trained": {},
    "result": {"train_loss": 0.5, "seconds": 12.5},
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    repositories = {
        "org/public": {"README.md": b"# Mine"},
        "theirs/model": {"README.md": b"#"},
        "Qwen/Qwen3-0.6B": {"README.md": b"---\nlicense: apache-2.0\n---\n# Qwen"},
    }
    server = FakeHub(repositories).start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def over_lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step turns xet off for its process; here it is everybody's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", constants.HF_HUB_DISABLE_XET)


class Pushing:
    """A job of kind push, whose source is what `folder` holds."""

    def __init__(self, root: Path, hub: FakeHub, folder: Path, what: str, **params: Any) -> None:
        self.root, self._hub, self._attempt = root, hub, 0
        self.settings: dict[str, Any] = {"hub_url": hub.url, "hub_token": TOKEN}
        given = {"model": "faq", "repository": "org/faq", "what": what, **params}
        self._params = PushParams.model_validate(given).model_dump(mode="json")
        self.base: BaseWeights | None = None
        self.about: dict[str, Any] = {**ABOUT, "what": what}
        self.source, inner = root / "source", "gguf" if what == "gguf" else "trained"
        self._files = [
            Held(path, f"{inner}/{path.name}", path.stat().st_size, oid_of(path.read_bytes()))
            for path in sorted(folder.iterdir())
            if path.is_file()
        ]
        if (folder / "card").is_dir():
            self._files += [
                Held(path, f"card/{path.name}", path.stat().st_size, oid_of(path.read_bytes()))
                for path in (folder / "card").iterdir()
            ]
        self.said: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        if not self.source.exists():
            hold(Source(self.about, self._files), self.source)
        self._attempt += 1
        folder = self.root / "push" / str(self._attempt)
        step, said = step_of(
            folder,
            step_settings(self.root / "served", **self.settings),
            kind="push",
            step="push",
            params=self._params,
            source=self.source,
            base=self.base,
        )
        try:
            return push.run(step)
        finally:
            self.said += said

    def told(self) -> str:
        return "\n".join(row["message"] for row in self.said if row["type"] == "event")


@pytest.fixture
def adapter(micro_model: Path, tmp_path: Path) -> Path:
    """A training's adapter folder: LoRA weights, the base by a folder of this machine, and the tokenizer."""
    folder = tmp_path / "adapter"
    shutil.copytree(micro_model, folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/srv/secret", "r": 8})
    )
    return folder


class TestAdapter:
    def test_a_new_repository_holds_adapter_tokenizer_and_card(
        self, tmp_path: Path, hub: FakeHub, adapter: Path
    ) -> None:
        job = Pushing(tmp_path / "job", hub, adapter, "adapter")
        job.base = BaseWeights("Qwen/Qwen3-0.6B@main", "hub", "Qwen/Qwen3-0.6B", "main")
        job.about |= {
            "base": {"name": "Qwen/Qwen3-0.6B@main", "source": "hub", "location": "Qwen/Qwen3-0.6B"},
            "trained": {"hyperparameters": {"learning_rate": 2e-4, "epochs": 3}, "eval_loss": 1.25},
        }
        result = job.run()
        repository = hub.held["org/faq"]
        assert repository.private
        assert result["commit"] == repository.branches["main"]
        assert result["url"] == f"{hub.url}/org/faq/tree/{result['commit']}"
        weights = (adapter / "adapter_model.safetensors").read_bytes()
        assert repository.files["adapter_model.safetensors"] == weights
        assert "tokenizer.json" in repository.files
        assert b"{% generation" not in repository.files["chat_template.jinja"]
        config = json.loads(repository.files["adapter_config.json"])
        assert (config["base_model_name_or_path"], config["revision"], config["r"]) == (
            "Qwen/Qwen3-0.6B",
            "main",
            8,
        )
        card = repository.files["README.md"].decode()
        assert yaml.safe_load(card.split("---\n")[1]) == {
            "base_model": "Qwen/Qwen3-0.6B", "base_model_relation": "adapter", "library_name": "peft",
            "pipeline_tag": "text-generation", "tags": ["lathe"], "license": "apache-2.0",
        }  # fmt: skip
        assert "| learning_rate | 0.0002 |" in card
        assert "/srv/secret" not in str(repository.files)
        assert repository.messages == ["Upload a LoRA adapter of faq"]
        progress = [row for row in job.said if row["type"] == "progress"]
        assert progress[-1]["done"] == progress[-1]["total"] > len(weights)
        assert TOKEN not in str(job.said) + str(result)
        assert not list((tmp_path / "job" / "push").rglob("*.safetensors"))  # nothing is kept twice

    def test_the_card_is_that_of_its_training(self, tmp_path: Path, hub: FakeHub, adapter: Path) -> None:
        (adapter / "card").mkdir()
        (adapter / "card" / "curves.png").write_bytes(b"PNG")
        (adapter / "card" / "recipe.json").write_text(json.dumps(RECIPE))
        job = Pushing(tmp_path / "job", hub, adapter, "adapter", license="cc-by-4.0")
        job.base = BaseWeights("Qwen/Qwen3-0.6B@main", "hub", "Qwen/Qwen3-0.6B", "main")
        job.about["base"] = {"name": "Qwen/Qwen3-0.6B@main", "source": "hub", "location": "Qwen/Qwen3-0.6B"}
        job.run()
        files = hub.held["org/faq"].files
        assert files["curves.png"] == b"PNG"
        assert "recipe.json" not in files  # it names files, and tells prompts
        card = files["README.md"].decode()
        metadata = yaml.safe_load(card.split("---\n")[1])
        assert (metadata["license"], metadata["tags"]) == ("cc-by-4.0", ["lathe", "dpo"])
        assert metadata["base_model"] == "Qwen/Qwen3-0.6B"
        for told in ("d" * 64, "| torch | 2.13.0 |", "| seed | 7 |", "revision abc", "| seconds | 12.5 |"):
            assert told in card
        assert "customers.csv" not in card

    def test_a_base_that_others_cannot_load_is_told(
        self, tmp_path: Path, hub: FakeHub, adapter: Path
    ) -> None:
        job = Pushing(tmp_path / "job", hub, adapter, "adapter", branch="v1", message="Try it")
        job.base = base_weights(tmp_path)
        job.run()
        repository = hub.held["org/faq"]
        assert "The base tiny is no model of a hub" in job.told()
        assert "adapter_config.json" not in repository.files
        assert "adapter_config.json" in repository.commits[repository.branches["v1"]]
        assert repository.messages == ["Try it"]


class TestWhole:
    def test_weights_can_be_a_base_again(self, tmp_path: Path, hub: FakeHub, micro_model: Path) -> None:
        job = Pushing(tmp_path / "job", hub, micro_model, "merged")
        job.run()
        step, _ = step_of(tmp_path / "train", step_settings(tmp_path / "s", **job.settings))
        fetched = fetch_base(BaseWeights("org/faq", "hub", "org/faq"), step)
        assert fetched.name == hub.held["org/faq"].branches["main"]
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            assert (fetched / name).read_bytes() == (micro_model / name).read_bytes()

    def test_files_in_parts(self, tmp_path: Path, hub: FakeHub) -> None:
        folder = tmp_path / "gguf"
        folder.mkdir()
        content = bytes(range(256)) * 1000
        (folder / "faq-Q8_0.gguf").write_bytes(content)
        Pushing(tmp_path / "job", hub, folder, "gguf").run()
        assert hub.held["org/faq"].files["faq-Q8_0.gguf"] == content
        assert len([each for each in hub.requests if each.startswith("PUT ")]) == 4


class TestAgain:
    @pytest.fixture
    def job(self, tmp_path: Path, hub: FakeHub) -> Pushing:
        folder = tmp_path / "gguf"
        folder.mkdir()
        for number in range(3):
            (folder / f"faq-{number}.gguf").write_bytes(bytes([number]) * 50_000)
        return Pushing(tmp_path / "job", hub, folder, "gguf")

    @pytest.mark.usefixtures("quick")
    def test_goes_on_with_the_files_that_the_hub_lacks(self, hub: FakeHub, job: Pushing) -> None:
        hub.puts_to_take = 2
        with pytest.raises(Unavailable, match="cannot be pushed to now") as caught:
            job.run()
        assert "Signature" not in str(caught.value) + str(caught.value.__cause__)
        assert set(hub.held["org/faq"].files) == {".gitattributes"}  # all, or nothing
        hub.puts_to_take = None
        job.run()
        assert hub.received == 150_000
        assert len(hub.held["org/faq"].files) == 5

    def test_a_commit_whose_answer_was_lost_is_not_made_twice(self, hub: FakeHub, job: Pushing) -> None:
        hub.loses_answer_of_commit = True
        with pytest.raises(Unavailable):
            job.run()
        made = hub.held["org/faq"].branches["main"]
        assert job.run()["commit"] == made
        assert len(hub.held["org/faq"].messages) == 1

    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize("failing", ["/create", "/validate-yaml", "/commit/main", "/preupload/main"])
    def test_an_outage_is_worth_another_try(self, hub: FakeHub, job: Pushing, failing: str) -> None:
        hub.failing = failing
        with pytest.raises(Unavailable):
            job.run()
        hub.failing = ""
        job.run()


class TestRefused:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "gguf").mkdir()
        (tmp_path / "gguf" / "faq.gguf").write_bytes(b"GGUF")
        return tmp_path / "gguf"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"hub_offline": True}, "LATHE_HUB_OFFLINE is set"),
            ({"hub_token": ""}, "LATHE_HUB_TOKEN, the token of an account that may, is not set"),
            ({"hub_token": "hf_wrong"}, "401.*may write there"),
            ({"repository": "other/new"}, "403.*may write there"),
            ({"repository": "theirs/model", "private": False}, "403.*may write there"),
            ({"repository": "org/public"}, "public already"),
        ],
    )
    def test_before_anything_is_sent(
        self, tmp_path: Path, hub: FakeHub, folder: Path, given: dict[str, Any], message: str
    ) -> None:
        settings = {name: value for name, value in given.items() if name.startswith("hub_")}
        params = {name: value for name, value in given.items() if name not in settings}
        job = Pushing(tmp_path / "job", hub, folder, "gguf", **params)
        job.settings |= settings
        with pytest.raises(InvalidInput, match=message):
            job.run()
        assert not hub.received

    def test_a_card_that_somebody_wrote_stays(self, tmp_path: Path, hub: FakeHub, folder: Path) -> None:
        job = Pushing(tmp_path / "job", hub, folder, "gguf", repository="org/public", private=False)
        assert job.run()["commit"] != COMMIT
        assert hub.held["org/public"].files["README.md"] == b"# Mine"
        assert "it stays" in job.told()

    def test_what_the_repository_ignores_is_not_lost_in_silence(
        self, tmp_path: Path, hub: FakeHub, folder: Path
    ) -> None:
        hub.ignored = {"faq.gguf"}
        with pytest.raises(InvalidInput, match=r"\.gitignore leaves out faq\.gguf"):
            Pushing(tmp_path / "job", hub, folder, "gguf").run()

    def test_a_source_that_has_changed(self, tmp_path: Path, hub: FakeHub, folder: Path) -> None:
        job = Pushing(tmp_path / "job", hub, folder, "gguf")
        (folder / "faq.gguf").write_bytes(b"gguf")
        with pytest.raises(InvalidInput, match="not whole"):
            job.run()
