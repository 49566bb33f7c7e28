"""Embedding: rows in the order of the images, each image embedded once, known rows taken over."""

import copy
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from conftest import MAX_PIXELS
from PIL import Image

from datapool.core.errors import DatapoolError
from datapool.core.row_cache import RowCache
from datapool.core.tables import EmbeddedTable
from datapool.images import batch
from datapool.images.decode import ImageFile, read_rgb
from datapool.images.pixels import Ranges, WantedSquares
from datapool.images.ranges import ranges_of
from datapool.images.squares import SquareStore
from datapool.model import embedding
from datapool.model.embedding import backbone_features, embed, embed_with_cache, fitting_step, keep_embeddings, readers
from datapool.model.embedding_model import (
    EmbeddingModel,
    Preprocessing,
    build_model,
    embedding_space_id,
    fit_head,
    load_checkpoint,
    save_checkpoint,
)

COLORS = ["black", "white", "red", "lime", "blue", "yellow", "cyan", "magenta", "gray", "orange"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return build_model("test_efficientnet", dimension=6, input_size=32, pretrained=False, weights=None, seed=1)


@pytest.fixture
def images(tmp_path: Path) -> list[ImageFile]:
    return [solid(tmp_path / f"{color}.png", color) for color in COLORS]


def solid(path: Path, color: str) -> ImageFile:
    Image.new("RGB", (40, 30), color).save(path)
    return ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS)


def rows_of(model: EmbeddingModel, images: list[ImageFile], **options: object) -> np.ndarray:
    return run(model, images, **options)[0]


def run(model: EmbeddingModel, images: list[ImageFile], **options: object) -> tuple[np.ndarray, int]:
    defaults = {"batch_size": 4, "num_workers": 0, "accelerator": "cpu", "known": None, "progress": None}
    return embed(model, images, **(defaults | options))


def one_by_one(model: EmbeddingModel, images: list[ImageFile]) -> np.ndarray:
    with torch.no_grad():
        inputs = [model.preprocessing(read_rgb(image)) for image in images]
        return torch.cat([model.eval()(one[None]) for one in inputs]).numpy()


def known_rows(content_hashes: list[str], embeddings: np.ndarray) -> EmbeddedTable:
    return EmbeddedTable(pd.DataFrame({"content_hash": content_hashes}, dtype="str"), embeddings)


def relative_error(rows: np.ndarray, others: np.ndarray) -> float:
    return float((np.linalg.norm(rows - others, axis=1) / np.linalg.norm(rows, axis=1)).max())


def test_rows_are_in_the_order_of_the_images(model: EmbeddingModel, images: list[ImageFile]):
    rows = rows_of(model, images)

    assert rows.dtype == np.float32
    assert relative_error(rows, one_by_one(model, images)) < 1e-5
    assert relative_error(rows[::-1], rows_of(model, images[::-1])) < 1e-5


def test_the_other_images_of_a_run_change_a_row_by_rounding_only(model: EmbeddingModel, images: list[ImageFile]):
    rows = rows_of(model, images)

    assert relative_error(rows[2:3], rows_of(model, images[2:3])) < 1e-5
    assert relative_error(rows[5:], rows_of(model, images[5:])) < 1e-5


