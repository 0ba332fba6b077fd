"""A converted network of mixed precision: what follows its last convolutions, and these themselves, stay in fp32.

Rounding to bf16 hurts most where no later layer averages it away: the last convolution's weights and inputs round to
eight bits what people look at. What lies before costs nearly all of the time, and its rounding is averaged.
"""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import openvino as ov

_WEIGHTY = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"}
_PLAIN = {"Const", "Parameter", "Result"}


def write_mixed(model: ov.Model, file: Path, target: Path) -> None:
    """Writes a network's description again, with its last layers marked to keep fp32 where others are lowered.

    Args:
        model: converted.
        file: `.xml` that `openvino.save_model` wrote of it.
        target: `.xml` to write; its weights are those of `file`.
    """
    tail = _tail(model)
    tree = ET.parse(file)  # noqa: S314 - as above
    for layer in tree.getroot().iter("layer"):
        if layer.get("name") in tail and layer.get("type") not in _PLAIN:
            info = layer.find("rt_info")
            if info is None:
                info = ET.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, info)
            # The name under which OpenVINO writes down that an operation must not be lowered.
            ET.SubElement(info, "attribute", name="precise", version="0")
    tree.write(target)


def _tail(model: ov.Model) -> set[str]:
    """Names of the layers from the outputs back to, and with, the first convolutions met, and what feeds these.

    What feeds them counts up to the next convolution before, so that their inputs are not rounded either.
    """
    met: dict[str, int] = {}  # the fewest convolutions between a layer and an output
    waiting: list[tuple[Any, int]] = [(result, 0) for result in model.get_results()]
    while waiting:
        node, passed = waiting.pop()
        name, weighty = node.get_friendly_name(), node.get_type_name() in _WEIGHTY
        if met.get(name, _FAR) <= passed or (weighty and passed):
            continue
        met[name] = passed
        waiting += [(given.get_source_output().get_node(), passed + weighty) for given in node.inputs()]
    return set(met)


_FAR = 1 << 30
