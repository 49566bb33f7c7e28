"""Write images for programs in which people label: Label Studio and CVAT."""

import json
from pathlib import Path, PurePosixPath
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from datapool.core.errors import counted
from datapool.export.images import classes_of, place
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
    """Write images/ with manifest.jsonl, and labels.json with the weak labels.

    Beside an image, related_images/ has its nearest neighbor, which CVAT shows as context. The manifest lists the images in
    the pool's order, and CVAT takes its order for that of the frames.
    """
    images = folder / "images"
    lines: list[dict[str, object]] = [{"version": "1.1"}, {"type": "images"}]
    n_alone = 0
    for done, image in enumerate(job.images, start=1):
        job.place(image, images)
        size = image.size(max_pixels=job.max_pixels)
        name = PurePosixPath(image.name)
        line = {
            "name": str(name.with_suffix("")),
            "extension": name.suffix,
            "width": size.width,
            "height": size.height,
        }
        neighbor = job.neighbors.get(image.nearest)
        if neighbor:
            context = name.parent / "related_images" / "_".join(name.name.rsplit(".", 1)) / f"nearest{neighbor.suffix}"
            place(neighbor, str(context), images, job.files)
            line["meta"] = {"related_images": [str(context)]}
        n_alone += bool(image.nearest and not neighbor)
        lines.append(line)
        job.progress(done, len(job.images))
    with (images / "manifest.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    write_json(
        folder / "labels.json", [{"name": name, "attributes": []} for name in classes_of(job.images) or ["object"]]
    )
    alone = f"{counted(n_alone, 'image')} without its nearest one as context, whose file was not found"
    notes = [f"{alone}; `--images` names a folder"]
    return Written([f"images/{image.name}" for image in job.images], notes * bool(n_alone))
