"""The curves of a training as a picture, from its results file."""

import csv
from pathlib import Path

LABELS = {"train_loss": "training", "valid_loss": "evaluation"}
INCHES, DOTS_PER_INCH = (8, 4.5), 110


def draw_curves(results: Path, target: Path) -> bool:
    """Draw the losses by training step. Returns whether there were any."""
    with results.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    series = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)] for name in LABELS
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
        axes.plot(steps, values, marker="o" if len(points) < 20 else None, markersize=3, label=LABELS[name])
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    # Without the program's version in it, the same curves are the same bytes.
    figure.savefig(target, format="png", metadata={"Software": None})
    return True
