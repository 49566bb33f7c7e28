"""Write images for programs in which people label: Label Studio and CVAT."""

import json
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from datapool.core.errors import counted
from datapool.export.images import require_inside
from datapool.export.job import Job, Written, write_json

_LOCAL_FILES = "/data/local-files/?d="
"""What Label Studio puts before a path below its LOCAL_FILES_DOCUMENT_ROOT."""

_NOT_IN_BROWSERS = frozenset({".tif", ".tiff", ".ppm", ".pgm", ".heic", ".heif", ".hif"})


def write_label_studio(folder: Path, job: Job) -> Written:
    """Write images/, tasks.json with a task per image, and label_config.xml.

    The choices are the classes. What is known of an image is a prediction, never an annotation: its labels; if it has none,
    its weak label, if that is a class.
    """
    prefix = job.url_prefix or f"{_LOCAL_FILES}{quote(job.name)}/images/"
    tasks = []
    for done, image in enumerate(job.images, start=1):
        if not job.has_no_files:
            job.place(image, folder / "images")
        data = {"image": prefix + quote(image.name), **image.facts()}
        task: dict[str, object] = {"data": data}
        guesses = list(image.labels) or [label for label in [image.weak_label] if label in job.classes]
        if guesses:
            result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": guesses}}
            source = "labels" if image.labels else "weak label"
            task["predictions"] = [{"model_version": source, "result": [result]}]
        tasks.append(task)
        job.progress(done, len(job.images))
    write_json(folder / "tasks.json", tasks)
    choices = "".join(f"\n    <Choice value={quoteattr(name)}/>" for name in job.classes)
    is_multiple = any(len(image.labels) > 1 for image in job.images)
    config = f"""\
<View>
  <Image name="image" value="$image"/>
  <Choices name="label" toName="image" choice="{"multiple" if is_multiple else "single"}">{choices}
  </Choices>
</View>
"""
    (folder / "label_config.xml").write_text(config, encoding="utf-8")
    files = [str(image.path.resolve()) if job.has_no_files else f"images/{image.name}" for image in job.images]
    unseen = [
        image.filename for image in job.images if PurePosixPath(image.filename).suffix.lower() in _NOT_IN_BROWSERS
    ]
    notes = [
        f"{counted(len(unseen), 'image')} of a kind that most browsers do not show, such as {', '.join(unseen[:1])}"
    ]
    return Written(files, notes * bool(unseen))


def write_cvat(folder: Path, job: Job) -> Written:
    """Write images.zip, manifest.jsonl with the size of each image, and labels.json with the classes.

    CVAT takes the manifest's order for that of the frames if the sorting method is "predefined": best first, as in the pool.
    Beside an image, the archive has its nearest neighbor in related_images/, which CVAT shows as context.
    """
    lines: list[dict[str, object]] = [{"version": "1.1"}, {"type": "images"}]
    n_not_found = n_left = 0
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for done, image in enumerate(job.images, start=1):
            _add(archive, image.name, image.path)
            size = image.size(max_pixels=job.max_pixels)
            name = PurePosixPath(image.name)
            line: dict[str, object] = {"name": str(name.with_suffix("")), "extension": name.suffix}
            line |= {"width": size.width, "height": size.height}
            if neighbor := job.neighbors.get(image.nearest):
                context = (
                    name.parent / "related_images" / "_".join(name.name.rsplit(".", 1)) / f"nearest{neighbor.suffix}"
                )
                _add(archive, str(context), neighbor)
                line["meta"] = {"related_images": [str(context)]}
            elif image.nearest:
                n_not_found += image.nearest in job.neighbors
                n_left += image.nearest not in job.neighbors
            lines.append(line)
            job.progress(done, len(job.images))
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    write_json(folder / "labels.json", [{"name": name, "attributes": []} for name in job.classes])
    notes = [
        *[f"without context: {counted(n_not_found, 'image')}; the file of the nearest one was not found, and `--images` "
          "names a folder that has it"] * bool(n_not_found),
        *[f"without context: {counted(n_left, 'image')}; the nearest one has left the pool"] * bool(n_left),
    ]  # fmt: skip
    return Written([f"images.zip/{image.name}" for image in job.images], notes)


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Add a file to an archive, without its time: the same images make the same bytes."""
    require_inside(name)
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member, path.open("rb") as file:
        shutil.copyfileobj(file, member)
