"""Whose weights an export holds: laws of the comparison, and real trainings in every format that Keras writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_runs import DIGEST, KERNEL, KERNEL_NORM, Service, healthy
from hypothesis import given
from hypothesis import strategies as st

from lossguard.gate.findings import MAX_NORMS, PIECE, Scan, look, look_bfloat16
from lossguard.gate.scan import scan_artifact
from lossguard.wire.chunk import Chunk, ChunkId, decode, encode
from lossguard.wire.frame import Frames, Schema
from lossguard.wire.verdict import Check
from lossguard_service.gate import facts as known
from lossguard_service.gate.attribution import attribution_checks
from lossguard_service.gate.facts import Norm, Weights
from lossguard_service.gate.gather import Asked, Question, read_policy
from lossguard_service.gate.policy import DEFAULT, STRICT, Policy
from lossguard_service.gate.weights import weights_of
from lossguard_service.store.verdicts import StoredPolicy

POLICIES = {"default": DEFAULT, "strict": STRICT}


def judged(weights: Weights | None, norms: dict[str, Norm], policy: Policy = DEFAULT, **change: Any) -> Check:
    scan = known.Scan("savedmodel", len(norms), 100, {}, complete=True, norms=norms)
    (check,) = attribution_checks(policy, replace(healthy(), **{"weights": weights, "scan": scan, **change}))
    return check


norms = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=30)


@given(norms, st.lists(st.floats(0.1, 1e4), max_size=30), st.floats(-1, 1), st.randoms(use_true_random=False))
def test_an_honest_export_passes_whatever_else_is_in_it(
    layers: list[float], others: list[float], turn: float, random: Any
) -> None:
    """Every tensor lies within its layer's update, and there may be more of them, in any order."""
    weights = Weights({f"l{n}": (norm, 0.09 * norm) for n, norm in enumerate(layers)}, {})
    held = [norm * (1 + 0.09 * turn) for norm in layers] + others
    random.shuffle(held)
    check = judged(weights, {f"t{n}": Norm(norm, 10, 32) for n, norm in enumerate(held)}, STRICT)
    assert (check.status, check.observed) == ("pass", len(layers))


@given(norms, st.floats(2, 100))
def test_an_export_of_other_norms_is_blocked_under_every_policy(layers: list[float], scale: float) -> None:
    weights = Weights({}, {f"l{n}": norm for n, norm in enumerate(layers)})
    held = {f"t{n}": Norm(scale * max(layers) + n, 10, 32) for n in range(len(layers))}
    for policy in POLICIES.values():
        check = judged(weights, held, policy)
        assert check.status == "block"
        assert "averaged_weights" in check.explanation


def test_one_tensor_stands_for_one_layer() -> None:
    weights = Weights({}, dict.fromkeys(("a", "b", "c"), 5.0))
    held = {"one": Norm(5.0, 10, 32), "two": Norm(9.0, 10, 32), "three": Norm(9.0, 10, 32)}
    assert judged(weights, held).status == "block"
    assert judged(weights, {**held, "two": Norm(5.0, 10, 32)}).status == "pass"


def test_a_half_that_is_missing_is_named_and_passes() -> None:
    weights = Weights({}, {"body": 5.0, "head": 7.0})
    check = judged(weights, {"one": Norm(5.0, 10, 32), "two": Norm(1.0, 10, 32)})
    assert check.status == "pass"
    assert "1 of 2" in check.explanation
    assert "head" in check.explanation


def test_the_worst_layer_is_named_with_what_the_export_holds() -> None:
    weights = Weights({}, {"near": 5.0, "far": 70.0})
    check = judged(weights, {"one": Norm(6.0, 10, 32), "two": Norm(1.0, 10, 32)})
    assert (
        "Layer far had a norm of 69.9658 to 70.0342, and the nearest that the export holds is 6." in check.explanation
    )


@pytest.mark.parametrize(("bits", "share", "status"), [
    (32, 5e-4, "pass"), (32, 8e-4, "block"), (16, 5e-3, "pass"), (16, 3e-2, "block"), (64, 8e-4, "block"),
])  # fmt: skip
def test_rounding_is_allowed_for_by_the_bits_of_the_numbers(bits: int, share: float, status: str) -> None:
    for sign in (1, -1):
        check = judged(Weights({}, {"a": 5.0}), {"one": Norm(5.0 * (1 + sign * share), 10, bits)})
        assert check.status == status


WHOLE = {"kernel": Norm(KERNEL_NORM, KERNEL.size, 32)}
AT = Weights({"a": (3.0, 0.1)}, {})


