"""llama.cpp's tools: where they are, and the argv of each.

Looked for, in this order: the folder that LATHE_LLAMA_CPP_DIR names, PATH, and the folder that
`python llama.cpp/build.py` makes in the cache. Every command is an argv list for a child process.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, cast

from db.errors import InvalidInput, Unavailable
from serving.devices import list_devices

PIN_FILE = Path(__file__).resolve().parent.parent / "llama.cpp" / "pin.toml"
REQUIRED = ("llama-server", "llama-quantize")
CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_DRIVER = Path(__file__).resolve().parent / "convert_driver.py"
NO_TOOLS = (
    "llama.cpp is not on this machine. Build it with `python llama.cpp/build.py`, "
    "or set LATHE_LLAMA_CPP_DIR to the folder of an existing one."
)
# Host memory in which each model keeps the prompts it has read: their default of 8 GiB a model is a
# server's, not a desktop's.
PROMPT_CACHE_MIB = 512
# Inputs of the embedding model are at most this long, in tokens; a batch must hold a whole one.
EMBEDDING_CONTEXT = 512
EMBEDDING_SLOTS = 4
ROUTER_OPTIONS = ("--models-dir", "--models-preset")
# In the folder of served models: what the router serves with an adapter (serving/served_adapters.py).
ADAPTER_PRESETS = "adapters.ini"

Backend = Literal["cpu", "cuda", "vulkan"]


class ToolSettings(Protocol):
    """What the search needs, of `db.settings.Settings` and `worker.step.StepSettings` alike."""

    @property
    def cache_dir(self) -> Path: ...
    @property
    def llama_cpp_dir(self) -> Path | None: ...
    @property
    def llama_backend(self) -> str: ...


class ServerSettings(Protocol):
    """What llama-server is told, of `db.settings.Settings`."""

    @property
    def served_models_dir(self) -> Path: ...
    @property
    def models_loaded_max(self) -> int: ...
    @property
    def chat_port(self) -> int: ...
    @property
    def embedding_port(self) -> int: ...
    @property
    def n_gpu_layers(self) -> int: ...
    @property
    def context_size(self) -> int: ...
    @property
    def chat_batch_tokens(self) -> int: ...
    @property
    def threads(self) -> int: ...


@dataclass(frozen=True)
class Tools:
    """One llama.cpp: its programs and its converters.

    Args:
        bin: folder of the programs.
        convert: folder of convert_hf_to_gguf.py and conversion/, or None where there is none.
        python: folder that holds the `gguf` package which the converters want.
        version: the pinned version, or what the folder is when it is not ours.
        source: how it was found.
    """

    bin: Path
    convert: Path | None
    python: Path | None
    version: str
    source: Literal["setting", "path", "cache"]

    @property
    def server(self) -> Path:
        return self.bin / "llama-server"

    @property
    def quantize(self) -> Path:
        return self.bin / "llama-quantize"

    @property
    def imatrix(self) -> Path:
        return self.bin / "llama-imatrix"

    @property
    def perplexity(self) -> Path:
        return self.bin / "llama-perplexity"


@lru_cache
def pinned_version() -> str:
    return str(tomllib.loads(PIN_FILE.read_text())["version"])


# --- where they are ---------------------------------------------------------------------------------


def find_tools(settings: ToolSettings) -> Tools | None:
    """Return the llama.cpp to use, or None when this machine has none.

    Raises:
        InvalidInput: LATHE_LLAMA_CPP_DIR names a folder without the tools, or with ones too old.
    """
    if settings.llama_cpp_dir is not None:
        return _with_converters(_tools_of_setting(settings.llama_cpp_dir), settings)
    on_path = _tools_on_path()
    if on_path is not None:
        return _with_converters(on_path, settings)
    return _tools_in(cached_folder(settings), "cache")


def require_tools(settings: ToolSettings) -> Tools:
    """Return the llama.cpp to use.

    Raises:
        Unavailable: there is none, or none with converters; the message says what to do.
    """
    tools = find_tools(settings)
    if tools is None:
        raise Unavailable(NO_TOOLS, code="llama_cpp_missing")
    return tools


def cached_folder(settings: ToolSettings) -> Path:
    """Where `llama.cpp/build.py` installs: named by version, backend and processors.

    A build uses every instruction of the CPU it was made on, and code for its GPU alone; another machine
    that shares the cache folder needs its own.
    """
    backend = resolve_backend(settings)
    processors = cpu_key() if backend == "cpu" else _hash(cpu_key(), *gpu_names())
    return settings.cache_dir / "llama.cpp" / f"{pinned_version()}-{backend}-{processors}"


def converters_folder(settings: ToolSettings) -> Path:
    """Where the pinned converters go when the tools themselves are the user's own and lack them."""
    return settings.cache_dir / "llama.cpp" / f"{pinned_version()}-converters"


