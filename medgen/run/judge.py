"""A bundle on data whose answer is known, by the protocol that its metadata names."""

from collections.abc import Sequence
from pathlib import Path

from medgen.run.bundle import open_bundle
from medgen.run.catalog import find_bundle
from medgen.run.evaluate import Evaluation
from medgen.run.job import evaluate_job
from medgen.run.metadata import read_metadata
from medgen.run.request import Listen
from medgen.run.screen import Screened, screen_cohort
from medgen.run.steps import Event

SCREENING = "screening"


def judge(  # noqa: PLR0913 - one parameter an option
    bundle: str,
    manifest: Path,
    output: Path,
    *,
    split: str = "test",
    data_root: Path | None = None,
    device: str = "auto",
    trust: bool = False,
    changes: Sequence[str] = (),
    listen: Listen = lambda event: None,
) -> Evaluation | Screened:
    """Evaluates a bundle on a manifest's split: image by image, or, for one that scores whole scans, class by class.

    Raises:
        MedgenError: the evaluation could not start.
    """
    if read_metadata(find_bundle(bundle).folder).fields.get("evaluation") != SCREENING:
        return evaluate_job(
            bundle,
            manifest,
            output,
            split=split,
            data_root=data_root,
            device=device,
            trust=trust,
            changes=changes,
            listen=listen,
        )
    opened = open_bundle(bundle, trust=trust, device=device, changes=changes, reference=False)

    def told(what: str, number: int, total: int) -> None:
        if number == 0:
            listen(Event("begin", total, 0))
        listen(Event("stage", total, number, what, "compute"))

    threshold = None if changes else opened.metadata.fields.get("operating_threshold")  # it is of the default score
    found = screen_cohort(opened, manifest, output, split, data_root, told, threshold)
    listen(Event("end", len(found.rows), len(found.rows)))
    return found