def test_images_that_scan_has_kept_are_not_read_and_have_the_same_embeddings(model: EmbeddingModel, tmp_path: Path):
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (90, 80 + i, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (100, 110 + i, 3), dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
    store = SquareStore(Path(".datapool/squares"), 32)
    with store.writing() as keep:
        found = batch.scan(
            tmp_path, filename_prefix="", relevant=None, check="strict", max_pixels=MAX_PIXELS, remove_duplicates=True,
            gif=False, progress=lambda done, total: None, keep_thumbnail=lambda content_hash, webp: None,
            squares=WantedSquares(32, np.empty(0, dtype=np.uint64)), keep_square=keep,
        )  # fmt: skip
    files = batch.image_files(found.images, tmp_path, max_pixels=MAX_PIXELS, ranges={})
    rows = rows_of(model, files)
    for file in files:
        file.path.write_bytes(b"")
    kept = {workers: rows_of(model, files, squares=store, num_workers=workers) for workers in (0, 2)}

    assert len(rows) == 12
    assert {workers: again.tobytes() == rows.tobytes() for workers, again in kept.items()} == {0: True, 2: True}


def test_the_same_images_make_the_same_bytes_again(model: EmbeddingModel, images: list[ImageFile]):
    assert rows_of(model, images).tobytes() == rows_of(model, images).tobytes()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_another_batch_size_changes_rows_by_rounding_only(
    model: EmbeddingModel, images: list[ImageFile], batch_size: int
):
    assert relative_error(rows_of(model, images), rows_of(model, images, batch_size=batch_size)) < 1e-5


def test_workers_change_nothing(model: EmbeddingModel, images: list[ImageFile]):
    assert np.array_equal(rows_of(model, images, num_workers=2), rows_of(model, images))


def test_readers_are_one_per_core_for_a_gpu_and_none_for_a_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datapool.model.embedding.machine_cores", lambda: 16)
    monkeypatch.setattr("datapool.model.embedding.memory_for_images", lambda: 2**40)
    monkeypatch.setattr("datapool.model.embedding._free_shared_memory", lambda: 2**40)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    many = {"n_minibatches": 1000, "minibatch_bytes": 1_000_000}

    assert (readers("auto", gpu, **many), readers("auto", cpu, **many)) == (16, 0)
    assert (readers(3, gpu, **many), readers(3, cpu, **many), readers(0, gpu, **many)) == (3, 3, 0)
    assert readers("auto", gpu, **many, n_devices=4) == 4
    assert readers("auto", gpu, n_minibatches=5, minibatch_bytes=1_000_000) == 5
    monkeypatch.setattr("datapool.model.embedding._free_shared_memory", lambda: 64_000_000)  # as Docker's
    assert readers("auto", gpu, **many) == 10  # three mini-batches each in 32 MB
    monkeypatch.setattr("datapool.model.embedding.memory_for_images", lambda: 2**32)
    assert readers("auto", gpu, **many) == 8  # half a GiB each
    monkeypatch.setattr("datapool.model.embedding._free_shared_memory", lambda: 5_000_000)
    assert readers("auto", gpu, **many) == 0


def test_the_shared_memory_of_this_machine_is_found(monkeypatch: pytest.MonkeyPatch):
    assert embedding._free_shared_memory() > 0
    monkeypatch.setattr("datapool.model.embedding._SHARED_MEMORY", Path("not there"))
    assert embedding._free_shared_memory() == sys.maxsize


def test_images_are_read_by_readers_chosen_for_the_device(
    model: EmbeddingModel, images: list[ImageFile], monkeypatch: pytest.MonkeyPatch
):
    alone, asked = rows_of(model, images, num_workers="auto"), []
    monkeypatch.setattr(
        "datapool.model.embedding.readers", lambda *given, **sizes: [asked.append((given, sizes)), 2][1]
    )

    assert np.array_equal(rows_of(model, images, num_workers="auto"), alone)
    assert asked == [(("auto", torch.device("cpu")), {"n_minibatches": 3, "minibatch_bytes": 4 * 3 * 32 * 32})]


def test_no_image_makes_no_row(model: EmbeddingModel):
    assert rows_of(model, []).shape == (0, 6)


def test_known_rows_are_taken_over_and_their_images_not_read(model: EmbeddingModel, images: list[ImageFile]):
    images[1].path.unlink()
    marks = np.array([[7] * 6, [8] * 6, [9] * 6], dtype=np.float32)
    known = known_rows([images[3].content_hash, "of no image here", images[1].content_hash], marks)

    rows, n_known = run(model, images, known=known)

    assert n_known == 2
    assert rows[1].tolist() == [9] * 6
    assert rows[3].tolist() == [7] * 6
    others = [0, 2, *range(4, 10)]
    assert relative_error(rows[others], rows_of(model, [images[index] for index in others])) < 1e-5


def test_when_all_rows_are_known_nothing_is_embedded(model: EmbeddingModel, images: list[ImageFile]):
    rows = rows_of(model, images)
    known = known_rows([image.content_hash for image in images], rows)

    again, n_known = run(model, images[::-1], known=known, progress=lambda *_: pytest.fail("embedded"))

    assert n_known == 10
    assert np.array_equal(again, rows[::-1])


def test_known_rows_of_another_dimension_are_refused(model: EmbeddingModel, images: list[ImageFile]):
    with pytest.raises(ValueError, match="known rows have dimension 5, the model 6"):
        run(model, images, known=known_rows(["a"], np.zeros((1, 5), dtype=np.float32)))


def test_images_with_the_same_bytes_are_embedded_once(model: EmbeddingModel, images: list[ImageFile], tmp_path: Path):
    steps = []
    twin = solid(tmp_path / "twin.png", "white")

    rows = rows_of(model, [images[0], images[1], images[2], twin], progress=lambda *step: steps.append(step))

    assert np.array_equal(rows[3], rows[1])
    assert relative_error(rows[:3], rows_of(model, images[:3])) < 1e-5
    assert steps == [(3, 3)]


def test_progress_counts_the_images_embedded(model: EmbeddingModel, images: list[ImageFile]):
    steps = []

    run(model, images, progress=lambda *step: steps.append(step))

    assert steps == [(4, 10), (8, 10), (10, 10)]


def test_the_model_is_left_as_it_was(model: EmbeddingModel, images: list[ImageFile]):
    model.train()
    before = embedding_space_id(model)

    run(model, images)

    assert model.training
    assert embedding_space_id(model) == before


def test_features_times_head_are_the_embeddings(model: EmbeddingModel, images: list[ImageFile]):
    features = backbone_features(model, images, batch_size=4, num_workers=0, accelerator="cpu", progress=None)

    by_hand = features @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()

    assert features.shape == (10, model.n_features)
    assert relative_error(rows_of(model, images), by_hand) < 1e-5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_has_changed_is_named_in_one_line(
    model: EmbeddingModel, images: list[ImageFile], num_workers: int
):
    solid(images[4].path, "brown")

    with pytest.raises(DatapoolError, match=r"blue.png: the file has changed since") as caught:
        run(model, images, num_workers=num_workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("bias", "problem"), [(torch.nan, "not finite"), (torch.inf, "not finite"), (0.0, "all zero")])
def test_an_embedding_without_direction_is_refused_by_file_name(images: list[ImageFile], bias: float, problem: str):
    broken = build_model("test_efficientnet", dimension=6, input_size=32, pretrained=False, weights=None, seed=1)
    torch.nn.init.zeros_(broken.head.weight)
    torch.nn.init.constant_(broken.head.bias, bias)

    with pytest.raises(DatapoolError, match=rf"black.png: its embedding is {problem} \(10 such images\)"):
        run(broken, images)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["cuda", "tpu"])
