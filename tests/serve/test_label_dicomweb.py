"""A MONAI Label server on a DICOMweb server: series by their UIDs, whole or not at all, and nothing sent back."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from label_server import Server, free_port, needs_server, serving
from orthanc import Orthanc, available
from typer.testing import CliRunner
from zoo_like import oblique_affine, smooth_volume, write_bundle

from medgen.cli import app
from medgen.simulate.dicom import write_series

pytestmark = [
    needs_server,
    pytest.mark.skipif(not available(), reason="Orthanc with its DICOMweb plugin, or dcmtk, is not installed"),
    # MONAI 1.6 announces that Orientationd's default `labels` will change; bundles of the model zoo do not name them.
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    # MONAI's LoadImaged tells that an optional DICOM codec is absent.
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]


USER, PASSWORD = "reader", "a secret"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path_factory.mktemp("orthanc"), {USER: PASSWORD})
    server.start()
    for seed, modality in ((1, "MR"), (2, "MR"), (3, "CT")):
        write_series(server.folder / f"source{seed}", smooth_volume(seed=seed), oblique_affine(), modality, seed=seed)
        server.push(server.folder / f"source{seed}")
    try:
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def server(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("label")
    bundle = write_bundle(folder / "doubled")
    known = {"MONAI_LABEL_DICOMWEB_USERNAME": USER, "MONAI_LABEL_DICOMWEB_PASSWORD": PASSWORD}
    with serving(folder / "app", f"{pacs.url}/dicom-web", [str(bundle)], "--trust", environment=known) as running:
        yield running


def series(pacs: Orthanc, modality: str) -> list[str]:
    found = [pacs.get(f"series/{one}")["MainDicomTags"] for one in pacs.get("series")]
    return sorted(one["SeriesInstanceUID"] for one in found if one["Modality"] == modality)


def test_a_series_becomes_what_run_makes_of_it(
    server: Server, pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDGEN_DICOMWEB_USER", USER)
    monkeypatch.setenv("MEDGEN_DICOMWEB_PASSWORD", PASSWORD)
    uid = series(pacs, "MR")[0]
    answer = server.infer("doubled", uid)
    assert answer.ok, answer.text
    (tmp_path / "got.nii.gz").write_bytes(answer.content)
    words = ["--trust", "--format", "nifti", "-i", pacs.address, "-o", str(tmp_path / "run")]
    words += ["--query", f"SeriesInstanceUID={uid}"]
    result = CliRunner().invoke(app, ["run", str(server.folder.parent / "doubled"), *words])
    assert result.exit_code == 0, result.output
    (written,) = (tmp_path / "run").glob("*.nii.gz")
    here, there = nibabel.load(written), nibabel.load(tmp_path / "got.nii.gz")
    assert np.array_equal(here.affine, there.affine)
    assert np.array_equal(np.asarray(here.dataobj, dtype=np.float32), np.asarray(there.dataobj))


def test_a_server_that_does_not_let_in_is_said_before_the_start(pacs: Orthanc, tmp_path: Path) -> None:
    def refused(address: str) -> str:
        words = ["serve", "--studies", address, "--folder", str(tmp_path / "app"), "--port", str(free_port())]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2, result.output
        return result.stderr

    assert "it answers 401; check $MEDGEN_DICOMWEB_TOKEN" in refused(f"{pacs.url}/dicom-web")
    assert "expected an address without credentials" in refused("http://reader:secret@127.0.0.1/dicom-web")
    assert "it cannot be reached" in refused(f"http://127.0.0.1:{free_port()}/dicom-web")
    assert not (tmp_path / "app").exists()


def test_a_viewer_reads_the_studies_and_nothing_else(server: Server, pacs: Orthanc) -> None:
    proxy = f"{server.url}/proxy/dicom"
    listed = requests.get(f"{proxy}/qido/series", headers={"Accept": "application/dicom+json"}, timeout=60)
    assert len(listed.json()) == 3
    for path in (
        "%2e%2e/statistics",
        "qido/%2e%2e/statistics",
        "%252e%252e/statistics",
        "wado/studies/..%2f..%2f../statistics",
    ):
        assert requests.get(f"{proxy}/{path}", timeout=60).status_code == 404
    assert requests.post(f"{proxy}/stow/studies", data=b"anything", timeout=60).status_code == 405


def test_only_series_that_the_bundles_take_are_listed(server: Server, pacs: Orthanc) -> None:
    sample = requests.post(f"{server.url}/activelearning/random", json={}, timeout=60).json()
    assert sample["id"] in series(pacs, "MR")


def test_a_series_that_is_cut_off_on_its_way_is_fetched_again(server: Server, pacs: Orthanc) -> None:
    uid = series(pacs, "MR")[1]
    whole = server.infer("doubled", uid, result_extension=".nii")
    assert whole.ok
    (link,) = (server.folder / "dicom").rglob(uid)
    files = sorted(link.resolve().glob("*.dcm"))
    shutil.rmtree(link.resolve())
    half = link.resolve().with_name(link.resolve().name + ".part")
    half.mkdir()
    (half / files[0].name).write_bytes(b"half a series")
    again = server.infer("doubled", uid, result_extension=".nii")
    assert again.ok, again.text
    assert again.content == whole.content
    assert len(list(link.resolve().glob("*.dcm"))) == len(files)


@pytest.mark.parametrize("image", ["1.2.3", "../../../../etc", "not a UID"])
def test_no_other_folder_is_taken_for_a_series(server: Server, image: str) -> None:
    answer = server.infer("doubled", image)
    assert answer.status_code in {403, 404}
    assert answer.json()["detail"].startswith("expected ")


def test_results_stay_here_and_never_become_masks_there(server: Server, pacs: Orthanc) -> None:
    before, uid = pacs.count(), series(pacs, "MR")[0]
    refused = server.infer("doubled", uid, save_label=True, label_tag="final")
    assert refused.status_code == 422
    assert "MONAI Label sends to the server as a mask" in refused.json()["detail"]
    done = requests.post(
        f"{server.url}/batch/infer/doubled", params={"images": "all", "run_sync": "true"}, json={}, timeout=300
    ).json()
    assert set(done) == set(series(pacs, "MR"))
    assert all(result["label"] == image for image, result in done.items())
    kept = {path.name for path in (server.folder / "dicom").rglob("labels/original/*")}
    assert kept == {f"{image}.nii.gz" for image in done}
    assert pacs.count() == before
    assert uid not in server.log.read_text()
    assert PASSWORD not in server.log.read_text()


def test_training_on_masks_is_refused(server: Server, tmp_path: Path, repository: Path, pacs: Orthanc) -> None:
    bundle = repository / "bundles" / "brain_t1_to_t2"
    known = {"MEDGEN_DICOMWEB_USER": USER, "MEDGEN_DICOMWEB_PASSWORD": PASSWORD}
    with serving(tmp_path / "app", f"{pacs.url}/dicom-web", [str(bundle)], environment=known) as trainable:
        answer = requests.post(
            f"{trainable.url}/train/brain_t1_to_t2", params={"run_sync": "true"}, json={}, timeout=120
        )
    assert answer.status_code == 422
    assert "expected a folder of studies to train on" in answer.json()["detail"]