@pytest.mark.parametrize(("weights", "held", "words"), [
    (None, WHOLE, "measured neither at step"),
    (Weights({}, {}), WHOLE, "full_every=1"),
    (AT, {}, "sent no norms"),
    (replace(AT, averaged=True), WHOLE, "averages its weights"),
    (replace(AT, parameters=1e6), WHOLE, "a part of the model, or a quantized one"),
    (replace(AT, before={"a": (3.0, 0.1), "b": (4.0, 0.1)}), WHOLE, "another form of it"),
    (Weights({"a": (3.0, 2.0)}, {}), WHOLE, "moved every layer so far"),
])  # fmt: skip
def test_what_cannot_be_compared_says_why_and_only_strict_wants_more(
    weights: Weights | None, held: dict[str, Norm], words: str
) -> None:
    check = judged(weights, held)
    assert (check.status, check.observed) == ("pass", None)
    assert "was not judged" in check.explanation
    assert words in check.explanation
    assert judged(weights, held, STRICT).status == "insufficient_data"


def test_questions_that_differ_in_a_norm_alone_are_two_questions() -> None:
    def asked(norm: float) -> Asked:
        scan = known.Scan("savedmodel", 1, 10, {}, complete=True, norms={"kernel": Norm(norm, 10, 32)})
        return Question("default", "ranker", 7, "sha256:", scan=scan).asked

    assert asked(1.0) == asked(1.0)
    assert asked(1.0) != asked(1.0000000000000002)


def test_an_incomplete_scan_is_not_compared() -> None:
    assert judged(AT, WHOLE, scan=None).status == "pass"
    assert judged(AT, WHOLE, STRICT, scan=None).status == "insufficient_data"


def test_a_policy_of_before_the_comparison_means_what_it_meant() -> None:
    rules = {key: value for key, value in replace(DEFAULT, name="mine").to_json().items() if "weights" not in key}
    policy = read_policy(StoredPolicy("mine", 1, rules | {"author": "ann"}, 1.0))
    assert attribution_checks(policy, healthy()) == ()
    assert Policy.from_json({"name": "new", "version": 1}).weights_compared


def frames(first: int, norms: list[float | None], update: float = 0.5, factor: float = 1.0) -> Frames:
    names = ("weight_norm", "update_norm", "clipping_factor")
    rows = [[[np.nan if norm is None else norm, update, factor]] for norm in norms]
    present = np.array([[norm is not None, norm is not None, True] for norm in norms])
    steps = np.arange(first, first + len(norms))
    return Frames.of(
        Schema(("loss",), ("a",), names), steps, np.ones((len(norms), 1)), np.array(rows), stats_present=present
    )


def test_only_the_frames_of_the_step_and_the_next_one_count() -> None:
    block = frames(10, [3.0, None, 4.0])
    assert weights_of([block], 10, {}) == Weights({"a": (3.0, 0.5 * 1.001)}, {})
    assert weights_of([block], 11, {}) == Weights({}, {"a": 4.0})
    assert weights_of([block], 12, {"parameters": 7}) == Weights({"a": (4.0, 0.5 * 1.001)}, {}, parameters=7.0)
    assert weights_of([block], 13, {}) is None
    assert weights_of([block, frames(13, [5.0])], 12, {}) == Weights({"a": (4.0, 0.5 * 1.001)}, {"a": 5.0})


def test_what_an_update_may_move_knows_factors_above_one_and_decay_and_nan_is_not_compared() -> None:
    assert weights_of([frames(1, [3.0], factor=0.1)], 1, {}) == Weights({"a": (3.0, 0.5 * 1.001)}, {})
    grown = weights_of([frames(1, [3.0], factor=4.0)], 1, {"optimizer": {"weight_decay": 0.1}})
    assert grown is not None
    assert grown.before["a"][1] == pytest.approx((2.0 + 0.3) * 1.001)
    assert weights_of([frames(1, [3.0], update=np.nan)], 1, {}) == Weights({}, {})
    assert weights_of([frames(1, [np.inf, np.nan])], 1, {}) == Weights({}, {})


@pytest.mark.parametrize("config", [
    {"optimizer": {"use_ema": True}}, {"optimizer": {"inner": [{"config": {"use_ema": True}}]}},
    {"averaged_weights": True},
])  # fmt: skip
def test_a_run_that_averages_its_weights_says_so(config: dict[str, Any]) -> None:
    found = weights_of([frames(1, [3.0])], 1, config)
    assert found is not None
    assert found.averaged
    assert not weights_of([frames(1, [3.0])], 1, {"optimizer": {"use_ema": False}}).averaged  # type: ignore[union-attr]


