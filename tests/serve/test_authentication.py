"""Behind MONAI Label's own authentication: nobody without a token that the realm has signed, and the role it takes."""

import base64
import json
import time
from collections.abc import Callable, Iterator

import pytest
import requests
from label_server import INSTALLED, Server, needs_server, serving
from web import serve
from zoo_like import write_bundle

pytestmark = needs_server
if INSTALLED:
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

Sign = Callable[..., str]


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Sign]]:
    """A server, and what signs tokens for a realm that it trusts, as Keycloak does."""
    folder = tmp_path_factory.mktemp("realm")
    (folder / "studies").mkdir()
    key = rsa.generate_private_key(65537, 2048)
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def sign(role: str, by: "rsa.RSAPrivateKey | str" = key, algorithm: str = "RS256", expires: float = 300) -> str:
        claims = {"preferred_username": "a", "email": "a@b", "name": "A", "realm_access": {"roles": [role]}}
        return jwt.encode({**claims, "exp": time.time() + expires}, by, algorithm=algorithm)

    with serve() as web:
        web.files["/realms/r"] = json.dumps({"public_key": base64.b64encode(public).decode()}).encode()
        environment = {
            "MONAI_LABEL_AUTH_ENABLE": "true",
            "MONAI_LABEL_AUTH_REALM_URI": f"http://127.0.0.1:{web.address.rpartition(':')[2]}/realms/r",
        }
        bundles = [str(write_bundle(folder / "doubled"))]
        with serving(folder / "app", str(folder / "studies"), bundles, "--trust", environment=environment) as server:
            yield server, sign


def asked(server: Server, path: str, token: str, method: str = "GET") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.request(method, server.url + path, headers=headers, timeout=60).status_code


def test_nobody_is_let_in_without_a_token(realm: tuple[Server, Sign]) -> None:
    server, _ = realm
    for path in ("/info/", "/datastore/", "/train/", "/logs/", "/batch/infer", "/model/doubled"):
        assert asked(server, path, "") == 401, path
    for path in ("/infer/doubled?image=a", "/train/doubled", "/batch/infer/doubled"):
        assert asked(server, path, "", "POST") == 401, path


def test_a_token_of_the_realm_opens_what_its_role_may(realm: tuple[Server, Sign]) -> None:
    server, sign = realm
    user, admin = sign("monailabel-user"), sign("monailabel-admin")
    assert asked(server, "/info/", user) == 200
    assert asked(server, "/infer/doubled?image=a", user, "POST") == 404  # no such image
    assert asked(server, "/train/doubled", user, "POST") == 403
    assert asked(server, "/train/", sign("nobody")) == 403
    assert asked(server, "/info/", admin) == 403


def test_a_token_that_the_realm_has_not_signed_opens_nothing(realm: tuple[Server, Sign]) -> None:
    server, sign = realm
    stranger = rsa.generate_private_key(65537, 2048)
    assert asked(server, "/info/", sign("monailabel-user", stranger)) == 401
    assert asked(server, "/info/", sign("monailabel-user", "a secret of thirty-two characters", "HS256")) == 401
    assert asked(server, "/info/", sign("monailabel-user", expires=-5)) == 401
    assert asked(server, "/info/", "nonsense") == 401
