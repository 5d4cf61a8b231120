"""Installs perception_r1_jax, its command-line tools under `tools/`, and its package data."""

from pathlib import Path

from setuptools import find_packages, setup

INSTALL = [
    "absl-py>=2.1,<3",
    "flax>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "httpx2>=2.16,<3",
    "jax>=0.10.2,<0.13",
    "jaxtyping>=0.3.4,<0.4",
    "jinja2>=3.1,<4",
    "math-verify>=0.9,<0.10",
    "ml-collections>=1.1,<2",
    "ml-dtypes>=0.5,<0.7",
    "numpy>=2.2,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=11,<14",
    "protobuf>=5.29.6,<8",
    "pyarrow>=20,<27",
    "rich>=13.9,<16",
    "safetensors>=0.8,<0.9",
    "scipy>=1.15,<2",
    "sentencepiece>=0.2.1,<0.3",
    "tensorboardX>=2.6.4,<3",
    "tensorstore>=0.1.80,<0.2",
    "transformers>=5.20,<6",
]

setup(
    name="perception_r1_jax",
    version="0.1.0",
    description="Perception-R1 in JAX: GRPO for Qwen2.5-VL with a visual perception reward from a judge on the mesh.",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["perception_r1_jax*", "tools*"]),
    include_package_data=True,
    package_data={"perception_r1_jax": ["assets/**/*", "judge/*.json", "report/templates/*"]},
    install_requires=INSTALL,
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "plan": ["jax[tpu]>=0.10.2,<0.13"],  # libtpu runs without a TPU; jax says which version can be read back
        "test": [
            "beartype>=0.20,<0.24",
            "pytest>=8.3,<10",
            "pytest-xdist>=3.7,<4",
            "ruff>=0.12,<0.18",
            "setuptools>=77",
            "tensorboard>=2.19,<3",
        ],
        "torch": ["torch>=2.7,<3"],
    },
)
