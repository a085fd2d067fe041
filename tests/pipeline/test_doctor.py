"""Each thing that can be wrong with a cluster is found and has its cure, whatever else is wrong, and nothing else is.

The cluster is real and on this machine: its other nodes are `ray start` of their own. The sick one runs in a mount
namespace of its own, where it sees other files than the rest, as another machine would.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from ray.cluster_utils import Cluster as Nodes
from safetensors.torch import save_file

from pipeline.data.existing_tars import Tars, index_tars
from pipeline.data.prepare import Prepare
from pipeline.data.shard_cache import ShardCacheConfig
from pipeline.data.shards import pack
from pipeline.data.sources import Digits
from pipeline.doctor import checks, on_nodes
from pipeline.doctor.examination import Examination, Finding
from pipeline.runfile.config import Config
from pipeline.runfile.configfile import load
from pipeline.runfile.data_config import DataConfig

from .commands import FILE_NAME, run_here
from .conftest import Served
from .ray_heads import head_without_dashboard
from .waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
RUN_FILE = """\
version: 1
name: tiny
data: {{source: {{kind: shards, urls: ['{tars}/*.tar']}}, image_size: 8, channels: 1, heldout_fraction: 0.2}}
network: {{kind: ddpm_unet, base_channels: 8, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4]}}
path: {{kind: vp_cosine}}
train: {{images: 4_800, batch_size: 32, num_workers: 2, checkpoint_images: 1_600, log_images: 1_600}}
sample: {{images: 40, sampler: {{kind: ddim, steps: 5}}}}
evaluate: {{extractor: {{kind: inception, weights: '{weights}'}}}}
register: {{model_name: ddpm-tiny}}
cluster: {{address: auto, timeout_s: 120}}
"""
MEMORY_BYTES = 80 * 1024**2
WAIT_S = 120

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a cluster shares: a run file, tars of the digits, weights of an extractor."""
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "outputs").mkdir()
    data = DataConfig(source=Digits(), image_size=8, channels=1, heldout_fraction=0, shard_images=600)
    pack(data, folder / "packed", lambda *_: None)
    (folder / "tars").mkdir()
    for tar in (folder / "packed").glob("*.tar"):
        shutil.copy(tar, folder / "tars")
    for name in ("weights.pth", "others.pth", "copied.pth"):
        torch.save({"weight": torch.full([3], float(name == "others.pth"))}, folder / name)
    (folder / FILE_NAME).write_text(RUN_FILE.format(tars=folder / "tars", weights=folder / "weights.pth"))
    return folder


@pytest.fixture(scope="module")
def mlflow(folder: Path, empty_store: bytes) -> Iterator[int]:
    """The port of a server that is to be called 127.0.0.1, and nothing else."""
    (folder / "mlflow.db").write_bytes(empty_store)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--allowed-hosts", f"127.0.0.1:{port}"]
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _process(command, folder / "server.log", environment) as process:

        def answers() -> bool:
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait_until(answers, WAIT_S, every_s=0.5)
        yield port


@contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs until the end of the block, with what it has started."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        finally:
            with suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def well(head: Nodes) -> Iterator[None]:
    """A second node, as well as the head."""
    node = head.add_node(num_cpus=2, object_store_memory=MEMORY_BYTES)
    yield
    head.remove_node(node)


@pytest.fixture(scope="module")
def sick(head: Nodes, folder: Path) -> Iterator[None]:
    """A node whose code is another and whose /dev/shm is a container's, which lacks what `folder` has, or has something
    else there, may only read it or writes elsewhere, and knows neither the network's interface nor the way to MLflow.
    """
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("a mount namespace of its own is not permitted here")
    shutil.copytree(ROOT / "pipeline", folder / "other-code")
    with (folder / "other-code" / "errors.py").open("a") as file:
        file.write("\n# as it was last week\n")
    for name in ("empty", "read-only", "one-way"):
        (folder / name).mkdir()
    start = f"""set -e
        mount -t tmpfs -o size=64m tmpfs /dev/shm
        mount --bind {folder}/other-code {ROOT}/pipeline
        mount --bind {folder}/empty {folder}/outputs
        mount --bind {folder}/empty {folder}/tars
        mount --bind /dev/null {folder}/weights.pth
        mount --bind {folder}/others.pth {folder}/copied.pth
        mount --bind {folder}/read-only {folder}/read-only
        mount -o remount,bind,ro {folder}/read-only
        mkdir /dev/shm/upper /dev/shm/work
        mount -t overlay overlay -o lowerdir={folder}/one-way,upperdir=/dev/shm/upper,workdir=/dev/shm/work \\
            {folder}/one-way
        exec {sys.executable} -m ray.scripts.scripts start --address {head.address} --num-cpus 2 --block \\
            --object-store-memory {MEMORY_BYTES} --disable-usage-stats"""
    environment = {"GLOO_SOCKET_IFNAME": "nowhere0", "http_proxy": "http://127.0.0.1:1", "RAY_AUTH_MODE": "disabled"}
    log = folder / "sick.log"
    with _process(["unshare", "-m", "sh", "-c", start], log, environment) as process:

        def joined() -> bool:
            assert process.poll() is None, log.read_text()
            return "Ray runtime started" in log.read_text()

        wait_until(joined, WAIT_S, every_s=0.2)
        yield


