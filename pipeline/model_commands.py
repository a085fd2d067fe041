"""The commands on models that are trained: draw, compare, exchange with diffusers, look after their versions."""

import argparse
from pathlib import Path

from .errors import PipelineError, disk_errors
from .models.request import MODEL_HELP, add_options, add_tracking_uri, request_of
from .terminal import Terminal


def add_model_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`generate`, `compare`, `import`, `export`, `history`, `promote`, `rollback`, `prune`."""
    drawing = "use a trained model: images, grids, interpolations, reconstructions, inpainting, image to image"
    generate = commands.add_parser("generate", help=drawing, description=drawing)
    add_options(generate)
    generate.set_defaults(execute=_generate)
    sides = "set two scored models side by side, or say why they cannot be"
    compare = commands.add_parser("compare", help=sides, description=sides)
    for place in ("first", "second"):
        compare.add_argument(place, metavar="MODEL", help=MODEL_HELP)
    compare.set_defaults(execute=_compare)
    _add_import(commands.add_parser("import", help="make a model of a folder of diffusers, to draw, score or train on"))
    export = commands.add_parser("export", help="write a model as a folder of diffusers")
    _add_export(export)
    for command in (compare, export, *_versions(commands)):
        add_tracking_uri(command)


def _versions(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> tuple[argparse.ArgumentParser, ...]:
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
    executed = {history: _history, promote: _promote, rollback: _rollback, prune: _prune}
    for command, execute in executed.items():
        command.set_defaults(execute=execute)
    return tuple(executed)


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
    command.set_defaults(execute=_import)


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
    command.set_defaults(execute=_export)


def _generate(options: argparse.Namespace) -> None:
    request = request_of(options)
    from .models.generate import run_generate
    from .models.stored_model import load_stored

    stored = load_stored(options.model, options.overrides, options.tracking_uri, options.device)
    try:
        run_generate(request, stored, Terminal(brief=True))
    except OSError as error:
        raise PipelineError(f"{error}; the picture was not written") from error


def _compare(options: argparse.Namespace) -> None:
    from .registration.compare import run_compare
    from .tracking.mlflow_store import resolve_uri

    run_compare(options.first, options.second, resolve_uri(options.tracking_uri), Terminal())


def _import(options: argparse.Namespace) -> None:
    from .models.diffusers_folder import run_import

    with disk_errors(options.into):
        run_import(options, Terminal(brief=True))


def _export(options: argparse.Namespace) -> None:
    from .models.diffusers_folder import run_export

    with disk_errors(options.into):
        run_export(options, Terminal(brief=True))


def _history(options: argparse.Namespace) -> None:
    from .registration.versions import show_history

    show_history(options.model_name, _uri(options), Terminal())


def _promote(options: argparse.Namespace) -> None:
    from .registration.versions import promote

    promote(options.model, options.because, _uri(options), Terminal())


def _rollback(options: argparse.Namespace) -> None:
    from .registration.versions import rollback

    rollback(options.model_name, options.because, _uri(options), Terminal())


def _prune(options: argparse.Namespace) -> None:
    from .registration.prune import prune

    with disk_errors(options.output):
        prune(options.model_name, options.keep, options.output, _uri(options), options.really, Terminal())


def _uri(options: argparse.Namespace) -> str:
    """MLflow's address, which answers."""
    from .tracking.mlflow_store import check_answers, resolve_uri

    uri = resolve_uri(options.tracking_uri)
    check_answers(uri)
    return uri
