"""`python -m monai.bundle ...` with a clock around each stage: what `cases.csv` says of a run of medgen.

python watched.py run --config_file FILE ... (environment: SPEED_WATCH, a file that gets a line of JSON a volume)

Six readings of a clock a volume and two a batch of windows; on a GPU it waits for the device before each, so runs that
are timed as a whole are other ones.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Watch:
    """Seconds of the volume at hand by stage, and what its network was given."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._facts: dict[str, float] = {}

    def add(self, name: str, amount: float) -> None:
        """Adds to a fact of this volume."""
        self._facts[name] = self._facts.get(name, 0.0) + amount

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the same function with a clock around it."""

        def watched(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any function
            began = self.now()
            found = work(*args, **kwargs)
            self.add(name, self.now() - began)
            return found

        return watched

    def infer(self, inferer: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the same inferer with clocks around it and around its network."""

        def watched(inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any inferer
            began: list[float] = []

            def before(_: object, given: tuple[Any, ...]) -> None:
                self.add("windows", given[0].shape[0] if given else 0)
                began.append(self.now())

            hooks = [
                network.register_forward_pre_hook(before),
                network.register_forward_hook(lambda *_: self.add("network", self.now() - began.pop())),
            ]
            from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - torch is there by now

            with FlopCounterMode(display=False) as counter:
                found = self.timed("compute", inferer)(inputs, network, *args, **kwargs)
            self.add("flop", counter.get_total_flops())
            for hook in hooks:
                hook.remove()
            return found

        return watched

    def finish(self, postprocessing: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the same postprocessing, which is a volume's end."""
        timed = self.timed("write", postprocessing)

        def watched(item: Any) -> Any:  # noqa: ANN401 - any item
            found = timed(item)
            self._facts["prepare"] = self._facts.pop("all before", 0.0) - self._facts.get("read", 0.0)
            with self._log.open("a") as stream:
                stream.write(json.dumps(self._facts) + "\n")
            self._facts = {}
            return found

        return watched

    @staticmethod
    def now() -> float:
        """Returns the time, once the GPU has done what it was told."""
        torch = sys.modules["torch"]
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Puts the clocks where MONAI will call them, and hands over to it."""
    sys.path.pop(0)  # this folder
    from monai.engines import SupervisedEvaluator  # noqa: PLC0415 - after the path is as it would be
    from monai.transforms import LoadImaged  # noqa: PLC0415

    watch = Watch(Path(os.environ["SPEED_WATCH"]))
    build = SupervisedEvaluator.__init__

    def built(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - MONAI's
        kwargs["postprocessing"] = watch.finish(kwargs["postprocessing"])
        dataset = kwargs["val_data_loader"].dataset
        dataset.transform = watch.timed("all before", dataset.transform)
        build(self, *args, **kwargs)
        self.inferer = watch.infer(self.inferer)

    SupervisedEvaluator.__init__ = built
    LoadImaged.__call__ = watch.timed("read", LoadImaged.__call__)
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
