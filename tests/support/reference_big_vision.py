"""Tiny files of big_vision's two towers, and their forward pass restated in float64."""

import dataclasses

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a tiny file; the options are those of big_vision's models."""

    grid: int = 4
    patch: int = 8
    width: int = 48
    depth: int = 3
    heads: int = 3
    mlp: int = 104
    text_width: int = 32
    text_depth: int = 2
    text_heads: int = 4
    text_mlp: int = 80
    length: int = 9
    vocabulary: int = 97
    image_head: int | None = None
    text_head: int | None = 48
    pool: str = "map"  # or "tok", "gap"
    bias: bool = True


LIT = Sizes(pool="tok", bias=False)


def make_file(sizes: Sizes, seed: int = 0) -> Arrays:
    """Looped layers, with a random value everywhere."""
    rng, file = np.random.default_rng(seed), {}

    def put(name: str, *shape: int, scale: float = 0.3, mean: float = 0.0) -> None:
        file[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    def norm(name: str, width: int) -> None:
        put(f"{name}/scale", width, scale=0.2, mean=1.0)
        put(f"{name}/bias", width)

    def dense(name: str, fan_in: int, *out: int) -> None:
        put(f"{name}/kernel", fan_in, *out, scale=fan_in**-0.5)
        put(f"{name}/bias", *out)

    def attention_and_mlp(name: str, width: int, heads: int, mlp: int) -> None:
        attention = f"{name}/MultiHeadDotProductAttention_0"
        for part in ("query", "key", "value"):
            dense(f"{attention}/{part}", width, heads, width // heads)
        put(f"{attention}/out/kernel", heads, width // heads, width, scale=width**-0.5)
        put(f"{attention}/out/bias", width)
        dense(f"{name}/MlpBlock_0/Dense_0", width, mlp)
        dense(f"{name}/MlpBlock_0/Dense_1", mlp, width)

    def encoder(name: str, depth: int, width: int, heads: int, mlp: int) -> None:
        for n in range(depth):
            attention_and_mlp(f"{name}/encoderblock_{n}", width, heads, mlp)
            norm(f"{name}/encoderblock_{n}/LayerNorm_0", width)
            norm(f"{name}/encoderblock_{n}/LayerNorm_1", width)
        norm(f"{name}/encoder_norm", width)

    s = sizes
    put("img/embedding/kernel", s.patch, s.patch, 3, s.width, scale=0.1)
    put("img/embedding/bias", s.width)
    put("img/pos_embedding", 1, s.grid**2, s.width)
    encoder("img/Transformer", s.depth, s.width, s.heads, s.mlp)
    if s.pool == "map":
        attention_and_mlp("img/MAPHead_0", s.width, s.heads, s.mlp)
        norm("img/MAPHead_0/LayerNorm_0", s.width)
        put("img/MAPHead_0/probe", 1, 1, s.width)
    if s.pool == "tok":
        put("img/cls", 1, 1, s.width)
    if s.image_head:
        dense("img/head", s.width, s.image_head)
    put("txt/Embed_0/embedding", s.vocabulary, s.text_width)
    put("txt/pos_embedding", 1, s.length, s.text_width)
    encoder("txt/Encoder_0", s.text_depth, s.text_width, s.text_heads, s.text_mlp)
    if s.text_head:
        dense("txt/head", s.text_width, s.text_head)
    put("t", 1, mean=np.log(100), scale=0.0)
    if s.bias:
        put("b", 1, mean=-10.0)
    return dict(sorted(file.items()))


def scanned(file: Arrays) -> Arrays:
    """The same with the layers of each tower stacked."""
    stacked, rest = {}, {}
    for name, array in file.items():
        tower, found, inside = name.partition("/encoderblock_")
        if found:
            number, _, inside = inside.partition("/")
            key = f"{tower}/encoderblock/{inside}"
            stacked.setdefault(key, {})[int(number)] = array
        else:
            rest[name] = array
    for name, layers in stacked.items():
        rest[name] = np.stack([layers[n] for n in range(len(layers))])
    return dict(sorted(rest.items()))


class Restated:
    """Both towers of big_vision in numpy, float64, on a file of looped layers."""

    def __init__(self, file: Arrays):
        self.file = {name: array.astype(np.float64) for name, array in file.items()}

    def norm(self, name: str, x):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return normed * self.file[f"{name}/scale"] + self.file[f"{name}/bias"]

    def heads(self, name: str, x):
        kernel, bias = self.file[f"{name}/kernel"], self.file[f"{name}/bias"]
        return np.tensordot(x, kernel, axes=1) + bias

    def attention(self, name: str, x, memory):
        name = f"{name}/MultiHeadDotProductAttention_0"
        query, key, value = (
            self.heads(f"{name}/{part}", inputs)
            for part, inputs in (("query", x), ("key", memory), ("value", memory))
        )
        scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
        out = np.tensordot(mixed, self.file[f"{name}/out/kernel"], axes=2)
        return out + self.file[f"{name}/out/bias"]

    def mlp(self, name: str, x):
        x = self.heads(f"{name}/MlpBlock_0/Dense_0", x)
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return self.heads(f"{name}/MlpBlock_0/Dense_1", x)

    def encoder(self, name: str, x):
        depth = sum(key.startswith(f"{name}/encoderblock_") for key in self.file) // 16
        for n in range(depth):
            block = f"{name}/encoderblock_{n}"
            y = self.norm(f"{block}/LayerNorm_0", x)
            x = x + self.attention(block, y, y)
            x = x + self.mlp(block, self.norm(f"{block}/LayerNorm_1", x))
        return self.norm(f"{name}/encoder_norm", x)

    def head(self, root: str, x):
        if f"{root}/head/kernel" in self.file:
            x = self.heads(f"{root}/head", x)
        return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)

    def image(self, images):
        file, kernel = self.file, self.file["img/embedding/kernel"]
        patch, grid = kernel.shape[0], images.shape[1] // kernel.shape[0]
        cells = [
            images[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
            for y in range(grid)
            for x in range(grid)
        ]
        x = np.stack([np.tensordot(cell, kernel, axes=3) for cell in cells], axis=1)
        x = x + file["img/embedding/bias"] + file["img/pos_embedding"]
        if "img/cls" in file:
            x = np.concatenate([np.tile(file["img/cls"], [len(x), 1, 1]), x], axis=1)
        x = self.encoder("img/Transformer", x)
        if "img/MAPHead_0/probe" in file:
            probe = np.tile(file["img/MAPHead_0/probe"], [len(x), 1, 1])
            x = self.attention("img/MAPHead_0", probe, x)
            y = self.norm("img/MAPHead_0/LayerNorm_0", x)
            x = (x + self.mlp("img/MAPHead_0", y))[:, 0]
        else:
            x = x[:, 0] if "img/cls" in file else x.mean(axis=1)
        return self.head("img", x)

    def text(self, tokens):
        x = self.file["txt/Embed_0/embedding"][tokens] + self.file["txt/pos_embedding"]
        return self.head("txt", self.encoder("txt/Encoder_0", x)[:, -1])

    def __call__(self, images, tokens) -> Arrays:
        image, text = self.image(images), self.text(tokens)
        logits = np.exp(self.file["t"]) * image @ text.T + self.file.get("b", 0.0)
        return {"image": image, "text": text, "logits": logits}
