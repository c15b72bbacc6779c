"""Which host images the engine has asked for and holds."""

from collections.abc import Callable

from hekaton.engine.interface import Engine
from hekaton.engine.messages import Event, ImageDropped, WantImage
from hekaton.errors import HekatonError
from hekaton.facts import Image


class Images:
    """An image is held from ImageReady until its model has neither requests nor a load in flight."""

    def __init__(self, engine: Engine, emit: Callable[[Event], None]) -> None:
        self._engine = engine
        self._emit = emit
        self._wanted: set[str] = set()
        self.held: set[str] = set()

    def ready(self, model: str, image: Image) -> None:
        """Maps an image that has come. Raises what the engine raises if it cannot use it; then it is not held."""
        self._wanted.discard(model)
        self.held.add(model)
        try:
            self._engine.provide_image(model, image)
        except HekatonError:
            self.drop(model)
            raise

    def failed(self, model: str) -> None:
        self._wanted.discard(model)

    def drop(self, model: str) -> None:
        """Unmaps an image, so that its lease may end."""
        if model in self.held:
            self.held.discard(model)
            self._engine.provide_image(model, None)
            self._emit(ImageDropped(model))

    def sweep(self, needed: set[str]) -> None:
        """Asks for the images that models with requests (`needed`) lack, and drops those that nobody needs."""
        loading = self._engine.loading()
        for model in sorted(needed - self._engine.resident() - loading - self.held - self._wanted):
            self._wanted.add(model)
            self._emit(WantImage(model))
        for model in sorted(self.held - needed - loading):
            self.drop(model)
