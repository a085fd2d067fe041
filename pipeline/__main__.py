"""`python -m pipeline`: the command line."""

import argparse
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from .terminal import Terminal, console_for, print_error, quiet_libraries

quiet_libraries()  # before anything imports them

from evaluation import EvaluationError  # noqa: E402

from .config import Config  # noqa: E402
from .configfile import load  # noqa: E402
from .errors import ConfigError, PipelineError  # noqa: E402
from .job_commands import NAMES as JOB_COMMANDS  # noqa: E402
from .job_commands import add_job_commands, run_job_command  # noqa: E402
from .mlflow_store import redacted  # noqa: E402
from .request import MODEL_HELP, add_options, add_tracking_uri, request_of  # noqa: E402

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
    if options.command == "keys":
        from .keys import choices_markdown, print_keys

        if options.choices:
            print(choices_markdown(Config), end="")
        else:
            print_keys(Config, console_for(sys.stdout))
        return 0
    without_file = {
        "plan": _plan,
        "index": _index,
        "compare": _compare,
        "sweep": _sweep,
        "generate": _generate,
        "import": _import,
        "export": _export,
        "history": _history,
        "promote": _promote,
        "rollback": _rollback,
        "prune": _prune,
    }
    if options.command in without_file:
        without_file[options.command](options)
        return 0
    if options.command in JOB_COMMANDS:
        return run_job_command(options, Terminal())
    config = load(options.file, options.overrides, Config)
    if options.command == "check":
        from .outline import print_outline

        print_outline(config, console_for(sys.stdout))
        return 0
    if options.command == "doctor":
        from .doctor import run_doctor

        return run_doctor(config, options.all, Terminal())
    if options.command == "profile":
        from .profiling import run_profile

        with _disk_errors(config.output):
            run_profile(config, Terminal())
        return 0
    if options.command == "evaluate" and options.reference and not options.images:
        raise ConfigError("--reference: what --images are compared with; name those, too")
    if options.command == "evaluate" and options.images:
        from .outside import run_outside

        with _disk_errors(config.output):
            run_outside(config, options.images, options.reference, Terminal())
        return 0
    if options.command == "nightly":
        from .nightly import run_nightly

        with _disk_errors(config.output):
            return run_nightly(config, Terminal()).exit_code
    from .flow import STAGES, run_flow

    until = STAGES[-1] if options.command == "run" else options.command
    with _disk_errors(config.output):
        run_flow(config, Terminal(), until)
    return 0


def _plan(options: argparse.Namespace) -> None:
    from .plan import run_plan

    run_plan(options, console_for(sys.stdout))


def _sweep(options: argparse.Namespace) -> None:
    from .combinations import combine

    combinations = combine(options.file, options.overrides)
    config = combinations[0].config
    from .sweep import run_sweep

    with _disk_errors(config.output):
        run_sweep(combinations, Terminal())


def _generate(options: argparse.Namespace) -> None:
    request = request_of(options)
    from .generate import run_generate
    from .stored_model import load_stored

    stored = load_stored(options.model, options.overrides, options.tracking_uri, options.device)
    try:
        run_generate(request, stored, Terminal(brief=True))
    except OSError as error:
        raise PipelineError(f"{error}; the picture was not written") from error


def _compare(options: argparse.Namespace) -> None:
    from .compare import run_compare
    from .mlflow_store import ANSWER_S, resolve_uri

    run_compare(options.first, options.second, resolve_uri(options.tracking_uri), ANSWER_S, Terminal())


def _history(options: argparse.Namespace) -> None:
    from .versions import show_history

    show_history(options.model_name, _uri(options), Terminal())


def _promote(options: argparse.Namespace) -> None:
    from .versions import promote

    promote(options.model, options.because, _uri(options), Terminal())


def _rollback(options: argparse.Namespace) -> None:
    from .versions import rollback

    rollback(options.model_name, options.because, _uri(options), Terminal())


def _prune(options: argparse.Namespace) -> None:
    from .prune import prune

    with _disk_errors(options.output):
        prune(options.model_name, options.keep, options.output, _uri(options), options.really, Terminal())


def _uri(options: argparse.Namespace) -> str:
    """MLflow's address, which answers."""
    from .mlflow_store import check_answers, resolve_uri

    uri = resolve_uri(options.tracking_uri)
    check_answers(uri)
    return uri


def _index(options: argparse.Namespace) -> None:
    from .index_tars import run_index

    with _disk_errors(options.into):
        run_index(options, Terminal())


def _import(options: argparse.Namespace) -> None:
    from .diffusers_folder import run_import

    with _disk_errors(options.into):
        run_import(options, Terminal(brief=True))


def _export(options: argparse.Namespace) -> None:
    from .diffusers_folder import run_export

    with _disk_errors(options.into):
        run_export(options, Terminal(brief=True))


