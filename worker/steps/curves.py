"""The curves of a training as a picture, from its results file."""

import csv
from pathlib import Path

LOSSES = {"train_loss": "training", "valid_loss": "evaluation"}
# Of a training by GRPO: its loss is about 0, however good the answers are.
REWARDS = {"train_reward": "training", "valid_reward": "evaluation"}
INCHES, DOTS_PER_INCH = (8, 4.5), 110


def draw_curves(results: Path, target: Path) -> bool:
    """Draw the losses, or the rewards, by training step. Returns whether there were any."""
    with results.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rewarded = any(row.get("train_reward") for row in rows)
    labels = REWARDS if rewarded else LOSSES
    series = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)] for name in labels
    }
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in drawn.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="o" if len(points) < 20 else None, markersize=3, label=labels[name])
    axes.set_xlabel("step")
    axes.set_ylabel("reward" if rewarded else "loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    # Without the program's version in it, the same curves are the same bytes.
    figure.savefig(target, format="png", metadata={"Software": None})
    return True
