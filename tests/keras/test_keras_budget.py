"""What watching costs is said and held below a budget, without losing the check for values that are not finite."""

import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from conftest import KeepPace, MemorySink
from lossguard.keras import Watch
from lossguard.keras import price as clock
from lossguard.keras.beside import Beside
from lossguard.keras.budget import COST, Budget, StepPrice, cpu_of_threads
from lossguard.keras.optimizer import Hook
from lossguard.keras.price import BEYOND_CACHE, LARGE, SMALL, Clock
from lossguard.keras.ring import frames_of
from lossguard.wire import stats
from lossguard.wire.frame import Frames, Schema


class Training:
    """Blocks of 64 steps of 10 ms, their threads behind and their budget."""

    def __init__(self, share: float, price: StepPrice, behind: float = 0.0) -> None:
        self.now = 1000.0
        self.cpu = 0.0
        self.behind = behind
        self.budget = Budget(share, 16, self.now, behind=lambda: self.cpu, clock=lambda: self.now)
        self.budget.price = price
        self.step = 0

    def block(self, pause: float = 0.0, host: float = 0.0) -> float:
        """The cost that the budget says of 64 steps."""
        with self.budget.training_thread():
            self.now += host
        self.now += 64 * 0.01 - host + pause
        self.cpu += self.behind
        steps = np.arange(self.step, self.step + 64)
        self.step += 64
        present = np.ones((64, len(stats.STAT_NAMES)), np.bool_)
        present[:, stats.STAT_NAMES.index(stats.WEIGHT_NORM)] = steps % (16 * self.budget.stretch) == 0
        schema = Schema((), ("dense/kernel",), stats.STAT_NAMES)
        times = np.full(64, self.now)
        frames = Frames.of(schema, steps + 1, np.empty((64, 0)), times=times, stats_present=present)
        return self.budget.judge(frames)[COST]


def test_the_cost_is_the_price_of_what_was_measured_plus_the_threads_over_the_time() -> None:
    training = Training(0.99, StepPrice(cheap=1e-4, rest=8e-4), behind=0.0064)
    assert training.block(host=0.0032) == pytest.approx(0.01 + 8e-4 / 16 / 0.01 + 0.005 + 0.01)
    assert training.budget.stretch == 1


def test_above_the_budget_the_full_set_is_measured_as_rarely_as_the_budget_needs() -> None:
    # 0.5 % whatever happens, and 3.9 % over the stretch.
    training = Training(0.01, StepPrice(cheap=5e-5, rest=6.24e-3))
    costs = [training.block() for _ in range(8)]
    assert training.budget.stretch == 8
    assert costs[0] == pytest.approx(0.044)
    assert np.mean(costs[-2:]) == pytest.approx(0.005 + 0.039 / 8)


def test_what_cannot_be_afforded_at_all_is_measured_a_sixteenth_as_often_and_not_less() -> None:
    training = Training(0.01, StepPrice(cheap=1e-3, rest=1e-2))
    for _ in range(8):
        training.block()
    assert training.budget.stretch == 16


def test_a_pause_changes_nothing_and_a_cheaper_time_brings_the_full_set_back() -> None:
    training = Training(0.01, StepPrice(cheap=5e-5, rest=6.24e-3))
    for _ in range(8):
        training.block()
    training.block(pause=60.0)
    assert training.budget.stretch == 8
    training.budget.price = StepPrice(cheap=5e-5, rest=1e-4)
    for _ in range(8):
        training.block()
    assert training.budget.stretch == 1


def hooked(full_every: int, stretch: int, broken: int | None = None, jump: int | None = None) -> Frames:
    """64 steps of one weight, of which one may have an infinite gradient or a large one."""
    weight = keras.Variable(np.ones(3, "float32"), name="w")
    optimizer = keras.optimizers.SGD(0.01)
    hook = Hook(optimizer, [], lambda eta: {"learning_rate": eta}, rows=128, full_every=full_every)
    for step in range(64):
        scale = np.inf if step == broken else 100.0 if step == jump else 1.0
        optimizer.apply([keras.ops.convert_to_tensor(np.full(3, 0.1 * scale, "float32"))], [weight])
        hook.stretch(stretch)
        if step == broken:
            weight.assign(np.ones(3, "float32"))
    assert hook.ring is not None
    return frames_of(hook.ring.layout, 1, hook.ring.snapshot(1, hook.step).numpy(), np.zeros(hook.step))


