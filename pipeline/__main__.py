"""`python -m pipeline`: the command line, and what each command that takes a run file does."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .terminal import Terminal, console_for, print_error, quiet_libraries

quiet_libraries()  # before anything imports them

from evaluation import EvaluationError

from .errors import ConfigError, PipelineError, disk_errors
from .job_commands import add_job_commands
from .model_commands import add_model_commands
from .redaction import redacted
from .runfile.config import Config
from .runfile.configfile import load

_STAGES = {  # as in flow.FLOW, which takes seconds to import: `check` and `keys` should not wait for Ray
    "prepare": "pack the images as shards",
    "train": "train, packing first where needed",
    "guide": "train the classifier that guides sampling, where one is asked for, after all that comes before",
    "reference": "take the features of the real images, after all that comes before",
    "sample": "draw images, after all that comes before",
    "shards": "write the drawn images as webdataset tars, where sample.shards asks for it, after all that comes before",
    "evaluate": "score the images, after all that comes before",
    "curve": "score what training kept on its way, where evaluate.curve_images asks for it",
    "register": "register the model, after all that comes before",
}

_BRIEF = ("generate", "import", "export")
"""Commands that are given again from the beginning where they were interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. -> the exit code: 0; 1 for a failed run; 2 for a wrong configuration or command; 3 for a night
    that ends without a new champion; 4 while another process is at the same work.
    """
    options = _parser().parse_args(arguments)
    try:
        return _execute(options)
    except (PipelineError, EvaluationError) as error:
        if options.traceback:
            _print_traceback()
        else:
            print_error(redacted(str(error)))
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print_error("interrupted" if options.command in _BRIEF else "interrupted; the same command goes on from here")
        return 130
    except Exception:  # a fault of the program
        _print_traceback()
        return 1


def _print_traceback() -> None:
    """Of the exception that is handled, as Python has it, but without credentials."""
    print(redacted(traceback.format_exc()), file=sys.stderr, end="")


class _Parser(argparse.ArgumentParser):
    """Its errors repeat what was typed, but for credentials."""

    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))


def _execute(options: argparse.Namespace) -> int:
    """By the function that the command was given beside its options. -> the exit code, 0 where that returns none."""
    code: int | None = options.execute(options)
    return code or 0


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="python -m pipeline",
        description="Train, sample, score and register a diffusion model, from one YAML file.",
        epilog="'keys' explains every key of the file. A command that was interrupted goes on when it is given again.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_file_commands(commands)
    add_model_commands(commands)
    _add_index(commands.add_parser("index", help="index webdataset tars that exist, local or remote"))
    add_job_commands(commands, ["run", *_STAGES, "nightly", "sweep"])
    keys = commands.add_parser("keys", help="every key of a run file: type, default, meaning")
    keys.add_argument("--choices", action="store_true", help="only what there is to choose from, as a Markdown table")
    keys.set_defaults(execute=_keys)
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def _add_file_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """All that take a run file."""
    with_file = {
        "run": "all stages",
        "doctor": "look at the cluster, its nodes, storage, shards and MLflow, and name what is to be mended first",
        "check": "validate the file and print what would be done; spend nothing",
        **_STAGES,
        "plan": "what a run would take of time, devices, storage and network, and what limits it",
        "profile": "train some steps here, without a cluster, and write down where their time goes",
        "nightly": "train on what is there now, score against the champion, promote what is better: for a scheduler",
        "sweep": "draw from one checkpoint in many ways and compare: key=a,b,c for keys of sample and evaluate",
    }
    others = {
        "doctor": _doctor,
        "check": _check,
        "evaluate": _evaluate,
        "plan": _plan,
        "profile": _profile,
        "nightly": _nightly,
        "sweep": _sweep,
    }
    for name, summary in with_file.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("file", type=Path, metavar="FILE", help="run file, such as pipeline/runs/digits.yaml")
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value" if name != "sweep" else "key=value[,value...]",
            help="instead of what the file says, e.g. train.images=1_000_000",
        )
        command.set_defaults(execute=others.get(name, _run))
    _add_outside(commands.choices["evaluate"])
    commands.choices["doctor"].add_argument("--all", action="store_true", help="read all shards, not a sample of them")
    plan = commands.choices["plan"]
    plan.add_argument("--device", metavar="NAME", help="plan for this device, such as h200; default: this machine")
    plan.add_argument("--gpus", type=int, metavar="N", help="so many of --device; default: train.num_workers")


def _add_outside(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "--images", type=Path, metavar="PATH", help="score these instead: a folder, a webdataset tar, an .npz or .npy"
    )
    evaluate.add_argument(
        "--reference",
        type=Path,
        metavar="NPZ",
        help="compare --images with these statistics (mu, sigma) and not with the file's training images",
    )


def _add_index(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Read webdataset tars once and write an index of them, for data.source={kind: shards, index: FOLDER}."
    )
    command.add_argument("urls", nargs="+", metavar="URL", help="path, glob or URL of tars; {000..041} expands")
    command.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where the index is written")
    command.add_argument("--image-size", type=int, metavar="PIXELS", help="default: that of the first image")
    command.add_argument("--channels", type=int, choices=[1, 3], help="default: those of the first image")
    command.add_argument("--class-names", metavar="A,B,...", help="in the order of their labels; default: the labels")
    command.add_argument("--cache", type=Path, metavar="FOLDER", help="for remote tars; default: as data.shard_cache")
    command.set_defaults(execute=_index)


def _config(options: argparse.Namespace) -> Config:
    return load(options.file, options.overrides, Config)


def _run(options: argparse.Namespace) -> None:
    """All stages, or those up to the one that is the command."""
    config = _config(options)
    from .flow import STAGES, run_flow

    with disk_errors(config.output):
        run_flow(config, Terminal(), STAGES[-1] if options.command == "run" else options.command)


def _evaluate(options: argparse.Namespace) -> None:
    if options.images is None:
        if options.reference is not None:
            raise ConfigError("--reference: what --images are compared with; name those, too")
        _run(options)
        return
    config = _config(options)
    from .scoring.outside import run_outside

    with disk_errors(config.output):
        run_outside(config, options.images, options.reference, Terminal())


def _nightly(options: argparse.Namespace) -> int:
    config = _config(options)
    from .nights.nightly import run_nightly

    with disk_errors(config.output):
        return run_nightly(config, Terminal()).exit_code


def _sweep(options: argparse.Namespace) -> None:
    from .sweeps.combinations import combine

    combinations = combine(options.file, options.overrides)
    from .sweeps.sweep import run_sweep

    with disk_errors(combinations[0].config.output):
        run_sweep(combinations, Terminal())


def _check(options: argparse.Namespace) -> None:
    config = _config(options)
    from .planning.outline import print_outline

    print_outline(config, console_for(sys.stdout))


def _doctor(options: argparse.Namespace) -> int:
    config = _config(options)
    from .doctor.doctor import run_doctor

    return run_doctor(config, options.all, Terminal())


def _plan(options: argparse.Namespace) -> None:
    from .planning.plan import run_plan

    run_plan(options, console_for(sys.stdout))


def _profile(options: argparse.Namespace) -> None:
    config = _config(options)
    from .training.profiling import run_profile

    with disk_errors(config.output):
        run_profile(config, Terminal())


def _index(options: argparse.Namespace) -> None:
    from .data.index_tars import run_index

    with disk_errors(options.into):
        run_index(options, Terminal())


def _keys(options: argparse.Namespace) -> None:
    from .runfile.keys import choices_markdown, print_keys

    if options.choices:
        print(choices_markdown(Config), end="")
    else:
        print_keys(Config, console_for(sys.stdout))


if __name__ == "__main__":
    sys.exit(main())
