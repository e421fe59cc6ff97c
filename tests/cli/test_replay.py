"""`lossguard replay` as people and the acceptance call it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lossguard.cli.main import app
from lossguard.trace import npz
from lossguard.wire.frame import Frames, Schema

runner = CliRunner()
FIELDS = {
    "kind", "onset_step", "detected_step", "declared_full_step", "end_step", "peak_step", "peak", "residual",
    "first_signal_step", "first_layer", "tasks", "explanation",
}  # fmt: skip


def log(path: Path, jump: bool) -> Path:
    values = 2 + 2 * np.exp(-np.arange(400) / 60) + 0.02 * np.random.default_rng(0).standard_normal(400)
    values[200:] += 1.5 * jump
    path.write_text("step,loss\n" + "".join(f"{i + 1},{value:.5f}\n" for i, value in enumerate(values)))
    return path


def test_one_file_gives_one_document_in_the_shape_that_others_parse(tmp_path: Path) -> None:
    result = runner.invoke(app, ["replay", "--format", "json", str(log(tmp_path / "bad.csv", True))])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["run"], document["steps"], document["status"]) == ("bad", [1, 400], "diverged")
    (incident,) = document["incidents"]
    assert set(incident) >= FIELDS
    assert incident["kind"] == "full_divergence"
    assert incident["onset_step"] == 201


def test_several_files_give_their_runs_in_the_order_given(tmp_path: Path) -> None:
    paths = [str(log(tmp_path / f"{name}.csv", name == "b")) for name in ("c", "a", "b")]
    document = json.loads(runner.invoke(app, ["replay", "--format", "json", *paths]).stdout)
    assert [(run["run"], run["status"]) for run in document["runs"]] == [
        ("c", "healthy"), ("a", "healthy"), ("b", "diverged"),
    ]  # fmt: skip


def test_non_finite_numbers_are_strings_in_the_document(tmp_path: Path) -> None:
    (tmp_path / "nan.csv").write_text("step,loss\n1,3\n2,2\n3,nan\n")
    document = json.loads(runner.invoke(app, ["replay", "--format", "json", str(tmp_path / "nan.csv")]).stdout)
    (incident,) = document["incidents"]
    assert (incident["kind"], incident["peak"]) == ("nonfinite", "Infinity")


def test_the_table_says_what_happened_and_what_to_do(tmp_path: Path) -> None:
    result = runner.invoke(app, ["replay", str(log(tmp_path / "bad.csv", True))], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "bad: diverged, steps 1 to 400" in result.stdout
    assert "full divergence" in result.stdout


def test_an_incident_names_its_batches_in_every_form(tmp_path: Path) -> None:
    path = log(tmp_path / "bad.csv", True)
    lines = path.read_text().splitlines()
    named = [f"{line},{4000 + number}" for number, line in enumerate(lines[1:], start=1)]
    path.write_text("\n".join([f"{lines[0]},batch_id", *named]))
    (incident,) = json.loads(runner.invoke(app, ["replay", "--format", "json", str(path)]).stdout)["incidents"]
    assert {"step": 201, "name": "4201", "note": "onset"} in incident["batches"]
    out = tmp_path / "out.html"
    path.write_text("\n".join([f"{lines[0]},batch_id,batch_file", *(f"{line},7" for line in named)]))
    (incident,) = json.loads(runner.invoke(app, ["replay", "--format", "json", str(path)]).stdout)["incidents"]
    assert {"step": 201, "name": "7:4201", "note": "onset"} in incident["batches"]
    path.write_text("\n".join([f"{lines[0]},batch_id", *named]))
    result = runner.invoke(app, ["replay", "--plot", str(out), str(path)], env={"COLUMNS": "200"})
    assert "batches of the full divergence of step 201: step 200: 4200, step 201: 4201 (onset)" in result.stdout
    assert "step 201: 4201 (onset)" in out.read_text("utf-8")


def test_the_plot_is_one_page_that_needs_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    result = runner.invoke(app, ["replay", str(log(tmp_path / "bad.csv", True)), "--plot", str(out)])
    assert result.exit_code == 0
    page = out.read_text()
    assert "<svg" in page
    assert "http" not in page
    assert "full divergence" in page


def test_the_plot_holds_a_heat_map_of_the_layers_with_what_was_not_finite(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stats = np.exp(0.1 * rng.standard_normal((300, 70, 2))).astype(np.float32)
    stats[:, :, 1] = 0
    stats[200:210, 5, 0] *= 1000
    stats[250, 6, 1] = 3
    layers = tuple(f"layer_{i}/kernel" for i in range(70))
    values = 1 + 0.01 * rng.standard_normal((300, 1))
    schema = Schema(("loss",), layers, ("gradient_norm", "nonfinite_count"))
    npz.write(tmp_path / "run.npz", Frames.of(schema, np.arange(1, 301), values, stats))
    out = tmp_path / "out.html"
    assert runner.invoke(app, ["replay", str(tmp_path / "run.npz"), "--plot", str(out)]).exit_code == 0
    page = out.read_text()
    assert "gradient norm of each layer" in page
    assert "10 layers that stayed calmer are left out" in page
    assert page.count("fill='#111'") == 1
    assert "hsl(8 85% 36%)" in page
    assert ">layer_5/kernel<" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "xml", "x.csv"], "table or json"),
        (["--scalar", "loss", "x.csv"], "NAME=COLUMN"),
        (["nothing.csv"], "no such file"),
    ],
)
def test_bad_arguments_get_a_sentence_and_exit_code_2(arguments: list[str], words: str) -> None:
    result = runner.invoke(app, ["replay", *arguments])
    assert result.exit_code == 2
    assert words in result.output


def test_a_recorded_divergence_is_found_with_its_layer(shared: Path) -> None:
    path = shared / "traces" / "runs" / "late_lrstep_s0.npz"
    document = json.loads(runner.invoke(app, ["replay", "--format", "json", str(path)]).stdout)
    assert document["status"] == "diverged"
    full = [incident for incident in document["incidents"] if incident["kind"] == "full_divergence"]
    assert abs(full[0]["onset_step"] - 301) <= 3
    assert full[0]["first_layer"]
    assert "learning rate rose" in full[0]["explanation"]
