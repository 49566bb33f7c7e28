"""Weights as training programs save them: the backbone computes what the network computed that they were saved from."""

import argparse
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from datapool.core.errors import DatapoolError
from datapool.model.embedding_model import EmbeddingModel, build_model, load_checkpoint, save_checkpoint

# isort: split
import timm  # after datapool.model.torchvision_compat; see there
import torchvision

pytestmark = pytest.mark.slow

TINY = "test_efficientnet"
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def unlike_any_other(module: nn.Module, seed: int = 0) -> nn.Module:
    """Change every weight and every mean and variance of a batch norm, so that no two are alike; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator))
            value.add_(0.02 * torch.rand(value.shape, generator=generator))
    return module.eval()


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return unlike_any_other(timm.create_model(TINY, num_classes=0), seed)


def load(content: object, name: str = TINY, *, input_size: int = 64) -> EmbeddingModel:
    torch.save(content, "weights.pth")
    return build_model(
        name, dimension=8, input_size=input_size, pretrained=False, weights=Path("weights.pth"), seed=5
    ).eval()


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def deviation(model: EmbeddingModel, source: Callable[[Tensor], Tensor], *, size: int = 64) -> float:
    """Return how far features are from those of the source, as a share of the largest."""
    with torch.no_grad():
        found, wanted = model.backbone(images(size)), source(images(size)).flatten(1)
    return float((found - wanted).abs().max() / wanted.abs().max())


def below(prefix: str, module: nn.Module) -> State:
    return {prefix + key: value for key, value in module.state_dict().items()}


# --- one copy, somewhere -----------------------------------------------------------------------------------------------

WRAPPERS = ("state_dict", "model_state_dict", "model", "backbone", "ema", "state_dict_ema", "net", "encoder", "module")


def test_the_weights_are_found_below_any_key_and_prefix():
    source, failures = tiny(), []
    for prefixes in (("", "module.", "backbone."), ("model.encoder.", "_orig_mod.")):
        for key, prefix in zip(WRAPPERS, itertools.cycle(prefixes), strict=False):
            model = load({"epoch": 3, key: below(prefix, source), "optimizer": {"state": {0: {"step": torch.ones(1)}}}})
            if deviation(model, source) > 1e-6 or model.origin != "weights of a given file":
                failures.append((key, prefix, model.origin))

    assert not failures


def test_a_whole_module_is_read_without_its_class():
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = tiny()

    Mine.__qualname__, Mine.__module__ = "Mine", "__main__"  # pickle looks for it there
    import __main__

    __main__.Mine = Mine
    try:
        torch.save({"model": Mine(), "epoch": 1}, "weights.pth")
    finally:
        del __main__.Mine
    model = build_model(TINY, dimension=8, input_size=64, pretrained=False, weights=Path("weights.pth"), seed=5).eval()

    assert deviation(model, tiny()) < 1e-6


# --- several copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "taken", "left"),
    [
        (lambda a, b: {"student": below("module.backbone.", b), "teacher": below("backbone.", a)},
         "teacher.backbone", "student.module.backbone"),
        (lambda a, b: {"model": below("student.backbone.", b) | below("teacher.backbone.", a)},
         "model.teacher.backbone", "model.student.backbone"),
        (lambda a, b: {"state_dict": below("student_backbone.", b) | below("teacher_backbone.", a)},
         "state_dict.teacher_backbone", "state_dict.student_backbone"),
        (lambda a, b: {"state_dict": below("module.encoder_k.", b) | below("module.encoder_q.", a)},
         "state_dict.module.encoder_q", "state_dict.module.encoder_k"),
        (lambda a, b: {"state_dict": below("backbone_momentum.", b) | below("backbone.", a)},
         "state_dict.backbone", "state_dict.backbone_momentum"),
        (lambda a, b: below("target_encoder.net.", b) | below("online_encoder.net.", a),
         "online_encoder.net", "target_encoder.net"),
        (lambda a, b: {"state_dict_ema": b.state_dict(), "state_dict": a.state_dict()},
         "state_dict", "state_dict_ema"),
        (lambda a, b: {"ema": b.state_dict(), "model": a.state_dict()}, "model", "ema"),
    ],
    ids=["DINO", "DINOv2", "DINO of Lightly", "MoCo", "BYOL of Lightly", "BYOL", "timm", "MAE"],
)  # fmt: skip
def test_of_several_copies_the_teacher_is_taken_or_the_one_that_is_no_average(wrap, taken, left):
    one, other = tiny(1), tiny(2)
    model = load(wrap(one, other))

    assert deviation(model, one) < 1e-6
    assert deviation(model, other) > 1e-3
    assert model.origin == f"weights of a given file (its '{taken}', not its '{left}')"


def test_a_teacher_of_another_network_is_not_taken():
    student, teacher = tiny(1), timm.create_model("test_vit", num_classes=0)

    assert deviation(load({"student": student.state_dict(), "teacher": teacher.state_dict()}), student) < 1e-6


# --- numbers instead of names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.model.backbone."])
def test_the_backbone_of_the_tutorials_of_lightly_is_loaded(prefix):
    source = nn.Sequential(*list(unlike_any_other(torchvision.models.resnet18()).children())[:-1])
    content = {"state_dict": below(prefix, source) | {"projection_head.layers.0.weight": torch.zeros(2, 512)}}

    assert deviation(load(content, "resnet18"), source) < 1e-5


def test_a_sequence_of_the_parts_of_another_network_is_loaded_in_their_order():
    network = unlike_any_other(torchvision.models.shufflenet_v2_x0_5())
    source = nn.Sequential(nn.Identity(), *list(network.children())[:-1], nn.AdaptiveAvgPool2d(1))  # numbers from 1

    assert deviation(load(source.state_dict(), "shufflenet_v2_x0_5"), source) < 1e-5


def test_a_sequence_that_lacks_a_part_is_refused_with_the_name_of_the_part():
    # The features of this network come from the first layer of its classifier, which such a sequence does not have.
    source = nn.Sequential(*list(torchvision.models.mobilenet_v3_small().children())[:-1])

    with pytest.raises(
        DatapoolError,
        match=r"2 of 208 are missing or of another shape \(classifier.0.weight, classifier.0.bias\); the file has 240",
    ):
        load({"state_dict": below("backbone.", source)}, "mobilenet_v3_small")


def test_a_sequence_of_a_deeper_network_is_refused():
    deeper = nn.Sequential(*list(torchvision.models.resnet34().children())[:-1])

    with pytest.raises(
        DatapoolError,
        match=r"^weights.pth: weights do not fit lightly.model.name resnet18: 100 of 100 are missing or of another shape "
        r"\(conv1.weight, .*, ...\); the file has 216, such as 0.weight, 1.weight, .*; name the backbone that they were",
    ):
        load(deeper.state_dict(), "resnet18")


def test_a_sequence_whose_parts_are_in_another_order_is_refused():
    parts = list(tiny().children())
    parts[1], parts[2] = parts[2], parts[1]

    with pytest.raises(DatapoolError, match="weights do not fit"):
        load(nn.Sequential(*parts).state_dict())


def test_numbered_weights_of_equal_shape_in_another_order_are_not_mixed_up():
    source = nn.Sequential(*list(unlike_any_other(torchvision.models.resnet18()).children())[:-1])
    state = source.state_dict()
    turned = {
        "0.weight": state.pop("0.weight"),
        "1.bias": state.pop("1.bias"),
        "1.weight": state.pop("1.weight"),
        **state,
    }

    assert deviation(load(turned, "resnet18"), source) < 1e-5


# --- one name in timm and in torchvision -------------------------------------------------------------------------------


def test_weights_of_torchvision_are_refused_for_the_backbone_of_timm_with_the_name_to_set():
    source = unlike_any_other(torchvision.models.mobilenet_v2())
    with pytest.raises(DatapoolError) as caught:
        load({"state_dict": below("backbone.", torchvision.models.efficientnet_b0())}, "efficientnet_b0")
    assert str(caught.value) == (
        "weights.pth: has the weights of torchvision's efficientnet_b0, but lightly.model.name efficientnet_b0 means timm's; "
        "set lightly.model.name: torchvision/efficientnet_b0"
    )

    model = load(torchvision.models.efficientnet_b0().state_dict(), "torchvision/efficientnet_b0")
    assert model.backbone_name == "torchvision/efficientnet_b0"
    model = load(source.state_dict(), "torchvision/mobilenet-v2")
    assert model.backbone_name == "mobilenet_v2"  # timm has none of this name
    assert deviation(model, lambda x: source.features(x).mean([2, 3])) < 1e-5


def test_a_checkpoint_of_the_backbone_of_torchvision_is_that_of_torchvision_again():
    source = unlike_any_other(torchvision.models.efficientnet_b0())
    save_checkpoint(load(source.state_dict(), "torchvision/efficientnet_b0"), Path("pool.ckpt"))

    assert deviation(load_checkpoint(Path("pool.ckpt")), lambda x: source.avgpool(source.features(x))) < 1e-5


@pytest.mark.parametrize("name", ["torchvision/efficientnet_lite0", "torchvision/", "torchvision/torchvision/resnet18"])
def test_a_backbone_that_torchvision_does_not_have_is_refused(name):
    with pytest.raises(DatapoolError, match=r"neither timm nor torchvision has; nearest: \w"):
        load({}, name)


# --- vision transformers -----------------------------------------------------------------------------------------------


def test_the_position_embeddings_of_a_vision_transformer_are_resampled_to_the_input_size():
    # timm itself resamples on the fly in a model of any size: an independent way to the same features.
    state = unlike_any_other(timm.create_model("test_vit", num_classes=0)).state_dict()
    of_any_size = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    of_any_size.load_state_dict(state)
    model = load({"teacher": {f"backbone.{key}": value for key, value in state.items()}}, "test_vit", input_size=96)

    assert deviation(model, of_any_size, size=96) < 1e-5
    assert model.origin == "weights of a given file (position embeddings resampled to this input size)"


def test_position_embeddings_are_not_resampled_for_their_own_size():
    source = unlike_any_other(timm.create_model("test_vit", num_classes=0))
    model = load(source.state_dict(), "test_vit", input_size=160)

    assert torch.equal(model.backbone.pos_embed, source.pos_embed)
    assert model.origin == "weights of a given file"


def test_the_kernels_of_patches_are_not_resampled():
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(64, 3, 8, 8)

    with pytest.raises(DatapoolError, match=r"1 of 78 are missing or of another shape \(patch_embed.proj.weight\)"):
        load(state, "test_vit", input_size=160)


@pytest.mark.parametrize(
    ("name", "input_size"),
    [("vit_tiny_patch16_224", 128), ("vit_small_patch14_dinov2", 126), ("deit_tiny_patch16_224", 64)],
)
def test_vision_transformers_that_users_have_compute_what_timm_computes(name, input_size):
    state = unlike_any_other(timm.create_model(name, num_classes=0)).state_dict()
    of_any_size = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    of_any_size.load_state_dict(state)
    mask = {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])} if "dinov2" in name else {}

    assert deviation(load(state | mask, name, input_size=input_size), of_any_size, size=input_size) < 1e-5


@pytest.mark.full
def test_a_vision_transformer_of_torchvision_is_resampled_as_torchvision_does():
    source = unlike_any_other(torchvision.models.vit_b_32())
    resized = torchvision.models.vit_b_32(image_size=96).eval()
    resampled = torchvision.models.vision_transformer.interpolate_embeddings(96, 32, source.state_dict())
    resized.load_state_dict(resampled)
    resized.heads = nn.Identity()

    assert deviation(load(source.state_dict(), "vit_b_32", input_size=96), resized, size=96) < 1e-5


def test_a_swin_transformer_of_microsoft_is_converted_to_the_names_and_windows_of_timm():
    name = "swin_tiny_patch4_window7_224"
    source = unlike_any_other(timm.create_model(name, num_classes=0))
    state = dict(source.state_dict())
    # Microsoft has the downsampling at the end of a stage, where timm has it at the beginning of the next.
    for key in [key for key in state if "downsample" in key]:
        stage = int(key.split(".")[1])
        state[key.replace(f"layers.{stage}.", f"layers.{stage - 1}.")] = state.pop(key)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)

    assert deviation(load({"model": state}, name, input_size=224), source, size=224) < 1e-5


# --- objects beside the weights ----------------------------------------------------------------------------------------


class Settings:
    """As a user's own program may have; not importable where the file is read."""

    def __init__(self, lr: float) -> None:
        self.lr = lr


