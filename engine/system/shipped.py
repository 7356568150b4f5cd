"""Shipped files: where the configuration, the search spaces, the prompts and kimi_mini are.

In a checkout, also after an editable install, they are in `experiments/` and `search_spaces/` beside the packages. A wheel
has the same two folders in `headrace/` beside the packages (see setup.py).

Files that are meant to be shared name a place under this folder with `HERE`, and one in the user's home with `~`.
"""

from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[2]  # the folder of `engine` and `harness`, for the PYTHONPATH of a child
_WHEEL = PACKAGES / "headrace"
IN_CHECKOUT = not (_WHEEL / "experiments").is_dir()
ROOT = PACKAGES if IN_CHECKOUT else _WHEEL  # the folder of `experiments` and `search_spaces`

EXPERIMENTS = ROOT / "experiments"
SEARCH_SPACES = ROOT / "search_spaces"
PROMPTS = EXPERIMENTS / "prompts"
KIMI_MINI = EXPERIMENTS / "kimi_mini" / "checkpoint"
EVALUATION_TEXTS = PROMPTS / "headrace_v1.yaml"
REHEARSAL_TEXTS = PROMPTS / "rehearsal_v1.yaml"
JSON_PROMPTS = PROMPTS / "json_v1.yaml"

HERE = "${root:}"  # stands for `ROOT` in the paths of manifests and setting files


def portable_path(path: Path) -> str:
    """An absolute path as a text for other machines: with `HERE` under `ROOT`, with `~` in the home folder."""
    for place, name in ((ROOT, HERE), (home(), "~")):
        if place is not None and path.is_relative_to(place):
            return f"{name}/{path.relative_to(place)}"
    return str(path)


def located(text: str) -> Path:
    """The path of `portable_path`'s text here."""
    path = Path(text.replace(HERE, str(ROOT), 1))
    return path if home() is None else path.expanduser()


def home() -> Path | None:
    """The user's home folder; None for an account without one."""
    try:
        return Path.home()
    except RuntimeError:
        return None
