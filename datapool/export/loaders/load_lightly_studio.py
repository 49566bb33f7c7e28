"""Show this export in LightlyStudio: ``python load_lightly_studio.py``. Needs lightly-studio, in an environment of its own.

Tags are the week, the version, the fate and the split of each image; the embeddings are the pool's own. With ``--no-gui`` it
only writes lightly_studio.db, which ``lightly-studio gui`` shows.
"""

import json
import sys
from pathlib import Path

import lightly_studio as ls
import numpy as np
from lightly_studio.database import db_manager
from lightly_studio_serve.embedder import ImagePathEmbedder

HERE = Path(__file__).resolve().parent
content = json.loads((HERE / "samples.json").read_text(encoding="utf-8"))
facts_of = {(HERE / facts["file"]).as_posix(): facts for facts in content["samples"]}
embeddings = np.load(HERE / "embeddings.npy")
embedding_of = dict(zip(facts_of, embeddings, strict=True))


class PoolEmbeddings(ImagePathEmbedder):
    """Return the pool's embedding of an image instead of computing one."""

    def embedding_space_spec(self) -> ls.EmbeddingSpaceSpec:
        """Name the embedding space of the pool."""
        return ls.EmbeddingSpaceSpec(space_key=content["embedding_space"], dimension=embeddings.shape[1])

    def embed_images(self, paths: list[str]) -> ls.EmbeddingResult:
        """Return the embeddings of the images of the export among some paths."""
        kept = [i for i, path in enumerate(paths) if path in embedding_of]
        found = np.array([embedding_of[paths[i]] for i in kept], dtype=np.float32)
        return ls.EmbeddingResult(embeddings=found.reshape(len(kept), embeddings.shape[1]), kept_indices=kept)


db_manager.connect(db_file=str(HERE / "lightly_studio.db"), cleanup_existing=True)
ls.register_default_embedder(PoolEmbeddings())
dataset = ls.ImageDataset.create(content["name"])
dataset.add_images_from_path(str(HERE / "images"))
metadata = []
for sample in dataset:
    facts = facts_of[Path(sample.file_path_abs).as_posix()]
    sample.tags = facts["tags"]
    metadata.append((sample.sample_id, {key: facts[key] for key in facts if key not in ("file", "tags")}))
dataset.update_metadata(metadata)
print(f"{len(metadata)} images in the dataset {content['name']!r}")
if "--no-gui" not in sys.argv:
    ls.start_gui()
