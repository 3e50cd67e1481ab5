"""A process that holds the one pass against llama.cpp's three steps, family by family.

    python -m tests.worker.steps.one_pass_families CONVERT GGUF_PYTHON BIN CACHE FOLDER [CASE …]

One process for all: importing torch, peft, transformers and the converter takes longer than a family, and
the converter's own `gguf` cannot live beside the installed one. The three steps are peft's merge of the whole
model, llama.cpp's converter on the saved folder, and llama-quantize. The pass runs in a second process, which
has started as `worker.export` does.

It says a line of JSON for each case: {"case", "differing": types} or {"case", "refused": why, "made": files};
and what the second process told at its end, as the case "lean".
"""

import errno
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.convert_driver import find_modules, prepare_converter

CONVERT, GGUF_PYTHON, BIN, CACHE, FOLDER = (Path(argument) for argument in sys.argv[1:6])
find_modules(CONVERT, GGUF_PYTHON)

import gguf  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from conversion import ModelBase, get_model_class  # type: ignore[import-not-found]  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

from serving.llama_cpp import Tools  # noqa: E402
from worker.encoder.choosing import choose_encoder  # noqa: E402
from worker.steps.gguf_files import describe  # noqa: E402
from worker.steps.merging import Weights, write_merged  # noqa: E402
from worker.steps.one_pass import streaming  # noqa: E402
from worker.steps.one_pass.adapter_file import write_adapter  # noqa: E402
from worker.steps.one_pass.program import Wanted, export, say  # noqa: E402
from worker.steps.one_pass.refusals import NeedsMerging, NeedsThreeSteps  # noqa: E402

TOOLS = Tools(BIN, CONVERT, GGUF_PYTHON, "test", "setting")
ALL_LINEAR = {"target_modules": "all-linear"}
SHAPE = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@contextmanager
def full_disk() -> Iterator[None]:
    """Let half a megabyte be written, and then say what the system says of a full disk."""
    left, write = 500_000, os.pwrite

    def limited(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, offset)

    os.pwrite = limited
    try:
        yield
    finally:
        os.pwrite = write


FULL_DISK = "full-disk"
TIED = {"tie_word_embeddings": True}
WIDE_HEADS = {"head_dim": 64}
# So that the small matrices here are read in several pieces, as large ones are.
streaming.CHUNK_ELEMENTS = 10_000


@dataclass(frozen=True)
class Case:
    """One model and what is done to it.

    Args:
        config: of transformers; `sentencepiece`: which tokenizer it gets, else BPE.
        lora: peft's settings; None: there is no adapter.
        dtype: that the base is stored in.
        change: what is done to the model before it is saved.
    """

    name: str
    config: str
    sentencepiece: bool = False
    shape: dict[str, Any] | None = None
    lora: dict[str, Any] | None = None
    dtype: torch.dtype = torch.bfloat16
    types: tuple[str, ...] = ("Q4_K_M",)
    change: Callable[[Any], None] = lambda model: None


def negative_subnormals(model: Any) -> None:
    """Half precision's smallest numbers, and halves of them, of both signs."""
    weight = model.model.layers[0].mlp.up_proj.weight
    smallest = 2.0**-24
    generator = torch.Generator().manual_seed(3)
    weight.copy_((torch.rand(weight.shape, generator=generator) * 8 - 4).round() * smallest * 0.5)


def one_infinity(model: Any) -> None:
    model.model.layers[0].mlp.up_proj.weight[3, 5] = float("inf")


