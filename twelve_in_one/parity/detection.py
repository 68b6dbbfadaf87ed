"""Compares detectors and their parts with recorded arrays.

Names are GROUP__NAME: `ra` pooling in boxes, `lvl` levels of a pyramid, `anchor`, `box` coding,
`nms` and `sel` choices of boxes, `size` and `resize` of photos, `pool` of a stem; `e2e` a picture
and what a small detector on a pyramid made of it, whose weights are `e2e_sd__*` under the names of
the released file. It runs on a larger canvas than the reference's: nothing may depend on that.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twelve_in_one.convert.faster_rcnn import from_state_dict
from twelve_in_one.models.detection import boxes, c4, fpn, nms, roi
from twelve_in_one.models.detection.fpn import FpnDetector, FpnNetwork
from twelve_in_one.models.detection.proposals import ProposalConfig
from twelve_in_one.models.detection.resize import Resizing, resample, taps
from twelve_in_one.models.detection.resnet import ResNet, stem_pool
from twelve_in_one.parity.fixture import Check, absolute, relative

Arrays = Mapping[str, np.ndarray]

ROI_ATOL, DETECTOR_RTOL, FLOAT_RTOL = 1e-5, 1e-3, 1e-6
_CONVENTIONS = {"legacy": True, "modern": False}
_RULES = {
    "x152_script": Resizing(800, 1333),
    "mrb_dataloader": Resizing(800, 1333, "down"),
    "bua_caffe_600_1000": Resizing(600, 1000),
    "bua_d2_600_1000": Resizing(600, 1000, "up"),
}
_SWEEP = c4.Sweep().thresholds
_STRIDE, _GRID = 16, (3, 4)  # of recorded grids and maps
# Of the recorded detector: the extra canvas that it gets here, and how it chooses proposals.
_EXTRA, _BEFORE, _AFTER = 64, 60, 30
_CLIPS = ("e2e_padclip", "e2e_imgclip")
# Outputs of networks whose weights are not in the file.
_ELSEWHERE = ("cnet", "ndet", "mbv2")


def is_detection(arrays: Arrays) -> bool:
    """Whether a fixture is of this kind."""
    return any(name.split("__")[0] in _GROUPS or name.startswith("e2e_") for name in arrays)


def compare(arrays: Arrays, **overrides: Any) -> Iterator[Check]:
    """Every comparison that the fixture's arrays allow.

    Args:
      arrays: of the file.
      **overrides: `dtype` of the detector's convolutions; others do not concern it.

    Raises:
      ValueError: an unknown group or entry, or weights that do not fit.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        group, _, rest = name.partition("__")
        groups.setdefault(group, {})[rest] = value
    detector = {name: groups.pop(name) for name in list(groups) if name.startswith("e2e")}
    elsewhere = {name: groups.pop(name) for name in _ELSEWHERE if name in groups}
    if unknown := set(groups) - set(_GROUPS):
        raise ValueError(f"{min(unknown)}__: no such group of a detector's arrays")
    for group, content in groups.items():
        compared = list(_GROUPS[group](content))
        for check in compared:
            yield Check(f"{group}__{check.name}", check.error, check.tolerance, check.unit)
    if detector:
        yield from _compare_detector(detector, overrides.get("dtype", "float32"))
    if elsewhere:
        number = sum(map(len, elsewhere.values()))
        print(
            f"  {number} arrays of {', '.join(elsewhere)} are not compared: they are outputs of "
            "weights that are not in the file",
            file=sys.stderr,
        )


def _compare_pooling(arrays: Arrays) -> Iterator[Check]:
    cells, rois = jnp.asarray(arrays["feat"]).transpose(1, 2, 0), jnp.asarray(arrays["rois"])
    size = jnp.array(cells.shape[:2])
    pattern = re.compile(r"(legacy|aligned)_(\d+)_sr(\d+)|roipool_(\d+)")
    found = {name: pattern.fullmatch(name) for name in arrays if name not in ("feat", "rois")}
    _all_known(found)

    @jax.jit
    def run(cells: jax.Array, rois: jax.Array) -> dict[str, jax.Array]:
        pooled = {}
        for name, (convention, bins, samples, pool_bins) in (
            (name, match.groups()) for name, match in found.items()
        ):
            if pool_bins:
                pooled[name] = roi.roi_pool(cells, size, _STRIDE, rois, bins=int(pool_bins))
                continue
            maps = roi.join([cells], [size], [_STRIDE])
            options = dict(bins=int(bins), samples=int(samples), aligned=convention == "aligned")
            pooled[name] = roi.roi_align(maps, rois, **options)
            if options["samples"]:  # else it is products anyway
                pooled[f"{name} by products"] = roi.align_by_products(maps, rois, **options)
        return pooled

    for name, value in run(cells, rois).items():
        expected = arrays[name.split(" ")[0]]
        yield absolute(name, value.transpose(0, 3, 1, 2), expected, ROI_ATOL)


