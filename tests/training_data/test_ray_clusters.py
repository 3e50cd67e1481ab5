"""The operator's file of Ray clusters."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from db.errors import InvalidInput
from training_data.ray_clusters import find_cluster, read_clusters, require_ray

LAB = "[lab]\naddress = '10.0.0.5:6379'\nnum_workers = 4\n"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "clusters.toml"
        path.write_text(text)
        return path

    return written


class TestReading:
    def test_without_a_file_there_are_none(self) -> None:
        assert read_clusters(None) == {}

    def test_what_ray_reserves_for_a_worker(self, write: Write) -> None:
        cpu = read_clusters(write(LAB))["lab"]
        gpu = read_clusters(write(f"{LAB}use_gpu = true\nresources_per_worker = {{CPU = 8}}"))["lab"]
        assert (cpu.reserved, cpu.threads) == ({"CPU": 1}, 1)
        assert (gpu.reserved, gpu.threads) == ({"CPU": 8, "GPU": 1}, 8)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("[lab", "is no TOML"),
            ("lab = 1", r"lab is no table: write \[lab\]"),
            ("[lab]\nnum_workers = 2", "lab.address: Field required"),
            (
                "[lab]\naddress = 'ray://head:10001'\nnum_workers = 2",
                "lab.address: must be the head's HOST:PORT",
            ),
            ("[lab]\naddress = 'head'\nnum_workers = 2", "lab.address: must be the head's HOST:PORT"),
            ("[lab]\naddress = 'auto'\nnum_workers = 0", "lab.num_workers: "),
            (f"{LAB}workers = 2", "lab.workers: Extra inputs"),
            (f"{LAB}storage_path = 's3://bucket/x'", "lab.storage_path: must be an absolute folder"),
            (f"{LAB}placement_strategy = 'NEAR'", "lab.placement_strategy: "),
            (f"{LAB}max_failures = -1", "lab.max_failures: "),
            (
                f"{LAB}resources_per_worker = {{GPU = 1}}",
                "resources_per_worker.GPU can only be 1, with use_gpu",
            ),
            (f"{LAB}accelerator_type = 'H100'", "accelerator_type is of GPUs"),
            ("['A b']\naddress = 'auto'\nnum_workers = 2", "A b.name: "),
        ],
    )
    def test_what_is_wrong_names_the_entry(self, write: Write, text: str, why: str) -> None:
        with pytest.raises(InvalidInput, match=why) as caught:
            read_clusters(write(text))
        assert caught.value.param == "LATHE_RAY_CLUSTERS"

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"LATHE_RAY_CLUSTERS: .* cannot be read"):
            read_clusters(tmp_path / "none.toml")


class TestRay:
    def test_is_only_missed_where_clusters_are_named(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
        require_ray({})
        with pytest.raises(InvalidInput, match=r"names lab, .*pip install -e '\.\[worker,ray\]'"):
            require_ray(read_clusters(write(LAB)))


class TestFinding:
    def test_names_those_that_the_project_may_use(self, write: Write) -> None:
        path = write(f"{LAB}\n[theirs]\naddress = 'auto'\nnum_workers = 2\nprojects = ['other']")
        assert find_cluster(path, "theirs", project_id="other").num_workers == 2
        with pytest.raises(InvalidInput, match=r"no cluster 'theirs'\. There are: lab\.") as caught:
            find_cluster(path, "theirs", project_id="default")
        assert (caught.value.param, caught.value.code) == ("cluster", "cluster_not_found")

    def test_says_when_there_are_none(self) -> None:
        with pytest.raises(InvalidInput, match="The operator has named none"):
            find_cluster(None, "lab", project_id="default")
