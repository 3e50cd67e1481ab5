"""The table of docs/how-to/choose-how-to-train.md, against what is refused."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from tests.conftest import REPOSITORY
from training_data.stored_quantization import StoredQuantization, check_fine_tune

TABLE = REPOSITORY / "docs" / "how-to" / "choose-how-to-train.md"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def combinations() -> Iterator[tuple[str, dict[str, Any], bool]]:
    section = TABLE.read_text().split("## What goes with what\n")[1]
    first, _, *rows = [line for line in section.split("\n\n")[0].splitlines() if line.startswith("|")]
    methods = [cell.strip("`") for cell in cells(first)[1:]]
    for row in rows:
        what, *says = cells(row)
        for given in re.findall(r"`(\{.*?\})`", what):
            for method, said in zip(methods, says, strict=True):
                yield method, json.loads(given), {"yes": True, "–": False}[said]


@pytest.mark.parametrize(("method", "given", "goes"), list(combinations()))
def test_says_what_is_taken(method: str, given: dict[str, Any], *, goes: bool) -> None:
    named = {"rewards": ["brevity"]} if method == "grpo" else {}
    params = {"base_model": "m", "training_file": "file-1", "name": "x", "method": method, **named, **given}
    stored = StoredQuantization("gptq", 4, 128) if "merge_base" in given else None
    refused = ""
    try:
        check_fine_tune(FineTuneParams.model_validate(params), "m", stored)
    except (ValueError, InvalidInput) as error:
        refused = str(error)
    assert (refused == "") == goes, refused


def test_names_every_method() -> None:
    known = set(FineTuneParams.model_json_schema()["properties"]["method"]["enum"])
    assert {method for method, _, _ in combinations()} == known
