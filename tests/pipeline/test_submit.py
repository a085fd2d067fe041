"""Jobs on real Ray clusters: submitted once, followed, failed, cancelled and gone on with."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.training.curve import CURVE

from .ray_heads import Head, another_node, environment_of, head
from .waiting import wait_until

RUN_FILE = """\
version: 1
name: tiny
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2}
network: {kind: ddpm_unet, base_channels: 8, channel_multipliers: [1], blocks_per_level: 1, attention_sizes: []}
path: {kind: vp_cosine}
train: {images: 640, batch_size: 32, checkpoint_images: 320, log_images: 320, preview_images: 0}
sample: {images: 40, sampler: {kind: ddim, steps: 5}}
evaluate: {extractor: {kind: classifier, images: 500, width: 4, features: 16}}
register: {model_name: ddpm-tiny}
cluster: {timeout_s: 120}
"""
_ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 400


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster of one node, which asks for a token."""
    with head(tmp_path_factory.mktemp("c"), "token") as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RUN_FILE)
    return tmp_path


def command(folder: Path, head: Head, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline ...` in this folder, by whoever may use the cluster."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "--address", head.url],
        env={**head.environment, "PYTHONPATH": str(_ROOT), **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )


def following(folder: Path, head: Head, *arguments: str) -> "subprocess.Popen[str]":
    """The same while it goes on."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments, "--address", head.url],
        env={**head.environment, "PYTHONPATH": str(_ROOT)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def job_of(finished: subprocess.CompletedProcess[str]) -> str:
    """The name of the job that was submitted or found."""
    names = [line.split()[1] for line in finished.stdout.splitlines() if line.startswith("job ")]
    assert names, finished.stdout + finished.stderr
    return names[0]


def test_a_training_is_submitted_followed_and_found_again(cluster: Head, folder: Path) -> None:
    """By a home with the token in its file; RAY_AUTH_MODE, which `ray job submit` needs, is not set."""
    finished = command(folder, cluster, "submit", "tiny.yaml", "--command", "train", "--follow")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Ray at auto, 2 CPUs" in finished.stdout
    assert "trained_images" in finished.stdout or "loss " in finished.stdout
    assert "succeeded" in finished.stdout
    assert list(folder.glob("outputs/stages/train-*/done.json")), "relative paths are meant from where it was submitted"
    again = command(folder, cluster, "submit", "tiny.yaml", "train.num_workers=2", "--command", "train", "--follow")
    assert again.returncode == 0
    assert job_of(again) == job_of(finished)
    assert "there already: succeeded" in again.stdout
    assert "with other keys than these" in again.stdout
    listed = command(folder, cluster, "list").stdout
    assert listed.count(job_of(finished)) == 1


def test_the_last_lines_and_the_exit_code_of_a_failed_job_come_back(cluster: Head, folder: Path) -> None:
    wrong = ["submit", "tiny.yaml", "name=wrong", "train.warm_start=/nowhere", "--command", "prepare"]
    failed = command(folder, cluster, *wrong, "--follow")
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "error: train.warm_start: /nowhere" in failed.stdout
    assert f"{job_of(failed)}, exit code 2" in failed.stdout
    status = command(folder, cluster, "status", job_of(failed)).stdout
    assert "FAILED" in status
    assert "error: train.warm_start: /nowhere" in status
    again = command(folder, cluster, *wrong)
    assert again.returncode == 0
    assert job_of(again) == f"{job_of(failed)}-2"


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_cancel_ends_it(cluster: Head, folder: Path) -> None:
    arguments = ["submit", "tiny.yaml", "name=long", "train.images=10_000_000", "--command", "train", "--follow"]
    with following(folder, cluster, *arguments) as watching:
        wait_until(lambda: bool(list(folder.glob("outputs/stages/train-*/checkpoints/*"))), within_s=_LIMIT_S)
        watching.send_signal(signal.SIGINT)
        said, errors = watching.communicate(timeout=60)
    assert watching.returncode == 130, errors
    job = next(line.split()[2] for line in said.splitlines() if line.startswith("still running"))
    assert "RUNNING" in command(folder, cluster, "status", job).stdout
    cancelled = command(folder, cluster, "cancel", job)
    assert "stopped; submitted again" in cancelled.stdout, cancelled.stderr
    assert "STOPPED" in cancelled.stdout
    assert "it had ended" in command(folder, cluster, "cancel", job).stdout


@pytest.mark.slow
def test_a_run_that_was_cancelled_goes_on_from_its_checkpoint(cluster: Head, folder: Path) -> None:
    run = ["submit", "tiny.yaml", "name=resumed", "train.images=64_000"]
    job = job_of(command(folder, cluster, *run))
    curve = f"outputs/stages/train-*/{CURVE}"
    checkpoints = "outputs/stages/train-*/checkpoints/*"
    wait_until(lambda: len(list(folder.glob(checkpoints))) > 1, within_s=_LIMIT_S)
    assert command(folder, cluster, "cancel", job).returncode == 0
    assert not list(folder.glob("outputs/stages/train-*/done.json"))
    (path,) = folder.glob(curve)
    before = path.read_text().splitlines()
    finished = command(folder, cluster, *run, "--follow")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert job_of(finished) == f"{job}-2"
    after = path.read_text().splitlines()
    assert after[0] == before[0]  # with the seconds that it took: these steps were not taken again
    assert len(after) == 200
    assert list(folder.glob("outputs/resumed-*/summary.json"))


@pytest.mark.slow
def test_local_paths_are_refused_where_there_are_two_nodes(cluster: Head, folder: Path) -> None:
    shared = [f"output={folder}/outputs", f"cluster.shared=[{folder}]", "tracking.uri=http://127.0.0.1:1"]
    with another_node(cluster):
        refused = command(folder, cluster, "submit", "tiny.yaml", f"train.warm_start={folder}/weights.safetensors")
        accepted = command(folder, cluster, "submit", "tiny.yaml", "name=two", *shared, "--command", "prepare")
    assert refused.returncode == 2
    assert "the cluster has 2 nodes" in refused.stderr
    for line in (
        "output: outputs/",
        f"train.warm_start: {folder}/weights.safetensors",
        "tracking.uri: null is an SQLite",
    ):
        assert line in refused.stderr
    assert accepted.returncode == 0, accepted.stderr


def test_without_the_token_or_with_another_the_cure_is_named(cluster: Head, folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "another"
    (home / ".ray").mkdir(parents=True)
    stranger = replace(cluster, environment=environment_of(home))
    without = command(folder, stranger, "list")
    assert without.returncode == 1
    assert (
        "the cluster asks for a token (HTTP 401), and none is known here; write it to ~/.ray/auth_token"
        in without.stderr
    )
    (home / ".ray" / "auth_token").write_text("a7" * 32)
    other = command(folder, stranger, "list")
    assert other.returncode == 1
    assert "the cluster refuses this token (HTTP 401 or 403); give its own" in other.stderr


@pytest.mark.slow
def test_a_cluster_without_token_makes_a_night_and_one_that_dies_is_told(
    tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> None:
    """A token in the home of the one who submits, left there by some other cluster, does no harm."""
    with head(tmp_path_factory.mktemp("c"), "disabled") as open_to_all:
        token = Path(open_to_all.environment["HOME"], ".ray", "auth_token")
        token.write_text("a7" * 32)
        night = command(folder, open_to_all, "submit", "tiny.yaml", "--command", "nightly", "--follow")
        assert night.returncode == 0, night.stdout + night.stderr
        assert "version 1 is the first champion" in night.stdout
        swept = command(folder, open_to_all, "submit", "tiny.yaml", "sample.sampler.steps=4,5", "--command", "sweep")
        with following(folder, open_to_all, "logs", job_of(swept), "--follow") as watching:
            assert watching.stdout
            watching.stdout.readline()
            open_to_all.stop()
            _, errors = watching.communicate(timeout=120)
    assert watching.returncode == 1
    assert "no Ray cluster answers there (" in errors
    gone = command(folder, open_to_all, "status", job_of(night))
    assert gone.returncode == 1
    assert "no Ray cluster answers there (" in gone.stderr