@contextmanager
def _disk_errors(output: str | Path) -> Iterator[None]:
    """A disk that is full, or a folder that may not be written to, is no fault of the program."""
    try:
        yield
    except OSError as error:
        raise PipelineError(f"{error} (output is {output}); mend it, and the same command goes on") from error


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="python -m pipeline",
        description="Train, sample, score and register a diffusion model, from one YAML file.",
        epilog="'keys' explains every key of the file. A command that was interrupted goes on when it is given again.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    for name, summary in with_file.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("file", type=Path, metavar="FILE", help="run file, such as pipeline/runs/digits.yaml")
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="key=value" if name != "sweep" else "key=value[,value...]",
            help="instead of what the file says, e.g. train.images=1_000_000",
        )
        if name == "evaluate":
            _add_outside(command)
        if name == "doctor":
            command.add_argument("--all", action="store_true", help="read all shards, not a sample of them")
        if name == "plan":
            command.add_argument(
                "--device", metavar="NAME", help="plan for this device, such as h200; default: this machine"
            )
            command.add_argument(
                "--gpus", type=int, metavar="N", help="so many of --device; default: train.num_workers"
            )
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
    drawing = "use a trained model: images, grids, interpolations, reconstructions, inpainting, image to image"
    add_options(commands.add_parser("generate", help=drawing, description=drawing))
    _add_index(commands.add_parser("index", help="index webdataset tars that exist, local or remote"))
    sides = "set two scored models side by side, or say why they cannot be"
    compare = commands.add_parser("compare", help=sides, description=sides)
    for place in ("first", "second"):
        compare.add_argument(place, metavar="MODEL", help=MODEL_HELP)
    add_tracking_uri(compare)
    compare.add_argument("--traceback", action="store_true", help="show where an error came from")
    _add_import(commands.add_parser("import", help="make a model of a folder of diffusers, to draw, score or train on"))
    _add_export(commands.add_parser("export", help="write a model as a folder of diffusers"))
    _add_versions(commands)
    add_job_commands(commands, ["run", *_STAGES, "nightly", "sweep"])
    keys = commands.add_parser("keys", help="every key of a run file: type, default, meaning")
    keys.add_argument("--choices", action="store_true", help="only what there is to choose from, as a Markdown table")
    keys.set_defaults(traceback=False)
    return parser


def _add_outside(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--images", type=Path, metavar="PATH", help="score these instead: a folder, a webdataset tar, an .npz or .npy"
    )
    command.add_argument(
        "--reference",
        type=Path,
        metavar="NPZ",
        help="compare --images with these statistics (mu, sigma) and not with the file's training images",
    )


def _add_versions(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """What concerns the versions of one registered model."""
    history = commands.add_parser(
        "history", help="the versions of a model, their scores and verdicts, and its champions"
    )
    promote = commands.add_parser("promote", help="make a version the champion by hand")
    promote.add_argument("model", metavar="MODEL", help="models:/NAME/VERSION or models:/NAME@ALIAS")
    rollback = commands.add_parser("rollback", help="make the champion before this one the champion again")
    for command in (promote, rollback):
        command.add_argument("--because", default="by hand", metavar="TEXT", help="the reason, for the history")
    prune = commands.add_parser("prune", help="remove old versions with all that was kept of them")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="keep the newest N, and all with an alias")
    prune.add_argument("--output", type=Path, default=Path("outputs"), metavar="FOLDER", help="output of the runs")
    prune.add_argument("--really", action="store_true", help="remove; without it, only say what would be")
    for command in (history, rollback, prune):
        command.add_argument(
            "model_name", metavar="NAME", help="name of the registered model, as register.model_name has it"
        )
    for command in (history, promote, rollback, prune):
        add_tracking_uri(command)
        command.add_argument("--traceback", action="store_true", help="show where an error came from")


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
    command.add_argument("--traceback", action="store_true", help="show where an error came from")


def _add_import(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Read a folder in which a DDPMPipeline or DDIMPipeline of diffusers was saved, and write a model's folder that "
        "'generate' and train.warm_start take."
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="with unet/ and scheduler/")
    command.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where the model is written")
    command.add_argument(
        "--last-class-is-none",
        action="store_true",
        help="the last class that the network knows stands for none, as after training for classifier-free guidance",
    )
    command.add_argument("--traceback", action="store_true", help="show where an error came from")


def _add_export(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Write a trained model as a folder that diffusers' DDPMPipeline and DDIMPipeline load, to draw as it does."
    )
    command.usage = "python -m pipeline export MODEL [key=value ...] --into FOLDER [--tracking-uri URI] [--traceback]"
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="right after MODEL: another sampler than the model's, ancestral or ddim, e.g. sampler.grid=leading",
    )
    command.add_argument(
        "--into", type=Path, required=True, metavar="FOLDER", help="where diffusers' folder is written"
    )
    add_tracking_uri(command)
    command.add_argument("--traceback", action="store_true", help="show where an error came from")


if __name__ == "__main__":
    sys.exit(main())
