"""What goes between the step and a worker on another machine, without Ray between them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from tests.worker.steps.export_fixtures import lone_settings
from training_data.encoded_rows import encoded_rows, record_of, tokens_of
from training_data.json_files import write_json
from training_data.rows import Row, write_rows
from training_data.tokens import EncodedChat
from worker.checkpoints import STATE_FILE, BrokenCheckpoint, list_checkpoints, verify, write_checkpoint
from worker.step import Message, Step, StepInput
from worker.step_process import result_of
from worker.steps.environment import versions
from worker.steps.ray_train import desk as desk_module
from worker.steps.ray_train.desk import Desk
from worker.steps.ray_train.drive import _inputs
from worker.steps.ray_train.errands import Ask, bring, hand_in
from worker.steps.rewards import hashes_of_rewards

PIECE = 7


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.steps.ray_train.desk.PIECE_BYTES", PIECE)
    monkeypatch.setattr("worker.steps.ray_train.errands.PIECE_BYTES", PIECE)


class Wire:
    """A step whose workers ask it directly."""

    def __init__(self, folder: Path) -> None:
        self.said: list[Message] = []
        self.there, self.here = folder / "step", folder / "machine"
        (self.there / "train").mkdir(parents=True)
        self.here.mkdir()
        self.base = self.there / "weights.safetensors"
        self.base.write_bytes(b"weights, in more than one piece")
        (self.there / "empty.txt").touch()
        step_input = StepInput(
            "job-1", "fine_tune", "train", 1, {}, self.there / "train", lone_settings(folder), cluster={}
        )
        self.step = Step(step_input, self.said.append)
        self.desk = self.desk_with()

    def desk_with(self, **changes: Any) -> Desk:
        self.step.input = replace(self.step.input, **changes)
        inputs = {"base/weights.safetensors": self.base, "base/empty.txt": self.there / "empty.txt"}
        return Desk(self.step, inputs, failures=2)

    def ask_of(self, group: str) -> Ask:
        def ask(what: str, **particulars: Any) -> Any:
            return self.desk.answer({"what": what, "group": group, **particulars})

        return ask

    def begin(
        self, group: str, rewards: dict[str, str] | None = None, **changes: str
    ) -> tuple[Ask, dict[str, Any]]:
        ask = self.ask_of(group)
        return ask, ask("begin", host="b", versions={**versions(), **changes}, rewards=rewards or {})

    def messages(self, kind: str) -> list[Message]:
        return [message for message in self.said if message["type"] == kind]

    def trained(self, ask: Ask, number: int, *, best: int = 0) -> Path:
        """Have a worker write a checkpoint and hand it in."""
        folder = self.here / "group"
        path = checkpoint(folder / "checkpoints", number, best=best)
        hand_in(ask, folder, f"checkpoints/{path.name}")
        message = {"type": "checkpoint", "step_number": number, "path": f"checkpoints/{path.name}"}
        ask("say", message={**message, "metrics": {"loss": 1.0}, "bytes": 1})
        return path


def checkpoint(root: Path, number: int, *, best: int = 0) -> Path:
    def write(staging: Path) -> None:
        (staging / f"checkpoint-{number}").mkdir()
        (staging / f"checkpoint-{number}" / "optimizer.pt").write_bytes(b"moments of step %d" % number)
        write_json(staging / f"checkpoint-{number}" / STATE_FILE, {"best_step": best})

    return write_checkpoint(root, number, write)


@pytest.fixture
def wire(tmp_path: Path) -> Wire:
    return Wire(tmp_path)


class TestInputs:
    def test_the_same_file_is_not_copied(self, wire: Wire) -> None:
        ask, begun = wire.begin("a")
        assert bring(ask, begun["inputs"], wire.here) == 0
        assert (wire.here / "base" / "weights.safetensors").readlink() == wire.base

    def test_on_a_machine_that_does_not_see_them_they_come_in_pieces(self, wire: Wire) -> None:
        ask, begun = wire.begin("a")
        elsewhere = {name: {**file, "modified_ns": 1} for name, file in begun["inputs"].items()}
        assert bring(ask, elsewhere, wire.here) == len(wire.base.read_bytes())
        assert not (wire.here / "base" / "weights.safetensors").is_symlink()
        assert (wire.here / "base" / "weights.safetensors").read_bytes() == wire.base.read_bytes()
        assert (wire.here / "base" / "empty.txt").read_bytes() == b""
        assert bring(ask, elsewhere, wire.here) == 0  # the next worker of the machine

    def test_rows_come_with_their_tokens_so_that_nobody_encodes_them_again(
        self, wire: Wire, tmp_path: Path
    ) -> None:
        prepared = tmp_path / "prepared"
        prepared.mkdir()
        write_rows(prepared / "train.jsonl", [Row(1, [{"role": "user", "content": "hi"}])])
        tokens_of(prepared / "train.jsonl").write_bytes(record_of([EncodedChat([5, 6], [False, True])]))
        wire.step.input = replace(wire.step.input, step_folders={"prepare": prepared})
        wire.desk = Desk(wire.step, _inputs(wire.step, wire.base.parent), failures=2)
        ask, begun = wire.begin("a")
        bring(ask, begun["inputs"], wire.here)
        no_tokenizer: Any = None
        [(_, chats)] = encoded_rows(wire.here / "prepare" / "train.jsonl", no_tokenizer)
        assert chats == [EncodedChat([5, 6], [False, True])]

    def test_other_packages_are_refused_by_name(self, wire: Wire) -> None:
        _, begun = wire.begin("a", peft="0.1")
        assert begun["ended"]
        with pytest.raises(InvalidInput, match=r"b has peft 0\.1, and the worker of this server"):
            result_of(wire.desk.ending or {})

    def test_rewards_of_other_code_are_refused_by_name(self, wire: Wire) -> None:
        wire.desk = wire.desk_with(rewards=[{"name": "brevity"}])
        _, begun = wire.begin("a", hashes_of_rewards(wire.step.input))
        assert not begun["ended"]
        _, begun = wire.begin("a", {"brevity": "0" * 64})
        assert begun["ended"]
        with pytest.raises(InvalidInput, match="rewards: b has another module of the reward brevity"):
            result_of(wire.desk.ending or {})
        wire.desk = wire.desk_with()
        wire.begin("b")
        with pytest.raises(InvalidInput, match="rewards: b has no module of the reward brevity"):
            result_of(wire.desk.ending or {})

    def test_another_build_of_the_same_version_is_not(self, wire: Wire) -> None:
        _, begun = wire.begin("a", torch=f"{versions()['torch'].partition('+')[0]}+cu130")
        assert not begun["ended"]


class TestCheckpoints:
    def test_handed_in_are_the_steps_own(self, wire: Wire) -> None:
        ask, _ = wire.begin("a")
        written = wire.trained(ask, 4)
        [own] = list_checkpoints(wire.step.input.folder)
        verify(own)
        assert (own / "optimizer.pt").read_bytes() == (written / "optimizer.pt").read_bytes()
        [told] = wire.messages("checkpoint")
        assert (told["path"], told["metrics"]) == ("checkpoints/checkpoint-4", {"loss": 1.0})

    def test_damaged_on_their_way_bear_no_name(self, wire: Wire) -> None:
        ask, _ = wire.begin("a")

        def damaging(what: str, **particulars: Any) -> Any:
            if particulars.get("name", "").endswith("optimizer.pt"):
                particulars["data"] = b"\0" * len(particulars["data"])
            return ask(what, **particulars)

        with pytest.raises(BrokenCheckpoint, match=r"optimizer\.pt has another sha256"):
            wire.trained(damaging, 4)
        assert list_checkpoints(wire.step.input.folder) == []

    def test_a_new_group_goes_on_from_the_newest_and_has_the_best(self, wire: Wire) -> None:
        ask, _ = wire.begin("a")
        for number in (2, 4, 6):
            wire.trained(ask, number, best=2)
        wire.desk.answer({"what": "lost", "why": "rank 1: killed"})
        _, begun = wire.begin("b")
        assert begun["earlier"] == ["checkpoint-6", "checkpoint-2"]
        assert wire.messages("event")[-1]["message"] == (
            "Ray has started the workers again, time 1 of at most 2: rank 1: killed. They go on from the "
            "checkpoint of step 6."
        )
        assert "earlier/checkpoint-6/optimizer.pt" in begun["inputs"]
        wire.ask_of("b")("say", message={"type": "resumed", "step_number": 6})
        assert not wire.messages("resumed")  # it is this attempt's own
        ask("say", message={"type": "progress", "done": 7, "total": 9})  # of one that was given up for dead
        assert not wire.messages("progress")

    def test_a_broken_one_is_passed_over(self, wire: Wire) -> None:
        earlier = [checkpoint(wire.there / "earlier", number) for number in (6, 4)]
        (earlier[0] / "optimizer.pt").write_bytes(b"?")
        wire.desk = wire.desk_with(resume_from=earlier)
        ask, begun = wire.begin("a")
        assert begun["earlier"] == ["checkpoint-4"]
        assert "The checkpoint of step 6 is not whole" in wire.messages("event")[-1]["message"]
        taken = {"type": "checkpoint", "step_number": 4, "path": "checkpoints/checkpoint-4", "metrics": {}}
        ask("say", message={**taken, "bytes": 1})
        ask("say", message={"type": "resumed", "step_number": 4})
        assert [path.name for path in list_checkpoints(wire.step.input.folder)] == ["checkpoint-4"]
        assert wire.messages("resumed") == [{"type": "resumed", "step_number": 4}]


class TestEnding:
    def test_brings_what_was_trained(self, wire: Wire) -> None:
        ask, _ = wire.begin("a")
        (wire.here / "group" / "adapter").mkdir(parents=True)
        (wire.here / "group" / "adapter" / "adapter_model.safetensors").write_bytes(b"A" * 20)
        hand_in(ask, wire.here / "group", "adapter")
        ask("say", message={"type": "metrics", "values": {"step": 1, "loss": 2.0}})
        ask("end", ending={"type": "result", "result": {"steps": 9}})
        assert (wire.step.input.folder / "adapter" / "adapter_model.safetensors").read_bytes() == b"A" * 20
        assert result_of(wire.desk.ending or {}) == {"steps": 9}
        assert wire.messages("metrics")
        assert not wire.desk.is_closed  # its workers have still to clear up
        assert not (wire.step.input.folder / desk_module.ARRIVING).exists()

    def test_a_group_that_begins_after_it_has_nothing_to_do(self, wire: Wire) -> None:
        ask, _ = wire.begin("a")
        refused = {"type": "refused", "code": "c", "message": "It diverged.", "param": "learning_rate"}
        ask("end", ending=refused)
        assert wire.desk.is_closed
        assert wire.begin("b")[1]["ended"]
        assert not wire.messages("event")
        with pytest.raises(InvalidInput, match="It diverged"):
            result_of(wire.desk.ending or {})

    @pytest.mark.parametrize("write", [lambda ask: ask("put", name="../../x", at=0, data=b"", last=True)])
    def test_nothing_is_written_elsewhere(self, wire: Wire, write: Callable[[Ask], None]) -> None:
        ask, _ = wire.begin("a")
        with pytest.raises(ValueError, match="not in the subpath"):
            write(ask)
