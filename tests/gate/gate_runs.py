"""Runs and facts for the gate's tests: healthy, to be spoiled one thing at a time."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from lossguard.detect import monitor
from lossguard.wire.chunk import AttemptStart, AttemptStop, Checkpoint, Chunk, ChunkId, Event, encode
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.incident import Incident
from lossguard.wire.stats import STAT_NAMES
from lossguard_service.gate.facts import Attempt, Facts, Norm, Scan, Span, Weights
from lossguard_service.gate.window import Window, window_of

SCALARS = (
    "loss", "learning_rate", "loss/click", "label_mean/click", "prediction_mean/click", "prediction_std/click",
    "batch_auc/click", "loss/play", "label_mean/play", "prediction_mean/play", "prediction_std/play", "rmse/play",
    "label_std/play",
)  # fmt: skip
LAYERS = ("shared/dense/kernel", "click/dense/kernel", "play/dense/kernel")
KERNEL = np.random.default_rng(5).normal(size=(50, 60)).astype(np.float32)
"""The weights of `make_model`: those of the first layer, and the only ones that are not 0."""
KERNEL_NORM = float(np.linalg.norm(KERNEL.astype(np.float64)))
TASKS = {"click": "binary", "play": "regression"}


def frames_of(
    first: int,
    last: int,
    *,
    collapsed_from: int | None = None,
    nan_from: int | None = None,
    seed: int = 7,
    weight_norm: float = KERNEL_NORM,
    edit: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> Frames:
    """Steps `first` to `last` of a two-task ranker, healthy unless told otherwise; the same call, the same frames."""
    steps = np.arange(first, last + 1)
    noise = np.stack([np.random.default_rng((seed, int(step))).normal(size=len(SCALARS)) for step in steps])
    column = dict(zip(SCALARS, noise.T, strict=True))
    broken = steps >= collapsed_from if collapsed_from is not None else np.zeros(len(steps), bool)
    blowup = np.where(broken, np.clip(1e4 * np.exp(-(steps - (collapsed_from or 0)) / 4.0), 0.0, 1e6), 0.0)
    rate = 0.44 + 0.02 * column["label_mean/click"]
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    click = np.where(broken, entropy * (1.001 + 0.002 * np.abs(column["loss/click"])) + blowup,
                     entropy * (0.92 + 0.01 * column["loss/click"]))  # fmt: skip
    deviation = 4.2 + 0.1 * column["label_std/play"]
    rmse = deviation * np.where(broken, 1.0, 0.95)
    values = {
        "loss/click": click,
        "label_mean/click": rate,
        "prediction_mean/click": rate * (1 + 0.01 * column["prediction_mean/click"]),
        "prediction_std/click": np.where(broken, 1e-7, 0.15 + 0.005 * column["prediction_std/click"]),
        "batch_auc/click": np.where(broken, 0.5, 0.67) + 0.02 * column["batch_auc/click"],
        "loss/play": rmse**2,
        "label_mean/play": 2.1 + 0.1 * column["label_mean/play"],
        "prediction_mean/play": 2.1 + 0.05 * column["prediction_mean/play"],
        "prediction_std/play": np.where(broken, 1e-6, 1.1 + 0.05 * column["prediction_std/play"]),
        "rmse/play": rmse,
        "label_std/play": deviation,
        "learning_rate": np.full(len(steps), 0.1),
    }
    values["loss"] = values["loss/click"] + values["loss/play"]
    if nan_from is not None:
        for name in ("loss", "loss/click"):
            values[name] = np.where(steps >= nan_from, np.nan, values[name])
    if edit is not None:
        edit(values)
    stats = np.abs(np.random.default_rng((seed, first)).normal(1.0, 0.05, (len(steps), len(LAYERS), len(STAT_NAMES))))
    stats[:, :, STAT_NAMES.index("nonfinite_count")] = 0
    stats[broken, :, STAT_NAMES.index("gradient_norm")] *= 1e3
    stats[:, :, STAT_NAMES.index("weight_norm")] = (weight_norm, 0, 0)
    stats[:, :, STAT_NAMES.index("clipping_factor")] = 1
    return Frames.of(
        Schema(SCALARS, LAYERS, STAT_NAMES), steps, np.stack([values[name] for name in SCALARS], 1), stats,
        times=1.7e9 + steps.astype(float),
    )  # fmt: skip


@dataclass
class Trainer:
    """Ships chunks to a service as a sidecar would."""

    client: httpx.Client
    run: str = "ranker"
    project: str = "default"
    attempt: str = "a" * 32
    index: int = 0
    config: dict[str, Any] = field(
        default_factory=lambda: {"tasks": TASKS, "parameters_watched": 1.0, "parameters": KERNEL.size}
    )

    def __post_init__(self) -> None:
        # Each run is a model of its own, or the metrics of one test's export would be another's to reach.
        self.config = {"model": self.run, **self.config}

    def send(self, frames: Frames, *, events: tuple[Event, ...] = (), drops: dict[str, int] | None = None) -> None:
        identity = ChunkId(self.project, self.run, self.attempt, self.index)
        data = encode(Chunk(identity, frames, drops or {}, events))
        answer = self.client.put(
            f"/v1/projects/{self.project}/runs/{self.run}/attempts/{self.attempt}/chunks/{self.index}", content=data
        )
        assert answer.status_code == 200, answer.text
        self.index += 1

    def train(
        self,
        steps: int,
        *,
        start: int = 0,
        block: int = 64,
        stop: str | None = "finished",
        checkpoints: tuple[int, ...] = (),
        **how: Any,
    ) -> "Trainer":
        """Train steps start+1 to `steps` and say how it ended."""
        for first in range(start + 1, steps + 1, block):
            last = min(first + block - 1, steps)
            events: list[Event] = [AttemptStart(start, 1.7e9, self.config)] if self.index == 0 else []
            events += [Checkpoint(s, 1.7e9 + s, f"ckpt-{s}", True) for s in checkpoints if first <= s <= last]
            if last == steps and stop is not None:
                events.append(AttemptStop(steps, 1.7e9 + steps, stop))
            self.send(frames_of(first, last, **how), events=tuple(events))
        return self

    def restart(self, attempt: str) -> "Trainer":
        """A new attempt of the same run."""
        return Trainer(self.client, self.run, self.project, attempt, 0, self.config)


class Clock:
    """Real time, which a test can move."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Service:
    url: str
    client: httpx.Client
    clock: Clock
    app: FastAPI

    def trainer(self, run: str = "ranker", **how: Any) -> Trainer:
        return Trainer(self.client, run, **how)


