"""Backtest and compare: what one's own runs say about the detectors, and repeated trials about a configuration."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lossguard.cli.main import app
from lossguard.detect import monitor
from lossguard.trace import compare as module
from lossguard.trace.backtest import GRID, Trial, choose, trial
from lossguard.trace.compare import compare, parting
from lossguard.trace.npz import write
from lossguard.trace.replay import replay
from lossguard.trace.trace import Trace
from lossguard.wire.frame import Frames, Schema

runner = CliRunner()


def run(name: str, seed: int, jump: float = 0.0, noise: float = 0.02) -> Trace:
    rng = np.random.default_rng(seed)
    values = 2 + 2 * np.exp(-np.arange(400) / 60) + noise * rng.standard_t(4, 400)
    values[200:] += jump
    return Trace(name, (Frames.of(Schema(("loss",)), np.arange(1, 401), values[:, None]),))


def test_more_caution_means_fewer_alarms_and_the_most_sensitive_within_the_budget_is_chosen() -> None:
    healthy = [run(f"h{i}", i, noise=0.05) for i in range(6)]
    trials = [trial(caution, healthy, [run("d", 9, 1.5)]) for caution in (0.2, 0.5, 1.0, 3.0)]
    rates = [one.rate for one in trials]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 1
    chosen = choose(trials, 1.0)
    assert chosen is not None
    assert chosen.rate <= 1
    assert trials[2].found == 1


def test_no_setting_within_the_budget_is_said() -> None:
    assert choose([Trial(1.0, 9, 90.0, 0, 0, ())], 1.0) is None


def test_caution_survives_a_restart_and_must_be_positive() -> None:
    state = monitor.new_attempt(monitor.init(caution=2.0), 5)
    assert state.caution == 2.0
    with pytest.raises(ValueError, match="caution"):
        monitor.init(caution=0.0)


def test_equal_runs_agree_and_others_part_at_their_first_difference() -> None:
    one, other = run("a", 1), run("b", 1)
    assert parting(one, other) is None
    other.attempts[0].scalars[37, 0] += 1e-12
    assert parting(one, other) == (38, "loss")


def test_trials_have_a_spread_and_a_divergence_ratio_with_its_interval() -> None:
    result = compare([run("a", 1), run("b", 2), run("c", 3, 1.5)])
    assert result.diverged == ("c",)
    assert result.ratio[0] < 1 / 3 < result.ratio[1]
    (spread,) = result.spreads
    assert spread.trials == 3
    assert spread.mean - spread.half < np.mean([2, 2, 3.5]) < spread.mean + spread.half
    assert doctest.testmod(module).failed == 0


def test_both_commands_answer(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    for i in range(2):
        write(good / f"h{i}.npz", run("h", i).attempts[0])
        write(bad / f"d{i}.npz", run("d", i, 1.5).attempts[0])
    result = runner.invoke(app, ["backtest", str(good), "--diverged", str(bad), "--budget", "1"])
    assert result.exit_code == 0, result.output
    assert "--caution" in result.stdout
    result = runner.invoke(app, ["compare", *map(str, sorted(bad.iterdir()))])
    assert result.exit_code == 0, result.output
    assert "diverged: 2 of 2" in result.stdout
    assert "parts at step 1" in result.stdout
    result = runner.invoke(app, ["backtest", str(good), "--diverged", str(bad), "--format", "json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [one["caution"] for one in document["trials"]] == list(GRID)
    assert document["caution"] in GRID
    assert document["trials"][0]["diverged"] == 2
    result = runner.invoke(app, ["compare", "--format", "json", *map(str, sorted(bad.iterdir()))])
    document = json.loads(result.stdout)
    assert (document["trials"], document["divergence_ratio"]["value"], len(document["diverged"])) == (2, 1.0, 2)
    assert document["parted"] == {"d1": {"step": 1, "scalar": "loss"}}
    assert document["final"][0]["name"] == "loss"
    one = json.loads(runner.invoke(app, ["compare", "--format", "json", str(bad / "d0.npz")]).stdout)
    assert one["final"][0]["half"] == "NaN"
    assert runner.invoke(app, ["compare", "--format", "xml", str(bad / "d0.npz")]).exit_code == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert runner.invoke(app, ["backtest", str(empty)]).exit_code == 2


def test_replay_takes_a_rule_by_its_name() -> None:
    report = replay(run("a", 1), rules=[_Always()])
    assert report.incidents[-1].explanation == "Always."
    result = runner.invoke(app, ["replay", "--rule", "no.such:thing", "x.csv"])
    assert result.exit_code == 2
    assert "package.module:object" in result.output


class _Always:
    def init(self) -> None:
        return None

    def update(self, state: None, frames: Frames) -> tuple[None, tuple[object, ...]]:
        from lossguard.detect.rules import Finding

        step = int(frames.steps[0])
        return None, (Finding("loss_spike", step, step, "Always.", "Nothing."),)


@pytest.mark.parametrize("command", ["backtest", "compare"])
def test_a_scalar_can_be_named_where_many_runs_are_read(tmp_path: Path, command: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,objective\n" + "".join(f"{i},{2 + 0.01 * (i % 7)}\n" for i in range(60)))
    target = str(tmp_path if command == "backtest" else log)
    assert runner.invoke(app, [command, target]).exit_code == 2
    found = runner.invoke(app, [command, target, "--scalar", "loss=objective", "--format", "json"])
    assert found.exit_code == 0
    assert json.loads(found.stdout)
    assert runner.invoke(app, [command, target, "--scalar", "loss"]).exit_code == 2