def test_an_unavailable_accelerator_is_refused(model: EmbeddingModel, images: list[ImageFile], accelerator: str):
    with pytest.raises(
        DatapoolError, match=f"accelerator is '{accelerator}', which this machine does not have .* auto or cpu"
    ):
        run(model, images, accelerator=accelerator)


def test_auto_finds_a_device(model: EmbeddingModel, images: list[ImageFile]):
    assert relative_error(rows_of(model, images), rows_of(model, images, accelerator="auto")) < 1e-3


def test_features_that_are_all_zero_are_no_error(images: list[ImageFile]):
    dim = build_model("test_efficientnet", dimension=6, input_size=32, pretrained=False, weights=None, seed=1)
    dim.backbone.register_forward_hook(lambda module, inputs, output: output * 0)

    assert not backbone_features(dim, images, batch_size=4, num_workers=0, accelerator="cpu", progress=None).any()


def test_the_next_run_reads_no_image_that_the_last_one_embedded(model: EmbeddingModel, images: list[ImageFile]):
    save_checkpoint(model, Path("model.ckpt"))
    settings = {"cache": RowCache(Path("cache")), "batch_size": 4, "num_workers": 0, "accelerator": "cpu"}
    first = embed_with_cache(Path("model.ckpt"), images[:9], **settings, progress=None)
    for image in images[:9]:
        image.path.unlink()

    second = embed_with_cache(Path("model.ckpt"), images, **settings, progress=None)

    assert (first.n_known, second.n_known) == (0, 9)
    assert np.array_equal(second.embeddings[:9], first.embeddings)


def test_a_checkpoint_of_another_embedding_space_than_the_recorded_one_is_refused(model: EmbeddingModel):
    save_checkpoint(model, Path("model.ckpt"))
    settings = {"cache": RowCache(Path("cache")), "batch_size": 4, "num_workers": 0, "accelerator": "cpu"}
    found = embedding_space_id(model)

    embed_with_cache(Path("model.ckpt"), [], **settings, progress=None, space_id=found)
    with pytest.raises(
        DatapoolError,
        match=f"^model.ckpt: is model {found[:12]}, but model 0123456789ab is recorded for this pool; `git checkout HEAD",
    ):
        embed_with_cache(Path("model.ckpt"), [], **settings, progress=None, space_id="0123456789abcdef" * 4)


