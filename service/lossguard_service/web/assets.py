"""Static files: our script and style, and plotly.js as the installed `plotly` package carries it.

Every address holds the first half of the file's SHA-256, so an answer may be kept for ever and a new version is a new
address; the ETag is the same digest. Text is compressed once and kept. No file is read whose name is not in the list.
"""

import gzip
import hashlib
import importlib.resources
import threading
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
KEEP: Final = "public, max-age=31536000, immutable"


@dataclass(slots=True)
class Asset:
    """One file.

    Attributes:
        name: for example `page.js`.
        source: where it is.
    """

    name: str
    source: Traversable
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _digest: str | None = None
    _packed: bytes | None = None

    @property
    def digest(self) -> str:
        """32 hex digits of the file's SHA-256."""
        if self._digest is None:
            self._digest = hashlib.sha256(self.source.read_bytes()).hexdigest()[:32]
        return self._digest

    @property
    def path(self) -> str:
        """Its address."""
        return f"/static/{self.digest}/{self.name}"

    def packed(self) -> bytes:
        """Its bytes, compressed; plotly.js takes a quarter of a second the first time."""
        with self._lock:
            if self._packed is None:
                self._packed = gzip.compress(self.source.read_bytes(), 6, mtime=0)
            return self._packed


class Assets:
    """The list of files, by name."""

    def __init__(self) -> None:
        own = importlib.resources.files("lossguard_service.web") / "static"
        self._assets = {one.name: Asset(one.name, one) for one in own.iterdir() if one.name.rpartition(".")[2] in TYPES}
        plotly = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
        self._assets["plotly.js"] = Asset("plotly.js", plotly)

    def path(self, name: str) -> str:
        """The address of a file; a template that names a file that is not there fails its tests."""
        return self._assets[name].path

    def respond(self, request: Request, digest: str, name: str) -> Response:
        """The file, or 304, or 404 if this is not its present digest."""
        asset = self._assets.get(name)
        if asset is None or asset.digest != digest:
            return Response("no such file: reload the page\n", 404, media_type="text/plain")
        headers = {
            "Cache-Control": KEEP,
            "ETag": f'"{digest}"',
            "Vary": "Accept-Encoding",
        }
        if f'"{digest}"' in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        media = TYPES[name.rpartition(".")[2]]
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(asset.packed(), headers={**headers, "Content-Encoding": "gzip"}, media_type=media)
        return Response(asset.source.read_bytes(), headers=headers, media_type=media)
