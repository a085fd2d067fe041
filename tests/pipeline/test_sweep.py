"""A sweep on a real Ray cluster and a real MLflow store: killed, finished, compared, logged, found again."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ray._private.state import actors  # that of ray.util needs a dashboard
from rich.console import Console

from evaluation import quality_curves
from model import DDIM
from pipeline.clusters.cluster import connected
from pipeline.errors import ConfigError
from pipeline.runfile.config import ClusterConfig, Config
from pipeline.runfile.configfile import load
from pipeline.sweeps.combinations import combine
from pipeline.sweeps.sweep_points import Point, Sweep
from pipeline.sweeps.sweep_results import show, write
from pipeline.terminal import Terminal
from pipeline.tracking.mlflow_store import connect

from .commands import FILE_NAME, kill_when, new_folder, run_here

# Ray Train imports Ray Data, which warns of its own settings.
pytestmark = [pytest.mark.usefixtures("head"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

RUN_FILE = """\
version: 1
name: tiny
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2}
network: {kind: ddpm_unet, base_channels: 8, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4]}
path: {kind: vp_cosine}
train: {images: 640, batch_size: 32, learning_rate: 2.0e-3, log_images: 160}
cluster: {address: auto, num_samplers: 1}
sample: {images: 30, chunk_images: 20, sampler: {kind: ddim, steps: 4, grid: uniform}}
evaluate: {extractor: {kind: classifier, images: 4_000, width: 4, features: 16}}
register: {model_name: ddpm-tiny}
"""
SWEPT = "sample.sampler={kind: ddim, steps: 2}, {kind: ddim, steps: 3}, {kind: ancestral, steps: 2}"
ROWS = [("ddim", "2"), ("ddim", "3"), ("ancestral", "2")]


def done(verb: str, folder: Path, *overrides: str) -> str:
    """What the command printed; it ended well and without a warning."""
    finished = run_here(verb, folder, *overrides)
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def models_loaded() -> int:
    """How many actors that draw there have been on the cluster so far."""
    with connected(ClusterConfig(address="auto")):
        return sum(actor["ActorClassName"] == "Drawer" for actor in actors().values())


def times_of_results(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("outputs/stages/*/done.json")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, empty_store: bytes) -> tuple[Path, str]:
    """A sweep's folder and what it printed."""
    folder = new_folder(tmp_path_factory, "swept", RUN_FILE, empty_store)
    return folder, done("sweep", folder, SWEPT)


Swept = tuple[Path, str]


