"""`medgen latent ...` and `medgen sample`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medgen.cli.words import AllowIrregular, Bundle, Changes, Device, Input, Output, Trust, errors, say

if TYPE_CHECKING:  # brings torch
    from medgen.run.bundle import OpenBundle

latent_app = typer.Typer(
    name="latent",
    no_args_is_help=True,
    help="Scans as latents of a bundle's autoencoder: store them, walk between them, map a cohort.",
)

Code = Annotated[Path, typer.Argument(metavar="LATENT", help="A file that `medgen latent encode` wrote.")]
Codes = Annotated[list[Path], typer.Argument(metavar="LATENTS...", help="Files, or folders of them.")]
Box = Annotated[
    str, typer.Option(metavar="X,Y,Z", help="Voxels of 1 mm around the middle; latents of one box can be mixed.")
]
Steps = Annotated[int, typer.Option(min=2, help="Scans along the way, both ends included.")]


@latent_app.command()
def encode(
    bundle: Bundle,
    source: Input,
    output: Annotated[Path, typer.Option("--output", "-o", help="The latent, .npz.")],
    box: Box = "",
    device: Device = "auto",
    allow_irregular: AllowIrregular = False,
    changes: Changes = None,
    trust: Trust = False,
) -> None:
    """Store one scan as its latent, with its grid, its scale and the model's hash."""
    from medgen.run.latent import encode_scan

    with errors():
        opened = _open(bundle, device, trust=trust, changes=changes)
        told = encode_scan(opened, source, output, _box(box), allow_irregular=allow_irregular)
    say(f"{told.bytes} bytes, {told.bits_per_voxel:.3g} bits a voxel, {told.psnr_db:.1f} dB when decoded")


@latent_app.command()
def decode(
    bundle: Bundle,
    code: Code,
    output: Annotated[Path, typer.Option("--output", "-o", help="The scan, .nii.gz.")],
    own_grid: Annotated[bool, typer.Option("--own-grid", help="On the network's grid, not the scan's.")] = False,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Write the scan that a latent stands for; refused for a latent of other weights."""
    from medgen.run.latent import decode_file

    with errors():
        grid = decode_file(_open(bundle, device, trust=trust), code, output, own_grid=own_grid)
    say(f"{output}: {grid.describe()}")


@latent_app.command()
def interpolate(
    bundle: Bundle,
    first: Code,
    second: Code,
    output: Output,
    steps: Steps = 5,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Write the scans on the way from one latent to another (slerp), and a picture of them."""
    from medgen.run.latent import interpolate as walk

    with errors():
        paths = walk(_open(bundle, device, trust=trust), first, second, output, steps)
    say(f"{len(paths)} scans and walk.png in {output}")


@latent_app.command()
def traverse(
    bundle: Bundle,
    code: Code,
    output: Output,
    number: Annotated[int, typer.Option(min=0, help="Which of the code's numbers to move.")] = 0,
    reach: Annotated[float, typer.Option(help="How far, in its own standard deviations.")] = 3.0,
    steps: Steps = 5,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Move one number of a latent everywhere, and write what becomes of the scan."""
    from medgen.run.latent import traverse as walk

    with errors():
        paths = walk(_open(bundle, device, trust=trust), code, output, number, reach, steps)
    say(f"{len(paths)} scans and walk.png in {output}")


@latent_app.command()
def concept(
    bundle: Bundle,
    output: Output,
    having: Annotated[Path, typer.Option(help="Folder of latents that have it.")],
    lacking: Annotated[Path, typer.Option(help="Folder of latents that lack it.")],
    to: Annotated[Path, typer.Option(help="Latent to move.")],
    amounts: Annotated[str, typer.Option(help="How much of the concept to add.")] = "-1,-0.5,0,0.5,1",
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Find the direction between two groups of latents, and move a scan along it."""
    from medgen.run.latent import codes_in
    from medgen.run.latent import concept as walk

    with errors():
        try:
            parts = [float(part) for part in amounts.split(",")]
        except ValueError as error:
            raise typer.BadParameter(f"expected numbers such as -1,0,1, got {amounts!r}") from error
        opened = _open(bundle, device, trust=trust)
        paths = walk(opened, codes_in(having), codes_in(lacking), output, to, parts)
    say(f"{len(paths)} scans, concept.npz and walk.png in {output}")


@latent_app.command("map")
def map_latents(
    codes: Codes,
    output: Output,
    method: Annotated[Literal["pca", "tsne"], typer.Option(help="How to lay them out.")] = "pca",
    seed: Annotated[int, typer.Option(help="Of t-SNE.")] = 0,
) -> None:
    """Lay a cohort's latents out in the plane: map.csv and map.png."""
    from medgen.run.latent import codes_in, map_cohort

    with errors():
        paths = [path for code in codes for path in codes_in(code)]
        map_cohort(paths, output, method, seed)
    say(f"{len(paths)} latents; see {output / 'map.png'}")


def sample(
    bundle: Bundle,
    output: Output,
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the first; the next ones count on.")] = 0,
    box: Box = "64,64,64",
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Draw new volumes from a bundle's autoencoder: codes from N(0, 1), decoded."""
    from medgen.run.latent import sample as draw

    with errors():
        paths = draw(_open(bundle, device, trust=trust), output, count, seed, _box(box) or ())
    say(f"{len(paths)} volumes and samples.png in {output}")


def _open(bundle: str, device: str, *, trust: bool, changes: list[str] | None = None) -> "OpenBundle":
    from medgen.run.bundle import open_bundle

    return open_bundle(bundle, trust=trust, device=device, changes=changes or (), reference=False)


def _box(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise typer.BadParameter(f"expected three whole numbers such as 160,192,160, got {text!r}")
    return tuple(int(part) for part in parts)
