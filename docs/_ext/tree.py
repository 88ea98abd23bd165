"""Pages that live beside what they describe (an example's README, the benchmarks') as pages of the site.

They are copied below ``tree/`` before the site is read; links between pages lead to pages, links to other files become the
file's path in the source.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
TREE = DOCS / "tree"
PAGES = ("examples/*/README.md", "benchmarks/README.md", "benchmarks/*/README.md", "plugins/README.md",
         "calibration/README.md", "CONTRIBUTING.md", "CHANGELOG.md", "edgelstm/frontends/*/README.md",
         "edgelstm/pipeline/*/*/README.md")  # fmt: skip
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]\n]*)\]\((?P<to>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
PICTURES = (".svg", ".png", ".gif")


def copy_pages(app: Any) -> None:
    """Fill ``tree/`` anew; what it holds is never committed."""
    shutil.rmtree(TREE, ignore_errors=True)
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            place = TREE / page.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(page, place)
            for found in LINK.finditer(page.read_text(encoding="utf-8")):
                picture = Path(os.path.normpath(page.parent / found["to"]))
                if picture.suffix in PICTURES and picture.is_file() and ROOT in picture.parents:
                    copied = TREE / picture.relative_to(ROOT)
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(picture, copied)


def rewrite_links(app: Any, docname: str, source: list[str]) -> None:
    """Links of a page as they hold on the site."""
    here = PurePosixPath(docname).parent
    origin = ROOT / (
        here.relative_to("tree") if docname.startswith("tree/") else PurePosixPath("docs") / here
    )

    def replaced(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(origin / found["to"]))
        if not target.exists() or ROOT not in (target, *target.parents):
            return found[0]
        if target.is_dir() and (target / "README.md").exists():
            target = target / "README.md"
        path = target.relative_to(ROOT).as_posix()
        anchor = found["anchor"] or ""
        if path.startswith("docs/"):
            return f"{found['image']}[{found['text']}](/{path.removeprefix('docs/')}{anchor})"
        if (TREE / path).exists():
            return f"{found['image']}[{found['text']}](/tree/{path}{anchor})"
        return found["text"] if found["text"].strip("`") == path else f"{found['text']} (`{path}`)"

    source[0] = LINK.sub(replaced, source[0])


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("builder-inited", copy_pages, priority=100)
    app.connect("source-read", rewrite_links)
    return {"parallel_read_safe": True}