def photo(name: str, seed: int, *, size: tuple[int, int] = (160, 120)) -> ImageFile:
    """Write an image of 8 x 6 squares."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(name, quality=90)
    return ImageFile(Path(name), hashlib.sha256(Path(name).read_bytes()).hexdigest(), MAX_PIXELS)


def test_a_model_of_an_earlier_release_embeds_as_it_did():
    # Written by the release before format 2, whose way of computing is written out here.
    old = load_checkpoint(Path(__file__).with_name("format_1.ckpt"))
    images = [photo(f"{number}.jpg", number) for number in range(20)]

    rows = []
    inputs = torch.stack([old.preprocessing(read_rgb(image)) for image in images])
    for minibatch in inputs.split(8):
        with torch.no_grad():
            filling = minibatch[-1:].expand(8 - len(minibatch), -1, -1, -1)
            rows.append(old(torch.cat([minibatch, filling]))[: len(minibatch)])
    rows = torch.cat(rows).numpy()

    assert rows_of(old, images, batch_size=8).tobytes() == rows.tobytes()
    # As that release embedded the first and the last image; another processor rounds in another way.
    assert rows[0] == pytest.approx([-0.09283238, 0.06516281, 0.07086718, -0.09198905], rel=1e-4)
    assert rows[19] == pytest.approx([-0.09447873, 0.07484677, 0.07490437, -0.06976230], rel=1e-4)


def test_a_new_model_takes_mini_batches_of_sixteen_on_a_cpu_and_embeds_as_before_but_for_rounding(
    model: EmbeddingModel,
):
    images = [photo(f"{number}.png", number) for number in range(20)]
    old = copy.deepcopy(model)
    old.preprocessing = replace(model.preprocessing, decode="full")
    steps = []
    rows = rows_of(model, images, batch_size=64, progress=lambda *step: steps.append(step))

    assert steps == [(16, 20), (20, 20)]
    assert rows_of(model, images, batch_size=16).tobytes() == rows.tobytes()
    assert relative_error(rows, rows_of(old, images, batch_size=64)) < 1e-5


def test_a_new_model_reads_large_jpegs_at_a_smaller_scale(model: EmbeddingModel):
    images = [photo(f"{number}.jpg", number, size=(320, 240)) for number in range(6)]  # read at 160 x 120
    old = copy.deepcopy(model)
    old.preprocessing = replace(model.preprocessing, decode="full")

    scaled, full = rows_of(model, images), rows_of(old, images)

    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (scaled, full)]
    moved = np.linalg.norm(units[0] - units[1], axis=1)
    apart = distances(full).min()
    assert 1e-4 < moved.max() < apart / 4


@pytest.mark.parametrize(("n_images", "step"), [(20, 1), (20, 3), (7, 2)])
def test_embeddings_kept_while_a_head_is_fitted_are_those_that_embed_computes(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch, n_images: int, step: int
):
    monkeypatch.setattr("datapool.model.embedding._FITTED_IMAGES", -(-n_images // step))
    images = [photo(f"{number}.jpg", number) for number in range(n_images)]
    chosen = images[:: fitting_step(n_images)]
    settings = {"batch_size": 4, "num_workers": 0, "accelerator": "cpu", "progress": None}
    features = backbone_features(model, chosen, **settings)
    fitted = fit_head(model, features, seed=1)
    save_checkpoint(fitted, Path("fitted.ckpt"))
    cache = RowCache(Path("cache"))

    keep_embeddings(fitted, chosen, features, cache=cache, batch_size=4, accelerator="cpu")
    computed = embed_with_cache(Path("fitted.ckpt"), images, cache=RowCache(Path("empty")), **settings)
    for image in chosen:
        image.path.unlink()
    taken = embed_with_cache(Path("fitted.ckpt"), images, cache=cache, **settings)

    assert len(chosen) == -(-n_images // step)
    assert (computed.n_known, taken.n_known) == (0, len(chosen))
    assert taken.embeddings.tobytes() == computed.embeddings.tobytes()


def test_the_images_of_a_fitted_head_are_embedded_first_and_apart_from_others(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("datapool.model.embedding._FITTED_IMAGES", 4)
    images = [photo(f"{number}.jpg", number) for number in range(10)]
    old, read, steps = copy.deepcopy(model), [], []
    old.preprocessing = replace(model.preprocessing, decode="full")
    reader = Preprocessing.read
    monkeypatch.setattr(Preprocessing, "read", lambda self, file: [read.append(file.path.stem), reader(self, file)][1])

    rows_of(model, images, batch_size=3, progress=lambda done, n: steps.append(done))
    assert ("".join(read), steps) == ("0369124578", [3, 4, 7, 10])
    read.clear()
    rows_of(old, images, batch_size=3)
    assert "".join(read) == "0123456789"  # in a pool of an earlier release, as ever


def test_embeddings_that_embed_would_compute_in_another_way_or_refuse_are_not_kept(model: EmbeddingModel):
    images = [photo(f"{number}.jpg", number) for number in range(4)]
    features = backbone_features(model, images, batch_size=4, num_workers=0, accelerator="cpu", progress=None)
    old, zero = copy.deepcopy(model), copy.deepcopy(model)
    old.preprocessing = replace(model.preprocessing, decode="full")
    torch.nn.init.zeros_(zero.head.weight)
    torch.nn.init.zeros_(zero.head.bias)
    copies = [images[0], *images[:3]]

    for case in ((old, images), (zero, images), (model, copies)):
        keep_embeddings(*case, features, cache=RowCache(Path("cache")), batch_size=4, accelerator="cpu")

    assert not Path("cache").exists()


def picture_of(path: Path, ranges: Ranges) -> ImageFile:
    return ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), MAX_PIXELS, ranges)


def test_embeddings_with_other_ranges_are_not_taken_over(model: EmbeddingModel):
    save_checkpoint(model, Path("model.ckpt"))
    Image.fromarray(np.arange(0, 4000, 10, dtype=np.uint16).reshape(20, 20)).save("a.png")
    settings = {
        "cache": RowCache(Path("cache")),
        "batch_size": 4,
        "num_workers": 0,
        "accelerator": "cpu",
        "progress": None,
    }

    first, second, again = (
        embed_with_cache(Path("model.ckpt"), [picture_of(Path("a.png"), {"uint16 gray": (0, white)})], **settings)
        for white in (4000, 8000, 4000)
    )

    assert (first.n_known, second.n_known, again.n_known) == (0, 0, 1)
    assert not np.allclose(first.embeddings, second.embeddings)
    assert np.array_equal(first.embeddings, again.embeddings)


def distances(rows: np.ndarray) -> np.ndarray:
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)[np.triu_indices(len(rows), 1)]


@pytest.mark.parametrize("form", ["12 bits", "10 bits", "thermal", "float with nodata"])
def test_images_of_more_than_8_bits_keep_their_distances(model: EmbeddingModel, form: str):
    # Eight smooth pictures; benchmarks/bit_depth.py measures photos with the pretrained backbone.
    generator = np.random.default_rng(0)
    folders = {name: Path(name) for name in ("plain", "deep")}
    for folder in folders.values():
        folder.mkdir()
    for i in range(8):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5), dtype=np.uint8))
        picture = np.asarray(coarse.resize((60, 40), Image.Resampling.BICUBIC))
        Image.fromarray(picture).save(f"plain/{i}.png")
        values = picture / 255
        if form == "float with nodata":
            heights = (values * 3000).astype(np.float32)
            heights[:4, :6] = -9999
            tifffile.imwrite(f"deep/{i}.tif", heights, photometric="minisblack")
        else:
            low, high = {"12 bits": (0, 4095), "10 bits": (0, 1023), "thermal": (29_000, 30_900)}[form]
            Image.fromarray((low + values * (high - low)).astype(np.uint16)).save(f"deep/{i}.png")
    rows = {}
    for name, folder in folders.items():
        found = batch.scan(
            folder,
            filename_prefix="",
            relevant=None,
            check="strict",
            max_pixels=MAX_PIXELS,
            remove_duplicates=True,
            gif=False,
            progress=lambda done, of, note="": None,
        ).images
        files = batch.image_files(found, folder, max_pixels=MAX_PIXELS, ranges=ranges_of(found, "auto"))
        rows[name] = rows_of(model, files)

    assert np.corrcoef(distances(rows["plain"]), distances(rows["deep"]))[0, 1] > 0.95


@pytest.mark.slow
def test_embeddings_of_another_model_or_batch_size_are_not_taken_over(model: EmbeddingModel, images: list[ImageFile]):
    save_checkpoint(model, Path("model.ckpt"))
    save_checkpoint(
        build_model("test_efficientnet", dimension=6, input_size=32, pretrained=False, weights=None, seed=2),
        Path("other.ckpt"),
    )
    settings = {"cache": RowCache(Path("cache")), "num_workers": 0, "accelerator": "cpu", "progress": None}

    n_known = [
        embed_with_cache(Path(name), images[:2], batch_size=batch_size, **settings).n_known
        for name, batch_size in (("model.ckpt", 4), ("other.ckpt", 4), ("model.ckpt", 2), ("model.ckpt", 4))
    ]

    assert n_known == [0, 0, 0, 2]