def doctor(folder: Path, *overrides: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """The command. -> exit code, by check its verdict and what was said, lines joined, and the whole output."""
    ran = run_here("doctor", folder, *overrides)
    rows: dict[str, tuple[str, str]] = {}
    check, table = "", ran.stdout.partition("\n\n")[0].splitlines()
    second, third = table[0].index("verdict"), table[0].index("what was seen")
    for line in table[1:]:
        assert len(line) <= 100, line
        check = line[:second].strip() or check
        verdict, before = rows.get(check, (line[second:third].strip(), ""))
        rows[check] = verdict, f"{before} {line[third:].strip()}".strip()
    return ran.returncode, rows, ran.stdout + ran.stderr


@pytest.mark.usefixtures("well")
def test_a_cluster_in_good_health_passes(folder: Path, mlflow: int) -> None:
    code, rows, said = doctor(folder, f"tracking.uri=http://127.0.0.1:{mlflow}")
    assert {verdict for verdict, _ in rows.values()} == {"pass"}, said
    assert code == 0
    assert len(rows) == len(checks.CHECKS)
    assert rows["cluster answers"][1].endswith("4 CPUs, 0 GPUs, 2 nodes")
    assert rows["workers reduce"][1].startswith("2 workers on 2 nodes by gloo")
    assert rows["shards are whole"][1] == "3 shards on every node, 3 of them read"
    assert rows["mlflow answers"][1].endswith("from here and from every node")
    assert not list((folder / "outputs").glob(".doctor*"))


@pytest.mark.usefixtures("sick")
def test_a_cluster_that_is_wrong_in_ten_ways_gets_ten_cures(folder: Path, mlflow: int) -> None:
    """One failing check hides no other."""
    code, rows, said = doctor(
        folder,
        f"tracking.uri=http://localhost:{mlflow}",
        "cluster.num_samplers=64",
        "train.batch_size=5",
        "train.num_workers=[2, 4]",
        "train.images=1_000_000_000_000",
        "train.keep_checkpoints=1_000_000_000",
    )
    assert code == 1
    cures = {
        "resources suffice": r"lower cluster\.num_samplers or cluster\.cpus_per_worker, or add nodes",
        "batch suits workers": r"make it a multiple of train\.num_workers, such as 8",
        "versions agree": r"this code is not the same.* cure: install this tree on every node",
        "output is shared": r"No such file or directory.* cure: make \S+ a folder that all nodes share",
        "disk has room": r"cure: make room, lower train\.keep_checkpoints",
        "shards are whole": r"the shard is missing cure: restore the shard there",
        "shared memory suffices": r"67\.1 MB of /dev/shm.* cure: mount a larger /dev/shm",
        "workers reduce": r"cannot exchange by gloo.* cure: let all ports through.*GLOO_SOCKET_IFNAME on each",
        "mlflow answers": r"Invalid Host header.* cure: start it with --allowed-hosts",
        "weights are there": r"not a file of plain tensors.* cure: copy the file to the same path on every node",
    }
    for check, cure in cures.items():
        verdict, what = rows[check]
        assert verdict == "fail", said
        assert re.search(cure, what), said
    assert len(cures) == 10
    assert rows.keys() - cures.keys() == {"cluster answers", "start is there"}
    assert {rows[check][0] for check in ("cluster answers", "start is there")} == {"pass"}


def test_where_no_cluster_answers_the_rest_is_looked_at_all_the_same(folder: Path) -> None:
    code, rows, said = doctor(folder, "cluster.address=127.0.0.1:1", "train.batch_size=3", "cluster.timeout_s=20")
    assert code == 1
    verdict, what = rows["cluster answers"]
    assert verdict == "fail"
    assert re.search(r"no Ray cluster answers there.* cure: start it with 'ray start --head', correct the", what), said
    assert rows["batch suits workers"][0] == "fail"
    assert rows["disk has room"][0] == "pass"
    assert rows["versions agree"] == ("not checked", "there is no cluster")


@pytest.mark.slow
def test_a_token_that_is_wanted_and_not_there_is_named(homes: tuple[Path, Path], folder: Path) -> None:
    with_token, without = homes
    with head_without_dashboard(with_token, "token") as address:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
        command = [sys.executable, "-m", "pipeline", "doctor", str(folder / FILE_NAME), f"cluster.address={address}"]
        ran = subprocess.run(
            [*command, f"output={folder / 'outputs'}"],
            env={**inherited, "HOME": str(without)},
            text=True,
            capture_output=True,
            timeout=WAIT_S,
            check=False,
        )
    assert ran.returncode == 1, ran.stderr
    said = " ".join(ran.stdout.split())
    assert "the cluster asks for a token, and none is known here" in said
    assert "cure: write it to ~/.ray/auth_token, or name its file by RAY_AUTH_TOKEN_PATH" in said


@pytest.fixture(scope="module")
def joined(sick: None, folder: Path) -> Iterator[Examination]:
    """In the cluster, the sick node with it; from here on no command can join another."""
    del sick  # which is there to be looked at
    with Examination(config_of(folder)) as examination:
        examination.join()
        yield examination


def config_of(folder: Path, *overrides: str) -> Config:
    return load(folder / FILE_NAME, [f"output={folder / 'outputs'}", *overrides], Config)


def examined(joined: Examination, config: Config, all_shards: bool = False) -> Examination:
    """Another run file on the same cluster."""
    examination = Examination(config, all_shards)
    examination.joined = replace(joined.cluster, config=config.cluster)
    return examination


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "overrides", "seen", "cure"),
    [
        ("resources_suffice", ["train.num_workers=20"], "20 workers of 1 CPU need 20", "or add nodes"),
        ("resources_suffice", ["cluster.cpus_per_worker=3", "train.num_workers=1"], "3 CPUs of each", "larger nodes"),
        ("output_is_shared", ["output=FOLDER/tiny.yaml/x"], "cannot be written to", "correct output"),
        (
            "output_is_shared",
            ["output=FOLDER/read-only"],
            "Read-only file system",
            "that all nodes share and may write",
        ),
        ("output_is_shared", ["output=FOLDER/one-way"], "does not come here", "that all nodes share and may write"),
        ("shards_are_whole", ['data.source.urls=["FOLDER/none/*.tar"]'], "no such shard", "correct data.source.urls"),
        ("mlflow_answers", ["tracking.uri=http://127.0.0.1:1"], "connection refused", "start the server, or correct"),
        ("mlflow_answers", ["tracking.uri=SERVER"], "from 127|from 1.*refused", "let the nodes reach the server"),
        ("weights_are_there", ["evaluate.extractor.weights=FOLDER/none"], "No such file", "extractor.weights to the"),
        ("weights_are_there", [f"evaluate.extractor.weights_sha256={'a' * 64}"], "expected aaaa", "name its digest in"),
        (
            "weights_are_there",
            ["evaluate.extractor.weights=FOLDER/copied.pth"],
            "not the same, .*here",
            "copy the file",
        ),
        ("versions_agree", ["cluster.timeout_s=0.001"], "no answer for 0.001 s", "install the same on every node"),
        ("workers_reduce", ["cluster.timeout_s=0.001"], "have not met in time", "let all ports through"),
    ],
)
def test_a_wrong_has_its_cure(
    joined: Examination, folder: Path, mlflow: int, check: str, overrides: list[str], seen: str, cure: str
) -> None:
    names = {"FOLDER": str(folder), "SERVER": f"http://127.0.0.1:{mlflow}"}
    for name, value in names.items():
        overrides = [override.replace(name, value) for override in overrides]
    finding = examined(joined, config_of(folder, *overrides)).perform(getattr(checks, check))
    assert finding.verdict == "fail"
    assert re.search(seen, finding.seen), finding
    assert cure in finding.cure, finding


