"""The models of open_clip, which compare pictures with words: their names, published weights and configurations.

open_clip is an extra of this package, so it is imported where it is needed.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datapool.model.torchvision_compat  # noqa: F401  before the first import of timm or torchvision; see there
from datapool.core import atomic
from datapool.core.errors import DatapoolError
from datapool.model.weights import first_few, one_line

# isort: split
import timm

CONFIG = "open_clip_config.json"
"""The file of a model's folder that describes it."""

TOKENIZER = "tokenizer.json"
"""The file with which a folder has a tokenizer of its own."""

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The names of the files of weights, the best first."""

INSTALL = "`pip install 'dvc-datapool[text]'`"
"""The command that installs open_clip."""

SUGGESTED = "ViT-B-32-256.datacomp_s34b_b86k"
"""A model to begin with."""


class PublishedTextModel(NamedTuple):
    """A model of open_clip that a hub has."""

    name: str
    """With the tag of the weights, such as "ViT-B-32.laion2b_s34b_b79k"; or the repository."""
    repository: str
    filenames: tuple[str, ...]
    """The files of weights that it may have, the best first."""
    config: dict[str, Any] | None
    """The content of open_clip_config.json; None for that of the repository."""


def require_open_clip() -> None:
    """Check that open_clip is installed.

    Raises:
        DatapoolError: With the command that installs it.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise DatapoolError(f"open_clip, which compares pictures with words, is not installed; run {INSTALL}")


def is_text_model(name: str) -> bool:
    """Return whether a name is one of open_clip, or a repository such as "laion/CLIP-ViT-B-32-laion2B-s34B-b79K".

    A name that timm has too, such as convnext_base, means timm's, unless its tag is one of open_clip's.
    """
    if "/" in name:
        return not name.startswith("torchvision/")
    if importlib.util.find_spec("open_clip") is None:
        return False
    import open_clip

    architecture, _, tag = name.partition(".")
    if tag and tag in open_clip.list_pretrained_tags_by_model(architecture):
        return True
    return architecture in open_clip.list_models() and not timm.is_model(architecture)


def find_published_text_model(name: str) -> PublishedTextModel:
    """Find the weights that a hub has for a model of open_clip.

    Args:
        name: Of a model with the tag of its weights; without one where there is one only. Or a repository.

    Raises:
        DatapoolError: If there are no such weights, or several; with their names.
    """
    require_open_clip()
    if "/" in name:
        return PublishedTextModel(name, name, WEIGHTS, None)
    import open_clip

    architecture, _, tag = name.partition(".")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag and len(tags) == 1:
        tag = tags[0]
    if tag not in tags:
        raise DatapoolError(f"open_clip has no weights {name}; it has {_names(architecture, tags)}")
    published = open_clip.get_pretrained_cfg(architecture, tag)
    repository, _, filename = published["hf_hub"].rpartition("/")
    filenames = (filename.replace(".bin", ".safetensors"), filename) if filename else WEIGHTS
    return PublishedTextModel(f"{architecture}.{tag}", repository, filenames, _config_of(architecture, tag))


def find_config(name: str) -> dict[str, Any]:
    """Return the content of open_clip_config.json for a model, such as "ViT-B-32", or for weights of it.

    Raises:
        DatapoolError: If open_clip has no such model, or no such weights of it; with names.
    """
    require_open_clip()
    import open_clip

    architecture, _, tag = name.partition(".")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if architecture not in open_clip.list_models():
        raise DatapoolError(f"open_clip has no model {name}; it has {first_few(open_clip.list_models())}")
    if tag and tag not in tags:
        raise DatapoolError(f"open_clip has no weights {name}; it has {_names(architecture, tags)}")
    return _config_of(architecture, tag)


def _names(architecture: str, tags: list[str]) -> str:
    return first_few([f"{architecture}.{tag}" for tag in tags]) or f"none for {architecture}"


def _config_of(architecture: str, tag: str) -> dict[str, Any]:
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    published = open_clip.get_pretrained_cfg(architecture, tag)
    model = open_clip.get_model_config(architecture)
    if published.get("quick_gelu"):  # the activation with which these weights were trained
        model["quick_gelu"] = True
    return {"model_cfg": model, "preprocess_cfg": merge_preprocess_dict(PreprocessCfg(), published)}


def read_config(path: Path) -> dict[str, Any]:
    """Read open_clip_config.json.

    Raises:
        DatapoolError: If it cannot be read, or ``require_usable`` refuses it.
    """
    data = atomic.read_regular_file(path, remedy=f"give a folder with {CONFIG}, as open_clip writes it")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatapoolError(f"{path}: is not JSON ({one_line(error)}); give another model") from error
    require_usable(config if isinstance(config, dict) else {}, source=str(path))
    return config


def tokenizer_of(config: Mapping[str, Any]) -> str | None:
    """Return the repository that has the tokenizer of a model; None if open_clip has it itself.

    Args:
        config: The content of open_clip_config.json.
    """
    found: str | None = config["model_cfg"]["text_cfg"].get("hf_tokenizer_name") or None
    return found


def require_usable(config: Mapping[str, Any], *, source: str) -> None:
    """Refuse the configuration of a model for which open_clip would have to download something.

    Args:
        config: The content of open_clip_config.json.
        source: Where it is from, for the message.

    Raises:
        DatapoolError: If it is one, or no configuration at all.
    """
    model = config.get("model_cfg")
    texts, pictures = (model.get(key) if isinstance(model, dict) else None for key in ("text_cfg", "vision_cfg"))
    if not isinstance(texts, dict) or not isinstance(pictures, dict):
        raise DatapoolError(f"{source}: does not describe a model of open_clip; give another one")
    if "hf_model_name" in texts:
        raise DatapoolError(
            f"{source}: its text model is one of transformers ({texts['hf_model_name']}), which is not used; give a model "
            f"of open_clip's own, such as {SUGGESTED}"
        )
    backbone = pictures.get("timm_model_name")
    if backbone is not None and not (isinstance(backbone, str) and timm.is_model(backbone)):
        raise DatapoolError(f"{source}: {backbone!r} is no backbone of timm; give another model")