def full_steps(frames: Frames) -> list[int]:
    return np.flatnonzero(frames.stats_present[:, stats.STAT_NAMES.index(stats.WEIGHT_NORM)]).tolist()


def test_stretched_or_not_the_gradient_norms_are_in_every_step_and_one_that_is_not_finite_is_full_at_once() -> None:
    for stretch, due in ((1, [0, 4, 8, 12, 16, 20, 21, 24]), (8, [0, 21, 32])):
        frames = hooked(4, stretch, broken=21)
        assert full_steps(frames)[: len(due)] == due
        norms = frames.stats[:, 0, stats.STAT_NAMES.index(stats.GRADIENT_NORM)]
        assert frames.stats_present[:, stats.STAT_NAMES.index(stats.GRADIENT_NORM)].all()
        assert np.flatnonzero(~np.isfinite(norms)).tolist() == [21]
        assert frames.stats[21, 0, stats.STAT_NAMES.index(stats.NONFINITE_COUNT)] == 3


def test_a_burst_behind_a_jump_is_shorter_where_the_cadence_is_longer() -> None:
    assert full_steps(hooked(16, 16, jump=10)) == [0, *range(10, 14)]
    assert full_steps(hooked(16, 4, jump=10)) == [0, *range(10, 26)]


def trained(mine: Watch, sinks: list[MemorySink], **options: Any) -> None:
    # The same example again and again: no jump makes a step full that was not due.
    x, y = np.ones((80, 3), "float32"), np.ones((80, 1), "float32")
    x[71] = np.inf
    # Without an embedding: of a sparse gradient that is NaN bare Keras's Adagrad raises.
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="last")])
    model.compile(mine.wrap(keras.optimizers.Adagrad(0.1)), loss="mse", **options)
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=[mine, KeepPace(mine, sinks)])


