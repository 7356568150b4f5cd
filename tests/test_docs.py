"""Documentation: links and anchors lead somewhere, examples run, tables and lists say what the code says."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import runpy
import shlex
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from test_structure import ORDER
from tiny import CONFIGS

from engine import Judge, Knobs, Measurement
from engine.knobs import REMOVED
from harness.propose.external import checked_answer
from harness.results.columns import NAMES, ORIGINS, STATUSES
from harness.space.parse import BOUNDS, space_from_config
from harness.study.engines import CommandEngine

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted(DOCS.rglob("*.md")))
    if p.exists()
]  # fmt: skip
NAMED = {p.relative_to(ROOT).as_posix(): p for p in PAGES}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ELSEWHERE = ("curl ", "git clone ", "hf download ", "optuna-dashboard ")  # not this project's commands
OTHER_COMMANDS = (
    *ELSEWHERE,
    "cd ",
    "cp ",
    "chmod ",
    "python3 -m venv ",
    "source ",
    "open ",
    "export ",
    "unset ",
    "git worktree ",
)
TESTED_COMMANDS = ("python -m ", "PYTHONPATH=. python -m ", ".venv/bin/", "pip install ", "make ", "headrace ")


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@functools.cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(text_of(page)) if name == language]


def test_every_page_is_linked_from_the_index_or_a_page_of_its_folder() -> None:
    for page in DOCS.rglob("*.md"):
        assert page == DOCS / "index.md" or any(
            page == (other.parent / target.partition("#")[0]).resolve()
            for other in (DOCS / "index.md", page.parent / "index.md")
            for target in LINK.findall(text_of(other))
        ), page


@pytest.mark.parametrize("name", NAMED)
def test_links_lead_somewhere(name: str) -> None:
    page = NAMED[name]
    for target in LINK.findall(BLOCK.sub("", text_of(page))):
        if ":" in target:
            parts = urlsplit(target)
            assert parts.scheme in ("http", "https") and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), target
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists() and place.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(place), f"{target}: {place.name} has {sorted(anchors(place))}"


@pytest.mark.parametrize("name", NAMED)
def test_shell_lines_can_be_pasted(name: str) -> None:
    """Each line is a command that test_commands.py tries, or one of a few others. zsh takes neither comments at the end
    of a line nor unquoted brackets."""
    for block in blocks(NAMED[name], "sh"):
        if block.startswith("#!"):
            continue
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            assert line.startswith((*TESTED_COMMANDS, *OTHER_COMMANDS)), line
            assert " #" not in line and not re.search(r"[\[\]*?]", re.sub(r"'[^']*'|\"[^\"]*\"", "", line)), line
        assert max(map(len, block.splitlines())) <= 80, block


@pytest.mark.parametrize("name", NAMED)
def test_output_samples_fit_a_terminal(name: str) -> None:
    for block in blocks(NAMED[name], ""):
        assert max(map(len, block.splitlines())) <= 80, block


def test_the_knobs_are_current() -> None:
    text = text_of(DOCS / "knobs.md")
    assert Knobs.table() in text, "paste the output of `python -m engine knobs` into docs/knobs.md"
    gone = text.partition("## Removed knobs")[2]
    assert [name for name in REMOVED if f"`{name}`" not in gone] == []


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    whole = Judge.load
    monkeypatch.setattr(Judge, "load", lambda path: Judge(whole(path).texts[:1]))
    for page in ("engine.md", "results.md"):
        for number, example in enumerate(blocks(DOCS / page, "python")):
            script = tmp_path / f"{page}-{number}.py"
            script.write_text(example)
            result = runpy.run_path(str(script))
            assert page != "engine.md" or result["e"].stats.hits > 0


def test_the_engine_of_own_engine_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks(DOCS / "own-engine.md", "python")
    (tmp_path / "my_engine.py").write_text(example)
    spec = importlib.util.spec_from_file_location("my_engine", tmp_path / "my_engine.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    measured = module.Mine.load("checkpoint", Knobs(cache_gb=2.0)).measure(None)
    assert isinstance(measured, Measurement) and measured.decode_tok_s == 7


def test_the_command_of_own_engine_answers(tmp_path: Path) -> None:
    (script,) = (block for block in blocks(DOCS / "own-engine.md", "sh") if block.startswith("#!"))
    path = tmp_path / "measure"
    path.write_text(script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    engine = CommandEngine(shlex.quote(str(path)))
    assert engine.footprint("checkpoint", Knobs()).predicted_peak_gb == 0
    answer = engine.measure({"checkpoint": "checkpoint", "judge": "texts", "knobs": Knobs().as_dict()})
    assert Measurement.from_mapping(answer).perplexity == 17


def test_the_answer_of_own_proposer_is_accepted() -> None:
    (answer,) = blocks(DOCS / "own-proposer.md", "json")
    space = space_from_config({"cache_gb": [0.01, 0.04], "read_threads": {"type": "int", "low": 1, "high": 16}}, {}, {})
    found = checked_answer(json.loads(answer), space, {})
    assert found.refused == () and len(found.settings) == len(found.changes) == 1


def test_the_rooms_are_those_of_the_source() -> None:
    text = text_of(DOCS / "developing.md")
    for package, end in (("engine", "### harness"), ("harness", "## How to")):
        section = text.partition(f"### {package}\n")[2].partition(end)[0]
        listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)))
        rooms = [name for name in ORDER[package] if (ROOT / package / name).is_dir()]
        assert listed == rooms


def test_files_named_in_the_docs_exist() -> None:
    named = re.compile(r"`((?:engine|harness|tests|experiments|search_spaces|notebooks)/[\w./]+\.\w+)`")
    for page in PAGES:
        for name in named.findall(text_of(page)):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_lists_are_those_of_the_code() -> None:
    models = text_of(DOCS / "models.md")
    assert [c["model_type"] for c in CONFIGS.values() if f"`{c['model_type']}`" not in models] == []
    search = text_of(DOCS / "search.md")
    assert [name for name in BOUNDS if f"| `{name}` |" not in search] == []


def test_the_glossary_has_every_term_once() -> None:
    text = text_of(DOCS / "glossary.md")
    terms = [t for row in re.findall(r"^\| (?!term|---)(.+?) \|", text, re.MULTILINE) for t in row.split(", ")]
    assert sorted(t for t in set(terms) if terms.count(t) > 1) == []
    for word in (*ORIGINS, *STATUSES, "undecided", "hypervolume", "rejected pass", "exact set", "slot pool", "level"):
        assert f"`{word}`" in text or word in terms, word
    columns = [t.strip("`") for t in terms if t.startswith("`") and "_" in t]
    assert [c for c in columns if c not in (*NAMES, "ceiling_tok_s", "as_is", "stale_gate")] == []


def test_published_bits_are_in_the_evidence() -> None:
    """Every plan of the published runs has its row, with its figures."""
    text = text_of(DOCS / "evidence" / "precision.md")
    for file in ("kimi_mini.json", "kimi_mini_store.json"):
        found = json.loads((ROOT / "results" / "published" / "bench_bits" / file).read_text())
        for row in found["rows"]:
            middle = sorted(row["kl"])[len(row["kl"]) // 2]
            name = next(iter(row.values()))
            assert f"| {name} | {row['average_bits']:.3g} |" in text and f"{middle:.4f}" in text, name


def test_the_files_of_a_published_study_are_listed() -> None:
    table = text_of(DOCS / "results.md").partition("## Files of a study")[2].partition("\n## ")[0]
    for path in (ROOT / "results" / "published" / "demo_ssd_0.1").iterdir():
        assert f"`{path.name}`" in table or f"`{path.name}/" in table or path.suffix == ".svg", path.name


def test_documents_are_found_by_git() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in NAMED if name not in listed] == []
