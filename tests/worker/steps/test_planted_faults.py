"""Faults planted in the files of a real fine-tune, each of which verify must find and name.

The fine-tune is `faq` of export_fixtures. What is wrong is put into the tensors or the header of its finished
file, or into the folder that the training left.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import MODEL_ARCH, GGUFReader, GGUFValueType, GGUFWriter, get_tensor_name_map

from db.errors import InvalidInput
from tests.worker.steps.export_fixtures import (
    Exported,
    TrainedModels,
    base_weights,
    step_of,
    step_settings,
)
from worker.steps import verify
from worker.steps.base_files import weights_hash
from worker.steps.merging import merged_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TEMPLATE = "tokenizer.chat_template"
BOUNDS = {"min_top1_agreement": 0.98, "max_kl_ratio": 1.5}
LOOSE = {"min_top1_agreement": 0, "max_kl_ratio": 1e9}


class Planter:
    """Puts faults into files of their own and lets verify judge them."""

    def __init__(self, root: Path, folder: Path, models: TrainedModels, exported: Exported) -> None:
        self._root, self.folder, self._models, self._exported = root, folder, models, exported
        self.settings = step_settings(root / "served", **LOOSE)
        self._count = 0

    def weights(self, change: Callable[[dict[str, Any]], None], *, interleave: bool = True) -> Path:
        """The finished Q8_0 file with other weights: the merged ones, changed, by their names there.

        Args:
            interleave: order the heads' rows as llama.cpp's converter does.
        """
        merged = merged_model(self._models.base, self._models.adapter).state_dict()
        changed = dict(merged)
        change(changed)
        names = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
        tensors = {}
        for name, tensor in changed.items():
            if tensor is not merged[name]:
                heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]) if interleave else None
                rows = tensor.float().numpy()
                rows = rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2) if heads else rows
                tensors[str(names.get_name(name, (".weight",)))] = rows.reshape(tensor.shape)
        target = self._next("weights.gguf")
        rewrite(self._exported.file("Q8_0"), target, {}, tensors)
        return target

    def header(self, changes: dict[str, Any]) -> Path:
        """The finished Q8_0 file with other values in its header; None takes a key out."""
        target = self._next("header.gguf")
        rewrite(self._exported.file("Q8_0"), target, changes)
        return target

    def trained(
        self, *, template: str, bos_token: str | None = None, renamed: tuple[str, str] | None = None
    ) -> Path:
        """The training's folder with another tokenizer configuration."""
        train = self._next("train")
        shutil.copytree(self._exported.folders["train"], train)
        (train / "adapter" / "chat_template.jinja").write_text(template)
        if renamed is not None:
            for path in (train / "adapter").glob("*.json"):
                path.write_text(path.read_text().replace(*renamed))
        config = json.loads((train / "adapter" / "tokenizer_config.json").read_text())
        (train / "adapter" / "tokenizer_config.json").write_text(
            json.dumps(config | {"bos_token": bos_token})
        )
        return train

    def add_again(self, tensors: dict[str, Any], *, times: int, only: str | None = None) -> None:
        """Add what the adapter adds to the merged weights once more, or take it away."""
        from safetensors.torch import load_file

        base = load_file(self._models.base / "model.safetensors")
        for name in [only] if only else list(tensors):
            merged, before = tensors[name].float(), base[name].float()
            tensors[name] = (merged + times * (merged - before)).to(tensors[name].dtype)

    @property
    def base(self) -> Path:
        return self._models.base

    def other_base(self) -> Path:
        """A folder with the base's files, and other weights in one matrix."""
        from safetensors.torch import load_file, save_file

        folder = self._next("base")
        shutil.copytree(self._models.base, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"].mul_(-1)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    @property
    def template(self) -> str:
        return str(self._exported.result["chat_template"])

    def list_of(self, key: str) -> list[Any]:
        field = GGUFReader(self._exported.file("Q8_0")).get_field(key)
        assert field is not None
        return list(field.contents())

    def tokens(self) -> list[str]:
        return self.list_of("tokenizer.ggml.tokens")

    def token(self, text: str) -> int:
        return self.tokens().index(text)

    def judge(
        self,
        file: Path,
        *,
        train: Path | None = None,
        base: Path | None = None,
        results: dict[str, Any] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """What verify makes of a file in the place of the exported one."""
        folders = {**self._exported.folders, **({"train": train} if train else {})}
        export = self._next("export")
        export.mkdir()
        shutil.copyfile(file, export / "faq-Q8_0.gguf")
        [row] = [row for row in self._exported.result["files"] if row["quantization"] == "Q8_0"]
        step, _ = step_of(
            self._next("verify"),
            step_settings(self._root / "served", **(LOOSE | settings)),
            step="verify",
            params={"name": "faq", "quantizations": ["Q8_0"]},
            base=base_weights(base or self._models.base),
            step_folders={**folders, "export": export},
            results={"export": {**self._exported.result, "files": [row]}, **(results or {})},
        )
        [figures] = verify.run(step)["files"]
        return dict(figures)

    def refusal(self, file: Path, **changes: Any) -> str:
        with pytest.raises(InvalidInput) as refused:
            self.judge(file, **changes)
        assert refused.value.code in ("verification_failed", "base_has_changed")
        return refused.value.message

    def _next(self, name: str) -> Path:
        self._count += 1
        return self.folder / f"{self._count}-{name}"


def rewrite(
    source: Path, target: Path, changes: dict[str, Any], tensors: dict[str, Any] | None = None
) -> None:
    """Write a GGUF file anew, with other metadata, or with these tensors in the place of its own."""
    reader = GGUFReader(source)
    assert set(tensors or {}) <= {tensor.name for tensor in reader.tensors}
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = GGUFWriter(target, str(architecture.contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.get(name, field.contents())
        if value is not None:
            inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, field.types[0], inner)
    for name, value in changes.items():
        if name not in reader.fields:
            kind = GGUFValueType.get_type(value)
            writer.add_key_value(name, value, GGUFValueType.UINT32 if kind == GGUFValueType.INT32 else kind)
    for tensor in reader.tensors:
        if tensor.name in (tensors or {}):
            writer.add_tensor(tensor.name, tensors[tensor.name])
        else:
            shape, kind = tensor.data.shape, tensor.tensor_type
            writer.add_tensor(tensor.name, tensor.data, raw_shape=shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def planter(
    root: Path, tmp_path_factory: pytest.TempPathFactory, models: TrainedModels, exported: Exported
) -> Planter:
    return Planter(root, tmp_path_factory.mktemp("planted"), models, exported)


class TestWeights:
    def test_sound_file_passes_with_its_figures(self, planter: Planter) -> None:
        """And so does one that was only written anew, as the planted ones are."""
        figures = planter.judge(planter.header({}), min_top1_agreement=0.98, max_kl_ratio=1.5)
        assert figures["adapter_merged"] == pytest.approx(1, abs=0.02)
        assert figures["golden_prompts"] >= 14
        assert figures["template_equal"]
        assert figures["end_token_ends"]
        assert figures["tools_equal"] is None

    def test_adapter_merged_twice(self, planter: Planter) -> None:
        said = planter.refusal(planter.weights(lambda tensors: planter.add_again(tensors, times=1)))
        assert "the adapter is merged into the file twice, and not once" in said

    def test_adapter_not_merged(self, planter: Planter) -> None:
        said = planter.refusal(planter.weights(lambda tensors: planter.add_again(tensors, times=-1)))
        assert "the adapter is not merged into the file: it holds the untuned base" in said

    def test_adapter_merged_twice_into_one_matrix_only(self, planter: Planter) -> None:
        """Too little for any bound on the answers to see."""
        only = "model.layers.1.self_attn.v_proj.weight"
        said = planter.refusal(
            planter.weights(lambda tensors: planter.add_again(tensors, times=1, only=only))
        )
        assert "merged into blk.1.attn_v.weight of the file twice" in said

    def test_another_base(self, planter: Planter) -> None:
        def swap(tensors: dict[str, Any]) -> None:
            import torch

            torch.manual_seed(1)
            for name, tensor in tensors.items():
                if "proj" in name:
                    tensors[name] = (
                        torch.randn_like(tensor.float()).mul(tensor.float().std()).to(tensor.dtype)
                    )

        said = planter.refusal(planter.weights(swap), **BOUNDS)
        assert "top-1 agreement is" in said
        assert "the file's weights are not those of tiny: it was made from another base" in said

    def test_a_base_that_has_changed_since_the_training(self, planter: Planter) -> None:
        """A folder that holds another model now: what is merged and what that is held against would agree."""
        was, swapped = weights_hash(planter.base), planter.other_base()
        prepared = {"prepare": {"base_weights": was}}
        said = planter.refusal(planter.header({}), base=swapped, results=prepared)
        assert (
            f"The base tiny is not the one that the training began with: its files had the hash {was}" in said
        )
        assert f"and now have {weights_hash(swapped)}. Put the former ones back, or train again" in said

    def test_heads_in_the_other_order(self, planter: Planter) -> None:
        """The rows of q and k as the converter would leave them if it did not know the family."""

        def take(tensors: dict[str, Any]) -> None:
            taken = {name: each.clone() for name, each in tensors.items() if "q_p" in name or "k_p" in name}
            tensors.update(taken)

        said = planter.refusal(planter.weights(take, interleave=False), **BOUNDS)
        assert "blk.0.attn_q.weight has the rows of its heads in another order than llama.cpp wants" in said
        assert "blk.1.attn_k.weight has" in said

    def test_a_transposed_matrix(self, planter: Planter) -> None:
        def transpose(tensors: dict[str, Any]) -> None:
            name = "model.layers.0.self_attn.o_proj.weight"
            tensors[name] = tensors[name].T.contiguous()

        assert "blk.0.attn_output.weight is transposed" in planter.refusal(
            planter.weights(transpose), **BOUNDS
        )

    def test_another_rope_theta(self, planter: Planter) -> None:
        said = planter.refusal(planter.header({"llama.rope.freq_base": 500.0}))
        assert "the file's rope theta is 500, and the training's 10000" in said


class TestPrompts:
    def test_another_template(self, planter: Planter) -> None:
        said = planter.refusal(planter.header({TEMPLATE: planter.template.replace("'<|im_end|>", "'</s>")}))
        assert re.search(
            r'chat template writes "…[^"]*</s>.*where the training\'s wrote "…[^"]*<\|im_end', said
        )
        assert "Export again" in said

    def test_template_without_the_generation_prompt(self, planter: Planter) -> None:
        template = planter.template.replace("if add_generation_prompt", "if false")
        said = planter.refusal(planter.header({TEMPLATE: template}))
        assert r'does not write the generation prompt "<|im_start|>assistant\n"' in said

    def test_template_without_a_system_turn(self, planter: Planter) -> None:
        """No row has one, so that only the golden prompts tell. llama.cpp puts it into the user's turn."""
        template = planter.template.replace("{%- else %}", "{%- elif message['role'] == 'user' %}")
        said = planter.refusal(planter.header({TEMPLATE: template}))
        assert "(seen with a system prompt)" in said
        assert "(seen with row" not in said

    def test_template_that_trims_what_was_said(self, planter: Planter) -> None:
        template = planter.template.replace("message['content'] +", "message['content'] | trim +")
        said = planter.refusal(planter.header({TEMPLATE: template}))
        assert "(seen with white space at the edges)" in said

    def test_two_bos_tokens(self, planter: Planter) -> None:
        bos = {
            TEMPLATE: "{{ bos_token }}{{ bos_token }}" + planter.template,
            "tokenizer.ggml.bos_token_id": planter.token("<|endoftext|>"),
            "tokenizer.ggml.add_bos_token": True,
        }
        trained = planter.trained(bos_token="<|endoftext|>", template="{{ bos_token }}" + planter.template)
        said = planter.refusal(planter.header(bos), train=trained)
        assert (
            "the file's prompt begins with two BOS tokens \"<|endoftext|>\" (0) where the training's has"
            in said
        )
        assert '"add_bos_token": false' in said

    def test_a_bos_token_that_the_training_had_not(self, planter: Planter) -> None:
        bos = {
            "tokenizer.ggml.bos_token_id": planter.token("<|endoftext|>"),
            "tokenizer.ggml.add_bos_token": True,
        }
        said = planter.refusal(planter.header(bos))
        assert 'begins with one BOS token "<|endoftext|>" (0) where the training\'s has no' in said

    def test_a_bos_token_that_is_missing(self, planter: Planter) -> None:
        trained = planter.trained(bos_token="<|endoftext|>", template="{{ bos_token }}" + planter.template)
        said = planter.refusal(planter.header({}), train=trained)
        assert 'begins with no BOS tokens "<|endoftext|>" (0) where the training\'s has one' in said

    def test_another_tokenizer(self, planter: Planter) -> None:
        tokens = planter.tokens()
        one, other = planter.token("What"), planter.token("Ġis")
        tokens[one], tokens[other] = tokens[other], tokens[one]
        said = planter.refusal(planter.header({"tokenizer.ggml.tokens": tokens}))
        assert "from the same text: it is another tokenizer, or was cut" in said

    def test_a_tokenizer_without_its_last_merges(self, planter: Planter) -> None:
        merges = planter.list_of("tokenizer.ggml.merges")
        said = planter.refusal(planter.header({"tokenizer.ggml.merges": merges[:-5]}))
        assert f"has {len(merges) - 5} merges where the training's has {len(merges)}: it was cut" in said

    def test_a_tokenizer_without_its_last_tokens(self, planter: Planter) -> None:
        """llama.cpp does not even load it, and would not say why in these words."""
        changes = {
            "tokenizer.ggml.tokens": planter.tokens()[:300],
            "tokenizer.ggml.token_type": planter.list_of("tokenizer.ggml.token_type")[:300],
        }
        said = planter.refusal(planter.header(changes))
        assert re.search(
            r"the file's tokenizer has 300 tokens where the training's has \d+: it was cut", said
        )
        assert "the file names 300 tokens, and its embedding has 512 rows" in said


class TestEnds:
    def test_another_eos_token(self, planter: Planter) -> None:
        """By a name of its own, for llama.cpp knows the usual ones whatever the header says."""
        end = planter.token("<|im_end|>")
        tokens = planter.tokens()
        tokens[end] = "<|fin|>"
        changes = {
            "tokenizer.ggml.eos_token_id": planter.token("!"),
            "tokenizer.ggml.tokens": tokens,
            TEMPLATE: planter.template.replace("<|im_end|>", "<|fin|>"),
        }
        trained = planter.trained(template=changes[TEMPLATE], renamed=("<|im_end|>", "<|fin|>"))
        said = planter.refusal(planter.header(changes), train=trained)
        assert f"the file ends no answer at token {end}, which ended every answer of the training" in said
        assert "answers that the weights know by heart do not end" in said

    def test_a_training_whose_answers_never_ended(self, planter: Planter) -> None:
        template = planter.template.replace("message['content'] + '<|im_end|>'", "message['content']")
        said = planter.refusal(planter.header({}), train=planter.trained(template=template))
        assert "writes no token that ends an answer" in said
        assert "Train again with a template that writes eos_token" in said
