"""The same volume through MONAI's `SlidingWindowInferer` and through `WindowInferer`, taken in turns.

python benchmarks/windows.py [--device cuda] [--side 128] [--rounds 3]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet

from medgen.infer.windows import WindowInferer


def _seconds(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Times both in alternation, so that a busy machine slows both, and says how far their outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=128, help="voxels along each axis of the volume")
    parser.add_argument("--roi", type=int, default=64)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    network = UNet(3, 1, 1, (16, 32, 64, 128), (2, 2, 2), num_res_units=2).eval().to(device)
    volume = torch.rand(1, 1, options.side, options.side - 9, options.side + 5)
    monai = {
        f"MONAI, batch {batch}": SlidingWindowInferer(
            options.roi, batch, options.overlap, mode="gaussian", sw_device=device, device="cpu"
        )
        for batch in (1, 4)
    }
    ours = {
        f"medgen, {precision}": WindowInferer(options.roi, options.overlap, precision=precision)
        for precision in (("fp32", "auto") if device.type == "cuda" else ("fp32",))
    }
    inferers = {**monai, **ours}
    with torch.no_grad():
        expected = monai["MONAI, batch 4"](volume, network)
        differences = {name: float((run(volume, network) - expected).abs().max()) for name, run in inferers.items()}
        rounds = [
            {name: _seconds(lambda run=run: run(volume, network), device) for name, run in inferers.items()}
            for _ in range(options.rounds)
        ]
    for name in inferers:
        times = [turn[name] for turn in rounds]
        line = (
            f"{name:16} {statistics.median(times):8.3f} s (best {min(times):.3f}), differs by {differences[name]:.1e}"
        )
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