def resolve_backend(settings: ToolSettings) -> Backend:
    """What `auto` means here: CUDA when both a toolkit and a GPU are there, else the CPU."""
    if settings.llama_backend == "auto":
        return "cuda" if cuda_compiler() and gpu_names() else "cpu"
    if settings.llama_backend in ("cpu", "cuda", "vulkan"):
        return cast(Backend, settings.llama_backend)
    raise InvalidInput(
        f"LATHE_LLAMA_BACKEND is {settings.llama_backend!r}: give auto, cpu, cuda or vulkan.",
        param="LATHE_LLAMA_BACKEND",
    )


def cuda_compiler() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@lru_cache
def gpu_names() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver shows; none without a driver."""
    return tuple(device.name for device in list_devices())


@lru_cache
def cpu_key() -> str:
    """Ten hex digits that stand for this CPU's instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    features = " ".join(sorted(flags.partition(":")[2].split()))
    return _hash(platform.machine(), features)


def _hash(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:10]


def _tools_of_setting(folder: Path) -> Tools:
    for bin_folder in (folder, folder / "bin", folder / "build" / "bin"):
        if _has_programs(bin_folder):
            break
    else:
        raise InvalidInput(
            f"LATHE_LLAMA_CPP_DIR is {folder}, which holds no {' and '.join(REQUIRED)} "
            "(nor does its bin/ or build/bin/).",
            param="LATHE_LLAMA_CPP_DIR",
        )
    if not serves_many(bin_folder / "llama-server"):
        raise InvalidInput(
            f"The llama-server in {bin_folder} is too old: it has no {' or no '.join(ROUTER_OPTIONS)}.",
            param="LATHE_LLAMA_CPP_DIR",
        )
    convert, python = _converters_near(folder, bin_folder)
    return Tools(bin_folder, convert, python, str(folder), "setting")


def _tools_on_path() -> Tools | None:
    server = shutil.which("llama-server")
    if server is None:
        return None
    bin_folder = Path(server).absolute().parent
    if not _has_programs(bin_folder) or not serves_many(Path(server)):
        return None
    convert, python = _converters_near(bin_folder, bin_folder.parent)
    return Tools(bin_folder, convert, python, str(bin_folder), "path")


def _tools_in(folder: Path, source: Literal["setting", "path", "cache"]) -> Tools | None:
    if not _has_programs(folder / "bin"):
        return None
    return Tools(folder / "bin", folder / "convert", folder / "python", pinned_version(), source)


def _converters_near(*folders: Path) -> tuple[Path | None, Path | None]:
    """A checkout has both in its root; our own layout has convert/ and python/."""
    for folder in folders:
        for convert, python in ((folder, folder / "gguf-py"), (folder / "convert", folder / "python")):
            if (convert / CONVERTER).is_file() and (convert / "conversion").is_dir():
                return convert, python
    return None, None


def _with_converters(tools: Tools, settings: ToolSettings) -> Tools:
    folder = converters_folder(settings)
    if tools.convert is not None or not (folder / "convert" / CONVERTER).is_file():
        return tools
    return Tools(tools.bin, folder / "convert", folder / "python", tools.version, tools.source)


def _has_programs(folder: Path) -> bool:
    return all(shutil.which(folder / name) for name in REQUIRED)


@lru_cache
def serves_many(server: Path) -> bool:
    """Whether this llama-server has the router mode that Lathe serves with."""
    try:
        argv = [str(server), "--help"]
        answer = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return all(option in answer.stdout + answer.stderr for option in ROUTER_OPTIONS)


# --- how each is called -----------------------------------------------------------------------------


def chat_server_argv(tools: Tools, settings: ServerSettings) -> list[str]:
    """llama-server in router mode: one process for each loaded model of the folder, behind one port.

    The folder's presets must be there: `served_adapters.prepare_folder` writes them.
    The settings given to the router hold for every model that it starts. The key, if any, is in
    `child_environment`, for an argv can be read by every user of the machine.
    """
    argv = [
        str(tools.server),
        "--models-dir", str(settings.served_models_dir),
        "--models-preset", str(settings.served_models_dir / ADAPTER_PRESETS),
        "--models-max", str(settings.models_loaded_max),
        *_address(settings.chat_port),
        *_compute(settings.threads, settings.n_gpu_layers),
        "--cache-ram", str(PROMPT_CACHE_MIB),
    ]  # fmt: skip
    if settings.context_size:
        argv += ["--ctx-size", str(settings.context_size)]
    if settings.chat_batch_tokens:
        argv += ["--batch-size", str(settings.chat_batch_tokens)]
    return argv


