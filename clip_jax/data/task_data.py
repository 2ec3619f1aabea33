"""Configuration of the data that an evaluation reads, and of its class labels."""

from dataclasses import dataclass
from typing import Annotated, Literal

from clip_jax.arguments import POSITIVE, Checked
from clip_jax.data.options import SourceConfig


@dataclass(frozen=True)
class TaskOptions(Checked):
    """Labels, prompts and batches of an evaluation."""

    label_key: str = "class"  # metadata field that holds the class: its name or number
    # Labels are read as class names, as class numbers (0 is the first line of `classnames`), or
    # as whichever fits; docs/data.md has the table.
    labels: Literal["auto", "names", "numbers"] = "auto"
    # File, one name per line or a .json; or a published set, such as "food101"; None: the names
    # found in the data.
    classnames: str | None = None
    templates: str = "openai"  # name of a set of prompt templates, a published set, or a file
    batch_size: Annotated[int, POSITIVE] = 256  # images
    # Metadata field that holds each image's group, such as "region", for the accuracy of each group
    # and for skew; "npy[0]" is the first number of the .npy beside an image in a tar.
    group_key: str | None = None
    left_out_group: str | None = None  # its images count in no group
    # Text embeddings lose what tells these groups of people apart, and figures are given before and
    # after: "gender", "race", or a file whose first line names the groups, as "male,female".
    project_out: str | None = None
    skew_k: Annotated[int, POSITIVE] = 1000  # images at the top of a ranking whose groups count
    # Labelled images from which linear_probe, knn and few_shot learn, read as the others are, and
    # those on which a penalty is chosen; None: a tenth of the training images.
    train_data: str | None = None
    validation_data: str | None = None
    # Learning takes embeddings, or the image tower's features before its projection.
    features: Literal["projected", "unprojected"] = "projected"


@dataclass(frozen=True)
class TaskData(TaskOptions, SourceConfig):
    """A source with the options of its evaluation."""
