"""The peers' side of gpu.py: training with torch.compile, bfloat16 autocast and SDPA.

`python gpu_peer.py JOB`, a JSON object; runs in whatever environment has PyTorch and the library.
"""

import contextlib
import json
import math
import statistics
import sys
import time

import torch
from gpu_ours import TOY
from peer_torch import build_open_clip, build_transformers

BUILD = {"open_clip": build_open_clip, "transformers": build_transformers}
TOY_SPEC = TOY | {"embed_dim": 32}
TOY_SPEC |= {"vision": TOY["vision"] | {"kind": "vit"}, "text": TOY["text"] | {"causal": True}}


def train_rate(library, spec, batch_size, device):
    """Pairs a second of a whole update."""
    torch.manual_seed(0)
    _, model, step_loss, _ = BUILD[library](spec)
    model.to(device).train()
    size, length = spec["image_size"], spec["context_length"]
    images = torch.randn(batch_size, 3, size, size, device=device)
    tokens = torch.randint(1, spec["vocab_size"] - 1, (batch_size, length), device=device)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}],
        lr=1e-5,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=device == "cuda",
    )
    compiled = torch.compile(step_loss)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = compiled(images, tokens)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    wait()
    found = []
    for _ in range(3):
        begun = time.perf_counter()
        for _ in range(5):
            step()
        wait()
        found.append((time.perf_counter() - begun) / 5)
    return batch_size / statistics.median(found)


def main():
    job = json.loads(sys.argv[1])
    with contextlib.suppress(ImportError):  # a normal torchvision needs no such help
        import torchvision_operators  # noqa: F401
    torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = TOY_SPEC if job["toy"] else job["config"]
    if spec["vision"].get("pool") == "attention":
        print(json.dumps({"skipped": "this architecture is timm's there, and is not compared"}))
        return
    best = {"skipped": "not even the smallest batch fits"}
    batch = 16 if job["toy"] else 128
    while batch <= (16 if job["toy"] else 16_384):
        try:
            rate = train_rate(job["library"], spec, batch, device)
        except ImportError as error:
            print(json.dumps({"skipped": f"{job['library']} is not installed: {error}"}))
            return
        except torch.OutOfMemoryError:
            break
        if rate > best.get("samples_per_second", 0):
            best = {"samples_per_second": rate, "batch_size": batch}
        torch.cuda.empty_cache()
        torch.compiler.reset()
        batch *= 2
    print(json.dumps(best))


if __name__ == "__main__":
    main()
