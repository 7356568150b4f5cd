"""Packages of the wheel: the code, and the folders of the checkout that it ships as data below `headrace/`.

Everything else is in pyproject.toml. The data folders stay at the top of the checkout, where an editable install uses them;
`engine.system.shipped` is the one place that says where they are.
"""

from glob import glob

from setuptools import Extension, find_packages, setup

EXPERIMENTS = ("*.yaml", *(f"{group}/*.yaml" for group in ("device", "model", "prompts", "quality", "study")))

NATIVE = Extension(
    "engine.native._core",
    sorted(glob("engine/native/*.cpp")),
    depends=sorted(glob("engine/native/*.hpp")),
    define_macros=[("Py_LIMITED_API", "0x030B0000"), ("NDEBUG", None)],
    extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-Wno-psabi", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
    language="c++",
    py_limited_api=True,
)

setup(
    ext_modules=[NATIVE],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
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
