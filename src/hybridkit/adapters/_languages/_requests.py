"""The language of a request."""

from hybridkit._asgi_types import Scope
from hybridkit._header_fields import Fields
from hybridkit.adapters.localization import Localization, Translator


class RequestLanguage:
    """Chooses the language of a request when its first text is needed, and tells caches that it was needed.

    Args:
        localization: the languages of the application.
        scope: the request, whose response gets `Content-Language` and `Vary`.
        response_headers: the key in the scope of a list of headers that the response gets.
    """

    __slots__ = ("_chosen", "_localization", "_response_headers", "_scope")

    def __init__(self, localization: Localization, scope: Scope, *, response_headers: str) -> None:
        self._localization = localization
        self._scope = scope
        self._response_headers = response_headers
        self._chosen: Translator | None = None

    def __repr__(self) -> str:
        return f"RequestLanguage({self._chosen!r})"

    def __call__(self) -> Translator:
        """Return the texts of the request's language."""
        if self._chosen is None:
            accepted = Fields(self._scope["headers"]).listed("accept-language")
            self._chosen = self._localization.translator_for_header(accepted)
            if (headers := self._scope.get(self._response_headers)) is not None:
                headers.append((b"content-language", self._chosen.language.encode()))
                headers.append((b"vary", b"Accept-Language"))
        return self._chosen
