"""Batches for pretraining on captions: some words and regions hidden, half the captions swapped.

12-in-1 section 4 and the released data class. A batch holds (B examples, T tokens, R region slots,
F feature size, C region classes):

* tokens int32[B, T], token_mask bool[B, T], boxes float32[B, R, 5], region_mask bool[B, R]: as in
  `tasks/base.py`; regions float32[B, R, F], hidden ones zero, region 0 the mean after hiding
* token_labels int32[B, T], original id where a token is to be predicted, else -1
* region_labels int32[B, R], 1 where a region is to be predicted, else -1; -1 for region 0
* region_classes float32[B, R, C], the detector's distribution; C = 0 where it is not known
* region_features float32[B, R, F], before hiding, for the targets of regression and contrast
* is_misaligned int32[B], 1 where the caption is another image's
* _mask bool[B], example_id str[B] (host only)
"""

import dataclasses

import numpy as np

from twelve_in_one.data import masking
from twelve_in_one.data.examples import Batch
from twelve_in_one.data.pipeline import Selection
from twelve_in_one.data.records import DataError
from twelve_in_one.data.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class PretrainingStream:
    """Pretraining batches.

    Attributes:
      selection: which examples.
      tokenizer: of the model.
      feature_dim: F.
      num_classes: C, 0 where the regions come without classes.
      objective: 0 all losses on all pairs; 1 no masked losses on swapped pairs (12-in-1); 2 no
        swapped pairs.
      official_overlap: regions that overlap a hidden one keep their features, as released, and
        only the mean is divided by fewer.
      max_tokens: T.
      max_regions: R, with the global region.
    """

    selection: Selection
    tokenizer: Tokenizer
    feature_dim: int
    num_classes: int = 0
    objective: masking.Objective = 1
    official_overlap: bool = False
    max_tokens: int = 36
    max_regions: int = 37

    def batch(self, number: int) -> Batch:
        """This host's rows of batch `number`, counted from 0 over all epochs.

        Raises:
          DataError: the regions do not fit the model.
          IndexError: beyond the end of an evaluation.
        """
        rows, count = self.selection.rows(number), self.selection.num_rows
        batch = self._empty(count)
        batch["_mask"][: len(rows)] = True
        for i, (epoch, example) in enumerate(rows):
            self._fill(batch, i, epoch, example)
        return batch

    def _empty(self, count: int) -> Batch:
        tokens, regions = (count, self.max_tokens), (count, self.max_regions)
        return {
            "tokens": np.full(tokens, self.tokenizer.pad_id, np.int32),
            "token_mask": np.zeros(tokens, bool),
            "token_labels": np.full(tokens, -1, np.int32),
            "regions": np.zeros((*regions, self.feature_dim), np.float32),
            "region_features": np.zeros((*regions, self.feature_dim), np.float32),
            "region_classes": np.zeros((*regions, self.num_classes), np.float32),
            "region_labels": np.full(regions, -1, np.int32),
            "boxes": np.zeros((*regions, 5), np.float32),
            "region_mask": np.zeros(regions, bool),
            "is_misaligned": np.zeros(count, np.int32),
            "_mask": np.zeros(count, bool),
            "example_id": np.full(count, "", object),
        }

    def _fill(self, batch: Batch, i: int, epoch: int, example: int) -> None:
        selection, words = self.selection, self.tokenizer
        rng = selection.rng(epoch, example)
        record_position, which = selection.locate(example)
        record = selection.reader.record(int(selection.records[record_position]))
        image = record.images[0]
        batch["example_id"][i] = record.annotations[which].example_id

        caption, is_misaligned = masking.pair_label(
            rng, selection.num_examples, example, objective=self.objective
        )
        tokens, token_mask = words.encode(selection.text(caption), self.max_tokens)
        tokens, token_labels = masking.mask_tokens(
            tokens,
            token_mask,
            rng,
            vocab_size=words.vocab_size,
            mask_id=words.mask_id,
            special_ids=(words.pad_id, words.cls_id, words.sep_id),
        )
        batch["tokens"][i], batch["token_mask"][i] = tokens, token_mask
        batch["token_labels"][i] = masking.drop_labels(
            token_labels, is_misaligned, objective=self.objective
        )
        batch["is_misaligned"][i] = is_misaligned

        kept = min(len(image.features), self.max_regions - 1)
        batch["boxes"][i, : 1 + kept] = image.locations[: 1 + kept]
        batch["region_mask"][i, : 1 + kept] = True
        if not kept:
            return
        features = image.features[:kept].astype(np.float32)
        self._check(record.annotations[which].example_id, features, image.class_probs)
        hidden = masking.mask_regions(
            features,
            image.boxes[1 : 1 + kept],
            rng,
            official_overlap=self.official_overlap,
            max_regions=self.max_regions - 1,
        )
        real = slice(1, 1 + kept)
        batch["regions"][i, 0], batch["regions"][i, real] = hidden.global_feature, hidden.features
        batch["region_features"][i, real] = features
        if self.num_classes:
            batch["region_classes"][i, real] = image.class_probs[:kept]
        batch["region_labels"][i, real] = masking.drop_labels(
            hidden.labels, is_misaligned, objective=self.objective
        )

    def _check(self, example_id: str, features: np.ndarray, class_probs: np.ndarray) -> None:
        for what, got, wanted in (
            ("region features", features.shape[1], self.feature_dim),
            ("region classes", class_probs.shape[1], self.num_classes or class_probs.shape[1]),
        ):
            if got != wanted:
                raise DataError(
                    f"{self.selection.reader.name}: example {example_id}: {what} have size {got}, "
                    f"the model takes {wanted}"
                )
