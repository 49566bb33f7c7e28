"""The configuration keys of Lightly's Docker that params.yaml does not have, and what becomes of each.

A key that is listed here is a folder to mount, has another name in params.yaml, is ignored, or is unsupported.
Every other key must be one of params.yaml.
"""

from fnmatch import fnmatchcase
from typing import NamedTuple


class Unsupported(NamedTuple):
    """A key that asks for a feature that datapool does not have."""

    harmless: tuple[object, ...]
    """The values that switch the feature off: with these the key is ignored."""
    instead: str
    """Why other values are refused, or what to use instead."""


FOLDERS = {"input_dir": ":ro", "shared_dir": "", "output_dir": ""}
"""Keys of folders that are mounted into the container, with the mode of the mount."""

RENAMED = {
    "lightly.pre_trained": "lightly.model.pretrained",
    "lightly.checkpoint": "checkpoint",
    "lightly.embeddings": "embeddings",
    "lightly.seed": "seed",
    "lightly.input_dir": "input_dir",
    "lightly.output_dir": "output_dir",
}

IGNORED = (
    "token",
    "upload_*",
    "worker.*",
    "datasource.*",
    "*dataset_id",
    "*new_dataset_name",
    "shutdown_when_job_finished",
    "num_processes",
    "num_threads",
    "dump_sampled_embeddings",
    "output_image_format",
    "memory_requirement_in_GB",
    "show_video_sampling_timeline",
    "corruptness_check.*",  # of video frames
    "pretagging_*",
    "scorer_config.*",
    "active_learning.score_name",
    "object_level.crop_dataset_name",
    "object_level.padding",
    "hydra.*",
    "lightly.hydra.*",
    "lightly.token",
    "lightly.upload",
    "lightly.resize",
    "lightly.checkpoint_callback.*",
    "lightly.summary_callback.*",
    "lightly.environment_variable_names.*",
    "lightly.loader.drop_last",
    "lightly.trainer.weights_summary",
    "lightly.trainer.enable_model_summary",
    "lightly.label_dir",
    "lightly.label_names_file",
    "lightly.crop_padding",
)
"""Patterns of keys that have no effect on a pool: Lightly's platform, its working files, details of unsupported features."""

_OTHER_AUGMENTATIONS = "the other augmentations of lightly.collate can be set"
_SCORES_FROM_CSV = "method=coral takes scores from a csv, active_learning_scores=FILE"

UNSUPPORTED = {
    "pretagging": Unsupported(
        (False, None), "no object detector is included; use method=coral with the scores of your own model"
    ),
    "object_level.task_name": Unsupported(
        (None,), "only whole images are picked; crop the objects and use the crops as images"
    ),
    "active_learning.task_name": Unsupported((None,), _SCORES_FROM_CSV),
    "scorer": Unsupported((None, "object-frequency"), _SCORES_FROM_CSV),
    "selected_sequence_length": Unsupported(
        (1,), "only single images are picked; rules.sequence_gap=N keeps picked frames of a sequence N apart"
    ),
    "existing_selection_column_name": Unsupported(
        (None,), "the images selected so far are the pool; set its datapool.name"
    ),
    "masked_out_column_name": Unsupported((None,), "list the images to consider in relevant_filenames_file=FILE"),
    "output_image_size": Unsupported((-1,), "dump_dataset copies the picked images as they are"),
    "datasource.enable_datapool_update": Unsupported(
        (True,), "picked images always join the pool; use another datapool.name for a trial"
    ),
    "lightly.model.width": Unsupported((1,), "choose the backbone by lightly.model.name, any of timm or torchvision"),
    "lightly.criterion.memory_bank_size": Unsupported((0,), "SimCLR takes its negatives from the mini-batch"),
    "lightly.loader.shuffle": Unsupported((True,), "training always shuffles the images, again in each epoch"),
    "lightly.collate.kernel_size": Unsupported((0.1, None), f"the blur scales with input_size; {_OTHER_AUGMENTATIONS}"),
    "lightly.collate.sigmas": Unsupported(([0.2, 2], None), f"the blur scales with input_size; {_OTHER_AUGMENTATIONS}"),
    "lightly.collate.rr_degrees": Unsupported((None,), "lightly.collate.rr_prob rotates images by 90 degrees"),
}


def is_ignored(key: str) -> bool:
    """Return whether a key has no effect, whatever its value is."""
    return any(fnmatchcase(key, pattern) for pattern in IGNORED)


def known_keys() -> list[str]:
    """Return the keys of this table that are no patterns, to suggest one where a key is misspelled."""
    return [key for key in (*IGNORED, *UNSUPPORTED, *RENAMED, *FOLDERS) if "*" not in key]
