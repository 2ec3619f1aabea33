"""Rules of single layers that several timm image towers share."""

from collections.abc import Iterator

from clip_jax.weights.rules.table import Rule, affine


def convolution(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a convolution with a bias."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", "convolution"),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


def batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a batch normalisation: gain, offset and running statistics."""
    statistics = (("running_mean", "mean"), ("running_var", "var"))
    return *affine(theirs, ours), *(Rule(f"{theirs}.{a}", f"{ours}/{b}") for a, b in statistics)


def convolution_with_norm(theirs: str, ours: str, norm: str) -> tuple[Rule, ...]:
    """Rules of a convolution without a bias (`conv`) and its batch normalisation (`bn`)."""
    kernel = Rule(f"{theirs}.conv.weight", f"{ours}/kernel", "convolution")
    return kernel, *batch_norm(f"{theirs}.bn", norm)


def projection(kind: str) -> Iterator[Rule]:
    """Rules of open_clip's projection after the trunk, under `visual.head.`; "linear_bias" is the
    trunk's own head and has none."""
    if kind == "linear":
        yield Rule("visual.head.proj.weight", "vision/projection", "matrix")
    elif kind == "mlp_bias":
        yield Rule("visual.head.mlp.fc1.weight", "vision/projection_in", "matrix")
        yield Rule("visual.head.mlp.fc1.bias", "vision/projection_in_bias")
        yield Rule("visual.head.mlp.fc2.weight", "vision/projection_out", "matrix")
