"""Packages of the wheel: the code, and the folders of the checkout that it ships as data below `headrace/`.

Everything else is in pyproject.toml. The data folders stay at the top of the checkout, where an editable install uses them;
`engine.system.shipped` is the one place that says where they are.
"""

from setuptools import find_packages, setup

EXPERIMENTS = ("*.yaml", *(f"{group}/*.yaml" for group in ("device", "model", "prompts", "quality", "study")))

setup(
    packages=[*find_packages(include=["engine*", "harness*"]), "headrace.experiments", "headrace.search_spaces"],
    package_dir={"headrace.experiments": "experiments", "headrace.search_spaces": "search_spaces"},
    package_data={
        "engine": ["py.typed"],
        "engine.routing": ["calibration.txt"],
        "harness": ["py.typed"],
        "harness.show.page": ["*.css", "*.j2", "*.js"],
        "headrace.experiments": [*EXPERIMENTS, "kimi_mini/checkpoint/*"],
        "headrace.search_spaces": ["*.yaml"],
    },
)
