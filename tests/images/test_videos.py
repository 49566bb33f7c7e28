"""Frames of videos are images like any other: which ones, their names, times and pixels, and where a damaged video ends."""

import hashlib
import socket
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanning
from conftest import MAX_PIXELS
from filming import moving, solid, write_video
from PIL import Image

from datapool.core.errors import DatapoolError
from datapool.images import batch
from datapool.images.decode import has_content, hash_of, inspect, read_bytes
from datapool.images.frame_pixels import png_of, upright_rgb
from datapool.images.frames import describe_frames_of_pool, wanted_frames
from datapool.images.places import as_files, file_of, is_there, place_of
from datapool.images.videos import DamagedVideoError, Frame, NoVideoReaderError, Sampling, Video, frame_name

av = pytest.importorskip("av")

ALL = Sampling(None, 1)
COLORS = ["red", "lime", "blue", "white", "black", "yellow", "cyan", "magenta"]


def look(folder: Path, **options: object) -> batch.Batch:
    return scanning.look(folder, **{"videos": ALL} | options)


def numbers(path: Path, sampling: Sampling) -> list[int]:
    return [frame.number for frame in Video(path).frames(sampling)]


def pixels_of(png: bytes) -> np.ndarray:
    return np.array(Image.open(BytesIO(png)).convert("RGB"))


# --- which frames, and when ----------------------------------------------------------------------------------------------


def test_a_frame_is_a_png_of_exactly_its_pixels_with_its_number_and_its_time(tmp_path):
    write_video(tmp_path / "a.mkv", [solid(color) for color in COLORS], rate=4)

    frames = list(Video(tmp_path / "a.mkv").frames(ALL))

    assert [frame.number for frame in frames] == list(range(8))
    assert [frame.seconds for frame in frames] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    for frame, color in zip(frames, COLORS, strict=True):
        assert (pixels_of(frame.png) == solid(color)).all()


def test_fps_takes_the_first_frame_at_or_after_each_tick_and_stride_every_nth(tmp_path):
    write_video(tmp_path / "a.mkv", moving(60), rate=25)

    assert numbers(tmp_path / "a.mkv", Sampling(1, None)) == [0, 25, 50]
    assert numbers(tmp_path / "a.mkv", Sampling(0.5, None)) == [0, 50]
    assert numbers(tmp_path / "a.mkv", Sampling(10, None))[:5] == [0, 3, 5, 8, 10]  # at 0, 0.1, 0.2, ... seconds
    assert numbers(tmp_path / "a.mkv", Sampling(None, 20)) == [0, 20, 40]
    assert numbers(tmp_path / "a.mkv", Sampling(1000, None)) == list(range(60))


def test_fps_of_the_video_itself_takes_every_frame_though_matroska_rounds_times_to_milliseconds(tmp_path):
    write_video(tmp_path / "a.mkv", moving(40), rate=30)

    assert numbers(tmp_path / "a.mkv", Sampling(30, None)) == list(range(40))
    assert numbers(tmp_path / "a.mkv", Sampling(15, None)) == list(range(0, 40, 2))


@pytest.mark.slow
def test_frames_are_named_as_lightly_names_them():
    import datapool.model.torchvision_compat  # noqa: F401  before lightly imports torchvision

    lightly = pytest.importorskip("lightly.data._video")
    dataset = object.__new__(lightly.VideoDataset)
    dataset.videos, dataset.root, dataset.offsets, dataset._length = ["/w/cam/a.b.mp4", "/w/C.MOV"], "/w", [0, 101], 111

    ours = [frame_name("cam/a.b.mp4", number, 101) for number in range(101)]
    ours += [frame_name("C.MOV", number, 10) for number in range(10)]

    assert ours == dataset.get_filenames()
    assert ours[7] == "cam/a.b-007-mp4.png"


# --- pixels --------------------------------------------------------------------------------------------------------------


