"""Masking of pretraining with plain loops, written from the specification (section 4).

Each function takes the uniform numbers that decide, one row per token or region.
"""

import math

import numpy as np


def overlap(box, other):
    """IoU of two boxes that include their border pixels."""
    width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]) + 1)
    height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]) + 1)
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
    return width * height / (sum(areas) - width * height)


def mask_tokens(ids, token_mask, draws, vocab_size, mask_id, special_ids, rate):
    """Returns ids and labels; `draws` has columns select, action, replacement."""
    new_ids, labels = [], []
    for position, token in enumerate(ids):
        select, action, replacement = draws[position]
        if not token_mask[position] or token in special_ids or select >= rate:
            new_ids.append(token)
            labels.append(-1)
            continue
        labels.append(token)
        if action < 0.8:
            new_ids.append(mask_id)
        elif action < 0.9:
            new_ids.append(math.floor(replacement * vocab_size))
        else:
            new_ids.append(token)
    return new_ids, labels


def mask_regions(features, boxes, draws, rate, zero_rate, overlap_iou, official, num_slots):
    """Returns features, labels and global feature; `draws` has columns select, action."""
    num_regions = len(features)
    new_features = [list(map(float, feature)) for feature in features]
    labels = [-1] * num_regions
    for region in range(num_regions):
        select, action = draws[region]
        if select < rate:
            labels[region] = 1
            if action < zero_rate:
                new_features[region] = [0.0] * features.shape[1]

    if official:
        covered = [False] * num_slots  # one flag per slot; padding slots stay uncovered
        for region in range(num_regions):
            if labels[region] == 1:
                for other in range(num_regions):
                    if overlap(boxes[region], boxes[other]) > overlap_iou:
                        covered[other] = True
        divisor = covered.count(False)
    else:
        hidden = set()
        for region in range(num_regions):
            select, action = draws[region]
            if select < rate and action < zero_rate:
                hidden.add(region)
            for other in range(num_regions):
                copied_from = other != region and labels[other] == 1
                if copied_from and overlap(boxes[region], boxes[other]) > overlap_iou:
                    hidden.add(region)
        for region in hidden:
            new_features[region] = [0.0] * features.shape[1]
        divisor = num_regions - len(hidden)

    total = np.zeros(features.shape[1])
    for feature in new_features:
        total += np.array(feature)
    shape = features.shape
    return np.array(new_features).reshape(shape), np.array(labels, int), total / max(1, divisor)
