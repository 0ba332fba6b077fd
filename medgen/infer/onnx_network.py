"""A network that ONNX Runtime runs: on the CPU, or on a GPU through TensorRT.

The way through TensorRT shares all but its provider with the one on the CPU; it has not been run on a GPU yet.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from medgen.infer.conversions import without_notices

Outputs = Tensor | tuple[Tensor, ...]
_SEVERE = 3  # of ONNX Runtime's levels: errors


def export(network: nn.Module, example: Tensor, file: Path) -> None:
    """Writes a network as ONNX with weights inside, in fp32.

    Args:
        network: on the CPU, in evaluation mode.
        example: an input `(B, C, *spatial)`; batch and spatial axes may differ later.
        file: `.onnx`.
    """
    free = dict.fromkeys((0, *range(2, example.ndim)), torch.export.Dim.DYNAMIC)
    # A batch of one would be taken for a constant.
    batch = torch.cat([example, example]) if len(example) == 1 else example
    with without_notices():
        program = torch.onnx.export(network, (batch,), dynamo=True, dynamic_shapes=(free,), verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    program.save(str(file), external_data=False)


class OnnxNetwork:
    """An exported network.

    Args:
        file: what `export` wrote.
        tensorrt: run it on the GPU by TensorRT, whose engines are kept beside the file.
        half: let TensorRT compute in fp16.
        threads: of the CPU, at most.
    """

    def __init__(self, file: Path, *, tensorrt: bool = False, half: bool = False, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(threads, 1)
        options.log_severity_level = _SEVERE
        providers: list[Any] = ["CPUExecutionProvider"]
        if tensorrt:
            engines = {
                "trt_engine_cache_enable": True,
                "trt_engine_cache_path": str(file.parent / "engines"),
                "trt_fp16_enable": half,
            }
            providers = [("TensorrtExecutionProvider", engines), "CUDAExecutionProvider", *providers]
        self._session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, windows: Tensor) -> Outputs:
        """Returns what the network makes of `(B, C, *spatial)`, float32, where the windows lie."""
        given = np.ascontiguousarray(windows.detach().float().cpu().numpy())
        arrays = self._session.run(None, {self._input: given})
        tensors = tuple(torch.from_numpy(np.asarray(array)).float().to(windows.device) for array in arrays)
        return tensors[0] if len(tensors) == 1 else tensors
