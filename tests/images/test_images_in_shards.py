"""Images in shards are images like any other: which ones, their names and labels, and where a damaged shard ends."""

import os
import tarfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scanning import look
from shard_files import COLORS, png, write_parquet, write_tar

from datapool.core.errors import DatapoolError
from datapool.images import batch
from datapool.images.decode import NeedsMemoryError, has_content, hash_of, inspect, read_bytes
from datapool.images.places import absolute, as_files, file_of, is_there, place_of
from datapool.images.tar_files import TarMember, read_tar


def in_shards(folder: Path, **options: object) -> batch.Batch:
    return look(folder, shards=True, **options)


# --- which images, and their names ---------------------------------------------------------------------------------------


def test_the_images_of_a_shard_have_the_verdicts_hashes_and_labels_of_the_same_files_in_its_folder(tmp_path):
    files = {"cat/a.png": png("red"), "cat/b.png": png("red"), "dog/c.png": png("blue"), "dog/d.png": b"no image"}
    write_tar(tmp_path / "packed/part-0.tar", files)
    for name, data in files.items():
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_bytes(data)

    packed, plain = in_shards(tmp_path / "packed").images, in_shards(tmp_path / "plain").images

    assert packed.path.tolist() == [f"part-0.tar/{path}" for path in plain.path]
    assert packed.weak_label.tolist() == ["cat", "cat", "dog", "dog"]
    assert packed.status.tolist() == ["ok", "duplicate", "ok", "corrupt"]
    others = ["content_hash", "width", "height", "mode", "status", "weak_label", "perceptual_hash", "n_bytes"]
    assert packed[others].equals(plain[others])
    assert packed.reason.iloc[3] == plain.reason.iloc[3]


