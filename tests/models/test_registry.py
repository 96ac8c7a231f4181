"""The registry: names, facts, and what is said about a wrong name."""

from __future__ import annotations

import pytest
from torch import nn

from fastnets.models import _registry, create_model, list_models, model_info, register_model


def test_lists_are_sorted_and_take_patterns():
    assert list_models() == sorted(list_models())
    assert {"efficientnet_lite0", "mobilenet_v2", "mobilenetv1_100"} <= set(list_models())
    assert list_models("mobilenet_v?") == ["mobilenet_v2"]
    assert list_models("MobileNet*") == []


def test_a_decorated_function_is_a_model(monkeypatch):
    monkeypatch.setattr(_registry, "_MODELS", {})

    @register_model(names_follow="paper", input_size=8)
    def tiny(num_classes=2):
        return nn.Linear(1, num_classes)

    assert list_models() == ["tiny"]
    assert model_info("tiny").build is tiny and model_info("tiny").input_size == 8
    assert create_model("tiny", num_classes=5).out_features == 5


@pytest.mark.parametrize("call", [create_model, model_info])
@pytest.mark.parametrize(
    ("wrong", "close"),
    [("mobilenetv2", "mobilenet_v2"), ("EfficientNet_Lite0", "efficientnet_lite0"), ("zzz", "list_models")],
)
def test_a_wrong_name_raises_with_the_closest(call, wrong, close):
    with pytest.raises(ValueError, match=close) as error:
        call(wrong)
    assert repr(wrong) in str(error.value) and "\n" not in str(error.value)


def test_an_argument_the_network_lacks_is_refused():
    with pytest.raises(TypeError, match="depth"):
        create_model("mobilenet_v2", depth=2)


@pytest.mark.parametrize("name", list_models())
def test_the_facts_are_complete(name):
    info = model_info(name)
    assert info.name == name and info.interpolation in ("bilinear", "bicubic") and 0 < info.crop <= 1
    assert len(info.mean) == len(info.std) == 3 and min(info.std) > 0
    assert info.names_follow in ("torchvision", "timm", "paper")
    assert 0 < info.min_size <= info.input_size