def embedding_server_argv(tools: Tools, settings: ServerSettings, model_path: Path) -> list[str]:
    """llama-server for the embedding model `default`."""
    return [
        str(tools.server),
        "--model", str(model_path),
        "--alias", "default",
        "--embeddings",
        "--pooling", "mean",
        *_address(settings.embedding_port),
        *_compute(settings.threads, settings.n_gpu_layers),
        "--parallel", str(EMBEDDING_SLOTS),
        "--ctx-size", str(EMBEDDING_SLOTS * EMBEDDING_CONTEXT),
        "--batch-size", str(EMBEDDING_SLOTS * EMBEDDING_CONTEXT),
        # Texts computed at once attend to each other, all masked: the fewer the faster.
        "--ubatch-size", str(EMBEDDING_CONTEXT),
    ]  # fmt: skip


def model_server_argv(
    tools: Tools,
    model_path: Path,
    *,
    port: int,
    threads: int,
    n_gpu_layers: int,
    context: int,
    slots: int,
    adapter: Path | None = None,
) -> list[str]:
    """llama-server for one file, as the verify step starts it.

    Args:
        context: tokens of each slot.
        adapter: a GGUF LoRA that the file is served with.
    """
    beside = ["--lora", lora_value(adapter)] if adapter is not None else []
    return [
        str(tools.server),
        "--model", str(model_path),
        *_address(port),
        *_compute(threads, n_gpu_layers),
        "--parallel", str(slots),
        "--ctx-size", str(slots * context),
        "--cache-ram", "0",
        "--no-warmup",
        *beside,
    ]  # fmt: skip


def lora_value(adapter: Path) -> str:
    """The path as `--lora` takes it, which reads a comma as the next adapter unless it is quoted."""
    return '"' + str(adapter).replace('"', '""') + '"'


def convert_argv(
    tools: Tools, model_folder: Path, outfile: Path, outtype: str, name: str | None = None
) -> list[str]:
    """llama.cpp's converter on a folder in Hugging Face's layout, through our driver.

    Args:
        name: what the file says it is called; None: as the folder is.

    Raises:
        Unavailable: this llama.cpp came without converters.
    """
    named = ["--model-name", name] if name else []
    outcome = ["--outfile", str(outfile), "--outtype", outtype]
    return [*_converter_argv(tools, CONVERTER), str(model_folder), *outcome, *named]


def _converter_argv(tools: Tools, script: str) -> list[str]:
    if tools.convert is None:
        raise Unavailable(
            f"The llama.cpp in {tools.bin} has no converters: `python llama.cpp/build.py` fetches them.",
            code="llama_cpp_missing",
        )
    return [sys.executable, str(CONVERTER_DRIVER), str(tools.convert), str(tools.python), script]


def quantize_argv(
    tools: Tools, source: Path, target: Path, quantization: str, threads: int, *, imatrix: str | None = None
) -> list[str]:
    """`imatrix` is written into the target as it is given: name it without its folder."""
    weighed = ["--imatrix", imatrix] if imatrix is not None else []
    return [str(tools.quantize), *weighed, str(source), str(target), quantization, str(threads)]


def imatrix_argv(
    tools: Tools, model: Path, text: str, target: str, *, chunk: int, threads: int, n_gpu_layers: int
) -> list[str]:
    """llama-imatrix over a text file, `chunk` tokens at a time; a line of its output for each.

    The names of `text` and `target` are written into what quantisers make: give them without a folder.
    """
    return [
        str(tools.imatrix),
        "--model", str(model),
        "--file", text,
        "--output-file", target,
        "--output-frequency", "1",
        "--parse-special",
        "--no-ppl",
        "--offline",
        "--ctx-size", str(chunk),
        "--batch-size", str(chunk),
        "--threads", str(threads),
        "--n-gpu-layers", str(n_gpu_layers),
    ]  # fmt: skip


def child_environment(api_key: str = "") -> dict[str, str]:
    """Variables for every llama.cpp process, on top of the inherited ones.

    Threads that wait must sleep: with OpenMP's default of spinning, llama.cpp on busy cores fell to
    11 tokens/s from about 800.
    """
    environment = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    if api_key:
        environment["LLAMA_API_KEY"] = api_key
    return environment


def _address(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port), "--no-webui", "--offline"]


def _compute(threads: int, n_gpu_layers: int) -> list[str]:
    return ["--threads", str(threads), "--n-gpu-layers", str(n_gpu_layers)]
