"""NudeNet: boxes of body parts, covered and exposed, by the YOLOv8 network that the package `nudenet` brings along.

The package's own detector opens a session per object and feeds one image at a time; here batches go through one session. Preparation,
candidates and suppression are those of version 3.4.2, choice by choice a setting, because they move the numbers between versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from palimpsest import packaged, specs
from palimpsest.detectors.contract import Info, MissingWeights, check_images, identity, no_questions

if TYPE_CHECKING:
    import numpy as np

INFO = Info(
    name="nudenet",
    title="NudeNet",
    paper="Bedapudi 2019, NudeNet: Neural Nets for Nudity Classification, Detection and selective censoring",
    bibtex="""@misc{bedapudi2019nudenet,
  title={{NudeNet}: Neural Nets for Nudity Classification, Detection and selective censoring},
  author={Bedapudi, Praneeth},
  year={2019}
}""",
    code="https://github.com/notAI-tech/NudeNet",
    licence="AGPL-3.0",
    definition_id="nudenet/1",
    weights="package:nudenet/320n.onnx",
)
questions = no_questions
CLASSES = (
    "FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED", "BELLY_COVERED", "FEET_COVERED", "ARMPITS_COVERED", "ARMPITS_EXPOSED",
    "FACE_MALE", "BELLY_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED", "BUTTOCKS_COVERED",
)  # fmt: skip
"""In the order of the network's outputs."""
CANDIDATE, KEPT, OVERLAP = 0.2, 0.25, 0.45
"""Least class score of a candidate box, of a kept box, and the largest overlap (intersection over union) of two boxes that both stay."""

Share = Annotated[float, Field(ge=0, le=1)]


class Settings(specs.Strict):
    """Choices that differ between versions of NudeNet and its copies; the defaults are those of 3.4.2 on image files."""

    channel_order: Literal["bgr", "rgb"] = Field(
        "bgr",
        description="Colour of the network's first channel. 3.4.2 feeds blue first when it reads a file; older versions red.",
    )
    letterbox: Literal["bottom_right", "centre", "none"] = Field(
        "bottom_right",
        description="Where an image that is not square is padded with black; none stretches it.",
    )
    nms: Literal["agnostic", "per_class"] = Field(
        "agnostic", description="Whether a box suppresses boxes of other classes that it overlaps."
    )
    resolution: Annotated[int, Field(ge=32, multiple_of=32)] = Field(
        320, description="Side of the network's input: 320 for 320n.onnx, 640 for 640m.onnx."
    )
    counted_above: Share = Field(
        0.4, description="Boxes above this score are counted; the benchmark's scripts use 0.4."
    )


@dataclass(eq=False)
class NudeNet:
    """An open session and its settings. digest: SHA-256 of the weights."""

    session: Any
    spec: specs.Detector
    settings: Settings
    digest: str

    @property
    def counted_above(self) -> float:
        return self.settings.counted_above

    def labels(self, questions: Mapping[str, str]) -> Sequence[str]:
        """The 18 classes."""
        return CLASSES

    def boxes(self, images: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Scores of the boxes of uint8 RGB images [B, H, W, 3] per class and image, largest first; none is below 0.25."""
        import numpy as np

        check_images(images)
        found: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
        for start in range(0, len(images), self.spec.batch):
            chunk = images[start : start + self.spec.batch]
            blobs = np.stack([prepared(image, self.settings) for image in chunk])
            outputs = self.session.run(None, {self.session.get_inputs()[0].name: blobs})[0]
            for output in outputs:
                classes, scores = kept(output, chunk.shape[1:3], self.settings)
                for number, name in enumerate(CLASSES):
                    found[name].append(np.sort(scores[classes == number])[::-1].astype(np.float32))
        return found

    def score(self, images: np.ndarray, questions: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The largest score of every class, 0 without a box: float32 [B]. Raises ValueError when it is asked something."""
        from palimpsest.detectors.boxes import largest

        if questions:
            raise ValueError(f"nudenet is asked nothing, got {sorted(questions)}; it has its own classes")
        return largest(self.boxes(images))

    def identity(self) -> dict[str, Any]:
        """Detector, version of the package, digest of the weights, and every choice."""
        from importlib.metadata import version

        return identity(
            INFO,
            self.spec,
            version=version("nudenet"),
            sha256=self.digest,
            **self.settings.model_dump(),
            candidate_score=CANDIDATE,
            least_score=KEPT,
            largest_overlap=OVERLAP,
        )


def prepared(image: np.ndarray, settings: Settings) -> np.ndarray:
    """An image uint8 RGB [H, W, 3], padded to a square with black, resized (bilinear) and scaled: float32 [3, S, S] in [0, 1]."""
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    side = max(height, width)
    down, right = side - height, side - width
    if settings.letterbox == "bottom_right":
        image = cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_CONSTANT)
    elif settings.letterbox == "centre":
        top, left = down // 2, right // 2
        image = cv2.copyMakeBorder(image, top, down - top, left, right - left, cv2.BORDER_CONSTANT)
    size = (settings.resolution, settings.resolution)
    blue_first = settings.channel_order == "bgr"
    return np.asarray(
        cv2.dnn.blobFromImage(image, 1 / 255.0, size, (0, 0, 0), swapRB=blue_first, crop=False)[0]
    )


