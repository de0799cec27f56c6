"""Packaging of outmodal. Tool settings and build requirements are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (ROOT / "src/outmodal/__init__.py").read_text(), re.MULTILINE
)[1]

setup(
    name="outmodal",
    version=VERSION,
    description="Pretrain encoders for new modalities against frozen encoders of known ones",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "outmodal": ["py.typed", "*.pyi", "slurm/*"],
        "outmodal.data": ["embedded_files/*", "clip_vocabulary/*"],
        "outmodal.train": ["recipes/*.yaml"],
        "outmodal.launch.report": ["assets/*"],
        "outmodal.launch.reproduce": ["tables/*.yaml"],
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=4.57,<6",
        "accelerate>=1.10",
        "deepspeed>=0.18",
        "webdataset>=1.0,<2",
        "pydantic>=2.10,<3",
        "tyro>=1.0,<2",
        "PyYAML>=6",
        "numpy>=2",
        "scipy>=1.13",
        "scikit-learn>=1.5",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "pillow>=11",
        "simplejpeg>=1.8",
        "soundfile>=0.13",
        "av>=14",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
        "tqdm>=4.66",
    ],
    extras_require={
        # CUDA builds of torch bring their own Triton; this is for those that do not.
        "cuda": ["triton>=3.6"],
        "onnx": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.21"],
        # Shards on http(s) and S3.
        "remote": ["fsspec>=2025.3", "aiohttp>=3.10", "s3fs>=2025.3"],
        # Sources of data sets in Parquet files.
        "parquet": ["pyarrow>=17"],
        "test": [
            "pyarrow>=17",
            "fsspec>=2025.3",
            "aiohttp>=3.10",
            "s3fs>=2025.3",
            "moto[server]>=5.1",
            "torchmetrics>=1.6",
            "onnx>=1.18",
            "onnxscript>=0.5",
            "onnxruntime>=1.21",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.110",
            "ruff>=0.9",
            "mypy>=1.15",
            "types-PyYAML",
            "types-tqdm",
            "build>=1.2",
        ],
    },
    entry_points={"console_scripts": ["outmodal = outmodal.launch.cli:main"]},
)
