"""The command line on remote shards that its cache cannot all hold: the same weights as from local ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.shards import pack
from pipeline.data.sources import Digits
from pipeline.runfile.data_config import DataConfig

from .conftest import Served

RUN_FILE = """\
version: 1
name: tiny
data: {source: {kind: digits}, image_size: 8, channels: 1, heldout_fraction: 0.2, order: {kind: blocks, shards: 2}}
network: {kind: ddpm_unet, base_channels: 8, channel_multipliers: [1, 2], blocks_per_level: 1, attention_sizes: [4]}
path: {kind: vp_cosine}
train: {images: 4_800, batch_size: 32, num_workers: 2, checkpoint_images: 1_600, log_images: 1_600}
sample: {images: 40, sampler: {kind: ddim, steps: 5}}
evaluate: {extractor: {kind: classifier, images: 2_000, width: 4, features: 16}}
register: {model_name: ddpm-tiny}
"""


def trained(folder: Path, name: str, *overrides: str) -> dict[str, str]:
    """Trains. -> data_digest and weights_digest."""
    (folder / "tiny.yaml").write_text(RUN_FILE)
    output = folder / name
    command = [sys.executable, "-m", "pipeline", "train", "tiny.yaml", f"output={output}", *overrides]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=folder, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    facts: dict[str, str] = {}
    for done in output.glob("stages/*/done.json"):
        facts |= json.loads(done.read_text())["facts"]
    return {name: facts[name] for name in ("data_digest", "weights_digest")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_from_remote_shards_gives_the_weights_that_local_ones_give(tmp_path: Path, served: Served) -> None:
    data = DataConfig(source=Digits(), image_size=8, channels=1, heldout_fraction=0, shard_images=200)
    shards = pack(data, served.folder, lambda *_: None).shards
    assert len(shards) == 9
    local = trained(tmp_path, "local", f"data.source={{kind: shards, urls: ['{served.folder}/*.tar']}}")
    limit_bytes = 4 * max(shard.bytes for shard in shards)
    remote = trained(
        tmp_path,
        "remote",
        f"data.source={{kind: shards, urls: ['{served.url}/train-{{000000..000008}}.tar']}}",
        f"data.shard_cache={{folder: {tmp_path / 'cache'}, limit_bytes: {limit_bytes}}}",
        "data.cache=none",
    )
    assert remote == local
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= limit_bytes
