"""What the guard tells Prometheus: by file and by port, of real folders, in the words that the alert rule reads."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from lossguard.cli.main import app
from lossguard.gate import exposition
from lossguard.gate.errors import GateError
from lossguard.gate.exposition import listen, page
from lossguard.gate.guard import QUARANTINE, Guard
from lossguard_service.metrics import names


def guard(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["gate", "guard", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    """A folder with version 7, which nobody judged."""
    folder = tmp_path / 'serv"ing'
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "saved_model.pb").write_bytes(b"model")
    return folder


def told(text: str) -> set[tuple[str, ...]]:
    families = list(text_string_to_metric_families(text))
    assert [family.name for family in families] == [names.GUARD_UNJUDGED.name]
    assert all(sample.value == 1 for sample in families[0].samples)
    return {tuple(sample.labels[name] for name in names.GUARD_UNJUDGED.labels) for sample in families[0].samples}


def test_the_guard_and_the_list_of_names_agree() -> None:
    assert (names.GUARD_UNJUDGED.name, names.GUARD_UNJUDGED.help) == (exposition.METRIC, exposition.HELP)


def test_the_file_tells_of_an_unjudged_version_until_its_quarantine_is_cleared(serving: Path, tmp_path: Path) -> None:
    file = tmp_path / "lossguard.prom"
    where = str(serving.resolve())
    assert guard(serving, "--unsigned", "--dry", "--metrics-file", file).exit_code == 1
    assert told(file.read_text()) == {(where, "7", "false")}
    assert guard(serving, "--unsigned", "--metrics-file", file).exit_code == 1
    assert told(file.read_text()) == {(where, "7", "true")}
    # The next look, by a guard that knows nothing of the first, still tells.
    assert guard(serving, "--unsigned", "--metrics-file", file).exit_code == 0
    assert told(file.read_text()) == {(where, "7", "true")}
    shutil.rmtree(serving / f"{QUARANTINE}7")
    assert guard(serving, "--unsigned", "--metrics-file", file).exit_code == 0
    assert told(file.read_text()) == set()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["lossguard.prom"]


def test_promtool_likes_the_page(serving: Path) -> None:
    text = page(serving, Guard(serving, {}, dry=True).look())
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: it comes with Prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_folder_full_of_them_stays_a_small_page(tmp_path: Path) -> None:
    for number in range(exposition.MOST_VERSIONS + 20):
        (tmp_path / f"{QUARANTINE}{number}").mkdir()
    assert len(told(page(tmp_path, []))) == exposition.MOST_VERSIONS


def test_a_guard_that_goes_on_is_scraped(serving: Path) -> None:
    code = "from lossguard.cli.main import main; main()"
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "gate",
            "guard",
            str(serving),
            "--unsigned",
            "--every",
            "1s",
            "--metrics-listen",
            "127.0.0.1:0",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert line.startswith("Prometheus finds this guard at "), line
            url = line.split()[-1]
            assert process.stderr.readline().startswith("version 7: ")
            text = ""
            while 'version="7"' not in text:
                # Said, then shown: the page may be a moment behind the words.
                text = httpx.get(url, timeout=60).text
            assert told(text) == {(str(serving.resolve()), "7", "true")}
            assert httpx.get(url.replace("/metrics", "/other"), timeout=60).status_code == 404
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def test_a_port_that_is_taken_is_a_sentence(no_leaks: None) -> None:
    with listen("127.0.0.1", 0) as one:
        port = int(one.url.split(":")[2].split("/")[0])
        with pytest.raises(GateError, match="name a free port"), listen("127.0.0.1", port):
            pass


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metrics-file", "lossguard.txt"], "ends with .prom"),
        (["--metrics-file", "no/such/folder/x.prom"], "the folder that node_exporter reads"),
        (["--metrics-listen", "127.0.0.1:0"], "goes with --every"),
        (["--every", "1s", "--metrics-listen", "9114"], "write HOST:PORT"),
    ],
)
def test_options_that_make_no_sense_are_refused(serving: Path, options: list[str], words: str) -> None:
    refused = guard(serving, "--unsigned", *options)
    assert refused.exit_code == 2
    assert words in refused.output
    assert (serving / "7").is_dir()


def test_a_file_that_cannot_be_written_does_not_end_the_look(serving: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    file.mkdir()
    looked = guard(serving, "--unsigned", "--metrics-file", file)
    assert looked.exit_code == 1
    assert "cannot be written" in looked.output
    assert (serving / f"{QUARANTINE}7").is_dir()