def kept(output: np.ndarray, shape: tuple[int, ...], settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers and scores of the boxes that stay: output float32 [22, anchors] (centre, size, 18 classes), shape: of the image.

    Boxes are cut at the image's border before they are compared, as in the package.
    """
    import cv2
    import numpy as np

    rows = output.T
    best = rows[:, 4:].max(axis=1)
    rows, best = rows[best >= CANDIDATE], best[best >= CANDIDATE]
    classes = rows[:, 4:].argmax(axis=1)
    if not len(rows):
        return classes, best
    corners = placed(rows[:, :4], shape, settings)
    given = (corners.tolist(), best.tolist())
    if settings.nms == "agnostic":
        stay = cv2.dnn.NMSBoxes(*given, KEPT, OVERLAP)
    else:
        stay = cv2.dnn.NMSBoxesBatched(*given, classes.tolist(), KEPT, OVERLAP)
    chosen = np.array(list(stay), dtype=np.int64)
    return classes[chosen], best[chosen]


def placed(boxes: np.ndarray, shape: tuple[int, ...], settings: Settings) -> np.ndarray:
    """Boxes [n, 4] (centre and size on the network's input) as left, top, width, height in pixels of the image, cut at its border."""
    import numpy as np

    height, width = shape
    side = max(height, width)
    spread = (width, height) if settings.letterbox == "none" else (side, side)
    offset = ((side - width) // 2, (side - height) // 2) if settings.letterbox == "centre" else (0, 0)
    size = boxes[:, 2:]
    corner = boxes[:, :2] - size / 2
    columns = []
    for axis, limit in ((0, width), (1, height)):
        start = corner[:, axis] * spread[axis] / settings.resolution - offset[axis]
        start = np.clip(start, 0, limit)
        length = np.minimum(size[:, axis] * spread[axis] / settings.resolution, limit - start)
        columns.append((start, length))
    return np.stack([columns[0][0], columns[1][0], columns[0][1], columns[1][1]], axis=1)


def load(spec: specs.Detector, device: str = "cpu") -> NudeNet:
    """Open the network on the CPU, where its numbers are the same every time. path: an ONNX file; empty: the package's own.

    Raises MissingWeights when the file is not there, ValueError for another number format.
    """
    import onnxruntime

    if spec.dtype != "float32":
        raise ValueError(f"detectors.<name>.dtype: NudeNet is computed in float32, not {spec.dtype}")
    settings = Settings.model_validate(spec.model_extra or {})
    path = spec.path or INFO.weights
    place = packaged.find(path) or Path(path)
    if not place.is_file():
        raise MissingWeights(
            f"NudeNet's weights {path!r} are not there; leave detectors.<name>.path out to take those of the package (`make setup`)"
        )
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    return NudeNet(session, spec, settings, digest)