def truncated(tar: Path) -> None:
    os.truncate(tar, tar.stat().st_size // 2)


def damaged(tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "harm", "seen"),
    [
        ("index", Path.unlink, "the shard is missing"),
        ("index", truncated, "bytes, the index says"),
        ("index", damaged, "sha256 .*, the index says"),
        ("tars", truncated, "truncated|not a whole, uncompressed tar"),
    ],
)
def test_a_shard_that_is_not_whole_has_its_cure(
    joined: Examination, folder: Path, tmp_path: Path, what: str, harm: Callable[[Path], None], seen: str
) -> None:
    shutil.copytree(folder / "packed", tmp_path / "set")
    named = f"index: {tmp_path / 'set'}" if what == "index" else f"urls: ['{tmp_path / 'set'}/*.tar']"
    config = config_of(folder, f"data.source={{kind: shards, {named}}}")
    assert examined(joined, config).perform(checks.shards_are_whole).verdict == "pass"
    harm(tmp_path / "set" / "train-000001.tar")
    finding = examined(joined, config).perform(checks.shards_are_whole)
    assert finding.verdict == "fail"
    assert re.search(seen, finding.seen), finding
    assert finding.cure == "restore the shard there, or prepare the data again"


def test_a_remote_shard_of_another_size_has_its_cure(
    joined: Examination, folder: Path, tmp_path: Path, served: Served
) -> None:
    tar = shutil.copy(folder / "packed" / "train-000000.tar", served.folder / "one.tar")
    cache = ShardCacheConfig(folder=tmp_path / "cache")
    index_tars(Tars([f"{served.url}/one.tar"]), tmp_path / "index", cache, lambda _: None)
    config = config_of(folder, f"data.source={{kind: shards, index: {tmp_path / 'index'}}}")
    # the sick node asks by a proxy that is not there
    examination = examined(joined, config)
    examination.nodes = [node for node in examination.nodes if node.resources.get("node:__internal_head__")]
    assert examination.perform(checks.shards_are_whole).verdict == "pass"
    truncated(Path(tar))
    finding = examination.perform(checks.shards_are_whole)
    assert re.search("bytes, the index says", finding.seen), finding
    Path(tar).unlink()
    assert "one.tar: cannot be fetched" in examination.perform(checks.shards_are_whole).seen


