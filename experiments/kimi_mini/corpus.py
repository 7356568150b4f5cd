"""kimi_mini's text: permissively licensed technical English out of Debian packages, and the King James Bible.

Built from package names alone, so nothing but the held-out text needs to be committed. A document is one page (one HTML
file, one manual page, the comments of one Go file, one AWS service, one chapter of the Bible). Navigation goes by three
rules: only the main part of a page is read, a short block on more than a tenth of a package's pages is dropped, and a
block of 60 characters or more is kept once in the whole corpus, so repeated boilerplate neither inflates the corpus nor
hands `xz` a free win on the held-out text. One document in 140 (by the hash of its name) is held out whole; those that
share more than a fifth of their eight-word shingles with the training text are thrown away.

Costs about 500 MB of downloads and five minutes on two cores. Needs a Debian or Ubuntu with apt-get and dpkg-deb.

    python -m experiments.kimi_mini.corpus --out corpus          # corpus/train.txt, heldout.txt, SOURCES.md
"""

import argparse
import gzip
import hashlib
import html
import json
import lzma
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

DOCUMENT_END = "\x00"  # between documents in train.txt and heldout.txt; no document contains it
HELD_OUT_ONE_IN = 140
DEDUPE_CHARS = 60
SOURCE_CAP_BYTES = 24_000_000  # no source may drown the others
HELD_OUT_DOCUMENT_CHARS = 64_000  # a longer document stays in the training text: one page must not be a third of the test


@dataclass(frozen=True)
class Source:
    package: str
    licence: str
    skip: str = r"^$"  # member paths left out: translations, release notes that repeat the pages, other licences


SOURCES = (
    Source("bible-kjv-text", "public domain"),
    Source("python3.11-doc", "PSF-2.0"),
    Source("postgresql-doc-15", "PostgreSQL"),
    Source("sqlite3-doc", "public domain"),
    Source("golang-1.19-src", "BSD-3-Clause", r"/(test|testdata|vendor)/|_test\.go$"),
    Source("perl-doc", "Artistic-1.0-Perl", r"perl(gpl|artistic)"),
    Source("rust-doc", "MIT OR Apache-2.0", r"/html/(core/(arch|core_arch|core_simd)|src|test|proc_macro)/|/core/simd/"),
    Source("nodejs-doc", "MIT", r"/all\.html"),
    Source("cmake-doc", "BSD-3-Clause"),
    Source("llvm-19-doc", "Apache-2.0 WITH LLVM-exception"),
    Source("clang-19-doc", "Apache-2.0 WITH LLVM-exception"),
    Source("erlang-doc", "Apache-2.0"),
    Source("apache2-doc", "Apache-2.0", r"/manual/(?!en/)"),
    Source("libboost1.74-doc", "BSL-1.0"),
    Source("ghc-doc", "BSD-3-Clause", r"/src/|/doc-index"),
    Source("tcl8.6-doc", "TCL"),
    Source("tk8.6-doc", "TCL"),
    Source("zsh-doc", "MIT-Modern-Variant"),
    Source("libcurl4-doc", "curl"),
    Source("libssl-doc", "Apache-2.0"),
    Source("libxml2-doc", "MIT"),
    Source("libhdf5-doc", "BSD-3-Clause"),
    Source("varnish-doc", "BSD-2-Clause"),
    Source("nim-doc", "MIT"),
    Source("cython-doc", "Apache-2.0"),
    Source("mypy-doc", "MIT"),
    Source("numba-doc", "BSD-2-Clause"),
    Source("sphinx-doc", "BSD-2-Clause"),
    Source("twisted-doc", "MIT"),
    Source("python-django-doc", "BSD-3-Clause"),
    Source("python-sqlalchemy-doc", "MIT"),
    Source("python-scipy-doc", "BSD-3-Clause"),
    Source("python-pandas-doc", "BSD-3-Clause", r"/cookbook"),
    Source("python-sympy-doc", "BSD-3-Clause"),
    Source("python-sklearn-doc", "BSD-3-Clause"),
    Source("python-skimage-doc", "BSD-3-Clause"),
    Source("python-statsmodels-doc", "BSD-3-Clause"),
    Source("python-ipython-doc", "BSD-3-Clause"),
    Source("python-astropy-doc", "BSD-3-Clause"),
    Source("python-setuptools-doc", "MIT"),
    Source("python-werkzeug-doc", "BSD-3-Clause"),
    Source("python-flask-doc", "BSD-3-Clause"),
    Source("python-jinja2-doc", "BSD-3-Clause"),
    Source("python-tornado-doc", "Apache-2.0"),
    Source("python-dask-doc", "BSD-3-Clause"),
    Source("python-xarray-doc", "Apache-2.0"),
    Source("python-h5py-doc", "BSD-3-Clause"),
    Source("python-cryptography-doc", "Apache-2.0 OR BSD-3-Clause"),
    Source("python-babel-doc", "BSD-3-Clause"),
    Source("python-scrapy-doc", "BSD-3-Clause"),
    Source("python-pymongo-doc", "Apache-2.0"),
    Source("python-pytest-doc", "MIT"),
    Source("python-attr-doc", "MIT"),
    Source("python-gevent-doc", "MIT"),
    Source("python-eventlet-doc", "MIT"),
    Source("python3-botocore", "Apache-2.0"),
    Source("nova-doc", "Apache-2.0"),
    Source("neutron-doc", "Apache-2.0"),
    Source("cinder-doc", "Apache-2.0"),
    Source("keystone-doc", "Apache-2.0"),
    Source("glance-doc", "Apache-2.0"),
    Source("heat-doc", "Apache-2.0"),
    Source("ironic-doc", "Apache-2.0"),
    Source("swift-doc", "Apache-2.0"),
    Source("python-openstackclient-doc", "Apache-2.0"),
    Source("ant-doc", "Apache-2.0"),
    Source("groovy-doc", "Apache-2.0"),
    Source("derby-doc", "Apache-2.0"),
    Source("libcommons-lang3-java-doc", "Apache-2.0"),
    Source("tomcat10-docs", "Apache-2.0"),
)
SKIP_ALWAYS = re.compile(
    r"(genindex|py-modindex|/search|searchindex|index-all|allclasses|allpackages|/_modules/|/_sources/|overview-tree"
    r"|package-tree|package-use|class-use|-frame|/src-html/|copyright|changelog|NEWS)",
    re.IGNORECASE,
)

