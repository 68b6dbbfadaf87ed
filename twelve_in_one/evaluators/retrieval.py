"""Retrieval over all candidates: the score of every caption with every image, and the ranks.

The model runs on blocks of captions times images (`System.pair_scores`). Letters: M captions, N
images, C captions and I images in a block.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from twelve_in_one.data.encode.retrieval import RetrievalSet
from twelve_in_one.parallel.sharding import batch_sharding, batch_ways, max_in_flight
from twelve_in_one.tasks.metrics import retrieval as metrics

# Results on COCO's 5,000 test images are often reported as five sets of Flickr30k's size.
_FOLD = 1000

PairStep = Callable[[Any, Mapping[str, Any], Mapping[str, Any], Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """All scores of a retrieval test, the same on every process.

    Attributes:
      caption_ids: M example ids.
      image_ids: N image ids.
      image_of_caption: int64[M].
      scores: float32[M, N].
    """

    caption_ids: tuple[str, ...]
    image_ids: tuple[str, ...]
    image_of_caption: np.ndarray
    scores: np.ndarray


def rank(
    step: PairStep,
    params: Any,
    candidates: RetrievalSet,
    mesh: Mesh,
    *,
    captions: int,
    images: int,
    progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Scores every caption with every image.

    Captions and images of a block are split over the mesh's data axis, regardless of which
    processes own its devices. Every process gets all scores: M * N * 4 bytes on the host.

    Args:
      step: from `System.pair_scores`, compiled; every device holds its whole output.
      params: of the model, on the devices.
      candidates: the same on every process.
      mesh: of the parameters.
      captions: most captions per block; rounded up to a multiple of the devices that rows
        are split over. Memory on the devices grows with captions times images.
      images: most images per block, rounded in the same way.
      progress: called with the number of scores done and the total.
    """
    num_captions, num_images = len(candidates.caption_ids), len(candidates.image_ids)
    sizes = ((captions, num_captions), (images, num_images))
    rows_of, columns_of = (_block_size(size, total, batch_ways(mesh)) for size, total in sizes)
    scores = np.empty((num_captions, num_images), np.float32)
    task_id = jax.device_put(candidates.task_id, NamedSharding(mesh, PartitionSpec()))
    waiting: collections.deque[tuple[slice, slice, jax.Array]] = collections.deque()
    done = 0

    def fetch() -> None:
        nonlocal done
        rows, columns, block = waiting.popleft()
        found = jax.device_get(block)
        part = scores[rows, columns]
        part[...] = found[: part.shape[0], : part.shape[1]]
        done += part.size
        if progress:
            progress(done, scores.size)

    # Images take far more memory than captions, so each block of them is sent only once.
    for columns, image_block in blocks(candidates.images, num_images, columns_of, mesh):
        for rows, caption_block in blocks(candidates.captions, num_captions, rows_of, mesh):
            block = step(params, caption_block, image_block, task_id)
            with jax.transfer_guard_device_to_host("allow"):  # the guard would reject this transfer
                block.copy_to_host_async()
            waiting.append((rows, columns, block))
            if len(waiting) > max_in_flight():
                fetch()
    while waiting:
        fetch()
    return Ranking(
        candidates.caption_ids, candidates.image_ids, candidates.image_of_caption, scores
    )


def summarise(ranking: Ranking) -> dict[str, Any]:
    """Recall and ranks, summarised as in the official evaluation.

    Each caption's image is ranked among all images (12-in-1 section 4.2); the other direction is
    also reported, as is usual elsewhere. Equal scores keep the order of the candidates. For more
    than 1,000 images, "1k_..." is the mean over consecutive sets of 1,000 with their captions:
    the paper's numbers for COCO are for 1,000 images.

    Returns:
      {"score", "metric", "loss", "examples", "metrics", "chance", "majority", "words"}: the score
      is R@1; recalls are shares, ranks count from 1. Without the picture a model can only guess,
      with or without words.

    Raises:
      ValueError: a score is NaN.
    """
    to_image = metrics.text_to_image_ranks(ranking.scores, ranking.image_of_caption).stable
    to_text = metrics.image_to_text_ranks(ranking.scores, ranking.image_of_caption).stable
    num_captions, num_images = ranking.scores.shape
    found = _measures(to_image) | {
        f"text_{name}": value for name, value in _measures(to_text).items()
    }
    if num_images > _FOLD:
        found |= _fold_measures(ranking)
    chance = 1 / num_images
    return {
        "score": found["R@1"],
        "metric": "R@1",
        "loss": None,
        "examples": num_captions,
        "metrics": found | {"images": num_images},
        **dict.fromkeys(("chance", "majority", "words"), chance),
    }


def _measures(ranks: np.ndarray) -> dict[str, float]:
    summed = metrics.summarise(ranks)
    recalls = {f"R@{k}": summed[f"r{k}"] / 100 for k in (1, 5, 10)}
    return recalls | {name: summed[name] for name in ("median_rank", "mean_rank")}


def _fold_measures(ranking: Ranking) -> dict[str, float]:
    folds = []
    for start in range(0, ranking.scores.shape[1] - _FOLD + 1, _FOLD):
        image = ranking.image_of_caption - start
        rows = np.flatnonzero((image >= 0) & (image < _FOLD))
        part = ranking.scores[rows, start : start + _FOLD]
        folds.append(_measures(metrics.text_to_image_ranks(part, image[rows]).stable))
    return {f"1k_{name}": float(np.mean([fold[name] for fold in folds])) for name in folds[0]}


def _block_size(size: int, total: int, multiple: int) -> int:
    """At most about `size`, chosen so that blocks are full; rounded up to a multiple."""
    count = -(-total // size)
    return -(-total // (count * multiple)) * multiple


def blocks(
    arrays: Mapping[str, np.ndarray], total: int, size: int, mesh: Mesh
) -> Iterator[tuple[slice, dict[str, jax.Array]]]:
    """Rows in blocks of one size, the last zero-padded, each with the position of its rows.

    Args:
      arrays: [total, ...] each, the same on every process.
      total: number of rows.
      size: rows of a block, a multiple of the devices that the mesh splits rows over.
      mesh: to spread the rows of a block over.
    """
    sharding = batch_sharding(mesh)
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        placed = {}
        for key, array in arrays.items():
            part = array[rows]
            if len(part) < size:
                filler = np.zeros((size - len(part), *part.shape[1:]), part.dtype)
                part = np.concatenate([part, filler])
            placed[key] = jax.make_array_from_callback(part.shape, sharding, part.__getitem__)
        yield rows, placed
