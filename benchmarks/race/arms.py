"""The commands that are timed against each other, and the environment that they have in common."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REFERENCE = "bundle run"
TUNED = "bundle run, allocator tuned"
# Memory that was given back to the kernel must be zeroed by it, page by page, when it is asked for again; glibc gives
# back every large block. Who knows that sets these, and gets it without medgen.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
_MONAI = shlex.split(
    "-m monai.bundle run --config_file {bundle}/configs/inference.yaml --bundle_root {bundle} "
    "--dataset_dir {input} --output_dir {output}"
)
_MEDGEN = shlex.split("-m medgen run {name} -i {input} -o {output} --no-preview")
_WATCHED = str(Path(__file__).with_name("watched.py"))


@dataclass(frozen=True)
class Arm:
    """A way to have a bundle's results.

    Attributes:
        name: in tables.
        words: arguments of Python, with `{bundle}`, `{name}`, `{input}` and `{output}` where paths go.
        env: besides what all arms have.
    """

    name: str
    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_monai(self) -> bool:
        """Whether MONAI runs the bundle, whose stages have to be watched to be known."""
        return "monai.bundle" in self.words

    def command(self, places: Mapping[str, Path | str]) -> list[str]:
        """Returns the command with its paths."""
        return [sys.executable, *(word.format(**places) for word in self.words)]

    def watched(self) -> "Arm":
        """Returns the same run of MONAI with a clock around each stage."""
        return Arm(self.name, (_WATCHED, *self.words[2:]), self.env)

    def shown(self) -> str:
        """Returns the command as a reader would type it, with names for the paths."""
        places = {"bundle": "BUNDLE", "name": "BUNDLE", "input": "SCANS", "output": "RESULTS"}
        words = ["python", *(word.format(**places) for word in self.words)]
        return " ".join([*(f"{key}={value}" for key, value in self.env.items()), shlex.join(words)])


def monai_arms() -> list[Arm]:
    """What a user would run without medgen: as shipped, and by someone who knows the allocator."""
    return [Arm(REFERENCE, tuple(_MONAI)), Arm(TUNED, tuple(_MONAI), ALLOCATOR)]


def medgen_arm(name: str, options: str = "") -> Arm:
    """Returns `medgen run` with options."""
    return Arm(name, (*_MEDGEN, *shlex.split(options.replace("{", "{{").replace("}", "}}"))))


def zoo_arms(device: str, extra: Sequence[str] = ()) -> list[Arm]:
    """Returns the arms for a bundle from elsewhere.

    Args:
        device: `"cpu"` or `"cuda"`.
        extra: further arms of medgen, `NAME=OPTIONS`.
    """
    given = {"medgen fp32": "--precision fp32", "medgen bf16": "--precision bf16", "medgen auto": ""}
    given |= {f"medgen {name}": options for name, _, options in (text.partition("=") for text in extra)}
    common = f"--trust --device {device} "
    return [*monai_arms(), *(medgen_arm(name, common + options) for name, options in given.items())]


def common_env(device: str, caches: Path, threads: int = 0) -> dict[str, str]:
    """Returns the environment of all arms: nothing chosen beforehand, caches that begin empty.

    Args:
        device: `"cpu"` or `"cuda"`. Bundles take a GPU by themselves where they see one.
        caches: folder that converted and compiled networks go to.
        threads: of the network; 0 leaves it to the libraries.
    """
    theirs = ("MALLOC_", "GLIBC_", "MEDGEN_BACKEND")
    env = {key: value for key, value in os.environ.items() if not key.startswith(theirs)}
    env |= {"MEDGEN_CACHE": str(caches / "medgen"), "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
    if device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    return env
