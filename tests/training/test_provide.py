"""The model of a pool: its own if it has one, else a new one; and settings that ask for another are refused."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import MAX_PIXELS, write_picture
from PIL import Image

from datapool.core.base import Base, Standing, empty_base_table
from datapool.core.errors import DatapoolError
from datapool.core.lineage import EmbeddingSpace, Levels, Version
from datapool.core.recorded_rows import no_seen
from datapool.core.row_cache import RowCache
from datapool.core.schema import Params
from datapool.images.decode import ImageFile
from datapool.images.pixels import square_of
from datapool.images.squares import SquareStore
from datapool.model.embedding import embed_with_cache
from datapool.model.embedding_model import build_model, embedding_space_id, load_checkpoint, save_checkpoint
from datapool.training import calibrate_levels, fitted_head
from datapool.training.gate import evenly_spaced, held_back
from datapool.training.job import ModelFiles, ProvidedModel
from datapool.training.own_model import FEWEST_TO_MEASURE
from datapool.training.provide import provide_model

SHIPPED = Path(__file__).parents[2] / "params.yaml"
CHECKPOINT, LAST, CANDIDATE = Path("checkpoint.ckpt"), Path("last.ckpt"), Path("candidate.ckpt")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(seed: int = 1, *, name: str = "test_efficientnet"):
    return build_model(name, dimension=8, input_size=32, pretrained=False, weights=None, seed=seed)


def pool_with(model, *, recorded=None) -> Base:
    """A pool of one version, made by ``recorded``, in whose place lies the checkpoint of ``model``."""
    recorded = recorded or model
    save_checkpoint(recorded, Path("base.ckpt"))
    digest = hashlib.sha256(Path("base.ckpt").read_bytes()).hexdigest()
    save_checkpoint(model, Path("base.ckpt"))
    space_id = embedding_space_id(recorded)
    space = EmbeddingSpace(id=space_id, start=None, backbone=model.backbone_name, dimension=8, input_size=32)
    version = Version.model_construct(embedding_space=space, checkpoint_sha256=digest)
    return Base("p", "batch", [version], None, empty_base_table(), Path("base.ckpt"), no_seen())


NEW_POOL = Base("p", "batch", [], None, empty_base_table(), None, no_seen())


def image(color: str) -> ImageFile:
    Image.new("RGB", (40, 40), color).save(f"{color}.png")
    return ImageFile(Path(f"{color}.png"), hashlib.sha256(Path(f"{color}.png").read_bytes()).hexdigest(), MAX_PIXELS)


def provide(base: Base, images=(), *, labels=None, squares=None, **settings: object) -> ProvidedModel:
    """Provide the model with the shipped settings but a tiny model; ``lightly__model__name`` is lightly.model.name."""
    content = yaml.safe_load(SHIPPED.read_text())
    small = {
        "lightly__model__name": "test_efficientnet",
        "lightly__model__num_ftrs": 8,
        "lightly__model__pretrained": False,
        "lightly__collate__input_size": 32,
        "lightly__loader__num_workers": 0,
        "lightly__trainer__accelerator": "cpu",
        "lightly__trainer__max_epochs": 1,
    }
    for key, value in (small | settings).items():
        section = content
        *above, name = key.split("__")
        for part in above:
            section = section[part]
        section[name] = value
    params = Params.model_validate(content)
    return provide_model(
        base,
        images,
        params,
        files=ModelFiles(CHECKPOINT, LAST, CANDIDATE),
        scratch_dir=Path("scratch"),
        cache_dir=Path("cache"),
        progress=lambda *_: None,
        labels=labels,
        squares=squares,
    )


def test_the_pools_own_model_is_used_unchanged():
    base = pool_with(tiny())
    provided = provide(base, [image("red")], seed=9)

    assert CHECKPOINT.read_bytes() == LAST.read_bytes() == Path("base.ckpt").read_bytes()
    assert provided.space == base.versions[0].embedding_space
    assert provided.losses == ()


def test_the_recorded_file_of_the_pools_own_model_is_not_loaded_if_the_settings_are_the_recorded_ones(monkeypatch):
    base = pool_with(tiny())
    save_checkpoint(tiny(), Path("given.ckpt"))
    loaded = []
    monkeypatch.setattr("datapool.model.embedding_model.load_checkpoint", lambda path: [loaded.append(path), tiny()][1])

    def loads(base: Base, **settings: object) -> list[str]:
        loaded.clear()
        provide(base, **settings)
        return [path.name for path in loaded]

    assert loads(base) == []
    assert loads(base, checkpoint="given.ckpt") == []  # the same file
    # In another spelling, only the model shows that it is the same. So it is in another file of the same model.
    assert loads(base, lightly__model__name="Test-EfficientNet") == ["base.ckpt"]
    torch.save(torch.load("given.ckpt", weights_only=True), "given.ckpt")
    assert Path("given.ckpt").read_bytes() != Path("base.ckpt").read_bytes()
    assert loads(base, checkpoint="given.ckpt") == ["base.ckpt", "given.ckpt"]
    shutil.copy("given.ckpt", "base.ckpt")
    assert loads(base) == ["base.ckpt"]


def test_a_checkpoint_that_the_lineage_does_not_record_is_refused():
    with pytest.raises(
        DatapoolError, match=r"is not the model of pool 'p' .* `dvc repro --force --single-item open` takes"
    ):
        provide(pool_with(tiny(seed=2), recorded=tiny(seed=1)))
    assert not CHECKPOINT.exists()


def test_settings_that_ask_for_another_model_than_the_pools_are_refused_by_key():
    base = pool_with(tiny())
    cases = {
        "lightly.model.name is resnet18, but the checkpoint of pool 'p' has test_efficientnet; set lightly.model.name: "
        "test_efficientnet, or set another datapool.name": {"lightly__model__name": "ResNet-18"},
        "lightly.model.num_ftrs is 9, but the checkpoint of pool 'p' has 8": {"lightly__model__num_ftrs": 9},
        "lightly.model.layers is [4, last], but the checkpoint of pool 'p' has last; set lightly.model.layers: last, or set "
        "another datapool.name": {"lightly__model__layers": [4, "last"]},
        "lightly.collate.input_size is 33, but the checkpoint": {"lightly__collate__input_size": 33},
    }
    for message, settings in cases.items():
        with pytest.raises(DatapoolError) as caught:
            provide(base, **settings)
        assert message in str(caught.value)


def test_the_name_that_lightlys_docker_uses_means_lightlys_own_resnet():
    provide(pool_with(tiny(name="lightly-resnet-9-w0.125")), lightly__model__name="resnet-9")

    assert load_checkpoint(CHECKPOINT).backbone_name == "lightly-resnet-9-w0.125"


def test_a_given_checkpoint_that_did_not_make_the_pool_is_refused():
    save_checkpoint(tiny(seed=2), Path("given.ckpt"))
    with pytest.raises(DatapoolError, match=r"checkpoint given.ckpt is model .*, but pool 'p' was made with model"):
        provide(pool_with(tiny()), checkpoint="given.ckpt")


def test_a_new_pool_takes_a_given_checkpoint_and_trains_it_only_if_asked_to():
    save_checkpoint(tiny(), Path("given.ckpt"))
    images = [image("red"), image("blue")]

    as_it_is = provide(NEW_POOL, images, checkpoint="given.ckpt", enable_training=False)
    assert CHECKPOINT.read_bytes() == Path("given.ckpt").read_bytes()
    trained = provide(NEW_POOL, images, checkpoint="given.ckpt", enable_training=True)

    assert as_it_is.space.origin == "weights of a given checkpoint"
    assert as_it_is.space.id == as_it_is.space.start == trained.space.start == embedding_space_id(tiny())
    assert trained.space.origin == "weights of a given checkpoint, trained on 2 images for 1 epochs"
    assert trained.space.id == embedding_space_id(load_checkpoint(CHECKPOINT)) != trained.space.start
    assert len(trained.losses) == 1


@pytest.mark.slow
def test_a_training_is_measured_by_images_that_are_held_back_and_not_kept_if_the_start_was_better(monkeypatch):
    save_checkpoint(tiny(), Path("given.ckpt"))
    images = colors(50)
    settings = {"checkpoint": "given.ckpt", "enable_training": True, "lightly__optimizer__lr": 0.01}

    found = {}
    for better in (False, True):
        monkeypatch.setattr("datapool.training.gate.is_better", lambda after, before, better=better: better)
        found[better] = provide(NEW_POOL, images, **settings)
        kept = load_checkpoint(CHECKPOINT)
        assert (embedding_space_id(kept) == embedding_space_id(tiny())) is not better
        assert embedding_space_id(load_checkpoint(LAST)) != embedding_space_id(tiny())
        # Statistics of normalization are those of the start.
        assert torch.equal(kept.backbone.bn1.running_var, tiny().backbone.bn1.running_var)
    measured = found[True].space.measured[0]

    assert (measured.images, measured.kept) == (10, True)
    assert measured.before != measured.after
    assert measured.summary in found[True].notes
    assert found[True].space.origin == "weights of a given checkpoint, trained on 40 images for 1 epochs"
    assert found[False].space.origin == (
        "weights of a given checkpoint, not trained on 40 images for 1 epochs, which made it no better"
    )


def colors(n: int) -> list[ImageFile]:
    return [image(f"#{number:06x}") for number in range(0, 0xFFFFFF, 0xFFFFFF // n)][:n]


@pytest.mark.slow
def test_always_trains_a_candidate_and_embeds_by_the_pools_own_model_whichever_is_better(monkeypatch):
    base = pool_with(tiny())
    settings = {"enable_training": "always", "lightly__optimizer__lr": 0.01}

    found = {}
    for better in (False, True):
        monkeypatch.setattr("datapool.training.gate.is_better", lambda after, before, better=better: better)
        found[better] = provide(base, colors(50), **settings)
        assert CHECKPOINT.read_bytes() == LAST.read_bytes() == Path("base.ckpt").read_bytes()
        assert found[better].space.id == base.versions[0].embedding_space.id
        assert found[better].space.measured is None
        assert len(found[better].losses) == 1
        assert (CANDIDATE.read_bytes() == b"no model\n") is not better
    candidate = load_checkpoint(CANDIDATE)

    assert embedding_space_id(candidate) != embedding_space_id(tiny())
    assert torch.equal(candidate.backbone.bn1.running_var, tiny().backbone.bn1.running_var)
    assert candidate.preprocessing == tiny().preprocessing
    assert found[True].notes[1].startswith("trained on 40 images; ")
    figures = (
        r"on 10 images held back: edited copies found [0-9.]+% -> [0-9.]+%, at 1 % false alarms [0-9.]+% -> [0-9.]+%"
    )
    assert re.fullmatch(rf"candidate: no better than the pool's model \({figures}\)", found[False].notes[2])
    assert re.fullmatch(
        rf"candidate: better than the pool's model \({figures}\)\. The pool keeps its own, .*`datapool migrate --checkpoint "
        "candidate.ckpt --check` tells what another one would change",
        found[True].notes[2],
    )


def test_too_few_images_to_measure_a_model_train_no_candidate():
    assert (len(held_back(FEWEST_TO_MEASURE)), len(held_back(FEWEST_TO_MEASURE - 1))) == (10, 0)

    provided = provide(pool_with(tiny()), [image("red"), image("blue")], enable_training="always")

    assert provided.losses == ()
    assert CANDIDATE.read_bytes() == b"no model\n"
    assert provided.notes == [
        "pool 'p' has its model already: it is used as it is, for 2 new images are too few to train another one and to "
        "compare both; that takes 50"
    ]


@pytest.mark.parametrize("word", ["first", "always"])
def test_first_and_always_train_a_new_pool_as_true_does(word):
    images = [image("red"), image("blue")]

    by_word, by_true = (provide(NEW_POOL, images, enable_training=value).space for value in (word, True))

    assert by_word == by_true
    assert by_word.origin == "random weights, trained on 2 images for 1 epochs"
    assert CANDIDATE.read_bytes() == b"no model\n"


def test_the_lineage_names_the_method_of_a_training():
    images = [image("red"), image("blue")]

    provided = provide(NEW_POOL, images, enable_training="first", lightly__method="byol")

    assert provided.space.origin == "random weights, trained on 2 images for 1 epochs by BYOL"
    settings = {"batch_size": 64, "num_workers": 0, "accelerator": "cpu", "progress": None}
    embedded = embed_with_cache(CHECKPOINT, images, cache=RowCache(Path("cache")), **settings)
    assert embedded.embeddings.shape == (2, 8)


def test_one_image_is_not_trained_on_unless_the_weights_are_random():
    save_checkpoint(tiny(), Path("given.ckpt"))

    provided = provide(NEW_POOL, [image("red")], checkpoint="given.ckpt", enable_training=True)
    assert provided.notes[1:] == [
        "the batch has one image, and training needs two or more: the model is used without training"
    ]
    with pytest.raises(DatapoolError, match="images to train on: 1"):
        provide(NEW_POOL, [image("red")], enable_training=True)


def test_random_weights_without_training_are_refused():
    with pytest.raises(DatapoolError, match="only random weights are left, and their embeddings mean nothing"):
        provide(NEW_POOL, [image("red"), image("blue")], enable_training=False)
    assert not CHECKPOINT.exists()


def test_a_backbone_with_trained_weights_has_a_head_that_is_fitted_to_the_images():
    save_checkpoint(tiny(), Path("weights.ckpt"))
    images = [image("red"), image("blue"), image("lime")]

    provided = provide(NEW_POOL, images, lightly__model__weights="weights.ckpt", enable_training=False)

    axes = load_checkpoint(CHECKPOINT).head.weight.detach().numpy()
    assert provided.space.origin == "weights of a given file"
    assert axes @ axes.T == pytest.approx(np.eye(8), abs=1e-5)  # principal axes, unlike random weights
    for file in images:
        file.path.unlink()
    settings = {"batch_size": 64, "num_workers": 0, "accelerator": "cpu", "progress": None}
    assert embed_with_cache(CHECKPOINT, images, cache=RowCache(Path("cache")), **settings).n_known == 3


@pytest.mark.parametrize("given", ["lightly__model__weights", "checkpoint"])
def test_images_that_scan_has_kept_are_read_only_to_be_edited(given: str, monkeypatch: pytest.MonkeyPatch):
    for module in (fitted_head, calibrate_levels):
        monkeypatch.setattr(module, "N_EDITED", 6)
    model = build_model(
        "test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1, decode="scaled"
    )
    save_checkpoint(model, Path("given.ckpt"))
    settings = {given: "given.ckpt", "enable_training": False}
    images = pictures(40)
    squares = SquareStore(Path(".datapool/squares"), 32)
    with squares.writing() as keep:
        for file in images:
            keep(file.content_hash, square_of(model.preprocessing.read(file), 32).tobytes())
    provided = provide(NEW_POOL, images, **settings)
    made = CHECKPOINT.read_bytes(), [path.read_bytes() for path in Path("cache").iterdir()]
    shutil.rmtree("cache")

    edited = {*evenly_spaced(40, 6).tolist(), *calibrate_levels._rows_to_edit(40).tolist()}
    for row in set(range(40)) - edited:
        images[row].path.unlink()
    again = provide(NEW_POOL, images, squares=squares, **settings)

    assert len(edited) == 12
    assert again == provided
    assert (CHECKPOINT.read_bytes(), [path.read_bytes() for path in Path("cache").iterdir()]) == made


def test_how_the_head_was_judged_is_printed_and_recorded_but_not_for_a_pool_that_an_early_release_began():
    save_checkpoint(tiny(), Path("weights.ckpt"))
    settings = {"lightly__model__weights": "weights.ckpt", "enable_training": False, "labels": ["red", "blue"] * 20}
    images = colors(40)

    provided = provide(NEW_POOL, images, **settings)
    early = provide(NEW_POOL._replace(decodes_in_full=True), images, **settings)

    assert provided.space.measured[0].summary in provided.notes
    assert "head fitted to ignore mild edits: " in provided.notes[1]
    assert provided.space.measured[0].before.labels_agree is not None
    assert EmbeddingSpace.model_validate(provided.space.model_dump()) == provided.space
    assert "measured" not in early.space.model_dump()


def test_a_new_pool_decodes_at_a_smaller_scale_and_one_that_an_early_release_began_at_full_size():
    save_checkpoint(tiny(), Path("weights.ckpt"))
    settings = {"lightly__model__weights": "weights.ckpt", "enable_training": False}

    early = provide(NEW_POOL._replace(decodes_in_full=True), [image("red")], **settings)
    early_decodes = load_checkpoint(CHECKPOINT).preprocessing.decode
    later = provide(NEW_POOL, [image("red")], **settings)

    assert (early_decodes, load_checkpoint(CHECKPOINT).preprocessing.decode) == ("full", "scaled")
    assert ("decode" in early.space.model_dump(), later.space.model_dump()["decode"]) == (False, "scaled")
    assert early.space.id != later.space.id


def test_a_first_version_that_is_made_anew_keeps_the_levels_of_an_early_release_in_the_same_space():
    save_checkpoint(tiny(), Path("weights.ckpt"))
    settings = {"lightly__model__weights": "weights.ckpt", "enable_training": False}
    images = [image(f"#{number:06x}") for number in range(0, 0xFFFFFF, 0xFFFFFF // 39)]
    new = provide(NEW_POOL, images, **settings).space
    of_early = new.levels.model_dump()
    del of_early["scenes"]
    of_early["normalized"]["near_copies"]["distance"] = 0.123
    early = new.with_levels(Levels.model_validate(of_early))

    same, other = (
        provide(NEW_POOL._replace(early_space=early.model_copy(update={"id": space_id})), images, **settings).space
        for space_id in (new.id, "f" * 64)
    )

    assert same == early
    assert other == new


def test_a_new_pool_takes_the_layers_that_its_trained_backbone_has_and_records_them():
    torch.save(tiny().backbone.state_dict(), "weights.pth")
    settings = {"lightly__model__weights": "weights.pth", "enable_training": False}

    automatic = provide(NEW_POOL, [image("red")], **settings)
    named = provide(NEW_POOL, [image("red")], lightly__model__layers=[4, 5, "last"], **settings)
    last = provide(NEW_POOL, [image("red")], lightly__model__layers="last", **settings)

    assert automatic.space == named.space
    assert automatic.space.layers == [4, 5, "last"]
    assert "layers" not in last.space.model_dump()
    assert automatic.space.id != last.space.id
    assert automatic.notes == [
        "new model: test_efficientnet with 8 dimensions of layers [4, 5, last], weights of a given file"
    ]


def test_layers_before_the_last_of_a_random_backbone_are_not_taken_by_themselves():
    provide(NEW_POOL, [image("red"), image("blue")], enable_training=True)

    assert load_checkpoint(CHECKPOINT).layers is None


def test_a_pool_keeps_its_layers_whatever_auto_means():
    others = build_model(
        "test_efficientnet", dimension=8, input_size=32, pretrained=False, weights=None, seed=1, layers=[2, "last"]
    )
    for model in (tiny(), others):
        base = pool_with(model)
        provide(base, [image("red")], lightly__model__name="Test-EfficientNet")  # so that the model is looked at

        assert CHECKPOINT.read_bytes() == Path("base.ckpt").read_bytes()


def test_a_model_that_is_trained_after_its_head_was_fitted_leaves_no_embeddings():
    save_checkpoint(tiny(), Path("weights.ckpt"))
    provide(NEW_POOL, [image("red"), image("blue")], lightly__model__weights="weights.ckpt", enable_training=True)

    assert not Path("cache").exists()


def test_the_run_and_the_lineage_say_which_copy_of_the_weights_was_taken():
    teacher, student = (tiny(seed).backbone.state_dict() for seed in (1, 2))
    torch.save({"student": student, "teacher": teacher}, "dino.pth")

    provided = provide(NEW_POOL, [image("red")], lightly__model__weights="dino.pth", enable_training=False)

    assert provided.space.origin == "weights of a given file (its 'teacher', not its 'student')"
    assert provided.notes == [
        f"new model: test_efficientnet with 8 dimensions of layers [4, 5, last], {provided.space.origin}"
    ]
    assert torch.equal(load_checkpoint(CHECKPOINT).backbone.conv_stem.weight, teacher["conv_stem.weight"])


def test_without_images_and_without_a_pool_there_is_no_model():
    provided = provide(NEW_POOL)

    assert CHECKPOINT.read_bytes() == LAST.read_bytes() == b"no model\n"
    assert provided.space == EmbeddingSpace(id=None, backbone=None, dimension=8, input_size=None, origin=None)


def test_embeddings_from_a_csv_of_another_dimension_than_the_pools_are_refused():
    Path("batch.csv").write_text("filenames,embedding_0,embedding_1,labels\na.png,1,0,0\n")
    assert provide(NEW_POOL, embeddings="batch.csv").space.id == "csv-2"

    with pytest.raises(
        DatapoolError, match="has embeddings of 2 dimensions of unknown origin, but those of pool 'p' are"
    ):
        provide(pool_with(tiny()), embeddings="batch.csv")


def test_a_pool_from_a_csv_has_no_model_for_images():
    base = pool_with(tiny())._replace(checkpoint=None)
    with pytest.raises(
        DatapoolError, match="was made from an embeddings csv and has no model; set embeddings to a csv"
    ):
        provide(base, [image("red")])


def pictures(n: int) -> list[ImageFile]:
    for number in range(n):
        write_picture(Path(f"pictures/{number:02d}.png"), number)
    return [
        ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS)
        for path in sorted(Path("pictures").iterdir())
    ]


def test_a_new_space_has_levels_and_a_pool_keeps_those_that_are_recorded():
    save_checkpoint(tiny(), Path("given.ckpt"))
    new = provide(NEW_POOL, pictures(30), checkpoint="given.ckpt", enable_training=False).space
    assert new is not None
    assert new.levels is not None
    assert new.levels.images == 30

    base = pool_with(tiny())
    recorded = base.versions[0].model_copy(update={"embedding_space": new})
    again = provide(base._replace(versions=[recorded]), pictures(31)).space

    assert again == new


def test_a_pool_without_levels_gets_them_from_the_first_batch_that_has_enough_images():
    base = pool_with(tiny())

    few, enough = (provide(base, pictures(n)).space for n in (29, 30))

    assert few == base.versions[0].embedding_space
    assert enough is not None
    assert enough.levels is not None
    assert enough.id == base.versions[0].embedding_space.id


def test_a_version_that_is_made_again_keeps_its_levels():
    base = pool_with(tiny())
    levels = Levels(images=50, edited=0, normalized={}, raw={})
    made = base.versions[0].model_copy(update={"embedding_space": base.versions[0].embedding_space.with_levels(levels)})
    standing = Standing(empty_base_table(), made, [], True)

    assert provide(base._replace(standing=standing), pictures(30)).space == made.embedding_space