def test_prepared_images_are_looked_at_where_output_is_shared(
    joined: Examination, folder: Path, tmp_path: Path
) -> None:
    overrides = [f"output={tmp_path}", "data.source={kind: digits}"]
    examination = examined(joined, config_of(folder, *overrides))
    finding = examination.perform(checks.shards_are_whole)
    assert finding.verdict == "not checked"
    assert "'python -m pipeline prepare' packs the images" in finding.seen
    Prepare().finish(examination.run)
    every = examined(joined, config_of(folder, *overrides, "data.shard_images=50"), all_shards=True)
    Prepare().finish(every.run)
    for each, read in ((examination, "2 of them read"), (every, "37 of them read")):
        assert each.perform(checks.shards_are_whole).seen.endswith(read)
    few = examined(joined, config_of(folder, *overrides, "train.batch_size=2000"))
    assert few.perform(checks.batch_suits_workers).cure.startswith("lower train.batch_size or data.heldout")
    few.findings["output_is_shared"] = Finding("output is shared", "fail", "")
    finding = few.perform(checks.shards_are_whole)
    assert (finding.verdict, finding.seen) == ("not checked", "builds on 'output is shared', which did not pass")


def test_what_needs_no_look_is_said(joined: Examination, folder: Path) -> None:
    one = examined(joined, config_of(folder, "train.num_workers=1", "evaluate.extractor={kind: classifier}"))
    assert one.perform(checks.workers_reduce).verdict == "not checked"
    assert one.perform(checks.weights_are_there).seen == "extractor classifier is trained on the images"
    many = examined(joined, config_of(folder, "train.num_workers=20"))
    assert many.perform(checks.workers_reduce).seen == "there is no room for the fewest workers"


def test_what_training_starts_from_is_looked_at_here(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, f"train.warm_start={tmp_path / 'start.safetensors'}")
    with Examination(config) as examination:
        finding = examination.perform(checks.start_is_there)
        assert finding.seen.endswith("start.safetensors: no such file")
        assert finding.cure == "give one of weights, the folder of a trained run, or models:/..."
        save_file(config.spec.build().state_dict(), tmp_path / "start.safetensors")
        assert re.fullmatch(
            rf"training starts from {tmp_path}/start\.safetensors, weights [0-9a-f]{{12}}",
            examination.perform(checks.start_is_there).seen,
        )


def test_a_check_that_breaks_is_a_finding_too(folder: Path) -> None:
    def breaks(_: Examination) -> str:
        raise KeyError("what nobody thought of")

    with Examination(config_of(folder)) as examination:
        finding = examination.perform(breaks)
    assert (finding.check, finding.verdict, finding.seen) == ("breaks", "fail", "KeyError: 'what nobody thought of'")


def test_what_another_machine_wrote_must_come_through(tmp_path: Path) -> None:
    (tmp_path / "driver").write_text("of an earlier time")
    with pytest.raises(OSError, match="holds something else than was written"):
        on_nodes.exchange(str(tmp_path), "now")


def test_code_that_lacks_a_package_says_so() -> None:
    assert on_nodes.versions(["pipeline", "nowhere_to_be_found"])["this code"] == "no nowhere_to_be_found"