def test_a_watch_that_costs_too_much_throttles_itself(
    watch: Callable[..., Watch], sinks: list[MemorySink], monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = Clock(False)
    dear.begun = dear.ready = True
    monkeypatch.setattr(dear, "price", lambda entries: StepPrice(0.0, 1e3))
    monkeypatch.setattr("lossguard.keras.attempt.clock_of", lambda jit: dear)
    mine = watch(budget=0.01, full_every=2, fetch_steps=8, fetch_seconds=3600.0)
    trained(mine, sinks)
    (sink,) = sinks
    cost = sink.scalar(COST)[sink.present(COST)]
    assert sink.options["config"]["budget"] == 0.01
    assert len(cost) >= 8
    assert cost.max() > 1
    full = np.flatnonzero(sink.measured(stats.WEIGHT_NORM))
    # Every second step at first, every 32nd at last; and the one that is not finite, which leaves NaN behind it.
    assert full[:4].tolist() == [0, 2, 4, 6]
    assert 71 in full
    assert np.diff(full[full < 71]).max() >= 16
    assert sink.measured(stats.GRADIENT_NORM).all()
    assert sink.stat(sink.blocks[0].schema.layers[0], stats.NONFINITE_COUNT)[71] > 0


def test_two_replicas_stretch_alike() -> None:
    import tensorflow as tf

    # Without collectives: each strategy of a process numbers them from the same one on, whatever shape they had before.
    devices = ["CPU:0", "CPU:1"]
    strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        weight = keras.Variable(np.ones(3, "float32"), name="w")
        optimizer = keras.optimizers.SGD(0.01)
        hook = Hook(optimizer, [], lambda eta: {"learning_rate": eta}, rows=64, full_every=2)
        optimizer.build([weight])

    @tf.function
    def step() -> None:
        strategy.run(lambda: optimizer.apply([tf.fill([3], 0.1)], [weight]))

    step()
    hook.stretch(8)
    for _ in range(19):
        step()
    assert hook.ring is not None
    for copy in strategy.experimental_local_results(hook.ring.variable):
        rows = copy.numpy()[:20]
        assert np.flatnonzero(rows[:, 1]).tolist() == [0, 16]  # behind the step


def test_a_value_from_between_two_steps_stands_at_its_step_and_is_absent_elsewhere() -> None:
    sink = MemorySink(None, "ads", "ranker")
    beside = Beside(sink, ("probe", "cost"), [lambda frames: {"cost": float(len(frames))}])
    block = Frames.of(Schema(("loss",)), range(1, 5), np.zeros((4, 1)))
    beside.put(2, {"probe": float("nan")})
    beside.put(9, {"probe": 7.0})
    assert beside.record(block)
    assert sink.blocks[0].schema.scalars == ("loss", "probe", "cost")
    assert sink.present("probe").tolist() == [False, True, False, False]
    assert sink.scalar("cost")[3] == 4.0
    beside.record(Frames.of(Schema(("loss",)), range(5, 10), np.zeros((5, 1))))
    assert sink.scalar("probe")[sink.present("probe")].tolist()[1:] == [7.0]


@pytest.mark.parametrize("jit", [False, True])
def test_more_entries_cost_more_and_the_rest_costs_more_than_the_cheap_set(jit: bool) -> None:
    def tells_them_apart() -> bool:
        mine = Clock(jit)
        mine.prepare()
        small, large = mine.price([10]), mine.price([10_000_000])
        return 0 <= small.cheap < large.cheap < large.rest

    # Some ten microseconds are clocked, which a busy machine may hide now and then, but not time after time.
    assert any(tells_them_apart() for _ in range(30))


def test_a_call_is_no_part_of_the_price_and_an_entry_of_a_large_layer_costs_what_it_does_out_of_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On TensorFlow a call takes some hundred us, and the cheap set two a layer."""
    sizes = set()

    def least(function: Any, given: Any) -> float:
        layers, entries = given.shape[0] // 3, int(np.prod(given.shape)) // 3
        sizes.add((layers, entries))
        return 100.0 + (0.0 if function is clock._nothing else 2.0 * layers + 1e-6 * entries)

    monkeypatch.setattr(clock, "_least", least)
    monkeypatch.setattr(clock.backend, "compiled", lambda function, jit: function)
    mine = Clock(False)
    mine.prepare()
    assert mine.ready
    for entries, weighed in ([LARGE, 7], LARGE + 7), ([10**9, 7], BEYOND_CACHE * 10**9 + 7):
        found = mine.price(entries)
        assert found.cheap == found.rest == pytest.approx(2 * 2.0 + 1e-6 * weighed, rel=1e-4)
    assert sizes == {(SMALL, 4 * SMALL), (1, LARGE)}


def test_the_thread_behind_prepares_the_price_once_and_the_end_of_a_training_asks_for_none(
    watch: Callable[..., Watch], sinks: list[MemorySink], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, threads = Clock(False), []
    prepare = mine.prepare
    monkeypatch.setattr("lossguard.keras.attempt.clock_of", lambda jit: mine)
    monkeypatch.setattr(mine, "prepare", lambda: (threads.append(threading.current_thread().name), prepare()))
    weight = keras.Variable(np.ones(3, "float32"), name="w")
    for steps in (3, 64):
        one = watch(budget=0.5, fetch_steps=8, fetch_seconds=3600.0)
        optimizer = one.wrap(keras.optimizers.SGD(0.01))
        with one:
            for _ in range(steps):
                optimizer.apply([keras.ops.ones(3)], [weight])
                one.after_step()
                KeepPace(one, sinks).on_train_batch_end(0)
        one.detach()
        assert threads == ([] if steps == 3 else ["lossguard-fetch"])
        assert sinks[-1].present(COST).any() == (steps == 64)


def test_the_cpu_of_this_packages_threads_is_counted_and_no_others() -> None:
    done, go_on = threading.Event(), threading.Event()

    def work(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        done.set()
        go_on.wait()

    before = cpu_of_threads()
    mine = threading.Thread(target=work, args=(0.05,), name="lossguard-test")
    other = threading.Thread(target=work, args=(0.4,), name="other")
    for thread in (mine, other):
        thread.start()
        assert done.wait(60)
        done.clear()
    taken = cpu_of_threads() - before
    go_on.set()
    for thread in (mine, other):
        thread.join()
    # A little more than 0.05, were it for a service that another test of this process keeps up; the other is not in it.
    assert 0.04 < taken < 0.3


@pytest.mark.parametrize("budget", [0, 1, -0.1, True, "1 %"])
def test_a_budget_is_a_share(budget: Any) -> None:
    with pytest.raises(ValueError, match="budget: must be a share"):
        Watch("ads", "ranker", budget=budget)