class EasyDict(dict[str, Any]):
    """As the package of that name has it."""

    def __init__(self, **items: object) -> None:
        super().__init__(**items)
        self.__dict__.update(items)


def test_settings_beside_the_weights_of_lightning_are_read_and_nothing_is_imported(monkeypatch: pytest.MonkeyPatch):
    source = tiny()
    content = {
        "state_dict": below("backbone.", source),
        "hyper_parameters": OmegaConf.create({"lr": 0.1, "sizes": [1, 2], "nested": {"name": "x"}}),
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "settings": Settings(0.1),
        "easy": EasyDict(lr=0.1),
        "callbacks": {"loss": torch.tensor(0.5).numpy().mean()},
    }
    torch.save(content, "weights.pth")
    monkeypatch.setattr(Settings, "__new__", lambda *_: pytest.fail("the class was used"))
    model = build_model(TINY, dimension=8, input_size=64, pretrained=False, weights=Path("weights.pth"), seed=5).eval()

    assert deviation(model, source) < 1e-6
    with pytest.raises(
        DatapoolError, match=r"checkpoint of datapool; to start from weights of another .* set lightly.model.we"
    ):
        load_checkpoint(Path("weights.pth"))


class Calls:
    """An object whose pickle calls a function when it is loaded without care."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


def test_functions_that_run_code_are_refused_by_name():
    import os
    import runpy
    import subprocess

    refusals = {}
    for function in (os.system, subprocess.check_output, runpy.run_path, eval, torch.load, torch.hub.load, __import__):
        torch.save({"state_dict": tiny().state_dict(), "x": Calls(function, "touch executed")}, "bad.pth")
        with pytest.raises(DatapoolError) as caught:
            build_model(TINY, dimension=8, input_size=64, pretrained=False, weights=Path("bad.pth"), seed=5)
        refusals[function.__name__] = str(caught.value)

    for name, message in refusals.items():
        assert re.match(
            rf"bad.pth: is not a file of weights: it holds a Python object, [\w.]*{name}, and is not exe", message
        ), message
    assert not Path("executed").exists()


# --- files that cannot be used -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_torchscript_is_refused_with_what_to_do():
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save("weights.pt")

    with pytest.raises(
        DatapoolError,
        match=r"pt: is a TorchScript program, which is not executed; save the state_dict\(\) of its module",
    ):
        build_model(TINY, dimension=8, input_size=64, pretrained=False, weights=Path("weights.pt"), seed=5)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [], torch.zeros(3), {"state_dict": {1: torch.zeros(2)}}])
def test_a_file_without_weights_is_refused_with_what_to_give(content):
    with pytest.raises(DatapoolError, match=r"no weights are found in it; give a file of a state dict, as `torch.save"):
        load(content)


def test_a_file_of_thousands_of_prefixes_is_refused_soon():
    state = {f"{i}.{'a.' * 20}weight": torch.zeros(1) for i in range(3000)}

    with pytest.raises(DatapoolError, match="73 of 73 are missing or of another shape"):
        load(state)
