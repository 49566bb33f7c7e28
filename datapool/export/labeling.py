"""Write images for programs in which people label: Label Studio and CVAT."""

import json
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from datapool.core.errors import counted
from datapool.export.images import classes_of, require_inside
from datapool.export.job import Job, Written, write_json

_LOCAL_FILES = "/data/local-files/?d="
"""What Label Studio puts before a path below its LOCAL_FILES_DOCUMENT_ROOT."""


def write_label_studio(folder: Path, job: Job) -> Written:
    """Write images/, tasks.json with a task per image, and label_config.xml.

    The choices are the weak labels; that of an image is a prediction, never an annotation.
    """
    prefix = job.url_prefix or f"{_LOCAL_FILES}{quote(job.name)}/images/"
    tasks = []
    for done, image in enumerate(job.images, start=1):
        if not job.is_linked_to:
            job.place(image, folder / "images")
        data = {"image": prefix + quote(image.name), **image.facts()}
        task: dict[str, object] = {"data": data}
        if image.label:
            result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [image.label]}}
            task["predictions"] = [{"model_version": "weak label", "result": [result]}]
        tasks.append(task)
        job.progress(done, len(job.images))
    write_json(folder / "tasks.json", tasks)
    choices = "".join(f"\n    <Choice value={quoteattr(name)}/>" for name in classes_of(job.images) or ["object"])
    config = f"""\
<View>
  <Image name="image" value="$image"/>
  <Choices name="label" toName="image" choice="single">{choices}
  </Choices>
</View>
"""
    (folder / "label_config.xml").write_text(config, encoding="utf-8")
    files = [str(image.path.resolve()) if job.is_linked_to else f"images/{image.name}" for image in job.images]
    return Written(files, [])


def write_cvat(folder: Path, job: Job) -> Written:
    """Write images.zip, manifest.jsonl with the size of each image, and labels.json with the weak labels.

    CVAT takes the manifest's order for that of the frames if the sorting method is "predefined": best first, as in the pool.
    Beside an image, the archive has its nearest neighbor in related_images/, which CVAT shows as context.
    """
    lines: list[dict[str, object]] = [{"version": "1.1"}, {"type": "images"}]
    n_alone = 0
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
            n_alone += bool(image.nearest and not neighbor)
            lines.append(line)
            job.progress(done, len(job.images))
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    classes = classes_of(job.images) or ["object"]
    write_json(folder / "labels.json", [{"name": name, "attributes": []} for name in classes])
    alone = f"{counted(n_alone, 'image')} without its nearest one as context, whose file was not found"
    notes = [f"{alone}; `--images` names a folder"]
    return Written([f"images.zip/{image.name}" for image in job.images], notes * bool(n_alone))


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Add a file to an archive, without its time: the same images make the same bytes."""
    require_inside(name)
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member, path.open("rb") as file:
        shutil.copyfileobj(file, member)
