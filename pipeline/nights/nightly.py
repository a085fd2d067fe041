"""A night: train on what is there now, score the new model and the champion alike, and promote it or leave it.

A night is known by its configuration and its images: where neither has changed since an earlier one there is nothing to
do, and one that was killed goes on by the same call, with what it had begun with: the champion, and the shards of the
night before, to which those of new images are added. All nights are compared with the images of the first, so that
their scores are of one kind, unless `evaluate.reference` says what with. What came of a night is on the version in the
registry.
"""

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from model import Record

from ..data.shards import new_files
from ..data.sources import can_grow
from ..errors import ConfigError, DataError
from ..figures import count
from ..files import digest, exclusive, read_json, write_json
from ..flow import run_flow
from ..models.description import Description, described_in
from ..models.stored_model import weights_of
from ..redaction import redacted
from ..registration.gate import Standing
from ..registration.registry import CHAMPION, VERDICT_TAG, add_scores, aliases_of, standing
from ..runfile.config import Config
from ..runfile.keyroles import identity
from ..stage import Run
from ..terminal import Terminal
from ..tracking.mlflow_store import check_answers, connect, reported
from ..tracking.model_uri import version_uri
from .night_plot import draw_nights

NIGHT_TAG = "night"
"""On a version: which night made it."""
EXIT_CODES = {"promoted": 0, "nothing new": 0, "rejected": 3}
_LAST, _PINNED, _PLOT = "last.json", "reference.json", "nights.png"
_COMMAND_S = 60.0  # longest time of nightly.command

Result = Literal["promoted", "nothing new", "rejected"]


@dataclass(frozen=True)
class Outcome:
    """What came of a night."""

    result: Result
    verdict: str
    """One sentence."""
    model_name: str
    version: int
    """The one that the night made."""
    champion: int | None
    """The version to use from now on; None: there is none."""

    @property
    def exit_code(self) -> int:
        """0 where all is well and the champion the newest, or nothing was to be done; 3 where it was not promoted."""
        return EXIT_CODES[self.result]


class Beginning(Record):
    """What a night begins with, and goes on with after a kill."""

    champion: int | None
    """The version that is champion; null: there is none."""
    base: Path | None
    """The images as the last night had prepared them; null: they are prepared anew."""
    reference: Path | None
    """The images to compare with; null: as the configuration has it."""


class Night:
    """One night of a configuration: its key, and what it began with."""

    def __init__(self, config: Config, terminal: Terminal) -> None:
        self.config, self.terminal = config, terminal
        self.run = Run(config, terminal)
        self.model_name, self.uri = config.register_.model_name, self.run.tracking_uri
        given = config.evaluate.reference_digest()
        self.key = digest([identity(config), config.data.source.fingerprint(), given])

    @property
    def folder(self) -> Path:
        """Of all nights of this model; one process at a time holds it."""
        return self.run.output / "nights" / self.model_name

    def begun(self) -> Beginning:
        """What the night began with, written down when it first begins."""
        path = self.folder / f"{self.key[:12]}.json"
        if path.exists():
            beginning = Beginning.model_validate_json(path.read_text(encoding="utf-8"))
            if beginning.champion is None or self._is_there(beginning.champion):
                return beginning
            self.terminal.line(f"version {beginning.champion}, the champion it began with, is gone: it begins anew")
        with reported(f"look up {self.model_name}", self.uri):
            champion = self._champion()
        beginning = Beginning(champion=champion, base=self._base(), reference=self._reference())
        write_json(path, beginning.model_dump(mode="json"))
        return beginning

    def _is_there(self, version: int) -> bool:
        with reported(f"look up {self.model_name}", self.uri):
            found = connect(self.uri).search_model_versions(f"name = '{self.model_name}'")
        return version in {int(each.version) for each in found}

    def _base(self) -> Path | None:
        """The images as the last night had them, where those of tonight are these and more."""
        last = self.folder / _LAST
        if not last.exists() or not can_grow(self.config.data.source):
            return None
        before = read_json(last)
        folder = self.run.output / str(before["prepared"])
        try:
            added = new_files(self.config.data, folder)
        except DataError as error:
            self.terminal.line(f"all images are prepared anew: {error}")
            return None
        self.terminal.line(f"{count(len(added), 'new files')} beside those of the last night")
        if not added:  # then they are what they were, and are found again
            return Path(before["base"]) if before["base"] else None
        return folder

    def _reference(self) -> Path | None:
        """The images of the first night, unless the configuration says what to compare with."""
        pinned = self.folder / _PINNED
        if self.config.evaluate.reference is not None or not pinned.exists():
            return None
        return self.run.output / str(read_json(pinned)["prepared"])

    def _champion(self) -> int | None:
        return aliases_of(connect(self.uri), self.model_name).get(CHAMPION)

    def earlier(self) -> Outcome | None:
        """What came of this night where it has ended before."""
        with reported(f"look up {self.model_name}", self.uri):
            mine = f"name = '{self.model_name}' and tags.`{NIGHT_TAG}` = '{self.key}'"
            found = connect(self.uri).search_model_versions(mine, max_results=1)
            if not found:
                return None
            before = found[0].tags.get(VERDICT_TAG, "no verdict")
            verdict = f"neither images nor configuration have changed since: {before}"
            champion = self._champion()
        return Outcome("nothing new", verdict, self.model_name, int(found[0].version), champion)

    def training(self, beginning: Beginning) -> Config:
        """What is run this night."""
        data = {"base": str(beginning.base)} if beginning.base else {}
        compared = {"reference": str(beginning.reference)} if beginning.reference else {}
        start = {}
        if beginning.champion is not None and self.config.nightly.start == "champion":
            start = {"warm_start": version_uri(self.model_name, beginning.champion)}
        return changed(self.config, data=data, train=start, evaluate=compared)

    def close(self, ended: Run) -> Outcome:
        """Writes down which night the version is of, and for the next one which shards it had."""
        facts = ended.results["register"].facts
        prepared = ended.results["prepare"].folder.relative_to(self.run.output)
        base = ended.config.data.base
        write_json(self.folder / _LAST, {"prepared": str(prepared), "base": base and str(base)})
        if not (self.folder / _PINNED).exists():
            write_json(self.folder / _PINNED, {"prepared": str(prepared)})
        with reported("close the night", self.uri):
            version, champion = int(facts["model_version"]), self._champion()
            picture = draw_nights(connect(self.uri), self.model_name, self.folder / _PLOT)
        if picture and ended.tracked:
            ended.tracked.log_files([picture], "pictures")
            self.terminal.facts({"nights": str(picture)})
        with reported("close the night", self.uri):
            connect(self.uri).set_model_version_tag(self.model_name, str(version), NIGHT_TAG, self.key)
        result: Result = "promoted" if facts["is_champion"] else "rejected"
        return Outcome(result, facts["verdict"], self.model_name, version, champion)