def test_shards_are_skipped_unless_they_are_asked_for_and_the_run_names_the_key(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    write_tar(tmp_path / "b.tar", {"c.png": png("blue")})

    found = look(tmp_path)

    assert found.images.path.tolist() == ["a.png"]
    assert found.skipped.not_images == {".tar": 1}
    assert found.skipped.remedies() == [
        "1 .tar skipped; to read the images in them, set images.shards: true in params.yaml"
    ]
    assert in_shards(tmp_path).images.path.tolist() == ["a.png", "b.tar/c.png"]


def test_a_shard_of_a_webdataset_is_its_images_and_what_lies_beside_them_is_counted(tmp_path):
    write_tar(
        tmp_path / "night/cam-000.tar",
        {"0001.jpg": png("red"), "0001.cls": b"7", "0001.json": b"{}", "0002.jpg": png("lime"), "0002.cls": b"7",
         "._0002.jpg": b"", "__MACOSX/x.jpg": b"", "drive.mp4": b"", "more.tar": b"", "a.gif": b"", "README": b""},
    )  # fmt: skip

    found = in_shards(tmp_path)

    assert found.images.path.tolist() == ["night/cam-000.tar/0001.jpg", "night/cam-000.tar/0002.jpg"]
    assert found.images.weak_label.tolist() == ["night", "night"]
    assert found.skipped.hidden == 2
    assert found.skipped.not_images == {
        ".cls": 2, "": 1, ".gif": 1, ".json": 1, ".mp4 in a shard": 1, ".tar in a shard": 1
    }  # fmt: skip
    assert [remedy.partition(";")[0] for remedy in found.skipped.remedies()] == ["1 .gif skipped"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_kind_of_tar_file_are_read(tmp_path, kind):
    long = f"{'d' * 90}/{'f' * 90}.png"
    names = ["./cat//a.png", "/abs/b.png", "c\u00e4t.png", long] + (
        [f"{'x' * 300}.png"] * (kind != tarfile.USTAR_FORMAT)
    )
    write_tar(tmp_path / "a.tar", {name: png(color) for name, color in zip(names, COLORS, strict=False)}, kind)

    paths = in_shards(tmp_path).images.path.tolist()

    assert sorted(paths) == sorted(
        ["a.tar/cat/a.png", "a.tar/abs/b.png", "a.tar/c\u00e4t.png", f"a.tar/{long}"]
        + [f"a.tar/{'x' * 300}.png"] * (kind != tarfile.USTAR_FORMAT)
    )
    for path in paths:
        assert read_bytes(place_of(tmp_path, path), content_hash=hash_of(place_of(tmp_path, path))).startswith(
            b"\x89PNG"
        )


def test_a_hard_link_is_the_image_that_it_leads_to_and_other_links_are_corrupt(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = len(png("red"))
        tar.addfile(member, BytesIO(png("red")))
        for name, kind in (("b.png", tarfile.LNKTYPE), ("c.png", tarfile.SYMTYPE), ("d.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "./a.png"
            tar.addfile(member)

    images = in_shards(tmp_path, remove_duplicates=False).images

    assert images.status.tolist() == ["ok", "ok", "corrupt", "corrupt"]
    assert images.content_hash[1] == images.content_hash[0]
    assert set(images.reason[2:]) == {"cannot be read (a link in a tar file, or no file)"}


def test_a_list_of_relevant_images_may_name_those_in_shards(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.png": png("red"), "y.png": png("lime")})
    write_tar(tmp_path / "b.tar", {"x.png": png("blue")})
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:1024])  # damaged, and has no image of the list

    found = in_shards(tmp_path, relevant=["a.tar/y.png"])

    assert found.images.path.tolist() == ["a.tar/y.png"]
    assert found.skipped.not_relevant == 2
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:2048])  # without its end
    found = in_shards(tmp_path, relevant=["a.tar/y.png"])
    assert found.images.path.tolist() == ["a.tar", "a.tar/y.png"]
    assert found.skipped.not_relevant == 2
    with pytest.raises(DatapoolError, match=r"1 name that is no image of .*, such as 'a.tar/z.png'"):
        in_shards(tmp_path, relevant=["a.tar/z.png"])


def test_two_images_of_one_name_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "./a.png"):
            tar.addfile(tarfile.TarInfo(name))

    with pytest.raises(
        DatapoolError, match=r"a\.tar: has two images of the name 'a\.png'; give each a name of its own"
    ):
        in_shards(tmp_path)


def test_a_folder_that_is_called_like_a_shard_is_a_folder(tmp_path):
    (tmp_path / "a.tar").mkdir()
    (tmp_path / "a.tar/b.png").write_bytes(png("red"))

    images = in_shards(tmp_path).images

    assert images.path.tolist() == ["a.tar/b.png"]
    assert images.weak_label.tolist() == ["a.tar"]
    assert place_of(tmp_path, "a.tar/b.png") == tmp_path / "a.tar/b.png"


# --- links and damage ----------------------------------------------------------------------------------------------------


def test_a_shard_that_is_a_link_out_of_the_folder_is_not_opened(tmp_path):
    write_tar(tmp_path / "elsewhere/a.tar", {"a.png": png("red")})
    write_tar(tmp_path / "batch/b.tar", {"b.png": png("blue")})
    (tmp_path / "batch/a.tar").symlink_to(tmp_path / "elsewhere/a.tar")
    (tmp_path / "batch/c.tar").symlink_to("b.tar")

    images = in_shards(tmp_path / "batch").images

    assert images.path.tolist() == ["a.tar", "b.tar/b.png", "c.tar/b.png"]
    assert images.reason[0] == batch.LINK_OUT
    assert images.status.tolist() == ["corrupt", "ok", "duplicate"]


def test_what_is_before_the_place_where_a_shard_is_cut_off_is_used_wherever_that_is(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{i}.png": png(color) for i, color in enumerate(COLORS)}, tarfile.USTAR_FORMAT)
    whole = (tmp_path / "a.tar").read_bytes()
    per_image = 1024  # a header, and less than 512 bytes of PNG

    for n_bytes in range(100, len(COLORS) * per_image + 1, 700):
        (tmp_path / "a.tar").write_bytes(whole[:n_bytes])
        images = in_shards(tmp_path).images

        n_whole = sum(n_bytes >= i * per_image + 512 + len(png(color)) for i, color in enumerate(COLORS))
        assert images.path[images.status == "ok"].tolist() == [f"a.tar/{i}.png" for i in range(n_whole)]
        (damaged,) = images[images.path == "a.tar"].itertuples()
        assert damaged.status == "corrupt"
        assert damaged.reason.startswith(("damaged: the tar file ", "not a tar file"))
    (tmp_path / "a.tar").write_bytes(whole[: len(COLORS) * per_image + 1024])  # two blocks of zeros are enough
    assert in_shards(tmp_path).images.status.tolist() == ["ok"] * 8


def test_damage_between_members_and_a_second_tar_file_behind_the_first_are_told(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{i}.png": png(color) for i, color in enumerate(COLORS)}, tarfile.USTAR_FORMAT)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:4096] + b"\xff" * 512 + whole[4608:])  # the header of the fifth
    (tmp_path / "b.tar").write_bytes(whole + whole)

    images = in_shards(tmp_path, remove_duplicates=False).images

    assert (images.status == "ok").sum() == 4 + 8
    assert images[images.status == "corrupt"].set_index("path").reason.to_dict() == {
        "a.tar": "damaged: the tar file cannot be read to its end (at or after '3.png'; the images before are used)",
        "b.tar": "damaged: the tar file cannot be read to its end (at or after '7.png'; the images before are used)",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a tar file: no known format"),
        (b"\x1f\x8b" + bytes(600), "not a tar file: a gzip archive"),
        (b"<html>404</html>" * 99, "not a tar file: a web page"),
    ],
)
def test_what_is_called_tar_and_is_none_is_named(tmp_path, content, reason):
    (tmp_path / "a.tar").write_bytes(content)

    images = in_shards(tmp_path).images

    assert images.path.tolist() == ["a.tar"]
    assert images.reason.tolist() == [reason]


def test_names_that_lead_out_of_the_shard_are_left_out_and_told(tmp_path):
    write_tar(tmp_path / "a.tar", {"../a.png": png("red"), "b.png": png("lime"), "c/../../d.png": png("blue")})

    images = in_shards(tmp_path).images

    assert images.path.tolist() == ["a.tar", "a.tar/b.png"]
    assert images.reason[0] == "has names that lead out of it (such as '../a.png'; left out)"


def test_a_tar_file_that_was_made_to_harm_ends(tmp_path):
    # A chain of headers that each name the next one, and a member of a negative size.
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 0
    (tmp_path / "chain.tar").write_bytes(long.tobuf(tarfile.GNU_FORMAT) * 5000 + bytes(1024))
    negative = tarfile.TarInfo("a.png")
    header = bytearray(negative.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # two's complement: below zero
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "negative.tar").write_bytes(bytes(header) + bytes(1024))

    images = in_shards(tmp_path).images

    assert "ok" not in images.status.tolist()
    assert set(images.path) <= {"chain.tar", "negative.tar", "negative.tar/a.png"}


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_of_a_shard_are_images_or_listed_as_damaged(tmp_path, seed):
    write_tar(tmp_path / "a.tar", {f"cat/{i}.png": png(color) for i, color in enumerate(COLORS)})
    images = [{"bytes": png(color), "path": f"cat/{i}.png"} for i, color in enumerate(COLORS)]
    write_parquet(tmp_path / "b.parquet", {"image": images})
    random = np.random.default_rng(seed)
    for file, places in (("a.tar", 400), ("b.parquet", 1500)):  # the first bytes are headers, the last ones a footer
        data = bytearray((tmp_path / file).read_bytes())
        for place in random.integers(0, places, 8):
            data[place if file == "a.tar" else -1 - place] = random.choice([0, 255, 128])
        (tmp_path / file).write_bytes(data)

    images = in_shards(tmp_path).images

    assert set(images.path.str.split("/").str[0]) <= {"a.tar", "b.parquet"}
    assert (images.reason != "").sum() == (images.status != "ok").sum()
    assert not images.reason.str.contains("None").any()


@pytest.mark.timeout(60)
def test_a_fifo_in_the_place_of_a_shard_never_blocks(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    for name in ("b.tar", "c.parquet"):
        os.mkfifo(tmp_path / name)

    assert look(tmp_path).skipped.not_images == {".parquet": 1, ".tar": 1}
    images = in_shards(tmp_path).images
    assert images.path.tolist() == ["a.png", "b.tar", "c.parquet"]
    assert images.reason.tolist() == ["", *["cannot be read (not a regular file)"] * 2]


def test_a_member_that_needs_more_than_it_may_take_is_not_read(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": bytes(5000)})

    with pytest.raises(NeedsMemoryError, match="5000"):
        inspect(place_of(tmp_path, "a.tar/a.png"), check="strict", max_pixels=100, memory=4999)


# --- Parquet files -------------------------------------------------------------------------------------------------------


def test_a_parquet_file_of_hugging_face_is_its_images_by_the_names_in_it(tmp_path):
    images = [{"bytes": png(color), "path": f"cat/{i}.png"} for i, color in enumerate(COLORS)]
    write_parquet(tmp_path / "train-0.parquet", {"label": list(range(8)), "image": images})

    found = in_shards(tmp_path).images

    assert found.path.tolist() == [f"train-0.parquet/cat/{i}.png" for i in range(8)]
    assert found.weak_label.tolist() == ["cat"] * 8
    assert found.content_hash.tolist() == [sha256(png(color)).hexdigest() for color in COLORS]
    assert found.status.tolist() == ["ok"] * 8
    backwards = [place_of(tmp_path, path).read_bytes() for path in reversed(found.path.tolist())]
    assert backwards == [png(color) for color in reversed(COLORS)]


@pytest.mark.parametrize("names", ["path", "filename", "file_name", "__key__"])
@pytest.mark.parametrize("images", ["image", "bytes"])
def test_a_column_of_bytes_beside_one_of_names_is_images_too(tmp_path, images, names):
    write_parquet(
        tmp_path / "a.parquet", {names: ["b", "/x/a.png"], "speed": [1, 2], images: [png("red"), png("blue")]}
    )

    found = in_shards(tmp_path).images

    assert found.path.tolist() == ["a.parquet/b", "a.parquet/x/a.png"]
    assert found.content_hash.tolist() == [sha256(png(color)).hexdigest() for color in ("red", "blue")]


def test_a_row_without_a_name_has_its_number_and_one_without_bytes_is_corrupt(tmp_path):
    images = [{"bytes": png(color), "path": None} for color in COLORS] + [{"bytes": None, "path": "lost.png"}, None]
    write_parquet(tmp_path / "a.parquet", {"image": images})

    found = in_shards(tmp_path).images

    assert found.path.tolist() == [
        f"a.parquet/{name}" for name in ("00", "01", "02", "03", "04", "05", "06", "07", "09")
    ] + ["a.parquet/lost.png"]
    assert found.status.tolist() == ["ok"] * 8 + ["corrupt"] * 2
    assert set(found.reason[8:]) == {"cannot be read (the row has no bytes)"}


def test_a_table_without_images_stays_a_skipped_file_and_one_with_images_gets_the_hint(tmp_path):
    (tmp_path / "a.png").write_bytes(png("red"))
    write_parquet(tmp_path / "metadata.parquet", {"filename": ["a.png"], "speed": [1], "bytes": [300]})
    plain = look(tmp_path)
    assert plain.skipped.not_images == in_shards(tmp_path).skipped.not_images == {".parquet": 1}
    assert plain.skipped.remedies() == []
    assert in_shards(tmp_path).images.path.tolist() == ["a.png"]

    write_parquet(tmp_path / "b.parquet", {"image": [png("blue")], "path": ["b.png"]})

    assert look(tmp_path).skipped.not_images == {".parquet": 1, ".parquet with images": 1}
    assert look(tmp_path).skipped.remedies() == [
        "1 .parquet with images skipped; to read the images in them, set images.shards: true in params.yaml"
    ]


def test_two_rows_of_one_name_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"image": [png("red"), png("lime")], "path": ["image.png"] * 2})

    with pytest.raises(DatapoolError, match=r"a\.parquet: has two images of the name 'image\.png'; give each a name"):
        in_shards(tmp_path)


def test_a_parquet_file_that_is_cut_off_is_corrupt_and_a_damaged_row_group_leaves_the_images_of_the_others(tmp_path):
    noise = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(9)]
    data = []
    for pixels in noise:
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        data.append(file.getvalue())
    pq.write_table(
        pa.table({"path": [f"{i}.png" for i in range(9)], "image": data}),
        tmp_path / "a.parquet", row_group_size=3, compression="none", use_dictionary=False, write_page_checksum=True,
        write_statistics=False,
    )  # fmt: skip
    whole = (tmp_path / "a.parquet").read_bytes()
    at = whole.index(data[4])
    (tmp_path / "a.parquet").write_bytes(whole[:at] + bytes(100) + whole[at + 100 :])
    (tmp_path / "b.parquet").write_bytes(whole[:-100])

    images = in_shards(tmp_path).images.set_index("path")

    assert images.status.tolist() == ["ok"] * 3 + ["corrupt"] * 3 + ["ok"] * 3 + ["corrupt"]
    assert set(images.reason[3:6]) == {"cannot be read (the Parquet file is damaged there)"}
    assert images.reason["b.parquet"] == "not a Parquet file that can be read: it is damaged or cut off"


def test_the_images_of_one_row_group_are_not_all_in_memory_and_any_of_them_can_be_read(tmp_path):
    data = [bytes([i]) * 2**19 for i in range(60)]
    table = pa.table({"path": [f"{i:03}" for i in range(60)], "image": data})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False, write_batch_size=1)
    del table
    before = pa.total_allocated_bytes()

    for number in (0, 1, 30, 59, 3):
        assert place_of(tmp_path, f"a.parquet/{number:03}").read_bytes() == data[number]
        assert pa.total_allocated_bytes() - before < 20 * 2**20


