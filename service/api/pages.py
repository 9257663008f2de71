"""What people open in a browser: the playground at /, the reference at /docs. Nothing is fetched from elsewhere."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import orjson
from starlette.routing import BaseRoute

from service import playground
from service.api.call import Call, Reply, Service
from service.api.openapi import document
from service.api.routes import DirectRoute
from service.errors import RouteNotFound

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_PLAYGROUND = Path(playground.__file__).parent
_PLAYGROUND_FILES = ("app.js", "plots.js", "style.css")
_DOCS_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")

_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# Swagger UI sets styles from its script
_DOCS_POLICY = _POLICY + "; style-src 'self' 'unsafe-inline'"

_DOCS_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Carousel API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_DOCS_START = b"""SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true, validatorUrl: null,
});
"""


def routes(service: Service) -> list[BaseRoute]:
    pages = {
        "/": home,
        "/playground/{file}": playground_file,
        "/docs": docs,
        "/docs/{file}": docs_file,
        "/openapi.json": OpenApiPage().openapi_json,
    }
    return [DirectRoute(service, "GET", path, page, include_in_schema=False) for path, page in pages.items()]


async def home(call: Call) -> Reply:
    return _page(_read(_PLAYGROUND / "index.html"), ".html")


async def playground_file(call: Call) -> Reply:
    name = call.path("file")
    if name not in _PLAYGROUND_FILES:
        raise RouteNotFound("The playground has no such file.")
    return _page(_read(_PLAYGROUND / name), Path(name).suffix)


async def docs(call: Call) -> Reply:
    return _page(_DOCS_PAGE, ".html", _DOCS_POLICY)


async def docs_file(call: Call) -> Reply:
    name = call.path("file")
    if name == "start.js":
        return _page(_DOCS_START, ".js")
    if name not in _DOCS_FILES:
        raise RouteNotFound("The reference has no such file.")
    return _page(_read(_swagger_ui() / name), Path(name).suffix)


class OpenApiPage:
    """Made anew when other models are loaded, not for each caller: the event loop stands still meanwhile."""

    def __init__(self) -> None:
        self._made_of: list[tuple[str, int, str]] | None = None
        self._body = b""

    async def openapi_json(self, call: Call) -> Reply:
        models = [(model.name, model.version, model.fingerprint) for model in call.service.registry.loaded()]
        if models != self._made_of:
            self._made_of, self._body = models, orjson.dumps(document(call.scope["app"], call.service))
        return Reply(self._body)


def _page(body: bytes, suffix: str, policy: str = _POLICY) -> Reply:
    headers = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]
    return Reply(body, content_type=_TYPES[suffix], headers=headers)


@cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _swagger_ui() -> Path:
    # found, not imported: the package is here for the files of Swagger UI that it brings along
    spec = importlib.util.find_spec("fastapi_offline")
    assert spec is not None, "a dependency of this package"
    assert spec.origin is not None
    return Path(spec.origin).parent / "static"
