"""Some of MONAI Label's endpoints as they should be.

One image is computed beside the thread that answers, and what makes no sense is refused in words. What viewers ask of
the DICOMweb server, with this server's credentials, is only read, and only below the address of the studies. Weights
come from trainings, not from callers.
"""

import difflib
import inspect
import json
import re
import tarfile
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from fastapi import BackgroundTasks, HTTPException, Request, Response
from monailabel.config import settings
from monailabel.endpoints import infer, model, proxy
from monailabel.utils.async_tasks import task

_SESSION = re.compile("[0-9a-z-]*")
_GONE, _UNUSABLE = 404, 422  # HTTP: understood, and cannot be done with this


def answer_while_computing() -> None:
    """Puts the endpoint in the place of MONAI Label's own, which computes in the thread that answers everybody."""
    api_run_inference.__signature__ = inspect.signature(infer.api_run_inference)  # type: ignore[attr-defined]
    routes = infer.router.routes
    [(at, stock)] = [(n, one) for n, one in enumerate(routes) if one.endpoint is infer.api_run_inference]
    path = stock.path.removeprefix(infer.router.prefix)
    infer.router.add_api_route(path, api_run_inference, methods=["POST"], summary=stock.summary)
    routes[at] = routes.pop()


def api_run_inference(*, user: object, background_tasks: BackgroundTasks, **asked: Any) -> Any:  # noqa: ANN401
    """Runs a model on an image; arguments and answer are those of MONAI Label's endpoint.

    Args:
        user: who asks; that there is one is enough.
        background_tasks: what is done when the answer is sent, or has failed: uploads are removed.
        asked: what for.

    Raises:
        HTTPException: 422, if there is no image, or `params` cannot be read; and as the model's task.
    """
    _require_sense(**asked)
    try:
        return infer.run_inference(background_tasks, **asked)
    except Exception:
        for task in background_tasks.tasks:  # nobody does them after a failure
            task.func(*task.args, **task.kwargs)
        raise


def only_read() -> None:
    """Lets viewers only read, and only below the address of the studies; and nobody send weights."""
    stock = proxy.proxy_dicom

    async def proxy_dicom(request: Request, op: str, path: str) -> Response:
        plain = path
        while (decoded := unquote(plain)) != plain:  # what asks in our name decodes once more
            plain = decoded
        if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
            raise HTTPException(_GONE, "expected studies of a DICOMweb server, got a folder")
        if ".." in plain or "\\" in plain:
            raise HTTPException(_GONE, "expected a path below the address of the studies")
        return await stock(request, op, path)

    proxy.proxy_dicom = proxy_dicom
    for router, method in ((proxy.router, "POST"), (model.router, "PUT")):
        router.routes[:] = [route for route in router.routes if method not in route.methods]


def run_no_code() -> None:
    """Lets no caller say where the server's processes find their code: MONAI Label takes `bundle_path` from anybody."""
    stock = task.run_background_task

    def run_background_task(request: dict[str, Any], *more: Any, **how: Any) -> Any:  # noqa: ANN401
        return stock({name: value for name, value in request.items() if name != "bundle_path"}, *more, **how)

    task.run_background_task = run_background_task


def without_reload(app: Any) -> None:  # noqa: ANN401 - FastAPI's
    """Removes what lets anybody load all bundles anew, beside those that are loaded."""
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != "/reload"]


def no_links(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """Filters what is unpacked of an archive: `tarfile.data_filter` of some Python versions can be led astray by links.

    Raises:
        FilterError: the member is a link, or would be elsewhere.
    """
    if member.issym() or member.islnk():
        raise tarfile.LinkOutsideDestinationError(member, path)
    return tarfile.data_filter(member, path)


def require_spelled(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names that are nearly those that mean something; others are for other models, and none of our business.

    Raises:
        HTTPException: 422, with the name that was meant.
    """
    known = list(known)
    for name in names:
        meant = [] if name in known else difflib.get_close_matches(name, known, 1, 0.8)
        if meant:
            raise HTTPException(_UNUSABLE, f"expected {meant[0]} in params, got {name}")


def _require_sense(*, model: str, image: str, session_id: str, params: str, file: object, **_: object) -> None:
    if not (image or session_id or file):
        raise HTTPException(_UNUSABLE, "expected image=ID, a file, or a session_id, got none of them")
    if not _SESSION.fullmatch(session_id):  # it becomes a folder's name
        raise HTTPException(_UNUSABLE, "expected the ID of a session as session_id, got another word")
    try:
        asked = json.loads(params or "{}")
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise HTTPException(_UNUSABLE, 'expected params as a JSON object, such as {"result_dtype": "int16"}')
    if asked.get("model", model) != model:
        raise HTTPException(_UNUSABLE, f"expected one model, got {model} in the address and another in params")