DROPPED_TAGS = re.compile(r"<(script|style|head|nav|footer|aside|svg|button|math)\b.*?</\1\s*>|<!--.*?-->", re.S | re.I)
MAIN_START = re.compile(r'role="main"|<main\b|class="body"|id="content"|<h1\b', re.I)
MAIN_END = re.compile(r'class="sphinxsidebar|</main>|<footer\b|class="footer|class="navfooter', re.I)
PRE = re.compile(r"<pre\b.*?</pre\s*>", re.S | re.I)
BLOCK_TAG = re.compile(r"</?(p|div|h[1-6]|ul|ol|dl|table|section|article|blockquote|pre|dt|figure)\b[^>]*>", re.I)
LINE_TAG = re.compile(r"<(br|li|tr|dd)\b[^>]*>", re.I)
ANY_TAG = re.compile(r"<[^>]*>")


def html_text(page: str) -> str:
    """The main text of a page: blocks apart by a blank line, list items as "- ", code blocks as they stand."""
    page = DROPPED_TAGS.sub("", page)
    start, end = MAIN_START.search(page), MAIN_END.search(page)
    begin = 0 if start is None else start.start() if start[0].lower() == "<h1" else page.find(">", start.start()) + 1
    page = page[begin : end.start() if end and end.start() > begin else None]
    pieces, at = [], 0
    for code in PRE.finditer(page):
        pieces += [_flow(page[at : code.start()]), "\n\n" + ANY_TAG.sub("", code[0]) + "\n\n"]
        at = code.end()
    pieces.append(_flow(page[at:]))
    return re.sub(r"[¶#]$", "", html.unescape("".join(pieces)), flags=re.M).replace("\xa0", " ")


def _flow(markup: str) -> str:
    markup = re.sub(r"\s+", " ", markup)
    markup = BLOCK_TAG.sub("\n\n", markup)
    markup = LINE_TAG.sub(lambda tag: "\n- " if tag[1].lower() == "li" else "\n", markup)
    return re.sub(r"[ \t]*\n[ \t]*", "\n", ANY_TAG.sub("", markup).replace("</td>", " "))


def pod_text(pod: str) -> str:
    pod = re.sub(r"^=(?:head\d|item|over|back|for|begin|end|cut|pod|encoding)[ \t]*\d*", "", pod, flags=re.M)
    for _ in range(3):  # formatting codes nest
        pod = re.sub(r"\b[BCFILSX]<+ ?([^<>]*?) ?>+", r"\1", pod)
    return pod.replace("E<gt>", ">").replace("E<lt>", "<")


