"""A bundle with other weights: what a training turns it into."""

import json
import shutil
from pathlib import Path

from medgen.errors import BundleError
from medgen.provenance import file_sha256
from medgen.run.catalog import BundleFolder
from medgen.run.checkpoint import FINAL
from medgen.run.validate import BEST
from medgen.write.atomic import writing

# What was measured, or stated, of the weights that the bundle came with.
_OF_THE_OLD = ("headline", "eval_metrics", "operating_threshold", "changelog")


def with_trained_weights(bundle: BundleFolder, run: Path, folder: Path) -> Path:
    """Copies a bundle with the weights of a training in place of its own; what was measured of those is left out.

    A reference of healthy people stays that of the old weights, and is refused: `medgen calibrate` makes a new one.

    Args:
        bundle: to copy.
        run: the folder of a training of it, of which the best weights are taken, else the last.
        folder: the copy, whose name becomes the bundle's; replaced if it is there.

    Raises:
        BundleError: the training has left no weights.
        OutputError: the copy cannot be written.
    """
    weights = next((run / name for name in (BEST, FINAL) if (run / name).is_file()), None)
    if weights is None:
        raise BundleError(f"expected weights of a training in {run.name}: {BEST} or {FINAL}, found neither")
    part = folder.with_name(f".{folder.name}.part")
    with writing(folder):
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(bundle.folder, part, ignore=shutil.ignore_patterns("docs", "model.pt", "model.ts"))
        (part / "models").mkdir(exist_ok=True)
        shutil.copyfile(weights, part / "models" / "model.pt")
        file = part / "configs" / "metadata.json"
        metadata = json.loads(file.read_text(encoding="utf-8"))
        kept = {name: value for name, value in metadata.items() if name not in _OF_THE_OLD}
        kept["weights_sha256"] = {"models/model.pt": file_sha256(weights)}
        file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return folder
