"""What a score was measured on: stored beside it, and compared before two scores are."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, JsonValue

from model import Record

from .extractors import ExtractorIdentity


class Reference(Record):
    """The real images that the generated ones are compared with."""

    data_digest: str
    """Digest of the whole data set, from its shard index; of statistics that others made, `statistics:` and theirs."""
    split: str
    """Part of the data set: train or heldout; unknown of statistics that others made."""
    images: int | None = Field(ge=2)
    """Number of reference images; null: unknown."""
    flipped: bool | None = False
    """Whether each image was also counted mirrored; null: unknown."""


class Protocol(Record):
    """Everything but the model that a score depends on. Scores under different digests are never compared.

    Beside what was chosen stands what it cost; that is measured, may differ from model to model, and keeps no two
    scores apart.
    """

    images: int = Field(ge=2)
    """Number of generated images."""
    first_seed: int = Field(ge=0)
    """Seed of the first image; image i has this seed + i."""
    chunk_images: int = Field(ge=1)
    """Images drawn and scored as one batch."""
    sampler: dict[str, JsonValue]
    """The sampler's configuration."""
    guidance: dict[str, JsonValue]
    """The guidance's configuration."""
    precision: str
    """Arithmetic of the network: fp32, tf32 or bf16."""
    compile: bool
    """Whether the network was compiled, which rounds in another order."""
    codec_digest: str
    """Digest of what decoded the images from what the path acts on."""
    extractor: ExtractorIdentity
    """The network whose features were compared."""
    reference: Reference
    """The real images."""
    device_type: str
    """Where images were drawn and features taken: cpu or cuda."""
    torch_fidelity: str
    """Version of the library that computed the scores."""
    network_evaluations: float = Field(ge=0)
    """Measured calls of the network for each image."""

    @property
    def choices(self) -> dict[str, JsonValue]:
        """JSON of all that was chosen and nothing that was measured."""
        return self.model_dump(mode="json", exclude={"network_evaluations"})

    @property
    def digest(self) -> str:
        """sha256 of the choices' canonical JSON: sorted keys, no spaces."""
        canonical = json.dumps(self.choices, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def differences(ours: Protocol, theirs: Protocol) -> list[str]:
    """What keeps two scores apart, such as `sample images: 2000 against 1000`. Empty: comparable."""
    return differing(ours.choices, theirs.choices)


def differing(ours: Mapping[str, JsonValue], theirs: Mapping[str, JsonValue]) -> list[str]:
    """Where two trees of choices differ, in words: `reference split: train against heldout`."""
    mine, other = dict(_leaves(ours)), dict(_leaves(theirs))
    names = [*mine, *(name for name in other if name not in mine)]
    return [
        f"{_label(name)}: {mine.get(name, 'absent')} against {other.get(name, 'absent')}"
        for name in names
        if (name in mine, mine.get(name)) != (name in other, other.get(name))
    ]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values, in the order of the fields."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _label(name: str) -> str:
    words = name.replace(".", " ").replace("_", " ")
    return f"sample {words}" if name in ("images", "first_seed", "chunk_images") else words
