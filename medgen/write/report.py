"""A run as one page to look at: counts, every case with its picture, its flags or the reason why it has none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medgen.write.atomic import atomic_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c1c1c; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #ddd; padding: .4rem .6rem; text-align: left; vertical-align: top; }
td img { width: 30rem; max-width: 100%; display: block; }
.done { color: #1a6b2d; } .failed { color: #a11616; font-weight: 600; } .skipped { color: #777; }
.flags { color: #9a5b00; font-weight: 600; } .note { color: #777; }
"""


def write_report(path: Path, run: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> None:
    """Writes the page beside `run.json`; pictures are linked, not copied.

    Args:
        path: the HTML file; links in it are relative to its folder.
        run: what was run: `bundle`, `bundle_version`, `device`.
        rows: the rows of `cases.csv`, with a column `preview` (relative path of the picture, or "").

    Raises:
        OutputError: the file cannot be written.
    """
    statuses = Counter(row["status"] for row in rows)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "no case yet"
    facts = " · ".join(escape(str(run[key])) for key in ("bundle", "bundle_version", "device") if run.get(key))
    body = "\n".join(_row(row) for row in rows)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>medgen: {escape(counts)}</title><style>{_STYLE}</style>
<h1>{escape(counts)}</h1>
<p>{facts}</p>
<p class="note">Synthetic images for research. Not for diagnosis, not a medical device.</p>
<table><tr><th>case</th><th>status</th><th>picture</th></tr>
{body}
</table></html>
"""
    atomic_text(path, page)


def _row(row: Mapping[str, str]) -> str:
    status = escape(row["status"])
    said = escape(row["reason"] if not row["stage"] else f"{row['stage']}: {row['reason']}")
    flags = f'<div class="flags">{escape(row["flags"])}</div>' if row.get("flags") else ""
    picture = f'<img loading="lazy" src="{quote(row["preview"])}" alt="">' if row.get("preview") else said
    facts = escape(f"{row.get('grid', '')} {row.get('spacing', '')} {row.get('orientation', '')}".strip())
    return (
        f'<tr><td>{escape(row["case"])}<div class="note">{facts}</div></td>'
        f'<td><span class="{status}">{status}</span>{flags}</td><td>{picture}</td></tr>'
    )
