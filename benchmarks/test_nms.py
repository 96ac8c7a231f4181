"""nms against ONNX Runtime's NonMaxSuppression and a loop of tensor ops, on the boxes of one image."""

from __future__ import annotations

import pytest
import torch

from fastnets.ops import batched_nms, nms

# Boxes of an 800 x 800 image: 1000 proposals (Faster R-CNN), and 10 000 (RetinaNet before its top 1000 of a level); wide
# ones overlap a lot, narrow ones hardly. Bytes: 20 n read once, and 20 for each kept box that a box is tested against.
# Operations: about 16 for each of those tests, at most n k for k kept.


def boxes_of_image(n: int, widest: float):
    make = torch.Generator().manual_seed(0)
    center, size = torch.rand(n, 2, generator=make) * 800, 8 + torch.rand(n, 2, generator=make) * widest
    return torch.cat([center - size / 2, center + size / 2], 1), torch.rand(n, generator=make)


def onnx_runtime(boxes, scores, threshold):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    names = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("b", [1, None, 4]), ("s", [1, 1, None]))
    ]
    result = [helper.make_tensor_value_info("k", TensorProto.INT64, [None, 3])]
    limits = [
        helper.make_tensor("m", TensorProto.INT64, [1], [len(boxes)]),
        helper.make_tensor("t", TensorProto.FLOAT, [1], [threshold]),
    ]
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", list("bsmt"), ["k"])], "nms", names, result, limits
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feed = {"b": boxes[None].numpy(), "s": scores[None, None].numpy()}
    return lambda: (torch.from_numpy(session.run(None, feed)[0][:, 2]),)


def loop_of_tensor_ops(boxes, scores, threshold):
    """Each kept box against all that remain."""
    areas, order, keep = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), scores.argsort(descending=True), []
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(best)
        low, high = torch.maximum(boxes[best, :2], boxes[rest, :2]), torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        both = (high - low).clamp_(min=0).prod(1)
        order = rest[both <= threshold * (areas[best] + areas[rest] - both)]
    return (torch.stack(keep),)


@pytest.mark.parametrize("n", (1000, 10_000))
@pytest.mark.parametrize("widest", (200, 60, 10))
def test_nms(race, n, widest):
    boxes, scores = boxes_of_image(n, widest)
    candidates = {"onnxruntime": onnx_runtime(boxes, scores, 0.5), "fastnets": lambda: (nms(boxes, scores, 0.5),)}
    if n == 1000:
        candidates["loop"] = lambda: loop_of_tensor_ops(boxes, scores, 0.5)
    race("nms", f"{n} boxes up to {widest} wide", candidates, (nms(boxes.double(), scores.double(), 0.5).double(),))


def test_batched_nms(race):
    """80 classes of 125 boxes, as a detector leaves them in one image."""
    boxes, scores = boxes_of_image(10_000, 200)
    ids = torch.arange(10_000) % 80
    shifted = boxes + ids[:, None] * (boxes.max() + 201)  # torchvision's way, outside the timed part
    candidates = {
        "onnxruntime, shifted": onnx_runtime(shifted, scores, 0.5),
        "fastnets": lambda: (batched_nms(boxes, scores, ids, 0.5),),
    }
    exact = batched_nms(boxes, scores, ids, 0.5).double()
    race("batched nms", "80 x 125 boxes", candidates, (exact,))
