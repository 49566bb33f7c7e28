"""The tables of the benchmarks of images and of the week follow from what was measured."""

import numpy as np
from PIL import Image

from benchmarks import images, week
from benchmarks.images import BEFORE, OURS, PLAIN, Measured, PerImage
from benchmarks.week import AtPool, Size


def test_photos_have_their_size_and_each_has_bytes_of_its_own(tmp_path):
    photos = images.sources(None)
    images.write_photos(tmp_path / "small", (32, 32), range(5, 8), photos)
    images.write_photos(tmp_path / "large", (200, 150), range(20), photos)

    small, large = (sorted((tmp_path / name).iterdir()) for name in ("small", "large"))
    pixels = [np.asarray(Image.open(path)) for path in (*small, large[0], large[8], large[1])]
    assert [path.name for path in small] == ["0000005.jpg", "0000006.jpg", "0000007.jpg"]
    assert [each.shape for each in pixels] == [(32, 32, 3)] * 3 + [(150, 200, 3)] * 3
    assert not np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[3], pixels[4])  # eight photos have pixels of their own
    assert not np.array_equal(pixels[3], pixels[5])
    assert len({path.read_bytes() for path in large}) == 20


def measured():
    """Return a run in which everything takes a round time: before, all took twice as long; a plain loop, four times."""

    def seconds(one):
        return {OURS: one, BEFORE: 2 * one, PLAIN: 4 * one}

    peak = {OURS: 100.0, BEFORE: 200.0, PLAIN: 50.0}
    return Measured(
        [
            PerImage(size, stage, seconds(cost), peak)
            for size, stage, cost in (
                ("32 px", "scan", 0.001),
                ("32 px", "embed", 0.01),
                ("2 MP", "scan", 0.005),
                ("2 MP", "embed", 0.02),
            )
        ],
        process={"scan": seconds(1.0), "embed": seconds(3.0)},
        train=seconds(0.5),
        report={"32 px": seconds(1.0), "2 MP": seconds(3.0)},
    )


def test_the_table_of_a_stage_has_milliseconds_and_ratios_to_datapool():
    rows = images.compared(measured(), "embed").splitlines()

    assert rows[0] == ("| images | datapool, ms | datapool before, ms | plain loop, ms | peak MiB of these 3 |")
    assert rows[2] == "| 32 px | 10.0 | 20.0 (2.0×) | 40.0 (4.0×) | 100, 200, 50 |"
    assert rows[3] == "| 2 MP | 20.0 | 40.0 (2.0×) | 80.0 (4.0×) | 100, 200, 50 |"


def test_a_week_is_its_processes_and_as_many_images_as_it_has_and_the_stages_beside_the_pool():
    stages = {stage: {OURS: 1.0, BEFORE: 2.0} for stage in images.STAGES}
    at_pool = AtPool(stages, peak={OURS: 300.0, BEFORE: 400.0}, dvc={OURS: 2.0, BEFORE: 4.0}, picked=7)
    size = Size(pool=1_000, batch=100, min_distance=0.5)

    ours = week.seconds_of_week(measured(), at_pool, size, images_of="2 MP", checkout=OURS)
    rows = week.render(measured(), at_pool, size).splitlines()

    # scan 1 + 100 x 0.005, embed 3 + 100 x 0.02, train 0.5, five stages of 1, a report of 1 and the 3 - 1 that photos add, dvc 2
    assert ours == {
        "scan": 1.5, "embed": 5.0, "train": 0.5, "open": 1.0, "plan": 1.0, "rank": 1.0, "sample": 1.0, "merge": 1.0,
        "report": 3.0, "dvc": 2.0,
    }  # fmt: skip
    assert rows[1].startswith("100 new images beside a pool of 1,000 × 64, of which 7 are picked")
    assert "| CPU s | 32 px, before | 32 px | 2 MP, before | 2 MP |" in rows
    assert "| scan | 2.2 | 1.1 | 3.0 | 1.5 |" in rows
    assert "| **all** | **27** | **14** | **34** | **17** |" in rows


def test_the_rows_of_the_week_are_of_unit_length_and_the_same_each_time():
    rows = week.embeddings(50)

    assert rows.shape == (50, 64)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(rows, week.embeddings(50))


def test_the_block_of_the_docs_is_replaced_and_nothing_else(tmp_path, monkeypatch):
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{week.BEGIN}\nold\n{week.END}\nafter\n")
    monkeypatch.setattr(week, "PAGE", page)

    week.write_into_docs(f"{week.BEGIN}\nnew\n{week.END}")

    assert page.read_text() == f"before\n{week.BEGIN}\nnew\n{week.END}\nafter\n"
