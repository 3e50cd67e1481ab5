"""`lathe up --gpus`: a worker a GPU, and who sees which."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from db.errors import InvalidInput
from db.settings import Settings
from deploy.local import parts
from deploy.local.gpus import assign_gpus
from serving.devices import VISIBLE_DEVICES
from tests.gpus import FIRST, SECOND, show_gpus

if TYPE_CHECKING:
    from tests.deploy.conftest import Installation


@pytest.fixture
def on_gpus(installation: "Installation", tmp_path: Path) -> "Installation":
    installation.environment |= show_gpus(tmp_path / "bin") | {"LATHE_LLAMA_BACKEND": "cpu"}
    return installation


class TestUp:
    def test_each_gpu_has_a_worker_and_chat_the_first_of_them(self, on_gpus: "Installation") -> None:
        started = on_gpus.lathe("up", "--detach", "--gpus", "all")
        assert started.returncode == 0, started.stdout + started.stderr
        status = on_gpus.status()
        assert status["ready"], status
        parts = {part["name"]: part for part in status["parts"]}
        visible = {
            name: psutil.Process(part["pid"]).environ().get(VISIBLE_DEVICES)
            for name, part in parts.items()
            if name.startswith("worker") or name in ("chat", "embeddings")
        }
        assert visible == {
            "worker": "", "worker-gpu0": FIRST, "worker-gpu1": SECOND, "chat": FIRST, "embeddings": "",
        }  # fmt: skip
        assert parts["worker-gpu1"]["address"] == SECOND
        listed = on_gpus.lathe("devices", "--json", LATHE_API_URL=status["api_url"])
        assert [(row["id"], row["held_by"]) for row in json.loads(listed.stdout)] == [
            (FIRST, {"type": "serving", "backend": "llama_server"}),
            (SECOND, None),
        ]
        shown = on_gpus.lathe("devices", LATHE_API_URL=status["api_url"]).stdout
        assert "NVIDIA GeForce RTX 4090" in shown
        assert "serving (llama_server)" in shown
        logs = on_gpus.data_dir / "logs"
        assert "queues=['cpu', 'io', 'bulk', 'ask', 'hooks']" in (logs / "worker.log").read_text()
        assert "queues=['train', 'gpu']" in (logs / "worker-gpu0.log").read_text()
        assert on_gpus.lathe("down").returncode == 0
        assert on_gpus.wait_until_empty() == []

    def test_one_that_is_not_there_is_refused_with_those_there_are(self, on_gpus: "Installation") -> None:
        refused = on_gpus.lathe("up", "--detach", "--gpus", "0,7")
        assert refused.returncode == 1
        said = " ".join(refused.stdout.split())
        assert "LATHE_GPUS is '7', and there is no such GPU. There are: 0: NVIDIA GeForce RTX 4090" in said
        assert on_gpus.processes() == []
        doctor = on_gpus.lathe("doctor", LATHE_GPUS="7")
        assert doctor.returncode == 1
        assert "LATHE_GPUS is '7'" in doctor.stdout


class TestAssignment:
    @pytest.fixture(autouse=True)
    def _gpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", show_gpus(tmp_path)["PATH"])

    @pytest.mark.parametrize("gpus", ["", "none"])
    def test_none_unless_asked_for(self, gpus: str) -> None:
        assert assign_gpus(Settings(gpus=gpus)) is None

    @pytest.mark.parametrize(
        ("settings", "serving"),
        [
            ({"gpus": "1"}, [SECOND]),
            ({"gpus": "1,0"}, [SECOND]),
            ({"gpus": "0+1"}, [FIRST]),
            ({"gpus": "1", "serving_device": "all"}, [FIRST, SECOND]),
            ({"gpus": "1", "serving_device": "0"}, [FIRST]),
            ({"gpus": "all", "serving_device": SECOND}, [SECOND]),
            ({"gpus": "all", "serving_device": "none"}, []),
            # Only its owner knows where that one keeps its models.
            ({"gpus": "all", "ollama_host": "localhost"}, []),
            ({"gpus": "all", "chat_server_url": "http://localhost:1"}, []),
            ({"gpus": "all", "ollama_host": "localhost", "serving_device": "0"}, [FIRST]),
        ],
    )
    def test_of_the_chat_server(self, settings: dict[str, str], serving: list[str]) -> None:
        gpus = assign_gpus(Settings(**settings))
        assert gpus is not None
        assert [device.id for device in gpus.serving] == serving

    def test_those_that_belong_together_have_one_worker(self) -> None:
        gpus = assign_gpus(Settings(gpus="0+1", serving_device="none"))
        assert gpus is not None
        common = {"DATABASE_URL": "postgresql://h/d"}
        of_none, of_both = parts._workers(Settings(), common, gpus)
        both = f"{FIRST},{SECOND}"
        assert (of_both.name, of_both.address, of_both.environment["LATHE_DEVICE"]) == (
            "worker-gpu0-1", both, both,
        )  # fmt: skip
        assert of_both.environment[VISIBLE_DEVICES] == both
        assert (of_none.address, of_none.environment[VISIBLE_DEVICES]) == ("no GPU", "")

    def test_a_serving_device_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as refusal:
            assign_gpus(Settings(gpus="0", serving_device="5"))
        assert refusal.value.param == "LATHE_SERVING_DEVICE"