# --- places --------------------------------------------------------------------------------------------------------------


def test_a_member_is_read_by_its_place_without_the_rest_of_the_shard(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", {"x/a.png": png("red"), "x/b.png": png("blue")})
    monkeypatch.chdir(tmp_path)

    place = place_of(Path(), "a.tar/x/b.png")

    assert isinstance(place, TarMember)
    assert str(place) == "a.tar/x/b.png"
    assert place.read_bytes() == png("blue")
    assert (file_of(place), is_there(place)) == (Path("a.tar"), True)
    assert absolute(place).read_bytes() == png("blue")
    assert str(absolute(place)) == f"{tmp_path}/a.tar/x/b.png"
    (tmp_path / "files").mkdir()
    files = as_files([place, Path("c.jpg")], tmp_path / "files")
    assert files[Path("c.jpg")] == Path("c.jpg")
    assert files[place].suffix == ".png"
    assert files[place].read_bytes() == png("blue")


def test_a_shard_that_has_changed_since_the_batch_was_scanned_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": png("red"), "b.png": png("blue")})
    content = hash_of(place_of(tmp_path, "a.tar/b.png"))
    write_tar(tmp_path / "a.tar", {"b.png": png("lime")})
    os.utime(tmp_path / "a.tar", ns=(1, 1))

    assert not has_content(place_of(tmp_path, "a.tar/b.png"), content)
    with pytest.raises(DatapoolError, match=r"a.tar/b.png: the file has changed since the batch was scanned"):
        read_bytes(place_of(tmp_path, "a.tar/b.png"), content_hash=content)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(
        DatapoolError, match=r"a.tar/b.png: cannot be read \(No such file or directory\), though it was"
    ):
        read_bytes(place_of(tmp_path, "a.tar/b.png"), content_hash=content)


def test_the_numbers_of_a_part_are_where_its_bytes_are(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": png("red"), "b.png": png("blue")}, tarfile.USTAR_FORMAT)

    assert read_tar(tmp_path / "a.tar").parts == {"a.png": (512, len(png("red"))), "b.png": (1536, len(png("blue")))}
