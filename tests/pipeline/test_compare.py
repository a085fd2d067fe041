"""Two scores side by side only where they were taken in the same way, and a verdict that knows what chance is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evaluation import ExtractorIdentity, Protocol, Reference
from pipeline.__main__ import main
from pipeline.registration.compare import Scored, verdict
from pipeline.registration.gate import Gate
from pipeline.registration.model_package import ModelPackage
from pipeline.registration.registry import register
from pipeline.tracking.tracked_run import TrackedRun

PROTOCOL = Protocol(
    images=2_000,
    first_seed=0,
    chunk_images=250,
    sampler={"kind": "ddim", "steps": 50},
    guidance={"kind": "none"},
    precision="fp32",
    compile=False,
    codec_digest="c",
    extractor=ExtractorIdentity(kind="classifier", layer="64", digest="e", resize="none"),
    reference=Reference(data_digest="d", split="train", images=1_437),
    device_type="cpu",
    torch_fidelity="0.4.0",
    network_evaluations=50,
)


def write(folder: Path, scores: dict[str, float | None], **protocol: Any) -> str:
    """A run's folder, as far as it is compared."""
    folder.mkdir()
    summary = {
        "protocol": PROTOCOL.model_copy(update=protocol).model_dump(mode="json"),
        "primary_score": "fid",
        "scores": scores,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def of(fid: float | None, error: float | None = None, name: str = "one") -> Scored:
    return Scored("fid", {"fid": fid, "fid_se": error}, name=name, protocol=PROTOCOL)


def test_both_are_shown_with_their_uncertainty_and_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "monday", {"fid": 3.25, "fid_se": 0.03, "inception_score_mean": 9.1})
    other = write(tmp_path / "tuesday", {"fid": 3.0, "fid_se": 0.04, "inception_score_mean": None})
    assert main(["compare", one, other]) == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines() if line.strip()]
    assert lines == [
        "monday tuesday difference",
        "fid 3.25 ± 0.03 3 ± 0.04 -0.25",
        "inception_score_mean 9.1 not available",
        "verdict tuesday is better: fid lower by 0.25, 5.0 combined standard errors",
    ]
    assert max(map(len, printed.splitlines())) <= 100


def test_unlike_protocols_are_refused_with_every_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "monday", {"fid": 3.25})
    other = write(tmp_path / "tuesday", {"fid": 3.0}, images=1_000, precision="bf16")
    assert main(["compare", one, other]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not scored in the same way" in captured.err
    assert "sample images: 2000 against 1000" in captured.err
    assert "precision: fp32 against bf16" in captured.err


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (of(3.0, 0.1), of(3.1, 0.1), "no difference beyond chance: 0.1 is 0.7 combined standard errors"),
        (of(3.0, 0.01), of(3.1, 0.01, "two"), "one is better: fid lower by 0.1, 7.1 combined standard errors"),
        (of(3.0), of(2.9, name="two"), "two has the lower fid; how much of that is chance is not known"),
        (of(None), of(3.0), "no fid of both"),
    ],
)
def test_the_verdict_knows_what_chance_is(one: Scored, other: Scored, expected: str) -> None:
    assert verdict(one, other).startswith(expected)


def test_what_has_no_scores_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "monday", {"fid": 3.25})
    assert main(["compare", one, str(tmp_path / "nowhere")]) == 2
    assert "summary.json: no scores of a finished run" in capsys.readouterr().err
    assert main(["compare", one, "models:/two/parts/3"]) == 2
    assert "expected models:/NAME@ALIAS" in capsys.readouterr().err


def test_a_protocol_of_another_version_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (write(tmp_path / name, {"fid": 3.25}) for name in ("monday", "tuesday"))
    path = tmp_path / "tuesday" / "summary.json"
    summary = json.loads(path.read_text())
    del summary["protocol"]["precision"]
    path.write_text(json.dumps(summary))
    assert main(["compare", one, other]) == 2
    refusal = capsys.readouterr().err
    assert "tuesday: its protocol or scores are of another version of this program (precision)" in refusal


def test_scores_that_are_no_numbers_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write(tmp_path / "monday", {"fid": 3.25}), write(tmp_path / "tuesday", {"fid": "low"})  # type: ignore[dict-item]  # the mistake
    assert main(["compare", one, other]) == 2
    assert "tuesday: its protocol or scores are of another version of this program (fid)" in capsys.readouterr().err


def test_a_version_that_others_registered_is_refused(run: TrackedRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.client.create_registered_model("foreign")
    run.client.create_model_version("foreign", f"runs:/{run.run_id}/model", run.run_id)
    assert main(["compare", "models:/foreign/1", "models:/foreign/1", "--tracking-uri", run.uri]) == 2
    assert "models:/foreign/1: version 1 was not scored by this program; name one that was" in capsys.readouterr().err


def test_a_registered_version_is_compared_by_what_mlflow_has_of_it(
    run: TrackedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "protocol.json").write_text(PROTOCOL.model_dump_json())
    run.log_files([tmp_path / "protocol.json"])
    package = ModelPackage(
        run_key="first",
        weights=saved(tmp_path / "weights.safetensors"),
        description=written(
            tmp_path / "model.json", '{"spec": {"image_size": 8, "channels": 1, "conditioning": null}}'
        ),
        config=written(tmp_path / "config.yaml", "{}"),
        protocol=PROTOCOL.model_dump(mode="json"),
        protocol_digest=PROTOCOL.digest,
        scores={"fid": 3.25, "fid_se": 0.03, "kid": None},
        primary_score="fid",
        data_digest="d",
        trained_images=1_000,
    )
    register(run, package, "compared", Gate())
    other = write(tmp_path / "tuesday", {"fid": 3.0, "fid_se": 0.04})
    assert main(["compare", "models:/compared@champion", other, "--tracking-uri", run.uri]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "compared/1 tuesday difference fid 3.25 ± 0.03 3 ± 0.04 -0.25" in printed


def saved(path: Path) -> Path:
    save_file({"weight": torch.zeros(1)}, path)
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
