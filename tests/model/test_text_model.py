"""Models that compare pictures with words: their names, files, preprocessing and tokenizers, and what is refused."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from local_hub import COMMIT, Hub, hub_running
from PIL import Image
from tiny_clip import CONFIG, skip_without_open_clip, write_clip

from datapool.core.errors import DatapoolError
from datapool.model.hub import fetch_text_model
from datapool.model.open_clip_models import find_config, find_published_text_model, is_text_model
from datapool.model.text_model import load_text_model, open_text_model

skip_without_open_clip()
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path / "workspace")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_running(tmp_path, monkeypatch) as server:
        yield server


def serve(hub: Hub, folder: Path, repository: str) -> None:
    for path in folder.iterdir():
        for revision in ("main", COMMIT):
            hub.files[f"{repository}/resolve/{revision}/{path.name}"] = path.read_bytes()


def changed(**parts: dict[str, object]) -> dict:
    """Return the configuration of the tiny model with other values: of preprocess_cfg, text_cfg or vision_cfg."""
    config = copy.deepcopy(CONFIG)
    for part, values in parts.items():
        (config if part == "preprocess_cfg" else config["model_cfg"])[part].update(values)
    return config


def refusal(config: object, folder: str = "model") -> str:
    write_clip(Path(folder))
    Path(folder, "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(DatapoolError) as caught:
        load_text_model(Path(folder), name="it")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_name_means_a_model_of_open_clip_unless_timm_has_it():
    assert is_text_model("ViT-B-32")
    assert is_text_model("ViT-B-16-SigLIP.webli")
    assert is_text_model("laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert is_text_model("convnext_base.laion400m_s13b_b51k")
    for of_others in ("convnext_base", "vit_small_patch14_dinov2", "vit_b_32", "torchvision/vit_b_32", "nonsense"):
        assert not is_text_model(of_others)


def test_published_models_have_the_repository_and_the_settings_of_open_clip():
    sig_lip = find_published_text_model("ViT-B-16-SigLIP")  # of which there are one kind of weights
    assert (sig_lip.name, sig_lip.repository) == ("ViT-B-16-SigLIP.webli", "timm/ViT-B-16-SigLIP")
    assert sig_lip.filenames == ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert sig_lip.config["preprocess_cfg"]["mean"] == (0.5, 0.5, 0.5)
    assert sig_lip.config["preprocess_cfg"]["resize_mode"] == "squash"
    assert find_published_text_model("ViTamin-S").filenames == ("pytorch_model.safetensors", "pytorch_model.bin")
    # The first weights of CLIP were trained with another activation than later ones of the same name.
    assert find_published_text_model("ViT-B-32.openai").config["model_cfg"]["quick_gelu"] is True
    assert "quick_gelu" not in find_config("ViT-B-32.laion2b_s34b_b79k")["model_cfg"]
    cases = {
        "ViT-B-32": "open_clip has no weights ViT-B-32; it has ViT-B-32.openai, ",
        "ViT-B-32.nonsense": "open_clip has no weights ViT-B-32.nonsense; it has ViT-B-32.openai, ",
    }
    for name, message in cases.items():
        with pytest.raises(DatapoolError, match=message):
            find_published_text_model(name)


def test_pictures_are_resized_and_normalized_as_open_clip_does():
    import open_clip

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    for mode in ("shortest", "longest", "squash"):
        for interpolation in ("bicubic", "bilinear"):
            config = changed(preprocess_cfg={"resize_mode": mode, "interpolation": interpolation})
            folder = write_clip(Path(f"{mode} {interpolation}"), config=config)
            _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")

            found = load_text_model(folder, name="it").image_model.preprocessing(picture)

            assert found.shape == (3, 32, 32)
            assert found.numpy() == pytest.approx(preprocess(picture).numpy(), abs=1e-6)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of the kind that SigLIP has, whose text ends in </s> and is filled up with it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [(f"\N{LOWER ONE EIGHTH BLOCK}{word}", -2.0) for word in ("a", "red", "square")]
    tokenizer = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *words], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_tokenizer_of_its_own_is_fetched_with_a_model_and_recorded(hub: Hub, tmp_path: Path):
    pytest.importorskip("transformers")
    own = {"hf_tokenizer_name": "tiny/tokens", "tokenizer_kwargs": {"clean": "canonicalize"}, "context_length": 6}
    serve(hub, write_clip(tmp_path / "published", config=changed(text_cfg=own)), "tiny/siglip")
    (tmp_path / "tokens").mkdir()
    write_tokenizer(tmp_path / "tokens")
    serve(hub, tmp_path / "tokens", "tiny/tokens")

    fetched = fetch_text_model("tiny/siglip")
    hub.files = {}

    assert sorted(fetched.record.files) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (fetched.record.tokenizer, fetched.record.tokenizer_revision) == ("tiny/tokens", COMMIT)
    model = open_text_model(None, None)
    assert model._tokenize(["A red square!", "a"]).tolist() == [[3, 4, 5, 1, 1, 1], [3, 1, 1, 1, 1, 1]]
    vectors = model.embed_texts(["a red square", "A RED, square", "a"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert vectors[0] == pytest.approx(vectors[1])
    assert vectors[0] @ vectors[2] < 0.999
    (fetched.path / "tokenizer.json").unlink()
    with pytest.raises(DatapoolError, match=r"tokenizer\.json: is not there; run `datapool fetch tiny/siglip`"):
        open_text_model(None, None)


def test_a_model_that_would_be_downloaded_in_part_is_refused():
    from_a_hub = {"timm_model_name": "hf-hub:someone/model", "image_size": 32}
    assert "'hf-hub:someone/model' is no backbone of timm" in refusal(changed(vision_cfg=from_a_hub), "1")
    assert "its text model is one of transformers (roberta-base), which is not used" in refusal(
        changed(text_cfg={"hf_model_name": "roberta-base"}), "2"
    )
    assert "has no tokenizer.json; put the files of bert-base-uncased there" in refusal(
        changed(text_cfg={"hf_tokenizer_name": "bert-base-uncased"}), "3"
    )
    for number, config in enumerate([[], {}, {"model_cfg": 1}, {"model_cfg": {"text_cfg": {}, "vision_cfg": None}}]):
        assert "does not describe a model of open_clip" in refusal(config, f"4{number}")
    assert "its files are not those of one model of open_clip (" in refusal(changed(text_cfg={"width": "wide"}), "5")
    assert "its files are not those of one model of open_clip (" in refusal(changed(vision_cfg={"width": 64}), "6")


class Code:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_code_in_the_weights_is_not_run_and_weights_must_be_one_complete_file():
    folder = write_clip(Path("model"))
    safe = folder / "open_clip_model.safetensors"
    pickled = folder / "open_clip_pytorch_model.bin"
    safe.unlink()
    cases = {"its files are not those of one model": {"state_dict": Code()}, "has no weights; put": None}
    for message, content in cases.items():
        pickled.unlink(missing_ok=True)
        if content:
            torch.save(content, pickled)
        with pytest.raises(DatapoolError, match=message):
            load_text_model(folder, name="it")
    assert not Path("executed").exists()
    for name in ("a.bin", "b.bin"):
        (folder / name).write_bytes(b"?")
    with pytest.raises(DatapoolError, match=r"has several files of weights \(a.bin, b.bin\)"):
        load_text_model(folder, name="it")


def test_fetching_again_gets_the_recorded_commit_and_refuses_other_files(hub: Hub, tmp_path: Path):
    serve(hub, write_clip(tmp_path / "published"), "tiny/clip")
    fetch_text_model("tiny/clip")
    Path("weights/tiny--clip/open_clip_model.safetensors").unlink()
    Path("weights/tiny--clip/stray.bin").touch()
    hub.files = {path: body for path, body in hub.files.items() if COMMIT in path}  # main has gone on

    assert sorted(path.name for path in fetch_text_model("tiny/clip").path.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]

    record = Path("weights/tiny--clip.json")
    digest = json.loads(record.read_text())["files"]["open_clip_model.safetensors"]
    record.write_text(record.read_text().replace(digest, "0" * 64))
    with pytest.raises(DatapoolError, match=r"records other files than http.* remove weights/tiny--clip.json"):
        fetch_text_model("tiny/clip")
    hub.files = {}
    for name, message in {
        "tiny/other": r"has no tiny/other with weights.* or give a local one to `datapool find --weights`",
        "a/b/c": "a/b/c: is no name of a repository; give OWNER/NAME",
    }.items():
        with pytest.raises(DatapoolError, match=message):
            fetch_text_model(name)
    assert not Path("weights/tiny--other").exists()