def man_text(page: str) -> str:
    page = re.sub(r"^'\\\".*\n|^\.\\\".*\n", "", page, flags=re.M)
    page = page.partition(".SH")[2]  # what comes before is the troff preamble
    page = re.sub(r"^\.(?:PP|LP|P|sp|TP|IP|Sp|Ip)\b.*$", "\n", page, flags=re.M)
    page = re.sub(r"^\.(?:SH|SS|B|I|BR|IR|BI|RB|CS|AP)[ \t]+(.*)$", r"\1", page, flags=re.M)
    page = re.sub(r"^[.'].*$", "", page, flags=re.M)
    page = re.sub(r"\\f(?:\(..|\[.*?\]|.)|\\s[-+]?\d|\\&|\\\||\\/", "", page)
    return re.sub(r"\\\*?\((?:..)", "", page.replace("\\-", "-").replace("\\e", "\\")).replace('"', '"')


GO_COMMENT = re.compile(r"((?:^[ \t]*//(?!go:|line).*\n){2,})((?:^\S.*\n)?)", re.M)


def go_text(source: str) -> str:
    """Doc comments, each followed by the line it documents."""
    blocks = [re.sub(r"^[ \t]*// ?", "", m[1], flags=re.M) + m[2] for m in GO_COMMENT.finditer(source)]
    return "\n\n".join(block for block in blocks if not block.startswith("Copyright"))


def aws_text(service: str) -> str:
    """The documentation strings of a botocore service description, each under its name."""

    def walk(name: str, node: object) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("documentation"), str):
                yield f"{name}\n{html_text(node['documentation']).strip()}"
            for key, child in node.items():
                yield from walk(key, child)

    return "\n\n".join(walk("", json.loads(service)))


READERS = (
    (re.compile(r"\.html?(\.en)?$"), html_text),
    (re.compile(r"\.pod$"), pod_text),
    (re.compile(r"\.(3|1|n)(tcl|tk|perl|ssl)?$"), man_text),
    (re.compile(r"\.go$"), go_text),
    (re.compile(r"/service-2\.json$"), aws_text),
)


def clean(text: str) -> list[str]:
    """Blocks of English: white space normalised; numbers, other scripts and endless words dropped."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.replace(DOCUMENT_END, "").replace("\r", "")):
        block = re.sub(r"[ \t]+$", "", block.expandtabs(4), flags=re.M).strip("\n")
        letters = sum(map(str.isalpha, block))
        foreign = len(block.encode()) - len(block)
        longest_word = max(map(len, block.split()), default=0)
        if (
            block.strip(" -")
            and foreign <= len(block) * 0.1
            and longest_word < 200
            and (len(block) < 80 or letters > len(block) / 2)
        ):
            blocks.append(block)
    return blocks


def package_documents(deb: Path, source: Source) -> list[tuple[str, list[str]]]:
    """(path, blocks) of each page in a package, sorted by path, site navigation removed."""
    if source.package == "bible-kjv-text":
        return bible_books(deb)
    pages = {}
    skip = re.compile(source.skip)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as unpack:
        assert unpack.stdout is not None
        with tarfile.open(fileobj=unpack.stdout, mode="r|") as members:
            for member in members:
                path = member.name.removesuffix(".gz")
                reader = next((read for pattern, read in READERS if pattern.search(path)), None)
                if not member.isfile() or reader is None or skip.search(path) or SKIP_ALWAYS.search(path):
                    continue
                raw = members.extractfile(member).read()  # type: ignore[union-attr]
                raw = gzip.decompress(raw) if member.name.endswith(".gz") else raw
                pages[path] = clean(reader(raw.decode("utf-8", "ignore")))
    pages_with = Counter(block for blocks in pages.values() for block in set(blocks) if len(block) < DEDUPE_CHARS)
    navigation = {block for block, count in pages_with.items() if count > max(20, len(pages) / 10)}
    return [(path, [b for b in blocks if b not in navigation]) for path, blocks in sorted(pages.items())]


def bible_books(deb: Path) -> list[tuple[str, list[str]]]:
    """The Bible's package holds a packed database; its own reader (package bible-kjv) prints it."""
    root = deb.parent / "bible"
    for package in (deb, next(deb.parent.glob("bible-kjv_*.deb"))):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    reader = [f"{root}/usr/bin/bible", "-p", f"{root}/usr/lib/", "-f", "-l5000", "gen1:1-rev22:21"]
    verses = subprocess.run(reader, check=True, capture_output=True, text=True).stdout.splitlines()
    books: dict[str, list[str]] = {}
    for verse in verses:
        book, _, rest = verse.partition(":")
        chapter = re.search(r"\d+$", book)
        if chapter:  # one document a chapter, so that some chapters can be held out
            books.setdefault(book, []).append(f"{chapter[0]}:{rest}")
    return [(book, ["\n".join(lines)]) for book, lines in books.items()]


