"""Batches for pretraining on captions: some words and regions hidden, half the captions swapped.

12-in-1 section 4 and the released data class. A batch holds (B examples, T tokens, R region slots,
F feature size, C region classes):

* tokens int32[B, T], token_mask bool[B, T], boxes float32[B, R, 5], region_mask bool[B, R]: as in
  `tasks/task.py`; regions float32[B, R, F], hidden ones zero, region 0 the mean after hiding
* token_labels int32[B, T], original id where a token is to be predicted, else -1
* region_labels int32[B, R], 1 where a region is to be predicted, else -1; -1 for region 0
* the targets of regions. Target 0: region_classes float32[B, R, C], the detector's
  distribution. Targets 1 and 2: region_features float32[B, R, F], before hiding; target 2 also
  across_draws float32[B, R, K] and within_draws float32[B, R, K'], uniform in [0, 1), which become
  negatives from other rows and from the same row on the device
* is_misaligned int32[B], 1 where the caption is another image's
* region_weight and alignment_weight float32[], factors on two of the three losses
* task_id int32[], _mask bool[B], example_id str[B] (host only)
"""

import dataclasses

import numpy as np

from twelve_in_one.data.encode import masking
from twelve_in_one.data.encode.examples import Batch
from twelve_in_one.data.encode.text import Tokenizer
from twelve_in_one.data.pipeline import Selection
from twelve_in_one.data.stored.records import DataError
from twelve_in_one.tasks.task import Task

# Shares of the negatives from other images of the batch and from the same image (released code,
# which rounds both numbers down).
ACROSS_SHARE, WITHIN_SHARE = 0.7, 0.3


@dataclasses.dataclass(frozen=True)
class PretrainingStream:
    """Pretraining batches.

    Attributes:
      selection: which examples.
      task: T and R, with the global region, and its row of the task-token table.
      tokenizer: of the model.
      feature_dim: F.
      num_classes: C, of target 0.
      visual_target: masked regions predict 0 their classes, 1 their features, 2 which of
        several features is theirs.
      objective: 0 all losses on all pairs; 1 no masked losses on swapped pairs (12-in-1); 2 no
        swapped pairs, and no loss of alignment.
      overlap_iou: regions that overlap a masked region by more than this are hidden, too; 1 hides
        none.
      official_overlap: regions that overlap a hidden region keep their features, as released, and
        only the mean's divisor is smaller.
      region_weight: factor on the loss of masked regions.
      num_negatives: for target 2.
      feature_dtype: of regions during the transfer to the device; targets stay float32.
    """

    selection: Selection
    task: Task
    tokenizer: Tokenizer
    feature_dim: int
    num_classes: int = 0
    visual_target: int = 0
    objective: masking.Objective = 1
    overlap_iou: float = 0.4
    official_overlap: bool = False
    region_weight: float = 1.0
    num_negatives: int = 128
    feature_dtype: type = np.float32

    def batch(self, number: int) -> Batch:
        """This host's rows of batch `number`, counted from 0 over all epochs.

        Raises:
          DataError: the regions do not fit the model.
          IndexError: beyond the end of an evaluation.
        """
        rows, count = self.selection.rows(number), self.selection.num_rows
        batch = self.empty(count)
        batch["_mask"][: len(rows)] = True
        for i, (epoch, example) in enumerate(rows):
            self._fill(batch, i, epoch, example)
        return batch

    def empty(self, count: int) -> Batch:
        """A batch of rows without examples."""
        tokens, regions = (count, self.task.max_tokens), (count, self.task.max_regions)
        shapes = {"region_classes": self.num_classes}
        if self.visual_target:
            shapes = {"region_features": self.feature_dim}
        if self.visual_target == 2:
            shapes["across_draws"] = int(ACROSS_SHARE * self.num_negatives)
            shapes["within_draws"] = int(WITHIN_SHARE * self.num_negatives)
        wanted = {key: np.zeros((*regions, size), np.float32) for key, size in shapes.items()}
        return wanted | {
            "tokens": np.full(tokens, self.tokenizer.pad_id, np.int32),
            "token_mask": np.zeros(tokens, bool),
            "token_labels": np.full(tokens, -1, np.int32),
            "regions": np.zeros((*regions, self.feature_dim), self.feature_dtype),
            "region_labels": np.full(regions, -1, np.int32),
            "boxes": np.zeros((*regions, 5), np.float32),
            "region_mask": np.zeros(regions, bool),
            "is_misaligned": np.zeros(count, np.int32),
            "region_weight": np.float32(self.region_weight),
            "alignment_weight": np.float32(self.objective != 2),
            "task_id": np.int32(self.task.task_id),
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
        tokens, token_mask = words.encode(selection.text(caption), self.task.max_tokens)
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

        kept = min(len(image.features), self.task.max_regions - 1)
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
            overlap_iou=self.overlap_iou,
            official_overlap=self.official_overlap,
            max_regions=self.task.max_regions - 1,
        )
        real = slice(1, 1 + kept)
        batch["regions"][i, 0], batch["regions"][i, real] = hidden.global_feature, hidden.features
        if self.visual_target:
            batch["region_features"][i, real] = features
        else:
            batch["region_classes"][i, real] = image.class_probs[:kept]
        for name in ("across_draws", "within_draws"):
            if name in batch:
                batch[name][i, real] = rng.random((kept, batch[name].shape[2]), np.float32)
        batch["region_labels"][i, real] = masking.drop_labels(
            hidden.labels, is_misaligned, objective=self.objective
        )

    def _check(self, example_id: str, features: np.ndarray, class_probs: np.ndarray) -> None:
        where, classes = f"{self.selection.reader.name}: example {example_id}", self.num_classes
        if features.shape[1] != self.feature_dim:
            raise DataError(
                f"{where}: region features have size {features.shape[1]}, the model takes "
                f"{self.feature_dim}"
            )
        if not self.visual_target and class_probs.shape[1] != classes:
            raise DataError(
                f"{where}: regions come with {class_probs.shape[1]} classes, the model predicts "
                f"{classes}: set model.num_region_classes, or let it predict features "
                "(model.visual_target 1 or 2)"
            )