CASES = [
    Case(
        "llama", "LlamaConfig", sentencepiece=True, shape={"num_attention_heads": 8}, lora=ALL_LINEAR,
        types=("Q4_K_M", "Q8_0", "BF16", "F16"),
    ),
    Case("llama-tied", "LlamaConfig", shape=TIED, lora=ALL_LINEAR),
    Case("mistral", "MistralConfig", sentencepiece=True, lora=ALL_LINEAR, types=("Q5_K_M",)),
    Case("qwen2", "Qwen2Config", lora=ALL_LINEAR, types=("Q6_K", "Q3_K_M")),
    Case("qwen2-tied-rslora", "Qwen2Config", shape=TIED, lora={**ALL_LINEAR, "use_rslora": True}),
    Case("qwen3", "Qwen3Config", shape=WIDE_HEADS, lora={"target_modules": ["q_proj", "v_proj"]}),
    Case("qwen3-tied-dora", "Qwen3Config", shape=TIED | WIDE_HEADS, lora={**ALL_LINEAR, "use_dora": True}),
    Case("gemma-tied", "GemmaConfig", sentencepiece=True, shape=TIED | WIDE_HEADS, lora=ALL_LINEAR),
    Case("phi3", "Phi3Config", sentencepiece=True, lora=ALL_LINEAR),
    Case("no-adapter", "Qwen2Config", types=("Q4_K_S", "Q4_0", "Q2_K")),
    Case("stored-in-fp32", "Qwen2Config", dtype=torch.float32, types=("Q8_0", "BF16")),
    Case(
        "half-precision", "LlamaConfig", lora=ALL_LINEAR, dtype=torch.float16,
        types=("Q4_K_M", "F16", "BF16"), change=negative_subnormals,
    ),
    Case("embedding", "LlamaConfig", lora={"target_modules": ["embed_tokens", "q_proj"]}),
    Case(
        "narrow-rows", "Qwen2Config", shape={"hidden_size": 96, "intermediate_size": 160}, lora=ALL_LINEAR,
        types=("Q4_K_M", "Q6_K"),
    ),
    Case("bias", "Qwen2Config", lora={**ALL_LINEAR, "bias": "lora_only"}),
    Case("infinity", "LlamaConfig", change=one_infinity),
    Case(FULL_DISK, "LlamaConfig", types=("Q8_0", "Q4_K_M")),
]  # fmt: skip


def main() -> None:
    prepare_converter()
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    only = sys.argv[6:]
    with warnings.catch_warnings(), lean_process() as lean:
        warnings.simplefilter("ignore")
        make_tokenizers(FOLDER)
        for case in CASES:
            if not only or case.name in only:
                say({"case": case.name, **compare(case, FOLDER / case.name, lean)})
        told, _ = lean.communicate()
        say({"case": "lean", **json.loads(told)})
        say({"case": "foreign-code", **load_foreign_tokenizer(FOLDER / "foreign")})


@contextmanager
def lean_process() -> Iterator["subprocess.Popen[str]"]:
    argv = [sys.executable, "-m", "tests.worker.steps.one_pass_lean", CONVERT, GGUF_PYTHON, BIN, CACHE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def export_in(lean: "subprocess.Popen[str]", wanted: Wanted) -> str | None:
    """Returns why the process refuses to."""
    assert lean.stdin is not None
    assert lean.stdout is not None
    weights = wanted.weights
    asked = {
        "base": str(weights.base), "adapter": str(weights.adapter) if weights.adapter is not None else None,
        "tokenizer": str(wanted.tokenizer), "files": {kind: str(path) for kind, path in wanted.files.items()},
    }  # fmt: skip
    lean.stdin.write(json.dumps(asked) + "\n")
    lean.stdin.flush()
    for line in lean.stdout:
        answer = json.loads(line)
        if "refused" in answer:
            refused: str | None = answer["refused"]
            return refused
    raise AssertionError("the process that exports has ended")


def refusal(case: Case, wanted: Wanted, lean: "subprocess.Popen[str]") -> str | None:
    if case.name != FULL_DISK:
        return export_in(lean, wanted)
    with full_disk():  # of this process alone
        try:
            export(TOOLS, wanted, choose_encoder(BIN, CACHE))
        except OSError as error:
            return str(error)
    return None


def compare(case: Case, folder: Path, lean: "subprocess.Popen[str]") -> dict[str, Any]:
    base, adapter = make_model(case, folder)
    tokenizer = FOLDER / ("sentencepiece" if case.sentencepiece else "bpe")
    made = {kind: folder / f"ours-{kind}.gguf" for kind in case.types}
    refused = refusal(case, Wanted(Weights(base, adapter), tokenizer, None, "tested", made, threads=2), lean)
    if refused is not None:
        return {"made": sorted(path.name for path in folder.iterdir()), "refused": refused}
    alone = adapter_alone(base, adapter, folder) if adapter is not None else {}
    expected = three_steps(case, base, adapter, tokenizer, folder)
    differing = [kind for kind in case.types if made[kind].read_bytes() != expected[kind].read_bytes()]
    shutil.rmtree(folder)
    return {"differing": differing, "refused": None, **alone}


def make_model(case: Case, folder: Path) -> tuple[Path, Path | None]:
    torch.manual_seed(11)
    config = getattr(transformers, case.config)(
        **{**SHAPE, "tie_word_embeddings": False, **(case.shape or {})}
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05)
        case.change(model)
    model.to(case.dtype).save_pretrained(folder / "base")
    if case.lora is None:
        return folder / "base", None
    tuned = get_peft_model(model.float(), LoraConfig(r=12, lora_alpha=18, task_type="CAUSAL_LM", **case.lora))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1.1)
            elif "lora_" in name:
                parameter.normal_(0, 0.05)
    tuned.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return folder / "base", folder / "adapter"