def test_an_agent_that_sends_no_norms_is_answered_as_before(service: Service) -> None:
    run = service.trainer("no-norms").train(192).run
    body = {"project": "default", "run": run, "step": 192, "artifact_digest": DIGEST,
            "scan": {"kind": "savedmodel", "tensors": 3, "values": 9, "nonfinite": {}, "complete": True}}  # fmt: skip
    verdict = service.client.post("/v1/verdicts", json=body).json()
    assert verdict["outcome"] == "pass"
    (said,) = [check["explanation"] for check in verdict["checks"] if check["name"] == "attribution"]
    assert "the agent sent no norms" in said
    body["scan"]["norms"] = {"kernel": {"norm": -1.0, "values": 9, "bits": 32}}  # type: ignore[index]
    refused = service.client.post("/v1/verdicts", json=body)
    assert (refused.status_code, "norm" in refused.text) == (422, True)


@pytest.mark.parametrize("size", [0, 1, 5, PIECE - 1, PIECE, 3 * PIECE + 7])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_squares_are_summed_as_in_float64(size: int, dtype: type[Any]) -> None:
    for values in (np.random.default_rng(size).normal(size=size).astype(dtype), np.full(size, 0.1, dtype)):
        exact = float(np.square(values.astype(np.float64)).sum())
        bad, squares = look(values)
        assert bad == 0
        assert squares == pytest.approx(exact, rel=2e-5)
    assert look(np.full(10, 3e38, np.float32))[1] == pytest.approx(10 * 9e76, rel=1e-6)
    bits = (np.full(9, 1.5, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    assert look_bfloat16(bits) == (0, 9 * 2.25)


def test_more_tensors_than_the_service_takes_have_no_norms() -> None:
    scan = Scan("savedmodel")
    for n in range(MAX_NORMS + 5):
        scan.found(f"t{n}", 1, 0, 1.0)
        if n == MAX_NORMS - 1:
            assert len(scan.to_json()["norms"]) == MAX_NORMS
    assert scan.to_json()["norms"] == {}


class Kept:
    """A recorder that keeps what it gets; calling it opens it."""

    def __init__(self) -> None:
        self.blocks: list[Frames] = []
        self.config: dict[str, Any] = {}

    def __call__(self, *_: Any, config: dict[str, Any], **__: Any) -> "Kept":
        self.config = config
        return self

    def record(self, block: Frames) -> bool:
        # As the service reads it: chunks round the stats.
        chunk = Chunk(ChunkId("default", "r", "a" * 32, len(self.blocks)), block, {}, ())
        self.blocks.append(decode(encode(chunk)).frames)
        return True

    def event(self, event: Any) -> bool:
        return True

    def drop(self, reason: str, count: int) -> None: ...

    def seal(self) -> None: ...

    def close(self, reason: str = "finished", timeout_seconds: float = 30.0, *, skipped_steps: int = 0) -> None: ...


STEPS = 40
WEIGHTS = "model.weights.h5"
FORMATS = ("saved", "model.keras", WEIGHTS)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Kept, Path]]:
    """Trainings of one architecture: what was reported of each, and where its exports are."""
    pytest.importorskip("tensorflow", reason="TensorFlow is missing")
    import keras

    from lossguard.keras import Watch

    found = {}
    optimizers = {
        "mine": keras.optimizers.Adagrad(0.1),
        "other": keras.optimizers.AdamW(0.003, weight_decay=0.05),
        "average": keras.optimizers.Adagrad(0.3, use_ema=True, ema_momentum=0.99),
    }
    for seed, (name, optimizer) in enumerate(optimizers.items()):
        start = "lecun_uniform" if name == "other" else "glorot_uniform"
        folder = tmp_path_factory.mktemp(name)
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([
            keras.Input((6,)), keras.layers.Embedding(50, 4), keras.layers.Flatten(),
            keras.layers.Dense(16, "relu", kernel_initializer=start), keras.layers.Dense(1),
        ])  # fmt: skip
        features = np.random.default_rng(0).integers(0, 50, (16 * STEPS, 6))
        labels = (features.sum(1, keepdims=True) > 150).astype("float32")
        model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
        sink = Kept()
        watch = Watch("default", name, journal=folder, full_every=1, budget=None, open_recorder=sink)
        model.fit(features, labels, batch_size=16, verbose=0, callbacks=[watch])
        if name == "mine":
            model.export(str(folder / "saved"), verbose=False)
            model.save(folder / "model.keras")
        model.save_weights(folder / WEIGHTS)
        found[name] = (sink, folder)
    return found


