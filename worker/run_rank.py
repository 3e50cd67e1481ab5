"""One of several processes that do a step together: `python -m worker.run_rank --module MODULE --pipe FD
--parent PID`, started by the step's own process (`worker/ranks.py`).

stdin brings one line of JSON: the step's input, what is to be done, and where the processes meet. Which one
this is stands in the environment, by torch.distributed's names. The pipe takes JSON lines back: of the first
process all that `worker.step.Step` sends, and of each how it ended. `run_rank(step, work)` of the module does
the work.
"""

import argparse
import importlib
import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from worker.step import Message, Step, StepInput
from worker.step_process import die_with, end_like, heed_sigterm, message_sender, outcome


def main() -> NoReturn:
    parser = argparse.ArgumentParser()
    for name in ("--pipe", "--parent", "--rank", "--ranks"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--module", required=True)
    options = parser.parse_args()
    die_with(options.parent)
    if options.rank > 0:
        # The first one decides when all stop; they end with the process that started them.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    order = json.loads(sys.stdin.readline())
    code = 1
    try:
        send = message_sender(options.pipe)
        step = rank_step(StepInput.from_json(json.dumps(order["input"])), options.rank, send, heed_sigterm)
        ending = outcome(lambda: _joined(options, order, step))
        send(ending)
        code = 0
    except BaseException:  # noqa: BLE001 - the edge of the process: the traceback is its last word
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        end_like(code)


def rank_step(
    step_input: StepInput,
    rank: int,
    send: Callable[[Message], None],
    heed: Callable[[Callable[[], None]], None] = lambda ask: None,
) -> Step:
    """The line to the outside of one of several processes: the first one speaks for all."""
    return Step(step_input, send, heed) if rank == 0 else Step(step_input, lambda message: None)


def _joined(options: argparse.Namespace, order: dict[str, Any], step: Step) -> dict[str, Any]:
    from worker.steps.runtime import prepare_runtime
    from worker.steps.together import join

    prepare_runtime(step.input.settings.threads)
    join(Path(order["rendezvous"]), rank=options.rank, count=options.ranks, local_rank=options.rank)
    result: dict[str, Any] = importlib.import_module(options.module).run_rank(step, order["work"])
    return result


if __name__ == "__main__":
    main()
