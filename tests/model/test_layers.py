"""Features of several layers of a backbone: which ones, how they are pooled, and what a backbone is refused for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from datapool.core.errors import DatapoolError
from datapool.model.backbones import find_backbone
from datapool.model.embedding_model import (
    EmbeddingModel,
    build_model,
    embedding_space_id,
    load_checkpoint,
    save_checkpoint,
)
from datapool.model.layers import automatic_layers, layer_features, number_of_layers

TINY = "test_efficientnet"


def built(name: str, size: int = 32) -> nn.Module:
    torch.manual_seed(1)
    return find_backbone(name).build(size).eval()


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def mean(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


def model_of(layers: object, *, seed: int = 1) -> EmbeddingModel:
    return build_model(TINY, dimension=8, input_size=32, pretrained=False, weights=None, seed=seed, layers=layers)  # type: ignore[arg-type]


@torch.no_grad()
def test_an_efficientnets_layers_are_its_stem_and_its_blocks_and_their_means_lie_beside_the_last_features():
    backbone = built(TINY)
    stem = backbone.bn1(backbone.conv_stem(images()))
    first = backbone.blocks[0](stem)

    features = layer_features(backbone, images(), ["last", 1, 0])

    expected = torch.cat([backbone(images()), mean(first), mean(stem)], dim=1)
    assert features == pytest.approx(expected, abs=1e-5)
    assert number_of_layers(backbone) == 1 + len(backbone.blocks)


@torch.no_grad()
def test_a_vision_transformers_layers_are_its_blocks_without_the_class_token():
    backbone = built("test_vit")
    tokens = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images())))
    first = backbone.blocks[0](tokens)[:, backbone.num_prefix_tokens :].mean(1)

    features = layer_features(backbone, images(), [0])

    assert features == pytest.approx(first, abs=1e-5)


@torch.no_grad()
def test_layers_of_a_resnet_of_torchvision_are_those_of_the_same_resnet_of_timm():
    of_timm, of_torchvision = built("resnet18"), built("torchvision/resnet18")
    of_torchvision.load_state_dict(of_timm.state_dict())
    layers = [*range(5), "last"]

    assert number_of_layers(of_timm) == number_of_layers(of_torchvision) == 5
    assert torch.allclose(
        layer_features(of_timm, images(), layers), layer_features(of_torchvision, images(), layers), atol=1e-4
    )
    assert not of_torchvision.layer1._forward_hooks


@torch.no_grad()
def test_layers_of_lightlys_resnet_are_its_stages():
    backbone = built("lightly-resnet-9-w0.125")
    second = backbone[:5](images())

    features = layer_features(backbone, images(), [2])

    assert features == pytest.approx(mean(second), abs=1e-5)


def test_auto_means_the_ends_of_the_last_two_stages_and_no_stage_twice():
    cases = {
        "tf_efficientnet_lite0": (5, 7, "last"),
        "resnet18": (3, "last"),  # its last features are the mean of its last stage
        "torchvision/resnet18": (3, "last"),
        "lightly-resnet-9-w0.125": (3, "last"),
        "test_vit": None,
        "torchvision/mobilenet_v3_small": None,
    }
    with torch.device("meta"):
        found = {name: automatic_layers(find_backbone(name).build(64)) for name in cases}
    assert found == cases


def test_layers_that_a_backbone_does_not_have_are_refused_with_those_that_it_has():
    message = r"lightly.model.layers is \[9, last\], but test_efficientnet has layers 0 to 5, and last; set lightly.model.layers: auto"
    with pytest.raises(DatapoolError, match=message):
        model_of([9, "last"])
    with pytest.raises(DatapoolError, match="squeezenet1_1 has no layers that can be taken, but last"):
        build_model(
            "squeezenet1_1", dimension=8, input_size=64, pretrained=False, weights=None, seed=1, layers=[0, "last"]
        )


def test_a_checkpoint_keeps_its_layers_and_they_are_part_of_the_embedding_space(tmp_path: Path):
    path = tmp_path / "model.ckpt"
    model = model_of([1, "last"]).eval()
    save_checkpoint(model, path)

    loaded = load_checkpoint(path)

    content = torch.load(path, weights_only=True)
    assert (content["format"], content["layers"]) == (3, [1, "last"])
    assert torch.equal(loaded(images()), model(images()))
    assert embedding_space_id(loaded) == embedding_space_id(model)
    # "last" and 1 in another order has the same weights, but other features.
    loaded.layers = ("last", 1)
    assert embedding_space_id(loaded) != embedding_space_id(model)


def test_the_last_features_alone_are_recorded_as_they_were_before_there_were_layers(tmp_path: Path):
    save_checkpoint(model_of(None), tmp_path / "model.ckpt")

    content = torch.load(tmp_path / "model.ckpt", weights_only=True)

    assert content["format"] == 2
    assert "layers" not in content
    assert torch.equal(model_of(None).eval().features(images()), model_of(None).backbone.eval()(images()))


def test_layers_in_a_checkpoint_are_not_trusted(tmp_path: Path):
    cases: list[tuple[list[object], str]] = [
        ([1, 1], "its fields are not those"),
        ([], "its fields are not those"),
        ([-1], "its fields are not those"),
        (["first"], "its fields are not those"),
        ([True], "its fields are not those"),
        ([50], r"asks for a model that cannot be built: lightly.model.layers is \[50\]"),
        ([1], "weights are not those of a test_efficientnet"),
    ]
    save_checkpoint(model_of([1, "last"]), tmp_path / "good.ckpt")
    content = torch.load(tmp_path / "good.ckpt", weights_only=True)
    for number, (layers, message) in enumerate(cases):
        path = tmp_path / f"{number}.ckpt"
        torch.save(content | {"layers": layers}, path)
        with pytest.raises(DatapoolError, match=message):
            load_checkpoint(path)