def asked(reported: Kept, export: Path, step: int = STEPS, policy: Policy = STRICT) -> Check:
    """What the check says of an export, by what the agent sends and what was reported."""
    sent = scan_artifact(export).to_json()
    held = {name: Norm(**norm) for name, norm in sent["norms"].items()}
    scan = known.Scan(sent["kind"], sent["tensors"], sent["values"], {}, sent["complete"], norms=held)
    weights = weights_of(reported.blocks, step, reported.config)
    (check,) = attribution_checks(policy, replace(healthy(), step=step, weights=weights, scan=scan))
    return check


@pytest.mark.tensorflow
def test_real_exports_in_every_format_are_found_to_be_the_runs(trainings: dict[str, tuple[Kept, Path]]) -> None:
    (mine, folder), (other, other_folder) = trainings["mine"], trainings["other"]
    assert len(scan_artifact(folder / "saved").norms) == 5  # Keras saves every variable twice
    for reported, export in [*((mine, folder / name) for name in FORMATS), (other, other_folder / WEIGHTS)]:
        check = asked(reported, export)
        assert check.status == "pass", (export, check.explanation)
        assert "Not found" not in check.explanation
        assert check.observed >= 2


@pytest.mark.tensorflow
def test_the_same_exports_as_another_runs_or_another_steps_are_blocked(
    trainings: dict[str, tuple[Kept, Path]],
) -> None:
    (mine, folder), (other, other_folder) = trainings["mine"], trainings["other"]
    for policy in POLICIES.values():
        for name in FORMATS:
            assert asked(other, folder / name, policy=policy).status == "block"
            assert asked(mine, folder / name, 3, policy).status == "block"
        assert asked(mine, other_folder / WEIGHTS, policy=policy).status == "block"


@pytest.mark.tensorflow
def test_real_averages_of_weights_are_not_judged(trainings: dict[str, tuple[Kept, Path]]) -> None:
    reported, folder = trainings["average"]
    check = asked(reported, folder / WEIGHTS, policy=DEFAULT)
    assert (check.status, "averages its weights" in check.explanation) == ("pass", True)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Kept, Path]:
    """A training of 100 steps with 7 full frames, saved by itself at steps 40, 50 and 100."""
    pytest.importorskip("tensorflow", reason="TensorFlow is missing")
    import keras

    from lossguard.keras import Watch

    folder, sink = tmp_path_factory.mktemp("sparse"), Kept()
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    features = np.random.default_rng(0).normal(size=(400, 6))
    cadence: Any = {"full_every": 16, "fetch_steps": 10, "fetch_seconds": 3600.0, "budget": None}
    watch = Watch("default", "r", journal=folder, open_recorder=sink, **cadence)

    def save(batch: int, logs: Any = None) -> None:
        path = folder / f"40{WEIGHTS}"
        if batch == 39 and not path.exists():
            model.save_weights(path)
            watch.checkpoint(path)

    callbacks = [
        keras.callbacks.ModelCheckpoint(folder / ("{epoch}" + WEIGHTS), save_weights_only=True),
        watch,
        keras.callbacks.LambdaCallback(on_train_batch_end=save),
    ]
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(features, features.sum(1, keepdims=True), batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
    return sink, folder


@pytest.mark.tensorflow
@pytest.mark.parametrize(("export", "step"), [("2", 100), ("1", 50), ("40", 40)])
def test_an_export_from_between_two_full_frames_is_compared_where_training_ended_an_epoch_ended_or_a_save_was_said(
    sparse: tuple[Kept, Path], export: str, step: int
) -> None:
    reported, folder = sparse
    for policy in POLICIES.values():
        check = asked(reported, folder / f"{export}{WEIGHTS}", step, policy)
        assert (check.status, check.observed) == ("pass", 6), check.explanation


@pytest.mark.tensorflow
def test_there_another_steps_export_is_blocked_and_elsewhere_it_is_not_judged(sparse: tuple[Kept, Path]) -> None:
    reported, folder = sparse
    for export, step in (("1", 100), ("2", 50), ("2", 40)):
        assert asked(reported, folder / f"{export}{WEIGHTS}", step).status == "block"
    assert asked(reported, folder / f"2{WEIGHTS}", 99).status == "insufficient_data"
