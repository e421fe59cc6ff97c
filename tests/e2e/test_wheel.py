"""The built wheel works without the sources beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, REPOSITORY, cwd=folder)
    (found,) = folder.glob("lossguard-*.whl")
    return found


@pytest.fixture(scope="module")
def base(wheel: Path) -> Path:
    """A fresh environment with the base install alone; its `bin` folder."""
    folder = wheel.parent / "base"
    _run(sys.executable, "-m", "venv", folder, cwd=wheel.parent)
    _run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, cwd=wheel.parent)
    return folder / "bin"


def test_the_wheel_carries_migrations_templates_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "lossguard/py.typed" in names
    assert "lossguard_service/py.typed" in names
    assert any(name.startswith("lossguard_service/migrations/versions/") for name in names)
    assert any(name.startswith("lossguard_service/web/templates/") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_the_base_install_holds_no_framework_and_still_imports(base: Path, tmp_path: Path) -> None:
    probe = (
        "import importlib.util as u, sys, lossguard.wire.chunk, lossguard.recorder, lossguard.detect.monitor;"
        "heavy = [m for m in ('tensorflow', 'keras', 'fastapi', 'sqlalchemy', 'plotly') if u.find_spec(m)];"
        "sys.exit(f'installed: {heavy}' if heavy else 0)"
    )
    _run(base / "python", "-c", probe, cwd=tmp_path)


def test_the_base_install_says_where_the_lab_is(base: Path, tmp_path: Path) -> None:
    done = _run(base / "lossguard-lab", "--quick", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "make lab" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_base_install_names_the_extra_that_a_command_lacks(base: Path, tmp_path: Path) -> None:
    done = _run(base / "lossguard", "serve", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert 'pip install "lossguard[service]"' in done.stdout + done.stderr


def test_the_base_install_names_the_extra_of_the_demo(base: Path, tmp_path: Path) -> None:
    done = _run(base / "lossguard", "demo", "--exit", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert 'pip install "lossguard[demo]"' in " ".join((done.stdout + done.stderr).split())


def test_the_sidecar_runs_from_the_base_install(base: Path, tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    done = _run(base / "lossguard", "sidecar", "journal", "--service", "http://127.0.0.1:9", "--once", cwd=tmp_path)
    assert done.returncode == 0


def test_an_installed_service_migrates_itself_and_answers(base: Path, wheel: Path, tmp_path: Path) -> None:
    _run(base / "python", "-m", "pip", "install", "--quiet", f"lossguard[service] @ {wheel.as_uri()}", cwd=tmp_path)
    address = tmp_path / "address"
    server = subprocess.Popen(
        [base / "lossguard", "serve", "--port", "0", "--address-file", address], cwd=tmp_path, stdin=subprocess.DEVNULL
    )
    try:
        probe = (
            "import pathlib, sys, time, httpx\n"
            "file = pathlib.Path(sys.argv[1])\n"
            "deadline = time.monotonic() + 60\n"
            "while not file.exists() and time.monotonic() < deadline: time.sleep(0.1)\n"
            "url = file.read_text().strip()\n"
            "assert httpx.get(url + '/readyz', timeout=60).status_code == 200\n"
            "assert httpx.get(url + '/', timeout=60).status_code == 200\n"
            "assert httpx.get(url + '/v1/runs', timeout=60).status_code == 200\n"
        )
        _run(base / "python", "-c", probe, address, cwd=tmp_path)
    finally:
        server.terminate()
        assert server.wait(120) == 0
    assert (tmp_path / ".lossguard").is_dir()
