"""A foreign bundle's code is listed in full by reading alone; nothing of it runs."""

import json
from pathlib import Path

import pytest
import yaml
from zoo_like import write_bundle, zoo_config

from medgen.errors import BundleError
from medgen.provenance import file_sha256
from medgen.run.trust_code import list_code


def _listed(folder: Path, name: str = "inference.json") -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for kind, what, where in list_code(folder, folder / "configs" / name):
        found.setdefault(kind, []).append((what, where))
    return found


def test_every_target_and_expression_of_a_zoo_config_is_listed(tmp_path: Path) -> None:
    found = _listed(write_bundle(tmp_path / "zoo"))
    text = json.dumps(zoo_config())
    assert len(found["target"]) == text.count('"_target_"')
    assert len(found["import"]) + len(found["expression"]) == text.count('"$')
    assert ("import glob", "configs/inference.json: imports::0") in found["import"]
    assert ("LoadImaged", "configs/inference.json: preprocessing::transforms::0::_target_") in found["target"]


def test_listing_runs_nothing(tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    config = zoo_config() | {
        "imports": [f"$open({str(sign)!r}, 'w')"],
        "network_def": {"_target_": "os.mkdir", "path": str(sign)},
    }
    folder = write_bundle(tmp_path / "zoo", config)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text(f"open({str(sign)!r}, 'w')")
    found = _listed(folder)
    assert not sign.exists()
    assert any(what.startswith("open(") for what, _ in found["expression"])
    assert any(what == "os.mkdir" for what, _ in found["target"])


def test_scripts_are_listed_with_their_sum_and_imports(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "zoo")
    script = folder / "scripts" / "net.py"
    script.parent.mkdir()
    script.write_text("import os.path\nfrom torch import nn\nfrom . import sibling\n")
    [(what, where)] = _listed(folder)["script"]
    assert where == "scripts/net.py"
    assert what == f"sha256 {file_sha256(script)}; imports os, torch"


def test_torchscript_logging_and_code_hidden_in_metadata_are_listed(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "zoo", metadata={"x": {"y": "$__import__('os')"}})
    (folder / "models" / "model.ts").write_bytes(b"archive")
    (folder / "configs" / "logging.conf").write_text("[loggers]")
    found = _listed(folder)
    assert found["torchscript"][0][1] == "models/model.ts"
    assert found["logging"][0][1] == "configs/logging.conf"
    assert ("__import__('os')", "configs/metadata.json: x::y") in found["expression"]


def test_files_behind_macros_are_listed_too(tmp_path: Path) -> None:
    config = zoo_config() | {"inferer": "%parts.json::inferer"}
    folder = write_bundle(tmp_path / "zoo", config)
    (folder / "configs" / "parts.json").write_text(json.dumps({"inferer": "$print(1)"}))
    found = _listed(folder)
    assert found["macro"] == [("parts.json::inferer", "configs/inference.json: inferer")]
    assert ("print(1)", "configs/parts.json: inferer") in found["expression"]


def test_yaml_aliases_without_end_are_listed_once(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "zoo", own=True)
    nested = "a0: &a0 ['$1']\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    (folder / "configs" / "inference.yaml").write_text(nested + "loop: &l [*l]\n")
    assert _listed(folder, "inference.yaml")["expression"] == [("1", "configs/inference.yaml: a0::0")]


def test_yaml_tag_that_would_build_an_object_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "zoo", own=True)
    (folder / "configs" / "inference.yaml").write_text("x: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(BundleError, match=r"configs/inference\.yaml"):
        _listed(folder, "inference.yaml")


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_unreadable_config_is_named(tmp_path: Path, text: str) -> None:
    folder = write_bundle(tmp_path / "zoo")
    (folder / "configs" / "inference.json").write_text(text)
    with pytest.raises(BundleError, match=r"configs/inference\.json"):
        _listed(folder)


def test_list_is_the_same_for_yaml_and_json(tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "a")
    (tmp_path / "b" / "configs").mkdir(parents=True)
    (tmp_path / "b" / "configs" / "inference.yml").write_text(yaml.safe_dump(zoo_config(), sort_keys=False))
    assert _listed(written)["target"] == [
        (what, where.replace(".yml", ".json")) for what, where in _listed(tmp_path / "b", "inference.yml")["target"]
    ]
