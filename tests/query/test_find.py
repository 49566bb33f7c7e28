"""`datapool find` with a tiny real model of open_clip that a hub on this machine serves: fetched once, then without a network."""

import json
import shutil
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import Workspace
from local_hub import COMMIT, Hub, hub_running, point_to
from PIL import Image
from tiny_clip import cosines, skip_without_open_clip, write_clip
from typer.testing import CliRunner

from datapool.cli import app
from datapool.core.errors import DatapoolError
from datapool.core.row_cache import RowCache
from datapool.core.tables import read_csv
from datapool.images.thumbnails import ThumbnailStore
from datapool.pool.erasure import erase_from_scratch

skip_without_open_clip()
pytestmark = pytest.mark.slow  # the workspace has run dvc

# The pool has cat/image_01, cat/image_11 and dog/image_06 of week 1, and bird/image_27 and bird/image_20 of week 2. The other
# candidates of week 2 are bird/image_21 to 26.
POOL = {
    "cat/image_01.png": 1,
    "cat/image_11.png": 1,
    "dog/image_06.png": 1,
    "bird/image_27.png": 2,
    "bird/image_20.png": 2,
}
BATCH = {f"bird/image_{number}.png": None for number in range(21, 27)}
VERSIONS = POOL | BATCH


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a tiny model as the repository tiny/clip."""
    folder = write_clip(tmp_path / "published")
    with hub_running(tmp_path, monkeypatch) as server:
        for path in folder.iterdir():
            for revision in ("main", COMMIT):
                server.files[f"tiny/clip/resolve/{revision}/{path.name}"] = path.read_bytes()
        yield server


@pytest.fixture
def workspace(second_week: Workspace, after, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    made = after(second_week)
    monkeypatch.chdir(made.folder)
    return made


def run(*command: str) -> str:
    done = CliRunner().invoke(app, command)
    if done.exception:
        raise done.exception
    return done.stdout


def find(*arguments: str) -> dict:
    return json.loads(run("find", *arguments, "--json"))


def refusal(*command: str) -> str:
    with pytest.raises(DatapoolError) as caught:
        run(*command)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def picture(weeks: Path, name: str) -> Image.Image:
    with Image.open(weeks / ("week_2" if name.startswith("bird") else "week_1") / name) as image:
        return image.convert("RGB")


def expected(model: Path, pictures: dict[str, Image.Image], text: str) -> list[tuple[str, float]]:
    """Return names and cosines by open_clip alone, the largest first."""
    similarity = cosines(model, list(pictures.values()), [text])[:, 0]
    assert np.diff(np.sort(similarity)).min() > 1e-4  # far more than rounding
    return sorted(zip(pictures, similarity.tolist(), strict=True), key=lambda pair: -pair[1])


def test_after_one_fetch_words_find_the_images_that_open_clip_finds_without_a_network(
    hub: Hub, workspace: Workspace, weeks: Path, monkeypatch: pytest.MonkeyPatch
):
    fetched = run("fetch", "tiny/clip")
    point_to("http://127.0.0.1:9", monkeypatch)  # nothing listens there

    answer = find("forklift at night", "-n", "11")

    model = Path("weights/tiny--clip")
    assert fetched.startswith("weights/tiny--clip: 3.3 MB of tiny/clip at c0ffee000000, which names its licence")
    wanted = expected(model, {name: picture(weeks, name) for name in VERSIONS}, "forklift at night")
    assert [hit["filename"] for hit in answer["images"]] == [name for name, _ in wanted]
    assert [hit["similarity"] for hit in answer["images"]] == pytest.approx([cosine for _, cosine in wanted], abs=1e-5)
    assert {hit["filename"]: hit["version"] for hit in answer["images"]} == VERSIONS
    assert (answer["model"], answer["searched"], answer["small_pictures"]) == ("tiny/clip", 11, 0)
    rank, similarity, name, *_ = run("find", "forklift at night").splitlines()[1].split()
    assert (rank, similarity, name) == ("1", f"{wanted[0][1]:.4g}", wanted[0][0])
    assert run("find", "forklift at night").splitlines()[-1] == "11 images searched by tiny/clip"
    assert workspace.run("git", "status", "--short") == "?? weights/\n"
    assert workspace.run("git", "ls-files", "--others", "--exclude-standard").split() == [
        "weights/.gitignore",
        "weights/tiny--clip.json",  # the model is not for git
    ]


def test_several_texts_count_alike_and_unwanted_ones_against(workspace: Workspace, weeks: Path, tmp_path: Path):
    model = str(write_clip(tmp_path / "model"))
    names = list(VERSIONS)
    each = cosines(Path(model), [picture(weeks, name) for name in names], ["a cat", "a dog", "snow"])

    answer = find("a cat", "a dog", "--not", "snow", "--weights", model, "-n", "3")

    similarity = (each[:, 0] + each[:, 1]) / 2 - each[:, 2]
    best = np.argsort(-similarity)[:3]
    assert [hit["filename"] for hit in answer["images"]] == [names[row] for row in best]
    assert [hit["similarity"] for hit in answer["images"]] == pytest.approx(similarity[best].tolist(), abs=1e-5)


def without_files(workspace: Workspace, weeks: Path) -> None:
    """Let the images be gone: the folders of the batches are named otherwise."""
    for file in (Path("datapools.json"), Path("params.yaml")):
        file.write_text(file.read_text().replace(f"{weeks}/", f"{weeks}/gone_"))


def test_images_whose_files_are_gone_are_found_by_their_small_pictures(
    workspace: Workspace, weeks: Path, tmp_path: Path
):
    model = str(write_clip(tmp_path / "model"))
    without_files(workspace, weeks)
    shutil.rmtree(".datapool/thumbnails", ignore_errors=True)  # those of the batch: the pool has its own

    answer = find("a cat", "--weights", model)

    pictures = {}
    names = content_hashes()
    for content, webp in ThumbnailStore(Path("pools/my_datapool/thumbnails")).read(names).items():
        with Image.open(BytesIO(webp)) as image:
            pictures[names[content]] = image.convert("RGB")
    wanted = expected(Path(model), pictures, "a cat")
    assert [hit["filename"] for hit in answer["images"]] == [name for name, _ in wanted]
    assert [hit["similarity"] for hit in answer["images"]] == pytest.approx([cosine for _, cosine in wanted], abs=1e-5)
    assert all(hit["small_picture"] for hit in answer["images"])
    assert (answer["searched"], answer["small_pictures"]) == (5, 5)
    assert answer["not_searched"] == list(BATCH)
    lines = run("find", "a cat", "--weights", model).splitlines()
    assert lines[-2:] == [
        "5 of them by their small pictures in the pool, because their files are gone",
        "6 images not searched, without file or picture: bird/image_21.png",
    ]


def content_hashes() -> dict[str, str]:
    """The filename of each image of the pool, by content hash."""
    samples = read_csv(Path("pools/my_datapool/samples.csv"))
    return dict(zip(samples.content_hash, samples.filename, strict=True))


def test_what_was_embedded_is_kept_by_content_until_the_image_is_forgotten(
    workspace: Workspace, weeks: Path, tmp_path: Path
):
    model = str(write_clip(tmp_path / "model"))
    before = find("a cat", "--weights", model)
    without_files(workspace, weeks)

    assert find("a cat", "--weights", model) == before  # by what was kept: no file is here any more

    hashes = content_hashes()
    forgotten = next(content for content, name in hashes.items() if name == "cat/image_11.png")
    erase_from_scratch([forgotten], [])
    kept = RowCache(Path(".datapool/text_search")).content_hashes()
    assert forgotten not in kept
    assert len(kept) == 10


def test_a_search_that_is_stopped_keeps_what_it_has_embedded(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = str(write_clip(tmp_path / "model"))
    monkeypatch.setattr("datapool.query.find._AT_ONCE", 4)

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int, note: str = "") -> None:
        if done > 8:
            raise StoppedError

    from datapool.core.params import load_params
    from datapool.query.find import find as search

    with pytest.raises(StoppedError):
        search(load_params(), ["a"], unwanted=[], n=1, model=None, weights=Path(model), progress=stop)
    assert len(RowCache(Path(".datapool/text_search")).content_hashes()) == 8


def test_what_cannot_be_searched_is_refused_with_what_helps(
    hub: Hub, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fetch = "run `datapool fetch ViT-B-32-256.datacomp_s34b_b86k`, or give a local one by --weights"
    assert refusal("find", "a cat") == f"weights: has no model that compares pictures with words; {fetch}"
    assert refusal("find", "a cat", " ") == ('a text is empty; describe what to look for, such as "forklift at night"')
    assert refusal("find", "a cat", "--weights", "no").startswith(
        "no: is not there; give a folder with open_clip_config"
    )
    run("fetch", "tiny/clip")
    assert refusal("find", "a cat", "--model", "ViT-B-16").startswith(
        "weights: has tiny/clip, not ViT-B-16; run `datapool fetch ViT-B-16`"
    )
    weights = Path("weights/tiny--clip/open_clip_model.safetensors")
    assert "say of which model of open_clip these weights are" in refusal("find", "a", "--weights", str(weights))
    assert refusal("find", "a", "--weights", str(weights), "--model", "ViT-B-32").startswith(
        f"{weights}: its files are not those of one model of open_clip ("
    )
    assert "ViT-B-16-SigLIP needs the files of its tokenizer" in refusal(
        "find", "a", "--weights", str(weights), "--model", "ViT-B-16-SigLIP"
    )
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    again = "run `datapool fetch tiny/clip`, which gets what weights/tiny--clip.json records"
    assert refusal("find", "a cat") == f"{weights}: is not the recorded file; {again}"
    run("fetch", "tiny/clip")  # gets the recorded file again
    assert find("a cat")["searched"] == 11
    shutil.rmtree("weights/tiny--clip")
    assert refusal("find", "a cat") == f"weights/tiny--clip/open_clip_config.json: is not there; {again}"
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert refusal("find", "a cat") == (
        "open_clip, which compares pictures with words, is not installed; run `pip install 'dvc-datapool[text]'`"
    )
    assert refusal("fetch", "tiny/clip") == refusal("find", "a cat")
    assert refusal("fetch", "ViT-B-32").endswith("needs `pip install 'dvc-datapool[text]'`")
