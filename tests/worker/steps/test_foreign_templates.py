"""The chat templates of other families, as trl brings them along.

As a served file carries them, llama-server renders each golden prompt to the very tokens that transformers
does.
"""

import json
import shutil
from pathlib import Path

import pytest
import trl

from db.settings import Settings
from serving import llama_cpp
from serving.local_port import free_port
from tests.serving.llama_process import LlamaProcess
from tests.worker.steps.export_fixtures import Exported, TrainedModels
from training_data.served_templates import served_template
from training_data.tokens import ChatTokenizer
from worker.steps.golden_prompts import golden_prompts
from worker.steps.prompt_check import PromptCheck

FOLDER = Path(trl.__file__).parent / "chat_templates"
OF_IMAGES = ("idefics3", "llava_next", "smolvlm")  # they take no text as it is
# One that the server would date, two that it would let think, and others as they are.
SHORT = ("gemma4_v5", "llama3_1", "phi3", "qwen3_5_nothink", "qwen3_6_training")
ALL = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.startswith(OF_IMAGES))
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in ALL]
)
def test_renders_alike(name: str, tmp_path: Path, models: TrainedModels, exported: Exported) -> None:
    template = (FOLDER / f"{name}.jinja").read_text()
    trained = tmp_path / "trained"
    shutil.copytree(models.adapter, trained)
    (trained / "chat_template.jinja").write_text(template)
    config = json.loads((trained / "tokenizer_config.json").read_text())
    # The token that the server takes for BOS where, as here, the file names none.
    tokens = ChatTokenizer(trained).tokenizer
    (trained / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": tokens.id_to_token(11)}))
    (tmp_path / "served.jinja").write_text(served_template(template))
    golden, _ = golden_prompts(trained, [])
    check = PromptCheck(ChatTokenizer(trained))
    settings = Settings(threads=1)
    argv = llama_cpp.model_server_argv(
        llama_cpp.require_tools(settings), exported.file("Q8_0"), port=(port := free_port()), threads=1,
        n_gpu_layers=0, context=256, slots=1,
    )  # fmt: skip
    argv += ["--chat-template-file", str(tmp_path / "served.jinja")]
    process = LlamaProcess(tmp_path / "model", argv=argv, port=port)
    try:
        wrong = [
            problem for prompt in golden if (problem := check.ask(process.server, prompt)) and prompt.learnt
        ]
    finally:
        process.stop()
    assert wrong == []
    assert len(golden) >= 6
