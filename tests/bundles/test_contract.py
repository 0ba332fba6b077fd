"""What every bundle keeps: the model zoo's checks without an exclusion, our style, and a run as its user does."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

import medgen
from medgen.errors import root_cause
from medgen.geometry import Grid
from medgen.provenance import file_sha256
from medgen.read.ophthalmic import picture_grid
from medgen.run.catalog import catalog_folders
from medgen.run.metadata import read_metadata, weights_state
from medgen.simulate.dicom import write_series
from medgen.simulate.oct import simulate_bscan
from medgen.simulate.ophthalmic import write_opt
from medgen.simulate.retina import Lesion
from medgen.simulate.sample import head_grid, sagittal, simulate_t1
from medgen.simulate.trunk import trunk_hu

# Every folder on the shelf, also one that is not finished: half a bundle is no bundle. $MEDGEN_BUNDLES adds shelves.
BUNDLES = [folder for shelf in catalog_folders() for folder in sorted(shelf.iterdir()) if folder.is_dir()]
CONFIGS = ("inference", "train", "evaluate", "smoke")
FILES = (
    "LICENSE",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
    "configs/metadata.json",
    "configs/logging.conf",
    *(f"configs/{name}.yaml" for name in CONFIGS),
)
_ROLES = ("image", "target")
LARGEST_FILE_BYTES = 25 * 2**20  # the model zoo's limit for a file in the tree
SCHEMA = Path(__file__).parent / "meta_schema_20240725.json"

pytestmark = [
    # MONAI's LoadImaged tells that an optional DICOM codec is absent.
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
    # torch 2.13 announces the end of TorchScript, in which the model zoo still exports.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    # Tracing says of each shape that a network checks in Python that the check becomes a constant.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda folder: folder.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    """The folder of each bundle in turn."""
    return request.param


def _load(bundle: Path, name: str) -> dict[str, Any]:
    content = yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content


def _strings(config: object) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict | list):
        for part in config.values() if isinstance(config, dict) else config:
            yield from _strings(part)


def _workflow(bundle: Path, name: str, kind: str, **override: object) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / f"{name}.yaml"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        **{"device": "cpu", **override},
    )
    workflow.initialize()
    return workflow


def _monai_run(bundle: Path, dataset_dir: str, output_dir: str) -> subprocess.CompletedProcess[str]:
    config = bundle / "configs" / "inference.yaml"
    command = f"-m monai.bundle run --config_file {config} --bundle_root {bundle}".split()
    command += ["--dataset_dir", dataset_dir, "--output_dir", output_dir]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


def _write_cohort(folder: Path, modality: str) -> list[Grid]:
    return _write_eyes(folder) if modality == "OPT" else _write_volumes(folder, modality)


def _write_eyes(folder: Path) -> list[Grid]:
    """Writes three pictures of retinas, one of them wide, and a DICOM volume of two B-scans."""
    (folder / "eyes").mkdir(parents=True)
    grids = []
    for index, (name, shape) in enumerate((("a.png", (320, 300)), ("b.jpg", (512, 496)), ("c.tiff", (768, 496)))):
        _write_bscan(folder / "eyes" / name, index, shape)
        grids.append(picture_grid((*shape, 1))[0])
    pages = np.stack([simulate_bscan(seed, (400, 400)).image for seed in (3, 4)], axis=-1)
    write_opt(folder / "eyes" / "d.dcm", pages, placed=False)
    return [*grids, picture_grid((400, 400, 2), (0.0115, 0.00387, 0.24))[0]]


def _write_bscan(path: Path, seed: int, shape: tuple[int, int] = (512, 496), lesion: Lesion = "") -> None:
    Image.fromarray(simulate_bscan(seed, shape, lesion).image.T.astype(np.uint8)).save(path)


def _write_volumes(folder: Path, modality: str) -> list[Grid]:
    """Writes three NIfTI files, one of them oblique with thick slices, one with its axes turned, and a DICOM series.

    They hold the middle of a brain (of a trunk for CT), some 70 mm a side: one window for most networks.
    """
    image, suffix = (_trunk, "CT") if modality == "CT" else (simulate_t1, "T1w")
    plain = head_grid((44, 52, 46), (1.4, 1.5, 1.3))
    thick = head_grid((50, 62, 21), (1.3, 1.2, 3.3), tilt_degrees=14.0)
    turned = sagittal(head_grid((41, 53, 45), (1.5, 1.4, 1.6), tilt_degrees=-8.0))
    series = head_grid((36, 47, 39), (1.9, 1.5, 1.7), tilt_degrees=6.0)
    for index, grid in enumerate((plain, thick, turned)):
        path = folder / f"sub-{index}" / "anat" / f"sub-{index}_{suffix}.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = np.rint(image(grid, seed=index, head=index != 1)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, grid.affine), path)
    write_series(folder / "study" / "series", image(series, seed=3), series.affine, modality)
    return [plain, thick, turned, series]


def _trunk(grid: Grid, *, seed: int, head: bool = True) -> npt.NDArray[np.float32]:
    """A CT with noise; without `head`, its field of view is round and padded."""
    noise = np.random.default_rng(seed).normal(scale=15.0, size=grid.shape)
    scan = (trunk_hu(grid, seed) + noise).astype(np.float32)
    x, y = np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape[:2]], indexing="ij")
    return scan if head else np.where((np.hypot(x, y) > 1)[..., None], np.float32(-2000), scan)


def test_files_are_there_and_small_enough(bundle: Path) -> None:
    assert [name for name in FILES if not (bundle / name).is_file()] == []
    large = [path for path in bundle.rglob("*") if path.is_file() and path.stat().st_size > LARGEST_FILE_BYTES]
    assert large == []


def test_bundle_brings_no_code_of_its_own(bundle: Path) -> None:
    assert list(bundle.rglob("*.py")) == []


def test_metadata_meets_the_schema(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    assert Path(metadata["schema"]).name == SCHEMA.name
    described = metadata["network_data_format"]  # MONAI Label calls the first input `image` and the first output `pred`
    assert (next(iter(described["inputs"])), next(iter(described["outputs"]))) == ("image", "pred")
    assert "medgen" in metadata["required_packages_version"]


def test_version_is_semantic_and_in_the_changelog(bundle: Path) -> None:
    fields = read_metadata(bundle).fields
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["version"])
    assert fields["version"] in fields["changelog"]


def test_versions_that_the_model_zoo_would_install_suit_medgen(bundle: Path) -> None:
    fields = read_metadata(bundle).fields
    frame = {
        name: fields[f"{key}_version"] for key, name in (("monai", "monai"), ("pytorch", "torch"), ("numpy", "numpy"))
    }
    pinned = {name.lower(): Version(at) for name, at in {**frame, **fields["required_packages_version"]}.items()}
    assert pinned.pop("medgen") == Version(medgen.__version__)
    wanted = {found.name.lower(): found.specifier for found in map(Requirement, requires("medgen") or ())}
    assert [
        f"{name} {at}, but {wanted[name]}" for name, at in pinned.items() if name in wanted and at not in wanted[name]
    ] == []


def test_weights_are_the_ones_that_the_metadata_names(bundle: Path) -> None:
    named = read_metadata(bundle).weights_sha256()
    assert named["models/model.pt"] == file_sha256(bundle / "models" / "model.pt")
    assert weights_state(bundle, named) == "verified"


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_thin(bundle: Path, name: str) -> None:
    text = (bundle / "configs" / f"{name}.yaml").read_text()
    expressions = [code for code in _strings(_load(bundle, name)) if code.startswith("$")]
    assert len(text.splitlines()) <= 150
    assert len(expressions) <= 12
    assert [code for code in expressions if len(code) > 70] == []
    assert [code for code in expressions if re.search(r"\b(lambda|for|open)\b", code)] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_config_stands_alone_and_names_no_machine(bundle: Path, name: str) -> None:
    values = [text for text in _strings(_load(bundle, name)) if re.match(r"%|/|~|[A-Za-z]:\\", text)]
    assert values == []


def test_training_and_inference_have_the_same_network(bundle: Path) -> None:
    def whole(config: dict[str, Any], part: Any) -> Any:
        if isinstance(part, dict):
            return {key: whole(config, value) for key, value in part.items()}
        named = part[1:] if isinstance(part, str) and part.startswith("@") else ""
        return whole(config, config[named]) if named else part

    train, inference = _load(bundle, "train"), _load(bundle, "inference")
    assert whole(train, train["network_def"]) == whole(inference, inference["network_def"])


def test_training_and_inference_prepare_images_alike(bundle: Path) -> None:
    def steps(transforms: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in step.items() if k not in {"keys", "allow_missing_keys"}} for step in transforms]

    used = steps(_load(bundle, "inference")["preprocessing"]["transforms"])[1:]
    validated = steps(_load(bundle, "train")["validate"]["preprocessing"]["transforms"])
    assert [step for step in validated if step in used] == used


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "empty"])
def test_properties_are_whole_without_data(bundle: Path, tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "data"
    if not missing:
        folder.mkdir()
    override = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out")}
    assert _workflow(bundle, "inference", "infer", **override).check_properties() == []
    assert _workflow(bundle, "train", "train", **override).check_properties() == []


@pytest.mark.parametrize("name", ["inference", "train"])
def test_the_config_finds_a_device_by_itself(bundle: Path, name: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / f"{name}.yaml"))
    assert isinstance(parser.get_parsed_content("device"), torch.device)


def test_network_takes_and_gives_the_declared_shapes(bundle: Path) -> None:
    config = str(bundle / "configs" / "inference.yaml")
    fixed = all(isinstance(side, int) for side in read_metadata(bundle).input["spatial_shape"])
    for size in (1,) if fixed else (1, 2):
        verify_net_in_out(
            "network_def",
            str(bundle / "configs" / "metadata.json"),
            config,
            device="cpu",
            n=size,
            p=size,
            any=32 * size,
        )


def test_torchscript_export_computes_the_same(bundle: Path, tmp_path: Path) -> None:
    config = bundle / "configs" / "inference.yaml"
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(config),
        bundle_root=str(bundle),
    )
    parser = ConfigParser()
    parser.read_config(str(config))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    exported = torch.jit.load(tmp_path / "model.ts").eval()
    torch.manual_seed(0)
    declared = read_metadata(bundle).input["spatial_shape"]
    size = declared if all(isinstance(side, int) for side in declared) else (32, 48, 32)
    image = torch.rand(1, read_metadata(bundle).input_channels or 1, *size)
    with torch.no_grad():
        expected = network(image)
        assert expected.std() > 0
        torch.testing.assert_close(exported(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["workflow", pytest.param("command", marks=pytest.mark.slow)])
def test_monai_runs_it_over_a_mixed_folder_onto_the_grids_of_the_inputs(bundle: Path, tmp_path: Path, how: str) -> None:
    grids = _write_cohort(tmp_path / "data", read_metadata(bundle).modality_in)
    where = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    if how == "command":
        done = _monai_run(bundle, **where)
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        _workflow(bundle, "inference", "infer", **where).run()
    images = [nibabel.load(path) for path in sorted((tmp_path / "out").rglob("*.nii.gz"))]
    assert len(images) == len(grids)
    for grid in grids:
        [image] = [image for image in images if image.shape == grid.shape]
        assert Grid(grid.shape, np.asarray(image.affine)).differs_from(grid) == ""
        voxels = image.get_fdata()
        assert np.isfinite(voxels).all()
        assert voxels.std() > 0


def test_an_empty_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(RuntimeError) as refused:
        _workflow(bundle, "inference", "infer", dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path)).run()
    assert "found none" in str(root_cause(refused.value))


def test_two_iterations_of_training_leave_finite_weights(bundle: Path, tmp_path: Path) -> None:
    workflow = _workflow(bundle, "smoke", "train", output_dir=str(tmp_path / "out"))
    network = workflow.parser.get_parsed_content("network")
    before = [weight.detach().clone() for weight in network.parameters()]
    workflow.run()
    assert workflow.parser.get_parsed_content("train::trainer").state.iteration == 2
    after = list(network.parameters())
    assert all(torch.isfinite(weight).all() for weight in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def _write_pairs(folder: Path, modality: str) -> list[dict[str, Any]]:
    """Two people's pairs on one grid: the target is the negative of the image, in a range that CT numbers have, too.

    Of eyes a normal one and another.
    """
    items: list[dict[str, Any]] = []
    if modality == "OPT":
        for seed, lesion in enumerate(("", "neovascular")):
            _write_bscan(folder / f"{seed}.png", seed, lesion=lesion)  # type: ignore[arg-type]
            path, kind = str(folder / f"{seed}.png"), lesion or "normal"
            items.append({"image": path, "target": path, "patient": f"p{seed}", "class": kind})
        return items
    for seed in range(2):
        grid = head_grid((34, 38, 36), (2.0, 2.1, 2.2))
        image = simulate_t1(grid, seed=seed)
        paths = {role: str(folder / f"{seed}_{role}.nii.gz") for role in ("image", "target")}
        for path, volume in zip(paths.values(), (image, image.max() - image), strict=True):
            nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), grid.affine), path)
        items.append({**paths, "patient": f"p{seed}"})
    return items


def test_evaluate_measures_the_bundle_that_it_lies_in(bundle: Path, tmp_path: Path) -> None:
    cases = []
    for pair in _write_pairs(tmp_path, read_metadata(bundle).modality_in):
        files = {role: {"path": Path(pair[role]).name, "sha256": file_sha256(Path(pair[role]))} for role in _ROLES}
        for role in _ROLES:
            files[role]["size_bytes"] = Path(pair[role]).stat().st_size
        told = {"class": pair["class"]} if "class" in pair else {}
        cases.append({"patient": pair["patient"], "files": files, "split": "test", **told})
    manifest = {"schema": "medgen-manifest-1", "name": "pairs", "description": "x", "license": "x", "source": "x"}
    (tmp_path / "pairs.json").write_text(json.dumps({**manifest, "cases": cases}))
    override = {"manifest": str(tmp_path / "pairs.json"), "dataset_dir": str(tmp_path), "split": "test"}
    override["output_dir"] = str(tmp_path / "out")
    _workflow(bundle, "evaluate", "infer", **override).run()
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) >= 1 + len(cases)
    other = tmp_path / "other"
    shutil.copytree(bundle, other, ignore=shutil.ignore_patterns("model.pt", "*.png"))
    with pytest.raises(RuntimeError) as refused:
        _workflow(other, "evaluate", "infer", **override).run()
    assert "weights" in str(root_cause(refused.value))


def test_training_starts_on_pairs_as_monai_label_starts_it(bundle: Path, tmp_path: Path) -> None:
    pairs = _write_pairs(tmp_path, read_metadata(bundle).modality_in)
    items = [{"image": pair["image"], "label": pair["target"]} for pair in pairs]  # all that its datastore knows
    override = {
        "train#dataset#data": items[:1],
        "validate#dataset#data": items[1:],
        "train#trainer#max_epochs": 1,
        "device": torch.device("cpu"),
        "dataset_dir": str(tmp_path / "none"),
        "output_dir": str(tmp_path / "out"),
        "window": [64, 64, 64],  # at 32, the deepest level has two planes, which trainers refuse in bfloat16
        "iterations_per_epoch": 2,
        "adversary_first_epoch": -1,  # past its head start
    }
    workflow = _workflow(bundle, "train", "train", **override)
    parser = workflow.parser
    assert isinstance(parser.get("train#handlers"), list)  # to which MONAI Label adds its own
    workflow.run()
    assert parser.get_parsed_content("train#trainer").state.iteration == 2
    assert "schedule" not in parser or parser.get_parsed_content("schedule").t_total == 2
    held_out = parser.get_parsed_content("validate#dataset")
    assert [set(held_out[n]) >= {"image", "target"} for n in range(len(held_out))] == [True] * len(held_out)
    assert len(held_out) >= 1
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert state.keys() == parser.get_parsed_content("network").state_dict().keys()
    assert (tmp_path / "out" / "validation.csv").read_text().count("\n") == 1 + len(held_out)
    assert parser.get_parsed_content("health").summary()["g_norm"] > 0  # it watched


def test_the_schedule_and_the_adversary_follow_a_shorter_training(bundle: Path) -> None:
    """MONAI Label sets the trainer's epochs alone; `--set max_epochs` all that follows from it."""
    for key in ("max_epochs", "train#trainer#max_epochs"):
        parser = _workflow(bundle, "train", "train", **{key: 20}).parser
        assert parser.get_parsed_content("train#trainer#max_epochs") == 20
        schedule = parser.get("schedule") or {"t_total": "$@train::trainer::max_epochs * len(@train::dataloader)"}
        assert schedule["t_total"] == "$@train::trainer::max_epochs * len(@train::dataloader)"
        for name in ("adversary_first_epoch", "guess_epochs"):
            if name in parser:
                assert 10 <= parser.get_parsed_content(name) <= 17
