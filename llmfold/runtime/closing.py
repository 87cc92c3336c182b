"""Objects that a ``with`` block closes."""

from abc import ABC, abstractmethod
from typing import TypeVar

T = TypeVar("T", bound="Closing")


class Closing(ABC):
    """Closes itself where a ``with`` block ends, whatever ends it."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held."""

    def __enter__(self: T) -> T:
        """The object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
