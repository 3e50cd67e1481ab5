"""A driver's `nvidia-smi` that shows two GPUs: what tells Lathe of GPUs is this program alone."""

import os
from pathlib import Path

FIRST, SECOND = "GPU-11111111-aaaa-4bbb-8ccc-000000000001", "GPU-22222222-aaaa-4bbb-8ccc-000000000002"
SCRIPT = f"""#!/bin/sh
case "$*" in
"--query-gpu=index,uuid,memory.total,mig.mode.current,name --format=csv,noheader,nounits") ;;
*) echo "nvidia-smi: unknown query: $*" >&2; exit 2 ;;
esac
echo "0, {FIRST}, 24576, [N/A], NVIDIA GeForce RTX 4090"
echo "1, {SECOND}, [N/A], Disabled, NVIDIA GB10, Spark"
"""


def show_gpus(folder: Path) -> dict[str, str]:
    """Write the program into `folder`; returns the environment in which it is found."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