def _compare_levels(arrays: Arrays) -> Iterator[Check]:
    _all_known({name: name in ("boxes", "legacy_plus1") for name in arrays})
    ours = jax.jit(lambda b: boxes.pyramid_level(b, 2, 5, inclusive=True))(arrays["boxes"])
    yield absolute("legacy_plus1", ours, arrays["legacy_plus1"], 0.0)


def _compare_anchors(arrays: Arrays) -> Iterator[Check]:
    bases = dict(zip((f"x152_base_s{s}" for s in fpn.STRIDES), fpn.anchors(), strict=True))
    bases |= {f"c4_{name}_base": c4.base_anchors(kind) for name, kind in _ANCHORS.items()}
    grids = {
        f"x152_grid_s{_STRIDE}_3x4": bases[f"x152_base_s{_STRIDE}"],
        "c4_caffe_grid_3x4": bases["c4_caffe_base"],
    }
    ours = bases | {name: boxes.grid_anchors(base, _STRIDE, *_GRID) for name, base in grids.items()}
    _all_known({name: name in ours for name in arrays})
    for name, expected in arrays.items():
        yield absolute(name, ours[name], expected, 0.0)


_ANCHORS = {"caffe": "caffe", "d2": "exact"}


def _compare_coding(arrays: Arrays) -> Iterator[Check]:
    source, deltas, targets = (jnp.asarray(arrays[name]) for name in ("src", "deltas", "gt"))

    @jax.jit
    def run(source: jax.Array, deltas: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        ours, weights = {}, fpn.DELTA_WEIGHTS
        for name, inclusive in _CONVENTIONS.items():
            decode = functools.partial(boxes.decode, inclusive=inclusive)
            by_class = deltas.reshape(len(deltas), -1, 4)
            ours[f"decode_roi_{name}"] = decode(source[:, None], by_class, weights)
            ours[f"decode_rpn_{name}"] = decode(source, deltas[:, :4] / 4, (1, 1, 1, 1))
            ours[f"encode_roi_{name}"] = boxes.encode(source, targets, weights, inclusive=inclusive)
        return ours

    ours = run(source, deltas, targets)
    _all_known({name: name in ours or name in ("src", "deltas", "gt") for name in arrays})
    for name in sorted(set(ours) & set(arrays)):
        yield relative(name, ours[name], arrays[name], FLOAT_RTOL)


def _compare_suppression(arrays: Arrays) -> Iterator[Check]:
    kept = {name: re.fullmatch(r"keep_(legacy|modern)_(\d)", name) for name in arrays}
    ties = {
        name: re.fullmatch(r"tie_(legacy|modern)_(strict|ge)", name)
        for name in arrays
        if name != "tie_boxes"
    }
    given = ("boxes", "scores", "tie_boxes")
    _all_known({name: name in given or kept[name] or ties[name] for name in arrays})
    order = np.argsort(-arrays["scores"], kind="stable")
    ranked = jnp.asarray(arrays["boxes"])[order]
    everything = jnp.ones(len(ranked), bool)
    wanted = {n: (int(match[2]) / 10, match[1]) for n, match in kept.items() if match}

    @jax.jit
    def run(ranked: jax.Array, thresholds: jax.Array) -> dict[str, jax.Array]:
        found = {}
        for convention, inclusive in _CONVENTIONS.items():
            for kind, function in (("", nms.keep), (" by tiles", nms.keep_by_tiles)):
                single = functools.partial(function, ranked, everything, inclusive=inclusive)
                found[convention + kind] = jax.vmap(single)(thresholds)
        return found

    thresholds = sorted({threshold for threshold, _ in wanted.values()})
    found = run(ranked, np.array(thresholds, np.float32))
    for name, (threshold, convention) in wanted.items():
        for kind in ("", " by tiles"):
            row = found[convention + kind][thresholds.index(threshold)]
            yield absolute(name + kind, order[np.asarray(row)], arrays[name], 0.0)
    for name, match in ties.items():
        if match:
            # Rows 0 and 1 touch the threshold with inclusive corners, the others without.
            inclusive = _CONVENTIONS[match[1]]
            pair = jnp.asarray(arrays["tie_boxes"])[:2] if inclusive else arrays["tie_boxes"][2:]
            row = jax.jit(
                functools.partial(nms.keep, inclusive=inclusive, strict=match[2] == "strict")
            )(jnp.asarray(pair), jnp.ones(2, bool), 0.5)
            yield absolute(name, np.flatnonzero(row), arrays[name], 0.0)


def _compare_selection(arrays: Arrays) -> Iterator[Check]:
    given, probs = jnp.asarray(arrays["boxes"]), jnp.asarray(arrays["probs"])[:, 1:]
    there = jnp.ones(len(given), bool)
    known = ("boxes", "probs", "max_conf", "top50", "pairs_needed")
    _all_known({n: n in known or n in ("maxnms_thr", "maxnms_keep36") for n in arrays})
    # Data as arguments: XLA sorts constants while it compiles, which takes seconds.
    run = jax.jit(functools.partial(nms.class_confidence, threshold=0.5, inclusive=True))
    confidence = functools.partial(run, given, probs, there)
    yield absolute("max_conf", confidence(count=len(given)), arrays["max_conf"], 0.0)
    number = len(arrays["top50"])
    some = confidence(count=number)
    best, _ = nms.most_confident(some, number)
    yield absolute("top50", best, arrays["top50"], 0.0)
    needed = int(np.sum(np.asarray(probs) >= np.asarray(some[best[-1]])))
    yield absolute("pairs_needed", needed, arrays["pairs_needed"], 0.0)
    if "maxnms_keep36" not in arrays:
        return
    expected = arrays["maxnms_keep36"]
    run = jax.jit(functools.partial(nms.sweep, count=len(expected), inclusive=False))
    sweep = functools.partial(run, given, jnp.max(probs, axis=1), there)
    thresholds = np.array(_SWEEP, np.float32)
    yield absolute("maxnms_keep36", sweep(thresholds)[0], expected, 0.0)
    # A threshold alone, as often, shows whether it leaves enough.
    enough = [t for t in thresholds if np.all(sweep(np.full_like(thresholds, t))[1])]
    yield absolute("maxnms_thr", min(enough), arrays["maxnms_thr"], FLOAT_RTOL)


def _compare_sizes(arrays: Arrays) -> Iterator[Check]:
    _all_known({n: n in _RULES or n in ("in_hw", "x152_scale") for n in arrays})
    sizes = arrays["in_hw"].tolist()
    for name, rule in _RULES.items():
        if name in arrays:
            ours = [rule.size(height, width)[:2] for height, width in sizes]
            yield absolute(name, ours, arrays[name], 0.0)
    if "x152_scale" in arrays:
        scales = [_RULES["x152_script"].size(height, width)[2] for height, width in sizes]
        yield relative("x152_scale", scales, arrays["x152_scale"], FLOAT_RTOL)


def _compare_resizing(arrays: Arrays) -> Iterator[Check]:
    image = arrays["in"]
    for name, expected in arrays.items():
        if name in ("in", "fx"):
            continue
        by_scale = re.fullmatch(r"(up|down)(_fx[\d.]+)?", name)
        _all_known({name: by_scale})
        both = [
            taps(old, 1 / float(arrays["fx"]) if by_scale[2] else old / new, new)
            for old, new in zip(image.shape[:2], expected.shape[:2], strict=True)
        ]
        yield relative(name, jax.jit(resample)(image, *both), expected, FLOAT_RTOL)


def _compare_stem(arrays: Arrays) -> Iterator[Check]:
    _all_known({name: name in ("in", "pad1", "caffe_ceil") for name in arrays})
    # Poolings differ for values below 0, which the network has none of.
    low = arrays["in"].min()
    image = arrays["in"].transpose(0, 2, 3, 1) - low
    for name, open_border in (("pad1", False), ("caffe_ceil", True)):
        ours = jax.jit(functools.partial(stem_pool, open_border=open_border))(image)
        yield relative(name, ours.transpose(0, 3, 1, 2) + low, arrays[name], FLOAT_RTOL)


_GROUPS: dict[str, Callable[[Arrays], Iterator[Check]]] = {
    "ra": _compare_pooling,
    "lvl": _compare_levels,
    "anchor": _compare_anchors,
    "box": _compare_coding,
    "nms": _compare_suppression,
    "sel": _compare_selection,
    "size": _compare_sizes,
    "resize": _compare_resizing,
    "pool": _compare_stem,
}


def _all_known(found: Mapping[str, Any]) -> None:
    for name, known in found.items():
        if not known:
            raise ValueError(f"{name}: no such output of a detector's part")


def _compare_detector(groups: Mapping[str, Arrays], dtype: str) -> Iterator[Check]:
    image = groups["e2e"]["rgb_image"]
    padded, clipped = groups["e2e_padclip"], groups["e2e_imgclip"]
    config, params, _ = from_state_dict("fpn", groups["e2e_sd"], dtype=dtype)
    _, rows, columns = groups["e2e"]["net_input"].shape
    detector = FpnDetector(
        config,
        num_regions=len(padded["top20"]),
        canvases=((rows + _EXTRA, columns + _EXTRA),),
        resizing=Resizing(min(image.shape[:2]), max(image.shape[:2])),
        proposals=ProposalConfig(_BEFORE, _AFTER, len(padded["proposals"])),
    )
    canvas = detector.preprocess(image)
    recorded = jnp.stack([padded["proposals"], clipped["proposals"]])
    network = FpnNetwork(config)

    @jax.jit
    def run(params: Any, given: jax.Array) -> dict[str, Any]:
        (maps, sizes), seen = network.apply(
            {"params": params},
            canvas.pixels,
            fpn.padded(canvas.sizes),
            method="pyramid",
            capture_intermediates=lambda module, _: isinstance(module, ResNet),
        )
        stages, _ = seen["intermediates"]["body"]["__call__"][0]
        outputs = [
            network.apply({"params": params}, *level, method="region_proposals")
            for level in zip(maps, sizes, strict=True)
        ]
        photo = jax.tree.map(lambda x: x[0], (maps, sizes, outputs))
        joined = fpn.describing(*photo[:2])

        def of_group(border: jax.Array, there: jax.Array) -> dict[str, jax.Array]:
            found, proposed = detector.of_photo(params, *photo, border, canvas.scales[0])
            # From here on with the recorded boxes: near ties may be ordered otherwise.
            head = detector.head(params, joined, there)
            probs, everything = jax.nn.softmax(head.logits), jnp.ones(len(there), bool)
            choose = dataclasses.replace(detector, num_regions=len(there)).choose
            confidence, (best, _) = choose(there, probs, everything)
            return {
                "proposals": proposed.boxes,
                "objectness": jax.nn.sigmoid(proposed.logits),
                "fc6": head.features,
                "logits": head.logits,
                "bbox_deltas": head.deltas.reshape(len(there), -1),
                "levels": boxes.pyramid_level(there, 2, 5, inclusive=True),
                "max_conf": confidence,
                "top20": best[: detector.num_regions],
                "top20_boxes": found.boxes,
                "top20_fc6": found.features,
            }

        borders = jnp.stack([fpn.padded(canvas.sizes[0]), canvas.sizes[0]])
        both = jax.vmap(of_group)(borders, given)
        found = {group: {n: v[i] for n, v in both.items()} for i, group in enumerate(_CLIPS)}
        levels = both["levels"][0, :3] - fpn.LOWEST
        pooled = roi.roi_align(joined, given[0, :3], levels, bins=fpn.BINS)
        found["e2e_padclip"] |= {f"p{i + 2}": m for i, m in enumerate(maps)}
        found["e2e_padclip"] |= {name: stages[i] for name, i in (("stem", 0), ("c4", 3), ("c5", 4))}
        found["e2e_padclip"] |= {"pooled_first3": pooled.transpose(0, 3, 1, 2)}
        return found

    ours = jax.device_get(run(params, recorded))
    pixels = np.asarray(canvas.pixels)[0, :rows, :columns].transpose(2, 0, 1)
    yield relative("e2e__net_input", pixels, groups["e2e"]["net_input"], FLOAT_RTOL)
    for group in _CLIPS:
        given = groups[group]
        _all_known({f"{group}__{name}": name in ours[group] for name in given})
        for name, expected in given.items():
            value, label = ours[group][name], f"{group}__{name}"
            if expected.ndim == 4 and name != "pooled_first3":
                height, width = expected.shape[2:]
                value = value[:, :height, :width].transpose(0, 3, 1, 2)
            if name == "proposals":
                distance = np.abs(value[:, None] - expected).max(-1)
                apart = max(distance.min(0).max(), distance.min(1).max()) / expected.max()
                yield Check(f"{label} as a set", float(apart), DETECTOR_RTOL, "rel")
            elif expected.dtype.kind == "i":
                yield absolute(label, value, expected, 0.0)
            else:
                yield relative(label, value, expected, DETECTOR_RTOL)
