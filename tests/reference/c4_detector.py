"""A small detector of bottom-up attention in PyTorch and plain loops, and random weights for it."""

import numpy as np
from reference.when_used import when_used

from twelve_in_one.models.detection import c4
from twelve_in_one.models.detection.c4 import Sweep
from twelve_in_one.models.detection.fpn import MEAN_BGR

torch, F = when_used("torch"), when_used("torch.nn.functional")

NUM_CLASSES, STEM, INNER, RPN = 6, 8, 4, 16
BLOCKS = (1, 2, 1, 1)
BEFORE, AFTER, MOST = 80, 24, 6


def random_state() -> dict[str, np.ndarray]:
    """Weights in the layout of the ports."""
    rng = np.random.default_rng(7)
    state = {}

    def convolution(name, out, inputs, kernel):
        fan = inputs * kernel**2
        weight = rng.normal(size=(out, inputs, kernel, kernel)) * np.sqrt(2 / fan)
        state[f"{name}.weight"] = weight.astype(np.float32)
        for leaf, value in (
            ("weight", rng.uniform(0.6, 1.2, out)),
            ("bias", rng.normal(size=out) * 0.2),
            ("running_mean", rng.normal(size=out) * 0.2),
            ("running_var", rng.uniform(0.7, 1.5, out)),
        ):
            state[f"{name}.norm.{leaf}"] = value.astype(np.float32)
        state[f"{name}.norm.num_batches_tracked"] = np.array(7)

    convolution("backbone.stem.conv1", STEM, 3, 7)
    state["backbone.stem.conv1.weight"] /= 60
    width = STEM
    stages = ("backbone.res2", "backbone.res3", "backbone.res4", "roi_heads.res5")
    for i, (stage, blocks) in enumerate(zip(stages, BLOCKS, strict=True)):
        inner, outer = INNER << i, 4 * INNER << i
        for block in range(blocks):
            name = f"{stage}.{block}"
            convolution(f"{name}.conv1", inner, width, 1)
            convolution(f"{name}.conv2", inner, inner, 3)
            convolution(f"{name}.conv3", outer, inner, 1)
            if block == 0:
                convolution(f"{name}.shortcut", outer, width, 1)
            width = outer
    anchors = c4.base_anchors("exact")
    state["proposal_generator.anchor_generator.cell_anchors.0"] = anchors
    plain = {
        "proposal_generator.rpn_head.conv": (RPN, width // 2, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (12, RPN, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (48, RPN, 1, 1),
        "roi_heads.box_predictor.cls_score": (NUM_CLASSES + 1, width),
        "roi_heads.box_predictor.bbox_pred": (4 * NUM_CLASSES, width),
        "roi_heads.box_predictor.attr_score": (5, 12),
    }
    for name, shape in plain.items():
        scale = 0.3 / np.sqrt(np.prod(shape[1:]))
        if "anchor_deltas" in name:
            scale *= 4
        state[f"{name}.weight"] = (rng.normal(size=shape) * scale).astype(np.float32)
        state[f"{name}.bias"] = (rng.normal(size=shape[0]) * 0.1).astype(np.float32)
    return state


class Reference:
    """The ports' network and selection for one photo at a time."""

    def __init__(self, state):
        self.state = {name: torch.tensor(value) for name, value in state.items()}

    def convolution(self, x, name, **options):
        s = self.state
        x = F.conv2d(x, s[f"{name}.weight"], **options)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(s[f"{name}.norm.{n}"] for n in names), eps=1e-5)

    def stage(self, x, name, blocks, stride, dilation=1):
        for i in range(blocks):
            at, step = f"{name}.{i}", stride if i == 0 else 1
            y = F.relu(self.convolution(x, f"{at}.conv1", stride=step))
            y = F.relu(self.convolution(y, f"{at}.conv2", padding=dilation, dilation=dilation))
            y = self.convolution(y, f"{at}.conv3")
            x = F.relu(y + (self.convolution(x, f"{at}.shortcut", stride=step) if i == 0 else x))
        return x

    def linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def map(self, image):
        pixels = image[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
        x = torch.tensor(pixels.transpose(2, 0, 1)[None].copy())
        x = F.relu(self.convolution(x, "backbone.stem.conv1", stride=2, padding=3))
        x = F.max_pool2d(x, 3, 2, 0, ceil_mode=True)
        for i in (2, 3, 4):
            x = self.stage(x, f"backbone.res{i}", BLOCKS[i - 2], 1 if i == 2 else 2)
        return x

    def proposals(self, cells, size):
        name = "proposal_generator.rpn_head."
        s = self.state
        hidden = F.relu(F.conv2d(cells, s[f"{name}conv.weight"], s[f"{name}conv.bias"], padding=1))
        logits, deltas = (
            F.conv2d(hidden, s[f"{name}{n}.weight"], s[f"{name}{n}.bias"])[0]
            for n in ("objectness_logits", "anchor_deltas")
        )
        rows, columns = logits.shape[1:]
        logits = logits.permute(1, 2, 0).reshape(-1).numpy()
        deltas = deltas.reshape(12, 4, rows, columns).permute(2, 3, 0, 1).reshape(-1, 4).numpy()
        shifts = [(x * 16, y * 16, x * 16, y * 16) for y in range(rows) for x in range(columns)]
        anchors = (np.array(shifts)[:, None] + c4.base_anchors("exact")).reshape(-1, 4)
        order = np.argsort(-logits, kind="stable")[:BEFORE]
        boxes = moved(anchors[order], deltas[order], (1, 1, 1, 1), size)
        order = order[((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)]
        boxes = moved(anchors[order], deltas[order], (1, 1, 1, 1), size)
        return boxes[greedy(boxes, 0.7)[:AFTER]]

    def features(self, cells, boxes):
        pooled = torch.tensor(np.stack([pool(cells[0].numpy(), box / 16) for box in boxes]))
        return self.stage(pooled, "roi_heads.res5", BLOCKS[3], 1, dilation=2).mean((2, 3))

    def detect(self, image, size):
        """Boxes in pixels of the photo, features, and probabilities with the background last."""
        cells = self.map(image)
        boxes = self.proposals(cells, image.shape[:2])
        features = self.features(cells, boxes)
        probs = F.softmax(self.linear(features, "roi_heads.box_predictor.cls_score"), 1).numpy()
        deltas = self.linear(features, "roi_heads.box_predictor.bbox_pred").numpy()
        best = probs[:, :-1].argmax(1)
        deltas = deltas.reshape(len(boxes), -1, 4)[np.arange(len(boxes)), best]
        boxes = moved(boxes, deltas, (10, 10, 5, 5), image.shape[:2])
        scores = probs[:, :-1].max(1)
        order = np.argsort(-scores, kind="stable")
        for threshold in Sweep().thresholds:
            kept = order[greedy(boxes[order], threshold)][:MOST]
            if len(kept) >= MOST:
                break
        scale = np.array([size[1] / image.shape[1], size[0] / image.shape[0]] * 2)
        return boxes[kept] * scale, features[kept].numpy(), probs[kept]


def moved(boxes, deltas, weights, size):
    dx, dy, dw, dh = (deltas.astype(np.float64) / weights).T
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + width / 2 + dx * width, boxes[:, 1] + height / 2 + dy * height
    width = width * np.exp(np.minimum(dw, np.log(1000 / 16)))
    height = height * np.exp(np.minimum(dh, np.log(1000 / 16)))
    corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    return np.clip(corners, 0, np.array([size[1], size[0]] * 2)).astype(np.float32)


def greedy(boxes, threshold):
    kept = []
    for i, box in enumerate(boxes):
        low, high = np.maximum(box[:2], boxes[kept, :2]), np.minimum(box[2:], boxes[kept, 2:])
        shared = np.maximum(high - low, 0).prod(1)
        area = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes[i : i + 1], boxes[kept])]
        if not (shared / (area[0] + area[1] - shared) > threshold).any():
            kept.append(i)
    return kept


def pool(cells, box):
    """RoIPool of one box in cells, bin by bin."""
    x1, y1, x2, y2 = np.floor(box.astype(np.float32) + np.float32(0.5)).astype(int)
    out = np.zeros((len(cells), 14, 14), np.float32)
    bins = []
    for first, last, limit in ((y1, y2, cells.shape[1]), (x1, x2, cells.shape[2])):
        step = np.float32(max(last - first + 1, 1)) / np.float32(14)
        start = first + np.floor(np.arange(14, dtype=np.float32) * step).astype(int)
        end = first + np.ceil(np.arange(1, 15, dtype=np.float32) * step).astype(int)
        bins.append(np.clip([start, end], 0, limit).T)
    for i, (top, bottom) in enumerate(bins[0]):
        for j, (left, right) in enumerate(bins[1]):
            if bottom > top and right > left:
                out[:, i, j] = cells[:, top:bottom, left:right].max((1, 2))
    return out