def three_steps(
    case: Case, base: Path, adapter: Path | None, tokenizer: Path, folder: Path
) -> dict[str, Path]:
    merged = folder / "merged"
    write_merged(Weights(base, adapter), merged)
    describe(merged, tokenizer, merged)
    own = Weights(merged).gguf_type.lower()
    full = folder / "full.gguf"
    kind = gguf.LlamaFileType.MOSTLY_F16 if own == "f16" else gguf.LlamaFileType.MOSTLY_BF16
    with torch.inference_mode():
        architecture = ModelBase.load_hparams(merged, False)["architectures"][0]
        get_model_class(architecture)(merged, kind, full, model_name="tested").write()
    files = {}
    for name in case.types:
        files[name] = full if name == own.upper() else folder / f"theirs-{name}.gguf"
        if name != own.upper():
            argv = [str(TOOLS.quantize), str(full), str(files[name]), name, "2"]
            subprocess.run(argv, check=True, capture_output=True)
    return files


def adapter_alone(base: Path, adapter: Path, folder: Path) -> dict[str, Any]:
    """Hold the file of the adapter alone against that of llama.cpp's script, tensor by tensor."""
    ours, theirs = folder / "ours-adapter.gguf", folder / "theirs-adapter.gguf"
    try:
        write_adapter(Weights(base, adapter), ours, "tested")
    except (NeedsMerging, NeedsThreeSteps) as error:
        return {"alone": {"refused": str(error)}}
    argv = sys.argv
    script = str(CONVERT / "convert_lora_to_gguf.py")
    sys.argv = [script, "--base", str(base), "--outfile", str(theirs), "--outtype", "f16", str(adapter)]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv = argv
    found, expected = (
        {each.name: (each.tensor_type, each.data.tobytes()) for each in gguf.GGUFReader(path).tensors}
        for path in (ours, theirs)
    )
    names = found.keys() | expected.keys()
    alpha = gguf.GGUFReader(ours).get_field("adapter.lora.alpha")
    return {
        "alone": {
            "tensors": len(expected),
            "differing": sorted(name for name in names if found.get(name) != expected.get(name)),
            "alpha": None if alpha is None else float(alpha.contents()),
        }
    }


def load_foreign_tokenizer(folder: Path) -> dict[str, Any]:
    """What comes of a tokenizer that names code of its own, loaded as the converter loads some."""
    shutil.copytree(FOLDER / "bpe", folder)
    ran = folder / "ran"
    (folder / "foreign.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast\n"
        f"Path({str(ran)!r}).touch()\nclass Foreign(PreTrainedTokenizerFast): pass\n"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "foreign.Foreign"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return {"loaded": type(loaded).__name__, "ran": ran.exists()}


def make_tokenizers(folder: Path) -> None:
    import sentencepiece
    from transformers import PreTrainedTokenizerFast

    from training_data.chat_templates import OWN_MODELS
    from worker.steps.pretrain_text import train_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    text = [f"The {word} number {i} of a text that teaches a tokenizer its words." for i, word in
            enumerate(["first", "second", "third", "other", "good", "Ünique", "日本"] * 12)]  # fmt: skip
    train_tokenizer(text, 512).save(str(folder / "bpe.json"))
    bpe = PreTrainedTokenizerFast(tokenizer_file=str(folder / "bpe.json"), eos_token="<|im_end|>")
    bpe.chat_template = OWN_MODELS.template
    bpe.save_pretrained(folder / "bpe")
    (folder / "text.txt").write_text("\n".join(text))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "spm"), vocab_size=400, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    spm = folder / "sentencepiece"
    spm.mkdir()
    shutil.copy2(folder / "spm.model", spm / "tokenizer.model")
    config = {
        "tokenizer_class": "LlamaTokenizer", "chat_template": OWN_MODELS.template,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    }  # fmt: skip
    (spm / "tokenizer_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
