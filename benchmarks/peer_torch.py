"""The peer of train_step.py: the same shapes in open_clip, or transformers where that is missing.

Runs in an environment of its own (PyTorch is no dependency of ours) as a worker: reads a JSON
request a line, answers with a JSON line. `python peer_torch.py SPEC`, where SPEC is the JSON that
train_step.py sends.
"""

import contextlib
import json
import math
import sys
import time

import torch


def build_open_clip(spec):
    """An open_clip model of the spec's shape, and its loss."""
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision, text = spec["vision"], spec["text"]
    is_resnet = vision["kind"] == "resnet"
    layers, width = vision["layers"], vision["width"]
    feature = width * 32 if is_resnet else width
    model = CLIP(
        spec["embed_dim"],
        CLIPVisionCfg(
            layers=tuple(layers) if is_resnet else layers,
            width=width,
            head_width=feature // vision["heads"],
            mlp_ratio=4.0,
            patch_size=vision.get("patch_size", 32),
            image_size=spec["image_size"],
        ),
        CLIPTextCfg(
            context_length=spec["context_length"],
            vocab_size=spec["vocab_size"],
            width=text["width"],
            heads=text["heads"],
            layers=text["layers"],
            no_causal_mask=not text["causal"],
        ),
        output_dict=True,
    )
    loss = open_clip.ClipLoss()

    def step_loss(images, tokens):
        out = model(images, tokens)
        return loss(out["image_features"], out["text_features"], out["logit_scale"])

    return f"open_clip {open_clip.__version__}", model, step_loss, model.encode_image


def build_transformers(spec):
    """A transformers CLIPModel of the spec's shape (ViT only)."""
    import transformers
    from transformers import CLIPConfig, CLIPModel

    vision, text = spec["vision"], spec["text"]
    config = CLIPConfig(
        projection_dim=spec["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": vision["mlp_dim"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
            "image_size": spec["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": "gelu",
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": text["mlp_dim"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": spec["vocab_size"],
            "max_position_embeddings": spec["context_length"],
            "hidden_act": "gelu",
        },
    )
    model = CLIPModel(config)

    def step_loss(images, tokens):
        return model(pixel_values=images, input_ids=tokens, return_loss=True).loss

    def encode(images):
        return model.get_image_features(pixel_values=images)

    return f"transformers {transformers.__version__}", model, step_loss, encode


def build(spec):
    with contextlib.suppress(ImportError):  # a normal torchvision needs no such help
        import torchvision_operators  # noqa: F401
    try:
        return build_open_clip(spec)
    except ImportError:
        return build_transformers(spec)


def main():
    spec = json.loads(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(spec["threads"])
    name, model, step_loss, encode = build(spec)
    size, batch = spec["image_size"], spec["batch_size"]
    images = torch.randn(batch, 3, size, size)
    tokens = torch.randint(1, spec["vocab_size"] - 1, (batch, spec["context_length"]))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}],
        lr=1e-5,
        betas=(0.9, 0.98),
        eps=1e-6,
    )

    def train(count):
        model.train()
        for _ in range(count):
            optimizer.zero_grad()
            step_loss(images, tokens).backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))

    def encode_images(count):
        model.eval()
        with torch.inference_mode():
            for _ in range(count):
                encode(images)

    work = {"train": train, "encode": encode_images}
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"name": name, "torch": torch.__version__, "parameters": parameters}))
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        begun = time.perf_counter()
        work[request["what"]](request["count"])
        seconds = (time.perf_counter() - begun) / request["count"]
        print(json.dumps({"seconds": seconds}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
