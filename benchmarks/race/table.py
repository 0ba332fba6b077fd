"""What is written for people: one page of tables, from the raw numbers alone."""

import math
from collections.abc import Sequence
from typing import Any

from race.arms import TUNED
from race.timed import STAGES, median, slope, spacing

Json = dict[str, Any]

HOW = """## How it was measured
- Each arm is a process of its own, started as a user would start it. Arms take turns in an order that rotates each
  round, so that a machine that slows down slows all of them. Numbers are medians over rounds, in brackets the lowest
  and the highest.
- *s/scan* is what each further scan costs once the program has started: how far apart the results' files were finished
  in the run over all, by the file system's clock, not by that of any program. *slope* says the same by other means and
  less steadily: (run over all - run over one) / (scans - 1). *start and end* is the rest of the run over one scan.
- *times* are ratios within a round, of s/scan and of the whole command over all scans.
- Before the rounds each arm ran once over one scan with empty caches (*first run*): networks are compiled or converted
  then, where an arm does so. What that leaves on disk the later runs find.
- *peak* is the largest resident memory of the process, *faults* the pages that the kernel had to hand out (minor
  faults); user and system time are of all cores.
- Results are compared file by file with those of the first arm's first round, on the same grid: the largest
  difference and PSNR, both over the range of the reference; the worst file of all rounds.
- Stages are those of `cases.csv`; of MONAI those of one more run, with clocks inside. *in the network* is the whole
  call of the inferer, blending of windows included. Operations are those of convolutions and matrix products, counted
  by torch in one window, times the windows that the network was given; of bundles that come with medgen in a whole
  scan by `bundle run`. The peak is what torch reaches in large matrix
  products, at its best before any round: whatever else runs makes it less.
"""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table.

    Example:
        >>> print(markdown(["arm", "s"], [["a", "1.0"]]))
        | arm | s |
        |---|---|
        | a | 1.0 |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def per_scan(arm: Json, volumes: int) -> list[float]:
    """Returns the seconds between one result and the next, a number a round."""
    return [spacing(turn["done"]) for turn in arm["many"] if len(turn["done"]) == volumes]


def times(arm: Sequence[float], other: Sequence[float]) -> str:
    """Returns how many times as fast an arm is as another, from the seconds of each round.

    Example:
        >>> times([1.0, 2.0, 1.0], [4.0, 4.0, 6.0])
        '4.00 (2.00-6.00)'
    """
    return spread([there / here for here, there in zip(arm, other, strict=False) if here > 0])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns the median, with the lowest and the highest where there are several.

    Example:
        >>> spread([2.0, 1.0, 4.0])
        '2.00 (1.00-4.00)'
    """
    if not values:
        return ""
    ends = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{median(values):.{digits}f}{ends}"


def page(raw: Json) -> str:
    """Returns the whole page."""
    parts = ["# Speed against `python -m monai.bundle run`", _machine(raw)]
    parts += [contest_part(contest, raw) for contest in raw["contests"]]
    parts += [_growth(name, rows) for name, rows in raw.get("growth", {}).items()]
    parts += [HOW]
    return "\n\n".join(parts)


def contest_part(contest: Json, raw: Json) -> str:
    """Returns one bundle's tables."""
    lines = [f"## {contest['name']}", _what(contest), _seconds_table(contest)]
    lines += [_resources_table(contest), _inside_table(contest, raw), ""]
    lines += [f"- {arm['name']}: `{arm['command']}`{_means(arm)}" for arm in contest["arms"]]
    lines += [
        f"- {arm['name']} gave no result: {arm['said'].splitlines()[-1]}" for arm in contest["arms"] if arm["said"]
    ]
    return "\n".join(lines)


def _means(arm: Json) -> str:
    by = arm.get("computed_by")
    return f"; the network by {by['backend']} in {by['precision']}" if by else ""


def _what(contest: Json) -> str:
    said = [f"{contest['volumes']} scans"]
    if "flop_per_window" in contest:
        flop, voxels = contest["flop_per_window"], contest["window_voxels"]
        said.append(f"{flop / 1e9:.2f} GFLOP a window, {flop / voxels:.0f} FLOP a voxel of it")
    if windows_of(contest):
        whole = work_of(contest) / 1e9
        said.append(f"{windows_of(contest):.0f} windows a scan" + (f", {whole:.0f} GFLOP a scan" if whole else ""))
    return "; ".join(said) + ".\n"


def work_of(contest: Json) -> float:
    """Returns the operations of a scan in the network [FLOP]; 0 where they were not counted."""
    if "flop_per_window" in contest:
        return float(windows_of(contest) * contest["flop_per_window"])
    counted = [stages["flop"] for arm in contest["arms"] for stages in arm["stages"] if "flop" in stages]
    return float(median(counted)) if counted else 0.0


def windows_of(contest: Json) -> float:
    """Returns the windows of a scan, as counted in the network of a run of MONAI; 0 where none was watched."""
    counted = [stages["windows"] for arm in contest["arms"] for stages in arm["stages"] if "windows" in stages]
    return median(counted) if counted else 0.0


