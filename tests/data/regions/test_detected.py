"""Detectors as extractors: photos in batches over all devices, resumed, counted and drawn."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from reference.c4_detector import random_state

from twelve_in_one.convert import detectors, faster_rcnn, small_detector
from twelve_in_one.data.regions import extract, extraction, open_store
from twelve_in_one.data.regions.detected import DetectorExtractor