def run_nightly(config: Config, terminal: Terminal) -> Outcome:
    """Makes the night, or goes on with it. BusyError while another process is at a night of this model."""
    night = Night(config, terminal)
    check_answers(night.uri, config.tracking.timeout_s)
    with exclusive(night.folder, "night"):
        outcome = night.earlier()
        if outcome is None:
            beginning = night.begun()
            tonight = night.training(beginning)
            if beginning.champion is not None:
                terminal.line(f"version {beginning.champion}, the champion, is scored as tonight's model will be")
                _score_again(night, tonight, beginning.champion)
                terminal.line("tonight's model")
            outcome = night.close(run_flow(tonight, terminal))
        terminal.facts({outcome.result: outcome.verdict})
        _tell(config.nightly.command, outcome, terminal)
    return outcome


def _score_again(night: Night, tonight: Config, champion: int) -> None:
    """Scores the champion as tonight's model will be, unless its scores under this protocol are known.

    One that cannot be drawn from in this way keeps the scores that it has, and the gate looks for those.
    """
    try:
        config = as_it_is(tonight, night.model_name, champion, night.uri)
    except ConfigError as error:
        night.terminal.line(f"it cannot be: {error}")
        return
    evaluated = run_flow(config, night.terminal, until="evaluate").results["evaluate"].facts
    protocol_digest = evaluated["protocol_digest"]
    with reported(f"score version {champion} again", night.uri):
        client = connect(night.uri)
        if standing(client, night.model_name, champion, protocol_digest) is None:
            again = Standing(
                evaluated["primary_score"], evaluated["scores"], version=champion, protocol_digest=protocol_digest
            )
            add_scores(client, night.model_name, again)


def as_it_is(config: Config, model_name: str, version: int, uri: str) -> Config:
    """A configuration that takes a registered version as it is and draws and scores as `config` does.

    ConfigError where the version is of another format, or cannot be drawn from in this way.
    """
    name = version_uri(model_name, version)
    with weights_of(name, uri, config.tracking.timeout_s) as (_, _, description):
        assert description is not None  # a version has one
        there = described_in(description)
    try:
        return changed(
            config,
            name=f"{config.name[:40]}-champion",
            train={"images": 0, "warm_start": name},
            sample={"sigma_rel": None},
            evaluate={"curve_images": 0},
            **_model_parts(there, config),
        )
    except ValidationError as error:
        reasons = "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in error.errors())
        raise ConfigError(f"{name}: does not go with this configuration: {reasons}") from None


def _model_parts(there: Description, config: Config) -> dict[str, Any]:
    """Where the version is another model than the configuration's, the keys that make it the version's."""
    if there.spec == config.spec and there.labels_withheld == config.labels_withheld:
        return {}
    parts = {part: getattr(there.spec, part) for part in ("network", "path", "target", "variance", "codec")}
    parts["conditioning"] = there.conditioning
    return {name: part.model_dump(mode="json") for name, part in parts.items()}


def changed(config: Config, **sections: Any) -> Config:
    """The configuration with these keys changed; sections that stay sections are merged."""
    tree = config.model_dump(mode="json", by_alias=True)
    for name, value in sections.items():
        merged = isinstance(value, dict) and "kind" not in value
        tree[name] = tree[name] | value if merged else value
    return Config.model_validate(tree)


def _tell(command: tuple[str, ...], outcome: Outcome, terminal: Terminal) -> None:
    """Starts `nightly.command` with the outcome. That it fails changes nothing of the night, and is told."""
    if not command:
        return
    try:
        done = subprocess.run(
            command, input=json.dumps(asdict(outcome)), text=True, timeout=_COMMAND_S, capture_output=True, check=False
        )
        problem = done.returncode and f"exit code {done.returncode}: {redacted(done.stderr.strip())[-200:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        terminal.line(f"nightly.command {command[0]} failed, the night stands: {problem}")
