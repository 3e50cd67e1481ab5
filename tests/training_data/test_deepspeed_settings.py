"""The operator's configurations of DeepSpeed: a job names one; what Lathe settles is not theirs to set."""

import json

import pytest

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from db.settings import load_settings
from training_data.deepspeed_settings import find_configuration, read_configurations

GIVEN = {"base_model": "m", "training_file": "file-1", "name": "x"}


@pytest.fixture
def write(tmp_path):
    def write(configuration) -> dict:
        path = tmp_path / "zero2.json"
        path.write_text(configuration if isinstance(configuration, str) else json.dumps(configuration))
        return {"zero2": path}

    return write


def test_is_found_by_name_with_batches_that_lathe_settles(write):
    named = write({"zero_optimization": {"stage": 2}, "train_batch_size": 7})
    found = find_configuration(named, "zero2")
    assert found["zero_optimization"] == {"stage": 2}
    assert found["train_batch_size"] == found["train_micro_batch_size_per_gpu"] == "auto"


def test_names_those_there_are(write):
    with pytest.raises(
        InvalidInput, match=r"no DeepSpeed configuration 'zero9'\. There are: zero2\."
    ) as error:
        find_configuration(write({}), "zero9")
    assert error.value.param == "deepspeed"
    with pytest.raises(InvalidInput, match="named none \\(LATHE_DEEPSPEED\\)"):
        find_configuration({}, "zero2")


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ("{", "is no JSON"),
        ([1], "must hold an object"),
        ({"optimizer": {"type": "Adam"}}, "sets optimizer, which each job settles"),
        (
            {"zero_optimization": {"stage": 3}},
            "has stage 3, whose shares of weights are not saved here",
        ),
        ({"zero_optimization": 2}, "zero_optimization must be an object"),
    ],
)
def test_says_which_file_is_wrong(write, configuration, said):
    with pytest.raises(InvalidInput, match=said) as error:
        read_configurations(write(configuration))
    assert error.value.param == "LATHE_DEEPSPEED"


def test_says_which_file_is_missing(tmp_path):
    with pytest.raises(InvalidInput, match=r"gone\.json, cannot be read: No such file"):
        read_configurations({"zero2": tmp_path / "gone.json"})


def test_the_setting_has_names_and_files(monkeypatch, tmp_path):
    monkeypatch.setenv("LATHE_DEEPSPEED", f"zero2={tmp_path}/2.json, zero1 = {tmp_path}/1.json")
    assert load_settings().deepspeed == {"zero2": tmp_path / "2.json", "zero1": tmp_path / "1.json"}
    monkeypatch.setenv("LATHE_DEEPSPEED", "/srv/zero2.json")
    with pytest.raises(InvalidInput, match="is none of name=file"):
        load_settings()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"deepspeed": "zero2", "bits": 8}, "bits must be 4 or 16 with deepspeed"),
        ({"deepspeed": "zero2", "cluster": "lab"}, "deepspeed does not go with cluster"),
        ({"deepspeed": "../zero2.json"}, "String should match pattern"),
    ],
)
def test_refuses_what_does_not_go_together(given, said):
    with pytest.raises(ValueError, match=said):
        FineTuneParams.model_validate({**GIVEN, **given})
