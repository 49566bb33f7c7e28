"""Make a FiftyOne dataset of this export: ``python load_fiftyone.py``, then ``fiftyone app launch``. Needs fiftyone.

Tags are the week, the version, the fate and the split of each image; ``embedding`` is the pool's own embedding. A dataset of
the same name is replaced.
"""

import json
from pathlib import Path

import fiftyone as fo
import numpy as np

HERE = Path(__file__).resolve().parent
content = json.loads((HERE / "samples.json").read_text(encoding="utf-8"))
samples = []
for facts, embedding in zip(content["samples"], np.load(HERE / "embeddings.npy"), strict=True):
    sample = fo.Sample(filepath=str(HERE / facts.pop("file")), tags=facts.pop("tags"), embedding=embedding)
    if label := facts.pop("weak_label", ""):
        sample["weak_label"] = fo.Classification(label=label)
    if labels := facts.pop("labels", []):
        sample["labels"] = fo.Classifications(classifications=[fo.Classification(label=label) for label in labels])
    for name, value in facts.items():
        sample["pool_filename" if name == "filename" else name] = value  # a sample has a "filename" already
    samples.append(sample)
dataset = fo.Dataset(content["name"], overwrite=True, persistent=True)
dataset.add_samples(samples)
print(f"{len(dataset)} images in the dataset {dataset.name!r}; `fiftyone app launch {dataset.name}` shows them")
