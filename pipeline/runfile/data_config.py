"""The section `data` of a run file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from model import Record

from ..data.image_cache import Cache
from ..data.order import OrderConfig, Permutation
from ..data.shard_cache import ShardCacheConfig
from ..data.shard_images import ShardFormat
from ..data.sources import Source, Stream, can_grow
from .keyroles import Resource


class DataConfig(Record):
    """Which images are learnt from, in which form, and which of them are kept back."""

    source: Source
    """Where the images come from."""
    base: Annotated[Path | None, Resource] = None
    """Folder of an earlier stage `prepare` of this section, from before the source grew: its shards, and which of their
    images are held out, stay as they are, and only what has come since is packed or indexed; null: all is. For
    image_folder, and shards with urls. `nightly` sets it."""
    image_size: int = Field(ge=1, le=4096)
    """Height and width of the images, pixels."""
    channels: Literal[1, 3]
    """1: grey; 3: red, green and blue."""
    heldout_fraction: float = Field(0.1, ge=0, le=0.5)
    """Share of the images that is never trained on, rounded up to whole images; 0: all are trained on."""
    split_seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the choice of held-out images."""
    shard_images: int = Field(10_000, ge=1)
    """Images in each packed shard."""
    shard_format: ShardFormat = "png"
    """What packed shards hold, with the same pixels. png: small; npy: raw arrays, quick to read."""
    order: OrderConfig = Permutation()
    """The order in which training sees the images; each is there once per epoch, for any number of workers."""
    cache: Annotated[Cache, Resource] = "host"
    """Where training keeps decoded images, image_size^2 * channels bytes each, if half of what is free is enough. none:
    nowhere; host: once on each node for all its workers, in its temporary folder (TMPDIR), and so in memory; device: on
    each worker's GPU, too, where batches are gathered."""
    shard_cache: Annotated[ShardCacheConfig, Resource] = ShardCacheConfig()
    """Where remote shards are kept while they are read."""

    @model_validator(mode="after")
    def _source_has_this_shape(self) -> "DataConfig":
        shape = self.source.shape
        if shape and shape != (self.image_size, self.channels):
            raise ValueError(
                f"image_size {self.image_size} with channels {self.channels}, but source {self.source.kind} "
                f"has image_size {shape[0]} and channels {shape[1]}"
            )
        return self

    @model_validator(mode="after")
    def _base_has_files(self) -> "DataConfig":
        if self.base is not None and not can_grow(self.source):
            raise ValueError(
                f"base: nothing can be added to source {self.source.kind}; leave base out, or use image_folder, or "
                "shards with urls"
            )
        return self

    @model_validator(mode="after")
    def _order_has_an_index(self) -> "DataConfig":
        if isinstance(self.source, Stream) and self.order != Permutation():
            raise ValueError(
                f"order.kind {self.order.kind} needs an index of all images, and source stream has none; leave order "
                "out, or use source.kind shards"
            )
        return self
