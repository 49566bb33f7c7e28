"""The files that the stages of a run write below ``output_dir``, in one table.

dvc.yaml names the same files as dependencies and outputs of the stages; a test compares the two.
"""

from pathlib import Path

NO_MODEL = b"no model\n"
"""The content of the file of a checkpoint where there is no such model: DVC requires every output of a stage to exist."""


class Outputs:
    """Paths below ``output_dir``, in the order in which the stages write them."""

    def __init__(self, folder: Path | str) -> None:
        """Name the files below a folder; nothing is created."""
        folder = Path(folder)
        # scan
        self.images = folder / "images.parquet"
        """The batch: one row per image, healthy or not."""
        self.quality = folder / "quality.parquet"
        """What the pixels of each healthy image show: brightness, information, sharpness, shape, size."""
        self.skipped = folder / "skipped.json"
        """How many files were skipped, by what they are."""
        # open
        self.base = folder / "base"
        """Folder: the pool as it stood before this batch."""
        # train
        self.checkpoint = folder / "checkpoint.ckpt"
        """The model, or ``NO_MODEL``."""
        self.last_checkpoint = folder / "checkpoint_last.ckpt"
        """The model after the last epoch of training."""
        self.candidate = folder / "checkpoint_candidate.ckpt"
        """A model that is better than the pool's own by the images of this batch, or ``NO_MODEL``."""
        self.space = folder / "space.json"
        """The embedding space."""
        self.loss = folder / "plots" / "loss.csv"
        """Step, epoch and loss of the training."""
        # embed
        self.embeddings = folder / "embeddings.parquet"
        """The candidates with their embeddings."""
        self.protected = folder / "protected.parquet"
        """The protected images with their embeddings."""
        self.examples = folder / "examples.parquet"
        """The examples of similar_to with their embeddings."""
        # plan
        self.plan = folder / "plan.json"
        """The method in use."""
        # rank
        self.columns = folder / "columns.parquet"
        """What is known of each candidate besides its embedding, where a setting asks for it."""
        self.near_duplicates = folder / "near_duplicates.parquet"
        """The candidates that are near-duplicates of an image of the pool or of another candidate."""
        self.ranking = folder / "ranking.parquet"
        """The candidates in order, best first."""
        self.trace = folder / "trace.parquet"
        """Which center covers each candidate, pick by pick."""
        self.excluded = folder / "excluded.parquet"
        """The candidates that are excluded before anything is picked, with kind and reason."""
        self.evaluation_sample = folder / "evaluation_sample.parquet"
        """Candidates drawn at random, with their distances to the pool and to each other."""
        self.selection_curve = folder / "plots" / "selection_curve.csv"
        """Step and distance of the ranking."""
        # sample
        self.data = folder / "data"
        """Folder: the picks, and their images if dump_dataset is set."""
        self.picks = self.data / "picks.parquet"
        """The picks with their embeddings."""
        self.sampled_images = self.data / "sampled"
        """Folder: copies of the picked images."""
        self.filenames = folder / "filenames"
        """Folder: lists of file names, one text file per kind."""
        self.removed_samples = folder / "removed_samples.csv"
        """Why each other image was not picked."""
        self.seen = folder / "seen.parquet"
        """What was offered for the first time and not taken: hashes, fates and distances, without names."""
        self.coverage = folder / "plots" / "coverage.csv"
        """Distances to the pool by number of picks, for the picks and for random ones."""
        self.numbers = folder / "numbers.json"
        """The run in numbers: all of them."""
        self.metrics = folder / "metrics.json"
        """The few of them that `dvc exp show` and `dvc metrics diff` compare."""
        # report
        self.report = folder / "report.html"
        """The page that shows the run."""
        self.report_facts = folder / "report.json"
        """The same facts for programs."""
