"""The twelve tasks of 12-in-1, in the paper's groups, and pretraining.

Sequence lengths, batch sizes and learning rates are those of the released task file; task ids are
the numbers of its keys. Missing task ids belong to datasets outside the twelve.
"""

from collections.abc import Mapping

from twelve_in_one.tasks.task import Task

# fmt: off
#                name         title              group id  head                kind      k    T    R batch   lr   M
TWELVE: tuple[Task, ...] = (
    Task("vqa",        "VQAv2",              "G1",  1, "vqa",              "answer",  1,  23, 101, 128, 4e-5),
    Task("vgqa",       "Visual Genome QA",   "G1",  2, "vqa",              "answer",  1,  26, 101, 128, 4e-5),
    Task("gqa",        "GQA",                "G1", 15, "gqa",              "answer",  1,  26, 101, 128, 4e-5),
    Task("coco",       "COCO retrieval",     "G2",  7, "image_text_match", "match",   4,  30, 101, 128, 2e-5),
    Task("flickr30k",  "Flickr30k retrieval","G2",  8, "image_text_match", "match",   4,  30, 101, 128, 2e-5),
    Task("refcoco",    "RefCOCO",            "G3",  9, "region_score",     "region",  1,  20, 101, 256, 2e-5),
    Task("refcoco+",   "RefCOCO+",           "G3", 10, "region_score",     "region",  1,  20, 101, 256, 2e-5),
    Task("refcocog",   "RefCOCOg",           "G3", 11, "region_score",     "region",  1,  20, 101, 256, 2e-5),
    Task("visual7w",   "Visual7W",           "G3",  4, "region_score",     "choice",  1,  20, 200, 256, 2e-5,   4),
    Task("guesswhat",  "GuessWhat",          "G3", 17, "region_score",     "choice",  1, 256, 306,  64, 2e-5, 204),
    Task("nlvr2",      "NLVR2",              "G4", 12, "image_pair",       "verdict", 2,  40, 101,  64, 2e-5),
    Task("snli_ve",    "SNLI-VE",            "G4", 13, "three_way",        "verdict", 1,  56, 101, 256, 2e-5),
)

# Its 37 slots and 36 tokens, batch size and learning rate are those of the released script.
CONCEPTUAL_CAPTIONS = Task("conceptual_captions", "Conceptual Captions", "pretraining", 0,
                           "alignment", "pretraining", 1, 36, 37, 512, 1e-4)
# fmt: on

TASKS: Mapping[str, Task] = {task.name: task for task in (*TWELVE, CONCEPTUAL_CAPTIONS)}
