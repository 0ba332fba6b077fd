"""Bundles through a real MONAI Label server: what comes over HTTP is what `medgen run` writes, or one clear refusal."""

import csv
import json
import re
import runpy
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import psutil
import pytest
import requests
import SimpleITK
import torch
import yaml
from anogan_like import write_anogan_bundle, write_bscan
from label_server import INSTALLED, Server, needs_server, serving
from typer.testing import CliRunner
from zoo_like import METADATA, oblique_affine, smooth_volume, write_bundle, zoo_config

from medgen.cli import app

pytestmark = [
    needs_server,
    # MONAI 1.6 announces that Orientationd's default `labels` will change; bundles of the model zoo do not name them.
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    # MONAI's LoadImaged tells that an optional DICOM codec is absent.
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
    # MONAI Label's client leaves connections and files to the garbage collector.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <(socket|_io):pytest.PytestUnraisableExceptionWarning"),
]
if INSTALLED:
    with pytest.warns(DeprecationWarning, match="cgi"):
        from monailabel.client.client import MONAILabelClient, MONAILabelClientException

BUNDLES = ("doubled", "hounsfield", "eyes")
DOUBLED, HU, EYES = BUNDLES
SHAPE = (29, 34, 17)


def save(path: Path, seed: int = 3) -> None:
    """A volume on an oblique grid."""
    image = nibabel.Nifti1Image(np.rint(smooth_volume(SHAPE, seed)).astype(np.int16), oblique_affine())
    image.header.set_xyzt_units("mm")
    image.set_qform(oblique_affine(), code=1)
    image.set_sform(oblique_affine(), code=1)
    nibabel.save(image, path)


def write_bundles(folder: Path) -> list[Path]:
    """One that doubles what lies in [0, 1], one that makes HU and takes two contrasts, and one that scores eyes."""
    config, metadata = zoo_config() | {"contrast": "T1w"}, deepcopy(METADATA)
    metadata |= {"input_contrast": "T1w", "input_series": {}, "input_series_T2w": {}, "modality_out": "CT"}
    metadata["network_data_format"]["outputs"]["pred"] |= {"format": "hounsfield", "modality": "CT"}
    weights = {"weight": torch.full((1, 1, 1, 1, 1), 2400.0), "bias": torch.full((1,), -1000.0)}
    eyes = write_anogan_bundle(folder / EYES)
    file = eyes / "configs" / "inference.yaml"  # a reference of normal eyes belongs to trained weights
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"reference": None}, sort_keys=False))
    return [write_bundle(folder / DOUBLED), write_bundle(folder / HU, config, metadata, weights=weights), eyes]


def equal_to_run(received: Path, output: Path, server: Server, bundle: str, image: str = "head.nii.gz") -> str:
    """Compares what was received with what `medgen run` writes of the same image, and returns the sidecar's text."""
    words = ["run", str(server.folder.parent / "bundles" / bundle), "--trust", "--format", "nifti", "-o", str(output)]
    code = CliRunner().invoke(app, [*words, "-i", str(Path(server.studies) / image)])
    assert code.exit_code == 0, code.output
    (written,) = [path for path in output.rglob("*.nii.gz") if ".medgen" not in path.parts]
    here, there = nibabel.load(written), nibabel.load(received)
    assert here.shape == there.shape
    assert np.array_equal(here.affine, there.affine)
    assert np.array_equal(np.asarray(here.dataobj, dtype=np.float32), np.asarray(there.dataobj))
    assert there.get_data_dtype() == np.float32
    assert np.ptp(np.asarray(there.dataobj)) > 0
    return written.with_name(written.name.replace(".nii.gz", ".json")).read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("label")
    studies = folder / "studies"
    studies.mkdir()
    save(studies / "head.nii.gz")
    save(studies / "other.nii.gz", seed=5)
    write_bscan(studies / "eye.png", 4)
    (studies / "broken.nii.gz").write_text("hello")
    (folder / "elsewhere.nii.gz").write_bytes((studies / "head.nii.gz").read_bytes())
    with serving(folder / "app", str(studies), map(str, write_bundles(folder / "bundles")), "--trust") as running:
        yield running


