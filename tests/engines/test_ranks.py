"""Two processes of `torchrun` train as one with the doubled batch does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")


def weights(command: list[str], batch_size: int, output: Path) -> torch.Tensor:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, *command, str(SCRIPT), str(batch_size), str(output)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(output, weights_only=True)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
def test_two_ranks_equal_one_process_with_the_doubled_batch(tmp_path: Path) -> None:
    one = weights([], 2, tmp_path / "one.pt")
    two = weights(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"], 1, tmp_path / "two.pt")
    single = weights([], 1, tmp_path / "single.pt")
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(single, one, rtol=1e-4, atol=1e-5)
