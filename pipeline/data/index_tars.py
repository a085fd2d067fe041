"""`python -m pipeline index`: an index of tars that someone else wrote, for `data.source` to name."""

import json
import shlex
from argparse import Namespace

from ..errors import ConfigError
from ..figures import count
from ..terminal import Terminal
from .existing_tars import Tars, index_tars
from .shard_cache import DEFAULT
from .shard_index import ShardIndex
from .tar_locations import tar_locations


def run_index(options: Namespace, terminal: Terminal) -> None:
    """Reads every tar once, and says how a run file uses the index. options: as the command line gives them."""
    try:
        found = tar_locations(options.urls, "the command")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    names = tuple(options.class_names.split(",")) if options.class_names else ()
    tars = Tars(found, names, options.image_size, options.channels)
    cache = DEFAULT if options.cache is None else DEFAULT.model_copy(update={"folder": options.cache.absolute()})
    folder = options.into.expanduser().absolute()
    with (
        terminal.stage("index", count(len(found), "shards")) as report,
        terminal.progress(0, "images") as progress,
    ):
        index = index_tars(tars, folder, cache, progress.update)
        report.figure = count(index.count("train"), "images")
    terminal.facts(_facts(index))


def _facts(index: ShardIndex) -> dict[str, str]:
    size, colour = index.image_size, "grey" if index.channels == 1 else "colour"
    # JSON's strings are YAML's too
    source = shlex.quote(f"data.source={{kind: shards, index: {json.dumps(str(index.folder), ensure_ascii=False)}}}")
    return {
        "images": f"{index.count('train'):,} of {size}x{size} pixels, {colour}",
        "classes": f"{len(index.class_names):,}" if index.class_names else "none",
        "shards": f"{len(index.shards):,}, {sum(entry.bytes for entry in index.shards):,} bytes",
        "index": str(index.folder),
        "use it": f"{source} data.image_size={size} data.channels={index.channels}",
    }