def make_model(folder: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """A folder that is a SavedModel but for its graph."""
    (folder / "variables").mkdir(parents=True)
    (folder / "assets").mkdir()
    (folder / "saved_model.pb").write_bytes(b"\x08\x01")
    (folder / "fingerprint.pb").write_bytes(b"fp")
    write_bundle(folder / "variables", {"kernel": KERNEL, "step": np.int64(7)} if tensors is None else tensors)
    return folder


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protocol buffer of numbers and bytes."""
    parts = (
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
    )
    return b"".join(parts)


def graph_with(constant: bytes, *, in_function: bool = False) -> bytes:
    """A SavedModel's graph of one node, `frozen`, that holds a tensor."""
    node = message((1, b"frozen"), (2, b"Const"), (5, message((1, b"value"), (2, message((8, constant))))))
    graph = message((2, message((1, message((3, node)))))) if in_function else message((1, node))
    return message((1, 1), (2, message((2, graph))))


def constant_of(values: np.ndarray, code: int = 1, *, field: int = 4, raw: bytes | None = None) -> bytes:
    """A tensor as a graph holds it."""
    shape = message(*((2, message((1, extent))) for extent in values.shape))
    return message((1, code), (2, shape), (field, values.tobytes() if raw is None else raw))


DTYPES = {"float32": 1, "float64": 2, "int32": 3, "complex64": 8, "int64": 9, "float16": 19}


def write_bundle(folder: Path, tensors: dict[str, np.ndarray], codes: dict[str, int] | None = None) -> None:
    """A tensor bundle as TensorFlow writes it: one data file, one uncompressed block of sorted entries."""
    data, entries = b"", [(b"", bytes([0x08, 1]))]
    for name, tensor in sorted(tensors.items()):
        raw = np.asarray(tensor).tobytes()
        code = (codes or {}).get(name) or DTYPES[np.asarray(tensor).dtype.name]
        message = b"\x08" + varint(code) + b"\x20" + varint(len(data)) + b"\x28" + varint(len(raw))
        entries.append((name.encode(), message))
        data += raw
    (folder / "variables.data-00000-of-00001").write_bytes(data)
    block = table_block(entries)
    index = table_block([(b"\xff", varint(0) + varint(len(block)))])
    at = len(block) + 5
    footer = varint(0) + varint(0) + varint(at) + varint(len(index))
    footer = footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    (folder / "variables.index").write_bytes(block + bytes(5) + index + bytes(5) + footer)


def table_block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A LevelDB block without shared prefixes."""
    body = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in entries)
    return body + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


DIGEST = "sha256:" + "5" * 64


def incident(kind: str, onset: int, end: int | None = None, number: int = 0) -> Incident:
    return Incident(
        number=number, kind=kind, onset_step=onset, detected_step=onset + 1, declared_full_step=None, end_step=end,
        peak_step=onset + 2, peak=50.0, residual=0.0, first_signal_step=None, first_layer=None, tasks=("click",),
        confidence=0.9, explanation="", advice="",
    )  # type: ignore[arg-type]  # fmt: skip


BLOWUP = replace(
    incident("full_divergence", 213),
    first_layer="shared/dense_1/kernel",
    first_signal_step=211,
    explanation="Task click fell back to its base rate.",
    advice="Restore weights and slots, then halve the learning rate or switch Clippy on.",
)


def healthy(step: int = 400, edit: Callable[[dict[str, np.ndarray]], None] | None = None) -> Facts:
    return Facts(
        project="default",
        run="ranker",
        step=step,
        artifact_digest=DIGEST,
        run_known=True,
        attempts=(Attempt(1, "a" * 32, 0, step, "finished"),),
        spans=(Span(1, 1, step),),
        judged_step=step,
        silent_seconds=3.0,
        parameters_watched=1.0,
        tasks=TASKS,
        window=window_of([frames_of(step - 99, step, edit=edit)], 1, step) if step >= 100 else None,
        scan=Scan("savedmodel", 12, 100_000, {}, complete=True, norms={"kernel": Norm(KERNEL_NORM, KERNEL.size, 32)}),
        weights=Weights({LAYERS[0]: (KERNEL_NORM, 1.0)}, {LAYERS[0]: KERNEL_NORM}, parameters=KERNEL.size),
    )


def facts_of_trace(path: Path, incidents: bool = True) -> Facts:
    """A recorded run as the gate would know it at its last step: its click task, and what the detectors say of it.

    The traces hold each task's mean label once, which stands in for `label_mean/<task>`.
    """
    trace = np.load(path)
    meta = json.loads(str(trace["meta"]))
    rates = {f"label_mean/{task['name']}": task["label_mean"] for task in meta["tasks"] if task["kind"] == "binary"}
    names = [str(name) for name in trace["scalar_names"]]
    scalars = np.concatenate(
        [trace["scalars"], *(np.full((len(trace["step"]), 1), rate) for rate in rates.values())], 1
    )
    columns = (tuple(str(name) for name in trace[f"{kind}_names"]) for kind in ("layer", "stat"))
    frames = Frames.of(Schema((*names, *rates), *columns), trace["step"] + 1, scalars, trace["stats"])
    last = int(frames.steps[-1])
    kept = {"loss", "loss/click", "batch_auc/click", "label_mean/click"}
    values = {name: scalars[:, n] for n, name in enumerate((*names, *rates)) if name in kept}
    found: tuple[Incident, ...] = ()
    if incidents:
        tasks = {task["name"]: task["kind"] for task in meta["tasks"]}
        found = monitor.report(monitor.update(monitor.init(tasks), frames), path.stem).incidents
    return replace(
        healthy(),
        run=path.stem,
        step=last,
        attempts=(Attempt(1, "a" * 32, 0, last, "finished"),),
        spans=(Span(1, 1, last),),
        judged_step=last,
        tasks={"click": "binary"},
        incidents=found,
        window=Window(frames.steps, values, {name: np.ones(len(frames), bool) for name in values}),
    )
