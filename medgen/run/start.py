"""A run is started: without torch where a plan of the bundle can do all of it, else in the usual way."""

from medgen.run.quick import run_quick
from medgen.run.request import Listen, RunRequest
from medgen.run.steps import CohortSummary


def start(request: RunRequest, listen: Listen = lambda event: None) -> CohortSummary:
    """Runs a bundle over a cohort; see `medgen.run.job.run_job`.

    Raises:
        MedgenError: the run could not start; nothing was done then.
    """
    summary = run_quick(request, listen)
    if summary is not None:
        return summary
    from medgen.run.job import run_job  # noqa: PLC0415 - brings torch and MONAI

    return run_job(request, listen)
