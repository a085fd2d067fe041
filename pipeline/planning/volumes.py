"""How many bytes a run writes and sends, in closed forms, before any of them exist."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from evaluation import Classifier, DINOv2, Extractor
from evaluation.extractors import INCEPTION_CLASSES
from model import PowerFunctionEMA

from ..data.shard_index import ShardIndex
from ..data.sources import Cifar10, Digits, FashionMnist, ImageFolder, Mnist, Shards, Stream
from ..errors import DataError
from ..runfile.config import Config
from ..runfile.data_config import DataConfig
from ..runfile.train_config import TrainConfig

_FLOAT, _INT = 4, 8
_TAR_BLOCK, _TAR_RECORD = 512, 10_240
_WEIGHT_HEADER, _OPTIMIZER_ENTRY, _POINT = 93, 267, 780
"""Beside the numbers themselves: of a tensor in a safetensors file, of one in torch.save's, of a point of the curve."""
_SHA256, _DEVICE_NAME = 64, 8
"""Characters of an array's text, of which each takes four bytes."""
_LARGEST_DINOV2 = 1024  # features of ViT-L/14


def network_of(config: Config) -> nn.Module:
    """The network on the device "meta", where tensors have a shape and no content."""
    with torch.device("meta"):
        return config.spec.build()


def gradient_bytes(network: nn.Module) -> int:
    """What the workers average in each step: float32, whatever the precision of the products."""
    return _FLOAT * sum(parameter.numel() for parameter in network.parameters())


def weights_bytes(network: nn.Module) -> int:
    """A safetensors file of the network's weights, or of one average of them."""
    tensors = network.state_dict().values()
    return sum(tensor.nbytes + _WEIGHT_HEADER for tensor in tensors)


def checkpoint_bytes(network: nn.Module, averages: int, points: int) -> int:
    """One checkpoint: weights, averages of them, Adam's two moments, and the points of the curve so far."""
    stored = 3 * len(list(network.parameters()))  # the moments, and the number of steps
    optimizer = 2 * gradient_bytes(network) + stored * _OPTIMIZER_ENTRY
    return (1 + averages) * weights_bytes(network) + optimizer + points * _POINT


def checkpoints_written(train: TrainConfig) -> int:
    """Of the whole training."""
    return -(-train.images // train.checkpoint_images)


def averages_kept(train: TrainConfig) -> int:
    """Files of power-function averages, which stay when their checkpoint goes."""
    each = sum(isinstance(average, PowerFunctionEMA) for average in (train.ema, *train.also_averaged))
    return each * checkpoints_written(train)


def all_reduce_bytes(content: float, workers: int) -> float:
    """What each worker sends, and receives, to average `content` bytes by a ring: 2 (n - 1) / n of them.

    The least there is. Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
    """
    return 2 * (workers - 1) / workers * content


def sharded_bytes(content: float, workers: int) -> float:
    """What each worker sends in a step of FSDP: weights gathered on the way there and back, gradients scattered.

    Zhao et al. 2023, "PyTorch FSDP", section 3.
    """
    return 3 * (workers - 1) / workers * content


def arrays_bytes(arrays: Mapping[str, int]) -> int:
    """An `.npz` as numpy.savez writes it. arrays: name -> bytes of its numbers.

    Of each beside: 128 of its own header, and in the zip twice its name, 50 before it and 46 in the directory, whose
    end has 22.
    """
    return 22 + sum(size + 224 + 2 * len(f"{name}.npy") for name, size in arrays.items())


def chunk_bytes(images: int, pixels: int) -> int:
    """A file of drawn images. pixels: of one image, its channels counted."""
    seeds, evaluations = _INT * images, _INT
    return arrays_bytes(
        {
            "images": images * pixels,
            "seeds": seeds,
            "network_evaluations": evaluations,
            "pixels_sha256": 4 * _SHA256,
            "device": 4 * _DEVICE_NAME,
        }
    )


def features_bytes(images: int, features: int, logits: int) -> int:
    """A file of features of so many images."""
    sizes = {"pool": _FLOAT * images * features, "logits": _FLOAT * images * logits, "extractor": 4 * _SHA256}
    return arrays_bytes(sizes)


def feature_counts(extractor: Extractor, classes: int) -> tuple[int, int]:
    """Features and logits of one image. classes: of the data; DINOv2's largest network, as only its file says which."""
    if isinstance(extractor, Classifier):
        return extractor.features, classes
    if isinstance(extractor, DINOv2):
        return _LARGEST_DINOV2, 0
    return int(extractor.layer), INCEPTION_CLASSES


def sample_bytes(data: DataConfig, labelled: bool = True) -> int:
    """One image in a shard, a PNG being taken for as large as its pixels, which photographs nearly are."""
    pixels = data.image_size**2 * data.channels
    members = [pixels + 128 if data.shard_format == "npy" else pixels, *([1] if labelled else [])]
    return sum(_TAR_BLOCK + _up_to(member, _TAR_BLOCK) for member in members)


def shard_bytes(data: DataConfig, images: Iterable[int]) -> int:
    """All shards. images: of each split, which have shards of their own."""
    each = sample_bytes(data)
    whole = [min(data.shard_images, count - start) for count in images for start in range(0, count, data.shard_images)]
    return sum(_up_to(count * each + 2 * _TAR_BLOCK, _TAR_RECORD) for count in whole)


def _up_to(size: int, block: int) -> int:
    return -(-size // block) * block


def images_of(data: DataConfig) -> int | None:
    """How many images the source has, held-out ones counted; None where only `prepare` will see."""
    source = data.source
    known = {Digits: 1_797, Cifar10: 50_000, Mnist: 60_000, FashionMnist: 60_000}
    if type(source) in known:
        return known[type(source)]
    try:
        if isinstance(source, ImageFolder):
            return len(source.stamps())
        if isinstance(source, Shards) and source.index is not None:
            return sum(shard.samples for shard in ShardIndex.load(source.index.expanduser().absolute()).shards)
    except DataError:
        return None
    return source.reference_images if isinstance(source, Stream) else None
