"""Candidates of the prompt laboratory, and the prompts that they are compared with."""

from pathlib import Path
from typing import NamedTuple

from clip_jax.evaluation.labels import Labels
from clip_jax.evaluation.prompts import Templates, get_templates
from clip_jax.evaluation.prompts.class_prompts import read_class_prompts
from clip_jax.evaluation.zero_shot import check_classnames, prompts_of_classes

ClassPrompts = list[tuple[str, ...]]  # the prompts of each of C classes


class Candidates(NamedTuple):
    """Prompts to choose from.

    Attributes:
      names: of K candidates: the different templates, then perhaps the file of class prompts.
      prompts: of each candidate.
      references: name -> prompts that are only compared with: OpenAI's, and, if a class has
        several names, all templates with the first.
      has_class_prompts: whether the last candidate is no template.
    """

    names: tuple[str, ...]
    prompts: list[ClassPrompts]
    references: dict[str, ClassPrompts]
    has_class_prompts: bool


def find_candidates(
    labels: Labels, templates: Templates, class_prompts: str | None = None
) -> Candidates:
    """Reads templates and perhaps a file of class prompts.

    Raises UserError: as `get_templates`, `check_classnames` or `read_class_prompts`.
    """
    templates = tuple(dict.fromkeys(get_templates(templates)))
    classes = check_classnames(labels.prompt_names)
    names, prompts = templates, [prompts_of_classes(classes, [each]) for each in templates]
    if class_prompts:
        names = (*names, f"class prompts of {Path(class_prompts).name}")
        prompts.append(read_class_prompts(class_prompts, labels.classes))
    references = {"openai": prompts_of_classes(classes, get_templates("openai"))}
    if any(len(each) > 1 for each in classes):
        first = [each[:1] for each in classes]
        references["first name of each class"] = prompts_of_classes(first, templates)
    return Candidates(names, prompts, references, bool(class_prompts))
