"""`medgen cache`: what was converted for this machine."""

import typer

from medgen.cli.words import Json, errors, print_json, say

cache_app = typer.Typer(
    no_args_is_help=True,
    help="Networks converted for this machine, so that later runs start at once; `$MEDGEN_CACHE` names the folder.",
)
_MB = 1e6


@cache_app.command("list")
def list_entries(as_json: Json = False) -> None:
    """Show what is in the cache and how large it is."""
    from medgen.infer.conversions import cache_folder, entries

    found = entries()
    if as_json:
        print_json([{"about": e.about, "megabytes": round(e.size_bytes / _MB, 1), "folder": e.folder} for e in found])
        return
    for entry in found:
        say(f"{entry.size_bytes / _MB:8.1f} MB  {entry.about}")
    say(f"{sum(entry.size_bytes for entry in found) / _MB:8.1f} MB  in {cache_folder()}")


@cache_app.command()
def clear() -> None:
    """Remove all of it; the next run of a bundle converts its network again."""
    from medgen.infer.conversions import clear as remove

    with errors():
        say(f"{remove() / _MB:.1f} MB freed")
