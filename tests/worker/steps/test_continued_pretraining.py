"""Learning plain text: every token of it exactly once an epoch, and a micro model that does."""

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from db.params.fine_tune import FineTuneParams
from tests.worker.steps.fine_tuning import ALL_WEIGHTS, WARNINGS_OF_LIBRARIES, FineTune, measured
from tests.worker.steps.test_tunings import proven
from training_data.rows import Row, write_rows
from training_data.tokens import ChatTokenizer
from worker.steps.method_rows import full_sequences
from worker.steps.verify_rows import choose_rows

TEXT = "A kiln is an oven for clay.\nIt is heated slowly, so that no pot breaks.\n\n" * 60
PARAMS = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "method": "pretraining", "lora_rank": 4,
    "batch_size": 4, "learning_rate": 5e-3, "max_length": 32,
}  # fmt: skip

pytestmark = WARNINGS_OF_LIBRARIES


@pytest.fixture
def pretrained(steps, micro_model, tmp_path):
    """Prepares and trains; gives both."""

    def run(name: str, content: str, **params: Any) -> tuple[Any, Any]:
        job = FineTune(steps, micro_model, tmp_path / name, content=content, defaults=PARAMS, **params)
        return job.prepared, job.run()

    return run


def sequences(folder: Path, tokenizer: ChatTokenizer, rows: list[Row], length: int) -> list["array[int]"]:
    path = folder / "train.jsonl"
    write_rows(path, rows)
    read = list(full_sequences(path, tokenizer, {"max_length": length}))
    assert all(row is None or row["labels"] == row["input_ids"] for row in read)
    return [row["input_ids"] for row in read if row is not None]


class TestSequences:
    @pytest.mark.parametrize("length", [8, 9, 31, 1000])
    def test_predict_every_token_exactly_once(self, tmp_path, micro_model, length):
        tokenizer = ChatTokenizer(micro_model)
        texts = ["A pot of clay. " * n for n in (1, 7, 2, 30)]
        found = sequences(
            tmp_path, tokenizer, [Row(n, [], text=text) for n, text in enumerate(texts)], length
        )
        stream = [token for text in texts for token in tokenizer.encode_document(text).ids]
        assert all(len(each) == length for each in found[:-1])
        predicted = [token for each in found for token in each[1:]]
        assert predicted == stream[1:]
        assert [each[0] for each in found[1:]] == [each[-1] for each in found[:-1]]

    def test_end_documents_and_not_their_passages(self, tmp_path, micro_model):
        tokenizer = ChatTokenizer(micro_model)
        end = tokenizer.tokenizer.token_to_id(tokenizer.special_tokens["eos_token"])
        rows = [Row(1, [], text="One. ", continues=True), Row(2, [], text="Two."), Row(3, [], text="Three.")]
        [found] = sequences(tmp_path, tokenizer, rows, 100)
        ends = [at for at, token in enumerate(found) if token == end]
        assert tokenizer.tokenizer.decode(found[: ends[0]].tolist()) == "One. Two."
        assert (len(ends), ends[-1]) == (2, len(found) - 1)

    def test_begin_documents_as_the_tokenizer_does(self, tmp_path, micro_model):
        tokenizer = ChatTokenizer(micro_model)
        from tokenizers.processors import TemplateProcessing

        end = tokenizer.special_tokens["eos_token"]
        number = tokenizer.tokenizer.token_to_id(end)
        tokenizer.special_tokens["bos_token"] = end
        tokenizer.tokenizer.post_processor = TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, number)]
        )
        rows = [Row(1, [], text="One. ", continues=True), Row(2, [], text="Two."), Row(3, [], text="Three.")]
        [found] = sequences(tmp_path, tokenizer, rows, 100)
        assert tokenizer.tokenizer.decode(found.tolist(), skip_special_tokens=False) == (
            f"{end}One. Two.{end}{end}Three.{end}"
        )


class TestTraining:
    @pytest.mark.parametrize("tuning", ["lora", "full"])
    def test_learns_a_text_file_in_full_sequences(self, pretrained, tuning):
        full = ALL_WEIGHTS if tuning == "full" else {}
        prepared, ran = pretrained("pots.md", TEXT, train_size=0.8, **full)
        rows = [json.loads(line) for line in (prepared.folder / "train.jsonl").read_text().splitlines()]
        held = [json.loads(line) for name in ("validation", "test")
                for line in (prepared.folder / f"{name}.jsonl").read_text().splitlines()]  # fmt: skip
        assert sum(len(row["text"]) for row in rows + held) == len(TEXT)
        tokens = prepared.result["tokens"]["train"]
        chosen = ran.result["hyperparameters"]
        assert chosen["total_steps"] == ran.result["steps"]
        # Of each sequence of 32 all but the first are new.
        assert ran.result["steps"] >= (tokens / 31) / chosen["effective_batch_size"] * chosen["epochs"] - 1
        losses = measured(ran, "loss")
        assert losses[-1] < losses[0]
        assert ran.result["eval_loss"] is not None

    def test_learns_rows_of_text(self, pretrained):
        content = "".join(json.dumps({"text": f"Pot {n} is of clay."}) + "\n" for n in range(12))
        prepared, ran = pretrained("rows.jsonl", content, max_steps=1)
        assert prepared.result["rows"]["train"] == 12
        assert ran.events("warn") == []  # that nothing is held out is no row that is lost
        assert ran.result["hyperparameters"]["assistant_only_loss"] is False

    def test_is_judged_by_conversations_made_of_the_text(self, pretrained, micro_model, steps):
        prepared, _ = pretrained("pots.txt", TEXT, max_steps=1)

        class Input:
            kind, base, source, step_folders = "fine_tune", object(), None, {"prepare": prepared.folder}

        split, rows = choose_rows(Input, ChatTokenizer(micro_model), 128)  # type: ignore[arg-type]
        assert (split, bool(rows)) == ("train", True)

    @pytest.mark.slow
    def test_is_proven_by_verify(self, pretrained, micro_model, tmp_path):
        prepared, ran = pretrained("pots.txt", TEXT, epochs=4.0, quantizations=["Q8_0"])
        [figures] = proven(tmp_path, prepared, ran, micro_model)
        assert figures["top1_agreement"] >= 0.98

    @pytest.mark.parametrize("given", [{"packing": True}, {"system_prompt": "Be brief."}])
    def test_refuses_what_is_for_conversations(self, given):
        with pytest.raises(ValidationError, match=f"{next(iter(given))} means nothing to pretraining"):
            FineTuneParams(**{**PARAMS, **given})