@pytest.fixture(params=["package", "plugin"])
def client(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> "MONAILabelClient":
    """The client of MONAI Label's package, and the copy of it in its plugin for 3D Slicer."""
    plugin = Path(sys.prefix, "monailabel", "plugins", "slicer", "MONAILabel", "MONAILabelLib", "client.py")
    maker = MONAILabelClient if request.param == "package" else runpy.run_path(str(plugin))["MONAILabelClient"]
    return maker(server.url, tmpdir=str(tmp_path))


def test_models_are_the_bundles_and_images_the_datastores(server: Server, client: "MONAILabelClient") -> None:
    info = client.info()
    assert list(info["models"]) == list(BUNDLES)
    assert list(info["trainers"]) == []
    assert {model["type"] for model in info["models"].values()} == {"others"}
    assert set(client.datastore()["objects"]) == {"head", "other", "broken", "eye"}
    assert client.next_sample("random", {})["id"] in {"head", "other", "broken", "eye"}


def test_only_this_machine_can_reach_it(server: Server) -> None:
    listening = [c.laddr.ip for c in psutil.Process(server.process.pid).net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


def test_a_page_from_elsewhere_may_not_read(server: Server) -> None:
    def allowed(origin: str) -> str | None:
        answer = requests.get(f"{server.url}/info/", headers={"Origin": origin}, timeout=60)
        return answer.headers.get("Access-Control-Allow-Origin")

    assert allowed("https://elsewhere.example") is None
    assert allowed(server.url) == server.url


@pytest.mark.parametrize(("bundle", "unit"), [(DOUBLED, "arbitrary"), (HU, "HU")])
def test_what_the_client_receives_is_what_run_writes(
    server: Server, client: "MONAILabelClient", tmp_path: Path, bundle: str, unit: str
) -> None:
    file, params = client.infer(bundle, "head", {})
    sidecar = equal_to_run(Path(file), tmp_path / "run", server, bundle)
    assert params["unit"] == unit
    assert params["synthetic"] is True
    for name in ("bundle", "weights_sha256", "input_sha256"):
        assert params["provenance"][name] in sidecar


def test_an_uploaded_image_and_one_of_a_session_give_the_same(
    server: Server, client: "MONAILabelClient", tmp_path: Path
) -> None:
    image = Path(server.studies) / "head.nii.gz"
    results = [server.infer(DOUBLED, "head", result_extension=".nii").content]
    uploaded, _ = client.infer(DOUBLED, "", {"result_extension": ".nii"}, file=str(image))
    session = client.create_session(str(image))["session_id"]
    of_session, _ = client.infer(DOUBLED, "", {"result_extension": ".nii"}, session_id=session)
    client.remove_session(session)
    results += [Path(file).read_bytes() for file in (uploaded, of_session)]
    assert len(results[0]) > 4 * 29 * 34 * 17
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("extension", [".nrrd", ".mha"])
def test_other_formats_hold_the_same_image_in_the_same_place(server: Server, tmp_path: Path, extension: str) -> None:
    other, nifti = tmp_path / f"a{extension}", tmp_path / "b.nii.gz"
    other.write_bytes(server.infer(HU, "head", result_extension=extension, result_dtype="int16").content)
    nifti.write_bytes(server.infer(HU, "head", result_dtype="int16").content)
    image, expected = SimpleITK.ReadImage(str(other)), nibabel.load(nifti)
    assert image.GetPixelID() == SimpleITK.sitkInt16
    assert expected.get_data_dtype() == np.int16
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).T, np.asarray(expected.dataobj))
    for index in ((0, 0, 0), (28, 0, 0), (0, 33, 0), (28, 33, 16)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        assert np.allclose(lps * (-1, -1, 1), nibabel.affines.apply_affine(oblique_affine(), index), atol=1e-4)


def test_hounsfield_units_are_not_wrapped_into_bytes(server: Server) -> None:
    answer = server.infer(HU, "head", result_dtype="uint8")
    assert answer.status_code == 422
    assert re.search(r"expected values that fit uint8 \(0 to 255\), got -\d+ to \d+ HU", answer.json()["detail"])


def test_a_heat_map_comes_with_its_scores(server: Server, client: "MONAILabelClient", tmp_path: Path) -> None:
    file, params = client.infer(EYES, "eye", {})
    sidecar = json.loads(equal_to_run(Path(file), tmp_path / "run", server, EYES, "eye.png"))
    assert params["unit"] == "score"
    assert params["synthetic"] is False
    assert (params["score"], params["p_scan"]) == (sidecar["Findings"]["Score"], sidecar["Findings"]["PScan"])
    with next((tmp_path / "run").glob("*_regions.csv")).open() as table:
        rows = list(csv.DictReader(table))[1:]
    assert [region["name"] for region in params["regions"]] == [row["region"] for row in rows] != []
    assert [f"{region['score']:.4g}" for region in params["regions"]] == [row["score"] for row in rows]
    assert params["regions"][0]["volume_ml"] is None
    assert server.infer(EYES, "eye", output="json").json()["score"] == params["score"]


def test_a_bundle_of_several_contrasts_is_told_which(server: Server) -> None:
    def settings(**params: object) -> dict[str, object]:
        return server.infer(HU, "head", output="json", **params).json()["provenance"]["settings"]

    assert settings(contrast="T2w")["set"] == ["contrast=T2w"]
    assert "set" not in settings(contrast="T1w")
    assert "set" not in settings()


@pytest.mark.parametrize(
    ("model", "image", "params", "status", "words"),
    [
        (DOUBLED, "broken", {}, 422, "expected a NIfTI file, got text"),
        (DOUBLED, "nobody", {}, 404, "expected the ID of an image"),
        (DOUBLED, "", {"image": ""}, 404, "expected the ID of an image"),
        ("nothing", "head", {}, 404, "expected a model of doubled, hounsfield, eyes"),
        (DOUBLED, "head", {"image": "ELSEWHERE"}, 403, "expected an image of the studies or an upload"),
        (DOUBLED, "head", {"result_extension": "/../../x.nii"}, 422, "expected a result_extension of .nii.gz"),
        (DOUBLED, "head", {"result_dtype": "float16"}, 422, "expected a result_dtype of float32"),
        (DOUBLED, "head", {"result_dtyp": "int16"}, 422, "expected result_dtype in params, got result_dtyp"),
        (DOUBLED, "head", {"model": HU}, 422, "expected one model"),
        (DOUBLED, "head", ["image"], 422, "expected params as a JSON object"),
        (DOUBLED, "head", {"weights": "mine"}, 422, "expected weights of bundle, got 'mine'"),
        (DOUBLED, "head", {"device": "cuda:7"}, 422, "cuda"),
        (HU, "head", {"contrast": "$print(1)"}, 422, "expected a contrast of T1w, T2w"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    server: Server, model: str, image: str, params: dict[str, str], status: int, words: str
) -> None:
    if "ELSEWHERE" in str(params):
        params = {"image": str(Path(server.studies).parent / "elsewhere.nii.gz")}
    answer = requests.post(
        f"{server.url}/infer/{model}",
        params={"image": image or "head"},
        data={"params": json.dumps(params)},
        timeout=120,
    )
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def test_no_image_at_all_is_said(server: Server) -> None:
    answer = requests.post(f"{server.url}/infer/{DOUBLED}", params={"output": "image"}, timeout=60)
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "expected image=ID, a file, or a session_id, got none of them",
    )
    answer = requests.post(
        f"{server.url}/infer/{DOUBLED}", params={"image": "head"}, data={"params": "{bad"}, timeout=60
    )
    assert (answer.status_code, "JSON" in answer.json()["detail"]) == (422, True)
    answer = requests.post(f"{server.url}/infer/{DOUBLED}", params={"session_id": "../tmp"}, timeout=60)
    assert (answer.status_code, "ID of a session" in answer.json()["detail"]) == (422, True)
    answer = requests.post(f"{server.url}/activelearning/first", json={}, timeout=60)
    assert (answer.status_code, "expected a strategy of random" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("path", "asked", "name", "status"),
    [
        ("datastore/", {"image": "../app/main"}, "main.py", 422),
        ("datastore/", {"image": "../../elsewhere"}, "head.nii.gz", 422),
        ("datastore/", {"image": ".head"}, "head.nii.gz", 422),
        ("datastore/", {"image": "head"}, "head.nii.gz", 409),
        ("datastore/", {"image": "x"}, "x.py", 422),
        ("datastore/", {"image": "x"}, "x.mha", 422),
        ("datastore/label", {"image": "head", "tag": "../../app/y"}, "head.nii.gz", 422),
        ("datastore/label", {"image": "head", "tag": "final"}, "head.sh", 422),
        ("datastore/label", {"image": "nobody", "tag": "final"}, "head.nii.gz", 404),
        ("session/", {"uncompress": "true"}, "x.tar", 500),
        ("session/", {"uncompress": "true"}, "links.tar", 500),
        (f"model/{DOUBLED}", {}, "model.pt", 405),
    ],
)
def test_no_upload_goes_elsewhere(
    server: Server, tmp_path: Path, path: str, asked: dict[str, str], name: str, status: int
) -> None:
    def there() -> dict[Path, bytes]:
        logs, uploads = server.folder / "logs", server.folder / "tmp"
        files = [file for file in server.folder.parent.rglob("*") if file.is_file() and file != server.log]
        return {file: file.read_bytes() for file in files if not {logs, uploads} & {*file.parents}}

    (tmp_path / name).write_bytes(b"print('no')")
    if name == "links.tar":
        (tmp_path / "link").symlink_to(server.folder)
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(tmp_path / "link", arcname="link")
    elif name.endswith(".tar"):
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(__file__, arcname="../../../elsewhere.py")
    before, field = there(), "label" if path.endswith("label") else "files" if path == "session/" else "file"
    with (tmp_path / name).open("rb") as file:
        answer = requests.put(f"{server.url}/{path}", params=asked, files={field: file}, timeout=60)
    assert answer.status_code == status
    assert there() == before
    marked = {"info": (None, '{"uploaded": true}')}
    assert requests.put(f"{server.url}/datastore/image/info", params={"image": "head"}, files=marked, timeout=60).ok
    before = there()
    for image, expected in (("../elsewhere", 404), ("head", 403)):
        deleted = requests.delete(f"{server.url}/datastore/", params={"id": image}, timeout=60)
        assert deleted.status_code == expected
    assert requests.get(f"{server.url}/proxy/dicom/studies", timeout=60).status_code == 404
    assert there() == before


@pytest.mark.slow
def test_a_caller_does_not_bring_code(server: Server, tmp_path: Path) -> None:
    for name in ("usercustomize.py", "argparse.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with (tmp_path / "argparse.py").open("rb") as one, (tmp_path / "usercustomize.py").open("rb") as two:
        put = requests.put(f"{server.url}/session/", files=[("files", one), ("files", two)], timeout=60).json()
    asked = {"bundle_path": put["session_info"]["image"]}
    assert requests.post(f"{server.url}/batch/infer/{DOUBLED}", json=asked, timeout=60).ok
    assert server.wait_for("batch/infer")["status"] == "DONE"
    assert not (tmp_path / "ran").exists()
    assert requests.post(f"{server.url}/reload", timeout=60).status_code in {404, 405}


@pytest.mark.parametrize("info", ['{"x": "\\ud800"}', '{"x": NaN}', '{"strategy": 5}'])
def test_what_could_not_be_read_again_is_not_noted(server: Server, info: str) -> None:
    told = {"info": (None, info)}
    answer = requests.put(f"{server.url}/datastore/image/info", params={"image": "head"}, files=told, timeout=60)
    assert answer.status_code == 422
    answer = requests.put(
        f"{server.url}/datastore/label/info", params={"label": "nobody", "tag": "x"}, files=told, timeout=60
    )
    assert answer.status_code == 404


def test_what_was_uploaded_can_be_replaced_and_removed(server: Server) -> None:
    studies = Path(server.studies)
    for seed in (3, 4):
        save(server.folder.parent / "new.nii.gz", seed)
        with (server.folder.parent / "new.nii.gz").open("rb") as file:
            put = requests.put(f"{server.url}/datastore/", params={"image": "new"}, files={"file": file}, timeout=60)
        assert put.ok
        assert (studies / "new.nii.gz").read_bytes() == (server.folder.parent / "new.nii.gz").read_bytes()
        with (server.folder.parent / "new.nii.gz").open("rb") as file:
            requests.put(f"{server.url}/datastore/label", params={"image": "new"}, files={"label": file}, timeout=60)
    assert server.infer(DOUBLED, "new").ok
    save(server.folder.parent / "new.nii.gz", 5)
    with (server.folder.parent / "new.nii.gz").open("rb") as file:
        assert requests.put(f"{server.url}/datastore/", params={"image": "new"}, files={"file": file}, timeout=60).ok
    pairs = requests.get(f"{server.url}/datastore/", params={"output": "train"}, timeout=60).json()
    assert not [pair for pair in pairs if "new" in pair["image"]]  # the label was another image's
    assert requests.delete(f"{server.url}/datastore/", params={"id": "new"}, timeout=60).ok
    assert not (studies / "new.nii.gz").exists()


def test_the_client_tells_of_a_refusal(client: "MONAILabelClient") -> None:
    with pytest.raises(Exception, match="expected a NIfTI file") as told:  # each client has a class of its own
        client.infer(DOUBLED, "broken", {})
    assert type(told.value).__name__ == MONAILabelClientException.__name__


def test_nothing_is_left_of_what_was_asked(server: Server) -> None:
    for output in ("image", "json", "all"):
        assert server.infer(DOUBLED, "head", output=output).ok
    assert server.infer(HU, "head", result_dtype="uint8").status_code == 422
    refused = requests.post(f"{server.url}/infer/{DOUBLED}", files={"file": ("x.nii.gz", b"no image")}, timeout=60)
    assert refused.status_code == 422
    for _ in range(50):  # the server removes a file once it is sent
        left = [path for path in (server.folder / "tmp").iterdir() if path.is_file()]
        if not left:
            break
        time.sleep(0.1)
    assert left == []
    assert server.folder.stat().st_mode & 0o077 == 0


def test_the_log_tells_how_long_and_not_whose(server: Server) -> None:
    assert server.infer(DOUBLED, "other").ok
    told = server.log.read_text() + (server.folder / "logs" / "app.log").read_text()
    assert "doubled: one image in" in told
    assert "other" not in told
    assert requests.get(f"{server.url}/logs/", timeout=60).ok


def test_while_it_computes_for_one_it_answers_others(server: Server, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nibabel.save(
        nibabel.Nifti1Image(rng.integers(0, 900, (160, 160, 160)).astype(np.int16), np.eye(4)), tmp_path / "x.nii"
    )
    with ThreadPoolExecutor(2) as pool, (tmp_path / "x.nii").open("rb") as one, (tmp_path / "x.nii").open("rb") as two:
        url, asked = f"{server.url}/infer/{DOUBLED}", {"output": "image"}
        waiting = [
            pool.submit(requests.post, url, params=asked, files={"file": file}, timeout=300) for file in (one, two)
        ]
        waits, began = [0.0], time.monotonic()
        while not all(future.done() for future in waiting):
            asked_at = time.monotonic()
            assert requests.get(f"{server.url}/info/", timeout=60).ok
            waits.append(time.monotonic() - asked_at)
            time.sleep(0.02)  # asked without a pause, it would do little else
        whole = time.monotonic() - began
        first, second = (future.result() for future in waiting)
    assert first.ok
    assert first.content == second.content
    assert max(waits) < 0.3 * whole  # one of the two alone takes half of it


def test_a_cohort_in_the_background_loses_nobody(server: Server, tmp_path: Path) -> None:
    answer = requests.post(f"{server.url}/batch/infer/{DOUBLED}", params={"images": "all"}, timeout=60)
    assert answer.status_code == 200
    assert server.wait_for("batch/infer")["status"] == "DONE"
    label = requests.get(f"{server.url}/datastore/label", params={"label": "head", "tag": "original"}, timeout=60)
    (tmp_path / "head.nii.gz").write_bytes(label.content)
    equal_to_run(tmp_path / "head.nii.gz", tmp_path / "run", server, DOUBLED)
    labels = {path.name for path in (Path(server.studies) / "labels" / "original").iterdir()}
    assert labels == {"head.nii.gz", "other.nii.gz"}
    told = requests.post(
        f"{server.url}/batch/infer/{DOUBLED}", params={"images": "all", "run_sync": "true"}, json={}, timeout=300
    ).json()
    assert set(told) == {"head", "other", "broken", "eye"}
    assert "expected a NIfTI file" in told["broken"]["error"]
    assert told["head"]["label"] == "head"
    if not torch.cuda.is_available():
        answer = requests.post(
            f"{server.url}/batch/infer/{DOUBLED}", params={"run_sync": "true"}, json={"device": "cuda:0"}, timeout=60
        )
        assert answer.status_code == 422
        assert "got cuda:0" in answer.json()["detail"]


def test_the_snippet_for_slicer_loads_a_scalar_volume(
    server: Server, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "SERVING.md").read_text(encoding="utf-8"), re.DOTALL)
    loaded = {}

    class Node:
        def GetName(self) -> str:  # noqa: N802 - VTK's names
            return "T1"

    def load(path: str, properties: dict[str, str]) -> Node:
        loaded[properties["name"]] = SimpleITK.ReadImage(path)
        return Node()

    slicer = ModuleType("slicer")
    slicer.mrmlScene = ModuleType("mrmlScene")
    slicer.mrmlScene.GetFirstNodeByClass = lambda name: Node()
    slicer.util = ModuleType("util")
    slicer.util.saveNode = lambda node, path: shutil.copyfile(Path(server.studies) / "head.nii.gz", path)
    slicer.util.loadVolume = load
    slicer.util.setSliceViewerLayers = lambda **layers: loaded.update(layers)
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    assert "http://127.0.0.1:8000" in code
    exec(code.replace("http://127.0.0.1:8000", server.url).replace("brain_t1_to_t2", DOUBLED), {})
    image = loaded["T1 doubled"]
    assert image.GetSize() == SHAPE
    assert image.GetPixelID() == SimpleITK.sitkFloat32
    assert loaded["foregroundOpacity"] > 0
