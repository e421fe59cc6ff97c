"""The model and the data: the paper's section 3.1 and Table 1 in small."""

from collections.abc import Iterable
from typing import Any

from lab.config import BATCH, STEPS, Bottom, Config
from lab.data import RAW_UNIT, SPARSE, read
from lab.lab import Lab
from lab.report.markdown import number, table
from lossguard.demo.features import TASKS

NAME = "setup"
TITLE = "The model and the data"

PAPER = {
    "small": "7.5 million, 512 x 2",
    "large": "57.0 million, 4096 x 4",
    "large+dcn": "68.0 million, DCN, LayerNorm, 4096 x 4",
}
"""Table 1, by a public summary of the paper."""
OURS: dict[Bottom, str] = {
    "small": "ReLU 128 x 2",
    "large": "ReLU 256 x 4",
    "large+dcn": "two DCN-v2 layers, LayerNorm, ReLU 256 x 4",
    "mmoe": "four experts of ReLU 128 x 2, a softmax gate for each task",
    "wide&deep": "the features beside ReLU 128 x 2",
    "wide": "the features alone",
}


def plan(lab: Lab) -> Iterable[Config]:
    """Nothing is trained."""
    return ()


def measure(lab: Lab) -> dict[str, Any]:
    """Sizes of models and data."""
    from lab.model import build

    examples = read(lab.source).examples
    shape = (examples.rows, examples.categorical.shape[1], examples.numeric.shape[1])
    models = []
    for bottom, words in OURS.items():
        model = build(bottom, *shape, tuple(TASKS))
        embedding = model.get_layer("embedding").count_params()
        models.append({"bottom": bottom, "words": words, "weights": model.count_params() - embedding})
    learned = slice(0, examples.training)
    return {
        "models": models,
        "embedding": embedding,
        "rows": len(examples),
        "training": examples.training,
        "days": examples.last_day + 1,
        "columns": {"categorical": shape[1], "numeric": shape[2], "sparse": len(SPARSE)},
        "tasks": [
            {
                "task": task,
                "kind": kind,
                "mean": float(examples.labels[task][learned].mean()),
                "sd": float(examples.labels[task][learned].std()),
                "largest": float(examples.labels[task][learned].max()),
            }
            for task, kind in TASKS.items()
        ],
    }


def text(found: dict[str, Any]) -> list[str]:
    """The section."""
    columns = found["columns"]
    models = [
        [one["bottom"], one["words"], f"{one['weights']:,}", PAPER.get(one["bottom"], "-")] for one in found["models"]
    ]
    tasks = [
        [one["task"], one["kind"], number(one["mean"]), number(one["sd"]), number(one["largest"])]
        for one in found["tasks"]
    ]
    return [
        f"{found['rows']:,} rows of {found['days']} days in the order of time, {found['training']:,} before the last "
        f"day, which models are judged on. {columns['categorical']} categorical columns in one embedding "
        f"table ({found['embedding']:,} weights, not treated), {columns['sparse']} of which play the deprecated sparse "
        f"features; {columns['numeric']} numeric ones, and for Table 3 a follower count in units of {RAW_UNIT:g}, not "
        f"normalised. One pass is {STEPS} steps of {BATCH}. Adagrad begins with accumulators of 0.1; treatments leave "
        "its slots the gradients as they are.",
        "",
        *table(["model", "what the tasks share", "weights besides the embedding", "the paper's"], models),
        "",
        "Six tasks with one linear head each; the total loss is the plain sum, regressions on their raw scale:",
        "",
        *table(["task", "kind", "mean of the label", "standard deviation", "largest"], tasks),
    ]


def headline(found: dict[str, Any]) -> str:
    """How large it is."""
    largest = max(found["models"], key=lambda one: one["weights"])
    return (
        f"{found['rows']:,} interactions, six tasks, up to {largest['weights']:,} weights besides the embedding, where "
        "the paper's have up to 68 million."
    )