def results(folder: Path) -> Path:
    (found,) = folder.glob("outputs/tiny-sweep-*")
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    with (results(folder) / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_combinations_share_one_checkpoint(swept: Swept) -> None:
    stages = sorted(path.parent.name.partition("-")[0] for path in times_of_results(swept[0]))
    assert stages == ["evaluate"] * 3 + ["prepare", "reference"] + ["sample"] * 3 + ["train"]


def test_the_table_has_a_row_for_each_combination_with_measured_evaluations_and_all_scores(swept: Swept) -> None:
    table = rows(swept[0])
    assert [(row["sample.sampler.kind"], row["sample.sampler.steps"]) for row in table] == ROWS
    assert [float(row["network_evaluations"]) for row in table] == [2, 3, 2]
    assert {row["images"] for row in table} == {"30"}
    assert {row["primary_score"] for row in table} == {"fid_classifier"}
    assert len({row["protocol_digest"] for row in table}) == 3
    for name in ("fid_classifier", "inception_score_classifier_mean", "fid_classifier_heldout", "confidence_samples"):
        assert all(float(row[name]) > 0 for row in table), name


def test_the_terminal_tells_each_combination_on_one_line_and_then_all_in_a_table_of_100_columns(swept: Swept) -> None:
    lines = swept[1].splitlines()
    assert "  1 of 3: ddim, steps 2: 2 network evaluations, fid_classifier " in swept[1]
    assert "  3 of 3: ancestral, steps 2: 2 network evaluations, fid_classifier " in swept[1]
    (heading,) = (line for line in lines if line.startswith("sampler"))
    assert heading == "sampler     steps   network evaluations   fid_classifier   images/s"
    below = lines[lines.index(heading) + 1 :][:3]
    assert [tuple(line.split()[:2]) for line in below] == ROWS
    assert any(line.startswith("fid_classifier_heldout") for line in lines)
    assert max(len(line) for line in lines if str(swept[0]) not in line) <= 100


def test_plot_and_configuration_lie_beside_the_table(swept: Swept) -> None:
    folder = results(swept[0])
    with Image.open(folder / "sweep.png") as picture:
        assert picture.format == "PNG"
        picture.load()
    text = (folder / "config.yaml").read_text()
    assert text.startswith("# The first of 3 combinations:\n# sample.sampler.kind=ddim  sample.sampler.steps=2\n")
    assert load(folder / "config.yaml", [], Config).sample.sampler == DDIM(steps=2)


def test_mlflow_has_one_run_with_a_line_for_each_series_and_no_model(swept: Swept) -> None:
    folder, _ = swept
    client = connect(f"sqlite:///{folder}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("diffusion")
    assert experiment is not None
    (page,) = client.search_runs([experiment.experiment_id])
    assert (page.info.run_name, page.info.status) == (results(folder).name, "FINISHED")
    assert page.data.params["sample.sampler.kind"] == "ddim, ancestral"
    assert page.data.params["sample.sampler.steps"] == "2, 3"
    assert page.data.params["train.images"] == "640"
    assert page.data.params["sample.sampler.eta"] == "0.0"  # of those that have one
    assert page.data.params["sample.sampler.variance"] == "fixed_large"
    table = rows(folder)
    assert [(row["sample.sampler.eta"], row["sample.sampler.variance"]) for row in table] == [
        ("0.0", ""),
        ("0.0", ""),
        ("", "fixed_large"),
    ]
    logged = {
        (series, point.step, point.value)
        for series in ("ddim", "ancestral")
        for point in client.get_metric_history(page.info.run_id, f"fid_classifier/{series}")
    }
    assert logged == {
        (row["sample.sampler.kind"], int(row["sample.sampler.steps"]), float(row["fid_classifier"])) for row in table
    }
    assert len(client.get_metric_history(page.info.run_id, "fid_classifier/ddim")) == 2  # each of them once
    files = {file.path for file in client.list_artifacts(page.info.run_id)}
    assert files == {"config.yaml", "sweep.csv", "sweep.png"}
    assert not client.search_registered_models()


def test_the_same_sweep_again_computes_nothing_and_logs_nothing_twice(swept: Swept) -> None:
    folder, _ = swept
    before, table = times_of_results(folder), rows(folder)
    printed = done("sweep", folder, SWEPT, "train.num_workers=2")  # a resource: not part of what is computed
    assert printed.count("found again") == 3
    assert "Ray at" not in printed
    assert times_of_results(folder) == before
    assert rows(folder) == table
    test_mlflow_has_one_run_with_a_line_for_each_series_and_no_model(swept)


def test_a_run_of_one_combination_finds_what_the_sweep_computed(swept: Swept) -> None:
    printed = done("evaluate", swept[0], "sample.sampler.kind=ancestral", "sample.sampler.steps=2")
    assert sum(line.startswith("  skipped: same inputs") for line in printed.splitlines()) == 5


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(
    swept: Swept, tmp_path_factory: pytest.TempPathFactory, empty_store: bytes
) -> None:
    folder = new_folder(tmp_path_factory, "killed", RUN_FILE, empty_store)
    kill_when(lambda: bool(list(folder.glob("outputs/stages/evaluate-*/done.json"))), "sweep", folder, SWEPT)
    before = times_of_results(folder)
    scored = len(list(folder.glob("outputs/stages/evaluate-*/done.json")))
    assert done("sweep", folder, SWEPT).count("found again") == scored
    assert before.items() <= times_of_results(folder).items()
    figures = [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows(folder)]
    assert figures == [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows(swept[0])]


def test_the_model_is_loaded_once_for_all_combinations_that_draw_in_one_arithmetic(swept: Swept) -> None:
    before = models_loaded()
    printed = done("sweep", swept[0], "sample.sampler.steps=1,2,3", "sample.precision=fp32,bf16", "name=once")
    assert models_loaded() - before == 2
    shown = [line.split(": ")[1] for line in printed.splitlines() if " of 6: " in line]
    assert shown == [f"steps {steps}, precision {precision}" for precision in ("fp32", "bf16") for steps in (1, 2, 3)]


def sweep_of(tmp_path: Path, *overrides: str) -> Sweep:
    file = tmp_path / FILE_NAME
    file.write_text(RUN_FILE)
    terminal = Terminal(Console(file=io.StringIO(), width=100))
    return Sweep(combine(file, [f"output={tmp_path / 'out'}", *overrides]), terminal)


def point(
    settings: Mapping[str, str], evaluations: float, sigma_rel: float | None = None, **scores: float | None
) -> Point:
    sampled = {"images": 2_000, "images_per_s": None, "network_evaluations": evaluations, "sigma_rel": sigma_rel}
    sampled["reconstruction_error"] = sigma_rel and 0.01
    name = next(iter(scores))
    reasons = {} if scores[name] is not None else {name: "too few images"}
    scored = {"primary_score": name, "scores": scores, "reasons": reasons, "protocol_digest": "d"}
    return Point(settings, sampled, scored, 0)


def printed(sweep: Sweep) -> list[str]:
    stream = sweep.terminal.console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue().splitlines()


def test_keys_are_shown_by_the_fewest_last_words_that_tell_them_apart(tmp_path: Path) -> None:
    swept = ["sample.seed=0,1", "sample.sampler.kind=ddim,ancestral", "evaluate.extractor.seed=0,1"]
    sweep = sweep_of(tmp_path, *swept)
    assert list(sweep.short_names.values()) == ["sample.seed", "sampler", "extractor.seed"]


def test_only_what_changes_more_than_the_length_makes_another_series(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "sample.sampler.steps=2,3", "sample.sampler.eta=0,1", "sample.images=30,40")
    settings = sweep.combinations[0].settings
    assert sweep.words(settings) == "steps 2, eta 0, images 30"
    assert sweep.series(point(settings, 2, fid=1.0)) == "eta 0, images 30"


def test_the_order_of_keys_and_the_values_decide_the_folder_and_a_resource_does_not(tmp_path: Path) -> None:
    folder = sweep_of(tmp_path, "sample.sampler.steps=2,3").folder
    assert sweep_of(tmp_path, "sample.sampler.steps=2,3", "train.num_workers=2").folder == folder
    assert sweep_of(tmp_path, "sample.sampler.steps=2,4").folder != folder
    assert sweep_of(tmp_path, "sample.sampler.steps=2,3", "train.images=64").folder != folder


def test_the_best_is_named_beside_as_few_real_images(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "sample.sampler.steps=2,3,4")
    first, second, third = (combination.settings for combination in sweep.combinations)
    measured = {"fid_heldout": 0.5, "fid_as_many_samples": 1.25}
    points = [
        point(first, 2, fid=None, **measured),
        point(second, 3, fid=2.0, **measured),
        point(third, 4, fid=1.0, **measured),
    ]
    show(sweep, points, [])
    assert printed(sweep)[:8] == [
        "",
        "steps   network evaluations             fid   images/s",
        "2                         2   not available",
        "3                         3               2",
        "4                         4               1",
        "",
        "best fid      1 of 2,000 samples: steps 4",
        "fid_heldout   0.5, what real images reach; as few samples of the best reach 1.25",
    ]


def test_two_swept_keys_make_a_grid_of_their_values(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "sample.sampler.steps=10,20", "sample.sampler.eta=0,0.5,1")
    points = [point(one.settings, 10, fid=number + 0.125) for number, one in enumerate(sweep.combinations)]
    show(sweep, points, [])
    assert printed(sweep)[8:12] == [
        "",
        "fid        eta 0   eta 0.5   eta 1",
        "steps 10   0.125     1.125   2.125",
        "steps 20   3.125     4.125   5.125",
    ]


def test_pairs_of_values_that_are_missing_make_no_grid(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SWEPT)
    show(sweep, [point(one.settings, 2, fid=1.0) for one in sweep.combinations], [])
    assert sum(line.startswith("fid") for line in printed(sweep)) == 0


def test_without_any_score_the_reason_is_told_and_nothing_is_plotted(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "sample.sampler.steps=2,3")
    points = [point(combination.settings, 2, fid=None) for combination in sweep.combinations]
    files = list(write(sweep, points, 360))
    assert files == [sweep.folder / "sweep.csv"]
    show(sweep, points, files)
    assert "best" not in "".join(printed(sweep))
    assert any(line.startswith("fid ") and line.endswith("not available: too few images") for line in printed(sweep))


def test_two_extractors_are_two_columns_and_two_plots(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "sample.sampler.steps=2,3")
    first, second = (combination.settings for combination in sweep.combinations)
    points = [point(first, 2, fid=3.0), point(second, 3, fid_classifier=1.0)]
    names = [path.name for path in write(sweep, points, 360)]
    assert names == ["sweep.csv", "sweep-fid.png", "sweep-fid_classifier.png"]
    show(sweep, points, [])
    assert printed(sweep)[1:4] == [
        "steps   network evaluations   fid   fid_classifier   images/s",
        "2                         2     3",
        "3                         3                      1",
    ]


AVERAGED = "train.also_averaged=[{kind: power_function, sigma_rel: 0.05}, {kind: power_function, sigma_rel: 0.1}]"


def lines_of(picture: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[tuple[float, float]]]]:
    """The lines of each picture of this name that is drawn from now on."""
    drawn: list[dict[str, list[tuple[float, float]]]] = []
    draw = getattr(quality_curves, picture)

    def noted(series: dict[str, list[tuple[float, float]]], *arguments: Any) -> None:
        drawn.append(series)
        draw(series, *arguments)

    monkeypatch.setattr(quality_curves, picture, noted)
    return drawn


def written(sweep: Sweep, evaluations: Mapping[str, float]) -> list[str]:
    """Names of the files of a sweep whose combinations have these evaluations by steps, and score 10 sigma_rel."""
    points = []
    for combination in sweep.combinations:
        sigma_rel = combination.config.sample.sigma_rel
        steps = combination.settings.get("sample.sampler.steps", "")
        points.append(point(combination.settings, evaluations[steps], sigma_rel, fid=10 * (sigma_rel or 1)))
    return [path.name for path in write(sweep, points, 360)]


def test_swept_lengths_of_the_average_have_a_plot_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = lines_of("quality_against_length", monkeypatch)
    sweep = sweep_of(tmp_path, AVERAGED, "sample.sigma_rel=0.1,null,0.05")
    assert written(sweep, {"": 4}) == ["sweep.csv", "sweep-sigma_rel.png"]
    assert drawn == [{"samples": [(0.1, 1.0), (0.05, 0.5)]}]  # that of train.ema has no such length
    with (sweep.folder / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["sample.sigma_rel"] for row in table] == ["0.1", "null", "0.05"]
    assert [row["reconstruction_error"] for row in table] == ["0.01", "", "0.01"]
    with Image.open(sweep.folder / "sweep-sigma_rel.png") as picture:
        picture.load()


def test_what_else_is_swept_makes_the_series_and_its_evaluations_the_other_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, evaluations = (lines_of(f"quality_against_{what}", monkeypatch) for what in ("length", "evaluations"))
    sweep = sweep_of(tmp_path, AVERAGED, "sample.sigma_rel=0.05,0.1", "sample.sampler.steps=2,3")
    assert written(sweep, {"2": 2, "3": 3}) == ["sweep.csv", "sweep.png", "sweep-sigma_rel.png"]
    assert lengths == [{"steps 2": [(0.05, 0.5), (0.1, 1.0)], "steps 3": [(0.05, 0.5), (0.1, 1.0)]}]
    assert evaluations == [{"sigma_rel 0.05": [(2, 0.5), (3, 0.5)], "sigma_rel 0.1": [(2, 1.0), (3, 1.0)]}]


def test_a_length_without_an_average_to_make_it_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"sample.sigma_rel=0.1\n.*\n.*sample.sigma_rel: 0.1 is made of power-function"
    ):
        sweep_of(tmp_path, "sample.sigma_rel=null,0.1")