def _seconds_table(contest: Json) -> str:
    """How long each arm takes, and how far its results are from the first arm's."""
    volumes, arms = contest["volumes"], contest["arms"]
    tuned = next((arm for arm in arms if arm["name"] == TUNED), None)
    header = ["arm", f"{volumes} scans, s", "1 scan, s", "s/scan", "times as shipped: s/scan", "whole"]
    header += (["times tuned: s/scan", "whole"] if tuned else []) + ["max abs", "PSNR, dB"]
    rows = []
    for arm in arms:
        row = [arm["name"], spread(_walls(arm), 1), spread(_walls(arm, "one"), 1), spread(per_scan(arm, volumes))]
        for other in filter(None, (arms[0], tuned)):
            row += [times(per_scan(arm, volumes), per_scan(other, volumes)), times(_walls(arm), _walls(other))]
        rows.append([*row, *_apart(arm["differences"])])
    return markdown(header, rows)


def _walls(arm: Json, which: str = "many") -> list[float]:
    return [turn["seconds"] for turn in arm[which]]


def _resources_table(contest: Json) -> str:
    """What each arm takes besides time."""
    volumes = contest["volumes"]
    header = [
        "arm",
        "peak, GB",
        "faults, M",
        "user, s",
        "system, s",
        "start and end, s",
        "slope, s/scan",
        "first run, s",
    ]
    rows = []
    for arm in contest["arms"]:
        turns = arm["many"]
        if not turns:
            continue
        row = [f"{median([turn[key] for turn in turns]) / unit:.2f}" for key, unit in _OF_RUN]
        starts = [one - scan for one, scan in zip(_walls(arm, "one"), per_scan(arm, volumes), strict=False)]
        slopes = [slope(m, o, volumes) for m, o in zip(_walls(arm), _walls(arm, "one"), strict=False)]
        first = f"{arm['first']['seconds']:.1f}" if arm["first"] else ""
        rows.append([arm["name"], *row, f"{median(starts):.1f}", spread(slopes), first])
    return f"\nOf the run over {volumes} scans:\n\n{markdown(header, rows)}" if rows else ""


_OF_RUN = (("peak_bytes", 1e9), ("minor_faults", 1e6), ("user", 1), ("system", 1))


def _apart(differences: Sequence[Json]) -> list[str]:
    if not differences:
        return ["", ""]
    if any(not one["same_grid"] for one in differences):
        return ["another grid", ""]
    worst, psnr = max(one["max_abs"] for one in differences), min(_known(one["psnr_db"]) for one in differences)
    return [f"{worst:.1e}" if worst else "0", "identical" if math.isinf(psnr) else f"{psnr:.1f}"]


def _known(psnr_db: float | None) -> float:
    """JSON knows no infinity."""
    return math.inf if psnr_db is None else psnr_db


def _inside_table(contest: Json, raw: Json) -> str:
    """Where the time of a scan goes, and how much of what the machine can do is reached in the network."""
    work = work_of(contest)
    kinds = [kind for kind in raw["peaks"][0] if kind != "copy"]
    header = ["arm", *(f"{stage}, s" for stage in STAGES), "busy"]
    header += ["GFLOP/s in the network", *(f"of {kind} peak" for kind in kinds)] if work else []
    rows = []
    for arm in contest["arms"]:
        if not arm["stages"]:
            continue
        means = {stage: median([one[stage] for one in arm["stages"]]) for stage in STAGES}
        walls = [arm["watched"]["seconds"]] if arm["watched"] else _walls(arm)
        row = [arm["name"], *(f"{means[stage]:.2f}" for stage in STAGES)]
        row.append(f"{means['compute'] * contest['volumes'] / median(walls):.0%}" if walls else "")
        if work and means["compute"] > 0:
            rate = work / means["compute"] / 1e9
            row += [f"{rate:.0f}", *(f"{rate / max(peak[kind] for peak in raw['peaks']):.0%}" for kind in kinds)]
        rows.append(row)
    if not rows:
        return ""
    return (
        f"\nPer scan; *busy* is the share of the whole command in which the network worked.\n\n{markdown(header, rows)}"
    )


def _machine(raw: Json) -> str:
    facts = raw["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    peaks = {kind: [peak[kind] for peak in raw["peaks"]] for kind in raw["peaks"][0]}
    reached = "; ".join(
        f"{kind} {spread(values, 0)} {'GB/s' if kind == 'copy' else 'GFLOP/s'}" for kind, values in peaks.items()
    )
    loads = ", ".join(f"{load:.1f}" for load in raw["loads"])
    gpu = facts["gpu"] or "there was none; nothing here says how fast a GPU is"
    return "\n".join(
        [
            f"- CPU: {facts['cpu']}; {facts['cores']} cores, {facts['threads']} threads, {facts['memory_gb']} GB",
            f"- GPU: {gpu}",
            f"- {facts['system']}, Python {facts['python']}, {versions}",
            f"- run on {facts['device']}; large matrix products and copies there: {reached}",
            f"- load of the machine when rounds began: {loads}; about 0 means that nothing else ran",
        ]
    )


def _growth(name: str, rows: Sequence[Json]) -> str:
    header = list(rows[0])
    cells = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return f"## Growth: {name}\n{markdown(header, cells)}"
