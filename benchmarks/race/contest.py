"""Arms in rotated order, round after round, on the same bundle and the same scans; every result is compared."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from race.arms import Arm
from race.compare import compare
from race.heads import gather
from race.timed import Turn, computed_by, run, stages_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Contest:
    """What is run.

    Attributes:
        name: in tables.
        places: what `{bundle}` and `{name}` are in the commands.
        scans: all of them.
        arms: the first is what the others are compared with.
        env: of all arms.
        folder: for inputs, results and logs; results are deleted once compared.
        facts: what else is known about it, such as operations a window.
    """

    name: str
    places: dict[str, str]
    scans: Sequence[Path]
    arms: Sequence[Arm]
    env: dict[str, str]
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Entry:
    """What one arm has done so far."""

    arm: Arm
    first: Turn | None = None
    watched: Turn | None = None
    many: list[Turn] = field(default_factory=list)
    one: list[Turn] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    computed_by: dict[str, Any] = field(default_factory=dict)
    said: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        facts = {key: value for key, value in asdict(self).items() if key != "arm"}
        return {"name": self.arm.name, "command": self.arm.shown(), **facts}


class Race:
    """A contest while it goes on."""

    def __init__(self, contest: Contest, say: Say) -> None:
        self.contest = contest
        self.entries = [Entry(arm) for arm in contest.arms]
        self._say = say
        self._inputs = {
            "one": gather(contest.scans[:1], contest.folder / "inputs" / "one"),
            "many": gather(contest.scans, contest.folder / "inputs" / "many"),
        }

    def warm_up(self) -> None:
        """Runs every arm once over one scan: files are in memory and networks converted after it; MONAI is watched."""
        for entry in self.entries:
            entry.first = self._turn(entry, entry.arm, "one", "first")
            if entry.arm.is_monai and not entry.said:
                self._watch(entry)

    def round(self, number: int) -> None:
        """Runs every arm over one scan and over all, beginning with another arm each round."""
        shift = number % len(self.entries)
        for entry in [*self.entries[shift:], *self.entries[:shift]]:
            for which, turns in (("one", entry.one), ("many", entry.many)):
                turn = self._turn(entry, entry.arm, which, f"round {number + 1}")
                if turn is None:
                    break
                turns.append(turn)
            else:
                entry.stages += stages_of(self._output(entry))
                entry.computed_by = computed_by(self._output(entry))
                self._compare(entry, keep=number == 0 and entry is self.entries[0])

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        contest = self.contest
        entries = [entry.to_json() for entry in self.entries]
        return {"name": contest.name, "volumes": len(contest.scans), **contest.facts, "arms": entries}

    def clear(self) -> None:
        """Deletes inputs and results; logs stay."""
        for part in ("inputs", "results"):
            shutil.rmtree(self.contest.folder / part, ignore_errors=True)

    def _turn(self, entry: Entry, arm: Arm, which: str, when: str) -> Turn | None:
        if entry.said:
            return None
        output = self._output(entry)
        places = {**self.contest.places, "input": self._inputs[which], "output": output}
        log = self.contest.folder / "logs" / f"{output.name}.log"
        turn = run(arm.command(places), {**self.contest.env, **arm.env}, output, log)
        expected = len(self.contest.scans) if which == "many" else 1
        self._say(f"{self.contest.name}, {when}, {arm.name}, scans {expected}: {turn.seconds:.1f} s")
        if turn.code:
            entry.said = turn.said or f"exit code {turn.code}"
            self._say(f"  {entry.said}")
            return None
        return turn

    def _watch(self, entry: Entry) -> None:
        """Runs MONAI once more with clocks inside, for its stages."""
        log = self.contest.folder / "logs" / f"{self._output(entry).name}.watch"
        log.unlink(missing_ok=True)
        arm = entry.arm.watched()
        arm = Arm(arm.name, arm.words, {**arm.env, "SPEED_WATCH": str(log)})
        entry.watched = self._turn(entry, arm, "many", "watched")
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        entry.stages = [{"read": 0.0, **json.loads(line)} for line in lines]

    def _compare(self, entry: Entry, *, keep: bool) -> None:
        """Compares with what the reference made in the first round, which is kept."""
        output, kept = self._output(entry), self.contest.folder / "results" / "reference"
        if keep:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(output, kept)
        if kept.is_dir():
            try:
                entry.differences += [
                    asdict(one) for one in compare([s.name for s in self.contest.scans], kept, output)
                ]
            except FileNotFoundError as error:
                entry.said = str(error)
        shutil.rmtree(output, ignore_errors=True)

    def _output(self, entry: Entry) -> Path:
        return self.contest.folder / "results" / f"arm-{self.entries.index(entry)}"