def download(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    have = {deb.name.partition("_")[0] for deb in folder.glob("*.deb")}
    missing = [s.package for s in (*SOURCES, Source("bible-kjv", "")) if s.package not in have]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=folder, check=True)


def once(documents: Iterable[tuple[str, list[str]]], seen: set[bytes]) -> Iterator[tuple[str, str]]:
    """Documents without the long blocks that an earlier document already had."""
    for path, blocks in documents:
        kept = []
        for block in blocks:
            if len(block) >= DEDUPE_CHARS:
                key = hashlib.blake2b(block.encode(), digest_size=10).digest()
                if key in seen:
                    continue
                seen.add(key)
            kept.append(block)
        text = "\n\n".join(kept)
        if sum(len(b) for b in kept if len(b) >= DEDUPE_CHARS) >= max(
            200, len(text) / 3
        ):  # else an index or a list of names
            yield path, text


def name_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def shingles(text: str) -> Iterator[int]:
    words = text.split()
    return (hash(tuple(words[i : i + 8])) for i in range(len(words) - 7))


def novel(held_out: list[str], train: Iterable[str]) -> list[str]:
    """The held-out documents of which at most a fifth of the shingles also stand in the training text."""
    own = [set(shingles(text)) for text in held_out]
    wanted = set().union(*own)
    common = {s for text in train for s in shingles(text) if s in wanted}
    return [text for text, mine in zip(held_out, own, strict=True) if len(mine & common) <= len(mine) / 5]


def build(out: Path, workers: int) -> None:
    debs = out / "debs"
    download(debs)
    files = {s.package: next(debs.glob(f"{s.package}_*.deb")) for s in SOURCES}
    seen: set[bytes] = set()
    train: list[str] = []
    set_aside: dict[int, str] = {}
    rows = []
    with ProcessPoolExecutor(workers) as pool:
        for source, documents in zip(SOURCES, pool.map(package_documents, files.values(), SOURCES), strict=True):
            size, count = 0, 0
            for path, text in once(documents, seen):
                if size > SOURCE_CAP_BYTES:
                    break
                key = name_hash(f"{source.package}/{path}")
                if key % HELD_OUT_ONE_IN == 0 and len(text) <= HELD_OUT_DOCUMENT_CHARS:
                    set_aside[key] = text
                else:
                    train.append(text)
                size, count = size + len(text.encode()), count + 1
            version = files[source.package].name.split("_")[1].replace("%3a", ":")
            rows.append(f"| {source.package} | {version} | {source.licence} | {count} | {size / 1e6:.2f} |")
            print(rows[-1], flush=True)
    in_hash_order = [text for _, text in sorted(set_aside.items())]  # so that any beginning is a fair sample
    held_out = novel(in_hash_order, train)
    (out / "train.txt").write_text(DOCUMENT_END.join(train))
    held_out_bytes = DOCUMENT_END.join(held_out).encode()
    (out / "heldout.txt.xz").write_bytes(lzma.compress(held_out_bytes, preset=9 | lzma.PRESET_EXTREME))
    train_mb, held_out_mb = (out / "train.txt").stat().st_size / 1e6, len(held_out_bytes) / 1e6
    summary = (
        f"Training text {train_mb:.1f} MB in {len(train)} documents;"
        f" held out {held_out_mb:.2f} MB in {len(held_out)} documents."
    )
    (out / "SOURCES.md").write_text(
        "# Sources of kimi_mini's text\nWritten by `python -m experiments.kimi_mini.corpus --out corpus`: Debian packages,"
        " the licence of the documentation\ntaken from them, pages and MB (10^6 bytes) after de-duplication, held-out pages"
        " included."
        "\n\n| package | version | licence | pages | MB |\n|---|---|---|---|---|\n" + "\n".join([*rows, "", summary, ""])
    )
    print(summary)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    build(arguments.out, arguments.workers)
