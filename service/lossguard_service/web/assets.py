"""Static files: our script and style, and plotly.js as the installed `plotly` package carries it.

Every address holds the first half of a SHA-256, so an answer may be kept for ever and a new version is a new address;
the ETag is the same digest. Our own files share one, of all of them together: so a script may import another by its
name alone. Text is compressed once and kept. No file is read whose name is not in the list.
"""

import gzip
import hashlib
import importlib.resources
import threading
from collections.abc import Sequence
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
        digest: 32 hex digits that change with its bytes.
    """

    name: str
    source: Traversable
    digest: str
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _packed: bytes | None = None

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
        files = sorted((one for one in own.iterdir() if one.name.rpartition(".")[2] in TYPES), key=lambda one: one.name)
        ours = _digest(files)
        self._assets = {one.name: Asset(one.name, one, ours) for one in files}
        plotly = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
        self._assets["plotly.js"] = Asset("plotly.js", plotly, _digest([plotly]))

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


def _digest(files: Sequence[Traversable]) -> str:
    whole = hashlib.sha256()
    for one in files:
        whole.update(hashlib.sha256(one.read_bytes()).digest())
    return whole.hexdigest()[:32]