def planes(kind: str, y: int, u: int, v: int, *, space: int = 2, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Return the first pixel of a frame whose planes are filled with these values."""
    frame = av.VideoFrame(*size, kind)
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        width = 1 if "p1" not in kind else 2
        plane.update(value.to_bytes(width, "little") * (plane.buffer_size // width))
    frame.colorspace = space
    pixels = upright_rgb(frame)
    assert pixels.shape == (size[1], size[0], 3)
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0].tolist()


def test_colors_are_those_of_the_standards():
    # BT.601, 8 bits: red is Y 81, Cb 90, Cr 240; white is 235, 128, 128 (ITU-R BT.601-7, rounded).
    assert planes("yuv420p", 81, 90, 240) == [254, 0, 0]
    assert planes("yuv420p", 235, 128, 128) == [255, 255, 255]
    assert planes("yuv420p", 16, 128, 128) == [0, 0, 0]
    assert planes("yuv420p", 0, 128, 128) == [0, 0, 0]  # below black
    assert planes("yuv420p", 126, 128, 128) == [128, 128, 128]
    # BT.709: red is 63, 102, 240.
    assert planes("yuv420p", 63, 102, 240, space=1) == [255, 1, 0]
    # JPEG, full range: red is 76, 85, 255.
    assert planes("yuvj420p", 76, 85, 255) == [254, 0, 0]
    assert planes("yuvj444p", 128, 128, 128) == [128, 128, 128]
    assert planes("yuv422p10le", 4 * 81, 4 * 90, 4 * 240) == [254, 0, 0]
    assert planes("yuv444p", 81, 90, 240, size=(5, 3)) == [254, 0, 0]
    assert planes("yuv420p", 81, 90, 240, size=(5, 3)) == [254, 0, 0]  # chroma of odd sizes is rounded up
    assert planes("yuv420p", 81, 90, 240, size=(17, 35)) == [254, 0, 0]  # more rows than a block


def test_each_pixel_has_the_chroma_of_its_own_place():
    y, u, v = (
        np.full((4, 4), 126, np.uint8),
        np.full((2, 2), 128, np.uint8),
        np.array([[128, 240], [16, 128]], np.uint8),
    )
    frame = av.VideoFrame.from_ndarray(np.concatenate([each.ravel() for each in (y, u, v)]).reshape(6, 4), "yuv420p")

    red = upright_rgb(frame)[:, :, 0].astype(int)

    assert (red[:2, :2] == 128).all()
    assert (red[:2, 2:] == 255).all()
    assert (red[2:, :2] == 0).all()
    assert (red[2:, 2:] == 128).all()


def test_a_png_follows_from_its_pixels_alone_and_other_decoders_read_it():
    pixels = np.random.default_rng(0).integers(
        0, 256, (200, 150, 3), dtype=np.uint8
    )  # more than one block of 65,535 bytes

    png = png_of(pixels)

    assert (pixels_of(png) == pixels).all()
    assert inspect_png(png).damage == ""
    assert hashlib.sha256(png).hexdigest() == "e567c41a1c2b10730242385fe862521fcfa67fda5b9369332c89548dfb7f168e"


def inspect_png(png: bytes):
    from datapool.images.places import Loaded

    return inspect(Loaded(Path("a.png"), png), check="strict", max_pixels=MAX_PIXELS)


def test_a_frame_is_turned_upright_as_the_video_says(tmp_path):
    corner = solid("black")
    corner[0, 0] = 255
    with av.open(tmp_path / "a.mov", "w") as file:
        stream = file.add_stream("png", rate=5)
        stream.height, stream.width, stream.pix_fmt = 24, 32, "rgb24"
        stream.set_display_rotation(90)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(corner, format="rgb24")))
        file.mux(stream.encode(None))

    pixels = pixels_of(next(Video(tmp_path / "a.mov").frames(ALL)).png)

    assert pixels.shape == (32, 24, 3)
    with av.open(tmp_path / "a.mov") as file:
        turned = np.rot90(corner, next(file.decode(video=0)).rotation // 90)
    assert (pixels == turned).all()


# --- single frames -------------------------------------------------------------------------------------------------------

_KINDS = {
    "a.mp4": {"codec": "libx264", "kind": "yuv420p", "options": {"g": "12", "bf": "3"}},
    "b.mkv": {"codec": "libx265", "kind": "yuv420p", "options": {"x265-params": "log-level=0:open-gop=1:keyint=10"}},
    "c.avi": {"codec": "mpeg4", "kind": "yuv420p"},
    "d.avi": {"codec": "libx264", "kind": "yuv420p"},  # AVI has no times of frames that are shown in another order
    "e.avi": {"codec": "mjpeg", "kind": "yuvj420p"},
    "f.mkv": {"codec": "libvpx-vp9", "kind": "yuv420p", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "g.mov": {"codec": "libx264", "kind": "yuv420p", "container": {"movflags": "frag_keyframe+empty_moov"}},
    "h.mov": {"codec": "prores_ks", "kind": "yuv422p10le"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _KINDS)
def test_a_single_frame_is_the_one_that_reading_all_finds_in_any_order(tmp_path, name):
    write_video(tmp_path / name, moving(40), **_KINDS[name])
    found = {frame.number: hashlib.sha256(frame.png).hexdigest() for frame in Video(tmp_path / name).frames(ALL)}
    assert len(set(found.values())) == 40

    order = np.random.default_rng(0).permutation(40).tolist()
    for number in [*order, *range(40), 39, 0]:
        assert hash_of(Frame(tmp_path / name, tmp_path / "x.png", number)) == found[number]


def test_the_name_of_a_frame_is_found_as_long_as_its_video_is_there_and_no_file_has_it(tmp_path):
    write_video(tmp_path / "cam/a.mkv", [solid(color) for color in COLORS])

    place = place_of(tmp_path, "cam/a-3-mkv.png")

    assert place == Frame(tmp_path / "cam/a.mkv", tmp_path / "cam/a-3-mkv.png", 3)
    assert str(place) == str(tmp_path / "cam/a-3-mkv.png")
    assert file_of(place) == tmp_path / "cam/a.mkv"
    assert is_there(place)
    assert (pixels_of(place.read_bytes()) == solid("white")).all()
    assert place_of(tmp_path, "cam/b-3-mkv.png") == tmp_path / "cam/b-3-mkv.png"
    assert not is_there(place_of(tmp_path, "cam/b-3-mkv.png"))
    (tmp_path / "cam/a-3-mkv.png").write_bytes(b"file")
    assert place_of(tmp_path, "cam/a-3-mkv.png") == tmp_path / "cam/a-3-mkv.png"
    assert place_of(tmp_path, f"{'x' * 300}-3-mkv.png") == tmp_path / f"{'x' * 300}-3-mkv.png"


def test_a_frame_beyond_the_end_is_not_read_and_a_changed_video_has_other_frames(tmp_path):
    write_video(tmp_path / "a.mkv", [solid("red"), solid("blue")])
    second, third = place_of(tmp_path, "a-1-mkv.png"), place_of(tmp_path, "a-2-mkv.png")
    content = hash_of(second)

    assert hash_of(third) == ""
    with pytest.raises(DatapoolError, match=r"cannot be read .the video has no frame 2.*bring it back"):
        read_bytes(third, content_hash=content)
    assert has_content(second, content)
    write_video(tmp_path / "a.mkv", [solid("red"), solid("lime")])
    assert not has_content(second, content)
    with pytest.raises(DatapoolError, match=r"a-1-mkv.png: the file has changed"):
        read_bytes(second, content_hash=content)


def test_files_are_made_of_frames_and_not_of_files(tmp_path):
    write_video(tmp_path / "a.mkv", [solid("red"), solid("blue")])
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    (tmp_path / "new").mkdir()
    places = [place_of(tmp_path, name) for name in ("a-1-mkv.png", "b.png")]

    files = as_files(places, tmp_path / "new")

    assert files[places[1]] == tmp_path / "b.png"
    assert hash_of(files[places[0]]) == hash_of(places[0])
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".png"]


# --- damage --------------------------------------------------------------------------------------------------------------


def read_until_damage(path: Path) -> tuple[list[str], str]:
    """Return the hashes of the frames, and why there are no more."""
    found = []
    try:
        for frame in Video(path).frames(ALL):
            found.append(hashlib.sha256(frame.png).hexdigest())
    except DamagedVideoError as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])
def test_the_frames_before_the_place_where_a_video_was_cut_off_are_read(tmp_path, name):
    options = {"codec": "mpeg4", "kind": "yuv420p", "container": {"movflags": "faststart"} if name == "a.mp4" else {}}
    write_video(tmp_path / name, moving(100), **options)
    whole, damage = read_until_damage(tmp_path / name)
    assert (len(whole), damage) == (100, "")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])

    found, damage = read_until_damage(tmp_path / name)

    assert 20 < len(found) < 70
    assert found == whole[: len(found)]
    assert damage.startswith(
        ("damaged: the video is cut off (after ", "damaged: the video cannot be decoded to its end (frame")
    )


def test_the_frames_before_overwritten_ones_are_read(tmp_path):
    write_video(tmp_path / "a.avi", moving(50), codec="mjpeg", kind="yuvj420p")
    whole, _ = read_until_damage(tmp_path / "a.avi")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    (tmp_path / "a.avi").write_bytes(data)

    found, damage = read_until_damage(tmp_path / "a.avi")

    assert 10 < len(found) < 40
    assert found == whole[: len(found)]
    assert damage == f"damaged: the video cannot be decoded to its end (frame {len(found)}; those before are used)"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a video that can be read: its header is damaged or missing"),
        (b"text", "not a video that can be read: its header is damaged or missing"),
        (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:PORT/x.ts\n", "not a video that can be read: its header"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video that can be read: its header"),
    ],
)
def test_what_is_no_video_has_no_frames_and_opens_no_other_file_or_address(tmp_path, content, reason):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        (tmp_path / "a.mp4").write_bytes(content.replace(b"PORT", str(server.getsockname()[1]).encode()))

        found, damage = read_until_damage(tmp_path / "a.mp4")

        with pytest.raises(TimeoutError):
            server.accept()
    assert not found
    assert damage.startswith(reason)


def test_a_video_without_its_header_and_one_without_pictures_are_told(tmp_path):
    write_video(tmp_path / "a.mp4", moving(30), codec="mpeg4", kind="yuv420p")
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])  # the header of this kind stands at the end
    with av.open(tmp_path / "b.mkv", "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        file.mux(stream.encode(sound))

    assert read_until_damage(tmp_path / "a.mp4") == (
        [],
        "not a video that can be read: its header is damaged or missing",
    )
    assert read_until_damage(tmp_path / "b.mkv") == ([], "not a video: it has no pictures, only sound or texts")


# --- a batch -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_batch_of_videos_is_the_batch_of_the_files_that_its_frames_are(tmp_path):
    for name in ("cam/a.mkv", "cam/b.mkv", "c.mkv"):
        write_video(tmp_path / "videos" / name, moving(12, (160, 120)) if name != "c.mkv" else moving(3)[1:], rate=4)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "videos/z.png")
    kept: dict[str, dict[str, bytes]] = {"videos": {}, "files": {}}
    of_videos = look(tmp_path / "videos", keep_thumbnail=kept["videos"].__setitem__)
    names = of_videos.images.filename.tolist()
    (tmp_path / "files").mkdir()

    batch.copy_images(of_videos.images, names, tmp_path / "videos", tmp_path / "files")
    of_files = look(tmp_path / "files", keep_thumbnail=kept["files"].__setitem__)

    assert names == [
        "c-0-mkv.png", "c-1-mkv.png",
        *(f"cam/{video}-{number:02}-mkv.png" for video in "ab" for number in range(12)),
        "z.png",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(of_videos.images, of_files.images)
    assert of_videos.images.status.value_counts().to_dict() == {"ok": 15, "duplicate": 12}  # b has the frames of a
    assert batch.batch_id(of_videos.images) == batch.batch_id(of_files.images)
    assert kept["videos"] == kept["files"]
    assert len(kept["files"]) == 12  # those larger than a thumbnail
    times = of_videos.quality.video_time
    assert times.tolist()[:4] == [0, 0.25, 0, 0.25]
    assert np.isnan(times.iloc[-1])
    pd.testing.assert_frame_equal(of_videos.quality.drop(columns="video_time"), of_files.quality)


@pytest.mark.slow
def test_a_batch_with_many_frames_is_the_same_by_several_processes(tmp_path, monkeypatch):
    from datapool.images import frames, processes

    write_video(tmp_path / "a.mkv", moving(90))
    write_video(tmp_path / "b.mkv", moving(20))
    by_several = look(tmp_path)
    monkeypatch.setattr(processes, "_FEW", 10**6)
    monkeypatch.setattr(frames, "machine_cores", lambda: 1)

    by_one = look(tmp_path)

    assert len(by_one.images) == 110
    pd.testing.assert_frame_equal(by_several.images, by_one.images)
    pd.testing.assert_frame_equal(by_several.quality, by_one.quality)


def test_a_damaged_video_is_a_corrupt_row_beside_the_frames_before_the_damage(tmp_path):
    write_video(tmp_path / "a.mkv", moving(100), codec="mpeg4", kind="yuv420p")
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    (tmp_path / "b.mkv").write_bytes(b"")

    images = look(tmp_path, videos=Sampling(1, None)).images

    assert images.path.tolist() == ["a-00-mkv.png", "a-25-mkv.png", "a.mkv", "b.mkv"]
    assert images.status.tolist() == ["ok", "ok", "corrupt", "corrupt"]
    assert images.reason.iloc[2].startswith("damaged: the video ")


def test_without_a_setting_videos_are_counted_and_the_remedy_is_named(tmp_path):
    write_video(tmp_path / "a.mkv", moving(3))
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")

    found = look(tmp_path, videos=None)

    assert found.images.path.tolist() == ["b.png"]
    assert found.skipped.not_images == {".mkv": 1}
    assert found.skipped.remedies() == [
        "1 .mkv skipped; to read frames of videos, set videos.fps: 1 (one per second) or videos.stride in params.yaml"
    ]


def test_the_list_of_relevant_names_may_name_frames(tmp_path):
    write_video(tmp_path / "cam/a.mkv", moving(12))
    write_video(tmp_path / "b.mkv", moving(2))
    Image.new("RGB", (9, 9)).save(tmp_path / "c.png")

    found = look(tmp_path, relevant=["cam/a-03-mkv.png", "./cam/a-11-mkv.png", "c.png"])

    assert found.images.path.tolist() == ["c.png", "cam/a-03-mkv.png", "cam/a-11-mkv.png"]
    with pytest.raises(DatapoolError, match=r"lists 1 frame that is not read, such as frame 3 of .*a.mkv"):
        look(tmp_path, relevant=["cam/a-03-mkv.png"], videos=Sampling(None, 2))
    with pytest.raises(DatapoolError, match="lists 1 name that is no image"):
        look(tmp_path, relevant=["cam/x-03-mkv.png"])
    assert wanted_frames(["a-1-mp4.png", "b.png"], ["a.mp4"]) == ({"a.mp4": frozenset({1})}, ["b.png"])


def test_images_with_the_names_of_frames_are_refused_beside_their_video(tmp_path):
    write_video(tmp_path / "a.mkv", moving(12))
    Image.new("RGB", (9, 9)).save(tmp_path / "a-03-mkv.png")

    with pytest.raises(DatapoolError, match=r"a-03-mkv.png: has the name of a frame of the video 'a.mkv'"):
        look(tmp_path)
    assert len(look(tmp_path, videos=None).images) == 1


def test_a_link_to_a_video_elsewhere_is_not_followed(tmp_path):
    write_video(tmp_path / "a.mkv", moving(3))
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch/b.mkv").symlink_to(tmp_path / "a.mkv")

    images = look(tmp_path / "batch").images

    assert images.path.tolist() == ["b.mkv"]
    assert images.reason.tolist() == [batch.LINK_OUT]


def test_without_the_package_that_reads_videos_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.mkv").write_bytes(b"video")
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(DatapoolError, match=r"1 video, but the package .* `pip install 'dvc-datapool\[video\]'`"):
        look(tmp_path)


def test_a_frame_of_the_pool_is_not_taken_for_lost_without_the_package_that_reads_it(tmp_path, monkeypatch):
    (tmp_path / "a.mkv").write_bytes(b"video")
    monkeypatch.setitem(sys.modules, "av", None)

    with pytest.raises(
        NoVideoReaderError, match=r"frames of videos, and the package .* `pip install 'dvc-datapool\[video\]'`"
    ):
        has_content(place_of(tmp_path, "a-0-mkv.png"), "0" * 64)


def table_of(**contents: str) -> pd.DataFrame:
    """Return images of the pool or of a batch, by name without their ending."""
    names = [f"{name.replace('_', '-')}-mp4.png" for name in contents]
    return pd.DataFrame({"filename": names, "content_hash": [*contents.values()], "status": "ok"}, dtype="str")


def test_frames_whose_numbers_have_got_more_digits_are_told_and_other_frames_of_such_names_too():
    pool = table_of(a_7="x", a_8="y", b_07="z", c_1="")

    assert describe_frames_of_pool(table_of(a_7="x", a_8="y", b_11="w", d_007="x"), pool) == []
    assert describe_frames_of_pool(table_of(a_07="x", a_08="y", a_09="q"), pool) == [
        "2 frames of the pool have other names in this batch ('a-07-mp4.png', in the pool 'a-7-mp4.png'), because the video "
        "has another number of frames now; the pool keeps its names"
    ]
    (note,) = describe_frames_of_pool(table_of(b_7="other", c_01="x"), pool)
    assert note.startswith(
        "WARNING: 1 frame of this batch differs from the frame of that number of a video of that name in the pool "
        "('b-7-mp4.png', in the pool 'b-07-mp4.png'); gaps and splits take the two videos for one"
    )


def test_the_time_of_a_frame_is_that_of_its_video_and_its_own(tmp_path):
    taken = {"creation_time": "2026-11-30T14:05:09.000000Z"}
    write_video(tmp_path / "a.mkv", moving(3), rate=2, metadata=taken)
    write_video(tmp_path / "b.mkv", moving(5)[3:], rate=2, metadata={"creation_time": "1904-01-01T00:00:00.000000Z"})

    quality = look(tmp_path, keep_thumbnail=lambda *_: None).quality

    assert quality.taken[:3].astype("str").tolist() == [
        f"2026-11-30 14:05:{each}" for each in ("09.000", "09.500", "10.000")
    ]
    assert quality.taken.isna().tolist() == [False] * 3 + [True] * 2
    assert quality.video_time.tolist() == [0, 0.5, 1, 0, 0.5]


def test_an_error_while_frames_are_inspected_ends_the_threads(tmp_path, monkeypatch):
    import threading

    write_video(tmp_path / "a.mkv", moving(50))

    def broken(image, **_):
        raise MemoryError

    monkeypatch.setattr(batch, "inspect", broken)
    n_threads = threading.active_count()
    with pytest.raises(MemoryError):
        look(tmp_path)
    assert threading.active_count() == n_threads