@pytest.mark.slow
def test_a_sweep_of_lengths_draws_from_one_training(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(RUN_FILE)
    printed = done("sweep", tmp_path, AVERAGED, "train.checkpoint_images=160", "sample.sigma_rel=0.05,0.07,0.2")
    folder = results(tmp_path)
    assert {path.name for path in folder.iterdir()} >= {"sweep.csv", "sweep-sigma_rel.png"}
    assert not (folder / "sweep.png").exists()
    (training,) = tmp_path.glob("outputs/stages/train-*")
    made = sorted(path.name for path in (training / "averages").iterdir())
    assert made == [
        *(f"images-{seen:012d}-sigma_rel-{each}.safetensors" for seen in (160, 320, 480, 640) for each in (0.05, 0.1)),
        *(f"sigma_rel-{each}.safetensors" for each in (0.05, 0.07, 0.2)),
    ]
    errors = [float(row["reconstruction_error"]) for row in rows(tmp_path)]
    assert errors[0] < 1e-6 < errors[1] < 0.1 < errors[2]
    assert "sigma_rel 0.07: made of 8 kept averages" in printed
    assert printed.count("train anew with a smaller train.checkpoint_images") == 1
    before = times_of_results(tmp_path)
    again = done("sweep", tmp_path, AVERAGED, "sample.sigma_rel=0.05,0.07,0.2")  # cadences are no part of a key
    assert again.count("found again") == 3
    assert times_of_results(tmp_path) == before
