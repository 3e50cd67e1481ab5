"""One training by Unsloth, in an environment of its own: `PYTHON unsloth_side.py TASK.json`.

It imports nothing of Lathe, which that environment has not. The task names the base, and rows as ids and
labels; the last line printed is JSON with what it took.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(task: dict[str, Any]) -> dict[str, float]:
    from importlib import import_module

    fast = import_module("unsloth").FastLanguageModel  # before torch, as it asks
    torch, trl, datasets = (import_module(name) for name in ("torch", "trl", "datasets"))
    callback: Any = import_module("transformers").TrainerCallback
    model, tokenizer = fast.from_pretrained(
        task["base"], dtype=torch.bfloat16, load_in_4bit=task["bits"] == 4, max_seq_length=task["longest"]
    )
    model = fast.get_peft_model(
        model, r=task["rank"], lora_alpha=task["alpha"], use_gradient_checkpointing="unsloth"
    )
    clock: dict[str, float] = {}

    class Clock(callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (task["warm"], state.max_steps):
                torch.cuda.synchronize()
                clock["end" if state.global_step == state.max_steps else "begin"] = time.perf_counter()

    rows = datasets.Dataset.from_list(task["rows"])
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=rows,
        args=trl.SFTConfig(
            output_dir=task["output"],
            per_device_train_batch_size=task["batch"],
            max_steps=task["warm"] + task["steps"],
            learning_rate=task["rate"],
            lr_scheduler_type="cosine",
            bf16=True,
            seed=task["seed"],
            report_to="none",
            save_strategy="no",
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        callbacks=[Clock()],
    )
    torch.cuda.reset_peak_memory_stats()
    trained = trainer.train()
    seen = task["tokens"] / (task["warm"] + task["steps"]) * task["steps"]
    return {
        "tokens_a_second": seen / (clock["end"] - clock["begin"]),
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "train_loss": trained.training_loss,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
