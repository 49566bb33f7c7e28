"""Write images for programs that show datasets: FiftyOne and LightlyStudio.

Their own formats change with their versions, so an export for them is plain JSON, an array of embeddings, and a short script
that loads both by the program's Python interface.
"""

import shutil
from pathlib import Path

import numpy as np

from datapool.export.job import Job, Written, write_json

_LOADERS = Path(__file__).parent / "loaders"


def write_fiftyone(folder: Path, job: Job) -> Written:
    """Write images/, samples.json, embeddings.npy, and a script that makes a dataset of FiftyOne of them."""
    return _write(folder, job, "load_fiftyone.py")


def write_lightly_studio(folder: Path, job: Job) -> Written:
    """Write images/, samples.json, embeddings.npy, and a script that shows them in LightlyStudio."""
    return _write(folder, job, "load_lightly_studio.py")


def _write(folder: Path, job: Job, loader: str) -> Written:
    files = []
    for done, image in enumerate(job.images, start=1):
        if job.has_no_files:
            files.append(str(image.path.resolve()))
        else:
            job.place(image, folder / "images")
            files.append(f"images/{image.name}")
        job.progress(done, len(job.images))
    samples = [
        {"file": file, "tags": image.tags(), **image.facts()} for file, image in zip(files, job.images, strict=True)
    ]
    content = {"name": job.name, "embedding_space": job.embedding_space, "samples": samples}
    write_json(folder / "samples.json", content)
    np.save(folder / "embeddings.npy", np.array([image.embedding for image in job.images], dtype=np.float32))
    shutil.copyfile(_LOADERS / loader, folder / loader)
    return Written(files, [f"`python {loader}` in this folder loads it"])
