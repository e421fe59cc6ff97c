"""Templates to answers: the one place that renders, with the headers that every page carries.

The content security policy allows nothing inline and nothing from elsewhere. Every template knows `viewer`: who looks,
or None where nobody was asked.
"""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

import jinja2
from starlette.requests import Request
from starlette.responses import Response

from lossguard_service.web import words
from lossguard_service.web.assets import Assets

SECURITY: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Renderer:
    """The templates and the static files they name."""

    def __init__(self) -> None:
        self.assets = Assets()
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("lossguard_service.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "number": words.number,
            "whole": words.whole,
            "count": words.count,
            "duration": words.duration,
            "first_sentence": words.first_sentence,
            "value": _value,
            "when": _when,
        }
        self._templates.globals |= {
            "asset": self.assets.path,
            "outcomes": words.OUTCOMES,
            "version": version("lossguard"),
        }

    def render(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """A page."""
        viewer = getattr(request.state, "viewer", None)
        page = self._templates.get_template(template).render(viewer=viewer, **values)
        return Response(page, status, headers=SECURITY, media_type="text/html; charset=utf-8")


def _when(seconds: float | None) -> str:
    """A moment, to the second, in UTC: logs of several machines are laid beside it."""
    return "–" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _value(value: Any) -> str:
    """What a check observed or allows."""
    if value is None or value == [] or value == ():
        return "–"
    return words.whole(value) if isinstance(value, int) and not isinstance(value, bool) else words.said(value)
