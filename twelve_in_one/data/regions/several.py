"""Several stores as one: the first that has an image provides it."""

import contextlib
from collections.abc import Iterator, Sequence

from twelve_in_one.data.regions.store import RegionStore, missing_image
from twelve_in_one.data.stored.records import Regions


class SeveralStores(RegionStore):
    """Searches stores in order, for example if a dataset's regions have one file per split.

    Args:
      stores: two or more; they are closed with this one.
    """

    def __init__(self, stores: Sequence[RegionStore]):
        self._stores = tuple(stores)
        self.name = ", ".join(store.name for store in stores)
        self.damaged = tuple(
            skip for store in stores for skip in store.damaged if skip.record not in self
        )

    @property
    def parts(self) -> tuple[RegionStore, ...]:
        return self._stores

    def ids(self) -> Iterator[str]:
        for number, store in enumerate(self._stores):
            before = self._stores[:number]
            yield from (i for i in store.ids() if not any(i in other for other in before))

    def get(self, image_id: str) -> Regions:
        for store in self._stores:
            if image_id in store:
                return store.get(image_id)
        raise missing_image(self, image_id)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for store in self._stores:
                stack.callback(store.close)

    def __contains__(self, image_id: str) -> bool:
        return any(image_id in store for store in self._stores)

    def __len__(self) -> int:
        return sum(1 for _ in self.ids())
