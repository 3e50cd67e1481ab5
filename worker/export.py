"""Make GGUF files of a model and its adapter in one pass, or of the adapter alone:

    python -m worker.export --base DIR [--adapter DIR] --out FILE --type Q4_K_M [--out … --type …] --threads 2
    python -m worker.export --base DIR --adapter DIR --out FILE --adapter-alone

The weights are merged in fp32, rounded to the base's 16 bits and quantised, some rows at a time; nothing else
is written, and the files bear their names once they are whole. Every byte is what merging, converting and
quantising one after the other would give. What that needs (exit 4) is said, and nothing is made. An adapter
alone is for a base that is served as it is (`llama-server --lora`).
"""

import argparse
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from db.errors import Exhausted, LatheError
from serving.convert_driver import find_modules, prepare_converter
from worker.steps.one_pass.start import start_lean
from worker.steps.runtime import memory_errors_explained, prepare_runtime

if TYPE_CHECKING:
    from serving.llama_cpp import Tools
    from worker.encoder.choosing import Chosen
    from worker.steps.merging import Weights

EXIT_FAILED, EXIT_NEEDS_THREE_STEPS = 1, 4
MEMORY_ADVICE = "The pass holds a few rows at a time: free some memory on this machine."


def main() -> None:
    # This process ends soon: looking for cycles among all that it imports would take a tenth of its start.
    gc.disable()
    options = _parsed()
    # A stop by signal takes the same way out as Ctrl-C: what was begun goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare_runtime(options.threads)
    tools = _tools(options)
    if tools.convert is None or tools.python is None:
        sys.exit(f"error: the llama.cpp in {tools.bin} has no converters; see llama.cpp/README.md.")
    find_modules(tools.convert, tools.python)
    start_lean(options.cache or _cache())
    prepare_converter()
    from worker.steps.merging import Weights
    from worker.steps.one_pass.encoding import NotEncodable
    from worker.steps.one_pass.program import say  # imports llama.cpp's modules
    from worker.steps.one_pass.refusals import NeedsMerging, NeedsThreeSteps

    weights = Weights(options.base, options.adapter, options.like)
    try:
        with memory_errors_explained(MEMORY_ADVICE):
            say(
                _adapter_alone(options, weights)
                if options.adapter_alone
                else _merged(options, tools, weights)
            )
    except NeedsThreeSteps as error:
        say({"needs_three_steps": str(error)})
        sys.exit(EXIT_NEEDS_THREE_STEPS)
    except Exhausted as error:
        say({"error": str(error), "code": error.code, "exhausted": True})
        sys.exit(EXIT_FAILED)
    except (LatheError, NotEncodable, NeedsMerging) as error:
        say({"error": str(error), "exhausted": False})
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing half-made is left.")


def _merged(options: argparse.Namespace, tools: "Tools", weights: "Weights") -> dict[str, Any]:
    from worker.steps.one_pass.program import Wanted, export

    adapter = options.adapter
    own = adapter if adapter is not None and (adapter / "tokenizer_config.json").is_file() else options.base
    wanted = Wanted(
        weights=weights,
        tokenizer=options.tokenizer or own,
        described=options.described,
        name=options.name or options.out[0].stem,
        files=dict(zip(options.type, options.out, strict=True)),
        threads=options.threads,
    )
    return export(tools, wanted, _chosen(options, tools))


def _adapter_alone(options: argparse.Namespace, weights: "Weights") -> dict[str, Any]:
    """Whatever stands against that is an error: merging would make something else."""
    from worker.steps.one_pass.program import export_adapter
    from worker.steps.one_pass.refusals import NeedsMerging, NeedsThreeSteps

    [target] = options.out
    try:
        return export_adapter(weights, target, options.name or target.stem)
    except NeedsThreeSteps as error:
        raise NeedsMerging(str(error)) from error


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.export", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of the base's weights")
    parser.add_argument("--adapter", type=Path, help="folder of the LoRA adapter")
    parser.add_argument(
        "--adapter-alone",
        action="store_true",
        help="make a file of the adapter, for a base that stays as it is",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of the tokenizer; else the adapter's, or the base's"
    )
    parser.add_argument("--out", type=Path, action="append", required=True, help="the file to make")
    parser.add_argument("--type", action="append", default=[], help="its quantization, such as Q4_K_M")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--encoder", choices=["auto", "ggml"], default="auto", help="ggml: its own, and no other"
    )
    parser.add_argument("--cache", type=Path, help="where the compiled encoder is kept; else LATHE_CACHE_DIR")
    parser.add_argument("--name", help="what the files say the model is called; else the first file's name")
    # For the export step: a folder that has configuration and tokenizer, and the tools it has found.
    parser.add_argument("--described", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--like", type=Path, help=argparse.SUPPRESS)  # whose 16 bits weights of 32 get
    parser.add_argument("--tools", type=Path, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads < 1:
        parser.error("--threads: at least 1")
    if options.adapter_alone:
        if options.adapter is None or options.type or len(options.out) != 1:
            parser.error("--adapter-alone: give --adapter and one --out, and no --type")
    elif (
        not options.type
        or len(options.out) != len(options.type)
        or len(set(options.type)) != len(options.type)
    ):
        parser.error("give one --out for each --type, and each type once")
    return options


def _chosen(options: argparse.Namespace, tools: "Tools") -> "Chosen | None":
    """The encoder: by vectors where that has proven itself here."""
    from worker.encoder.choosing import Chosen, choose_encoder
    from worker.steps.one_pass.encoding import find_encoder

    if options.encoder == "auto":
        return choose_encoder(tools.bin, options.cache or _cache())
    ggml = find_encoder(tools.bin)
    return None if ggml is None else Chosen(ggml, ggml, "Weights are encoded by ggml, as was asked.")


def _cache() -> Path:
    from db.settings import load_settings

    return load_settings().cache_dir


def _tools(options: argparse.Namespace) -> "Tools":
    from serving.llama_cpp import Tools, require_tools

    if options.tools:
        bin_folder, convert, python = options.tools
        return Tools(bin_folder, convert, python, str(bin_folder), "setting")
    from db.settings import load_settings

    try:
        return require_tools(load_settings())
    except LatheError as error:
        _fail(error)


def _fail(error: LatheError) -> NoReturn:
    sys.exit(f"error: {error}")


def _leave() -> NoReturn:
    """End at once: taking apart all that was imported would take as long as a second of encoding."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
    _leave()
