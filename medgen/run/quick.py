"""`medgen run` by a plan: numpy and OpenVINO alone, for a bundle that ran here before; no torch, no MONAI.

A case that cannot be done so exactly goes the usual way, for which the bundle is then opened.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medgen.case import Case, Result
from medgen.errors import BundleError, InputError, MedgenError
from medgen.geometry import Grid
from medgen.infer.window_mean import weighted_mean
from medgen.read.cases import read_case
from medgen.read.volume import Volume
from medgen.run.checks import OWN_GRID_FLAG, Laid, require_one_channel, require_sound, under
from medgen.run.publish import RunInfo
from medgen.run.quick_plan import QuickPlan, find_plan
from medgen.run.quick_steps import Placed, take_steps
from medgen.run.records import CaseOutcome, Recipe
from medgen.run.request import Listen, RunRequest, command_of, require_startable, run_steps, settings_of, write_outcome
from medgen.run.steps import CohortSummary, Steps

if TYPE_CHECKING:
    from medgen.infer.openvino_requests import OpenVinoRequests
    from medgen.run.bundle import OpenBundle

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Item:
    """One case on its way.

    Attributes:
        volume: as read.
        input_sha256: of its content.
        seen: as the network sees it, `(1, X, Y, Z)`.
        made: what the network made of it, `(C, X, Y, Z)`.
        usual: what the usual way has made of the case so far.
        seconds: time by stage `[s]`.
    """

    volume: Volume
    input_sha256: str
    seen: Placed | None = None
    made: Placed | None = None
    usual: Any = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def run_quick(request: RunRequest, listen: Listen = lambda event: None) -> CohortSummary | None:
    """Does what `medgen.run.job.run_job` would do, if there is a plan for it; else returns None and has done nothing.

    Raises:
        MedgenError: the run could not start, quickly or else.
    """
    plan = find_plan(request)
    if plan is None:
        return None
    require_startable(request)
    from medgen.infer.openvino_requests import OpenVinoRequests  # noqa: PLC0415 - only where there is a plan is it there

    try:
        network = OpenVinoRequests(plan.network, plan.computed_by.precision, plan.threads)
    except RuntimeError as error:
        logger.debug("the network of a plan cannot be read: %s", error)
        return None
    recipe = Recipe(plan.bundle, plan.bundle_version, plan.weights_sha256, settings_of(request, plan.settings))
    info = RunInfo(recipe, command_of(request), "cpu", request.part, computed_by=plan.computed_by)
    quick = _Quick(request, plan, network)
    steps = Steps(quick.read, quick.prepare, quick.compute, quick.write)
    return run_steps(request, info, steps, listen)


class _Quick:
    """The steps of one run."""

    def __init__(self, request: RunRequest, plan: QuickPlan, network: "OpenVinoRequests") -> None:
        self._request, self._plan, self._network = request, plan, network
        self._opening = threading.Lock()

    def read(self, case: Case, sha256: str) -> _Item:
        """Returns the volume of a case."""
        return _Item(read_case(case, allow_irregular=self._request.allow_irregular), sha256)

    def prepare(self, case: Case, item: _Item) -> _Item:
        """Returns a case as the network wants it."""
        began = time.perf_counter()
        image = Placed(item.volume.image[None], item.volume.grid.affine)
        seen = _exactly(take_steps, image, self._plan.before)
        if seen is None:
            return replace(item, usual=self._usually_prepared(case, item))
        return replace(item, seen=seen, seconds={"prepare": time.perf_counter() - began})

    def compute(self, case: Case, item: _Item) -> _Item:
        """Returns what the network makes of a case."""
        if item.seen is None:
            return self._usually_computed(case, item)
        began = time.perf_counter()
        voxels = _exactly(weighted_mean, item.seen.voxels[None], self._network, self._plan.windows)
        if voxels is None:
            return self._usually_computed(case, item)
        made = replace(item.seen, voxels=voxels[0])
        return replace(item, made=made, seconds={**item.seconds, "compute": time.perf_counter() - began})

    def write(self, case: Case, item: _Item) -> CaseOutcome:
        """Writes what was made of a case."""
        result = self._result(case, item) if item.made else None
        return write_outcome(self._request, result or self._usual_result(case, item))

    def _result(self, case: Case, item: _Item) -> Result | None:
        began, plan = time.perf_counter(), self._plan
        made = _exactly(take_steps, item.made, plan.after)
        if made is None or item.seen is None:
            return None
        seen = item.seen
        require_one_channel(made.voxels.shape, plan.bundle)
        require_sound(made.voxels[0], plan.bundle, plan.output)
        given = Laid(item.volume.image, item.volume.grid)
        laid = under(_grid_of(made), given, Laid(seen.voxels[0], _grid_of(seen)), name=plan.bundle, own=plan.own)
        flags = (*item.volume.flags, *plan.flags, *(() if laid is given else (OWN_GRID_FLAG,)))
        return Result(
            case=case,
            kind=plan.output,
            image=made.voxels[0],
            source=laid.voxels,
            grid=laid.grid,
            provenance=plan.provenance(item.input_sha256),
            flags=tuple(dict.fromkeys(flags)),
            seconds={**item.seconds, "finish": time.perf_counter() - began},
        )

    # The usual way, for cases that a plan cannot do.

    @functools.cached_property
    def _opened(self) -> "OpenBundle":
        from medgen.run.job import open_computed  # noqa: PLC0415 - brings torch and MONAI

        bundle, plan = open_computed(self._request), self._plan
        same = (bundle.weights_sha256, bundle.settings, bundle.computed_by)
        if same != (plan.weights_sha256, plan.settings, plan.computed_by):
            raise BundleError(
                f"{plan.bundle} has changed while it ran; the same command does the rest with the new one"
            )
        return bundle

    @property
    def _bundle(self) -> "OpenBundle":
        with self._opening:
            return self._opened

    def _usually_prepared(self, case: Case, item: _Item) -> Any:  # noqa: ANN401 - `Prepared`, of a module with torch
        from medgen.read.reader import image_of  # noqa: PLC0415 - as above
        from medgen.run import predict  # noqa: PLC0415

        return predict.prepare(self._bundle, case, image_of(case, item.volume), input_sha256=item.input_sha256)

    def _usually_computed(self, case: Case, item: _Item) -> _Item:
        from medgen.run import predict  # noqa: PLC0415 - as above

        prepared = item.usual or self._usually_prepared(case, item)
        return replace(item, usual=predict.compute(self._bundle, prepared), made=None)

    def _usual_result(self, case: Case, item: _Item) -> Result:
        from medgen.run import predict  # noqa: PLC0415 - as above

        computed = self._usually_computed(case, item) if item.made else item
        return predict.finish(self._bundle, computed.usual)


def _exactly(step: Callable[..., T], *given: object) -> T | None:
    """Returns what a step returns; None where only the usual way can tell what comes of it."""
    try:
        return step(*given)
    except InputError:
        raise
    except (MedgenError, RuntimeError, ValueError, ArithmeticError, MemoryError) as reason:
        logger.debug("a case goes the usual way: %s", reason)
        return None


def _grid_of(image: Placed) -> Grid:
    x, y, z = (int(n) for n in image.voxels.shape[1:])
    return Grid((x, y, z), np.asarray(image.affine, dtype=np.float64))
