"""No password, token or signature is in anything that a night leaves: terminal, files, MLflow, Ray's logs."""

import base64
import gzip
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest

from pipeline.__main__ import main
from pipeline.data.shards import pack
from pipeline.data.sources import Digits
from pipeline.runfile.data_config import DataConfig

from .conftest import Served
from .servers import free_port, mlflow_server

PASSWORD, SIGNATURE, TOKEN = "pa55/w0rd+of ann", "51gnature%2Fof%3Da-url", "70ken-of-the-environment"
VARIABLES = ("MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "WEBHOOK_TOKEN", "HF_TOKEN")
RAY_TOKEN = "7a7" * 21 + "a"
SECRETS = {
    "password": PASSWORD,
    "password in a URL": quote(PASSWORD, safe=""),
    "password in a header": base64.b64encode(f"ann:{PASSWORD}".encode()).decode(),
    "signature": SIGNATURE,
    "token": TOKEN,
    "Ray's token": RAY_TOKEN,
}

RUN_FILE = """\
version: 1
name: night
data: {image_size: 8, channels: 1, heldout_fraction: 0.2}
network: {kind: ddpm_unet, base_channels: 8, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4]}
path: {kind: vp_cosine}
train: {images: 640, batch_size: 32, num_workers: 1}
sample: {images: 40, sampler: {kind: ddim, steps: 5}}
evaluate: {extractor: {kind: classifier, images: 2_000, width: 4, features: 16}}
register: {model_name: night}
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short, since the names of Ray's sockets may have 107 bytes."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_night_leaves_no_secret_anywhere(tmp_path: Path, served: Served, ray_folder: Path) -> None:
    data = DataConfig(source=Digits(), image_size=8, channels=1, heldout_fraction=0, shard_images=600)
    pack(data, served.folder, lambda *_: None)
    work, store = tmp_path / "work", tmp_path / "store"
    work.mkdir()
    store.mkdir()
    port, address = free_port(), f"http://ann:{quote(PASSWORD, safe='')}@127.0.0.1"
    shards = f"{served.url}/train-{{000000..000002}}.tar?X-Amz-Signature={SIGNATURE}&sig={SIGNATURE}&name=x"
    (work / "night.yaml").write_text(RUN_FILE)
    variables = dict.fromkeys(VARIABLES, TOKEN) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": RAY_TOKEN}
    environment = os.environ | variables | {"RAY_TMPDIR": str(ray_folder), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment |= {"HOME": str(work), "PYTHONPATH": str(Path(__file__).parents[2])}
    said: dict[str, bytes] = {}

    def command(verb: str, *arguments: str, port: int = port) -> int:
        whole = [sys.executable, "-m", "pipeline", verb]
        if verb in ("check", "nightly", "run"):
            given = [f"tracking.uri={address}:{port}", f"data.source={{kind: shards, urls: ['{shards}']}}"]
            whole += ["night.yaml", "output=outputs", "tracking.timeout_s=30", *given, *arguments, "--traceback"]
        else:
            whole += [*arguments, "--tracking-uri", f"{address}:{port}", "--traceback"]
        done = subprocess.run(whole, capture_output=True, timeout=400, cwd=work, env=environment, check=False)
        said[f"{len(said)} {verb}"] = done.stdout + done.stderr
        return done.returncode

    with mlflow_server(store, port):
        assert command("check") == 0, said
        assert command("nightly", "nightly.command=[sh, -c, 'echo \"$WEBHOOK_TOKEN\" > /dev/null; exit 7']") == 0, said
        assert command("nightly") == 0, said
        assert command("history", "night") == 0, said
        assert command("promote", "models:/night/99") == 1, said
    assert command("run", port=free_port()) == 1, said
    assert b"connection refused" in said["5 run"]
    assert any(ray_folder.glob("ray/session_*/logs/*")), "the logs are elsewhere"

    found = dict(said)
    for folder in (work, store, ray_folder):
        found |= {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert any(name.endswith("store/mlflow.db") for name in found)
    assert any(name.endswith("outputs/nights/night/last.json") for name in found)
    (index,) = work.glob("outputs/stages/prepare-*/index.json")  # which says where the shards are, to its owner alone
    assert index.stat().st_mode & 0o777 == 0o600
    assert [where for name, content in found.items() for where in leaks(name, content)] == [f"signature in {index}"]


def leaks(name: str, content: bytes) -> Iterator[str]:
    """Where a secret is, in what was written under this name or in what that holds when it is unpacked."""
    yield from (f"{what} in {name}" for what, secret in SECRETS.items() if secret.encode() in content)
    for member, inner in unpacked(content):
        yield from leaks(f"{name}: {member}", inner)


def unpacked(content: bytes) -> Iterator[tuple[str, bytes]]:
    if content.startswith(b"\x1f\x8b"):
        yield "gzip", gzip.decompress(content)
    elif content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from ((member, archive.read(member)) for member in archive.namelist())
    elif content[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            yield from ((member.name, tar.extractfile(member).read()) for member in tar if member.isfile())  # type: ignore[union-attr]  # a file


def test_what_is_packed_is_looked_into() -> None:
    tar, archive = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("note", TOKEN)
    with tarfile.open(fileobj=tar, mode="w:gz") as file:
        info = tarfile.TarInfo("inner.zip")
        info.size = len(archive.getvalue())
        file.addfile(info, io.BytesIO(archive.getvalue()))
    assert list(leaks("x", tar.getvalue())) == ["token in x: gzip: inner.zip: note"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--no-such-option=http://ann:PASSWORD@host"],
        ["run", "tracking.uri=http://ann:PASSWORD@host", "night.yaml"],
        ["run", "night.yaml", "tracking.timeout_s=http://ann:PASSWORD@host"],
        ["run", "night.yaml", "http://ann:PASSWORD@host"],
        ["run", "night.yaml", "data.source={kind: shards, urls: 'http://host/a.tar?X-Amz-Signature=PASSWORD&a=b'}"],
        ["history", "night", "--tracking-uri", "http://ann:PASSWORD@127.0.0.1:1"],
        ["history", "night", "--tracking-uri", "oracle://ann:PASSWORD@127.0.0.1:1"],
    ],
)
@pytest.mark.parametrize("traceback", [[], ["--traceback"]])
def test_what_is_wrong_on_the_command_line_is_told_without_credentials(
    arguments: list[str],
    traceback: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("night.yaml").write_text(RUN_FILE)
    try:
        code = main([*arguments, *traceback])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code in (1, 2)
    said = "".join(capsys.readouterr())
    assert "error" in said.lower()
    assert "PASSWORD" not in said


def test_a_fault_of_the_program_is_told_without_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("no http://ann:PASSWORD@host")

    monkeypatch.setattr("pipeline.__main__._execute", broken)
    assert main(["keys"]) == 1
    assert "LookupError: no http://***@host" in capsys.readouterr().err
