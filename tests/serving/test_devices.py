from pathlib import Path

import pytest

from db.errors import InvalidInput
from serving.devices import Device, choose_devices, choose_groups, list_devices, visible_devices
from tests.gpus import FIRST, SECOND, show_gpus


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", show_gpus(tmp_path)["PATH"])


@pytest.fixture
def no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


class TestListDevices:
    def test_reads_what_the_driver_shows(self, gpus: None) -> None:
        assert list_devices() == [
            Device(FIRST, 0, "NVIDIA GeForce RTX 4090", 24576 * 1024**2),
            Device(SECOND, 1, "NVIDIA GB10, Spark", None),
        ]

    def test_without_a_driver_there_are_none(self, no_gpus: None) -> None:
        assert list_devices() == []

    def test_a_driver_that_fails_shows_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert list_devices() == []


class TestChooseDevices:
    @pytest.mark.parametrize(
        ("named", "chosen"),
        [
            ("all", [FIRST, SECOND]),
            ("0,1", [FIRST, SECOND]),
            (" 1 , 0", [SECOND, FIRST]),
            ("1,1", [SECOND]),
            (SECOND, [SECOND]),
        ],
    )
    def test_by_number_and_by_uuid(self, gpus: None, named: str, chosen: list[str]) -> None:
        assert [device.id for device in choose_devices(named, setting="LATHE_GPUS")] == chosen

    @pytest.mark.parametrize("named", ["2", "0,2", "0,", "GPU-33", "0-1", "ALL"])
    def test_one_that_is_not_there_is_refused_with_those_there_are(self, gpus: None, named: str) -> None:
        with pytest.raises(InvalidInput) as refusal:
            choose_devices(named, setting="LATHE_GPUS")
        assert refusal.value.param == "LATHE_GPUS"
        assert (
            f"0: NVIDIA GeForce RTX 4090, {FIRST}; 1: NVIDIA GB10, Spark, {SECOND}" in refusal.value.message
        )

    @pytest.mark.parametrize("named", ["all", "0"])
    def test_without_a_driver_it_says_so(self, no_gpus: None, named: str) -> None:
        with pytest.raises(InvalidInput, match="nvidia-smi shows no GPU"):
            choose_devices(named, setting="LATHE_GPUS")


class TestVisibleDevices:
    @pytest.mark.parametrize(
        ("shown", "seen"),
        [
            (None, [FIRST, SECOND]),
            ("", []),
            ("1,0", [SECOND, FIRST]),
            (f"{SECOND}, {FIRST[:8]}", [SECOND, FIRST]),
            ("0,7,1", [FIRST]),  # what follows one that is not there is not seen
            ("GPU-", []),  # which of them is not said
            ("MIG-1", []),
            ("-1", []),
        ],
    )
    def test_are_those_that_cuda_shows(self, gpus: None, shown: str | None, seen: list[str]) -> None:
        assert [device.id for device in visible_devices(shown)] == seen

    def test_one_that_is_cut_in_parts_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, GPU-1, 81920, Enabled, H100'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert visible_devices(None) == []


class TestChooseGroups:
    @pytest.mark.parametrize(
        ("named", "chosen"),
        [
            ("all", [[FIRST], [SECOND]]),
            ("0,1", [[FIRST], [SECOND]]),
            ("0+1", [[FIRST, SECOND]]),
            (f"{SECOND} + 0", [[SECOND, FIRST]]),
            ("1,1", [[SECOND]]),
        ],
    )
    def test_a_plus_stands_between_those_that_belong_together(
        self, gpus: None, named: str, chosen: list[list[str]]
    ) -> None:
        groups = choose_groups(named, setting="LATHE_GPUS")
        assert [[device.id for device in group] for group in groups] == chosen

    @pytest.mark.parametrize(("named", "why"), [("0+1,1", "is in two groups"), ("0+2", "no such GPU")])
    def test_refuses_what_is_not_there_or_is_there_twice(self, gpus: None, named: str, why: str) -> None:
        with pytest.raises(InvalidInput, match=why) as refusal:
            choose_groups(named, setting="LATHE_GPUS")
        assert refusal.value.param == "LATHE_GPUS"
