"""A converted network's last layers, written so that bf16 costs less of what people look at.

Rounding to bf16 hurts most where no later layer averages it away: the last convolution's weights and inputs round to
eight bits what people look at. Where it is small it is computed twice, with both halves of its weights. In mixed
precision it stays in fp32 altogether, with what follows and feeds it; what lies before costs nearly all of the time.
"""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

_WEIGHTY = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"}
_PLAIN = {"Const", "Parameter", "Result"}
_FEW_OUTPUTS = 8  # a head of classes is another matter: it is read by its largest, not looked at
_FAR = 1 << 30


def split_last_weights(model: ov.Model) -> None:
    """Writes last convolutions of one voxel as two, in place, with their weights' upper and lower eight bits.

    Lowered to bf16, their sum has the weights' sixteen bits and is not rounded; in fp32 it is what it was.
    """
    for node, passed in _tail(model):
        if passed == 0 and node.get_type_name() == "Convolution":
            _split(node)
    model.validate_nodes_and_infer_types()


def write_mixed(model: ov.Model, file: Path, target: Path) -> None:
    """Writes a network's description again, with its last layers marked to keep fp32 where others are lowered.

    Args:
        model: converted.
        file: `.xml` that `openvino.save_model` wrote of it.
        target: `.xml` to write; its weights are those of `file`.
    """
    tail = {node.get_friendly_name() for node, _ in _tail(model)}
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


def _tail(model: ov.Model) -> list[tuple[Any, int]]:
    """Layers from the outputs back to, and with, the first convolutions met, and what feeds these.

    What feeds them counts up to the next convolution before, so that their inputs are not rounded either.

    Returns:
        each layer with how many convolutions lie between it and an output, at the fewest: none or one.
    """
    met: dict[str, tuple[Any, int]] = {}
    waiting: list[tuple[Any, int]] = [(result, 0) for result in model.get_results()]
    while waiting:
        node, passed = waiting.pop()
        name, weighty = node.get_friendly_name(), node.get_type_name() in _WEIGHTY
        if met.get(name, (None, _FAR))[1] <= passed or (weighty and passed):
            continue
        met[name] = (node, passed)
        waiting += [(given.get_source_output().get_node(), passed + weighty) for given in node.inputs()]
    return list(met.values())


def _split(node: Any) -> None:  # noqa: ANN401 - as above
    constant = node.input_value(1).get_node()
    users = [given.get_node() for given in node.output(0).get_target_inputs()]
    if constant.get_type_name() != "Constant" or len(users) != 1 or users[0].get_type_name() != "Add":
        return
    weights: npt.NDArray[np.float32] = constant.get_data()
    if weights[0, 0].size != 1 or len(weights) > _FEW_OUTPUTS:
        return
    upper = _to_bf16(weights)
    how = [node.get_attributes()[name] for name in ("strides", "pads_begin", "pads_end", "dilations", "auto_pad")]
    high, low = (ops.convolution(node.input_value(0), ops.constant(part), *how) for part in (upper, weights - upper))
    # In this order OpenVINO adds inside the second convolution, whose sum it then puts out in fp32.
    [bias] = [given for given in users[0].input_values() if given != node.output(0)]
    total = ops.add(ops.add(high, bias), low)
    total.set_friendly_name(users[0].get_friendly_name())
    users[0].output(0).replace(total.output(0))


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rounds to the nearest number that bf16 has."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
