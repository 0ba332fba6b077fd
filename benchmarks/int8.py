"""What a network loses and gains in int8: quantised by NNCF, timed in OpenVINO, scored on scans whose truth is known.

python benchmarks/int8.py brain_t1_to_t2 --data glioma --split validation --data-root DATA [--calibrate train]

The scales come from windows of other scans (`--calibrate`); the scores are those of `medgen evaluate`. Needs
`pip install nncf`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from medgen.case import Case, Result
from medgen.infer.backends import FORWARD, Original, Streamed, available, build
from medgen.infer.conversions import network_sha256
from medgen.infer.openvino_network import OpenVinoNetwork, convert
from medgen.infer.rewrite import simplified
from medgen.read.manifest import find_manifest
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.evaluate import Pair, evaluate
from medgen.run.job import manifest_pairs, predict_case
from medgen.run.protocol import find_protocol

_WINDOWS = 24  # that the scales come from


class Recorder(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, windows: Tensor) -> Tensor:
        """Returns the network's output for `(B, C, X, Y, Z)`."""
        self.seen.append(windows.detach().clone())
        output: Tensor = self.network(windows)
        return output


def _quantised(file: Path, windows: list[Tensor], target: Path) -> None:
    import nncf  # noqa: PLC0415 - no dependency of medgen

    data = nncf.Dataset([window.numpy() for window in windows])
    model = nncf.quantize(ov.Core().read_model(file), data, subset_size=len(windows), fast_bias_correction=True)
    ov.save_model(model, target, compress_to_fp16=False)


def _scores(bundle: OpenBundle, pairs: list[Pair], output: Path) -> dict[str, float]:
    def predicted(case: Case) -> Result:
        return predict_case(bundle, case)

    protocol = find_protocol(str(bundle.metadata.fields.get("evaluation", "synthesis")))
    found = evaluate(pairs, predicted, output, protocol)
    means: dict[str, list[float]] = {}
    for row in found.rows:
        for name, value in (row.score or {}).items():
            means.setdefault(name, []).append(float(value))
    return {name: statistics.fmean(values) for name, values in means.items()}


def _seconds(network: Any, window: Tensor) -> float:  # noqa: ANN401 - any callable
    network(window)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        network(window)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Prints a row for each precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--data", type=Path, required=True, help="manifest with images and targets")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--calibrate", default="train", help="split whose windows set the scales")
    parser.add_argument("--data-root", type=Path)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle, device="cpu")
    modality = bundle.metadata.modality_in
    splits = [
        manifest_pairs(find_manifest(options.data), split, options.data_root, modality)
        for split in (options.split, options.calibrate)
    ]
    recorder = Recorder(bundle.network)
    for pair in splits[1]:
        predict_case(replace(bundle, network=recorder), pair.case)
    shown = {FORWARD: recorder.seen[0][:1]}
    seen = [windows[:1] for windows in recorder.seen]
    original = Original(
        bundle.network, {FORWARD: tuple(shown[FORWARD].shape)}, lambda: shown,
        {"network": network_sha256(bundle.network)}, bundle.name,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        here = [c for c in available(torch.device("cpu")) if c.backend == "openvino"]
        networks: dict[str, Any] = {str(candidate): build(candidate, original) for candidate in here}
        plain = Path(folder) / "plain.xml"
        convert(simplified(bundle.network), shown[FORWARD], plain)
        _quantised(plain, seen[:: max(len(seen) // _WINDOWS, 1)], Path(folder) / "int8.xml")
        quantised = OpenVinoNetwork(Path(folder) / "int8.xml", "fp32", torch.get_num_threads())
        networks["int8"] = Streamed({FORWARD: quantised}, OpenVinoNetwork.batch)
        window = seen[0]
        for name, network in networks.items():
            scores = _scores(replace(bundle, network=network), splits[0], Path(folder) / name.replace(" ", "-"))
            said = ", ".join(f"{metric} {np.round(value, 4)}" for metric, value in scores.items())
            sys.stdout.write(f"{name:15s} {_seconds(network, window):6.3f} s a window; {said}\n")


if __name__ == "__main__":
    main()
