"""Attempts to get a broken model published by hiding what is broken where the gate might not look."""

import io
import shutil
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from attempts import STEPS, Attempts, Stage
from gate_runs import Service, constant_of, graph_with, make_model, write_bundle
from typer.testing import Result

from lossguard.gate.client import ask, open_client, question_about
from lossguard.gate.guard import Guard
from lossguard.gate.publish import publish

attempt = Attempts()
GOOD = np.ones(5, np.float32)
BAD = np.array([1, 1, np.nan, 1, 1], np.float32)


def of_a_good_run(stage: Stage, artifact: Path) -> Result:
    stage.trainer().train(STEPS)
    return stage.publish(None, STEPS, artifact)


def hdf5(path: Path, **tensors: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in tensors.items():
            file[name] = values
    return path


def archive(path: Path, **parts: Path) -> Path:
    """A .keras file; `__` in a part's name stands for a dot."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
        for name, part in parts.items():
            file.write(part, name.replace("__", "."))
    return path


@attempt
def graph_as_text_behind_sound_weights(stage: Stage) -> object:
    model = make_model(stage.tmp / "text", {"kernel": BAD})
    (model / "saved_model.pb").rename(model / "saved_model.pbtxt")
    hdf5(model / "sound.weights.h5", kernel=GOOD)
    return of_a_good_run(stage, model)


@attempt
def graph_in_pieces_behind_sound_weights(stage: Stage) -> object:
    model = make_model(stage.tmp / "pieces", {"kernel": BAD})
    (model / "saved_model.pb").rename(model / "saved_model.cpb")
    hdf5(model / "sound.weights.h5", kernel=GOOD)
    return of_a_good_run(stage, model)


@attempt
def lite_model_beside_a_sound_one(stage: Stage) -> object:
    (stage.model / "model.tflite").write_bytes(b"TFL3 and NaN")
    return of_a_good_run(stage, stage.model)


@attempt
def weights_of_another_form_beside_a_sound_file(stage: Stage) -> object:
    folder = stage.tmp / "two"
    folder.mkdir()
    hdf5(folder / "sound.weights.h5", kernel=GOOD)
    hdf5(folder / "model.h5", kernel=BAD)
    return of_a_good_run(stage, folder)


@attempt
def npz_that_keras_reads_behind_a_file_that_it_does_not(stage: Stage) -> object:
    np.savez(stage.tmp / "bad.npz", kernel=BAD)
    sound = hdf5(stage.tmp / "sound.h5", kernel=GOOD)
    return of_a_good_run(
        stage, archive(stage.tmp / "m.keras", sound__weights__h5=sound, model__weights__npz=stage.tmp / "bad.npz")
    )


@attempt
def part_of_the_same_name_twice(stage: Stage) -> object:
    path = archive(stage.tmp / "m.keras", model__weights__h5=hdf5(stage.tmp / "sound.h5", kernel=GOOD))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("model.weights.h5", hdf5(stage.tmp / "sound2.h5", kernel=GOOD * 2).read_bytes())
    return of_a_good_run(stage, path)


@attempt
def part_in_other_letters(stage: Stage) -> object:
    sound, bad = hdf5(stage.tmp / "sound.h5", kernel=GOOD), hdf5(stage.tmp / "bad.h5", kernel=BAD)
    return of_a_good_run(stage, archive(stage.tmp / "m.keras", model__weights__h5=sound, Model__Weights__H5=bad))


@attempt
def compressed_part_with_a_nan(stage: Stage) -> object:
    path = stage.tmp / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(hdf5(stage.tmp / "bad.h5", kernel=BAD), "model.weights.h5")
    return of_a_good_run(stage, path)


@attempt
def archive_behind_other_bytes(stage: Stage) -> object:
    path = archive(stage.tmp / "m.keras", model__weights__h5=hdf5(stage.tmp / "bad.h5", kernel=BAD))
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    return of_a_good_run(stage, path)


def h5_model(stage: Stage) -> Path:
    return hdf5(stage.tmp / "m.weights.h5", bias=GOOD)


@attempt
def lists_of_unlike_lengths_with_a_nan(stage: Stage) -> object:
    with h5py.File(path := h5_model(stage), "a") as file:
        file.create_dataset("kernel", (1,), dtype=h5py.vlen_dtype(np.float32))[0] = BAD
    return of_a_good_run(stage, path)


@attempt
def bfloat16_nan_as_keras_stores_it(stage: Stage) -> object:
    with h5py.File(path := h5_model(stage), "a") as file:
        file.create_dataset("kernel", data=np.array([0x3F80, 0x7FC0], np.uint16).view("V2")).attrs["dtype"] = "bfloat16"
    return of_a_good_run(stage, path)


@attempt
def values_that_were_never_written_and_are_nan(stage: Stage) -> object:
    with h5py.File(path := h5_model(stage), "a") as file:
        file.create_dataset("kernel", (5,), "f4", chunks=(5,), fillvalue=np.nan)
    return of_a_good_run(stage, path)


@attempt
def numbers_in_a_raw_file_outside(stage: Stage) -> object:
    BAD.tofile(stage.tmp / "raw")
    with h5py.File(path := h5_model(stage), "a") as file:
        file.create_dataset("kernel", (5,), "f4", external=[(str(stage.tmp / "raw"), 0, 20)])
    return of_a_good_run(stage, path)


@attempt
def scale_of_a_quantized_kernel_is_infinite(stage: Stage) -> object:
    tensors = {"kernel": np.ones(3, np.int32), "kernel_scale": np.array([np.inf], np.float32)}
    return of_a_good_run(stage, make_model(stage.tmp / "quantized", tensors))


@attempt
def float8_nan(stage: Stage) -> object:
    model = make_model(stage.tmp / "float8")
    codes = {"kernel": np.array([0x38, 0xFF], np.uint8), "bias": GOOD}
    write_bundle(model / "variables", codes, {"kernel": 25})
    return of_a_good_run(stage, model)


@attempt
def number_of_a_type_that_is_not_known(stage: Stage) -> object:
    model = make_model(stage.tmp / "new")
    write_bundle(model / "variables", {"kernel": np.array([0x80], np.uint8), "bias": GOOD}, {"kernel": 26})
    return of_a_good_run(stage, model)


@attempt
def weights_frozen_into_the_graph_with_a_nan(stage: Stage) -> object:
    (stage.model / "saved_model.pb").write_bytes(graph_with(constant_of(BAD), in_function=True))
    return of_a_good_run(stage, stage.model)


@attempt
def graph_with_a_part_that_is_passed_over(stage: Stage) -> object:
    group = b"\x7b\x7c"  # field 15 of a kind that protocol buffers had once, and that parsers still skip
    (stage.model / "saved_model.pb").write_bytes(group + graph_with(constant_of(BAD)))
    return of_a_good_run(stage, stage.model)


@attempt
def blocked_bytes_passed_off_as_a_good_runs(stage: Stage) -> object:
    rules = {"name": f"policy-{stage.name}", "attribution_required": True}
    stage.service.client.post("/v1/policies", json={"author": "ann", "rules": rules})
    (stage.model / "assets" / "own").write_text("bytes of its own")
    good = stage.service.trainer(f"{stage.name}-good").train(STEPS)
    with open_client(stage.service.url) as client:
        question = question_about(stage.model, "default", good.run, STEPS, policy=rules["name"])
        for _ in range(2):
            assert ask(client, question).verdict.outcome == "pass"  # which is remembered
    stage.trainer().train(STEPS, collapsed_from=100)
    assert stage.publish().exit_code == 1
    done = stage.publish(good.run, STEPS, None, "--policy", rules["name"])
    assert "attribution" in done.output
    return done


@attempt
def link_turned_to_another_model_after_the_verdict(stage: Stage) -> object:
    (stage.tmp / "newest").symlink_to(stage.model)
    named = replace(stage, model=stage.tmp / "newest")
    answer = named.good()
    named.model.unlink()
    named.model.symlink_to(make_model(stage.tmp / "bad", {"kernel": BAD}))
    return named.place(answer)


@attempt
def published_file_changed_through_a_hard_link(stage: Stage) -> object:
    data = stage.place(stage.good()) / "variables" / "variables.data-00000-of-00001"
    watch = Guard(stage.serving, stage.keys)
    assert [one.good for one in watch.look()] == [True]
    (stage.tmp / "same").hardlink_to(data)
    (stage.tmp / "same").write_bytes(bytes(data.stat().st_size))
    assert [one.good for one in watch.look()] == [False]  # though it knew the version
    return None


@attempt
def file_whose_name_is_the_verdicts_in_other_letters(stage: Stage) -> object:
    place = stage.place(stage.good())
    shutil.copy(place / "lossguard_verdict.json", place / "Lossguard_Verdict.json")
    return None


@attempt
def run_that_began_anew_under_the_name_of_a_good_one(stage: Stage) -> object:
    answer = stage.good()
    stage.trainer().restart("b" * 32).train(STEPS, collapsed_from=60)
    assert answer.verdict.outcome == "pass"
    return stage.publish()


@attempt
def run_whose_name_only_looks_the_same(stage: Stage) -> object:
    composed, decomposed = f"{stage.name}-\u00e9", f"{stage.name}-e\u0301"
    stage.service.trainer(composed).train(STEPS)
    stage.service.trainer(decomposed).train(STEPS, collapsed_from=100)
    return stage.publish(decomposed)


@attempt
def waiver_of_the_same_run_in_another_project(stage: Stage) -> object:
    body = {"project": "other", "run": stage.name, "checks": ["no_open_incident", "batch_auc/click", "finite",
            "normalized_entropy/click", "prediction_spread/click", "calibration/click"],
            "author": "ann", "reason": "it is another project's", "seconds": 60}  # fmt: skip
    assert stage.service.client.post("/v1/waivers", json=body).status_code == 200
    stage.trainer().train(STEPS, collapsed_from=100)
    return stage.publish()


@attempt
def last_word_of_a_run_from_a_clock_that_is_ahead(stage: Stage) -> object:
    clock = stage.service.clock
    clock.ahead = 10 * 86_400
    try:
        stage.trainer().train(STEPS, stop=None)
    finally:
        clock.ahead = 0
    return stage.publish()


@attempt
def policy_that_was_made_stricter_after_the_pass(stage: Stage) -> object:
    rules = {"name": f"policy-{stage.name}"}
    stage.service.client.post("/v1/policies", json={"author": "ann", "rules": rules})
    stage.trainer().train(STEPS)
    with open_client(stage.service.url) as client:
        for _ in range(2):
            ask(client, question_about(stage.model, "default", stage.name, STEPS, policy=rules["name"]))
    stricter = {"author": "ann", "rules": rules | {"metrics_required": True}}
    assert stage.service.client.post("/v1/policies", json=stricter).status_code == 200
    return stage.publish(None, STEPS, None, "--policy", rules["name"])


@attempt
def model_of_another_project_in_this_ones_folder(stage: Stage) -> object:
    answer = stage.good()
    publish(stage.model, stage.serving, answer.verdict, document=answer.document, keys=stage.keys)
    assert [one.good for one in Guard(stage.serving, stage.keys, project="default").look()] == [True]
    assert [one.good for one in Guard(stage.serving, stage.keys, project="ranking").look()] == [False]
    return None


@attempt
def verdict_by_a_laxer_policy_than_the_host_asks_for(stage: Stage) -> object:
    answer = stage.good()
    publish(stage.model, stage.serving, answer.verdict, document=answer.document, keys=stage.keys)
    assert [one.good for one in Guard(stage.serving, stage.keys, policy="strict").look()] == [False]
    return None


@attempt
def verdict_whose_key_was_revoked_while_the_guard_watches(stage: Stage) -> object:
    stage.place(stage.good())
    watch = Guard(stage.serving, stage.keys)
    assert [one.good for one in watch.look()] == [True]
    watch.trust({name: key for name, key in stage.keys.items() if key == b""})
    watch.trust({"0" * 16: bytes(32)})
    assert [one.good for one in watch.look()] == [False]
    return None


@pytest.mark.parametrize("name", sorted(attempt))
def test_nothing_gets_published(name: str, service: Service, tmp_path: Path) -> None:
    attempt.fails(name, service, tmp_path)


def test_what_keras_stores_as_bfloat16_is_read(tmp_path: Path) -> None:
    from lossguard.gate.scan import scan_artifact

    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        data = np.array([[0x3F80, 0x4000], [0xBF80, 0]], np.uint16).view("V2")
        file.create_dataset("kernel", data=data).attrs["dtype"] = "bfloat16"
    stored = io.BytesIO((tmp_path / "m.weights.h5").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as file:
        file.writestr("model.weights.h5", stored.getvalue())
    for name in ("m.weights.h5", "m.keras"):
        scan = scan_artifact(tmp_path / name)
        assert (scan.complete, scan.values, scan.nonfinite) == (True, 4, {})
